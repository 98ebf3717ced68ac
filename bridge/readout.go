package bridge

import (
	"cmp"
	"context"
	"encoding/xml"
	"slices"
	"strconv"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/devices"
)

// reqElement is <req/> of XEP-0323 section 3.1.
type reqElement struct {
	SeqNr  string           `xml:"seqnr,attr"`
	From   string           `xml:"from,attr"`
	To     string           `xml:"to,attr"`
	When   string           `xml:"when,attr"`
	Nodes  []nodeRefElement `xml:"node"`
	Fields []struct {
		Name string `xml:"name,attr"`
	} `xml:"field"`
}

type acceptedElement struct {
	XMLName xml.Name `xml:"urn:xmpp:iot:sensordata accepted"`
	SeqNr   uint32   `xml:"seqnr,attr"`
}

// readout serves <req/>: it is accepted, and the values follow in messages, of
// which the last one says so. With from or to, they are those that the log node
// still has; else the newest.
func (b *Bridge) readout(ctx context.Context, r request) (any, error) {
	var ask struct {
		Req reqElement `xml:"urn:xmpp:iot:sensordata req"`
	}
	if err := r.stanza.Unmarshal(&ask); err != nil {
		return nil, badRequest("")
	}
	q := ask.Req
	a := asker{full: r.stanza.From, bare: r.stanza.From.Bare(), to: r.to.device}
	seq, err := strconv.ParseUint(q.SeqNr, 10, 31)
	if err != nil {
		return nil, badRequest("")
	}
	from, err1 := parseStamp(q.From)
	to, err2 := parseStamp(q.To)
	if err1 != nil || err2 != nil {
		return nil, badRequest("")
	}
	about, err := b.about(a, q.Nodes)
	switch {
	case err != nil:
		return nil, err
	case q.When != "" || b.office == nil:
		return nil, iqError{kind: "cancel", condition: stanza.FeatureNotImplemented}
	case slices.ContainsFunc(about, func(id devices.ID) bool { return !b.auth.MaySee(a.bare, id) }):
		return nil, iqError{kind: "auth", condition: stanza.Forbidden}
	}
	var all []fieldsElement
	for _, id := range about {
		var rs []devices.Record
		if q.From == "" && q.To == "" {
			rs = b.newest(id)
		} else if rs, err = b.history(ctx, id, from, to); err != nil {
			return nil, iqError{kind: "wait", condition: stanza.RemoteServerTimeout}
		}
		all = append(all, readoutOf(id, uint32(seq), rs, func(name string) bool {
			return len(q.Fields) == 0 || slices.ContainsFunc(q.Fields, func(f struct {
				Name string `xml:"name,attr"`
			}) bool {
				return f.Name == name
			})
		}, time.Now())...)
	}
	all[len(all)-1].Done = true
	b.respond(ctx, r, acceptedElement{SeqNr: uint32(seq)}, nil)
	for _, item := range all {
		text, err := item.text()
		if err == nil {
			err = b.sendFields(ctx, a.full, r.to.device, text)
		}
		if err != nil {
			break // the session is at its end
		}
	}
	return nil, errResponded
}

// parseStamp reads a time of XEP-0082; zero where there is none.
func parseStamp(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.RFC3339, s)
}

// newest gives the newest value of each field, as readings.
func (b *Bridge) newest(id devices.ID) []devices.Record {
	fields := b.office.Latest(id)
	slices.SortStableFunc(fields, func(a, b LatestField) int { return b.Time.Compare(a.Time) })
	var rs []devices.Record
	for _, f := range fields {
		if n := len(rs); n == 0 || !rs[n-1].Time.Equal(f.Time) {
			rs = append(rs, devices.Record{Reading: devices.Reading{Device: id, Time: f.Time}})
		}
		last := &rs[len(rs)-1]
		last.Fields = append(last.Fields, f.Field)
	}
	return rs
}

// history gives the readings between two times, both included, that the log
// node has; a zero time is no bound.
func (b *Bridge) history(ctx context.Context, id devices.ID, from, to time.Time) ([]devices.Record, error) {
	items, err := b.ReadLog(ctx, id, 0)
	if err != nil {
		return nil, err
	}
	var rs []devices.Record
	for _, item := range items {
		for _, r := range item.Records {
			if !r.Time.Before(from) && (to.IsZero() || !r.Time.After(to)) {
				rs = append(rs, r)
			}
		}
	}
	slices.SortStableFunc(rs, func(a, b devices.Record) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Seq, b.Seq)) })
	return rs, nil
}

// perReadout is how many readings go in one message.
const perReadout = 50

// readoutOf makes the elements of a device's readings: at least one.
func readoutOf(id devices.ID, seq uint32, rs []devices.Record, wanted func(string) bool, now time.Time) []fieldsElement {
	item := fieldsElement{SeqNr: seq, Node: nodeElement{NodeID: string(id)}}
	var all []fieldsElement
	for _, r := range rs {
		stamp := timestampElement{Value: timestamp(r.Time)}
		for _, f := range r.Fields {
			if wanted(f.Name) && f.Value.IsValid() {
				stamp.Fields = append(stamp.Fields, encodeField(f, now.Sub(r.Time) > lateAfter, r.Bounds != nil))
			}
		}
		if len(stamp.Fields) == 0 {
			continue
		}
		if len(item.Node.Timestamps) == perReadout {
			all = append(all, item)
			item.Node.Timestamps = nil
		}
		item.Node.Timestamps = append(item.Node.Timestamps, stamp)
	}
	return append(all, item)
}

// sendFields sends a part of a readout.
func (b *Bridge) sendFields(ctx context.Context, to jid.JID, from devices.ID, fields []byte) error {
	l := b.link.Load()
	if l == nil {
		return ErrOffline
	}
	m := struct {
		XMLName xml.Name `xml:"message"`
		From    string   `xml:"from,attr,omitempty"`
		To      string   `xml:"to,attr"`
		Fields  []byte   `xml:",innerxml"`
	}{To: to.String(), Fields: fields}
	if b.component {
		j, err := deviceJID(b.domain, from)
		if err != nil {
			return err
		}
		m.From = j.String()
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return l.session.Send(ctx, m)
}
