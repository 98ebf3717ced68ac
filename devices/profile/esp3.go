package profile

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
)

// readESP3 makes a document of a packet of the EnOcean Serial Protocol 3 (V1.51),
// whose checksums are good. What a telegram means is not in it: its EnOcean
// Equipment Profile (EEP 2.6.8) is what the captures hold under the sender's id, or
// under the kind of telegram: rps, 1bs, 4bs, vld. Values stand under the name of
// the profile: A5-02-05/TMP.
func readESP3(payload []byte, captures map[string]string) (doc *node, _ string, _ devices.Availability, err error) {
	const header = 6
	if len(payload) < header+1 {
		return nil, "", 0, errors.New("not a packet of ESP3")
	}
	size := int(payload[1])<<8 | int(payload[2])
	if header+size > len(payload) || size == 0 {
		return nil, "", 0, errors.New("a packet of ESP3 without data")
	}
	data, optional := payload[header:header+size], payload[header+size:]
	doc = &node{kind: objectNode}
	switch payload[4] {
	case 1:
		err = readTelegram(doc, data, captures)
	case 2:
		doc.put([]string{"response"}, named(data[0], "RET_OK", "RET_ERROR", "RET_NOT_SUPPORTED", "RET_WRONG_PARAM", "RET_OPERATION_DENIED", "RET_LOCK_SET", "RET_BUFFER_TO_SMALL", "RET_NO_FREE_BUFFER"))
	case 4:
		doc.put([]string{"event"}, named(data[0], "0", "SA_RECLAIM_NOT_SUCCESSFUL", "SA_CONFIRM_LEARN", "SA_LEARN_ACK", "CO_READY", "CO_EVENT_SECUREDEVICES", "CO_DUTYCYCLE_LIMIT", "CO_TRANSMIT_FAILED"))
	case 5, 6, 7: // a command to the gateway, or of remote management
	default:
		err = fmt.Errorf("a packet of the type %d", payload[4])
	}
	if err != nil {
		return nil, "", 0, err
	}
	if payload[4] == 1 && len(optional) >= 6 && optional[5] != 0xff { // subtelegrams, destination, strength
		doc.put([]string{"rssi"}, whole(-int64(optional[5])))
	}
	return doc, "", 0, nil
}

// named makes a text of a number that has names.
func named(n byte, names ...string) *node {
	if int(n) < len(names) {
		return &node{value: devices.Text(names[n])}
	}
	return &node{value: devices.Text(strconv.Itoa(int(n)))}
}

func whole(n int64) *node {
	v, err := devices.ParseNumber(strconv.FormatInt(n, 10))
	if err != nil {
		return &node{kind: nullNode}
	}
	return &node{value: v}
}

// readTelegram reads one of radio: the kind, the data, the sender's id, a status.
func readTelegram(doc *node, data []byte, captures map[string]string) error {
	if len(data) < 7 {
		return errors.New("a telegram that is too short")
	}
	kind, body, status := data[0], data[1:len(data)-5], data[len(data)-1]
	sender := hex.EncodeToString(data[len(data)-5 : len(data)-1])
	doc.put([]string{"device"}, &node{value: devices.Text(sender)})
	if least := map[byte]int{0xf6: 1, 0xd5: 1, 0xa5: 4, 0xd2: 1, 0xd4: 7}[kind]; len(body) < least {
		return errors.New("a telegram that is too short")
	}
	eep := captures[sender]
	own := func(prefix, usual string) {
		if !strings.HasPrefix(eep, prefix) {
			eep = captures[usual]
		}
	}
	switch kind {
	case 0xf6:
		own("F6-", "rps")
	case 0xd5:
		if body[0]&0x08 == 0 {
			return taught(doc, "D5-00-01")
		}
		own("D5-", "1bs")
	case 0xa5:
		if body[3]&0x08 == 0 {
			if body[3]&0x80 == 0 { // without a profile, which somebody has to look up
				doc.put([]string{"teach_in_without_profile"}, &node{value: devices.Bool(true)})
				return nil
			}
			return taught(doc, fmt.Sprintf("A5-%02X-%02X", body[0]>>2, (body[0]&3)<<5|body[1]>>3))
		}
		own("A5-", "4bs")
	case 0xd2:
		own("D2-", "vld")
	case 0xd4: // universal teach-in: a query
		if body[0]&0x0f == 0 && body[0]>>4&3 != 1 {
			return taught(doc, fmt.Sprintf("%02X-%02X-%02X", body[6], body[5], body[4]))
		}
		return nil
	case 0x30, 0x31, 0x35:
		return errors.New("the telegram is encrypted")
	default:
		return fmt.Errorf("a telegram of the kind %02X", kind)
	}
	values, known := eepFields(eep, body)
	if !known {
		doc.put([]string{"data"}, &node{value: devices.Text(hex.EncodeToString(body))})
		return nil
	}
	for _, f := range values {
		if v := f.read(body); v != nil {
			doc.put([]string{eep, f.name}, v)
		}
	}
	if kind == 0xf6 {
		readRocker(doc.member(eep), status)
	}
	return nil
}

// taught tells that a sender announced its profile.
func taught(doc *node, eep string) error {
	doc.put([]string{"teach_in"}, &node{value: devices.Text(eep)})
	return nil
}

// readRocker adds the bits of the status. Where NU is not set, no button is named:
// it was let go.
func readRocker(values *node, status byte) {
	if values == nil {
		return
	}
	named := status&0x10 != 0
	values.put([]string{"T21"}, &node{value: devices.Bool(status&0x20 != 0)})
	values.put([]string{"NU"}, &node{value: devices.Bool(named)})
	if named {
		if second := values.member("SA"); second != nil && second.value.String() == "No 2nd action" {
			values.remove("R2")
		}
		return
	}
	values.remove("R1")
	values.remove("R2")
}

// remove takes a member out of an object.
func (n *node) remove(name string) {
	kept := n.members[:0]
	for _, m := range n.members {
		if m.name != name {
			kept = append(kept, m)
		}
	}
	n.members = kept
}
