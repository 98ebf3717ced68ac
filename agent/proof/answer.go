package proof

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Question asks for a period: from Since, and before Until. The zero of
// either is as far as there is.
type Question struct {
	Device devices.ID `json:"device,omitempty"` // "" is all
	Since  time.Time  `json:"since,omitzero"`
	Until  time.Time  `json:"until,omitzero"`
	// Guess has rows that are not dated taken for what they seem to be: for
	// rates, which need no date.
	Guess bool `json:"guess,omitempty"`
}

// An Answer is what was counted in a period. That is the one that was asked
// for, wider by parts of the rows at its ends.
type Answer struct {
	From    time.Time   `json:"from,omitzero"`
	To      time.Time   `json:"to,omitzero"`
	Total   Sum         `json:"total"`
	Devices []DeviceSum `json:"devices"`
	Gaps    []AnswerGap `json:"gaps,omitempty"`
	Undated *Sum        `json:"undated,omitempty"` // what was counted while the time was not known, and is not yet; in no other sum
	Written int64       `json:"writtenBytes"`      // to disks, by the gateway, whatever the device
	covered time.Duration
}

// A Sum is counts, and how many wait.
type Sum struct {
	Counts
	Waiting uint64 `json:"waiting"`
}

// A DeviceSum is the sum of a device.
type DeviceSum struct {
	Device devices.ID `json:"device"`
	Sum
}

// An AnswerPeriod is a time.
type AnswerPeriod struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// An AnswerGap is a [Gap] as far as it is in the period.
type AnswerGap struct {
	AnswerPeriod
	Why string `json:"why"`
}

// Whole reports whether nothing can have happened in the period that is not
// counted.
func (a Answer) Whole() bool {
	return !slices.ContainsFunc(a.Gaps, func(g AnswerGap) bool { return g.Why != Stopped }) && a.Undated == nil
}

// Covered gives for how long of the period was counted.
func (a Answer) Covered() time.Duration { return a.covered }

// Reply answers a question from rows in their order. counting says whether the
// last of them is being counted still.
func Reply(q Question, rows iter.Seq[*Row], counting bool) Answer {
	r := reply{q: q, sums: make(map[devices.ID]*Sum)}
	r.a.From, r.a.To = q.Since, q.Until
	var last *Row
	for row := range rows {
		r.row(row, last)
		last = row
	}
	if last == nil {
		r.gap(q.Since, q.Until, Uncounted)
	} else if !counting && last.To.Known() && !q.Until.IsZero() {
		r.gap(last.To.Time, q.Until, map[bool]string{true: Stopped, false: Killed}[last.Closed])
	}
	return r.answer()
}

type reply struct {
	q    Question
	a    Answer
	sums map[devices.ID]*Sum
}

func (r *reply) row(row, before *Row) {
	if !row.Dated() && !r.q.Guess {
		r.undated(row)
		return
	}
	from, to := row.From.Time, row.To.Time
	switch {
	case before == nil && !r.q.Since.IsZero():
		r.gap(r.q.Since, from, Uncounted)
	case before != nil && before.To.Known() && before.Number+1 != row.Number:
		r.gap(before.To.Time, from, Torn)
	}
	if !r.meets(from, to) {
		return
	}
	for _, g := range row.Gaps {
		r.gap(g.From.Time, g.To.Time, g.Why)
	}
	r.a.Written += row.Written
	r.cover(row)
	some := false
	r.cells(row, func(c *Cell) {
		some = true
		if r.sums[c.Device] == nil {
			r.sums[c.Device] = &Sum{}
		}
		r.sums[c.Device].add(c)
		r.a.Total.add(c)
	})
	if !some { // then the row is as good as cut
		from, to = later(from, r.q.Since), earlier(to, r.q.Until)
	}
	r.a.From, r.a.To = earlier(from, r.a.From), later(to, r.a.To)
}

// undated counts a row that no period can be said to have.
func (r *reply) undated(row *Row) {
	var s Sum
	some := slices.ContainsFunc(row.Gaps, func(g Gap) bool { return g.Why != Stopped })
	r.cells(row, func(c *Cell) {
		some = true
		s.add(c)
	})
	if !some {
		return
	}
	if r.a.Undated == nil {
		r.a.Undated = &Sum{}
	}
	r.a.Undated.Add(s.Counts)
	r.a.Undated.Waiting += s.Waiting
}

func (r *reply) cells(row *Row, visit func(*Cell)) {
	for _, c := range row.Cells {
		if r.q.Device == "" || c.Device == r.q.Device {
			visit(c)
		}
	}
}

func (s *Sum) add(c *Cell) {
	s.Add(c.Counts)
	s.Waiting += c.Held()
}

// meets reports whether a time has something in common with the period; it may
// be a moment.
func (r *reply) meets(from, to time.Time) bool {
	return (r.q.Until.IsZero() || from.Before(r.q.Until)) && (r.q.Since.IsZero() || to.After(r.q.Since) || from.Equal(to) && from.Equal(r.q.Since))
}

// cover counts the parts of a row that are not gaps.
func (r *reply) cover(row *Row) {
	at := row.From.Time
	for _, g := range row.Gaps {
		if g.From.Time.After(at) {
			r.a.covered += g.From.Time.Sub(at)
		}
		at = later(at, g.To.Time)
	}
	if row.To.Time.After(at) {
		r.a.covered += row.To.Time.Sub(at)
	}
}

func (r *reply) gap(from, to time.Time, why string) {
	if to.Before(from) || !r.meets(from, to) {
		return
	}
	from, to = later(from, r.q.Since), earlier(to, r.q.Until)
	if n := len(r.a.Gaps); n > 0 && r.a.Gaps[n-1].To.Equal(from) && r.a.Gaps[n-1].Why == why {
		r.a.Gaps[n-1].To = to
		return
	}
	if why != Killed && from.Equal(to) {
		return
	}
	r.a.Gaps = append(r.a.Gaps, AnswerGap{AnswerPeriod{from, to}, why})
}

func (r *reply) answer() Answer {
	r.a.Devices = []DeviceSum{}
	for _, id := range slices.Sorted(maps.Keys(r.sums)) {
		r.a.Devices = append(r.a.Devices, DeviceSum{id, *r.sums[id]})
	}
	return r.a
}

// earlier and later take the zero time for none.
func earlier(a, b time.Time) time.Time {
	if b.IsZero() || !a.IsZero() && a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Text tells the answer to people, in a line for the total or of one device,
// with times of zone.
func (a Answer) Text(zone *time.Location) string {
	parts := []string{a.Total.Text()}
	if a.Undated != nil {
		parts = append(parts, "at a time that is not known yet: "+a.Undated.Text())
	}
	const most = 3
	for i, g := range a.Gaps {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", len(a.Gaps)-most))
			break
		}
		parts = append(parts, g.text(zone))
	}
	return strings.Join(parts, "; ")
}

// text tells a gap.
func (g AnswerGap) text(zone *time.Location) string {
	if g.Why == Stopped {
		return fmt.Sprintf("%s: %s", g.AnswerPeriod.Text(zone), g.Why)
	}
	return fmt.Sprintf("%s unknown: %s", g.AnswerPeriod.Text(zone), g.Why)
}

// Text tells the period, to the minute, outward.
func (p AnswerPeriod) Text(zone *time.Location) string {
	const day = time.DateOnly
	from, to := p.From.In(zone), p.To.In(zone)
	to = to.Add(time.Minute - 1).Truncate(time.Minute) // zones differ by whole minutes
	switch {
	case p.From.IsZero() && p.To.IsZero():
		return "always"
	case p.From.IsZero():
		return "before " + to.Format(day+" 15:04")
	case from.Format(day) == to.Format(day):
		return from.Format(day+" 15:04") + "–" + to.Format("15:04")
	}
	return from.Format(day+" 15:04") + " – " + to.Format(day+" 15:04")
}

// Text tells a sum.
func (s Sum) Text() string {
	parts := []string{grouped(s.Given) + " measured", grouped(s.Accepted) + " accepted", grouped(s.Waiting) + " waiting"}
	missing := grouped(s.Thinned+s.LostAll()) + " missing"
	var why []string
	if s.Thinned > 0 {
		why = append(why, grouped(s.Thinned)+" thinned")
	}
	for _, reason := range slices.Sorted(maps.Keys(s.Lost)) {
		why = append(why, fmt.Sprintf("%s: %s", grouped(s.Lost[reason]), reason))
	}
	if len(why) > 0 {
		missing += " (" + strings.Join(why, "; ") + ")"
	}
	parts = append(parts, missing)
	if s.Unknown > 0 {
		parts = append(parts, grouped(s.Unknown)+" unknown (the gateway was killed)")
	}
	text := strings.Join(parts, ", ")
	if s.Repeated > 0 {
		text += "; " + grouped(s.Repeated) + " came again and were recognised"
	}
	if s.Accepted > 0 {
		text += "; longest delay " + lasting(s.Delay)
	}
	return text
}

// grouped writes a number with commas.
func grouped(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
