// Package demo shows the whole path on one machine, without a network: real
// devices' messages, the gateway, a real XMPP server, and an operator. The
// server goes away for a while; the verdict is whether all readings arrived.
package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/simulate"
	"github.com/porchlight-iot/porchlight/bridge/watch"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

// Options say how the demo is shown.
type Options struct {
	For   time.Duration // how long all of it lasts; 0: until ctx ends
	Plain bool          // lines instead of a screen
	Out   io.Writer
	Log   *slog.Logger // of the gateway
}

// A Verdict is what came of the readings.
type Verdict struct{ Sent, Delivered, Missing, Doubled int }

// Good reports whether nothing is missing and nothing doubled.
func (v Verdict) Good() bool { return v.Missing == 0 && v.Doubled == 0 && v.Delivered == v.Sent }

// String gives the line that the demo ends with.
func (v Verdict) String() string {
	return fmt.Sprintf("%d sent, %d delivered, %d missing, %d doubled", v.Sent, v.Delivered, v.Missing, v.Doubled)
}

// soFar tells of readings that are under way, which are not missing yet.
func (v Verdict) soFar() string {
	return fmt.Sprintf("%d sent, %d delivered, %d doubled", v.Sent, v.Delivered, v.Doubled)
}

const (
	component = "porch.localhost"
	gatewayID = "porch"
	operator  = "anna"

	liveFor   = 12 * time.Second
	outageFor = 10 * time.Second
	// drainFor bounds the wait for the last readings before the verdict.
	drainFor = 60 * time.Second
	every    = 700 * time.Millisecond
)

// cast is who takes part. The gateway itself is one more.
var cast = []struct {
	id        devices.ID
	transport simulate.Transport
}{
	{"kitchen", simulate.MQTT}, {"hall", simulate.MQTT}, {"attic", simulate.MQTT},
	{"cellar", simulate.CoAP}, {"garden", simulate.CoAP},
	{"boiler", simulate.Serial}, {"greenhouse", simulate.Serial},
}

// A stage is the demo while it runs.
type stage struct {
	Options
	dir      string
	server   *xmppserver.Server
	password string
	where    simulate.Where
	devices  []*simulate.Device
	gateway  *agent.Agent
	ledger   *ledger

	mu       sync.Mutex
	title    string
	serverUp bool
	said     []string
}

// Run runs the demo until its time is over or ctx ends. It leaves nothing
// behind.
func Run(ctx context.Context, o Options) (v Verdict, err error) {
	dir, err := os.MkdirTemp("", "porchlight-demo-")
	if err != nil {
		return v, fmt.Errorf("cannot make a directory for the demo: %w", err)
	}
	defer os.RemoveAll(dir)
	if o.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.For)
		defer cancel()
	}
	s := &stage{Options: o, dir: dir, password: rand.Text(), ledger: newLedger()}
	defer s.clear(&err)
	if err := s.build(ctx); err != nil {
		return v, err
	}
	return s.play(ctx)
}

// build starts the server and makes devices and gateway.
func (s *stage) build(ctx context.Context) (err error) {
	secret := rand.Text()
	s.server, err = xmppserver.Start(ctx, xmppserver.Prosody, xmppserver.Options{
		Dir: filepath.Join(s.dir, "xmpp"), Component: component, Secret: secret,
		Users: map[string]string{operator: s.password}, Storage: "sql",
	})
	if err != nil {
		return err
	}
	mqttAddr, err := freePort("tcp")
	if err != nil {
		return err
	}
	coapAddr, err := freePort("udp")
	if err != nil {
		return err
	}
	s.where = simulate.Where{MQTT: "mqtt://" + mqttAddr, CoAP: coapAddr}
	var entries strings.Builder
	for _, c := range cast {
		d, err := simulate.New(c.id, c.transport, s.where)
		if err != nil {
			return fmt.Errorf("cannot make the device %s: %w", c.id, err)
		}
		s.devices = append(s.devices, d)
		entries.WriteString("  " + d.Config() + "\n")
	}
	text := fmt.Sprintf(`gateway: {id: %s, data_dir: %s}
xmpp:
  component: {domain: %s, server: "%s", secret_file: secret}
  pubsub: %s
operators:
  - {jid: %s, role: owner}
mqtt: {listen: "%s"}
coap: {listen: "%s"}
devices:
%s`, gatewayID, filepath.Join(s.dir, "data"), component, s.server.ComponentAddr(), s.server.PubSub(), s.jid(), mqttAddr, coapAddr, entries.String())
	for name, content := range map[string]string{"secret": secret, "password": s.password, "porchlight.yaml": text} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	options, err := agent.LoadOptions()
	if err != nil {
		return err
	}
	c, faults := config.Load(filepath.Join(s.dir, "porchlight.yaml"), options)
	if len(faults) > 0 {
		return fmt.Errorf("cannot use the demo's config: %w", faults)
	}
	s.gateway, err = agent.New(c, s.Log)
	return err
}

func (s *stage) jid() string { return operator + "@" + s.server.Domain() }

// freePort gives a loopback address that nothing listens on at the moment.
func freePort(network string) (string, error) {
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		defer c.Close()
		return c.LocalAddr().String(), nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// clear stops the server and closes the devices.
func (s *stage) clear(err *error) {
	for _, d := range s.devices {
		d.Close()
	}
	if s.server != nil {
		*err = errors.Join(*err, s.server.Stop())
	}
}

// play runs gateway, operator, devices and screen, and tells the story. The
// order in which they end matters: the operator must see what the gateway
// still delivers.
func (s *stage) play(ctx context.Context) (v Verdict, err error) {
	background := context.WithoutCancel(ctx)
	gateway := start(background, func(ctx context.Context) error { return s.gateway.Run(ctx) })
	watcher, err := s.watch(background)
	if err != nil {
		return v, errors.Join(err, gateway.stop())
	}
	drawing := start(background, func(ctx context.Context) error { s.show(ctx); return nil })
	v, err = s.story(ctx)
	return v, errors.Join(err, drawing.stop(), gateway.stop(), watcher.stop())
}

// story is the demo's course: live, outage, drain, verdict, and on.
func (s *stage) story(ctx context.Context) (v Verdict, err error) {
	live, outage := liveFor, outageFor
	if s.For > 0 {
		live, outage = min(live, s.For/5), min(outage, s.For/4)
	}
	s.stage("the gateway starts", true)
	for !s.gateway.Stats().Online {
		if !sleep(ctx, 50*time.Millisecond) {
			return v, nil
		}
	}
	sending := s.send(ctx)
	s.stage("devices report, the operator watches", true)
	if !sleep(ctx, live) {
		return s.verdict(sending)
	}
	s.stage("the XMPP server is stopped: readings wait in the outbox", false)
	s.say(s.now() + " server stopped")
	if err := s.server.Stop(); err != nil {
		sending.stop()
		return v, err
	}
	sleep(ctx, outage)
	s.say(fmt.Sprintf("%s server starts again, %d readings wait", s.now(), s.gateway.Stats().Waiting))
	if err := s.server.Restart(context.WithoutCancel(ctx)); err != nil {
		sending.stop()
		return v, err
	}
	s.stage("the server is back: the outbox drains, devices go on reporting", true)
	s.drained(ctx)
	sleep(ctx, live/3)
	v, err = s.verdict(sending)
	if err != nil || ctx.Err() != nil || !v.Good() {
		return v, err
	}
	s.advise(v)
	sending = s.send(ctx)
	<-ctx.Done()
	return s.verdict(sending)
}

// send lets the devices report.
func (s *stage) send(ctx context.Context) *task {
	return start(context.WithoutCancel(ctx), func(ctx context.Context) error {
		var all sync.WaitGroup
		for _, d := range s.devices {
			all.Go(func() { d.Run(ctx, every) })
		}
		all.Wait()
		return nil
	})
}

// drained waits until nothing waits in the outbox but what came just now.
func (s *stage) drained(ctx context.Context) {
	for !s.gateway.Stats().Online || s.gateway.Stats().Waiting > 2*len(cast) {
		if !sleep(ctx, 100*time.Millisecond) {
			return
		}
	}
}

// verdict has the devices pause, waits for what is under way, and compares.
func (s *stage) verdict(sending *task) (v Verdict, err error) {
	s.stage("the devices pause for the verdict", true)
	if err := sending.stop(); err != nil {
		return v, err
	}
	deadline := time.Now().Add(drainFor)
	for v = s.count(); !v.Good() && v.Doubled == 0 && time.Now().Before(deadline); v = s.count() {
		time.Sleep(50 * time.Millisecond)
	}
	s.stage("verdict", true)
	s.say(v.String())
	if v.Missing > 0 {
		for _, d := range s.devices {
			if sent := d.Sent(); s.ledger.delivered(d.ID, sent) < sent {
				s.say(fmt.Sprintf("  %s: %d sent, %d acknowledged, %d delivered", d.ID, sent, d.Acked(), s.ledger.delivered(d.ID, sent)))
			}
		}
	}
	return v, nil
}

// count compares what the devices sent with what the operator has.
func (s *stage) count() Verdict {
	v := Verdict{Doubled: s.ledger.doubled()}
	for _, d := range s.devices {
		sent := d.Sent()
		v.Sent += sent
		v.Delivered += s.ledger.delivered(d.ID, sent)
	}
	v.Missing = v.Sent - v.Delivered
	return v
}

// watch starts the operator's side.
func (s *stage) watch(ctx context.Context) (*task, error) {
	pool, err := config.TLS{CAFile: s.server.CAFile()}.ClientConfig()
	if err != nil {
		return nil, err
	}
	counts := make(map[devices.ID]string)
	var contacts []string
	for _, d := range s.devices {
		counts[d.ID] = d.CountField()
		contacts = append(contacts, string(d.ID)+"@"+component)
	}
	w := watch.New(watch.Options{
		JID: s.jid(), Password: s.password, Server: s.server.C2S(), CAs: pool.RootCAs,
		PubSub: s.server.PubSub(), Contacts: contacts, Log: s.Log,
	})
	return start(ctx, func(ctx context.Context) error { return w.Run(ctx, &eyes{s.ledger, counts}) }), nil
}

// eyes are the operator's.
type eyes struct {
	ledger *ledger
	counts map[devices.ID]string
}

func (e *eyes) Reading(r watch.Reading) {
	for _, f := range r.Fields {
		if n, ok := f.Value.Int(); ok && f.Name == e.counts[devices.ID(r.Device)] {
			e.ledger.got(devices.ID(r.Device), int(n), fmt.Sprint(r.Store, " ", r.Seq), time.Now())
		}
	}
}

func (e *eyes) Presence(p watch.Presence) {
	show := p.Show
	if p.Type == "unavailable" {
		show = "unavailable"
	} else if show == "" {
		show = "available"
	}
	e.ledger.presence(devices.ID(p.Device), show, p.Status)
}

func (e *eyes) Event(watch.Event) {}

func (e *eyes) Link(bool) {}

// stage sets what the screen says is going on.
func (s *stage) stage(title string, serverUp bool) {
	s.mu.Lock()
	s.title, s.serverUp = title, serverUp
	s.mu.Unlock()
	if s.Plain {
		fmt.Fprintf(s.Out, "%s %s\n", s.now(), title)
	}
}

// say adds a line for people.
func (s *stage) say(line string) {
	s.mu.Lock()
	s.said = append(s.said, line)
	s.mu.Unlock()
	if s.Plain {
		fmt.Fprintln(s.Out, line)
	}
}

func (s *stage) now() string { return time.Now().Format("15:04:05") }

// advise tells what to type next.
func (s *stage) advise(v Verdict) {
	host, port, _ := net.SplitHostPort(s.server.C2S())
	for _, line := range []string{
		"",
		"It goes on until Ctrl-C. Watch it with your own XMPP client:",
		fmt.Sprintf("  address %s   password %s   server %s   port %s", s.jid(), s.password, host, port),
		fmt.Sprintf("  (its certificate is the demo's own: accept it) and add the contact kitchen@%s", component),
		"or from another terminal:",
		fmt.Sprintf("  porchlight watch --jid %s --password-file %s --server %s \\", s.jid(), filepath.Join(s.dir, "password"), s.server.C2S()),
		fmt.Sprintf("    --ca-file %s --pubsub %s", s.server.CAFile(), s.server.PubSub()),
		"Be a device:",
		fmt.Sprintf(`  mosquitto_pub -p %s -q 1 -t tele/kitchen/SENSOR -m '{"AM2301":{"Temperature":30.5}}'`, s.where.MQTT[strings.LastIndex(s.where.MQTT, ":")+1:]),
		"",
	} {
		s.say(line)
	}
}

// show draws the screen, or prints a line now and then, until ctx ends.
func (s *stage) show(ctx context.Context) {
	draw := &screen{out: s.Out}
	interval := 250 * time.Millisecond
	if s.Plain {
		interval = 2 * time.Second
	}
	for {
		alive := sleep(ctx, interval)
		if f := s.frame(); s.Plain && alive {
			fmt.Fprintf(s.Out, "%s %s, %d wait in the outbox\n", s.now(), f.totals.soFar(), f.buffered)
		} else if !s.Plain {
			draw.draw(f)
		}
		if !alive {
			return
		}
	}
}

func (s *stage) frame() frame {
	s.mu.Lock()
	f := frame{stage: s.title, server: s.serverUp, said: append([]string(nil), s.said...)}
	s.mu.Unlock()
	f.buffered = s.gateway.Stats().Waiting
	add := func(id devices.ID, transport string, sent, delivered int) {
		show, status, last := s.ledger.row(id)
		f.rows = append(f.rows, row{string(id), transport, show, status, sent, delivered, last})
	}
	for _, d := range s.devices {
		sent := d.Sent()
		add(d.ID, string(d.Transport), sent, s.ledger.delivered(d.ID, sent))
	}
	f.totals = s.count()
	return f
}

// A task is a goroutine that somebody owns.
type task struct {
	cancel context.CancelFunc
	done   chan error
}

func start(ctx context.Context, run func(context.Context) error) *task {
	ctx, cancel := context.WithCancel(ctx)
	t := &task{cancel, make(chan error, 1)}
	go func() { t.done <- run(ctx) }()
	return t
}

// stop ends the task and gives its error. It is called once.
func (t *task) stop() error {
	t.cancel()
	return <-t.done
}

// sleep waits, and reports whether ctx did not end meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
