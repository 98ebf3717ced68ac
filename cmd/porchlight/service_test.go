package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
)

// waitFor is how long a test waits for what must happen.
const waitFor = 30 * time.Second

// houseDir makes a directory with a config and its data, short enough for sockets.
func houseDir(t *testing.T, config string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "porchlight")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, text := range map[string]string{"secret": "s", "p.yaml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// awayConfig is that of a gateway whose server is not there.
const awayConfig = "gateway: {id: gw, data_dir: data}\nxmpp:\n  component: {domain: gw.localhost, server: \"127.0.0.1:1\", secret_file: secret}\n  pubsub: pubsub.localhost\n"

// A managerSocket is the service manager's end of sd_notify(3).
type managerSocket struct{ conn *net.UnixConn }

func listenNotify(t *testing.T, dir string) managerSocket {
	t.Helper()
	path := filepath.Join(dir, "notify")
	_ = os.Remove(path) // of a run before
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return managerSocket{conn}
}

// wait gives the next datagram with a line that ends so, and those before it.
func (m managerSocket) wait(t *testing.T, line string) (before []string) {
	t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(waitFor)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		n, err := m.conn.Read(buf)
		if err != nil {
			t.Fatalf("waiting for %q: %v; before it came %q", line, err, before)
		}
		before = append(before, string(buf[:n]))
		for got := range strings.SplitSeq(string(buf[:n]), "\n") {
			if strings.HasSuffix(got, line) {
				return before
			}
		}
	}
}

// TestNotify runs the program as a service manager does, while the XMPP server
// is away.
func TestNotify(t *testing.T) {
	dir := houseDir(t, awayConfig)
	manager := listenNotify(t, dir)
	gateway := exec.Command("porchlight", "run", "-c", filepath.Join(dir, "p.yaml"))
	gateway.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=200000")
	var log bytes.Buffer
	gateway.Stderr = &log
	if err := gateway.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = gateway.Process.Kill() }()
	before := manager.wait(t, "READY=1")
	if len(before) != 1 || !strings.Contains(before[0], "STATUS=0 readings wait, no server") && !strings.Contains(before[0], "STATUS=1 readings wait, no server") {
		t.Errorf("it began with %q", before)
	}
	manager.wait(t, "WATCHDOG=1")
	if err := gateway.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	manager.wait(t, "STOPPING=1")
	if err := gateway.Wait(); err != nil {
		t.Errorf("it ended with %v\n%s", err, &log)
	}
}

// fakeGateway injects parts that are stuck.
type fakeGateway struct {
	ready chan struct{}
	stuck atomic.Pointer[[]string]
}

func (f *fakeGateway) Ready() <-chan struct{} { return f.ready }
func (f *fakeGateway) Stats() agent.Stats     { return agent.Stats{Online: true} }
func (f *fakeGateway) Stuck() []string {
	if s := f.stuck.Load(); s != nil {
		return *s
	}
	return nil
}

// TestWatchdogIsNotFed stands still in a part, and expects the watchdog to
// starve until that gets on.
func TestWatchdogIsNotFed(t *testing.T) {
	dir := houseDir(t, "")
	manager := listenNotify(t, dir)
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("WATCHDOG_USEC", "100000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	g := &fakeGateway{ready: make(chan struct{})}
	g.stuck.Store(&[]string{"mqtt house", "store"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		serve(ctx, g, slog.New(slog.DiscardHandler))
	}()
	close(g.ready)
	manager.wait(t, "READY=1")
	before := manager.wait(t, "STATUS=stuck: mqtt house, store")
	before = append(before, manager.wait(t, "STATUS=stuck: mqtt house, store")...)
	if strings.Contains(strings.Join(before, "\n"), "WATCHDOG") {
		t.Errorf("the watchdog was fed: %q", before)
	}
	g.stuck.Store(nil)
	manager.wait(t, "WATCHDOG=1")
	cancel()
	manager.wait(t, "STOPPING=1")
	<-ended
}

// TestUnit has systemd judge the units that the package brings.
func TestUnit(t *testing.T) {
	const unit = "../../configs/porchlight.service"
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not there; it is in Debian's package systemd")
	}
	// 2.0 is what we promise; an unhardened unit has 9.6.
	if out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=20", unit).CombinedOutput(); err != nil {
		t.Errorf("it is exposed more than 2.0:\n%s", out)
	}
	for _, unit := range []string{unit, "../../configs/porchlight-firstboot.service", "../../configs/porchlight-backup.service", "../../configs/porchlight-backup.timer"} {
		verifyUnit(t, unit)
	}
}

func verifyUnit(t *testing.T, unit string) {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	// The program that is named must be there.
	dir := t.TempDir()
	program, err := exec.LookPath("porchlight")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, filepath.Base(unit))
	if err := os.WriteFile(file, bytes.ReplaceAll(text, []byte("/usr/bin/porchlight"), []byte(program)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command("systemd-analyze", "verify", "--man=no", file).CombinedOutput()
	// systemd before 254 does not know these two, and says that it leaves them out.
	known := regexp.MustCompile(`Unknown key (name )?'(RestartSteps|RestartMaxDelaySec)' in section '?\[?Service\]?'?, ignoring\.`)
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "porchlight") && !known.MatchString(line) {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
}
