package clock

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// holdFor is how long a session waits for the time before readings go out
	// marked uncertain.
	holdFor = 90 * time.Second
	// stepLeast is the least that a wall clock must move against boottime to
	// be called stepped. NTP daemons slew what is less.
	stepLeast = 500 * time.Millisecond
	// leastError is what is assumed where the kernel says less: timesyncd sets
	// its error to 0, whatever way the answer took.
	leastError = 100 * time.Millisecond
	// A server that takes longer for an answer tells nothing of the time.
	maxRoundTrip = 30 * time.Second
	// lastYear is the end of the times that a server can make believe, so that
	// none is beyond what can be added to and written down.
	lastYear = 2200

	lookUnknown = time.Second
	lookKnown   = 10 * time.Second

	// saveEvery is how often the state is worth a write where nothing but the
	// time went on, and saveUrgent where more became known.
	saveEvery  = time.Hour
	saveUrgent = time.Minute
)

// A Clock tells the time of this machine's boots. See the package comment.
type Clock struct {
	source Source
	built  time.Time

	mu      sync.Mutex
	boots   table     // the last one is this boot
	good    time.Time // the newest that NTP said, in any boot
	last    Sample
	known   bool // as it was last signalled
	steps   int
	step    time.Duration
	changed chan struct{}

	saved         time.Duration // boottime of the last State
	fresh, urgent bool          // the state has a new boot; other news
}

// New makes the clock of this boot. The state is what [Clock.State] gave
// before, in any boot, or nil; no time before built, when the program was
// made, is believed. The error is [ErrState] where the state cannot be used;
// then New without it makes a clock that starts anew.
func New(source Source, built time.Time, state []byte) (*Clock, error) {
	id, err := source.Boot()
	if err != nil {
		return nil, err
	}
	if oldest := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC); built.Before(oldest) {
		built = oldest // this package is not older
	}
	c := &Clock{source: source, built: built.UTC(), last: source.Sample(), changed: make(chan struct{})}
	if err := c.load(state); err != nil {
		return nil, err
	}
	if n := len(c.boots); n == 0 || c.boots[n-1].ID != id {
		number := firstNumber(id)
		if n > 0 {
			number = c.boots[n-1].Number + 1
		}
		c.boots = append(c.boots, &boot{Number: number, ID: id, Wall: c.last.start()}).bounded()
		c.fresh = true
	}
	c.saved = c.last.Boottime
	c.look()
	return c, nil
}

// firstNumber is where the numbers of a table begin. It is taken from the
// boot's random id, so that the stamps of a table that was lost are not taken
// for those of the table after it.
func firstNumber(id string) uint32 {
	b, _ := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	return binary.BigEndian.Uint32(append(b, 0, 0, 0, 0)) >> 1
}

// start is when the boot began, as the wall clock has it.
func (s Sample) start() time.Time { return s.Wall.Add(-s.Boottime) }

// look reads the clocks and learns from them. c.mu is held, or c is new.
func (c *Clock) look() Stamp {
	s := c.source.Sample()
	s.Boottime = s.Boottime.Truncate(time.Microsecond)
	s.Wall = s.Wall.Round(0).UTC().Truncate(time.Microsecond)
	b := c.boots[len(c.boots)-1]
	b.Seen = max(b.Seen, s.Boottime)
	step := s.start().Sub(c.last.start())
	stepped := step.Abs() > stepLeast
	if stepped {
		c.steps++
		c.step = step
	}
	c.last, b.Wall = s, s.start()
	synced := s.Synced && !s.Wall.Before(c.built)
	if synced {
		c.hear(s)
	}
	c.signal(stepped)
	return Stamp{b.Number, s.Boottime, s.Wall, synced && s.MaxError <= spanError}
}

// hear learns from a clock that is kept.
func (c *Clock) hear(sample Sample) {
	s := span{From: sample.Boottime, To: sample.Boottime, Start: sample.start(), Error: max(sample.MaxError, leastError)}
	c.good = sample.Wall.Add(-s.Error)
	b := c.boots[len(c.boots)-1]
	exact := s.Error <= spanError
	if n := len(b.Spans); n > 0 {
		last := &b.Spans[n-1]
		moved := s.Start.Sub(last.Start).Abs()
		if !last.Told && exact && last.Error <= spanError && moved <= sameStart && s.From-last.To <= spanGap {
			last.To = max(last.To, s.To)
			last.Error = max(last.Error, s.Error+moved)
			return
		}
	}
	if old, ok := b.best(s.To); ok && !exact && !s.contradicts(old) {
		return // what is known is better, or will be
	}
	c.learn(s)
}

func (c *Clock) learn(s span) {
	c.boots[len(c.boots)-1].add(s)
	c.boots.refute(s)
	c.urgent = true
}

// signal tells those who wait for [Clock.Changed].
func (c *Clock) signal(stepped bool) {
	known := c.boots.date(c.present(), c.built).Certain
	if stepped || known != c.known {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	c.known = known
}

// present is the stamp of the last look, without a claim about its wall clock.
func (c *Clock) present() Stamp {
	return Stamp{Boot: c.boots[len(c.boots)-1].Number, At: c.last.Boottime, Wall: c.last.Wall}
}

// Now stamps the present.
func (c *Clock) Now() Stamp {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.look()
}

// Time gives the present as well as it is known, and whether it is.
func (c *Clock) Time() (t time.Time, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.boots.date(c.look(), c.built)
	return d.Time, d.Certain
}

// Known reports whether the time is known, to the minute.
func (c *Clock) Known() bool {
	_, known := c.Time()
	return known
}

// Changed gives a channel that is closed when the time becomes known or
// unknown, or when the machine's clock is stepped, by more than half a second
// in either direction. It notices what a look notices; see [Clock.Run].
func (c *Clock) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Wait waits until the time is known. The error is ctx's.
func (c *Clock) Wait(ctx context.Context) error {
	for {
		changed := c.Changed()
		if c.Known() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Run looks at the machine's clock until ctx ends: each second while the time
// is unknown, else every ten.
func (c *Clock) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if c.Known() {
			timer.Reset(lookKnown)
		} else {
			timer.Reset(lookUnknown)
		}
	}
}

// Told takes what the XMPP server says the time is (XEP-0202), at the moment
// when its answer came, a round trip after the question. The error says why it
// is not believed: NTP contradicts it, or it cannot be.
func (c *Clock) Told(server time.Time, roundTrip time.Duration) error {
	if roundTrip < 0 || roundTrip > maxRoundTrip {
		return fmt.Errorf("cannot believe the server's time: the answer took %v", roundTrip)
	}
	wrong := roundTrip / 2
	now := server.UTC().Truncate(time.Microsecond).Add(wrong)
	if server.Nanosecond() == 0 {
		// Most servers leave the fraction out (XEP-0082 allows it).
		now, wrong = now.Add(time.Second/2), wrong+time.Second/2
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.look().At
	s := span{From: at, To: at, Start: now.Add(-at), Error: max(wrong, leastError), Told: true}
	switch latest := now.Add(s.Error); {
	case latest.Before(c.built):
		return fmt.Errorf("cannot believe the server's time: %s is before this program was made", now.Format(time.RFC3339))
	case latest.Before(c.good):
		return fmt.Errorf("cannot believe the server's time: %s is before what NTP said last, %s", now.Format(time.RFC3339), c.good.Format(time.RFC3339))
	case now.Year() > lastYear:
		return errors.New("cannot believe the server's time: it is centuries ahead")
	}
	b := c.boots[len(c.boots)-1]
	for _, old := range b.Spans {
		if !old.Told && old.contradicts(s) {
			return fmt.Errorf("cannot believe the server's time: it is %v from NTP's", s.Start.Sub(old.Start).Round(time.Millisecond))
		}
	}
	if old, ok := b.best(at); ok && old.wrong(at) <= s.Error && !old.contradicts(s) {
		return nil // what is known is better
	}
	c.learn(s)
	c.signal(false)
	return nil
}

// Date says when a stamp was taken, by what is known now.
func (c *Clock) Date(s Stamp) Dating {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boots.date(s, c.built).whole()
}

// Resolve is the time of one stamp: see [Dating.Of].
func (c *Clock) Resolve(s Stamp) (t time.Time, bounds [2]time.Time, certain bool) {
	return c.Date(s).Of(s)
}

// Saw tells of a stamp that was found in the store: its boot ran that long,
// also where the power went before the table knew. It is to be told the newest
// of each boot before any is dated; then the stamps of a boot that never knew
// the time keep their distances.
func (c *Clock) Saw(s Stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.boots.find(s.Boot); ok {
		c.boots[i].Seen = max(c.boots[i].Seen, s.At)
	}
}

// Hold gives how long nothing may enter the log yet, for a session that is up
// since a boottime ([Stamp.At]): 0 once the time is known, or 90 s after the
// session came up. [Clock.Changed] tells if it may be less.
func (c *Clock) Hold(up time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look().At
	if c.known {
		return 0
	}
	return max(0, up+holdFor-now)
}

// Believable reports whether a device's own time can be right, in a reading
// that came at a stamp. While it is not known when that was, it may be as late
// as the latest bound, or where there is none, as the best guess.
func (c *Clock) Believable(own time.Time, came Stamp) bool {
	t, bounds, certain := c.Resolve(came)
	if !certain && !bounds[1].IsZero() {
		t = bounds[1]
	}
	return devices.Believable(own, t)
}

// VerifyTime is for [crypto/tls.Config.Time]. While the time is not known it is
// not before the program was made, and not before what NTP said last: so a
// certificate can be verified by a machine that believes to be in 1970. What
// the XMPP server says of the time has no say in whether it is that server.
func (c *Clock) VerifyTime() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look()
	t := now.Wall
	for _, s := range c.boots[len(c.boots)-1].Spans {
		if !s.Told {
			t = s.Start.Add(now.At)
		}
	}
	for _, least := range []time.Time{c.built, c.good} {
		if t.Before(least) {
			t = least
		}
	}
	return t
}

// VerifyTime is [Clock.VerifyTime] for who knows nothing of the machine's past:
// who tries a server before there is a gateway, or beside it.
func VerifyTime(source Source) time.Time {
	c, err := New(source, time.Time{}, nil)
	if err != nil {
		return source.Sample().Wall // no boot is told from another, and none needs to be
	}
	return c.VerifyTime()
}

// Verifying is [VerifyTime] for [crypto/tls.Config.Time].
func Verifying(source Source) func() time.Time {
	return func() time.Time { return VerifyTime(source) }
}

// Status is what people are told of the clock.
type Status struct {
	Known bool          `json:"known"`
	By    string        `json:"by,omitempty"` // "ntp" or "xmpp"; "" where nothing was known in this boot
	Error time.Duration `json:"error"`        // the most that the time is wrong by, where By is not ""
	Steps int           `json:"steps"`        // of the machine's clock, since New
	Step  time.Duration `json:"step"`         // the last one
	Boots int           `json:"boots"`        // that are remembered
}

// Status may be called from any goroutine.
func (c *Clock) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.look()
	s := Status{Known: c.known, Steps: c.steps, Step: c.step, Boots: len(c.boots)}
	if best, ok := c.boots[len(c.boots)-1].best(now.At); ok {
		s.By, s.Error = "ntp", best.wrong(now.At)
		if best.Told {
			s.By = "xmpp"
		}
	}
	return s
}
