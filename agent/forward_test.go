package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// service is a publisher that a test can make fail.
type service struct {
	mu    sync.Mutex
	fail  func(node string) error
	log   []string // items that it accepted, in order
	nows  map[devices.ID][]time.Time
	under map[devices.ID]int
	worst int // most publications under way in one node
}

func (s *service) PublishLog(ctx context.Context, device devices.ID, item string, payload []byte) error {
	s.mu.Lock()
	s.under[device]++
	s.worst = max(s.worst, s.under[device])
	s.mu.Unlock()
	time.Sleep(100 * time.Millisecond) // virtual: the way to the server and back
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under[device]--
	if s.fail != nil {
		if err := s.fail("log"); err != nil {
			return err
		}
	}
	s.log = append(s.log, fmt.Sprintf("%s %s", device, payload))
	return nil
}

func (s *service) PublishNow(ctx context.Context, device devices.ID, values []bridge.NowValue) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail("now"); err != nil {
			return err
		}
	}
	s.nows[device] = append(s.nows[device], time.Now())
	return nil
}

func (s *service) ReadLog(context.Context, devices.ID, int) ([]bridge.LogItem, error) {
	return nil, nil
}

func (s *service) PublishEvent(ctx context.Context, e bridge.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, "event "+e.Title)
	return nil
}

func (s *service) accepted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

// A shapedService is a publisher behind a slow link, which takes one after the
// other.
type shapedService struct {
	mu   sync.Mutex
	link slowLink
	log  int // readings that it accepted
	nows map[devices.ID]func()
}

func (s *shapedService) ReadLog(context.Context, devices.ID, int) ([]bridge.LogItem, error) {
	return nil, nil
}

func (s *shapedService) take(bytes int) {
	s.mu.Lock()
	wait := time.Until(s.link.send(bytes, time.Now()))
	s.mu.Unlock()
	time.Sleep(wait)
}

func (s *shapedService) PublishLog(_ context.Context, _ devices.ID, item string, payload []byte) error {
	s.take(bridge.LogSize(payload))
	_, first, last, err := bridge.ParseItem(item)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log += int(last - first + 1)
	return err
}

func (s *shapedService) PublishNow(_ context.Context, device devices.ID, values []bridge.NowValue) error {
	s.mu.Lock()
	seen := s.nows[device]
	delete(s.nows, device)
	s.mu.Unlock()
	s.take(900)
	if seen != nil {
		seen()
	}
	return nil
}

func (s *shapedService) PublishEvent(context.Context, bridge.Event) error { return nil }

// encodeLong takes 40 bytes a reading.
func encodeLong(_ devices.ID, _ time.Time, rs []devices.Record, room int) ([]byte, int) {
	n := min(len(rs), 100)
	if room > 0 {
		n = max(1, min(n, (room-bridge.LogSize(nil))*3/4/40))
	}
	return make([]byte, 40*n), n
}

// startShapedForwarding has an outbox, a house of so many devices and a
// forwarder on a link as ejabberd gives it to an account, which is idle.
func startShapedForwarding(t *testing.T, ids int) (*shapedService, *intake) {
	t.Helper()
	o, err := outbox.Open(filepath.Join(t.TempDir(), "o.db"), outbox.Options{Encode: encodeLong})
	if err != nil {
		t.Fatal(err)
	}
	s := &shapedService{link: slowLink{rate: 3000, burst: 20_000, way: 10 * time.Millisecond, credit: 20_000, free: time.Now()}, nows: make(map[devices.ID]func())}
	var f *forwarder
	h := newHouse(func(d devices.ID) { f.touch(d) })
	var ds []devices.Device
	for i := range ids {
		ds = append(ds, devices.Device{ID: numbered(i)})
	}
	h.furnish(ds, o.State)
	log := slog.New(slog.DiscardHandler)
	timing := knownTime(t)
	f = newForwarder(o, h, timing.clock, s, limits{8, leastWindow}, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.run(ctx)
	}()
	f.online(true)
	t.Cleanup(func() {
		cancel()
		<-done
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, &intake{outbox: o, house: h, orders: &orders{house: h}, timing: timing, log: log}
}

func numbered(i int) devices.ID { return devices.ID(fmt.Sprintf("d%d", i)) }

func one(device devices.ID) devices.Message {
	return devices.Message{Readings: []devices.Reading{{Device: device, Time: time.Now(), Fields: []devices.Field{{Name: "n", Value: devices.Number(1)}}}}}
}

// TestNowBehindShaper drains a backlog behind a shaper while ten devices
// change every ten seconds.
func TestNowBehindShaper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ids, backlog = 10, 5000
		s, in := startShapedForwarding(t, ids)
		for i := range backlog {
			if _, _, err := in.outbox.Append(one(numbered(i % ids))); err != nil {
				t.Fatal(err)
			}
		}
		var worst time.Duration
		var all sync.WaitGroup
		random := rand.New(rand.NewPCG(1, 2))
		for d := range ids {
			begins := time.Duration(random.Int64N(int64(10 * time.Second)))
			all.Go(func() {
				time.Sleep(begins)
				for range 15 {
					said := time.Now()
					s.mu.Lock()
					s.nows[numbered(d)] = func() {
						s.mu.Lock()
						defer s.mu.Unlock()
						worst = max(worst, time.Since(said))
					}
					s.mu.Unlock()
					if _, err := in.Report(context.Background(), one(numbered(d))); err != nil {
						t.Error(err)
					}
					time.Sleep(10 * time.Second)
				}
			})
		}
		all.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if worst > 2*time.Second || worst == 0 {
			t.Errorf("`now` was %v behind", worst)
		}
		// 160 s at 3 kB/s, of which `now` takes 900 B/s. A reading has 54
		// bytes, and its share of the envelope about as many.
		if s.log < 2500 {
			t.Errorf("%d readings drained in 160 s", s.log)
		}
	})
}

// TestNowDoesNotStarveLog: more devices change than the link can tell, and the
// log goes on all the same.
func TestNowDoesNotStarveLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ids = 100
		s, in := startShapedForwarding(t, ids)
		for range 300 {
			for d := range ids {
				if _, err := in.Report(context.Background(), one(numbered(d))); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.log < 700 {
			t.Errorf("%d readings of 30,000 arrived in 300 s", s.log)
		}
	})
}

type forwarding struct {
	*service
	house   *house
	intake  *intake
	forward *forwarder
	outbox  *outbox.Outbox
}

// startForwarding puts an outbox, a house and a forwarder together, inside a
// synctest bubble.
func startForwarding(t *testing.T) *forwarding {
	t.Helper()
	o, err := outbox.Open(filepath.Join(t.TempDir(), "o.db"), outbox.Options{
		MaxBytes: 1 << 20,
		LossNote: lossNote,
		Encode: func(_ devices.ID, _ time.Time, rs []devices.Record, _ int) ([]byte, int) {
			return fmt.Appendf(nil, "%d-%d", rs[0].Seq, rs[len(rs)-1].Seq), len(rs)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	f := &forwarding{service: &service{nows: map[devices.ID][]time.Time{}, under: map[devices.ID]int{}}, outbox: o}
	f.house = newHouse(func(d devices.ID) { f.forward.touch(d) })
	f.house.furnish([]devices.Device{{ID: "a"}, {ID: "b"}}, o.State)
	timing := knownTime(t)
	f.forward = newForwarder(o, f.house, timing.clock, f.service, limits{4, 1 << 10}, log)
	f.intake = &intake{outbox: o, house: f.house, orders: &orders{house: f.house}, timing: timing, log: log}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.forward.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *forwarding) report(t *testing.T, device devices.ID) devices.Receipt {
	t.Helper()
	r, err := f.intake.Report(t.Context(), devices.Message{Readings: []devices.Reading{
		{Device: device, Fields: []devices.Field{{Name: "n", Value: devices.Number(1)}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPacksGrowByThemselves sends what gathered while the last publication was
// under way as one item, and never two at a time into one node.
func TestPacksGrowByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startForwarding(t)
		f.forward.online(true)
		for range 50 {
			f.report(t, "a")
			time.Sleep(10 * time.Millisecond) // virtual
		}
		time.Sleep(time.Second)
		items := f.accepted()
		if len(items) < 4 || len(items) > 12 || items[0] != "a 1-1" {
			t.Errorf("50 readings in half a second, 100 ms an answer, went out as %v", items)
		}
		if f.worst != 1 {
			t.Errorf("%d publications were under way in one node", f.worst)
		}
		if n := len(f.nows["a"]); n < 1 || n > 3 {
			t.Errorf("`now` was written %d times in 1.5 s", n)
		}
	})
}

// TestOutage keeps everything while there is no session, and sends it in order
// and `now` once when there is one again.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startForwarding(t)
		var last devices.Receipt
		for range 100 {
			last = f.report(t, "a")
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		select {
		case <-last.Done():
		default:
			t.Error("not acknowledged, though the disk has it")
		}
		if len(f.accepted()) != 0 {
			t.Error("sent without a session")
		}
		f.forward.online(true)
		time.Sleep(time.Minute)
		next := 1
		for _, item := range f.accepted() {
			var first, end int
			if _, err := fmt.Sscanf(item, "a %d-%d", &first, &end); err != nil || first != next {
				t.Fatalf("item %q comes where %d was to come", item, next)
			}
			next = end + 1
		}
		if next != 101 {
			t.Errorf("%d readings of 100 arrived", next-1)
		}
		if len(f.nows["a"]) != 1 {
			t.Errorf("`now` was written %d times after the outage", len(f.nows["a"]))
		}
	})
}

// TestTransientFaultIsRetried gets the same bytes through in the end.
func TestTransientFaultIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startForwarding(t)
		left := 3
		f.fail = func(string) error {
			if left--; left >= 0 {
				return errors.New("the server is tired")
			}
			return nil
		}
		f.forward.online(true)
		f.report(t, "a")
		time.Sleep(5 * time.Minute)
		if items := f.accepted(); len(items) != 1 || items[0] != "a 1-1" {
			t.Errorf("arrived: %v", items)
		}
	})
}

// TestBusyServer refuses three of ten publications for the moment, as a server
// does whose limits are reached. All arrives, in order, once.
func TestBusyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startForwarding(t)
		random := rand.New(rand.NewPCG(1, 2))
		refused := 0
		f.fail = func(string) error {
			if random.IntN(10) < 3 {
				refused++
				return errors.New("resource-constraint")
			}
			return nil
		}
		f.forward.online(true)
		const n = 500
		for range n {
			f.report(t, "a")
			f.report(t, "b")
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Minute)
		next := map[string]int{"a": 1, "b": 1}
		for _, item := range f.accepted() {
			var device string
			var first, last int
			if _, err := fmt.Sscanf(strings.Replace(item, "-", " ", 1), "%s %d %d", &device, &first, &last); err != nil || first != next[device] {
				t.Fatalf("%q comes where %d was to come", item, next[device])
			}
			next[device] = last + 1
		}
		if next["a"] != n+1 || next["b"] != n+1 || refused < 100 {
			t.Errorf("%v of %d arrived, %d publications were refused", next, n, refused)
		}
	})
}

func TestUnknownDeviceIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startForwarding(t)
		_, err := f.intake.Report(t.Context(), devices.Message{Readings: []devices.Reading{{Device: "stranger"}}})
		if !errors.Is(err, errUnknownDevice) {
			t.Errorf("%v", err)
		}
	})
}
