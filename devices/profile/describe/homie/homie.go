// Package homie reads what devices of the Homie convention say of themselves
// (homieiot/convention): in versions 3 and 4 an attribute a topic, as
// homie/car/engine/temperature/$unit, in version 5 a JSON document on
// homie/5/car/$description.
package homie

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// maxProperties bounds what is taken of one document.
const maxProperties = 500

// Describe is the describer. Of the captures it needs device; base, where the
// values are on topics that the profile does not know.
func Describe(m describe.Message) ([]describe.Device, error) {
	before, attribute, ok := strings.Cut(m.Topic, "/$")
	identity := m.Captures["device"]
	if !ok || identity == "" {
		return nil, errors.New("not an attribute of Homie")
	}
	if attribute == "description" {
		return describeDocument(m, before, identity)
	}
	_, rest, _ := strings.Cut(before+"/", "/")
	below, ok := strings.CutPrefix(rest, identity+"/")
	if !ok { // a base topic of several levels
		_, below, _ = strings.Cut("/"+rest, "/"+identity+"/")
	}
	value := strings.TrimSpace(string(m.Payload))
	name := strings.Trim(below, "/") // of the node, or node/property
	d := describe.Device{Identity: identity, Facts: []describe.Fact{describe.Text(strings.Trim(name+"/$"+attribute, "/"), value)}}
	d.Concerns = func(string) bool { return false }
	switch {
	case name == "":
		ofDevice(&d, attribute, value)
	case strings.Count(name, "/") == 1:
		p := property{path: name, topic: before}
		if err := p.attribute(attribute, value); err != nil {
			return nil, err
		}
		p.add(&d, m.Captures["base"] != "")
		if p.unit+p.datatype+p.retained != "" {
			d.Concerns = p.concerns
		}
	}
	return []describe.Device{d}, nil
}

func ofDevice(d *describe.Device, attribute, value string) {
	switch attribute {
	case "name":
		d.Name = value
	case "implementation":
		d.Model = value
	case "fw/name":
		d.Maker = value
	case "fw/version":
		d.Firmware = value
	}
}

// A property is what is known of one; each member may be empty.
type property struct {
	path     string // node/property
	topic    string // of its value
	title    string
	unit     string
	datatype string
	format   string
	settable bool
	retained string // true, false
	whole    bool   // what is empty is not there
}

// attribute takes one attribute of versions 3 and 4.
func (p *property) attribute(name, value string) error {
	switch name {
	case "name":
		p.title = value
	case "unit":
		p.unit = value
	case "datatype":
		if _, ok := datatypes[value]; !ok {
			return fmt.Errorf("%.40q is no datatype of Homie", value)
		}
		p.datatype = value
	case "format":
		p.format = value
	case "settable":
		p.settable = value == "true"
	case "retained":
		p.retained = value
	}
	return nil
}

// datatypes are those of the convention, as types of fields and of arguments.
var datatypes = map[string]struct{ field, argument string }{
	"integer":  {"integer", "integer"},
	"float":    {"number", "number"},
	"boolean":  {"bool", "bool"},
	"string":   {"text", "text"},
	"enum":     {"text", "word"},
	"color":    {"text", "text"},
	"datetime": {"text", "text"},
	"duration": {"text", "text"},
	"json":     {"text", "text"},
}

// add adds the property to the device: a field of the profile's messages, or a
// topic of its own.
func (p property) add(d *describe.Device, topics bool) {
	node, id, _ := strings.Cut(p.path, "/")
	exact := describe.Exact(node)
	f := describe.Field{
		// An array of version 3, node lights[], has the nodes lights_0 and so on.
		Select: "{" + exact + "," + exact + `_*}/` + describe.Exact(id),
		Unit:   devices.ParseUnit(p.unit), Unitless: p.whole,
		Type: datatypes[p.datatype].field,
	}
	if p.retained == "false" {
		f.Kind = "event" // of a moment: a doorbell
	} else if p.settable && p.datatype != "boolean" {
		f.Kind = "state"
	}
	if topics {
		f.Select, f.Name = "", p.path
		d.Topics = append(d.Topics, describe.Topic{Topic: p.topic, Fields: []describe.Field{f}})
	} else {
		d.Fields = append(d.Fields, f)
		if p.whole { // only version 5 has $target
			f.Select, f.Kind = f.Select+"/target", "setting"
			d.Fields = append(d.Fields, f)
		}
	}
	c := describe.Command{Name: p.path, Title: p.title}
	if p.settable { // without a topic it is none
		c.Topic, c.QoS = p.topic+"/set", 1
	}
	c.Argument = p.argument()
	d.Commands = append(d.Commands, c)
}

// concerns reports whether the values on a topic are those of the property, or
// of an array that it is of.
func (p property) concerns(topic string) bool {
	node, id, _ := strings.Cut(p.path, "/")
	start, _ := strings.CutSuffix(p.topic, "/"+p.path)
	rest, ok := strings.CutPrefix(topic, start+"/"+node)
	if !ok {
		return false
	}
	element, last, ok := strings.Cut(rest, "/")
	return ok && (element == "" || element[0] == '_') && (last == id || last == id+"/$target")
}

// argument takes datatype and format, either of which may come alone: what
// does not fit the other does no harm.
func (p property) argument() describe.Argument {
	a := describe.Argument{Type: datatypes[p.datatype].argument, Unit: devices.ParseUnit(p.unit)}
	if p.format == "" || p.datatype == "json" {
		return a
	}
	if low, rest, ok := strings.Cut(p.format, ":"); ok {
		high, step, _ := strings.Cut(rest, ":")
		a.Min, a.Max = limit(low), limit(high)
		if s := limit(step); s != nil && *s > 0 {
			a.Step = *s
		}
		return a
	}
	words := strings.Split(p.format, ",")
	if p.datatype == "boolean" { // they are for people: false, true
		if len(words) == 2 {
			a.Words = map[string]string{"off": "false", "on": "true", words[0]: "false", words[1]: "true"}
		}
		return a
	}
	if len(words) > maxProperties {
		return a
	}
	a.Words = make(map[string]string, len(words))
	for _, w := range words {
		a.Words[w] = w
	}
	return a
}

func limit(s string) *float64 {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return nil
	}
	return &f
}

// document is that of version 5.
type document struct {
	Homie  string `json:"homie"`
	Name   string `json:"name"`
	Type   string `json:"type"`
	Root   string `json:"root"`
	Parent string `json:"parent"`
	Nodes  map[string]struct {
		Name       string `json:"name"`
		Type       string `json:"type"`
		Properties map[string]struct {
			Name     string `json:"name"`
			Datatype string `json:"datatype"`
			Format   string `json:"format"`
			Settable bool   `json:"settable"`
			Retained *bool  `json:"retained"`
			Unit     string `json:"unit"`
		} `json:"properties"`
	} `json:"nodes"`
	Children []string `json:"children"`
}

func describeDocument(m describe.Message, base, identity string) ([]describe.Device, error) {
	var doc document
	if err := json.Unmarshal(m.Payload, &doc); err != nil {
		return nil, fmt.Errorf("not a description of Homie: %w", err)
	}
	if !strings.HasPrefix(doc.Homie, "5") {
		return nil, fmt.Errorf("a description of Homie %.10q is not known", doc.Homie)
	}
	d := describe.Device{Identity: identity, Name: doc.Name, Model: doc.Type, Parent: doc.Parent, Facts: []describe.Fact{
		describe.Text("homie", doc.Homie), describe.Text("name", doc.Name), describe.Text("type", doc.Type),
		describe.Text("root", doc.Root), describe.Text("parent", doc.Parent), describe.Text("children", strings.Join(doc.Children, ",")),
	}}
	if d.Parent == "" {
		d.Parent = doc.Root
	}
	if doc.Root != "" { // whose last will is that of all below it
		above, _ := strings.CutSuffix(base, identity)
		d.Mode = describe.All
		d.Availability = []describe.Availability{
			{Topic: base + "/$state", Words: states(devices.Offline)},
			{Topic: above + doc.Root + "/$state", Words: states(devices.Online)},
		}
	}
	for _, node := range slices.Sorted(maps.Keys(doc.Nodes)) {
		for _, id := range slices.Sorted(maps.Keys(doc.Nodes[node].Properties)) {
			p := doc.Nodes[node].Properties[id]
			if _, ok := datatypes[p.Datatype]; !ok || len(d.Commands) == maxProperties {
				continue // an object with an illegal value is ignored, and no other
			}
			one := property{path: node + "/" + id, topic: base + "/" + node + "/" + id, title: p.Name, unit: p.Unit, datatype: p.Datatype, format: p.Format, settable: p.Settable, whole: true}
			if p.Retained != nil {
				one.retained = strconv.FormatBool(*p.Retained)
			}
			one.add(&d, m.Captures["base"] != "")
			d.Facts = append(d.Facts, describe.Text(one.path+"/unit", p.Unit), describe.Text(one.path+"/datatype", p.Datatype))
		}
	}
	return []describe.Device{d}, nil
}

// states are the words of $state. Of a root, only that it is lost says
// something of those below it.
func states(disconnected devices.Availability) map[string]devices.Availability {
	sleeping := devices.Sleeping
	if disconnected == devices.Online {
		sleeping = devices.Online
	}
	return map[string]devices.Availability{
		"init": devices.Online, "ready": devices.Online, "alert": devices.Online,
		"sleeping": sleeping, "disconnected": disconnected, "lost": devices.Offline,
	}
}
