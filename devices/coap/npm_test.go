package coap

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// npm's coap is observed, and posts.
func TestNPM(t *testing.T) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("npm's coap is not tried: there is no %s; `scripts/deps.sh npm` installs it", program)
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "npm"))); err != nil {
		t.Fatal(err)
	}
	install := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("npm's coap is not tried: it cannot be fetched: %v\n%s", err, out)
	}
	// node runs the peer, and gives the lines that it writes.
	node := func(args ...string) (io.Writer, <-chan string) {
		t.Helper()
		cmd := exec.Command("node", append([]string{filepath.Join(dir, "peer.js")}, args...)...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = testWriter{t}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := make(chan string, 100)
		over := make(chan struct{})
		go func() {
			defer close(over)
			for s := bufio.NewScanner(out); s.Scan(); {
				lines <- s.Text()
			}
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-over
			_ = cmd.Wait()
		})
		return in, lines
	}

	t.Run("observed", func(t *testing.T) {
		free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		addr := free.LocalAddr().(*net.UDPAddr).AddrPort()
		_ = free.Close()
		_, lines := node("serve", fmt.Sprint(addr.Port()))
		next(t, lines)
		named := askedDevice("named", "senml", fmt.Sprintf("coap://%v/sensors/temperature", addr))
		found := askedDevice("found", "senml", fmt.Sprintf("coap://%v", addr))
		named.Observe, found.Observe = true, true
		sink := &devicetest.Sink{Auto: true}
		runClient(t, sink, library(t), named, found)
		hears := func(id devices.ID, measured string) {
			t.Helper()
			for n := 1; ; n++ {
				if m := sink.WaitMessages(t, n)[n-1]; m.Readings[0].Device == id && value(m, "temperature") == measured {
					return
				}
			}
		}
		hears("named", "0")
		hears("found", "0")
		for _, measured := range []string{"21.5", "22.25"} { // reported by itself: it would be asked in a minute
			put(t, addr, "/sensors/temperature", "0", measured)
			hears("named", measured)
			hears("found", measured)
		}
	})

	t.Run("posts", func(t *testing.T) {
		attic := Device{Device: devices.Device{ID: "attic", Location: time.UTC}, Profile: library(t).Get("senml"), Place: profile.Place{Device: "attic", Location: time.UTC}}
		sink := &devicetest.Sink{Auto: true}
		s := New(Config{Listen: "127.0.0.1:0"}, []Device{attic}, slog.New(slog.DiscardHandler))
		drive(t, s, sink)
		in, lines := node("post", fmt.Sprintf("coap://%v/d/attic", s.Addr()))
		for _, body := range []string{temperature("7.25"), "[{", temperature("8.5")} {
			if _, err := fmt.Fprintln(in, body); err != nil {
				t.Fatal(err)
			}
			want := "2.04"
			if body == "[{" {
				want = "4.00 "
			}
			if got := next(t, lines); !strings.HasPrefix(got, want) {
				t.Errorf("%s is answered by %s", body, got)
			}
		}
		for i, want := range []string{"7.25", "8.5"} {
			if got := value(sink.WaitMessages(t, 2)[i], "temperature"); got != want {
				t.Errorf("told %s, want %s", got, want)
			}
		}
		// Its blocks (RFC 7959): a body of more than one datagram.
		large := "[" + strings.Repeat(`{"n":"filler","v":1},`, 100) + strings.TrimPrefix(temperature("9.75"), "[")
		if _, err := fmt.Fprintln(in, large); err != nil {
			t.Fatal(err)
		}
		if got := next(t, lines); !strings.HasPrefix(got, "2.04") {
			t.Errorf("a large body is answered by %s", got)
		}
		if got := value(sink.WaitMessages(t, 3)[2], "temperature"); got != "9.75" {
			t.Errorf("told %s, want 9.75", got)
		}
	})
}
