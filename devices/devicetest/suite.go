package devicetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Harness is one driver with a device of its kind at the other end.
type Harness struct {
	// New makes the driver, as the agent would. The device it knows is
	// "kitchen".
	New func(t testing.TB) devices.Driver

	// Send makes the device report the field "temperature" with the value
	// given. It returns at once with a channel that gets nil when the device
	// was acknowledged, or an error where it was not; nil where this
	// transport has no acknowledgement.
	Send func(t testing.TB, value string) <-chan error

	// SendGarbage makes the device, or another peer, send what no profile
	// understands.
	SendGarbage func(t testing.TB)

	// Break cuts the link from the peer's side, so that Run must return an
	// error; nil where there is no link to lose.
	Break func(t testing.TB)

	// Resends is true where an unacknowledged message comes again after the
	// link was made anew.
	Resends bool
}

// RunDriver is the contract of [devices.Driver], as tests.
func RunDriver(t *testing.T, make func(t *testing.T) Harness) {
	t.Run("reports", func(t *testing.T) {
		h := make(t)
		sink := &Sink{Auto: true}
		start(t, h.New(t), sink)
		sink.WaitUp(t, 1)
		acked := h.Send(t, "21.40")
		m := sink.WaitMessages(t, 1)[0]
		if len(m.Readings) != 1 || m.Readings[0].Device != "kitchen" {
			t.Fatalf("want one reading of kitchen, got %+v", m.Readings)
		}
		f := m.Readings[0].Fields
		if len(f) != 1 || f[0].Name != "temperature" || f[0].Value.String() != "21.40" {
			t.Fatalf("want temperature 21.40, got %+v", f)
		}
		wait(t, acked)
	})

	t.Run("acknowledges only what is safe", func(t *testing.T) {
		h := make(t)
		sink := &Sink{}
		start(t, h.New(t), sink)
		sink.WaitUp(t, 1)
		acked := h.Send(t, "1")
		if acked == nil {
			t.Skip("no acknowledgement on this transport")
		}
		m := sink.WaitMessages(t, 1)[0]
		select {
		case err := <-acked:
			t.Fatalf("acknowledged (%v) before the reading was safe", err)
		case <-time.After(200 * time.Millisecond):
		}
		m.Settle(nil)
		wait(t, acked)
	})

	t.Run("does not acknowledge what is lost", func(t *testing.T) {
		h := make(t)
		sink := &Sink{}
		start(t, h.New(t), sink)
		sink.WaitUp(t, 1)
		acked := h.Send(t, "1")
		if acked == nil {
			t.Skip("no acknowledgement on this transport")
		}
		sink.WaitMessages(t, 1)[0].Settle(errors.New("lost"))
		select {
		case err := <-acked:
			if err == nil {
				t.Fatal("acknowledged a reading that was lost")
			}
		case <-time.After(200 * time.Millisecond):
		}
	})

	t.Run("goes on after garbage", func(t *testing.T) {
		h := make(t)
		sink := &Sink{Auto: true}
		start(t, h.New(t), sink)
		sink.WaitUp(t, 1)
		h.SendGarbage(t)
		sink.WaitRejections(t, 1)
		h.Send(t, "2")
		sink.WaitMessages(t, 1)
	})

	t.Run("a lost link ends Run, and Run may be called again", func(t *testing.T) {
		h := make(t)
		if h.Break == nil {
			t.Skip("no link to lose")
		}
		sink := &Sink{Auto: !h.Resends}
		d := h.New(t)
		ended := start(t, d, sink)
		sink.WaitUp(t, 1)
		h.Send(t, "3")
		sink.WaitMessages(t, 1)
		h.Break(t)
		select {
		case err := <-ended:
			if err == nil {
				t.Fatal("Run ended without an error though the link was cut")
			}
		case <-time.After(patience):
			t.Fatal("Run did not end though the link was cut")
		}
		start(t, d, sink)
		sink.WaitUp(t, 2)
		if !h.Resends {
			h.Send(t, "4")
		}
		m := sink.WaitMessages(t, 2)
		if h.Resends && (m[1].Origin != m[0].Origin || m[1].Origin == devices.Origin{} || !m[1].Redelivered) {
			t.Fatalf("what came again has origin %x (redelivered %v), the first had %x",
				m[1].Origin, m[1].Redelivered, m[0].Origin)
		}
	})

	t.Run("stops at once and leaves nothing behind", func(t *testing.T) {
		h := make(t)
		d := h.New(t)
		before := goleak.IgnoreCurrent()
		ctx, cancel := context.WithCancel(context.Background())
		sink := &Sink{}
		ended := run(ctx, d, sink)
		sink.WaitUp(t, 1)
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("a stop is not a fault, but Run says %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Run did not end with its context")
		}
		goleak.VerifyNone(t, before)
	})
}

func wait(t testing.TB, acked <-chan error) {
	t.Helper()
	if acked == nil {
		return
	}
	select {
	case err := <-acked:
		if err != nil {
			t.Fatalf("not acknowledged: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("not acknowledged")
	}
}

func run(ctx context.Context, d devices.Driver, sink devices.Sink) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx, sink) }()
	return ended
}

// start runs the driver until the test ends.
func start(t *testing.T, d devices.Driver, sink devices.Sink) <-chan error {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ended <- d.Run(ctx, sink)
	}()
	t.Cleanup(func() {
		cancel()
		<-stopped
	})
	return ended
}
