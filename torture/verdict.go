package main

import (
	"fmt"
	"slices"
	"time"
)

// An excuse is a time in which what was acknowledged may be lost: a disk lied.
type excuse struct{ from, to time.Time }

// A verdict is what the ledger and the subscriber say together.
type verdict struct {
	acknowledged, delivered            int
	lost, doubled, disordered, changed int
	mistimed                           int // with a time that is not true, and not marked as uncertain
	uncertain                          int // readings that are marked so
	excused                            int // lost, doubled or changed, and allowed to be
	details                            []string
}

func (v verdict) good() bool { return v.lost+v.doubled+v.disordered+v.changed+v.mistimed == 0 }

func (v verdict) String() string {
	s := fmt.Sprintf("acknowledged %d, delivered %d, lost %d, doubled %d, out of order %d, of a wrong time %d", v.acknowledged, v.delivered, v.lost, v.doubled, v.disordered, v.mistimed)
	if v.changed > 0 {
		s += fmt.Sprintf(", items changed or unreadable %d", v.changed)
	}
	if v.uncertain > 0 {
		s += fmt.Sprintf(" (%d are marked as of an uncertain time)", v.uncertain)
	}
	if v.excused > 0 {
		s += fmt.Sprintf(" (and %d lost or doubled by a disk that lied)", v.excused)
	}
	return s
}

// join adds the counts of another house.
func (v *verdict) join(other verdict) {
	v.acknowledged += other.acknowledged
	v.delivered += other.delivered
	v.lost += other.lost
	v.doubled += other.doubled
	v.disordered += other.disordered
	v.changed += other.changed
	v.mistimed += other.mistimed
	v.uncertain += other.uncertain
	v.excused += other.excused
}

func (v *verdict) add(count *int, format string, args ...any) {
	*count++
	v.details = append(v.details, fmt.Sprintf(format, args...))
}

// judge compares what was acknowledged with what arrived. excused says whether
// what was built on a disk's word at a time may fall: the acknowledgement of a
// device, or "" for an item.
func judge(l *ledger, s *subscriber, excused func(device string, at time.Time) bool) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var v verdict
	v.acknowledged = l.total
	for _, device := range s.devices {
		items := make(map[int][]string) // number: the items that have it
		highest := 0
		for _, x := range s.seen[device] {
			items[x.n] = append(items[x.n], x.id)
			if x.marked {
				v.uncertain++
			}
			if made, known := l.made[device][x.n]; known && !x.within(made, s.items[device][x.id].at) {
				v.add(&v.mistimed, "of a wrong time: %s %d in item %s: %s, measured %s", device, x.n, x.id, x.tellTime(), made.Format(time.RFC3339Nano))
			}
			if len(items[x.n]) > 1 {
				continue
			}
			if x.n < highest {
				v.add(&v.disordered, "out of order: %s %d in item %s came after %d", device, x.n, x.id, highest)
			}
			highest = max(highest, x.n)
		}
		v.delivered += len(items)
		for n, ids := range items {
			switch {
			case len(ids) < 2:
			case parseID(ids[0]).store() == parseID(ids[1]).store() && excused("", s.items[device][ids[0]].at):
				// The disk forgot where the item ended.
				v.excused++
			default:
				v.add(&v.doubled, "doubled: %s %d, acknowledged %s, %s", device, n, when(l.acked[device][n]), s.tell(device, ids))
			}
		}
		for n, at := range l.acked[device] {
			switch {
			case len(items[n]) > 0:
			case excused(device, at):
				v.excused++
			default:
				v.add(&v.lost, "lost: %s %d, acknowledged %s", device, n, when(at))
			}
		}
	}
	for _, r := range s.replaced {
		if excused("", r.before) {
			// The disk forgot when the item was frozen.
			v.excused++
		} else {
			v.add(&v.changed, "changed: %s, item %s, which came %s, came again with the same readings in other bytes", r.device, r.id, r.before.Format(stamp))
		}
	}
	for _, f := range s.faults {
		v.add(&v.changed, "%s", f)
	}
	slices.Sort(v.details)
	return v
}

// timeError is how wrong a time may be that is not marked as uncertain.
const timeError = time.Minute

// within reports whether a reading can have come to the gateway between two
// moments, by what is published of its time.
func (r reading) within(from, to time.Time) bool {
	seconds := func(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }
	low, high := r.at-timeError.Seconds(), r.at+timeError.Seconds()
	if r.marked {
		low, high = r.from-1, r.to+1
	}
	return low <= seconds(to) && seconds(from) <= high
}

func (r reading) tellTime() string {
	tell := func(seconds float64) string { return time.UnixMicro(int64(seconds * 1e6)).Format(time.RFC3339Nano) }
	if r.marked {
		return fmt.Sprintf("%s, between %s and %s", tell(r.at), tell(r.from), tell(r.to))
	}
	return tell(r.at)
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(stamp)
}

// tell says of items when they came.
func (s *subscriber) tell(device string, ids []string) string {
	text := ""
	for i, id := range ids {
		if i > 0 {
			text += " and "
		}
		text += fmt.Sprintf("in %s (%s)", id, s.items[device][id].at.Format(stamp))
	}
	return text
}
