package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/watch"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/mqtt"
)

// The benchmarks compare the gateway with something simpler on the same
// server in the same run, because a machine's own speed says little. Run them
// with `make bench`.

const benchDomain = "porch.localhost"

func benchServer(b *testing.B) *xmppserver.Server {
	b.Helper()
	server, err := xmppserver.Start(b.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: b.TempDir(), Component: benchDomain, Secret: "secret", Storage: "memory",
		Users: map[string]string{"anna": "password"}, MaxItems: 10_000,
		NodeCreators: []string{"gateway@" + benchDomain, benchDomain},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Stop() })
	return server
}

// benchConfig writes a config and reads it back.
func benchConfig(b *testing.B, server *xmppserver.Server, more string) *config.Config {
	b.Helper()
	dir := b.TempDir()
	path := writeBenchConfig(b, dir, server, more)
	options, err := LoadOptions()
	if err != nil {
		b.Fatal(err)
	}
	c, faults := config.Load(path, options)
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	return c
}

func writeBenchConfig(b *testing.B, dir string, server *xmppserver.Server, more string) (path string) {
	b.Helper()
	path = filepath.Join(dir, "porchlight.yaml")
	text := fmt.Sprintf("gateway: {id: porch, data_dir: %s}\nxmpp:\n  component: {domain: %s, server: %q, secret_file: secret}\n  pubsub: %s\noperators:\n  - {jid: anna@localhost, role: owner}\noutbox: {ack: server}\n%s",
		filepath.Join(dir, "data"), benchDomain, server.ComponentAddr(), server.PubSub(), more)
	for name, content := range map[string]string{"secret": "secret", "porchlight.yaml": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return path
}

func valueDevices(n int) string {
	var s strings.Builder
	s.WriteString("devices:\n")
	for i := range n {
		fmt.Fprintf(&s, "  - {id: d%d, profile: value, mqtt: {topic: d%d}}\n", i, i)
	}
	return s.String()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// BenchmarkDrain has 200,000 readings of 20 devices wait in the outbox, and
// measures how fast they reach the server, against pre-built packs and
// pre-built single readings on a raw socket.
func BenchmarkDrain(b *testing.B) {
	const readings, ids = 200_000, 20
	server := benchServer(b)
	c := benchConfig(b, server, "mqtt: {listen: \"127.0.0.1:0\"}\n"+valueDevices(ids))
	a, err := New(c, quiet())
	if err != nil {
		b.Fatal(err)
	}
	for i := range readings {
		r := devices.Reading{Device: devices.ID(fmt.Sprintf("d%d", i%ids)), Fields: []devices.Field{
			{Name: "temperature", Value: devices.Number(20 + float64(i%100)/10), Unit: "°C"},
		}}
		for {
			if _, err := a.intake.Report(b.Context(), devices.Message{Readings: []devices.Reading{r}}); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- a.Run(ctx) }()
	for a.Stats().Outbox.Settled < readings {
		time.Sleep(5 * time.Millisecond)
	}
	ours := float64(readings) / time.Since(began).Seconds()
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}

	raw := dialRaw(b, server)
	packs := float64(readings) / raw.publish(b, "packs", prebuilt(b, a.bridge, readings, ids, 0), 64).Seconds()
	const singles = 5_000
	single := float64(singles) / raw.publish(b, "single", prebuilt(b, a.bridge, singles, ids, 1), 64).Seconds()
	fmt.Printf("drain: %.0f readings/s, pre-built packs on the raw socket %.0f: ratio %.2f (aim 0.25)\n", ours, packs, ours/packs)
	fmt.Printf("drain: %.0f readings/s, one reading an item on the raw socket %.0f: ratio %.1f (aim 20)\n", ours, single, ours/single)
}

// prebuilt makes the items of a drain: packs as the gateway makes them, or of
// at most limit readings.
func prebuilt(b *testing.B, x *bridge.Bridge, readings, ids, limit int) []item {
	b.Helper()
	var items []item
	now := time.Now().Truncate(time.Microsecond)
	for d := range ids {
		id := devices.ID(fmt.Sprintf("d%d", d))
		var rs []devices.Record
		for i := range readings / ids {
			r := devices.Record{Seq: uint64(i + 1)}
			r.Device, r.Time = id, now.Add(time.Duration(i)*time.Millisecond)
			r.Fields = []devices.Field{{Name: "temperature", Value: devices.Number(20 + float64(i%100)/10), Unit: "°C"}}
			rs = append(rs, r)
		}
		for len(rs) > 0 {
			offered := rs[:min(len(rs), 2000)]
			if limit > 0 {
				offered = rs[:limit]
			}
			payload, n := x.EncodeLog(id, now, offered, 0)
			wrapped, err := bridge.WrapLog(payload)
			if err != nil {
				b.Fatal(err)
			}
			items = append(items, item{string(id), bridge.ItemID("raw.1", rs[0].Seq, rs[n-1].Seq), wrapped})
			rs = rs[n:]
		}
	}
	return items
}

type item struct {
	device, id string
	payload    []byte
}

// A raw is a component connection without any library.
type raw struct {
	conn net.Conn
	in   *bufio.Reader
	to   string
}

func dialRaw(b *testing.B, server *xmppserver.Server) *raw {
	b.Helper()
	conn, err := net.Dial("tcp", server.ComponentAddr())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	r := &raw{conn, bufio.NewReaderSize(conn, 1<<16), server.PubSub()}
	fmt.Fprintf(conn, "<stream:stream xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams' to='%s'>", benchDomain)
	head := r.until(b, ">", "<stream:stream")
	_, id, _ := strings.Cut(head, "id='")
	if id == "" {
		_, id, _ = strings.Cut(head, `id="`)
	}
	id = id[:strings.IndexAny(id, `'"`)]
	sum := sha1.Sum([]byte(id + "secret"))
	fmt.Fprintf(conn, "<handshake>%s</handshake>", hex.EncodeToString(sum[:]))
	r.until(b, ">", "<handshake")
	return r
}

// until reads up to the end of a token that begins with start.
func (r *raw) until(b *testing.B, end, start string) string {
	b.Helper()
	r.conn.SetReadDeadline(time.Now().Add(time.Minute))
	var all strings.Builder
	for {
		part, err := r.in.ReadString(end[0])
		all.WriteString(part)
		if err != nil {
			b.Fatalf("raw socket: %v after %.300s", err, all.String())
		}
		if strings.Contains(part, start) {
			return part
		}
	}
}

// publish makes the nodes and sends all items.
func (r *raw) publish(b *testing.B, prefix string, items []item, window int) time.Duration {
	b.Helper()
	r.create(b, prefix, items)
	return r.send(b, prefix, items, window)
}

// create makes the nodes that items are for.
func (r *raw) create(b *testing.B, prefix string, items []item) {
	b.Helper()
	made := map[string]bool{}
	for _, i := range items {
		if !made[i.device] {
			made[i.device] = true
			fmt.Fprintf(r.conn, "<iq type='set' id='c-%s' from='gateway@%s' to='%s'><pubsub xmlns='http://jabber.org/protocol/pubsub'><create node='%s/%s'/></pubsub></iq>", i.device, benchDomain, r.to, prefix, i.device)
			r.answers(b, 1)
		}
	}
}

// send sends all items with so many under way, and gives how long it took
// until the last answer.
func (r *raw) send(b *testing.B, prefix string, items []item, window int) time.Duration {
	b.Helper()
	stanzas := make([][]byte, len(items))
	for n, i := range items {
		stanzas[n] = fmt.Appendf(nil, "<iq type='set' id='p%d' from='gateway@%s' to='%s'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='%s/%s'><item id='%s'>%s</item></publish></pubsub></iq>",
			n, benchDomain, r.to, prefix, i.device, i.id, i.payload)
	}
	began := time.Now()
	slots := make(chan struct{}, window)
	go func() {
		for _, s := range stanzas {
			slots <- struct{}{}
			r.conn.Write(s)
		}
	}()
	for range stanzas {
		r.answers(b, 1)
		<-slots
	}
	return time.Since(began)
}

// answers reads so many IQ answers, and fails on an error.
func (r *raw) answers(b *testing.B, n int) {
	b.Helper()
	for range n {
		if tag := r.until(b, ">", "<iq"); strings.Contains(tag, "error") {
			b.Fatalf("the service refuses: %s", tag)
		}
	}
}

// operatorEyes count readings, and note when each came.
type operatorEyes struct {
	seen func(r watch.Reading)
	up   chan struct{}
	once sync.Once
}

func (e *operatorEyes) Reading(r watch.Reading) { e.seen(r) }
func (e *operatorEyes) Event(watch.Event)       {}
func (e *operatorEyes) Presence(watch.Presence) {}
func (e *operatorEyes) Link(up bool) {
	if up {
		e.once.Do(func() { close(e.up) })
	}
}

// watchBench subscribes to log or now nodes.
func watchBench(b *testing.B, server *xmppserver.Server, nodes []string, seen func(watch.Reading)) {
	b.Helper()
	settings, err := config.TLS{CAFile: server.CAFile()}.ClientConfig()
	if err != nil {
		b.Fatal(err)
	}
	w := watch.New(watch.Options{
		JID: "anna@localhost", Password: "password", Server: server.C2S(), CAs: settings.RootCAs,
		PubSub: server.PubSub(), Nodes: nodes, Now: seen, Log: quiet(),
	})
	eyes := &operatorEyes{seen: seen, up: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx, eyes)
	}()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	select {
	case <-eyes.up:
	case <-time.After(time.Minute):
		b.Fatal("the operator cannot log in")
	}
}

// startBench runs a gateway with devices on its own broker.
func startBench(b *testing.B, server *xmppserver.Server, n int) (a *Agent, broker string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	broker = l.Addr().String()
	l.Close()
	a, err = New(benchConfig(b, server, fmt.Sprintf("mqtt: {listen: %q}\n%s", broker, valueDevices(n))), quiet())
	if err != nil {
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
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", broker); err == nil {
			c.Close()
			if a.Stats().Online {
				return a, broker
			}
		}
		if time.Now().After(deadline) {
			b.Fatal("the gateway does not come up")
		}
	}
}

// flood sends n messages of each of so many devices by MQTT with QoS 1, up to
// 20 under way, and returns when all are acknowledged.
func flood(b *testing.B, broker string, ids, n int) {
	b.Helper()
	var all sync.WaitGroup
	for d := range ids {
		p := mqtt.NewPublisher("mqtt://"+broker, fmt.Sprintf("flood-%d", d))
		b.Cleanup(p.Close)
		for w := range 20 {
			all.Go(func() {
				for i := w; i < n; i += 20 {
					if err := p.Publish(b.Context(), fmt.Sprintf("d%d", d), fmt.Append(nil, i)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
}

// BenchmarkLive has ten devices send as fast as they are acknowledged, and
// measures how many readings a second the operator gets, against a bridge that
// publishes each by itself and waits for the answer as the gateway does.
func BenchmarkLive(b *testing.B) {
	const ids, each = 10, 4000
	server := benchServer(b)
	_, broker := startBench(b, server, ids)
	var mu sync.Mutex
	got := 0
	all := make(chan struct{})
	var nodes []string
	for i := range ids {
		nodes = append(nodes, fmt.Sprintf("porch/d%d/log", i))
	}
	flood(b, broker, ids, 1) // makes the nodes
	watchBench(b, server, nodes, func(watch.Reading) {
		mu.Lock()
		defer mu.Unlock()
		if got++; got == ids*(each+1) {
			close(all)
		}
	})
	began := time.Now()
	flood(b, broker, ids, each)
	select {
	case <-all:
	case <-time.After(2 * time.Minute):
		b.Fatalf("the operator got %d of %d", got, ids*(each+1))
	}
	ours := float64(ids*each) / time.Since(began).Seconds()

	simple := float64(ids*each/4) / naive(b, benchServer(b), ids, each/4).Seconds()
	fmt.Printf("live: %.0f readings/s to the operator, each published by itself %.0f: ratio %.1f (aim 5)\n", ours, simple, ours/simple)
}

// naive is a bridge as most are: for each message one publish, one under way a
// device.
//
// It has no MQTT side, which is in its favour.
func naive(b *testing.B, server *xmppserver.Server, ids, each int) time.Duration {
	b.Helper()
	var items []item
	for i := range each {
		for d := range ids {
			items = append(items, item{fmt.Sprintf("d%d/log", d), bridge.ItemID("naive.1", uint64(i+1), uint64(i+1)), fmt.Appendf(nil,
				"<fields xmlns='urn:xmpp:iot:sensordata' seqnr='%d' done='true'><node nodeId='d%d'><timestamp value='2026-11-23T08:00:00Z'><numeric name='value' momentary='true' automaticReadout='true' value='%d' unit=''/></timestamp></node></fields>", i, d, i)})
		}
	}
	r := dialRaw(b, server)
	r.create(b, "naive", items)
	var nodes []string
	for i := range ids {
		nodes = append(nodes, fmt.Sprintf("naive/d%d/log", i))
	}
	watchBench(b, server, nodes, func(watch.Reading) {})
	return r.send(b, "naive", items, ids)
}

// BenchmarkDelay sends ten readings a second, and measures the time from the
// MQTT publish to the operator's event, against the time that the server needs
// to answer a raw publish.
func BenchmarkDelay(b *testing.B) {
	const n = 200
	server := benchServer(b)
	// One after the other: a server has one connection for a component.
	r := dialRaw(b, server)
	r.publish(b, "raw", []item{{"d0", "warm", []byte("<n xmlns='n'>0</n>")}}, 1)
	var ours, plain []time.Duration
	for i := range n {
		began := time.Now()
		r.once(b, i)
		plain = append(plain, time.Since(began))
		time.Sleep(100 * time.Millisecond)
	}
	r.conn.Close()
	_, broker := startBench(b, server, 1)
	var mu sync.Mutex
	sent := make([]time.Time, n+1)
	p := mqtt.NewPublisher("mqtt://"+broker, "delay")
	b.Cleanup(p.Close)
	if err := p.Publish(b.Context(), "d0", []byte("0")); err != nil {
		b.Fatal(err)
	}
	watchBench(b, server, []string{"porch/d0/log"}, func(reading watch.Reading) {
		mu.Lock()
		defer mu.Unlock()
		if i, ok := reading.Fields[0].Value.Int(); ok && i > 0 && int(i) <= n {
			ours = append(ours, time.Since(sent[i]))
		}
	})
	for i := 1; i <= n; i++ {
		mu.Lock()
		sent[i] = time.Now()
		mu.Unlock()
		if err := p.Publish(b.Context(), "d0", fmt.Append(nil, i)); err != nil {
			b.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(2 * time.Second)
	mu.Lock()
	defer mu.Unlock()
	if len(ours) < n {
		b.Fatalf("the operator got %d of %d", len(ours), n)
	}
	for _, q := range []int{50, 99} {
		o, s := quantile(ours, q), quantile(plain, q)
		fmt.Printf("delay: p%d %.2f ms from MQTT publish to the operator, a raw publish is answered in %.2f ms: ratio %.1f\n", q, ms(o), ms(s), float64(o)/float64(s))
	}
}

func (r *raw) once(b *testing.B, i int) {
	b.Helper()
	fmt.Fprintf(r.conn, "<iq type='set' id='o%d' from='gateway@%s' to='%s'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='raw/d0'><item id='%d'><n xmlns='n'>%d</n></item></publish></pubsub></iq>", i, benchDomain, r.to, i, i)
	r.answers(b, 1)
}

func quantile(d []time.Duration, q int) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[min(len(sorted)-1, len(sorted)*q/100)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkRest measures the program as a process: its memory with few and
// with many devices, the time from its start until an operator has its first
// reading, and its size.
func BenchmarkRest(b *testing.B) {
	program := buildProgram(b)
	info, err := os.Stat(program)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("size: %.1f MB; `make package` tells that of the packages, which are compressed\n", float64(info.Size())/1e6)

	server := benchServer(b)
	few, ready, first := rest(b, server, program, 10)
	many, _, _ := rest(b, server, program, 1000)
	fmt.Printf("memory at rest: %.1f MB with 1,000 devices, %.1f MB with 10: ratio %.2f\n", many, few, many/few)
	began := time.Now()
	if err := exec.Command(program, "version").Run(); err != nil {
		b.Fatal(err)
	}
	alone := time.Since(began)
	fmt.Printf("start: %.0f ms until it is ready, %.0f ms to the operator's first reading, %.0f ms to tell the version: ratios %.1f, %.1f\n",
		ms(ready), ms(first), ms(alone), float64(ready)/float64(alone), float64(first)/float64(alone))
}

// BenchmarkEmulated measures the start of the boards' programs under qemu-user,
// against that of this machine's own. It says nothing of their memory: that of
// qemu is there too.
func BenchmarkEmulated(b *testing.B) {
	server := benchServer(b)
	_, ready, first := rest(b, server, buildProgram(b), 1)
	for _, board := range []struct{ name, qemu, arch string }{
		{"arm64", "qemu-aarch64-static", "GOARCH=arm64"},
		{"ARMv6", "qemu-arm-static", "GOARCH=arm"},
	} {
		qemu, err := exec.LookPath(board.qemu)
		if err != nil {
			fmt.Printf("start of %s: SKIPPED: there is no %s; `scripts/deps.sh package` installs it\n", board.name, board.qemu)
			continue
		}
		program := buildProgram(b, board.arch, "GOARM=6")
		// The kernel need not know of qemu.
		script := program + ".sh"
		if err := os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\nexec %s %s \"$@\"\n", qemu, program), 0o755); err != nil {
			b.Fatal(err)
		}
		_, r, f := rest(b, server, script, 1)
		fmt.Printf("start of %s under qemu: %.0f ms until it is ready, %.0f ms to the operator's first reading, natively %.0f, %.0f: ratios %.1f, %.1f\n",
			board.name, ms(r), ms(f), ms(ready), ms(first), float64(r)/float64(ready), float64(f)/float64(first))
	}
}

func buildProgram(b *testing.B, env ...string) (program string) {
	b.Helper()
	program = filepath.Join(b.TempDir(), "porchlight")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "../cmd/porchlight")
	build.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return program
}

// BenchmarkStart measures the time from the start to the first reading at the
// operator with a store of 256 MiB that is full, against an empty one. Before,
// the system is asked to forget what it keeps of the file in memory.
func BenchmarkStart(b *testing.B) {
	const ids = 20
	program := buildProgram(b)
	server := benchServer(b)
	first := func(full bool) time.Duration {
		dir := b.TempDir()
		path := writeBenchConfig(b, dir, server, "mqtt: {listen: \"127.0.0.1:0\"}\n"+valueDevices(ids))
		store := filepath.Join(dir, "data", outboxFile)
		if full {
			fillStore(b, path, ids)
			f, err := os.Open(store)
			if err != nil {
				b.Fatal(err)
			}
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		got := make(chan struct{}, 1)
		seen := func(r watch.Reading) {
			if full == (r.Device != devices.Gateway) {
				select {
				case got <- struct{}{}:
				default:
				}
			}
		}
		nodes := []string{"porch/gateway/log"}
		if full {
			nodes = nil
			for i := range ids {
				nodes = append(nodes, fmt.Sprintf("porch/d%d/log", i))
			}
		}
		watchBench(b, server, nodes, seen)
		select { // what an earlier run left
		case <-got:
		case <-time.After(time.Second):
		}
		gateway := exec.Command(program, "run", "-c", path)
		began := time.Now()
		if err := gateway.Start(); err != nil {
			b.Fatal(err)
		}
		defer func() {
			gateway.Process.Kill()
			gateway.Wait()
		}()
		select {
		case <-got:
		case <-time.After(5 * time.Minute):
			b.Fatal("the gateway does not publish")
		}
		return time.Since(began)
	}
	empty := first(false)
	full := first(true)
	fmt.Printf("start: %.1f s to the operator's first reading with a store of 256 MiB that is full, %.1f s with an empty one: ratio %.0f\n", full.Seconds(), empty.Seconds(), full.Seconds()/empty.Seconds())
}

// fillStore fills the store of a config, with readings of 200 bytes: of ordinary
// ones there would be 25 million.
func fillStore(b *testing.B, path string, ids int) {
	b.Helper()
	options, err := LoadOptions()
	if err != nil {
		b.Fatal(err)
	}
	c, faults := config.Load(path, options)
	if len(faults) > 0 {
		b.Fatal(faults)
	}
	a, err := New(c, quiet())
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for ; a.outbox.Stats().Lost == 0; n += 10_000 {
		for a.outbox.Stats().Memory > 10_000 { // the committer is behind
			time.Sleep(10 * time.Millisecond)
		}
		for i := range 10_000 {
			r := devices.Reading{Device: devices.ID(fmt.Sprintf("d%d", i%ids)), Time: time.Now(), Fields: []devices.Field{
				{Name: "note", Value: devices.Text(rand.Text() + rand.Text() + rand.Text() + rand.Text() + rand.Text() + rand.Text() + rand.Text() + rand.Text())},
			}}
			if _, _, err := a.outbox.Append(devices.Message{Readings: []devices.Reading{r}}); err != nil {
				b.Fatal(err)
			}
		}
	}
	s := a.outbox.Stats()
	if err := a.outbox.Close(); err != nil {
		b.Fatal(err)
	}
	fmt.Printf("start: %d readings in the store, %d MiB of it in use\n", n-int(s.Lost), s.UsedBytes>>20)
}

// rest runs the program with so many devices, until each has reported once,
// and gives its resident memory in MB and how long it took to be ready, and the
// gateway's own first reading to arrive.
func rest(b *testing.B, server *xmppserver.Server, program string, n int) (memory float64, ready, first time.Duration) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	broker := l.Addr().String()
	l.Close()
	path := writeBenchConfig(b, b.TempDir(), server, fmt.Sprintf("mqtt: {listen: %q}\n%s", broker, valueDevices(n)))
	got := make(chan struct{}, 1)
	watchBench(b, server, []string{"porch/gateway/log"}, func(watch.Reading) {
		select {
		case got <- struct{}{}:
		default:
		}
	})
	select { // what an earlier run left
	case <-got:
	case <-time.After(time.Second):
	}
	gateway := exec.Command(program, "run", "-c", path)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(filepath.Dir(path), "notify"), Net: "unixgram"})
	if err != nil {
		b.Fatal(err)
	}
	defer notify.Close()
	gateway.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	began := time.Now()
	if err := gateway.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		gateway.Process.Signal(os.Interrupt)
		gateway.Wait()
	}()
	told := make([]byte, 4096)
	for ready == 0 {
		_ = notify.SetReadDeadline(began.Add(time.Minute))
		n, err := notify.Read(told)
		if err != nil {
			b.Fatal(err)
		}
		if strings.Contains(string(told[:n]), "READY=1") {
			ready = time.Since(began)
		}
	}
	select {
	case <-got:
		first = time.Since(began)
	case <-time.After(time.Minute):
		b.Fatal("the gateway does not publish")
	}
	p := mqtt.NewPublisher("mqtt://"+broker, "rest")
	defer p.Close()
	for i := range n {
		if err := p.Publish(b.Context(), fmt.Sprintf("d%d", i), []byte("1")); err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(5 * time.Second) // to rest
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", gateway.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kB float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kB); err == nil {
			memory = kB / 1000
		}
	}
	return memory, ready, first
}
