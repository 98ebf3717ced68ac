// Package coap speaks with devices over CoAP (RFC 7252), both ways. A [Server]
// hears those that post their readings,
//
//	POST or PUT coap://gateway/d/<device>[/<field>]
//
// with SenML as JSON or CBOR, JSON, or a plain number as the payload. The
// answer 2.04 Changed means that the readings are safe; every other answer,
// and none, means that the device should send them again. Devices may register
// with it, too (directory.go, lwm2m.go). A [Client] asks those that have a URL,
// and a [Scout] looks for more.
//
// The way of a datagram that comes: [Server.Run] reads it; exchange.go finds out whether it is
// new, a repetition or an answer to us (RFC 7252 section 4); block.go puts
// large bodies together (RFC 7959); request.go hands the body to the device's
// profile and the readings to the sink; exchange.go sends the answer when the
// receipt is done.
//
// The other way: session.do asks a peer (ask.go) and session.observe has it
// report by itself (observe.go), by the same message layer, so that a server asks
// its devices from the port that they know. asker.go does that for one device,
// again and again, and has its profile read what it answers.
//
// The message layer is our own, on go-coap's codec and socket. go-coap's
// server reads all peers in one loop that waits for the slowest, puts no bound
// on block-wise bodies, passes a lone block on as if it were the whole body,
// and forgets what it answered as soon as a peer sends one malformed datagram.
// Its client repeats at even intervals, and its observations end in silence.
package coap
