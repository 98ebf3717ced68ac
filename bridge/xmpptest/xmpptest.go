// Package xmpptest is the other end of an XMPP stream, to be scripted: it does
// what a test tells it, which a real server never would.
package xmpptest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// patience is a deadline for broken code, never a measure of working code.
const patience = 30 * time.Second

// A Server listens on loopback until its test ends.
type Server struct {
	t testing.TB
	l net.Listener
}

// Listen makes a server.
func Listen(t testing.TB) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &Server{t, l}
}

// Addr is where the server listens.
func (s *Server) Addr() string { return s.l.Addr().String() }

// Port is the port of Addr.
func (s *Server) Port() uint16 { return s.l.Addr().(*net.TCPAddr).AddrPort().Port() }

// Accept waits for the next connection.
func (s *Server) Accept() *Conn {
	s.t.Helper()
	s.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := s.l.Accept()
	if err != nil {
		s.t.Fatalf("nobody connects: %v", err)
	}
	s.t.Cleanup(func() { c.Close() })
	return &Conn{t: s.t, Conn: c, in: bufio.NewReader(c)}
}

// A Conn is one connection, seen from the server.
type Conn struct {
	net.Conn
	t    testing.TB
	in   *bufio.Reader
	seen strings.Builder
}

// Seen is everything that came so far and was read.
func (c *Conn) Seen() string { return c.seen.String() }

// Expect reads up to and with end, and gives what was read.
func (c *Conn) Expect(end string) string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	var got strings.Builder
	for !strings.HasSuffix(got.String(), end) {
		b, err := c.in.ReadByte()
		if err != nil {
			c.t.Fatalf("no %q: %v after %q", end, err, got.String())
		}
		got.WriteByte(b)
	}
	c.seen.WriteString(got.String())
	return got.String()
}

// Rest reads until the other side closes.
func (c *Conn) Rest() string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	var got strings.Builder
	for {
		b, err := c.in.ReadByte()
		if err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				c.t.Fatalf("not closed after %q", got.String())
			}
			c.seen.WriteString(got.String())
			return got.String()
		}
		got.WriteByte(b)
	}
}

// Send writes raw bytes.
func (c *Conn) Send(raw string) {
	c.t.Helper()
	c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte(raw)); err != nil {
		c.t.Fatalf("cannot send %.80q: %v", raw, err)
	}
}

// Component plays the server's part of XEP-0114 and accepts any secret.
func (c *Conn) Component(domain string) {
	c.t.Helper()
	c.Expect("to='" + domain + "'>")
	c.Send("<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:component:accept' from='" + domain + "' id='s1'>")
	c.Expect("</handshake>")
	c.Send("<handshake/>")
}

// Header answers a client's stream header with one of the server's, and
// features.
func (c *Conn) Header(domain, features string) {
	c.t.Helper()
	c.Expect("<stream:stream")
	c.Expect(">")
	c.Send("<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0' id='s1' from='" +
		domain + "'><stream:features>" + features + "</stream:features>")
}

// StartTLS takes the client's <starttls/> and makes the handshake; the error
// is the client's refusal.
func (c *Conn) StartTLS(cert tls.Certificate) error {
	c.t.Helper()
	c.Expect("<starttls")
	c.Expect(">")
	c.Send("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
	return c.TLS(&tls.Config{Certificates: []tls.Certificate{cert}})
}

// Certificate makes a certificate for a domain, valid from and to, and the
// pool that trusts it.
func Certificate(t testing.TB, domain string, from, to time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: domain}, DNSNames: []string{domain},
		NotBefore: from, NotAfter: to, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
