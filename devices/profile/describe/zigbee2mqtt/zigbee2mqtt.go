// Package zigbee2mqtt reads the list of devices that Zigbee2MQTT keeps on
// <base>/bridge/devices, with what each exposes
// (zigbee2mqtt.io/guide/usage/exposes.html), and what it tells of itself on
// <base>/bridge/info.
package zigbee2mqtt

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// device is an entry of the list.
type device struct {
	IEEE       string `json:"ieee_address"`
	Friendly   string `json:"friendly_name"`
	Firmware   string `json:"software_build_id"`
	Power      string `json:"power_source"`
	Maker      string `json:"manufacturer"`
	ModelID    string `json:"model_id"`
	Disabled   bool   `json:"disabled"`
	Definition *struct {
		Model       string   `json:"model"`
		Vendor      string   `json:"vendor"`
		Description string   `json:"description"`
		Exposes     []expose `json:"exposes"`
	} `json:"definition"`
}

// expose is one thing that a device has: a value, or a group of them.
type expose struct {
	Type        string          `json:"type"` // binary, numeric, enum, text, composite, list; or light, switch, … with features
	Name        string          `json:"name"`
	Label       string          `json:"label"`
	Property    string          `json:"property"`
	Unit        string          `json:"unit"`
	Category    string          `json:"category"` // config, diagnostic
	Access      int             `json:"access"`
	ValueOn     any             `json:"value_on"`
	ValueOff    any             `json:"value_off"`
	ValueToggle any             `json:"value_toggle"`
	Min         *float64        `json:"value_min"`
	Max         *float64        `json:"value_max"`
	Step        float64         `json:"value_step"`
	Values      json.RawMessage `json:"values"` // of enum; texts, or numbers
	Features    []expose        `json:"features"`
}

// The bits of access.
const (
	published = 1
	settable  = 2
)

// The bounds of what is taken of one device.
const (
	maxDepth  = 4
	maxFields = 300
)

// Describe is the describer.
func Describe(m describe.Message) ([]describe.Device, error) {
	if strings.HasSuffix(m.Topic, "/bridge/info") {
		return describeBridge(m)
	}
	base, ok := strings.CutSuffix(m.Topic, "/bridge/devices")
	if !ok {
		return nil, errors.New("not a list of Zigbee2MQTT devices")
	}
	var all []device
	if err := json.Unmarshal(m.Payload, &all); err != nil {
		return nil, fmt.Errorf("not a list of Zigbee2MQTT devices: %w", err)
	}
	out := make([]describe.Device, 0, len(all))
	for _, d := range all {
		if d.IEEE == "" || d.Disabled {
			continue
		}
		out = append(out, d.describe(base))
	}
	return out, nil
}

// describeBridge tells of the bridge itself. Most of the message is its
// settings, and the schema of those.
func describeBridge(m describe.Message) ([]describe.Device, error) {
	var info struct {
		Version     string `json:"version"`
		Commit      string `json:"commit"`
		LogLevel    string `json:"log_level"`
		PermitJoin  *bool  `json:"permit_join"`
		Coordinator struct {
			IEEE string `json:"ieee_address"`
			Type string `json:"type"`
		} `json:"coordinator"`
	}
	if err := json.Unmarshal(m.Payload, &info); err != nil {
		return nil, fmt.Errorf("not what Zigbee2MQTT tells of itself: %w", err)
	}
	d := describe.Device{Identity: "bridge", Maker: "Zigbee2MQTT", Model: info.Coordinator.Type, Firmware: info.Version, Facts: []describe.Fact{
		describe.Text("version", info.Version), describe.Text("commit", info.Commit), describe.Text("log_level", info.LogLevel),
		describe.Text("coordinator/ieee_address", info.Coordinator.IEEE), describe.Text("coordinator/type", info.Coordinator.Type),
	}}
	if info.PermitJoin != nil {
		d.Facts = append(d.Facts, describe.Fact{Name: "permit_join", Value: devices.Bool(*info.PermitJoin), Kind: "setting"})
	}
	return []describe.Device{d}, nil
}

func (d device) describe(base string) describe.Device {
	out := describe.Device{
		Identity: d.IEEE, Called: d.Friendly, Name: d.Friendly, Firmware: d.Firmware, Maker: d.Maker, Model: d.ModelID, Parent: "bridge",
		Facts: []describe.Fact{describe.Text("friendly_name", d.Friendly), describe.Text("power_source", d.Power)},
	}
	if d.Definition == nil {
		return out
	}
	out.Maker, out.Model = d.Definition.Vendor, d.Definition.Model
	out.Facts = append(out.Facts, describe.Text("model", out.Model), describe.Text("vendor", out.Maker), describe.Text("description", d.Definition.Description))
	for _, e := range d.Definition.Exposes {
		e.add(&out, nil, base+"/"+d.Friendly+"/set", "", 0)
	}
	return out
}

// add adds what is exposed at a path of properties; group is the type of the
// expose that it is a feature of, "" if of none.
func (e expose) add(d *describe.Device, path []string, topic, group string, depth int) {
	if depth > maxDepth || len(d.Fields) >= maxFields {
		return
	}
	if e.Property != "" {
		path = append(path[:len(path):len(path)], e.Property)
	}
	if len(path) == 1 && e.settable() {
		if c, ok := e.command(topic); ok {
			if group == "lock" || e.Property == "warning" { // of a siren
				c.Risk = devices.Hazardous
			}
			d.Commands = append(d.Commands, c)
		}
	}
	if len(e.Features) > 0 {
		for _, f := range e.Features {
			f.add(d, path, topic, e.Type, depth+1)
		}
		return
	}
	if len(path) == 0 || e.Access&published == 0 {
		return
	}
	f := e.field(path, group)
	d.Fields = append(d.Fields, f)
	if f.Unit != "" {
		d.Facts = append(d.Facts, describe.Text(strings.Join(path, ".")+".unit", string(f.Unit)))
	}
}

// settable reports whether it can be set, as a whole: of a composite, whose own
// access is often left out, that any part of it can.
func (e expose) settable() bool {
	if e.Type == "composite" {
		return e.Access&settable != 0 || slices.ContainsFunc(e.Features, func(f expose) bool { return f.Access&settable != 0 })
	}
	return e.Access&settable != 0
}

func (e expose) field(path []string, group string) describe.Field {
	f := describe.Field{Select: describe.Exact(path...), Unit: e.unit()}
	switch e.Category {
	case "config":
		f.Kind = "setting"
	case "diagnostic":
		f.Kind = "diagnostic"
	}
	switch e.Type {
	case "numeric":
		f.Type, f.Unitless = "number", true
		switch {
		case counts[f.Unit] && e.Access&settable == 0 && !strings.Contains(e.Property, "power"):
			f.Kind = "counter"
		case f.Kind == "" && e.Access&settable != 0 && slices.Contains([]string{"light", "cover", "fan", "composite"}, group):
			f.Kind = "state"
		case f.Kind == "" && e.Access&settable != 0:
			f.Kind = "setting"
		}
	case "binary":
		f.Words = map[string]devices.Value{fmt.Sprint(e.ValueOn): devices.Bool(true), fmt.Sprint(e.ValueOff): devices.Bool(false)}
	case "enum", "text":
		if words, ok := e.texts(); ok || len(words) == 0 {
			f.Type = "text" // the value on is a word, where there are topics of single values
		}
		if e.Property == "action" || strings.HasPrefix(e.Property, "action_") {
			f.Kind = "event"
		}
	}
	return f
}

// counts are the units of what is counted for ever.
var counts = map[devices.Unit]bool{"kWh": true, "Wh": true, "kvarh": true, "kVAh": true, "m³": true}

// unit takes the spellings that the converters have beside those that anyone
// may have.
func (e expose) unit() devices.Unit {
	written := strings.TrimSpace(e.Unit)
	if u, ok := units[strings.ToLower(written)]; ok {
		return u
	}
	return devices.ParseUnit(written)
}

var units = map[string]devices.Unit{
	"c": "°C", "sec": "s", "sec.": "s", "second": "s", "seconds": "s", "minute": "min", "minutes": "min",
	"hr": "h", "hour": "h", "hours": "h", "days": "d", "day": "d", "lux": "lx", "lx": "lx", "volt": "V",
	"liter": "l", "mg/l": "mg/l", "meters": "m", "var": "var", "kvar": "kvar", "kvarh": "kvarh", "va": "VA", "kwh": "kWh",
}

// texts are the values of an enum; ok is false where one is no text.
func (e expose) texts() (values []any, ok bool) {
	if json.Unmarshal(e.Values, &values) != nil {
		return nil, false
	}
	return values, !slices.ContainsFunc(values, func(v any) bool { _, text := v.(string); return !text })
}

// command sets a property by a JSON object with that member.
func (e expose) command(topic string) (c describe.Command, ok bool) {
	name, err := json.Marshal(e.Property)
	if err != nil {
		return c, false
	}
	c = describe.Command{Name: e.Property, Title: e.Label, Topic: topic, Payload: "{" + string(name) + ":{value}}", Argument: describe.Argument{Unit: e.unit()}}
	a := &c.Argument
	switch e.Type {
	case "numeric":
		a.Type, a.Min, a.Max, a.Step = "number", e.Min, e.Max, e.Step
	case "binary":
		a.Type, a.Words = "bool", map[string]string{"on": quoted(e.ValueOn), "off": quoted(e.ValueOff)}
		if e.ValueToggle != nil {
			a.Words["toggle"] = quoted(e.ValueToggle)
		}
	case "enum":
		values, _ := e.texts()
		if len(values) == 0 {
			return c, false
		}
		a.Type, a.Words = "word", make(map[string]string, len(values))
		for _, v := range values {
			a.Words[fmt.Sprint(v)] = quoted(v)
		}
	case "text":
		a.Type = "text"
		c.Encode = func(v devices.Value) (string, error) { return "{" + string(name) + ":" + quoted(v.String()) + "}", nil }
	case "composite", "list":
		a.Type = "text"
		kind := e.Type
		c.Encode = func(v devices.Value) (string, error) {
			inner, err := whole(kind, v.String())
			return "{" + string(name) + ":" + inner + "}", err
		}
	default:
		return c, false
	}
	return c, true
}

// whole takes the JSON of a composite or a list. A colour may be #rrggbb too.
func whole(kind, text string) (string, error) {
	if kind == "composite" && strings.HasPrefix(text, "#") {
		return `{"hex":` + quoted(text) + "}", nil
	}
	first, allowed := "{", "a JSON object, or #rrggbb of a colour"
	if kind == "list" {
		first, allowed = "[", "a JSON list"
	}
	if !strings.HasPrefix(text, first) || !json.Valid([]byte(text)) {
		return "", fmt.Errorf("%.40q is not %s", text, allowed)
	}
	return text, nil
}

// quoted writes a value as JSON.
func quoted(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "null"
	}
	return string(b)
}
