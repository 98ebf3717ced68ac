package serial

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	// enough frames that are sound, with a checksum or without, prove a firmware.
	enoughChecked = 2
	enough        = 5

	// garbage is how many bytes without a sound frame show that a rate is wrong,
	// if they came for so long at least.
	garbage     = 300
	garbageTime = 3 * time.Second
)

// A Trial is what to try on a port.
type Trial struct {
	Port     string
	Profiles []*profile.Profile // those for serial lines
	Listen   time.Duration      // how long to wait for a device that speaks seldom
	Write    bool               // ask those who do not speak by themselves
	Unit     byte               // address to ask on a Modbus; 0 is 1
	Lines    []profile.Line     // to try; none: those of the profiles
	Signals  Signals
	// Say tells what is tried next.
	Say func(string)
}

// A Finding is a firmware that was understood on a port.
type Finding struct {
	Profile    *profile.Profile
	Line       profile.Line
	Sound      int      // frames
	Faulty     int      // frames that the profile refused
	Checked    bool     // by a checksum
	Asked      bool     // it spoke only when it was asked
	Identities []string // of devices
	Fields     []devices.Field
}

// An audience hears what a talk is about, in a probe.
type audience struct {
	mute     bool // nothing is asked
	bytes    int
	line     profile.Line
	findings map[string]*Finding
	tick     func() // when bytes came
	enough   func()
}

func (a *audience) finding(p *profile.Profile) *Finding {
	f := a.findings[p.ID()]
	if f == nil {
		f = &Finding{Profile: p, Line: a.line, Asked: !a.mute, Checked: p.Framing().Checked()}
		a.findings[p.ID()] = f
	}
	return f
}

func (a *audience) refused(p *profile.Profile) { a.finding(p).Faulty++ }

// maxIdentities bounds what a line with many devices shows.
const maxIdentities = 20

func (a *audience) understood(p *profile.Profile, out profile.Output) {
	f := a.finding(p)
	f.Sound++
	for _, o := range append([]profile.Output{out}, out.Children...) {
		if id := o.Identity; id != "" && len(f.Identities) < maxIdentities && !slices.Contains(f.Identities, id) {
			f.Identities = append(f.Identities, id)
		}
		for _, r := range o.Readings {
			if len(r.Fields) >= len(f.Fields) {
				f.Fields = r.Fields
			}
		}
	}
	if f.proved() {
		a.enough()
	}
}

// proved reports whether a firmware is: not by one that takes anything.
func (f *Finding) proved() bool {
	return f.Checked && f.Sound >= enoughChecked || f.Profile.Priority() >= 50 && f.Sound >= enough && f.Faulty == 0
}

// Probe finds out what speaks on a port: it listens at each rate, and reads what
// comes by every profile. It writes nothing unless it may. The best finding comes
// first; there is none where nothing was understood. heard is how many bytes came
// at all. Nothing else may use the port meanwhile.
func Probe(ctx context.Context, t Trial) (all []Finding, heard int, err error) {
	lines := t.Lines
	if lines == nil {
		lines = linesOf(t.Profiles)
	}
	w, err := openWire(t.Port, lines[0], t.Signals)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot open serial port %s: %w", t.Port, err)
	}
	defer func() { _ = w.Close() }()
	for _, line := range lines {
		if ctx.Err() != nil {
			return nil, heard, ctx.Err()
		}
		patience := t.Listen
		if len(all) > 0 { // something that takes anything; a better one is worth a moment
			patience = min(patience, garbageTime)
		}
		t.Say(fmt.Sprintf("listening at %s", line))
		a := &audience{mute: true, line: line}
		if err := t.listen(ctx, w, a, t.Profiles, patience); err != nil {
			return nil, heard, err
		}
		all = append(all, a.found()...)
		heard += a.bytes
		if heard == 0 || !weak(all) { // a wrong rate makes noise of what is said, and not silence
			break
		}
	}
	if len(all) == 0 && t.Write {
		if all, err = t.ask(ctx, w); err != nil {
			return nil, heard, err
		}
	}
	slices.SortStableFunc(all, better)
	return all, heard, nil
}

// ask asks by each profile that has questions, until one is answered.
func (t Trial) ask(ctx context.Context, w *wire) ([]Finding, error) {
	for _, p := range t.Profiles {
		questions := p.Questions()
		if len(questions) == 0 {
			continue
		}
		patience := time.Second
		for _, q := range questions {
			patience += cmp.Or(q.Within, answerTime)
			if q.SignOn {
				patience += 10 * time.Second
			}
		}
		lines := t.Lines
		if lines == nil {
			lines = p.Lines()
		}
		for _, line := range lines {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			t.Say(fmt.Sprintf("asking as %s does, at %s", p.ID(), line))
			a := &audience{line: line}
			if err := t.listen(ctx, w, a, []*profile.Profile{p}, patience); err != nil {
				return nil, err
			}
			if found := a.found(); len(found) > 0 {
				return found, nil
			}
		}
	}
	return nil, nil
}

// listen has an audience hear a line for some time.
func (t Trial) listen(ctx context.Context, w *wire, a *audience, profiles []*profile.Profile, patience time.Duration) error {
	if err := w.set(a.line); err != nil {
		t.Say(fmt.Sprintf("the port cannot do %s: %v", a.line, err))
		return nil
	}
	c := &Config{Port: t.Port, Line: a.line, Signals: t.Signals}
	for _, p := range profiles {
		id := devices.ID(p.ID())
		c.Devices = append(c.Devices, Device{
			Device: devices.Device{ID: id, Location: time.Local}, Profile: p, Place: profile.Place{Device: id, Location: time.Local}, Unit: t.Unit,
		})
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a.findings, a.enough = make(map[string]*Finding), cancel
	p := New(*c, slog.New(slog.DiscardHandler))
	p.audience = a
	began := time.Now()
	a.tick = func() {
		if a.bytes > garbage && time.Since(began) > garbageTime && len(a.found()) == 0 {
			cancel()
		}
	}
	err := p.talk(ctx, nobody{}, w)
	if cause := context.Cause(ctx); err != nil && cause == nil {
		return fmt.Errorf("cannot use serial port %s, %w", t.Port, unplugged(err))
	}
	return nil
}

// found gives what was understood, and not by chance: a few frames of any kind are
// in noise.
func (a *audience) found() (all []Finding) {
	for _, f := range a.findings {
		if f.Sound > 2*f.Faulty {
			all = append(all, *f)
		}
	}
	return all
}

// weak reports whether another rate may say more.
func weak(all []Finding) bool {
	return !slices.ContainsFunc(all, func(f Finding) bool { return f.proved() })
}

// better puts the finding first that is proved better.
func better(a, b Finding) int {
	flag := func(is bool) int {
		if is {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(flag(b.Checked), flag(a.Checked)),
		cmp.Compare(b.Profile.Priority(), a.Profile.Priority()),
		cmp.Compare(a.Faulty*b.Sound, b.Faulty*a.Sound),
		cmp.Compare(len(b.Fields), len(a.Fields)),
		cmp.Compare(b.Sound, a.Sound),
		cmp.Compare(a.Profile.ID(), b.Profile.ID()),
	)
}

// linesOf gives the lines of profiles, those first that more of them have.
func linesOf(all []*profile.Profile) (lines []profile.Line) {
	count := make(map[profile.Line]int)
	for _, p := range all {
		for i, l := range p.Lines() {
			if count[l] == 0 {
				lines = append(lines, l)
			}
			count[l] += 1 + 10*min(1, max(0, 1-i)) // the usual line of a firmware counts more
		}
	}
	slices.SortStableFunc(lines, func(a, b profile.Line) int { return cmp.Compare(count[b], count[a]) })
	if len(lines) == 0 {
		lines = []profile.Line{usual}
	}
	return lines
}

// nobody takes nothing.
type nobody struct{}

func (nobody) Report(context.Context, devices.Message) (devices.Receipt, error) {
	return nil, errors.New("nobody listens")
}
func (nobody) Availability(devices.ID, devices.Availability, bool) {}
func (nobody) Unknown(devices.Stranger) bool                       { return false }
func (nobody) Reject(string, error)                                {}
func (nobody) Up(string)                                           {}
