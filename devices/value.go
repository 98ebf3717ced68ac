package devices

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// A Value is a number, a truth value or a text. The zero Value is none of
// these. Values are comparable with ==.
//
// A number is kept as the literal that the device sent, because its decimals
// tell its precision: 21.40 is not 21.4 (XEP-0323 section 3.2).
type Value struct {
	kind ValueKind
	list bool // a text that is items with commas between
	text string
}

// ValueKind says what a [Value] is.
type ValueKind uint8

// The kinds of a Value.
const (
	InvalidValue ValueKind = iota
	NumberValue
	BoolValue
	TextValue
)

// maxNumberLength bounds a literal: nothing that was measured needs more.
const maxNumberLength = 64

var errNotANumber = errors.New("not a finite decimal number")

// ParseNumber takes a decimal literal as JSON (RFC 8259 section 6) writes it;
// a leading '+', leading zeros and a bare leading or trailing point, which
// firmwares send too, are mended. Infinite and not-a-number words are refused.
func ParseNumber(literal string) (Value, error) {
	s := strings.TrimSpace(literal)
	if s == "" || len(s) > maxNumberLength {
		return Value{}, errNotANumber
	}
	sign := ""
	switch s[0] {
	case '-':
		sign, s = "-", s[1:]
	case '+':
		s = s[1:]
	}
	mantissa, exponent := s, ""
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		mantissa, exponent = s[:i], s[i:]
	}
	whole, fraction, point := strings.Cut(mantissa, ".")
	// Only digits: ParseFloat below takes some forms with '_' too, as 0E0_0.
	if whole == "" && fraction == "" || !digits(whole) || !digits(fraction) || !digits(strings.TrimLeft(exponent, "eE+-")) {
		return Value{}, errNotANumber
	}
	whole = strings.TrimLeft(whole, "0")
	if whole == "" {
		whole = "0"
	}
	out := sign + whole
	if point && fraction != "" {
		out += "." + fraction
	}
	out += exponent
	f, err := strconv.ParseFloat(out, 64)
	if err != nil || math.IsInf(f, 0) || len(out) > maxNumberLength {
		return Value{}, errNotANumber
	}
	return Value{kind: NumberValue, text: out}, nil
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// Number makes a Value of f with the fewest decimals that name it. A number
// that is not finite gives the zero Value.
func Number(f float64) Value {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return Value{}
	}
	format := byte('f')
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		format = 'e'
	}
	return Value{kind: NumberValue, text: strconv.FormatFloat(f, format, -1, 64)}
}

// Bool makes a Value of b.
func Bool(b bool) Value { return Value{kind: BoolValue, text: strconv.FormatBool(b)} }

// Text makes a Value of s.
func Text(s string) Value { return Value{kind: TextValue, text: s} }

// List makes a text of items, with commas between.
func List(items ...string) Value {
	text := strings.Join(items, ",")
	return Value{kind: TextValue, list: strings.Count(text, ",") == len(items)-1, text: text}
}

// Items gives what [List] was given, where v is such a text; nil where not, or
// where one of the items has a comma of its own.
func (v Value) Items() []string {
	if !v.list {
		return nil
	}
	return strings.Split(v.text, ",")
}

// Kind says what v is.
func (v Value) Kind() ValueKind { return v.kind }

// IsValid reports whether v is anything at all.
func (v Value) IsValid() bool { return v.kind != InvalidValue }

// String gives a number as its literal, a truth value as "true" or "false",
// and a text as it is.
func (v Value) String() string { return v.text }

// Float gives the number that v is; 0 where it is none.
func (v Value) Float() float64 {
	if v.kind != NumberValue {
		return 0
	}
	f, _ := strconv.ParseFloat(v.text, 64)
	return f
}

// Int gives the whole number that v is, and whether v is one that was written
// without point and exponent and fits.
func (v Value) Int() (int64, bool) {
	if v.kind != NumberValue {
		return 0, false
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	return n, err == nil
}

// Bool gives the truth value that v is; false where it is none.
func (v Value) Bool() bool { return v.kind == BoolValue && v.text == "true" }
