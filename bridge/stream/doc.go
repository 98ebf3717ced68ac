// Package stream is the shell around the XMPP library: one session, as a
// component (XEP-0114) or as an account (RFC 6120), that no stanza from
// anywhere can end, stall, or make believe what its sender did not say.
//
// The library, mellium, negotiates: TLS, authentication, binding. From then
// on the session is ours, because the library's read loop ends with the first
// stanza that it does not like (an error IQ without a child, an address that
// PRECIS refuses and stringprep takes, an element named like a stream error
// anywhere inside a message), takes the answer to an IQ from whoever knows its
// id, and sends the rest of a half-written stanza with the next one.
//
// # Goroutines
//
// A session has one goroutine that reads, and one that answers what nobody
// took on. Both end before Done is closed. Sending is done by the caller's own
// goroutine, one stanza at a time.
package stream
