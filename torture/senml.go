package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"math"
	"strings"
)

// The readings in an item of a log node, decoded from the RFCs and XEPs alone.

// A reading is what a device numbered.
type reading struct {
	n      int     // the value of its field n
	at     float64 // seconds since 1970
	marked bool    // its time is uncertain, between
	from   float64 // this and
	to     float64 // this, each with a bound or infinite
}

// readings gives the readings of an item, in order, and the hash of its bytes.
func readings(device string, item []byte) (rs []reading, cid string, err error) {
	var data struct {
		XMLName xml.Name `xml:"urn:xmpp:bob data"`
		CID     string   `xml:"cid,attr"`
		Type    string   `xml:"type,attr"`
		Text    string   `xml:",chardata"`
	}
	if err := xml.Unmarshal(item, &data); err != nil {
		return nil, "", fmt.Errorf("cannot read an item: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(data.Text))
	if err != nil {
		return nil, "", fmt.Errorf("cannot read an item: %w", err)
	}
	if want := fmt.Sprintf("sha-256+%x@bob.xmpp.org", sha256.Sum256(raw)); data.CID != want || data.Type != "application/senml+cbor" {
		return nil, "", fmt.Errorf("an item has type %q and cid %q, want %q", data.Type, data.CID, want)
	}
	pack, rest, err := cbor(raw, 0)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow", len(rest))
	}
	if err != nil {
		return nil, "", fmt.Errorf("cannot read a pack: %w", err)
	}
	rs, err = resolve(device, pack)
	return rs, data.CID, err
}

// Labels of SenML in CBOR, RFC 8428 section 6.
const (
	labelBaseName  = -2
	labelBaseTime  = -3
	labelBaseValue = -5
	labelName      = 0
	labelValue     = 2
	labelTime      = 6
	labelClock     = "clk" // of the gateway's own: the bounds of an uncertain time
)

func resolve(device string, pack any) ([]reading, error) {
	records, ok := pack.([]any)
	if !ok {
		return nil, errors.New("a pack is no array")
	}
	var rs []reading
	base, offset, since := "", 0.0, 0.0
	for _, r := range records {
		record, ok := r.(map[any]any)
		if !ok {
			return nil, errors.New("a record is no map")
		}
		if s, ok := record[int64(labelBaseName)].(string); ok {
			base = s
		}
		if v, ok := number(record[int64(labelBaseValue)]); ok {
			offset = v
		}
		if v, ok := number(record[int64(labelBaseTime)]); ok {
			since = v
		}
		name, _ := record[int64(labelName)].(string)
		if !strings.Contains(base+name, "/"+device+"/") {
			return nil, fmt.Errorf("a record of %s is named %q", device, base+name)
		}
		if !strings.HasSuffix(base+name, "/n") {
			continue
		}
		v, ok := number(record[int64(labelValue)])
		if !ok || v+offset != math.Trunc(v+offset) {
			return nil, fmt.Errorf("%s has no whole number but %v", base+name, record)
		}
		at, _ := number(record[int64(labelTime)])
		r := reading{n: int(v + offset), at: since + at}
		if bounds, ok := record[labelClock].([]any); ok && len(bounds) == 2 {
			r.marked, r.from, r.to = true, math.Inf(-1), math.Inf(1)
			if from, ok := number(bounds[0]); ok {
				r.from = from
			}
			if to, ok := number(bounds[1]); ok {
				r.to = to
			}
		}
		rs = append(rs, r)
	}
	return rs, nil
}

func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

var errShort = errors.New("the CBOR is cut short")

// cbor decodes one item (RFC 8949) of those kinds that SenML needs, and gives
// what follows it.
func cbor(b []byte, depth int) (v any, rest []byte, err error) {
	if len(b) == 0 || depth > 4 {
		return nil, nil, errShort
	}
	major, info := b[0]>>5, b[0]&31
	b = b[1:]
	n := uint64(info)
	if info >= 24 {
		size := 1 << (info - 24)
		if info > 27 || len(b) < size {
			return nil, nil, errShort
		}
		n = binary.BigEndian.Uint64(append(make([]byte, 8-size), b[:size]...))
		b = b[size:]
	}
	switch major {
	case 0:
		return int64(n), b, nil
	case 1:
		return -1 - int64(n), b, nil
	case 2, 3:
		if n > uint64(len(b)) {
			return nil, nil, errShort
		}
		return string(b[:n]), b[n:], nil
	case 4:
		var list []any
		for range n {
			if v, b, err = cbor(b, depth+1); err != nil {
				return nil, nil, err
			}
			list = append(list, v)
		}
		return list, b, nil
	case 5:
		m := make(map[any]any)
		for range n {
			var k any
			if k, b, err = cbor(b, depth+1); err != nil {
				return nil, nil, err
			}
			if v, b, err = cbor(b, depth+1); err != nil {
				return nil, nil, err
			}
			switch k.(type) {
			case int64, string:
			default:
				return nil, nil, fmt.Errorf("a map has the key %v", k)
			}
			m[k] = v
		}
		return m, b, nil
	case 7:
		switch info {
		case 20, 21:
			return info == 21, b, nil
		case 22:
			return nil, b, nil
		case 25:
			return half(uint16(n)), b, nil
		case 26:
			return float64(math.Float32frombits(uint32(n))), b, nil
		case 27:
			return math.Float64frombits(n), b, nil
		}
	}
	return nil, nil, fmt.Errorf("CBOR of major type %d, %d", major, n)
}

// half is a number of 16 bits, RFC 8949 appendix D.
func half(b uint16) float64 {
	sign, exponent, fraction := 1.0, int(b>>10&31), float64(b&1023)
	if b>>15 == 1 {
		sign = -1
	}
	switch exponent {
	case 0:
		return sign * math.Ldexp(fraction, -24)
	case 31:
		return math.NaN() // no reading is
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}
