package bridge

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// nsFields is the vocabulary of XEP-0323 in its version 0.6.
	nsFields = "urn:xmpp:iot:sensordata"

	// maxFieldsPack bounds the XML of one item of several readings.
	maxFieldsPack = 32 << 10

	// lateAfter is the age at which a reading that is first sent counts as
	// history and no more as the present.
	lateAfter = time.Minute
)

// fieldsElement is <fields/> of XEP-0323 section 3.2: here always one node.
type fieldsElement struct {
	XMLName xml.Name    `xml:"urn:xmpp:iot:sensordata fields"`
	SeqNr   uint32      `xml:"seqnr,attr"`
	Done    bool        `xml:"done,attr"`
	Node    nodeElement `xml:"node"`
}

type nodeElement struct {
	NodeID     string             `xml:"nodeId,attr"`
	Timestamps []timestampElement `xml:"timestamp"`
}

type timestampElement struct {
	XMLName xml.Name       `xml:"timestamp"`
	Value   string         `xml:"value,attr"`
	Fields  []fieldElement `xml:",any"`
}

// fieldElement is numeric, boolean or string, by its XMLName. The attributes
// that are left out are false.
type fieldElement struct {
	XMLName          xml.Name
	Name             string  `xml:"name,attr"`
	Momentary        bool    `xml:"momentary,attr,omitempty"`
	HistoricalOther  bool    `xml:"historicalOther,attr,omitempty"`
	AutomaticReadout bool    `xml:"automaticReadout,attr,omitempty"`
	TimeOffset       bool    `xml:"timeOffset,attr,omitempty"`
	Value            string  `xml:"value,attr"`
	Unit             *string `xml:"unit,attr"`
}

// seqNr is how a running number travels: seqnr is an xs:int.
func seqNr(seq uint64) uint32 { return uint32(seq % (1 << 31)) }

// timestamp writes t in UTC (XEP-0082 section 3.2).
func timestamp(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.999999Z")
}

func encodeField(f devices.Field, late, uncertain bool) fieldElement {
	e := fieldElement{
		Name:             f.Name,
		Momentary:        !late,
		HistoricalOther:  late,
		AutomaticReadout: true,
		TimeOffset:       uncertain,
		Value:            f.Value.String(),
	}
	switch f.Value.Kind() {
	case devices.NumberValue:
		unit := string(f.Unit)
		e.XMLName.Local, e.Unit = "numeric", &unit
	case devices.BoolValue:
		e.XMLName.Local = "boolean"
	default:
		e.XMLName.Local = "string"
	}
	return e
}

// encodeFieldsLog makes the <fields> of the oldest n of rs that fit in most
// bytes and have no gap in their numbers.
func encodeFieldsLog(device devices.ID, frozen time.Time, rs []devices.Record, most int) (payload []byte, n int, err error) {
	item := fieldsElement{Done: true, Node: nodeElement{NodeID: string(device)}}
	size := 150
	for i, r := range rs {
		if r.Seq != rs[0].Seq+uint64(i) {
			break
		}
		stamp := timestampElement{Value: timestamp(r.Time)}
		for _, f := range r.Fields {
			stamp.Fields = append(stamp.Fields, encodeField(f, frozen.Sub(r.Time) > lateAfter, r.Bounds != nil))
		}
		text, err := xml.Marshal(stamp)
		if err != nil {
			return nil, 0, fmt.Errorf("cannot encode reading %d: %v", r.Seq, err)
		}
		if size += len(shortTags(text)); size > most && i > 0 {
			break
		}
		item.Node.Timestamps = append(item.Node.Timestamps, stamp)
		item.SeqNr = seqNr(r.Seq)
		n++
	}
	payload, err = item.text()
	if err != nil {
		return nil, 0, fmt.Errorf("cannot encode a pack: %v", err)
	}
	return payload, n, nil
}

// text is the element as it is sent.
func (e fieldsElement) text() ([]byte, error) {
	text, err := xml.Marshal(e)
	return shortTags(text), err
}

// shortTags makes <numeric …/> of the <numeric …></numeric> that encoding/xml
// writes. A '>' in a value is always escaped, so only tags are replaced.
func shortTags(text []byte) []byte {
	for _, name := range []string{"numeric", "boolean", "string"} {
		text = bytes.ReplaceAll(text, []byte("></"+name+">"), []byte("/>"))
	}
	return text
}

// A NowValue is the newest value of one field of a device.
type NowValue struct {
	devices.Field
	Time      time.Time
	Seq       uint64 // of the reading it came with
	Uncertain bool   // the clock, or the value's age, was not known
	Late      bool   // it was over a minute old when first sent
}

// encodeNow makes the payload of a device's now node: one timestamp a distinct
// time, newest first.
func encodeNow(device devices.ID, values []NowValue) ([]byte, error) {
	values = slices.Clone(values)
	slices.SortStableFunc(values, func(a, b NowValue) int { return b.Time.Compare(a.Time) })
	item := fieldsElement{Done: true, Node: nodeElement{NodeID: string(device)}}
	newest := uint64(0)
	for i, v := range values {
		if i == 0 || !v.Time.Equal(values[i-1].Time) {
			item.Node.Timestamps = append(item.Node.Timestamps, timestampElement{Value: timestamp(v.Time)})
		}
		stamp := &item.Node.Timestamps[len(item.Node.Timestamps)-1]
		stamp.Fields = append(stamp.Fields, encodeField(v.Field, v.Late, v.Uncertain))
		newest = max(newest, v.Seq)
	}
	item.SeqNr = seqNr(newest)
	payload, err := item.text()
	if err != nil {
		return nil, fmt.Errorf("cannot encode the values of %s: %v", device, err)
	}
	return payload, nil
}

// decodeFields reads a <fields> that a gateway made: each timestamp is a
// reading.
func decodeFields(text []byte) (devices.ID, []devices.Record, error) {
	var item fieldsElement
	if err := xml.Unmarshal(text, &item); err != nil {
		return "", nil, fmt.Errorf("cannot read fields: %v", err)
	}
	device, err := devices.ParseID(item.Node.NodeID)
	if err != nil {
		return "", nil, fmt.Errorf("cannot read fields: %v", err)
	}
	rs := make([]devices.Record, 0, len(item.Node.Timestamps))
	for _, stamp := range item.Node.Timestamps {
		at, err := time.Parse(time.RFC3339Nano, stamp.Value)
		if err != nil {
			return "", nil, fmt.Errorf("cannot read fields: %.40q is no time", stamp.Value)
		}
		r := devices.Record{Reading: devices.Reading{Device: device, Time: at.UTC()}}
		for _, e := range stamp.Fields {
			f, err := decodeField(e)
			if err != nil {
				return "", nil, fmt.Errorf("cannot read fields: %v", err)
			}
			r.Fields = append(r.Fields, f)
		}
		rs = append(rs, r)
	}
	return device, rs, nil
}

func decodeField(e fieldElement) (devices.Field, error) {
	f := devices.Field{Name: e.Name}
	if e.Unit != nil {
		f.Unit = devices.Unit(*e.Unit)
	}
	if !fieldName(f.Name) {
		return f, fmt.Errorf("%.40q is no field name", f.Name)
	}
	switch e.XMLName.Local {
	case "numeric":
		v, err := devices.ParseNumber(e.Value)
		if err != nil {
			return f, fmt.Errorf("%.40q of %s is %v", e.Value, f.Name, err)
		}
		f.Value = v
	case "boolean":
		switch e.Value {
		case "true", "1":
			f.Value = devices.Bool(true)
		case "false", "0":
			f.Value = devices.Bool(false)
		default:
			return f, fmt.Errorf("%.40q of %s is no truth value", e.Value, f.Name)
		}
	default:
		f.Value = devices.Text(e.Value)
	}
	return f, nil
}
