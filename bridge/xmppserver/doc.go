// Package xmppserver runs a real XMPP server, Prosody or ejabberd, as a child
// process: on loopback, on free ports and in a directory of its own, beside
// any server the machine may already run. The demo and the tests use it, so
// that nothing has to be pretended.
//
// The server has one virtual host, localhost, with a certificate from an
// authority made for this one server; accounts; one component (XEP-0114) for
// the gateway; and a PubSub service, pubsub.localhost. It speaks to no other
// server.
package xmppserver
