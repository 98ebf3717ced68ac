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
	oldest   time.Time // of its readings; zero where that is not certain
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
	case len(q.disk) > 0 || q.onDiskToo():
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
	q.sending = o.freezeMemory(q, now, q.memory[q.accepted:])
	crashpoint.At(crashpoint.PackFrozen)
}

// freezeMemory makes a pack of the oldest of the readings in memory.
func (o *Outbox) freezeMemory(q *queue, now time.Time, waiting []entry) *Pack {
	rs := make([]devices.Record, min(len(waiting), packLimit))
	for i := range rs {
		rs[i] = waiting[i].Record
	}
	p := o.pack(q, o.run, now, rs)
	q.inMemory = append(q.inMemory, memoryBoundary{boundary: p.boundary})
	return p
}

// freezeJournaled makes packs of what is in memory, and in the journal now or
// with the commit that is being gathered, which writes their boundaries. It
// leaves out the pack that is under way.
func (o *Outbox) freezeJournaled(q *queue) (packs []*Pack) {
	now := time.Now().Truncate(time.Microsecond)
	room, made := int(o.room.Load()), 0
	rest := q.memory[q.accepted:]
	for q.sending != nil && len(rest) > 0 && rest[0].Seq <= q.sending.Last {
		rest = rest[1:]
	}
	for len(rest) > 0 && len(packs) < preparedPacks && (room == 0 || made < preparedRooms*room) {
		p := o.freezeMemory(q, now, rest)
		packs, rest = append(packs, p), rest[p.Count():]
		made += len(p.Payload)
	}
	return packs
}

// pack makes a pack of the oldest of rs, which were numbered by run without a
// gap.
func (o *Outbox) pack(q *queue, run uint32, frozen time.Time, rs []devices.Record) *Pack {
	if q.limit > 0 && len(rs) > q.limit {
		rs = rs[:q.limit]
	}
	dating := o.date(rs)
	rs = o.dated(dating, rs)
	payload, n := o.options.Encode(q.device, frozen, rs, int(o.room.Load()))
	b := boundary{run, rs[0].Seq, rs[n-1].Seq, frozen, dating}
	return &Pack{q.device, o.runs[run], b.first, b.last, payload, n, b, oldest(rs[:n])}
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
	o.countAccepted(q, p)
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
	q.sending, q.out, q.answered, q.notUntil = nil, false, true, time.Time{}
	if last := (place{p.boundary.run, p.Last}); q.settled.before(last) {
		q.settled = last
	}
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
		for now := time.Now(); len(q.acceptedAt) < n; {
			q.acceptedAt = append(q.acceptedAt, now)
		}
		q.accepted = max(q.accepted, n)
		return
	}
	o.drop(q, n)
	if len(q.memory) == 0 {
		delete(o.waiting, q)
	}
}

// drop ends the oldest n readings in memory, with their boundaries.
func (o *Outbox) drop(q *queue, n int) {
	last := q.memory[n-1].Seq
	for i, e := range q.memory[:n] {
		o.memory -= e.size
		if i >= q.journaled {
			e.receipt.add(-1, nil)
		}
	}
	q.forget(n)
	for len(q.inMemory) > 0 && q.inMemory[0].last <= last {
		q.inMemory = q.inMemory[1:]
	}
}

// dropKept ends what AckDisk has kept for long enough in the journal: it need
// not be in bbolt any more.
func (o *Outbox) dropKept(q *queue) {
	n := 0
	for n < min(q.accepted, q.journaled) && time.Since(q.acceptedAt[n]) >= keepSettled {
		n++
	}
	if n > 0 && q.committing == 0 {
		o.drop(q, n)
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
	q.splits++
	q.inMemory = slices.DeleteFunc(q.inMemory, func(b memoryBoundary) bool { return b.run == p.boundary.run && b.first >= p.First })
	o.enqueue(q)
	return true
}

// Release gives back a pack without an answer: after pause, Next gives the
// same again.
func (o *Outbox) Release(p *Pack, pause time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[p.Device]
	q.out, q.answered = false, false
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
	o.countLost(l)
	o.tell(l)
}

func (o *Outbox) tell(l Loss) {
	o.log.Warn("readings lost", "device", l.Device, "store", l.Store, "first", l.First, "last", l.Last, "count", l.Count, "reason", l.Reason)
	if o.options.LossNote != nil {
		o.addNote(o.options.LossNote(l))
	}
}
