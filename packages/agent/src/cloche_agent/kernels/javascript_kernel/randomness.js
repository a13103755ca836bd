// Randomness of a context that may be one of several restored from one checkpoint.
//
// Node has no way to seed V8's generator or OpenSSL's anew, and siblings have both in the same state. So what cells
// draw from are functions of ours from the start, also those that a cell has taken hold of: until a restore they
// give what Node gives, and after it what the kernel does.
'use strict'

const { Buffer } = require('node:buffer')
const crypto = require('node:crypto')
const { closeSync, openSync, readSync } = require('node:fs')
const Module = require('node:module')

const { ArrayBuffer, Math, Object, Uint8Array } = globalThis

const DEVICE = '/dev/urandom'
const INTEGER_RANGE = 2 ** 48 // of crypto.randomInt
const pool = Buffer.alloc(4096)
let left = 0
let isRenewed = false

/** From now on nothing that is drawn is what a sibling draws. */
function renew() {
  isRenewed = true
  left = 0
}

/** Have every public way to draw numbers and bytes follow `renew`. */
function install() {
  replace(Math, 'random', (original) => () => (isRenewed ? fraction() : original()))
  for (const name of ['randomBytes', 'pseudoRandomBytes', 'prng', 'rng']) replace(crypto, name, drawing)
  replace(crypto, 'randomFillSync', (original) => (...args) => refilled(original(...args), args[1], args[2]))
  replace(crypto, 'randomFill', filling)
  replace(crypto, 'randomInt', integers)
  const web = Object.getPrototypeOf(crypto.webcrypto)
  // `crypto.getRandomValues` of the module is read from there each time.
  replace(web, 'getRandomValues', (original) => function (array) {
    return refilled(original.call(this, array))
  })
  for (const holder of [crypto, web]) {
    replace(holder, 'randomUUID', (original) => function (...args) {
      const uuid = original.apply(this, args)
      return isRenewed ? newUuid() : uuid
    })
  }
  Module.syncBuiltinESMExports()
}

/** Node's own function is called each time: it checks the arguments, and says what is wrong with them. */
function replace(holder, name, make) {
  const known = Object.getOwnPropertyDescriptor(holder, name)
  if (typeof holder[name] !== 'function') return
  const value = make(holder[name])
  Object.defineProperty(value, 'name', { value: name })
  Object.defineProperty(holder, name, { value, writable: true, configurable: true, enumerable: known?.enumerable ?? true })
}

function drawing(original) {
  return (size, callback) =>
    callback === undefined ? refilled(original(size)) : original(size, heard(callback, (bytes) => refilled(bytes)))
}

function filling(original) {
  return (buffer, ...args) => {
    const callback = args.pop()
    return original(buffer, ...args, heard(callback, (filled) => refilled(filled, ...args)))
  }
}

function integers(original) {
  return (...args) => {
    const callback = typeof args.at(-1) === 'function' ? args.pop() : undefined
    const [min, max] = args.length > 1 ? args : [0, args[0]]
    const own = (number) => (isRenewed ? newInteger(min, max) : number)
    return callback === undefined ? own(original(...args)) : original(...args, heard(callback, own))
  }
}

/** A callback that gets what `change` makes of the result; what is none is Node's to refuse. */
function heard(callback, change) {
  if (typeof callback !== 'function') return callback
  return (error, result) => callback(error, error ? result : change(result))
}

/** The same buffer, its part filled by the kernel. Offset and size count elements, as in Node. */
function refilled(buffer, offset = 0, size = undefined) {
  if (!isRenewed) return buffer
  const bytes = ArrayBuffer.isView(buffer)
    ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
    : new Uint8Array(buffer)
  const each = buffer.BYTES_PER_ELEMENT ?? 1
  const start = offset * each
  read(bytes.subarray(start, size === undefined ? bytes.length : start + size * each))
  return buffer
}

function read(bytes) {
  const descriptor = openSync(DEVICE)
  try {
    for (let at = 0; at < bytes.length; ) at += readSync(descriptor, bytes, at, bytes.length - at)
  } finally {
    closeSync(descriptor)
  }
}

/** Where in the pool so many fresh bytes lie. */
function take(size) {
  if (left < size) {
    read(pool)
    left = pool.length
  }
  left -= size
  return pool.length - left - size
}

function fraction() {
  const at = take(8)
  return ((pool.readUInt32LE(at) >>> 5) * 2 ** 26 + (pool.readUInt32LE(at + 4) >>> 6)) / 2 ** 53
}

function newInteger(min, max) {
  const range = max - min
  const limit = INTEGER_RANGE - (INTEGER_RANGE % range)
  let drawn
  do drawn = pool.readUIntLE(take(6), 6)
  while (drawn >= limit)
  return min + (drawn % range)
}

function newUuid() {
  const at = take(16)
  const bytes = Buffer.from(pool.subarray(at, at + 16))
  bytes[6] = (bytes[6] & 0x0f) | 0x40 // version 4 of RFC 9562
  bytes[8] = (bytes[8] & 0x3f) | 0x80
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

module.exports = { install, renew }
