package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A row is the value of one key of the log bucket: the readings of one device
// from the sequence number in the key on, without gaps.
//
//	CRC-32C of the rest     4 bytes, big endian
//	version                 1 byte
//	number of readings      4 bytes, big endian
//	readings
//
// A reading is its time in microseconds since 1970 (8 bytes), a byte of
// flags, the origin (8 bytes, with flagOrigin), the stamp (with flagStamp), the
// number of fields and the fields. Numbers are unsigned varints, texts have their length before them.
const (
	rowVersion = 1
	rowHeader  = 4 + 1 + 4

	flagOrigin = 1
	flagStamp  = 2
)

// maxRow is the size from which on a row is not appended to: about a page of
// bbolt, which is written whole anyway.
const maxRow = 4096

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged says that a row is not what was written.
var errDamaged = errors.New("the row is damaged")

// appendRow adds readings to a row, which may be nil. It returns a new slice.
func appendRow(row []byte, rs []devices.Record) []byte {
	out := make([]byte, rowHeader, max(len(row), rowHeader)+64*len(rs))
	out[4] = rowVersion
	n := 0
	if row != nil {
		n = rowCount(row)
		out = append(out, row[rowHeader:]...)
	}
	binary.BigEndian.PutUint32(out[5:], uint32(n+len(rs)))
	for _, r := range rs {
		out = appendRecord(out, r)
	}
	binary.BigEndian.PutUint32(out, crc32.Checksum(out[4:], castagnoli))
	return out
}

func appendRecord(b []byte, r devices.Record) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time.UnixMicro()))
	flags := len(b)
	b = append(b, 0)
	if r.Origin != (devices.Origin{}) {
		b[flags] |= flagOrigin
		b = append(b, r.Origin[:]...)
	}
	if r.Stamp != "" {
		b[flags] |= flagStamp
		b = appendText(b, r.Stamp)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Fields)))
	for _, f := range r.Fields {
		b = appendText(b, f.Name)
		b = appendText(b, string(f.Unit))
		b = append(b, byte(f.Kind), byte(f.Value.Kind()))
		b = appendText(b, f.Value.String())
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// rowCount gives how many readings a row says it has. A row that says what
// cannot be, because it is damaged, counts as one.
func rowCount(row []byte) int {
	if len(row) < rowHeader {
		return 1
	}
	n := binary.BigEndian.Uint32(row[5:])
	if n == 0 || uint64(n) > uint64(len(row)) {
		return 1
	}
	return int(n)
}

// decodeRow gives the readings of a row whose first one has the sequence
// number first. Nothing of the result points into row.
func decodeRow(device devices.ID, first uint64, row []byte) ([]devices.Record, error) {
	if len(row) < rowHeader {
		return nil, errDamaged
	}
	if crc32.Checksum(row[4:], castagnoli) != binary.BigEndian.Uint32(row) {
		return nil, errDamaged
	}
	if row[4] != rowVersion {
		return nil, fmt.Errorf("the row has version %d, this program knows %d", row[4], rowVersion)
	}
	d := decoder{rest: row[rowHeader:]}
	n := rowCount(row)
	rs := make([]devices.Record, 0, n)
	for i := range n {
		r := d.record()
		r.Device, r.Seq = device, first+uint64(i)
		rs = append(rs, r)
	}
	if d.failed || len(d.rest) > 0 {
		return nil, errDamaged
	}
	return rs, nil
}

// A decoder takes parts off a byte slice. After a part that is not there it
// gives zero values.
type decoder struct {
	rest   []byte
	failed bool
}

func (d *decoder) take(n uint64) []byte {
	if d.failed || n > uint64(len(d.rest)) {
		d.failed = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.failed = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) text() string { return string(d.take(d.uvarint())) }

func (d *decoder) record() devices.Record {
	var r devices.Record
	if b := d.take(8); b != nil {
		r.Time = time.UnixMicro(int64(binary.BigEndian.Uint64(b))).UTC()
	}
	flags := d.byte()
	if flags&flagOrigin != 0 {
		copy(r.Origin[:], d.take(8))
	}
	if flags&flagStamp != 0 {
		r.Stamp = d.text()
	}
	if flags&^(flagOrigin|flagStamp) != 0 {
		d.failed = true
	}
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.failed = true
		return r
	}
	r.Fields = make([]devices.Field, 0, n)
	for range n {
		name, unit := d.text(), devices.Unit(d.text())
		kind, valueKind, text := devices.FieldKind(d.byte()), devices.ValueKind(d.byte()), d.text()
		v, ok := value(valueKind, text)
		if !ok {
			d.failed = true
			return r
		}
		r.Fields = append(r.Fields, devices.Field{Name: name, Unit: unit, Kind: kind, Value: v})
	}
	return r
}

func value(kind devices.ValueKind, text string) (devices.Value, bool) {
	switch kind {
	case devices.NumberValue:
		v, err := devices.ParseNumber(text)
		return v, err == nil
	case devices.BoolValue:
		return devices.Bool(text == "true"), true
	case devices.TextValue:
		return devices.Text(text), true
	}
	return devices.Value{}, false
}

// A rowKey orders rows by device, then run, then sequence.
func rowKey(device devices.ID, run uint32, first uint64) []byte {
	k := append([]byte(device), 0)
	k = binary.BigEndian.AppendUint32(k, run)
	return binary.BigEndian.AppendUint64(k, first)
}

const rowKeyTail = 1 + 4 + 8

func parseRowKey(k []byte) (device devices.ID, run uint32, first uint64, ok bool) {
	n := len(k) - rowKeyTail
	if n <= 0 || k[n] != 0 {
		return "", 0, 0, false
	}
	return devices.ID(k[:n]), binary.BigEndian.Uint32(k[n+1:]), binary.BigEndian.Uint64(k[n+5:]), true
}
