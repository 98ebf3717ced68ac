// Package bridge is the XMPP side of the gateway. It knows the devices'
// vocabulary, but no driver and no store.
//
// A [Bridge] keeps one session, as a component (XEP-0114) or as an account,
// and puts each device on it three times:
//
//   - as two PubSub nodes (XEP-0060): its newest values and its log. node.go
//     makes and repairs nodes and keeps their members those who may see the
//     device, publish.go publishes, errors.go judges what an answer means.
//   - as a contact with a presence that people read. contacts.go decides who
//     is told what and when, presence.go how it is said. An account has one
//     contact for all devices, the gateway.
//   - as something that can be asked (XEP-0030 and others): answer.go, disco.go,
//     vcard.go.
//
// People and programs have it do things in four ways: message.go hears what is
// written, rooms.go what is said in rooms, commands.go serves forms (XEP-0050),
// control.go and readout.go programs (XEP-0325, XEP-0323). All come to one
// place, chat.go, as a request of bridge/words; act.go has devices told, and
// waits for what they confirm. people.go has each person's things done one
// after the other, and in nobody else's way. alert.go tells alarms. Who may,
// says the [Authorizer]; what is done, the [Executor] and the [Office].
//
// What goes into an item is pure: log.go, senml.go, fields.go, event.go.
//
// Who is granted nothing gets the same answers as if nobody were there.
package bridge
