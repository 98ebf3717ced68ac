// Talks to a lamp with xmpp.js over TCP and TLS, and prints what it sees.
//
// usage: NODE_EXTRA_CA_CERTS=FILE node xmppjs.mjs HOST:PORT JID PASSWORD CONTACT
import { client, jid, xml } from '@xmpp/client'

const [server, address, password, contact] = process.argv.slice(2)
const { local, domain } = jid(address)

const xmpp = client({ service: `xmpp://${server}`, domain, username: local, password })
const stanzas = []
const waiting = new Set()
xmpp.on('stanza', stanza => {
	stanzas.push(stanza)
	waiting.forEach(look => look())
})
xmpp.on('error', e => console.log('error:', e.message))
setTimeout(() => {
	console.log('fault: it takes too long')
	process.exit(1)
}, 60_000).unref()

// next gives what value makes of a stanza of the contact, of the first of which
// it makes anything.
function next(value) {
	return new Promise(done => {
		const look = () => {
			while (stanzas.length) {
				const stanza = stanzas.shift()
				const found = stanza.attrs.from?.split('/')[0] === contact && value(stanza)
				if (found) {
					waiting.delete(look)
					return done(found)
				}
			}
		}
		waiting.add(look)
		look()
	})
}
const said = () => next(s => s.is('message') && s.getChildText('body'))

// Until the server has answered <enable/> (XEP-0198), nothing is to be sent that
// has stanzas come: xmpp.js 0.14 counts those before <enabled/> too, and if <r/>
// follows closely, it acknowledges them, for which Prosody throws it out.
const counted = new Promise(done => xmpp.on('nonza', e => e.is('enabled', 'urn:xmpp:sm:3') && done()))
await xmpp.start()
await counted
await xmpp.send(xml('presence'))
await xmpp.send(xml('presence', { type: 'subscribe', to: contact }))
console.log('presence:', await next(s => s.is('presence') && !s.attrs.type && `${s.attrs.from} ${s.getChildText('show') ?? 'available'} ${s.getChildText('status')}`))

await xmpp.send(xml('message', { type: 'chat', to: contact }, xml('body', {}, 'on')))
console.log('chat:', await said(), '/', await said())

const { iqCaller } = xmpp
const full = `${contact}/gw`
const set = (name, type, value) => iqCaller.request(xml('iq', { type: 'set', to: full }, xml('set', 'urn:xmpp:iot:control', xml(type, { name, value }))))
console.log('control:', (await set('dimmer', 'int', '70')).children.join(''))
console.log('refused:', await set('dimmer', 'int', '170').catch(e => `${e.condition} ${e.text ?? ''}`))

await iqCaller.get(xml('req', { xmlns: 'urn:xmpp:iot:sensordata', seqnr: '1', momentary: 'true' }), full)
console.log('readout:', await next(s => s.getChild('fields')?.getChildElements()[0]?.getChildElements()[0]?.getChildElements().map(f => `${f.attrs.name}=${f.attrs.value}`).join(' ')))
console.log('end')
await xmpp.stop()
