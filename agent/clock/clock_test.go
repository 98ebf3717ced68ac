package clock

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	hour = time.Hour
	day  = 24 * time.Hour
	year = 365 * day
)

var (
	built  = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	spring = time.Date(2027, 4, 1, 12, 0, 0, 0, time.UTC)
	epoch  = time.Unix(0, 0).UTC()
)

// A tester is what testing and rapid have in common.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
}

// A world is a gateway on a fake machine, and an observer who knows when each
// stamp was really taken.
type world struct {
	*Fake
	t     tester
	clock *Clock
	disk  []byte // what a power cut leaves of the clock's state
	taken []taken
}

type taken struct {
	Stamp
	truth time.Time
}

func newWorld(t tester, wall time.Time) *world {
	w := &world{Fake: NewFake(spring, wall), t: t}
	w.start()
	return w
}

func (w *world) start() {
	w.t.Helper()
	var err error
	if w.clock, err = New(w.Fake, built, w.disk); err != nil {
		w.t.Fatal(err)
	}
	for _, s := range w.taken {
		w.clock.Saw(s.Stamp)
	}
	w.save()
}

func (w *world) save() {
	if w.clock.Dirty() {
		w.disk = w.clock.State()
	}
}

// cut cuts the power.
func (w *world) cut(off time.Duration, wall time.Time) {
	w.t.Helper()
	w.Reboot(off, wall)
	w.start()
}

// read takes a reading.
func (w *world) read() Stamp {
	s := w.clock.Now()
	w.taken = append(w.taken, taken{s, w.Truth()})
	w.save()
	return s
}

// run takes n readings, one after each pause.
func (w *world) run(n int, pause time.Duration) {
	for range n {
		w.Pass(pause)
		w.read()
	}
}

// check holds all that the clock claims against the truth. It gives how many
// stamps are certain.
func (w *world) check() (certain int) {
	w.t.Helper()
	type guess struct {
		Stamp
		time time.Time
	}
	unknown := make(map[uint32]guess)
	for i, s := range w.taken {
		if i > 0 && w.taken[i-1].Compare(s.Stamp) > 0 {
			w.t.Errorf("stamp %d %+v is not after %+v", i, s.Stamp, w.taken[i-1].Stamp)
		}
		at, bounds, sure := w.clock.Resolve(s.Stamp)
		if bounds[1].IsZero() && sure {
			w.t.Errorf("stamp %d is certain, and its latest time is not known", i)
		}
		if at.Before(bounds[0]) || !bounds[1].IsZero() && at.After(bounds[1]) {
			w.t.Errorf("stamp %d is dated %v, not within %v", i, at, bounds)
		}
		if s.truth.Before(bounds[0]) || !bounds[1].IsZero() && s.truth.After(bounds[1]) {
			w.t.Errorf("stamp %d %+v was taken at %v, not within %v", i, s.Stamp, s.truth, bounds)
		}
		if sure {
			certain++
			if wrong := at.Sub(s.truth).Abs(); wrong > certainWithin {
				w.t.Errorf("stamp %d is certain and wrong by %v", i, wrong)
			}
			continue
		}
		_, kept := w.clock.boots.find(s.Boot)
		if last, ok := unknown[s.Boot]; ok && kept && at.Sub(last.time) != s.At-last.At {
			w.t.Errorf("stamp %d: %v after the one before became %v", i, s.At-last.At, at.Sub(last.time))
		}
		unknown[s.Boot] = guess{s.Stamp, at}
	}
	return certain
}

func TestSyncAfterHours(t *testing.T) {
	w := newWorld(t, epoch)
	w.Drift(80)
	w.run(180, time.Minute)
	if n := w.check(); n != 0 || w.clock.Known() {
		t.Errorf("%d stamps are certain before anybody told the time", n)
	}
	changed := w.clock.Changed()
	w.Sync(20*time.Millisecond, 50*time.Millisecond)
	w.run(10, time.Minute)
	select {
	case <-changed:
	default:
		t.Error("nobody was told that the time is known")
	}
	if n := w.check(); n != 190 {
		t.Errorf("%d of 190 stamps are certain", n)
	}
	if at, _, _ := w.clock.Resolve(w.taken[0].Stamp); at.Sub(w.taken[0].truth).Abs() > 2*time.Second {
		t.Errorf("the first reading is dated %v, and was at %v", at, w.taken[0].truth)
	}
}

func TestStepsByHand(t *testing.T) {
	for name, step := range map[string]time.Duration{"ten years on": 10 * year, "an hour back": -hour, "a second on": time.Second} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, epoch)
			w.Sync(0, 10*time.Millisecond)
			w.run(10, time.Second)
			changed := w.clock.Changed()
			w.Step(step)
			w.run(10, time.Second)
			if n := w.check(); n != 20 {
				t.Errorf("%d of 20 stamps are certain", n)
			}
			if s := w.clock.Status(); s.Steps != 2 || s.Step != step || !s.Known || s.By != "ntp" {
				t.Errorf("status %+v, want two steps, the last of %v", s, step)
			}
			select {
			case <-changed:
			default:
				t.Error("nobody was told of the step")
			}
			if now, known := w.clock.Time(); !known || now.Sub(w.Truth()).Abs() > time.Second {
				t.Errorf("the time is %v, known %v; it is %v", now, known, w.Truth())
			}
			if v := w.clock.VerifyTime(); v.Sub(w.Truth()).Abs() > time.Second {
				t.Errorf("certificates are verified at %v; it is %v", v, w.Truth())
			}
			w.Sync(0, 10*time.Millisecond)
			w.run(10, time.Second)
			w.check()
			if s := w.clock.Status(); s.Steps != 3 || s.Step != -step {
				t.Errorf("status %+v, want the step back too", s)
			}
		})
	}
}

func TestSmallMovesAreNoSteps(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(0, time.Second)
	w.read()
	changed := w.clock.Changed()
	for _, wrong := range []time.Duration{400 * time.Millisecond, -50 * time.Millisecond, 449 * time.Millisecond} {
		w.Pass(time.Second)
		w.Sync(wrong, time.Second)
		w.read()
		if now, _ := w.clock.Time(); now.Sub(w.Truth().Add(wrong)).Abs() > sameStart {
			t.Errorf("the time is %v, the kernel was moved to %v", now, w.Truth().Add(wrong))
		}
	}
	select {
	case <-changed:
		t.Error("a move of less than half a second was signalled")
	default:
	}
	w.check()
}

// A boot that never knew the time lies between two that did.
func TestBootThatNeverKnew(t *testing.T) {
	for name, wall := range map[string]time.Time{
		"1970":               epoch,
		"the last saved one": spring.Add(hour),
		"years ahead":        spring.Add(10 * year),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, epoch)
			w.Sync(0, 10*time.Millisecond)
			w.run(60, time.Minute)
			w.cut(hour, wall)
			w.run(60, time.Minute)
			if n := w.check(); n != 60 {
				t.Errorf("%d stamps are certain before the third boot, want those of the first", n)
			}
			w.cut(hour, epoch)
			w.run(5, time.Minute)
			w.Sync(0, 10*time.Millisecond)
			w.run(5, time.Minute)
			if n := w.check(); n != 70 {
				t.Errorf("%d stamps are certain, want 70", n)
			}
			_, bounds, _ := w.clock.Resolve(w.taken[60].Stamp)
			if wide := bounds[1].Sub(bounds[0]); wide < 2*hour-time.Minute || wide > 2*hour+2*time.Minute {
				t.Errorf("the bounds are %v apart, the machine was off for two hours", wide)
			}
		})
	}
}

// Boots in a row that never knew the time bound each other by how long they
// ran.
func TestBootsThatNeverKnew(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.run(60, time.Minute)
	for range 3 {
		w.cut(time.Hour, epoch)
		w.run(120, time.Minute)
	}
	w.cut(time.Hour, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.run(60, time.Minute)
	w.check()
	for _, i := range []int{60, 180, 300} {
		_, bounds, _ := w.clock.Resolve(w.taken[i].Stamp)
		if wide := bounds[1].Sub(bounds[0]); wide < 4*hour || wide > 4*hour+5*time.Minute {
			t.Errorf("stamp %d: the bounds are %v apart, the machine was off for four hours", i, wide)
		}
	}
}

// How long a boot ran bounds the next one, though no reading came.
func TestBootWithoutReadings(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.read()
	w.Lose()
	for range 3 {
		w.Pass(2 * hour)
		w.save()
	}
	ended := w.Truth()
	w.cut(hour, epoch)
	if _, bounds, _ := w.clock.Resolve(w.read()); ended.Sub(bounds[0]) > time.Minute {
		t.Errorf("earliest %v, the boot before ended at %v", bounds[0], ended)
	}
	w.check()
}

// An earlier boot's stamps can be dated when its last hour in the table was
// lost with the power.
func TestStampsOutliveTheState(t *testing.T) {
	w := newWorld(t, epoch)
	w.run(30, time.Second)
	w.Sync(0, 10*time.Millisecond)
	w.read() // within a minute of the last state
	if w.clock.Dirty() {
		t.Fatal("the state is dirty, the test is not about that")
	}
	w.cut(hour, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.read()
	if n := w.check(); n != 2 {
		t.Errorf("%d stamps are certain, want the two that were synchronised", n)
	}
}

// A poor clock of a stamp does not say when it was, without its boot.
func TestPoorStampsDoNotOutliveTheState(t *testing.T) {
	w := newWorld(t, epoch)
	w.run(30, time.Second)
	w.Sync(9*time.Second, 12*time.Second)
	w.read()
	w.cut(hour, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.read()
	if n := w.check(); n != 1 {
		t.Errorf("%d stamps are certain, want the last", n)
	}
}

func TestSuspend(t *testing.T) {
	w := newWorld(t, epoch)
	w.run(3, time.Second)
	w.Pass(8 * hour)
	w.run(3, time.Second)
	w.Sync(0, 10*time.Millisecond)
	w.Pass(12 * hour)
	w.run(3, time.Second)
	if n := w.check(); n != 9 {
		t.Errorf("%d of 9 stamps are certain", n)
	}
	if s := w.clock.Status(); s.Steps != 1 {
		t.Errorf("%d steps, want one: a suspend is none", s.Steps)
	}
}

func TestTold(t *testing.T) {
	w := newWorld(t, epoch)
	w.run(3, hour)
	changed := w.clock.Changed()
	if err := w.clock.Told(w.Truth().Add(-300*time.Millisecond), time.Second); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told that the time is known")
	}
	w.run(3, hour)
	if n := w.check(); n != 6 {
		t.Errorf("%d of 6 stamps are certain", n)
	}
	if s := w.clock.Status(); s.By != "xmpp" || !s.Known {
		t.Errorf("status %+v", s)
	}
}

// Most servers tell whole seconds.
func TestToldWholeSeconds(t *testing.T) {
	w := newWorld(t, epoch)
	w.Pass(999 * time.Millisecond)
	if err := w.clock.Told(w.Truth().Truncate(time.Second), 0); err != nil {
		t.Fatal(err)
	}
	w.read()
	w.check()
	_, bounds, _ := w.clock.Resolve(w.taken[0].Stamp)
	if wide := bounds[1].Sub(bounds[0]); wide < time.Second {
		t.Errorf("whole seconds are believed to %v", wide)
	}
}

func TestToldWrongByADay(t *testing.T) {
	for name, wrong := range map[string]time.Duration{"ahead": day, "behind": -day} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, epoch)
			w.run(3, time.Minute)
			if err := w.clock.Told(w.Truth().Add(wrong), time.Second); err != nil {
				t.Fatal(err)
			}
			if now, known := w.clock.Time(); !known || now.Sub(w.Truth().Add(wrong)).Abs() > time.Second {
				t.Errorf("the time is %v, known %v, want the server's", now, known)
			}
			w.run(3, time.Minute)
			w.Sync(0, 10*time.Millisecond)
			w.run(3, time.Minute)
			if n := w.check(); n != 9 {
				t.Errorf("%d of 9 stamps are certain, by NTP", n)
			}
			if err := w.clock.Told(w.Truth().Add(wrong), time.Second); err == nil {
				t.Error("a server that NTP contradicts was believed")
			}
			w.check()
		})
	}
}

// What an earlier boot was told wrong does not outlive NTP.
func TestToldWrongInAnEarlierBoot(t *testing.T) {
	w := newWorld(t, epoch)
	w.read()
	if err := w.clock.Told(w.Truth().Add(day), time.Second); err != nil {
		t.Fatal(err)
	}
	w.run(3, time.Minute)
	w.cut(hour, epoch)
	w.run(3, time.Minute)
	w.Sync(0, 10*time.Millisecond)
	w.run(3, time.Minute)
	if n := w.check(); n != 6 {
		t.Errorf("%d stamps are certain, want the 6 of the second boot", n)
	}
}

// NTP that was wrong in an earlier boot does not outlive what it says now.
func TestNTPWrongInAnEarlierBoot(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(10*year, 10*time.Millisecond)
	w.run(3, time.Minute)
	w.cut(hour, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.run(3, time.Minute)
	if n := w.check(); n != 3 {
		t.Errorf("%d stamps are certain, want the 3 of the second boot", n)
	}
}

func TestToldAgain(t *testing.T) {
	w := newWorld(t, epoch)
	for _, wrong := range []time.Duration{day, 0} {
		if err := w.clock.Told(w.Truth().Add(wrong-time.Millisecond), time.Second); err != nil {
			t.Error(err)
		}
		w.run(1, time.Minute)
	}
	if n := w.check(); n != 2 {
		t.Errorf("%d of 2 stamps are certain, by the server's last word", n)
	}
}

func TestNTPWrongIsMended(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(10*year, 10*time.Millisecond)
	w.read()
	w.Pass(hour)
	w.Sync(0, 10*time.Millisecond)
	w.read()
	if n := w.check(); n != 2 {
		t.Errorf("%d stamps are certain", n)
	}
	if err := w.clock.Told(w.Truth().Add(-time.Millisecond), time.Second); err != nil {
		t.Error("the server's time is refused by what NTP took back: ", err)
	}
}

func TestToldWhatCannotBe(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.run(1, time.Minute)
	w.cut(hour, epoch)
	for name, c := range map[string]struct {
		server time.Time
		trip   time.Duration
		want   string
	}{
		"before the program":  {built.Add(-time.Minute), time.Second, "before this program"},
		"before NTP":          {spring, time.Second, "before what NTP said"},
		"far ahead":           {spring.Add(250 * year), time.Second, "centuries"},
		"the end of times":    {time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Second, "centuries"},
		"a slow answer":       {spring.Add(day), time.Minute, "took 1m"},
		"before the question": {spring.Add(day), -1, "took -1ns"},
	} {
		if err := w.clock.Told(c.server, c.trip); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if w.clock.Known() {
		t.Error("the time is known by what was refused")
	}
}

// A kernel that claims to be synchronised in 1970, as chrony's "local" makes
// it do, is not believed.
func TestSyncedBeforeTheProgramWasMade(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(-50*year, time.Millisecond)
	if s := w.read(); s.Synced || w.clock.Known() {
		t.Errorf("believed %v", s.Wall)
	}
	w.check()
}

// Time that was known long ago is known less and less.
func TestHoldover(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.read()
	w.Lose()
	w.Drift(-90)
	w.run(6, day)
	if !w.clock.Known() {
		t.Error("after 6 days the time is not known")
	}
	w.run(2, day)
	if w.clock.Known() {
		t.Error("after 8 days the time is known")
	}
	w.check()
	if err := w.clock.Told(w.Truth().Add(-time.Millisecond), time.Second); err != nil || !w.clock.Known() {
		t.Errorf("told: %v; known %v", err, w.clock.Known())
	}
	w.run(6, day)
	if n := w.check(); n != len(w.taken) {
		t.Errorf("%d of %d stamps are certain", n, len(w.taken))
	}
}

// A poor clock of the kernel is taken where there is none better.
func TestPoorSync(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(9*time.Second, 12*time.Second)
	w.run(3, time.Minute)
	if n := w.check(); n != 3 {
		t.Errorf("%d of 3 stamps are certain", n)
	}
	w.Sync(0, time.Second)
	w.run(3, time.Minute)
	w.Sync(5*time.Second, 10*time.Second)
	w.run(3, time.Minute)
	w.check()
	if s := w.clock.Status(); s.Error > 2*time.Second {
		t.Errorf("the time is known to %v, after it was known to a second", s.Error)
	}
}

// A kernel that knows poorly, but contradicts what was known, has the last
// word.
func TestPoorSyncMends(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(hour, 10*time.Millisecond)
	w.read()
	w.Pass(time.Minute)
	w.Sync(0, 5*time.Second)
	w.read()
	if n := w.check(); n != 2 {
		t.Errorf("%d of 2 stamps are certain", n)
	}
}

// Away from its last correction a kernel knows less, and says so.
func TestErrorGrows(t *testing.T) {
	w := newWorld(t, epoch)
	for most := 100 * time.Millisecond; most < spanError; most += 100 * time.Millisecond {
		w.Pass(time.Minute)
		w.Sync(0, most)
		if _, bounds, _ := w.clock.Resolve(w.read()); bounds[1].Sub(bounds[0]) < 2*most {
			t.Errorf("bounds %v, with an error of %v", bounds, most)
		}
	}
	if n := len(w.clock.boots[0].Spans); n != 1 {
		t.Errorf("%d spans, want one", n)
	}
}

func TestManySpans(t *testing.T) {
	w := newWorld(t, epoch)
	w.Drift(90)
	for i := range 100 {
		w.Sync(time.Duration(i%7)*100*time.Millisecond, time.Second)
		w.run(3, time.Minute)
		w.Lose()
		w.run(3, time.Duration(i)*time.Minute)
	}
	if n := w.check(); n != 600 {
		t.Errorf("%d of 600 stamps are certain", n)
	}
	if n := len(w.clock.boots[0].Spans); n > maxSpans {
		t.Errorf("%d spans", n)
	}
}

func TestManyBoots(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.read()
	for range 3 * maxBoots {
		w.cut(time.Minute, epoch)
		w.run(2, time.Minute)
	}
	w.Sync(0, 10*time.Millisecond)
	w.read()
	w.check()
	if n := len(w.clock.boots); n > maxBoots {
		t.Errorf("%d boots are kept", n)
	}
	if n := len(w.clock.State()); n > 32<<10 {
		t.Errorf("the state has %d bytes", n)
	}
}

func TestForget(t *testing.T) {
	w := newWorld(t, epoch)
	var boots []uint32
	for i := range 7 { // the even ones know the time
		if i > 0 {
			w.cut(hour, epoch)
		}
		if i%2 == 0 {
			w.Sync(0, 10*time.Millisecond)
		}
		boots = append(boots, w.read().Boot)
		w.run(3, time.Minute)
	}
	w.clock.Forget(func(boot uint32) bool { return boot == boots[3] })
	w.disk = w.clock.State()
	w.start()
	var left []uint32
	for _, b := range w.clock.boots {
		left = append(left, b.Number)
	}
	if len(left) != 4 || left[0] != boots[2] || left[1] != boots[3] || left[2] != boots[4] || left[3] != boots[6] {
		t.Errorf("boots %v are left of %v, want the fourth, what bounds it, and the last", left, boots)
	}
	w.check()
	w.clock.Forget(func(boot uint32) bool { return boot == boots[2] })
	if n := len(w.clock.boots); n != 2 {
		t.Errorf("%d boots are left for one that knew the time, and the last", n)
	}
}

// A table that was lost leaves stamps of boots that nothing is known of.
func TestLostTable(t *testing.T) {
	w := newWorld(t, epoch)
	w.run(3, time.Minute)
	w.disk = nil
	w.cut(hour, epoch)
	w.Sync(0, 10*time.Millisecond)
	s := w.clock.Now()
	if s.Boot == w.taken[0].Boot {
		t.Fatal("the new table begins with the number of the old one")
	}
	_, bounds, certain := w.clock.Resolve(w.taken[0].Stamp)
	if certain || bounds[0].Before(built) || bounds[0].After(built.Add(time.Minute)) || bounds[1].IsZero() || bounds[1].After(w.Truth().Add(time.Second)) {
		t.Errorf("bounds %v, certain %v", bounds, certain)
	}
	later := w.taken[0].Stamp
	later.Boot = s.Boot + 5
	if _, bounds, certain = w.clock.Resolve(later); certain || bounds[0].After(built.Add(time.Minute)) || bounds[1].IsZero() {
		t.Errorf("bounds %v, certain %v, of a number that was not given yet", bounds, certain)
	}
}

func TestSameBootIsContinued(t *testing.T) {
	w := newWorld(t, epoch)
	w.Sync(0, 10*time.Millisecond)
	first := w.read()
	w.Pass(2 * time.Minute)
	w.read()
	w.Lose()
	w.start() // the program alone
	if s := w.read(); s.Boot != first.Boot {
		t.Errorf("boot %d is called %d after a restart of the program", first.Boot, s.Boot)
	}
	if !w.clock.Known() {
		t.Error("what was known in this boot is forgotten")
	}
	w.check()
}

func TestDirty(t *testing.T) {
	f := NewFake(spring, epoch)
	c, err := New(f, built, nil)
	if err != nil {
		t.Fatal(err)
	}
	dirty := func(want bool, when string) {
		t.Helper()
		if c.Dirty() != want {
			t.Errorf("dirty is %v %s", !want, when)
		}
	}
	dirty(true, "in a new boot")
	c.State()
	dirty(false, "after a write")
	f.Pass(30 * time.Second)
	f.Sync(0, 10*time.Millisecond)
	dirty(false, "within a minute")
	f.Pass(30 * time.Second)
	dirty(true, "when the time is known")
	c.State()
	writes := 0
	for range 24 * 60 {
		f.Pass(time.Minute)
		c.Now()
		if c.Dirty() {
			writes++
			c.State()
		}
	}
	if writes != 24 {
		t.Errorf("%d writes a day, want 24", writes)
	}
}

func TestHold(t *testing.T) {
	f := NewFake(spring, epoch)
	c, err := New(f, built, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Pass(10 * time.Second)
	up := c.Now().At
	for _, step := range []struct {
		pass, want time.Duration
	}{
		{0, 90 * time.Second}, {30 * time.Second, 60 * time.Second}, {59 * time.Second, time.Second}, {time.Second, 0}, {hour, 0},
	} {
		f.Pass(step.pass)
		if got := c.Hold(up); got != step.want {
			t.Errorf("hold %v, want %v", got, step.want)
		}
	}
	f.Sync(0, 10*time.Millisecond)
	if got := c.Hold(c.Now().At); got != 0 {
		t.Errorf("hold %v though the time is known", got)
	}
}

func TestVerifyTime(t *testing.T) {
	w := newWorld(t, epoch)
	verify := func(want time.Time, when string) {
		t.Helper()
		if got := w.clock.VerifyTime(); got.Sub(want).Abs() > time.Second {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	verify(built, "nothing is known")
	w.Step(spring.Sub(epoch))
	verify(spring, "the wall clock alone")
	w.Sync(0, 10*time.Millisecond)
	w.run(120, time.Minute)
	good := w.Truth()
	w.cut(day, epoch)
	if got := w.clock.VerifyTime(); good.Sub(got) > saveEvery || got.After(good) {
		t.Errorf("after a boot: %v, NTP's last was %v", got, good)
	}
	before := w.clock.VerifyTime()
	if err := w.clock.Told(w.Truth().Add(year), time.Second); err != nil {
		t.Fatal(err)
	}
	verify(before, "the server alone")
	w.Sync(0, 10*time.Millisecond)
	w.read()
	w.Step(10 * year)
	verify(w.Truth(), "the wall clock, set by hand after NTP")
}

func TestBelievable(t *testing.T) {
	w := newWorld(t, epoch)
	w.Pass(hour)
	early := w.read()
	own := w.Truth()
	if w.clock.Believable(own, early) {
		t.Error("believed while nothing is known but 2026")
	}
	w.Sync(0, 10*time.Millisecond)
	w.read()
	for _, c := range []struct {
		own  time.Time
		want bool
	}{
		{own, true},
		{own.Add(4 * time.Minute), true},
		{own.Add(6 * time.Minute), false},
		{own.Add(-3 * year), true},
		{time.Date(2019, 12, 31, 23, 59, 59, 0, time.UTC), false},
		{epoch, false},
	} {
		if got := w.clock.Believable(c.own, early); got != c.want {
			t.Errorf("%v is believed: %v", c.own, got)
		}
	}
}

func TestDatingStays(t *testing.T) {
	w := newWorld(t, epoch)
	first := w.read()
	w.Pass(hour)
	second := w.read()
	d := w.clock.Date(first)
	before, bounds, certain := d.Of(second)
	w.Sync(0, 10*time.Millisecond)
	w.read()
	if again, _, _ := d.Of(second); !again.Equal(before) || certain || !bounds[1].IsZero() {
		t.Errorf("a dating changed from %v to %v", before, again)
	}
	at, bounds, certain := w.clock.Date(first).Of(second)
	if !certain || w.taken[1].truth.Before(bounds[0]) || w.taken[1].truth.After(bounds[1]) {
		t.Errorf("dated %v within %v, certain %v; it was %v", at, bounds, certain, w.taken[1].truth)
	}
}

func TestWaitAndRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake(spring, epoch)
		c, err := New(f, built, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.Run(ctx)
		}()
		short, cancelShort := context.WithTimeout(ctx, time.Minute)
		defer cancelShort()
		if err := c.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting ended with %v", err)
		}
		known := make(chan error)
		go func() { known <- c.Wait(ctx) }()
		synctest.Wait()
		f.Sync(0, 10*time.Millisecond)
		if err := <-known; err != nil {
			t.Error(err)
		}
		changed := c.Changed()
		f.Step(-hour)
		<-changed
		cancel()
		<-ended
	})
}

func TestDamagedState(t *testing.T) {
	f := NewFake(spring, epoch)
	for _, state := range []string{
		"x", "{}", `{"version":2}`, `{"version":1,"boots":[null]}`,
		`{"version":1,"boots":[{"number":2,"id":"a"},{"number":1,"id":"b"}]}`,
		`{"version":1,"boots":[{"number":4294967295,"id":"a"}]}`,
		`{"version":1,"boots":[{"number":1,"id":"a","seen":-1}]}`,
		`{"version":1,"boots":[{"number":1,"id":"a","spans":[{"from":2,"to":1}]}]}`,
	} {
		if _, err := New(f, built, []byte(state)); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", state, err)
		}
	}
}

func FuzzState(f *testing.F) {
	w := newWorld(f, epoch)
	w.Sync(0, 10*time.Millisecond)
	w.run(3, 2*time.Minute)
	w.cut(hour, epoch)
	w.read()
	f.Add(w.clock.State())
	f.Fuzz(func(t *testing.T, state []byte) {
		fake := NewFake(spring, epoch)
		c, err := New(fake, built, state)
		if err != nil {
			return
		}
		for _, b := range c.boots {
			c.Resolve(Stamp{b.Number, hour, epoch, false})
			c.Resolve(Stamp{b.Number + 1, hour, spring, true})
		}
		fake.Sync(0, 10*time.Millisecond)
		c.Now()
		if _, err := New(fake, built, c.State()); err != nil {
			t.Errorf("%s became a state that is refused: %v", state, err)
		}
	})
}

type noBoot struct{ *Fake }

func (noBoot) Boot() (string, error) { return "", os.ErrNotExist }

func TestNoBootID(t *testing.T) {
	if _, err := New(noBoot{NewFake(spring, epoch)}, built, nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
