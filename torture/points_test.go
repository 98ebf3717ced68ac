package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
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

	"github.com/porchlight-iot/porchlight/torture/link"
)

// Prosody refuses nothing of what the gateway sends, but where an operator limits
// it. A pack of several usual readings may have more than this; one has less.
const itemLimit = 1600

var (
	// refusals are passed when the service refuses an item: what is lost is noted.
	refusals = []string{"pack split", "pack refused", "note handed out", "note settled"}
	// firsts are passed while there is no store yet, or no node. Each house has
	// its own: after "store renamed" there is a store.
	firsts = [][]string{
		{"store missing", "store renamed", "node missing"},
		{"store made", "store created", "node made", "members set"},
	}
	// lasts are passed when the gateway is stopped in order.
	lasts = []string{"session down", "store closing", "store committed", "store closed", "states put"}
)

const (
	// lifeTime is far more than the gateway takes for what a life waits for.
	lifeTime = time.Minute
	// mostTries bounds how often it lives for one point: some are passed by
	// chance.
	mostTries = 8
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
	var points []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ +Point = "([^"]+)"`).FindAllSubmatch(source, -1) {
		points = append(points, string(m[1]))
	}
	program := filepath.Join(t.TempDir(), "porchlight")
	if err := build(t.Context(), program, false); err != nil {
		t.Fatal(err)
	}
	h := &hunt{todo: slices.Clone(points), tries: make(map[string]int)}
	// A note that the server takes in time is not written, so that it is up to the
	// machine whether the gateway comes to "notes put"; in TestCrashPoints it does.
	for _, p := range append(slices.Concat(firsts...), "notes put") {
		h.todo = slices.DeleteFunc(h.todo, func(q string) bool { return p == q })
	}
	var group sync.WaitGroup
	for i, o := range []options{{mode: "component", ack: "server"}, {mode: "account", ack: "disk"}} {
		o.patience, o.seed, o.limit = 10*time.Minute, uint64(i), itemLimit
		if o.dir, err = os.MkdirTemp("", "porchlight-points-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if !t.Failed() {
				os.RemoveAll(o.dir)
			}
		})
		group.Go(func() {
			if err := h.run(t.Context(), o, program, firsts[i], t); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, p := range h.todo {
		t.Errorf("the gateway did not come to %q", p)
	}
	t.Logf("died in %d places; of several tries: %v", len(points)-len(h.todo), h.again)
}

// A hunt is for the points in which the gateway did not die yet.
type hunt struct {
	mu    sync.Mutex
	todo  []string
	tries map[string]int
	again []string // what was given back
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
	h.todo, h.again = append(h.todo, point), append(h.again, point)
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

func (h *hunt) run(ctx context.Context, o options, program string, own []string, t *testing.T) (err error) {
	log := filepath.Join(o.dir, "porchlight.log")
	l := life{first: true}
	o.point = func() (crash string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.first {
			if l.point != "" && !died(log, 0, l.point) {
				t.Logf("did not come to %s", l.point)
				h.giveBack(l.point)
			}
			if l.first = len(own) > 0; l.first {
				l.point, own = own[0], own[1:]
				return l.point + ":1"
			}
			l.point = ""
			return ""
		}
		if l.point != "" {
			crash = l.point + ":1"
			l.point = ""
		}
		return crash
	}
	w, err := newWorld(ctx, o, program, hasFUSE() == nil, t.Output())
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
		} else if time.Since(since) > lifeTime {
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
			return h.tries[p] < mostTries && (p != "settled forgotten" || o.ack == "server") // which the disk keeps for a minute
		})
		if point == "" {
			break
		}
		for _, tap := range w.taps() {
			tap.set(true)
		}
		w.say("to die: %s, try %d", point, tries)
		if !w.live(ctx, point, tries, &l) {
			w.say("did not come to %s", point)
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

// died reports whether a gateway's log, from a place on, says that it died in a
// point.
func died(log string, from int64, point string) bool {
	f, err := os.Open(log)
	if err != nil {
		return false
	}
	defer f.Close()
	said, _ := io.ReadAll(io.NewSectionReader(f, from, 1<<30))
	return bytes.Contains(said, []byte("killed: "+point+"\n"))
}

// live has the gateway start for a life that is to end in a point, and reports
// whether it did. It waits for what the gateway does, however long that takes.
func (w *world) live(ctx context.Context, point string, tries int, next *life) bool {
	l := w.links[linkXMPP]
	hold := func() { l.Set(link.Condition{Down: link.Flow{Held: true}}) }
	release := func() { l.Set(link.Condition{}) }
	defer release()
	dead := func() bool { return false }
	until := func(most time.Duration, ok func() bool) bool {
		for end := time.Now().Add(most); time.Now().Before(end) && ctx.Err() == nil; pause(ctx, 20*time.Millisecond) {
			if dead() {
				return true
			}
			if ok() {
				return false
			}
		}
		return dead()
	}
	never := func() bool { return false }
	// arrives waits until what is measured from now on has arrived, and with
	// it what waited before.
	arrives := func() bool {
		from := make(map[*tap]int)
		for _, t := range slices.Concat(w.behind, w.direct) {
			from[t] = t.count()
		}
		return until(lifeTime, func() bool {
			for t, n := range from {
				if w.newest(t.device) <= n {
					return false
				}
				delete(from, t)
			}
			return true
		})
	}
	// keeps waits until what is measured from now on is on disk, the service
	// answering nothing.
	keeps := func() bool {
		from := make(map[*tap]int)
		for _, t := range w.direct {
			from[t] = t.count()
		}
		return until(lifeTime, func() bool {
			for t, n := range from {
				if t.answered() <= n {
					return false
				}
				delete(from, t)
			}
			return true
		})
	}

	if tries > 1 { // it begins with a backlog, and with messages that nobody acknowledged
		hold()
		keeps()
		if slices.Contains(refusals, point) {
			w.boast(ctx)
		}
	}
	size := int64(0)
	if info, err := w.gateway.log.Stat(); err == nil {
		size = info.Size()
	}
	dead = func() bool { return died(w.gateway.log.Name(), size, point) }
	_ = w.gateway.off(func() error { // no start is between
		next.set(point)
		return nil
	})
	l.Reset()
	release()
	if arrives() {
		return true
	}
	switch {
	case slices.Contains(refusals, point):
		for end := time.Now().Add(lifeTime / 2); time.Now().Before(end) && ctx.Err() == nil; {
			if w.boast(ctx); until(time.Second, never) {
				return true
			}
		}
		return false
	case !slices.Contains(lasts, point):
		hold() // answers come late,
		if keeps() {
			return true
		}
		release()
		if arrives() {
			return true
		}
		hold() // or never,
		if keeps() {
			return true
		}
		l.Reset()
		release()
		if arrives() {
			return true
		}
		hold() // or not before it is stopped
		if keeps() {
			return true
		}
	}
	if p := w.gateway.running(); p != nil {
		p.terminate(stopTime)
	}
	return until(time.Second, never)
}

// boast has a device say what is more than the service takes, and then several
// times what is less: two of those are in one pack, and more than it takes. They
// fit in what the gateway sends at once in the beginning of a session; while the
// server is slow, it packs less.
func (w *world) boast(ctx context.Context) {
	host, port, _ := net.SplitHostPort(w.broker.address)
	message := func(bytes int) string { return fmt.Sprintf("{\"a\":%q,\"b\":%[1]q}\n", strings.Repeat("a", bytes/2)) }
	cmd := exec.CommandContext(ctx, "mosquitto_pub", "-h", host, "-p", port, "-q", "1", "-t", boaster, "-l")
	cmd.Stdin = strings.NewReader(message(itemLimit) + strings.Repeat(message(itemLimit*3/8), 4))
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
