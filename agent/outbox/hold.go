package outbox

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A message that comes again after a start may have been sent to the server by
// the run before without ever having been on disk. Whether it arrived, only
// the device's log node knows, in which each such reading carries the
// message's origin. Until that is read back, what may be there already is
// held: on disk, so that its source is acknowledged and nothing else of the
// device waits to be taken, but without a number. Then what is not there is
// numbered in a run of its own, older than that of all other readings of this
// opening, and so goes out before them. What a crash leaves held keeps its
// run, for the same reason; where some is on disk, no number of that run has
// been used.

// maxHeld bounds what is held of one device: more than any protocol has under
// way.
const maxHeld = 1000

// A heldEntry is a reading that may be at the server.
type heldEntry struct {
	entry
	run uint32 // in which it will be numbered
	key uint64 // in the bucket; 0 while it is not written
}

// unsure reports whether a message that was sent before may have arrived
// without this store knowing it. Sources send again first of all (MQTT 3.1.1
// section 4.6), so after the first message that is new to this run there is no
// such message of the device any more. One that comes when what was held is
// settled is looked for in what was found then: nothing of the runs before is
// sent after that.
func (o *Outbox) unsure(m devices.Message) bool {
	unsure := false
	for _, r := range m.Readings {
		q := o.queue(r.Device)
		if q.next > 1 {
			return false
		}
		unsure = unsure || q.arrived == nil || q.arrived[m.Origin] > 0
	}
	return unsure && o.resumed
}

// hold keeps a message that may be at the server.
func (o *Outbox) hold(m devices.Message) (devices.Receipt, []devices.Record, error) {
	for _, r := range m.Readings {
		if len(o.queue(r.Device).held) >= maxHeld {
			return nil, nil, devices.ErrFull
		}
	}
	now := time.Now()
	receipt := newReceipt(len(m.Readings))
	records := make([]devices.Record, 0, len(m.Readings))
	for _, reading := range m.Readings {
		q := o.queue(reading.Device)
		e := entry{receipt: receipt, came: now, size: entrySize(reading)}
		e.Reading, e.Origin = reading, m.Origin
		e.Time = e.Time.UTC().Truncate(time.Microsecond)
		q.held = append(q.held, &heldEntry{entry: e, run: o.heldRun})
		if q.arrived != nil {
			q.found, o.urgent = q.arrived, true
		}
		o.memory += e.size
		o.waiting[q] = struct{}{}
		records = append(records, e.Record)
	}
	o.origins.remember(m.Origin, receipt)
	signal(o.ready)
	o.fresh = true
	o.wakeCommitter()
	return receipt, records, nil
}

// Doubt gives a device that is to be read back: messages of it are held, or it
// is not known whether the server still has what it accepted before a power
// cut. newest is how many items are needed, 0 as many as can be had; any is false
// where there is no such device. The caller ends it with [Outbox.Resolve] or
// [Outbox.ReleaseDoubt].
func (o *Outbox) Doubt() (device devices.ID, newest int, any bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, q := range o.queues {
		if q.asked || !q.blocked() || q.found != nil {
			continue
		}
		if q.asked, q.askedAll = true, len(q.held) > 0; !q.askedAll {
			newest = 1
		}
		return q.device, newest, true
	}
	return "", 0, false
}

// ReleaseDoubt gives back a device that could not be read back.
func (o *Outbox) ReleaseDoubt(device devices.ID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queues[device].asked = false
	signal(o.ready)
}

// An Arrived is an item of a device's log node.
type Arrived struct {
	Store   string // that published it
	Last    uint64 // its highest number
	Origins []devices.Origin
}

// Resolve says which the newest items of a device are, in any order; none where
// there is no node. Those of other stores are ignored.
func (o *Outbox) Resolve(device devices.ID, items []Arrived) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[device]
	q.asked = false
	found := make(map[devices.Origin]int)
	var newest place
	for _, item := range items {
		run, mine := o.runOf(item.Store)
		if !mine {
			continue
		}
		if p := (place{run, item.Last}); newest.before(p) {
			newest = p
		}
		for _, origin := range item.Origins {
			found[origin]++
		}
	}
	if q.doubt() != (place{}) {
		o.resolveDoubt(q, newest)
	}
	switch {
	case len(q.held) == 0:
		o.enqueue(q)
	case q.askedAll:
		q.found, o.urgent = found, true
		o.waiting[q] = struct{}{}
		o.wakeCommitter()
	default: // it came meanwhile, and is to be looked for among more than that
		signal(o.ready)
	}
}

// resolveDoubt ends the doubt about what the server accepted before a power cut:
// items go to it in their order, so it has what is up to the newest that it
// shows. The rest goes out again.
//
// All of it again would be the same items, too. But each would then be a newer
// item of the node than one that the store does not know of, and that has to be
// found among the newest if its message comes again.
func (o *Outbox) resolveDoubt(q *queue, newest place) {
	if end := q.doubt(); end.before(newest) {
		newest = end
	}
	again := q.doubted
	for len(again) > 0 && !newest.before(place{again[0].run, again[0].last}) {
		again = again[1:]
	}
	switch {
	case len(again) == 0 || again[0].run != newest.run || newest.seq < again[0].first:
	case again[0].missing == 0:
		again[0].first = newest.seq + 1
	default: // where they are missing is not known, and so not how many are left
		again, newest = q.doubted, place{}
	}
	if newest != (place{}) {
		q.settled = newest
		o.deleteLater(q, newest)
	}
	q.doubted = nil
	for _, s := range again {
		o.counts.book.Again(q.device, s.run, s.first, s.last, uint64(s.count()))
	}
	q.disk = slices.Concat(again, q.disk)
}

// runOf gives the run that a store name tells; mine is false where the store is
// not this one.
func (o *Outbox) runOf(store string) (run uint32, mine bool) {
	random, _, _ := strings.Cut(o.store, ".")
	name, number, _ := strings.Cut(store, ".")
	n, err := strconv.ParseUint(number, 10, 32)
	return uint32(n), err == nil && name == random
}

// blocked reports whether nothing new of the queue may be frozen: what is held
// goes out before it, and what the server has does not go out.
func (q *queue) blocked() bool { return len(q.held) > 0 || q.doubt() != place{} }

// doubt is the place up to which it is not known whether the server still has
// what it accepted; zero where nothing is in doubt.
func (q *queue) doubt() place {
	if len(q.doubted) == 0 {
		return place{}
	}
	last := q.doubted[len(q.doubted)-1]
	return place{last.run, last.last}
}

// A resolution is what one commit does with what is held of a queue.
type resolution struct {
	held  []*heldEntry
	found map[devices.Origin]int // nil while it is not known
	put   []uint64               // the keys of what was written
	spans []span                 // the numbers that were given
}

// resolution takes what is to be done; nil where there is nothing.
func (q *queue) resolution() *resolution {
	if len(q.held) == 0 {
		return nil
	}
	r := &resolution{held: q.held[:len(q.held):len(q.held)]}
	if q.found != nil {
		r.found = q.found
	}
	return r
}

// writeHeld writes what is held and not on disk, or, once it is known what the
// server has, gives numbers to the rest and writes it to the log.
func (o *Outbox) writeHeld(w *writing, j *job) error {
	r := j.held
	b := w.table(bucketHeld)
	r.spans = nil
	if r.found == nil {
		r.put = make([]uint64, len(r.held))
		for i, h := range r.held {
			if r.put[i] = h.key; h.key != 0 {
				continue
			}
			key, err := b.NextSequence()
			if err != nil {
				return err
			}
			r.put[i] = key
			if err := b.put(rowKey(j.queue.device, h.run, key), rowPayload(h.Record)); err != nil {
				return err
			}
		}
		return nil
	}
	var keep []devices.Record
	run := uint32(0)
	put := func() error {
		if len(keep) == 0 {
			return nil
		}
		first := uint64(1)
		if run == o.heldRun {
			first = j.queue.heldNext
		}
		for i := range keep {
			keep[i].Seq = first + uint64(i)
		}
		r.spans = append(r.spans, span{run: run, first: first, last: first + uint64(len(keep)) - 1})
		err := putRows(w.table(bucketLog), j.queue.device, run, rowKey(j.queue.device, run, first), newRow(), keep)
		keep = nil
		return err
	}
	left := maps.Clone(r.found)
	for _, h := range r.held {
		if h.key != 0 {
			if err := b.remove(rowKey(j.queue.device, h.run, h.key)); err != nil {
				return err
			}
		}
		if left[h.Origin] > 0 {
			left[h.Origin]--
			continue
		}
		if h.run != run {
			if err := put(); err != nil {
				return err
			}
			run = h.run
		}
		rec := h.Record
		rec.Origin = devices.Origin{} // the store itself will know it
		if n := len(keep); n > 0 && rec.Time.Equal(keep[n-1].Time) {
			rec.Time = rec.Time.Add(time.Microsecond) // readers tell readings apart by it
		}
		keep = append(keep, rec)
	}
	return put()
}

// applyHeld makes memory agree with what writeHeld wrote.
func (o *Outbox) applyHeld(q *queue, r *resolution) {
	if r.found == nil {
		for i, h := range r.held {
			if h.key == 0 && r.put[i] != 0 {
				h.key = r.put[i]
				o.memory -= h.size
				h.receipt.add(-1, nil)
			}
		}
		return
	}
	for _, h := range r.held {
		if h.key == 0 {
			o.memory -= h.size
			h.receipt.add(-1, nil)
		}
	}
	kept := 0
	for _, numbered := range r.spans {
		kept += numbered.count()
		if numbered.run == o.heldRun {
			q.heldNext = numbered.last + 1
		}
		q.insert(numbered)
		o.counts.book.Given(q.device, numbered.run, numbered.first, numbered.last)
	}
	o.stats.Taken += uint64(kept)
	o.stats.Repeated += uint64(len(r.held) - kept)
	o.counts.book.Repeated(q.device, uint64(len(r.held)-kept))
	if q.held = q.held[len(r.held):]; len(q.held) == 0 {
		q.held, q.found, q.arrived = nil, nil, q.found
	}
}

// insert adds readings of a run that may be older than others on disk.
func (q *queue) insert(s span) {
	i := 0
	for i < len(q.disk) && q.disk[i].run <= s.run {
		i++
	}
	if i > 0 && q.disk[i-1].joins(s) {
		q.disk[i-1].last = s.last
		return
	}
	q.disk = slices.Insert(q.disk, i, s)
}

// loadHeld takes what the run before held.
func (o *Outbox) loadHeld(w *writing, used map[uint32]bool) error {
	t := w.table(bucketHeld)
	newest := t.Sequence()
	var bad [][]byte
	err := t.ForEach(func(k, v []byte) error {
		device, run, key, ok := parseRowKey(k)
		rs, err := decodeRow(bucketHeld, k, v)
		if !ok || err != nil || len(rs) != 1 {
			bad = append(bad, bytes.Clone(k))
			o.stats.Lost++
			return nil
		}
		rs[0].Seq = 0
		newest = max(newest, key)
		h := &heldEntry{entry: entry{Record: rs[0], receipt: newReceipt(0)}, run: run, key: key}
		used[run] = true
		q := o.queue(device)
		q.held = append(q.held, h)
		o.origins.remember(h.Origin, h.receipt)
		o.waiting[q] = struct{}{}
		return nil
	})
	if err := errors.Join(err, o.removeDamaged(t, bad)); err != nil {
		return err
	}
	return t.atLeast(newest)
}

// unwrittenHeld gives when the oldest reading came that is held and not on disk.
func (q *queue) unwrittenHeld() (came time.Time, any bool) {
	for _, h := range q.held {
		if h.key == 0 {
			return h.came, true
		}
	}
	return time.Time{}, false
}
