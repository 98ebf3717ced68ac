package demo

import (
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A ledger compares what devices sent with what the operator got, reading by
// reading. Its methods may be called from any goroutine.
type ledger struct {
	mu   sync.Mutex
	seen map[devices.ID]map[int]string // count -> item and number in which it came
	last map[devices.ID]time.Time
	text map[devices.ID]string // status
	show map[devices.ID]string // presence
	twos int
}

func newLedger() *ledger {
	return &ledger{
		seen: make(map[devices.ID]map[int]string), last: make(map[devices.ID]time.Time),
		text: make(map[devices.ID]string), show: make(map[devices.ID]string),
	}
}

// got notes a reading that carries a device's count, and where it was found.
// The same reading in another place is a double.
func (l *ledger) got(device devices.ID, count int, place string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[device] == nil {
		l.seen[device] = make(map[int]string)
	}
	if before, ok := l.seen[device][count]; ok && before != place {
		l.twos++
	}
	l.seen[device][count] = place
	l.last[device] = now
}

func (l *ledger) presence(device devices.ID, show, status string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.show[device], l.text[device] = show, status
}

// delivered counts which of a device's first sent readings came.
func (l *ledger) delivered(device devices.ID, sent int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for count := range l.seen[device] {
		if count <= sent {
			n++
		}
	}
	return n
}

func (l *ledger) doubled() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.twos
}

func (l *ledger) row(device devices.ID) (show, status string, last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.show[device], l.text[device], l.last[device]
}
