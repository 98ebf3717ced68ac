package profile

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// A house is a session with the built-in profiles.
type house struct {
	t *testing.T
	*Session
}

func newHouse(t *testing.T) house {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return house{t, library.NewSession(berlin(t))}
}

func (h house) hear(topic, payload string) Output {
	h.t.Helper()
	out, err := h.Hear(Message{Topic: topic, Payload: []byte(payload), ContentFormat: -1, Received: received})
	if err != nil {
		h.t.Fatalf("%s: %v", topic, err)
	}
	return out
}

// line is an output as one line: device: fields.
func line(out Output) string {
	s := out.Identity + ": " + strings.Join(shown(out.Readings), "; ")
	for _, child := range out.Children {
		s += " | " + line(child)
	}
	return s
}

const plug = `{"ieee_address":"0x01","friendly_name":"plug","definition":{"model":"P1","vendor":"V","exposes":[
	{"type":"switch","features":[{"type":"binary","name":"state","property":"state","access":7,"value_on":"GO","value_off":"STOP","value_toggle":"FLIP"}]},
	{"type":"numeric","name":"voltage","property":"voltage","unit":"mV","access":1},
	{"type":"composite","property":"color","features":[{"type":"numeric","property":"x","unit":"ug/m3","access":1}]},
	{"type":"enum","property":"mode","access":3,"values":["a","b"]}]}}`

// TestOrder hears data before and after its announcement: the same is
// understood.
func TestOrder(t *testing.T) {
	const data = `{"state":"GO","voltage":3000,"color":{"x":1},"mode":"a"}`
	const want = "plug: - state=true, voltage=3000 mV, color_x=1 µg/m³, mode=\"a\""
	after := newHouse(t)
	after.hear("zigbee2mqtt/bridge/devices", "["+plug+"]")
	if got := after.hear("zigbee2mqtt/plug", data); line(got) != want || got.About.Identity != "0x01" || got.About.Model != "P1" {
		t.Errorf("%s %+v", line(got), got.About)
	}
	before := newHouse(t)
	if got := line(before.hear("zigbee2mqtt/plug", data)); got == want {
		t.Errorf("known without an announcement: %s", got)
	}
	out := before.hear("zigbee2mqtt/bridge/devices", "["+plug+"]")
	if len(out.Earlier) != 1 || line(out.Earlier[0].Output) != want || !out.Announced {
		t.Errorf("%+v", out)
	}
	if again := before.hear("zigbee2mqtt/bridge/devices", "["+plug+"]"); len(again.Earlier) != 0 {
		t.Error("the same announcement again reads them again")
	}
}

func TestRemoved(t *testing.T) {
	h := newHouse(t)
	h.hear("zigbee2mqtt/bridge/devices", "["+plug+","+strings.ReplaceAll(strings.ReplaceAll(plug, "0x01", "0x02"), `"plug"`, `"lamp"`)+"]")
	if out := h.hear("zigbee2mqtt/bridge/devices", "["+plug+"]"); !slices.Equal(out.Removed, []string{"0x02"}) {
		t.Errorf("removed %v", out.Removed)
	}
	if _, known := h.Describe("zigbee2mqtt", "lamp"); known {
		t.Error("lamp is known")
	}
	if out := h.hear("zigbee2mqtt/bridge/devices", ""); !slices.Equal(out.Removed, []string{"0x01"}) {
		t.Errorf("removed %v", out.Removed)
	}
	if len(h.known)+len(h.called)+len(h.topics)+len(h.announced)+h.parts != 0 {
		t.Error("something of them stayed")
	}
}

// TestRenamed finds a device under its new name only.
func TestRenamed(t *testing.T) {
	h := newHouse(t)
	h.hear("zigbee2mqtt/bridge/devices", "["+plug+"]")
	h.hear("zigbee2mqtt/bridge/devices", "["+strings.ReplaceAll(plug, `"plug"`, `"hall/plug"`)+"]")
	if d, ok := h.Describe("zigbee2mqtt", "hall/plug"); !ok || d.Identity != "0x01" {
		t.Errorf("%+v", d)
	}
	if _, ok := h.Describe("zigbee2mqtt", "plug"); ok {
		t.Error("the old name is known")
	}
}

// TestTasmotaAnnounced follows a board whose words and topics are its own.
func TestTasmotaAnnounced(t *testing.T) {
	h := newHouse(t)
	const config = `{"dn":"Hall","mac":"00000049A3BC","md":"Basic","ofln":"weg","onln":"da","state":["AUS","AN","TOGGLE","HOLD"],"sw":"13","t":"hall","ft":"house/%prefix%/%topic%/","tp":["cmnd","stat","tele"],"rl":[1,1,0],"lt_st":0,"ver":1}`
	h.hear("tasmota/discovery/00000049A3BC/config", config)
	h.hear("tasmota/discovery/00000049A3BC/sensors", `{"sn":{"AM2301":{"Temperature":70},"TempUnit":"F"}}`)
	if got := line(h.hear("house/stat/hall/RESULT", `{"POWER1":"AN","POWER2":"AUS"}`)); got != "hall: - power1=true, power2=false" {
		t.Error(got)
	}
	if got := line(h.hear("house/tele/hall/SENSOR", `{"AM2301":{"Temperature":71}}`)); got != "hall: - am2301_temperature=71 °F" {
		t.Error(got)
	}
	if out := h.hear("house/tele/hall/LWT", "weg"); out.Availability != devices.Offline || out.Identity != "hall" {
		t.Errorf("%+v", out)
	}
	if _, err := h.Hear(Message{Topic: "tasmota/discovery/00000049A3BD/config", Payload: []byte(config)}); err == nil {
		t.Error("the config of another board is taken")
	}
	if out := h.hear("tasmota/discovery/00000049A3BC/config", ""); len(out.Removed) != 0 {
		t.Errorf("removed %v, though its sensors are still announced", out.Removed)
	}
	if out := h.hear("tasmota/discovery/00000049A3BC/sensors", ""); !slices.Equal(out.Removed, []string{"00000049A3BC"}) {
		t.Errorf("removed %v", out.Removed)
	}
}

// TestSessionBounds fills a session.
func TestSessionBounds(t *testing.T) {
	h := newHouse(t)
	for i := range 2 * maxKept {
		if _, err := h.Hear(Message{Topic: fmt.Sprintf("unheard/of/%d", i), Payload: []byte("{}")}); !errors.Is(err, ErrUnknown) {
			t.Fatal(err)
		}
	}
	if len(h.kept.byTopic) != maxKept || h.kept.order.Len() != maxKept {
		t.Errorf("%d messages are kept", len(h.kept.byTopic))
	}
	for i := range 2 * maxKept {
		size := i % (maxKeptBytes + 100)
		topic := fmt.Sprintf("unheard/of/%d", i)
		h.kept.keep(Message{Topic: topic, Payload: make([]byte, size)}, deviceKey{}, nil)
		if i%97 != 0 {
			continue
		}
		kept := 0
		for topic, e := range h.kept.byTopic {
			kept += len(topic) + len(e.Value.(*keptMessage).Payload)
		}
		if kept != h.kept.bytes || kept > maxKeptTotal || len(h.kept.byTopic) != h.kept.order.Len() {
			t.Fatalf("%d bytes are kept, and counted as %d", kept, h.kept.bytes)
		}
		if _, is := h.kept.byTopic[topic]; is != (size+len(topic) <= maxKeptBytes) {
			t.Fatalf("a message of %d bytes is kept: %v", size, is)
		}
	}
	var all []json.RawMessage
	for i := range maxDescribed + 10 {
		all = append(all, json.RawMessage(fmt.Sprintf(`{"ieee_address":"%d","friendly_name":"n%d"}`, i, i)))
	}
	list, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	h.hear("zigbee2mqtt/bridge/devices", string(list))
	if len(h.known) != maxDescribed {
		t.Errorf("%d devices are known", len(h.known))
	}
}

// TestFurtherTopics hears devices on topics that only an announcement knows, as
// those of Home Assistant are.
func TestFurtherTopics(t *testing.T) {
	h := newHouse(t)
	p := builtin(t, "zigbee2mqtt") // any with describers
	render := func(_ string, document any) (string, bool, error) {
		m, _ := document.(map[string]any)
		n, ok := m["t"].(json.Number)
		return n.String(), ok, nil
	}
	words := map[string]devices.Availability{"up": devices.Online, "down": devices.Offline}
	announce := func(topic string, d describe.Device) {
		h.announce(newHeard(Message{Topic: topic, Payload: []byte(topic)}), p, []describe.Device{d})
	}
	announce("config/1", describe.Device{Identity: "d", Mode: describe.All,
		Topics:       []describe.Topic{{Topic: "x/state", Fields: []describe.Field{{Name: "Temperature", Render: render, Unit: "°C"}}}},
		Availability: []describe.Availability{{Topic: "x/status", Words: words}, {Topic: "y/status", Select: "state", Words: words}}})
	announce("config/2", describe.Device{Identity: "d", Called: "dee",
		Topics: []describe.Topic{{Topic: "x/state", Fields: []describe.Field{{Select: "h", Type: "number", Kind: "setting"}}}, {Topic: "x/relay", Fields: []describe.Field{{Name: "relay", Words: map[string]devices.Value{"ON": devices.Bool(true)}}}}}})
	for _, c := range []struct{ topic, payload, want string }{
		{"x/state", `{"t":21.4,"h":"7","other":1}`, "dee: - temperature=21.4 °C, h=7"},
		{"x/state", `{"h":7}`, "dee: - h=7"},
		{"x/state", `{}`, "dee: "},
		{"x/relay", "ON", "dee: - relay=true"},
	} {
		if got := line(h.hear(c.topic, c.payload)); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.topic, c.payload, got, c.want)
		}
	}
	for _, c := range []struct {
		topic, payload string
		want           devices.Availability
	}{
		{"x/status", "up", devices.AvailabilityUnknown}, // the other was not heard
		{"y/status", `{"state":"up"}`, devices.Online},
		{"x/status", "down", devices.Offline},
		{"y/status", `{"state":"up"}`, devices.Offline},
		{"x/status", "up", devices.Online},
	} {
		if out := h.hear(c.topic, c.payload); out.Availability != c.want || out.Identity != "dee" {
			t.Errorf("%s %s: %+v", c.topic, c.payload, out)
		}
	}
	h.takeBack("config/1")
	if out := h.hear("x/status", "up"); out.Profile != "plain" {
		t.Errorf("%+v", out)
	}
	if got := line(h.hear("x/state", `{"t":21.4,"h":7}`)); got != "dee: - h=7" {
		t.Error(got)
	}
}

// FuzzHear throws anything at a session that knows some devices.
func FuzzHear(f *testing.F) {
	library, err := Builtin()
	if err != nil {
		f.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join("..", "..", "firmware-profiles", "testdata", "*.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	session := library.NewSession(time.UTC)
	for _, file := range files {
		for _, s := range readLines(f, file) {
			m, err := s.Message(received)
			if err != nil {
				f.Fatal(err)
			}
			_, _ = session.Hear(m)
			f.Add(m.Topic, m.Payload, m.Retained)
		}
	}
	f.Fuzz(func(t *testing.T, topic string, payload []byte, retained bool) {
		out, err := session.Hear(Message{Topic: topic, Payload: payload, ContentFormat: -1, Received: received, Retained: retained})
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 400 {
				t.Errorf("%q", err)
			}
			return
		}
		for _, c := range session.Commands(out.Profile, out.Identity) {
			sent, err := session.Encode(out.Profile, out.Identity, c.Name, "1")
			if err == nil && strings.ContainsAny(sent.Topic, "+#\x00") {
				t.Errorf("a command to %q", sent.Topic)
			}
		}
	})
}
