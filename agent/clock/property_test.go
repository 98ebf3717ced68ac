package clock

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Three days in which anything happens to the clock, and all that is told of
// it is true: every stamp was taken within the bounds that are claimed for it,
// at the end and at any time between.
func TestThreeDays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		duration := func(from, to time.Duration, label string) time.Duration {
			return time.Duration(rapid.Int64Range(int64(from), int64(to)).Draw(t, label))
		}
		wall := func(truth time.Time) time.Time {
			switch rapid.IntRange(0, 3).Draw(t, "wall") {
			case 0:
				return epoch
			case 1:
				return truth.Add(-duration(0, day, "behind")) // fake-hwclock
			case 2:
				return truth.Add(duration(-20*year, 20*year, "off"))
			}
			return truth
		}
		w := newWorld(t, epoch)
		for w.Truth().Before(spring.Add(3 * day)) {
			w.Drift(rapid.IntRange(-99, 99).Draw(t, "ppm"))
			w.Pass(duration(20*time.Minute, 3*hour, "pass"))
			switch rapid.IntRange(0, 9).Draw(t, "do") {
			case 0:
				w.Step(duration(-20*year, 20*year, "step"))
			case 1:
				w.Step(duration(-2*time.Second, 2*time.Second, "small step"))
			case 2, 3:
				most := duration(time.Millisecond, 16*time.Second, "max error")
				w.Sync(duration(-most+2*time.Microsecond, most-2*time.Microsecond, "error"), most)
			case 4:
				w.Lose()
			case 5:
				trip := duration(0, maxRoundTrip, "trip")
				server := w.Truth().Add(-duration(0, trip, "back"))
				if rapid.Bool().Draw(t, "whole") {
					server = server.Truncate(time.Second)
				}
				if err := w.clock.Told(server, trip); err != nil {
					t.Error("an honest server is not believed: ", err)
				}
			case 6:
				off := duration(0, 6*hour, "off")
				w.cut(off, wall(w.Truth().Add(off)))
			case 7:
				w.start()
			case 8:
				w.check()
			case 9:
				kept := make(map[uint32]bool)
				for _, s := range w.taken {
					kept[s.Boot] = true
				}
				w.clock.Forget(func(boot uint32) bool { return kept[boot] })
			}
			for range rapid.IntRange(0, 3).Draw(t, "readings") {
				w.read()
				w.Pass(duration(time.Microsecond, time.Minute, "pause"))
			}
		}
		w.check()
		w.Sync(0, time.Second)
		w.read()
		w.check()
		for i, s := range w.taken {
			if _, bounds, _ := w.clock.Resolve(s.Stamp); bounds[1].IsZero() {
				t.Errorf("stamp %d has no latest time, though the time is known", i)
			}
		}
	})
}
