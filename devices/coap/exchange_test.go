package coap

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/udp/coder"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// anything decodes whatever is not empty.
type anything struct{}

func (anything) Decode(at profile.Place, m profile.Message) (profile.Output, error) {
	if len(m.Payload) == 0 {
		return profile.Output{}, errors.New("empty")
	}
	return profile.Output{Readings: []devices.Reading{{Device: at.Device}}}, nil
}

// quiet makes a session that nothing is read for, so that a test can hand it
// datagrams from anywhere.
func quiet(t testing.TB, sink devices.Sink) *session {
	t.Helper()
	conn, err := coapnet.NewListenUDP("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{}, []Device{{Device: devices.Device{ID: "kitchen"}, Profile: anything{}}}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ss := newSession(ctx, sink, conn, s.log)
	ss.serve = newService(ss, s).request
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
		ss.wg.Wait()
	})
	return ss
}

func endpoint(n int) *net.UDPAddr {
	return &net.UDPAddr{IP: net.IPv4(127, 1, byte(n>>8), byte(n)), Port: 40000}
}

func datagram(t testing.TB, mid int32, path ...string) []byte {
	t.Helper()
	m := message.Message{Type: message.NonConfirmable, Code: codes.POST, MessageID: mid, Payload: []byte("1")}
	for _, p := range path {
		m.Options = m.Options.Add(message.Option{ID: message.URIPath, Value: []byte(p)})
	}
	b := make([]byte, 200)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestForgedAddressesShutNobodyOut(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := quiet(t, sink)
	s.startWorkers()
	s.datagram(endpoint(0), nil, datagram(t, 1, "d", "kitchen"))
	sink.WaitMessages(t, 1)
	s.strangers.rate, s.strangers.burst = 1e9, 1e9
	for i := 1; i < 2*maxPeers; i++ {
		s.datagram(endpoint(i), nil, []byte{0})
	}
	s.strangers = bucket{rate: strangerRate, burst: strangerBurst}
	for i := 1; i < 2*strangerBurst; i++ {
		s.datagram(endpoint(i), nil, []byte{0})
	}
	for heard := false; !heard; { // one that is new, and repeats itself
		s.datagram(endpoint(1<<15), nil, datagram(t, 1, "d", "kitchen"))
		s.mu.Lock()
		heard = s.peers[netip.MustParseAddrPort(endpoint(1<<15).String())] != nil
		s.mu.Unlock()
	}
	sink.WaitMessages(t, 2)
	s.datagram(endpoint(0), nil, datagram(t, 1, "d", "kitchen")) // a repetition
	s.datagram(endpoint(0), nil, datagram(t, 2, "d", "kitchen"))
	if all := sink.WaitMessages(t, 3); len(all) != 3 {
		t.Errorf("the first device was forgotten: %d messages", len(all))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers) > maxPeers {
		t.Errorf("%d peers are kept, at most %d may be", len(s.peers), maxPeers)
	}
}

func TestOnePeerHasAQuota(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := quiet(t, sink)
	now := time.Now()
	passed := 0
	for range 10 * peerBurst {
		if s.admit(endpoint(1), nil, now) != nil {
			passed++
		}
	}
	if passed != peerBurst {
		t.Errorf("%d datagrams passed at once, %d should", passed, peerBurst)
	}
	if got := sink.WaitRejections(t, 1); len(got) != 1 {
		t.Errorf("%d complaints within one second", len(got))
	}
	if s.admit(endpoint(2), nil, now) == nil {
		t.Error("another peer has to pay for it")
	}
	if s.admit(endpoint(1), nil, now.Add(time.Second)) == nil {
		t.Error("the peer is not heard again a second later")
	}
}

func TestSilentPeersAreForgotten(t *testing.T) {
	s := quiet(t, &devicetest.Sink{})
	now := time.Now()
	s.admit(endpoint(1), nil, now)
	s.admit(endpoint(2), nil, now.Add(exchangeLifetime))
	s.admit(endpoint(3), nil, now.Add(exchangeLifetime+sweepInterval+time.Second))
	if len(s.peers) != 2 {
		t.Errorf("want the last two peers, have %d", len(s.peers))
	}
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	sink := &devicetest.Sink{}
	s := quiet(t, sink)
	p := s.admit(endpoint(1), nil, time.Now())
	add := func(n int) {
		for range n {
			ex := &exchange{peer: p, mid: p.nextMID()}
			p.note(ex)
			p.open++
			s.open++
			s.remember(ex)
		}
	}
	add(3 * rememberMany)
	if len(p.answered) != rememberMany || len(p.exchanges) != rememberMany || s.answered != rememberMany {
		t.Errorf("one peer: %d, %d, %d are kept, want %d", len(p.answered), len(p.exchanges), s.answered, rememberMany)
	}
	s.answered = fewAnswered
	p.trusted = true
	add(1)
	if len(p.answered) != rememberFew || len(p.exchanges) != rememberFew {
		t.Errorf("many peers: %d, %d are kept, want %d", len(p.answered), len(p.exchanges), rememberFew)
	}
	s.answered, p.trusted = fewAnswered, false
	add(1)
	if len(p.answered) != rememberLeast {
		t.Errorf("very many strangers: %d are kept, want %d", len(p.answered), rememberLeast)
	}
}

// Whatever comes, nothing panics, every exchange ends, and the next good
// request is served.
func FuzzDatagram(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte{0x40, 0, 0, 1}, []byte{0x60, 0, 0, 1})
	f.Add(datagram(f, 1, "d", "kitchen"), datagram(f, 2, "d", "kitchen", "x", ""))
	f.Add(datagram(f, 1, "d", "cellar"), datagram(f, 1, ".well-known", "core"))
	f.Add([]byte("\x40\x02\x00\x01\xb1d\x07kitchen\xd1\x03\x08\xff1234567890123456"),
		[]byte("\x40\x02\x00\x02\xb1d\x07kitchen\xd1\x03\x10\xff1"))
	f.Add([]byte("\x40\x02\x00\x03\xb2rd\x44ep=x\xff</a>;rt=\"t\",</b>"), []byte("\x40\x01\x00\x04\xbb.well-known\x04core\xc1\x02"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		sink := &devicetest.Sink{Auto: true}
		s := quiet(t, sink)
		s.startWorkers()
		for _, b := range [][]byte{first, second, first} {
			s.datagram(endpoint(1), nil, b)
		}
		s.datagram(endpoint(2), nil, datagram(t, 1, "d", "kitchen"))
		sink.WaitMessages(t, 1)
	})
}
