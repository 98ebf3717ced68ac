package agent

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/devices"
)

// timing joins the clock with those who know only what they have of it: the
// outbox keeps its state, stamps and datings as they are.
type timing struct {
	source clock.Source
	log    *slog.Logger
	clock  *clock.Clock // from boot on
	lately atomic.Pointer[lately]
}

// boot makes the clock of what was kept of it. Without a clock there is no
// gateway, so that only a state which is damaged is done without.
func (t *timing) boot(state []byte) []byte {
	c, err := clock.New(t.source, time.Time{}, state)
	if errors.Is(err, clock.ErrState) {
		t.log.Error("what was known of the clock is lost; readings from before may get uncertain times", "error", err)
		c, err = clock.New(t.source, time.Time{}, nil)
	}
	if err != nil {
		t.log.Error("no boot can be told from another", "error", err)
		return state
	}
	t.clock = c
	return c.State()
}

func (t *timing) state(stamped bool) []byte {
	if stamped || t.clock.Dirty() {
		return t.clock.State()
	}
	return nil
}

// date gives the dating of a stamp's moment, as the outbox keeps it.
func (t *timing) date(stamp string) string {
	var s clock.Stamp
	if err := s.UnmarshalBinary([]byte(stamp)); err != nil {
		t.log.Error("a reading's stamp cannot be read; it keeps the time it came with", "error", err)
		return ""
	}
	b, err := t.clock.Date(s).MarshalBinary()
	if err != nil {
		t.log.Error("a moment cannot be dated", "error", err)
		return ""
	}
	return string(b)
}

// apply gives a reading its time by the dating of its pack.
func (t *timing) apply(dating string, r *devices.Record) {
	var d clock.Dating
	var s clock.Stamp
	if d.UnmarshalBinary([]byte(dating)) != nil || s.UnmarshalBinary([]byte(r.Stamp)) != nil {
		return // date has told
	}
	at, bounds, certain := d.Of(s)
	r.Time = at.UTC().Truncate(time.Microsecond)
	if !certain {
		r.Bounds = &bounds
	}
}

// told takes the server's word (XEP-0202).
func (t *timing) told(server time.Time, roundTrip time.Duration) {
	if err := t.clock.Told(server, roundTrip); err != nil {
		t.log.Warn("the server's time is not used", "error", err)
	}
}

// verify is the time by which certificates are judged.
func (t *timing) verify() time.Time { return t.clock.VerifyTime() }

// An arrival is when a message came.
type arrival struct {
	now     time.Time // of this machine's clock, for what passes
	at      time.Time // as well as it is known
	certain bool      // whether at is right to the minute
	stamp   string    // where more may become known of at
}

// arrive stamps the present.
func (t *timing) arrive() arrival {
	a := arrival{now: time.Now(), certain: true}
	s := t.clock.Now()
	a.at, _, a.certain = t.clock.Resolve(s)
	if !s.Synced {
		if b, err := s.MarshalBinary(); err == nil {
			a.stamp = string(b)
		}
	}
	return a
}

// now is the present, for counting: with the stamp only where it may become
// known better to the minute.
func (t *timing) now() (at time.Time, stamp string) {
	if t.clock == nil {
		return time.Now(), "" // there will be no gateway
	}
	a := t.arrive()
	if a.certain {
		return a.at, ""
	}
	return a.at, a.stamp
}

// bootID names this boot; "" where the system does not.
func bootID() string {
	id, err := clock.Machine().Boot()
	if err != nil {
		return ""
	}
	return id
}
