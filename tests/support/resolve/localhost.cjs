// By `node --require`: names below localhost lead to this machine, as RFC 6761 asks; glibc asks a server.
const dns = require("node:dns");

const lookUp = dns.lookup;
dns.lookup = (name, ...rest) => lookUp(/\.localhost\.?$/.test(name) ? "127.0.0.1" : name, ...rest);
