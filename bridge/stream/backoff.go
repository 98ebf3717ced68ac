package stream

import (
	"context"
	"math/rand/v2"
	"time"
)

// A Backoff is the wait between one session and the next: it grows while
// sessions fail. The zero value is ready; it is for one goroutine.
type Backoff struct {
	last time.Duration
	// after is [time.After] where tests do not say otherwise.
	after func(time.Duration) <-chan time.Time
}

// Next gives the wait after a session that failed, by the class of its error.
// Nil says that all was well, and the next failure is a first one.
func (b *Backoff) Next(err error) time.Duration {
	if err == nil {
		b.last = 0
		return 0
	}
	least, most := time.Second, time.Minute
	switch Delay(err) {
	case Conflict:
		least, most = time.Minute, 5*time.Minute
	case Refused:
		least, most = 5*time.Minute, 30*time.Minute
	}
	b.last = min(max(2*b.last, least), most)
	// Up to half as much again, so that gateways do not come all at once.
	return b.last + rand.N(b.last/2)
}

// Wait waits as long as Next says. It returns ctx's error if ctx ends first.
func (b *Backoff) Wait(ctx context.Context, err error) error {
	wait := b.Next(err)
	if wait == 0 {
		return ctx.Err()
	}
	after := time.After
	if b.after != nil {
		after = b.after
	}
	select {
	case <-after(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
