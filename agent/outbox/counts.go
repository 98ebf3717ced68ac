package outbox

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/devices"
)

// What became of readings is counted by the book of package proof. Its rows go
// to disk with commits that are made anyway, once a minute at most, and by
// themselves when an hour is full. A kill leaves a gap in them, and Open has
// them agree with what the store then holds.

const (
	// countsEvery is how often counts go along with a commit at most: they
	// cost it a page or two. What was counted since is unknown after a kill.
	countsEvery = time.Minute
	// hourRows are kept as hours, two weeks of them; older ones become days,
	// of which dayRows are kept, two years.
	hourRows = 14 * 24
	dayRows  = 2 * 366
	// countsShare is the part of the file that they may have.
	countsShare = 16
)

// counts is what the outbox keeps of the book. The outbox's lock guards it.
type counts struct {
	book    *proof.Book // nil until the file is read
	before  uint32      // the run before this opening
	kept    time.Time   // when it was written last
	turn    time.Time   // when the hour is full
	written int64       // what Options.Written said last; before, 0, for what the opening wrote
}

// now gives the time as well as it is known.
func (o *Outbox) now() proof.Moment {
	if o.options.Now == nil {
		return proof.Moment{Time: time.Now().UTC().Round(0)}
	}
	at, stamp := o.options.Now()
	return proof.Moment{Time: at.UTC().Round(0), Stamp: []byte(stamp)}
}

// dateMoment gives a moment its time, where that is known by now.
func (o *Outbox) dateMoment(m proof.Moment) proof.Moment {
	if o.options.Date == nil {
		return m
	}
	var r devices.Record
	r.Time, r.Stamp = m.Time, string(m.Stamp)
	dating := o.options.Date(r.Stamp)
	if dating == "" {
		return m
	}
	o.options.Apply(dating, &r)
	if m.Time = r.Time; r.Bounds == nil {
		m.Stamp = nil
	}
	return m
}

// loadCounts reads the book, before the run is raised.
func (o *Outbox) loadCounts(w *writing) error {
	if _, err := w.tx.CreateBucketIfNotExists(bucketCounts); err != nil {
		return err
	}
	o.counts.before = number32(w.meta().get(metaRun))
	var rows []*proof.Row
	t := w.table(bucketCounts)
	var last []byte
	err := t.ForEach(func(k, v []byte) error {
		last = k
		if open, _ := countsBegin(v); open {
			rows = append(rows, decodeCounts(k, v))
		}
		return nil
	})
	if n := len(rows); last != nil && (n == 0 || rows[n-1] == nil || rows[n-1].Number != binary.BigEndian.Uint64(last)) {
		rows = append(rows, decodeCounts(last, t.Get(last)))
	}
	rows = slices.DeleteFunc(rows, func(r *proof.Row) bool { return r == nil })
	o.counts.book = proof.NewBook(rows)
	return err
}

// beginCounts begins to count, when all else is known of the file.
func (o *Outbox) beginCounts(w *writing) error {
	b := o.counts.book
	rows := b.Rows()
	reason := ""
	if o.recovery != nil && len(rows) > 0 && rows[len(rows)-1].Closed {
		reason = errDamaged.Error() // what is not here was, when it was closed
	}
	now := o.now()
	b.Begin(now, o.counts.before, o.run)
	cursors, taken := w.table(bucketCursor), w.table(bucketTaken)
	for _, device := range b.Open() {
		o.queue(device)
	}
	for device, q := range o.queues {
		var waiting []proof.Span
		for _, s := range q.disk {
			waiting = append(waiting, proof.Span{Run: s.run, First: s.first, Last: s.last, Missing: s.missing})
		}
		p, _ := parsePlace(cursors.get([]byte(device)))
		q.forgotten = p
		if t, _, ok := parseTaken(taken.get([]byte(device))); ok && p.before(t) {
			p = t
		}
		b.Reconcile(device, waiting, p.run, p.seq, reason)
	}
	o.tillTurn(now)
	b.Date(o.dateMoment)
	b.Over(o.keeps())
	b.Tidy()
	k := o.keeping()
	b.Kept(k.changes)
	return k.put(w.table(bucketCounts))
}

func (o *Outbox) writtenBytes() int64 {
	if o.options.Written == nil {
		return 0
	}
	return o.options.Written()
}

// tillTurn notes when the hour is full.
func (o *Outbox) tillTurn(now proof.Moment) {
	o.counts.turn = time.Now().Add(now.Time.Truncate(proof.Grain).Add(proof.Grain).Sub(now.Time))
	o.counts.kept = time.Now()
}

// countsDue tells in how long the hour is full.
func (o *Outbox) countsDue() time.Duration { return time.Until(o.counts.turn) }

// cover brings the book to the present.
func (o *Outbox) cover() {
	written := o.writtenBytes()
	if written > o.counts.written {
		o.counts.book.Wrote(written - o.counts.written)
	}
	o.counts.written = written
	o.counts.book.Cover(o.now())
	o.counts.book.Date(o.dateMoment)
}

// countsWanted reports whether a commit is to write the counts.
func (o *Outbox) countsWanted() bool {
	return o.countsDue() <= 0 || o.closed || o.counts.book.Urgent() || time.Since(o.counts.kept) >= countsEvery
}

// keeps tells for the book whether the store still has some of a device's
// numbers when it has written the commit that is being gathered: readings that
// wait, or do when the commit begins, and what AckDisk keeps for another boot.
func (o *Outbox) keeps() func(device devices.ID, run uint32, first, last uint64) bool {
	kept := make(map[devices.ID]place) // up to there
	for _, s := range o.tidy {
		kept[s.queue.device] = s.place
	}
	for device, q := range o.queues {
		if p := q.doubt(); p != (place{}) {
			kept[device] = p
		}
	}
	return func(device devices.ID, run uint32, first, last uint64) bool {
		q, from, to := o.queues[device], place{run, first}, place{run, last}
		if q == nil {
			return false
		}
		i := sort.Search(len(q.disk), func(i int) bool { return !(place{q.disk[i].run, q.disk[i].last}).before(from) })
		onDisk := i < len(q.disk) && !to.before(place{q.disk[i].run, q.disk[i].first})
		n := len(q.memory)
		inMemory := n > 0 && run == o.run && q.memory[0].Seq <= last && q.memory[n-1].Seq >= first
		return onDisk || inMemory || q.forgotten.before(to) && !kept[device].before(from)
	}
}

// writeCounts writes the counts, where it is time. It is called when what a
// commit loses is counted.
func (o *Outbox) writeCounts(w *writing, c *commit) error {
	o.mu.Lock()
	full := o.countsDue() <= 0
	if !o.countsWanted() && len(c.thinned) == 0 {
		o.mu.Unlock()
		return nil
	}
	o.cover()
	if o.closed {
		o.counts.book.Close()
	} else if full {
		now := o.now()
		o.counts.book.Turn(now)
		o.tillTurn(now)
	}
	o.counts.kept = time.Now()
	var gone []uint64
	if full {
		gone = o.counts.book.Thin(hourRows)
	}
	o.counts.book.Tidy()
	// It goes to disk together with the rows that show it, which may be dropped
	// next.
	for _, t := range c.thinned {
		c.uncount = append(c.uncount, o.counts.book.Lost(t.queue.device, t.from.run, t.from.first, t.from.last, t.gone, proof.Thinned))
	}
	k := o.keeping()
	open := make(map[uint64]bool)
	for _, r := range o.counts.book.Rows() {
		open[r.Number] = true
	}
	o.mu.Unlock()
	c.counted = k.changes
	t := w.table(bucketCounts)
	if err := k.put(t); err != nil || !full {
		return err
	}
	for _, number := range gone {
		if err := t.remove(noteKey(number)); err != nil {
			return err
		}
	}
	return o.thinCounts(t, open)
}

// A keeping is rows as they are to be on disk.
type keeping struct {
	changes []proof.Change
	values  [][]byte
}

func (o *Outbox) keeping() keeping {
	k := keeping{changes: o.counts.book.Changes()}
	for _, c := range k.changes {
		k.values = append(k.values, encodeCounts(c.Row))
	}
	return k
}

func (k keeping) put(t table) error {
	for i, c := range k.changes {
		if err := t.put(noteKey(c.Row.Number), k.values[i]); err != nil {
			return err
		}
	}
	return nil
}

// thinCounts makes days of old hours, and forgets the oldest, but for the rows
// that the book has.
func (o *Outbox) thinCounts(t table, open map[uint64]bool) error {
	type row struct {
		key, value []byte
	}
	var rows []row // that may be changed
	size, all := int64(0), 0
	err := t.ForEach(func(k, v []byte) error {
		all++
		size += int64(len(k) + len(v))
		rows = append(rows, row{k, v})
		return nil
	})
	if err != nil {
		return err
	}
	may := func(r row) bool { return len(r.key) == 8 && !open[binary.BigEndian.Uint64(r.key)] }
	old := rows[:max(0, all-hourRows)]
	var days []row
	for _, r := range old {
		if n := len(days); n > 0 && may(days[n-1]) && may(r) {
			_, day := countsBegin(r.value)
			if _, before := countsBegin(days[n-1].value); day == before {
				a, b := decodeCounts(days[n-1].key, days[n-1].value), decodeCounts(r.key, r.value)
				if a != nil && b != nil {
					joined := sealed(t.name, days[n-1].key, encodeCounts(proof.Join(a, b)))
					size += int64(len(joined) - len(days[n-1].value) - len(r.value) - len(r.key))
					days[n-1].value = joined
					if err := errors.Join(t.copy(bytes.Clone(days[n-1].key), joined), t.remove(bytes.Clone(r.key))); err != nil {
						return err
					}
					continue
				}
			}
		}
		days = append(days, row{bytes.Clone(r.key), bytes.Clone(r.value)})
	}
	rows = append(days, rows[len(old):]...)
	for len(rows) > 1 && (len(rows) > hourRows+dayRows || size > o.options.MaxBytes/countsShare) && may(rows[0]) {
		if err := t.remove(bytes.Clone(rows[0].key)); err != nil {
			return err
		}
		size -= int64(len(rows[0].key) + len(rows[0].value))
		rows = rows[1:]
	}
	return nil
}

// A row's value is whether it is open, the day in which it begins, and JSON.
const countsHead = 1 + 4

func encodeCounts(r *proof.Row) []byte {
	v := make([]byte, countsHead, 256)
	if r.Open() {
		v[0] = 1
	}
	binary.BigEndian.PutUint32(v[1:], r.Day())
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // the type has nothing that cannot be marshalled
	}
	return append(v, b...)
}

// countsBegin reads the beginning of a value, which has its CRC.
func countsBegin(v []byte) (open bool, day uint32) {
	if len(v) < 4+countsHead {
		return false, 0
	}
	return v[4] == 1, binary.BigEndian.Uint32(v[5:])
}

// decodeCounts gives nil where the row cannot be read.
func decodeCounts(k, v []byte) *proof.Row {
	payload, ok := unsealed(bucketCounts, k, v)
	r := &proof.Row{}
	if !ok || len(k) != 8 || len(payload) < countsHead || json.Unmarshal(payload[countsHead:], r) != nil {
		return nil
	}
	r.Number = binary.BigEndian.Uint64(k)
	return r
}

// Proof answers what became of readings in a period, from what is on disk.
func (r *Reader) Proof(q proof.Question) (proof.Answer, error) { return r.proof(q, nil) }

// proof takes newer rows than those on disk into account, which end with the
// one that is being counted.
func (r *Reader) proof(q proof.Question, newer []*proof.Row) (a proof.Answer, err error) {
	err = r.view(func(tx *bolt.Tx) error {
		a = proof.Reply(q, merged(tx.Bucket(bucketCounts), newer), newer != nil)
		return nil
	})
	if err != nil {
		return a, fmt.Errorf("cannot read the outbox: %w", err)
	}
	return a, nil
}

// merged gives the rows of a bucket, which may be nil, in order, with newer
// ones in their places.
func merged(b *bolt.Bucket, newer []*proof.Row) iter.Seq[*proof.Row] {
	return func(yield func(*proof.Row) bool) {
		if b != nil {
			c := b.Cursor()
			for k, v := c.First(); k != nil; k, v = c.Next() {
				row := decodeCounts(k, v)
				if row == nil {
					continue
				}
				for len(newer) > 0 && newer[0].Number <= row.Number {
					if newer[0].Number == row.Number {
						row = newer[0]
					} else if !yield(newer[0]) {
						return
					}
					newer = newer[1:]
				}
				if !yield(row) {
					return
				}
			}
		}
		for _, row := range newer {
			if !yield(row) {
				return
			}
		}
	}
}

// Proof answers what became of readings in a period.
func (o *Outbox) Proof(q proof.Question) (proof.Answer, error) {
	o.mu.Lock()
	o.cover()
	newer := make([]*proof.Row, 0, len(o.counts.book.Rows()))
	for _, r := range o.counts.book.Rows() {
		newer = append(newer, r.Clone())
	}
	o.mu.Unlock()
	return o.Reader().proof(q, newer)
}

// countAccepted counts a pack that the server accepted, before it is forgotten.
func (o *Outbox) countAccepted(q *queue, p *Pack) {
	ago, age := time.Duration(-1), time.Duration(-1)
	if p.boundary.run == o.run && q.unsent() > 0 && q.memory[q.accepted].Seq == p.First {
		ago = time.Since(q.memory[q.accepted].came)
	}
	now := o.now()
	if now.Known() && !p.oldest.IsZero() {
		age = max(0, now.Time.Sub(p.oldest))
	}
	o.counts.book.Accepted(p.Device, p.boundary.run, p.First, p.Last, uint64(p.Count()), now, ago, age)
}

// countLost counts a loss.
func (o *Outbox) countLost(l Loss) {
	_, text, _ := strings.Cut(l.Store, ".")
	if run, err := strconv.ParseUint(text, 10, 32); err == nil {
		o.counts.book.Lost(l.Device, uint32(run), l.First, l.Last, l.Count, l.Reason)
	}
}

// oldest gives the time of the oldest of readings; zero where one is uncertain.
func oldest(rs []devices.Record) time.Time {
	var t time.Time
	for i, r := range rs {
		if r.Bounds != nil {
			return time.Time{}
		}
		if i == 0 || r.Time.Before(t) {
			t = r.Time
		}
	}
	return t
}
