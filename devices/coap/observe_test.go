package coap

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// watch observes until the test ends, or stop is called.
func watch(t testing.TB, s *session, p *peer, q request, atLeast time.Duration) (heard chan answer, ended chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	heard, ended = make(chan answer, 1000), make(chan error, 1)
	over := make(chan struct{})
	go func() {
		defer close(over)
		ended <- s.observe(ctx, p, q, atLeast, func(a answer) { heard <- a })
	}()
	stop = func() { cancel(); <-over }
	t.Cleanup(stop)
	return heard, ended, stop
}

func next[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func registers(m message.Message) bool {
	v, err := m.Options.GetUint32(message.Observe)
	return isRequest(m) && err == nil && v == 0
}

// The server of libcoap reports its clock each second, until it is stopped. One
// that is started in its place is found again without anybody's help.
func TestObserveLibcoap(t *testing.T) {
	addr, stop := libcoapServer(t, 0)
	s := asking(t, &devicetest.Sink{})
	p := reach(t, s, addr)
	heard, _, _ := watch(t, s, p, get(path("time"), "ticks"), time.Second)
	for range 3 {
		if a := next(t, heard); a.code != codes.Content || len(a.payload) == 0 {
			t.Fatalf("%v %q", a.code, a.payload)
		}
	}
	stop()
	for len(heard) > 0 {
		<-heard
	}
	libcoapServer(t, addr.Port())
	for range 2 {
		next(t, heard)
	}
}

func TestObserve(t *testing.T) {
	fresh := uintOption(message.MaxAge, 60)
	seq := func(n uint32) message.Option { return uintOption(message.Observe, n) }
	d := script(t, func(m message.Message) []message.Message {
		if registers(m) {
			return []message.Message{reply(m, codes.Content, "first", seq(0xfffffe), fresh)}
		}
		return nil
	})
	sink := &devicetest.Sink{}
	s := asking(t, sink)
	p := reach(t, s, d.addr())
	heard, _, stop := watch(t, s, p, get(path("x")), 0)
	token := d.next("registration", registers).Token
	tell := func(mid int32, number uint32, text string) message.Message {
		m := message.Message{Type: message.Confirmable, Code: codes.Content, MessageID: mid, Token: token, Payload: []byte(text)}
		m.Options = m.Options.Add(seq(number)).Add(fresh)
		return m
	}
	if a := next(t, heard); string(a.payload) != "first" {
		t.Fatalf("%q", a.payload)
	}
	for i, c := range []struct {
		number uint32
		text   string
		taken  bool
	}{{0xffffff, "second", true}, {0, "third", true}, {0xffffff, "late", false}, {0, "doubled", false}, {5, "fourth", true}, {4, "late", false}, {6, "fifth", true}} {
		d.send(tell(int32(i), c.number, c.text))
		d.next("acknowledgement", func(m message.Message) bool {
			return m.Type == message.Acknowledgement && m.MessageID == int32(i)
		})
		if c.taken {
			if a := next(t, heard); string(a.payload) != c.text {
				t.Fatalf("want %s, got %q", c.text, a.payload)
			}
		}
	}
	again := tell(7, 7, "sixth")
	for range 3 {
		d.send(again)
	}
	if a := next(t, heard); string(a.payload) != "sixth" {
		t.Fatalf("got %q", a.payload)
	}
	stop()
	d.next("cancellation", func(m message.Message) bool {
		v, err := m.Options.GetUint32(message.Observe)
		return isRequest(m) && err == nil && v == 1 && string(m.Token) == string(token)
	})
	d.send(tell(8, 8, "unwanted"))
	d.next("reset", func(m message.Message) bool { return m.Type == message.Reset && m.MessageID == 8 })
	if len(heard) != 0 {
		t.Errorf("%d more were taken", len(heard))
	}
}

// A device that began anew counts anew; what it says to a new registration is
// the newest all the same.
func TestObservedDeviceBeginsAnew(t *testing.T) {
	numbers := make(chan uint32, 1)
	numbers <- 1000
	d := script(t, func(m message.Message) []message.Message {
		if !registers(m) {
			return nil
		}
		select {
		case n := <-numbers:
			return []message.Message{reply(m, codes.Content, fmt.Sprint(n), uintOption(message.Observe, n), uintOption(message.MaxAge, 3600))}
		default:
			return []message.Message{reply(m, codes.Content, "2", uintOption(message.Observe, 2), uintOption(message.MaxAge, 3600))}
		}
	})
	s := asking(t, &devicetest.Sink{})
	heard, _, _ := watch(t, s, reach(t, s, d.addr()), get(path("x")), 10*time.Millisecond)
	if a := next(t, heard); string(a.payload) != "1000" {
		t.Fatalf("%q", a.payload)
	}
	first := d.next("registration", registers)
	if a := next(t, heard); string(a.payload) != "2" {
		t.Fatalf("%q", a.payload)
	}
	if second := d.next("registration", registers); string(second.Token) != string(first.Token) {
		t.Error("the second registration has another token, so the device has two observers")
	}
}

func TestObserveEnds(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(m message.Message) message.Message
		heard  int
		want   func(error) bool
	}{
		"it does not report by itself": {func(m message.Message) message.Message { return reply(m, codes.Content, "1") }, 1,
			func(err error) bool { return errors.Is(err, errNotObservable) }},
		"it says no": {func(m message.Message) message.Message { return reply(m, codes.NotFound, "no") }, 0,
			func(err error) bool { return err != nil && err.Error() == "the device answers 4.04: no" }},
		"it resets": {func(m message.Message) message.Message {
			return message.Message{Type: message.Reset, MessageID: m.MessageID}
		}, 0, func(err error) bool { return errors.Is(err, errReset) }},
	} {
		t.Run(name, func(t *testing.T) {
			d := script(t, func(m message.Message) []message.Message {
				if isRequest(m) {
					return []message.Message{c.answer(m)}
				}
				return nil
			})
			s := asking(t, &devicetest.Sink{})
			heard, ended, _ := watch(t, s, reach(t, s, d.addr()), get(path("x")), 0)
			if err := next(t, ended); !c.want(err) || len(heard) != c.heard {
				t.Errorf("%v, %d heard", err, len(heard))
			}
		})
	}
}

// A report in blocks is read whole.
func TestObserveInBlocks(t *testing.T) {
	d := script(t, func(m message.Message) []message.Message {
		v, _ := m.Options.GetUint32(message.Block2)
		o := []message.Option{uintOption(message.Block2, v|8)}
		if v>>4 > 0 {
			o[0] = uintOption(message.Block2, v)
		}
		if registers(m) {
			o = append(o, uintOption(message.Observe, 1))
		}
		if !isRequest(m) {
			return nil
		}
		return []message.Message{reply(m, codes.Content, fmt.Sprintf("%016d", v>>4), o...)}
	})
	s := asking(t, &devicetest.Sink{})
	heard, _, _ := watch(t, s, reach(t, s, d.addr()), get(path("x")), 0)
	if a := next(t, heard); string(a.payload) != "00000000000000000000000000000001" {
		t.Errorf("got %q", a.payload)
	}
}
