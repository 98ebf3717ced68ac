package bridge

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// maxPack bounds the CBOR of a pack of several readings. Prosody's time for
	// an item grows faster than the item: with twice this, a backlog drains a
	// third slower.
	maxPack = 4 << 10
	// maxPackRead bounds what is decoded: a single reading may be longer than
	// maxPack.
	maxPackRead = 256 << 10

	// senmlVersion is the default Base Version of RFC 8428 section 4.4, and
	// senmlSecondary the same with the feature "secondary units", bit 4
	// (RFC 9100 section 5).
	senmlVersion   = 10
	senmlSecondary = senmlVersion + 1<<4
)

// senmlRecord is one SenML record in CBOR (RFC 8428 section 6, table 6). The
// labels o, q and clk are ours: a reader that does not know them ignores them
// (section 4.4).
type senmlRecord struct {
	BaseVersion *int    `cbor:"-1,keyasint,omitempty"`
	BaseName    string  `cbor:"-2,keyasint,omitempty"`
	BaseTime    any     `cbor:"-3,keyasint,omitempty"`
	BaseUnit    string  `cbor:"-4,keyasint,omitempty"`
	BaseValue   any     `cbor:"-5,keyasint,omitempty"`
	BaseSum     any     `cbor:"-6,keyasint,omitempty"`
	Name        string  `cbor:"0,keyasint,omitempty"`
	Unit        string  `cbor:"1,keyasint,omitempty"`
	Value       any     `cbor:"2,keyasint,omitempty"`
	Text        *string `cbor:"3,keyasint,omitempty"`
	Bool        *bool   `cbor:"4,keyasint,omitempty"`
	Sum         any     `cbor:"5,keyasint,omitempty"`
	Time        any     `cbor:"6,keyasint,omitempty"`
	Data        []byte  `cbor:"8,keyasint,omitempty"`
	Origin      []byte  `cbor:"o,omitempty"`   // the message that the reading came from, 8 bytes
	Seq         uint64  `cbor:"q,omitempty"`   // the reading's number, where it is not one more than that before
	Clock       []any   `cbor:"clk,omitempty"` // earliest and latest of an uncertain time; null where there is no bound

	secondary bool // the unit is one of RFC 8798
}

// packCodec writes and reads packs. The encoding is deterministic (RFC 8949
// section 4.2.1) except that floats stay 64 bits wide.
type packCodec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newPackCodec() (packCodec, error) {
	encoding := cbor.CoreDetEncOptions()
	encoding.ShortestFloat = cbor.ShortestFloatNone
	enc, err := encoding.EncMode()
	if err != nil {
		return packCodec{}, fmt.Errorf("cannot set up CBOR: %v", err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:  4,
		MaxArrayElements: 1 << 15,
		MaxMapPairs:      32,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		IntDec:           cbor.IntDecConvertSignedOrFail,
		UTF8:             cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		return packCodec{}, fmt.Errorf("cannot set up CBOR: %v", err)
	}
	return packCodec{enc, dec}, nil
}

// encode makes a pack of the oldest n of rs that fit in most bytes; n is at
// least 1. The
// first record of the pack carries the base name, the first of each reading
// its time as base time, which the records after it share (RFC 8428
// section 4.1): each time is written once.
func (c packCodec) encode(baseName string, rs []devices.Record, most int) (pack []byte, n int, err error) {
	var records []cbor.RawMessage
	var first senmlRecord
	secondary, gaps := false, false
	// Room for the array's head, and for version and number, which the first
	// record gets in the end.
	size := 3 + 3 + 11
	for i, r := range rs {
		reading := senmlReading(r)
		if i == 0 {
			reading[0].BaseName = baseName
			first = reading[0]
		}
		gap := r.Seq != rs[0].Seq+uint64(i)
		if gap {
			reading[0].Seq = r.Seq
		}
		encoded := make([]cbor.RawMessage, len(reading))
		for k, record := range reading {
			if encoded[k], err = c.enc.Marshal(record); err != nil {
				return nil, 0, fmt.Errorf("cannot encode reading %d: %v", r.Seq, err)
			}
			size += len(encoded[k])
		}
		if size > most && i > 0 {
			break
		}
		for _, record := range reading {
			secondary = secondary || record.secondary
		}
		gaps = gaps || gap
		records = append(records, encoded...)
		n++
	}
	if secondary {
		version := senmlSecondary
		first.BaseVersion = &version
	}
	if gaps {
		first.Seq = rs[0].Seq
	}
	if secondary || gaps {
		if records[0], err = c.enc.Marshal(first); err != nil {
			return nil, 0, fmt.Errorf("cannot encode a pack: %v", err)
		}
	}
	if pack, err = c.enc.Marshal(records); err != nil {
		return nil, 0, fmt.Errorf("cannot encode a pack: %v", err)
	}
	return pack, n, nil
}

// senmlReading gives the records of one reading, at least one.
func senmlReading(r devices.Record) []senmlRecord {
	records := make([]senmlRecord, 0, len(r.Fields))
	for _, f := range r.Fields {
		record := senmlRecord{Name: f.Name}
		record.Unit, record.secondary = f.Unit.SenML(f.Name)
		switch f.Value.Kind() {
		case devices.NumberValue:
			if whole, ok := f.Value.Int(); ok {
				record.Value = whole
			} else {
				record.Value = f.Value.Float()
			}
		case devices.BoolValue:
			b := f.Value.Bool()
			record.Bool = &b
		default:
			text := strings.ToValidUTF8(f.Value.String(), "\uFFFD")
			record.Text = &text
		}
		records = append(records, record)
	}
	if len(records) == 0 {
		// Without a record the readings after it would be miscounted.
		nothing := ""
		records = append(records, senmlRecord{Name: "empty", Text: &nothing})
	}
	records[0].BaseTime = senmlTime(r.Time)
	if r.Origin != (devices.Origin{}) {
		records[0].Origin = r.Origin[:]
	}
	if r.Bounds != nil {
		records[0].Clock = make([]any, 2)
		for i, bound := range r.Bounds {
			if !bound.IsZero() {
				records[0].Clock[i] = senmlTime(bound)
			}
		}
	}
	return records
}

// senmlTime is t in seconds since 1970, an integer on a whole second. A float
// of 64 bits tells microseconds apart until the year 2242.
func senmlTime(t time.Time) any {
	if t.Nanosecond() == 0 {
		return t.Unix()
	}
	return float64(t.UnixMicro()) / 1e6
}

// maxSenMLTime is the end of the year 9999, beyond which RFC 3339 has no
// dates; minSenMLTime is where absolute times begin (RFC 8428 section 4.5.3).
const (
	minSenMLTime = 1 << 28
	maxSenMLTime = 253402300799
)

// decode reads a pack that a gateway made. A record's Seq is its label q; 0
// where it has none.
func (c packCodec) decode(pack []byte) (baseName string, rs []devices.Record, err error) {
	if len(pack) > maxPackRead {
		return "", nil, fmt.Errorf("cannot read a SenML pack of %d bytes: at most %d", len(pack), maxPackRead)
	}
	var records []senmlRecord
	if err := c.dec.Unmarshal(pack, &records); err != nil {
		return "", nil, fmt.Errorf("cannot read a SenML pack: %v", err)
	}
	var base senmlBase
	for i, record := range records {
		at, err := base.resolve(&record)
		if err != nil {
			return "", nil, fmt.Errorf("cannot read SenML record %d: %v", i, err)
		}
		field, err := senmlField(record)
		if err != nil {
			return "", nil, fmt.Errorf("cannot read SenML record %d: %v", i, err)
		}
		if i == 0 || !at.Equal(rs[len(rs)-1].Time) {
			bounds, err := senmlBounds(record.Clock)
			if err != nil {
				return "", nil, fmt.Errorf("cannot read SenML record %d: %v", i, err)
			}
			rs = append(rs, devices.Record{Seq: record.Seq, Reading: devices.Reading{Time: at}, Bounds: bounds})
			switch len(record.Origin) {
			case 0:
			case len(devices.Origin{}):
				rs[len(rs)-1].Origin = devices.Origin(record.Origin)
			default:
				return "", nil, fmt.Errorf("cannot read SenML record %d: the origin has %d bytes", i, len(record.Origin))
			}
		}
		reading := &rs[len(rs)-1]
		reading.Fields = append(reading.Fields, field)
	}
	return base.name, rs, nil
}

// senmlBase is what records hand on to those after them (RFC 8428
// section 4.6).
type senmlBase struct {
	name, unit string
	time       float64
}

// resolve takes over the record's base fields, gives the record its unit, and
// returns its time.
func (b *senmlBase) resolve(r *senmlRecord) (time.Time, error) {
	if v := r.BaseVersion; v != nil && *v != senmlVersion && *v != senmlSecondary {
		return time.Time{}, fmt.Errorf("unknown version %d", *v)
	}
	if r.BaseValue != nil || r.BaseSum != nil || r.Sum != nil || r.Data != nil {
		return time.Time{}, errors.New("base values, sums and data are no part of a reading")
	}
	if r.BaseName != "" {
		if b.name != "" && b.name != r.BaseName {
			return time.Time{}, errors.New("a second base name")
		}
		b.name = r.BaseName
	}
	if r.BaseUnit != "" {
		b.unit = r.BaseUnit
	}
	if r.Unit == "" {
		r.Unit = b.unit
	}
	if r.BaseTime != nil {
		t, ok := number(r.BaseTime)
		if !ok {
			return time.Time{}, errors.New("the base time is no number")
		}
		b.time = t
	}
	at := b.time
	if r.Time != nil {
		t, ok := number(r.Time)
		if !ok {
			return time.Time{}, errors.New("the time is no number")
		}
		at += t
	}
	// Written so that NaN is refused too.
	if !(at >= minSenMLTime && at <= maxSenMLTime) {
		return time.Time{}, fmt.Errorf("time %v is not an absolute one", at)
	}
	return time.UnixMicro(int64(math.Round(at * 1e6))).UTC(), nil
}

// senmlBounds reads the label clk.
func senmlBounds(clk []any) (*[2]time.Time, error) {
	if clk == nil {
		return nil, nil
	}
	bounds := new([2]time.Time)
	if len(clk) != len(bounds) {
		return nil, fmt.Errorf("the bounds of the time are %d", len(clk))
	}
	for i, v := range clk {
		if v == nil {
			continue
		}
		at, ok := number(v)
		if !ok || !(at >= -maxSenMLTime && at <= maxSenMLTime) {
			return nil, errors.New("a bound of the time is none")
		}
		bounds[i] = time.UnixMicro(int64(math.Round(at * 1e6))).UTC()
	}
	return bounds, nil
}

func senmlField(r senmlRecord) (devices.Field, error) {
	f := devices.Field{Name: r.Name, Unit: devices.UnitFromSenML(r.Unit)}
	values := 0
	if r.Value != nil {
		values++
		switch v := r.Value.(type) {
		case int64:
			f.Value, _ = devices.ParseNumber(strconv.FormatInt(v, 10))
		case float64:
			f.Value = devices.Number(v)
		}
	}
	if r.Text != nil {
		values++
		f.Value = devices.Text(*r.Text)
	}
	if r.Bool != nil {
		values++
		f.Value = devices.Bool(*r.Bool)
	}
	if values != 1 || !f.Value.IsValid() {
		return devices.Field{}, errors.New("want one finite value")
	}
	if !fieldName(f.Name) {
		return devices.Field{}, fmt.Errorf("%.40q is no field name", f.Name)
	}
	return f, nil
}

// number is the number that CBOR gave.
func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// fieldName reports whether s can be the name of a field.
func fieldName(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
