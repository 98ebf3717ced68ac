package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"
	xmppstream "mellium.im/xmpp/stream"

	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
)

// The tests of this file have a server that does what it must not, or passes
// on what a hostile user sent.

const (
	testDomain = "porch.example.org"
	patience   = 30 * time.Second
)

// heard is a handler that keeps what it gets.
type heard struct {
	mu   sync.Mutex
	got  []Stanza
	more chan struct{}
	take bool
}

func (h *heard) handle(_ *Session, st Stanza) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, st)
	select {
	case h.more <- struct{}{}:
	default:
	}
	return h.take
}

func (h *heard) await(t *testing.T, id string) Stanza {
	t.Helper()
	deadline := time.After(patience)
	for {
		h.mu.Lock()
		for _, st := range h.got {
			if st.ID == id {
				h.mu.Unlock()
				return st
			}
		}
		h.mu.Unlock()
		select {
		case <-h.more:
		case <-deadline:
			t.Fatalf("stanza %s did not come", id)
		}
	}
}

func dialTest(t *testing.T, cfg Config) (*Session, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := Dial(ctx, cfg)
	if err == nil {
		t.Cleanup(func() { s.conn.Close(); <-s.Done() })
	}
	return s, err
}

// asComponent gives a session as a component and the server's end of it.
func asComponent(t *testing.T) (*Session, *xmpptest.Conn, *heard) {
	t.Helper()
	server := xmpptest.Listen(t)
	h := &heard{more: make(chan struct{}, 1)}
	s, c := admit(t, server, Config{Component: &Component{Domain: testDomain, Server: server.Addr(), Secret: "x"}, Handler: h.handle})
	return s, c, h
}

// admit lets a component in that uses the config.
func admit(t *testing.T, server *xmpptest.Server, cfg Config) (*Session, *xmpptest.Conn) {
	t.Helper()
	done := dialling(t, cfg)
	c := server.Accept()
	c.Component(testDomain)
	d := <-done
	if d.err != nil {
		t.Fatal(d.err)
	}
	return d.s, c
}

// alive checks that the session still brings stanzas.
func alive(t *testing.T, c *xmpptest.Conn, h *heard) {
	t.Helper()
	c.Send("<message from='a@b.example' to='" + testDomain + "' id='alive'><body>x</body></message>")
	h.await(t, "alive")
}

// hostile is what any user of the network may send, and some of what only a
// server can, by the number of the trap that it is for.
var hostile = map[string]string{
	"2 an error without a child":              "<iq type='error' id='1' from='a@b.example' to='x@porch.example.org'/>",
	"2 a request without a child":             "<iq type='get' id='1' from='a@b.example' to='x@porch.example.org'/>",
	"2 an IQ of no type":                      "<iq id='1' from='a@b.example' to='x@porch.example.org'><a xmlns='b'/></iq>",
	"3 an address that only stringprep takes": "<message from='☃@x.example' to='x@porch.example.org'><body>x</body></message>",
	"3 more of them":                          "<message from='a♥b@x.example' to='tom€@porch.example.org'/>",
	"5 a result that begins with text":        "<iq type='result' id='1' from='a@b.example' to='x@porch.example.org'> text <a xmlns='b'/></iq>",
	"9 deep":                                  "<message from='a@b.example' to='x@porch.example.org'>" + strings.Repeat("<a>", 10_000) + strings.Repeat("</a>", 10_000) + "</message>",
	"9 large":                                 "<message from='a@b.example' to='x@porch.example.org'><body>" + strings.Repeat("x", 400<<10) + "</body></message>",
	"9 many attributes":                       "<message from='a@b.example' to='x@porch.example.org'><a" + manyAttributes(5000) + "/></message>",
	"a stream error inside a message":         "<message from='a@b.example' to='x@porch.example.org'><error xmlns='http://etherx.jabber.org/streams'/></message>",
	"a stream's end inside a message":         "<message from='a@b.example' to='x@porch.example.org'><stream xmlns='http://etherx.jabber.org/streams'/></message>",
	"a foreign element":                       "<a xmlns='urn:example:what'><b/></a>",
	"a comment":                               "<!-- from the server -->",
	"a keepalive":                             " \n ",
	"namespaces to confuse":                   "<message xmlns:x='jabber:component:accept' from='a@b.example' to='x@porch.example.org'><x:iq type='set'/></message>",
}

// TestSessionSurvives passes it on.
func TestSessionSurvives(t *testing.T) {
	for name, raw := range hostile {
		t.Run(name, func(t *testing.T) {
			s, c, h := asComponent(t)
			c.Send(raw)
			alive(t, c, h)
			select {
			case <-s.Done():
				t.Errorf("the session ended: %v", s.Err())
			default:
			}
			if name[0] != '3' && name[0] != '9' {
				return
			}
			// Addresses that are none, and what is too big to keep.
			if len(h.got) != 1 || s.Dropped() != 1 {
				t.Errorf("%d stanzas were handled, want 1; %d were dropped, want 1", len(h.got), s.Dropped())
			}
		})
	}
}

func manyAttributes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " a%d='x'", i)
	}
	return b.String()
}

// TestHandlerPanics (number 2): a handler harms only itself.
func TestHandlerPanics(t *testing.T) {
	server := xmpptest.Listen(t)
	second := make(chan struct{})
	handler := func(_ *Session, st Stanza) bool {
		if st.ID == "2" {
			close(second)
		}
		panic("at the disco")
	}
	_, c := admit(t, server, Config{Component: &Component{Domain: testDomain, Server: server.Addr(), Secret: "x"}, Handler: handler})
	c.Send("<iq type='get' id='1' from='a@b.example' to='x@porch.example.org'><a xmlns='b'/></iq><message id='2' from='a@b.example' to='x@porch.example.org'/>")
	select {
	case <-second:
	case <-time.After(patience):
		t.Error("after a panic nothing is handled any more")
	}
}

// TestForgedAnswer (number 4): an answer counts only from who was asked.
func TestForgedAnswer(t *testing.T) {
	s, c, _ := asComponent(t)
	type result struct {
		st  Stanza
		err error
	}
	done := make(chan result, 1)
	go func() {
		st, err := s.IQ(t.Context(), IQ{Type: stanza.SetIQ, From: jid.MustParse("gateway@" + testDomain), To: jid.MustParse("pubsub.example.org"), Payload: []byte("<a xmlns='b'/>")})
		done <- result{st, err}
	}()
	request := c.Expect("</iq>")
	id := between(request, `id="`, `"`)
	for _, from := range []string{"evil@x.example", "pubsub.example.org.evil.example", "pubsub.example.org/other", testDomain} {
		c.Send("<iq type='result' id='" + id + "' from='" + from + "' to='gateway@" + testDomain + "'><forged xmlns='f'/></iq>")
	}
	c.Send("<iq type='result' id='" + id + "' to='gateway@" + testDomain + "'><forged xmlns='f'/></iq>")
	c.Send("<iq type='result' id='" + id + "' from='pubsub.example.org' to='gateway@" + testDomain + "'><true xmlns='t'/></iq>")
	r := <-done
	if r.err != nil || r.st.Child.Local != "true" {
		t.Errorf("got %v %v", r.st.Child, r.err)
	}
	if s.Dropped() != 5 {
		t.Errorf("%d forged answers were counted, 5 were sent", s.Dropped())
	}
}

func between(s, start, end string) string {
	_, s, _ = strings.Cut(s, start)
	s, _, _ = strings.Cut(s, end)
	return s
}

// TestErrorAnswer gives the condition, whatever else is in the answer.
func TestErrorAnswer(t *testing.T) {
	s, c, _ := asComponent(t)
	ask := func() chan error {
		done := make(chan error, 1)
		go func() {
			_, err := s.IQ(t.Context(), IQ{Type: stanza.GetIQ, From: jid.MustParse(testDomain), To: jid.MustParse("b.example"), Payload: []byte("<a xmlns='b'/>")})
			done <- err
		}()
		return done
	}
	for answer, want := range map[string]stanza.Condition{
		"<error type='auth'><forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>": stanza.Forbidden,
		"":                 stanza.UndefinedCondition,
		"text <b/>":        stanza.UndefinedCondition,
		"<error>x</error>": stanza.UndefinedCondition,
	} {
		done := ask()
		id := between(c.Expect("</iq>"), `id="`, `"`)
		c.Send("<iq type='error' id='" + id + "' from='b.example' to='" + testDomain + "'>" + answer + "</iq>")
		var e stanza.Error
		if err := <-done; !errors.As(err, &e) || e.Condition != want {
			t.Errorf("%q: %v, want %s", answer, err, want)
		}
	}
}

// TestUnansweredRequests get an answer, once, from who was asked.
func TestUnansweredRequests(t *testing.T) {
	_, c, _ := asComponent(t)
	c.Send("<iq type='get' id='7' from='a@b.example' to='x@porch.example.org'><a xmlns='b'/></iq>")
	got := c.Expect("</iq>")
	for _, part := range []string{`type="error"`, `id="7"`, `from="x@porch.example.org"`, `to="a@b.example"`, "service-unavailable"} {
		if !strings.Contains(got, part) {
			t.Errorf("no %s in %s", part, got)
		}
	}
	c.Send("<iq type='set' id='8' from='a@b.example' to='x@porch.example.org'/>")
	if got := c.Expect("</iq>"); !strings.Contains(got, "bad-request") {
		t.Errorf("%s", got)
	}
}

// TestReadingGoesOnWhileAnIQWaits (number 6): what waits for an answer holds up
// nobody else.
func TestReadingGoesOnWhileAnIQWaits(t *testing.T) {
	s, c, h := asComponent(t)
	cancel, done := asking(t, s)
	c.Expect("</iq>")
	alive(t, c, h)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestWholeStanzas (number 7): what cannot be marshalled, or lacks its
// addresses (number 14), leaves nothing on the wire.
func TestWholeStanzas(t *testing.T) {
	s, c, _ := asComponent(t)
	for name, st := range map[string]any{
		"a channel":       struct{ C chan int }{},
		"a panic":         explosive{},
		"no from":         []byte("<message to='a@b.example'/>"),
		"no to":           []byte("<message from='x@porch.example.org'/>"),
		"a foreign from":  []byte("<message from='x@other.example' to='a@b.example'/>"),
		"a from around":   []byte("<message from='x@evil.porch.example.org' to='a@b.example'/>"),
		"not an element":  []byte("text"),
		"an invalid name": []byte("<message from='☃@porch.example.org' to='a@b.example'/>"),
	} {
		if err := s.Send(t.Context(), st); err == nil {
			t.Errorf("%s was sent", name)
		}
	}
	good := "<message from='x@porch.example.org' to='a@b.example'/>"
	if err := s.Send(t.Context(), []byte(good)); err != nil {
		t.Fatal(err)
	}
	if got := c.Expect("/>"); got != good {
		t.Errorf("on the wire was %q", got)
	}
}

type explosive struct{}

func (explosive) MarshalText() ([]byte, error) { panic("boom") }

// TestEndlessStanza (number 9) ends the session before it fills the memory.
func TestEndlessStanza(t *testing.T) {
	s, c, _ := asComponent(t)
	go func() {
		c.SetWriteDeadline(time.Now().Add(patience))
		io.WriteString(c.Conn, "<message from='a@b.example' to='x@porch.example.org'><body>")
		for {
			if _, err := io.WriteString(c.Conn, strings.Repeat("x", 4096)); err != nil {
				return
			}
		}
	}()
	select {
	case <-s.Done():
		if !errors.Is(s.Err(), errTooLong) {
			t.Errorf("%v", s.Err())
		}
	case <-time.After(patience):
		t.Error("the session goes on")
	}
}

// TestStuckServer (number 8) reads nothing: sending ends, and so does the
// session.
func TestStuckServer(t *testing.T) {
	server := xmpptest.Listen(t)
	s, _ := admit(t, server, Config{
		Component:    &Component{Domain: testDomain, Server: server.Addr(), Secret: "x"},
		writeTimeout: 100 * time.Millisecond,
	})
	st := []byte("<message from='x@porch.example.org' to='a@b.example'><body>" + strings.Repeat("x", 1<<20) + "</body></message>")
	var err error
	for err == nil {
		err = s.Send(t.Context(), st)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("sending ends with %v", err)
	}
	<-s.Done()
	if !errors.Is(s.Err(), os.ErrDeadlineExceeded) || Delay(s.Err()) != Transient {
		t.Errorf("the session ends with %v", s.Err())
	}
}

// TestSendWaitsNoLonger than its context while another's stanza is on its way,
// and closing does not wait for it at all.
func TestSendWaitsNoLonger(t *testing.T) {
	s, _, _ := asComponent(t)
	if err := s.hold(t.Context()); err != nil { // the other stanza
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() {
		second <- s.Send(ctx, []byte("<message from='x@porch.example.org' to='a@b.example'/>"))
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("another stanza ends with %v", err)
	}
	if err := s.Close(); err != nil || s.Err() != nil {
		t.Errorf("closing: %v, %v", err, s.Err())
	}
}

// TestStreamErrors: each has its reason told, and is followed by the wait that
// fits.
func TestStreamErrors(t *testing.T) {
	for name, want := range map[string]time.Duration{
		"system-shutdown": time.Second, "reset": time.Second, "undefined-condition": time.Second, "see-other-host": time.Second,
		"connection-timeout": time.Second, "resource-constraint": time.Second, "remote-connection-failed": time.Second, "not-well-formed": time.Second,
		"conflict": time.Minute, "policy-violation": time.Minute,
		"host-gone": 5 * time.Minute, "host-unknown": 5 * time.Minute, "not-authorized": 5 * time.Minute, "invalid-from": 5 * time.Minute,
	} {
		s, c, _ := asComponent(t)
		c.Send("<stream:error><" + name + " xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
		<-s.Done()
		var e xmppstream.Error
		if !errors.As(s.Err(), &e) || e.Err != name {
			t.Errorf("%s: %v", name, s.Err())
		}
		if wait := new(Backoff).Next(Delay(s.Err()), 0); wait < want || wait > want*3/2 {
			t.Errorf("%s: the next session is after %v, want %v or half as much again", name, wait, want)
		}
	}
}

func TestCloseInOrder(t *testing.T) {
	s, c, _ := asComponent(t)
	done := make(chan error, 1)
	go func() { done <- s.Close() }()
	c.Expect("</stream:stream>")
	if err := s.Send(t.Context(), []byte("<message from='x@porch.example.org' to='a@b.example'/>")); !errors.Is(err, ErrClosed) {
		t.Errorf("sending after the end of the stream: %v", err)
	}
	c.Send("</stream:stream>")
	if err := <-done; err != nil || s.Err() != nil {
		t.Errorf("%v %v", err, s.Err())
	}
	if got := c.Rest(); got != "" {
		t.Errorf("after the end of the stream came %q", got)
	}
	if err := s.Send(t.Context(), []byte("<message from='x@porch.example.org' to='a@b.example'/>")); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestWrongSecret(t *testing.T) {
	server := xmpptest.Listen(t)
	done := dialling(t, Config{Component: &Component{Domain: testDomain, Server: server.Addr(), Secret: "x"}})
	c := server.Accept()
	c.Expect(">")
	c.Send("<stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:component:accept' id='1'>")
	c.Expect("</handshake>")
	c.Send("<stream:error><not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
	if d := <-done; d.err == nil || Delay(d.err) != Refused || !strings.Contains(d.err.Error(), "the secret is wrong") {
		t.Errorf("%v", d.err)
	}
}

// account tries to log in while script plays the server.
func account(t *testing.T, pool *x509.CertPool, mode TLSMode, script func(c *xmpptest.Conn)) (*xmpptest.Conn, error) {
	t.Helper()
	server := xmpptest.Listen(t)
	done := dialling(t, Config{Account: &Account{
		JID: jid.MustParse("gateway@example.org"), Password: "secret", Server: server.Addr(), Mode: mode, TLS: &tls.Config{RootCAs: pool},
	}})
	c := server.Accept()
	script(c)
	return c, (<-done).err
}

const (
	offerTLS  = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>"
	offerSASL = "<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>%s</mechanism></mechanisms>"
)

// TestNothingIsSentInTheClear: without TLS, or without a certificate that
// holds (number 13), no credentials go out.
func TestNothingIsSentInTheClear(t *testing.T) {
	now := time.Now()
	good, pool := xmpptest.Certificate(t, "example.org", now.Add(-time.Hour), now.Add(time.Hour))
	other, otherPool := xmpptest.Certificate(t, "other.example", now.Add(-time.Hour), now.Add(time.Hour))
	expired, expiredPool := xmpptest.Certificate(t, "example.org", now.Add(-2*time.Hour), now.Add(-time.Hour))
	future, futurePool := xmpptest.Certificate(t, "example.org", now.Add(time.Hour), now.Add(2*time.Hour))
	_, strangers := xmpptest.Certificate(t, "example.org", now, now.Add(time.Hour))
	for name, c := range map[string]struct {
		pool   *x509.CertPool
		script func(c *xmpptest.Conn)
		class  Class
	}{
		"STARTTLS is stripped": {pool, func(c *xmpptest.Conn) {
			c.Header("example.org", fmt.Sprintf(offerSASL, "SCRAM-SHA-1"))
			c.Expect(">")
			c.Send("<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
			c.Rest()
		}, Refused},
		"11 no features": {pool, func(c *xmpptest.Conn) {
			c.Header("example.org", "")
			c.Expect(">") // it asks all the same (RFC 7590 section 3.1)
			c.Send("<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
			c.Rest()
		}, Refused},
		"another's name": {otherPool, func(c *xmpptest.Conn) { c.Header("example.org", offerTLS); c.StartTLS(other) }, Conflict},
		"expired":        {expiredPool, func(c *xmpptest.Conn) { c.Header("example.org", offerTLS); c.StartTLS(expired) }, Conflict},
		"not yet valid":  {futurePool, func(c *xmpptest.Conn) { c.Header("example.org", offerTLS); c.StartTLS(future) }, Conflict},
		"not of ours":    {strangers, func(c *xmpptest.Conn) { c.Header("example.org", offerTLS); c.StartTLS(good) }, Conflict},
		"11 no features with TLS": {pool, func(c *xmpptest.Conn) {
			c.Header("example.org", offerTLS)
			if c.StartTLS(good) == nil {
				c.Header("example.org", "")
				c.Rest()
			}
		}, Refused},
		"PLAIN only": {pool, func(c *xmpptest.Conn) {
			c.Header("example.org", offerTLS)
			if c.StartTLS(good) == nil {
				c.Header("example.org", fmt.Sprintf(offerSASL, "PLAIN"))
				c.Rest()
			}
		}, Refused},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := account(t, c.pool, StartTLS, c.script)
			if err == nil {
				t.Fatal("logged in")
			}
			if strings.Contains(conn.Seen(), "<auth") || strings.Contains(conn.Seen(), "secret") {
				t.Errorf("credentials were sent: %s", conn.Seen())
			}
			if got := Delay(err); got != c.class {
				t.Errorf("%v: class %d, want %d", err, got, c.class)
			}
		})
	}
}

// TestScramRounds (number 12): the server does not choose how long we compute,
// nor how little.
func TestScramRounds(t *testing.T) {
	for i, ok := range map[string]bool{"4096": true, "10000": true, "500000": true, "1": false, "4095": false, "500001": false, "99999999999": false, "-5": false, "x": false} {
		if err := checkChallenge([]byte("r=abc,s=QSXCR+Q6sek8bf92,i=" + i)); (err == nil) != ok {
			t.Errorf("i=%s: %v", i, err)
		}
	}
	err := loggingIn(t, "SCRAM-SHA-1", "<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>cj1hLHM9UVNYQ1IrUTZzZWs4YmY5MixpPTk5OTk5OTk5</challenge>")
	if err == nil || Delay(err) != Refused {
		t.Errorf("%v", err)
	}
}

// loggingIn logs in by a mechanism, which is answered once.
func loggingIn(t *testing.T, mechanism, answer string) error {
	now := time.Now()
	cert, pool := xmpptest.Certificate(t, "example.org", now.Add(-time.Hour), now.Add(time.Hour))
	_, err := account(t, pool, StartTLS, func(c *xmpptest.Conn) {
		c.Header("example.org", offerTLS)
		if c.StartTLS(cert) != nil {
			return
		}
		c.Header("example.org", fmt.Sprintf(offerSASL, mechanism))
		c.Expect("</auth>")
		c.Send(answer)
		c.Rest()
	})
	return err
}

// TestWrongPassword is told as such, and not tried again soon.
func TestWrongPassword(t *testing.T) {
	err := loggingIn(t, "SCRAM-SHA-256", "<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>")
	if err == nil || Delay(err) != Refused || !strings.Contains(err.Error(), "the password is not accepted") || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// TestSilentServer (number 8) is left when the caller's time is over.
func TestSilentServer(t *testing.T) {
	server := xmpptest.Listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := Dial(ctx, Config{Component: &Component{Domain: testDomain, Server: server.Addr(), Secret: "x"}})
		done <- err
	}()
	c := server.Accept()
	c.Expect(">")
	cancel()
	c.Rest()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestTLSOffIsForThisMachine(t *testing.T) {
	a := &Account{JID: jid.MustParse("gateway@example.org"), Server: "192.0.2.1:5222", Mode: Off}
	if _, err := dialTest(t, Config{Account: a}); err == nil || !strings.Contains(err.Error(), "not this machine") {
		t.Errorf("%v", err)
	}
}

// FuzzReader feeds the reader what no server sends. Whatever is kept of it can
// be read again, and reads the same.
func FuzzReader(f *testing.F) {
	for _, raw := range hostile {
		if len(raw) < 1000 { // longer ones take minutes to be made shorter
			f.Add(raw)
		}
	}
	f.Add("<iq type='result' id='1'/><message/></stream:stream>")
	f.Add("<a xmlns='b'><stream:error/></a><presence from='☃@x'/>")
	f.Add("<message><a:b xmlns:a='u'><c xmlns='' a:d='1' xml:lang='x'/>&lt;]]&gt;&#xd;</a:b></message>")
	f.Fuzz(func(t *testing.T, raw string) {
		ours, theirs := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.WriteString(theirs, raw) // not all of it is read
			theirs.Close()
		})
		defer wg.Wait()
		defer ours.Close()
		r := newReader(newConn(ours), "jabber:client")
		for {
			st, err := r.next()
			if errors.Is(err, errDropped) {
				continue
			}
			if err != nil {
				return
			}
			if len(st.Inner) > maxStanza+maxStanza/2 {
				t.Errorf("%d bytes are kept", len(st.Inner))
			}
			if err := st.Unmarshal(new(struct{})); err != nil {
				t.Fatalf("%q: what was read cannot be read again: %v", raw, err)
			}
			again := newReader(newConn(textConn{r: strings.NewReader("<" + st.Name + ">" + string(st.Inner) + "</" + st.Name + ">")}), "jabber:client")
			second, err := again.next()
			if err != nil || !bytes.Equal(second.Inner, st.Inner) || second.Child != st.Child {
				t.Fatalf("%q was read as %q, and again as %q, %v", raw, st.Inner, second.Inner, err)
			}
		}
	})
}

// A textConn is a connection on which a text comes.
type textConn struct {
	net.Conn
	r io.Reader
}

func (c textConn) Read(b []byte) (int, error) { return c.r.Read(b) }
