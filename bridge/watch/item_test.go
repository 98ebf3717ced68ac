package watch

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

func TestParseNode(t *testing.T) {
	for _, c := range []struct {
		name    string
		gateway string
		device  devices.ID
		lane    lane
		ok      bool
	}{
		{"gw/kitchen/log", "gw", "kitchen", laneLog, true},
		{"gw/kitchen/now", "gw", "kitchen", laneNow, true},
		{"gw/events", "gw", "", laneEvents, true},
		{"gw/log", "", "", "", false},
		{"gw/kitchen/events", "", "", "", false},
		{"1b2c3d4e5f607182/lease", "", "", "", false},
		{"gw/Kitchen/log", "", "", "", false},
		{"/kitchen/log", "", "", "", false},
		{"a/gw/kitchen/log", "", "", "", false},
		{"gw/kitchen/", "", "", "", false},
		{"urn:xmpp:microblog:0", "", "", "", false},
		{"", "", "", "", false},
		{strings.Repeat("g", 200) + "/kitchen/log", "", "", "", false},
	} {
		gateway, device, l, ok := parseNode(c.name)
		if ok != c.ok || ok && (gateway != c.gateway || device != c.device || l != c.lane) {
			t.Errorf("%q: got %q %q %q %v", c.name, gateway, device, l, ok)
		}
	}
}

// testAuthorizer is an [bridge.Authorizer] that lets nobody in.
type testAuthorizer struct{}

func (testAuthorizer) Operators() []jid.JID                       { return nil }
func (testAuthorizer) MaySee(jid.JID, devices.ID) bool            { return false }
func (testAuthorizer) MaySeeEvents(jid.JID) bool                  { return false }
func (testAuthorizer) May(jid.JID, bridge.Right, devices.ID) bool { return false }
func (testAuthorizer) AtOtherTimes(jid.JID, devices.ID) bool      { return false }

func encoder(t testing.TB, payload string) *bridge.Bridge {
	t.Helper()
	b, err := bridge.New(bridge.Config{
		Stream:  stream.Config{Component: &stream.Component{Domain: "pi.localhost", Server: "127.0.0.1:1", Secret: "s"}},
		PubSub:  "pubsub.localhost",
		Gateway: "gw",
		Payload: payload,
	}, bridge.Options{Auth: testAuthorizer{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// records are readings of a device, a second apart.
func records(device devices.ID, begin time.Time, seqs ...uint64) []devices.Record {
	var rs []devices.Record
	for _, seq := range seqs {
		rs = append(rs, devices.Record{Seq: seq, Reading: devices.Reading{
			Device: device,
			Time:   begin.Add(time.Duration(seq) * time.Second).Truncate(time.Microsecond).UTC(),
			Fields: []devices.Field{
				{Name: "temperature", Value: devices.Number(20 + float64(seq)/10), Unit: "°C"},
				{Name: "count", Value: devices.Number(float64(seq))},
			},
		}})
	}
	return rs
}

// payload is the XML of an item of a log node.
func payload(t testing.TB, b *bridge.Bridge, rs []devices.Record) []byte {
	t.Helper()
	text, n := b.EncodeLog(rs[0].Device, time.Now(), rs, 0)
	if n != len(rs) {
		t.Fatalf("%d of %d readings fit", n, len(rs))
	}
	if text[0] == '<' {
		return text
	}
	return fmt.Appendf(nil, "<data xmlns='urn:xmpp:bob' type='application/senml+cbor' cid='sha-256+%x@bob.xmpp.org'>%s</data>", sha256.Sum256(text), base64.StdEncoding.EncodeToString(text))
}

func TestReadLog(t *testing.T) {
	now := time.Now()
	for _, kind := range []string{bridge.PayloadSenML, bridge.PayloadFields} {
		t.Run(kind, func(t *testing.T) {
			b := encoder(t, kind)
			rs := records("kitchen", now.Add(-70*time.Second), 5, 6, 30)
			if kind == bridge.PayloadFields {
				rs = records("kitchen", now.Add(-70*time.Second), 5, 6, 7)
			}
			last := rs[2].Seq
			it := itemElement{ID: fmt.Sprintf("a.1-5-%d", last), Payload: payload(t, b, rs)}
			p, readings, err := readLog("gw/kitchen/log", "kitchen", it, now)
			if err != nil {
				t.Fatal(err)
			}
			if want := (ItemID{"a.1", 5, last}); p.ID != want {
				t.Errorf("id %v, want %v", p.ID, want)
			}
			if want := []uint64{5, 6, last}; !reflect.DeepEqual(p.Seqs, want) {
				t.Errorf("numbers %v, want %v", p.Seqs, want)
			}
			for i, r := range readings {
				want := Reading{
					Node: "gw/kitchen/log", Item: it.ID, Device: "kitchen", Store: "a.1", Seq: rs[i].Seq,
					Time: rs[i].Time, Late: rs[i].Seq < 10, Fields: rs[i].Fields,
				}
				if !reflect.DeepEqual(r, want) {
					t.Errorf("reading %d: got\n%+v, want\n%+v", i, r, want)
				}
			}
			other, _, err := readLog("gw/kitchen/log", "kitchen", it, now.Add(time.Hour))
			if err != nil || other.Sum != p.Sum {
				t.Errorf("the same content has another sum: %v", err)
			}
			rs[1].Fields[0].Value = devices.Number(99)
			it.Payload = payload(t, b, rs)
			if other, _, err = readLog("gw/kitchen/log", "kitchen", it, now); err != nil || other.Sum == p.Sum {
				t.Errorf("another content has the same sum: %v", err)
			}
		})
	}
}

func TestReadLogRefuses(t *testing.T) {
	b := encoder(t, "")
	good := payload(t, b, records("kitchen", time.Now(), 1, 2))
	for name, it := range map[string]itemElement{
		"id":             {ID: "current", Payload: good},
		"other device":   {ID: "a.1-1-2", Payload: payload(t, b, records("cellar", time.Now(), 1, 2))},
		"other numbers":  {ID: "a.1-1-3", Payload: good},
		"no payload":     {ID: "a.1-1-2"},
		"broken payload": {ID: "a.1-1-2", Payload: good[:len(good)-20]},
		"other payload":  {ID: "a.1-1-2", Payload: []byte("<entry xmlns='http://www.w3.org/2005/Atom'/>")},
	} {
		if _, _, err := readLog("gw/kitchen/log", "kitchen", it, time.Now()); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

const lossEntry = `<entry xmlns='http://www.w3.org/2005/Atom'><title type='text'>3 readings are lost</title><id>tag:pi.localhost,2026:l1</id>` +
	`<published>2026-09-01T10:15:00Z</published><updated>2026-09-01T10:15:00Z</updated><category term='loss'/>` +
	`<author><name>kitchen</name><uri>xmpp:kitchen@pi.localhost</uri></author><summary type='text'>the store was full</summary>` +
	`<loss xmlns='https://github.com/porchlight-iot/porchlight/ns/loss' device='kitchen' store='a.1' first='%d' last='%d' reason='full'/></entry>`

func TestReadEvent(t *testing.T) {
	at := time.Date(2026, 9, 1, 10, 15, 0, 0, time.UTC)
	got, err := readEvent("gw/events", itemElement{ID: "l1", Payload: fmt.Appendf(nil, lossEntry, 4, 6)})
	want := Event{
		Node: "gw/events", Item: "l1", Time: at, Category: "loss", Device: "kitchen", Author: "kitchen@pi.localhost",
		Title: "3 readings are lost", Summary: "the store was full", Loss: &Loss{"kitchen", "a.1", 4, 6, "full", nil},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %v\nwant %+v", got, err, want)
	}
	thinned := strings.Replace(fmt.Sprintf(lossEntry, 4, 9), "reason=", "kept='0 2 1 3' reason=", 1)
	got, err = readEvent("gw/events", itemElement{ID: "l1", Payload: []byte(thinned)})
	want.Loss = &Loss{"kitchen", "a.1", 4, 9, "full", []uint64{0, 2, 1, 3}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %v\nwant %+v", got, err, want)
	}
	got, err = readEvent("gw/events", itemElement{ID: "c1", Payload: []byte(`<entry xmlns='http://www.w3.org/2005/Atom'><title>on</title>` +
		`<published>2026-09-01T10:15:00Z</published><category term='command'/><author><uri>xmpp:anna@localhost/my%20phone</uri></author></entry>`)})
	want = Event{Node: "gw/events", Item: "c1", Time: at, Category: "command", Author: "anna@localhost/my phone", Title: "on"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %v\nwant %+v", got, err, want)
	}
	for name, text := range map[string]string{
		"nothing":         "",
		"no entry":        "<x/>",
		"no time":         "<entry xmlns='http://www.w3.org/2005/Atom'/>",
		"numbers":         fmt.Sprintf(lossEntry, 6, 4),
		"number":          fmt.Sprintf(lossEntry, 0, 4),
		"too few kept":    strings.Replace(thinned, "1 3", "1 2", 1),
		"too many kept":   strings.Replace(thinned, "1 3", "18446744073709551615 3", 1),
		"negative kept":   strings.Replace(thinned, "1 3", "-1 5", 1),
		"negative number": fmt.Sprintf(lossEntry, -1, 4),
		"too long":        strings.Replace(fmt.Sprintf(lossEntry, 4, 6), "lost", strings.Repeat("lost", 2000), 1),
	} {
		if e, err := readEvent("gw/events", itemElement{ID: "x", Payload: []byte(text)}); err == nil {
			t.Errorf("%s: taken as %+v", name, e)
		}
	}
}

func TestReadNow(t *testing.T) {
	now := time.Now()
	it := itemElement{ID: "current", Payload: []byte(`<fields xmlns='urn:xmpp:iot:sensordata' seqnr='42' done='true'><node nodeId='kitchen'>` +
		`<timestamp value='2026-09-01T10:15:00Z'><numeric name='temperature' momentary='true' automaticReadout='true' value='21.40' unit='°C'/></timestamp>` +
		`<timestamp value='2026-09-01T10:14:00Z'><boolean name='on' momentary='true' automaticReadout='true' value='true'/></timestamp></node></fields>`)}
	got, err := readNow("gw/kitchen/now", "kitchen", it, now)
	temperature, _ := devices.ParseNumber("21.40")
	at := time.Date(2026, 9, 1, 10, 15, 0, 0, time.UTC)
	want := []Reading{
		{Node: "gw/kitchen/now", Item: "current", Device: "kitchen", Seq: 42, Time: at, Late: true, Fields: []devices.Field{{Name: "temperature", Value: temperature, Unit: "°C"}}},
		{Node: "gw/kitchen/now", Item: "current", Device: "kitchen", Seq: 42, Time: at.Add(-time.Minute), Late: true, Fields: []devices.Field{{Name: "on", Value: devices.Bool(true)}}},
	}
	for i := range want {
		want[i].Late = now.Sub(want[i].Time) > time.Minute
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v %v\nwant %+v", got, err, want)
	}
	if _, err := readNow("gw/cellar/now", "cellar", it, now); err == nil {
		t.Error("values of another device are taken")
	}
}

func TestMemory(t *testing.T) {
	var m memory
	for i := range maxMemory + 10 {
		if !m.add(fmt.Sprint(i)) || m.add(fmt.Sprint(i)) {
			t.Fatalf("%d is not new, or is so twice", i)
		}
	}
	if m.has("9") || !m.has("10") || len(m.ids) != maxMemory || len(m.order) != maxMemory {
		t.Errorf("%d ids are kept, want %d", len(m.ids), maxMemory)
	}
}

// FuzzItem feeds what anybody could publish.
func FuzzItem(f *testing.F) {
	now := time.Now()
	for _, kind := range []string{bridge.PayloadSenML, bridge.PayloadFields} {
		f.Add("a.1-1-3", payload(f, encoder(f, kind), records("kitchen", now, 1, 2, 3)))
	}
	f.Add("l1", fmt.Appendf(nil, lossEntry, 1, 2))
	f.Add("a.1-1-18446744073709551615", []byte("<fields xmlns='urn:xmpp:iot:sensordata'/>"))
	f.Fuzz(func(t *testing.T, id string, text []byte) {
		it := itemElement{ID: id, Payload: text}
		var l Ledger
		for _, live := range []bool{true, false} {
			if p, readings, err := readLog("gw/kitchen/log", "kitchen", it, now); err == nil {
				l.Add("gw/kitchen/log", p, live)
				if len(readings) == 0 || readings[0].Seq != p.ID.First || readings[len(readings)-1].Seq != p.ID.Last {
					t.Errorf("%s: readings %v", id, readings)
				}
			}
		}
		if c := l.Counts(); c.Doubled != 0 || c.Disordered != 0 {
			t.Errorf("the same item twice: %+v", c)
		}
		if e, err := readEvent("gw/events", it); err == nil && e.Loss != nil {
			l.Lost(logNodeName("gw", e.Loss.Device), ItemID{e.Loss.Store, e.Loss.First, e.Loss.Last})
		}
		_, _ = readNow("gw/kitchen/now", "kitchen", it, now)
	})
}
