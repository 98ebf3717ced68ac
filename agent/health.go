package agent

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// stuckAfter is how long a loop may be busy with one thing. What waits for
	// a network or a device does not count as busy; a commit to a slow card
	// does.
	stuckAfter = 90 * time.Second
	// readyAfter is how long the first driver is waited for: a broker
	// elsewhere may be away for days, as the server may.
	readyAfter = 20 * time.Second
)

// A beating part shows by its turns whether it gets on; see [devices.Pulse].
type beating interface{ Turn() (n uint64, busy bool) }

// A health finds the parts that are stuck.
type health struct {
	ready chan struct{} // closed by up, once
	once  sync.Once

	mu   sync.Mutex
	seen map[string]seenTurn
}

type seenTurn struct {
	turn  uint64
	since time.Time // when it was first seen at it
}

func (h *health) up() { h.once.Do(func() { close(h.ready) }) }

// stuck names those that have been busy with one turn for so long, as far as
// it was asked in between.
func (h *health) stuck(parts map[string]beating, now time.Time) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	seen := make(map[string]seenTurn, len(parts))
	for name, part := range parts {
		turn, busy := part.Turn()
		if !busy {
			continue
		}
		s, before := h.seen[name]
		if !before || s.turn != turn {
			s = seenTurn{turn, now}
		}
		seen[name] = s
		if now.Sub(s.since) >= stuckAfter {
			names = append(names, name)
		}
	}
	h.seen = seen
	slices.Sort(names)
	return names
}

// Ready is closed when the first driver of devices is up, or, where there is
// none, when there is nothing to wait for; after some time in any case. The
// store is open since New. The server is not waited for.
func (a *Agent) Ready() <-chan struct{} { return a.health.ready }

// Stuck names the parts that did not get on for minutes: the store, the XMPP
// side, a driver. It is to be called several times a minute.
func (a *Agent) Stuck() []string { return a.health.stuck(a.parts(), time.Now()) }

// parts are all that must get on while Run is at work.
func (a *Agent) parts() map[string]beating {
	parts := map[string]beating{"store": a.outbox, "intake": &a.intake.calls, "forwarder": &a.forward.pulse, "clockwork": &a.ticking}
	for name, p := range a.bridge.Pulses() {
		parts[name] = p
	}
	if !a.mu.TryLock() {
		return parts // a reload is under way, which holds it for as long as drivers take to end
	}
	defer a.mu.Unlock()
	for _, w := range a.crew {
		if b, ok := w.driver.(beating); ok {
			parts[w.driver.Name()] = b
		}
	}
	return parts
}

// came is told that a driver is up.
func (a *Agent) came(driver string) {
	if driver != selfName || a.alone.Load() {
		a.health.up()
	}
}

// calls are the drivers' calls of the sink, which are to return at once: their
// turn is how many did, and they are busy while one is under way.
type calls struct{ begun, ended atomic.Uint64 }

func (c *calls) begin() func() {
	c.begun.Add(1)
	return func() { c.ended.Add(1) }
}

// Turn implements beating.
func (c *calls) Turn() (uint64, bool) {
	ended := c.ended.Load() // before begun, which is never less
	return ended, c.begun.Load() > ended
}

var (
	_ beating = (*devices.Pulse)(nil)
	_ beating = (*calls)(nil)
)
