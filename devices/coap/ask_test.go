package coap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

func TestAskLibcoap(t *testing.T) {
	addr, _ := libcoapServer(t, 0, "-d", "10")
	s := asking(t, &devicetest.Sink{})
	p := reach(t, s, addr)
	do := func(q request) answer {
		t.Helper()
		a, err := s.do(t.Context(), p, q)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := do(get(path(".well-known/core"))); a.code != codes.Content || a.format != linkList || !strings.Contains(string(a.payload), "</time>") {
		t.Errorf("%v %d %q", a.code, a.format, a.payload)
	}
	if a := do(get(path("time"), "ticks")); a.code != codes.Content || len(a.payload) == 0 {
		t.Errorf("time: %v %q", a.code, a.payload)
	}
	// Answered after a second, in a message of its own.
	if a := do(get(path("async"), "1")); a.code != codes.Content || string(a.payload) != "done" {
		t.Errorf("async: %v %q", a.code, a.payload)
	}
	if a := do(get(path("nowhere"))); a.code != codes.NotFound || a.refusal().Error() != "the device answers 4.04: Not Found" {
		t.Errorf("nowhere: %v, %v", a.code, a.refusal())
	}
	put := get(path("body"))
	put.code, put.payload, put.format = codes.PUT, large, 42
	if a := do(put); a.code != codes.Created {
		t.Errorf("put in blocks: %v", a.refusal())
	}
	if a := do(get(path("body"))); !bytes.Equal(a.payload, large) {
		t.Errorf("read in blocks: %v, %d bytes", a.code, len(a.payload))
	}
}

func TestAskGoCoAP(t *testing.T) {
	addr := goCoAP(t)
	s := asking(t, &devicetest.Sink{})
	p := reach(t, s, addr)
	if a, err := s.do(t.Context(), p, get(path("large"))); err != nil || !bytes.Equal(a.payload, large) || a.format != 42 {
		t.Errorf("%v, %v, %d bytes", err, a.code, len(a.payload))
	}
	post := get(path("echo"))
	post.code, post.payload, post.format = codes.POST, large, TextPlain
	if a, err := s.do(t.Context(), p, post); err != nil || a.code != codes.Changed || !bytes.Equal(a.payload, large) {
		t.Errorf("%v, %v, %d bytes", err, a.code, len(a.payload))
	}
}

// What a peer may do to us in its answers.
func TestAnswersOfPeers(t *testing.T) {
	block2 := func(v uint32) message.Option { return uintOption(message.Block2, v) }
	number := func(m message.Message) uint32 {
		v, _ := m.Options.GetUint32(message.Block2)
		return v >> 4
	}
	half := strings.Repeat("x", 16)
	for name, c := range map[string]struct {
		answer func(m message.Message) []message.Message
		says   string // part of the error, "" where there is none
		bytes  int
	}{
		"as it should be": {func(m message.Message) []message.Message { return []message.Message{reply(m, codes.Content, "abc")} }, "", 3},
		"doubled": {func(m message.Message) []message.Message {
			return []message.Message{reply(m, codes.Content, "abc"), reply(m, codes.Content, "abc")}
		}, "", 3},
		"answered before it is acknowledged": {func(m message.Message) []message.Message {
			return []message.Message{{Type: message.Confirmable, Code: codes.Content, MessageID: 9, Token: m.Token, Payload: []byte("abc")}}
		}, "", 3},
		"answered in a message that needs no acknowledgement": {func(m message.Message) []message.Message {
			return []message.Message{{Type: message.Acknowledgement, MessageID: m.MessageID}, {Type: message.NonConfirmable, Code: codes.Content, MessageID: 9, Token: m.Token, Payload: []byte("abc")}}
		}, "", 3},
		"with another token first": {func(m message.Message) []message.Message {
			other := reply(m, codes.Content, "forged")
			other.Token = []byte{1, 2, 3, 4, 5, 6, 7, 8}
			return []message.Message{other, reply(m, codes.Content, "abc")}
		}, "", 3},
		"with another message id first": {func(m message.Message) []message.Message {
			other := reply(m, codes.Content, "forged")
			other.MessageID ^= 1
			return []message.Message{other, reply(m, codes.Content, "abc")}
		}, "", 3},
		"reset": {func(m message.Message) []message.Message {
			return []message.Message{{Type: message.Reset, MessageID: m.MessageID}}
		}, "reset", 0},
		"wants to know that we are here": {func(m message.Message) []message.Message {
			if v, err := m.Options.GetBytes(echo); err == nil && string(v) == "here" {
				return []message.Message{reply(m, codes.Content, "abc")}
			}
			return []message.Message{reply(m, codes.Unauthorized, "", message.Option{ID: echo, Value: []byte("here")})}
		}, "", 3},
		"blocks without end": {func(m message.Message) []message.Message {
			return []message.Message{reply(m, codes.Content, strings.Repeat("x", 1024), block2(number(m)<<4|8|6))}
		}, "more than", 0},
		"small blocks without end": {func(m message.Message) []message.Message {
			return []message.Message{reply(m, codes.Content, half, block2(number(m)<<4|8))}
		}, "more than", 0},
		"the same block for ever": {func(m message.Message) []message.Message {
			return []message.Message{reply(m, codes.Content, half, block2(8))}
		}, "another block", 0},
		"it begins in the middle": {func(m message.Message) []message.Message {
			return []message.Message{reply(m, codes.Content, half, block2(3<<4|8))}
		}, "another block", 0},
		"a short block": {func(m message.Message) []message.Message {
			if number(m) == 0 {
				return []message.Message{reply(m, codes.Content, half, block2(8))}
			}
			return []message.Message{reply(m, codes.Content, "x", block2(number(m)<<4|8))}
		}, "a block has 1 bytes", 0},
		"it changes meanwhile": {func(m message.Message) []message.Message {
			n := number(m)
			return []message.Message{reply(m, codes.Content, half, block2(n<<4|8), message.Option{ID: message.ETag, Value: []byte{byte(n + 1)}})}
		}, "changed", 0},
		"blocks shrink": {func(m message.Message) []message.Message {
			v, _ := m.Options.GetUint32(message.Block2)
			switch {
			case v>>4 == 0 && v&7 == 0 && !m.Options.HasOption(message.Block2):
				return []message.Message{reply(m, codes.Content, strings.Repeat("x", 64), block2(8|2))}
			case v == 1<<4|2:
				return []message.Message{reply(m, codes.Content, half, block2(4<<4|8))}
			}
			return []message.Message{reply(m, codes.Content, "x", block2(v>>4<<4))}
		}, "", 81},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := script(t, c.answer)
			s := asking(t, &devicetest.Sink{})
			p := reach(t, s, d.addr())
			a, err := s.do(t.Context(), p, get(path("x")))
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("want an error with %q, got %v", c.says, err)
			}
			if len(a.payload) != c.bytes || strings.Contains(string(a.payload), "forged") {
				t.Errorf("got %q", a.payload)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.conversations) != 0 || len(p.sent) != 0 || p.asked != 0 {
				t.Errorf("left behind: %d conversations, %d messages", len(s.conversations), len(p.sent))
			}
		})
	}
}

// A confirmable answer that comes again because its acknowledgement was lost is
// acknowledged again, also when nobody waits for it any more.
func TestRepeatedAnswerIsAcknowledgedAgain(t *testing.T) {
	d := script(t, func(m message.Message) []message.Message {
		if !isRequest(m) {
			return nil
		}
		return []message.Message{{Type: message.Acknowledgement, MessageID: m.MessageID}, {Type: message.Confirmable, Code: codes.Content, MessageID: 77, Token: m.Token, Payload: []byte("abc")}}
	})
	s := asking(t, &devicetest.Sink{})
	p := reach(t, s, d.addr())
	if _, err := s.do(t.Context(), p, get(path("x"))); err != nil {
		t.Fatal(err)
	}
	token := d.next("request", isRequest).Token
	for range 2 {
		if a := d.next("acknowledgement", func(m message.Message) bool { return !isRequest(m) }); a.Type != message.Acknowledgement || a.MessageID != 77 {
			t.Fatalf("got %v", a.String())
		}
		d.send(message.Message{Type: message.Confirmable, Code: codes.Content, MessageID: 77, Token: token, Payload: []byte("abc")})
	}
	// Another one is refused: it could be an observation that nobody wants.
	d.send(message.Message{Type: message.NonConfirmable, Code: codes.Content, MessageID: 78, Token: token, Payload: []byte("abc")})
	d.next("reset", func(m message.Message) bool { return m.Type == message.Reset && m.MessageID == 78 })
}

// Nothing is sent to a peer while it has not acknowledged what was sent before
// (NSTART), and what is acknowledged and not answered holds up nobody.
func TestOneMessageAtATime(t *testing.T) {
	var held atomic.Int64
	release := make(chan struct{})
	d := script(t, func(m message.Message) []message.Message {
		switch {
		case !isRequest(m):
			return nil
		case held.Add(1) == 1:
			<-release
			return []message.Message{{Type: message.Acknowledgement, MessageID: m.MessageID}}
		}
		return []message.Message{reply(m, codes.Content, "abc")}
	})
	s := asking(t, &devicetest.Sink{})
	p := reach(t, s, d.addr())
	ctx, cancel := context.WithCancel(t.Context())
	unanswered := make(chan error, 1)
	go func() {
		_, err := s.do(ctx, p, get(path("slow")))
		unanswered <- err
	}()
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(p.sent) == 1 })
	var others sync.WaitGroup
	for range maxAsked - 1 {
		others.Go(func() {
			if _, err := s.do(t.Context(), p, get(path("quick"))); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return p.asked == maxAsked })
	if _, err := s.do(t.Context(), p, get(path("more"))); !errors.Is(err, errBusy) {
		t.Errorf("one more than %d: %v", maxAsked, err)
	}
	s.mu.Lock()
	if len(p.sent) != 1 {
		t.Errorf("%d messages are on the way", len(p.sent))
	}
	s.mu.Unlock()
	close(release)
	others.Wait()
	cancel()
	if err := <-unanswered; !errors.Is(err, errSilent) {
		t.Errorf("the one without an answer: %v", err)
	}
}

// waitFor waits for what no event tells.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen")
		}
	}
}

// Peers that never answer cost one message each, and are forgotten.
func TestSilentPeersAreBounded(t *testing.T) {
	nobody, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nobody.Close() }()
	s := asking(t, &devicetest.Sink{})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	p := reach(t, s, nobody.LocalAddr().(*net.UDPAddr).AddrPort())
	for range 10 * maxAsked {
		all.Go(func() {
			if _, err := s.do(ctx, p, get(path("x"))); err == nil {
				t.Error("nobody answered")
			}
		})
	}
	waitFor(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return p.asked == maxAsked && len(p.sent) == 1 })
	cancel()
	all.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conversations) != 0 || p.asked != 0 || len(p.sent) != 0 {
		t.Errorf("left behind: %d conversations, %d messages", len(s.conversations), len(p.sent))
	}
}

// A pipe is a link that is no socket, as a DTLS association is.
type pipe struct{ to func(b []byte) }

func (l pipe) send(b []byte) error { l.to(b); return nil }

// Two sessions talk over links of their own, in both directions.
func TestAttachedPeers(t *testing.T) {
	server, client := quiet(t, &devicetest.Sink{Auto: true}), asking(t, &devicetest.Sink{})
	server.startWorkers()
	var there, here *peer
	var err error
	queue := make(chan func(), 100)
	client.wg.Go(func() {
		for {
			select {
			case f := <-queue:
				f()
			case <-client.ctx.Done():
				return
			}
		}
	})
	later := func(s *session, p **peer) func([]byte) {
		return func(b []byte) { queue <- func() { s.hear(*p, b) } }
	}
	if there, err = client.attach("server", pipe{later(server, &here)}, ""); err != nil {
		t.Fatal(err)
	}
	if here, err = server.attach("client", pipe{later(client, &there)}, ""); err != nil {
		t.Fatal(err)
	}
	post := get(path("d/kitchen"))
	post.code, post.payload = codes.POST, bytes.Repeat([]byte("1"), 3000) // in blocks
	if a, err := client.do(t.Context(), there, post); err != nil || a.code != codes.Changed {
		t.Fatalf("%v, %v", a.code, err)
	}
	// The server asks its client, which has nothing to be asked for.
	if _, err := server.do(t.Context(), here, get(path("x"))); !errors.Is(err, errReset) {
		t.Fatalf("got %v", err)
	}
	// What is under way ends with the link.
	client.mu.Lock()
	there.link = pipe{func([]byte) {}}
	client.mu.Unlock()
	failed := make(chan error, 1)
	go func() {
		_, err := client.do(context.Background(), there, post)
		failed <- err
	}()
	waitFor(t, func() bool { client.mu.Lock(); defer client.mu.Unlock(); return len(there.sent) == 1 })
	client.detach(there)
	if err := <-failed; !errors.Is(err, errGone) {
		t.Errorf("got %v", err)
	}
	if _, err := client.do(t.Context(), there, post); !errors.Is(err, errGone) {
		t.Errorf("after it: %v", err)
	}
	server.detach(here)
}

// A large body is sent in the blocks that the peer wants.
func TestPutInSmallerBlocks(t *testing.T) {
	for _, first := range []codes.Code{codes.Continue, codes.RequestEntityTooLarge} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			var mu sync.Mutex
			var got []byte
			d := script(t, func(m message.Message) []message.Message {
				mu.Lock()
				defer mu.Unlock()
				v, err := m.Options.GetUint32(message.Block1)
				if err != nil || v&7 > 2 && first == codes.RequestEntityTooLarge {
					return []message.Message{reply(m, codes.RequestEntityTooLarge, "", uintOption(message.Block1, 2))}
				}
				if int(v>>4)*(16<<(v&7)) != len(got) {
					return []message.Message{reply(m, codes.RequestEntityIncomplete, "")}
				}
				got = append(got, m.Payload...)
				if v&8 == 0 {
					return []message.Message{reply(m, codes.Changed, "")}
				}
				return []message.Message{reply(m, codes.Continue, "", uintOption(message.Block1, v&^7|2))}
			})
			s := asking(t, &devicetest.Sink{})
			p := reach(t, s, d.addr())
			put := get(path("x"))
			put.code, put.payload = codes.PUT, large[:3000]
			if first == codes.RequestEntityTooLarge {
				put.payload = large[:900] // which we would send as one
			}
			a, err := s.do(t.Context(), p, put)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || a.code != codes.Changed || !bytes.Equal(got, put.payload) {
				t.Errorf("%v, %v, %d bytes", a.code, err, len(got))
			}
		})
	}
}
