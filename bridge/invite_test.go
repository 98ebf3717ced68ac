package bridge

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

func TestParseInvitation(t *testing.T) {
	for uri, want := range map[string]Invitation{
		"xmpp:example.org?register;preauth=abc-1":                      {Domain: "example.org", Token: "abc-1"},
		"xmpp:pi@example.org?register;preauth=abc":                     {Domain: "example.org", Name: "pi", Token: "abc"},
		"xmpp:anna@example.org?roster;preauth=a%2Bb;ibr=y":             {Domain: "example.org", Inviter: "anna@example.org", Token: "a+b"},
		"xmpp:%6Aosef%20k@example.org?roster;name=J;ibr=y;preauth=abc": {},
		"https://example.org/invite?t":                                 {},
		"xmpp:anna@example.org?roster;preauth=abc":                     {},
		"xmpp:example.org?roster;preauth=abc;ibr=y":                    {},
		"xmpp:example.org?register":                                    {},
		"xmpp:example.org?join;preauth=a":                              {},
		"xmpp:anna@example.org/phone?roster;preauth=abc;ibr=y":         {},
		"xmpp:?register;preauth=x":                                     {},
		"xmpp:example.org?register;preauth=%zz":                        {},
	} {
		got, err := ParseInvitation(uri)
		if got != want || (err != nil) != (want == Invitation{}) {
			t.Errorf("%s: %+v, %v", uri, got, err)
		}
	}
}

// TestInvitation makes accounts on a Prosody by the invitations of its operator
// and of an account, and by some that do not hold.
func TestInvitation(t *testing.T) {
	s, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Invites: true, Users: map[string]string{"anna": "anna's password"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	pem, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(pem)
	account := func(name, password string) stream.Config {
		return stream.Config{Account: &stream.Account{
			JID: jid.MustParse(name + "@localhost"), Password: password, Server: s.C2S(), TLS: &tls.Config{RootCAs: trusted},
		}}
	}
	login := func(name, password string) *stream.Session {
		t.Helper()
		session, err := stream.Dial(t.Context(), account(name, password))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { session.Close() })
		return session
	}
	invited := func(uri string, want Invitation) Invitation {
		t.Helper()
		in, err := ParseInvitation(uri)
		if err != nil {
			t.Fatal(err)
		}
		if want.Token = in.Token; in != want {
			t.Fatalf("%s: %+v, want %+v", uri, in, want)
		}
		return in
	}

	uri, err := s.Invite(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in := invited(uri, Invitation{Domain: "localhost"})
	if err := Register(t.Context(), account("anna", "x"), in.Token); !errors.Is(err, ErrTaken) || !Lasting(err) {
		t.Errorf("with a name that is taken: %v", err)
	}
	password := rand.Text()
	if err := Register(t.Context(), account("pi", password), in.Token); err != nil {
		t.Fatal(err)
	}
	login("pi", password)
	for name, token := range map[string]string{"used": in.Token, "made up": "guessed", "no": ""} {
		if err := Register(t.Context(), account("other", password), token); !Lasting(err) || errors.Is(err, ErrTaken) {
			t.Errorf("with %s invitation: %v", name, err)
		}
	}

	// Anna's own, which makes the two contacts of each other.
	anna := login("anna", "anna's password")
	answer, err := anna.IQ(t.Context(), stream.IQ{Type: stanza.SetIQ, To: jid.MustParse("localhost"), Payload: struct {
		XMLName xml.Name `xml:"http://jabber.org/protocol/commands command"`
		Node    string   `xml:"node,attr"`
		Action  string   `xml:"action,attr"`
	}{Node: "urn:xmpp:invite#invite", Action: "execute"}})
	if err != nil {
		t.Fatal(err)
	}
	uri = strings.ReplaceAll(regexp.MustCompile(`xmpp:anna@[^<]*`).FindString(string(answer.Inner)), "&amp;", "&")
	in = invited(uri, Invitation{Domain: "localhost", Inviter: "anna@localhost"})
	if err := Register(t.Context(), account("porch", password), in.Token); err != nil {
		t.Fatal(err)
	}
	roster, err := login("porch", password).IQ(t.Context(), stream.IQ{Type: stanza.GetIQ, Payload: struct {
		XMLName xml.Name `xml:"jabber:iq:roster query"`
	}{}})
	if err != nil || !regexp.MustCompile(`jid=.anna@localhost.`).Match(roster.Inner) {
		t.Errorf("the roster is %s, %v", roster.Inner, err)
	}

	// A server that may be another one has not said no.
	strange := account("strange", password)
	strange.Account.TLS = nil
	if err := Register(t.Context(), strange, in.Token); err == nil || Lasting(err) || !errors.As(err, new(*tls.CertificateVerificationError)) {
		t.Errorf("by a certificate that nobody trusts: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Register(ctx, account("late", password), in.Token); err == nil || Lasting(err) {
		t.Errorf("when it is too late: %v", err)
	}
}
