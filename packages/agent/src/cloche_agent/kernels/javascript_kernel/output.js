// What this process writes, without a state that an interrupt could leave half-way.
//
// An interrupt ends a cell's code at any point, also inside of Node's own: a stream that is stopped between "writing"
// and "written" waits for ever, and with it everything that is printed later. So cells print past Node's streams.
'use strict'

const { Buffer } = require('node:buffer')
const fs = require('node:fs')
const process = require('node:process')
const { Writable } = require('node:stream')

const { Atomics, Int32Array, SharedArrayBuffer } = globalThis

const PAUSE_MS = 1
const never = new Int32Array(new SharedArrayBuffer(4))

/** Write all of `data`, waiting while the agent does not read. What is interrupted is never written twice. */
function writeAll(descriptor, data) {
  let rest = data
  while (rest.length > 0) {
    try {
      rest = rest.subarray(fs.writeSync(descriptor, rest))
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error
      Atomics.wait(never, 0, 0, PAUSE_MS)
    }
  }
}

/** `process.stdout` and `process.stderr` of cells. */
class Output extends Writable {
  constructor(descriptor) {
    super({ decodeStrings: true })
    this.fd = descriptor
    this._type = 'pipe'
    this._isStdio = true
  }

  write(chunk, encoding, callback) {
    const after = typeof encoding === 'function' ? encoding : callback
    const data = typeof chunk === 'string'
      ? Buffer.from(chunk, typeof encoding === 'string' ? encoding : 'utf8')
      : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    writeAll(this.fd, data)
    if (typeof after === 'function') process.nextTick(after)
    return true
  }

  /** Stays open: a cell that ends its stdout must not silence the next one. */
  end(chunk, encoding, callback) {
    if (chunk !== undefined && chunk !== null && typeof chunk !== 'function') this.write(chunk, encoding)
    const after = [chunk, encoding, callback].find((argument) => typeof argument === 'function')
    if (after !== undefined) process.nextTick(after)
    return this
  }

  destroy() {
    return this
  }
}

/** Before anything has been printed: Node's console takes its streams at its first use. */
function replaceStreams() {
  for (const [name, descriptor] of [['stdout', 1], ['stderr', 2]]) {
    const stream = new Output(descriptor)
    Object.defineProperty(process, name, { value: stream, writable: true, configurable: true, enumerable: true })
  }
}

module.exports = { replaceStreams, writeAll }
