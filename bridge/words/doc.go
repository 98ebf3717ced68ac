// Package words reads what people write to the gateway, and has what it says
// to them. It knows no XMPP, and does nothing: [Parse] makes a [Request] of a
// line, [Resolve] finds what of a device is meant by it, and english.go has
// every text, so that another language is another file.
//
// The words that are written, and refused, sent and confirmed, are the same in
// every language.
package words
