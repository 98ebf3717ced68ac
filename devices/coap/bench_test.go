package coap

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/udp"

	"github.com/porchlight-iot/porchlight/devices"
)

// A safe sink has all readings be safe at once, and counts them.
type safe struct{ readings atomic.Int64 }

var done = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (s *safe) Done() <-chan struct{} { return done }
func (s *safe) Err() error            { return nil }
func (s *safe) Report(_ context.Context, m devices.Message) (devices.Receipt, error) {
	s.readings.Add(int64(len(m.Readings)))
	return s, nil
}
func (s *safe) Availability(devices.ID, devices.Availability, bool) {}
func (s *safe) Unknown(devices.Stranger) bool                       { return false }
func (s *safe) Reject(string, error)                                {}
func (s *safe) Up(string)                                           {}

// benchServer runs a server with the device kitchen, which posts SenML.
func benchServer(b *testing.B, sink devices.Sink) net.Addr {
	b.Helper()
	kitchen := askedDevice("kitchen", "senml", "")
	kitchen.Profile = library(b).Get("senml")
	s := New(Config{Listen: "127.0.0.1:0"}, []Device{kitchen}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx, sink) }()
	b.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			b.Error(err)
		}
	})
	for s.Addr() == nil {
		time.Sleep(time.Millisecond)
	}
	return s.Addr()
}

// emptyGoCoAP runs go-coap's server with a handler that answers 2.04 and does
// nothing.
func emptyGoCoAP(b *testing.B) net.Addr {
	b.Helper()
	l, err := coapnet.NewListenUDP("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	router := mux.NewRouter()
	_ = router.Handle("/d/kitchen", mux.HandlerFunc(func(w mux.ResponseWriter, _ *mux.Message) {
		_ = w.SetResponse(codes.Changed, message.TextPlain, nil)
	}))
	server := udp.NewServer(options.WithMux(router), options.WithErrors(func(error) {}))
	over := make(chan struct{})
	go func() { defer close(over); _ = server.Serve(l) }()
	b.Cleanup(func() { server.Stop(); <-over; _ = l.Close() })
	return l.LocalAddr()
}

// A caller is a device that posts and waits for the answer.
type caller struct {
	conn *net.UDPConn
	mid  int32
	m    message.Message
	buf  [200]byte
}

func newCaller(b *testing.B, to net.Addr) *caller {
	b.Helper()
	conn, err := net.DialUDP("udp", nil, to.(*net.UDPAddr))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	q := get([]string{"d", "kitchen"})
	q.code, q.payload, q.format = codes.POST, []byte(temperature("21.5")), SenMLJSON
	return &caller{conn: conn, m: q.message()}
}

// post sends a confirmable POST, again after RFC 7252's 2 s, and reports how
// often it was sent.
func (c *caller) post(b *testing.B) (sent int) {
	c.mid++
	c.m.MessageID, c.m.Token = c.mid&0xffff, []byte{byte(c.mid), byte(c.mid >> 8)}
	d, err := encoded(c.m)
	if err != nil {
		b.Error(err)
		return 0
	}
	for sent = 1; sent <= maxRetransmit; sent++ {
		_, _ = c.conn.Write(d)
		_ = c.conn.SetReadDeadline(time.Now().Add(ackTimeout))
		for {
			n, err := c.conn.Read(c.buf[:])
			if err != nil {
				break
			}
			if n >= 4 && c.buf[1] == byte(codes.Changed) && c.buf[2] == d[2] && c.buf[3] == d[3] {
				return sent
			}
		}
	}
	b.Error("no answer")
	return sent
}

// BenchmarkPosts has 400 devices post, 8 at a time, as no device may post more
// than 100 times a second; and, in turns, to go-coap's own server with an empty
// handler, which decodes and keeps nothing.
func BenchmarkPosts(b *testing.B) {
	const devs, atATime, round = 400, 8, 2000
	ready := func(to net.Addr) (all []*caller) {
		for range devs {
			c := newCaller(b, to)
			c.post(b)
			all = append(all, c)
		}
		return all
	}
	var again atomic.Int64
	run := func(all []*caller) time.Duration {
		began := time.Now()
		var workers sync.WaitGroup
		for w := range atATime {
			workers.Go(func() {
				for i := w; i < round; i += atATime {
					again.Add(int64(all[i%devs].post(b) - 1))
				}
			})
		}
		workers.Wait()
		return time.Since(began)
	}
	sink := &safe{}
	ours, theirs := ready(benchServer(b, sink)), ready(emptyGoCoAP(b))
	var own, other time.Duration
	rounds := 0
	for b.Loop() {
		own += run(ours)
		other += run(theirs)
		rounds++
	}
	posts := float64(rounds * round)
	b.ReportMetric(posts/own.Seconds(), "posts/s")
	b.ReportMetric(posts/other.Seconds(), "go-coap-posts/s")
	b.ReportMetric(other.Seconds()/own.Seconds(), "times-go-coap")
	b.ReportMetric(float64(again.Load()), "again")
	if n := sink.readings.Load(); n != int64(rounds*round+devs) {
		b.Errorf("%d posts are %d readings", rounds*round+devs, n)
	}
}

// BenchmarkMemoryOfPeers tells what one of 10,000 peers costs that have each
// posted a reading.
func BenchmarkMemoryOfPeers(b *testing.B) {
	const peers = 10000
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) + float64(m.StackInuse)
	}
	for b.Loop() {
		s := quiet(b, &safe{})
		s.strangers.rate, s.strangers.burst = 1e9, 1e9
		s.startWorkers()
		before := heap()
		for i := range peers {
			s.datagram(endpoint(i), nil, datagram(b, 1, "d", "kitchen"))
			if i%1000 == 999 {
				waitFor(b, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.open == 0 })
			}
		}
		b.ReportMetric((heap()-before)/peers, "B/peer")
		s.mu.Lock()
		if len(s.peers) != peers {
			b.Errorf("%d peers", len(s.peers))
		}
		s.mu.Unlock()
	}
}

// BenchmarkInnocentPeer measures how long a device waits for its answer, alone,
// and while another floods with 20,000 datagrams a second, 200 times of what is
// taken from one.
func BenchmarkInnocentPeer(b *testing.B) {
	const posts = 200 // its burst
	p99 := func(b *testing.B, to net.Addr) (time.Duration, int) {
		c := newCaller(b, to)
		var all []time.Duration
		again := 0
		for range posts {
			began := time.Now()
			again += c.post(b) - 1
			all = append(all, time.Since(began))
			time.Sleep(2 * time.Millisecond)
		}
		slices.Sort(all)
		return all[posts*99/100], again
	}
	for b.Loop() {
		to := benchServer(b, &safe{})
		alone, _ := p99(b, to)
		flooder := newCaller(b, to)
		stop, over := make(chan struct{}), make(chan struct{})
		var sent atomic.Int64
		go func() {
			defer close(over)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				for range 20 {
					flooder.mid++
					flooder.m.MessageID = flooder.mid & 0xffff
					if d, err := encoded(flooder.m); err == nil {
						_, _ = flooder.conn.Write(d)
						sent.Add(1)
					}
				}
			}
		}()
		began := time.Now()
		flooded, again := p99(b, to)
		b.ReportMetric(float64(sent.Load())/time.Since(began).Seconds(), "flood/s")
		close(stop)
		<-over
		b.ReportMetric(float64(alone.Microseconds()), "alone-p99-µs")
		b.ReportMetric(float64(flooded.Microseconds()), "flooded-p99-µs")
		b.ReportMetric(float64(again), "again")
	}
}
