// A peer of TestNPM, on npm's coap: with a port, it is a server whose thermometer is
// observed, and that is told by PUT what it measures; with a url, a client that posts
// what comes on standard input there, and writes the code of each answer.
'use strict'
const coap = require('coap')

const [what, where] = process.argv.slice(2)
if (what === 'serve') {
  let measured = 0
  const watching = new Set()
  const pack = () => JSON.stringify([{ n: 'temperature', u: 'Cel', v: measured }])
  const server = coap.createServer((req, res) => {
    if (req.url === '/.well-known/core') {
      res.setOption('Content-Format', 'application/link-format')
      return res.end('</sensors/temperature>;rt="temperature";ct=110;obs')
    }
    if (req.url !== '/sensors/temperature') {
      res.code = '4.04'
      return res.end('there is only /sensors/temperature')
    }
    if (req.method === 'PUT') {
      measured = Number(req.payload.toString())
      res.code = '2.04'
      res.end()
      for (const other of watching) other.write(pack())
      return
    }
    res.setOption('Content-Format', 110)
    if (req.headers.Observe !== 0) return res.end(pack())
    watching.add(res)
    res.on('finish', () => watching.delete(res))
    res.write(pack())
  })
  server.listen(Number(where), '127.0.0.1', () => console.log('listens'))
} else {
  const lines = require('readline').createInterface({ input: process.stdin })
  lines.on('line', line => {
    const url = new URL(where)
    const req = coap.request({ hostname: url.hostname, port: Number(url.port), pathname: url.pathname, method: 'POST', options: { 'Content-Format': 110 } })
    req.on('response', res => console.log(res.code, res.payload.toString()))
    req.on('error', err => console.log(String(err)))
    if (line.length > 1024) req.setOption('Block1', Buffer.of(0x06)) // in blocks of so many bytes
    req.end(line)
  })
}
