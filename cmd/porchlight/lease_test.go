package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// TestPassive has a second gateway with the same component say that it is
// passive, and the first come back after a kill as if nothing were. When both
// have ended, a third that sees it does not wait.
func TestPassive(t *testing.T) {
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Component: "gw.localhost", Secret: "s", Storage: "memory",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	config := fmt.Sprintf("gateway: {id: gw, data_dir: data}\nxmpp:\n  component: {domain: gw.localhost, server: %q, secret_file: secret}\n  pubsub: pubsub.localhost\n", server.ComponentAddr())
	start := func(dir, status string) *exec.Cmd {
		t.Helper()
		manager := listenNotify(t, dir)
		cmd := exec.Command("porchlight", "run", "-c", filepath.Join(dir, "p.yaml"))
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=100000")
		var log bytes.Buffer
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Logf("%s", &log)
		})
		manager.wait(t, status)
		manager.conn.Close() // one that is not read has the gateway wait
		return cmd
	}
	const online, passive = ", the server is there", ", another gateway is at work in this one's place"
	one, two := houseDir(t, config), houseDir(t, config)
	first := start(one, online)
	second := start(two, passive)
	_ = first.Process.Kill()
	_ = first.Wait()
	first = start(one, online)

	doctor := exec.Command("porchlight", "doctor", "-c", filepath.Join(two, "p.yaml"))
	out, _ := doctor.CombinedOutput()
	if !strings.Contains(string(out), "it runs, and is passive") || doctor.ProcessState.ExitCode() != exitFailed {
		t.Errorf("the doctor says %s", out)
	}
	_ = second.Process.Signal(os.Interrupt)
	if err := second.Wait(); err != nil {
		t.Error(err)
	}
	_ = first.Process.Kill() // without giving back its lease
	_ = first.Wait()
	start(houseDir(t, config), online)
}
