// From the text of a cell to a script whose names stay, and can be declared again by a later cell.
//
// Every top-level declaration becomes an assignment to a property of globalThis, and imports become awaited loads. A
// cell that awaits is wrapped in an async function. The text keeps its lines, so that errors point at the right one.
'use strict'

const { Array, JSON, Math, Object, Set } = globalThis

const PREFIX = '(async () => { let $value; '
const SUFFIX = '\n; return $value })()'

/**
 * The script of a cell.
 *
 * @returns {{source: string, names: string[], isAsync: boolean, hasValue: boolean, columnOffset: number}} `names` are
 *   to be declared before it runs. Its completion value is the cell's, if it `hasValue`; if it `isAsync`, a promise of
 *   an array that holds the value.
 * @throws {SyntaxError} acorn's, with `pos`.
 */
function translate(acorn, text) {
  // Only the first line of a script may begin like that, and ours begins with something else.
  const code = text.replace(/^#!/, '//')
  const program = acorn.parse(code, {
    ecmaVersion: 'latest',
    sourceType: 'script',
    allowImportExportEverywhere: true,
    allowAwaitOutsideFunction: true,
  })
  return new Cell(code, program).translated()
}

class Cell {
  constructor(code, program) {
    this._code = code
    this._program = program
    this._edits = []
    this._imports = []
    this._hoisted = []
    this._names = new Set()
    this._isAsync = needsAsync(program)
    this._last = lastStatement(program.body)
  }

  translated() {
    for (const statement of this._program.body) this._statement(statement)
    this._metaProperties()
    const isAsync = this._isAsync
    const prefix = isAsync ? PREFIX + this._hoisted.join('') + this._imports.join('') : ''
    return {
      source: prefix + this._text() + (isAsync ? SUFFIX : ''),
      names: [...this._names],
      isAsync,
      hasValue: this._last !== undefined && this._last.type === 'ExpressionStatement',
      columnOffset: -prefix.length,
    }
  }

  _statement(node) {
    switch (node.type) {
      case 'VariableDeclaration':
        if (node.kind !== 'var' || this._isAsync) this._declaration(node)
        else for (const { id } of node.declarations) namesOf(id).forEach((name) => this._names.add(name))
        break
      case 'ClassDeclaration':
        this._names.add(node.id.name)
        this._edit(node.start, node.start, `;void (${node.id.name} = `)
        this._edit(node.end, node.end, ');')
        break
      case 'FunctionDeclaration':
        if (this._isAsync) this._hoist(node)
        break
      case 'ImportDeclaration':
        this._import(node)
        break
      case 'ExportNamedDeclaration':
        this._export(node)
        break
      case 'ExportDefaultDeclaration':
        this._exportDefault(node)
        break
      case 'ExportAllDeclaration':
        this._imports.push(`await $cloche.load(${source(node)}); `)
        this._edit(node.start, node.end, ';')
        break
      default:
        if (this._isAsync) this._insideAsync(node)
    }
  }

  // --- declarations

  /** `around` is what the declaration is put between; the first semicolon ends a line that has none. */
  _declaration(node, around = [';void (', ');']) {
    const [opening, closing] = around
    // `var x;` says nothing new about an x that is there.
    const omitted = node.kind === 'var' ? '' : ' = undefined'
    let at = node.start
    for (const { id, init, end } of node.declarations) {
      for (const name of namesOf(id)) this._names.add(name)
      this._edit(at, id.start, at === node.start ? `${opening}(` : ', (')
      this._edit(end, end, init ? ')' : `${omitted})`)
      at = end
    }
    this._edit(at, node.end, closing)
  }

  _insideAsync(node) {
    if (node === this._last && node.type === 'ExpressionStatement') {
      const end = this._code[node.end - 1] === ';' ? node.end - 1 : node.end
      this._edit(node.start, node.start, ';$value = [(')
      this._edit(end, node.end, ')];')
    }
    // `var` inside of blocks and loops belongs to the cell as well.
    walk(node, false, (inner, parent, key) => {
      if (inner.type !== 'VariableDeclaration' || inner.kind !== 'var') return
      if (/^For(In|Of)Statement$/.test(parent.type) && key === 'left') {
        const [{ id }] = inner.declarations
        for (const name of namesOf(id)) this._names.add(name)
        this._edit(inner.start, id.start, '')
      } else if (parent.type === 'ForStatement' && key === 'init') {
        this._declaration(inner, ['', ''])
      } else {
        // The only statement of an `if` or a loop may have none before it.
        this._declaration(inner, /^(BlockStatement|SwitchCase)$/.test(parent.type) ? undefined : ['void (', ');'])
      }
    })
  }

  _hoist(node) {
    this._names.add(node.id.name)
    this._hoisted.push(`globalThis.${node.id.name} = ${node.id.name}; `)
  }

  // --- modules

  _import(node) {
    const wanted = []
    for (const { type, local, imported } of node.specifiers) {
      this._names.add(local.name)
      let name = null // the whole namespace
      if (type === 'ImportDefaultSpecifier') name = 'default'
      if (type === 'ImportSpecifier') name = imported.name || imported.value
      wanted.push([local.name, name])
    }
    this._imports.push(`$cloche.bind(await $cloche.load(${source(node)}), ${JSON.stringify(wanted)}); `)
    this._edit(node.start, node.end, ';')
  }

  _export(node) {
    this._edit(node.start, node.declaration ? node.declaration.start : node.end, ';')
    if (node.declaration) this._statement(node.declaration)
  }

  _exportDefault({ start, declaration }) {
    this._edit(start, declaration.start, ';')
    if (!/^(Class|Function)Declaration$/.test(declaration.type)) return
    if (declaration.id) {
      this._statement(declaration)
    } else {
      this._edit(declaration.start, declaration.start, '(')
      this._edit(declaration.end, declaration.end, ');')
    }
  }

  _metaProperties() {
    walk(this._program, true, (node) => {
      if (node.type === 'MetaProperty' && node.meta.name === 'import') this._edit(node.start, node.end, '$cloche.meta')
    })
  }

  // --- editing

  /** `text` for what is there from `start` to `end`; its line ends stay. */
  _edit(start, end, text) {
    const lines = this._code.slice(start, end).replace(/[^\n\r\u2028\u2029]/g, '')
    this._edits.push({ start, end, text: text + lines, order: this._edits.length })
  }

  _text() {
    const edits = this._edits.sort((a, b) => a.start - b.start || a.end - b.end || a.order - b.order)
    const pieces = []
    let at = 0
    for (const { start, end, text } of edits) {
      pieces.push(this._code.slice(at, start), text)
      at = Math.max(at, end)
    }
    return pieces.join('') + this._code.slice(at)
  }
}

/** The statement whose value is the cell's: declared functions and empty statements are no last word. */
function lastStatement(body) {
  return body.filter(({ type }) => type !== 'FunctionDeclaration' && type !== 'EmptyStatement').pop()
}

/** Whether the cell awaits or imports, outside of its functions. */
function needsAsync(program) {
  let found = false
  walk(program, false, (node) => {
    found ||= /^(AwaitExpression|ImportDeclaration|ExportAllDeclaration)$/.test(node.type)
    found ||= node.type === 'ForOfStatement' && node.await
  })
  return found
}

/** A module's name, and its attributes, as arguments of a call. */
function source(node) {
  const attributes = (node.attributes || []).map(({ key, value }) => [key.name || key.value, value.value])
  const options = attributes.length ? `, ${JSON.stringify({ with: Object.fromEntries(attributes) })}` : ''
  return JSON.stringify(node.source.value) + options
}

/** The names that a declaration's pattern binds. */
function namesOf(pattern) {
  switch (pattern && pattern.type) {
    case 'Identifier':
      return [pattern.name]
    case 'ObjectPattern':
      return pattern.properties.flatMap((property) => namesOf(property.value || property.argument))
    case 'ArrayPattern':
      return pattern.elements.flatMap(namesOf)
    case 'AssignmentPattern':
      return namesOf(pattern.left)
    case 'RestElement':
      return namesOf(pattern.argument)
    default:
      return []
  }
}

/** Visit a tree; not `everywhere`: without functions and bodies of classes, whose names and awaits are their own. */
function walk(node, everywhere, visit, parent = null, key = '') {
  visit(node, parent, key)
  if (!everywhere && parent !== null && /Function|^ClassBody$/.test(node.type)) return
  for (const name of Object.keys(node)) {
    const child = node[name]
    for (const item of Array.isArray(child) ? child : [child]) {
      if (item !== null && typeof item === 'object' && typeof item.type === 'string') {
        walk(item, everywhere, visit, node, name)
      }
    }
  }
}

module.exports = { translate }
