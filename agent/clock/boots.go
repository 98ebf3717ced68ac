package clock

import (
	"cmp"
	"slices"
	"time"
)

const (
	// drift is one part by which a clock that nothing keeps may go wrong, 100
	// ppm. A Pi's crystal is within some 50 ppm.
	drift = 10_000

	// certainWithin is the error up to which a time is called certain. By
	// drift it is reached a week after, or before, the time was known.
	certainWithin = time.Minute

	// spanError is the error up to which a span goes on. timesyncd asks its
	// server at least every 2048 s and the kernel counts 500 ppm from there;
	// beyond that the clock is kept by nothing, and drift is the better bound.
	spanError = 2 * time.Second
	// sameStart is how far a kept clock may move against boottime within one
	// span. Slewing moves both alike.
	sameStart = 10 * time.Millisecond
	// spanGap is the longest that a span goes on unseen.
	spanGap = time.Minute
	// leap is a difference in which what is known does not yet contradict
	// itself: a leap second is a step of a clock that is right before and
	// after.
	leap = 2 * time.Second

	maxSpans = 8
	maxBoots = 64
)

// drifted is the most that a clock goes wrong by in a time before or after, and
// by being kept in whole microseconds.
func drifted(d time.Duration) time.Duration { return d.Abs()/drift + 2*time.Microsecond }

// A boot is what is known of one boot of the machine.
type boot struct {
	Number uint32        `json:"number"`
	ID     string        `json:"id"`
	Seen   time.Duration `json:"seen"` // how long after the boot it was still running
	Wall   time.Time     `json:"wall"` // when it began, as its wall clock had it
	Spans  []span        `json:"spans,omitempty"`
}

// A span is a stretch of boottime in which the time is known: it is that of
// the boot's beginning and boottime, and wrong by at most Error.
type span struct {
	From  time.Duration `json:"from"`
	To    time.Duration `json:"to"`
	Start time.Time     `json:"start"`
	Error time.Duration `json:"error"`
	Told  bool          `json:"told,omitempty"` // by the XMPP server
}

// wrong is the error at a boottime, which may be outside of the span.
func (s span) wrong(at time.Duration) time.Duration {
	return s.Error + drifted(max(s.From-at, at-s.To, 0))
}

// contradicts reports whether not both spans of a boot can be right.
func (s span) contradicts(other span) bool {
	gap := max(s.From-other.To, other.From-s.To, 0)
	return s.Start.Sub(other.Start).Abs() > s.Error+other.Error+drifted(gap)+leap
}

// join makes one span of two.
func join(a, b span) span {
	between := drifted(max(a.From-b.To, b.From-a.To, 0)) / 2 // the middle is the farthest from both
	moved := min(a.Start.Sub(b.Start).Abs(), maxBoottime)    // no sum overflows
	return span{
		From:  min(a.From, b.From),
		To:    max(a.To, b.To),
		Start: b.Start,
		Error: max(a.Error+moved, b.Error) + between,
		Told:  a.Told || b.Told,
	}
}

// best gives the span that knows a boottime most exactly.
func (b *boot) best(at time.Duration) (span, bool) {
	if len(b.Spans) == 0 {
		return span{}, false
	}
	return slices.MinFunc(b.Spans, func(a, b span) int { return cmp.Compare(a.wrong(at), b.wrong(at)) }), true
}

// add puts in a span that is newer than all. Those that it contradicts go: of
// two words that cannot both be right the last one holds, as it is how a wrong
// one is mended.
func (b *boot) add(s span) {
	b.Spans = slices.DeleteFunc(b.Spans, s.contradicts)
	b.Spans = append(b.Spans, s)
	if len(b.Spans) <= maxSpans {
		return
	}
	// The two whose joining costs least become one.
	at, least := 0, time.Duration(-1)
	for i := range len(b.Spans) - 1 {
		if e := join(b.Spans[i], b.Spans[i+1]).Error; least < 0 || e < least {
			at, least = i, e
		}
	}
	b.Spans[at] = join(b.Spans[at], b.Spans[at+1])
	b.Spans = slices.Delete(b.Spans, at+1, at+2)
}

// A table has all boots that something is known of, oldest first. Their
// numbers rise.
type table []*boot

func (t table) find(number uint32) (int, bool) {
	return slices.BinarySearchFunc(t, number, func(b *boot, n uint32) int {
		return cmp.Compare(b.Number, n)
	})
}

// date says when a stamp was taken. Nothing is before floor.
func (t table) date(s Stamp, floor time.Time) Dating {
	i, found := t.find(s.Boot)
	b := &boot{Seen: s.At, Wall: s.Wall.Add(-s.At)}
	if found {
		b = t[i]
	}
	if best, ok := b.best(s.At); ok {
		wrong := best.wrong(s.At)
		at := best.Start.Add(s.At)
		return Dating{s.At, at, at.Add(-wrong), at.Add(wrong), wrong <= certainWithin}
	}
	earliest, latest := t.between(i, found, s.Boot, floor)
	ran := max(b.Seen, s.At)
	if !latest.IsZero() {
		latest = latest.Add(drifted(ran) - ran)
		if latest.Before(earliest) {
			earliest, latest = latest, earliest
		}
	}
	if start := s.Wall.Add(-s.At); s.Synced && !start.Before(earliest) && (latest.IsZero() || !start.After(latest)) {
		return Dating{s.At, s.Wall, s.Wall.Add(-spanError), s.Wall.Add(spanError), true}
	}
	start := b.Wall
	if start.Before(earliest) {
		start = earliest
	}
	if !latest.IsZero() && start.After(latest) {
		start = latest
	}
	d := Dating{At: s.At, Time: start.Add(s.At), Earliest: earliest.Add(s.At - drifted(s.At))}
	if !latest.IsZero() {
		d.Latest = latest.Add(s.At + drifted(s.At))
	}
	return d
}

// between gives the earliest beginning of the boot at i, of which nothing is
// known, and the latest end; zero where there is none. Where the boot is not
// found, i is where it would be.
func (t table) between(i int, found bool, number uint32, floor time.Time) (earliest, latest time.Time) {
	before, after := t[:i], t[i:]
	if found {
		after = t[i+1:]
	} else if i == 0 || i == len(t) {
		// It is of a table that was lost, so it was before this one.
		before, after = nil, t
	}
	earliest = floor
	ran := time.Duration(0)
	for _, b := range slices.Backward(before) {
		if s, ok := b.best(b.Seen); ok {
			if end := s.Start.Add(b.Seen - s.wrong(b.Seen)); end.After(earliest) {
				earliest = end
			}
			break
		}
		ran += b.Seen - drifted(b.Seen)
	}
	earliest = earliest.Add(ran)
	ran = 0
	for _, b := range after {
		if s, ok := b.best(0); ok {
			latest = s.Start.Add(s.wrong(0) - ran)
			break
		}
		ran += b.Seen - drifted(b.Seen)
	}
	return earliest, latest
}

// refute takes away what earlier boots believed and what cannot be, by the
// span of the newest one.
func (t table) refute(s span) {
	begin := s.Start.Add(s.wrong(0) + leap)
	for _, b := range t[:len(t)-1] {
		b.Spans = slices.DeleteFunc(b.Spans, func(old span) bool {
			return (old.Told || !s.Told) && old.Start.Add(old.To-old.Error).After(begin)
		})
	}
}

// forget gives the table without the boots that nobody keeps. It still has
// those that bound one that is kept.
func (t table) forget(keep func(number uint32) bool) table {
	needed := make([]bool, len(t))
	known := func(i int) bool { return len(t[i].Spans) > 0 }
	for i, b := range t {
		needed[i] = needed[i] || i == len(t)-1 || keep(b.Number)
		if !needed[i] || known(i) {
			continue
		}
		for k := i - 1; k >= 0; k-- {
			if known(k) {
				needed[k] = true
				break
			}
		}
		for k := i + 1; k < len(t); k++ {
			if known(k) {
				needed[k] = true
				break
			}
		}
	}
	var left table
	for i, b := range t {
		if needed[i] {
			left = append(left, b)
		}
	}
	return left
}

// bounded gives the table without one boot where it is too long: the oldest
// that nothing is known of, so that its neighbours still bound its stamps.
func (t table) bounded() table {
	if len(t) <= maxBoots {
		return t
	}
	i := slices.IndexFunc(t[:len(t)-1], func(b *boot) bool { return len(b.Spans) == 0 })
	return slices.Delete(t, max(i, 0), max(i, 0)+1)
}
