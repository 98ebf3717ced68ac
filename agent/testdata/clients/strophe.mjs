// Talks to a lamp with Strophe over a WebSocket, and prints what it sees.
//
// usage: node strophe.mjs WEBSOCKET JID PASSWORD CONTACT
import { $iq, $msg, $pres, Strophe } from 'strophe.js'

const [websocket, jid, password, contact] = process.argv.slice(2)
Strophe.setLogLevel(Strophe.LogLevel.WARN)
const connection = new Strophe.Connection(websocket)
const ADHOC = 'http://jabber.org/protocol/commands'
const DATA = 'jabber:x:data'
setTimeout(() => {
	console.log('fault: it takes too long')
	process.exit(1)
}, 60_000).unref()

const text = (element, name) => element.getElementsByTagName(name)[0]?.textContent
const all = (element, name) => Array.from(element.getElementsByTagName(name))
const ask = iq => new Promise((answered, failed) => connection.sendIQ(iq, answered, e => failed(new Error(e?.outerHTML ?? 'no answer')), 30_000))
const command = (node, attributes) => $iq({ type: 'set', to: contact }).c('command', { xmlns: ADHOC, node, ...attributes })

await new Promise((connected, failed) => connection.connect(jid, password, (status, why) => {
	if (status === Strophe.Status.CONNECTED) connected()
	if (status === Strophe.Status.AUTHFAIL || status === Strophe.Status.CONNFAIL) failed(new Error(why))
}))

const present = new Promise(seen => connection.addHandler(p => {
	if (!p.getAttribute('type')) seen(`${p.getAttribute('from')} ${text(p, 'show') ?? 'available'} ${text(p, 'status')}`)
	return true
}, null, 'presence', null, null, contact, { matchBareFromJid: true }))
connection.send($pres())
connection.send($pres({ type: 'subscribe', to: contact }))
console.log('presence:', await present)

const said = []
const confirmed = new Promise(seen => connection.addHandler(m => {
	const body = text(m, 'body')
	if (body) said.push(body)
	if (body?.startsWith('confirmed')) seen()
	return true
}, null, 'message', null, null, contact, { matchBareFromJid: true }))
connection.send($msg({ type: 'chat', to: contact }).c('body').t('on'))
await confirmed
console.log('chat:', said.join(' / '))

const list = await ask($iq({ type: 'get', to: contact }).c('query', { xmlns: 'http://jabber.org/protocol/disco#items', node: ADHOC }))
console.log('commands:', all(list, 'item').map(i => i.getAttribute('node')).join(' '))
const form = await ask(command('set', { action: 'execute' }))
console.log('form:', all(form, 'field').map(f => f.getAttribute('var')).join(' '))
const sessionid = form.getElementsByTagName('command')[0].getAttribute('sessionid')
const done = await ask(command('set', { action: 'complete', sessionid })
	.c('x', { xmlns: DATA, type: 'submit' }).c('field', { var: 'dimmer' }).c('value').t('75'))
console.log('note:', text(done, 'note'))
console.log('end')
connection.disconnect('')
