package stream

import (
	"math/rand/v2"
	"time"
)

// A Backoff says how long to wait before the next session. The zero value is
// ready; it is for one goroutine.
type Backoff struct{ last time.Duration }

// healthy is how long a session lasts that was none of a series of failures.
const healthy = time.Minute

// Next gives the wait after a session that lasted so long and ended with an
// error of a class. It doubles with each failure in a row.
func (b *Backoff) Next(c Class, lasted time.Duration) time.Duration {
	least, most := time.Second, time.Minute
	switch c {
	case Conflict:
		least, most = time.Minute, 5*time.Minute
	case Refused:
		least, most = 5*time.Minute, 30*time.Minute
	}
	if lasted > healthy {
		b.last = 0
	}
	b.last = min(max(2*b.last, least), most)
	// Up to half as much again, so that gateways do not come all at once.
	return b.last + rand.N(b.last/2)
}
