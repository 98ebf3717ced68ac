package stream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"mellium.im/xmpp/jid"
	xmppstream "mellium.im/xmpp/stream"
)

// Config says how to connect. Exactly one of Component and Account is set.
type Config struct {
	Component *Component
	Account   *Account
	// Handler gets what is not an answer to our own IQs. It may be nil.
	Handler Handler
	Log     *slog.Logger // nil is silence
	// Resource is asked for when an account binds; the server may give
	// another.
	Resource string
	// PingTo is asked now and then (XEP-0199). Any answer will do, an error
	// too; without one the session ends, because a connection that died
	// silently shows in no other way. The zero JID: nobody is asked.
	PingTo jid.JID
	// How often PingTo is asked, and how long it may take to answer; zero is
	// 25 seconds, and 20: so that a dead connection is left within 45.
	PingEvery, PingTimeout time.Duration

	// What tests make faster; zero is the usual time.
	writeTimeout time.Duration
	// What tests ask instead of the system's name servers.
	resolver *net.Resolver
}

// A Component connects by XEP-0114.
type Component struct {
	Domain string
	Server string // host:port
	Secret string
	// TLS is used around the connection; nil is plain text, in which the
	// secret is hashed and nothing else protected.
	TLS *tls.Config
}

// TLSMode is how an account's connection is encrypted.
type TLSMode int

// The TLS modes.
const (
	StartTLS TLSMode = iota // RFC 6120 section 5; without it nothing is sent
	Direct                  // from the first byte, XEP-0368
	Off                     // only to this machine
)

// An Account connects as a client.
type Account struct {
	JID      jid.JID // bare, or full to ask for a resource
	Password string
	Server   string // host:port; "" finds it by SRV records (RFC 6120 section 3.2, XEP-0368)
	Mode     TLSMode
	// TLS holds authorities and a client's certificate. The name that the
	// certificate must be for is always the JID's domain.
	TLS *tls.Config
	// PlusSeen, where it is not nil, is set by a login with channel binding.
	// Once it is set no other login is tried: RFC 5802 cannot show that
	// somebody between took the -PLUS mechanisms from the server's offer.
	PlusSeen *atomic.Bool
}

// A Handler is called for each stanza that is not the answer to an IQ of ours,
// on the goroutine that reads: it must not block and must not send. It reports
// whether it takes the stanza on; for an IQ get or set it then owes an answer,
// and where it does not, service-unavailable is answered for it.
type Handler func(s *Session, st Stanza) bool

// Class says how long to leave a server alone after an error.
type Class int

// The classes of errors.
const (
	Transient Class = iota // seconds: a server that restarts, a cable
	Conflict               // minutes: another session is in the way, or a certificate does not hold
	Refused                // many minutes: a password is wrong; trying on would be an attack
)

// A refusal is an error that trying again soon does not mend.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func refused(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// Delay tells the class of an error of Dial or of a session's end.
func Delay(err error) Class {
	var unverified *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	var bind *bindError
	switch {
	case errors.As(err, new(refusal)):
		return Refused
	case errors.As(err, &bind):
		return Conflict
	case errors.Is(err, xmppstream.NotAuthorized), errors.Is(err, xmppstream.HostUnknown),
		errors.Is(err, xmppstream.HostGone), errors.Is(err, xmppstream.InvalidFrom):
		return Refused
	case errors.Is(err, xmppstream.Conflict), errors.Is(err, xmppstream.PolicyViolation),
		errors.As(err, &unverified), errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid):
		return Conflict
	}
	return Transient
}

// Untimely reports whether a certificate is out of its time: it is, or the clock
// by which it was judged is wrong.
func Untimely(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}
