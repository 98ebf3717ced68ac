package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// The pauses between two tries of a driver: doubled from the first to the
// last, and the refused one where the peer said no.
const (
	firstPause   = time.Second
	lastPause    = time.Minute
	refusedPause = 5 * time.Minute
)

// supervise runs a driver again and again until ctx ends. It alone retries, so
// that drivers need not, and one that panics harms only itself.
func supervise(ctx context.Context, d devices.Driver, sink devices.Sink, log *slog.Logger) {
	var p pause
	for {
		up := &upSink{Sink: sink}
		err := runFenced(ctx, d, up)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		wait := p.next(up.was(), err)
		log.Error("driver failed", "driver", d.Name(), "error", err, "again", wait.Round(time.Second).String())
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func runFenced(ctx context.Context, d devices.Driver, sink devices.Sink) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return d.Run(ctx, sink)
}

// A pause grows with each failure in a row.
type pause struct{ last time.Duration }

// next gives how long to wait after a failure. A link that had been up starts
// the row anew.
func (p *pause) next(up bool, err error) time.Duration {
	if errors.Is(err, devices.ErrRefused) {
		return jitter(refusedPause)
	}
	if up || p.last == 0 {
		p.last = firstPause
	} else {
		p.last = min(2*p.last, lastPause)
	}
	return jitter(p.last)
}

// jitter spreads d over 0.5 to 1.5 of it, so that many gateways do not come
// back at one moment.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d)
}

// upSink notes whether the driver's link came up.
type upSink struct {
	devices.Sink
	mu sync.Mutex
	up bool
}

func (s *upSink) Up(driver string) {
	s.mu.Lock()
	s.up = true
	s.mu.Unlock()
	s.Sink.Up(driver)
}

func (s *upSink) was() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}
