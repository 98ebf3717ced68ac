package agent

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge/watch"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/mqtt"
)

// shaperRate is what ejabberd takes a second from a client, as it is shipped.
const shaperRate = 3000

// startShaped runs a gateway with so many devices on an account of an ejabberd
// with the shaper that it is shipped with, until all nodes are made and
// published to. sent counts what it sends, encrypted.
func startShaped(b *testing.B, ids int) (a *Agent, server *xmppserver.Server, sent *atomic.Int64) {
	b.Helper()
	server, err := xmppserver.Start(b.Context(), xmppserver.Ejabberd, xmppserver.Options{
		Dir: b.TempDir(), Shaper: true, MaxItems: 100_000,
		Users: map[string]string{"anna": "password", "gateway": "secret"},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Stop() })
	addr, sent := count(b, server.C2S())
	dir := b.TempDir()
	path := filepath.Join(dir, "porchlight.yaml")
	text := fmt.Sprintf("gateway: {id: porch, data_dir: %s}\nxmpp:\n  account: {jid: gateway@localhost, password_file: secret, server: %q, tls: {ca_file: %q}}\n  pubsub: %s\noperators:\n  - {jid: anna@localhost, role: owner}\noutbox: {ack: server}\nmqtt: {listen: \"127.0.0.1:0\"}\n%s",
		filepath.Join(dir, "data"), addr, server.CAFile(), server.PubSub(), valueDevices(ids))
	for name, content := range map[string]string{"secret": "secret", "porchlight.yaml": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	options, err := LoadOptions()
	if err != nil {
		b.Fatal(err)
	}
	c, faults := config.Load(path, options)
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	if a, err = New(c, quiet()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	for d := range ids {
		a.say(b, d, 0)
	}
	a.settle(b, uint64(ids), 5*time.Minute)
	return a, server, sent
}

// say has a device report a value.
func (a *Agent) say(b *testing.B, device int, value float64) {
	b.Helper()
	m := devices.Message{Readings: []devices.Reading{{Device: devices.ID(fmt.Sprintf("d%d", device)), Fields: []devices.Field{
		{Name: "temperature", Value: devices.Number(value), Unit: "°C"},
	}}}}
	if _, err := a.intake.Report(b.Context(), m); err != nil {
		b.Fatal(err)
	}
}

// pile makes a backlog, of which the now nodes show nothing.
func (a *Agent) pile(b *testing.B, ids, n int) {
	b.Helper()
	began := time.Now().Add(-time.Duration(n) * time.Second)
	for i := range n {
		r := devices.Reading{Device: devices.ID(fmt.Sprintf("d%d", i%ids)), Time: began.Add(time.Duration(i) * time.Second), Fields: []devices.Field{
			{Name: "temperature", Value: devices.Number(20 + float64(i/ids%100)/10), Unit: "°C"},
		}}
		if _, _, err := a.outbox.Append(devices.Message{Readings: []devices.Reading{r}}); err != nil {
			b.Fatal(err)
		}
	}
}

// settle waits until at least n readings are accepted and none waits.
func (a *Agent) settle(b *testing.B, n uint64, patience time.Duration) {
	b.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if s := a.Stats(); s.Outbox.Settled >= n && s.Waiting == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("the backlog does not drain: %+v", a.Stats())
		}
	}
}

// A change is what a device said once.
type change struct {
	device devices.ID
	value  int64
}

// changes are what devices said, and how long the operator then waited for the
// event of their now node.
type changes struct {
	agent *Agent
	ids   int
	round int64

	mu     sync.Mutex
	said   map[change]time.Time // not seen yet
	delays []time.Duration
	unseen int // newer ones came in their place
}

// watchChanges begins with the operator's login and fetching, which the shaper
// holds up as well, behind it.
func watchChanges(b *testing.B, a *Agent, server *xmppserver.Server, ids int) *changes {
	b.Helper()
	c := &changes{agent: a, ids: ids, round: 1000, said: make(map[change]time.Time)}
	var nodes []string
	for d := range ids {
		nodes = append(nodes, fmt.Sprintf("porch/d%d/now", d))
	}
	watchBench(b, server, nodes, c.see)
	for quick := 0; quick < 10; {
		c.say(b, int(c.round)%ids)
		delays := c.take(b)
		if quick++; delays[0] > 200*time.Millisecond {
			quick = 0
		}
		time.Sleep(nowEvery) // more often it would not be written
	}
	return c
}

func (c *changes) see(r watch.Reading) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, _ := r.Fields[0].Value.Int()
	for said, at := range c.said {
		switch {
		case said.device != r.Device || said.value > v:
			continue
		case said.value < v:
			c.unseen++
		}
		delete(c.said, said)
		c.delays = append(c.delays, time.Since(at))
	}
}

func (c *changes) say(b *testing.B, device int) {
	b.Helper()
	c.round++
	c.mu.Lock()
	c.said[change{devices.ID(fmt.Sprintf("d%d", device)), c.round}] = time.Now()
	c.mu.Unlock()
	c.agent.say(b, device, float64(c.round))
}

// every10 has each device change every ten seconds, at moments of its own.
func (c *changes) every10(b *testing.B, while func(time.Duration) bool) {
	b.Helper()
	const every = 10 * time.Second
	random := rand.New(rand.NewPCG(1, 2))
	began := time.Now()
	next := make([]time.Duration, c.ids)
	for d := range next {
		next[d] = time.Duration(random.Int64N(int64(every)))
	}
	for while(time.Since(began)) {
		first := 0
		for d := range next {
			if next[d] < next[first] {
				first = d
			}
		}
		time.Sleep(time.Until(began.Add(next[first])))
		next[first] += every
		c.say(b, first)
	}
}

// take gives the delays since the last time, once all was seen.
func (c *changes) take(b *testing.B) []time.Duration {
	b.Helper()
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		c.mu.Lock()
		if len(c.said) == 0 {
			delays := c.delays
			c.delays = nil
			c.mu.Unlock()
			return delays
		}
		c.mu.Unlock()
	}
	b.Fatalf("the operator did not see %v", c.said)
	return nil
}

// BenchmarkNowBehindShaper measures the delay from a change to the operator's
// event of the now node, of ten devices that change every ten seconds, behind
// ejabberd's shaper: with nothing else to be sent, and while a backlog drains.
func BenchmarkNowBehindShaper(b *testing.B) {
	const ids, backlog = 10, 5000
	a, server, _ := startShaped(b, ids)
	c := watchChanges(b, a, server, ids)
	c.every10(b, func(t time.Duration) bool { return t < 20*time.Second })
	alone := c.take(b)
	before := a.Stats().Outbox.Settled
	a.pile(b, ids, backlog)
	began := time.Now()
	c.every10(b, func(time.Duration) bool { return a.Stats().Waiting > 50 })
	took := time.Since(began)
	busy := c.take(b)
	for _, q := range []int{50, 99, 100} {
		fmt.Printf("now behind a shaper: p%d %.0f ms while a backlog drains (aim 2000), %.0f ms without\n", q, ms(quantile(busy, q)), ms(quantile(alone, q)))
	}
	fmt.Printf("now behind a shaper: %d changes, %d of them not seen because a newer one came; %.0f readings/s drained beside them\n", len(busy), c.unseen, float64(a.Stats().Outbox.Settled-before)/took.Seconds())
}

// BenchmarkDrainShaped measures how fast a backlog drains behind ejabberd's
// shaper, and how much of what the shaper lets pass is used for it.
func BenchmarkDrainShaped(b *testing.B) {
	const ids, backlog = 10, 3000
	a, _, sent := startShaped(b, ids)
	// What the shaper allows at once is not what it allows.
	a.pile(b, ids, backlog/3)
	a.settle(b, ids+backlog/3, 10*time.Minute)
	before := sent.Load()
	a.pile(b, ids, backlog)
	began := time.Now()
	a.settle(b, ids+backlog/3+backlog, 10*time.Minute)
	took := time.Since(began).Seconds()
	bytes := float64(sent.Load() - before)
	fmt.Printf("drain behind a shaper: %.0f readings/s, %.0f bytes each; %.0f bytes/s are sent of %d: ratio %.2f (aim 0.8)\n",
		backlog/took, bytes/backlog, bytes/took, shaperRate, bytes/took/shaperRate)
}

// count passes connections on to an address, and counts what is sent there.
func count(b *testing.B, to string) (addr string, sent *atomic.Int64) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	sent = new(atomic.Int64)
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				continue
			}
			go func() {
				defer from.Close()
				io.Copy(from, server)
			}()
			go func() {
				defer server.Close()
				// Small, so that it keeps little that the server does not take.
				for piece := make([]byte, 1024); ; {
					n, err := from.Read(piece)
					if err != nil {
						return
					}
					if _, err := server.Write(piece[:n]); err != nil {
						return
					}
					sent.Add(int64(n))
				}
			}()
		}
	}()
	return l.Addr().String(), sent
}

// BenchmarkFlood has one device send 5,000 readings a second by MQTT with
// QoS 1, and measures how long the readings of others then take to the
// operator, against how long they take without it.
func BenchmarkFlood(b *testing.B) {
	const ids, rate, lasts = 10, 5000, 20 * time.Second
	server := benchServer(b)
	a, broker := startBench(b, server, ids)
	var mu sync.Mutex
	said := make(map[change]time.Time)
	var delays []time.Duration
	var nodes []string
	for d := 1; d < ids; d++ {
		nodes = append(nodes, fmt.Sprintf("porch/d%d/log", d))
	}
	flood(b, broker, ids, 1) // makes the nodes
	watchBench(b, server, nodes, func(r watch.Reading) {
		mu.Lock()
		defer mu.Unlock()
		v, _ := r.Fields[0].Value.Int()
		if at, ok := said[change{r.Device, v}]; ok {
			delete(said, change{r.Device, v})
			delays = append(delays, time.Since(at))
		}
	})
	// ordinary has nine devices send fifty readings a second between them: of
	// fewer, the 99th percentile would be one or two.
	ordinary := func() []time.Duration {
		others := make([]*mqtt.Publisher, ids)
		for d := range others {
			others[d] = mqtt.NewPublisher("mqtt://"+broker, fmt.Sprintf("other-%d", d))
			defer others[d].Close()
			if err := others[d].Connect(b.Context()); err != nil { // which is no part of the delay
				b.Fatal(err)
			}
		}
		began := time.Now()
		for i := int64(1); time.Since(began) < lasts; i++ {
			d := 1 + int(i)%(ids-1)
			value := began.UnixMilli()%1e9*1000 + i
			mu.Lock()
			said[change{devices.ID(fmt.Sprintf("d%d", d)), value}] = time.Now()
			mu.Unlock()
			if err := others[d].Publish(b.Context(), fmt.Sprintf("d%d", d), fmt.Append(nil, value)); err != nil {
				b.Fatal(err)
			}
			time.Sleep(time.Until(began.Add(time.Duration(i) * 20 * time.Millisecond)))
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			left := len(said)
			if left == 0 {
				defer mu.Unlock()
				taken := delays
				delays = nil
				return taken
			}
			mu.Unlock()
			if time.Now().After(deadline) {
				b.Fatalf("%d readings of the others did not come", left)
			}
		}
	}
	alone := ordinary()

	ctx, cancel := context.WithCancel(b.Context())
	var flooding sync.WaitGroup
	var flooded atomic.Int64
	p := mqtt.NewPublisher("mqtt://"+broker, "flood")
	defer p.Close()
	began := time.Now()
	const under = 64 // which a broker lets one client have
	for w := range under {
		flooding.Go(func() {
			for i := w; ctx.Err() == nil; i += under {
				time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / rate)))
				if p.Publish(ctx, "d0", fmt.Append(nil, i)) == nil {
					flooded.Add(1)
				}
			}
		})
	}
	beside := ordinary()
	cancel()
	flooding.Wait()
	reached := float64(flooded.Load()) / time.Since(began).Seconds()
	for _, q := range []int{50, 99} {
		o, s := quantile(beside, q), quantile(alone, q)
		fmt.Printf("flood: p%d of the others %.2f ms beside a device that gets %.0f readings/s acknowledged, %.2f ms alone: ratio %.1f (aim 2)\n", q, ms(o), reached, ms(s), float64(o)/float64(s))
	}
	fmt.Printf("flood: %d readings lost, %d inputs refused\n", a.Stats().Outbox.Lost, a.Stats().Rejected)
}
