package bridge

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

// TestBackupsOnRealServers keeps backups on a node, and has who may, and who may
// not, read them.
func TestBackupsOnRealServers(t *testing.T) {
	for _, kind := range []xmppserver.Kind{xmppserver.Prosody, xmppserver.Ejabberd} {
		t.Run(string(kind), func(t *testing.T) {
			s := startSite(t, kind)
			for _, m := range modes {
				t.Run(string(m), func(t *testing.T) { testBackups(t, s, m) })
			}
		})
	}
}

// someBackup is one of n bytes.
func someBackup(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func testBackups(t *testing.T, s *site, m mode) {
	gateway := "kept-" + string(m)
	r := runBridge(t, s.config(m, gateway))
	r.waitSession(true)
	ctx := context30(t)
	if all, err := r.Backups(ctx, gateway); err != nil || len(all) > 0 {
		t.Fatalf("before the first there are %v, %v", all, err)
	}
	var last []byte
	for i, size := range []int{1, mostPart, 3*mostPart + 5, 40_000} {
		last = someBackup(size)
		// The clock does not get on, or goes back.
		kept, err := r.KeepBackup(ctx, noon.Add(-time.Duration(i)*time.Hour), last, 2)
		if err != nil {
			t.Fatal(err)
		}
		all, err := r.Backups(ctx, gateway)
		if err != nil || len(all) != min(i+1, 2) || all[0] != kept || !kept.Whole() {
			t.Fatalf("there are %+v, %v; want first %+v", all, err, kept)
		}
	}
	r.checkConfig(r.backupNode(gateway))

	// Parts of one that was not published to its end; it is not taken, and goes
	// with the next.
	l, n := r.link.Load(), r.backupNode(gateway)
	cut := Backup{Gateway: gateway, Made: noon.Add(time.Hour), Parts: 3, digest: strings.Repeat("0a", 32)}
	part := data{CID: contentID([]byte("x")), Type: typeBackup, Base64: base64.StdEncoding.EncodeToString([]byte("x"))}
	text, err := xml.Marshal(part)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{1, 3} {
		if err := l.publish(ctx, n, cut.part(i), text); err != nil {
			t.Fatal(err)
		}
	}
	all, err := r.Backups(ctx, gateway)
	if err != nil || len(all) != 3 || all[0].Whole() || all[0].There != 2 {
		t.Fatalf("there are %+v, %v", all, err)
	}
	if _, err := r.ReadBackup(ctx, all[0]); !errors.Is(err, ErrBackupParts) || !strings.Contains(err.Error(), "2 of its 3 parts are there") {
		t.Errorf("it is said %v", err)
	}

	// The gateway that it was reads it from another machine, with a session of
	// its own, and its owner with his.
	// (An account's session goes on meanwhile; a component has one.)
	r.stop()
	found := func(cfg Config) (got []byte) {
		t.Helper()
		err := Briefly(ctx, cfg, nil, slog.New(slog.NewTextHandler(t.Output(), nil)), func(b *Bridge) error {
			names, err := b.BackupNodes(ctx)
			if err != nil || !slices.Contains(names, gateway) {
				t.Logf("the nodes that are shown are %v, %v", names, err)
			}
			all, err := b.Backups(ctx, gateway)
			if err != nil {
				return err
			}
			if len(all) != 3 || !all[1].Whole() {
				return fmt.Errorf("there are %+v", all)
			}
			got, err = b.ReadBackup(ctx, all[1])
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return got
	}
	if got := found(s.config(m, "restore")); !bytes.Equal(got, last) {
		t.Error("the gateway reads something else")
	}
	as := func(user string) Config {
		c := s.config(m, "restore")
		c.Stream.Component, c.Stream.Account, c.PubSub = nil, s.account(user), s.service(m).String()
		return c
	}
	if got := found(as("anna")); !bytes.Equal(got, last) {
		t.Error("the owner reads something else")
	}
	for _, user := range []string{"bob", "eve"} { // an operator of one device, and nobody
		err := Briefly(ctx, as(user), nil, slog.New(slog.DiscardHandler), func(b *Bridge) error {
			all, err := b.Backups(ctx, gateway)
			if len(all) > 0 {
				t.Errorf("%s sees %+v", user, all)
			}
			_, err2 := b.link.Load().backupPart(ctx, n, cut.part(1))
			if err2 == nil {
				t.Errorf("%s reads a part", user)
			}
			return err
		})
		if !is(err, stanza.Forbidden) && !is(err, stanza.NotAllowed) {
			t.Errorf("%s is told %v", user, err)
		}
	}

	// A short session keeps one too, and what was left over goes.
	err = Briefly(ctx, s.config(m, gateway), r.auth, slog.New(slog.NewTextHandler(t.Output(), nil)), func(b *Bridge) error {
		if _, err := b.KeepBackup(ctx, noon, someBackup(100), 1); err != nil {
			return err
		}
		all, err := b.Backups(ctx, gateway)
		if len(all) != 1 || !all[0].Whole() || !all[0].Made.After(cut.Made) {
			t.Errorf("there are %+v", all)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestBackupMembers: who is no owner any more can read none, though the gateway
// made none in this run.
func TestBackupMembers(t *testing.T) {
	s := startSite(t, xmppserver.Prosody)
	cfg := s.config(asComponent, "gw")
	r := runBridge(t, cfg)
	r.waitSession(true)
	if _, err := r.KeepBackup(context30(t), noon, someBackup(10), 1); err != nil {
		t.Fatal(err)
	}
	anna := s.login(t, "anna")
	if _, err := anna.items(jid.MustParse(s.PubSub()), "gw/backup"); err != nil {
		t.Fatal(err)
	}
	r.stop()
	next := newRunning(t, cfg)
	next.auth.set(rights{"anna@localhost": {devices.Gateway}, "bob@localhost": {"*"}})
	next.start()
	eventually(t, "anna is no owner, and reads on", func() error {
		if _, err := anna.items(jid.MustParse(s.PubSub()), "gw/backup"); err == nil {
			return errors.New("she reads it")
		}
		return nil
	})
	bob := s.login(t, "bob")
	eventually(t, "bob is the owner", func() error {
		_, err := bob.items(jid.MustParse(s.PubSub()), "gw/backup")
		return err
	})
}
