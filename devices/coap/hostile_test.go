package coap

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// Whatever a peer answers, nothing panics, and what was asked of it ends with
// nothing left behind.
func FuzzAnswers(f *testing.F) {
	token := message.Token("12345678")
	seed := func(m message.Message) []byte {
		m.Token = token
		b, err := encoded(m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	content := message.Message{Type: message.NonConfirmable, Code: codes.Content, Payload: []byte("1")}
	f.Add(seed(content), seed(content), false)
	content.Options = message.Options{uintOption(message.Observe, 1), uintOption(message.MaxAge, 0)}
	f.Add(seed(content), []byte{0x70, 0, 0, 0}, true)
	content.Options = message.Options{uintOption(message.Block2, 8)}
	content.Payload = []byte("0123456789abcdef")
	f.Add(seed(content), seed(content), false)
	f.Add(seed(message.Message{Type: message.Confirmable, Code: codes.Unauthorized, Options: message.Options{{ID: echo, Value: []byte("x")}}}), []byte{0x60, 0, 0, 0}, false)
	f.Add(seed(message.Message{Type: message.NonConfirmable, Code: codes.Continue, Options: message.Options{uintOption(message.Block1, 6)}}), []byte{}, false)
	f.Fuzz(func(t *testing.T, first, second []byte, observing bool) {
		s := quiet(t, &devicetest.Sink{})
		var p *peer
		answers := [][]byte{first, second, first}
		var err error
		p, err = s.attach("device", pipe{func([]byte) {}}, "")
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.converse(p, 2)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		delete(s.conversations, string(c.token))
		c.token = token
		s.conversations[string(token)] = c
		s.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan struct{})
		go func() {
			defer close(over)
			defer c.close()
			q := get([]string{"x"})
			if observing {
				o := observation{conversation: c, request: q, take: func(answer) {}}
				_ = o.register(ctx)
				_ = o.follow(ctx, 0)
				o.cancel()
				return
			}
			q.code, q.payload = codes.PUT, large
			m, err := c.put(ctx, q)
			if err == nil {
				_, _ = c.rest(ctx, q, m)
			}
		}()
		for _, b := range answers {
			s.hear(p, b)
		}
		cancel()
		<-over
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.conversations) != 0 || len(p.sent) != 0 || p.asked != 0 || p.held != 1 {
			t.Errorf("left behind: %d conversations, %d messages, held %d times", len(s.conversations), len(p.sent), p.held)
		}
	})
}

// Tens of thousands of forged addresses post, register, begin bodies and leave:
// what they cost is bounded, and a device that is known is served.
func TestForgedAddressesAreBounded(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := quiet(t, sink)
	s.startWorkers()
	s.strangers.rate, s.strangers.burst = 1e9, 1e9
	q := get(path("d/kitchen"))
	q.code, q.payload = codes.POST, large[:1024]
	q.options = message.Options{uintOption(message.Block1, 8|6)}
	block, _ := encoded(q.message())
	register := get(path("rd"), "ep=x", "lt=1000")
	register.code, register.payload = codes.POST, []byte("</a>;obs")
	endpoint1, _ := encoded(register.message())
	before := runtime.NumGoroutine()
	var most int
	for i := range 2 * maxPeers {
		for _, b := range [][]byte{block, endpoint1, {0x40}, {0x50, 0xff, 0, 0}} {
			s.datagram(endpoint(i), nil, b)
		}
		if i%1000 == 0 {
			most = max(most, runtime.NumGoroutine())
		}
	}
	s.mu.Lock()
	peers, bodies, open := len(s.peers), len(s.bodies), s.open
	s.mu.Unlock()
	if peers > maxPeers || bodies > maxBodies || open > maxOpen {
		t.Errorf("%d peers, %d bodies, %d open requests", peers, bodies, open)
	}
	if most > before+maxOpen {
		t.Errorf("%d goroutines, %d before", most, before)
	}
	good := datagram(t, 9, "d", "kitchen")
	deadline := time.Now().Add(patience)
	for n := 0; n == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s.datagram(endpoint(1<<16-1), nil, good)
		n = len(sink.WaitMessages(t, 0))
	}
	sink.WaitMessages(t, 1)
}
