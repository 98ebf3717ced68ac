package serial

import (
	"fmt"
	"unicode/utf8"
)

const (
	maxLine = 4 << 10 // bytes, without the line's end

	// dropReport is after how many dropped bytes a line that does not end is
	// reported, so that a wrong baud rate does not look like silence.
	dropReport = 64 << 10
)

// A framer cuts lines out of a stream of bytes. Lines end with CR, LF or both;
// blank ones are nothing. A line that is too long, or that has bytes in it
// which no text has, is dropped whole: what noise left of it could be read as
// something that the device never said. The next line begins after its end.
type framer struct {
	line    []byte
	endless bool // the line is too long, its rest is dropped
	dropped int  // bytes of it dropped and not yet reported
}

// A frame is what a framer found: a line, or why there is none.
type frame struct {
	line []byte // valid until the next call of cut
	err  error
}

// cut takes one more piece of the stream and hands over, in order, the frames
// that end in it.
func (f *framer) cut(b []byte, take func(frame)) {
	for _, c := range b {
		switch {
		case c == '\r' || c == '\n':
			f.end(take)
		case f.endless:
			if f.dropped++; f.dropped == dropReport {
				f.report(take)
			}
		case len(f.line) == maxLine:
			f.endless, f.dropped, f.line = true, maxLine+1, f.line[:0]
		default:
			f.line = append(f.line, c)
		}
	}
}

// end ends the line.
func (f *framer) end(take func(frame)) {
	switch {
	case f.endless:
		f.report(take)
		f.endless = false
	case len(f.line) == 0:
	case !printable(f.line):
		take(frame{err: fmt.Errorf("cannot read a line of %d bytes: it has noise in it, %.32q", len(f.line), f.line)})
	default:
		take(frame{line: f.line})
	}
	f.line = f.line[:0]
}

func (f *framer) report(take func(frame)) {
	if f.dropped > 0 {
		take(frame{err: fmt.Errorf("cannot read a line of more than %d bytes: %d bytes dropped; is the baud rate right?", maxLine, f.dropped)})
	}
	f.dropped = 0
}

// printable reports whether b is UTF-8 text without control characters, tab
// aside.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return utf8.Valid(b)
}
