package devices

import "sync/atomic"

// A Pulse shows whether a loop gets on. The goroutine that runs the loop calls
// Rest before it waits for somebody else, and Busy when there is something to
// do; who watches calls Turn. The zero value rests.
type Pulse struct{ turn atomic.Uint64 } // odd while it is busy

// Busy says that a turn of the loop begins.
func (p *Pulse) Busy() {
	n := p.turn.Load()
	p.turn.Store(n + 1 + n&1)
}

// Rest says that the loop waits.
func (p *Pulse) Rest() {
	n := p.turn.Load()
	p.turn.Store(n + n&1)
}

// Turn gives the number of the turn, and whether the loop is busy with it. A
// loop that is busy with one turn for minutes is stuck. It may be called from
// any goroutine.
func (p *Pulse) Turn() (n uint64, busy bool) {
	n = p.turn.Load()
	return n, n&1 == 1
}
