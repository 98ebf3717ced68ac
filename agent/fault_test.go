package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
	"github.com/porchlight-iot/porchlight/torture/link"
)

// chainBehindLink makes a chain whose XMPP connection can fail.
func chainBehindLink(t *testing.T) (*chain, *link.Link) {
	t.Helper()
	c := newChain(t, buildGateway(t), rand.Uint64(), "server")
	config := filepath.Join(c.dir, "porchlight.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	_, server, _ := strings.Cut(string(text), `server: "`)
	server, _, _ = strings.Cut(server, `"`)
	l, err := link.New(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	write(t, config, strings.Replace(string(text), server, l.Addr(), 1))
	return c, l
}

// buildGateway gives the program.
func buildGateway(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "porchlight")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/porchlight").CombinedOutput(); err != nil {
		t.Fatalf("cannot build: %v\n%s", err, out)
	}
	return program
}

// begin starts a chain's gateway, and gives a channel that is closed at its
// end.
func (c *chain) begin(wrap ...string) (*exec.Cmd, <-chan struct{}) {
	args := append(wrap, c.program, "run", "-c", filepath.Join(c.dir, "porchlight.yaml"))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PORCHLIGHT_CRASH=")
	_, exited := c.start(cmd)
	return cmd, exited
}

// send has the chain's devices send until the function that it gives is
// called, which waits for what they have begun.
func (c *chain) send(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, d := range c.devices {
		all.Go(func() { d.run(ctx) })
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			for _, d := range c.devices {
				d.pause()
			}
			time.AfterFunc(patience, cancel)
			all.Wait()
			cancel()
		})
	}
	t.Cleanup(func() { cancel(); all.Wait() })
	return stop
}

// TestTerminated stops the gateway at any moment. It always stops in order,
// and what it had acknowledged arrives.
func TestTerminated(t *testing.T) {
	t.Parallel() // they wait, mostly
	c := newChain(t, buildGateway(t), rand.Uint64(), "server")
	stop := c.send(t)
	for range 20 {
		cmd, exited := c.begin()
		before := c.progress()
		if c.random.IntN(4) > 0 { // also while it starts
			c.waitProgress(exited, before+1)
		}
		time.Sleep(time.Duration(c.random.IntN(300)) * time.Millisecond)
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(patience):
			t.Fatal("it does not stop")
		}
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		// Before it listens to signals it may be ended by one.
		if early := status.Signaled() && c.progress() == before; status.ExitStatus() != 0 && !early {
			t.Fatalf("it stops with %v", cmd.ProcessState)
		}
	}
	cmd, exited := c.begin()
	stop()
	cmd.Process.Signal(syscall.SIGTERM)
	<-exited
	c.verify()
}

// TestNoFileLeft allows the gateway few open files, and has strangers take all
// that there are while its XMPP session is cut. It lives, and when they are
// gone it works as before.
func TestNoFileLeft(t *testing.T) {
	t.Parallel()
	c, xmpp := chainBehindLink(t)
	cmd, exited := c.begin("prlimit", "--nofile=64:64")
	stop := c.send(t)
	c.waitProgress(exited, 50)
	var conns []net.Conn
	deadline := time.Now().Add(patience)
	for used := 0; used < 64; {
		conn, err := net.Dial("tcp", c.broker)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if used = len(files); time.Now().After(deadline) {
			t.Fatalf("%d files are open, with %d strangers", used, len(conns))
		}
		if len(conns) > 100 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	xmpp.Reset()
	c.waitProgress(exited, c.progress()+50) // by CoAP, and on the connections that there are
	for _, conn := range conns {
		conn.Close()
	}
	c.waitProgress(exited, c.progress()+50)
	select {
	case <-exited:
		t.Fatal("it has ended")
	default:
	}
	stop()
	cmd.Process.Signal(syscall.SIGTERM)
	<-exited
	c.verify()
}

// TestLittleMemory runs the gateway in a group of processes that may have 96
// MiB, with devices that send as fast as they are acknowledged while the
// server is away. Killed or not, what was acknowledged arrives.
func TestLittleMemory(t *testing.T) {
	t.Parallel()
	group := memoryGroup(t, 96<<20)
	c := newChain(t, buildGateway(t), rand.Uint64(), "server")
	c.service.Before = func(p *xmpptest.Peer, s xmpptest.Asked) bool {
		return strings.Contains(s.Inner, "<publish ") // and never an answer
	}
	stop := c.send(t)
	cmd, exited := c.begin("sh", "-c", `echo $$ > "$0" && exec "$@"`, group)
	for range 6 {
		c.waitProgress(exited, c.progress()+500)
		select {
		case <-exited:
			t.Logf("killed: %v", cmd.ProcessState)
			cmd, exited = c.begin("sh", "-c", `echo $$ > "$0" && exec "$@"`, group)
		default:
		}
	}
	stop()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmHWM") || strings.HasPrefix(line, "RssAnon") {
			t.Logf("after %d readings: %s", c.progress(), strings.TrimSpace(line))
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	<-exited
	c.service.Before = nil
	c.verify()
}

// memoryGroup makes a control group with a limit, and gives the file by which
// a process joins it (cgroups(7)).
func memoryGroup(t *testing.T, limit int64) (join string) {
	t.Helper()
	name := fmt.Sprintf("porchlight-test-%d", os.Getpid())
	for root, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"} {
		dir := filepath.Join(root, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0) == nil {
			return filepath.Join(dir, "cgroup.procs")
		}
	}
	t.Skip("SKIPPED: no control group with a memory limit can be made here (it needs root, and the memory controller), so nothing is known of it")
	return ""
}

// TestSlowServer has a link that takes a byte a second, while devices send. The
// gateway keeps on the disk what it acknowledges, and few publications and
// little memory are under way; when the link is good again all arrives once.
func TestSlowServer(t *testing.T) {
	t.Parallel()
	c, slow := chainBehindLink(t)
	cmd, exited := c.begin()
	stop := c.send(t)
	c.waitProgress(exited, 50)
	slow.Set(link.Condition{Up: link.Flow{Rate: 1}, Down: link.Flow{Rate: 1}})
	first := 0
	for i := range 10 {
		c.waitProgress(exited, c.progress()+200)
		if memory := anonymous(t, cmd); i == 0 {
			first = memory
		} else if memory > first+32<<10 {
			t.Errorf("%d KiB of memory, %d at the beginning", memory, first)
		}
	}
	slow.Set(link.Condition{})
	slow.Reset()
	stop()
	cmd.Process.Signal(syscall.SIGTERM)
	<-exited
	c.verify()
}

// anonymous is the memory of a process that is not a file's, in KiB.
func anonymous(t *testing.T, cmd *exec.Cmd) (kib int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "RssAnon: %d kB", &kib)
	}
	return kib
}

// TestReloadWithBacklog renames one device, takes one away and brings one, by
// SIGHUP, while readings wait for a server that is away. All that was
// acknowledged arrives, also of the one that is gone.
func TestReloadWithBacklog(t *testing.T) {
	t.Parallel()
	c, xmpp := chainBehindLink(t)
	xmpp.Set(link.Condition{Refuse: true})
	cmd, exited := c.begin()
	b := c.devices[1]
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	left := make(chan struct{})
	go func() {
		defer close(left)
		b.run(ctx)
	}()
	c.devices = append(c.devices[:1:1], c.devices[2:]...)
	stop := c.send(t)
	c.waitProgress(exited, 200)
	config := filepath.Join(c.dir, "porchlight.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	b.pause()
	<-left
	changed := strings.Replace(string(text), "{id: a, profile", "{id: a, name: Renamed, profile", 1)
	changed = strings.Replace(changed, "  - {id: b, profile: json, mqtt: {topic: b}}\n", "  - {id: new, profile: json, mqtt: {topic: new}}\n", 1)
	write(t, config, changed)
	cmd.Process.Signal(syscall.SIGHUP)
	// Before that is through, the new one would be a stranger, whom the broker
	// acknowledges and nobody keeps.
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		list, err := exec.Command(c.program, "devices", "-c", config).CombinedOutput()
		if bytes.Contains(list, []byte("new ")) {
			break
		} else if time.Since(began) > patience {
			t.Fatalf("the config is not taken over: %s, %v", list, err)
		}
	}
	fresh := &reporter{id: "new", send: mqttSender(c.broker, "new")}
	c.devices = append(c.devices, fresh, b)
	go fresh.run(ctx)
	c.waitProgress(exited, c.progress()+200)
	if fresh.acknowledged() == 0 {
		t.Error("the new device is not heard")
	}
	xmpp.Set(link.Condition{})
	stop() // with the new one, which has its own end
	cancel()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if faults, waiting := c.compare(); len(faults) > 0 || len(waiting) == 0 {
			c.report(faults)
			break
		} else if time.Since(began) > patience {
			t.Fatalf("lost: %v", waiting)
		}
		select {
		case <-exited:
			t.Fatal("it has ended")
		default:
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	<-exited
}

// TestManyAtOnce has a thousand devices report at one moment, each for the
// first time. All of it arrives. (Of more than 2,048 at a time some are asked
// to come again.)
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	c := newChain(t, buildGateway(t), rand.Uint64(), "server")
	c.service.Before = nil
	config := filepath.Join(c.dir, "porchlight.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	_, coap, _ := strings.Cut(string(text), `coap: {listen: "`)
	coap, _, _ = strings.Cut(coap, `"`)
	more, _, _ := strings.Cut(string(text), "devices:")
	var b strings.Builder
	b.WriteString(more + "devices:\n")
	c.devices = nil
	for i := range 1000 {
		id := fmt.Sprintf("d%d", i)
		fmt.Fprintf(&b, "  - {id: %s, profile: json, coap: {}}\n", id)
		c.devices = append(c.devices, &reporter{id: id, send: coapSender(coap, id), paused: true})
	}
	write(t, config, b.String())
	cmd, exited := c.begin()
	c.send(t)() // once each
	t.Logf("%d KiB of memory when %d are acknowledged", anonymous(t, cmd), c.progress())
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		faults, waiting := c.compare()
		if c.report(faults); len(faults) > 0 || len(waiting) == 0 {
			break
		} else if time.Since(began) > patience {
			t.Fatalf("%d did not arrive", len(waiting))
		}
	}
	t.Logf("%d KiB when all is delivered", anonymous(t, cmd))
	cmd.Process.Signal(syscall.SIGTERM)
	<-exited
}
