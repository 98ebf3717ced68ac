package framing

import "fmt"

// noiseReport is after how many bytes without a frame that is said, so that a
// wrong baud rate does not look like silence.
const noiseReport = 4 << 10

// A Frame is what a framer found: a frame, or why there is none.
type Frame struct {
	// Bytes are those of the frame, whole, as [Rule.Open] takes them; a line is
	// without its end. They are valid until the function that was given the
	// Frame returns, and nil beside Err.
	Bytes []byte
	// Err says in one line what was wrong with bytes that could have been a
	// frame, or that there is nothing but noise. What follows one is not told
	// again before a good frame.
	Err error
	// Skipped are the bytes that were no part of a frame, since the Frame before.
	Skipped int
}

// A Framer cuts frames out of a stream of bytes. It belongs to one goroutine.
type Framer struct {
	rule    Rule
	cutter  cutter
	max     int
	lines   bool
	buf     []byte
	tried   int // bytes of buf in which nothing was found so far
	skipped int // and not yet told
	untold  int // since a frame or a fault
	faulty  bool
}

// A cutter knows one kind of frames.
type cutter interface {
	// next looks at the beginning of b. drop are the bytes there that belong to
	// no frame, err why they do not, where they could have; size is that of the
	// whole frame behind them. All zero: more must come first. Nothing was found
	// before in the first tried bytes. idle is set where nothing follows.
	next(b []byte, tried int, idle bool) (drop, size int, err error)
	// body gives what is in a frame that next found good.
	body(frame []byte) []byte
}

// New makes a framer, which has heard nothing. The rule is one that
// [Rule.Check] finds nothing wrong with.
func New(r Rule) *Framer {
	return &Framer{rule: r, cutter: r.cutter(), max: r.max(), lines: r.IsLines()}
}

// Cut takes one more piece of the stream, and hands over in order the frames
// that end in it, and faults.
func (f *Framer) Cut(b []byte, take func(Frame)) {
	for len(b) > 0 {
		n := min(len(b), f.max+1-len(f.buf))
		f.buf = append(f.buf, b[:n]...)
		b = b[n:]
		f.scan(false, take)
	}
}

// Idle says that the device was silent for longer than it is within a frame: what
// is unfinished ends, or is given up where nothing else tells that it does.
func (f *Framer) Idle(take func(Frame)) { f.scan(true, take) }

// Reset forgets what is unfinished, for a port that was opened anew.
func (f *Framer) Reset() {
	*f = Framer{rule: f.rule, cutter: f.rule.cutter(), max: f.max, lines: f.lines, buf: f.buf[:0]}
}

// scan takes all frames out of the buffer.
func (f *Framer) scan(idle bool, take func(Frame)) {
	rest := f.buf
	for len(rest) > 0 {
		drop, size, err := f.cutter.next(rest, f.tried, idle)
		if drop+size == 0 && len(rest) > f.max {
			// No frame ends in all this: half of it is kept for one that began there.
			drop, err = len(rest)/2, fmt.Errorf("a frame has no end within %d bytes", f.max)
		}
		if drop+size == 0 {
			break
		}
		f.skipped += drop
		f.untold += drop
		f.tell(err, take)
		if size > 0 {
			f.hand(rest[drop:drop+size:drop+size], take)
		}
		rest, f.tried = rest[drop+size:], 0
	}
	if len(rest) < len(f.buf) {
		f.buf = f.buf[:copy(f.buf, rest)]
	}
	f.tried = len(f.buf)
}

// hand hands over a frame, a line without its end; a blank line is none.
func (f *Framer) hand(frame []byte, take func(Frame)) {
	if f.lines {
		if frame = frame[:len(frame)-1]; len(frame) == 0 {
			return
		}
	}
	skipped := f.skipped
	f.skipped, f.untold, f.faulty = 0, 0, false
	take(Frame{Bytes: frame, Skipped: skipped})
}

// tell hands over the first fault since a frame, and after much noise another.
func (f *Framer) tell(err error, take func(Frame)) {
	switch {
	case f.untold >= noiseReport:
		err = fmt.Errorf("%d bytes without a frame; is the baud rate right?", f.untold)
	case err == nil || f.faulty:
		return
	}
	skipped := f.skipped
	f.faulty, f.untold, f.skipped = true, 0, 0
	take(Frame{Err: err, Skipped: skipped})
}
