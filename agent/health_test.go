package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// TestStuck has parts wait, work and stand still, and looks who is named.
func TestStuck(t *testing.T) {
	var waits, works, stands devices.Pulse
	var sink calls
	parts := map[string]beating{"waits": &waits, "works": &works, "stands": &stands, "sink": &sink}
	h := &health{}
	now := time.Now()
	waits.Busy()
	waits.Rest()
	works.Busy()
	stands.Busy()
	sink.begin()()
	held := sink.begin()
	for step := time.Duration(0); step < stuckAfter; step += stuckAfter / 9 {
		if got := h.stuck(parts, now.Add(step)); len(got) > 0 {
			t.Fatalf("after %v %q are stuck", step, got)
		}
		works.Busy()
	}
	if got := h.stuck(parts, now.Add(stuckAfter)); !slices.Equal(got, []string{"sink", "stands"}) {
		t.Errorf("%q are stuck", got)
	}
	works.Rest()
	stands.Rest()
	held()
	if got := h.stuck(parts, now.Add(2*stuckAfter)); len(got) > 0 {
		t.Errorf("%q are still stuck", got)
	}
	stands.Busy()
	if got := h.stuck(parts, now.Add(3*stuckAfter)); len(got) > 0 {
		t.Errorf("a new turn counts from its own beginning, but %q are stuck", got)
	}
}
