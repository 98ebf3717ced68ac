package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

// adopting is a driver that adopts the next of the same setting.
type adopting struct{ name, setting string }

func (a adopting) Name() string                            { return a.name }
func (a adopting) Run(context.Context, devices.Sink) error { return nil }
func (a adopting) Adopt(next devices.Driver) bool {
	return next.(adopting).setting == a.setting
}

// TestCrewChanges keeps who does not change, and has those gone who leave
// before others come.
func TestCrewChanges(t *testing.T) {
	var mu sync.Mutex
	var story []string
	tell := func(what string, d devices.Driver) {
		mu.Lock()
		defer mu.Unlock()
		story = append(story, fmt.Sprint(what, d))
	}
	var c crew
	change := func(wanted ...devices.Driver) []string {
		var begun sync.WaitGroup
		for _, d := range wanted {
			if !slices.ContainsFunc(c, func(w worker) bool { return w.driver == d }) {
				begun.Add(1)
			}
		}
		c = c.change(t.Context(), wanted, func(ctx context.Context, d devices.Driver) {
			tell("+", d)
			begun.Done()
			<-ctx.Done()
			tell("-", d)
		})
		begun.Wait()
		mu.Lock()
		defer mu.Unlock()
		told := story
		story = nil
		return told
	}
	a1, a2, b1, b2 := adopting{"a", "1"}, adopting{"a", "2"}, adopting{"b", "1"}, adopting{"b", "2"}
	plain := &failing{} // adopts nothing
	for i, step := range []struct {
		wanted []devices.Driver
		want   []string
	}{
		{[]devices.Driver{a1}, []string{"+{a 1}"}},
		{[]devices.Driver{a1, b1}, []string{"+{b 1}"}},
		{[]devices.Driver{a1, b2}, []string{"-{b 1}", "+{b 2}"}},
		{[]devices.Driver{b2, a2}, []string{"-{a 1}", "+{a 2}"}},
		{[]devices.Driver{b2}, []string{"-{a 2}"}},
		{nil, []string{"-{b 2}"}},
	} {
		if got := change(step.wanted...); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
	change(plain)
	if got := c.change(t.Context(), []devices.Driver{&failing{}}, func(context.Context, devices.Driver) {}); got[0].driver == plain {
		t.Error("a driver that cannot adopt goes on")
	}
}
