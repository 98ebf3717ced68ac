package watch

import (
	"math"
	"slices"
)

// A span is the numbers from first to last, both included.
type span struct{ first, last uint64 }

func (s span) size() uint64 { return s.last - s.first + 1 } // no number is 0, so this cannot overflow

// spans is a set of numbers, none of them 0: rising, neither overlapping nor
// touching.
type spans []span

// add puts s into the set.
func (ss *spans) add(s span) {
	// from and to enclose what overlaps or touches s.
	from, _ := slices.BinarySearchFunc(*ss, s, func(e, s span) int {
		if e.last < s.first-1 {
			return -1
		}
		return 1
	})
	to := from
	for ; to < len(*ss) && (s.last == math.MaxUint64 || (*ss)[to].first <= s.last+1); to++ {
		s.first = min(s.first, (*ss)[to].first)
		s.last = max(s.last, (*ss)[to].last)
	}
	*ss = slices.Replace(*ss, from, to, s)
}

// contains reports whether n is in the set.
func (ss spans) contains(n uint64) bool {
	_, found := slices.BinarySearchFunc(ss, n, func(e span, n uint64) int {
		switch {
		case e.last < n:
			return -1
		case e.first > n:
			return 1
		}
		return 0
	})
	return found
}

// without gives the numbers of ss that are not in other.
func (ss spans) without(other spans) spans {
	var rest spans
	for _, s := range ss {
		i, _ := slices.BinarySearchFunc(other, s.first, func(e span, n uint64) int {
			if e.last < n {
				return -1
			}
			return 1
		})
		for ; i < len(other) && other[i].first <= s.last; i++ {
			if other[i].first > s.first {
				rest = append(rest, span{s.first, other[i].first - 1})
			}
			if other[i].last >= s.last {
				s.last = 0 // nothing is left of it
				break
			}
			s.first = other[i].last + 1
		}
		if s.last != 0 {
			rest = append(rest, s)
		}
	}
	return rest
}

// gaps gives the numbers between the first and the last of the set that are
// not in it.
func (ss spans) gaps() spans {
	var gaps spans
	for i := 1; i < len(ss); i++ {
		gaps = append(gaps, span{ss[i-1].last + 1, ss[i].first - 1})
	}
	return gaps
}

// size counts the numbers of the set.
func (ss spans) size() uint64 {
	n := uint64(0)
	for _, s := range ss {
		n += s.size()
	}
	return n
}
