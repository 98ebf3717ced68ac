package proof

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Moment is a time, or that by which it can be told later.
type Moment struct {
	Time  time.Time `json:"time"`            // a guess where there is a stamp
	Stamp []byte    `json:"stamp,omitempty"` // empty where the time is known
}

// Known reports whether the time is.
func (m Moment) Known() bool { return len(m.Stamp) == 0 }

// Counts say what became of readings.
type Counts struct {
	Given    uint64            `json:"measured"` // what people call what was given to the gateway
	Accepted uint64            `json:"accepted"` // by the server
	Thinned  uint64            `json:"thinned"`
	Lost     map[string]uint64 `json:"lost,omitempty"`      // by reason
	Unknown  uint64            `json:"unknown"`             // accepted or not: the process was killed before it could say
	Repeated uint64            `json:"repeated"`            // came again and were recognised; not among those given
	Delay    float64           `json:"longestDelaySeconds"` // from arrival to acceptance; of what went over the disk, no more than this
	Age      float64           `json:"longestAgeSeconds"`   // from a reading's own time to acceptance
}

// Held gives how many wait.
func (c Counts) Held() uint64 {
	return less(c.Given, c.Accepted+c.Thinned+c.LostAll()+c.Unknown)
}

// LostAll gives how many were lost, for whatever reason.
func (c Counts) LostAll() uint64 {
	n := uint64(0)
	for _, k := range c.Lost {
		n += k
	}
	return n
}

// Add counts d too.
func (c *Counts) Add(d Counts) {
	c.Given += d.Given
	c.Accepted += d.Accepted
	c.Thinned += d.Thinned
	c.Unknown += d.Unknown
	c.Repeated += d.Repeated
	for reason, n := range d.Lost {
		c.lose(reason, n)
	}
	c.Delay, c.Age = max(c.Delay, d.Delay), max(c.Age, d.Age)
}

const (
	// Thinned is the reason of a loss that is counted by itself.
	Thinned = "thinned"

	// A server's own words are a reason too, so that both are bounded.
	maxReasons   = 8
	maxReason    = 80 // bytes
	otherReasons = "other reasons"
)

func (c *Counts) lose(reason string, n uint64) {
	if reason == Thinned {
		c.Thinned += n
		return
	}
	if reason = strings.ToValidUTF8(reason, "?"); len(reason) > maxReason {
		end := maxReason
		for !utf8.RuneStart(reason[end]) {
			end--
		}
		reason = reason[:end]
	}
	if _, known := c.Lost[reason]; !known && len(c.Lost) >= maxReasons {
		reason = otherReasons
	}
	if c.Lost == nil {
		c.Lost = make(map[string]uint64)
	}
	c.Lost[reason] += n
}

// refind takes back losses of readings that are there after all.
func (c *Counts) refind(n uint64) {
	for _, reason := range slices.Sorted(maps.Keys(c.Lost)) {
		k := min(n, c.Lost[reason])
		n -= k
		if c.Lost[reason] -= k; c.Lost[reason] == 0 {
			delete(c.Lost, reason)
		}
	}
	c.Thinned -= min(n, c.Thinned)
}

// less subtracts, and stops at 0.
func less(a, b uint64) uint64 { return a - min(a, b) }

// A Cell is the counts of one device in a row.
type Cell struct {
	Device devices.ID
	// The readings' numbers in a run, until it is over; then 0.
	Run         uint32
	First, Last uint64
	Counts

	row  *Row // that it is in, of cells in a book
	over bool // see Book.Over
}

// compact is the form of counts in a file.
type compact struct {
	Given    uint64            `json:"given,omitempty"`
	Accepted uint64            `json:"accepted,omitempty"`
	Thinned  uint64            `json:"thinned,omitempty"`
	Lost     map[string]uint64 `json:"lost,omitempty"`
	Unknown  uint64            `json:"unknown,omitempty"`
	Repeated uint64            `json:"repeated,omitempty"`
	Delay    float64           `json:"delay,omitempty"`
	Age      float64           `json:"age,omitempty"`
}

type compactCell struct {
	Device devices.ID `json:"device"`
	Run    uint32     `json:"run,omitempty"`
	First  uint64     `json:"first,omitempty"`
	Last   uint64     `json:"last,omitempty"`
	compact
}

// MarshalJSON implements [json.Marshaler].
func (c *Cell) MarshalJSON() ([]byte, error) {
	return json.Marshal(compactCell{c.Device, c.Run, c.First, c.Last, compact(c.Counts)})
}

// UnmarshalJSON implements [json.Unmarshaler].
func (c *Cell) UnmarshalJSON(b []byte) error {
	var v compactCell
	err := json.Unmarshal(b, &v)
	*c = Cell{Device: v.Device, Run: v.Run, First: v.First, Last: v.Last, Counts: Counts(v.compact)}
	return err
}

// A Gap is a time in which nothing was counted.
type Gap struct {
	From Moment `json:"from"`
	To   Moment `json:"to"`
	Why  string `json:"why"`
}

// The reasons of gaps. All but the first mean that what happened is unknown.
const (
	Stopped   = "the gateway was stopped"
	Killed    = "the gateway was killed"
	Uncounted = "nothing was counted"
	Torn      = "the counts are damaged"
)

// maxGaps is how many gaps a row names; where there are more, the last one
// goes on over what is between.
const maxGaps = 16

// A Row is what was counted in some time.
type Row struct {
	Number  uint64  `json:"-"`                // rises by one a row
	Run     uint32  `json:"run"`              // of the opening that counted last
	From    Moment  `json:"from"`             //
	To      Moment  `json:"to"`               //
	Closed  bool    `json:"closed,omitempty"` // counting ended in order
	Gaps    []Gap   `json:"gaps,omitempty"`   // between From and To
	Written int64   `json:"written,omitempty"`
	Cells   []*Cell `json:"cells,omitempty"`

	change, kept uint64 // the newest change, and the newest that is on disk
}

// Dated reports whether it is known when the row was.
func (r *Row) Dated() bool {
	known := r.From.Known() && r.To.Known()
	for _, g := range r.Gaps {
		known = known && g.From.Known() && g.To.Known()
	}
	return known
}

// Open reports whether something of the row is still to come, or may come
// back: readings, or its time.
func (r *Row) Open() bool {
	return !r.Dated() || slices.ContainsFunc(r.Cells, func(c *Cell) bool { return c.Run != 0 })
}

// date dates what can be.
func (r *Row) date(date func(Moment) Moment) {
	moments := []*Moment{&r.From, &r.To}
	for i := range r.Gaps {
		moments = append(moments, &r.Gaps[i].From, &r.Gaps[i].To)
	}
	for _, m := range moments {
		if !m.Known() {
			if *m = date(*m); m.Known() {
				r.change++
			}
		}
	}
}

func (r *Row) gap(g Gap) {
	if n := len(r.Gaps); n >= maxGaps {
		last := &r.Gaps[n-1]
		if last.To = g.To; g.Why != Stopped {
			last.Why = g.Why
		}
		return
	}
	r.Gaps = append(r.Gaps, g)
}

// close forgets the numbers of what is done, and joins the cells of each device
// that have none.
func (r *Row) close(done func(*Cell) bool) {
	closed := make(map[devices.ID]*Cell)
	kept := r.Cells[:0]
	for _, c := range r.Cells {
		if c.Run != 0 && !done(c) {
			kept = append(kept, c)
			continue
		}
		c.Run, c.First, c.Last = 0, 0, 0
		if before := closed[c.Device]; before != nil {
			before.Add(c.Counts)
			continue
		}
		closed[c.Device] = c
		kept = append(kept, c)
	}
	clear(r.Cells[len(kept):])
	r.Cells = kept
}

// Join gives the rows a and b, of which b follows a, as one.
func Join(a, b *Row) *Row {
	r := &Row{Number: a.Number, Run: b.Run, From: a.From, To: b.To, Closed: b.Closed, Written: a.Written + b.Written}
	for _, g := range a.Gaps {
		r.gap(g)
	}
	if a.To.Time.Before(b.From.Time) {
		r.gap(Gap{a.To, b.From, Torn})
	}
	for _, g := range b.Gaps {
		r.gap(g)
	}
	for _, cells := range [][]*Cell{a.Cells, b.Cells} {
		for _, c := range cells {
			copied := *c
			copied.Lost = maps.Clone(c.Lost)
			r.Cells = append(r.Cells, &copied)
		}
	}
	r.close(func(c *Cell) bool { return c.over })
	last := make(map[devices.ID]*Cell) // with numbers
	r.Cells = slices.DeleteFunc(r.Cells, func(c *Cell) bool {
		before := last[c.Device]
		if before != nil && c.Run != 0 && before.Run == c.Run && before.Last+1 == c.First {
			before.Last = c.Last
			before.Add(c.Counts)
			return true
		}
		if c.Run != 0 {
			last[c.Device] = c
		}
		return false
	})
	return r
}

// Day counts the days from 1970 to the one in which the row begins, in UTC.
func (r *Row) Day() uint32 { return uint32(r.From.Time.Unix() / (24 * 60 * 60)) }

// Clone gives a copy that shares nothing with the row.
func (r *Row) Clone() *Row {
	c := *r
	c.Gaps = slices.Clone(r.Gaps)
	c.Cells = make([]*Cell, len(r.Cells))
	for i, cell := range r.Cells {
		copied := *cell
		copied.Lost, copied.row = maps.Clone(cell.Lost), nil
		c.Cells[i] = &copied
	}
	return &c
}
