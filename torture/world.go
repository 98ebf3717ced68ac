package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
	"github.com/porchlight-iot/porchlight/torture/faultfs"
	"github.com/porchlight-iot/porchlight/torture/link"
)

const (
	gatewayID = "porch"
	domain    = "porch.localhost"
	// every is how often a device has a reading.
	every = 50 * time.Millisecond
	// maxItems is what a node keeps: far more than arrive between two
	// verdicts, and not so many that a list of them is too long for a stanza.
	maxItems = 1000
	// tellAtOnce is how much is printed of what is wrong after a cycle.
	tellAtOnce = 8
	// forwarding is how long a broker may have had a reading, acknowledged,
	// before the gateway has it too while nothing is wrong.
	forwarding = 5 * time.Second
	// underWay is how long an answer or an item may still travel when who sent
	// it is gone.
	underWay = 500 * time.Millisecond
)

// A world is the gateway and all around it.
type world struct {
	options options
	out     io.Writer
	server  *xmppserver.Server
	broker  *mosquitto
	gateway *gateway
	links   map[string]*link.Link
	machine *machine
	port    *pty.PTY

	disk    *faultfs.Disk // nil where disks cannot fail
	mounted string
	unmount func() error

	ledger     *ledger
	subscriber *subscriber
	behind     []*tap // of devices behind the broker
	direct     []*tap // of those that the gateway itself acknowledges
	serial     *tap

	running sync.WaitGroup
	stop    context.CancelFunc

	restarting sync.Mutex // one fault of broker or server at a time

	mu      sync.Mutex
	trouble faultfs.Trouble
	leaks   leaks
	excuses []excuse
	faults  []string // of the gateway, beside the verdict on its readings
	log     *os.File
}

// say tells what happened, in the log.
func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.log, "%s %s\n", time.Now().Format(stamp), fmt.Sprintf(format, args...))
}

// blame adds to what is wrong with the gateway.
func (w *world) blame(format string, args ...any) {
	w.say(format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; "))
}

func newWorld(ctx context.Context, o options, program string, disk bool, out io.Writer) (w *world, err error) {
	w = &world{options: o, out: out, links: make(map[string]*link.Link), machine: &machine{path: filepath.Join(o.dir, "clock")}, stop: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close(false))
		}
	}()
	path := func(name string) string { return filepath.Join(o.dir, name) }
	if w.log, err = os.OpenFile(path("torture.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	if w.ledger, err = openLedger(path("ledger")); err != nil {
		return nil, err
	}
	if err := w.machine.sync(0); err != nil {
		return nil, err
	}
	users := xmppserver.Accounts("anna", "gateway")
	const secret = "a secret of the torture"
	w.server, err = xmppserver.Start(ctx, xmppserver.Prosody, xmppserver.Options{
		Dir: path("xmpp"), Component: domain, Secret: secret, Users: users, Storage: "sql", MaxItems: maxItems, MaxPayload: o.limit,
	})
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(path("mosquitto"), 0o700); err != nil {
		return nil, err
	}
	if w.broker, err = newMosquitto(path("mosquitto")); err != nil {
		return nil, err
	}
	if err := w.broker.start(ctx); err != nil {
		return nil, err
	}
	listen, err := freePort()
	if err != nil {
		return nil, err
	}
	coap, err := freePort()
	if err != nil {
		return nil, err
	}
	xmpp := w.server.ComponentAddr()
	if o.mode == "account" {
		xmpp = w.server.C2S()
	}
	for name, target := range map[string]string{linkXMPP: xmpp, linkBroker: w.broker.address, linkDevices: listen} {
		if w.links[name], err = link.New(target); err != nil {
			return nil, err
		}
	}
	if w.port, err = pty.Open(); err != nil {
		return nil, err
	}
	w.mounted = path("data")
	if err := os.Mkdir(w.mounted, 0o700); err != nil {
		return nil, err
	}
	if disk {
		w.disk = faultfs.New()
		if w.unmount, err = w.disk.Mount(w.mounted); err != nil {
			return nil, err
		}
	}

	to := fmt.Sprintf("component: {domain: %s, server: %q, secret_file: secret}", domain, w.links[linkXMPP].Addr())
	password := secret
	if o.mode == "account" {
		to = fmt.Sprintf("account: {jid: gateway@localhost, server: %q, password_file: secret, tls: {ca_file: %s}}", w.links[linkXMPP].Addr(), w.server.CAFile())
		password = users["gateway"]
	}
	var config strings.Builder
	fmt.Fprintf(&config, "gateway: {id: %s, data_dir: %s}\nxmpp:\n  %s\n  pubsub: %s\noperators:\n  - {jid: anna@localhost, role: owner}\n",
		gatewayID, w.mounted, to, w.server.PubSub())
	fmt.Fprintf(&config, "mqtt:\n  listen: %s\n  brokers:\n    - {name: house, url: \"mqtt://%s\"}\ncoap: {listen: %q}\noutbox: {ack: %s}\ndevices:\n",
		listen, w.links[linkBroker].Addr(), coap, o.ack)

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	var all []string
	chance := rand.New(rand.NewPCG(o.seed, 1))
	run := func(t *tap, device func(context.Context)) {
		all = append(all, t.device)
		w.running.Go(func() { t.run(running) })
		w.running.Go(func() { device(running) })
	}
	for i := range 2 {
		d := &mqttDevice{tap: newTap(fmt.Sprint("behind", i), every, w.ledger), broker: func() string { return w.broker.address }}
		d.topic = d.device
		fmt.Fprintf(&config, "  - {id: %s, profile: json, mqtt: {topic: %s, broker: house}}\n", d.device, d.topic)
		w.behind = append(w.behind, d.tap)
		run(d.tap, d.run)
	}
	for i := range 2 {
		d := &mqttDevice{tap: newTap(fmt.Sprint("direct", i), every, w.ledger), broker: w.links[linkDevices].Addr}
		d.topic = d.device
		fmt.Fprintf(&config, "  - {id: %s, profile: json, mqtt: {topic: %s}}\n", d.device, d.topic)
		w.direct = append(w.direct, d.tap)
		run(d.tap, d.run)
	}
	for i := range 2 {
		d := &coapDevice{
			tap: newTap(fmt.Sprint("coap", i), every, w.ledger), server: coap, log: w.say,
			chance: rand.New(rand.NewPCG(chance.Uint64(), 0)), mid: uint16(chance.Uint32()),
		}
		fmt.Fprintf(&config, "  - {id: %s, profile: json, coap: {}}\n", d.device)
		w.direct = append(w.direct, d.tap)
		run(d.tap, d.run)
	}
	wire := &serialDevice{tap: newTap("serial0", 2*every, w.ledger), port: w.port}
	wire.mute = true
	fmt.Fprintf(&config, "  - {id: %s, profile: lines, serial: {port: %s}}\n", wire.device, w.port.Path())
	w.serial = wire.tap
	run(wire.tap, wire.run)

	if o.limit > 0 { // some of its readings are lost, and told to be: they are not in the ledger
		fmt.Fprintf(&config, "  - {id: %s, profile: json, mqtt: {topic: %s, broker: house}}\n", boaster, boaster)
	}

	for name, content := range map[string]string{"secret": password, "porchlight.yaml": config.String()} {
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	cas := x509.NewCertPool()
	pem, err := os.ReadFile(w.server.CAFile())
	if err != nil {
		return nil, err
	}
	cas.AppendCertsFromPEM(pem)
	if w.subscriber, err = newSubscriber("anna@localhost", users["anna"], w.server.C2S(), cas, w.server.PubSub(), gatewayID, all, w.say); err != nil {
		return nil, err
	}
	w.running.Go(func() { w.subscriber.run(running) })
	log, err := os.OpenFile(path("porchlight.log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	w.gateway = &gateway{program: program, config: path("porchlight.yaml"), log: log, say: w.say, point: o.point, env: []string{"PORCHLIGHT_CLOCK=" + w.machine.path}}
	w.running.Go(func() { w.gateway.run(running) })
	// Before the gateway has subscribed, the broker keeps nothing for it.
	subscribing, cancel := context.WithTimeout(ctx, o.patience)
	defer cancel()
	return w, waitForText(subscribing, log.Name(), 0, `msg="driver up" driver="mqtt house"`)
}

// boaster is a device whose readings are more than the service takes.
const boaster = "boaster"

// close ends everything that runs, and where asked to, keeps the disk.
func (w *world) close(keep bool) error {
	w.stop()
	if w.port != nil {
		w.port.Close()
	}
	w.running.Wait()
	for _, l := range w.links {
		if l != nil {
			l.Close()
		}
	}
	var errs []error
	if w.broker != nil && w.broker.process != nil {
		w.broker.process.kill()
	}
	if w.server != nil {
		errs = append(errs, w.server.Stop())
	}
	if w.unmount != nil {
		errs = append(errs, w.unmount())
	}
	if keep && w.disk != nil {
		errs = append(errs, w.disk.Save(filepath.Join(w.options.dir, "disk")))
	}
	return errors.Join(errs...)
}

// cycles runs the cycles, prints of each what happened and what came of it, and
// reports whether all was well.
func (w *world) cycles(ctx context.Context, allowed []kind) (v verdict, good bool) {
	began := time.Now()
	told := make(map[string]bool)
	drain := func() (took time.Duration) {
		since := time.Now()
		if err := w.drain(ctx); err != nil && ctx.Err() == nil {
			w.blame("the backlog is stuck: %v", err)
			if w.gateway.dead() {
				return time.Since(since)
			}
			// What a new start brings tells more than giving up.
			w.gateway.kill()
			if err := w.drain(ctx); err != nil {
				w.blame("and stays so after a restart: %v", err)
			}
		}
		return time.Since(since).Round(100 * time.Millisecond)
	}
	w.tell(drain()) // that it works at all
	w.leaks.look(ctx, w.gateway, 0)
	done := 0
	for cycle := 1; cycle <= w.options.cycles && ctx.Err() == nil && !w.gateway.dead(); cycle++ {
		faults := plan(w.options.seed, cycle, allowed)
		var texts []string
		for _, f := range faults {
			texts = append(texts, f.String())
		}
		w.say("cycle %d: %s", cycle, strings.Join(texts, ", "))
		for _, t := range w.taps() {
			t.set(true)
		}
		w.happen(ctx, faults)
		w.say("all is mended")
		took := drain()
		if ctx.Err() != nil {
			break
		}
		w.leaks.look(ctx, w.gateway, cycle)
		done = cycle
		v = judge(w.ledger, w.subscriber, w.excused)
		fmt.Fprintf(w.out, "cycle %d: %s; arrived after %v\n", cycle, strings.Join(texts, ", "), took)
		more := 0
		for _, d := range append(w.blamed(), v.details...) {
			if told[d] {
				continue
			}
			told[d] = true
			w.say("%s", d)
			if more++; more <= tellAtOnce {
				fmt.Fprintf(w.out, "  %s\n", d)
			}
		}
		if more > tellAtOnce {
			fmt.Fprintf(w.out, "  and %d more in torture.log\n", more-tellAtOnce)
		}
	}
	if w.gateway.dead() {
		w.blame("the gateway does not start any more; its log ends with %s", w.lastLine())
		fmt.Fprintln(w.out, w.blamed()[len(w.blamed())-1])
	}
	crashed := w.crashes()
	s := w.seen(w.serial.device)
	fmt.Fprintf(w.out, "serial, which nobody acknowledges: written %d, arrived %d\n", w.serial.count(), s)
	fmt.Fprintln(w.out, w.leaks)
	fmt.Fprintf(w.out, "cycles %d in %v, %v\n", done, time.Since(began).Round(time.Second), v)
	if w.ledger.err != nil {
		fmt.Fprintln(w.out, w.ledger.err)
	}
	return v, v.good() && len(w.blamed()) == 0 && crashed == 0 && w.ledger.err == nil
}

func (w *world) tell(took time.Duration) {
	fmt.Fprintf(w.out, "%s, outbox.ack: %s; the first readings arrived after %v\n", w.options.mode, w.options.ack, took)
}

func (w *world) taps() []*tap {
	return append(append([]*tap{w.serial}, w.behind...), w.direct...)
}

func (w *world) blamed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.faults...)
}

func (w *world) seen(device string) int {
	w.subscriber.mu.Lock()
	defer w.subscriber.mu.Unlock()
	distinct := make(map[int]bool)
	for _, x := range w.subscriber.seen[device] {
		distinct[x.n] = true
	}
	return len(distinct)
}

// newest gives the number that arrived last of a device's; 0 for none.
func (w *world) newest(device string) int {
	w.subscriber.mu.Lock()
	defer w.subscriber.mu.Unlock()
	seen := w.subscriber.seen[device]
	if len(seen) == 0 {
		return 0
	}
	return seen[len(seen)-1].n
}

// excused says whether what happened at a time was built on a disk's lie. What
// a broker acknowledged reached the gateway a moment later.
func (w *world) excused(device string, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	early := time.Duration(0)
	for _, t := range w.behind {
		if t.device == device {
			early = forwarding
		}
	}
	for _, e := range w.excuses {
		if at.After(e.from.Add(-early)) && at.Before(e.to.Add(underWay)) {
			return true
		}
	}
	return false
}

// crashes prints what the gateway's log has of panics and data races.
func (w *world) crashes() (count int) {
	log, err := os.ReadFile(w.gateway.log.Name())
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(log) {
		if bytes.HasPrefix(line, []byte("panic:")) || bytes.HasPrefix(line, []byte("fatal error:")) || bytes.Contains(line, []byte("DATA RACE")) || bytes.Contains(line, []byte("unexpected fault address")) {
			count++
			fmt.Fprintf(w.out, "the gateway: %s", line)
		}
	}
	return count
}

// lastLine is what the gateway said when it ended, which advice may follow, or
// else its last line.
func (w *world) lastLine() (last string) {
	log, _ := os.ReadFile(w.gateway.log.Name())
	for _, line := range slices.Backward(strings.Split(strings.TrimSpace(string(log)), "\n")) {
		switch start := strings.HasPrefix(line, "---"); {
		case strings.HasPrefix(line, "porchlight: "):
			return line
		case start && last != "":
			return last
		case !start && last == "":
			last = line
		}
	}
	return last
}

var errDead = errors.New("the gateway does not start")

// drain has the devices fall silent, sends a last reading of each and waits
// until it arrived: what was before it has arrived then too, or never will.
func (w *world) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.options.patience)
	defer cancel()
	ctx, give := context.WithCancelCause(ctx)
	defer give(nil)
	w.gateway.forgive()
	watch := time.NewTicker(time.Second)
	defer watch.Stop()
	taps := w.taps()
	results := make(chan error, len(taps))
	for _, t := range taps {
		go func() { results <- w.drainOne(ctx, t) }()
	}
	var errs []error
	for left := len(taps); left > 0; {
		select {
		case err := <-results:
			errs = append(errs, err)
			left--
		case <-watch.C:
			if w.gateway.dead() {
				give(errDead)
			}
		}
	}
	switch err := errors.Join(errs...); {
	case errors.Is(context.Cause(ctx), errDead):
		return errDead
	case err != nil:
		return err
	}
	return w.subscriber.read(ctx)
}

func (w *world) drainOne(ctx context.Context, t *tap) error {
	if err := t.settle(ctx); err != nil {
		return err
	}
	for {
		n, err := t.one(ctx)
		if err != nil {
			return err
		}
		waiting, cancel := ctx, context.CancelFunc(func() {})
		if t == w.serial {
			// What the gateway did not hear is not repeated.
			waiting, cancel = context.WithTimeout(ctx, forwarding)
		}
		err = w.subscriber.await(waiting, t.device, n)
		cancel()
		if err == nil || ctx.Err() != nil || t != w.serial {
			return err
		}
	}
}
