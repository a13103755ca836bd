// Frames between agent and kernel (docs/kernels.md): four bytes of length, big endian, then that much JSON.
'use strict'

const { Buffer } = require('node:buffer')
const net = require('node:net')
const process = require('node:process')
const { setImmediate } = require('node:timers')

const { writeAll } = require('./output')

const { JSON } = globalThis
const LARGEST_FRAME_BYTES = 32 << 20
// What a socket takes whole or not at all: an interrupt cannot leave half of it.
const WHOLE_BYTES = 64 << 10

/** The socket to the agent. When the agent closes it, this process ends. */
class Channel {
  /** `onMessage` gets every message, in order. */
  constructor(descriptor, onMessage) {
    this._descriptor = descriptor
    /** Whether code runs that an interrupt may end at any point: a large frame waits until it is over. */
    this.isInterruptible = false
    this._pieces = []
    this._size = 0
    this._waiting = []
    // Read as a stream; written past it (output.js says why).
    this._socket = new net.Socket({ fd: descriptor, readable: true, writable: false })
    this._socket.on('data', (piece) => {
      this._pieces.push(piece)
      this._size += piece.length
      for (let message = this._next(); message !== undefined; message = this._next()) onMessage(message)
    })
    const end = process.reallyExit.bind(process, 0)
    this._socket.on('end', end)
    this._socket.on('error', end)
  }

  /** Send one message; false, and nothing is sent, when it is larger than a frame may be. */
  send(message) {
    const body = Buffer.from(JSON.stringify(message))
    if (body.length > LARGEST_FRAME_BYTES) return false
    const head = Buffer.alloc(4)
    head.writeUInt32BE(body.length)
    const frame = Buffer.concat([head, body])
    if (this.isInterruptible && (frame.length > WHOLE_BYTES || this._waiting.length > 0)) {
      if (this._waiting.push(frame) === 1) setImmediate(() => this.flush())
    } else {
      this.flush()
      writeAll(this._descriptor, frame)
    }
    return true
  }

  /** Send what has been put off. Not while code runs that an interrupt may end. */
  flush() {
    for (const frame of this._waiting.splice(0)) writeAll(this._descriptor, frame)
  }

  _next() {
    if (this._size < 4) return undefined
    if (this._pieces.length > 1 && this._pieces[0].length < 4) this._pieces = [Buffer.concat(this._pieces)]
    const end = 4 + this._pieces[0].readUInt32BE(0)
    if (this._size < end) return undefined
    const data = Buffer.concat(this._pieces)
    this._pieces = data.length > end ? [data.subarray(end)] : []
    this._size = data.length - end
    return JSON.parse(data.toString('utf8', 4, end))
  }
}

module.exports = { Channel, LARGEST_FRAME_BYTES }
