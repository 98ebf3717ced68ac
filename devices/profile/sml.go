package profile

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// readSML makes a document of the messages in a frame of the Smart Message
// Language (BSI TR-03109-1 Annex IV): a member for each entry of a list of values,
// called by its OBIS code, with scaler and unit applied; "device" is the meter's
// server id in hex. Frames are checked as a whole, so the checksums of messages are
// not looked at; some meters write them in their own way.
//
// The capture unsigned_power has ranges of server ids, ID..ID with blanks between:
// of meters that send a power of 1 to 3 bytes as if it were signed, and it is not.
func readSML(payload []byte, captures map[string]string) (doc *node, _ string, _ devices.Availability, err error) {
	r := smlReader{rest: payload}
	var s smlList
	for messages := 0; len(bytes.Trim(r.rest, "\x00")) > 0; messages++ {
		if messages == 16 {
			return nil, "", 0, errors.New("not SML: too many messages")
		}
		m, err := r.item(0)
		if err != nil {
			return nil, "", 0, fmt.Errorf("not SML: %w", err)
		}
		if body := m.at(3); m.kind != smlSequence || len(m.items) != 6 || body.kind != smlSequence || len(body.items) != 2 {
			return nil, "", 0, errors.New("not SML: a message without a body")
		} else if body.at(0).number == smlGetListResponse {
			s.add(body.at(1))
		}
	}
	if len(s.values) == 0 {
		return nil, "", 0, errors.New("no list of values in it")
	}
	return s.document(captures["unsigned_power"]), "", 0, nil
}

// smlGetListResponse is the tag of the message that holds values.
const smlGetListResponse = 0x0701

// smlItem is one value of the encoding.
type smlItem struct {
	kind   smlKind
	bytes  []byte
	number uint64 // of an integer, its sign extended
	items  []smlItem
}

type smlKind uint8

const (
	smlAbsent   smlKind = iota // also the end of a message
	smlOctets   smlKind = 0x0f // the others are those of the type-length field
	smlBool     smlKind = 4
	smlInteger  smlKind = 5
	smlUnsigned smlKind = 6
	smlSequence smlKind = 7
)

func (i smlItem) at(place int) smlItem {
	if place < len(i.items) {
		return i.items[place]
	}
	return smlItem{}
}

type smlReader struct {
	rest []byte
	read int // items
}

const maxSMLDepth = 8

// item reads one item and all that is in it.
func (r *smlReader) item(depth int) (smlItem, error) {
	if r.read++; r.read > maxMembers || depth > maxSMLDepth {
		return smlItem{}, errors.New("too many values, or too deep")
	}
	kind, size, err := r.typeLength()
	if err != nil {
		return smlItem{}, err
	}
	item := smlItem{kind: kind}
	if kind == smlSequence {
		if size > len(r.rest) {
			return item, errors.New("a list ends too early")
		}
		for range size {
			inner, err := r.item(depth + 1)
			if err != nil {
				return item, err
			}
			item.items = append(item.items, inner)
		}
		return item, nil
	}
	if size > len(r.rest) {
		return item, errors.New("a value ends too early")
	}
	item.bytes, r.rest = r.rest[:size], r.rest[size:]
	if kind == smlInteger || kind == smlUnsigned {
		if size == 0 || size > 8 {
			return item, fmt.Errorf("a number of %d bytes", size)
		}
		for _, octet := range item.bytes {
			item.number = item.number<<8 | uint64(octet)
		}
		if kind == smlInteger {
			item.number = uint64(signed(item.number, 8*size))
		}
	}
	return item, nil
}

// typeLength reads what stands before a value. The length is of the value alone,
// or counts the items of a list.
func (r *smlReader) typeLength() (kind smlKind, size int, err error) {
	var first byte
	for n := 1; ; n++ {
		if len(r.rest) == 0 || n > 4 {
			return 0, 0, errors.New("a value ends too early")
		}
		octet := r.rest[0]
		r.rest = r.rest[1:]
		if n == 1 {
			first = octet
		}
		size = size<<4 | int(octet&0x0f)
		if octet&0x80 != 0 {
			continue
		}
		kind = smlKind(first >> 4 & 7)
		if kind != smlSequence {
			size -= n
		}
		switch {
		case first == 0:
			return smlAbsent, 0, nil
		case kind == 0 && size <= 0:
			return smlAbsent, 0, nil
		case kind == 0:
			return smlOctets, size, nil
		case size < 0 || kind < smlBool:
			return 0, 0, fmt.Errorf("a value of the type %02x", first)
		}
		return kind, size, nil
	}
}

// smlList is the values of a frame.
type smlList struct {
	server []byte
	at     uint64 // seconds since 1970, 0 where only the seconds of the meter are told
	values []smlValue
}

type smlValue struct {
	name   string
	node   *node
	octets []byte
	power  *node // where it is another one that is not signed
}

// add takes the body of a SML_GetList.Res: client, server, list, time, values,
// signature, time of the gateway.
func (s *smlList) add(body smlItem) {
	if server := body.at(1); server.kind == smlOctets && s.server == nil {
		s.server = server.bytes
	}
	if at := body.at(3); at.at(0).number == 2 { // a timestamp, and no seconds index
		s.at = at.at(1).number
	}
	for _, entry := range body.at(4).items {
		code := entry.at(0).bytes
		if len(entry.items) != 7 || len(code) != 6 {
			continue
		}
		v := smlValue{name: fmt.Sprintf("%d-%d:%d.%d.%d*%d", code[0], code[1], code[2], code[3], code[4], code[5])}
		value := entry.at(5)
		switch value.kind {
		case smlOctets:
			v.octets = value.bytes
			v.node = &node{value: devices.Text(octetsText(value.bytes))}
		case smlBool:
			v.node = &node{value: devices.Bool(len(value.bytes) > 0 && value.bytes[0] != 0)}
		case smlInteger, smlUnsigned:
			if v.node = entry.quantity(value.number, value.kind == smlInteger); v.node == nil {
				continue
			}
			if v.name == "1-0:16.7.0*255" && value.kind == smlInteger && len(value.bytes) < 4 {
				v.power = entry.quantity(value.number&(1<<(8*len(value.bytes))-1), false)
			}
		default:
			continue
		}
		s.values = append(s.values, v)
	}
}

// quantity applies the scaler and the unit of an entry to a number; nil where it
// gives none.
func (entry smlItem) quantity(number uint64, negative bool) *node {
	literal := strconv.FormatUint(number, 10)
	if negative {
		literal = strconv.FormatInt(int64(number), 10)
	}
	n, err := devices.ParseNumber(shifted(literal, int64(entry.at(4).number)))
	if err != nil {
		return nil
	}
	return &node{value: n, unit: dlmsUnits[entry.at(3).number]}
}

// octetsText gives a text where the octets are one, else hex.
func octetsText(b []byte) string {
	if utf8.Valid(b) && !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return string(b)
	}
	return hex.EncodeToString(b)
}

// smlServers are the codes of a meter's number, where the list does not tell it.
var smlServers = []string{"1-0:96.1.0*255", "1-0:0.0.9*255", "1-0:0.0.0*255", "0-0:96.1.255*255"}

func (s *smlList) document(unsignedPower string) *node {
	doc := &node{kind: objectNode}
	server := s.server
	for _, code := range smlServers {
		for _, v := range s.values {
			if len(server) == 0 && v.name == code {
				server = v.octets
			}
		}
	}
	id := hex.EncodeToString(server)
	if id != "" {
		doc.members = append(doc.members, member{"device", &node{value: devices.Text(id)}})
	}
	unsigned := slices.ContainsFunc(strings.Fields(unsignedPower), func(span string) bool {
		first, last, _ := strings.Cut(span, "..")
		return len(id) == len(first) && id >= first && id <= last
	})
	if at, err := devices.ParseNumber(strconv.FormatUint(s.at, 10)); err == nil && s.at > 0 {
		doc.members = append(doc.members, member{"time", &node{value: at}})
	}
	for _, v := range s.values {
		if unsigned && v.power != nil {
			v.node = v.power
		}
		doc.members = append(doc.members, member{v.name, v.node})
	}
	return doc
}

// dlmsUnits are the units of DLMS (Blue Book, table of enum physical units) that a
// meter may have.
var dlmsUnits = map[uint64]string{
	4: "d", 5: "h", 6: "min", 7: "s", 8: "°", 9: "°C", 11: "m", 12: "m/s", 13: "m³", 14: "m³", 15: "m³/h", 16: "m³/h",
	19: "l", 20: "kg", 23: "Pa", 24: "bar", 25: "J", 27: "W", 28: "VA", 29: "var", 30: "Wh", 31: "VAh", 32: "varh",
	33: "A", 34: "C", 35: "V", 38: "Ω", 44: "Hz", 56: "%", 57: "Ah",
}
