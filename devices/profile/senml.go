package profile

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// The CoAP content formats of SenML (RFC 8428 section 12.4).
const (
	senmlJSON = "110"
	senmlCBOR = "112"
)

// senmlLabels are the labels that CBOR writes as integers (RFC 8428 section 6).
var senmlLabels = map[string]string{
	"-1": "bver", "-2": "bn", "-3": "bt", "-4": "bu", "-5": "bv", "-6": "bs",
	"0": "n", "1": "u", "2": "v", "3": "vs", "4": "vb", "5": "s", "6": "t", "7": "ut", "8": "vd",
}

// senmlVersion has the bits of the versions that are understood: those up to
// 10 (RFC 8428 section 4.4), and feature 4, secondary units (RFC 9100).
const senmlVersion = 1<<5 - 1

// A senmlRecord is a record as it is after what it inherits is resolved (RFC
// 8428 section 4.6).
type senmlRecord struct {
	base, name string
	unit       string
	value, sum devices.Value // the zero Value where there is none
	time       float64       // seconds; 0: now, below 2^28: from now
}

// readSenML resolves a pack into one reading a time, in the order of time.
func readSenML(at Place, m Message) (Output, error) {
	doc, err := parsePack(m)
	if err != nil {
		return Output{}, fmt.Errorf("not SenML: %w", err)
	}
	records, err := resolve(doc)
	if err != nil {
		return Output{}, fmt.Errorf("not SenML: %w", err)
	}
	out := Output{Identity: identity(records)}
	naming := newNaming(records)
	type part struct {
		devices.Reading
		names names
		order int64
	}
	var parts []*part
	byTime := make(map[int64]*part)
	for _, r := range records {
		when, order := r.when(m.Received)
		p := byTime[order]
		if p == nil {
			p = &part{devices.Reading{Device: at.Device, Time: when}, newNames(), order}
			byTime[order] = p
			parts = append(parts, p)
		}
		for _, f := range r.fields(naming.name(r)) {
			f.Name = p.names.unique(f.Name)
			p.Fields = append(p.Fields, f)
		}
	}
	slices.SortStableFunc(parts, func(a, b *part) int { return cmp.Compare(a.order, b.order) })
	for _, p := range parts {
		if len(p.Fields) > 0 {
			out.Readings = append(out.Readings, p.Reading)
		}
	}
	return out, nil
}

// parsePack gives a list of objects with the labels of JSON.
func parsePack(m Message) (*node, error) {
	isCBOR := len(m.Payload) > 0 && m.Payload[0]&0xe0 == 0x80 // an array; no JSON text begins like this
	switch strconv.Itoa(m.ContentFormat) {
	case senmlJSON:
		isCBOR = false
	case senmlCBOR:
		isCBOR = true
	}
	var doc *node
	var err error
	if isCBOR {
		doc, err = parseCBOR(m.Payload, maxLabels)
	} else {
		doc, err = parseJSON(m.Payload, maxLabels)
	}
	if err != nil {
		return nil, err
	}
	if doc.kind != listNode || len(doc.items) == 0 {
		return nil, errors.New("it is no list of records")
	}
	for i, item := range doc.items {
		if item.kind != objectNode {
			return nil, fmt.Errorf("record %d is no object", i)
		}
		if isCBOR {
			for j, m := range item.members {
				if label, ok := senmlLabels[m.name]; ok {
					item.members[j].name = label
				}
			}
		}
	}
	return doc, nil
}

// resolve gives the records that have a value.
func resolve(doc *node) ([]senmlRecord, error) {
	var base struct {
		name, unit       string
		time, value, sum devices.Value
	}
	var records []senmlRecord
	for i, item := range doc.items {
		r := reader{item: item}
		r.understand()
		r.text("bn", &base.name)
		r.text("bu", &base.unit)
		r.number("bt", &base.time)
		r.number("bv", &base.value)
		r.number("bs", &base.sum)

		record := senmlRecord{base: base.name, unit: base.unit}
		r.text("n", &record.name)
		r.text("u", &record.unit)
		var offset devices.Value
		r.number("t", &offset)
		record.time = base.time.Float() + offset.Float()
		has := r.values(&record)
		if r.err != nil {
			return nil, fmt.Errorf("record %d: %w", i, r.err)
		}
		if record.value.Kind() == devices.NumberValue {
			record.value = add(record.value, base.value)
		}
		if record.sum.IsValid() {
			record.sum = add(record.sum, base.sum)
		}
		switch {
		case record.value.IsValid() || record.sum.IsValid():
			if record.base == "" && record.name == "" {
				return nil, fmt.Errorf("record %d has no name", i)
			}
			records = append(records, record)
		case !has && item.member("n") != nil:
			return nil, fmt.Errorf("record %d has no value", i)
		}
	}
	return records, nil
}

// A reader takes labels out of one record, and keeps the first error.
type reader struct {
	item *node
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// understand refuses what must be understood and is not: labels that end in
// '_', and versions with unknown features (RFC 8428 section 4.4, RFC 9100).
func (r *reader) understand() {
	for _, m := range r.item.members {
		if strings.HasSuffix(m.name, "_") {
			r.fail("the label %.20q must be understood, and is not", m.name)
		}
	}
	var version devices.Value
	r.number("bver", &version)
	if n, whole := version.Int(); version.IsValid() && (!whole || n < 0 || n&^senmlVersion != 0) {
		r.fail("version %.20s is not known", version)
	}
}

func (r *reader) text(label string, into *string) {
	n := r.item.member(label)
	if n == nil {
		return
	}
	if n.value.Kind() != devices.TextValue || len(n.value.String()) > maxMemberName {
		r.fail("%s is no text of at most %d bytes", label, maxMemberName)
		return
	}
	*into = n.value.String()
}

// number takes a text that holds one too, though that is not allowed.
func (r *reader) number(label string, into *devices.Value) {
	n := r.item.member(label)
	if n == nil {
		return
	}
	if n.value.Kind() == devices.NumberValue {
		*into = n.value
		return
	}
	v, err := devices.ParseNumber(n.value.String())
	if n.value.Kind() != devices.TextValue || err != nil {
		r.fail("%s is no number", label)
		return
	}
	*into = v
}

// values takes the record's value and its sum. has says that it has either,
// though it may be one that is no value.
func (r *reader) values(record *senmlRecord) (has bool) {
	n := r.item.member("v")
	if n != nil && n.kind != nullNode && !(n.value.Kind() == devices.TextValue && notValue(n.value.String())) {
		r.number("v", &record.value)
	}
	if s := r.item.member("s"); s != nil {
		r.number("s", &record.sum)
		has = true
	}
	count := 0
	for _, label := range []string{"vs", "vb", "vd"} {
		v := r.item.member(label)
		if v == nil {
			continue
		}
		count++
		switch kind := v.value.Kind(); {
		case (kind == devices.BoolValue) != (label == "vb") || kind != devices.BoolValue && kind != devices.TextValue:
			r.fail("%s is of the wrong type", label)
		default:
			if value, ok := short(v.value); ok {
				record.value = value
			}
		}
	}
	if n != nil {
		count++
	}
	if count > 1 {
		r.fail("it has more than one value")
	}
	return has || count > 0
}

// add keeps the decimals that the two numbers were written with: 20 + 1.40 is
// 21.40.
func add(v, base devices.Value) devices.Value {
	if !base.IsValid() || base.Float() == 0 {
		return v
	}
	sum := v.Float() + base.Float()
	if strings.ContainsAny(v.String()+base.String(), "eE") {
		return devices.Number(sum)
	}
	decimals := 0
	for _, literal := range []string{v.String(), base.String()} {
		_, fraction, _ := strings.Cut(literal, ".")
		decimals = max(decimals, len(fraction))
	}
	exact, err := devices.ParseNumber(strconv.FormatFloat(sum, 'f', decimals, 64))
	if err != nil {
		return devices.Number(sum)
	}
	return exact
}

// identity is the base name of the first record, or its name where that alone
// tells it from all others in the world.
func identity(records []senmlRecord) string {
	if len(records) == 0 {
		return ""
	}
	r := records[0]
	if r.base == "" && strings.HasPrefix(r.name, "urn:") {
		return r.name
	}
	return r.base
}

// A naming knows which names of a pack need more than themselves: in a pack of
// several base names the whole name, and where one name comes with several
// units, as a place with lon and lat, the unit.
type naming struct {
	whole bool
	units map[string]map[string]bool // of a name
}

func newNaming(records []senmlRecord) naming {
	n := naming{units: make(map[string]map[string]bool)}
	for _, r := range records {
		n.whole = n.whole || r.base != records[0].base
	}
	for _, r := range records {
		name := n.base(r)
		if n.units[name] == nil {
			n.units[name] = make(map[string]bool)
		}
		n.units[name][r.unit] = true
	}
	return n
}

func (n naming) base(r senmlRecord) string {
	name := fieldName(r.name)
	if n.whole {
		name = fieldName(r.base + "/" + r.name)
	}
	if name == "" {
		// The name is all in the base name: its last part is the quantity.
		parts := strings.FieldsFunc(r.base, func(c rune) bool { return c == ':' || c == '/' })
		if len(parts) > 0 {
			name = fieldName(parts[len(parts)-1])
		}
	}
	if name == "" {
		return "value"
	}
	return name
}

func (n naming) name(r senmlRecord) string {
	name := n.base(r)
	if len(n.units[name]) < 2 {
		return name
	}
	switch r.unit {
	case "%RH":
		return name + "_humidity"
	case "%EL":
		return name + "_battery"
	}
	return fieldName(name + "_" + r.unit)
}

// fields are the record's value and its sum, which is that of the value over
// time (RFC 8428 section 4.2).
func (r senmlRecord) fields(name string) (out []devices.Field) {
	unit := deviceUnit(string(devices.UnitFromSenML(r.unit)))
	switch r.value.Kind() {
	case devices.NumberValue:
		out = append(out, devices.Field{Name: name, Value: r.value, Unit: unit})
	case devices.BoolValue, devices.TextValue:
		out = append(out, devices.Field{Name: name, Value: r.value, Kind: devices.Status})
	}
	if r.sum.IsValid() {
		out = append(out, devices.Field{Name: name + "_sum", Value: r.sum, Unit: overTime(unit), Kind: devices.Counter})
	}
	return out
}

// overTime is the unit of a sum: the unit times seconds.
func overTime(u devices.Unit) devices.Unit {
	switch u {
	case "":
		return ""
	case "W":
		return "J"
	case "A":
		return "C"
	}
	return u + "s" // VAs and vars are in the registry like this
}

// when gives the record's time, zero where it tells none or none that can be
// believed, and a key that orders records by time.
func (r senmlRecord) when(received time.Time) (time.Time, int64) {
	var t time.Time
	switch {
	case r.time == 0 || math.IsNaN(r.time):
		return time.Time{}, received.UnixMicro()
	case math.Abs(r.time) < 1<<28: // RFC 8428 section 4.5.3: relative to now
		t = received.Add(time.Duration(r.time * float64(time.Second))).Round(time.Microsecond)
	default:
		var ok bool
		if t, ok = fromSeconds(r.time); !ok {
			return time.Time{}, received.UnixMicro()
		}
	}
	if !devices.Believable(t, received) {
		return time.Time{}, t.UnixMicro() // they still are readings of their own, in their order
	}
	return t, t.UnixMicro()
}
