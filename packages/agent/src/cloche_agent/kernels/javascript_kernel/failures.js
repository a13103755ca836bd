// How a cell failed, in the words of the protocol: name, value, traceback.
'use strict'

const util = require('node:util')

const { inspect, traceback } = require('./display')

const { Error, String } = globalThis

const LARGEST_TEXT = 1 << 20

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

function cut(text) {
  const half = LARGEST_TEXT / 2
  return text.length <= LARGEST_TEXT ? text : `${text.slice(0, half)}\n...\n${text.slice(-half)}`
}

module.exports = { Interrupted, SystemExit, describe }
