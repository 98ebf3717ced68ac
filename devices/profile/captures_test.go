package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

// capture reads the lines of what real software said; the first tells which.
func capture(t *testing.T, name string) (lines [][]byte) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "firmware-profiles", "testdata", "captures", name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		lines = append(lines, bytes.TrimSpace(line))
	}
	return lines[1:]
}

// An exposed is what an entry of a device's exposes is, for making messages of
// it.
type exposed struct {
	Type, Property, Unit string
	Access               int
	ValueOn              any      `json:"value_on"`
	ValueOff             any      `json:"value_off"`
	Min                  *float64 `json:"value_min"`
	Max                  *float64 `json:"value_max"`
	Values               []any
	Features             []exposed
}

// example is a value that the device may publish, nil if it publishes none.
func (e exposed) example() any {
	switch e.Type {
	case "numeric":
		if e.Min != nil {
			return *e.Min
		}
		return 1.5
	case "binary":
		return e.ValueOn
	case "enum":
		return e.Values[0]
	case "text":
		return "on" // no truth value
	case "composite":
		object := map[string]any{}
		for _, f := range e.Features {
			if v := f.example(); v != nil && f.Access&1 != 0 && f.Type != "composite" {
				object[f.Property] = v
			}
		}
		return object
	}
	return nil
}

// TestZigbeeExposes takes what the converters of Zigbee2MQTT say of real
// devices, publishes a value of each property, and sets each that can be set.
func TestZigbeeExposes(t *testing.T) {
	lines := capture(t, "zigbee2mqtt-exposes.jsonl")
	if len(lines) != 200 {
		t.Fatalf("%d devices", len(lines))
	}
	h := newHouse(t)
	out := h.hear("zigbee2mqtt/bridge/devices", "["+string(bytes.Join(lines, []byte(",")))+"]")
	if len(out.Children) != len(lines)-1 {
		t.Errorf("%d devices are announced", len(out.Children)+1)
	}
	spelled := map[string]bool{}
	fields, commands := 0, 0
	for _, line := range lines {
		var d struct {
			Friendly   string `json:"friendly_name"`
			Definition struct {
				Model, Vendor string
				Exposes       []exposed
			}
		}
		if err := json.Unmarshal(line, &d); err != nil {
			t.Fatal(err)
		}
		message := map[string]any{}
		want := map[string]exposed{}
		var settable []exposed
		var visit func(e exposed)
		visit = func(e exposed) {
			if e.Property == "" {
				for _, f := range e.Features {
					visit(f)
				}
				return
			}
			if e.Access&2 != 0 && e.Type != "composite" && e.Type != "list" {
				settable = append(settable, e)
			}
			if v := e.example(); v != nil && (e.Access&1 != 0 || e.Type == "composite") {
				if _, twice := message[e.Property]; !twice {
					message[e.Property] = v
					want[e.Property] = e
				}
			}
		}
		for _, e := range d.Definition.Exposes {
			visit(e)
		}
		payload, err := json.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		out := h.hear("zigbee2mqtt/"+d.Friendly, string(payload))
		if out.About.Model != d.Definition.Model || out.About.Maker != d.Definition.Vendor || out.About.Parent != "bridge" {
			t.Errorf("%s: %+v", d.Friendly, out.About)
		}
		got := map[string]devices.Field{}
		for _, r := range out.Readings {
			for _, f := range r.Fields {
				got[f.Name] = f
			}
		}
		fields += len(got)
		for property, e := range want {
			f, ok := got[fieldName(property)]
			if e.Type == "composite" || property == "last_seen" || e.Type == "enum" && notValue(fmt.Sprint(e.Values[0])) || len(got) == maxFields {
				continue
			}
			kind := map[string]devices.ValueKind{"numeric": devices.NumberValue, "binary": devices.BoolValue, "text": devices.TextValue}[e.Type]
			if !ok || e.Type != "enum" && f.Value.Kind() != kind {
				t.Errorf("%s %s: %s (%s) is %+v", d.Definition.Vendor, d.Definition.Model, property, e.Type, f)
			}
			if e.Type == "numeric" {
				spelled[e.Unit+" → "+string(f.Unit)] = true
				if (e.Unit == "") != (f.Unit == "") {
					t.Errorf("%s %s: %s has the unit %q, announced %q", d.Definition.Vendor, d.Definition.Model, property, f.Unit, e.Unit)
				}
			}
		}
		for _, e := range settable {
			argument := map[string]string{"numeric": "1", "binary": "on", "text": "a \"b\""}[e.Type]
			if e.Type == "enum" {
				argument = fmt.Sprint(e.Values[len(e.Values)-1])
			} else if e.Type == "numeric" && e.Min != nil {
				argument = devices.Number(*e.Min).String()
			} else if e.Type == "numeric" && e.Max != nil {
				argument = devices.Number(*e.Max).String()
			}
			sent, err := h.Encode("zigbee2mqtt", d.Friendly, fieldName(e.Property), argument)
			var object map[string]any
			if err != nil || sent.Topic != "zigbee2mqtt/"+d.Friendly+"/set" || json.Unmarshal(sent.Payload, &object) != nil || object[e.Property] == nil {
				t.Errorf("%s %s: %s %s: %+v %s %v", d.Definition.Vendor, d.Definition.Model, e.Property, argument, sent, sent.Payload, err)
			}
			commands++
		}
	}
	for _, unit := range []string{"°", "s", "min", "h", "lx", "°C", "V", "l", "var", "kvarh", "µS/cm", "mg/l"} {
		if !slices.ContainsFunc(sortedKeys(spelled), func(s string) bool { return strings.HasSuffix(s, " → "+unit) }) {
			t.Errorf("no unit %s among %v", unit, sortedKeys(spelled))
		}
	}
	t.Logf("%d devices, %d fields, %d commands; units %s", len(lines), fields, commands, strings.Join(sortedKeys(spelled), ", "))
}

// TestHomieDevice hears what a device made with an npm package said to a real
// broker: as it came, and in other orders, as a broker may send what it kept.
func TestHomieDevice(t *testing.T) {
	type said struct{ Topic, Payload string }
	var all []said
	for _, line := range capture(t, "homie-device.jsonl") {
		var s said
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if len(all) < 60 {
		t.Fatalf("%d messages", len(all))
	}
	const want = `climate_humidity=55 %, climate_serial="00123", climate_temperature=21.40 °C, lamps_1_level=80 %, valve_mode="on"`
	for seed := range uint64(20) {
		h := newHouse(t)
		got := map[string]string{}
		take := func(out Output) {
			if out.Announced {
				return
			}
			for _, r := range out.Readings {
				for _, f := range r.Fields {
					v := f.Value.String()
					if f.Value.Kind() == devices.TextValue {
						v = fmt.Sprintf("%q", v)
					}
					got[f.Name] = strings.TrimSpace(f.Name + "=" + v + " " + string(f.Unit))
				}
			}
		}
		order := slices.Clone(all)
		if seed > 0 {
			rand.New(rand.NewPCG(seed, seed)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		for _, s := range order {
			out := h.hear(s.Topic, s.Payload)
			if out.Identity != "greenhouse" {
				t.Errorf("%s: %+v", s.Topic, out)
			}
			take(out)
			for _, earlier := range out.Earlier {
				take(earlier.Output)
			}
		}
		delete(got, "valve_open") // true and false, in any order
		delete(got, "stats_uptime")
		delete(got, "stats_interval")
		var lines []string
		for _, name := range sortedKeys(got) {
			lines = append(lines, got[name])
		}
		if line := strings.Join(lines, ", "); line != want {
			t.Errorf("order %d: %s, want %s", seed, line, want)
		}
		about, ok := h.Describe("homie3", "greenhouse")
		if !ok || about.Name != "Green house" || about.Firmware != "1.2.3" {
			t.Errorf("order %d: %+v", seed, about)
		}
		// The script sent this; the device answered with its property.
		if sent, err := h.Encode("homie4", "greenhouse", "valve_open", "off"); err != nil || !slices.Contains(all, said{sent.Topic, string(sent.Payload)}) {
			t.Errorf("order %d: %+v %v", seed, sent, err)
		}
		if _, err := h.Encode("homie4", "greenhouse", "valve_mode", "open"); err == nil {
			t.Errorf("order %d: a word that is not announced is sent", seed)
		}
		if _, err := h.Encode("homie4", "greenhouse", "climate_temperature", "20"); err == nil {
			t.Errorf("order %d: what cannot be set is set", seed)
		}
	}
}
