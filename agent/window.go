package agent

import "time"

const (
	// leastWindow lets a pack be worth its envelope, which has 800 bytes.
	leastWindow = 2 << 10
	mostWindow  = 1 << 20
	// lateAfter is how much longer than the quickest one an answer may take. A
	// shaper answers at once and then takes nothing for a while, so a `now`
	// may wait for the pack that was answered last and for the next: twice
	// this, and the time of some other `now`, must be less than two seconds.
	lateAfter = 700 * time.Millisecond
	// yieldsFor is how long the log lets others go ahead at most.
	yieldsFor = 2 * time.Second
	// slowFor is how long a link counts as slow that was.
	slowFor = 10 * time.Second
	// growth is which share of what was answered in time the window grows by:
	// so little, and half of it at first, that a shaper which lets 20 kB pass
	// at once, and then 3 kB a second, does not have it grow far.
	growth  = 32
	atFirst = 2 * leastWindow
)

// A window bounds the bytes of the log that are sent and not yet answered.
// Whatever is sent waits behind them, wherever that is: in our socket, in the
// server's, or before its shaper. The window learns by the answers: it grows
// as long as they come about as quickly as the quickest, and shrinks where
// they come late. So what the link takes in lateAfter is under way in the end,
// as in LEDBAT (RFC 6817).
//
// A window is for one session.
type window struct {
	size     int
	out      int           // bytes that are not answered
	quickest time.Duration // answer; 0 before the first
	shrunk   time.Time
	slow     time.Time // when an answer was last late, or nearly
	sent     time.Time // when a pack last was
	answered time.Time // when one last was
}

// A sending is a pack that is under way.
type sending struct {
	at     time.Time
	bytes  int
	out    int  // bytes not answered when it was sent, with its own
	rested bool // the link had had none for a while
}

// room gives how many bytes may be sent, 0 being none. There is room where
// nothing is under way, and otherwise only where half of the window is free, so
// that packs are not cut to crumbs.
func (w *window) room() int {
	if w.out > w.size/2 {
		return 0
	}
	return w.size - w.out
}

// yields gives how long a pack is to let those go ahead that are not of the log:
// on a slow link each would wait for it. The log goes on all the same.
func (w *window) yields(now time.Time) time.Duration {
	if !w.isSlow(now) {
		return 0
	}
	return max(0, yieldsFor-now.Sub(w.sent))
}

func (w *window) isSlow(now time.Time) bool { return !w.slow.IsZero() && now.Sub(w.slow) < slowFor }

// send notes that a pack of so many bytes goes out now.
func (w *window) send(bytes int, now time.Time) sending {
	rested := w.out == 0 && now.Sub(w.answered) > lateAfter/8
	w.out += bytes
	w.sent = now
	return sending{now, bytes, w.out, rested}
}

// forget ends a pack that got no answer which says anything of the link.
func (w *window) forget(s sending) { w.out -= s.bytes }

// answer ends a pack that was answered now.
func (w *window) answer(s sending, now time.Time) {
	w.out -= s.bytes
	w.answered = now
	took := now.Sub(s.at)
	if w.quickest == 0 || took < w.quickest {
		w.quickest = took
	}
	late := took - w.quickest
	if late > lateAfter/2 {
		w.slow = now
	}
	switch {
	case late <= lateAfter:
		// Otherwise it says nothing of a bigger one, or of one after the other.
		if s.out >= w.size/2 && !(s.rested && w.isSlow(now)) {
			inTime := float64(lateAfter-late) / float64(lateAfter)
			grown := float64(s.bytes) / growth * inTime
			if w.size < atFirst {
				grown /= 2
			}
			w.size = min(mostWindow, w.size+int(grown))
		}
	case !s.at.Before(w.shrunk): // else it was sent into the old window
		fits := int(float64(s.out) * float64(lateAfter) / float64(late))
		w.size = max(leastWindow, w.size/2, min(fits, w.size))
		w.shrunk = now
	}
}
