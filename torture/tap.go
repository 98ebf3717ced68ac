package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// A tap gives a device the numbers of its readings, when it is time for them.
type tap struct {
	device  string
	every   time.Duration
	ledger  *ledger
	mute    bool // the device is never acknowledged
	numbers chan int

	mu      sync.Mutex
	open    bool
	extra   int // numbers to give while it is closed
	made    int
	acked   int
	changed chan struct{} // closed at each change
}

func newTap(device string, every time.Duration, l *ledger) *tap {
	return &tap{device: device, every: every, ledger: l, numbers: make(chan int), changed: make(chan struct{})}
}

// change does something with the lock held and tells all who wait.
func (t *tap) change(do func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	do()
	close(t.changed)
	t.changed = make(chan struct{})
}

// await waits until ok, which is called with the lock held.
func (t *tap) await(ctx context.Context, ok func() bool) error {
	for {
		t.mu.Lock()
		done, changed := ok(), t.changed
		t.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (t *tap) run(ctx context.Context) {
	for {
		n := 0
		if t.await(ctx, func() bool {
			if !t.open && t.extra == 0 {
				return false
			}
			t.extra = max(0, t.extra-1)
			t.made++
			n = t.made
			return true
		}) != nil {
			return
		}
		t.ledger.measured(t.device, n)
		select {
		case t.numbers <- n:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(t.every):
		case <-ctx.Done():
			return
		}
	}
}

func (t *tap) set(open bool) { t.change(func() { t.open = open }) }

// done is called when the reading was acknowledged, or where that cannot be,
// sent.
func (t *tap) done(n int) {
	if !t.mute {
		t.ledger.acknowledged(t.device, n)
	}
	t.change(func() { t.acked++ })
}

// settle closes the tap and waits until everything from it was acknowledged.
func (t *tap) settle(ctx context.Context) error {
	t.set(false)
	if err := t.await(ctx, func() bool { return t.acked == t.made }); err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		return fmt.Errorf("%s waits for %d acknowledgements: %w", t.device, t.made-t.acked, err)
	}
	return nil
}

// one gives a single number and waits until its reading was acknowledged.
func (t *tap) one(ctx context.Context) (n int, err error) {
	t.change(func() { t.extra++ })
	if err := t.await(ctx, func() bool { return t.extra == 0 && t.acked == t.made }); err != nil {
		return 0, fmt.Errorf("the last reading of %s is not acknowledged: %w", t.device, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.made, nil
}

func payload(n int) []byte { return fmt.Appendf(nil, `{"n":%d}`, n) }

func (t *tap) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.made
}

// answered gives how many were acknowledged, which they are in their order.
func (t *tap) answered() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.acked
}
