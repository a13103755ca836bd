// The program that runs JavaScript and TypeScript cells: `node --expose-internals main.js javascript|typescript FD`.
//
// It speaks the protocol of docs/kernels.md. Node's own modules are all it needs, and for types one package on
// Node 20. A cell may put its own `process` or `Buffer` into the global scope: hence everything is taken by `require`.
'use strict'

const Module = require('node:module')
const os = require('node:os')
const process = require('node:process')

const { findParser } = require('./compile')
const { Channel } = require('./frames')
const { Kernel } = require('./kernel')

function main() {
  const [language, descriptor] = process.argv.slice(2)
  // Programs that cells start with this Node get neither our options nor our arguments.
  process.execArgv = []
  process.argv.length = 1
  // What the option shows besides is nobody's to import.
  Module.builtinModules = Module.builtinModules.filter((name) => !name.startsWith('internal/'))
  Module.syncBuiltinESMExports()
  let kernel
  const channel = new Channel(Number(descriptor), (message) => {
    if (kernel !== undefined) {
      kernel.receive(message)
      return
    }
    const failure = settle(message)
    if (failure !== undefined) {
      channel.send({ type: 'failed', ...failure })
      return
    }
    try {
      kernel = new Kernel(channel, findParser(), message.env, language === 'typescript')
    } catch {
      channel.send({ type: 'failed', kind: 'package', message: 'acorn' })
      return
    }
    channel.send({ type: 'ready', version: process.version, pid: process.pid })
  })
}

function settle({ cwd, env }) {
  for (const name of Object.keys(process.env)) if (!(name in env)) delete process.env[name]
  Object.assign(process.env, env)
  try {
    process.chdir(cwd.replace(/^~(?=\/|$)/, () => env.HOME ?? os.homedir()))
  } catch (error) {
    const reason = error.message.replace(/^\w+: /, '').replace(/, chdir.*/s, '')
    return { kind: 'cwd', message: `${cwd}: ${reason[0].toUpperCase()}${reason.slice(1)}` }
  }
  return undefined
}

main()
