// SIGINT as the agent means it: it ends the cell that runs, nothing else.
//
// A script that runs with `breakOnSigint` is ended by a watchdog, a thread that Node starts with the script and ends with
// it. While it does, the signal's handler is for some 0.1 ms the one that ends the process, or that of the thread which
// nobody hears any more: then it is kept, and ends the next script. So the watchdog is started once, and stays.
'use strict'

const process = require('node:process')
const { performance } = require('node:perf_hooks')

const { startSigintWatchdog, stopSigintWatchdog } = quietly(() => require('internal/test/binding'))
  .internalBinding('contextify')

const { Atomics, Int32Array, SharedArrayBuffer } = globalThis

const SETTLE_ROUNDS = 3
const SETTLE_DEADLINE_MS = 2000
const LOOK_MS = 0.05
const never = new Int32Array(new SharedArrayBuffer(4))
const signalUs = process.kill.bind(process, process.pid, 'SIGINT')

/** Owner of SIGINT. */
class Interrupts {
  /** From here on the signal ends a script that runs with `breakOnSigint`, and is noted where there is none. */
  constructor() {
    keepHandler()
    startSigintWatchdog()
  }

  /** Whether a signal has come, since this was last asked, that has ended no script. */
  take() {
    // The watchdog counts who wants it. One who leaves is told, and the note is torn up; for the others it goes on.
    startSigintWatchdog()
    return stopSigintWatchdog()
  }

  /**
   * Wait until every signal that was sent before has done all it will do.
   *
   * The watchdog may not have woken up yet for the last of them. It has when it has taken one that is sent now. It takes
   * those that wait one by one, without a pause: that another is left after the last round, it would have to have lost
   * its processor just between two of them, each time.
   */
  settle() {
    const until = performance.now() + SETTLE_DEADLINE_MS
    this.take()
    for (let round = 0; round < SETTLE_ROUNDS; round += 1) {
      signalUs()
      while (!this.take() && performance.now() < until) Atomics.wait(never, 0, 0, LOOK_MS)
    }
  }
}

/** A cell's own listeners of SIGINT get nothing: Node would put its other handler in the place of the watchdog's. */
function keepHandler() {
  for (const listener of process.listeners('newListener')) {
    process.removeListener('newListener', listener)
    process.on('newListener', (type, ...rest) => {
      if (type !== 'SIGINT') listener.call(process, type, ...rest)
    })
  }
}

/** Node warns of what is for its own tests. */
function quietly(load) {
  const { emitWarning } = process
  process.emitWarning = () => {}
  try {
    return load()
  } finally {
    process.emitWarning = emitWarning
  }
}

module.exports = { Interrupts }
