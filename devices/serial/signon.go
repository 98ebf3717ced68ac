package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	// signOnBaud is the rate at which a conversation begins.
	signOnBaud = 300

	// reaction is how long a meter needs before it hears again (IEC 62056-21
	// section 6.3.14: 200 ms to 1500 ms).
	reaction = 200 * time.Millisecond

	// meterTime is after how long a silence nothing more comes, and mostMeterTime
	// how long a meter may speak: 4 KiB at 300 baud.
	meterTime     = 3 * time.Second
	mostMeterTime = 3 * time.Minute
)

// signOn has a conversation by IEC 62056-21: the meter is asked at the line's
// own baud rate, which is 300, says who it is, and the rate at which it goes on.
func (t *talk) signOn(ctx context.Context, d *Device, r profile.Request) (err error) {
	defer func() {
		if t.line == t.config.Line {
			return
		}
		if fault := t.wire.set(t.config.Line); fault != nil {
			err = &portError{fault}
		}
		t.line = t.config.Line
	}()
	t.drain(ctx)
	if err := t.write(ctx, []byte("/?!\r\n")); err != nil {
		return err
	}
	name, err := t.meterName(ctx, max(r.Within, meterTime))
	if err != nil {
		return err
	}
	e := t.earOf(d)
	before := e.understood
	e.framer.Reset()
	e.hear(ctx, name)
	mode, next := name[4]&0x7f, t.line
	time.Sleep(reaction)
	switch {
	case mode >= '0' && mode <= '6': // mode C: it waits until it is told to go on
		next.Baud = signOnBaud << (mode - '0')
		if err := t.write(ctx, []byte{0x06, '0', mode, '0', '\r', '\n'}); err != nil {
			return err
		}
		t.wire.drained(answerTime)
		time.Sleep(time.Until(t.last))
	case mode >= 'A' && mode <= 'F': // mode B: it goes on by itself
		next.Baud = 2 * signOnBaud << (mode - 'A')
	}
	if next != t.line {
		if err := t.wire.set(next); err != nil {
			return &portError{fmt.Errorf("cannot set %s: %w", next, err)}
		}
		t.line = next
	}
	deadline := time.Now().Add(mostMeterTime)
	for e.understood == before {
		silence := time.NewTimer(meterTime)
		chunk, err := t.receive(ctx, silence.C)
		silence.Stop()
		switch {
		case errors.Is(err, errSilence), err == nil && time.Now().After(deadline):
			return fmt.Errorf("it said who it is, %.40q, and then nothing that could be read at %s", bytes.TrimSpace(name), next)
		case err != nil:
			return err
		}
		t.hear(ctx, chunk)
	}
	return nil
}

// meterName waits for the line by which a meter says who it is. Some optical
// heads give back what was sent.
func (t *talk) meterName(ctx context.Context, within time.Duration) ([]byte, error) {
	end := time.NewTimer(within)
	defer end.Stop()
	var got []byte
	for {
		chunk, err := t.receive(ctx, end.C)
		switch {
		case errors.Is(err, errSilence):
			return nil, fmt.Errorf("no answer within %s", within)
		case err != nil:
			return nil, err
		}
		got = append(got, chunk...)
		for {
			i := bytes.IndexByte(got, '\n')
			if i < 0 {
				break
			}
			line := got[:i+1]
			got = got[i+1:]
			for i := range line {
				line[i] &= 0x7f // where the parity was not taken away
			}
			if at := bytes.IndexByte(line, '/'); at >= 0 && len(line)-at >= 7 && line[at+1] != '?' {
				t.left = append([]byte(nil), got...)
				return line[at:], nil
			}
		}
		if len(got) > maxNoise {
			return nil, fmt.Errorf("%d bytes and no name of a meter in them", len(got))
		}
	}
}
