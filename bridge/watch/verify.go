package watch

import (
	"math"
	"strconv"
	"strings"

	"github.com/porchlight-iot/porchlight/bridge"
)

// Counts is the verdict of a [Ledger]. Each is a number of readings.
type Counts struct {
	// Missing were skipped: later readings came, these did not, and nobody
	// said that they are lost or thinned out.
	Missing uint64 `json:"missing"`
	// Doubled came in two items, or came again with other content under the
	// id of an item that was there before.
	Doubled uint64 `json:"doubled"`
	// Disordered came live after a later one of their device.
	Disordered uint64 `json:"disordered"`
	// Evicted had gone from their node before they were fetched: a service
	// keeps only so many items, and the watcher was away for too long.
	Evicted uint64 `json:"evicted"`

	// Lost are those of the skipped that the gateway itself calls lost.
	Lost uint64 `json:"-"`
	// Readings came, each counted once.
	Readings uint64 `json:"-"`
}

// Whole reports that no reading is missing, doubled or out of order.
func (c Counts) Whole() bool { return c.Missing == 0 && c.Doubled == 0 && c.Disordered == 0 }

func (c Counts) plus(d Counts) Counts {
	return Counts{
		Missing:    sum(c.Missing, d.Missing),
		Doubled:    sum(c.Doubled, d.Doubled),
		Disordered: sum(c.Disordered, d.Disordered),
		Evicted:    sum(c.Evicted, d.Evicted),
		Lost:       sum(c.Lost, d.Lost),
		Readings:   sum(c.Readings, d.Readings),
	}
}

// sum stays at the largest number, which a hostile item id can reach at once.
func sum(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// An ItemID is the id of a log item taken apart: the readings First to Last,
// both included, of one run of a store.
type ItemID struct {
	Store       string
	First, Last uint64
}

// ParseItemID takes the id of a log item apart.
func ParseItemID(id string) (ItemID, error) {
	store, first, last, err := bridge.ParseItem(id)
	return ItemID{store, first, last}, err
}

// String gives the id as it stands in the node.
func (id ItemID) String() string { return bridge.ItemID(id.Store, id.First, id.Last) }

// run gives the parts of a store's name, <random>.<run>. A name of another
// form is a store with one run.
func (id ItemID) run() (random string, run uint64) {
	i := strings.LastIndexByte(id.Store, '.')
	if i < 0 {
		return id.Store, 0
	}
	run, err := strconv.ParseUint(id.Store[i+1:], 10, 64)
	if err != nil {
		return id.Store, 0
	}
	return id.Store[:i], run
}

// compare puts the items of one store in the order in which its gateway
// published them.
func (id ItemID) compare(other ItemID) int {
	_, a := id.run()
	_, b := other.run()
	for _, p := range [][2]uint64{{a, b}, {id.First, other.First}, {id.Last, other.Last}} {
		switch {
		case p[0] < p[1]:
			return -1
		case p[0] > p[1]:
			return 1
		}
	}
	return 0
}

// A Pack is what a Ledger must know of a log item.
type Pack struct {
	ID   ItemID
	Seqs []uint64 // rising, within the id's First and Last
	Sum  [8]byte  // of the content: equal sums, equal content
}

// A Sight says what a pack is to a Ledger.
type Sight int

// What a pack can be.
const (
	Fresh   Sight = iota // its id was not there before
	Again                // the same once more, as after an answer that got lost
	Changed              // another content under an id that was there before
)

// Bounds of what is kept of a node, whatever its gateway publishes. Beyond
// them the oldest is judged and forgotten.
const (
	maxKnownItems = 1 << 16 // more than a service keeps
	maxRuns       = 256
	maxSpans      = 1 << 12
)

// A Ledger keeps account of the numbers of readings: of each log node, which
// numbers came, in how many items, and in what order. It knows no network and
// no clock. It must not be used by two goroutines at once.
//
// What came before its first item of a node it does not know, and does not
// call missing. A run that begins while it looks begins with number 1.
type Ledger struct {
	nodes map[string]*logNode
}

type logNode struct {
	stores  map[string]map[uint64]*run // by random and run
	created []*run                     // oldest first
	known   []known                    // all runs' items, in the order in which they came
	seen    bool                       // something came
	retired Counts                     // of what is forgotten
}

type known struct {
	run   *run
	items span
}

// run is one device's readings in one run of a store.
type run struct {
	random    string
	number    uint64
	fromStart bool // number 1 is expected
	seen      spans
	evicted   spans
	lost      spans
	due       spans            // of lost, those that are to come all the same
	items     map[span][8]byte // content by the id's numbers
	forgotten uint64           // items up to this number may be known no more
	counts    Counts           // doubled, disordered and readings, and of the rest what was judged
}

func (l *Ledger) node(name string) *logNode {
	if l.nodes == nil {
		l.nodes = make(map[string]*logNode)
	}
	n := l.nodes[name]
	if n == nil {
		n = &logNode{stores: make(map[string]map[uint64]*run)}
		l.nodes[name] = n
	}
	return n
}

func (n *logNode) run(id ItemID) *run {
	random, number := id.run()
	runs := n.stores[random]
	if runs == nil {
		runs = make(map[uint64]*run)
		n.stores[random] = runs
	}
	r := runs[number]
	if r == nil {
		r = &run{random: random, number: number, items: make(map[span][8]byte)}
		runs[number] = r
		n.created = append(n.created, r)
		if len(n.created) > maxRuns {
			n.forgetRun(n.created[0])
		}
	}
	return r
}

func (n *logNode) forgetRun(r *run) {
	n.retired = n.retired.plus(r.judge())
	n.created = n.created[1:]
	delete(n.stores[r.random], r.number)
	if len(n.stores[r.random]) == 0 {
		delete(n.stores, r.random)
	}
}

// Add takes in a pack. live says that the service announced it when it was
// published; a pack that was fetched comes in whatever order.
func (l *Ledger) Add(node string, p Pack, live bool) Sight {
	n := l.node(node)
	r := n.run(p.ID)
	ids := span{p.ID.First, p.ID.Last}
	if sum, ok := r.items[ids]; ok {
		if sum == p.Sum {
			return Again
		}
		r.items[ids] = p.Sum
		r.counts.Doubled = sumOf(r.counts.Doubled, len(p.Seqs))
		return Changed
	}
	earlier, later := n.neighbours(r)
	if len(r.seen) == 0 {
		r.fromStart = earlier || live && n.seen && !later
	}
	var newest uint64
	if len(r.seen) > 0 {
		newest = r.seen[len(r.seen)-1].last
	}
	var came, disordered, doubled int
	for _, seq := range p.Seqs {
		switch {
		case r.seen.contains(seq):
			doubled++
			continue
		case live && (later || seq < newest):
			disordered++
		}
		came++
	}
	if came == 0 && p.ID.Last <= r.forgotten {
		return Again
	}
	for _, seq := range p.Seqs {
		r.seen.add(span{seq, seq})
	}
	r.counts.Doubled = sumOf(r.counts.Doubled, doubled)
	r.counts.Disordered = sumOf(r.counts.Disordered, disordered)
	r.counts.Readings = sumOf(r.counts.Readings, came)
	n.seen = true
	r.items[ids] = p.Sum
	n.known = append(n.known, known{r, ids})
	if len(n.known) > maxKnownItems {
		oldest := n.known[0]
		n.known = n.known[1:]
		delete(oldest.run.items, oldest.items)
		oldest.run.forgotten = max(oldest.run.forgotten, oldest.items.last)
	}
	r.trim()
	return Fresh
}

func sumOf(a uint64, n int) uint64 { return sum(a, uint64(n)) }

// neighbours says whether readings of earlier and of later runs of the same
// store came.
func (n *logNode) neighbours(r *run) (earlier, later bool) {
	for number, other := range n.stores[r.random] {
		if len(other.seen) > 0 {
			earlier = earlier || number < r.number
			later = later || number > r.number
		}
	}
	return earlier, later
}

// Knows reports whether an item came before, so that it need not be fetched.
func (l *Ledger) Knows(node string, id ItemID) bool {
	n := l.nodes[node]
	if n == nil {
		return false
	}
	random, number := id.run()
	r := n.stores[random][number]
	if r == nil {
		return false
	}
	_, ok := r.items[span{id.First, id.Last}]
	return ok
}

// Oldest says which is the oldest item that a node holds, before those that it
// holds are added: what the ledger waits for and is older than that has gone
// from the node.
func (l *Ledger) Oldest(node string, id ItemID) {
	n := l.node(node)
	r := n.run(id)
	earlier, _ := n.neighbours(r)
	switch {
	case len(r.seen) > 0:
		if newest := r.seen[len(r.seen)-1].last; newest < id.First-1 {
			r.evict(span{newest + 1, id.First - 1})
		}
	case earlier && id.First > 1:
		r.evict(span{1, id.First - 1})
	}
}

// Evicted says that an item has gone from the node between its being listed
// and its being fetched.
func (l *Ledger) Evicted(node string, id ItemID) {
	l.node(node).run(id).evict(span{id.First, id.Last})
}

func (r *run) evict(s span) {
	if len(r.evicted) < maxSpans {
		r.evicted.add(s)
	}
}

// Lost says that the gateway called readings lost. It may do so before the
// gap shows, or after. Where kept is given, so many of them are not lost, then so
// many are, and so on in turn; those that are not must come.
func (l *Ledger) Lost(node string, readings ItemID, kept ...uint64) {
	if readings.First < 1 || readings.Last < readings.First {
		return
	}
	r, told := l.node(node).run(readings), span{readings.First, readings.Last}
	if len(r.lost) < maxSpans {
		r.lost.add(told)
	}
	r.due = r.due.without(spans{told})
	next := readings.First
	for i, n := range kept {
		if i%2 == 0 && n > 0 && len(r.due) < maxSpans {
			r.due.add(span{next, next + n - 1})
		}
		next += n
	}
	// What came need not be remembered as due.
	r.due = r.due.without(r.seen)
}

// Node gives the verdict on one log node.
func (l *Ledger) Node(node string) Counts {
	n := l.nodes[node]
	if n == nil {
		return Counts{}
	}
	c := n.retired
	for _, r := range n.created {
		c = c.plus(r.judge())
	}
	return c
}

// Counts gives the verdict on all that came.
func (l *Ledger) Counts() Counts {
	var c Counts
	for name := range l.nodes {
		c = c.plus(l.Node(name))
	}
	return c
}

// skipped gives the numbers that later ones came after, but for those that
// were judged before.
func (r *run) skipped() spans {
	if len(r.seen) == 0 {
		return nil
	}
	skipped := r.seen.gaps()
	if first := r.seen[0].first; r.fromStart && first > 1 {
		skipped = append(spans{{1, first - 1}}, skipped...)
	}
	return skipped
}

func (r *run) judge() Counts {
	return r.counts.plus(r.account(r.skipped()))
}

// account says what became of skipped numbers.
func (r *run) account(skipped spans) Counts {
	unexplained := skipped.without(r.lost.without(r.due))
	missing := unexplained.without(r.evicted)
	return Counts{
		Lost:    skipped.size() - unexplained.size(),
		Evicted: unexplained.size() - missing.size(),
		Missing: missing.size(),
	}
}

// trim judges the oldest gap where there are too many.
func (r *run) trim() {
	for len(r.seen) > maxSpans {
		oldest := r.skipped()[:1]
		r.counts = r.counts.plus(r.account(oldest))
		r.seen.add(oldest[0])
		r.fromStart = r.fromStart && r.seen[0].first > 1
	}
}
