package outbox

import (
	"fmt"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// A Pack is readings of one device that go out as one item. Its fields do not
// change.
type Pack struct {
	Device      devices.ID
	Store       string // the store that numbered the readings
	First, Last uint64
	Payload     []byte

	readings int
	boundary boundary
}

// Item is the pack's item id: <store>-<first>-<last>.
func (p *Pack) Item() string { return fmt.Sprintf("%s-%d-%d", p.Store, p.First, p.Last) }

// Count is how many readings the pack stands for.
func (p *Pack) Count() int { return p.readings }

// SetRoom sets how big a pack may be, as Encode understands it, from now on; 0
// is as big as an item can be. Packs that were frozen stay as they are.
func (o *Outbox) SetRoom(room int) { o.room.Store(int64(room)) }

// Next gives a pack to be sent, or nil where there is none now; [Outbox.Ready]
// then tells when to ask again. Devices take turns, and none has two packs
// under way. The caller ends each pack with Settle, Refuse, Split or Release.
func (o *Outbox) Next() *Pack {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now().Truncate(time.Microsecond)
	for range len(o.turn) {
		q := o.turn[0]
		o.turn = o.turn[1:]
		q.listed = false
		if q.notUntil.After(now) {
			continue // Release's timer lists it again
		}
		if p := o.next(q, now); p != nil {
			return p
		}
	}
	return nil
}

// next gives the queue's next pack, which is the one that was not answered
// where there is one.
func (o *Outbox) next(q *queue, now time.Time) *Pack {
	if !q.sendable() {
		return nil
	}
	switch {
	case q.sending != nil:
	case len(q.prepared) > 0:
		q.sending, q.prepared = q.prepared[0], q.prepared[1:]
	case len(q.disk) > 0:
		q.wants, o.urgent = true, true
		o.waiting[q] = struct{}{}
		o.wakeCommitter()
		return nil
	default:
		o.freeze(q, now)
	}
	q.out = true
	crashpoint.At(crashpoint.PackHandedOut)
	return q.sending
}

// freeze makes a pack of readings that are in memory only.
func (o *Outbox) freeze(q *queue, now time.Time) {
	waiting := q.memory[q.accepted:]
	rs := make([]devices.Record, min(len(waiting), packLimit))
	for i := range rs {
		rs[i] = waiting[i].Record
	}
	q.sending = o.pack(q, o.run, now, rs)
	q.inMemory = append(q.inMemory, q.sending.boundary)
	crashpoint.At(crashpoint.PackFrozen)
}

// pack makes a pack of the oldest of rs, which were numbered by run without a
// gap.
func (o *Outbox) pack(q *queue, run uint32, frozen time.Time, rs []devices.Record) *Pack {
	if q.limit > 0 && len(rs) > q.limit {
		rs = rs[:q.limit]
	}
	dating := o.date(rs)
	payload, n := o.options.Encode(q.device, frozen, o.dated(dating, rs), int(o.room.Load()))
	b := boundary{run, rs[0].Seq, rs[n-1].Seq, frozen, dating}
	return &Pack{q.device, o.runs[run], b.first, b.last, payload, n, b}
}

// date dates the readings of a pack, which are all of one run, and so of one
// boot; "" where all have their times.
func (o *Outbox) date(rs []devices.Record) string {
	for _, r := range rs {
		if r.Stamp != "" && o.options.Date != nil {
			return o.options.Date(r.Stamp)
		}
	}
	return ""
}

// dated gives readings their times by a dating, two in a row never the same.
func (o *Outbox) dated(dating string, rs []devices.Record) []devices.Record {
	if dating == "" {
		return rs
	}
	rs = slices.Clone(rs)
	for i := range rs {
		if rs[i].Stamp != "" {
			o.options.Apply(dating, &rs[i])
		}
		if i > 0 && rs[i].Time.Equal(rs[i-1].Time) {
			rs[i].Time = rs[i].Time.Add(time.Microsecond)
		}
	}
	return rs
}

// enqueue gives the queue a turn, where it has something to send.
func (o *Outbox) enqueue(q *queue) {
	if q.listed || !q.sendable() {
		return
	}
	q.listed = true
	o.turn = append(o.turn, q)
	signal(o.ready)
}

// Settle ends a pack that the server accepted.
func (o *Outbox) Settle(p *Pack) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[p.Device]
	o.stats.Settled += uint64(p.Count())
	q.limit = 0
	o.finish(q, p)
}

// Refuse ends a pack that the server will never take. Its readings are lost,
// and the reason is told.
func (o *Outbox) Refuse(p *Pack, reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lose(Loss{Device: p.Device, Store: p.Store, First: p.First, Last: p.Last, Count: uint64(p.Count()), Reason: reason, Time: time.Now()})
	o.finish(o.queues[p.Device], p)
	crashpoint.At(crashpoint.PackRefused)
}

// finish forgets the pack's readings. The sources of those that are not on
// disk are acknowledged, unless that waits for the disk.
func (o *Outbox) finish(q *queue, p *Pack) {
	q.sending, q.out, q.notUntil = nil, false, time.Time{}
	if q.settle(p) > 0 {
		o.deleteLater(q, place{p.boundary.run, p.Last})
	}
	if p.boundary.run == o.run {
		o.settleMemory(q, p.Last)
	}
	o.enqueue(q)
}

// settleMemory ends the readings in memory up to a sequence number. Those that
// are being written, or must be, stay until they are.
func (o *Outbox) settleMemory(q *queue, last uint64) {
	n := 0
	for n < len(q.memory) && q.memory[n].Seq <= last {
		n++
	}
	if n == 0 {
		return
	}
	if q.committing > 0 || o.options.Ack == AckDisk {
		q.accepted = n
		return
	}
	for _, e := range q.memory[:n] {
		o.memory -= e.size
		e.receipt.add(-1, nil)
	}
	q.forget(n)
	for len(q.inMemory) > 0 && q.inMemory[0].last <= last {
		q.inMemory = q.inMemory[1:]
	}
	if len(q.memory) == 0 {
		delete(o.waiting, q)
	}
}

func (o *Outbox) deleteLater(q *queue, p place) {
	if len(o.tidy) == 0 {
		o.wakeCommitter()
	}
	o.tidy = append(o.tidy, settled{q, p, time.Now()})
}

// Split ends a pack that was too big, having been refused as such: its
// readings go out in smaller ones. It reports false where the pack has one
// reading only.
func (o *Outbox) Split(p *Pack) bool {
	if p.Count() == 1 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[p.Device]
	q.limit = p.Count() / 2
	defer crashpoint.At(crashpoint.PackSplit)
	q.sending, q.out = nil, false
	// What was prepared to go after it was not sent yet, and would be too big
	// as well.
	q.prepared, q.unfreeze = nil, true
	for i, b := range q.inMemory {
		if b == p.boundary {
			q.inMemory = append(q.inMemory[:i], q.inMemory[i+1:]...)
			break
		}
	}
	o.enqueue(q)
	return true
}

// Release gives back a pack without an answer: after pause, Next gives the
// same again.
func (o *Outbox) Release(p *Pack, pause time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[p.Device]
	q.out = false
	crashpoint.At(crashpoint.PackReleased)
	if pause <= 0 {
		o.enqueue(q)
		return
	}
	q.notUntil = time.Now().Add(pause)
	time.AfterFunc(pause, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		q.notUntil = time.Time{}
		o.enqueue(q)
	})
}

func (o *Outbox) lose(l Loss) {
	o.stats.Lost += l.Count
	o.tell(l)
}

func (o *Outbox) tell(l Loss) {
	o.log.Warn("readings lost", "device", l.Device, "store", l.Store, "first", l.First, "last", l.Last, "count", l.Count, "reason", l.Reason)
	if o.options.LossNote != nil {
		o.addNote(o.options.LossNote(l))
	}
}
