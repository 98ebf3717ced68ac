package profile

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/porchlight-iot/porchlight/devices"
)

// A word is what a word of the device is here.
type word = devices.Value

// wordOf reads a value of words.
func wordOf(n yaml.Node) (v word, ok bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		return v, false
	case n.Tag == "!!bool":
		return devices.Bool(strings.ToLower(n.Value) == "true"), true
	case n.Style == 0 && slices.Contains([]string{"yes", "no", "on", "off", "y", "n"}, strings.ToLower(n.Value)):
		return v, false // true or a text?
	case n.Tag == "!!int" || n.Tag == "!!float":
		v, err := devices.ParseNumber(n.Value)
		return v, err == nil
	}
	return devices.Text(n.Value), true
}

// convert gives the value that the rule makes of a device's; ok is false where
// that is none. The order is: what is no value, words, the number's form, its
// parts, offset and scale, range, rounding.
func (r *fieldRule) convert(v devices.Value) (_ devices.Value, ok bool) {
	if r.Drop || r.isInvalid(v) {
		return v, false
	}
	text := strings.TrimSpace(v.String())
	if meaning, ok := r.words[text]; ok {
		return meaning, true
	}
	if v, ok = short(v); !ok {
		return v, false
	}
	switch {
	case r.Parse == "duration":
		v, ok = parseDuration(text)
	case r.Parse == "hex":
		v, ok = parseHex(text)
	case r.Type == "bool" && r.Bits == nil:
		return parseBool(v)
	case r.Type == "text" && v.Kind() == devices.TextValue:
		return v, true // perhaps a list
	case r.Type == "text":
		return devices.Text(v.String()), true
	case r.Type == "number" || r.Type == "integer" || r.isArithmetic():
		v, ok = number(v)
	default:
		return v, true
	}
	if !ok {
		return v, false
	}
	if v.Kind() != devices.NumberValue {
		return v, true
	}
	return r.calculate(v)
}

func (r *fieldRule) isArithmetic() bool {
	return r.Signed != 0 || r.Bits != nil || r.Offset != 0 || r.Scale != 0 || r.Range != nil || r.Round != nil
}

// number takes a number, or a text that holds one.
func number(v devices.Value) (devices.Value, bool) {
	if v.Kind() == devices.NumberValue {
		return v, true
	}
	v, err := devices.ParseNumber(v.String())
	return v, err == nil && v.Kind() == devices.NumberValue
}

// calculate does the arithmetic of the rule.
func (r *fieldRule) calculate(v devices.Value) (devices.Value, bool) {
	if r.Signed != 0 || r.Bits != nil {
		n, ok := v.Int()
		if !ok {
			return v, false
		}
		switch {
		case r.Bits != nil:
			n = int64(uint64(n) >> r.Bits.At & (1<<r.Bits.Width - 1))
		case r.Sign == "magnitude":
			if top := int64(1) << (r.Signed - 1); n&top != 0 {
				n = -(n &^ top)
			}
		default:
			n = signed(uint64(n), r.Signed)
		}
		v, _ = devices.ParseNumber(strconv.FormatInt(n, 10))
	}
	if r.Offset != 0 || r.Scale != 0 && r.Scale != 1 {
		v = affine(v, r.Offset, cmp.Or(r.Scale, 1))
	}
	if len(r.Range) == 2 && (v.Float() < r.Range[0] || v.Float() > r.Range[1]) {
		return v, false
	}
	if r.Round != nil {
		if decimals(v.String()) > *r.Round {
			v, _ = devices.ParseNumber(strconv.FormatFloat(v.Float(), 'f', *r.Round, 64))
		}
	}
	if r.Type == "integer" {
		v, _ = devices.ParseNumber(strconv.FormatFloat(math.Round(v.Float()), 'f', -1, 64))
	}
	if r.Type == "bool" {
		return parseBool(v)
	}
	return v, v.IsValid()
}

// affine gives (v + offset) * scale with the decimals that it can have, so
// that 2257 * 0.1 is 225.7.
func affine(v devices.Value, offset, scale float64) devices.Value {
	places := max(decimals(v.String()), decimals(plain(offset))) + decimals(plain(scale))
	f := (v.Float() + offset) * scale
	if places > 12 || math.Abs(f) > 1e15 {
		return devices.Number(f)
	}
	out, err := devices.ParseNumber(strconv.FormatFloat(f, 'f', places, 64))
	if err != nil {
		return devices.Number(f)
	}
	return out
}

// plain writes a number without an exponent.
func plain(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// decimals counts those of a literal; many, where it has an exponent.
func decimals(literal string) int {
	if strings.ContainsAny(literal, "eE") {
		return 99
	}
	_, fraction, _ := strings.Cut(literal, ".")
	return len(fraction)
}

// parseBool knows the usual words.
func parseBool(v devices.Value) (devices.Value, bool) {
	switch strings.ToLower(strings.TrimSpace(v.String())) {
	case "true", "on", "yes", "1":
		return devices.Bool(true), true
	case "false", "off", "no", "0":
		return devices.Bool(false), true
	}
	return v, false
}

func parseHex(s string) (devices.Value, bool) {
	n, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(s), "0x"), 16, 63)
	if err != nil {
		return devices.Value{}, false
	}
	v, err := devices.ParseNumber(strconv.FormatUint(n, 10))
	return v, err == nil
}

// short cuts a text that is longer than a value may be, and marks that with an
// ellipsis: its message is acknowledged, and people are to see that there was
// more. ok is false for a word for no value, and for so many bytes that are no
// text, as of a picture.
func short(v devices.Value) (_ devices.Value, ok bool) {
	const more = "…"
	text := v.String()
	switch {
	case v.Kind() != devices.TextValue:
		return v, true
	case len(text) <= maxText:
		return v, !notValue(text)
	case !utf8.ValidString(text):
		return v, false
	}
	return devices.Text(strings.ToValidUTF8(text[:maxText-len(more)], "") + more), true
}

func (r *fieldRule) isInvalid(v devices.Value) bool {
	return slices.ContainsFunc(r.Invalid, func(bad string) bool {
		if v.String() == bad {
			return true
		}
		n, err := devices.ParseNumber(bad)
		if err != nil {
			return false
		}
		own, ok := number(v)
		return ok && n.Float() == own.Float()
	})
}

// kinds are the words for them.
var kinds = map[string]devices.FieldKind{
	"measurement": devices.Measurement, "counter": devices.Counter, "state": devices.Status, "event": devices.Event,
	"setting": devices.Setting, "identity": devices.Identity, "diagnostic": devices.Diagnostic, "fault": devices.Fault,
}

func (r *fieldRule) kind(v devices.Value) devices.FieldKind {
	if k, ok := kinds[r.Kind]; ok {
		return k
	}
	if v.Kind() == devices.NumberValue {
		return devices.Measurement
	}
	return devices.Status
}

// over gives the rule of an announcement, with that of the profile where it
// says nothing.
func (r *fieldRule) over(own *fieldRule) *fieldRule {
	if own == nil {
		return r
	}
	merged := *own
	merged.Drop = r.Drop
	if len(r.Name) > 0 {
		merged.Name = r.Name
	}
	merged.Kind = cmp.Or(r.Kind, own.Kind)
	merged.Type = cmp.Or(r.Type, own.Type)
	if r.Unit != "" {
		merged.Unit, merged.UnitOf, merged.Units = r.Unit, "", nil
	}
	if r.unitless {
		merged.Unit, merged.UnitOf, merged.Units = "", "", nil
	}
	if r.words != nil {
		merged.words = r.words
	}
	merged.Scale = cmp.Or(r.Scale, own.Scale)
	merged.Signed = cmp.Or(r.Signed, own.Signed)
	merged.Invalid = slices.Concat(r.Invalid, own.Invalid)
	return &merged
}

// of makes one number of several members; nil where one is not there.
func (j *joinRule) of(doc *node) *node {
	bits := 8
	if j.Words {
		bits = 16
	}
	var total uint64
	for i, path := range j.Paths {
		n, _ := path.find(doc)
		if n == nil || n.kind != valueNode {
			return nil
		}
		part, ok := n.value.Int()
		if !ok || part < 0 || part >= 1<<bits {
			return nil
		}
		if j.Order == "low_first" {
			total |= uint64(part) << (i * bits)
		} else {
			total = total<<bits | uint64(part)
		}
	}
	v, err := devices.ParseNumber(strconv.FormatUint(total, 10))
	if err != nil {
		return nil
	}
	return &node{value: v}
}

// parseDuration reads days, hours, minutes and seconds: 9T09:29:01.
func parseDuration(s string) (devices.Value, bool) {
	days, clock, ok := strings.Cut(s, "T")
	if !ok {
		days, clock = "0", s
	}
	parts := strings.Split(clock, ":")
	if len(parts) != 3 {
		return devices.Value{}, false
	}
	total := uint64(0)
	for i, part := range append([]string{days}, parts...) {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return devices.Value{}, false
		}
		total += n * []uint64{86400, 3600, 60, 1}[i]
	}
	v, err := devices.ParseNumber(strconv.FormatUint(total, 10))
	return v, err == nil
}
