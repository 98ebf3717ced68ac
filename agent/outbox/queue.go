package outbox

import (
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A place is a reading's: the run that numbered it, and its number there.
type place struct {
	run uint32
	seq uint64
}

func (p place) before(q place) bool {
	return p.run < q.run || p.run == q.run && p.seq < q.seq
}

// next is the first place after p.
func (p place) next() place { return place{p.run, p.seq + 1} }

// A span is readings on disk: those of the numbers first to last, but for so
// many that were thinned out. The last is one that is there.
type span struct {
	run         uint32
	first, last uint64
	missing     uint64
}

// count is 0 of the zero span, which has no numbers.
func (s span) count() int {
	if s.last == 0 {
		return 0
	}
	return int(s.last - s.first + 1 - s.missing)
}

// An entry is a reading that is not yet on disk.
type entry struct {
	devices.Record
	receipt *receipt
	came    time.Time
	size    int // estimated bytes
}

// A queue is what waits of one device. Its fields are guarded by the outbox's
// lock.
type queue struct {
	device devices.ID
	next   uint64 // sequence number of the next reading

	lastTime time.Time // of the newest reading, as it was stored
	told     time.Time // of the newest reading, as it was told

	disk       []span // not settled, oldest first; each thinned row is one of its own
	settled    place  // up to which packs ended, in this run
	toldThin   place  // up to which it is told what was thinned out, in this run
	forgotten  place  // up to which the disk keeps nothing, with the commit that is under way
	memory     []entry
	size       int         // estimated bytes of memory
	accepted   int         // how many of memory are settled, but stay until they are on disk
	acceptedAt []time.Time // when each of them was
	committing int         // how many of memory are being written

	sending  *Pack   // handed out by Next, or to be handed out again
	answered bool    // the pack before was not given back without an answer
	out      bool    // sending is with the caller
	prepared []*Pack // frozen from disk, to be sent after sending
	// inMemory are the boundaries frozen from memory whose readings are not
	// in bbolt, the pack under way included: they are written with them.
	inMemory  []memoryBoundary
	journaled int    // how many of memory are in the journal too
	took      uint64 // up to which number the journal has them as accepted
	wants     bool   // waits for the committer to freeze more of what is on disk
	unfreeze  bool   // the boundaries on disk are not to be used
	splits    int    // counts the packs that were too big
	limit     int    // of readings in a pack; 0 where none is known
	listed    bool   // is in the outbox's turn
	notUntil  time.Time
	diskFirst bool
	unacked   int // messages whose source waits, in its window

	// See hold.go.
	held     []*heldEntry
	heldNext uint64                 // the next number in the run of what was held
	found    map[devices.Origin]int // what the server has of it; nil while that is not known
	asked    bool                   // it is being read back,
	askedAll bool                   // as much as can be
	arrived  map[devices.Origin]int // found, once what was held has its numbers; nil before
	doubted  []span                 // on disk, and accepted by the server in another boot
}

// A boundary freezes readings of one device and run into a pack.
type boundary struct {
	run         uint32
	first, last uint64
	frozen      time.Time
	dating      string // "" where its readings have their times
}

// A memoryBoundary is of a pack whose readings are in memory.
type memoryBoundary struct {
	boundary
	safe bool // it is in the journal
}

// spread gives a reading's time to the microsecond, and different from that of
// the reading before: consumers tell readings apart by it.
func (q *queue) spread(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Microsecond)
	if t.Equal(q.told) {
		q.lastTime = q.lastTime.Add(time.Microsecond)
	} else {
		q.told = t
		if t.Equal(q.lastTime) {
			t = t.Add(time.Microsecond)
		}
		q.lastTime = t
	}
	return q.lastTime
}

// onDisk counts the readings on disk that are not settled.
func (q *queue) onDisk() int {
	n := 0
	for _, s := range q.disk {
		n += s.count()
	}
	return n
}

// unsent counts the readings in memory that are not settled.
func (q *queue) unsent() int { return len(q.memory) - q.accepted }

// unsafe counts those of them that are not in the journal either.
func (q *queue) unsafe() int { return len(q.memory) - max(q.accepted, q.journaled) }

// onDiskToo reports whether the oldest reading in memory that is not settled is
// in the journal. It is then frozen as what is on disk only is: it goes out when
// its boundary is there too.
func (q *queue) onDiskToo() bool { return q.journaled > q.accepted }

// forget drops the oldest n readings from memory.
func (q *queue) forget(n int) {
	for _, e := range q.memory[:n] {
		q.size -= e.size
	}
	clear(q.memory[:n])
	q.memory = q.memory[n:]
	q.accepted = max(0, q.accepted-n)
	q.acceptedAt = q.acceptedAt[min(n, len(q.acceptedAt)):]
	q.journaled = max(0, q.journaled-n)
	if len(q.memory) == 0 {
		q.memory = nil
	}
}

// sendable reports whether Next could give something of the queue, apart from
// its turn and its pause.
func (q *queue) sendable() bool {
	switch {
	case q.out:
		return false
	case q.sending != nil || len(q.prepared) > 0:
		return true
	case q.blocked():
		return false
	case len(q.disk) > 0 || q.onDiskToo():
		return !q.wants
	}
	return q.committing == 0 && q.unsent() > 0 && !q.diskFirst
}

// freezable reports whether packs are to be made of what is on disk. Never of
// what is under way: it may have been wanted before it was.
func (q *queue) freezable() bool {
	return q.wants && len(q.disk) > 0 && !q.blocked() && q.sending == nil && len(q.prepared) == 0
}

// remove takes numbers out of the spans, and gives those that were there.
func (q *queue) remove(s span) span { return q.replace(s) }

// replace puts spans in the place of numbers, and gives those that were there.
// Of thinned rows, s is to hold all that is left, or be cut at a reading.
func (q *queue) replace(s span, with ...span) (there span) {
	from := 0
	for from < len(q.disk) && (place{q.disk[from].run, q.disk[from].last}).before(place{s.run, s.first}) {
		from++
	}
	to := from
	var head, tail []span
	for ; to < len(q.disk) && q.disk[to].run == s.run && q.disk[to].first <= s.last; to++ {
		e := q.disk[to]
		cut := span{s.run, max(e.first, s.first), min(e.last, s.last), e.missing}
		if e.first < s.first {
			head = []span{{run: s.run, first: e.first, last: s.first - 1}}
		}
		if s.last < e.last {
			cut.missing = min(e.missing, s.missing-min(s.missing, there.missing))
			tail = []span{{s.run, s.last + 1, e.last, e.missing - cut.missing}}
		}
		if to == from {
			there = cut
			continue
		}
		there.missing += cut.missing + cut.first - there.last - 1
		there.last = cut.last
	}
	in := slices.Concat(head, with, tail)
	if from == 0 && len(in) <= to {
		// As ever with what is settled: the rest need not be moved.
		q.disk = q.disk[to-len(in):]
		copy(q.disk, in)
		return there
	}
	q.disk = slices.Replace(q.disk, from, to, in...)
	return there
}

// settle takes out what a pack of a run held, and gives how many were there.
// Packs go in order, so that what was thinned out before its first reading goes
// with it.
func (q *queue) settle(p *Pack) int {
	s := span{run: p.boundary.run, first: p.First, last: p.Last}
	for _, e := range q.disk {
		if e.run < s.run || e.run == s.run && e.last < s.first {
			continue
		}
		if e.run == s.run && e.missing > 0 {
			s.first = min(e.first, s.first)
		}
		break
	}
	s.missing = s.last - s.first + 1 - uint64(p.Count())
	return q.remove(s).count()
}

// extend adds readings that are on disk now, newer than all before.
func (q *queue) extend(s span) {
	if n := len(q.disk); n > 0 && q.disk[n-1].joins(s) {
		q.disk[n-1].last = s.last
		return
	}
	q.disk = append(q.disk, s)
}

// joins reports whether t can be told as the end of s.
func (s span) joins(t span) bool {
	return s.missing+t.missing == 0 && s.run == t.run && s.last+1 == t.first
}
