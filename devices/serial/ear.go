package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/profile/framing"
)

// An ear understands one firmware on a port, whichever of its devices speaks.
type ear struct {
	talk       *talk
	profile    *profile.Profile
	hearing    *profile.Hearing
	devices    []*Device
	framer     *framing.Framer // nil where a device only answers, by Modbus
	fresh      bool            // the first frame may have begun before the port was opened
	stirring   bool            // something came, and no silence since
	understood int             // messages
	numbers    *numbers        // of devices that ask for one; nil where none do
	lessons    *lessons        // of devices that teach; nil where none do
}

func newEar(t *talk, p *profile.Profile) *ear {
	e := &ear{talk: t, profile: p, hearing: p.NewHearing(), fresh: true}
	if e.hearing.Numbers() != nil {
		e.numbers = numbersOf(t.config, p.ID())
		used, err := e.numbers.load()
		if err != nil {
			t.sink.Reject(t.config.Port, err)
		}
		for _, n := range used {
			e.hearing.Know(strconv.Itoa(n))
		}
	}
	if e.lessons = lessonsOf(t.config, e.hearing, p.ID()); e.lessons != nil {
		if err := e.lessons.load(e.hearing); err != nil {
			t.sink.Reject(t.config.Port, err)
		}
	}
	if rule := p.Framing(); rule.Modbus == nil {
		e.framer = framing.New(rule)
	}
	return e
}

// hear takes bytes that came.
func (e *ear) hear(ctx context.Context, chunk []byte) {
	e.stirring = true
	e.framer.Cut(chunk, func(f framing.Frame) { e.frame(ctx, f) })
}

// idle says that there was a silence.
func (e *ear) idle(ctx context.Context) {
	if e.stirring && e.framer != nil {
		e.framer.Idle(func(f framing.Frame) { e.frame(ctx, f) })
	}
	e.stirring = false
}

// frame takes what the framer found.
func (e *ear) frame(ctx context.Context, f framing.Frame) {
	err := f.Err
	if err == nil && f.Skipped > 0 {
		e.talk.port.log.Debug("serial: noise before a frame", "port", e.talk.config.Port, "bytes", f.Skipped)
	}
	if err == nil && e.fresh && tailOfJSON(f.Bytes) {
		err = errors.New("the line is the end of one")
	}
	if err == nil {
		err = e.talk.take(ctx, e, nil, f.Bytes, "")
	}
	switch a := e.talk.port.audience; {
	case a != nil && err != nil && !e.fresh:
		a.refused(e.profile)
	case a != nil:
	case err != nil && e.fresh:
		e.talk.port.log.Debug("serial: the first frame was not whole", "port", e.talk.config.Port, "error", err)
	case err != nil:
		e.talk.sink.Reject(e.source(), err)
	}
	e.fresh = false
}

// source is whom a fault is told of.
func (e *ear) source() string {
	if len(e.devices) == 1 {
		return string(e.devices[0].Device.ID)
	}
	return e.talk.config.Port
}

// tailOfJSON reports whether a line is what is left of a JSON object when the
// port was opened in the midst of it; a profile could take that for a name and
// a value.
func tailOfJSON(line []byte) bool {
	line = bytes.TrimSpace(line)
	return !bytes.HasPrefix(line, []byte("{")) && bytes.HasSuffix(line, []byte("}"))
}

// take makes readings of a frame. asked is the device that it answers, or nil.
func (t *talk) take(ctx context.Context, e *ear, asked *Device, frame []byte, topic string) error {
	place := e.devices[0].Place // of the others only the id may differ
	if asked != nil {
		place = asked.Place
	}
	out, answer, err := e.hearing.Decode(place, profile.Message{Topic: topic, Payload: frame, ContentFormat: -1, Received: time.Now()})
	if err != nil {
		return err
	}
	e.understood++
	if e.lessons != nil {
		if fault := e.lessons.keep(e.hearing); fault != nil {
			t.sink.Reject(e.source(), fault)
		}
	}
	if e.numbers != nil {
		if fault := e.numbers.keep(e.hearing.Numbers()); fault != nil && answer != nil {
			answer = nil // it may be one of the numbers
			t.sink.Reject(e.source(), fault)
		}
	}
	if answer != nil && len(t.answers) < maxAnswers && (t.port.audience == nil || !t.port.audience.mute) {
		t.answers = append(t.answers, answer)
	}
	if t.port.audience != nil {
		t.port.audience.understood(e.profile, out)
		return nil
	}
	err = t.deliver(ctx, e, asked, out, answer != nil)
	for _, child := range out.Children {
		err = errors.Join(err, t.deliver(ctx, e, e.called(child.Identity, false), child, false))
	}
	return err
}

// called finds the device of an identity. One that is configured without is any
// that is not another, and is no child of one.
func (e *ear) called(identity string, whole bool) *Device {
	for _, d := range e.devices {
		if d.Identity != "" && d.Identity == identity {
			return d
		}
	}
	for _, d := range e.devices {
		if d.Identity == "" && whole {
			return d
		}
	}
	return nil
}

// deliver hands over what a device said, or asked.
func (t *talk) deliver(ctx context.Context, e *ear, d *Device, out profile.Output, asked bool) error {
	if d == nil {
		d = e.called(out.Identity, true)
	}
	if d == nil {
		if !asked { // it may have no identity yet
			t.stranger(e, out)
		}
		return nil
	}
	t.port.heard(d, out)
	if out.Availability != devices.AvailabilityUnknown {
		t.sink.Availability(d.Device.ID, out.Availability, false)
	}
	if len(out.Readings) == 0 {
		return nil
	}
	for i := range out.Readings {
		out.Readings[i].Device = d.Device.ID
	}
	if _, err := t.sink.Report(ctx, devices.Message{Readings: out.Readings, Repeats: out.Repeats}); err != nil {
		return fmt.Errorf("cannot keep a reading, and the device does not repeat it: %w", err)
	}
	return nil
}

// stranger shows a device that is not configured.
func (t *talk) stranger(e *ear, out profile.Output) {
	if out.Identity == "" {
		return
	}
	s := devices.Stranger{
		Transport: "serial", Link: t.config.Port, Place: t.config.Port, Profile: e.profile.ID(),
		Identity: out.Identity, Parent: out.About.Parent, Name: out.About.Name, Model: out.About.Model,
	}
	if len(out.Readings) > 0 {
		s.Fields = out.Readings[0].Fields
	}
	t.sink.Unknown(s)
}
