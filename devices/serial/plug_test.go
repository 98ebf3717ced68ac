package serial_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/serial"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// A socket is where a device is plugged in and out: a link, as udev makes it,
// and what sysfs says of the adapter.
type socket struct {
	path, root string
	device     *pty.PTY
}

func newSocket(t testing.TB) *socket {
	return &socket{path: filepath.Join(t.TempDir(), "usb-sensor"), root: t.TempDir()}
}

// plug plugs a device in, of a kind and number.
func (s *socket) plug(t testing.TB, vendor, product, number string) *pty.PTY {
	t.Helper()
	device := plug(t)
	var stat unix.Stat_t
	if err := unix.Stat(device.Path(), &stat); err != nil {
		t.Fatal(err)
	}
	tty := "ttyUSB" + filepath.Base(device.Path())
	if err := os.MkdirAll(filepath.Join(s.root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	_ = os.Symlink(device.Path(), filepath.Join(s.root, "dev", tty))
	serial.PlugUSB(t, s.root, stat.Rdev, tty, "1-1."+filepath.Base(device.Path()), map[string]string{"idVendor": vendor, "idProduct": product, "serial": number})
	if err := os.Symlink(device.Path(), s.path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path+".new", s.path); err != nil {
		t.Fatal(err)
	}
	s.device = device
	return device
}

// pull takes the device out.
func (s *socket) pull(t testing.TB) {
	t.Helper()
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	if err := s.device.Close(); err != nil {
		t.Fatal(err)
	}
}

// repeat runs a driver as the agent does: again and again.
func repeat(t testing.TB, d devices.Driver, sink devices.Sink) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			_ = d.Run(ctx, sink)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
}

// A port that is not there is waited for, and its device is lost meanwhile.
func TestPlugging(t *testing.T) {
	s, sink := newSocket(t), &devicetest.Sink{}
	repeat(t, newPort(t, s.path).On(s.root), sink)
	sink.WaitAvailability(t, "kitchen", devices.Offline)
	for i := 1; i <= 3; i++ {
		send(t, s.plug(t, "0403", "6001", "A1"), "a=1\n")
		sink.WaitUp(t, i)
		sink.WaitMessages(t, i)
		sink.WaitAvailability(t, "kitchen", devices.AvailabilityUnknown)
		s.pull(t)
		sink.WaitAvailability(t, "kitchen", devices.Offline)
	}
}

// isOpen reports whether this process has a file open.
func isOpen(t testing.TB, path string) bool {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			n++
		}
	}
	return n > 1 // a simulated device has its own port open, once
}

// A device that took the name of another is never talked to.
func TestAnotherDeviceTakesTheName(t *testing.T) {
	s, sink, log := newSocket(t), &devicetest.Sink{}, &lines{}
	port := serial.New(serial.Config{Port: s.path, Devices: kitchen(t)}, slog.New(slog.NewTextHandler(log, nil))).On(s.root)
	send(t, s.plug(t, "0403", "6001", "A1"), "a=1\n")
	repeat(t, port, sink)
	sink.WaitMessages(t, 1)
	s.pull(t)
	sink.WaitAvailability(t, "kitchen", devices.Offline)

	send(t, s.plug(t, "0403", "6001", "A2"), "a=666\n")
	log.wait(t, "another device has its name: 0403:6001:A2, not 0403:6001:A1")
	if isOpen(t, s.device.Path()) {
		t.Error("the other device was opened")
	}
	s.pull(t)

	send(t, s.plug(t, "0403", "6001", "A1"), "a=2\n")
	sink.WaitUp(t, 2)
	if got := strings.Join(values(sink.WaitMessages(t, 2)), " "); got != "a=1 a=2" {
		t.Errorf("want what the first device said, got %s", got)
	}
}

// A config may say which adapter it must be.
func TestAdapterThatIsConfigured(t *testing.T) {
	s, sink, log := newSocket(t), &devicetest.Sink{}, &lines{}
	config := serial.Config{Port: s.path, USB: "0403:6001:A1", Devices: kitchen(t)}
	send(t, s.plug(t, "1a86", "7523", ""), "a=666\n")
	repeat(t, serial.New(config, slog.New(slog.NewTextHandler(log, nil))).On(s.root), sink)
	sink.WaitAvailability(t, "kitchen", devices.Offline)
	log.wait(t, "another device has its name: 1a86:7523 in socket")
	if isOpen(t, s.device.Path()) {
		t.Error("the wrong device was opened")
	}
	s.pull(t)
	send(t, s.plug(t, "0403", "6001", "A1"), "a=1\n")
	if got := values(sink.WaitMessages(t, 1))[0]; got != "a=1" {
		t.Errorf("got %s", got)
	}
}

// lines is a log that may be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

// wait waits for a text.
func (l *lines) wait(t testing.TB, text string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		all := l.buf.String()
		l.mu.Unlock()
		if strings.Contains(all, text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the log:\n%s", text, all)
		}
	}
}

// A cable that is pulled and put back under load loses only what was on the wire,
// and nothing of another port.
func TestPulledUnderLoad(t *testing.T) {
	s, sink, others := newSocket(t), &devicetest.Sink{}, &devicetest.Sink{}
	repeat(t, newPort(t, s.path).On(s.root), sink)
	other := plug(t)
	start(t, newPort(t, other.Path()), others)
	const times, before = 3, 500
	sent, seen := 0, 0
	for i := range times {
		device := s.plug(t, "0403", "6001", "A1")
		first := sent
		written := make(chan int)
		go func() {
			n := first
			for ; ; n++ { // until it is pulled
				if _, err := fmt.Fprintf(device, "n=%d\n", n); err != nil {
					break
				}
			}
			written <- n
		}()
		for n := range before {
			send(t, other, fmt.Sprintf("n=%d\n", i*before+n))
		}
		sink.WaitMessages(t, seen+before)
		s.pull(t)
		sent = <-written
		sink.WaitAvailability(t, "kitchen", devices.Offline)
		all := values(sink.WaitMessages(t, seen+before))
		for j, v := range all[seen:] {
			if want := fmt.Sprintf("n=%d", first+j); v != want {
				t.Fatalf("after it was plugged in %d times, reading %d is %s, want %s", i+1, j, v, want)
			}
		}
		seen = len(all)
	}
	for n, v := range values(others.WaitMessages(t, times*before)) {
		if v != fmt.Sprintf("n=%d", n) {
			t.Fatalf("reading %d of the other is %s", n, v)
		}
	}
}

// Devices come and go on a port that stays open; another line wants it opened
// anew.
func TestAdopts(t *testing.T) {
	wire, sink := plug(t), &devicetest.Sink{}
	port := switchAt(t, wire.Path(), "a1")
	start(t, port, sink)
	send(t, wire, "{\"id\":\"A1\",\"power\":false}\n{\"id\":\"B2\",\"power\":true}\n")
	if s := sink.WaitUnknown(t, 1)[0]; s.Identity != "B2" {
		t.Errorf("unknown is %s", s.Identity)
	}
	if !port.Adopt(switchAt(t, wire.Path(), "b2")) {
		t.Fatal("it wants to be opened anew")
	}
	heard := func() bool {
		n := len(sink.WaitUnknown(t, 0)) + len(sink.WaitMessages(t, 0))
		send(t, wire, "{\"id\":\"B2\",\"power\":true}\n")
		for len(sink.WaitUnknown(t, 0))+len(sink.WaitMessages(t, 0)) == n {
			time.Sleep(time.Millisecond)
		}
		all := sink.WaitMessages(t, 0)
		return all[len(all)-1].Readings[0].Device == "b2"
	}
	for !heard() { // the config is taken over between two messages
	}
	send(t, wire, "{\"id\":\"A1\",\"power\":false}\n")
	for s := ""; s != "A1"; {
		all := sink.WaitUnknown(t, 1)
		s = all[len(all)-1].Identity
	}
	sink.WaitUp(t, 1)
	other := serial.New(serial.Config{Port: wire.Path(), Line: profile.Line{Baud: 9600}, Devices: kitchen(t)}, slog.New(slog.DiscardHandler))
	if port.Adopt(other) {
		t.Error("it goes on at another rate")
	}
}

// Two adapters that share a name, because they have no serial number, are told of.
func TestTwins(t *testing.T) {
	s, sink, log := newSocket(t), &devicetest.Sink{}, &lines{}
	s.plug(t, "1a86", "7523", "")
	first := s.device
	if err := os.Remove(s.path); err != nil {
		t.Fatal(err)
	}
	send(t, s.plug(t, "1a86", "7523", ""), "a=1\n")
	repeat(t, serial.New(serial.Config{Port: s.path, Devices: kitchen(t)}, slog.New(slog.NewTextHandler(log, nil))).On(s.root), sink)
	sink.WaitMessages(t, 1)
	log.wait(t, "several devices share a name")

	// The other one, in another socket, is not taken for it.
	s.pull(t)
	if err := os.Symlink(first.Path(), s.path); err != nil {
		t.Fatal(err)
	}
	log.wait(t, "another device has its name: 1a86:7523 in socket")
}
