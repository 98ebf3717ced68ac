package coap

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"
	"github.com/plgd-dev/go-coap/v3/udp/coder"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// patience is a deadline for broken code, never a measure of working code.
const patience = 30 * time.Second

// asking runs a session that asks and is not asked, until the test ends.
func asking(t testing.TB, sink *devicetest.Sink) *session {
	t.Helper()
	conn, err := coapnet.NewListenUDP("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := newSession(ctx, sink, conn, slog.New(slog.DiscardHandler))
	over := make(chan error, 1)
	go func() { over <- s.listen() }()
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
		if err := <-over; err != nil {
			t.Error(err)
		}
		s.wg.Wait()
	})
	return s
}

func reach(t testing.TB, s *session, addr netip.AddrPort) *peer {
	t.Helper()
	p, err := s.reach(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.release(p) })
	return p
}

func path(s string) []string { return strings.Split(strings.Trim(s, "/"), "/") }

// libcoapServer starts libcoap's example server, and gives where it is and how
// to stop it. With port 0 it gets a free one.
func libcoapServer(t testing.TB, port uint16, flags ...string) (addr netip.AddrPort, stop func()) {
	t.Helper()
	binary, err := exec.LookPath("coap-server-notls")
	if err != nil {
		t.Fatalf("libcoap's coap-server-notls is needed, `make deps` installs it: %v", err)
	}
	if port == 0 {
		free, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		port = free.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		_ = free.Close()
	}
	cmd := exec.Command(binary, append([]string{"-A", "127.0.0.1", "-p", fmt.Sprint(port)}, flags...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	awaitPing(t, addr)
	return addr, stop
}

// awaitPing waits until somebody answers CoAP pings at an address.
func awaitPing(t testing.TB, addr netip.AddrPort) {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	b := make([]byte, 100)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, _ = conn.Write([]byte{0x40, 0, 1, 1})
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := conn.Read(b); err == nil && n == 4 {
			return
		}
	}
	t.Fatalf("nobody answers at %v", addr)
}

// secondProcess is set in the environment of the one that is a go-coap server.
const secondProcess = "PORCHLIGHT_TEST_GOCOAP"

// goCoAP starts another process with a server of go-coap's, which has /echo, and
// /large, which is of 5000 bytes.
func goCoAP(t testing.TB) netip.AddrPort {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSecondProcess$")
	cmd.Env = append(os.Environ(), secondProcess+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(strings.TrimSpace(line))
}

func TestSecondProcess(t *testing.T) {
	if os.Getenv(secondProcess) == "" {
		t.Skip("only as another process")
	}
	l, err := coapnet.NewListenUDP("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	router := mux.NewRouter()
	_ = router.Handle("/echo", mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		body, err := r.ReadBody()
		if err != nil {
			return
		}
		_ = w.SetResponse(codes.Changed, message.TextPlain, bytes.NewReader(body))
	}))
	_ = router.Handle("/large", mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		_ = w.SetResponse(codes.Content, message.AppOctets, bytes.NewReader(large))
	}))
	server := udp.NewServer(options.WithMux(router), options.WithBlockwise(true, blockwise.SZX256, 10*time.Second))
	fmt.Println(l.LocalAddr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		server.Stop()
	}()
	_ = server.Serve(l)
}

var large = bytes.Repeat([]byte("0123456789"), 500)

// A device is a scripted peer, which answers each datagram with those that
// answer gives.
type device struct {
	t    testing.TB
	conn *net.UDPConn
	got  chan message.Message // each that came

	mu     sync.Mutex
	answer func(m message.Message) []message.Message
	from   net.Addr

	mid int32 // of what it asked last
}

func script(t testing.TB, answer func(m message.Message) []message.Message) *device {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return scriptOn(t, conn, answer)
}

func scriptOn(t testing.TB, conn *net.UDPConn, answer func(m message.Message) []message.Message) *device {
	t.Helper()
	d := &device{t: t, conn: conn, got: make(chan message.Message, 1000), answer: answer}
	over := make(chan struct{})
	go func() {
		defer close(over)
		b := make([]byte, 64<<10)
		type request struct {
			from string
			mid  int32
		}
		answered := make(map[request][]message.Message)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			m := decoded(t, slices.Clone(b[:n]))
			d.mu.Lock()
			d.from = from
			answer := d.answer
			d.mu.Unlock()
			// What comes again because we were slow is done once (RFC 7252
			// section 4.5).
			one := request{from.String(), m.MessageID}
			known := m.Type == message.Confirmable && isRequest(m)
			all, again := answered[one]
			if again = again && known; !again {
				all = answer(m)
			}
			if known && len(all) > 0 {
				answered[one] = all
			}
			for _, a := range all {
				d.send(a)
			}
			if again {
				continue
			}
			select {
			case d.got <- m:
			default:
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-over
	})
	return d
}

func decoded(t testing.TB, b []byte) message.Message {
	m := message.Message{Options: make(message.Options, 0, 32)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil {
		t.Errorf("%x cannot be read: %v", b, err)
	}
	return m
}

func (d *device) addr() netip.AddrPort { return d.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// send sends to whom the device heard last.
func (d *device) send(m message.Message) {
	b, err := encoded(m)
	if err != nil {
		d.t.Error(err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, _ = d.conn.WriteTo(b, d.from)
}

// next waits for a message for which ok holds.
func (d *device) next(what string, ok func(message.Message) bool) message.Message {
	d.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case m := <-d.got:
			if ok(m) {
				return m
			}
		case <-deadline:
			d.t.Fatalf("no %s came", what)
		}
	}
}

// reply is an answer inside the acknowledgement.
func reply(m message.Message, code codes.Code, payload string, o ...message.Option) message.Message {
	r := message.Message{Type: message.Acknowledgement, Code: code, MessageID: m.MessageID, Token: m.Token, Payload: []byte(payload)}
	for _, o := range o {
		r.Options = r.Options.Add(o)
	}
	return r
}

func isRequest(m message.Message) bool { return m.Code >= 1 && m.Code < 32 }
