package clock

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ErrState says that a state is not one that [Clock.State] gave.
var ErrState = errors.New("the clock's state is damaged")

const (
	stateVersion = 1
	maxError     = 365 * 24 * time.Hour // no span is worth more
)

type state struct {
	Version int       `json:"version"`
	Good    time.Time `json:"good"`
	Boots   table     `json:"boots"`
}

// State gives what [New] needs of the past: JSON of about 250 bytes a boot.
func (c *Clock) State() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look()
	b, err := json.Marshal(state{stateVersion, c.good, c.boots})
	if err != nil {
		panic(err) // only a time beyond the year 9999 could be the reason
	}
	c.saved, c.fresh, c.urgent = now.At, false, false
	return b
}

// Dirty reports whether the state is worth a write: at once in a boot that is
// new, where stamps must not be stored without it; after a minute where
// something became known, else hourly, because writes wear the card.
func (c *Clock) Dirty() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := c.look().At - c.saved
	return c.fresh || age >= saveEvery || c.urgent && age >= saveUrgent
}

// Forget drops the boots that no stored stamp is of, as keep tells by their
// number. It must not call back. What bounds a boot that stays, stays.
func (c *Clock) Forget(keep func(boot uint32) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.boots.forget(keep)
	c.urgent = c.urgent || len(left) != len(c.boots)
	c.boots = left
}

func (c *Clock) load(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%w: %v", ErrState, err)
	}
	if s.Version != stateVersion {
		return fmt.Errorf("%w: it has version %d, this program knows %d", ErrState, s.Version, stateVersion)
	}
	for i, boot := range s.Boots {
		if boot == nil || boot.ID == "" || i > 0 && boot.Number <= s.Boots[i-1].Number || !boot.valid() {
			return fmt.Errorf("%w: boot %d cannot be", ErrState, i)
		}
	}
	if len(s.Boots) > maxBoots || !sane(s.Good) {
		return ErrState
	}
	c.good, c.boots = s.Good, s.Boots
	return nil
}

func (b *boot) valid() bool {
	if b.Seen < 0 || b.Seen > maxBoottime || len(b.Spans) > maxSpans || b.Number == 1<<32-1 || !sane(b.Wall) {
		return false
	}
	for _, s := range b.Spans {
		if s.From < 0 || s.To < s.From || s.To > maxBoottime || s.Error < 0 || s.Error > maxError || !sane(s.Start) {
			return false
		}
	}
	return true
}

// sane reports whether sums with a time stay in the range of [time.Time]'s
// JSON.
func sane(t time.Time) bool { return t.Year() > 0 && t.Year() < 9000 || t.IsZero() }
