// Package zigbee2mqtt reads the list of devices that Zigbee2MQTT keeps on
// <base>/bridge/devices, with what each exposes
// (zigbee2mqtt.io/guide/usage/exposes.html).
package zigbee2mqtt

import (
	"encoding/json"
	"errors"
	"fmt"
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
		e.add(&out, nil, base+"/"+d.Friendly+"/set", 0)
	}
	return out
}

// add adds what is exposed at a path of properties.
func (e expose) add(d *describe.Device, path []string, topic string, depth int) {
	if depth > maxDepth || len(d.Fields) >= maxFields {
		return
	}
	if e.Property != "" {
		path = append(path[:len(path):len(path)], e.Property)
	}
	if len(e.Features) > 0 {
		for _, f := range e.Features {
			f.add(d, path, topic, depth+1)
		}
		return
	}
	if len(path) == 0 {
		return
	}
	if e.Access&published != 0 {
		f := e.field(path)
		d.Fields = append(d.Fields, f)
		if f.Unit != "" {
			d.Facts = append(d.Facts, describe.Text(strings.Join(path, ".")+".unit", string(f.Unit)))
		}
	}
	if e.Access&settable != 0 && len(path) == 1 {
		if c, ok := e.command(topic); ok {
			d.Commands = append(d.Commands, c)
		}
	}
}

func (e expose) field(path []string) describe.Field {
	f := describe.Field{Select: describe.Exact(path...), Unit: devices.ParseUnit(e.Unit)}
	switch e.Category {
	case "config":
		f.Kind = "setting"
	case "diagnostic":
		f.Kind = "diagnostic"
	}
	switch e.Type {
	case "numeric":
		f.Type = "number"
		if f.Kind == "" && strings.HasSuffix(e.Property, "energy") || f.Unit == "kWh" {
			f.Kind = "counter"
		}
	case "binary":
		f.Words = map[string]devices.Value{fmt.Sprint(e.ValueOn): devices.Bool(true), fmt.Sprint(e.ValueOff): devices.Bool(false)}
	case "enum":
		if e.Property == "action" {
			f.Kind = "event"
		}
	}
	return f
}

// command sets a property by a JSON object with that member.
func (e expose) command(topic string) (c describe.Command, ok bool) {
	name, err := json.Marshal(e.Property)
	if err != nil {
		return c, false
	}
	c = describe.Command{Name: e.Property, Title: e.Label, Topic: topic, Payload: "{" + string(name) + ":{value}}", Argument: describe.Argument{Unit: devices.ParseUnit(e.Unit)}}
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
		var values []any
		if json.Unmarshal(e.Values, &values) != nil || len(values) == 0 {
			return c, false
		}
		a.Type, a.Words = "word", make(map[string]string, len(values))
		for _, v := range values {
			a.Words[fmt.Sprint(v)] = quoted(v)
		}
	case "text":
		a.Type = "text"
		c.Encode = func(v devices.Value) (string, error) { return "{" + string(name) + ":" + quoted(v.String()) + "}", nil }
	default:
		return c, false
	}
	return c, true
}

// quoted writes a value as JSON.
func quoted(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "null"
	}
	return string(b)
}
