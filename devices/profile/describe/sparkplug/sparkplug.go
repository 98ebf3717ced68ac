// Package sparkplug reads the births of Sparkplug B (Eclipse Sparkplug 3.0,
// sections 5 and 6): what the metrics are called and of what type they are, for
// later messages may have their aliases alone.
package sparkplug

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
	"github.com/porchlight-iot/porchlight/devices/profile/sparkplug"
)

const (
	maxMetrics   = 240 // each is two fields, by name and by alias
	maxNameDepth = 10
	rebirth      = "Node Control/Rebirth"
	number       = "bdSeq" // of births and deaths (section 6.4.25)
)

// Describe is the describer. Of the captures it needs group, type, edge and,
// for a DBIRTH, device.
func Describe(m describe.Message) ([]describe.Device, error) {
	p, err := sparkplug.Parse(m.Payload)
	if err != nil {
		return nil, err
	}
	group, edge, device := m.Captures["group"], m.Captures["edge"], m.Captures["device"]
	if group == "" || edge == "" {
		return nil, errors.New("not a topic of Sparkplug")
	}
	node := group + "/" + edge
	space, _, _ := strings.Cut(m.Topic, "/")
	d := describe.Device{Identity: node, Maker: "Sparkplug"}
	commands := fmt.Sprintf("%s/%s/NCMD/%s", space, group, edge)
	if device != "" {
		d.Identity, d.Parent = node+"/"+device, node
		commands = fmt.Sprintf("%s/%s/DCMD/%s/%s", space, group, edge, device)
	} else {
		d.Availability = []describe.Availability{{
			Topic: fmt.Sprintf("%s/%s/NDEATH/%s", space, group, edge), Render: deathOf(p),
			// The will of an earlier connection may come after the birth of this one.
			Words: map[string]devices.Availability{"this": devices.Offline, "another": devices.Online},
		}}
	}
	for _, metric := range p.Metrics {
		if metric.Name == "" || len(d.Fields) > 2*maxMetrics {
			continue
		}
		add(&d, metric, commands)
	}
	return []describe.Device{d}, nil
}

// add adds a metric, by its name and by its alias.
func add(d *describe.Device, m sparkplug.Metric, topic string) {
	path := strings.Split(m.Name, "/")
	f := describe.Field{Unit: devices.ParseUnit(m.Unit), Bits: m.Type.Bits()}
	switch {
	case m.Type == sparkplug.String, m.Type == sparkplug.Text, m.Type == sparkplug.UUID:
		f.Type = "text"
	case m.Type != 0 && m.Type != sparkplug.Boolean:
		f.Type = "number"
	}
	if len(path) <= maxNameDepth {
		f.Select = describe.Exact(path...)
		d.Fields = append(d.Fields, f)
	}
	if m.HasAlias {
		f.Select, f.Name = describe.Exact("#"+strconv.FormatUint(m.Alias, 10)), m.Name
		d.Fields = append(d.Fields, f)
	}
	if c, ok := command(m, topic); ok {
		d.Commands = append(d.Commands, c)
	}
}

// command writes a metric, where it is of a plain type and not said to be for
// reading only.
func command(m sparkplug.Metric, topic string) (c describe.Command, ok bool) {
	if m.ReadOnly || m.Name == number || strings.HasPrefix(m.Name, "Properties/") || strings.HasPrefix(m.Name, "Node Info/") {
		return c, false
	}
	c = describe.Command{Name: m.Name, Title: m.Name, Topic: topic, Argument: describe.Argument{Unit: devices.ParseUnit(m.Unit)}}
	switch {
	case m.Name == rebirth:
		c.Name, c.Title = "rebirth", "Announce everything again"
		c.Encode = func(devices.Value) (string, error) {
			return sparkplug.Write(rebirth, sparkplug.Boolean, "true", time.Now())
		}
		return c, true
	case m.Type == sparkplug.Boolean:
		c.Argument.Type = "bool"
	case m.Type == sparkplug.Float, m.Type == sparkplug.Double:
		c.Argument.Type = "number"
	case m.Type == sparkplug.String, m.Type == sparkplug.Text:
		c.Argument.Type = "text"
	case m.Type >= sparkplug.Int8 && m.Type <= sparkplug.UInt64:
		c.Argument.Type = "integer"
	default:
		return c, false
	}
	name, t := m.Name, m.Type
	c.Encode = func(v devices.Value) (string, error) { return sparkplug.Write(name, t, v.String(), time.Now()) }
	return c, true
}

// deathOf tells whether a death is that of the connection which a birth began.
func deathOf(birth sparkplug.Payload) describe.Render {
	born, known := bdSeq(birth)
	return func(payload string, _ any) (string, bool, error) {
		p, err := sparkplug.Parse([]byte(payload))
		if err != nil {
			return "", false, err
		}
		if died, ok := bdSeq(p); ok && known && died != born {
			return "another", true, nil
		}
		return "this", true, nil
	}
}

func bdSeq(p sparkplug.Payload) (uint64, bool) {
	for _, m := range p.Metrics {
		if m.Name == number && m.Value.IsValid() {
			return m.Raw, true
		}
	}
	return 0, false
}
