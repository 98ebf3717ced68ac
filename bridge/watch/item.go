package watch

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/xml"
	"fmt"
	"net/url"
	"strings"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// lateAfter is the age from which a reading is no news.
const lateAfter = time.Minute

// A lane is what a node is for: the last part of its name.
type lane string

const (
	laneNow    lane = "now"
	laneLog    lane = "log"
	laneEvents lane = "events"
)

// maxNodeName bounds what can be the name of a node of a gateway.
const maxNodeName = 100

// parseNode takes the name of a node apart: <gateway>/<device>/<lane>, or
// <gateway>/events; false where it is not one of a gateway.
func parseNode(name string) (gateway string, device devices.ID, l lane, ok bool) {
	if len(name) > maxNodeName {
		return "", "", "", false
	}
	parts := strings.Split(name, "/")
	if len(parts) < 2 || parts[0] == "" {
		return "", "", "", false
	}
	gateway, l = parts[0], lane(parts[len(parts)-1])
	if len(parts) == 2 {
		return gateway, "", l, l == laneEvents
	}
	device, err := devices.ParseID(parts[1])
	return gateway, device, l, len(parts) == 3 && err == nil && (l == laneNow || l == laneLog)
}

// logNodeName is the log node of a device.
func logNodeName(gateway string, device devices.ID) string {
	return gateway + "/" + string(device) + "/" + string(laneLog)
}

// readLog reads an item of a device's log node.
func readLog(node string, device devices.ID, it itemElement, now time.Time) (Pack, []Reading, error) {
	id, err := ParseItemID(it.ID)
	if err != nil {
		return Pack{}, nil, err
	}
	from, _, records, err := bridge.DecodeItem(it.ID, it.Payload)
	if err != nil {
		return Pack{}, nil, err
	}
	if from != device {
		return Pack{}, nil, fmt.Errorf("cannot take item %s: it is of device %s", it.ID, from)
	}
	p := Pack{ID: id}
	var readings []Reading
	for _, r := range records {
		p.Seqs = append(p.Seqs, r.Seq)
		readings = append(readings, Reading{
			Node: node, Item: it.ID, Device: device, Store: id.Store, Seq: r.Seq,
			Time: r.Time, Late: now.Sub(r.Time) > lateAfter, Fields: r.Fields,
		})
	}
	p.Sum = contentSum(records)
	return p, readings, nil
}

// contentSum tells contents apart. A service may write the same XML in
// another way, so it is made of what the XML says.
func contentSum(records []devices.Record) [8]byte {
	h := sha256.New()
	number := func(n uint64) { h.Write(binary.BigEndian.AppendUint64(nil, n)) }
	text := func(s string) {
		number(uint64(len(s)))
		h.Write([]byte(s))
	}
	for _, r := range records {
		number(r.Seq)
		number(uint64(r.Time.UnixMicro()))
		number(uint64(len(r.Fields)))
		for _, f := range r.Fields {
			text(f.Name)
			number(uint64(f.Value.Kind()))
			text(f.Value.String())
			text(string(f.Unit))
		}
	}
	return [8]byte(h.Sum(nil)[:8])
}

// readNow reads the item of a device's now node.
func readNow(node string, device devices.ID, it itemElement, now time.Time) ([]Reading, error) {
	from, _, records, err := bridge.DecodeLog(it.Payload)
	if err != nil {
		return nil, err
	}
	if from != device {
		return nil, fmt.Errorf("cannot take item %s: it is of device %s", it.ID, from)
	}
	var fields struct {
		XMLName xml.Name `xml:"urn:xmpp:iot:sensordata fields"`
		SeqNr   uint32   `xml:"seqnr,attr"`
	}
	if err := xml.Unmarshal(it.Payload, &fields); err != nil {
		return nil, fmt.Errorf("cannot take item %s: %v", it.ID, err)
	}
	var readings []Reading
	for _, r := range records {
		readings = append(readings, Reading{
			Node: node, Item: it.ID, Device: device, Seq: uint64(fields.SeqNr),
			Time: r.Time, Late: now.Sub(r.Time) > lateAfter, Fields: r.Fields,
		})
	}
	return readings, nil
}

// maxEventText bounds what is taken of an author's words, in bytes.
const maxEventText = 4096

// readEvent reads an entry of an events node (RFC 4287).
func readEvent(node string, it itemElement) (Event, error) {
	var entry struct {
		XMLName   xml.Name `xml:"http://www.w3.org/2005/Atom entry"`
		Title     string   `xml:"title"`
		Summary   string   `xml:"summary"`
		Published string   `xml:"published"`
		Category  struct {
			Term string `xml:"term,attr"`
		} `xml:"category"`
		Author struct {
			URI string `xml:"uri"`
		} `xml:"author"`
		Loss *struct {
			Device string `xml:"device,attr"`
			Store  string `xml:"store,attr"`
			First  uint64 `xml:"first,attr"`
			Last   uint64 `xml:"last,attr"`
			Reason string `xml:"reason,attr"`
			Kept   string `xml:"kept,attr"`
		} `xml:"https://github.com/porchlight-iot/porchlight/ns/loss loss"`
	}
	if err := xml.Unmarshal(it.Payload, &entry); err != nil {
		return Event{}, fmt.Errorf("cannot read event %.100q: %v", it.ID, err)
	}
	at, err := time.Parse(time.RFC3339Nano, entry.Published)
	if err != nil {
		return Event{}, fmt.Errorf("cannot read event %.100q: %.40q is no time", it.ID, entry.Published)
	}
	if len(entry.Title)+len(entry.Summary) > maxEventText {
		return Event{}, fmt.Errorf("cannot read event %.100q: it is too long", it.ID)
	}
	e := Event{
		Node: node, Item: it.ID, Time: at.UTC(),
		Category: entry.Category.Term, Title: entry.Title, Summary: entry.Summary,
	}
	if uri, ok := strings.CutPrefix(entry.Author.URI, "xmpp:"); ok {
		if author, err := url.PathUnescape(uri); err == nil {
			e.Author = author
		}
	}
	// A command's author is the operator.
	if author, err := jid.Parse(e.Author); err == nil && e.Category != "command" {
		e.Device = deviceOf(author)
	}
	if l := entry.Loss; l != nil {
		device, err := devices.ParseID(l.Device)
		if err != nil || l.First < 1 || l.Last < l.First {
			return Event{}, fmt.Errorf("cannot read event %.100q: it does not say which readings are lost", it.ID)
		}
		kept, err := bridge.ParseKept(l.Kept, l.Last-l.First+1)
		if err != nil {
			return Event{}, fmt.Errorf("cannot read event %.100q: %v", it.ID, err)
		}
		e.Device = device
		e.Loss = &Loss{device, l.Store, l.First, l.Last, l.Reason, kept}
	}
	return e, nil
}

// deviceOf is the device that a JID is of, where it can be one.
func deviceOf(j jid.JID) devices.ID {
	id, err := devices.ParseID(j.Localpart())
	if err != nil {
		return ""
	}
	return id
}

// said is a line of chat.
func said(from jid.JID, body string, now time.Time) Event {
	if len(body) > maxEventText {
		body = strings.ToValidUTF8(body[:maxEventText], "") + "…"
	}
	return Event{Time: now.UTC(), Category: CategoryMessage, Device: deviceOf(from), Author: from.String(), Title: body}
}
