package framing

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
)

// Bounds of a frame, in bytes.
const (
	defaultMax = 4 << 10
	mostMax    = 16 << 10
)

// A Rule says how frames are marked. One of its kinds is set; the zero Rule is
// lines.
type Rule struct {
	Line     *struct{} `yaml:"line" doc:"Lines of text, which CR, LF or both end."`
	JSON     *struct{} `yaml:"json" doc:"JSON objects, of one line or of several; what stands before or between is no part of them."`
	Telegram *Telegram `yaml:"telegram" doc:"Lines of text from one that begins with a character to one that begins with another (DSMR, IEC 62056-21)."`
	Escape   *struct{} `yaml:"escape" doc:"Version 1 of the transport of SML: escape sequences of four bytes 1b begin and end it, with a CRC-16."`
	HDLC     *struct{} `yaml:"hdlc" doc:"A flag 7e on both sides; 7d before a byte whose bit 5 was changed (RFC 1662 section 4.2), as SHDLC has it."`
	SLIP     *struct{} `yaml:"slip" doc:"A byte c0 on both sides, db dc and db dd for c0 and db (RFC 1055)."`
	Length   *Length   `yaml:"length" doc:"A header says how long the frame is."`
	Fixed    *Fixed    `yaml:"fixed" doc:"Frames of one length."`
	Closed   *Closed   `yaml:"closed" doc:"Everything up to a sequence is one block (VE.Direct)."`
	Modbus   *struct{} `yaml:"modbus" doc:"Modbus RTU: the function says how long it is, and a CRC-16 that it is whole."`
	MIDI     *struct{} `yaml:"midi" doc:"The first byte has bit 7, those of its data do not; f0 to f7 is a message of any length (Firmata)."`

	Max   int    `yaml:"max" min:"0" max:"16384" doc:"The longest frame, in bytes; 4096 if not said."`
	Sum   string `yaml:"sum" enum:"sum8,not_sum8,zero_sum8,sum16,crc8,crc16_modbus" doc:"Its checksum: the sum of the bytes, its complement, what makes the sum 0, the sum in 16 bits (high first), a CRC-8 of polynomial 07, the CRC of Modbus (low first). It and what stands after it is taken away."`
	First int    `yaml:"first" min:"0" max:"4095" doc:"Place of the first byte that the checksum is of; the last is the one before it."`
	After int    `yaml:"after" min:"0" max:"16" doc:"How many bytes stand after the checksum."`
}

// Telegram is lines of text that belong together.
type Telegram struct {
	Start string `yaml:"start,required" doc:"The character with which the first line begins."`
	End   string `yaml:"end,required" doc:"The character with which the last line begins."`
	Sum   string `yaml:"sum" enum:"crc16_arc,bcc" doc:"crc16_arc: four hexadecimal digits in the last line, which old devices leave out. bcc: after the last line 03 and the exclusive or of all after 02, where the device sends 02."`
	Parts bool   `yaml:"parts" doc:"Lines of a telegram may come by themselves, where somebody else cut it."`
	Seven bool   `yaml:"seven" doc:"The bytes have seven bits; the eighth is parity, where the port did not take it away."`
}

// Length is a header with a length in it.
type Length struct {
	Start  string `yaml:"start,required" doc:"Bytes in hex with which it begins."`
	At     int    `yaml:"at,required" min:"1" max:"16" doc:"Place of the length."`
	Type   string `yaml:"type" enum:"u8,u16,u16_low_first" doc:"What stands there; u8 if not said."`
	And    int    `yaml:"and" min:"0" max:"16" doc:"Place of one byte more to add; 0 is none."`
	Extra  int    `yaml:"extra" min:"0" max:"64" doc:"How many bytes the length does not count."`
	Header int    `yaml:"header" min:"0" max:"16" doc:"Place of a checksum of the header alone, of the kind of the frame's; 0 is none. It is of the bytes after start."`
}

// Fixed is a frame of one length.
type Fixed struct {
	Start string `yaml:"start,required" doc:"Bytes in hex with which it begins."`
	End   string `yaml:"end" doc:"Bytes in hex with which it ends."`
	Size  int    `yaml:"size,required" min:"2" max:"4096" doc:"How long it is."`
}

// Closed is a block that only its end marks.
type Closed struct {
	End   string `yaml:"end,required" doc:"Text after which the block ends."`
	Tail  int    `yaml:"tail" min:"0" max:"16" doc:"How many bytes follow that."`
	Aside string `yaml:"aside" doc:"A character that begins a line of something else, which is no part of the block."`
}

// IsLines reports whether frames are lines of text, which the zero Rule is.
func (r Rule) IsLines() bool { return r.Line != nil || r.kinds() == 0 }

// Checked reports whether a checksum proves that a frame is whole.
func (r Rule) Checked() bool {
	return r.Sum != "" || r.Escape != nil || r.Modbus != nil || r.Telegram != nil && r.Telegram.Sum != ""
}

// String says for people what frames are.
func (r Rule) String() string {
	what := "lines"
	switch {
	case r.JSON != nil:
		what = "JSON objects"
	case r.Telegram != nil:
		what = fmt.Sprintf("telegrams, lines from %s to %s", r.Telegram.Start, r.Telegram.End)
	case r.Escape != nil:
		what = "frames of SML"
	case r.HDLC != nil:
		what = "frames between flags 7e"
	case r.SLIP != nil:
		what = "frames between c0"
	case r.Length != nil:
		what = fmt.Sprintf("frames that begin with %s and say their length", r.Length.Start)
	case r.Fixed != nil:
		what = fmt.Sprintf("frames of %d bytes that begin with %s", r.Fixed.Size, r.Fixed.Start)
	case r.Closed != nil:
		what = fmt.Sprintf("blocks that end with %q", r.Closed.End)
	case r.Modbus != nil:
		what = "messages of Modbus RTU"
	case r.MIDI != nil:
		what = "messages whose first byte has bit 7"
	}
	if r.Checked() {
		what += ", with a checksum"
	}
	return what
}

func (r Rule) kinds() (n int) {
	for _, set := range []bool{r.Line != nil, r.JSON != nil, r.Telegram != nil, r.Escape != nil, r.HDLC != nil, r.SLIP != nil, r.Length != nil, r.Fixed != nil, r.Closed != nil, r.Modbus != nil, r.MIDI != nil} {
		if set {
			n++
		}
	}
	return n
}

// Check says what is wrong with a rule.
func (r Rule) Check() error {
	if r.kinds() > 1 {
		return errors.New("it has several kinds of frames, keep one")
	}
	if r.Sum == "" && r.First+r.After > 0 {
		return errors.New("first and after are of a checksum, add sum")
	}
	if r.Sum != "" && (r.Line != nil || r.JSON != nil || r.Telegram != nil || r.Escape != nil || r.Modbus != nil || r.MIDI != nil || r.kinds() == 0) {
		return errors.New("this kind of frames has its own checksum or none, remove sum")
	}
	one := func(key, s string) error {
		if len(s) != 1 {
			return fmt.Errorf("%s is not one character", key)
		}
		return nil
	}
	bytes := func(key, s string, least int) error {
		if b, err := hex.DecodeString(s); err != nil || len(b) < least || len(b) > 16 {
			return fmt.Errorf("%s is not bytes in hex", key)
		}
		return nil
	}
	switch {
	case r.Telegram != nil:
		return errors.Join(one("start", r.Telegram.Start), one("end", r.Telegram.End))
	case r.Length != nil:
		return bytes("start", r.Length.Start, 1)
	case r.Fixed != nil:
		return errors.Join(bytes("start", r.Fixed.Start, 1), bytes("end", r.Fixed.End, 0))
	case r.Closed != nil && (r.Closed.End == "" || len(r.Closed.Aside) > 1):
		return errors.New("closed needs an end, and aside is one character")
	}
	return nil
}

// max is the longest frame.
func (r Rule) max() int {
	if r.Max == 0 {
		return defaultMax
	}
	return min(r.Max, mostMax)
}

// Open gives what is in a frame: without escapes, checksum and what follows it.
// The error says why it is not a whole frame, or that the checksum is wrong.
// What is given may be part of it.
func (r Rule) Open(frame []byte) ([]byte, error) {
	if r.IsLines() {
		return frame, nil
	}
	if len(frame) == 0 {
		return nil, errors.New("an empty frame")
	}
	if len(frame) > r.max() {
		return nil, fmt.Errorf("%d bytes are more than the %d of a frame", len(frame), r.max())
	}
	c := r.cutter()
	if t, ok := c.(telegramCutter); ok {
		if t.rule.Parts && isPart(frame, t.rule.Start) {
			return c.body(frame), nil
		}
		if frame = frame[t.question(frame):]; len(frame) == 0 {
			return nil, errors.New("a question, and no answer")
		}
	}
	drop, size, err := c.next(frame, 0, true)
	if r.JSON != nil && err == nil { // words may stand around
		if drop > 0 {
			frame = frame[drop:]
			drop, size, err = c.next(frame, 0, true)
		}
		frame = frame[:max(size, len(bytes.TrimSpace(frame)))]
	}
	switch {
	case err != nil:
		return nil, err
	case drop > 0:
		return nil, errors.New("not the beginning of a frame")
	case size == 0:
		return nil, fmt.Errorf("not a whole frame, %d bytes", len(frame))
	case size < len(frame):
		return nil, fmt.Errorf("%d bytes follow the frame", len(frame)-size)
	}
	return c.body(frame), nil
}

// isPart reports whether a text is lines without the first one of a telegram.
func isPart(text []byte, start string) bool {
	return !bytes.Contains(text, []byte(start)) && !bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\r' && r != '\n' || r > '~' })
}
