// Lets Node.js programs find a Cloche server on this machine by the names below its domain.
//
// Loaded by `node --require` where `cloche tls init` had it put into NODE_OPTIONS. CLOCHE_RESOLVE is `DOMAIN=ADDRESS`:
// names at and below DOMAIN lead to ADDRESS, all others go the usual way. For this program only: no file of the
// system changes.
'use strict'

const dns = require('node:dns')

const [domain, address] = (process.env.CLOCHE_RESOLVE || '').toLowerCase().split('=')

function led(host) {
  const name = String(host).replace(/\.$/, '').toLowerCase()
  return name === domain || name.endsWith('.' + domain) ? address : host
}

if (domain && address) {
  const { lookup, promises } = dns
  const promised = promises.lookup
  dns.lookup = Object.assign((host, ...rest) => lookup(led(host), ...rest), lookup)
  promises.lookup = (host, ...rest) => promised(led(host), ...rest)
}
