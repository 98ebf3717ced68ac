package lwm2m

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Value is that of a resource, or of one instance of it.
type Value struct {
	Path  Path
	Value devices.Value
	Unit  devices.Unit
}

const (
	maxValues = 2000
	maxText   = 1024
)

// The types of an entry, which stand in its first two bits.
const (
	objectInstance = iota
	resourceInstance
	severalResources
	resource
)

type entry struct {
	kind, id int
	body     []byte
}

// next cuts one entry off.
func next(b []byte) (e entry, rest []byte, err error) {
	short := errors.New("not TLV: an entry ends early")
	head := b[0]
	e.kind = int(head >> 6)
	size, b := int(head&7), b[1:]
	take := func(n int) (v int) {
		if len(b) < n {
			err = short
			return 0
		}
		for _, octet := range b[:n] {
			v = v<<8 | int(octet)
		}
		b = b[n:]
		return v
	}
	e.id = take(1 + int(head>>5&1))
	if n := int(head >> 3 & 3); n > 0 {
		size = take(n)
	}
	if err == nil && len(b) < size {
		err = short
	}
	if err != nil {
		return e, nil, err
	}
	e.body = b[:size]
	return e, b[size:], nil
}

// ParseTLV reads what a path holds. Of an object it may be the instances, or the
// resources of the only one.
func ParseTLV(b []byte, at Path) ([]Value, error) {
	if len(at) == 0 {
		return nil, errors.New("not TLV of an object: its path has no number")
	}
	r := tlvReader{}
	err := r.read(b, at, -1)
	return r.out, err
}

type tlvReader struct{ out []Value }

// read reads the entries below a path. inside is the type of the entry that they
// are in, -1 for none.
func (r *tlvReader) read(b []byte, at Path, inside int) error {
	seen := make(map[int]bool)
	for len(b) > 0 {
		e, rest, err := next(b)
		if err != nil {
			return err
		}
		b = rest
		if key := e.kind<<16 | e.id; seen[key] {
			return fmt.Errorf("not TLV: %d comes twice in %s", e.id, at)
		} else if seen[key] = true; len(r.out) >= maxValues {
			return fmt.Errorf("more than %d values", maxValues)
		}
		switch e.kind {
		case objectInstance:
			path := at.in(e.id)
			if inside != -1 || len(at) > 2 || len(at) == 2 && at[1] != e.id {
				return fmt.Errorf("not TLV of %s: an instance %d in it", at, e.id)
			}
			if len(at) == 2 {
				path = at
			}
			err = r.read(e.body, path, objectInstance)
		case resource, severalResources:
			path, ok := at.resource(e.id)
			if !ok || inside == severalResources {
				return fmt.Errorf("not TLV of %s: a resource %d in it", at, e.id)
			}
			if e.kind == severalResources {
				err = r.read(e.body, path, severalResources)
			} else {
				err = r.value(e.body, path)
			}
		default:
			if len(at) == 4 && at[3] == e.id {
				at = at[:3]
			}
			if len(at) != 3 {
				return fmt.Errorf("not TLV of %s: an instance %d of a resource in it", at, e.id)
			}
			err = r.value(e.body, at.in(e.id))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// resource gives the path of a resource that is found at a path: in an object,
// in an instance of it, or as itself.
func (p Path) resource(id int) (Path, bool) {
	switch len(p) {
	case 1:
		return p.in(0, id), true
	case 2:
		return p.in(id), true
	}
	return p[:3], p[2] == id
}

func (r *tlvReader) value(b []byte, at Path) error {
	v, unit, err := Read(b, at)
	if err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if v.IsValid() {
		r.out = append(r.out, Value{at, v, unit})
	}
	return nil
}

// Read reads the bytes of one value by its type in the table. What is not there
// is a text where it can be one, a number where it is as short as one, else the
// bytes in base64url. The value is the
// zero Value where it is a number that is none.
func Read(b []byte, at Path) (devices.Value, devices.Unit, error) {
	known, ok := Resource{}, false
	if len(at) >= 3 {
		known, ok = Find(at[0], at[2])
	}
	if !ok {
		if len(b) > 0 && printable(b) {
			return devices.Text(string(b)), "", nil
		}
		known.Type = Opaque
		if n := len(b); n == 1 || n == 2 { // too short for all else
			known.Type = Integer
		}
	}
	switch known.Type {
	case String:
		if !utf8.Valid(b) {
			return devices.Value{}, "", errors.New("not a text")
		}
		return devices.Text(string(b)), "", nil
	case Boolean:
		if len(b) != 1 || b[0] > 1 {
			return devices.Value{}, "", errors.New("not a truth value")
		}
		return devices.Bool(b[0] == 1), "", nil
	case Float:
		var f float64
		switch len(b) {
		case 4:
			f, _ = strconv.ParseFloat(strconv.FormatFloat(float64(math.Float32frombits(binary.BigEndian.Uint32(b))), 'g', -1, 32), 64)
		case 8:
			f = math.Float64frombits(binary.BigEndian.Uint64(b))
		default:
			return devices.Value{}, "", fmt.Errorf("%d bytes are no float", len(b))
		}
		return devices.Number(f), known.Unit, nil
	case Integer, Time, Unsigned:
		if n := len(b); n != 1 && n != 2 && n != 4 && n != 8 {
			return devices.Value{}, "", fmt.Errorf("%d bytes are no whole number", len(b))
		}
		var whole uint64
		for _, octet := range b {
			whole = whole<<8 | uint64(octet)
		}
		text := strconv.FormatUint(whole, 10)
		if known.Type != Unsigned {
			shift := 64 - 8*len(b)
			text = strconv.FormatInt(int64(whole<<shift)>>shift, 10)
		}
		v, err := devices.ParseNumber(text)
		return v, known.Unit, err
	case Link:
		if len(b) != 4 {
			return devices.Value{}, "", errors.New("not a link to an object")
		}
		return devices.Text(fmt.Sprintf("%d:%d", binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))), "", nil
	}
	if len(b) > maxText*3/4 {
		return devices.Value{}, "", fmt.Errorf("%d bytes are more than a value may have", len(b))
	}
	return devices.Text(base64.RawURLEncoding.EncodeToString(b)), "", nil
}

func printable(b []byte) bool {
	for _, r := range string(b) {
		if r == utf8.RuneError || r < ' ' || r == 0x7f {
			return false
		}
	}
	return true
}

// Parse reads a value that is written as a text: by a device as text/plain
// (section 7.4.2), or by people.
func Parse(text string, at Path) (devices.Value, devices.Unit, error) {
	known, ok := Resource{Type: String}, false
	if len(at) >= 3 {
		if known, ok = Find(at[0], at[2]); !ok {
			known.Type = String
		}
	}
	if len(text) > maxText || !utf8.ValidString(text) {
		return devices.Value{}, "", fmt.Errorf("not a text of at most %d bytes", maxText)
	}
	switch known.Type {
	case Boolean:
		switch text {
		case "1", "true", "on":
			return devices.Bool(true), "", nil
		case "0", "false", "off":
			return devices.Bool(false), "", nil
		}
		return devices.Value{}, "", fmt.Errorf("%.20q is not a truth value", text)
	case Float, Integer, Time, Unsigned:
		v, err := devices.ParseNumber(text)
		if err != nil {
			return devices.Value{}, "", fmt.Errorf("%.20q is not a number", text)
		}
		if _, whole := v.Int(); !whole && known.Type != Float {
			return devices.Value{}, "", fmt.Errorf("%.20q is not a whole number", text)
		}
		return v, known.Unit, nil
	}
	if !ok {
		if v, err := devices.ParseNumber(text); err == nil {
			return v, "", nil
		}
	}
	return devices.Text(text), "", nil
}

// AppendTLV writes one resource with its value, in the type of the table.
func AppendTLV(b []byte, at Path, v devices.Value) ([]byte, error) {
	known, ok := Resource{}, false
	if len(at) >= 3 {
		known, ok = Find(at[0], at[2])
	}
	if !ok {
		return nil, fmt.Errorf("the type of %s is not known", at)
	}
	var body []byte
	n, whole := v.Int()
	switch {
	case known.Type == Boolean && v.Kind() == devices.BoolValue:
		body = []byte{0}
		if v.Bool() {
			body[0] = 1
		}
	case known.Type == Float && v.Kind() == devices.NumberValue:
		body = binary.BigEndian.AppendUint64(nil, math.Float64bits(v.Float()))
	case (known.Type == Integer || known.Type == Time || known.Type == Unsigned && n >= 0) && whole:
		switch {
		case n == int64(int8(n)):
			body = []byte{byte(n)}
		case n == int64(int16(n)):
			body = binary.BigEndian.AppendUint16(nil, uint16(n))
		case n == int64(int32(n)):
			body = binary.BigEndian.AppendUint32(nil, uint32(n))
		default:
			body = binary.BigEndian.AppendUint64(nil, uint64(n))
		}
	case known.Type == String && v.Kind() == devices.TextValue:
		body = []byte(v.String())
	default:
		return nil, fmt.Errorf("%.40s is no value for %s", v, at)
	}
	return appendEntry(b, resource, at[2], body), nil
}

func appendEntry(b []byte, kind, id int, body []byte) []byte {
	head := byte(kind << 6)
	if id > 255 {
		head |= 1 << 5
	}
	size := len(body)
	switch {
	case size < 8:
		head |= byte(size)
	case size < 1<<8:
		head |= 1 << 3
	case size < 1<<16:
		head |= 2 << 3
	default:
		head |= 3 << 3
	}
	b = append(b, head)
	if id > 255 {
		b = append(b, byte(id>>8))
	}
	b = append(b, byte(id))
	switch {
	case size >= 1<<16:
		b = append(b, byte(size>>16), byte(size>>8), byte(size))
	case size >= 1<<8:
		b = append(b, byte(size>>8), byte(size))
	case size >= 8:
		b = append(b, byte(size))
	}
	return append(b, body...)
}

// Pack writes one value as SenML (section 7.4.5), in CBOR or in JSON. Its type is
// that of the table, where that is known: a float is written as one.
func Pack(at Path, v devices.Value, asCBOR bool) ([]byte, error) {
	name, known := "/"+at.String(), Resource{}
	if len(at) >= 3 {
		known, _ = Find(at[0], at[2])
	}
	var value any = v.String()
	label, number := "vs", 3
	switch n, whole := v.Int(); {
	case v.Kind() == devices.BoolValue:
		value, label, number = v.Bool(), "vb", 4
	case v.Kind() == devices.NumberValue && whole && known.Type != Float:
		value, label, number = n, "v", 2
	case v.Kind() == devices.NumberValue:
		value, label, number = v.Float(), "v", 2
	}
	if asCBOR {
		return cbor.Marshal([]map[int]any{{0: name, number: value}})
	}
	return json.Marshal([]map[string]any{{"n": name, label: value}})
}
