// `require` and `import` of cells: resolved from the working folder, then from where `npm install -g` puts packages.
'use strict'

const fs = require('node:fs')
const Module = require('node:module')
const path = require('node:path')
const process = require('node:process')
const { pathToFileURL } = require('node:url')
const vm = require('node:vm')

const { Boolean, Error, Map, Object, SyntaxError } = globalThis

/** Folders of global packages: npm's own prefix first. */
const GLOBAL_FOLDERS = [
  path.resolve(process.execPath, '../../lib/node_modules'),
  '/usr/local/lib/node_modules',
  '/usr/lib/node_modules',
]

// The loader of the main context resolves from the working folder; where it cannot be asked for, from here.
const importModuleDynamically = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER ?? ((name) => import(name))
const nativeImport = new vm.Script('(name, options) => import(name, options)', { importModuleDynamically })
  .runInThisContext()

/** `require` as if the cell were a file of the working folder. */
function makeRequire() {
  const inFolder = () => Module.createRequire(path.join(process.cwd(), 'cell.js'))
  const withGlobals = (use) => {
    try {
      return use(inFolder(), undefined)
    } catch (error) {
      const isMissing = error?.code === 'MODULE_NOT_FOUND' && error.requireStack?.length === 1
      if (!isMissing) throw error
      const found = findGlobal(error)
      if (found === undefined) throw error
      return use(inFolder(), found)
    }
  }
  const require = (name) => withGlobals((inner, found) => inner(found ?? name))
  require.resolve = (name, options) => withGlobals((inner, found) => found ?? inner.resolve(name, options))
  require.cache = Module._cache
  require.extensions = Module._extensions
  require.main = undefined
  return require
}

/** Where a package that was not found lies globally. */
function findGlobal(error) {
  const name = /^Cannot find module '([^']+)'/.exec(error.message)?.[1]
  if (name === undefined || /^[./]/.test(name)) return undefined
  for (const folder of GLOBAL_FOLDERS) {
    try {
      return Module.createRequire(path.join(folder, '..', 'cell.js')).resolve(name)
    } catch {
      continue
    }
  }
  return undefined
}

/** `import(name)`, from the working folder or a global one. */
async function load(name, options) {
  try {
    return await nativeImport(name, options)
  } catch (error) {
    if (error?.code !== 'ERR_MODULE_NOT_FOUND' || /^[./]|^\w+:/.test(name)) throw error
    // Names the package and its folder: with a package.json its own `exports` can be asked for.
    const found = globalEntry(name)
    if (found === undefined) throw error
    return nativeImport(pathToFileURL(found).href, options)
  }
}

function globalEntry(name) {
  const packageName = name.split('/').slice(0, name.startsWith('@') ? 2 : 1).join('/')
  const folder = GLOBAL_FOLDERS.find((candidate) => fs.existsSync(path.join(candidate, packageName)))
  if (folder === undefined) return undefined
  try {
    const own = Module.createRequire(path.join(folder, packageName, 'package.json'))
    return own.resolve(name) // by its own name: its `exports`, if it has any
  } catch {
    return findGlobal({ message: `Cannot find module '${name}'` })
  }
}

/** Names of an import as properties of globalThis; `wanted` is [local, exported or null for all of it]. */
function bind(namespace, wanted) {
  for (const [local, name] of wanted) {
    globalThis[local] = name === null ? namespace : exported(namespace, name)
  }
}

function exported(namespace, name) {
  if (name in namespace) return namespace[name]
  const whole = namespace.default
  // A CommonJS module whose names could not be told from its text.
  if (whole !== null && (typeof whole === 'object' || typeof whole === 'function') && name in whole) return whole[name]
  throw new SyntaxError(`The requested module does not provide an export named '${name}'`)
}

/** `import.meta` of a cell. */
function meta() {
  const filename = path.join(process.cwd(), 'cell.js')
  return Object.assign(Object.create(null), {
    dirname: process.cwd(),
    filename,
    url: pathToFileURL(filename).href,
    resolve: (name) => pathToFileURL(makeRequire().resolve(name)).href,
  })
}

/** After an interrupt: what it has stopped in the middle of its loading is loaded anew when it is next asked for. */
function forgetHalfLoaded() {
  // Both notes are taken back in a `finally`, which the end of a script leaves out. With its note of loading, a module
  // gives out for ever what it had exported until then.
  for (const builtin of builtins().values()) if (builtin.loading) builtin.loading = false
  for (const [file, module] of Object.entries(Module._cache)) if (!module.loaded) delete Module._cache[file]
}

/** Node's own modules by name; none where some Node keeps them elsewhere. */
function builtins() {
  try {
    return require('internal/modules/helpers').loadBuiltinModule('fs').constructor.map
  } catch {
    return new Map()
  }
}

/** A package that the kernel itself needs, from a global folder. @throws where it is in none. */
function requireGlobal(name) {
  const folders = [...(process.env.NODE_PATH ?? '').split(':').filter(Boolean), ...GLOBAL_FOLDERS]
  const folder = folders.find((candidate) => fs.existsSync(path.join(candidate, name, 'package.json')))
  if (folder === undefined) throw new Error(`no package ${name}`)
  return require(path.join(folder, name))
}

module.exports = { bind, forgetHalfLoaded, importModuleDynamically, load, makeRequire, meta, requireGlobal }
