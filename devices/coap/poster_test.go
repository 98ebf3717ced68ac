package coap_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

func poster(t testing.TB, addr net.Addr) *coap.Poster {
	t.Helper()
	p, err := coap.Dial(t.Context(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestPoster(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	p := poster(t, s.Addr())
	for _, c := range []struct {
		path    string
		format  int
		payload []byte
		want    coap.Code
		word    string
	}{
		{"/d/kitchen", coap.SenMLJSON, senml("1"), coap.Changed, "2.04"},
		{"/d/scale/weight", coap.NoFormat, []byte("2"), coap.Changed, "2.04"},
		{"/d/kitchen", coap.SenMLJSON, append(senml("3"), bytes.Repeat([]byte(" "), 5000)...), coap.Changed, "2.04"},
		{"/d/cellar", coap.SenMLJSON, senml("4"), 4<<5 | 4, "4.04"},
		{"/d/kitchen", coap.SenMLJSON, []byte("?"), 4 << 5, "4.00"},
	} {
		got, err := p.Post(t.Context(), c.path, c.format, c.payload)
		if err != nil || got != c.want || got.String() != c.word {
			t.Errorf("%s %.20q: want %v, got %v, %v", c.path, c.payload, c.want, got, err)
		}
	}
	if n := len(sink.WaitMessages(t, 3)); n != 3 {
		t.Errorf("want 3 messages, got %d", n)
	}
}

func TestPosterWaitsForASeparateAnswer(t *testing.T) {
	sink := &devicetest.Sink{}
	s := startSlow(t, sink)
	p := poster(t, s.Addr())
	for i := range 3 {
		answered := make(chan error, 1)
		go func() {
			code, err := p.Post(t.Context(), "/d/kitchen", coap.SenMLJSON, senml("1"))
			if err == nil && code != coap.Changed {
				err = fmt.Errorf("answer %v", code)
			}
			answered <- err
		}()
		m := sink.WaitMessages(t, i+1)[i]
		select {
		case err := <-answered:
			t.Fatalf("answered (%v) before the reading was safe", err)
		default:
		}
		m.Settle(nil)
		if err := wait(t, answered); err != nil {
			t.Fatal(err)
		}
	}
}

// On a line that loses datagrams a reading arrives once, and is acknowledged.
func TestPosterOnALossyLine(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	there := lossy(t, s.Addr())
	p := poster(t, there)
	if code, err := p.Post(t.Context(), "/d/kitchen", coap.SenMLJSON, senml("1")); err != nil || code != coap.Changed {
		t.Fatalf("want 2.04, got %v, %v", code, err)
	}
	if code, err := p.Post(t.Context(), "/d/kitchen", coap.SenMLJSON, senml("2")); err != nil || code != coap.Changed {
		t.Fatalf("want 2.04, got %v, %v", code, err)
	}
	if all := sink.WaitMessages(t, 2); len(all) != 2 {
		t.Errorf("two readings were reported %d times", len(all))
	}
}

// lossy relays datagrams of one client, but for the first of each direction.
func lossy(t testing.TB, to net.Addr) net.Addr {
	t.Helper()
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.DialUDP("udp", nil, to.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{}, 2)
	client := make(chan net.Addr, 1)
	go func() {
		defer func() { over <- struct{}{} }()
		b := make([]byte, 2000)
		for i := 0; ; i++ {
			n, from, err := near.ReadFrom(b)
			if err != nil {
				return
			}
			if i == 0 {
				client <- from
				continue
			}
			_, _ = far.Write(b[:n])
		}
	}()
	go func() {
		defer func() { over <- struct{}{} }()
		b := make([]byte, 2000)
		for i := 0; ; i++ {
			n, err := far.Read(b)
			if err != nil {
				return
			}
			if i == 0 {
				continue
			}
			to := <-client
			client <- to
			_, _ = near.WriteTo(b[:n], to)
		}
	}()
	t.Cleanup(func() {
		_ = near.Close()
		_ = far.Close()
		<-over
		<-over
	})
	return near.LocalAddr()
}

func TestPosterGivesUpWithItsContext(t *testing.T) {
	nobody, err := net.ListenPacket("udp", "127.0.0.1:0") // listens, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nobody.Close() }()
	p := poster(t, nobody.LocalAddr())
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		b := make([]byte, 100)
		_ = nobody.SetReadDeadline(time.Now().Add(patience))
		_, _, _ = nobody.ReadFrom(b)
		cancel()
	}()
	if code, err := p.Post(ctx, "/d/kitchen", coap.SenMLJSON, senml("1")); err == nil {
		t.Errorf("got the answer %v from nobody", code)
	}
}

func TestPosterLeavesNothingBehind(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	before := goleak.IgnoreCurrent()
	p, err := coap.Dial(t.Context(), s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Post(t.Context(), "/d/kitchen", coap.SenMLJSON, senml("1")); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, before)
}
