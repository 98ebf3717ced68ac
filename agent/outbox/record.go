package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A row is the value of one key of the log bucket: the readings of one device
// from the sequence number in the key on, without gaps unless it was thinned.
// In the held bucket it is one reading.
//
//	CRC-32C                 4 bytes, big endian: see table
//	version                 1 byte
//	number of readings      4 bytes, big endian
//	of a thinned row: how often it was thinned, 1 byte
//	of a thinned row: the number of its last reading, 8 bytes, big endian
//	readings
//
// A reading of versions 2 and 3 is told by what differs from the readings before it
// in the row. Numbers are unsigned varints unless told otherwise, texts have
// their length before them.
//
//	of a thinned row: how many numbers are missing before it
//	four times the number of its shape, and 1 more with an origin, 2 with a stamp
//	the shape, where its number is that of a new one: the number of fields,
//	and of each its name, its unit and a byte, its kind
//	the time, a signed varint: microseconds since the reading before
//	the origin: 8 bytes, where there is one
//	the stamp, where there is one
//	its values
//
// A value is an even number where it is a decimal of as many decimals as the
// one before in the same field of the same shape: half of it is the signed
// difference. An odd one is twice a tag and 1; see appendValue.
//
// A thinned row is of version 3, others of version 2. Version 1 is read only;
// it had the CRC without bucket and key, and each reading whole.
const (
	rowVersion    = 2
	rowThinned    = 3
	rowHeader     = 4 + 1 + 4
	thinnedHeader = rowHeader + 1 + 8
)

// maxRow is what a row does not outgrow, unless by its only reading: two of
// them fill a page of bbolt, whose leaves have two rows at least. A page is
// what a commit writes of a device.
const maxRow = 1920

// errDamaged says that a row is not what was written.
var errDamaged = errors.New(ReasonDamaged)

const (
	maxDecimals = 15
	maxMantissa = 1e15

	headOrigin = 1
	headStamp  = 2

	tagNumber = maxDecimals + 1 // and below: as many decimals; the mantissa follows, signed
	tagFalse  = 32
	tagTrue   = 33
	tagNone   = 34
	tagText   = 35 // and above: the text of that number in the row, or a new one
)

// A shape is what the readings of one kind have in common.
type shape struct {
	fields  []devices.Field // without values
	columns []column
}

// A column is the number that a field had last.
type column struct {
	mantissa int64
	decimals int // -1: none yet
}

func newShape(fields []devices.Field) *shape {
	s := &shape{make([]devices.Field, len(fields)), make([]column, len(fields))}
	for i, f := range fields {
		s.fields[i] = devices.Field{Name: f.Name, Unit: f.Unit, Kind: f.Kind}
		s.columns[i].decimals = -1
	}
	return s
}

func (s *shape) fits(fields []devices.Field) bool {
	if len(fields) != len(s.fields) {
		return false
	}
	for i, f := range fields {
		if g := s.fields[i]; f.Name != g.Name || f.Unit != g.Unit || f.Kind != g.Kind {
			return false
		}
	}
	return true
}

// A rowEncoder makes the payload of a row: all but its CRC.
type rowEncoder struct {
	payload []byte
	n       uint32
	shapes  []*shape
	texts   map[string]int
	time    int64
	level   byte   // how often it was thinned
	next    uint64 // the number after its last reading
}

func newRow() *rowEncoder {
	return &rowEncoder{payload: []byte{rowVersion, 0, 0, 0, 0}, texts: make(map[string]int)}
}

// newThinnedRow begins a row with gaps, the first number of which is first.
func newThinnedRow(level byte, first uint64) *rowEncoder {
	payload := append([]byte{rowThinned, 0, 0, 0, 0, level}, make([]byte, 8)...)
	return &rowEncoder{payload: payload, texts: make(map[string]int), level: level, next: first}
}

// rowPayload gives the payload of a row of one reading.
func rowPayload(r devices.Record) []byte {
	row := newRow()
	row.add(r)
	return row.payload
}

// add reports false where the row is full: then it is as it was, and takes no
// more.
func (e *rowEncoder) add(r devices.Record) bool {
	before := len(e.payload)
	e.append(r)
	if e.n > 0 && 4+len(e.payload) > maxRow {
		e.payload = e.payload[:before]
		return false
	}
	e.count(r)
	return true
}

func (e *rowEncoder) count(r devices.Record) {
	e.n++
	e.next = r.Seq + 1
	binary.BigEndian.PutUint32(e.payload[1:], e.n)
	if e.level > 0 {
		binary.BigEndian.PutUint64(e.payload[thinnedHeader-4-8:], r.Seq)
	}
}

func (e *rowEncoder) append(r devices.Record) {
	if e.level > 0 {
		e.payload = binary.AppendUvarint(e.payload, r.Seq-e.next)
	}
	number := 0
	for number < len(e.shapes) && !e.shapes[number].fits(r.Fields) {
		number++
	}
	origin := r.Origin != (devices.Origin{})
	head := uint64(number) << 2
	if origin {
		head |= headOrigin
	}
	if r.Stamp != "" {
		head |= headStamp
	}
	e.payload = binary.AppendUvarint(e.payload, head)
	if number == len(e.shapes) {
		e.shapes = append(e.shapes, newShape(r.Fields))
		e.payload = binary.AppendUvarint(e.payload, uint64(len(r.Fields)))
		for _, f := range r.Fields {
			e.payload = appendText(appendText(e.payload, f.Name), string(f.Unit))
			e.payload = append(e.payload, byte(f.Kind))
		}
	}
	at := r.Time.UnixMicro()
	e.payload = binary.AppendVarint(e.payload, at-e.time)
	e.time = at
	if origin {
		e.payload = append(e.payload, r.Origin[:]...)
	}
	if r.Stamp != "" {
		e.payload = appendText(e.payload, r.Stamp)
	}
	for i, f := range r.Fields {
		e.appendValue(f.Value, &e.shapes[number].columns[i])
	}
}

func (e *rowEncoder) appendValue(v devices.Value, c *column) {
	tag := func(n int) { e.payload = binary.AppendUvarint(e.payload, uint64(n)<<1|1) }
	switch text := v.String(); v.Kind() {
	case devices.NumberValue:
		mantissa, decimals, ok := decimal(text)
		switch {
		case !ok:
			tag(tagNumber)
			e.payload = appendText(e.payload, text)
		case decimals == c.decimals:
			e.payload = binary.AppendUvarint(e.payload, zigzag(mantissa-c.mantissa)<<1)
			c.mantissa = mantissa
		default:
			tag(decimals)
			e.payload = binary.AppendVarint(e.payload, mantissa)
			*c = column{mantissa, decimals}
		}
	case devices.BoolValue:
		if text == "true" {
			tag(tagTrue)
		} else {
			tag(tagFalse)
		}
	case devices.TextValue:
		number, known := e.texts[text]
		if known {
			tag(tagText + number)
			return
		}
		tag(tagText + len(e.texts))
		e.texts[text] = len(e.texts)
		e.payload = appendText(e.payload, text)
	default:
		tag(tagNone)
	}
}

func zigzag(n int64) uint64 { return uint64(n<<1) ^ uint64(n>>63) }

func unzigzag(n uint64) int64 { return int64(n>>1) ^ -int64(n&1) }

// decimal takes a literal apart, where formatDecimal makes it the same again:
// 21.40 is 2140 with two decimals, -0.0 and 1e3 are no such thing.
func decimal(text string) (mantissa int64, decimals int, ok bool) {
	whole, fraction, _ := strings.Cut(text, ".")
	decimals = len(fraction)
	if decimals > maxDecimals {
		return 0, 0, false
	}
	mantissa, err := strconv.ParseInt(whole+fraction, 10, 64)
	if err != nil || mantissa > maxMantissa || mantissa < -maxMantissa {
		return 0, 0, false
	}
	return mantissa, decimals, formatDecimal(mantissa, decimals) == text
}

func formatDecimal(mantissa int64, decimals int) string {
	sign := ""
	if mantissa < 0 {
		sign, mantissa = "-", -mantissa
	}
	s := strconv.FormatInt(mantissa, 10)
	if decimals == 0 {
		return sign + s
	}
	if short := decimals + 1 - len(s); short > 0 {
		s = strings.Repeat("0", short) + s
	}
	point := len(s) - decimals
	return sign + s[:point] + "." + s[point:]
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

// rowLevel gives how often a row says it was thinned.
func rowLevel(row []byte) byte {
	if len(row) < thinnedHeader || row[4] != rowThinned {
		return 0
	}
	return row[rowHeader]
}

// rowSpan gives which numbers a row says it has.
func rowSpan(run uint32, first uint64, row []byte) span {
	n := uint64(rowCount(row))
	s := span{run: run, first: first, last: first + n - 1}
	if rowLevel(row) == 0 {
		return s
	}
	if last := binary.BigEndian.Uint64(row[rowHeader+1:]); last > s.last && last < maxSeq {
		s.missing, s.last = last-s.last, last
	}
	return s
}

// rowAfter gives which numbers a row has after one of them.
func rowAfter(key, row []byte, seq uint64) span {
	_, run, first, _ := parseRowKey(key)
	s := rowSpan(run, first, row)
	s.first = seq + 1
	if s.missing > 0 {
		rs, _ := decodeRow(bucketLog, key, row)
		n := sort.Search(len(rs), func(i int) bool { return rs[i].Seq > seq })
		s.missing = s.last - seq - uint64(len(rs[n:]))
	}
	return s
}

// rowIntact tells whether the value of a key of a bucket of rows is what was
// written.
func rowIntact(bucket, key, row []byte) bool {
	if len(row) < rowHeader {
		return false
	}
	if row[4] == 1 {
		return binary.BigEndian.Uint32(row) == crc(row[4:])
	}
	return binary.BigEndian.Uint32(row) == crc(bucket, key, row[4:])
}

// decodeRow gives the readings of a row. Nothing of the result points into it.
func decodeRow(bucket, key, row []byte) ([]devices.Record, error) {
	device, _, first, ok := parseRowKey(key)
	if !ok || !rowIntact(bucket, key, row) {
		return nil, errDamaged
	}
	d := rowDecoder{decoder: decoder{rest: row[rowHeader:]}}
	var record func() devices.Record
	switch row[4] {
	case 1:
		record = d.recordV1
	case rowVersion:
		record = d.record
	case rowThinned:
		d.take(thinnedHeader - rowHeader)
		record = d.thinnedRecord
	default:
		return nil, fmt.Errorf("the row has version %d, this program knows %d", row[4], rowThinned)
	}
	n := int(binary.BigEndian.Uint32(row[5:]))
	if n < 1 || n > len(d.rest)/2 {
		return nil, errDamaged // a reading has two bytes at least
	}
	rs := make([]devices.Record, 0, n)
	for next := first; len(rs) < n; next++ {
		r := record()
		next += r.Seq // how many are missing before it
		if d.failed || next >= maxSeq {
			return nil, errDamaged
		}
		r.Device, r.Seq = device, next
		rs = append(rs, r)
	}
	if len(d.rest) > 0 || row[4] == rowThinned && (rowLevel(row) == 0 || rs[n-1].Seq != binary.BigEndian.Uint64(row[rowHeader+1:])) {
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
	if d.failed || n <= 0 {
		d.failed = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) text() string { return string(d.take(d.uvarint())) }

// count takes the number of things that follow, each of a byte at least.
func (d *decoder) count() uint64 {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.failed = true
		return 0
	}
	return n
}

// A rowDecoder undoes what a rowEncoder does.
type rowDecoder struct {
	decoder
	shapes []*shape
	texts  []string
	time   int64
}

// thinnedRecord gives as Seq how many numbers are missing before the reading.
func (d *rowDecoder) thinnedRecord() devices.Record {
	missing := d.uvarint()
	if missing >= maxSeq {
		d.failed = true
	}
	r := d.record()
	r.Seq = missing
	return r
}

func (d *rowDecoder) record() devices.Record {
	var r devices.Record
	head := d.uvarint()
	number := head >> 2
	switch {
	case number < uint64(len(d.shapes)):
	case number == uint64(len(d.shapes)):
		fields := make([]devices.Field, d.count())
		for i := range fields {
			fields[i] = devices.Field{Name: d.text(), Unit: devices.Unit(d.text()), Kind: devices.FieldKind(d.byte())}
			if d.failed {
				return r
			}
		}
		d.shapes = append(d.shapes, newShape(fields))
	default:
		d.failed = true
		return r
	}
	d.time += unzigzag(d.uvarint())
	r.Time = time.UnixMicro(d.time).UTC()
	if head&headOrigin != 0 {
		copy(r.Origin[:], d.take(8))
	}
	if head&headStamp != 0 {
		r.Stamp = d.text()
	}
	s := d.shapes[number]
	if len(s.fields) > len(d.rest) {
		d.failed = true
		return r
	}
	r.Fields = append(make([]devices.Field, 0, len(s.fields)), s.fields...)
	for i := range r.Fields {
		r.Fields[i].Value = d.value(&s.columns[i])
	}
	return r
}

func (d *rowDecoder) value(c *column) devices.Value {
	n := d.uvarint()
	if n&1 == 0 {
		if c.decimals < 0 {
			d.failed = true
		}
		return d.decimal(c, c.mantissa+unzigzag(n>>1), c.decimals)
	}
	switch tag := n >> 1; {
	case tag <= maxDecimals:
		return d.decimal(c, unzigzag(d.uvarint()), int(tag))
	case tag == tagNumber:
		return d.number(d.text())
	case tag == tagFalse, tag == tagTrue:
		return devices.Bool(tag == tagTrue)
	case tag == tagNone:
		return devices.Value{}
	case tag >= tagText && tag-tagText < uint64(len(d.texts)):
		return devices.Text(d.texts[tag-tagText])
	case tag == tagText+uint64(len(d.texts)):
		text := d.text()
		d.texts = append(d.texts, text)
		return devices.Text(text)
	}
	d.failed = true
	return devices.Value{}
}

func (d *rowDecoder) decimal(c *column, mantissa int64, decimals int) devices.Value {
	if d.failed || mantissa > maxMantissa || mantissa < -maxMantissa {
		d.failed = true
		return devices.Value{}
	}
	*c = column{mantissa, decimals}
	return d.number(formatDecimal(mantissa, decimals))
}

func (d *rowDecoder) number(text string) devices.Value {
	v, err := devices.ParseNumber(text)
	d.failed = d.failed || err != nil
	return v
}

func (d *rowDecoder) recordV1() devices.Record {
	var r devices.Record
	if b := d.take(8); b != nil {
		r.Time = time.UnixMicro(int64(binary.BigEndian.Uint64(b))).UTC()
	}
	flags := d.byte()
	if flags&1 != 0 {
		copy(r.Origin[:], d.take(8))
	}
	if flags&2 != 0 {
		r.Stamp = d.text()
	}
	r.Fields = make([]devices.Field, d.count())
	for i := range r.Fields {
		f := devices.Field{Name: d.text(), Unit: devices.Unit(d.text()), Kind: devices.FieldKind(d.byte())}
		kind, text := devices.ValueKind(d.byte()), d.text()
		switch kind {
		case devices.NumberValue:
			f.Value = d.number(text)
		case devices.BoolValue:
			f.Value = devices.Bool(text == "true")
		case devices.TextValue:
			f.Value = devices.Text(text)
		default:
			d.failed = true
		}
		if d.failed {
			return r
		}
		r.Fields[i] = f
	}
	return r
}

// A rowKey orders rows by device, then run, then sequence.
func rowKey(device devices.ID, run uint32, first uint64) []byte {
	k := append([]byte(device), 0)
	k = binary.BigEndian.AppendUint32(k, run)
	return binary.BigEndian.AppendUint64(k, first)
}

const rowKeyTail = 1 + 4 + 8

// maxSeq is what no sequence number reaches.
const maxSeq = math.MaxUint64 >> 1

func parseRowKey(k []byte) (device devices.ID, run uint32, first uint64, ok bool) {
	n := len(k) - rowKeyTail
	if n <= 0 || bytes.IndexByte(k, 0) != n {
		return "", 0, 0, false
	}
	first = binary.BigEndian.Uint64(k[n+5:])
	return devices.ID(k[:n]), binary.BigEndian.Uint32(k[n+1:]), first, first < maxSeq
}
