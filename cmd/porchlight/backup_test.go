package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// TestBackupAndRestore brings a gateway back in another place, runs it at a real
// server, and has the one before find out that it was succeeded.
func TestBackupAndRestore(t *testing.T) {
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Component: "gw.localhost", Secret: "s", Storage: "memory",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	config := fmt.Sprintf("gateway: {data_dir: data}\nxmpp:\n  component: {domain: gw.localhost, server: %q, secret_file: secret}\n  pubsub: pubsub.localhost\n", server.ComponentAddr())
	first, second := houseDir(t, config), houseDir(t, "")
	os.Remove(filepath.Join(second, "p.yaml"))
	os.Remove(filepath.Join(second, "secret"))
	if err := os.Mkdir(filepath.Join(first, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	porchlight := func(status int, args ...string) string {
		t.Helper()
		cmd := exec.Command("porchlight", args...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != status {
			t.Fatalf("porchlight %v: status %d, want %d:\n%s", args, got, status, out)
		}
		return string(out)
	}
	// run has a gateway work until it is online, and stops it.
	run := func(dir string) {
		t.Helper()
		manager := listenNotify(t, dir)
		defer manager.conn.Close()
		cmd := exec.Command("porchlight", "run", "-c", filepath.Join(dir, "p.yaml"))
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=100000")
		var log bytes.Buffer
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		manager.wait(t, "STATUS=0 readings wait, the server is there")
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, &log)
		}
	}
	run(first)
	backups := filepath.Join(first, "backups")
	out := porchlight(exitDone, "backup", "-c", filepath.Join(first, "p.yaml"), "--to", backups)
	phrase := regexp.MustCompile(`[A-Z2-7]{5}(-[A-Z2-7]{5}){4}`).FindString(out)
	if phrase == "" || porchlight(exitDone, "backup", "-c", filepath.Join(first, "p.yaml"), "--show-phrase") != phrase+"\n" {
		t.Fatalf("the phrase is %q: %s", phrase, out)
	}
	made, err := filepath.Glob(backups + "/porchlight-*.age")
	if err != nil || len(made) != 1 {
		t.Fatalf("made are %v, %v", made, err)
	}
	// The phrase is told once, and old backups go.
	for name, stamp := range map[string]string{"20200101-000000": "old", "20200102-000000": "old too"} {
		if err := os.WriteFile(regexp.MustCompile(`\d{8}-\d{6}`).ReplaceAllString(made[0], name), []byte(stamp), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out := porchlight(exitDone, "backup", "-c", filepath.Join(first, "p.yaml"), "--to", backups, "--keep", "2"); strings.Contains(out, phrase) {
		t.Errorf("the phrase is told again: %s", out)
	}
	if left, _ := filepath.Glob(backups + "/*"); len(left) > 2 || strings.Contains(strings.Join(left, " "), "20200101") {
		t.Errorf("left are %v", left)
	}

	typed := filepath.Join(second, "phrase")
	if err := os.WriteFile(typed, []byte("AAAAA-AAAAA-AAAAA-AAAAA-AAAAA\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := porchlight(exitFailed, "restore", "-c", filepath.Join(second, "p.yaml"), "--phrase-file", typed, made[0]); !strings.Contains(out, "nothing was restored: the recovery phrase is wrong") {
		t.Errorf("it is said %s", out)
	}
	if err := os.WriteFile(typed, []byte(strings.ToLower(phrase)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	porchlight(exitDone, "restore", "-c", filepath.Join(second, "p.yaml"), "--phrase-file", typed, made[0])
	if out := porchlight(exitFailed, "restore", "-c", filepath.Join(second, "p.yaml"), "--phrase-file", typed, made[0]); !strings.Contains(out, "is there already, and nothing was changed") {
		t.Errorf("a second time: %s", out)
	}
	run(second)

	out = porchlight(exitConfig, "run", "-c", filepath.Join(first, "p.yaml"))
	if !strings.Contains(out, "another gateway was restored from a backup of this one and has taken its place") {
		t.Errorf("the first one says %s", out)
	}
	// The restored one goes on.
	run(second)
	// And the first one too, once somebody says so.
	out = porchlight(exitDone, "backup", "-c", filepath.Join(first, "p.yaml"), "--to", first)
	porchlight(exitDone, "restore", "-c", filepath.Join(first, "p.yaml"), "--force", "--phrase-file", typed, strings.SplitN(out, ": ", 2)[0])
	run(first)
}
