package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/aboard"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// An intake is the sink of all drivers.
type intake struct {
	outbox *outbox.Outbox
	house  *house
	orders *orders
	timing *timing
	log    *slog.Logger
	reject rejects
	up     func(driver string)
	calls  calls

	aboard  *aboard.Registry
	waits   func(aboard.Pending) // tells people of one
	waiting rejects              // of devices that nobody decided on yet
}

// errUnknownDevice is given for readings of a device that is not configured.
var errUnknownDevice = errors.New("no such device is configured")

// Report implements [devices.Sink].
func (in *intake) Report(_ context.Context, m devices.Message) (devices.Receipt, error) {
	defer in.calls.begin()()
	crashpoint.At(crashpoint.MessageCame)
	came := in.timing.arrive()
	for i := range m.Readings {
		if !in.house.has(m.Readings[i].Device) {
			return nil, fmt.Errorf("%s: %w", m.Readings[i].Device, errUnknownDevice)
		}
	}
	all := m.Readings
	if m.Repeats {
		m.Readings = in.house.without(m.Readings, came)
	}
	if m.Retained {
		m.Readings = in.house.retained(m.Readings, came)
	}
	for i := range m.Readings {
		if m.Readings[i].Time.IsZero() {
			m.Readings[i].Time, m.Readings[i].Stamp = came.at, came.stamp
		}
	}
	r, err := in.house.take(m, came, in.outbox.Append)
	if err == nil && !m.Retained {
		in.orders.heard(all, came.now)
	}
	crashpoint.At(crashpoint.MessageAppended)
	return r, err
}

// Availability implements [devices.Sink].
func (in *intake) Availability(device devices.ID, a devices.Availability, retained bool) {
	defer in.calls.begin()()
	in.house.tell(device, a, retained, time.Now())
}

// Unknown implements [devices.Sink].
func (in *intake) Unknown(s devices.Stranger) bool {
	defer in.calls.begin()()
	if !in.aboard.Accepts() {
		return false
	}
	p, fresh := in.aboard.Seen(aboard.Of(s))
	if !fresh {
		return true
	}
	if more, say := in.waiting.count("", time.Now()); say {
		args := []any{"id", p.ID, "name", p.Label(), "profile", p.Profile, "heard", p.Way()}
		if p.SameAs != "" {
			args = append(args, "same as", p.SameAs)
		}
		if more > 0 {
			args = append(args, "also", more)
		}
		in.log.Info("unknown device", args...)
	}
	in.waits(p)
	return true
}

// Up implements [devices.Sink].
func (in *intake) Up(driver string) {
	in.log.Info("driver up", "driver", driver)
	if in.up != nil {
		in.up(driver)
	}
}

// Reject implements [devices.Sink].
func (in *intake) Reject(source string, why error) {
	if more, say := in.reject.count(source, time.Now()); say {
		args := []any{"source", source, "reason", why}
		if more > 0 {
			args = append(args, "also", more)
		}
		in.log.Warn("input not used", args...)
	}
}

// A source that is rejected is named in the log once in a while, with the
// count of what was not said.
const (
	rejectEvery   = 10 * time.Second
	rejectSources = 1000 // remembered at a time; a flood of made-up names is one source
)

type rejects struct {
	mu      sync.Mutex
	total   uint64
	sources map[string]*rejected
}

type rejected struct {
	said   time.Time
	unsaid int
}

// count counts a rejection and tells whether to say it, and how many of the
// source were not said since the last time.
func (r *rejects) count(source string, now time.Time) (more int, say bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	if r.sources == nil {
		r.sources = make(map[string]*rejected)
	}
	s := r.sources[source]
	if s == nil {
		if len(r.sources) >= rejectSources {
			for name, old := range r.sources {
				if now.Sub(old.said) >= rejectEvery {
					delete(r.sources, name)
				}
			}
		}
		if len(r.sources) >= rejectSources {
			source = "others"
			if s = r.sources[source]; s == nil {
				s = &rejected{}
				r.sources[source] = s
			}
		} else {
			s = &rejected{}
			r.sources[source] = s
		}
	}
	if now.Sub(s.said) < rejectEvery {
		s.unsaid++
		return 0, false
	}
	more, s.unsaid, s.said = s.unsaid, 0, now
	return more, true
}

func (r *rejects) sum() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}
