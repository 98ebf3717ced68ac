package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// TestFetchBackupOfSeveral has two gateways keep backups on one service, and
// looks for one of them, by who may read both, and by who may read neither.
func TestFetchBackupOfSeveral(t *testing.T) {
	users := xmppserver.Accounts("eve")
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Component: "gw.localhost", Secret: "s", Storage: "memory", Users: users,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	load := func(xmpp, secret string) *config.Config {
		t.Helper()
		dir := t.TempDir()
		for name, text := range map[string]string{"p.yaml": "gateway: {id: one, data_dir: data}\nxmpp:\n" + xmpp, "secret": secret} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, faults := config.Load(filepath.Join(dir, "p.yaml"), config.LoadOptions{})
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		return c
	}
	c := load(fmt.Sprintf("  component: {domain: gw.localhost, server: %q, secret_file: secret}\n  pubsub: pubsub.localhost\n", server.ComponentAddr()), "s")
	quiet := func(s string) { t.Errorf("it is said %s", s) }
	if _, _, err := FetchBackup(t.Context(), c, "two", quiet); err == nil || !strings.Contains(err.Error(), "no backup is there: there is no node two/backup") {
		t.Errorf("of one that has none it is said %v", err)
	}
	cfg, err := bridgeConfig(c, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	keep := func(gateway string) {
		t.Helper()
		cfg.Gateway = gateway
		err := bridge.Briefly(t.Context(), cfg, nil, slog.New(slog.DiscardHandler), func(b *bridge.Bridge) error {
			_, err := b.KeepBackup(t.Context(), time.Now(), []byte("of "+gateway), 1)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	keep("one")
	if got, of, err := FetchBackup(t.Context(), c, "", quiet); err != nil || string(got) != "of one" || of.Gateway != "one" {
		t.Errorf("the only one is %q, %+v, %v", got, of, err)
	}
	keep("two")
	if _, _, err := FetchBackup(t.Context(), c, "", quiet); err == nil || !strings.Contains(err.Error(), "several gateways: one (") || !strings.Contains(err.Error(), ", two (") {
		t.Errorf("of two it is said %v", err)
	}
	if got, of, err := FetchBackup(t.Context(), c, "two", quiet); err != nil || string(got) != "of two" || of.Gateway != "two" {
		t.Errorf("the second is %q, %+v, %v", got, of, err)
	}
	eve := load(fmt.Sprintf("  account: {jid: eve@localhost, password_file: secret, server: %q, tls: {ca_file: %q}}\n  pubsub: pubsub.localhost\n", server.C2S(), server.CAFile()), users["eve"])
	for _, gateway := range []string{"", "two"} {
		if _, _, err := FetchBackup(t.Context(), eve, gateway, quiet); err == nil || !strings.Contains(err.Error(), "the service says forbidden") {
			t.Errorf("a stranger is told %v", err)
		}
	}
}

// TestBackupNeedsAll: without a session, or without a maker, none is made.
func TestBackupNeedsAll(t *testing.T) {
	a := &Agent{forward: &forwarder{}}
	if _, err := a.keepBackup(t.Context(), 1); err != errNoMaker {
		t.Errorf("without a maker it is said %v", err)
	}
	a.KeepBackups(func(*config.Config) (SealedBackup, error) { t.Error("one is made"); return SealedBackup{}, nil })
	if _, err := a.keepBackup(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "no XMPP session") {
		t.Errorf("without a session it is said %v", err)
	}
}
