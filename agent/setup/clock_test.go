package setup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// TestClockOfACard takes cards over by a clock that nothing keeps. One in 1970 is
// known to be wrong, and keeps no server out. By one that is far ahead no
// certificate holds, and the installer is told of the clock.
func TestClockOfACard(t *testing.T) {
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Invites: true, Users: map[string]string{"gateway": "the gateway's password"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	// Nothing in this process has looked for authorities before.
	t.Setenv("SSL_CERT_FILE", server.CAFile())
	at := func(year int) clock.Source {
		return clock.NewFake(time.Now(), time.Date(year, 1, 1, 0, 0, 9, 0, time.UTC))
	}
	for name, text := range map[string]string{
		CardConfig: "gateway: {data_dir: DATA}\nxmpp: {account: {jid: gateway@localhost, password: the gateway's password, server: \"" + server.C2S() + "\"}, pubsub: pep}\n",
		CardInvite: "INVITE\nserver: " + server.C2S() + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			uri, err := server.Invite(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c := newCard(t, map[string]string{name: strings.Replace(text, "INVITE", uri, 1)})
			card := Card{Dir: c.boot, Config: c.path, DataDir: filepath.Join(c.etc, "data"), Clock: at(2150)}
			if name == CardInvite {
				if done, err := card.TakeOver(t.Context()); done || err == nil || errors.As(err, new(CardFault)) {
					t.Fatalf("by a clock far ahead: %v, %v", done, err)
				}
				if told := c.read(filepath.Join(c.boot, CardErrors)); !strings.Contains(told, "This machine's clock shows 2150-01-01 00:00:09") || !strings.Contains(told, "tried again by itself") {
					t.Errorf("it is told %q", told)
				}
			}
			card.Clock = at(1970)
			if done, err := card.TakeOver(t.Context()); err != nil || !done {
				t.Fatalf("in 1970: %v, %v", done, err)
			}
			if told := c.read(filepath.Join(c.boot, CardDone)); !strings.Contains(told, "claim ") || strings.Contains(told, "Not everything works") {
				t.Errorf("it is told %q", told)
			}
		})
	}

	// In a config it may be that the server is reached later.
	t.Run("ahead", func(t *testing.T) {
		c := newCard(t, map[string]string{CardConfig: "gateway: {data_dir: DATA}\nxmpp: {account: {jid: gateway@localhost, password: x, server: \"" + server.C2S() + "\"}}\n"})
		if done, err := (Card{Dir: c.boot, Config: c.path, Clock: at(2150)}).TakeOver(t.Context()); err != nil || !done {
			t.Fatal(done, err)
		}
		if told := c.read(filepath.Join(c.boot, CardDone)); !strings.Contains(told, "Next: compare the clock of this machine") {
			t.Errorf("it is told %q", told)
		}
		if _, err := os.Stat(c.path); err != nil {
			t.Error(err)
		}
	})
	// By a right clock its wrong password is a fault of the card.
	t.Run("wrong password", func(t *testing.T) {
		c := newCard(t, map[string]string{CardConfig: "gateway: {data_dir: DATA}\nxmpp: {account: {jid: gateway@localhost, password: x, server: \"" + server.C2S() + "\"}}\n"})
		if done, err := c.takeOver(); done || !errors.As(err, new(CardFault)) {
			t.Fatal(done, err)
		}
		if told := c.read(filepath.Join(c.boot, CardErrors)); !strings.Contains(told, "The server refuses the login of gateway@localhost") || !strings.Contains(told, "Mend porchlight.yaml and start again") {
			t.Errorf("it is told %q", told)
		}
		if got := c.list(c.etc); got != "" {
			t.Errorf("half done: %s", got)
		}
	})
}
