package framing

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf8"
)

var errSum = errors.New("the checksum is wrong")

// cutter makes the one of the rule's kind.
func (r Rule) cutter() cutter {
	switch {
	case r.JSON != nil:
		return jsonCutter{}
	case r.Telegram != nil:
		return telegramCutter{*r.Telegram}
	case r.Escape != nil:
		return escapeCutter{}
	case r.HDLC != nil:
		return stuffedCutter{flag: 0x7e, escape: 0x7d, check: r.check()}
	case r.SLIP != nil:
		return stuffedCutter{flag: 0xc0, escape: 0xdb, slip: true, check: r.check()}
	case r.Length != nil:
		return lengthCutter{*r.Length, unhex(r.Length.Start), r.max(), r.check()}
	case r.Fixed != nil:
		return fixedCutter{*r.Fixed, unhex(r.Fixed.Start), unhex(r.Fixed.End), r.check()}
	case r.Closed != nil:
		return closedCutter{*r.Closed, r.check()}
	case r.Modbus != nil:
		return modbusCutter{}
	case r.MIDI != nil:
		return midiCutter{}
	}
	return &lineCutter{max: r.max()}
}

// unhex reads what Rule.Check has seen.
func unhex(s string) []byte {
	b, _ := hex.DecodeString(s)
	return b
}

// A check is a checksum in its place.
type check struct {
	sum          sum
	is           bool
	first, after int
}

func (r Rule) check() check {
	s, ok := sumOf(r.Sum)
	return check{s, ok, r.First, r.After}
}

// at gives the place of the checksum in a frame without escapes.
func (c check) at(frame []byte) int { return len(frame) - c.after - c.sum.size }

func (c check) holds(frame []byte) error {
	if !c.is {
		return nil
	}
	at := c.at(frame)
	if at < c.first {
		return fmt.Errorf("%d bytes are too few for a frame", len(frame))
	}
	if !c.sum.fits(frame[at:], frame[c.first:at]) {
		return errSum
	}
	return nil
}

func (c check) body(frame []byte) []byte {
	if !c.is {
		return frame
	}
	return frame[:c.at(frame)]
}

// untilStart gives how many bytes stand before what may be a start, the end of b
// being the beginning of one perhaps.
func untilStart(b, start []byte) int {
	if i := bytes.Index(b, start); i >= 0 {
		return i
	}
	for n := min(len(start)-1, len(b)); n > 0; n-- {
		if bytes.HasSuffix(b, start[:n]) {
			return len(b) - n
		}
	}
	return len(b)
}

// A lineCutter cuts text. A line that is too long, or that has bytes in it which
// no text has, is dropped whole: what noise left of it could be read as something
// that the device never said. The next line begins after its end. Blank lines are
// nothing.
type lineCutter struct {
	max     int
	endless bool // the line is too long, and its rest is dropped
}

func (c *lineCutter) next(b []byte, tried int, _ bool) (drop, size int, err error) {
	end := bytes.IndexAny(b[tried:], "\r\n")
	switch {
	case end < 0 && c.endless:
		return len(b), 0, nil
	case end < 0 && len(b) > c.max:
		c.endless = true
		return len(b), 0, fmt.Errorf("a line of more than %d bytes; is the baud rate right?", c.max)
	case end < 0:
		return 0, 0, nil
	}
	end += tried
	line := b[:end]
	switch {
	case end == 0 && !c.endless:
		return 0, 1, nil
	case c.endless:
		c.endless = false
		return end + 1, 0, nil
	case !printable(line):
		return end + 1, 0, fmt.Errorf("a line of %d bytes has noise in it, %.32q", len(line), line)
	}
	return 0, end + 1, nil
}

func (c *lineCutter) body(frame []byte) []byte { return frame }

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

// A jsonCutter cuts JSON objects, by their braces. A line that begins with a brace,
// or with a word, while one is open is not part of it: its end was lost.
type jsonCutter struct{}

func (jsonCutter) next(b []byte, _ int, _ bool) (drop, size int, err error) {
	if drop = bytes.IndexByte(b, '{'); drop != 0 {
		if drop < 0 {
			drop = len(b)
		}
		return drop, 0, nil
	}
	depth, quoted, escaped := 0, false, false
	for i, octet := range b {
		switch {
		case i > 0 && (b[i-1] == '\n' || b[i-1] == '\r') && (octet == '{' || unicode.IsLetter(rune(octet)) && !bytes.ContainsRune([]byte("tfnNI"), rune(octet))):
			return i, 0, errors.New("an object has no end")
		case octet < ' ' && octet != '\t' && octet != '\n' && octet != '\r' || octet == 0x7f:
			return i, 0, errors.New("an object has noise in it")
		case escaped:
			escaped = false
		case quoted && octet == '\\':
			escaped = true
		case octet == '"':
			quoted = !quoted
		case quoted:
		case octet == '{':
			depth++
		case octet == '}':
			if depth--; depth == 0 {
				if !utf8.Valid(b[:i+1]) {
					return 1, 0, errors.New("an object has noise in it")
				}
				return 0, i + 1, nil
			}
		}
	}
	return 0, 0, nil
}

func (jsonCutter) body(frame []byte) []byte { return frame }

// A telegramCutter cuts lines that belong together. A first line within a
// telegram is that of the next one: the end of this one was lost.
type telegramCutter struct{ rule Telegram }

// endLine is more than the bytes of a last line, and of what follows it.
const endLine = 16

func (c telegramCutter) next(b []byte, tried int, idle bool) (drop, size int, err error) {
	start, end := c.rule.Start[0], c.rule.End[0]
	if c.plain(b[0]) != start {
		for drop < len(b) && c.plain(b[drop]) != start {
			drop++
		}
		return drop, 0, nil
	}
	if drop = c.question(b); drop > 0 {
		return drop, 0, nil
	}
	for i := max(tried-endLine, 1); i < len(b); i++ {
		if before := c.plain(b[i-1]); before != '\n' && before != '\r' {
			continue
		}
		switch c.plain(b[i]) {
		case start:
			return i, 0, errors.New("a telegram has no end")
		case end:
			size, whole := c.whole(b, i, idle)
			if !whole {
				return 0, 0, nil
			}
			if err := c.holds(b[:size], i); err != nil {
				return 1, 0, err // it may have begun later, within a line
			}
			return 0, size, nil
		}
	}
	return 0, 0, nil
}

// question gives how many bytes the line has with which the device was asked,
// which an optical head hears too; 0 if there is none.
func (c telegramCutter) question(b []byte) int {
	if len(b) < 2 || c.plain(b[0]) != c.rule.Start[0] || c.plain(b[1]) != '?' {
		return 0
	}
	for i, octet := range b {
		if c.plain(octet) == '\n' {
			return i + 1
		}
	}
	return 0
}

func (c telegramCutter) plain(octet byte) byte {
	if c.rule.Seven {
		return octet & 0x7f
	}
	return octet
}

// whole gives the size of a telegram whose last line begins at a place, once that
// is known.
func (c telegramCutter) whole(b []byte, last int, idle bool) (int, bool) {
	size := len(b)
	for i := last; i < len(b); i++ {
		if c.plain(b[i]) == '\n' {
			size = i + 1
			break
		}
	}
	switch {
	case size == len(b) && c.plain(b[size-1]) != '\n':
		return size, idle // the end of the line did not come yet, or never does
	case c.rule.Sum != "bcc" || size < len(b) && c.plain(b[size]) != 0x03:
		return size, true
	case size+2 <= len(b):
		return size + 2, true
	}
	return size, idle && size == len(b)
}

// holds compares the checksum where there is one.
func (c telegramCutter) holds(telegram []byte, last int) error {
	switch c.rule.Sum {
	case "crc16_arc":
		text := bytes.TrimRight(telegram[last+1:], "\r\n")
		if len(text) == 0 {
			return nil
		}
		if len(text) > 4 {
			return errSum
		}
		var padded [4]byte
		copy(padded[:], "0000")
		copy(padded[4-len(text):], text) // some leave zeros out
		var sum [2]byte
		if _, err := hex.Decode(sum[:], padded[:]); err != nil || uint16(sum[0])<<8|uint16(sum[1]) != CRC16ARC(telegram[:last+1]) {
			return errSum
		}
	case "bcc":
		n := len(telegram)
		begin := slices.IndexFunc(telegram, func(octet byte) bool { return c.plain(octet) == 0x02 })
		ended := c.plain(telegram[n-2]) == 0x03
		switch {
		case begin < 0 && !ended:
			return nil
		case begin < 0 || !ended || begin > n-2:
			return errSum
		}
		var sum byte
		for _, octet := range telegram[begin+1 : n-1] {
			sum ^= octet & 0x7f
		}
		if sum != telegram[n-1]&0x7f {
			return errSum
		}
	}
	return nil
}

func (c telegramCutter) body(frame []byte) []byte {
	if !c.rule.Seven {
		return frame
	}
	text := make([]byte, len(frame))
	for i, octet := range frame {
		text[i] = octet & 0x7f
	}
	return text
}

// An escapeCutter cuts the transport of SML, version 1 (BSI TR-03109-1 Annex IV,
// section 8). All sequences stand at places that are multiples of four, counted
// from the beginning; one in the content is doubled.
type escapeCutter struct{}

var (
	smlEscape = []byte{0x1b, 0x1b, 0x1b, 0x1b}
	smlBegin  = []byte{0x1b, 0x1b, 0x1b, 0x1b, 0x01, 0x01, 0x01, 0x01}
)

func (escapeCutter) next(b []byte, _ int, _ bool) (drop, size int, err error) {
	if drop = untilStart(b, smlBegin); drop > 0 || len(b) < 8 {
		return drop, 0, nil
	}
	// A byte more or less in the content moves all that follows. A beginning at
	// any place is that of the next frame, where it is not the second half of
	// a doubled sequence.
	cut := len(b)
	for from := 8; from < len(b); {
		i := bytes.Index(b[from:], smlBegin)
		if i < 0 {
			break
		}
		if from += i; !bytes.HasSuffix(b[:from], smlEscape) {
			cut = from
			break
		}
		from++
	}
	for i := 8; i+8 <= cut; {
		if !bytes.Equal(b[i:i+4], smlEscape) {
			i += 4
			continue
		}
		switch {
		case bytes.Equal(b[i+4:i+8], smlEscape):
			i += 8
		case b[i+4] == 0x1a:
			if b[i+5] > 3 || !smlSum(b[:i+8]) {
				return 8, 0, errSum
			}
			return 0, i + 8, nil
		default:
			return 8, 0, fmt.Errorf("an escape sequence that does not exist, %x", b[i+4:i+8])
		}
	}
	if cut < len(b) {
		return cut, 0, errors.New("a frame has no end")
	}
	return 0, 0, nil
}

// smlSum compares the checksum: that of the standard, low byte first, or what some
// meters send in its place, high byte first (volkszaehler/libsml issue 75).
func smlSum(frame []byte) bool {
	n := len(frame) - 2
	sum := uint16(frame[n]) | uint16(frame[n+1])<<8
	return sum == CRC16X25(frame[:n]) || sum>>8|sum<<8 == CRC16Kermit(frame[:n])
}

// body is what the escape sequences stand around, without the bytes that fill it up.
func (escapeCutter) body(frame []byte) []byte {
	end := len(frame) - 8
	content := make([]byte, 0, end-8)
	for i := 8; i < end; i += 4 {
		if bytes.Equal(frame[i:i+4], smlEscape) {
			i += 4
		}
		content = append(content, frame[i:i+4]...)
	}
	return content[:max(0, len(content)-int(frame[end+5]))]
}

// A stuffedCutter cuts what stands between flags.
type stuffedCutter struct {
	flag, escape byte
	slip         bool
	check        check
}

func (c stuffedCutter) next(b []byte, tried int, _ bool) (drop, size int, err error) {
	if drop = bytes.IndexByte(b, c.flag); drop != 0 {
		if drop < 0 {
			drop = len(b)
		}
		return drop, 0, nil
	}
	for len(b) > drop+1 && b[drop+1] == c.flag {
		drop++ // between two frames
	}
	if drop > 0 {
		return drop, 0, nil
	}
	end := bytes.IndexByte(b[max(tried, 1):], c.flag)
	if end < 0 {
		return 0, 0, nil
	}
	size = max(tried, 1) + end + 1
	plain, err := c.plain(b[:size])
	if err == nil {
		err = c.check.holds(plain)
	}
	if err != nil {
		return size - 1, 0, err // the flag may begin the next one
	}
	return 0, size, nil
}

// plain gives the frame without escapes.
func (c stuffedCutter) plain(frame []byte) ([]byte, error) {
	if bytes.IndexByte(frame, c.escape) < 0 {
		return frame, nil
	}
	plain := make([]byte, 0, len(frame))
	for i := 0; i < len(frame); i++ {
		octet := frame[i]
		if octet == c.escape {
			i++ // the flag at the end stands behind it
			octet = frame[i] ^ 0x20
			switch {
			case frame[i] == c.flag:
				return nil, errors.New("a frame was given up")
			case c.slip && frame[i] == 0xdc:
				octet = 0xc0
			case c.slip && frame[i] == 0xdd:
				octet = 0xdb
			case c.slip:
				return nil, fmt.Errorf("an escape that does not exist, %02x", frame[i])
			}
		}
		plain = append(plain, octet)
	}
	return plain, nil
}

func (c stuffedCutter) body(frame []byte) []byte {
	plain, err := c.plain(frame)
	if err != nil {
		return nil
	}
	return c.check.body(plain)
}

// A lengthCutter cuts what says its length.
type lengthCutter struct {
	rule  Length
	start []byte
	max   int
	check check
}

func (c lengthCutter) next(b []byte, _ int, idle bool) (drop, size int, err error) {
	if drop = untilStart(b, c.start); drop > 0 {
		return drop, 0, nil
	}
	header := max(c.rule.At+1, c.rule.And+1, c.rule.Header+1)
	if c.rule.Type == "u16" || c.rule.Type == "u16_low_first" {
		header = max(header, c.rule.At+2)
	}
	if len(b) < header {
		return c.cut(b, idle)
	}
	if at := c.rule.Header; at > 0 && c.check.is && !c.check.sum.fits(b[at:], b[len(c.start):at]) {
		return 1, 0, errors.New("the checksum of the header is wrong")
	}
	at := c.rule.At
	switch c.rule.Type {
	case "u16":
		size = int(b[at])<<8 | int(b[at+1])
	case "u16_low_first":
		size = int(b[at]) | int(b[at+1])<<8
	default:
		size = int(b[at])
	}
	if c.rule.And > 0 {
		size += int(b[c.rule.And])
	}
	size += c.rule.Extra
	switch {
	case size < header || size > c.max:
		return 1, 0, fmt.Errorf("a frame that says it has %d bytes", size)
	case size > len(b):
		return c.cut(b, idle)
	}
	if err = c.check.holds(b[:size]); err != nil {
		return 1, 0, err
	}
	return 0, size, nil
}

// cut gives up what no more comes of.
func (c lengthCutter) cut(b []byte, idle bool) (drop, size int, err error) {
	if idle {
		return 1, 0, fmt.Errorf("a frame ends after %d bytes", len(b))
	}
	return 0, 0, nil
}

func (c lengthCutter) body(frame []byte) []byte { return c.check.body(frame) }

// A fixedCutter cuts frames of one length.
type fixedCutter struct {
	rule       Fixed
	start, end []byte
	check      check
}

func (c fixedCutter) next(b []byte, _ int, idle bool) (drop, size int, err error) {
	if drop = untilStart(b, c.start); drop > 0 {
		return drop, 0, nil
	}
	size = c.rule.Size
	switch {
	case len(b) < size && idle:
		return 1, 0, fmt.Errorf("a frame ends after %d bytes of %d", len(b), size)
	case len(b) < size:
		return 0, 0, nil
	case !bytes.HasSuffix(b[:size], c.end):
		return 1, 0, fmt.Errorf("a frame does not end with %x", c.end)
	}
	if err = c.check.holds(b[:size]); err != nil {
		return 1, 0, err
	}
	return 0, size, nil
}

func (c fixedCutter) body(frame []byte) []byte { return c.check.body(frame) }

// A closedCutter cuts blocks that only their end marks. One whose checksum is
// wrong is dropped whole: its end is where the next one begins. What stands aside
// counts for nothing.
type closedCutter struct {
	rule  Closed
	check check
}

func (c closedCutter) next(b []byte, tried int, _ bool) (drop, size int, err error) {
	from := max(0, tried-len(c.rule.End))
	end := bytes.Index(b[from:], []byte(c.rule.End))
	if end < 0 {
		return 0, 0, nil
	}
	size = from + end + len(c.rule.End) + c.rule.Tail
	if size > len(b) {
		return 0, 0, nil
	}
	if err = c.check.holds(c.plain(b[:size])); err != nil {
		return size, 0, err
	}
	return 0, size, nil
}

// plain gives the block without what stands aside, up to the end of its line.
func (c closedCutter) plain(block []byte) []byte {
	end := len(block) - c.rule.Tail
	if c.rule.Aside == "" || !bytes.Contains(block[:end], []byte(c.rule.Aside)) {
		return block
	}
	plain := make([]byte, 0, len(block))
	for i := 0; i < end; i++ {
		if block[i] == c.rule.Aside[0] {
			for i < end && block[i] != '\n' {
				i++
			}
			continue
		}
		plain = append(plain, block[i])
	}
	return append(plain, block[end:]...)
}

func (c closedCutter) body(frame []byte) []byte { return c.check.body(c.plain(frame)) }

// A modbusCutter cuts messages of Modbus RTU, requests and answers: which it is,
// only the checksum tells (Modbus Application Protocol V1.1b3, section 6).
type modbusCutter struct{}

// modbusMax is the longest message (Modbus over Serial Line V1.02, section 2.5.1).
const modbusMax = 256

func (modbusCutter) next(b []byte, _ int, idle bool) (drop, size int, err error) {
	if len(b) < 4 {
		if idle {
			return len(b), 0, errors.New("a message ends too early")
		}
		return 0, 0, nil
	}
	more := false
	for _, size := range modbusSizes(b) {
		switch {
		case size > len(b):
			more = true
		case b[size-2] == byte(CRC16Modbus(b[:size-2])) && b[size-1] == byte(CRC16Modbus(b[:size-2])>>8):
			return 0, size, nil
		}
	}
	if more && !idle {
		return 0, 0, nil
	}
	return 1, 0, errSum
}

// modbusSizes gives the lengths that a message with this beginning may have.
func modbusSizes(b []byte) (sizes [2]int) {
	const around = 4 // unit, function, checksum
	counted := func(at int) int {
		if len(b) <= at {
			return modbusMax
		}
		return min(at+1+int(b[at])+2, modbusMax)
	}
	switch function := b[1]; {
	case function&0x80 != 0:
		return [2]int{around + 1, around + 1}
	case function >= 1 && function <= 4, function == 0x14, function == 0x15, function == 0x17:
		return [2]int{counted(2), around + 4}
	case function == 5, function == 6, function == 8:
		return [2]int{around + 4, around + 4}
	case function == 15, function == 16:
		return [2]int{around + 4, counted(6)}
	case function == 7:
		return [2]int{around, around + 1}
	case function == 0x16:
		return [2]int{around + 6, around + 6}
	case function == 0x11, function == 0x0c:
		return [2]int{counted(2), around}
	}
	return [2]int{around, around} // what makers made up has nothing to say
}

func (modbusCutter) body(frame []byte) []byte { return frame[:len(frame)-2] }

// A midiCutter cuts messages whose first byte alone has bit 7, as Firmata has them
// (firmata/protocol protocol.md, 2.7.0).
type midiCutter struct{}

func (midiCutter) next(b []byte, tried int, _ bool) (drop, size int, err error) {
	for drop < len(b) && b[drop] < 0x80 {
		drop++
	}
	if drop > 0 {
		return drop, 0, nil
	}
	size = 3
	switch first := b[0]; {
	case first == 0xf0:
		for i := max(tried, 1); i < len(b); i++ {
			switch {
			case b[i] == 0xf7:
				return 0, i + 1, nil
			case b[i] >= 0x80:
				return i, 0, errors.New("a message has no end")
			}
		}
		return 0, 0, nil
	case first&0xf0 == 0xc0, first&0xf0 == 0xd0:
		size = 2
	case first == 0xff:
		size = 1
	case first == 0xf4, first == 0xf5, first == 0xf9, first < 0xf0:
	default:
		return 1, 0, fmt.Errorf("no message begins with %02x", first)
	}
	for i := 1; i < min(size, len(b)); i++ {
		if b[i] >= 0x80 {
			return i, 0, errors.New("a message is cut")
		}
	}
	if size > len(b) {
		return 0, 0, nil
	}
	return 0, size, nil
}

func (midiCutter) body(frame []byte) []byte { return frame }
