package clock

import (
	"fmt"
	"sync"
	"time"
)

// A Fake is a Source for tests: a machine whose clock drifts, is stepped and
// loses power, and that knows the true time. Time passes when the test says
// so.
type Fake struct {
	mu       sync.Mutex
	boot     int
	boottime time.Duration
	truth    time.Time
	wall     time.Time
	synced   bool
	maxError time.Duration
	ppm      int
}

// NewFake gives a machine that was just switched on, and whose clock shows
// wall, which nothing keeps.
func NewFake(truth, wall time.Time) *Fake {
	f := &Fake{truth: truth}
	f.Reboot(0, wall)
	return f
}

// Boot implements [Source].
func (f *Fake) Boot() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("%08x-0000-4000-8000-000000000000", f.boot), nil
}

// Sample implements [Source].
func (f *Fake) Sample() Sample {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Sample{f.boottime, f.wall, f.synced, f.maxError}
}

// Truth is the time that an observer elsewhere would tell.
func (f *Fake) Truth() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.truth
}

// Pass lets time pass, be it in a suspend: the clock runs too fast by the
// drift, but for while it is synchronised.
func (f *Fake) Pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.truth = f.truth.Add(d)
	if !f.synced {
		d += d / 1_000_000 * time.Duration(f.ppm)
	}
	f.boottime += d
	f.wall = f.wall.Add(d)
}

// Drift sets by how many millionths the clock is too fast while nothing keeps
// it.
func (f *Fake) Drift(ppm int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ppm = ppm
}

// Step moves the wall clock as one does by hand; like that, it makes an end of
// being synchronised.
func (f *Fake) Step(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall = f.wall.Add(d)
	f.synced = false
}

// Sync sets the clock by NTP: it is wrong by an error from now on, of which
// NTP says that it is at most maxError.
func (f *Fake) Sync(wrong, maxError time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall = f.truth.Add(wrong)
	f.synced, f.maxError = true, maxError
}

// Lose ends what Sync began.
func (f *Fake) Lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced = false
}

// Reboot switches the machine off for a while, and on again with another time
// on its clock. A Clock does not live through that: make a new one.
func (f *Fake) Reboot(off time.Duration, wall time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.truth = f.truth.Add(off)
	f.boot++
	f.boottime, f.wall, f.synced = 0, wall, false
}
