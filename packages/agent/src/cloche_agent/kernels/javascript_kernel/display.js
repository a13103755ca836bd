// What a value is shown as: a bundle by MIME type.
'use strict'

const { Buffer } = require('node:buffer')
const util = require('node:util')

const { Object, RegExp, Set, String, Symbol, Uint8Array } = globalThis

const OUR_FOLDER = __dirname.replace(/[^\w/]/g, '\\$&')
const OUR_FRAME = new RegExp(`^\\s+at (.*[( ])?(node:|${OUR_FOLDER}/)`)
const JUPYTER = Symbol.for('Jupyter.display')
const METHODS = {
  _toHtml: 'text/html',
  _toSvg: 'image/svg+xml',
  _toPng: 'image/png',
  _toJpeg: 'image/jpeg',
  _toMarkdown: 'text/markdown',
}
const DIRECT = {
  html: 'text/html',
  markdown: 'text/markdown',
  latex: 'text/latex',
  svg: 'image/svg+xml',
  png: 'image/png',
  jpeg: 'image/jpeg',
  javascript: 'application/javascript',
  text: 'text/plain',
}

/** The text of a value, as Node's own prompt shows it. */
function inspect(value) {
  try {
    const text = util.inspect(value, { colors: false })
    // The agent takes quotes away, of the two kinds that all languages have.
    return typeof value === 'string' && text.startsWith('`') ? `'${text.slice(1, -1)}'` : text
  } catch (error) {
    return `<${typeof value} that cannot be inspected: ${error}>`
  }
}

/** An error's stack, its causes and further fields, without the frames below the cell: those are the kernel's. */
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

/** All that a value says about itself: its text, and what its display methods return. */
function bundleOf(value) {
  const bundle = { 'text/plain': traceback(value) }
  if (value === null || (typeof value !== 'object' && typeof value !== 'function')) return bundle
  try {
    if (typeof value[JUPYTER] === 'function') Object.assign(bundle, encoded(value[JUPYTER]()))
    if (typeof value._toMime === 'function') Object.assign(bundle, encoded(value._toMime()))
    for (const [method, mime] of Object.entries(METHODS)) {
      if (typeof value[method] === 'function') bundle[mime] = base64(value[method]())
    }
  } catch {
    // An object that fails to show itself is shown as text.
  }
  return bundle
}

function encoded(bundle) {
  return Object.fromEntries(Object.entries(bundle ?? {}).map(([mime, value]) => [mime, base64(value)]))
}

function base64(value) {
  return value instanceof Uint8Array ? Buffer.from(value).toString('base64') : value
}

/** `display(value)`, `display.html(text)`, ...: each shows one more result; `send` takes its bundle. */
function makeDisplay(send) {
  const display = (...values) => values.forEach((value) => send(bundleOf(value)))
  for (const [name, mime] of Object.entries(DIRECT)) {
    display[name] = (value) => send({ [mime]: base64(value) })
  }
  display.json = (value) => send({ 'application/json': value, 'text/plain': inspect(value) })
  display.mime = (bundle) => send(encoded(bundle))
  return display
}

module.exports = { bundleOf, inspect, makeDisplay, traceback }
