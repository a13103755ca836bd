// How a cell failed, in the words of the protocol: name, value, traceback.
'use strict'

const util = require('node:util')

const { inspect } = require('./display')

const { Error, Object, RegExp, Set, String } = globalThis

const LARGEST_TEXT = 1 << 20
const OUR_FOLDER = __dirname.replace(/[^\w/]/g, '\\$&')
const OUR_FRAME = new RegExp(`^\\s+at (.*[( ])?(node:|${OUR_FOLDER}/)`)

/** `process.exit()` of a cell: it ends the cell, the context lives on. */
class SystemExit extends Error {
  constructor(code) {
    super(String(code ?? 0))
    this.name = 'SystemExit'
    this.stack = `SystemExit: ${this.message}\na cell cannot end its context: restart or remove the context`
  }
}

/** The client has gone, or restarts the context. */
class Interrupted extends Error {
  constructor() {
    super('the execution was interrupted')
    this.name = 'InterruptedError'
    this.stack = `InterruptedError: ${this.message}`
  }
}

/** What was thrown, as the fields of an error. */
function describe(thrown) {
  if (!util.types.isNativeError(thrown) && !(thrown instanceof Error)) {
    return { name: 'Error', value: cut(inspect(thrown)), traceback: cut(`Uncaught ${inspect(thrown)}`) }
  }
  let name, value
  try {
    name = String(thrown.name || thrown.constructor.name)
    value = String(thrown.message)
  } catch {
    name = 'Error'
    value = '<error whose message cannot be read>'
  }
  return { name, value: cut(value), traceback: cut(traceback(thrown)) }
}

/** The stack, its causes and further fields, without the frames below the cell: those are the kernel's. */
function traceback(thrown) {
  if (!util.types.isNativeError(thrown)) return inspect(thrown)
  let hasMore = false
  const seen = new Set()
  for (let error = thrown; util.types.isNativeError(error) && !seen.has(error); error = error.cause) {
    seen.add(error)
    hasMore ||= Object.keys(error).some((key) => key !== 'name')
    try {
      error.stack = ownFrames(String(error.stack))
    } catch {
      break // frozen, or with a stack that throws: shown as it is
    }
  }
  return hasMore || seen.size > 1 || thrown.errors ? inspect(thrown) : String(thrown.stack)
}

function ownFrames(stack) {
  const lines = stack.split('\n').filter((line) => !OUR_FRAME.test(line))
  // What is put before a cell that awaits has columns below zero.
  return lines.join('\n').replace(/(cell-\d+:1):-\d+/g, '$1:1')
}

function cut(text) {
  const half = LARGEST_TEXT / 2
  return text.length <= LARGEST_TEXT ? text : `${text.slice(0, half)}\n...\n${text.slice(-half)}`
}

module.exports = { Interrupted, SystemExit, describe, traceback }
