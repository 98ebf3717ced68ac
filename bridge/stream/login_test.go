package stream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mellium.im/sasl"
	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
)

// Logins of an account, against a server that plays its part well up to some
// point.

// A site is a server for accounts on example.org.
type site struct {
	*xmpptest.Server
	cert tls.Certificate
	pool *x509.CertPool
}

func newSite(t *testing.T) site {
	t.Helper()
	cert, pool := xmpptest.Certificate(t, "example.org", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	return site{xmpptest.Listen(t), cert, pool}
}

func (s site) account() *Account {
	return &Account{
		JID: jid.MustParse("gateway@example.org"), Password: "pass word", Server: s.Addr(), TLS: &tls.Config{RootCAs: s.pool},
	}
}

type dialled struct {
	s   *Session
	err error
}

// dialling logs in while the test's own goroutine plays the server.
func dialling(t *testing.T, cfg Config) <-chan dialled {
	done := make(chan dialled, 1)
	go func() {
		s, err := dialTest(t, cfg)
		done <- dialled{s, err}
	}()
	return done
}

// encrypted is the beginning of a login, up to features within TLS.
func (s site) encrypted(t *testing.T, version uint16, features string) *xmpptest.Conn {
	t.Helper()
	c := s.Accept()
	c.Header("example.org", offerTLS)
	c.Expect("<starttls")
	c.Expect(">")
	c.Send("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
	if err := c.TLS(&tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: version, MaxVersion: version}); err != nil {
		t.Fatal(err)
	}
	c.Header("example.org", features)
	return c
}

const (
	offerBind     = "<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>"
	offerBindings = "<sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'><channel-binding type='tls-unique'/><channel-binding type='tls-exporter'/></sasl-channel-binding>"
)

func offers(mechanisms ...string) string {
	return fmt.Sprintf(offerSASL, strings.Join(mechanisms, "</mechanism><mechanism>"))
}

// asAccount gives a session of an account and the server's end of it.
func asAccount(t *testing.T) (*Session, *xmpptest.Conn, *heard) {
	t.Helper()
	server := newSite(t)
	h := &heard{more: make(chan struct{}, 1)}
	done := dialling(t, Config{Account: server.account(), Handler: h.handle})
	c := server.encrypted(t, tls.VersionTLS13, offers("SCRAM-SHA-256"))
	c.Authenticate("pass word")
	c.Header("example.org", offerBind)
	c.Bind("gateway@example.org/given")
	d := <-done
	if d.err != nil {
		t.Fatal(d.err)
	}
	return d.s, c, h
}

// TestMechanisms (numbers 10 and 12): the best that both know, and channel
// binding wherever the server's kind of it is known.
func TestMechanisms(t *testing.T) {
	all := offers("PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")
	for name, c := range map[string]struct {
		version  uint16
		features string
		want     string
	}{
		"TLS 1.3 with bindings":    {tls.VersionTLS13, offerBindings + all, "SCRAM-SHA-256-PLUS"},
		"TLS 1.2 with bindings":    {tls.VersionTLS12, offerBindings + all, "SCRAM-SHA-256-PLUS"},
		"TLS 1.2 without a list":   {tls.VersionTLS12, all, "SCRAM-SHA-256-PLUS"},
		"TLS 1.3 without a list":   {tls.VersionTLS13, all, "SCRAM-SHA-256"},
		"SHA-1 with binding first": {tls.VersionTLS12, offers("SCRAM-SHA-256", "SCRAM-SHA-1-PLUS"), "SCRAM-SHA-1-PLUS"},
		"SHA-1 at the least":       {tls.VersionTLS13, offers("PLAIN", "SCRAM-SHA-1"), "SCRAM-SHA-1"},
	} {
		t.Run(name, func(t *testing.T) {
			server := newSite(t)
			account := server.account()
			account.PlusSeen = new(atomic.Bool)
			done := dialling(t, Config{Account: account})
			peer := server.encrypted(t, c.version, c.features)
			if got := peer.Authenticate("pass word"); got != c.want {
				t.Errorf("chose %s, want %s", got, c.want)
			}
			peer.Header("example.org", offerBind)
			peer.Bind("gateway@example.org/x")
			if d := <-done; d.err != nil {
				t.Fatal(d.err)
			}
			if got := account.PlusSeen.Load(); got != isPlus(c.want) {
				t.Errorf("channel binding is remembered: %v", got)
			}
		})
	}
}

// TestPlusStripped (number 12): who once bound the channel does so for ever.
func TestPlusStripped(t *testing.T) {
	server := newSite(t)
	account := server.account()
	account.PlusSeen = new(atomic.Bool)
	account.PlusSeen.Store(true)
	done := dialling(t, Config{Account: account})
	c := server.encrypted(t, tls.VersionTLS12, offers("SCRAM-SHA-256"))
	if got := c.Rest(); strings.Contains(got, "<auth") {
		t.Errorf("sent %q", got)
	}
	if d := <-done; Delay(d.err) != Refused || !strings.Contains(d.err.Error(), "channel binding") {
		t.Errorf("%v", d.err)
	}
}

// TestFailedLogins: each with its class and its sentence.
func TestFailedLogins(t *testing.T) {
	fails := func(condition string) func(*xmpptest.Conn) {
		return func(c *xmpptest.Conn) {
			c.Expect("</auth>")
			c.Send("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><" + condition + "/><text>whatever it says</text></failure>")
			c.Rest()
		}
	}
	challenges := func(text string) func(*xmpptest.Conn) {
		return func(c *xmpptest.Conn) {
			c.Expect("</auth>")
			c.Challenge(text)
			c.Rest()
		}
	}
	for name, c := range map[string]struct {
		script func(*xmpptest.Conn)
		class  Class
		says   string
	}{
		"wrong password":    {fails("not-authorized"), Refused, "the password is not accepted"},
		"account disabled":  {fails("account-disabled"), Refused, "account-disabled"},
		"unknown condition": {fails("bad-weather"), Refused, "undefined-condition"},
		"not now":           {fails("temporary-auth-failure"), Transient, "cannot check the password now"},
		"link breaks":       {func(c *xmpptest.Conn) { c.Expect("</auth>"); c.Close() }, Transient, "the server closed the connection"},
		"server shuts down": {func(c *xmpptest.Conn) {
			c.Expect("</auth>")
			c.Send("<stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
			c.Rest()
		}, Transient, "system-shutdown"},
		"an empty challenge":      {challenges(""), Refused, "something else than SCRAM"},
		"a challenge of one byte": {challenges("x"), Refused, "something else than SCRAM"},
		"a short last part":       {challenges("r=abc,s=QSXCR+Q6sek8bf92,i=4096,"), Refused, "something else than SCRAM"},
		"another's nonce":         {challenges("r=abc,s=QSXCR+Q6sek8bf92,i=4096"), Refused, "does not prove that it knows the password"},
		"success without proof": {func(c *xmpptest.Conn) {
			c.Expect("</auth>")
			c.Send("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>")
			c.Rest()
		}, Refused, "something else than SCRAM"},
		"no resource": {func(c *xmpptest.Conn) {
			c.Authenticate("pass word")
			c.Header("example.org", offerBind)
			id := between(c.Expect("</iq>"), `id="`, `"`)
			c.Send("<iq type='error' id='" + id + "'><error type='cancel'><resource-constraint xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>")
			c.Rest()
		}, Conflict, "binds no resource: resource-constraint"},
		"11 no features after the login": {func(c *xmpptest.Conn) {
			c.Authenticate("pass word")
			c.Header("example.org", "")
			c.Rest()
		}, Transient, "binds no resource"},
		"a bare address": {func(c *xmpptest.Conn) {
			c.Authenticate("pass word")
			c.Header("example.org", offerBind)
			c.Bind("gateway@example.org")
			c.Rest()
		}, Transient, "no full address"},
	} {
		t.Run(name, func(t *testing.T) {
			server := newSite(t)
			done := dialling(t, Config{Account: server.account(), Resource: "porch"})
			c.script(server.encrypted(t, tls.VersionTLS13, offers("SCRAM-SHA-256")))
			d := <-done
			if d.err == nil {
				t.Fatal("logged in")
			}
			if Delay(d.err) != c.class || !strings.Contains(d.err.Error(), c.says) || strings.Contains(d.err.Error(), "pass word") {
				t.Errorf("class %d, want %d: %v", Delay(d.err), c.class, d.err)
			}
		})
	}
}

// TestNoSafeLogin: the password itself is given to nobody.
func TestNoSafeLogin(t *testing.T) {
	for name, features := range map[string]string{
		"PLAIN":             offers("PLAIN", "DIGEST-MD5", "ANONYMOUS"),
		"nothing":           offers(),
		"only -PLUS, blind": offers("SCRAM-SHA-256-PLUS"), // TLS 1.3, and no word on tls-exporter
	} {
		t.Run(name, func(t *testing.T) {
			server := newSite(t)
			done := dialling(t, Config{Account: server.account()})
			c := server.encrypted(t, tls.VersionTLS13, features)
			if got := c.Rest(); strings.Contains(got, "<auth") {
				t.Errorf("sent %q", got)
			}
			if d := <-done; Delay(d.err) != Refused || !strings.Contains(d.err.Error(), "no login that is safe") {
				t.Errorf("%v", d.err)
			}
		})
	}
}

// TestInjectedBeforeTLS: what came in the clear is not taken for what came
// encrypted.
func TestInjectedBeforeTLS(t *testing.T) {
	server := newSite(t)
	done := dialling(t, Config{Account: server.account()})
	c := server.Accept()
	c.Header("example.org", offerTLS)
	c.Expect("<starttls")
	c.Expect(">")
	c.Send("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><stream:features>" + offers("SCRAM-SHA-1") + "</stream:features>")
	if c.TLS(&tls.Config{Certificates: []tls.Certificate{server.cert}}) == nil {
		t.Error("what was injected was passed over")
	}
	c.Close()
	if d := <-done; d.err == nil || strings.Contains(c.Seen(), "<auth") {
		t.Errorf("%v, after %q", d.err, c.Seen())
	}
}

// TestDirectTLS is XEP-0368: with the name of the domain, whatever the host is
// called (number 13), the name of the protocol, and no TLS older than 1.2.
func TestDirectTLS(t *testing.T) {
	server := newSite(t)
	account := server.account()
	account.Mode = Direct
	account.TLS.ServerName = "mallory.example" // is not for the caller to say
	account.TLS.MinVersion = tls.VersionTLS10
	done := dialling(t, Config{Account: account, Resource: "porch"})
	c := server.Accept()
	var hello tls.ClientHelloInfo
	err := c.TLS(&tls.Config{
		Certificates: []tls.Certificate{server.cert}, NextProtos: []string{"xmpp-client"},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = *h
			return nil, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if hello.ServerName != "example.org" || len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != "xmpp-client" {
		t.Errorf("asked for %q, %q", hello.ServerName, hello.SupportedProtos)
	}
	if oldest := slices.Min(hello.SupportedVersions); oldest < tls.VersionTLS12 {
		t.Errorf("would speak %s", tls.VersionName(oldest))
	}
	c.Header("example.org", offers("SCRAM-SHA-256"))
	c.Authenticate("pass word")
	c.Header("example.org", offerBind)
	if request := c.Bind("gateway@example.org/other"); !strings.Contains(request, "<resource>porch</resource>") {
		t.Errorf("asked for a resource by %s", request)
	}
	d := <-done
	if d.err != nil {
		t.Fatal(d.err)
	}
	if got := d.s.Addr().String(); got != "gateway@example.org/other" {
		t.Errorf("address %s", got)
	}
	if got := d.s.Server().String(); got != "example.org" {
		t.Errorf("server %s", got)
	}
}

// TestLongSession (number 9): the limit is for one stanza, not for all, with
// STARTTLS too.
func TestLongSession(t *testing.T) {
	_, c, h := asAccount(t)
	body := strings.Repeat("x", 100<<10)
	for i := range 3 * maxUnread / len(body) {
		id := fmt.Sprint("m", i)
		c.Send("<message from='a@b.example' id='" + id + "'><body>" + body + "</body></message>")
		h.await(t, id)
	}
}

// TestAnswersToAnAccount (number 4): the account's own server may leave itself
// out, and nobody else may speak for it (RFC 6120 section 8.1.2.1).
func TestAnswersToAnAccount(t *testing.T) {
	const own, server, other = "gateway@example.org", "example.org", "pubsub.example.org"
	for _, c := range []struct {
		to   string // who is asked
		from string // who answers
		ok   bool
	}{
		{"", "", true}, {"", own, true}, {"", server, true}, {"", own + "/given", true},
		{"", "evil@x.example", false}, {"", "evil@example.org", false}, {"", own + "/other", false},
		{server, "", true}, {server, server, true}, {server, other, false}, {server, "evil@example.org", false},
		{own, "", true}, {own, own, true}, {own, "gateway@example.org.evil.example", false},
		{other, other, true}, {other, "", false}, {other, server, false}, {other, own, false},
		{"a@b.example/x", "a@b.example/x", true}, {"a@b.example/x", "a@b.example", false}, {"a@b.example/x", "a@b.example/y", false},
	} {
		t.Run(c.to+" by "+c.from, func(t *testing.T) {
			s := newSession(Config{Account: &Account{}}, nil, jid.MustParse("gateway@example.org/given"), "jabber:client")
			if got := s.speaksFor(address(c.from), address(c.to)); got != c.ok {
				t.Errorf("is taken: %v", got)
			}
		})
	}
	// And one of each on the wire.
	s, c, _ := asAccount(t)
	done := make(chan error, 1)
	go func() {
		st, err := s.IQ(t.Context(), IQ{Type: stanza.GetIQ, Payload: []byte("<a xmlns='b'/>")})
		if err == nil && st.Child.Local != "true" {
			err = errors.New("a forged answer was taken")
		}
		done <- err
	}()
	id := between(c.Expect("</iq>"), `id="`, `"`)
	c.Send("<iq type='result' id='" + id + "' from='evil@x.example'><forged xmlns='f'/></iq>")
	c.Send("<iq type='result' id='" + id + "'><true xmlns='t'/></iq>")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func address(s string) jid.JID {
	if s == "" {
		return jid.JID{}
	}
	return jid.MustParse(s)
}

// TestAnsweredOnce: what nobody takes on is refused by an account once, with
// no address of its own.
func TestAnsweredOnce(t *testing.T) {
	s, c, _ := asAccount(t)
	c.Send("<iq type='get' id='7' from='a@b.example/c'><a xmlns='b'/></iq>")
	if got := c.Expect("</iq>"); !strings.Contains(got, `id="7"`) || !strings.Contains(got, "service-unavailable") || strings.Contains(got, "from=") {
		t.Errorf("answered %s", got)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	if got := c.Expect("</stream:stream>"); got != "</stream:stream>" {
		t.Errorf("sent another time: %s", got)
	}
	_, _ = io.WriteString(c, "</stream:stream>") // the client may have gone by its own time
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// FuzzChallenge: the library comes to an end of every challenge that it is
// given.
func FuzzChallenge(f *testing.F) {
	for _, text := range []string{"", "x", "r=abc,s=QSXCR+Q6sek8bf92,i=4096", "r=abc,s=QQ==,i=4096,", "v=", "e=other-error", "m=x,r=y"} {
		f.Add([]byte(text), false)
		f.Add([]byte(text), true)
	}
	f.Fuzz(func(t *testing.T, challenge []byte, goOn bool) {
		for _, m := range mechanisms() {
			if isPlus(m.Name) {
				continue
			}
			client := sasl.NewClient(m, sasl.Credentials(func() ([]byte, []byte, []byte) { return []byte("a"), []byte("b"), nil }))
			_, first, err := client.Step(nil)
			if err != nil {
				t.Fatal(err)
			}
			if goOn { // as an answer to our own nonce
				_, nonce, _ := bytes.Cut(first, []byte(",r="))
				challenge = slices.Concat([]byte("r="), nonce, challenge)
			}
			if _, _, err := client.Step(challenge); err == nil {
				_, _, _ = client.Step(challenge)
			}
		}
	})
}
