package coap

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// Devices behind one gateway share an association, until none needs it, or it is
// forgotten.
func TestAssociationsAreShared(t *testing.T) {
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
	to := server.SecureAddr().(*net.UDPAddr).AddrPort()
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
