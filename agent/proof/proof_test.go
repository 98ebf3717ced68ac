package proof

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/porchlight-iot/porchlight/devices"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func known(t time.Time) Moment { return Moment{Time: t} }

// A fate is what became of a reading, in a few lines of obvious code.
type fate struct {
	device   devices.ID
	run      uint32
	seq      uint64
	given    time.Time // zero where nobody knows
	accepted bool
	lost     string
	unknown  bool
	stored   bool
}

// A world drives a book as a store does, and remembers each reading.
type world struct {
	now    time.Time
	run    uint32
	book   *Book
	next   map[devices.ID]uint64
	fates  []*fate
	kept   map[uint64]string
	killed bool
}

func (w *world) begin() {
	var rows []*Row
	for _, n := range slices.Sorted(keys(w.kept)) {
		r := &Row{}
		if err := json.Unmarshal([]byte(w.kept[n]), r); err != nil {
			panic(err)
		}
		r.Number = n
		rows = append(rows, r)
	}
	before := w.run
	w.run++
	w.next = map[devices.ID]uint64{}
	w.book = NewBook(rows)
	w.book.Begin(known(w.now), before, w.run)
	for _, device := range []devices.ID{"a", "b"} {
		var waiting []Span
		for _, f := range w.fates {
			if f.device == device && f.waits() {
				waiting = append(waiting, Span{Run: f.run, First: f.seq, Last: f.seq})
			}
		}
		w.book.Reconcile(device, waiting, 0, 0, "")
	}
	w.keep()
}

func keys(m map[uint64]string) func(func(uint64) bool) {
	return func(yield func(uint64) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (f *fate) waits() bool { return !f.accepted && f.lost == "" && !f.unknown }

// keep writes the rows, and puts everything that waits on disk.
func (w *world) keep() {
	w.over()
	w.book.Cover(known(w.now))
	w.book.Tidy()
	w.write(true)
}

// over tells the book what is over, as a store does that keeps nothing else.
func (w *world) over() {
	w.book.Over(func(device devices.ID, run uint32, first, last uint64) bool {
		return slices.ContainsFunc(w.fates, func(f *fate) bool {
			return f.device == device && f.run == run && first <= f.seq && f.seq <= last && f.waits()
		})
	})
}

// write writes the rows, and the readings too or not.
func (w *world) write(stored bool) {
	changes := w.book.Changes()
	for _, c := range changes {
		b, err := json.Marshal(c.Row)
		if err != nil {
			panic(err)
		}
		w.kept[c.Row.Number] = string(b)
	}
	w.book.Kept(changes)
	for _, f := range w.fates {
		f.stored = f.stored || stored && f.waits()
	}
}

// ask asks the book and the disk, as a reader does.
func (w *world) ask(q Question) Answer {
	w.book.Cover(known(w.now))
	return Reply(q, func(yield func(*Row) bool) {
		live := map[uint64]*Row{}
		for _, r := range w.book.Rows() {
			live[r.Number] = r
		}
		all := map[uint64]string{}
		for n := range w.kept {
			all[n] = ""
		}
		for n := range live {
			all[n] = ""
		}
		for _, n := range slices.Sorted(keys(all)) {
			r := live[n]
			if r == nil {
				r = &Row{}
				if err := json.Unmarshal([]byte(w.kept[n]), r); err != nil {
					panic(err)
				}
				r.Number = n
			}
			if !yield(r) {
				return
			}
		}
	}, true)
}

// TestBook lets anything happen to readings, and the process, and compares
// what is told of any period with what became of each reading. What a kill
// made uncertain is told as that, and nothing else is.
func TestBook(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{now: noon, kept: map[uint64]string{}}
		w.begin()
		pick := func(label string, may func(*fate) bool) []*fate {
			var some []*fate
			device := rapid.SampledFrom([]devices.ID{"a", "b"}).Draw(t, label)
			for _, f := range w.fates {
				if f.device == device && f.waits() && may(f) && (len(some) == 0 || some[len(some)-1].run == f.run && some[len(some)-1].seq+1 == f.seq) {
					some = append(some, f)
				}
			}
			if len(some) == 0 {
				return nil
			}
			return some[:rapid.IntRange(1, len(some)).Draw(t, "n")]
		}
		always := func(*fate) bool { return true }
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "do") {
			case 0, 1, 2:
				device := rapid.SampledFrom([]devices.ID{"a", "b"}).Draw(t, "device")
				for range rapid.IntRange(1, 5).Draw(t, "readings") {
					w.next[device]++
					w.book.Given(device, w.run, w.next[device], w.next[device])
					w.fates = append(w.fates, &fate{device: device, run: w.run, seq: w.next[device], given: w.now})
				}
			case 3, 4:
				if some := pick("accepted", always); some != nil {
					first := some[0]
					w.book.Accepted(first.device, first.run, first.seq, first.seq+uint64(len(some))-1, uint64(len(some)), known(w.now), -1, w.now.Sub(first.given))
					for _, f := range some {
						f.accepted = true
					}
				}
			case 5:
				if some := pick("lost", always); some != nil {
					reason := rapid.SampledFrom([]string{Thinned, "full", "refused"}).Draw(t, "reason")
					w.book.Lost(some[0].device, some[0].run, some[0].seq, some[0].seq+uint64(len(some))-1, uint64(len(some)), reason)
					for _, f := range some {
						f.lost = reason
					}
					w.write(rapid.Bool().Draw(t, "stored")) // as the store does
				}
			case 6:
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "minutes")) * time.Minute)
				if w.book.current().From.Time.Truncate(Grain) != w.now.Truncate(Grain) {
					w.over()
					w.book.Turn(known(w.now))
				}
				w.keep()
			case 7:
				w.book.Cover(known(w.now))
				w.write(rapid.Bool().Draw(t, "stored"))
			case 8:
				w.keep()
				w.book.Close()
				w.write(true)
				w.now = w.now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "stopped")) * time.Minute)
				w.begin()
			case 9:
				w.kill(rapid.Bool().Draw(t, "stored"))
				w.now = w.now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "killed")) * time.Minute)
				w.begin()
			}
			w.check(t)
		}
	})
}

// kill ends the process. What was not on disk is gone, or, where a journal had
// it, all of it is.
func (w *world) kill(stored bool) {
	w.killed = true
	for _, f := range w.fates {
		if f.waits() && !f.stored && !stored {
			f.unknown = true
		}
	}
}

func (w *world) check(t *rapid.T) {
	a := w.ask(Question{})
	if a.Whole() == w.killed {
		t.Fatalf("killed %v, gaps %+v", w.killed, a.Gaps)
	}
	sums := map[devices.ID]Sum{}
	for _, d := range a.Devices {
		if d.Given != d.Accepted+d.Waiting+d.Thinned+d.LostAll()+d.Unknown {
			t.Fatalf("does not add up: %+v", d)
		}
		sums[d.Device] = d.Sum
	}
	for _, device := range []devices.ID{"a", "b"} {
		var want Sum
		uncertain := uint64(0)
		for _, f := range w.fates {
			if f.device != device {
				continue
			}
			want.Given++
			switch {
			case f.waits():
				want.Waiting++
			case f.lost != "":
				want.lose(f.lost, 1)
			case f.accepted:
				want.Accepted++
			default:
				uncertain++
			}
		}
		got := sums[device]
		if got.Waiting != want.Waiting {
			t.Fatalf("%s: %d wait, told %d", device, want.Waiting, got.Waiting)
		}
		if got.Given > want.Given || got.Accepted > want.Accepted || got.Thinned != want.Thinned || !reflect.DeepEqual(got.Lost, want.Lost) {
			t.Fatalf("%s: told %+v, is %+v and %d uncertain", device, got, want, uncertain)
		}
		if !w.killed && (got.Given != want.Given || got.Accepted != want.Accepted || got.Unknown > 0) {
			t.Fatalf("%s: told %+v, is %+v", device, got, want)
		}
	}
	// An hour of which nothing is unknown is exact.
	for h := noon; h.Before(w.now); h = h.Add(Grain) {
		a := w.ask(Question{Device: "a", Since: h, Until: h.Add(Grain)})
		if !a.Whole() || a.From.Before(h) || a.To.After(h.Add(Grain)) {
			continue
		}
		given := uint64(0)
		for _, f := range w.fates {
			if f.device == "a" && !f.given.Before(h) && f.given.Before(h.Add(Grain)) {
				given++
			}
		}
		if a.Total.Given != given {
			t.Fatalf("%s: %d were given, told %+v", AnswerPeriod{h, h.Add(Grain)}.Text(time.UTC), given, a)
		}
	}
}

// TestUnknownTime counts before the time is known, and over a restart.
func TestUnknownTime(t *testing.T) {
	guess := func(minutes int) Moment {
		return Moment{time.Unix(int64(60*minutes), 0).UTC(), fmt.Append(nil, minutes)}
	}
	b := NewBook(nil)
	b.Begin(guess(0), 0, 1)
	b.Given("a", 1, 1, 10)
	b.Turn(guess(50))
	b.Given("a", 1, 11, 15)
	b.Accepted("a", 1, 1, 15, 15, guess(55), -1, -1)
	b.Cover(guess(60))
	b.Close()
	a := Reply(Question{Since: noon.Add(-time.Hour), Until: noon.Add(time.Hour)}, slices.Values(b.Rows()), true)
	if a.Undated == nil || a.Undated.Given != 15 || a.Total.Given != 0 || a.Whole() {
		t.Errorf("%+v", a)
	}
	b.Kept(b.Changes())
	if len(b.Rows()) != 2 {
		t.Fatalf("rows that wait for their time are not kept: %d", len(b.Rows()))
	}
	b = NewBook(b.Rows())
	b.Begin(known(noon.Add(5*time.Hour)), 1, 2)
	b.Date(func(m Moment) Moment { return known(noon.Add(m.Time.Sub(time.Unix(0, 0)))) })
	a = Reply(Question{Since: noon, Until: noon.Add(10 * time.Minute)}, slices.Values(b.Rows()), true)
	if a.Undated != nil || a.Total.Given != 10 || a.Total.Accepted != 10 || a.To != noon.Add(50*time.Minute) || a.Total.Delay != 55*60 {
		t.Errorf("%+v", a)
	}
	a = Reply(Question{}, slices.Values(b.Rows()), true)
	if !a.Whole() || len(a.Gaps) != 1 || a.Gaps[0].Why != Stopped || a.Gaps[0].From != noon.Add(time.Hour) || a.Covered() != time.Hour {
		t.Errorf("%+v", a)
	}
}

// TestThin has a machine that never learns the time: what is kept in memory is
// bounded, and adds up.
func TestThin(t *testing.T) {
	b := NewBook(nil)
	at := func(hours int) Moment {
		return Moment{time.Unix(int64(3600*hours), 0).UTC(), fmt.Append(nil, hours)}
	}
	b.Begin(at(0), 0, 1)
	gone := 0
	const hours = 1000
	for i := range uint64(hours) {
		b.Given("a", 1, 2*i+1, 2*i+2)
		if i > 100 {
			b.Accepted("a", 1, 2*(i-100)+1, 2*(i-100)+1, 1, at(int(i)), -1, -1)
		}
		b.Turn(at(int(i) + 1))
		gone += len(b.Thin(100))
		b.Kept(b.Changes())
	}
	if n := len(b.Rows()); n+gone != hours+1 || n > 100+hours/24+2 {
		t.Errorf("%d rows are in memory, and %d gone", n, gone)
	}
	s := Reply(Question{}, slices.Values(b.Rows()), true).Undated
	if s.Given != 2*hours || s.Accepted != hours-101 || s.Waiting != hours+101 {
		t.Errorf("%+v", s)
	}
	for i := range uint64(hours) {
		b.Accepted("a", 1, 2*i+1, 2*i+2, 2, at(hours), -1, -1)
	}
	if s := Reply(Question{}, slices.Values(b.Rows()), true).Undated; s.Accepted != 2*hours || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
}

func TestGaps(t *testing.T) {
	at := func(hours float64) Moment { return known(noon.Add(time.Duration(hours * float64(time.Hour)))) }
	rows := []*Row{
		{Number: 1, From: at(0), To: at(1), Cells: []*Cell{{Device: "a", Counts: Counts{Given: 9, Accepted: 8, Lost: map[string]uint64{"the outbox is full": 1}}}}},
		{Number: 2, From: at(1), To: at(2), Gaps: []Gap{{at(1.25), at(1.5), Killed}}, Cells: []*Cell{{Device: "b", Counts: Counts{Given: 1234567, Accepted: 1234500, Thinned: 60, Unknown: 2, Repeated: 3, Delay: 10920}}}},
		{Number: 5, From: at(4), To: at(5)},
	}
	for _, c := range []struct {
		device       devices.ID
		since, until float64
		counting     bool
		want         string
	}{
		{"", 0, 1, true, "9 measured, 8 accepted, 0 waiting, 1 missing (1: the outbox is full); longest delay 0.0 s"},
		{"b", 1, 2, true, "1,234,567 measured, 1,234,500 accepted, 5 waiting, 60 missing (60 thinned), 2 unknown (the gateway was killed); 3 came again and were recognised; longest delay 3 h 2 min; 2026-11-23 13:15–13:30 unknown: the gateway was killed"},
		{"", -1, 0.5, true, "9 measured, 8 accepted, 0 waiting, 1 missing (1: the outbox is full); longest delay 0.0 s; 2026-11-23 11:00–12:00 unknown: nothing was counted"},
		{"", 2.5, 4.5, true, "0 measured, 0 accepted, 0 waiting, 0 missing; 2026-11-23 14:30–16:00 unknown: the counts are damaged"},
		{"", 4, 24, true, "0 measured, 0 accepted, 0 waiting, 0 missing"},
		{"", 4, 24, false, "0 measured, 0 accepted, 0 waiting, 0 missing; 2026-11-23 17:00 – 2026-11-24 12:00 unknown: the gateway was killed"},
	} {
		a := Reply(Question{Device: c.device, Since: at(c.since).Time, Until: at(c.until).Time}, slices.Values(rows), c.counting)
		if got := a.Text(time.UTC); got != c.want {
			t.Errorf("%q from %v until %v:\n got %s\nwant %s", c.device, c.since, c.until, got, c.want)
		}
	}
	joined := Join(rows[0], rows[1])
	a, b := Reply(Question{}, slices.Values([]*Row{joined, rows[2]}), true), Reply(Question{}, slices.Values(rows), true)
	if joined.Number = 2; a.Total.Given != b.Total.Given || !reflect.DeepEqual(a.Devices, b.Devices) {
		t.Errorf("joined rows say\n%+v, not\n%+v", a, b)
	}
}

// TestReconcile has a store that holds other than what was counted.
func TestReconcile(t *testing.T) {
	for _, c := range []struct {
		name    string
		waiting []Span
		settled uint64
		reason  string
		want    Counts
	}{
		{"as counted", []Span{{Run: 1, First: 61, Last: 100}}, 0, "", Counts{Given: 100, Accepted: 50, Lost: map[string]uint64{"full": 10}}},
		{"settled and not counted", []Span{{Run: 1, First: 81, Last: 100}}, 80, "", Counts{Given: 100, Accepted: 70, Lost: map[string]uint64{"full": 10}}},
		{"gone", []Span{{Run: 1, First: 81, Last: 100}}, 0, "", Counts{Given: 100, Accepted: 50, Unknown: 20, Lost: map[string]uint64{"full": 10}}},
		{"damaged", []Span{{Run: 1, First: 81, Last: 100}}, 0, "damaged", Counts{Given: 100, Accepted: 50, Lost: map[string]uint64{"full": 10, "damaged": 20}}},
		{"waiting again", []Span{{Run: 1, First: 21, Last: 100}}, 0, "", Counts{Given: 100, Accepted: 10, Lost: map[string]uint64{"full": 10}}},
		{"found again", []Span{{Run: 1, First: 1, Last: 100}}, 0, "", Counts{Given: 100}},
		{"more than was counted", []Span{{Run: 1, First: 61, Last: 120}}, 0, "", Counts{Given: 120, Accepted: 50, Lost: map[string]uint64{"full": 10}}},
		{"others than were counted", []Span{{Run: 1, First: 61, Last: 100}, {Run: 7, First: 5, Last: 9}}, 0, "", Counts{Given: 105, Accepted: 50, Lost: map[string]uint64{"full": 10}}},
	} {
		b := NewBook(nil)
		b.Begin(known(noon), 0, 1)
		b.Given("a", 1, 1, 100)
		b.Accepted("a", 1, 1, 50, 50, known(noon), -1, -1)
		b.Lost("a", 1, 51, 60, 10, "full")
		b = NewBook(b.Rows())
		b.Begin(known(noon), 1, 2)
		b.Reconcile("a", c.waiting, 1, c.settled, c.reason)
		got := Reply(Question{}, slices.Values(b.Rows()), true).Total
		waiting := uint64(0)
		for _, s := range c.waiting {
			waiting += s.Last - s.First + 1
		}
		if !reflect.DeepEqual(got.Counts, c.want) || got.Waiting != waiting {
			t.Errorf("%s: %+v\nwant %+v and %d waiting", c.name, got, c.want, waiting)
		}
	}
}

func TestReasonsAreBounded(t *testing.T) {
	var c Counts
	for i := range 100 {
		c.lose(fmt.Sprintf("%d %0200d", i, 0), 1)
	}
	c.lose("ÄÖÜ\xff"+string(make([]byte, 75))+"Ä", 1)
	if len(c.Lost) > maxReasons+1 || c.LostAll() != 101 {
		t.Errorf("%d reasons, %d lost", len(c.Lost), c.LostAll())
	}
	for reason := range c.Lost {
		if len(reason) > maxReason {
			t.Errorf("%q", reason)
		}
	}
}

func TestParsePeriod(t *testing.T) {
	zone := time.FixedZone("", 5*60*60+30*60)
	now := time.Date(2026, 11, 23, 14, 20, 0, 0, zone)
	midnight := time.Date(2026, 11, 23, 0, 0, 0, 0, zone)
	for text, want := range map[string][2]time.Time{
		"24h": {now.Add(-24 * time.Hour), now}, "7d": {now.Add(-7 * day), now}, "week": {now.Add(-7 * day), now},
		" Today ": {midnight, now}, "yesterday": {midnight.Add(-day), midnight}, "90m": {now.Add(-90 * time.Minute), now}, "2 w": {now.Add(-14 * day), now},
	} {
		since, until, err := ParsePeriod(text, now)
		if err != nil || !since.Equal(want[0]) || !until.Equal(want[1]) {
			t.Errorf("%q: %v – %v, %v", text, since, until, err)
		}
	}
	for _, text := range []string{"", "h", "0h", "-1h", "1y", "1.5h", "9223372036854775807h", "9999999w", "tomorrow"} {
		if since, until, err := ParsePeriod(text, now); err == nil {
			t.Errorf("%q: %v – %v", text, since, until)
		}
	}
}
