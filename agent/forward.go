package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// A publisher is what the forwarder needs of the bridge.
type publisher interface {
	PublishLog(ctx context.Context, device devices.ID, item string, payload []byte) error
	PublishNow(ctx context.Context, device devices.ID, values []bridge.NowValue) error
	PublishEvent(ctx context.Context, e bridge.Event) error
	ReadLog(ctx context.Context, device devices.ID, newest int) ([]bridge.LogItem, error)
}

const (
	// nowEvery is how often a device's `now` node is written at most.
	nowEvery = time.Second
	// The pauses after an answer that was none.
	firstRetry = time.Second
	lastRetry  = time.Minute
	// parkFor is how long a node that we may not write to is left alone.
	parkFor = 5 * time.Minute
)

// limits are how much may be under way at a time. How much of the log it is,
// between them, is learnt.
type limits struct {
	slots int // publications
	log   int // bytes of the log, at the beginning of a session
}

// A forwarder brings what the outbox has to the server. Notes go first, then
// the newest values of each device, then the log. What a node holds is sent
// one by one.
type forwarder struct {
	outbox *outbox.Outbox
	house  *house
	clock  *clock.Clock
	to     publisher
	limits limits
	log    *slog.Logger

	pulse     devices.Pulse         // of run
	delivered func(devices.ID, int) // is told of each pack that the server accepted; may be nil
	session   chan bool             // whether there is a session now; newest wins
	wake      chan struct{}         // something may be sendable
	done      sync.WaitGroup

	mu      sync.Mutex
	up      bool
	busy    int
	nows    int // publications of newest values among busy
	window  *window
	noting  bool
	pauses  map[string]time.Duration // of nodes that failed, by what and device
	changed map[devices.ID]bool      // devices whose `now` is to be written
	now     map[devices.ID]*nowNode
	first   time.Duration // boottime of the first session; 0 before
}

// A nowNode is the state of one device's `now` node.
type nowNode struct {
	next time.Time // not to be written before
	out  bool      // is being written
}

func newForwarder(o *outbox.Outbox, h *house, c *clock.Clock, to publisher, l limits, log *slog.Logger) *forwarder {
	return &forwarder{
		outbox: o, house: h, clock: c, to: to, limits: l, log: log, window: &window{size: l.log},
		session: make(chan bool, 1), wake: make(chan struct{}, 1),
		pauses: make(map[string]time.Duration), changed: make(map[devices.ID]bool), now: make(map[devices.ID]*nowNode),
	}
}

// online is told by the bridge when publishing becomes possible or impossible.
func (f *forwarder) online(up bool) {
	f.mu.Lock()
	f.up = up
	if up && f.first == 0 {
		f.first = f.clock.Now().At
	}
	if up {
		f.window = &window{size: f.limits.log}
	}
	f.mu.Unlock()
	select {
	case <-f.session:
	default:
	}
	f.session <- up
}

func (f *forwarder) isOnline() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.up
}

// touch says that a device's newest values changed.
func (f *forwarder) touch(device devices.ID) {
	f.mu.Lock()
	f.changed[device] = true
	f.mu.Unlock()
	f.signal()
}

func (f *forwarder) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// run forwards until ctx ends, and returns when nothing of it is under way.
func (f *forwarder) run(ctx context.Context) {
	defer f.done.Wait()
	defer f.pulse.Rest()
	up := false
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := time.Hour
		f.pulse.Busy()
		changed := f.clock.Changed() // before it is asked
		if up {
			wait = f.fill(ctx)
		}
		timer.Reset(wait)
		f.pulse.Rest()
		select {
		case <-ctx.Done():
			return
		case up = <-f.session:
			if up {
				f.all()
			}
		case <-f.wake:
		case <-changed:
		case <-f.outbox.Ready():
		case <-timer.C:
		}
	}
}

// all has every `now` node written again: the server may have lost them.
func (f *forwarder) all() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.pauses)
	for _, d := range f.house.all() {
		f.changed[d.ID] = true
	}
}

// fill takes work for the free slots, and gives the time until there is more
// that only has to wait.
func (f *forwarder) fill(ctx context.Context) time.Duration {
	wait := time.Hour
	for f.free() {
		if f.sendNote(ctx) {
			continue
		}
		sent, next := f.sendNow(ctx)
		if wait = min(wait, next); sent || f.readBack(ctx) {
			continue
		}
		// What is published is not dated anew, so it waits for the time.
		if left := f.hold(); left > 0 {
			return min(wait, left)
		}
		if left := f.yields(); left > 0 {
			return min(wait, left)
		}
		if !f.sendPack(ctx) {
			break
		}
	}
	return wait
}

func (f *forwarder) hold() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clock.Hold(f.first)
}

// yields gives how long the log waits for newest values that are under way.
func (f *forwarder) yields() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.nows == 0 {
		return 0
	}
	return f.window.yields(time.Now())
}

func (f *forwarder) free() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.busy < f.limits.slots
}

// start runs one publication in a slot.
func (f *forwarder) start(publish func()) {
	f.mu.Lock()
	f.busy++
	f.mu.Unlock()
	f.done.Go(func() {
		defer f.signal()
		defer func() {
			f.mu.Lock()
			f.busy--
			f.mu.Unlock()
		}()
		publish()
	})
}

// readBack looks what a log node has, where the outbox is in doubt.
func (f *forwarder) readBack(ctx context.Context) bool {
	device, newest, any := f.outbox.Doubt()
	if !any {
		return false
	}
	f.start(func() {
		items, err := f.to.ReadLog(ctx, device, newest)
		if err != nil {
			wait := f.pause("read "+string(device), err)
			f.log.Warn("cannot read back what arrived before the start; the log of the device waits", "device", device, "reason", err, "again", wait.String())
			f.after(ctx, wait, func() { f.outbox.ReleaseDoubt(device) })
			return
		}
		f.pause("read "+string(device), nil)
		var arrived []outbox.Arrived
		for _, item := range items {
			a := outbox.Arrived{Store: item.Store, Last: item.Last}
			for _, r := range item.Records {
				if r.Origin != (devices.Origin{}) {
					a.Origins = append(a.Origins, r.Origin)
				}
			}
			arrived = append(arrived, a)
		}
		crashpoint.At(crashpoint.ReadBack)
		f.outbox.Resolve(device, arrived)
	})
	return true
}

func (f *forwarder) sendPack(ctx context.Context) bool {
	f.mu.Lock()
	w := f.window
	room := w.room()
	f.mu.Unlock()
	if room == 0 {
		return false
	}
	f.outbox.SetRoom(room)
	p := f.outbox.Next()
	if p == nil {
		return false
	}
	f.mu.Lock()
	s := w.send(bridge.LogSize(p.Payload), time.Now())
	f.mu.Unlock()
	f.start(func() {
		err := f.to.PublishLog(ctx, p.Device, p.Item(), p.Payload)
		f.mu.Lock()
		if err == nil {
			w.answer(s, time.Now())
		} else {
			w.forget(s)
		}
		f.mu.Unlock()
		f.finishPack(p, err)
	})
	return true
}

// finishPack ends a pack by the server's answer. What was refused as a whole
// is sent in halves until it is clear which reading it was: no other is to be
// lost with it.
func (f *forwarder) finishPack(p *outbox.Pack, err error) {
	node := "log " + string(p.Device)
	switch bridge.Judge(err) {
	case bridge.Accepted:
		crashpoint.At(crashpoint.PackSettling)
		f.pause(node, nil)
		f.outbox.Settle(p)
		if f.delivered != nil {
			f.delivered(p.Device, p.Count())
		}
		crashpoint.At(crashpoint.PackSettled)
	case bridge.Split, bridge.SetAside:
		if f.outbox.Split(p) {
			f.log.Info("pack refused, sending halves", "device", p.Device, "item", p.Item(), "reason", err)
			return
		}
		f.outbox.Refuse(p, err.Error())
	case bridge.Park:
		f.log.Error("not allowed to publish; the readings are kept", "device", p.Device, "reason", err, "again", parkFor.String())
		f.outbox.Release(p, parkFor)
	default:
		f.outbox.Release(p, f.pause(node, err))
	}
}

// pause gives how long a node is left alone after err, twice as long after
// each in a row; nil ends the row.
func (f *forwarder) pause(node string, err error) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.pauses, node)
		return 0
	}
	d := firstRetry
	if last := f.pauses[node]; last > 0 {
		d = min(2*last, lastRetry)
	}
	f.pauses[node] = d
	return d/2 + rand.N(d)
}

// sendNow writes the newest values of one device, where there are any to be
// written and it is time. Otherwise it gives how long until it is.
func (f *forwarder) sendNow(ctx context.Context) (sent bool, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	wait = time.Hour
	if f.nows >= max(1, f.limits.slots/2) {
		// More would wait no shorter behind those, and the log for ever.
		return false, wait
	}
	now := time.Now()
	for device := range f.changed {
		node := f.now[device]
		if node == nil {
			node = &nowNode{}
			f.now[device] = node
		}
		if node.out {
			continue
		}
		if left := node.next.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		delete(f.changed, device)
		picture, ok := f.house.picture(device)
		if !ok {
			delete(f.now, device)
			continue
		}
		if len(picture.values) == 0 {
			continue
		}
		node.out = true
		f.nows++
		f.mu.Unlock()
		f.start(func() { f.finishNow(device, node, f.to.PublishNow(ctx, device, picture.values)) })
		f.mu.Lock()
		return true, 0
	}
	return false, wait
}

// waitingNow adds the devices whose newest values are to be written, or are
// under way.
func (f *forwarder) waitingNow(lanes map[devices.ID]Lanes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	add := func(device devices.ID) {
		l := lanes[device]
		l.Now = 1
		lanes[device] = l
	}
	for device := range f.changed {
		add(device)
	}
	for device, node := range f.now {
		if node.out {
			add(device)
		}
	}
}

func (f *forwarder) finishNow(device devices.ID, node *nowNode, err error) {
	verdict := bridge.Judge(err)
	again := nowEvery
	switch verdict {
	case bridge.Accepted:
		crashpoint.At(crashpoint.NowPublished)
		f.pause("now "+string(device), nil)
	case bridge.Keep:
		again = f.pause("now "+string(device), err)
	case bridge.Park:
		again = parkFor
	default:
		f.log.Warn("newest values refused", "device", device, "reason", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nows--
	node.out, node.next = false, time.Now().Add(again)
	if verdict == bridge.Keep || verdict == bridge.Park {
		f.changed[device] = true
	}
}

func (f *forwarder) sendNote(ctx context.Context) bool {
	f.mu.Lock()
	noting := f.noting
	f.mu.Unlock()
	if noting {
		return false
	}
	note := f.outbox.NextNote()
	if note == nil {
		return false
	}
	var e bridge.Event
	if err := json.Unmarshal(note.Body, &e); err != nil {
		f.log.Error("event cannot be read from the outbox", "number", note.Number, "reason", err)
		f.outbox.SettleNote()
		return true
	}
	f.mu.Lock()
	f.noting = true
	f.mu.Unlock()
	f.start(func() { f.finishNote(ctx, f.to.PublishEvent(ctx, e), e) })
	return true
}

func (f *forwarder) finishNote(ctx context.Context, err error, e bridge.Event) {
	var wait time.Duration
	switch bridge.Judge(err) {
	case bridge.Accepted:
		f.pause("events", nil)
		f.outbox.SettleNote()
	case bridge.Split, bridge.SetAside:
		f.log.Error("event refused", "title", e.Title, "reason", err)
		f.outbox.SettleNote()
	case bridge.Park:
		f.log.Error("not allowed to publish events; they are kept", "reason", err, "again", parkFor.String())
		wait = parkFor
		f.outbox.ReleaseNote()
	default:
		wait = f.pause("events", err)
		f.outbox.ReleaseNote()
	}
	end := func() {
		f.mu.Lock()
		f.noting = false
		f.mu.Unlock()
		f.signal()
	}
	if wait == 0 {
		end()
		return
	}
	f.after(ctx, wait, end)
}

// after calls do when some time has passed, or ctx has ended.
func (f *forwarder) after(ctx context.Context, wait time.Duration, do func()) {
	f.done.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		do()
	})
}
