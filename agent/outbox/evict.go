package outbox

import (
	"bytes"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// When the file is full, whoever has most in it gives way. Its oldest readings
// are thinned, which leaves about a fifth of them, and those that were thinned
// maxLevel times are dropped. Of the levels it is always the one that takes most
// room, so that in the end each has as much: what is newest is there in full,
// and what is oldest goes back some forty times as far as if all were.
//
// What is left of readings that were thinned keeps its numbers, and the row tells
// which are missing. People are told of it when it is about to go out: until then
// it may be thinned further, or be dropped, and nobody could be told anyway.
const (
	maxLevel = 3
	// thinInto is how many times fewer the readings are that are kept for each
	// field: two for a number, and one more in all.
	thinInto = 5
	// rareState is how many readings a state must last on average. One that
	// changes more often is not told change by change.
	rareState = 4
	// thinBytes is about how much of one device is thinned at once, and thinMost
	// what is gathered where that is too few readings.
	thinBytes = 32 << 10
	thinMost  = 512 << 10
	// evictStep is the part of the file that is made free at a time: enough to
	// make up for looking through all of it, and no more, because it holds up a
	// commit.
	evictStep = 64
	// keptTold bounds Loss.Kept, because an event must not hold up a slow link.
	keptTold = 1500
)

const (
	evicted  = "the outbox is full"
	leftThin = "the outbox was full; of each interval the lowest, the highest and the last reading are kept"
)

// A stock is what a device has in the log, and how far it was gone through.
type stock struct {
	total int64               // bytes of its rows; 0 where none may go
	size  [maxLevel + 1]int64 // of those that were thinned so often
	from  [maxLevel + 1]place // those up to here are done with
	made  [maxLevel + 1]place // and where those that this transaction made; no queue knows of them yet
	out   *place              // up to where they are frozen; nil where that is not known
}

// A thinning is rows that took the place of others.
type thinning struct {
	queue *queue
	from  span
	rows  []span
	gone  uint64 // how many readings are no more
}

// evict makes room. What does not thin takes none for it.
func (o *Outbox) evict(w *writing, c *commit, excess int64, thin bool) error {
	// What was dropped before is told as lost, also where the transaction was
	// taken back.
	for _, d := range c.dropped {
		err := deleteWhile(w.table(bucketLog), d.device, place{d.run, d.first}, func(run uint32, first uint64, row []byte) bool {
			return run == d.run && rowSpan(run, first, row).last <= d.last
		})
		if err != nil {
			return err
		}
	}
	stocks, err := weigh(w.table(bucketLog))
	if err != nil {
		return err
	}
	// Rows that followed each other are one loss: the notes of losses should not
	// fill the room.
	lost := make(map[devices.ID]span)
	// Where thinning does not help, as with states that always change, it ends.
	for work := 2 * excess; excess > 0; {
		var victim devices.ID
		s := new(stock)
		for device, t := range stocks {
			if t.total > s.total || t.total == s.total && device < victim {
				victim, s = device, t
			}
		}
		if s.total <= 0 {
			break
		}
		if !o.knows(victim) {
			return disordered(bucketLog)
		}
		if s.out == nil {
			out := o.frozenUntil(w, victim)
			s.out = &out
		}
		if level := s.fullest(); thin && work > 0 && level < maxLevel {
			t, before, after, err := o.thin(w, victim, s, level)
			if err != nil {
				return err
			}
			if len(t.rows) == 0 {
				s.size[level] = 0
				continue
			}
			c.thinned = append(c.thinned, t)
			s.size[level] -= before
			s.total -= before - after
			work -= before
			excess -= before - after
			continue
		}
		gone, freed, err := o.evictRow(w, victim, s)
		if err != nil {
			return err
		}
		if freed == 0 {
			s.total = 0
			continue
		}
		if before, some := lost[victim]; some && before.run == gone.run && before.last+1 == gone.first {
			gone.first = before.first
			gone.missing += before.missing
		} else if some {
			o.loseRows(victim, before, evicted)
		}
		lost[victim] = gone
		c.dropped = append(c.dropped, deviceSpan{victim, gone})
		s.total -= freed
		excess -= freed
	}
	for device, s := range lost {
		o.loseRows(device, s, evicted)
	}
	return nil
}

// weigh gives what each device has in the log.
func weigh(log table) (map[devices.ID]*stock, error) {
	stocks := make(map[devices.ID]*stock)
	var last []byte
	return stocks, log.ForEach(func(k, v []byte) error {
		if bytes.Compare(k, last) <= 0 {
			return disordered(bucketLog)
		}
		last = k
		device, run, first, ok := parseRowKey(k)
		if !ok {
			return nil
		}
		s := stocks[device]
		if s == nil {
			s = new(stock)
			stocks[device] = s
		}
		level, size := min(rowLevel(v), maxLevel), int64(len(k)+len(v))
		if s.size[level] == 0 {
			s.from[level] = place{run, first - 1}
		}
		s.size[level] += size
		s.total += size
		return nil
	})
}

// fullest gives the level that takes most room.
func (s *stock) fullest() byte {
	most := byte(maxLevel)
	for level := range byte(maxLevel) {
		if s.size[level] > s.size[most] {
			most = level
		}
	}
	return most
}

// isNew reports whether this transaction made a row.
func (s *stock) isNew(level byte, row span) bool {
	return level > 0 && s.made[level] != place{} && !(place{row.run, row.first}).before(s.made[level])
}

// thin thins some of the oldest rows of a device and a level, and gives their
// bytes before and after. It gives no rows where there are too few.
func (o *Outbox) thin(w *writing, device devices.ID, s *stock, level byte) (t thinning, before, after int64, err error) {
	log := w.table(bucketLog)
	var keys [][]byte
	var rs []devices.Record
	numbers := make(map[string]bool)
	q, begin := o.unsettled(device)
	for _, p := range []place{*s.out, begin} {
		if s.from[level].before(p) {
			s.from[level] = p
		}
	}
	c := log.Cursor()
	for k, v := c.Seek(rowKey(device, s.from[level].run, s.from[level].seq+1)); k != nil; k, v = c.Next() {
		d, run, first, ok := parseRowKey(k)
		row := rowSpan(run, first, v)
		if !ok || d != device || s.isNew(level, row) || o.beingWritten(device, row) {
			break
		}
		more, err := decodeRow(bucketLog, k, v)
		if fits := err == nil && rowLevel(v) == level; !fits || len(keys) > 0 && (run != t.from.run || first != t.from.last+1) {
			if len(keys) > 0 && len(rs) >= interval(numbers) {
				break
			}
			keys, rs, before = nil, nil, 0
			if !fits {
				continue
			}
		}
		if t.from.last = row.last; len(keys) == 0 {
			t.from = row
		}
		keys, rs, before = append(keys, bytes.Clone(k)), append(rs, more...), before+int64(len(k)+len(v))
		countNumbers(numbers, more)
		if before >= thinBytes && len(rs) >= interval(numbers) || before >= thinMost {
			break
		}
	}
	if len(keys) == 0 || len(rs) < interval(numbers) {
		return thinning{}, 0, 0, nil
	}
	for _, k := range keys {
		if err := log.remove(k); err != nil {
			return thinning{}, 0, 0, err
		}
	}
	row, key := newThinnedRow(level+1, t.from.first), keys[0]
	put := func() error {
		first := t.from.first
		if n := len(t.rows); n > 0 {
			first = t.rows[n-1].last + 1
		}
		t.rows = append(t.rows, span{t.from.run, first, row.next - 1, row.next - first - uint64(row.n)})
		after += int64(len(key) + 4 + len(row.payload))
		return log.put(rowKey(device, t.from.run, first), row.payload)
	}
	for _, r := range thinned(rs, interval(numbers)) {
		if row.add(r) {
			continue
		}
		if err := put(); err != nil {
			return thinning{}, 0, 0, err
		}
		row = newThinnedRow(level+1, row.next)
		row.add(r)
	}
	if err := put(); err != nil {
		return thinning{}, 0, 0, err
	}
	t.queue, t.gone = q, uint64(len(rs))
	for _, row := range t.rows {
		t.gone -= uint64(row.count())
	}
	s.from[level] = place{t.from.run, t.from.last}
	if s.made[level+1] == (place{}) {
		s.made[level+1] = place{t.from.run, t.from.first}
	}
	return t, before, after, nil
}

// unsettled gives a device's queue and the place after which what is on disk of
// it is not settled.
func (o *Outbox) unsettled(device devices.ID) (*queue, place) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[device]
	if len(q.disk) == 0 {
		return q, place{maxRun, maxSeq}
	}
	return q, place{q.disk[0].run, q.disk[0].first - 1}
}

// knows reports whether a device has a queue, as all have that have rows.
func (o *Outbox) knows(device devices.ID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.queues[device] != nil
}

// A state is told by its changes, other numbers by the lowest and the highest.
func isState(f devices.Field) bool {
	switch f.Kind {
	case devices.Status, devices.Event, devices.Setting, devices.Identity, devices.Fault:
		return true
	}
	return f.Value.Kind() != devices.NumberValue
}

// countNumbers adds the names of the fields of which the lowest and the highest
// are kept.
func countNumbers(names map[string]bool, rs []devices.Record) {
	for _, r := range rs {
		for _, f := range r.Fields {
			if !isState(f) {
				names[f.Name] = true
			}
		}
	}
}

// interval is of how many readings at least as many are kept as there are
// numbers.
func interval(numbers map[string]bool) int { return thinInto * (2*len(numbers) + 1) }

// An extreme is the lowest and the highest of a number, and which readings have
// them.
type extreme struct {
	low, high     float64
	lowAt, highAt int
}

// thinned gives those readings of rs that are kept, where intervals are at least
// so long: of each interval those with the lowest and the highest of each number,
// those in which a state changed or something happened, and the last; and the
// first of all.
func thinned(rs []devices.Record, interval int) []devices.Record {
	keep := make([]bool, len(rs))
	keep[0] = true
	states := make(map[string]devices.Value)
	n := len(rs) / interval
	for i := range n {
		from, to := len(rs)*i/n, len(rs)*(i+1)/n
		numbers := make(map[string]*extreme)
		changes := make(map[string][]int)
		for at := from; at < to; at++ {
			for _, f := range rs[at].Fields {
				if isState(f) {
					if before, known := states[f.Name]; !known || before != f.Value || f.Kind == devices.Event {
						changes[f.Name] = append(changes[f.Name], at)
					}
					states[f.Name] = f.Value
					continue
				}
				v := f.Value.Float()
				e := numbers[f.Name]
				if e == nil {
					e = &extreme{v, v, at, at}
					numbers[f.Name] = e
				}
				if v < e.low {
					e.low, e.lowAt = v, at
				}
				if v > e.high {
					e.high, e.highAt = v, at
				}
			}
		}
		for _, e := range numbers {
			keep[e.lowAt], keep[e.highAt] = true, true
		}
		for _, all := range changes {
			if len(all) > (to-from)/rareState {
				all = all[:1] // no state, or one that never rests
			}
			for _, at := range all {
				keep[at] = true
			}
		}
		keep[to-1] = true
	}
	var out []devices.Record
	last := 0
	for at, r := range rs {
		if !keep[at] {
			continue
		}
		// Two in a row never share a time: the one between does not.
		if at > last+1 && r.Time.Equal(rs[last].Time) {
			out = append(out, rs[at-1])
		}
		out = append(out, r)
		last = at
	}
	return out
}

// applyThinned makes memory agree with what was thinned.
func (o *Outbox) applyThinned(all []thinning) {
	count := make(map[devices.ID]int)
	for _, t := range all {
		there := t.queue.replace(t.from, t.rows...)
		n := there.count()
		for _, row := range t.rows {
			n -= row.count()
		}
		o.stats.Thinned += uint64(n)
		count[t.queue.device] += n
	}
	for device, n := range count {
		o.log.Warn("readings thinned, because the outbox is full", "device", device, "count", n)
	}
}

// findThinned finds what was thinned out of readings that are about to go out,
// and of many after them: one note for each pack would be too many.
func (o *Outbox) findThinned(log table, j *job, s span) {
	if o.mu.Lock(); j.toldThin == (place{}) {
		j.toldThin = j.queue.toldThin
	}
	o.mu.Unlock()
	for j.toldThin.before(place{s.run, s.last}) {
		at := place{s.run, s.first}
		if j.toldThin.run == s.run && j.toldThin.seq >= s.first {
			at.seq = j.toldThin.seq + 1
		}
		kept, last := keptFrom(log, j.queue.device, at)
		j.toldThin = place{s.run, max(last, at.seq)}
		l := Loss{Device: j.queue.device, Store: o.runs[s.run], First: at.seq, Last: at.seq - 1, Kept: kept, Reason: leftThin, Time: time.Now()}
		for i, n := range kept {
			l.Last += n
			l.Count += n * uint64(i%2)
		}
		if l.Count > 0 {
			j.thinned = append(j.thinned, l)
		}
	}
}

// tellThinned tells what was found. That its note is written with the next commit
// is early enough: only that one can delete the readings which show it.
func (o *Outbox) tellThinned(j *job) {
	for _, l := range j.thinned {
		o.tell(l)
	}
	if j.queue.toldThin.before(j.toldThin) {
		j.queue.toldThin = j.toldThin
	}
}

// keptFrom tells what is there and what was thinned out from a place on, as
// Loss.Kept does, and the number up to which it looked.
func keptFrom(log table, device devices.ID, at place) (kept []uint64, last uint64) {
	last = at.seq - 1
	add := func(n uint64, missing int) {
		for len(kept)%2 == missing || len(kept) == 0 {
			kept = append(kept, 0)
		}
		kept[len(kept)-1] += n
		last += n
	}
	c := log.Cursor()
	for k, v := seekRow(c, device, at); k != nil; k, v = c.Next() {
		d, run, first, ok := parseRowKey(k)
		if !ok || d != device || run != at.run || first > last+1 {
			break // what is not there is no row's, and was told
		}
		rs, err := decodeRow(bucketLog, k, v)
		if row := rowSpan(run, first, v); row.missing == 0 && len(kept) == 0 {
			return nil, row.last
		} else if row.missing == 0 || err != nil {
			break
		}
		for _, r := range rs {
			if r.Seq <= last || len(kept) >= keptTold {
				continue
			}
			if r.Seq > last+1 {
				add(r.Seq-last-1, 1)
			}
			add(1, 0)
		}
		if len(kept) >= keptTold {
			break
		}
	}
	return kept[:len(kept)/2*2], last
}

// evictRow deletes a device's oldest row that is not frozen, and gives what it
// held and its size; 0 where there is none that may go.
func (o *Outbox) evictRow(w *writing, device devices.ID, s *stock) (span, int64, error) {
	c := w.table(bucketLog).Cursor()
	k, v := c.Seek(rowKey(device, s.out.run, s.out.seq+1))
	d, run, first, ok := parseRowKey(k)
	if !ok || d != device {
		return span{}, 0, nil
	}
	if !s.out.before(place{run, first}) {
		return span{}, 0, disordered(bucketLog)
	}
	row, freed, level := rowSpan(run, first, v), int64(len(k)+len(v)), min(rowLevel(v), maxLevel)
	if s.isNew(level, row) || o.beingWritten(device, row) {
		return span{}, 0, nil
	}
	s.size[level] -= freed
	return row, freed, w.table(bucketLog).remove(k)
}

// beingWritten reports whether this commit may have written a device's row: it
// will be acknowledged, and no queue knows yet that it is on disk, so that its
// loss could not be told.
func (o *Outbox) beingWritten(device devices.ID, s span) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[device]
	if s.run == o.run {
		return q.committing > 0 && s.last >= q.memory[0].Seq
	}
	return s.run <= o.heldRun && q.found != nil
}

// frozenUntil is the place up to which a device's packs are out, may go out
// while the committer works, or may have gone out before a restart: their
// boundaries are on disk.
func (o *Outbox) frozenUntil(w *writing, device devices.ID) place {
	var p place
	packs := w.table(bucketPacks)
	c := packs.Cursor()
	for k, _ := c.Seek(rowKey(device, 0, 0)); ; k, _ = c.Next() {
		d, run, first, ok := parseRowKey(k)
		if !ok || d != device {
			break
		}
		if b, ok := parseBoundary(run, first, packs.get(k)); ok {
			p = place{run, b.last}
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queues[device]
	out := q.prepared
	if q.sending != nil {
		out = append([]*Pack{q.sending}, out...)
	}
	if p.before(q.toldThin) {
		p = q.toldThin
	}
	for _, pack := range out {
		if last := (place{pack.boundary.run, pack.Last}); p.before(last) {
			p = last
		}
	}
	return p
}
