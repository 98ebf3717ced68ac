// Package devicetest holds what every driver is tested with: a sink that
// records, and the suite that a driver must pass.
package devicetest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// patience is how long a test waits for an event before it fails. It is a
// deadline for broken code, never a measure of working code.
const patience = 30 * time.Second

// A Sink records what a driver hands over. Its zero value holds every receipt
// until Settle; set Auto to have readings safe at once.
type Sink struct {
	Auto bool
	// Curious wants to know of strangers.
	Curious bool

	mu       sync.Mutex
	changed  chan struct{}
	messages []*Taken
	states   []Told
	rejected []Rejection
	unknown  []devices.Stranger
	ups      int
	full     bool
}

// Taken is a message that the sink took, and its receipt.
type Taken struct {
	devices.Message
	done chan struct{}
	err  error
	once sync.Once
}

// Told is one call of Availability.
type Told struct {
	Device       devices.ID
	Availability devices.Availability
}

// Rejection is one call of Reject.
type Rejection struct {
	Source string
	Why    error
}

// Done implements [devices.Receipt].
func (m *Taken) Done() <-chan struct{} { return m.done }

// Err implements [devices.Receipt].
func (m *Taken) Err() error { return m.err }

// Settle makes the message's readings safe, or, with an error, lost.
func (m *Taken) Settle(err error) {
	m.once.Do(func() {
		m.err = err
		close(m.done)
	})
}

func (s *Sink) signal() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// Report implements [devices.Sink].
func (s *Sink) Report(_ context.Context, m devices.Message) (devices.Receipt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return nil, devices.ErrFull
	}
	taken := &Taken{Message: m, done: make(chan struct{})}
	s.messages = append(s.messages, taken)
	if s.Auto {
		taken.Settle(nil)
	}
	s.signal()
	return taken, nil
}

// Availability implements [devices.Sink].
func (s *Sink) Availability(device devices.ID, a devices.Availability, _ bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states = append(s.states, Told{device, a})
	s.signal()
}

// Reject implements [devices.Sink].
func (s *Sink) Reject(source string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rejected = append(s.rejected, Rejection{source, why})
	s.signal()
}

// Unknown implements [devices.Sink].
func (s *Sink) Unknown(st devices.Stranger) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unknown = append(s.unknown, st)
	s.signal()
	return s.Curious
}

// Up implements [devices.Sink].
func (s *Sink) Up(string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ups++
	s.signal()
}

// SetFull makes Report refuse, as a full outbox does.
func (s *Sink) SetFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

// await blocks until ok, which is called with the sink locked, or fails t.
func (s *Sink) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		s.mu.Lock()
		if ok() {
			s.mu.Unlock()
			return
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-deadline.C:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("no %s: have %d messages, %d rejections %v, %d availabilities",
				what, len(s.messages), len(s.rejected), s.rejected, len(s.states))
		}
	}
}

// WaitMessages waits until at least n messages came and gives all of them.
func (s *Sink) WaitMessages(t testing.TB, n int) []*Taken {
	t.Helper()
	var all []*Taken
	s.await(t, "message", func() bool {
		all = append([]*Taken(nil), s.messages...)
		return len(all) >= n
	})
	return all
}

// WaitRejections waits until at least n inputs were rejected.
func (s *Sink) WaitRejections(t testing.TB, n int) []Rejection {
	t.Helper()
	var all []Rejection
	s.await(t, "rejection", func() bool {
		all = append([]Rejection(nil), s.rejected...)
		return len(all) >= n
	})
	return all
}

// WaitUnknown waits until at least n messages of strangers came.
func (s *Sink) WaitUnknown(t testing.TB, n int) []devices.Stranger {
	t.Helper()
	var all []devices.Stranger
	s.await(t, "stranger", func() bool {
		all = append([]devices.Stranger(nil), s.unknown...)
		return len(all) >= n
	})
	return all
}

// WaitAvailability waits until the last thing told of a device is a.
func (s *Sink) WaitAvailability(t testing.TB, device devices.ID, a devices.Availability) {
	t.Helper()
	s.await(t, "availability", func() bool {
		for i := len(s.states) - 1; i >= 0; i-- {
			if s.states[i].Device == device {
				return s.states[i].Availability == a
			}
		}
		return false
	})
}

// WaitUp waits until the driver said for the n-th time that its link is up.
func (s *Sink) WaitUp(t testing.TB, n int) {
	t.Helper()
	s.await(t, "link", func() bool { return s.ups >= n })
}
