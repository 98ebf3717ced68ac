package agent

import (
	"testing"
	"time"
)

// A slowLink is a token bucket as ejabberd has one: it takes a stanza at once
// and answers it, and then takes nothing until it is paid for. way is the time
// to it and back.
type slowLink struct {
	rate, burst float64 // bytes a second, bytes
	way         time.Duration
	credit      float64
	free        time.Time // when it takes the next
}

// send gives when the answer comes to a stanza that is sent at now.
func (l *slowLink) send(bytes int, now time.Time) (answered time.Time) {
	taken := now
	if l.free.After(now) {
		taken = l.free
	}
	l.credit = min(l.burst, l.credit+l.rate*taken.Sub(l.free).Seconds()) - float64(bytes)
	l.free = taken
	if l.credit < 0 {
		l.free = taken.Add(time.Duration(-l.credit / l.rate * float64(time.Second)))
		l.credit = 0
	}
	return taken.Add(l.way)
}

// A windowedLink is a window at work on a link.
type windowedLink struct {
	link   slowLink
	window window
	now    time.Time
	under  []underWay // in the order of their answers
	sent   int
	behind time.Duration // the longest that something else would have waited
}

type underWay struct {
	sending
	answered time.Time
}

func newWindowedLink(l slowLink, size int) *windowedLink {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	l.free, l.credit = start, l.burst
	return &windowedLink{link: l, window: window{size: size}, now: start}
}

// drain sends for a time as much as the window lets pass, in packs of at most
// biggest bytes, each pause after the last answer.
func (w *windowedLink) drain(lasts time.Duration, biggest int, pause time.Duration) {
	for end := w.now.Add(lasts); w.now.Before(end); {
		for room := w.window.room(); room > 0 && len(w.under) < 64; room = w.window.room() {
			n := min(room, biggest)
			w.under = append(w.under, underWay{w.window.send(n, w.now), w.link.send(n, w.now)})
			w.sent += n
			w.behind = max(w.behind, w.link.free.Sub(w.now))
			if pause > 0 {
				break
			}
		}
		first := w.under[0]
		w.under = w.under[1:]
		w.now = first.answered
		w.window.answer(first.sending, w.now)
		w.now = w.now.Add(pause)
	}
}

const fullPack = 6 << 10

// TestWindowBehindShaper: from the first moment, which is a burst, what is
// sent beside the log waits less than two seconds, and the link is used.
func TestWindowBehindShaper(t *testing.T) {
	for _, rate := range []float64{3000, 10_000, 100_000} {
		for _, way := range []time.Duration{time.Millisecond, 80 * time.Millisecond, 700 * time.Millisecond} {
			w := newWindowedLink(slowLink{rate: rate, burst: 20_000, way: way}, leastWindow)
			w.drain(10*time.Minute, fullPack, 0)
			if w.behind > 2*time.Second && way < lateAfter {
				t.Errorf("%.0f B/s, %v away: something else would have waited %v", rate, way, w.behind)
			}
			if share := float64(w.sent) / rate / (10 * time.Minute).Seconds(); share < 0.8 {
				t.Errorf("%.0f B/s, %v away: used %.2f of the link", rate, way, share)
			}
		}
	}
}

// TestWindowOnFastLink: a server that takes what comes soon has so much before
// it that it never waits for more.
func TestWindowOnFastLink(t *testing.T) {
	w := newWindowedLink(slowLink{rate: 10e6, way: 2 * time.Millisecond}, leastWindow)
	w.drain(2*time.Second, fullPack, 0)
	if len(w.under) < 30 {
		t.Errorf("after 2 s %d packs are under way, window %d", len(w.under), w.window.size)
	}
}

// TestWindowFollows: a link that becomes slow is known to be after few packs.
func TestWindowFollows(t *testing.T) {
	w := newWindowedLink(slowLink{rate: 100_000, way: 10 * time.Millisecond}, leastWindow)
	w.drain(time.Minute, fullPack, 0)
	if w.window.size < 50_000 {
		t.Fatalf("on 100 kB/s the window is %d", w.window.size)
	}
	w.link.rate = 10_000
	w.drain(time.Minute, fullPack, 0)
	w.behind = 0
	w.drain(10*time.Minute, fullPack, 0)
	if w.behind > 2*time.Second {
		t.Errorf("a minute after the link became slow something else would have waited %v", w.behind)
	}
	w.link.rate = 100_000
	w.drain(time.Minute, fullPack, 0)
	if w.window.size < 50_000 {
		t.Errorf("a minute after the link became quick again the window is %d", w.window.size)
	}
}

// TestWindowLearnsNothingFromLittle: single readings are answered promptly on
// every link, which does not say that much would be.
func TestWindowLearnsNothingFromLittle(t *testing.T) {
	w := newWindowedLink(slowLink{rate: 3000, burst: 20_000, way: time.Millisecond}, leastWindow)
	w.drain(24*time.Hour, 900, 10*time.Second)
	if w.window.size != leastWindow {
		t.Errorf("the window grew to %d", w.window.size)
	}
}

// TestWindowForgets: what got no answer makes room again.
func TestWindowForgets(t *testing.T) {
	w := window{size: leastWindow}
	s := w.send(leastWindow, time.Now())
	if w.room() != 0 {
		t.Error("there is room in a full window")
	}
	w.forget(s)
	if w.room() != leastWindow {
		t.Errorf("room for %d bytes", w.room())
	}
}
