package mqtt

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// A bomb is a decoder that panics.
type bomb struct{ Decoder }

func (bomb) Decode(profile.Place, profile.Message) (profile.Output, error) { panic("boom") }

// TestDecoderPanics: the message is rejected and acknowledged, and all others
// are heard.
func TestDecoderPanics(t *testing.T) {
	m := startMosquitto(t)
	bad := device(t, "bad", "json", "bad")
	bad.Profile = bomb{bad.Profile}
	c := NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test"}, []Device{bad, device(t, "kitchen", "json", "kitchen")}, quiet())
	sink := &devicetest.Sink{Auto: true}
	run(t, c, sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "both")
	for _, topic := range []string{"bad", "kitchen", "bad", "kitchen"} {
		send(t, p, Publication{Topic: topic, Payload: temperature("1"), QoS: 1})
	}
	sink.WaitMessages(t, 2)
	if rejected := sink.WaitRejections(t, 2); !strings.Contains(rejected[0].Why.Error(), "boom") {
		t.Errorf("%v", rejected[0].Why)
	}
	m.waitFor(t, "all acknowledgements", func(log string) bool {
		return strings.Count(log, "Received PUBACK from porchlight-test") == 4
	})
}

// TestStalledSink: whoever takes the readings does not, and neither answers.
// The link lives, because pings are answered and sent all the same, and what
// waited is acknowledged in the end.
func TestStalledSink(t *testing.T) {
	m := startMosquitto(t)
	c := kitchenOn(t, m.url())
	c.keepAlive = time.Second // the broker waits half as much again
	sink := &slowSink{Sink: devicetest.Sink{Auto: true}, wait: make(chan struct{})}
	ended, _ := run(t, c, sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "kitchen")
	const n = 10
	for range n {
		send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	}
	pings := func(log string) bool { return strings.Count(log, "Received PINGREQ from porchlight-test") >= 4 }
	m.waitFor(t, "four pings", pings)
	close(sink.wait)
	m.waitFor(t, "all acknowledgements", func(log string) bool {
		return strings.Count(log, "Received PUBACK from porchlight-test") == n
	})
	select {
	case err := <-ended:
		t.Errorf("the link ended: %v", err)
	default:
	}
}

// TestForgetfulBroker has a broker that keeps nothing be killed. The client
// subscribes anew, and what comes then is new, though it looks like what came
// before: the same bytes under the same packet ids.
func TestForgetfulBroker(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "persistence false")
	c := kitchenOn(t, m.url())
	sink := &devicetest.Sink{Auto: true}
	_, stop := run(t, c, sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "kitchen")
	for range 3 {
		send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	}
	sink.WaitMessages(t, 3)
	m.kill()
	m.start(t)
	stop() // which has ended by itself; the supervisor's business
	_, stop = run(t, c, sink)
	sink.WaitUp(t, 2)
	for range 3 {
		send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	}
	all := sink.WaitMessages(t, 6)
	for i, taken := range all {
		if taken.Redelivered {
			t.Errorf("message %d is taken for one that came before", i)
		}
	}
	if all[0].Origin != all[3].Origin {
		t.Error("the packet ids do not start anew, so that this shows nothing")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

var retainedMessages = flag.Int("mqtt.retained", 100_000, "how many retained messages to flood the client with")

// TestRetainedFlood has a real broker hold very many retained messages on
// topics that are the device's. They are acknowledged one window after the
// other, so that they never are in memory together.
func TestRetainedFlood(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_queued_messages 0", "set_tcp_nodelay true", "log_type none", "log_type information")
	filler := rawConnect(t, m.address, "filler", "", "")
	var filling sync.WaitGroup
	filling.Go(func() {
		for i := range *retainedMessages {
			p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			p.Qos, p.Retain, p.MessageID, p.TopicName, p.Payload = 1, true, uint16(i%65535+1), fmt.Sprint("kitchen/s", i), []byte(`{"v":1}`)
			if err := p.Write(filler); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range *retainedMessages {
		if i%1000 == 0 { // it takes long on a busy machine
			filler.SetDeadline(time.Now().Add(patience))
		}
		filler.read()
	}
	filling.Wait()
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	sink := &countingSink{all: make(chan struct{}), want: *retainedMessages}
	kitchen := device(t, "kitchen", "json", "kitchen")
	kitchen.Profile = everything{kitchen.Profile}
	ended, stop := run(t, NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test"}, []Device{kitchen}, quiet()), sink)
	for came, some := int64(-1), true; some; {
		select {
		case <-sink.all:
			some = false
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(patience):
			if n := sink.n.Load(); n == came {
				t.Fatalf("%d of %d came, and then none", n, sink.want)
			} else {
				came = n
			}
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if grown := int64(sink.most) - int64(before.HeapInuse); grown > maxQueuedBytes {
		t.Errorf("the heap grew by %d KiB", grown>>10)
	}
}

// An everything is a decoder that takes all topics below its own.
type everything struct{ Decoder }

func (everything) Filters(at profile.Place) []string { return []string{at.Topic + "/#"} }

func (everything) Matches(profile.Place, string) bool { return true }

func (w everything) Decode(at profile.Place, m profile.Message) (profile.Output, error) {
	m.Topic = at.Topic
	return w.Decoder.Decode(at, m)
}

// A countingSink keeps nothing but how many retained messages came, and how big
// the heap was.
type countingSink struct {
	devicetest.Sink
	n    atomic.Int64
	want int
	most uint64
	all  chan struct{}
}

func (s *countingSink) Report(_ context.Context, m devices.Message) (devices.Receipt, error) {
	if !m.Retained {
		return nil, errors.New("not retained")
	}
	n := s.n.Add(1)
	if n == int64(s.want) {
		close(s.all)
	}
	if n%1000 == 0 {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		s.most = max(s.most, now.HeapInuse)
	}
	return nil, nil
}
