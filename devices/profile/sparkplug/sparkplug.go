// Package sparkplug reads the payloads of Sparkplug B (Eclipse Sparkplug 3.0,
// section 6.4; sparkplug_b.proto of Eclipse Tahu), as far as metrics with plain
// values go. DataSets, Templates and arrays are passed over.
package sparkplug

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Payload is one message.
type Payload struct {
	Timestamp uint64 // ms since 1970; 0 where there is none
	Metrics   []Metric
	Seq       uint64
}

// A Metric is one value. Only a birth is sure to name it; later it may have its
// alias alone (section 6.4.5).
type Metric struct {
	Name         string
	Alias        uint64
	HasAlias     bool
	Timestamp    uint64
	Type         Type // 0 where the message leaves it to the birth
	IsHistorical bool
	IsTransient  bool
	IsNull       bool
	Unit         string // the property engUnit, which is a custom
	ReadOnly     bool   // the property readOnly, another
	Value        devices.Value
	// Raw is a whole number as it stands in the message, where Type is 0 and
	// only the birth can tell its sign.
	Raw uint64
}

// Type is a datatype (section 6.4.16).
type Type uint32

// The types of plain values.
const (
	Int8 Type = iota + 1
	Int16
	Int32
	Int64
	UInt8
	UInt16
	UInt32
	UInt64
	Float
	Double
	Boolean
	String
	DateTime
	Text
	UUID
)

// Bits is the width of a type with a sign, 0 for others.
func (t Type) Bits() int {
	if t >= Int8 && t <= Int64 {
		return 8 << (t - 1)
	}
	return 0
}

const maxMetrics = 5000

var errNot = errors.New("not a Sparkplug payload")

// Write makes a message that sets one metric (sections 6.4.18 and 6.4.22).
func Write(name string, t Type, value string, at time.Time) (string, error) {
	m := protowire.AppendTag(nil, 1, protowire.BytesType)
	m = protowire.AppendString(m, name)
	m = varint(m, 3, uint64(at.UnixMilli()))
	m = varint(m, 4, uint64(t))
	var err error
	switch {
	case t == Boolean:
		var on bool
		on, err = strconv.ParseBool(value)
		m = varint(m, 14, protowire.EncodeBool(on))
	case t == Float:
		var f float64
		f, err = strconv.ParseFloat(value, 32)
		m = protowire.AppendFixed32(protowire.AppendTag(m, 12, protowire.Fixed32Type), math.Float32bits(float32(f)))
	case t == Double:
		var f float64
		f, err = strconv.ParseFloat(value, 64)
		m = protowire.AppendFixed64(protowire.AppendTag(m, 13, protowire.Fixed64Type), math.Float64bits(f))
	case t >= Int8 && t <= Int64:
		var n int64
		n, err = strconv.ParseInt(value, 10, t.Bits())
		v := uint64(n)
		if t != Int64 { // int_value is a uint32: two's complement of 32 bits
			v = uint64(uint32(n))
		}
		m = varint(m, whole(t), v)
	case t >= UInt8 && t <= UInt64:
		var n uint64
		n, err = strconv.ParseUint(value, 10, 8<<(t-UInt8))
		m = varint(m, whole(t), n)
	case t == String || t == Text:
		m = protowire.AppendString(protowire.AppendTag(m, 15, protowire.BytesType), value)
	default:
		return "", fmt.Errorf("a metric of type %d cannot be written", t)
	}
	if err != nil {
		return "", fmt.Errorf("%.40q does not fit the metric", value)
	}
	p := varint(nil, 1, uint64(at.UnixMilli()))
	p = protowire.AppendBytes(protowire.AppendTag(p, 2, protowire.BytesType), m)
	return string(p), nil
}

// whole is the member of a whole number: int_value, a uint32, or long_value, a
// uint64.
func whole(t Type) protowire.Number {
	if t == Int64 || t == UInt64 {
		return 11
	}
	return 10
}

func varint(b []byte, number protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), v)
}

// Parse reads a message.
func Parse(b []byte) (p Payload, err error) {
	err = each(b, func(number protowire.Number, v uint64, inner []byte) error {
		switch number {
		case 1:
			p.Timestamp = v
		case 2:
			if len(p.Metrics) == maxMetrics {
				return fmt.Errorf("more than %d metrics", maxMetrics)
			}
			m, err := parseMetric(inner)
			if err != nil {
				return err
			}
			p.Metrics = append(p.Metrics, m)
		case 3:
			p.Seq = v
		}
		return nil
	})
	return p, err
}

func parseMetric(b []byte) (m Metric, err error) {
	var kind protowire.Number
	var text []byte
	var properties []byte
	err = each(b, func(number protowire.Number, v uint64, inner []byte) error {
		switch number {
		case 1:
			m.Name = string(inner)
		case 2:
			m.Alias, m.HasAlias = v, true
		case 3:
			m.Timestamp = v
		case 4:
			m.Type = Type(v)
		case 5:
			m.IsHistorical = v != 0
		case 6:
			m.IsTransient = v != 0
		case 7:
			m.IsNull = v != 0
		case 9:
			properties = inner
		case 10, 11, 12, 13, 14, 15:
			kind, m.Raw, text = number, v, inner
		}
		return nil
	})
	if err != nil {
		return m, err
	}
	m.Unit, m.ReadOnly = customs(properties)
	if !m.IsNull {
		m.Value = value(kind, m.Type, m.Raw, text)
	}
	return m, nil
}

func value(kind protowire.Number, t Type, v uint64, text []byte) devices.Value {
	var literal string
	switch kind {
	case 10, 11:
		if bits := t.Bits(); bits > 0 {
			literal = strconv.FormatInt(int64(v<<(64-bits))>>(64-bits), 10)
		} else {
			literal = strconv.FormatUint(v, 10)
		}
	case 12:
		literal = strconv.FormatFloat(float64(math.Float32frombits(uint32(v))), 'f', -1, 32)
	case 13:
		return devices.Number(math.Float64frombits(v))
	case 14:
		return devices.Bool(v != 0)
	case 15:
		return devices.Text(string(text))
	}
	n, err := devices.ParseNumber(literal)
	if err != nil {
		return devices.Value{}
	}
	return n
}

// customs finds the properties engUnit and readOnly in a PropertySet {1 keys, 2
// values}, whose values are {1 type, …, 7 boolean_value, 8 string_value}.
func customs(b []byte) (unit string, readOnly bool) {
	var keys []string
	at := 0
	_ = each(b, func(number protowire.Number, _ uint64, inner []byte) error {
		if number == 1 {
			keys = append(keys, strings.ToLower(string(inner)))
		}
		return nil
	})
	_ = each(b, func(number protowire.Number, _ uint64, inner []byte) error {
		if number != 2 || at == len(keys) {
			return nil
		}
		key := keys[at]
		at++
		return each(inner, func(n protowire.Number, v uint64, text []byte) error {
			switch {
			case n == 8 && (key == "engunit" || key == "engineering units"):
				unit = string(text)
			case n == 7 && key == "readonly":
				readOnly = v != 0
			}
			return nil
		})
	})
	return unit, readOnly
}

// each calls f for the fields of a protobuf message.
func each(b []byte, f func(number protowire.Number, v uint64, inner []byte) error) error {
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errNot
		}
		b = b[n:]
		var v uint64
		var inner []byte
		switch wire {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var w uint32
			w, n = protowire.ConsumeFixed32(b)
			v = uint64(w)
		case protowire.Fixed64Type:
			v, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			inner, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, wire, b)
		}
		if n < 0 {
			return errNot
		}
		b = b[n:]
		if err := f(number, v, inner); err != nil {
			return err
		}
	}
	return nil
}
