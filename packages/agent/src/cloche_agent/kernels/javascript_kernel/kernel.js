// The context of this process: runs cells one after the other, and outlives whatever they do.
'use strict'

const { Buffer } = require('node:buffer')
const process = require('node:process')
const { clearInterval, setInterval } = require('node:timers')
const util = require('node:util')
const vm = require('node:vm')

const { Compiler } = require('./compile')
const { bundleOf, makeDisplay, traceback } = require('./display')
const { Interrupted, SystemExit, describe } = require('./failures')
const { LARGEST_FRAME_BYTES } = require('./frames')
const { Interrupts } = require('./interrupts')
const modules = require('./modules')
const { replaceStreams, writeAll } = require('./output')
const randomness = require('./randomness')

const { Object, Promise, String } = globalThis

const INTERRUPTED = 'ERR_SCRIPT_EXECUTION_INTERRUPTED'
const LOOK_MS = 50

/** One context. */
class Kernel {
  /** Change this process for the cells; `env` is the sandbox's. */
  constructor(channel, acorn, env, isTypeScript) {
    this._channel = channel
    this._compiler = new Compiler(acorn)
    this._isTypeScript = isTypeScript
    this._env = env
    this._count = 0
    this._isRunning = false
    this._interrupts = new Interrupts()
    replaceStreams()
    randomness.install()
    this._defineGlobals()
    this._guardProcess()
  }

  /** The agent's next message: a run. It comes when the one before is done. */
  receive(message) {
    // Whatever happens in there is reported in there.
    void this._execute(message)
  }

  async _execute({ id, code, env, env_vars: variables, settle, renew }) {
    if (renew) randomness.renew()
    if (settle) this._interrupts.settle()
    this._interrupts.take() // one that the agent has not sent
    if (env !== null && env !== undefined) this._renewEnvironment(env)
    this._count += 1
    this._isRunning = true
    this._channel.send({ type: 'started', id, count: this._count })
    const before = setVariables(variables)
    try {
      await this._runCell(code, `cell-${this._count}`)
    } catch (error) {
      this._channel.send({ type: 'error', ...describe(error) })
    } finally {
      restoreVariables(before)
      this._isRunning = false
      this._channel.send({ type: 'done', id })
    }
  }

  async _runCell(code, filename) {
    const cell = this._compiler.compile(code, filename, this._isTypeScript)
    cell.names.forEach(declare)
    const value = await this._valueOf(cell)
    if (cell.hasValue && value !== undefined) this._show(bundleOf(value), true)
  }

  async _valueOf({ script, isAsync }) {
    let value
    try {
      this._channel.isInterruptible = true
      value = script.runInThisContext({ breakOnSigint: true, displayErrors: false })
    } catch (error) {
      if (error?.code !== INTERRUPTED) throw error
      modules.forgetHalfLoaded()
      throw new Interrupted()
    } finally {
      this._channel.isInterruptible = false
    }
    if (isAsync) value = (await this._settled(value))?.[0]
    return util.types.isPromise(value) ? this._settled(value) : value
  }

  /** What a promise comes to, or an error when the agent interrupts: its code may go on, unheard. */
  async _settled(promise) {
    let watch
    const interrupted = new Promise((_, reject) => {
      watch = setInterval(() => {
        if (this._interrupts.take()) reject(new Interrupted())
      }, LOOK_MS)
    })
    try {
      return await Promise.race([promise, interrupted])
    } finally {
      clearInterval(watch)
    }
  }

  _show(bundle, isMain) {
    if (!this._isRunning) return
    while (!this._channel.send({ type: 'result', main: isMain, bundle })) {
      const size = (mime) => String(bundle[mime]?.length ?? 0).padStart(12, '0')
      const largest = Object.keys(bundle).sort((a, b) => (size(a) < size(b) ? 1 : -1))[0]
      complain(`${largest} of a result left out: larger than ${LARGEST_FRAME_BYTES >> 20} MiB`)
      delete bundle[largest]
    }
  }

  // --- this process

  _defineGlobals() {
    const display = makeDisplay((bundle) => this._show(bundle, false))
    const module = { exports: {}, children: [], paths: [] }
    const globals = { require: modules.makeRequire(), module, exports: module.exports, display, $$: display }
    for (const [name, value] of Object.entries(globals)) {
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false })
    }
    // What translated cells call (cells.js).
    const ours = { load: modules.load, bind: modules.bind }
    Object.defineProperty(ours, 'meta', { get: modules.meta })
    Object.defineProperty(globalThis, '$cloche', { value: Object.freeze(ours) })
  }

  _guardProcess() {
    process.exit = (code) => {
      throw new SystemExit(code ?? process.exitCode)
    }
    const emitWarning = process.emitWarning.bind(process)
    process.emitWarning = (warning, ...details) => {
      // Said at the first import() of a cell: the cell has not asked for the loader we use.
      if (!String(warning).startsWith('vm.USE_MAIN_CONTEXT_DEFAULT_LOADER')) emitWarning(warning, ...details)
    }
    // Of timers and callbacks: nobody waits for them, and the context lives on.
    process.on('uncaughtException', (error) => complain(`Uncaught ${traceback(error)}`))
    process.on('unhandledRejection', (reason) => complain(`Unhandled rejection: ${traceback(reason)}`))
  }

  /** The sandbox's own variables have changed: follow, and leave those of the cells alone. */
  _renewEnvironment(env) {
    for (const name of Object.keys(this._env)) if (!(name in env)) delete process.env[name]
    for (const [name, value] of Object.entries(env)) if (this._env[name] !== value) process.env[name] = value
    this._env = env
  }
}

/** Make a name of a cell a property of globalThis, whatever Node keeps there: `const crypto = ...` is common. */
function declare(name) {
  const known = Object.getOwnPropertyDescriptor(globalThis, name)
  if (known !== undefined && (known.writable || !known.configurable)) return
  Object.defineProperty(globalThis, name, { value: undefined, writable: true, configurable: true, enumerable: true })
}

function setVariables(variables) {
  const before = Object.entries(variables).map(([name]) => [name, process.env[name]])
  Object.assign(process.env, variables)
  return before
}

function restoreVariables(before) {
  for (const [name, value] of before) {
    if (value === undefined) delete process.env[name]
    else process.env[name] = value
  }
}

function complain(text) {
  writeAll(2, Buffer.from(`${text}\n`))
}

module.exports = { Kernel }
