// Package devices is the vocabulary that the whole gateway speaks: what a
// device is, what it said (a [Reading]), how it is doing (a [State]), and the
// contract between the drivers that hear devices ([Driver]) and the place
// where readings go ([Sink]).
//
// It knows no transport, no store and no XMPP, and imports the standard
// library only.
package devices
