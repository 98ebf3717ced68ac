package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/torture/faultfs"
	"github.com/porchlight-iot/porchlight/torture/link"
)

// Prosody refuses nothing of what the gateway sends, but where an operator limits
// it. A pack of several usual readings may have more than this; one has less.
const itemLimit = 2000

var (
	// refusals are passed when the service refuses an item.
	refusals = []string{"pack split", "pack refused", "notes put"}
	// firsts are passed while there is no store yet, or no node.
	firsts = []string{"store missing", "store made", "store renamed", "store created", "node missing", "node made", "node configured", "members set"}
	// lasts are passed when the gateway is stopped in order.
	lasts = []string{"session down", "store closing", "store committed", "store closed", "states put"}
)

// TestCrashPointsAtProsody kills the gateway once in each place that the package
// crashpoint names, between the real servers, and judges what has arrived.
// TestCrashPoints, in agent, does it more often, and with a service that
// refuses.
func TestCrashPointsAtProsody(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	source, err := os.ReadFile(filepath.Join("..", "crashpoint", "points.go"))
	if err != nil {
		t.Fatal(err)
	}
	noDisk := hasFUSE()
	var points []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +Point = "([^"]+)"`).FindAllSubmatch(source, -1) {
		if p := string(m[1]); noDisk == nil || !strings.HasPrefix(p, "note ") {
			points = append(points, p)
		}
	}
	program := filepath.Join(t.TempDir(), "porchlight")
	if err := build(t.Context(), program, false); err != nil {
		t.Fatal(err)
	}
	h := &hunt{todo: slices.Clone(points), tries: make(map[string]int)}
	var group sync.WaitGroup
	for i, o := range []options{{mode: "component", ack: "server"}, {mode: "account", ack: "disk"}} {
		o.patience, o.seed, o.limit = 3*time.Minute, uint64(i), itemLimit
		if o.dir, err = os.MkdirTemp("", "porchlight-points-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if !t.Failed() {
				os.RemoveAll(o.dir)
			}
		})
		group.Go(func() {
			if err := h.run(t.Context(), o, program, noDisk == nil, t); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, p := range h.todo {
		t.Errorf("the gateway did not come to %q", p)
	}
	t.Logf("died in %d places", len(points)-len(h.todo))
}

// A hunt is for the points in which the gateway did not die yet.
type hunt struct {
	mu    sync.Mutex
	todo  []string
	tries map[string]int
}

// take takes one off the list; "" where none is left that fits.
func (h *hunt) take(fits func(p string) bool) (point string, tries int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.todo, fits)
	if i < 0 {
		return "", 0
	}
	point = h.todo[i]
	h.todo = slices.Delete(h.todo, i, i+1)
	h.tries[point]++
	return point, h.tries[point]
}

func (h *hunt) giveBack(point string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.todo = append(h.todo, point)
}

// A life is what the next start of a gateway is to die in.
type life struct {
	mu    sync.Mutex
	point string // "" for none
	first bool   // it is one of those before there are a store and nodes
}

func (l *life) set(point string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.point = point
}

func (h *hunt) run(ctx context.Context, o options, program string, disk bool, t *testing.T) (err error) {
	log := filepath.Join(o.dir, "porchlight.log")
	died := func(point string) bool {
		said, _ := os.ReadFile(log)
		return bytes.Contains(said, []byte("killed: "+point+"\n"))
	}
	l := life{first: true}
	o.point = func() (crash string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.first {
			if l.point != "" && !died(l.point) {
				h.giveBack(l.point)
			}
			l.point, _ = h.take(func(p string) bool { return slices.Contains(firsts, p) && h.tries[p] < 2 })
			if l.first = l.point != ""; l.first {
				return l.point + ":1"
			}
			return ""
		}
		if l.point != "" {
			crash = l.point + ":1"
			l.point = ""
		}
		return crash
	}
	w, err := newWorld(ctx, o, program, disk, t.Output())
	if err != nil {
		return err
	}
	for since, point := time.Now(), ""; ; pause(ctx, 20*time.Millisecond) {
		l.mu.Lock()
		first, now := l.first, l.point
		l.mu.Unlock()
		if !first || ctx.Err() != nil {
			break
		}
		if now != point {
			since, point = time.Now(), now
		} else if time.Since(since) > 5*time.Second {
			w.gateway.kill()
		}
	}
	good := true
	defer func() {
		if closing := w.close(!good); err == nil {
			err = closing
		}
	}()
	for n := 1; ; n++ {
		point, tries := h.take(func(p string) bool {
			return h.tries[p] < 4 && (p != "settled forgotten" || o.ack == "server") // which the disk keeps for a minute
		})
		if point == "" {
			break
		}
		for _, tap := range w.taps() {
			tap.set(true)
		}
		l.set(point)
		w.say("to die: %s", point)
		if !w.live(ctx, point, tries, func() bool { return died(point) }) {
			h.giveBack(point)
		}
		if n%8 == 0 {
			good = good && w.verdict(ctx, t)
		}
	}
	good = w.verdict(ctx, t) && good
	if !good {
		return fmt.Errorf("%s, outbox.ack %s: the gateway does not keep its promise; its log is in %s", o.mode, o.ack, o.dir)
	}
	return nil
}

// live has the gateway start for a life that is to end in a point, and reports
// whether it did. After the first try there are faults in it.
func (w *world) live(ctx context.Context, point string, tries int, died func() bool) bool {
	w.gateway.kill()
	l := w.links[linkXMPP]
	wait := func(d time.Duration) bool {
		for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; {
			if died() {
				return true
			}
			pause(ctx, 20*time.Millisecond)
		}
		return died()
	}
	switch {
	case slices.Contains(lasts, point):
		if wait(2 * time.Second) {
			return true
		}
		if p := w.gateway.running(); p != nil {
			p.terminate(stopTime)
		}
		return wait(time.Second)
	case slices.Contains(refusals, point):
		for range 10 {
			if w.boast(ctx); wait(time.Second) {
				return true
			}
		}
		return false
	case strings.HasPrefix(point, "note "):
		wait(time.Second)
		w.change(func(t *faultfs.Trouble) { t.FailSyncs = true })
		wait(2 * time.Second)
		w.change(func(t *faultfs.Trouble) { t.FailSyncs = false })
		return wait(2 * time.Second)
	case tries == 1:
		return wait(3 * time.Second)
	}
	wait(time.Second)
	l.Set(link.Condition{Down: link.Flow{Held: true}})
	wait(1500 * time.Millisecond)
	l.Set(link.Condition{})
	wait(time.Second)
	l.Set(link.Condition{Down: link.Flow{Held: true}})
	wait(200 * time.Millisecond)
	l.Reset()
	l.Set(link.Condition{})
	return wait(12 * time.Second)
}

// boast has a device say what is more than the service takes, in several messages
// at once: some of them are in one pack.
func (w *world) boast(ctx context.Context) {
	host, port, _ := net.SplitHostPort(w.broker.address)
	message := fmt.Sprintf(`{"a":%q,"b":%q}`, strings.Repeat("a", itemLimit/2-100), strings.Repeat("b", itemLimit/2-100))
	cmd := exec.CommandContext(ctx, "mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", boaster, "-l")
	cmd.Stdin = strings.NewReader(strings.Repeat(message+"\n", 5))
	if out, err := cmd.CombinedOutput(); err != nil {
		w.say("cannot boast: %v: %s", err, out)
	}
}

// verdict lets all arrive and judges it.
func (w *world) verdict(ctx context.Context, t *testing.T) bool {
	w.gateway.kill() // whose life would end in a point
	if err := w.drain(ctx); err != nil {
		t.Error(err)
	}
	v := judge(w.ledger, w.subscriber, w.excused)
	t.Log(v)
	for _, d := range append(w.blamed(), v.details...) {
		t.Error(d)
	}
	return v.good() && len(w.blamed()) == 0 && w.crashes() == 0
}
