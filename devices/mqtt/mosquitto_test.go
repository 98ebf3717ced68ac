package mqtt

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is a deadline for broken code, never a measure of working code.
const patience = 30 * time.Second

// find gives the path of a program, where Debian keeps servers too.
func find(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/bin") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path
		}
	}
	t.Fatalf("%s is not installed: make deps", name)
	return ""
}

// freePort gives an address on which nobody listens.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A mosquitto is a real broker that keeps its sessions on disk.
type mosquitto struct {
	address string
	dir     string
	process *exec.Cmd
	exited  chan struct{}
	mu      sync.Mutex
	said    bytes.Buffer
	changed chan struct{} // closed when it says more
}

// startMosquitto starts a broker that ends with the test. The lines come into
// its configuration.
func startMosquitto(t testing.TB, lines ...string) *mosquitto {
	t.Helper()
	m := &mosquitto{address: freePort(t), dir: t.TempDir(), changed: make(chan struct{})}
	host, port, _ := net.SplitHostPort(m.address)
	if len(lines) == 0 {
		lines = []string{"allow_anonymous true"}
	}
	config := fmt.Sprintf("user root\nlistener %s %s\npersistence true\npersistence_location %s/\nlog_type all\nlog_dest stderr\n%s\n",
		port, host, m.dir, strings.Join(lines, "\n"))
	if err := os.WriteFile(filepath.Join(m.dir, "mosquitto.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start(t)
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			t.Logf("mosquitto said:\n%s", m.log())
		}
	})
	return m
}

func (m *mosquitto) url() string { return "mqtt://" + m.address }

func (m *mosquitto) start(t testing.TB) {
	t.Helper()
	before := strings.Count(m.log(), " running")
	m.process = exec.Command(find(t, "mosquitto"), "-c", filepath.Join(m.dir, "mosquitto.conf"))
	out, err := m.process.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.process.Start(); err != nil {
		t.Fatal(err)
	}
	exited, process := make(chan struct{}), m.process
	m.exited = exited
	go func() {
		defer close(exited)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			m.mu.Lock()
			fmt.Fprintln(&m.said, lines.Text())
			close(m.changed)
			m.changed = make(chan struct{})
			m.mu.Unlock()
		}
		process.Wait()
	}()
	m.waitFor(t, "the broker to run", func(log string) bool { return strings.Count(log, " running") > before })
}

// save has the broker write its sessions to disk, and returns when it has.
func (m *mosquitto) save(t testing.TB) {
	t.Helper()
	const line = "Saving in-memory database"
	before := strings.Count(m.log(), line)
	m.process.Process.Signal(syscall.SIGUSR1)
	m.waitFor(t, "the sessions to be saved", func(log string) bool { return strings.Count(log, line) > before })
	// It tells before it does, and accepts connections when it is done.
	conn, err := net.Dial("tcp", m.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := conn.LocalAddr().String()
	m.waitFor(t, "a connection", func(log string) bool { return strings.Contains(log, "New connection from "+port) })
}

// kill ends the broker without a word of warning.
func (m *mosquitto) kill() {
	m.process.Process.Kill()
	<-m.exited
}

func (m *mosquitto) log() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said.String()
}

// waitFor waits until the broker's log is as wanted.
func (m *mosquitto) waitFor(t testing.TB, what string, ok func(log string) bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		m.mu.Lock()
		log, changed := m.said.String(), m.changed
		m.mu.Unlock()
		if ok(log) {
			return
		}
		select {
		case <-changed:
		case <-m.exited:
			t.Fatalf("mosquitto ended while waiting for %s:\n%s", what, m.log())
		case <-deadline.C:
			t.Fatalf("waited in vain for %s:\n%s", what, log)
		}
	}
}
