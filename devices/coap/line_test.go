package coap

import (
	"bytes"
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// A badLine relays datagrams to a peer, and loses, doubles, delays and reorders
// them by a seed.
type badLine struct {
	lose, double float64
	delay        time.Duration

	addr           netip.AddrPort
	passed, missed atomic.Int64

	mu     sync.Mutex
	random *rand.Rand
	tries  map[uint64]int // by datagram and direction
}

// mercy is how often the same datagram is lost at most: a device that follows
// RFC 7252 sends it five times, and both directions take their share.
const mercy = 2

func newBadLine(t testing.TB, seed uint64, to netip.AddrPort) *badLine {
	t.Helper()
	l := &badLine{lose: 0.33, double: 0.2, delay: 20 * time.Millisecond, random: rand.New(rand.NewPCG(seed, seed)), tries: make(map[uint64]int)}
	near, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l.addr = near.LocalAddr().(*net.UDPAddr).AddrPort()
	var all sync.WaitGroup
	var mu sync.Mutex
	far := make(map[netip.AddrPort]*net.UDPConn)
	hash := maphash.MakeSeed()
	// libcoap's server answers what comes again with another ETag, and the same
	// message ID.
	key := func(from, to string, b []byte) uint64 {
		return maphash.Comparable(hash, [3]string{from, to, string(b[:min(len(b), 4)])})
	}
	all.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, client, err := near.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			mu.Lock()
			up := far[client]
			if up == nil {
				if up, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)); err != nil {
					mu.Unlock()
					t.Error(err)
					return
				}
				far[client] = up
				all.Go(func() {
					b := make([]byte, 64<<10)
					for {
						n, err := up.Read(b)
						if err != nil {
							return
						}
						l.relay(key("server", client.String(), b[:n]), slices.Clone(b[:n]), func(b []byte) { _, _ = near.WriteToUDPAddrPort(b, client) })
					}
				})
			}
			mu.Unlock()
			l.relay(key(client.String(), "server", b[:n]), slices.Clone(b[:n]), func(b []byte) { _, _ = up.Write(b) })
		}
	})
	t.Cleanup(func() {
		_ = near.Close()
		mu.Lock()
		for _, up := range far {
			_ = up.Close()
		}
		mu.Unlock()
		all.Wait()
		passed, missed := l.passed.Load(), l.missed.Load()
		t.Logf("the line lost %d of %d datagrams", missed, passed+missed)
	})
	return l
}

func (l *badLine) relay(key uint64, b []byte, send func([]byte)) {
	l.mu.Lock()
	lost := l.random.Float64() < l.lose && l.tries[key] < mercy
	l.tries[key]++
	times := 1
	if l.random.Float64() < l.double {
		times = 2
	}
	delays := make([]time.Duration, times)
	for i := range delays {
		delays[i] = rand.N(l.delay)
	}
	l.mu.Unlock()
	if lost {
		l.missed.Add(1)
		return
	}
	l.passed.Add(1)
	for _, d := range delays {
		time.AfterFunc(d, func() { send(b) }) // one that is later overtakes nothing
	}
}

// lossRate is that of a line; it fails the test where that is not what it is
// meant to be.
func (l *badLine) check(t testing.TB) {
	t.Helper()
	passed, missed := l.passed.Load(), l.missed.Load()
	if rate := float64(missed) / float64(passed+missed); rate < 0.2 {
		t.Errorf("the line lost no more than %.0f %%", 100*rate)
	}
}

// A slowSink has receipts be done a little later.
type slowSink struct{ *devicetest.Sink }

func (s slowSink) Report(ctx context.Context, m devices.Message) (devices.Receipt, error) {
	r, err := s.Sink.Report(ctx, m)
	if taken, ok := r.(*devicetest.Taken); ok {
		time.AfterFunc(rand.N(40*time.Millisecond), func() { taken.Settle(nil) })
	}
	return r, err
}

// quick is the time after which datagrams are repeated in these tests; the RFC's
// is 2 s.
const quick = 100 * time.Millisecond

// On a line that loses 30 % and doubles 20 %, both ways, each reading that devices
// post is taken once, and in order, in one datagram or in blocks, with the answer
// at once or in a message of its own.
func TestPostsOverABadLine(t *testing.T) {
	const posters, posts = 16, 6
	sink := &devicetest.Sink{}
	var devs []Device
	for i := range posters {
		d := askedDevice(devices.ID(fmt.Sprint("d", i)), "senml", "")
		d.Profile = library(t).Get("senml")
		devs = append(devs, d)
	}
	s := New(Config{Listen: "127.0.0.1:0"}, devs, slog.New(slog.DiscardHandler))
	s.ackTimeout, s.piggyback = quick, quick/5
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx, slowSink{sink}) }()
	t.Cleanup(func() { cancel(); <-over })
	sink.WaitUp(t, 1)
	line := newBadLine(t, 1, s.Addr().(*net.UDPAddr).AddrPort())

	var all sync.WaitGroup
	for i := range posters {
		poster := asking(t, &devicetest.Sink{})
		poster.ackTimeout = quick
		there := reach(t, poster, line.addr)
		all.Go(func() {
			for n := range posts {
				post := get([]string{"d", fmt.Sprint("d", i)})
				post.code, post.payload, post.format = codes.POST, []byte(temperature(strconv.Itoa(n))), SenMLJSON
				if n%3 == 2 {
					post.payload = append(post.payload, bytes.Repeat([]byte(" "), 2500)...)
				}
				if a, err := poster.do(t.Context(), there, post); err != nil || a.code != codes.Changed {
					t.Errorf("device %d, post %d: %v, %v", i, n, a.code, err)
				}
			}
		})
	}
	all.Wait()
	line.check(t)
	got := make(map[devices.ID][]string)
	for _, m := range sink.WaitMessages(t, posters*posts) {
		r := m.Readings[0]
		got[r.Device] = append(got[r.Device], r.Fields[0].Value.String())
	}
	for _, d := range devs {
		if want := []string{"0", "1", "2", "3", "4", "5"}; !slices.Equal(got[d.ID], want) {
			t.Errorf("%s: taken were %v", d.ID, got[d.ID])
		}
	}
}

// On such a line libcoap's server is read in blocks, without a gap. It is told
// without the line: it takes the repetition of a last block for a body.
func TestAskOverABadLine(t *testing.T) {
	addr, _ := libcoapServer(t, 0, "-d", "20")
	line := newBadLine(t, 2, addr)
	direct := asking(t, &devicetest.Sink{})
	there := reach(t, direct, addr)
	var all sync.WaitGroup
	for i := range 8 {
		body := bytes.Repeat([]byte(strconv.Itoa(i)), 4000)
		put := get([]string{fmt.Sprint("x", i)})
		put.code, put.payload, put.format = codes.PUT, body, Octets
		if a, err := direct.do(t.Context(), there, put); err != nil || !a.ok() {
			t.Fatalf("%d: put: %v, %v", i, a.code, err)
		}
		s := asking(t, &devicetest.Sink{})
		s.ackTimeout = quick
		p := reach(t, s, line.addr)
		all.Go(func() {
			if a, err := s.do(t.Context(), p, get([]string{fmt.Sprint("x", i)})); err != nil || !bytes.Equal(a.payload, body) {
				t.Errorf("%d: get: %v, %d bytes", i, err, len(a.payload))
			}
		})
	}
	all.Wait()
	line.check(t)
}

// On such a line an observed device is heard, in order and no report twice, and
// registered with again when its reports are lost.
func TestObserveOverABadLine(t *testing.T) {
	addr, _ := libcoapServer(t, 0, "-N")
	line := newBadLine(t, 3, addr)
	s := asking(t, &devicetest.Sink{})
	s.ackTimeout = quick
	heard, _, _ := watch(t, s, reach(t, s, line.addr), get(path("time"), "ticks"), 2*time.Second)
	last := uint64(0)
	for range 6 {
		v, err := strconv.ParseUint(string(next(t, heard).payload), 10, 64)
		if err != nil || v < last {
			t.Errorf("%d after %d, %v", v, last, err)
		}
		last = v
	}
}
