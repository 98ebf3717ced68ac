package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// failing is a driver whose runs end as told.
type failing struct {
	runs []func(devices.Sink) error
	at   []time.Time
}

func (f *failing) Name() string { return "failing" }

func (f *failing) Run(ctx context.Context, sink devices.Sink) error {
	f.at = append(f.at, time.Now())
	if len(f.at) > len(f.runs) {
		<-ctx.Done()
		return nil
	}
	return f.runs[len(f.at)-1](sink)
}

// TestSupervise has a driver that fails, panics, comes up and is refused: each
// time it is run again, after a pause that fits.
func TestSupervise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := func(devices.Sink) error { return errors.New("broken") }
		f := &failing{runs: []func(devices.Sink) error{
			broken, broken, broken,
			func(devices.Sink) error { panic("at the disco") },
			func(s devices.Sink) error { s.Up("failing"); return errors.New("cut") },
			func(devices.Sink) error { return fmt.Errorf("wrong password: %w", devices.ErrRefused) },
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			supervise(ctx, f, &devicetest.Sink{}, slog.New(slog.DiscardHandler))
		}()
		time.Sleep(time.Hour) // virtual
		cancel()
		<-done
		want := []time.Duration{firstPause, 2 * firstPause, 4 * firstPause, 8 * firstPause, firstPause, refusedPause}
		if len(f.at) != len(want)+1 {
			t.Fatalf("%d runs, want %d", len(f.at), len(want)+1)
		}
		for i, w := range want {
			if got := f.at[i+1].Sub(f.at[i]); got < w/2 || got > w*3/2 {
				t.Errorf("pause %d: %s, want %s give or take a half", i, got, w)
			}
		}
	})
}
