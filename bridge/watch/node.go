package watch

import (
	"cmp"
	"crypto/sha256"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A node is a PubSub node that is watched, and what is known of it. It belongs
// to the goroutine that runs the Watcher.
type node struct {
	name    string
	gateway string
	device  devices.ID // empty for events
	lane    lane

	// How it stands in this session. What comes while it is not fetched waits.
	subscribed bool
	fetched    bool
	waiting    []itemElement
	overflow   bool

	retry time.Time     // when to subscribe again after a refusal
	wait  time.Duration // before that
	said  string        // the last refusal that was told

	unlisted int    // how many sessions ended while it was listed
	missing  uint64 // how many readings were when it was last fetched
	seen     memory // ids of events that came
	bad      memory // ids of items that cannot be read
}

// Waits after a refusal: a gateway may let the operator in any time, and
// services list the nodes of all gateways to everybody.
const (
	leastRetry = 2 * time.Second
	mostRetry  = 10 * time.Minute
)

// newNode makes a node; nil where name is not that of a gateway's node.
func newNode(name string) *node {
	gateway, device, l, ok := parseNode(name)
	if !ok {
		return nil
	}
	return &node{name: name, gateway: gateway, device: device, lane: l}
}

// forget is for the beginning of a session.
func (n *node) forget() {
	n.subscribed, n.retry, n.wait = false, time.Time{}, 0
	n.fetched, n.waiting, n.overflow = false, nil, false
}

// refused has the node subscribed to later.
func (n *node) refused(now time.Time) {
	n.subscribed = false
	n.wait = min(max(2*n.wait, leastRetry), mostRetry)
	n.retry = now.Add(n.wait)
}

// compareNodes puts events first: they explain gaps.
func compareNodes(a, b *node) int {
	return cmp.Or(cmp.Compare(order(a.lane), order(b.lane)), cmp.Compare(a.name, b.name))
}

func order(l lane) int {
	if l == laneEvents {
		return 0
	}
	return 1
}

// A memory knows the newest ids that it was told. Its zero value knows none.
type memory struct {
	ids   map[[16]byte]bool
	order [][16]byte
}

// maxMemory is more items than a service keeps in a node.
const maxMemory = 1 << 16

func digest(id string) [16]byte {
	sum := sha256.Sum256([]byte(id))
	return [16]byte(sum[:16])
}

// add remembers id, and reports whether it is new.
func (m *memory) add(id string) bool {
	d := digest(id)
	if m.ids[d] {
		return false
	}
	if m.ids == nil {
		m.ids = make(map[[16]byte]bool)
	}
	m.ids[d] = true
	m.order = append(m.order, d)
	if len(m.order) > maxMemory {
		delete(m.ids, m.order[0])
		m.order = m.order[1:]
	}
	return true
}

func (m *memory) has(id string) bool { return m.ids[digest(id)] }
