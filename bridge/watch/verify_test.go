package watch

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

const testNode = "gw/kitchen/log"

func itemID(t *testing.T, id string) ItemID {
	item, err := ParseItemID(id)
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// pack is a short item without gaps.
func pack(t *testing.T, id string) Pack {
	p := Pack{ID: itemID(t, id)}
	for seq := p.ID.First; seq <= p.ID.Last; seq++ {
		p.Seqs = append(p.Seqs, seq)
	}
	return p
}

func TestLedger(t *testing.T) {
	type step func(*testing.T, *Ledger)
	item := func(id string) ItemID { return itemID(t, id) }
	add := func(live bool, id string, want Sight) step {
		return func(t *testing.T, l *Ledger) {
			if got := l.Add(testNode, pack(t, id), live); got != want {
				t.Errorf("%s: sight %d, want %d", id, got, want)
			}
		}
	}
	live := func(id string) step { return add(true, id, Fresh) }
	again := func(id string) step { return add(true, id, Again) }
	fetched := func(id string) step { return add(false, id, Fresh) }
	changed := func(id string) step {
		return func(t *testing.T, l *Ledger) {
			p := pack(t, id)
			p.Sum = [8]byte{1}
			if got := l.Add(testNode, p, true); got != Changed {
				t.Errorf("%s with other content: sight %d, want %d", id, got, Changed)
			}
		}
	}
	thinned := func(id string, seqs ...uint64) step {
		return func(t *testing.T, l *Ledger) {
			l.Add(testNode, Pack{ID: item(id), Seqs: seqs}, true)
		}
	}
	oldest := func(id string) step { return func(_ *testing.T, l *Ledger) { l.Oldest(testNode, item(id)) } }
	evicted := func(id string) step { return func(_ *testing.T, l *Ledger) { l.Evicted(testNode, item(id)) } }
	lost := func(id string) step { return func(_ *testing.T, l *Ledger) { l.Lost(testNode, item(id)) } }

	kept := func(id string, kept ...uint64) step {
		return func(_ *testing.T, l *Ledger) { l.Lost(testNode, item(id), kept...) }
	}

	for _, c := range []struct {
		name  string
		steps []step
		want  Counts
	}{
		{"nothing", nil, Counts{}},
		{"in order", []step{live("a.1-1-3"), live("a.1-4-4"), live("a.1-5-9")}, Counts{Readings: 9}},
		{"the past is not known", []step{live("a.1-50-59"), live("a.1-60-60")}, Counts{Readings: 11}},
		{"missing", []step{live("a.1-1-3"), live("a.1-5-9")}, Counts{Readings: 8, Missing: 1}},
		{"missing from history", []step{fetched("a.1-1-3"), fetched("a.1-6-9")}, Counts{Readings: 7, Missing: 2}},
		{"two gaps", []step{live("a.1-1-1"), live("a.1-3-3"), live("a.1-6-6")}, Counts{Readings: 3, Missing: 3}},
		{"a gap that is filled by fetching", []step{live("a.1-1-1"), live("a.1-3-3"), fetched("a.1-2-2")}, Counts{Readings: 3}},
		{"told twice", []step{live("a.1-1-3"), again("a.1-1-3"), again("a.1-1-3")}, Counts{Readings: 3}},
		{"announced and fetched", []step{fetched("a.1-1-3"), again("a.1-1-3"), live("a.1-4-4"), add(false, "a.1-4-4", Again)}, Counts{Readings: 4}},
		{"doubled", []step{live("a.1-1-3"), live("a.1-3-4")}, Counts{Readings: 4, Doubled: 1}},
		{"doubled by halves", []step{live("a.1-1-4"), live("a.1-1-2"), live("a.1-3-4")}, Counts{Readings: 4, Doubled: 4}},
		{"doubled in history", []step{fetched("a.1-1-3"), fetched("a.1-1-2")}, Counts{Readings: 3, Doubled: 2}},
		{"changed", []step{live("a.1-1-3"), changed("a.1-1-3")}, Counts{Readings: 3, Doubled: 3}},
		{"disordered", []step{live("a.1-1-1"), live("a.1-3-3"), live("a.1-2-2")}, Counts{Readings: 3, Disordered: 1}},
		{"older than all", []step{live("a.1-5-5"), live("a.1-1-2")}, Counts{Readings: 3, Disordered: 2, Missing: 2}},
		{"doubled is not disordered", []step{live("a.1-1-3"), live("a.1-2-2")}, Counts{Readings: 3, Doubled: 1}},
		{"history has no order", []step{fetched("a.1-4-6"), fetched("a.1-1-3")}, Counts{Readings: 6}},

		{"next run", []step{live("a.1-1-3"), live("a.2-1-2")}, Counts{Readings: 5}},
		{"next run, its beginning is missing", []step{live("a.1-1-3"), live("a.2-3-4")}, Counts{Readings: 5, Missing: 2}},
		{"next run in history", []step{fetched("a.1-1-3"), fetched("a.2-2-4")}, Counts{Readings: 6, Missing: 1}},
		{"a run in which the device said nothing", []step{live("a.1-1-3"), live("a.3-1-2")}, Counts{Readings: 5}},
		{"earlier run after a later one", []step{live("a.2-1-3"), live("a.1-7-8")}, Counts{Readings: 5, Disordered: 2}},
		{"earlier run after a later one, in history", []step{fetched("a.2-1-3"), fetched("a.1-7-8")}, Counts{Readings: 5}},
		{"runs count as numbers", []step{live("a.9-1-3"), live("a.10-1-3")}, Counts{Readings: 6}},
		{"new store", []step{live("a.7-1-3"), live("b.1-1-3")}, Counts{Readings: 6}},
		{"new store, its beginning is missing", []step{live("a.7-1-3"), live("b.1-2-3")}, Counts{Readings: 5, Missing: 1}},
		{"another store in history", []step{fetched("a.7-1-3"), fetched("b.1-50-51")}, Counts{Readings: 5}},
		{"stores do not mix", []step{live("a.1-1-3"), live("b.1-1-3"), live("a.1-4-5"), live("b.1-4-4")}, Counts{Readings: 9}},
		{"store without run", []step{live("a-1-3"), live("a-5-5")}, Counts{Readings: 4, Missing: 1}},

		{"evicted", []step{live("a.1-1-3"), oldest("a.1-8-9"), fetched("a.1-8-9"), fetched("a.1-10-10")}, Counts{Readings: 6, Evicted: 4}},
		{"evicted and missing", []step{live("a.1-1-3"), oldest("a.1-8-9"), fetched("a.1-8-9"), fetched("a.1-11-11")}, Counts{Readings: 6, Evicted: 4, Missing: 1}},
		{"missing where the node holds what was before", []step{live("a.1-1-3"), oldest("a.1-1-3"), fetched("a.1-8-9")}, Counts{Readings: 5, Missing: 4}},
		{"missing stays missing when the node has moved on", []step{live("a.1-1-1"), live("a.1-3-3"), oldest("a.1-5-5"), fetched("a.1-5-5")}, Counts{Readings: 3, Missing: 1, Evicted: 1}},
		{"evicted is the beginning of a run", []step{live("a.1-1-3"), oldest("a.2-5-6"), fetched("a.2-5-6")}, Counts{Readings: 5, Evicted: 4}},
		{"nothing was evicted", []step{live("a.1-1-3"), oldest("a.1-4-6"), fetched("a.1-4-6")}, Counts{Readings: 6}},
		{"what went before the start is not known", []step{oldest("a.1-4-6"), fetched("a.1-4-6")}, Counts{Readings: 3}},
		{"evicted while it was fetched", []step{fetched("a.1-1-3"), evicted("a.1-4-6"), fetched("a.1-7-7")}, Counts{Readings: 4, Evicted: 3}},
		{"evicted, and came nevertheless", []step{live("a.1-1-3"), evicted("a.1-4-6"), live("a.1-4-6"), live("a.1-7-7")}, Counts{Readings: 7}},

		{"lost, told before", []step{live("a.1-1-3"), lost("a.1-4-6"), live("a.1-7-7")}, Counts{Readings: 4, Lost: 3}},
		{"lost, told after", []step{live("a.1-1-3"), live("a.1-7-7"), lost("a.1-4-6")}, Counts{Readings: 4, Lost: 3}},
		{"lost in part", []step{live("a.1-1-3"), live("a.1-7-7"), lost("a.1-2-5")}, Counts{Readings: 4, Lost: 2, Missing: 1}},
		{"lost of another run", []step{live("a.1-1-3"), live("a.1-7-7"), lost("a.2-4-6")}, Counts{Readings: 4, Missing: 3}},
		{"lost at the end", []step{live("a.1-1-3"), lost("a.1-4-6")}, Counts{Readings: 3}},
		{"lost is the beginning of a run", []step{live("a.1-1-3"), lost("a.2-1-2"), live("a.2-3-3")}, Counts{Readings: 4, Lost: 2}},
		{"lost and evicted", []step{live("a.1-1-3"), lost("a.1-4-5"), oldest("a.1-8-8"), fetched("a.1-8-8")}, Counts{Readings: 4, Lost: 2, Evicted: 2}},

		{"thinned", []step{thinned("a.1-1-9", 1, 5, 9), lost("a.1-2-4"), lost("a.1-6-8")}, Counts{Readings: 3, Lost: 6}},
		{"thinned out, told before", []step{live("a.1-1-3"), kept("a.1-4-9", 0, 2, 1, 3), live("a.1-6-6"), live("a.1-10-10")}, Counts{Readings: 5, Lost: 5}},
		{"thinned out, told after", []step{live("a.1-1-3"), live("a.1-6-6"), live("a.1-10-10"), kept("a.1-4-9", 0, 2, 1, 3)}, Counts{Readings: 5, Lost: 5}},
		{"thinned out, and one that is kept is missing", []step{live("a.1-1-3"), kept("a.1-4-9", 0, 2, 1, 3), live("a.1-10-10")}, Counts{Readings: 4, Lost: 5, Missing: 1}},
		{"thinned out, and then what was kept is lost", []step{live("a.1-1-3"), kept("a.1-4-9", 0, 2, 1, 3), lost("a.1-6-6"), live("a.1-10-10")}, Counts{Readings: 4, Lost: 6}},
		{"thinned out further", []step{live("a.1-1-3"), kept("a.1-4-9", 1, 1, 1, 3), kept("a.1-4-9", 0, 2, 1, 3), live("a.1-6-6"), live("a.1-10-10")}, Counts{Readings: 5, Lost: 5}},
		{"thinned, and not told", []step{thinned("a.1-1-9", 1, 5, 9)}, Counts{Readings: 3, Missing: 6}},
		{"the largest numbers", []step{
			thinned("a.1-1-18446744073709551615", 1, math.MaxUint64),
			thinned("b.1-1-18446744073709551615", 1, math.MaxUint64),
			lost("c.1-1-18446744073709551615"),
		}, Counts{Readings: 4, Missing: math.MaxUint64}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l Ledger
			for _, s := range c.steps {
				s(t, &l)
			}
			if got := l.Counts(); got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
			if got := l.Node(testNode); got != c.want {
				t.Errorf("of the node: got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestLedgerNodesDoNotMix(t *testing.T) {
	var l Ledger
	for _, node := range []string{"gw/a/log", "gw/b/log", "other/a/log"} {
		if got := l.Add(node, pack(t, "s.1-1-2"), true); got != Fresh {
			t.Errorf("%s: sight %d", node, got)
		}
		if l.Knows(node, pack(t, "s.1-3-4").ID) || !l.Knows(node, pack(t, "s.1-1-2").ID) {
			t.Errorf("%s: knows the wrong items", node)
		}
	}
	l.Add("gw/b/log", pack(t, "s.1-4-4"), true)
	if got, want := l.Counts(), (Counts{Readings: 7, Missing: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestWhole(t *testing.T) {
	for _, c := range []struct {
		counts Counts
		want   bool
	}{
		{Counts{Evicted: 1, Lost: 1, Readings: 1}, true},
		{Counts{Missing: 1}, false},
		{Counts{Doubled: 1}, false},
		{Counts{Disordered: 1}, false},
	} {
		if got := c.counts.Whole(); got != c.want {
			t.Errorf("%+v: whole %v", c.counts, got)
		}
	}
}

// TestLedgerForgets drives a ledger beyond its bounds: the counts stay right,
// and what is kept stays small.
func TestLedgerForgets(t *testing.T) {
	t.Run("items", func(t *testing.T) {
		var l Ledger
		const n = maxKnownItems + 1000
		for i := range uint64(n) {
			l.Add(testNode, pack(t, fmt.Sprintf("a.1-%d-%d", i+1, i+1)), true)
		}
		if got := len(l.nodes[testNode].known); got != maxKnownItems {
			t.Errorf("%d items are kept, want %d", got, maxKnownItems)
		}
		if got := l.Add(testNode, pack(t, "a.1-5-5"), true); got != Again {
			t.Errorf("an item that is forgotten: sight %d", got)
		}
		if got := l.Add(testNode, pack(t, fmt.Sprintf("a.1-%d-%d", n-1, n)), true); got != Fresh {
			t.Errorf("a doubled item: sight %d", got)
		}
		if got, want := l.Counts(), (Counts{Readings: n, Doubled: 2}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("runs", func(t *testing.T) {
		var l Ledger
		const n = 3 * maxRuns
		for i := range n {
			l.Add(testNode, pack(t, fmt.Sprintf("a.%d-1-1", i)), true)
			l.Add(testNode, pack(t, fmt.Sprintf("a.%d-3-3", i)), true)
		}
		if got := len(l.nodes[testNode].created); got != maxRuns {
			t.Errorf("%d runs are kept, want %d", got, maxRuns)
		}
		if got, want := l.Counts(), (Counts{Readings: 2 * n, Missing: n}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
	t.Run("gaps", func(t *testing.T) {
		var l Ledger
		const n = 3 * maxSpans
		l.Add(testNode, pack(t, "a.1-1-1"), true)
		for i := range uint64(n) {
			l.Lost(testNode, pack(t, fmt.Sprintf("a.2-%d-%d", 4*i+3, 4*i+3)).ID)
			l.Add(testNode, pack(t, fmt.Sprintf("a.2-%d-%d", 4*i+4, 4*i+4)), true)
		}
		if got := len(l.nodes[testNode].created[1].seen); got > maxSpans {
			t.Errorf("%d spans are kept, want %d", got, maxSpans)
		}
		got := l.Counts()
		if want := uint64(3 * n); got.Missing+got.Lost != want || got.Lost < maxSpans || got.Readings != n+1 {
			t.Errorf("got %+v, want %d missing or lost", got, want)
		}
	})
}

// TestLedgerModel publishes as a gateway does, with all faults that the ledger
// is for, and counts them by hand.
func TestLedgerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Ledger
		items := map[uint64][]string{} // of each number, the items it came in
		var want Counts
		next, newest := uint64(1), uint64(0)
		skipped := map[uint64]bool{} // and may come later
		publish := func(first, last uint64) {
			id := ItemID{"a.1", first, last}
			p := Pack{ID: id}
			known := false
			for seq := first; seq <= last; seq++ {
				p.Seqs = append(p.Seqs, seq)
				known = known || slices.Contains(items[seq], id.String())
			}
			if !known {
				for seq := first; seq <= last; seq++ {
					if len(items[seq]) > 0 {
						want.Doubled++
					} else {
						want.Readings++
						if seq < newest {
							want.Disordered++
						}
					}
					delete(skipped, seq)
				}
				for seq := first; seq <= last; seq++ {
					items[seq] = append(items[seq], id.String())
				}
				newest = max(newest, last)
			}
			if got := l.Add(testNode, p, true); (got == Again) != known {
				t.Fatalf("%v: sight %d", id, got)
			}
		}
		publish(next, next)
		next++
		t.Repeat(map[string]func(*rapid.T){
			"publish": func(t *rapid.T) {
				n := rapid.Uint64Range(0, 5).Draw(t, "more")
				publish(next, next+n)
				next += n + 1
			},
			"skip": func(t *rapid.T) {
				n := rapid.Uint64Range(1, 3).Draw(t, "readings")
				for range n {
					skipped[next] = true
					next++
				}
			},
			"publish late": func(t *rapid.T) {
				if len(skipped) > 0 {
					seq := rapid.SampledFrom(slices.Sorted(maps.Keys(skipped))).Draw(t, "seq")
					publish(seq, seq)
				}
			},
			"publish again": func(t *rapid.T) {
				first := rapid.Uint64Range(1, newest).Draw(t, "first")
				last := min(newest, first+rapid.Uint64Range(0, 3).Draw(t, "more"))
				for seq := first; seq <= last; seq++ {
					if skipped[seq] {
						return // would be late as well
					}
				}
				publish(first, last)
			},
			"": func(t *rapid.T) {
				want.Missing = 0
				for seq := range skipped {
					if seq < newest {
						want.Missing++
					}
				}
				if got := l.Counts(); got != want {
					t.Fatalf("got %+v, want %+v", got, want)
				}
			},
		})
	})
}

// TestSpansModel compares spans with a plain set.
func TestSpansModel(t *testing.T) {
	draw := func(t *rapid.T, label string) (spans, map[uint64]bool) {
		var ss spans
		set := map[uint64]bool{}
		for range rapid.IntRange(0, 8).Draw(t, label) {
			first := rapid.Uint64Range(1, 40).Draw(t, "first")
			s := span{first, first + rapid.Uint64Range(0, 6).Draw(t, "more")}
			ss.add(s)
			for n := s.first; n <= s.last; n++ {
				set[n] = true
			}
		}
		return ss, set
	}
	check := func(t *rapid.T, what string, ss spans, want func(uint64) bool) {
		size := uint64(0)
		for n := uint64(1); n < 60; n++ {
			if ss.contains(n) != want(n) {
				t.Fatalf("%s %v: contains %d is %v", what, ss, n, ss.contains(n))
			}
			if want(n) {
				size++
			}
		}
		if ss.size() != size {
			t.Fatalf("%s %v: size %d, want %d", what, ss, ss.size(), size)
		}
		for i := 1; i < len(ss); i++ {
			if ss[i-1].last+1 >= ss[i].first {
				t.Fatalf("%s %v is not in order", what, ss)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		a, inA := draw(t, "a")
		b, inB := draw(t, "b")
		check(t, "a", a, func(n uint64) bool { return inA[n] })
		check(t, "a without b", a.without(b), func(n uint64) bool { return inA[n] && !inB[n] })
		if len(a) > 0 {
			check(t, "gaps of a", a.gaps(), func(n uint64) bool {
				return !inA[n] && n > a[0].first && n < a[len(a)-1].last
			})
		}
	})
}

func TestSpansAtTheEnd(t *testing.T) {
	var ss spans
	ss.add(span{math.MaxUint64, math.MaxUint64})
	ss.add(span{5, math.MaxUint64 - 1})
	ss.add(span{1, 3})
	if want := (spans{{1, 3}, {5, math.MaxUint64}}); !slices.Equal(ss, want) {
		t.Errorf("got %v, want %v", ss, want)
	}
	if got, want := (spans{{1, math.MaxUint64}}).without(ss), (spans{{4, 4}}); !slices.Equal(got, want) {
		t.Errorf("without: got %v, want %v", got, want)
	}
}
