package bridge

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	nsBoB     = "urn:xmpp:bob"
	typeSenML = "application/senml+cbor"
)

// Payloads of a log node.
const (
	PayloadSenML  = "senml"  // SenML in CBOR: compact
	PayloadFields = "fields" // XEP-0323 fields: readable
)

// data is Bits of Binary (XEP-0231 section 2).
type data struct {
	XMLName xml.Name `xml:"urn:xmpp:bob data"`
	CID     string   `xml:"cid,attr"`
	Type    string   `xml:"type,attr"`
	Base64  string   `xml:",chardata"`
}

// contentID is the cid of b by its SHA-256 (XEP-0231 section 2.1).
func contentID(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha-256+" + hex.EncodeToString(sum[:]) + "@bob.xmpp.org"
}

// EncodeLog makes the payload of one log item out of the oldest n of rs that
// fit in it; n is at least 1 where rs is not empty. It is what [Bridge.PublishLog]
// sends: CBOR, or XML text that begins with '<'. Equal arguments give equal
// bytes. frozen is when the pack's boundaries were decided: a reading that was
// then over a minute old is marked as late where the payload has such a mark.
// room is about how big the stanza may be that carries the pack; 0 is as big as
// one gets.
//
// rs are records of one device in one run, their numbers rising. Where numbers
// are missing between them, SenML tells each number; fields cannot, and the
// pack ends before the gap.
func (b *Bridge) EncodeLog(device devices.ID, frozen time.Time, rs []devices.Record, room int) (payload []byte, n int) {
	if len(rs) == 0 {
		return nil, 0
	}
	var err error
	if b.cfg.Payload == PayloadFields {
		payload, n, err = encodeFieldsLog(device, frozen, rs, within(maxFieldsPack, room, 1))
	} else {
		payload, n, err = b.packs.encode(b.baseName(device), rs, within(maxPack, room, base64Grows))
	}
	if err != nil {
		// Nothing that a Record can hold leads here. PublishLog refuses the
		// empty payload, so that the reading is told as lost, and not kept
		// for ever in front of those after it.
		b.log.Error("a reading cannot be encoded", "device", device, "seq", rs[0].Seq, "error", err)
		return nil, 1
	}
	return payload, n
}

// logEnvelope is about what a publication has on the stream around its payload.
const logEnvelope = 800

const base64Grows = 4.0 / 3

// within gives how long a payload may be, which on the stream becomes longer by
// the factor grows, where its stanza is to fit in room.
func within(most, room int, grows float64) int {
	if room == 0 {
		return most
	}
	return min(most, int(float64(room-logEnvelope)/grows))
}

// LogSize is about how many bytes the publication of a payload has on the
// stream.
func LogSize(payload []byte) int {
	if len(payload) > 0 && payload[0] == '<' {
		return logEnvelope + len(payload)
	}
	return logEnvelope + base64.StdEncoding.EncodedLen(len(payload))
}

// DecodeLog reads the payload element of a log item. bn is the SenML base
// name, <host>/<gateway>/<device>/; empty for fields. The records' Seq count
// from 0, relative to the item's first: use [DecodeItem] for the numbers
// themselves.
func DecodeLog(payloadXML []byte) (device devices.ID, bn string, rs []devices.Record, err error) {
	device, bn, rs, err = decodeLog(payloadXML)
	if err != nil {
		return "", "", nil, err
	}
	first := rs[0].Seq
	for i := range rs {
		switch q := rs[i].Seq; {
		case q == 0:
			rs[i].Seq = uint64(i)
		case first == 0 || q < first:
			return "", "", nil, fmt.Errorf("cannot read a log item: number %d without the number of the first reading", q)
		default:
			rs[i].Seq = q - first
		}
		if i > 0 && rs[i].Seq <= rs[i-1].Seq {
			return "", "", nil, errors.New("cannot read a log item: the numbers of its readings do not rise")
		}
	}
	return device, bn, rs, nil
}

// DecodeItem reads a log item whole: its payload, with the readings' numbers,
// which its id tells. An item that does not hold what its id says is an error.
func DecodeItem(id string, payloadXML []byte) (device devices.ID, bn string, rs []devices.Record, err error) {
	_, first, last, err := ParseItem(id)
	if err != nil {
		return "", "", nil, err
	}
	device, bn, rs, err = decodeLog(payloadXML)
	if err != nil {
		return "", "", nil, err
	}
	for i := range rs {
		if rs[i].Seq == 0 {
			rs[i].Seq = first + uint64(i)
		}
		if i == 0 && rs[i].Seq != first || i > 0 && rs[i].Seq <= rs[i-1].Seq {
			return "", "", nil, fmt.Errorf("cannot read item %s: the numbers of its readings do not rise from %d", id, first)
		}
	}
	if rs[len(rs)-1].Seq != last {
		return "", "", nil, fmt.Errorf("cannot read item %s: it ends with reading %d", id, rs[len(rs)-1].Seq)
	}
	return device, bn, rs, nil
}

// decodeLog reads a payload. A record's Seq is its label q, or 0.
func decodeLog(payloadXML []byte) (device devices.ID, bn string, rs []devices.Record, err error) {
	if len(payloadXML) > 2*maxPackRead {
		return "", "", nil, fmt.Errorf("cannot read a log item of %d bytes: at most %d", len(payloadXML), 2*maxPackRead)
	}
	var root struct{ XMLName xml.Name }
	if err := xml.Unmarshal(payloadXML, &root); err != nil {
		return "", "", nil, fmt.Errorf("cannot read a log item: %v", err)
	}
	switch root.XMLName {
	case xml.Name{Space: nsFields, Local: "fields"}:
		device, rs, err = decodeFields(payloadXML)
	case xml.Name{Space: nsBoB, Local: "data"}:
		bn, rs, err = decodeData(payloadXML)
		if err == nil {
			device, err = deviceOf(bn)
		}
	default:
		err = fmt.Errorf("cannot read a log item: its payload is %.40q of %.80q", root.XMLName.Local, root.XMLName.Space)
	}
	if err != nil {
		return "", "", nil, err
	}
	if len(rs) == 0 {
		return "", "", nil, errors.New("cannot read a log item: it holds no reading")
	}
	for i := range rs {
		rs[i].Device = device
	}
	return device, bn, rs, nil
}

func decodeData(payloadXML []byte) (bn string, rs []devices.Record, err error) {
	var d data
	if err := xml.Unmarshal(payloadXML, &d); err != nil {
		return "", nil, fmt.Errorf("cannot read a log item: %v", err)
	}
	if d.Type != typeSenML {
		return "", nil, fmt.Errorf("cannot read a log item of type %.60q: want %s", d.Type, typeSenML)
	}
	// Base64 may be broken into lines (XEP-0231 section 2).
	pack, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(d.Base64), ""))
	if err != nil {
		return "", nil, fmt.Errorf("cannot read a log item: %v", err)
	}
	if strings.HasPrefix(d.CID, "sha-256+") && d.CID != contentID(pack) {
		return "", nil, errors.New("cannot read a log item: its content is not what its cid says")
	}
	codec, err := newPackCodec()
	if err != nil {
		return "", nil, err
	}
	return codec.decode(pack)
}

// baseName is the prefix that makes a device's field names unique in the world
// (RFC 8428 section 4.5.1).
func (b *Bridge) baseName(device devices.ID) string {
	return b.host + "/" + b.cfg.Gateway + "/" + string(device) + "/"
}

func deviceOf(baseName string) (devices.ID, error) {
	parts := strings.Split(baseName, "/")
	if len(parts) != 4 || parts[0] == "" || parts[1] == "" || parts[3] != "" {
		return "", fmt.Errorf("cannot read a log item: base name %.100q is not <host>/<gateway>/<device>/", baseName)
	}
	return devices.ParseID(parts[2])
}

// errPayload marks what cannot be an item of the node it was meant for.
var errPayload = errors.New("this can be no item")

// WrapLog gives the XML of a payload that [Bridge.EncodeLog] made, as it stands in
// the item.
func WrapLog(payload []byte) ([]byte, error) {
	if len(payload) == 0 {
		return nil, errPayload
	}
	if payload[0] == '<' {
		return payload, nil
	}
	return xml.Marshal(data{CID: contentID(payload), Type: typeSenML, Base64: base64.StdEncoding.EncodeToString(payload)})
}
