package coap

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// secureServer runs a server until the test ends, whose one device is us, with "a
// key".
func secureServer(t *testing.T) (*Server, netip.AddrPort) {
	sink := &devicetest.Sink{Auto: true}
	server := New(Config{Secure: &Secure{Listen: "127.0.0.1:0", Keys: map[string][]byte{"us": []byte("a key")}}}, nil, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- server.Run(ctx, sink) }()
	t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	sink.WaitUp(t, 1)
	return server, server.SecureAddr().(*net.UDPAddr).AddrPort()
}

// Devices behind one gateway share an association, until none needs it, or it is
// forgotten.
func TestAssociationsAreShared(t *testing.T) {
	server, to := secureServer(t)
	ctx := t.Context()
	s := asking(t, &devicetest.Sink{})

	var mu sync.Mutex
	var all sync.WaitGroup
	var peers []*peer
	var releases []func()
	for range 20 {
		all.Go(func() {
			p, release, err := s.reachSecure(ctx, to, "us", []byte("a key"))
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := s.do(ctx, p, get([]string{".well-known", "core"})); err != nil || !got.ok() {
				t.Errorf("%v, %v", got.code, err)
			}
			mu.Lock()
			defer mu.Unlock()
			peers, releases = append(peers, p), append(releases, release)
		})
	}
	all.Wait()
	for _, p := range peers {
		if p != peers[0] {
			t.Fatal("there is more than one association")
		}
	}
	// It seems forgotten: who comes then has another.
	s.mu.Lock()
	peers[0].stale = true
	s.mu.Unlock()
	p, release, err := s.reachSecure(ctx, to, "us", []byte("a key"))
	if err != nil || p == peers[0] {
		t.Fatalf("the stale one again, or %v", err)
	}
	releases = append(releases, release)
	waitFor(t, func() bool { return server.Associations() == 2 })
	for _, release := range releases {
		release()
	}
	waitFor(t, func() bool { return server.Associations() == 0 })
	if _, _, err := s.reachSecure(ctx, to, "nobody", []byte("a key")); err == nil {
		t.Error("another name is taken")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.shared) != 0 || s.attached != 0 {
		t.Errorf("left behind: %d associations, %d peers", len(s.shared), s.attached)
	}
}

// Who gives up while a handshake is under way leaves it to the others, who have
// the association until they let go of it; where nobody is left, so is nothing.
func TestHandshakeIsGivenUp(t *testing.T) {
	server, at := secureServer(t)
	to, open := gated(t, at)
	s := asking(t, &devicetest.Sink{})
	t.Cleanup(func() { // or a failure is a hang
		s.mu.Lock()
		left := slices.Collect(maps.Values(s.shared))
		s.mu.Unlock()
		for _, one := range left {
			<-one.ready
			if one.close != nil {
				one.close()
			}
		}
	})
	before := goleak.IgnoreCurrent()
	users := func() (n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, one := range s.shared {
			n += one.users
		}
		return n
	}
	type outcome struct {
		p       *peer
		release func()
		err     error
	}
	start := func() (giveUp func(), got chan outcome) {
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		got = make(chan outcome, 1)
		already := users()
		go func() {
			p, release, err := s.reachSecure(ctx, to, "us", []byte("a key"))
			got <- outcome{p, release, err}
		}()
		waitFor(t, func() bool { return users() == already+1 })
		return cancel, got
	}
	nothing := func() {
		t.Helper()
		waitFor(t, func() bool { return users() == 0 })
		s.wg.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.shared) != 0 || s.attached != 0 {
			t.Errorf("left behind: %d associations, %d peers", len(s.shared), s.attached)
		}
		goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/porchlight-iot/porchlight/devices/coap.(*secureListener).sweep"))
	}

	// All give up: first one who waits for the handshake, then who makes it.
	quit, made := start()
	giveUp, waits := start()
	giveUp()
	if got := <-waits; !errors.Is(got.err, context.Canceled) || got.release != nil {
		t.Errorf("who gave up has %v", got.err)
	}
	quit()
	if got := <-made; got.err == nil {
		t.Error("a handshake that was given up succeeded")
	}
	nothing()

	// Who makes it stays.
	_, made = start()
	giveUp, waits = start()
	giveUp()
	<-waits
	open()
	got := <-made
	if got.err != nil {
		t.Fatal(got.err)
	}
	waitFor(t, func() bool { return users() == 1 })
	if answer, err := s.do(t.Context(), got.p, get([]string{".well-known", "core"})); err != nil || !answer.ok() {
		t.Errorf("%v, %v", answer.code, err)
	}
	got.release()
	nothing()
	waitFor(t, func() bool { return server.Associations() == 0 })
}

// gated relays datagrams to a server and back, once it is open. Until then they
// are lost.
func gated(t testing.TB, to netip.AddrPort) (_ netip.AddrPort, open func()) {
	t.Helper()
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	var isOpen atomic.Bool
	var client atomic.Pointer[netip.AddrPort] // the newest
	var all sync.WaitGroup
	all.Go(func() {
		b := make([]byte, 2000)
		for {
			n, from, err := near.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if isOpen.Load() {
				client.Store(&from)
				_, _ = far.Write(b[:n])
			}
		}
	})
	all.Go(func() {
		b := make([]byte, 2000)
		for {
			n, err := far.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if to := client.Load(); err == nil && to != nil {
				_, _ = near.WriteToUDPAddrPort(b[:n], *to)
			}
		}
	})
	t.Cleanup(func() {
		_ = near.Close()
		_ = far.Close()
		all.Wait()
	})
	return near.LocalAddr().(*net.UDPAddr).AddrPort(), func() { isOpen.Store(true) }
}
