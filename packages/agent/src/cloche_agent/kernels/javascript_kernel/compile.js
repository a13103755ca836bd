// The text of a cell, in JavaScript or TypeScript, as a script that can run.
'use strict'

const Module = require('node:module')
const vm = require('node:vm')

const { translate } = require('./cells')
const { importModuleDynamically, requireGlobal } = require('./modules')

const { Error, String, SyntaxError } = globalThis

const SWC = '@swc/wasm-typescript'

/** The parser that Node carries for its own prompt; a package where some Node has it elsewhere. @throws neither. */
function findParser() {
  try {
    return require('internal/deps/acorn/acorn/dist/acorn')
  } catch {
    return requireGlobal('acorn')
  }
}

/** Makes scripts of cells. */
class Compiler {
  constructor(acorn) {
    this._acorn = acorn
    this._strip = undefined
  }

  /**
   * @param {string} code
   * @param {string} filename as errors show it.
   * @param {boolean} isTypeScript JavaScript with types is taken too, where it is no JavaScript without.
   * @returns {{script: vm.Script, names: string[], isAsync: boolean, hasValue: boolean}}
   * @throws {SyntaxError}
   */
  compile(code, filename, isTypeScript) {
    const { source, columnOffset, ...cell } = this._translate(code, filename, isTypeScript)
    const script = new vm.Script(source, { filename, columnOffset, importModuleDynamically })
    return { script, ...cell }
  }

  _translate(code, filename, isTypeScript) {
    if (isTypeScript) return translate(this._acorn, this._withoutTypes(code, filename))
    try {
      return translate(this._acorn, code)
    } catch (error) {
      try {
        return translate(this._acorn, this._withoutTypes(code, filename))
      } catch {
        throw nativeError(code, filename, error)
      }
    }
  }

  _withoutTypes(code, filename) {
    this._strip ??= findStripper()
    return this._strip(code, filename)
  }
}

/** V8 explains a syntax error better; not where it only dislikes that the cell awaits or imports. */
function nativeError(code, filename, error) {
  try {
    new vm.Script(code, { filename })
  } catch (native) {
    if (!/await|import|export/.test(native.message)) return native
  }
  const line = code.split('\n')[error.loc.line - 1] ?? ''
  const wrong = new SyntaxError(error.message.replace(/ \(\d+:\d+\)$/, ''))
  wrong.stack = `${filename}:${error.loc.line}\n${line}\n${' '.repeat(error.loc.column)}^\n\nSyntaxError: ${wrong.message}`
  return wrong
}

/** What removes types: Node itself from 22.13 on, else a package. */
function findStripper() {
  if (typeof Module.stripTypeScriptTypes === 'function') {
    return (code) => {
      try {
        return Module.stripTypeScriptTypes(code)
      } catch {
        return Module.stripTypeScriptTypes(code, { mode: 'transform' })
      }
    }
  }
  let swc
  try {
    swc = requireGlobal(SWC)
  } catch {
    throw new Error(`code in TypeScript needs Node.js >= 22.13, or the npm package ${SWC} (npm install -g ${SWC})`)
  }
  return (code, filename) => stripWith(swc, code, filename)
}

function stripWith(swc, code, filename) {
  // Blanks for types, so that positions stay; enums and namespaces have to be written anew.
  for (const mode of ['strip-only', 'transform']) {
    try {
      return swc.transformSync(code, { mode, filename, module: true }).code
    } catch (error) {
      if (error?.code === 'UnsupportedSyntax' && mode === 'strip-only') continue
      const wrong = new SyntaxError(error?.message ?? String(error))
      wrong.stack = `${filename}:${error?.startLine}\n${error?.snippet ?? ''}\nSyntaxError: ${wrong.message}`
      throw wrong
    }
  }
  throw new SyntaxError('cannot remove types')
}

module.exports = { Compiler, findParser }
