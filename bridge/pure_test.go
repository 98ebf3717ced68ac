package bridge

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(got) + "\n"; got != string(want) {
		t.Errorf("%s: got\n%swant\n%s", name, got, want)
	}
}

// rights is an Authorizer by a table: who may see which devices; "*" all, and
// the events.
type rights map[string][]devices.ID

func (r rights) Operators() []jid.JID {
	var all []jid.JID
	for who := range r {
		if j, err := jid.Parse(who); err == nil {
			all = append(all, j)
		}
	}
	return all
}

func (r rights) MaySee(who jid.JID, device devices.ID) bool {
	for _, id := range r[who.String()] {
		if id == "*" || id == device {
			return true
		}
	}
	return false
}

func (r rights) MaySeeEvents(who jid.JID) bool { return r.MaySee(who, "*") }

// May has who sees all be the owner, and who sees some an operator of those.
func (r rights) May(who jid.JID, right Right, device devices.ID) bool {
	if r.MaySeeEvents(who) {
		return true
	}
	return right <= MayCommand && (device == "" && len(r[who.String()]) > 0 || r.MaySee(who, device))
}

// AtOtherTimes has whoever may see "later" come back.
func (r rights) AtOtherTimes(who jid.JID, _ devices.ID) bool {
	return slices.Contains(r["later "+who.String()], "*")
}

func testBridge(t testing.TB, payload string) *Bridge {
	t.Helper()
	b, err := New(Config{
		Stream:  stream.Config{Component: &stream.Component{Domain: "pi.example.org", Server: "127.0.0.1:1"}},
		PubSub:  "pubsub.example.org",
		Gateway: "pi-4f2a",
		Payload: payload,
	}, Options{Auth: rights{"anna@example.org": {"*"}, "bob@example.net": {"kitchen"}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	b.SetDevices([]Device{{ID: devices.Gateway, Name: "Gateway"}, {ID: "kitchen", Name: "Kitchen", Model: "DS18B20"}, {ID: "meter", Name: "Electricity"}})
	return b
}

func num(s string) devices.Value {
	v, err := devices.ParseNumber(s)
	if err != nil {
		panic(err)
	}
	return v
}

var noon = time.Date(2026, 9, 1, 10, 15, 0, 0, time.UTC)

func someRecords() []devices.Record {
	return []devices.Record{
		{Seq: 7, Origin: devices.Origin{1, 2, 3, 4, 5, 6, 7, 8}, Reading: devices.Reading{Device: "kitchen", Time: noon, Fields: []devices.Field{
			{Name: "temperature", Value: num("21.40"), Unit: "°C"},
			{Name: "count", Value: num("0")},
			{Name: "on", Value: devices.Bool(false), Kind: devices.Status},
			{Name: "mode", Value: devices.Text(`a <"&'> ü`), Kind: devices.Status},
		}}},
		{Seq: 8, Reading: devices.Reading{Device: "kitchen", Time: noon.Add(time.Microsecond), Fields: []devices.Field{
			{Name: "temperature", Value: num("-9007199254740993"), Unit: "°C"},
		}}},
		{Seq: 9, Reading: devices.Reading{Device: "kitchen", Time: noon.Add(90 * time.Second), Fields: []devices.Field{
			{Name: "pressure", Value: num("1e3"), Unit: "hPa"},
			{Name: "text", Value: devices.Text("")},
		}}},
	}
}

// resolve is SenML's own rule (RFC 8428 section 4.6), told again without a
// look at the code under test: the resolved records of a pack.
func resolve(t *testing.T, pack []byte) []map[any]any {
	t.Helper()
	var raw []map[any]any
	if err := cbor.Unmarshal(pack, &raw); err != nil {
		t.Fatal(err)
	}
	float := func(v any) float64 {
		switch v := v.(type) {
		case uint64:
			return float64(v)
		case int64:
			return float64(v)
		case float64:
			return v
		case nil:
			return 0
		}
		t.Fatalf("%T is no number", v)
		return 0
	}
	bn, bt := "", any(nil)
	for _, r := range raw {
		if v, ok := r[int64(-2)]; ok {
			bn = v.(string)
		}
		if v, ok := r[int64(-3)]; ok {
			bt = v
		}
		name, _ := r[uint64(0)].(string)
		r["name"], r["time"] = bn+name, float(bt)+float(r[uint64(6)])
	}
	return raw
}

func TestSenMLResolves(t *testing.T) {
	b := testBridge(t, PayloadSenML)
	rs := someRecords()
	pack, n := b.EncodeLog("kitchen", noon, rs, 0)
	if n != len(rs) {
		t.Fatalf("%d of %d readings in the pack", n, len(rs))
	}
	again, _ := b.EncodeLog("kitchen", noon.Add(time.Hour), rs, 0)
	if !bytes.Equal(pack, again) {
		t.Error("the same readings gave other bytes")
	}
	golden(t, "pack.hex", []byte(fmt.Sprintf("%x", pack)))

	got := resolve(t, pack)
	at := float64(noon.Unix())
	want := []struct {
		name  string
		time  float64
		key   uint64
		value any
		unit  any
	}{
		{"temperature", at, 2, 21.4, "Cel"},
		{"count", at, 2, uint64(0), nil},
		{"on", at, 4, false, nil},
		{"mode", at, 3, `a <"&'> ü`, nil},
		{"temperature", at + 1e-6, 2, int64(-9007199254740993), "Cel"},
		{"pressure", at + 90, 2, 1000.0, "hPa"},
		{"text", at + 90, 3, "", nil},
	}
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g["name"] != "pi.example.org/pi-4f2a/kitchen/"+w.name || g[w.key] != w.value || g[uint64(1)] != w.unit {
			t.Errorf("record %d is %v, want %+v", i, g, w)
		}
		if d := g["time"].(float64) - w.time; math.Abs(d) > 3e-7 {
			t.Errorf("record %d: time is off by %v s", i, d)
		}
	}
	if v := got[0][int64(-1)]; v != uint64(26) {
		t.Errorf("version %v, want 26 for the secondary unit hPa", v)
	}
	if v := got[0]["o"]; !reflect.DeepEqual(v, []byte{1, 2, 3, 4, 5, 6, 7, 8}) {
		t.Errorf("origin %v", v)
	}
	if _, there := got[4]["o"]; there {
		t.Error("an origin where there is none")
	}
	if v := got[0][int64(-3)]; v != uint64(noon.Unix()) {
		t.Errorf("base time %v (%T) on a whole second, want an integer", v, v)
	}
	plain, _ := b.EncodeLog("kitchen", noon, rs[:2], 0)
	if _, there := resolve(t, plain)[0][int64(-1)]; there {
		t.Error("a version though no unit is secondary")
	}
}

func item(t *testing.T, payload []byte) []byte {
	t.Helper()
	text, err := WrapLog(payload)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestLogRoundTrip(t *testing.T) {
	gapped := someRecords()
	gapped[1].Seq, gapped[2].Seq = 11, 12
	for _, c := range []struct {
		name, payload string
		records       []devices.Record
		n             int
		numbers       []uint64 // relative
	}{
		{"senml", PayloadSenML, someRecords(), 3, []uint64{0, 1, 2}},
		{"senml with a gap", PayloadSenML, gapped, 3, []uint64{0, 4, 5}},
		{"fields", PayloadFields, someRecords(), 3, []uint64{0, 1, 2}},
		{"fields end before a gap", PayloadFields, gapped, 1, []uint64{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := testBridge(t, c.payload)
			payload, n := b.EncodeLog("kitchen", noon, c.records, 0)
			if n != c.n {
				t.Fatalf("%d readings in the pack, want %d", n, c.n)
			}
			text := item(t, payload)
			device, bn, rs, err := DecodeLog(text)
			if err != nil {
				t.Fatal(err)
			}
			if device != "kitchen" || c.payload == PayloadSenML && bn != "pi.example.org/pi-4f2a/kitchen/" {
				t.Errorf("device %q, base name %q", device, bn)
			}
			var numbers []uint64
			for _, r := range rs {
				numbers = append(numbers, r.Seq)
			}
			if !reflect.DeepEqual(numbers, c.numbers) {
				t.Errorf("numbers %v, want %v", numbers, c.numbers)
			}
			_, _, rs, err = DecodeItem(ItemID("abc.1", 7, c.records[n-1].Seq), text)
			if err != nil {
				t.Fatal(err)
			}
			for i, got := range rs {
				want := c.records[i]
				if got.Seq != want.Seq || !got.Time.Equal(want.Time) || len(got.Fields) != len(want.Fields) || got.Device != want.Device {
					t.Fatalf("reading %d is %+v, want %+v", i, got, want)
				}
				if c.payload == PayloadSenML && got.Origin != want.Origin {
					t.Errorf("reading %d has origin %x", i, got.Origin)
				}
				for k, g := range got.Fields {
					w := want.Fields[k]
					same := g.Value == w.Value
					if c.payload == PayloadSenML && w.Value.Kind() == devices.NumberValue {
						same = g.Value.Float() == w.Value.Float()
					}
					if g.Name != w.Name || g.Unit != w.Unit || !same {
						t.Errorf("reading %d: field %+v, want %+v", i, g, w)
					}
				}
			}
			for _, wrong := range []string{ItemID("abc.1", 7, 100), ItemID("abc.1", 9, 8)} {
				if _, _, _, err := DecodeItem(wrong, text); err == nil {
					t.Errorf("item %s is taken though its readings are others", wrong)
				}
			}
		})
	}
}

func TestPacksAreBounded(t *testing.T) {
	var many []devices.Record
	for i := range 3000 {
		many = append(many, devices.Record{Seq: uint64(i + 1), Origin: devices.Origin{1}, Reading: devices.Reading{
			Time:   noon.Add(time.Duration(i)*time.Second + time.Microsecond),
			Fields: []devices.Field{{Name: "pressure", Value: num("1013.25"), Unit: "hPa"}},
		}})
	}
	huge := []devices.Record{{Seq: 1, Reading: devices.Reading{Time: noon, Fields: []devices.Field{{Name: "text", Value: devices.Text(strings.Repeat("x", 60000))}}}}}
	for payload, limit := range map[string]int{PayloadSenML: maxPack, PayloadFields: 32 << 10} {
		b := testBridge(t, payload)
		pack, n := b.EncodeLog("kitchen", noon, many, 0)
		if len(pack) > limit || len(pack) < limit*9/10 {
			t.Errorf("%s: a pack of %d readings has %d bytes, the limit is %d", payload, n, len(pack), limit)
		}
		for _, room := range []int{1500, 3000} {
			small, fit := b.EncodeLog("kitchen", noon, many, room)
			if size := LogSize(small); size > room || size < room*8/10 {
				t.Errorf("%s: with room for %d bytes it has %d", payload, room, size)
			}
			if again, all := b.EncodeLog("kitchen", noon, many[:fit], 0); all != fit || !bytes.Equal(again, small) {
				t.Errorf("%s: without a bound the readings of a pack of %d bytes are another", payload, len(small))
			}
		}
		if _, n := b.EncodeLog("kitchen", noon, many, 1); n != 1 {
			t.Errorf("%s: with no room there are %d readings in a pack", payload, n)
		}
		if _, _, rs, err := DecodeLog(item(t, pack)); err != nil || len(rs) != n {
			t.Errorf("%s: %d readings come back of %d, %v", payload, len(rs), n, err)
		}
		if _, n := b.EncodeLog("kitchen", noon, append(huge, huge...), 0); n != 1 {
			t.Errorf("%s: %d readings in the pack, want the huge one alone", payload, n)
		}
	}
}

func TestAReadingWithoutFieldsKeepsItsNumber(t *testing.T) {
	rs := someRecords()
	rs[1].Fields = nil
	for _, payload := range []string{PayloadSenML, PayloadFields} {
		b := testBridge(t, payload)
		pack, _ := b.EncodeLog("kitchen", noon, rs, 0)
		if _, _, got, err := DecodeItem(ItemID("s.1", 7, 9), item(t, pack)); err != nil || len(got) != 3 {
			t.Errorf("%s: %d readings, %v", payload, len(got), err)
		}
	}
}

func TestFieldsGolden(t *testing.T) {
	b := testBridge(t, PayloadFields)
	payload, _ := b.EncodeLog("kitchen", noon.Add(70*time.Second), someRecords(), 0)
	golden(t, "log-fields.xml", payload)
	now, err := encodeNow("kitchen", []NowValue{
		{Field: devices.Field{Name: "humidity", Value: num("45"), Unit: "%"}, Time: noon.Add(-time.Hour), Seq: 1<<31 + 4, Late: true},
		{Field: devices.Field{Name: "temperature", Value: num("21.40"), Unit: "°C"}, Time: noon, Seq: 1<<31 + 5},
		{Field: devices.Field{Name: "on", Value: devices.Bool(true)}, Time: noon, Seq: 1<<31 + 5, Uncertain: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "now.xml", now)
	golden(t, "log-senml.xml", item(t, first(testBridge(t, PayloadSenML).EncodeLog("kitchen", noon, someRecords(), 0))))
}

func first[A, B any](a A, _ B) A { return a }

func TestEventGolden(t *testing.T) {
	loss, err := encodeEvent(Event{ID: "01J9ZK4", Time: noon, Category: "loss", Device: "kitchen", Title: "12 readings of kitchen are lost",
		Loss: &Loss{Device: "kitchen", Store: "k3f.2", First: 17, Last: 28, Reason: "the outbox was full"}}, "pi.example.org", "kitchen@pi.example.org")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "event-loss.xml", loss)
	thinned, err := encodeEvent(Event{ID: "01J9ZK5", Time: noon, Category: "loss", Device: "kitchen", Title: "kitchen: 5 readings thinned out",
		Loss: &Loss{Device: "kitchen", Store: "k3f.2", First: 17, Last: 23, Reason: "the outbox was full", Kept: []uint64{1, 4, 1, 1}}}, "pi.example.org", "kitchen@pi.example.org")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "event-thinned.xml", thinned)
	command, err := encodeEvent(Event{ID: "c 1", Time: noon, Category: "command", Device: "kitchen", Author: "anna@example.org/My phone ü",
		Title: "set mode <b>&\x00", Summary: strings.Repeat("é", 2000)}, "pi.example.org", "kitchen@pi.example.org")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "event-command.xml", command)
	if _, err := encodeEvent(Event{ID: "x"}, "h", "s"); err == nil {
		t.Error("an event without category and time is taken")
	}
}

func TestItemID(t *testing.T) {
	store, first, last, err := ParseItem(ItemID("k3-f.12", 1, math.MaxUint64))
	if err != nil || store != "k3-f.12" || first != 1 || last != math.MaxUint64 {
		t.Errorf("%q %d %d %v", store, first, last, err)
	}
	for _, bad := range []string{"", "current", "a-1", "a-2-1", "a-0-1", "a-01-2", "-1-2", "a-1-99999999999999999999", "a b-1-2", "a--1-2x", strings.Repeat("a", 65) + "-1-2"} {
		if _, _, _, err := ParseItem(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestAddresses(t *testing.T) {
	domain := jid.MustParse("pi.example.org")
	for _, c := range []struct {
		to   string
		want target
		ok   bool
	}{
		{"pi.example.org", target{domain: true}, true},
		{"kitchen@pi.example.org", target{device: "kitchen"}, true},
		{"kitchen@pi.example.org/gw", target{device: "kitchen"}, true},
		{"kitchen@pi.example.org/other", target{device: "kitchen"}, false},
		{"kitchen@example.org", target{}, false},
		{"pi.example.org/gw", target{}, false},
		{"a.b@pi.example.org", target{}, false},
	} {
		got, ok := targetOf(domain, jid.MustParse(c.to))
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s is %+v, %v", c.to, got, ok)
		}
	}
	if err := ValidJID("a@b@c"); err == nil || !strings.HasPrefix(err.Error(), "cannot use") {
		t.Errorf("a@b@c: %v", err)
	}
	if err := ValidJID("anna@example.org/x"); err != nil {
		t.Error(err)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Verdict
	}{
		{nil, Accepted},
		{ErrOffline, Keep},
		{errors.New("reset"), Keep},
		{&refusal{step: publishing, condition: stanza.ServiceUnavailable}, Keep},
		{&refusal{step: publishing, condition: stanza.RemoteServerNotFound}, Keep},
		{&refusal{step: publishing, condition: stanza.ResourceConstraint}, Keep},
		{&refusal{step: publishing, condition: stanza.NotAcceptable, detail: "payload-too-big"}, Split},
		{&refusal{step: publishing, condition: stanza.NotAcceptable}, SetAside},
		{fmt.Errorf("while: %w", &refusal{step: publishing, condition: stanza.BadRequest}), SetAside},
		{&refusal{step: publishing, condition: stanza.Forbidden}, Park},
		{&refusal{step: creating, condition: stanza.Forbidden}, Park},
		{&refusal{step: creating, condition: stanza.ResourceConstraint}, Park},
		{&refusal{step: configuring, condition: stanza.ResourceConstraint}, Park},
		{&refusal{step: configuring, condition: stanza.NotAcceptable}, Park},
		{&refusal{step: creating, condition: stanza.ServiceUnavailable}, Keep},
		{fmt.Errorf("x: %w", errTooBig), Split},
		{fmt.Errorf("x: %w", errPayload), SetAside},
	} {
		if got := Judge(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestStatusText(t *testing.T) {
	field := func(name, value string, unit devices.Unit, kind devices.FieldKind) devices.Field {
		return devices.Field{Name: name, Value: num(value), Unit: unit, Kind: kind}
	}
	for _, c := range []struct {
		want string
		p    Presence
	}{
		{"21.4 °C · 45 %", Presence{Fields: []devices.Field{field("t", "21.4", "°C", 0), field("h", "45", "%", 0)}}},
		{"21.4 °C · 7 kWh · on", Presence{Fields: []devices.Field{
			{Name: "on", Value: devices.Bool(true), Kind: devices.Status},
			field("rssi", "-60", "dBm", devices.Diagnostic),
			field("energy", "7", "kWh", devices.Counter),
			field("t", "21.4", "°C", 0),
		}}},
		{"window contact off · mode heat", Presence{Fields: []devices.Field{
			{Name: "window_contact", Value: devices.Bool(false), Kind: devices.Status},
			{Name: "mode", Value: devices.Text("heat"), Kind: devices.Status},
		}}},
		{"mode a b", Presence{Fields: []devices.Field{{Name: "mode", Value: devices.Text("a\nb")}}}},
		{"gateway stopped", Presence{Note: "gateway stopped", Fields: []devices.Field{field("t", "1", "V", 0)}}},
		{"", Presence{}},
	} {
		if got := c.p.text(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	var many []devices.Field
	for range 100 {
		many = append(many, field("t", "21.4", "°C", 0))
	}
	long := Presence{Fields: many}.text()
	if n := len([]rune(long)); n > 120 || n < 100 || strings.HasSuffix(long, " ") {
		t.Errorf("%d characters: %s", n, long)
	}
	if got := clip("äöü", 2); got != "ä…" {
		t.Errorf("%q", got)
	}
	if got := clip("äöü", 3); got != "äöü" {
		t.Errorf("%q", got)
	}
}

func TestShow(t *testing.T) {
	for state, want := range map[devices.State]string{
		devices.StateFresh: "/", devices.StateLate: "/away", devices.StateAsleep: "/xa", devices.StateAlarm: "/dnd",
		devices.StateLost: "unavailable/", devices.StateUnknown: "unavailable/",
	} {
		e := Presence{State: state, Since: noon}.element()
		if got := e.Type + "/" + e.Show; got != want {
			t.Errorf("%v is %q, want %q", state, got, want)
		}
	}
	text, err := xml.Marshal(Presence{State: devices.StateLate, Since: noon, Note: "x"}.element())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "presence.xml", text)
}

func TestContacts(t *testing.T) {
	anna, bob := jid.MustParse("anna@example.org"), jid.MustParse("bob@example.net")
	operators := []jid.JID{anna, bob}
	auth := rights{"anna@example.org": {"*"}, "bob@example.net": {"kitchen"}}
	c := newContacts(time.Minute)
	c.keep([]devices.ID{"kitchen", "meter"})
	fresh := func(text string) Presence { return Presence{State: devices.StateFresh, Note: text} }
	now := noon
	// expect takes what is due and compares it, told briefly.
	expect := func(what string, want ...string) {
		t.Helper()
		ids, _ := c.ready(now)
		notices := c.due(now, ids, 50, operators, auth.MaySee)
		var got []string
		for _, n := range notices {
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s>%s %s%s", n.device, n.to.Localpart(), n.stanza.Type, n.stanza.Status)))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	c.set("kitchen", fresh("1"))
	c.set("meter", fresh("1"))
	expect("all is told at first", "kitchen>anna 1", "kitchen>bob 1", "meter>anna 1")
	expect("nothing is told twice")
	c.set("kitchen", fresh("2"))
	expect("not again within the minute")
	now = now.Add(59 * time.Second)
	if ids, again := c.ready(now); len(ids) != 0 || !again.Equal(noon.Add(time.Minute)) {
		t.Errorf("to be asked again at %v", again)
	}
	now = now.Add(time.Second)
	expect("after a minute", "kitchen>anna 2", "kitchen>bob 2")
	c.set("kitchen", Presence{State: devices.StateAlarm, Note: "3"})
	expect("a state at once", "kitchen>anna 3", "kitchen>bob 3")
	c.ask("kitchen", bob, "probe")
	c.ask("kitchen", bob, "probe")
	expect("a probe is answered", "kitchen>bob 3")
	c.ask("kitchen", bob, "unsubscribe")
	c.set("kitchen", fresh("4"))
	expect("who unsubscribed hears no more", "kitchen>anna 4", "kitchen>bob unsubscribed")
	c.ask("kitchen", bob, "subscribe")
	expect("until he subscribes", "kitchen>bob subscribed", "kitchen>bob subscribe", "kitchen>bob 4")
	c.forget()
	expect("a session has all told again", "kitchen>anna 4", "kitchen>bob 4", "meter>anna 1")
	delete(auth, "bob@example.net")
	operators = operators[:1]
	c.review()
	expect("a right that is gone", "kitchen>bob unavailable", "kitchen>bob unsubscribed")
	expect("is told once")
	auth["bob@example.net"] = []devices.ID{"meter"}
	operators = append(operators, bob)
	c.review()
	expect("who was let in since is told that he is", "meter>bob subscribed", "meter>bob 1")
	delete(auth, "bob@example.net")
	operators = operators[:1]
	c.review()
	expect("and out", "meter>bob unavailable", "meter>bob unsubscribed")
	c.ask("nothing", anna, "probe")
	expect("a device that is not")
	c.keep([]devices.ID{"kitchen"})
	expect("a device that was removed", "meter>anna unavailable", "meter>anna unsubscribed")
	if len(c.devices) != 1 {
		t.Errorf("%d devices are kept", len(c.devices))
	}
	var last []string
	for _, n := range c.farewell() {
		last = append(last, string(n.device)+" "+n.stanza.Type+" "+n.stanza.Status)
	}
	if want := []string{"kitchen unavailable gateway stopped"}; !reflect.DeepEqual(last, want) {
		t.Errorf("farewell %q, want %q", last, want)
	}
}

func TestContactsAreTakenInPieces(t *testing.T) {
	c := newContacts(time.Minute)
	var ids []devices.ID
	for i := range 100 {
		ids = append(ids, devices.ID(fmt.Sprintf("d%03d", i)))
	}
	c.keep(ids)
	seen := map[devices.ID]int{}
	for range 5 {
		ids, _ := c.ready(noon)
		notices := c.due(noon, ids, 30, []jid.JID{jid.MustParse("anna@example.org")}, rights{"anna@example.org": {"*"}}.MaySee)
		if len(notices) > 31 {
			t.Errorf("%d notices at once", len(notices))
		}
		for _, n := range notices {
			seen[n.device]++
		}
	}
	for _, id := range ids {
		if seen[id] != 1 {
			t.Errorf("%s was told %d times", id, seen[id])
		}
	}
}

func TestReadForm(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"max is a value", `<x xmlns='jabber:x:data' type='form'><field var='pubsub#max_items'><validate xmlns='http://jabber.org/protocol/xdata-validate' datatype='pubsub:integer-or-max'><range min='1' max='256'/></validate><value>20</value></field></x>`, "max"},
		{"a range", `<x xmlns='jabber:x:data' type='form'><field var='pubsub#max_items'><validate xmlns='http://jabber.org/protocol/xdata-validate' datatype='xs:integer'><range min='1' max='256'/></validate></field></x>`, "256"},
		{"nothing said", `<x xmlns='jabber:x:data' type='form'><field var='pubsub#max_items'/></x>`, "max"},
		{"nonsense", `<x xmlns='jabber:x:data' type='form'><field var='pubsub#max_items'><validate xmlns='http://jabber.org/protocol/xdata-validate' datatype='xs:integer'><range max='-3'/></validate></field></x>`, "max"},
	} {
		var f form
		if err := xml.Unmarshal([]byte(c.text), &f); err != nil {
			t.Fatal(err)
		}
		n := readForm(f)
		if n.maxItems != c.want {
			t.Errorf("%s: %q, want %q", c.name, n.maxItems, c.want)
		}
		settings := n.settings(newNode("g/d/log", "d", laneLog), PayloadSenML)
		if len(settings.Fields) != 2 || settings.Fields[1].Var != optMaxItems {
			t.Errorf("%s: the form holds what the service does not know: %+v", c.name, settings)
		}
	}
}

func TestCreateGolden(t *testing.T) {
	f := nodeForm{known: map[string]bool{optTitle: true, optType: true, optAccess: true, optPublish: true, optPersist: true, optMaxItems: true, optSendLast: true, optNotify: true, optRetract: true}, maxItems: "max"}
	b := testBridge(t, PayloadSenML)
	var all []byte
	for _, n := range []*node{b.deviceNode("kitchen", laneNow), b.deviceNode("kitchen", laneLog), b.eventsNode()} {
		settings := f.settings(n, PayloadSenML)
		text, err := xml.MarshalIndent(pubsubElement{Create: &nodeRef{n.name}, Configure: &formRef{Form: &settings}}, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, text...), '\n')
	}
	golden(t, "create.xml", all)
}

func TestAmends(t *testing.T) {
	good := form{Fields: []formField{field(optAccess, "whitelist"), field(optPublish, "publishers"), field(optPersist, "true"), field(optMaxItems, "5")}}
	if got := amends(good); got != nil {
		t.Errorf("a good node is to be changed: %v", got)
	}
	open := form{Fields: []formField{field(optAccess, "open"), field(optPersist, "1")}}
	if got := amends(open); len(got) != 2 || got[0].Values[0] != "whitelist" {
		t.Errorf("%v", got)
	}
}

func TestPaged(t *testing.T) {
	var items []discoItem
	for i := range 450 {
		items = append(items, discoItem{JID: fmt.Sprintf("d%03d@x", i)})
	}
	if q := paged(items[:10], nil); q.Page != nil || len(q.Items) != 10 {
		t.Errorf("a short list: %+v", q.Page)
	}
	var got []discoItem
	ask := (*page)(nil)
	for range 3 {
		q := paged(items, ask)
		got = append(got, q.Items...)
		if *q.Page.Count != 450 {
			t.Errorf("count %d", *q.Page.Count)
		}
		after := q.Page.Last
		ask = &page{After: &after}
	}
	if !reflect.DeepEqual(got, items) {
		t.Errorf("%d items came page by page", len(got))
	}
	if q := paged(items, ask); len(q.Items) != 0 || q.Page.First != nil {
		t.Errorf("after the last page: %+v", q)
	}
	zero := 0
	if q := paged(items, &page{Max: &zero}); len(q.Items) != 0 || *q.Page.Count != 450 {
		t.Errorf("only the count: %+v", q)
	}
}

// The string of the verification example (XEP-0115 section 5.2) is not ours;
// what is checked is that clients find in the answer what the presence hashes.
func TestCapsMatchTheAnswer(t *testing.T) {
	caps := deviceCaps()
	info, ok := discoInfo(target{device: "kitchen"}, caps.Node+"#"+caps.Ver)
	if !ok || len(info.Features) == 0 {
		t.Fatalf("the node of the caps is not answered")
	}
	s := ""
	for _, i := range info.Identity {
		s += i.Category + "/" + i.Type + "//" + i.Name + "<"
	}
	for i, f := range info.Features {
		s += f.Var + "<"
		if i > 0 && info.Features[i-1].Var >= f.Var {
			t.Error("features are not sorted")
		}
	}
	golden(t, "caps.txt", []byte(s+" "+caps.Ver))
	if _, ok := discoInfo(target{device: "kitchen"}, "other"); ok {
		t.Error("another node is answered")
	}
}

func TestHearKeepsStrangersOut(t *testing.T) {
	b := testBridge(t, PayloadSenML)
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"anna@example.org/x", "meter@pi.example.org", true},
		{"anna@example.org/x", "pi.example.org", true},
		{"bob@example.net/x", "kitchen@pi.example.org/gw", true},
		{"bob@example.net/x", "pi.example.org", true},
		{"bob@example.net/x", "meter@pi.example.org", false},
		{"bob@example.net/x", "nothing@pi.example.org", false},
		{"anna@example.org/x", "nothing@pi.example.org", false},
		{"eve@example.org/x", "kitchen@pi.example.org", false},
		{"eve@example.org/x", "gateway@pi.example.org", false},
		{"eve@example.org/x", "pi.example.org", false},
	} {
		st := stream.Stanza{Name: "iq", Type: "get", From: jid.MustParse(c.from), To: jid.MustParse(c.to)}
		if got := b.hear(nil, st); got != c.want {
			t.Errorf("%s asks %s: taken %v", c.from, c.to, got)
		}
	}
	st := stream.Stanza{Name: "presence", Type: "subscribe", From: jid.MustParse("eve@example.org"), To: jid.MustParse("kitchen@pi.example.org")}
	if b.hear(nil, st); len(b.contacts.devices["kitchen"].operators) != 0 {
		t.Error("a stranger's subscription leaves a trace")
	}
}

func TestLimits(t *testing.T) {
	l := limits{buckets: make(map[string]*bucket)}
	took := 0
	for range 1000 {
		if l.allow("anna", noon) {
			took++
		}
	}
	if took != requestBurst || !l.allow("bob", noon) || l.allow("anna", noon.Add(-time.Hour)) || !l.allow("anna", noon.Add(time.Second)) {
		t.Errorf("took %d at once", took)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	b := testBridge(t, PayloadSenML)
	taken := 0
	for i := range 10 * maxRequests {
		b.limits.buckets["anna@example.org"] = &bucket{requestBurst, time.Now()}
		if b.hear(nil, stream.Stanza{Name: "iq", Type: "get", ID: fmt.Sprint(i), From: jid.MustParse("anna@example.org/x"), To: jid.MustParse("meter@pi.example.org")}) {
			taken++
		}
	}
	if taken != maxRequests {
		t.Errorf("%d requests wait", taken)
	}
}

func TestStrikes(t *testing.T) {
	u := underway{sizes: map[sent]int{}}
	u.begin(sent{"a", "1"}, 10)
	u.begin(sent{"b", "1"}, 20)
	if u.biggest() != (sent{"b", "1"}) {
		t.Error("the smaller is blamed")
	}
	u.end(sent{"b", "1"})
	if u.biggest() != (sent{"a", "1"}) {
		t.Error("what is settled is blamed")
	}
	s := strikes{counts: map[sent]int{}}
	for i := range 2 * maxStrikes {
		s.add(sent{"n", fmt.Sprint(i)})
	}
	if len(s.counts) > maxStrikes {
		t.Errorf("%d strikes are kept", len(s.counts))
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Stream: stream.Config{Component: &stream.Component{Domain: "pi.example.org"}}, PubSub: "pubsub.example.org", Gateway: "pi"}
	o := Options{Auth: rights{}, Log: slog.New(slog.DiscardHandler)}
	if _, err := New(good, o); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config, *Options){
		"no service":   func(c *Config, _ *Options) { c.PubSub = "" },
		"pep":          func(c *Config, _ *Options) { c.PubSub = ServicePEP },
		"bad service":  func(c *Config, _ *Options) { c.PubSub = "a@b@c" },
		"bad payload":  func(c *Config, _ *Options) { c.Payload = "json" },
		"no gateway":   func(c *Config, _ *Options) { c.Gateway = "" },
		"bad domain":   func(c *Config, _ *Options) { c.Stream.Component = &stream.Component{Domain: "a@b"} },
		"no stream":    func(c *Config, _ *Options) { c.Stream.Component = nil },
		"both streams": func(c *Config, _ *Options) { c.Stream.Account = &stream.Account{} },
		"no rights":    func(_ *Config, o *Options) { o.Auth = nil },
	} {
		c, o := good, o
		spoil(&c, &o)
		if _, err := New(c, o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzDecodeLog(f *testing.F) {
	for _, payload := range []string{PayloadSenML, PayloadFields} {
		b := testBridge(f, payload)
		pack, _ := b.EncodeLog("kitchen", noon, someRecords(), 0)
		text, err := WrapLog(pack)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`<data xmlns='urn:xmpp:bob' type='application/senml+cbor' cid=''>gaBg</data>`))
	f.Add([]byte(`<fields xmlns='urn:xmpp:iot:sensordata' seqnr='-1' done='maybe'/>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		device, _, rs, err := DecodeLog(text)
		if err != nil {
			if len(rs) != 0 || device != "" {
				t.Error("readings beside an error")
			}
			return
		}
		if _, err := devices.ParseID(string(device)); err != nil || len(rs) == 0 {
			t.Errorf("device %q with %d readings", device, len(rs))
		}
		for _, r := range rs {
			if r.Time.Year() < 1 || r.Time.Year() > 9999 {
				t.Errorf("time %v", r.Time)
			}
			for _, f := range r.Fields {
				if !f.Value.IsValid() || !fieldName(f.Name) {
					t.Errorf("field %+v", f)
				}
			}
		}
	})
}

func FuzzDecodePack(f *testing.F) {
	codec, err := newPackCodec()
	if err != nil {
		f.Fatal(err)
	}
	pack, _, err := codec.encode("h/g/d/", someRecords(), maxPack)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pack)
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, pack []byte) {
		_, rs, err := codec.decode(pack)
		if err != nil {
			return
		}
		for _, r := range rs {
			if len(r.Fields) == 0 || r.Time.Before(time.Unix(minSenMLTime, 0)) {
				t.Errorf("reading %+v", r)
			}
		}
	})
}
