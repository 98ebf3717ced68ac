package serial_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/serial"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

func newPort(t testing.TB, path string) *serial.Port {
	t.Helper()
	return serial.New(serial.Config{Port: path, Devices: kitchen(t)}, slog.New(slog.DiscardHandler))
}

// kitchen is a device that prints lines.
func kitchen(t testing.TB) []serial.Device {
	t.Helper()
	return []serial.Device{device("kitchen", builtin(t, "lines"))}
}

func device(id devices.ID, p *profile.Profile) serial.Device {
	return serial.Device{
		Device:  devices.Device{ID: id, Profile: p.ID(), Location: time.UTC},
		Profile: p, Place: profile.Place{Device: id, Location: time.UTC},
	}
}

// plug makes a simulated device; the test ends with it unplugged.
func plug(t testing.TB) *pty.PTY {
	t.Helper()
	p, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func send(t testing.TB, p *pty.PTY, text string) {
	t.Helper()
	if _, err := p.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// start runs the port until the test ends, and waits until it is open.
func start(t testing.TB, port *serial.Port, sink *devicetest.Sink) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended, over := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(over)
		ended <- port.Run(ctx, sink)
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
	sink.WaitUp(t, 1)
	return ended
}

func values(ms []*devicetest.Taken) (vs []string) {
	for _, m := range ms {
		for _, r := range m.Readings {
			for _, f := range r.Fields {
				vs = append(vs, f.Name+"="+f.Value.String())
			}
		}
	}
	return vs
}

func TestDriver(t *testing.T) {
	devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
		var device *pty.PTY
		path := filepath.Join(t.TempDir(), "usb-sensor") // as udev's links are
		plugIn := func(t testing.TB) {
			device = plug(t)
			_ = os.Remove(path)
			if err := os.Symlink(device.Path(), path); err != nil {
				t.Fatal(err)
			}
		}
		return devicetest.Harness{
			New: func(t testing.TB) devices.Driver {
				plugIn(t)
				return newPort(t, path)
			},
			Send: func(t testing.TB, value string) <-chan error {
				send(t, device, `{"temperature": `+value+"}\r\n")
				return nil
			},
			// The first line may be one that was cut, and is not rejected.
			SendGarbage: func(t testing.TB) { send(t, device, "?!\n{\"temperature\n") },
			Break: func(t testing.TB) {
				if err := device.Close(); err != nil {
					t.Fatal(err)
				}
				plugIn(t)
			},
		}
	})
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		name, sent string
		want       []string
		rejections int
	}{
		{"both kinds", "{\"a\":21.40}\nb=2\nb:3\n", []string{"a=21.40", "b=2", "b=3"}, 0},
		{"cut in pieces", "{\"a\"" + pause + ":1" + pause + "}\r" + pause + "\nb" + pause + "=2\n", []string{"a=1", "b=2"}, 0},
		{"a cut first line", "mperature\":1}\r\n{\"a\":1}\n", []string{"a=1"}, 0},
		{"a whole first line", "a=1\na=2\n", []string{"a=1", "a=2"}, 0},
		{"noise between", "a=1\n\x00\xff\xfe\x80\nb=\x002\nb=3\n", []string{"a=1", "b=3"}, 1},
		{"not understood", "a=1\nets Jul 29 2019 12:21:46\n{\"a\":\nb=3\n", []string{"a=1", "b=3"}, 2},
		{"terminal control", "a=1\n\x03\x04\x1a\x11\x13\nb=3\n", []string{"a=1", "b=3"}, 1},
		{"a megabyte without an end", "a=1\n" + strings.Repeat("x", 1<<20) + "\nb=2\n", []string{"a=1", "b=2"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			device, sink := plug(t), &devicetest.Sink{}
			start(t, newPort(t, device.Path()), sink)
			for piece := range strings.SplitSeq(c.sent, pause) {
				send(t, device, piece)
			}
			send(t, device, "last=1\n")
			all := sink.WaitMessages(t, len(c.want)+1)
			if got, want := fmt.Sprint(values(all)), fmt.Sprint(append(c.want, "last=1")); got != want {
				t.Errorf("want %s, got %s", want, got)
			}
			got := sink.WaitRejections(t, c.rejections)
			if len(got) < c.rejections {
				t.Errorf("want %d rejections, got %v", c.rejections, got)
			}
			for _, r := range got {
				if r.Source != "kitchen" || r.Why == nil {
					t.Errorf("a rejection without a source or a reason: %+v", r)
				}
			}
		})
	}
}

// pause stands where a line is written in two.
const pause = "\x01pause\x01"

func TestFullOutboxIsTold(t *testing.T) {
	device, sink := plug(t), &devicetest.Sink{}
	start(t, newPort(t, device.Path()), sink)
	send(t, device, "a=1\n")
	sink.WaitMessages(t, 1)
	sink.SetFull(true)
	send(t, device, "a=2\n")
	if r := sink.WaitRejections(t, 1); !errors.Is(r[0].Why, devices.ErrFull) {
		t.Errorf("want that the outbox is full, got %v", r[0].Why)
	}
}

// unprivileged runs f on a thread that may do nothing which root may.
func unprivileged(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- err
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestCannotOpen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("a=1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	locked := plug(t)
	if err := os.Chmod(locked.Path(), 0); err != nil {
		t.Fatal(err)
	}
	busy := plug(t)
	start(t, newPort(t, busy.Path()), &devicetest.Sink{})

	for _, c := range []struct {
		name, path string
		is         error
		says       []string
	}{
		{"a plain file", file, nil, []string{"a plain file"}},
		{"a directory", dir, nil, []string{"a directory"}},
		{"a pipe", fifo, nil, []string{"not a serial port"}},
		{"another character device", "/dev/null", nil, []string{"not a serial port"}},
		{"no permission", locked.Path(), fs.ErrPermission, []string{"group", "usermod -aG"}},
		{"busy", busy.Path(), syscall.EBUSY, []string{"another program"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			unprivileged(t, func() {
				err := newPort(t, c.path).Run(t.Context(), &devicetest.Sink{})
				if err == nil {
					t.Error("no error")
					return
				}
				for _, s := range append(c.says, "cannot open serial port "+c.path) {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("want %q in %q", s, err)
					}
				}
				if c.is != nil && !errors.Is(err, c.is) {
					t.Errorf("%q is not %v", err, c.is)
				}
			})
		})
	}
}

// The library waits with select(2), which knows no descriptor above 1023.
func TestManyFilesOpen(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < 1100 {
		t.Skipf("this shell allows %d open files, so that none is too high", limit.Cur)
	}
	device, sink := plug(t), &devicetest.Sink{}
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if f.Fd() > 1030 {
			break
		}
	}
	start(t, newPort(t, device.Path()), sink)
	send(t, device, "a=1\n")
	sink.WaitMessages(t, 1)
}

// What a device says in a hurry comes whole and in order.
func TestManyLines(t *testing.T) {
	device, sink := plug(t), &devicetest.Sink{}
	start(t, newPort(t, device.Path()), sink)
	const n = 5000
	var all bytes.Buffer
	for i := range n {
		fmt.Fprintf(&all, "a=%d\n", i)
	}
	send(t, device, all.String())
	for i, v := range values(sink.WaitMessages(t, n)) {
		if v != fmt.Sprintf("a=%d", i) {
			t.Fatalf("reading %d is %s", i, v)
		}
	}
}
