package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// generationField is a field of the gateway's own values, by which a gateway
// finds that another was restored from its backup.
const generationField = "generation"

// generationTime bounds the look at who was there before: a service that does
// not answer must not keep readings back.
const generationTime = 15 * time.Second

// ErrSucceeded says that a gateway which was restored from a backup of this one
// has taken its place, so that this one ended.
var ErrSucceeded = errors.New("another gateway was restored from a backup of this one and has taken its place. " +
	"If this one is to go on all the same: stop the other, and run here porchlight backup, then porchlight restore --force with that file")

// A succession sees to it that of a gateway and its twin one works.
type succession struct {
	generation int64
	sessions   chan bool // whether there is a session now; newest wins
	by         atomic.Int64
}

// session is told by the bridge when publishing becomes possible or impossible.
func (s *succession) session(up bool) {
	select {
	case <-s.sessions:
	default:
	}
	s.sessions <- up
}

func (s *succession) err() error {
	if by := s.by.Load(); by > 0 {
		return fmt.Errorf("%w (generation %d, this is %d)", ErrSucceeded, by, s.generation)
	}
	return nil
}

// succeed looks at the beginning of each session whether a younger twin was
// there, and ends the gateway then, before anything is published. It runs until
// ctx ends.
func (a *Agent) succeed(ctx context.Context, end func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case up := <-a.succession.sessions:
			if up {
				a.meters.sessions.Inc()
				if a.isSucceeded(ctx) {
					end()
					return
				}
			}
			a.forward.online(up)
			if left := a.forward.hold(); up && left > 0 {
				a.log.Info("online; the time is not known, so readings wait for it, but not for ever", "longest", left.Round(time.Second).String())
			} else if up {
				a.log.Info("online")
			}
		}
	}
}

func (a *Agent) isSucceeded(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, generationTime)
	defer cancel()
	records, err := a.bridge.ReadNow(ctx, devices.Gateway)
	if err != nil {
		a.log.Debug("cannot look whether another gateway has taken this one's place", "error", err)
		return false
	}
	for _, r := range records {
		for _, f := range r.Fields {
			if f.Name != generationField {
				continue
			}
			if n, err := strconv.ParseInt(f.Value.String(), 10, 64); err == nil && n > a.succession.generation {
				a.succession.by.Store(n)
				return true
			}
		}
	}
	return false
}
