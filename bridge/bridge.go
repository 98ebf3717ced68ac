package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

// ServicePEP as [Config.PubSub] stands for the account's own nodes (XEP-0163).
const ServicePEP = "pep"

// Config is what a Bridge is made of.
type Config struct {
	Stream  stream.Config // without Handler and Log, which New sets
	PubSub  string        // JID of the PubSub service; empty: ask the account's server; or ServicePEP
	Gateway string        // id of the gateway, the first part of node names
	Payload string        // of log nodes: PayloadSenML, also if empty, or PayloadFields
	Rooms   []Room
}

// An Authorizer is what the bridge needs to know of rights. It is asked with
// bare JIDs, from many goroutines, also from the one that reads the stream, so
// that it must not block. Its answers may change at any time; [Bridge.Regrant]
// says that they did. It is never asked while the bridge holds a lock.
type Authorizer interface {
	Operators() []JID // everybody who is granted anything now
	MaySee(who JID, device devices.ID) bool
	MaySeeEvents(who JID) bool
	// May asks for a right on a device; on any at all, where device is "".
	May(who JID, right Right, device devices.ID) bool
	// AtOtherTimes reports whether somebody who may not see a device now will,
	// because of his hours: he is told so, and is no stranger. "" is any device.
	AtOtherTimes(who JID, device devices.ID) bool
}

// A Device is what the bridge tells of a device.
type Device struct {
	ID    devices.ID
	Name  string // what people call it
	Model string
}

// Options are what a Bridge is given by its owner.
type Options struct {
	Auth Authorizer
	Log  *slog.Logger
	// Executor and Office do what people want. Without them nothing is done.
	Executor Executor
	Office   Office
	// OnSession is called from Run's goroutine when publishing becomes
	// possible and when it no longer is. It must not block. It may be nil.
	OnSession func(up bool)
	// Now gives the time, and whether it is known: where it is not, nobody can
	// tell how long a command was on its way. Nil is the machine's, known.
	Now func() (t time.Time, known bool)
	// OnTime, where it is not nil, is told now and then what the server says
	// the time is, a round trip after it was asked (XEP-0202).
	OnTime func(server time.Time, roundTrip time.Duration)
	// Holder tells this gateway from others that were given the same identity,
	// by mistake or after a restore, and stays the same over its restarts. Of
	// those one is at work, the others are passive: see [ErrPassive]. Where it
	// is empty nobody looks.
	Holder string
	// Process names this process, and Over reports whether one of another name
	// has certainly ended, so that nobody need wait for it. Both may be left out.
	Process string
	Over    func(process string) bool
	// Generation is higher after each restore from a backup: the highest goes
	// on, and the others end with [ErrSucceeded].
	Generation int64
}

// A Bridge puts devices on XMPP: it keeps one session, publishes to PubSub
// nodes, shows each device as a contact and answers for it. All methods may be
// called from any goroutine, also before Run and while there is no session.
type Bridge struct {
	cfg       Config
	auth      Authorizer
	log       *slog.Logger
	onSession func(bool)
	onTime    func(server time.Time, roundTrip time.Duration)
	executor  Executor // nil: nothing is done
	office    Office   // the same
	now       func() (time.Time, bool)
	packs     packCodec
	component bool
	domain    jid.JID // of the component; zero for an account
	account   jid.JID // bare; zero for a component
	host      string  // the domain that names and URIs are made under

	link     atomic.Pointer[link] // nil while there is no session
	lease    *lease
	reading  devices.Pulse // of the one who reads the stream, while he has a stanza
	running  devices.Pulse // of Run
	strikes  strikes
	partSize atomic.Int64 // of backups, once the server took no more; 0: as usual
	brief    bool         // there is one session, see Briefly
	requests chan request
	limits   limits
	people   people
	sessions sessions
	rooms    []*room
	pictures map[pictured]picture

	wakePresence chan struct{}
	wakeShare    chan struct{}

	// What tests make faster.
	wait func(c stream.Class, lasted time.Duration) time.Duration

	mu       sync.Mutex
	devices  map[devices.ID]Device
	nodes    map[string]*node
	contacts *contacts
	states   map[devices.ID]Presence // the newest of all devices
}

// New makes a Bridge. It does not connect; [Bridge.Run] does.
func New(cfg Config, o Options) (*Bridge, error) {
	if cfg.Payload == "" {
		cfg.Payload = PayloadSenML
	}
	b := &Bridge{
		cfg:          cfg,
		auth:         o.Auth,
		log:          o.Log,
		onSession:    o.OnSession,
		onTime:       o.OnTime,
		executor:     o.Executor,
		office:       o.Office,
		now:          o.Now,
		lease:        newLease(o),
		people:       people{log: o.Log, known: make(map[string]*talk)},
		requests:     make(chan request, maxRequests),
		wakePresence: make(chan struct{}, 1),
		wakeShare:    make(chan struct{}, 1),
		devices:      make(map[devices.ID]Device),
		nodes:        make(map[string]*node),
		states:       make(map[devices.ID]Presence),
		contacts:     newContacts(presenceInterval),
		wait:         new(stream.Backoff).Next,
	}
	for _, r := range cfg.Rooms {
		b.rooms = append(b.rooms, newRoom(r))
	}
	b.sessions.open = make(map[string]session)
	b.strikes.counts = make(map[sent]int)
	b.limits.buckets = make(map[string]*bucket)
	if b.onSession == nil {
		b.onSession = func(bool) {}
	}
	if b.now == nil {
		b.now = func() (time.Time, bool) { return time.Now(), true }
	}
	var err error
	if b.packs, err = newPackCodec(); err != nil {
		return nil, err
	}
	if b.pictures, err = draw(); err != nil {
		return nil, err
	}
	switch {
	case o.Auth == nil || o.Log == nil:
		return nil, errors.New("cannot make a bridge without authorizer and log")
	case cfg.Payload != PayloadSenML && cfg.Payload != PayloadFields:
		return nil, fmt.Errorf("cannot make a bridge: payload %q is not %s or %s", cfg.Payload, PayloadSenML, PayloadFields)
	case cfg.Gateway == "":
		return nil, errors.New("cannot make a bridge: the gateway has no id")
	case (cfg.Stream.Component == nil) == (cfg.Stream.Account == nil):
		return nil, errors.New("cannot make a bridge: want a component or an account")
	}
	if c := cfg.Stream.Component; c != nil {
		b.component = true
		if b.domain, err = jid.Parse(c.Domain); err != nil || b.domain.Localpart() != "" || b.domain.Resourcepart() != "" {
			return nil, fmt.Errorf("cannot make a bridge: %q is no domain", c.Domain)
		}
		b.host = b.domain.Domainpart()
		b.cfg.Stream.PingTo = b.domain // a component does not learn its server's name
		if cfg.PubSub == "" || cfg.PubSub == ServicePEP {
			return nil, errors.New("cannot make a bridge: a component needs the JID of a PubSub service")
		}
	} else {
		b.account = cfg.Stream.Account.JID.Bare()
		b.host = b.account.Domainpart()
		b.cfg.Stream.PingTo = b.account.Domain()
		account := *cfg.Stream.Account
		account.PlusSeen = new(atomic.Bool) // for all sessions of this bridge
		b.cfg.Stream.Account = &account
		// Always the same, so that a server ends what is left of the session
		// before, and takes no more from it.
		b.cfg.Stream.Resource = cmp.Or(cfg.Stream.Resource, resource+"-"+cfg.Gateway)
	}
	if cfg.PubSub != "" && cfg.PubSub != ServicePEP {
		if err := ValidJID(cfg.PubSub); err != nil {
			return nil, err
		}
	}
	b.cfg.Stream.Handler = func(s *stream.Session, st stream.Stanza) bool {
		b.reading.Busy()
		defer b.reading.Rest()
		return b.lease.heeds.Load() && b.hear(s, st)
	}
	b.cfg.Stream.Log = o.Log
	return b, nil
}

// SetDevices says which devices there are, the gateway among them.
func (b *Bridge) SetDevices(all []Device) {
	b.mu.Lock()
	clear(b.devices)
	for _, d := range all {
		b.devices[d.ID] = d
	}
	for name, n := range b.nodes {
		if _, there := b.devices[n.device]; !there && n.device != "" {
			delete(b.nodes, name)
		}
	}
	maps.DeleteFunc(b.states, func(id devices.ID, _ Presence) bool { _, there := b.devices[id]; return !there })
	ids := slices.Collect(maps.Keys(b.devices))
	if !b.component {
		ids = []devices.ID{devices.Gateway}
	}
	b.contacts.keep(ids)
	b.mu.Unlock()
	b.Regrant()
}

// SetPresence says how a device is doing. It is told on change, and at most
// once a minute unless the state changes. It never blocks.
func (b *Bridge) SetPresence(id devices.ID, p Presence) {
	p.Fields = slices.Clone(p.Fields)
	b.mu.Lock()
	b.states[id] = p
	shown := b.component || id == devices.Gateway
	if shown {
		b.contacts.set(id, p)
	}
	b.mu.Unlock()
	if shown {
		wake(b.wakePresence)
	}
}

// Regrant says that the Authorizer's answers changed: nodes get their members
// and operators their presences anew.
func (b *Bridge) Regrant() {
	b.mu.Lock()
	b.contacts.review()
	b.mu.Unlock()
	b.sessions.drop(func(owner string) bool {
		who, err := jid.Parse(owner)
		return err != nil || !b.mayBrowse(who.Bare())
	})
	b.unshare()
	wake(b.wakeShare)
	wake(b.wakePresence)
}

// wake tells the one who waits on c, once however often it is called.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (b *Bridge) sortedDevices() []Device {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.devices), func(a, b Device) int { return cmp.Compare(a.ID, b.ID) })
}

func (b *Bridge) device(id devices.ID) (Device, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d, ok := b.devices[id]
	return d, ok
}

// deviceAddress is what names a device to people: its JID, or for an account,
// whose devices have none, the account's.
func (b *Bridge) deviceAddress(id devices.ID) string {
	if !b.component {
		return b.account.String()
	}
	return string(id) + "@" + b.host
}

// deviceNode gives the node of a device.
func (b *Bridge) deviceNode(id devices.ID, l lane) *node {
	return b.node(b.cfg.Gateway+"/"+string(id)+"/"+string(l), id, l)
}

// eventsNode gives the node of all devices' events.
func (b *Bridge) eventsNode() *node {
	return b.node(b.cfg.Gateway+"/"+string(laneEvents), "", laneEvents)
}

func (b *Bridge) node(name string, id devices.ID, l lane) *node {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.nodes[name]
	if n == nil {
		n = newNode(name, id, l)
		b.nodes[name] = n
	}
	return n
}

// viewers are the bare JIDs of those who may see a node.
func (b *Bridge) viewers(n *node) map[string]bool {
	viewers := make(map[string]bool)
	for _, who := range b.auth.Operators() {
		may := b.auth.MaySeeEvents
		switch n.lane {
		case laneLease:
			continue
		case laneNow, laneLog:
			may = func(who jid.JID) bool { return b.auth.MaySee(who, n.device) }
		case laneBackup:
			// It holds the gateway's own passwords, if encrypted.
			may = func(who jid.JID) bool { return b.auth.May(who, MayGrant, devices.Gateway) }
		}
		if who = who.Bare(); may(who) {
			viewers[who.String()] = true
		}
	}
	return viewers
}

// mayBrowse reports whether who is granted anything.
func (b *Bridge) mayBrowse(who jid.JID) bool { return b.auth.May(who, MayRead, "") }

// Run connects, and connects again whenever the session ends, until ctx does.
// Then every device goes unavailable and Run returns nil; [ErrSucceeded] ends it
// before. It runs once at a time.
func (b *Bridge) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { b.answer(ctx) })
	defer b.people.start(ctx)()

	for {
		began := time.Now()
		err := b.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var wait time.Duration
		switch lasted := time.Since(began); {
		case errors.Is(err, ErrSucceeded):
			return err
		case errors.Is(err, ErrPassive):
			wait = b.lease.pause()
		case errors.Is(err, errPutOut):
			wait = b.lease.aside + b.wait(stream.Transient, lasted)
		default:
			wait = b.wait(stream.Delay(err), lasted)
		}
		b.log.Warn("no XMPP session", "error", err, "again_in", wait.Round(time.Second))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Pulses show whether the bridge gets on. Connecting counts as waiting, because
// it has its own time limits.
func (b *Bridge) Pulses() map[string]*devices.Pulse {
	return map[string]*devices.Pulse{"XMPP reader": &b.reading, "XMPP session": &b.running}
}

// once has one session, from its beginning to its end.
func (b *Bridge) once(ctx context.Context) error {
	session, err := stream.Dial(ctx, b.cfg.Stream)
	if err != nil {
		return err
	}
	l, err := b.establish(ctx, session)
	if err != nil {
		return errors.Join(err, session.Close())
	}
	if err := l.run(ctx); err != nil {
		return err
	}
	return errors.New("the server ended the session")
}
