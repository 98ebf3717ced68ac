package clock

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"
)

// A Stamp is a moment as a machine without the time can tell it. It is kept
// with a reading until the reading gets its time.
type Stamp struct {
	Boot   uint32        // the number of the boot in the clock's table
	At     time.Duration // since that boot, in whole microseconds
	Wall   time.Time     // what the machine's clock showed, to the microsecond; a guess unless Synced
	Synced bool          // whether something kept the machine's clock right, to 2 s
}

// Compare gives -1, 0 or +1 where s was taken before, with or after t. The
// wall clock has no say.
func (s Stamp) Compare(t Stamp) int {
	return cmp.Or(cmp.Compare(s.Boot, t.Boot), cmp.Compare(s.At, t.At))
}

// The binary form, about 18 bytes:
//
//	flags                           1 byte
//	boot                            unsigned varint
//	microseconds since the boot     unsigned varint
//	wall in microseconds since 1970 varint
const flagSynced = 1

var errStamp = errors.New("cannot read a stamp: it is damaged")

// AppendBinary implements [encoding.BinaryAppender]. The error is nil.
func (s Stamp) AppendBinary(b []byte) ([]byte, error) {
	var flags byte
	if s.Synced {
		flags |= flagSynced
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(s.Boot))
	b = binary.AppendUvarint(b, uint64(s.At.Microseconds()))
	return binary.AppendVarint(b, s.Wall.UnixMicro()), nil
}

// MarshalBinary implements [encoding.BinaryMarshaler]. The error is nil.
func (s Stamp) MarshalBinary() ([]byte, error) { return s.AppendBinary(nil) }

// UnmarshalBinary implements [encoding.BinaryUnmarshaler].
func (s *Stamp) UnmarshalBinary(b []byte) error {
	if len(b) == 0 || b[0]&^flagSynced != 0 {
		return errStamp
	}
	flags, b := b[0], b[1:]
	boot, n := binary.Uvarint(b)
	if n <= 0 || boot > 1<<32-1 {
		return errStamp
	}
	b = b[n:]
	at, n := binary.Uvarint(b)
	if n <= 0 || at > uint64(maxBoottime.Microseconds()) {
		return errStamp
	}
	b = b[n:]
	wall, n := binary.Varint(b)
	if n <= 0 || n != len(b) {
		return errStamp
	}
	*s = Stamp{uint32(boot), time.Duration(at) * time.Microsecond, time.UnixMicro(wall).UTC(), flags&flagSynced != 0}
	return nil
}

// maxBoottime is what no machine reaches: a century.
const maxBoottime = 100 * 365 * 24 * time.Hour

// MarshalText implements [encoding.TextMarshaler]: the numbers of the binary
// form, with "+" before them where the clock was synchronised, else "?".
func (s Stamp) MarshalText() ([]byte, error) {
	mark := '?'
	if s.Synced {
		mark = '+'
	}
	return fmt.Appendf(nil, "%c%d/%d/%d", mark, s.Boot, s.At.Microseconds(), s.Wall.UnixMicro()), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *Stamp) UnmarshalText(text []byte) error {
	var mark rune
	var boot uint32
	var at, wall int64
	var more string
	n, _ := fmt.Sscanf(string(text), "%c%d/%d/%d%s", &mark, &boot, &at, &wall, &more)
	if n != 4 || mark != '+' && mark != '?' || at < 0 || at > maxBoottime.Microseconds() {
		return errStamp
	}
	*s = Stamp{boot, time.Duration(at) * time.Microsecond, time.UnixMicro(wall).UTC(), mark == '+'}
	return nil
}

// A Dating says when stamps of one boot were taken, as far as it was known
// when [Clock.Date] made it. It does not change when more becomes known, so
// what was dated by it once is dated alike again.
type Dating struct {
	At               time.Duration // since the boot, of the moment that the rest is about
	Time             time.Time     // the best that is known
	Earliest, Latest time.Time     // the bounds of Time; Latest is zero where there is none
	Certain          bool          // whether Time is right to the minute
}

// Of gives the time of a stamp of the same boot, its earliest and its latest
// possible time, and whether it is certain.
func (d Dating) Of(s Stamp) (t time.Time, bounds [2]time.Time, certain bool) {
	away := s.At - d.At
	bounds[0] = d.Earliest.Add(away - drifted(away))
	if !d.Latest.IsZero() {
		bounds[1] = d.Latest.Add(away + drifted(away))
	}
	return d.Time.Add(away), bounds, d.Certain && d.Latest.Sub(d.Time)+drifted(away) <= certainWithin
}

// whole gives the dating in whole microseconds, its bounds not narrower.
func (d Dating) whole() Dating {
	d.Time = d.Time.Truncate(time.Microsecond)
	d.Earliest = d.Earliest.Truncate(time.Microsecond)
	if !d.Latest.IsZero() {
		d.Latest = d.Latest.Add(time.Microsecond - 1).Truncate(time.Microsecond)
	}
	return d
}

// MarshalBinary implements [encoding.BinaryMarshaler]: 33 bytes, flags and
// then four numbers in microseconds, big endian. The error is nil.
func (d Dating) MarshalBinary() ([]byte, error) {
	var flags byte
	if d.Certain {
		flags |= flagCertain
	}
	latest := int64(noLatest)
	if !d.Latest.IsZero() {
		latest = d.Latest.UnixMicro()
	}
	b := []byte{flags}
	for _, n := range []int64{d.At.Microseconds(), d.Time.UnixMicro(), d.Earliest.UnixMicro(), latest} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return b, nil
}

const (
	flagCertain = 1
	noLatest    = math.MinInt64
)

var errDating = errors.New("cannot read a dating: it is damaged")

// UnmarshalBinary implements [encoding.BinaryUnmarshaler].
func (d *Dating) UnmarshalBinary(b []byte) error {
	if len(b) != 1+4*8 || b[0]&^flagCertain != 0 {
		return errDating
	}
	number := func(i int) int64 { return int64(binary.BigEndian.Uint64(b[1+8*i:])) }
	if at := number(0); at < 0 || at > maxBoottime.Microseconds() {
		return errDating
	}
	*d = Dating{
		At:       time.Duration(number(0)) * time.Microsecond,
		Time:     time.UnixMicro(number(1)).UTC(),
		Earliest: time.UnixMicro(number(2)).UTC(),
		Certain:  b[0]&flagCertain != 0,
	}
	if latest := number(3); latest != noLatest {
		d.Latest = time.UnixMicro(latest).UTC()
	}
	return nil
}
