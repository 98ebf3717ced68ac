package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/porchlight-iot/porchlight/agent/aboard"
	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	// outboxFile is in the data directory.
	outboxFile = "outbox.db"

	tickEvery = 5 * time.Second
	saveEvery = time.Minute

	// stopBudget is for what is under way when the gateway is stopped.
	stopBudget = 3 * time.Second
)

// An Agent is one gateway. Make it with New and run it once.
type Agent struct {
	log       *slog.Logger
	outbox    *outbox.Outbox
	bridge    *bridge.Bridge
	house     *house
	forward   *forwarder
	intake    *intake
	orders    *orders
	profiles  *profile.Library
	access    *access.Registry
	auth      authorizer
	timing    timing
	started   time.Time
	aboard    *aboard.Registry
	alarms    *alarms
	newcomers *newcomers
	greeting  *greeting
	health    health
	backups   backups
	succeeded error // that another took this one's place; of Run
	ticking   devices.Pulse
	meters    *meters
	alone     atomic.Bool // there are no drivers but self
	// strangers are counted so that none fills the log.
	strangers rejects

	holding []bool // which grants held when that was last told; of Run

	mu      sync.Mutex
	config  *config.Config
	tls     tlsSettings
	ctx     context.Context // of the drivers; nil while Run is not at work
	crew    crew
	resumed bool // a gateway before this, or this before a reload, may have heard devices
}

// New makes a gateway of a checked config and opens its outbox. Run must
// follow, which closes it.
func New(c *config.Config, log *slog.Logger) (*Agent, error) {
	profiles, _ := profile.Load(profilesOf(c)) // what is wrong with them was told with the config
	a := &Agent{log: log, profiles: profiles, config: c, started: time.Now(), timing: timing{source: clock.Machine(), log: log}, health: health{ready: make(chan struct{})}, meters: newMeters()}
	a.tls.verify = a.timing.verify
	identity, err := config.ReadIdentity(c.Gateway.DataDir)
	if err != nil {
		return nil, err
	}
	xmpp, err := bridgeConfig(c, a.timing.verify)
	if err != nil {
		return nil, err
	}
	a.bridge, err = bridge.New(xmpp, bridge.Options{
		Auth: &a.auth, Log: log, Executor: a, Office: office{a},
		OnSession: a.session,
		Now:       func() (time.Time, bool) { return a.timing.clock.Time() },
		OnTime:    a.timing.told,
		Holder:    holder(c.Gateway.DataDir), Process: thisProcess(), Over: processOver, Generation: identity.Generation,
	})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Gateway.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the data directory: %w", err)
	}
	_, err = os.Stat(filepath.Join(c.Gateway.DataDir, outboxFile))
	a.resumed = err == nil
	a.outbox, err = outbox.Open(filepath.Join(c.Gateway.DataDir, outboxFile), outbox.Options{
		MaxBytes:    int64(c.Outbox.MaxBytes),
		CommitAfter: c.Outbox.CommitAfter,
		Ack:         ack(c),
		DiskFirst:   c.XMPP.LogPayload == bridge.PayloadFields,
		Machine:     machine(),
		BootID:      bootID(),
		Encode:      a.bridge.EncodeLog,
		Boot:        a.timing.boot,
		State:       a.timing.state,
		Date:        a.timing.date,
		Apply:       a.timing.apply,
		Now:         a.timing.now,
		Written:     writtenBytes,
		LossNote: func(l outbox.Loss) []byte {
			a.meters.loss(l)
			return lossNote(l)
		},
		RecoveryNote: recoveryNote,
		Log:          log,
	})
	if err == nil && a.timing.clock == nil {
		err = errors.Join(errNoBoot, a.outbox.Close())
	}
	if err != nil {
		return nil, err
	}
	// An account is behind a shaper, mostly; a component is limited by the
	// server's speed alone until its answers come late.
	under := limits{slots: 8, log: leastWindow}
	if c.XMPP.Component != nil {
		under = limits{slots: 64, log: mostWindow}
	}
	if a.aboard, err = aboard.Open(c.Gateway.DataDir); err != nil {
		log.Error("devices that were refused may be asked about again", "error", err)
	}
	a.house = newHouse(a.changed)
	a.house.anew = func(r restart) { a.tell(restartEvent(r)) }
	a.orders = &orders{house: a.house, actuators: a.actuators, may: a.may, holds: a.bridge.Holds, now: a.timing.moment, tell: a.tell, log: log, desks: make(map[devices.ID]*desk)}
	if a.orders.ledger, err = openLedger(c.Gateway.DataDir, a.orders.unknown); err != nil {
		log.Error("a command may be done twice if it is given twice, and hazardous ones are refused while they cannot be remembered", "error", err)
	}
	a.forward = newForwarder(a.outbox, a.house, a.timing.clock, a.bridge, under, log)
	a.forward.delivered = a.meters.delivered
	a.openAccess(c)
	a.alarms = &alarms{
		path: filepath.Join(c.Gateway.DataDir, alarmsFile), house: a.house, grants: a.access.Grants, now: a.timing.moment,
		event: a.tell, show: a.present, people: a.bridge, online: a.forward.isOnline, log: log,
	}
	if err := a.alarms.open(); err != nil {
		log.Error("alarms that were raised before may be raised again", "error", err)
	}
	a.greeting = a.newGreeting(filepath.Join(c.Gateway.DataDir, greetingFile))
	if err := a.greeting.open(!a.resumed); err != nil {
		log.Error("owners are not greeted", "error", err)
	}
	a.newcomers = &newcomers{grants: a.access.Grants, now: a.timing.moment, event: a.tell, people: a.bridge, online: a.forward.isOnline, log: log}
	a.intake = &intake{outbox: a.outbox, house: a.house, orders: a.orders, timing: &a.timing, aboard: a.aboard, waits: a.newcomers.deviceWaits, log: log, up: a.came}
	a.furnish(c)
	return a, nil
}

// Run runs the gateway until ctx ends. It returns an error where the outbox
// could not be closed in order, and [bridge.ErrSucceeded] where another took its
// place.
func (a *Agent) Run(ctx context.Context) error {
	bridgeCtx, stopBridge := context.WithCancel(context.WithoutCancel(ctx))
	forwardCtx, stopForward := context.WithCancel(context.WithoutCancel(ctx))
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer stopBridge()
	defer stopForward()
	var bridging, forwarding sync.WaitGroup
	bridging.Go(func() {
		if a.succeeded = a.bridge.Run(bridgeCtx); a.succeeded != nil {
			end()
		}
	})
	forwarding.Go(func() { a.forward.run(forwardCtx) })
	forwarding.Go(func() { a.timing.clock.Run(forwardCtx) })
	forwarding.Go(func() { a.control(forwardCtx) })
	forwarding.Go(func() { a.admitDue(forwardCtx) })
	forwarding.Go(func() { a.alarms.run(forwardCtx) })
	forwarding.Go(func() { a.newcomers.run(forwardCtx) })
	forwarding.Go(func() { a.schedule(forwardCtx) })
	if m := a.config.Metrics; m != nil {
		forwarding.Go(func() { a.serveMetrics(forwardCtx, m.Listen) })
	}
	a.mu.Lock()
	go a.watchStore(ctx, a.config.Gateway.DataDir, end) // a failed disk may hold it for long
	a.ctx = ctx
	a.hire()
	a.mu.Unlock()
	a.orders.start(ctx)
	a.holding = a.access.Grants().Holding(a.timing.moment())
	a.granted()
	defer time.AfterFunc(readyAfter, a.health.up).Stop()

	tellGoroutines(ctx)
	a.tick(ctx)

	a.orders.stop()
	a.mu.Lock()
	a.ctx = nil
	a.crew.dismiss()
	a.crew = nil
	a.mu.Unlock()
	a.flush()
	stopForward()
	forwarding.Wait()
	stopBridge()
	bridging.Wait()
	a.house.save(a.outbox.SetState)
	return errors.Join(a.succeeded, a.orders.ledger.close(), a.outbox.Close())
}

// session is told by the bridge when publishing becomes possible or impossible.
func (a *Agent) session(up bool) {
	if up {
		a.meters.sessions.Inc()
	}
	a.forward.online(up)
	if left := a.forward.hold(); up && left > 0 {
		a.log.Info("online; the time is not known, so readings wait for it, but not for ever", "longest", left.Round(time.Second).String())
	} else if up {
		a.log.Info("online")
	}
}

// tick judges silence and keeps state until ctx ends.
func (a *Agent) tick(ctx context.Context) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	saved := time.Now()
	defer a.ticking.Rest()
	for {
		a.ticking.Rest()
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			a.ticking.Busy()
			a.house.tick(now)
			a.passing()
			a.greeting.say(ctx)
			if a.timing.clock.Dirty() {
				a.outbox.Save()
			}
			if now.Sub(saved) >= saveEvery {
				a.house.save(a.outbox.SetState)
				saved = now
			}
		}
	}
}

// flush gives the server a moment to take what is left.
func (a *Agent) flush() {
	deadline := time.After(stopBudget)
	for a.forward.isOnline() && a.Stats().Waiting > 0 {
		select {
		case <-deadline:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Reload takes over devices, operators and profiles of a newly read config.
// The outbox, the XMPP session and what of the drivers did not change go on,
// so that no reading is lost and no device notices.
func (a *Agent) Reload(c *config.Config) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx == nil {
		return
	}
	if err := a.access.Reload(); err != nil {
		a.log.Error("what was granted and revoked in chat cannot be read; what it was before holds, and nothing can be changed", "error", err)
	}
	a.access.Configure(Grants(c))
	a.profiles, _ = a.profiles.Reload(profilesOf(a.config)) // as in New
	a.change(c)
	a.granted()
	a.log.Info("config reloaded", "devices", len(a.config.Devices), "operators", len(c.Operators), "profiles", len(a.profiles.Names()))
}

// change has the devices of another config instead of those before; one whose
// file has faults stays as it was. It is called with a.mu held, while drivers are at work.
func (a *Agent) change(c *config.Config) {
	c = c.After(a.config)
	for _, e := range deviceEvents(a.config.Devices, c.Devices, time.Now()) {
		a.tell(e)
	}
	a.config = c
	a.resumed = true
	a.furnish(c)
	a.hire()
}

// furnish tells house and bridge which devices there are.
func (a *Agent) furnish(c *config.Config) {
	ds := []devices.Device{{ID: devices.Gateway, Name: "Gateway " + c.Gateway.ID, Location: time.Local}}
	for _, d := range c.Devices {
		device := d.Device()
		if device.Name == "" {
			device.Name = string(device.ID)
		}
		if p := a.profiles.Get(d.Profile); p != nil {
			device.Silence = p.Silence()
		}
		ds = append(ds, device)
	}
	a.aboard.Configure(c)
	a.house.furnish(ds, a.outbox.State)
	contacts := make([]bridge.Device, len(ds))
	for i, d := range ds {
		contacts[i] = bridge.Device{ID: d.ID, Name: d.Name, Model: d.Profile}
	}
	a.bridge.SetDevices(contacts)
	for _, d := range ds {
		a.present(d.ID)
	}
}

// hire has the drivers that the config asks for at work, and no others. It is
// called with a.mu held.
func (a *Agent) hire() {
	wanted, err := drivers(a.config, a.profiles, a.resumed, &a.tls, a.log)
	if err != nil {
		a.log.Error("a part of the config cannot be used", "error", err)
	}
	a.alone.Store(len(wanted) == 0)
	wanted = append(wanted, &self{root: "/", started: a.started, depth: func() int { return a.Stats().Waiting }, rejects: a.intake.reject.sum})
	a.crew = a.crew.change(a.ctx, wanted, func(ctx context.Context, d devices.Driver) { supervise(ctx, d, a.meters.sink(d, a.intake), a.log) })
}

// changed is called when a device's picture changed.
func (a *Agent) changed(device devices.ID) {
	a.forward.touch(device)
	a.present(device)
	a.alarms.touch(device)
}

func (a *Agent) present(device devices.ID) {
	picture, ok := a.house.picture(device)
	if !ok {
		return
	}
	fields := make([]devices.Field, len(picture.values))
	for i, v := range picture.values {
		fields[i] = v.Field
	}
	p := bridge.Presence{State: a.alarms.shown(device, picture.state), Fields: fields, Since: picture.since}
	if device == devices.Gateway {
		p = troubled(p, a.outbox, time.Since(a.started))
	}
	a.bridge.SetPresence(device, p)
}

// Stats is what the gateway can say of itself.
type Stats struct {
	Outbox   outbox.Stats
	Waiting  int    // readings that the server has not accepted
	Online   bool   // whether there is an XMPP session
	Passive  bool   // whether that is because another gateway is at work in its place
	Rejected uint64 // inputs that could not be used
}

// Stats may be called from any goroutine.
func (a *Agent) Stats() Stats {
	s := a.outbox.Stats()
	return Stats{Outbox: s, Waiting: s.Memory + s.Disk, Online: a.forward.isOnline(), Passive: a.bridge.Passive(), Rejected: a.intake.reject.sum()}
}

// lossNote tells of lost readings as an event.
func lossNote(l outbox.Loss) []byte {
	id, what := "loss", "lost"
	if l.Kept != nil {
		id, what = "thinned", "thinned out"
	}
	e := bridge.Event{
		ID:       fmt.Sprintf("%s-%s-%s-%d-%d", id, l.Device, l.Store, l.First, l.Last),
		Time:     l.Time,
		Category: "loss",
		Device:   l.Device,
		Title:    fmt.Sprintf("%s: %d readings %s", l.Device, l.Count, what),
		Summary:  l.Reason,
		Loss:     &bridge.Loss{Device: l.Device, Store: l.Store, First: l.First, Last: l.Last, Reason: l.Reason, Kept: l.Kept},
	}
	return note(e)
}

// tell puts an event in line for the events node.
func (a *Agent) tell(e bridge.Event) {
	if e.Category == "command" {
		a.meters.command(e)
	}
	a.outbox.AddNote(note(e))
}

// note is an event as the outbox keeps it.
func note(e bridge.Event) []byte {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // the type has nothing that cannot be marshalled
	}
	return b
}

// errNoBoot says that the time of readings cannot be kept.
var errNoBoot = errors.New("cannot tell this boot from another: /proc/sys/kernel/random/boot_id is missing")

// errNoServer says that a config has neither component nor account, which
// reading it rules out.
var errNoServer = errors.New("cannot reach XMPP: neither component nor account is configured")
