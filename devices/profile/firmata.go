package profile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// readFirmata makes a document of a message of Firmata (firmata/protocol 2.7.0):
// A0, A1 … for analog pins, D0, D1 … for digital ones, eight of a port at once,
// with port0, port1 … as they came.
func readFirmata(payload []byte, _ map[string]string) (doc *node, _ string, _ devices.Availability, err error) {
	doc = &node{kind: objectNode}
	put := func(name string, v *node) { doc.members = append(doc.members, member{name, v}) }
	if len(payload) == 0 {
		return nil, "", 0, errors.New("not a message of Firmata")
	}
	switch first := payload[0]; {
	case first >= 0xe0 && first <= 0xef && len(payload) == 3:
		put(fmt.Sprintf("A%d", first&0x0f), whole(sevenBits(payload[1:])))
	case first >= 0x90 && first <= 0x9f && len(payload) == 3:
		port, bits := int(first&0x0f), sevenBits(payload[1:])
		put(fmt.Sprintf("port%d", port), whole(bits))
		for i := range 8 {
			put(fmt.Sprintf("D%d", 8*port+i), &node{value: devices.Bool(bits>>i&1 != 0)})
		}
	case first == 0xf9 && len(payload) == 3:
		put("protocol", &node{value: devices.Text(fmt.Sprintf("%d.%d", payload[1], payload[2]))})
	case first == 0xf0 && len(payload) > 2:
		readSysex(payload[1], payload[2:len(payload)-1], put)
	default: // what a board is told
		return nil, "", 0, errors.New("not a message of a board")
	}
	return doc, "", 0, nil
}

// readSysex reads a message of any length.
func readSysex(command byte, data []byte, put func(string, *node)) {
	switch command {
	case 0x79: // report of the firmware
		if len(data) >= 2 {
			put("firmware", &node{value: devices.Text(sevenBitText(data[2:]))})
			put("version", &node{value: devices.Text(fmt.Sprintf("%d.%d", data[0], data[1]))})
		}
	case 0x71: // a text
		put("text", &node{value: devices.Text(sevenBitText(data))})
	case 0x6f: // an analog pin with more bits, or above 15
		if len(data) >= 2 && len(data) <= 6 {
			put("A"+strconv.Itoa(int(data[0])), whole(sevenBits(data[1:])))
		}
	case 0x6e: // the state of a pin
		if len(data) >= 3 && len(data) <= 6 {
			put(fmt.Sprintf("P%d", data[0]), whole(sevenBits(data[2:])))
		}
	}
}

// sevenBits reads a number of seven bits a byte, the lowest first.
func sevenBits(b []byte) (n int64) {
	for i, octet := range b {
		n |= int64(octet&0x7f) << (7 * i)
	}
	return n
}

// sevenBitText reads a text of two bytes a character.
func sevenBitText(b []byte) string {
	var text []byte
	for i := 0; i+1 < len(b); i += 2 {
		text = append(text, byte(sevenBits(b[i:i+2])))
	}
	if !utf8.Valid(text) {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, string(text))
}
