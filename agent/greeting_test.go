package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// told is a messenger that fails at first.
type told struct {
	fails int
	texts []string
}

func (m *told) Alert(context.Context, []bridge.JID, devices.ID, string, string) error { return nil }

func (m *told) Tell(_ context.Context, _ []bridge.JID, _ devices.ID, text string) error {
	if m.fails--; m.fails >= 0 {
		return errors.New("the link is lost")
	}
	m.texts = append(m.texts, text)
	return nil
}

// TestGreeting has a new gateway without server and owner, and a start between.
func TestGreeting(t *testing.T) {
	anna, err := bridge.ParseJID("anna@example.org")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), greetingFile)
	online, owners, people := false, []bridge.JID(nil), &told{fails: 1}
	start := func(fresh bool) *greeting {
		g := &greeting{
			path: path, people: people, online: func() bool { return online }, log: slog.New(slog.DiscardHandler),
			owners: func() []bridge.JID { return owners }, text: func() string { return "hello" },
		}
		if err := g.open(fresh); err != nil {
			t.Fatal(err)
		}
		return g
	}
	said := func(g *greeting, want int) {
		t.Helper()
		g.say(t.Context())
		if len(people.texts) != want {
			t.Fatalf("said %q, want %d", people.texts, want)
		}
	}
	g := start(true)
	said(g, 0) // offline
	online = true
	said(g, 0) // nobody's
	g = start(false)
	owners = []bridge.JID{anna}
	said(g, 0) // lost on the way
	said(g, 1)
	said(g, 1)
	said(start(false), 1)
	if _, err := os.Stat(path); err == nil {
		t.Error("the mark is still there")
	}
}
