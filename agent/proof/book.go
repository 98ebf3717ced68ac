package proof

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Book holds the row that is being counted and those before it of which
// something is still to come. Its methods are called under one lock.
type Book struct {
	rows  []*Row // oldest first; the last is being counted
	open  map[devices.ID][]*Cell
	run   uint32
	found *Row // for readings that were found and not counted
	next  uint64
	lost  bool // something was, since it was written
}

// Grain is the time of a row.
const Grain = time.Hour

// NewBook makes a book of what the openings before left: the rows that were
// open, and the last one whether it was or not; in order.
func NewBook(rows []*Row) *Book {
	b := &Book{rows: rows, next: 1}
	if n := len(rows); n > 0 {
		b.next = rows[n-1].Number + 1
	}
	b.index()
	return b
}

// index finds the open cells.
func (b *Book) index() {
	b.open = make(map[devices.ID][]*Cell)
	for _, r := range b.rows {
		for _, c := range r.Cells {
			if c.row = r; c.Run != 0 {
				b.open[c.Device] = append(b.open[c.Device], c)
			}
		}
	}
	for _, cells := range b.open {
		slices.SortFunc(cells, byPlace)
	}
}

func byPlace(a, b *Cell) int { return cmp.Or(cmp.Compare(a.Run, b.Run), cmp.Compare(a.First, b.First)) }

// Begin begins to count for an opening. before is the run before it, as the
// store has it: where it is not that which counted last, others were at work
// that did not count.
func (b *Book) Begin(now Moment, before, run uint32) {
	b.run = run
	var last *Row
	if n := len(b.rows); n > 0 {
		last = b.rows[n-1]
	}
	if last == nil {
		b.begin(now)
		b.found = b.current()
		return
	}
	g := Gap{last.To, now, Killed}
	if last.Run != before {
		g.Why = Uncounted
	} else if last.Closed {
		g.Why = Stopped
	}
	known := last.Dated() && now.Known()
	backwards := known && now.Time.Before(last.To.Time)
	if known && !backwards && hour(now) == hour(last.From) {
		last.gap(g)
		last.Run, last.To, last.Closed = run, now, false
		last.change++
		b.found = last
		return
	}
	if backwards { // the clock was wrong, or is
		g.From = now
	}
	between := b.begin(g.From)
	between.To = now
	between.gap(g)
	b.found = between
	b.begin(now)
}

func hour(m Moment) time.Time { return m.Time.Truncate(Grain) }

func (b *Book) begin(now Moment) *Row {
	r := &Row{Number: b.next, Run: b.run, From: now, To: now, change: 1}
	b.next++
	b.rows = append(b.rows, r)
	return r
}

func (b *Book) current() *Row { return b.rows[len(b.rows)-1] }

// Turn begins a new row.
func (b *Book) Turn(now Moment) {
	b.Cover(now)
	b.begin(now)
	b.Tidy()
}

// Thin makes days of the oldest rows where the book has more than n of them:
// readings may wait for years. It gives the numbers of the rows that are gone.
func (b *Book) Thin(n int) (gone []uint64) {
	for i := 0; i < len(b.rows)-n; {
		r, next := b.rows[i], b.rows[i+1]
		follows := r.To.Time.Equal(next.From.Time) && bytes.Equal(r.To.Stamp, next.From.Stamp)
		if !follows || r.Day() != next.Day() || next == b.current() || next == b.found {
			i++
			continue
		}
		joined := Join(r, next)
		joined.change = max(r.change, next.change) + 1
		b.rows[i] = joined
		b.rows = slices.Delete(b.rows, i+1, i+2)
		gone = append(gone, next.Number)
	}
	if len(gone) > 0 {
		b.index()
	}
	return gone
}

// Cover says that all was counted up to now.
func (b *Book) Cover(now Moment) {
	r := b.current()
	if r.To.Known() && now.Known() && now.Time.Before(r.To.Time) {
		return
	}
	r.To = now
	r.change++
}

// Close says that counting ends in order.
func (b *Book) Close() {
	b.current().Closed = true
	b.current().change++
}

// Date dates what can be.
func (b *Book) Date(date func(Moment) Moment) {
	for _, r := range b.rows {
		r.date(date)
	}
}

// Wrote counts bytes that were written.
func (b *Book) Wrote(n int64) {
	b.current().Written += n
	b.current().change++
}

// Given counts readings that got the numbers first to last of a run.
func (b *Book) Given(device devices.ID, run uint32, first, last uint64) {
	b.give(b.current(), device, run, first, last)
}

func (b *Book) give(r *Row, device devices.ID, run uint32, first, last uint64) {
	r.change++
	cells := b.open[device]
	if n := len(cells); n > 0 {
		if c := cells[n-1]; c.row == r && c.Run == run && c.Last+1 == first {
			c.Last, c.over = last, false
			c.Given += last - first + 1
			return
		}
	}
	c := &Cell{Device: device, Run: run, First: first, Last: last, Counts: Counts{Given: last - first + 1}, row: r}
	r.Cells = append(r.Cells, c)
	at, _ := slices.BinarySearchFunc(cells, c, byPlace)
	b.open[device] = slices.Insert(cells, at, c)
}

// each gives the open cells that have some of the numbers, and how many of
// them may be taken: no more than there are, wait, and n allows for. Where an
// hour ended among readings that were thinned, it is not known which of its
// cells the rest are in, so that those that have none left are made up for by
// others.
func (b *Book) each(device devices.ID, run uint32, first, last, n uint64, take func(c *Cell, k uint64)) {
	some := func(from, to uint64) {
		for _, c := range b.open[device] {
			if c.Run != run || c.Last < from || c.First > to {
				continue
			}
			if k := min(n, c.Held(), min(c.Last, to)-max(c.First, from)+1); k > 0 {
				take(c, k)
				n -= k
				c.row.change++
			}
		}
	}
	some(first, last)
	if n > 0 {
		some(0, math.MaxUint64)
	}
}

// Accepted counts n readings, among the numbers first to last of a run, that
// the server accepted. The oldest of them came some time ago and says of
// itself to have some age, which are negative where they are not known.
func (b *Book) Accepted(device devices.ID, run uint32, first, last, n uint64, now Moment, ago, age time.Duration) {
	b.each(device, run, first, last, n, func(c *Cell, k uint64) {
		c.Accepted += k
		delay := ago
		if delay < 0 {
			// It did not come before it was measured, nor before the row began.
			delay = age
			if began := now.Time.Sub(c.row.From.Time); began >= 0 && c.row.From.Known() == now.Known() && (delay < 0 || began < delay) {
				delay = began
			}
		}
		c.Delay, c.Age = max(c.Delay, seconds(delay)), max(c.Age, seconds(age))
	})
}

// Again counts n readings, among the numbers first to last of a run, that were
// accepted and wait again, because the server has them no more.
func (b *Book) Again(device devices.ID, run uint32, first, last, n uint64) {
	for _, c := range b.open[device] {
		if c.Run != run || c.Last < first || c.First > last {
			continue
		}
		k := min(n, c.Accepted, min(c.Last, last)-max(c.First, first)+1)
		c.Accepted, n = c.Accepted-k, n-k
		c.over = false
		c.row.change++
	}
}

// seconds gives whole milliseconds.
func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

// Lost counts n readings, among the numbers first to last of a run, that will
// not reach the server. undo takes that back, as long as [Book.Tidy] was not
// called.
func (b *Book) Lost(device devices.ID, run uint32, first, last, n uint64, reason string) (undo func()) {
	type loss struct {
		c *Cell
		n uint64
	}
	var all []loss
	b.each(device, run, first, last, n, func(c *Cell, k uint64) {
		c.lose(reason, k)
		all = append(all, loss{c, k})
	})
	b.lost = true
	return func() {
		for _, l := range all {
			l.c.lose(reason, -l.n) // modulo 2^64
			l.c.row.change++
		}
	}
}

// Repeated counts readings that came again.
func (b *Book) Repeated(device devices.ID, n uint64) {
	r := b.current()
	r.change++
	for _, c := range r.Cells {
		if c.Device == device {
			c.Repeated += n
			return
		}
	}
	r.Cells = append(r.Cells, &Cell{Device: device, Counts: Counts{Repeated: n}, row: r})
}

// A Span is numbers of a run.
type Span struct {
	Run         uint32
	First, Last uint64
	Missing     uint64 // numbers among them that were thinned out
}

// before gives how many readings have numbers below n. Where the missing ones
// are is not known; they are taken as spread evenly.
func (s Span) before(n uint64) uint64 {
	k := min(n, s.Last+1) - min(n, s.First)
	return k - s.Missing*k/(s.Last-s.First+1)
}

// Reconcile has the book agree with what a store that was just opened holds of
// a device: what waits is waiting, whatever was counted; what does not, and
// was not counted, was accepted where it is settled (up to a number of a run),
// else its fate is unknown, or where a reason is given, it is lost for that.
// What was not counted at all is counted where the process before ended.
func (b *Book) Reconcile(device devices.ID, waiting []Span, settledRun uint32, settled uint64, reason string) {
	for _, c := range b.open[device] {
		n, thinned := uint64(0), uint64(0)
		for _, s := range waiting {
			if s.Run == c.Run && s.First <= c.Last && s.Last >= c.First {
				there := s.before(c.Last+1) - s.before(c.First)
				n, thinned = n+there, thinned+min(s.Last, c.Last)-max(s.First, c.First)+1-there
			}
		}
		before := c.Held()
		c.Thinned = max(c.Thinned, min(thinned, less(c.Given, n+c.LostAll())))
		c.refind(less(n+c.LostAll()+c.Thinned, c.Given))
		c.Unknown = min(c.Unknown, less(c.Given, c.LostAll()+c.Thinned+n))
		rest := c.Given - c.LostAll() - c.Thinned - c.Unknown - n
		past := uint64(0) // how many may be settled
		if c.Run < settledRun || c.Run == settledRun && c.Last <= settled {
			past = rest
		} else if c.Run == settledRun {
			past = less(settled+1, c.First)
		}
		c.Accepted = min(rest, max(c.Accepted, past))
		if gone := rest - c.Accepted; gone > 0 && reason != "" {
			c.lose(reason, gone)
		} else {
			c.Unknown += gone
		}
		if c.Held() != before {
			c.row.change++
		}
	}
	for _, s := range waiting {
		at := s.First
		give := func(first, last uint64) {
			b.give(b.found, device, s.Run, first, last)
			if there := s.before(last+1) - s.before(first); there < last-first+1 {
				b.Lost(device, s.Run, first, last, last-first+1-there, Thinned)
			}
		}
		for _, c := range slices.Clone(b.open[device]) {
			if c.Run != s.Run || c.Last < at || c.First > s.Last {
				continue
			}
			if at < c.First {
				give(at, c.First-1)
			}
			at = c.Last + 1
		}
		if at <= s.Last {
			give(at, s.Last)
		}
	}
}

// Open gives the devices of which something waits, as far as is counted.
func (b *Book) Open() []devices.ID {
	var ids []devices.ID
	for id := range b.open {
		ids = append(ids, id)
	}
	return ids
}

// Rows gives the rows of the book. They stay the book's.
func (b *Book) Rows() []*Row { return b.rows }

// Urgent reports whether something was lost since the rows were kept: what is
// settled and was not counted is then known to be accepted.
func (b *Book) Urgent() bool { return b.lost }

// A Change is a row that is to be kept.
type Change struct {
	Row    *Row
	change uint64
}

// Changes gives the rows that are not on disk as they are.
func (b *Book) Changes() []Change {
	b.lost = false
	var all []Change
	for _, r := range b.rows {
		if r.change != r.kept {
			all = append(all, Change{r, r.change})
		}
	}
	return all
}

// Kept says that changes are on disk, and forgets rows that are done.
func (b *Book) Kept(changes []Change) {
	for _, c := range changes {
		c.Row.kept = c.change
	}
	current := b.current()
	b.rows = slices.DeleteFunc(b.rows, func(r *Row) bool {
		return r != current && r.change == r.kept && !r.Open()
	})
}

// Over takes note of what is over: nothing of it waits, and the store, once it
// has written what it is about to, keeps no reading of its numbers. What is
// accepted after that, and before [Book.Tidy], is not over: a kill would have
// it wait again. Nor is what was thinned where the rest is counted in another
// hour, because a start looks for that among all its numbers.
func (b *Book) Over(keeps func(device devices.ID, run uint32, first, last uint64) bool) {
	for device, cells := range b.open {
		for _, c := range cells {
			c.over = c.over || c.Held() == 0 && !keeps(device, c.Run, c.First, c.Last)
		}
	}
}

// Tidy forgets the numbers of what is over.
func (b *Book) Tidy() {
	current := b.current()
	done := func(c *Cell) bool { return c.over && c.Run != 0 && (c.row != current || c.Run != b.run) } // that one grows
	for _, r := range b.rows {
		if some := slices.ContainsFunc(r.Cells, done); some || r.change != r.kept {
			if some {
				r.change++
			}
			r.close(done)
		}
	}
	for device, cells := range b.open {
		open := slices.DeleteFunc(cells, func(c *Cell) bool { return c.Run == 0 })
		if b.open[device] = open; len(open) == 0 {
			delete(b.open, device)
		}
	}
}
