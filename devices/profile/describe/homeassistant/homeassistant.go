// Package homeassistant reads the announcements of Home Assistant's MQTT
// discovery, which hundreds of firmwares and programs send
// (https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery): one
// component a message on <prefix>/<component>/[<node>/]<object>/config, or a
// whole device on <prefix>/device/[<node>/]<object>/config. Defaults are those
// of homeassistant/components/mqtt in home-assistant/core.
//
// Left out is what says nothing of the device: icons, attributes
// (json_attributes_topic), images, and code words of alarm panels.
package homeassistant

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// The bounds of an announcement. A longer text is cut or left out.
const (
	maxPayload    = 256 << 10
	maxComponents = 300
	maxTopic      = 512
	maxWords      = 100 // options of a select, effects of a light
	maxText       = 200
)

// Describe is the describer.
func Describe(m describe.Message) ([]describe.Device, error) {
	component, node, object, err := splitTopic(m.Topic)
	if err != nil {
		return nil, err
	}
	if len(m.Payload) > maxPayload {
		return nil, fmt.Errorf("the announcement has %d bytes, more than %d", len(m.Payload), maxPayload)
	}
	d := json.NewDecoder(bytes.NewReader(m.Payload))
	d.UseNumber()
	var raw map[string]any
	if err := d.Decode(&raw); err != nil {
		return nil, fmt.Errorf("not an announcement of Home Assistant's: %w", err)
	}
	root := expand(raw, short)
	if root.truth("migrate_discovery", false) {
		return nil, nil // the device announces itself as a whole elsewhere
	}
	root.replaceBase(root.text("~", ""))
	a := announcement{fallback: cmp.Or(node, object), names: make(map[string]bool), topics: make(map[string]int)}
	a.tellDevice(root)
	if component == "device" {
		err = a.tellComponents(root)
	} else {
		err = a.tell(entity{component, object, root}, true)
	}
	if err != nil {
		return nil, err
	}
	return []describe.Device{a.device}, nil
}

// splitTopic reads <prefix>/<component>/[<node>/]<object>/config. The prefix
// may have several levels, and a node may be called like a component.
func splitTopic(topic string) (component, node, object string, err error) {
	levels := strings.Split(topic, "/")
	n := len(levels)
	if n < 4 || levels[n-1] != "config" {
		return "", "", "", errors.New("not the topic of an announcement")
	}
	known := func(name string) bool { _, ok := components[name]; return ok || name == "device" }
	switch {
	case n > 4 && known(levels[n-4]):
		return levels[n-4], levels[n-3], levels[n-2], nil
	case known(levels[n-3]):
		return levels[n-3], "", levels[n-2], nil
	}
	return "", "", "", fmt.Errorf("the component %.40q is not known", levels[n-3])
}

// An announcement is what one message tells of a device.
type announcement struct {
	device   describe.Device
	fallback string          // what identifies a device that has no identifiers
	names    map[string]bool // of entities so far
	topics   map[string]int  // places in device.Topics
}

func (a *announcement) tellDevice(root options) {
	o := expand(root.object("device"), shortDevice)
	ids := o.list("identifiers")
	for _, connection := range o.items("connections") {
		if pair, ok := connection.([]any); ok && len(pair) == 2 {
			ids = append(ids, texts(pair[1:])...)
		}
	}
	d := &a.device
	d.Identity = a.fallback
	if len(ids) > 0 {
		d.Identity = ids[0]
	}
	d.Name, d.Maker, d.Firmware = o.label("name"), o.label("manufacturer"), o.label("sw_version")
	d.Model = cmp.Or(o.label("model"), o.label("model_id"))
	d.Parent = o.label("via_device")
	for _, option := range []string{"name", "manufacturer", "model", "model_id", "sw_version", "hw_version", "serial_number"} {
		a.fact("device_"+option, o.label(option))
	}
}

func (a *announcement) fact(name, value string) {
	if value != "" {
		a.device.Facts = append(a.device.Facts, describe.Text(name, value))
	}
}

// shared are the options of a whole device that hold for those of its
// components that have none of their own.
var shared = []string{"availability", "availability_mode", "availability_template", "availability_topic", "command_topic",
	"encoding", "payload_available", "payload_not_available", "qos", "state_topic"}

func (a *announcement) tellComponents(root options) error {
	all, ok := root["components"].(map[string]any)
	if !ok {
		return errors.New("no components in the announcement of a device")
	}
	if len(all) > maxComponents {
		return fmt.Errorf("%d components, more than %d", len(all), maxComponents)
	}
	a.fact("state_topic", root.text("state_topic", ""))
	a.fact("command_topic", root.text("command_topic", ""))
	a.tellAvailability(root)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		raw, _ := all[id].(map[string]any)
		o := expand(raw, short)
		platform := o.text("platform", "")
		if len(o) < 2 {
			continue // only the platform: the component is no more
		}
		o.replaceBase(cmp.Or(o.text("~", ""), root.text("~", "")))
		for _, option := range shared {
			if v, ok := root[option]; ok {
				if _, own := o[option]; !own {
					o[option] = v
				}
			}
		}
		// What is wrong with one component says nothing of the others.
		_ = a.tell(entity{platform, id, o}, false)
	}
	if len(a.device.Topics)+len(a.device.Commands) == 0 {
		return errors.New("no component of the announcement can be understood")
	}
	return nil
}

// An entity is one component of a device, and its options.
type entity struct {
	component, id string
	options
}

// tell adds an entity to the device. alone is set where the message announces
// nothing else.
func (a *announcement) tell(e entity, alone bool) error {
	parts, ok := components[e.component]
	if !ok {
		return fmt.Errorf("the component %.40q is not known", e.component)
	}
	if e.component == "light" {
		parts = lightParts(e.text("schema", "basic"))
	}
	name := a.nameOf(e)
	var trouble error
	told := 0
	for _, p := range parts {
		p = p.resolve(e)
		value, err := a.tellValue(e, p, name)
		command, err2 := a.tellCommand(e, p, name)
		trouble = cmp.Or(trouble, err, err2)
		if value || command {
			told++
		}
	}
	if told == 0 {
		if trouble != nil {
			return trouble
		}
		if e.component == "tag" || e.component == "image" || e.component == "camera" {
			return nil
		}
		return fmt.Errorf("the %s has no topic that can be used", e.component)
	}
	if alone {
		a.tellAvailability(e.options)
	}
	a.tellFacts(e, name, alone)
	return nil
}

// nameOf gives the name of an entity's fields: as Home Assistant does its own
// name, else its device class; else what its template looks at, or the
// component.
func (a *announcement) nameOf(e entity) string {
	named := e.label("name")
	device := a.device.Name
	if len(named) > len(device) && device != "" && strings.EqualFold(named[:len(device)], device) && strings.ContainsAny(named[len(device):len(device)+1], " _-") {
		named = named[len(device)+1:] // it repeats the name of the device
	}
	if strings.EqualFold(named, device) && device != "" {
		named = ""
	}
	name := fieldName(named)
	for _, other := range []string{e.label("device_class"), lastMember(e.text("value_template", "")), e.component} {
		if name == "" {
			name = fieldName(other)
		}
	}
	if a.names[name] {
		name += "_" + cmp.Or(fieldName(e.id), "2")
	}
	a.names[name] = true
	return name
}

// fieldName is how the name will be written, so that two that come to the same
// are seen.
func fieldName(s string) string {
	words := strings.FieldsFunc(strings.ToLower(s), func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') })
	return strings.Join(words, "_")
}

// tellValue adds the field of a part, and reports whether it has one.
func (a *announcement) tellValue(e entity, p part, name string) (bool, error) {
	topic := e.text(p.topic, "")
	if p.topic == "" || topic == "" {
		return false, nil
	}
	if err := validTopic(topic); err != nil {
		return false, err
	}
	render, err := p.render(e)
	if err != nil {
		return false, err
	}
	at, ok := a.topics[topic]
	if !ok {
		at = len(a.device.Topics)
		a.topics[topic] = at
		a.device.Topics = append(a.device.Topics, describe.Topic{Topic: topic})
	}
	t := &a.device.Topics[at]
	t.Fields = append(t.Fields, describe.Field{
		Render: render, Name: p.fieldName(name), Unit: p.unitOf(e), Kind: p.kindOf(e), Type: p.typeOf(e), Words: p.wordsOf(e),
	})
	return true, nil
}

func (a *announcement) tellCommand(e entity, p part, name string) (bool, error) {
	topic := e.text(p.command, "")
	if p.command == "" || topic == "" {
		return false, nil
	}
	if err := validTopic(topic); err != nil {
		return false, err
	}
	c := describe.Command{
		Name: p.fieldName(name), Title: e.label("name"), Topic: topic, Retain: e.truth("retain", false), QoS: byte(min(max(e.number("qos", 0), 0), 2)),
		Argument: p.argument(e), Risk: e.risk(),
	}
	if c.Argument.Type == "none" {
		c.Payload = p.only(e)
	}
	encode, err := p.encoder(e, c)
	if err != nil {
		return false, err
	}
	c.Encode = encode
	a.device.Commands = append(a.device.Commands, c)
	return true, nil
}

// risk is what can come of telling an entity something, by what it is.
func (e entity) risk() devices.Risk {
	switch e.component {
	case "lock", "alarm_control_panel", "siren", "valve", "update":
		return devices.Hazardous
	case "cover":
		if slices.Contains([]string{"door", "garage", "gate"}, e.text("device_class", "")) {
			return devices.Hazardous
		}
	}
	return devices.Reversible
}

// tellAvailability adds the topics that say whether the device is there. A
// topic that the values come on too tells of one entity, not of the device:
// EMS-ESP announces there whether a value is among them.
func (a *announcement) tellAvailability(o options) {
	list := o.items("availability")
	if one, ok := o["availability"].(map[string]any); ok {
		list = []any{one}
	}
	if topic := o.text("availability_topic", ""); topic != "" {
		list = append(list, map[string]any{"topic": topic, "value_template": o["availability_template"], "payload_available": o["payload_available"], "payload_not_available": o["payload_not_available"]})
	}
	for i, one := range list {
		raw, _ := one.(map[string]any)
		each := expand(raw, short)
		topic := each.text("topic", "")
		_, values := a.topics[topic]
		if i == 20 || topic == "" || validTopic(topic) != nil || values {
			continue
		}
		render, err := renderer(each.text("value_template", ""))
		if err != nil {
			continue
		}
		a.device.Availability = append(a.device.Availability, describe.Availability{Topic: topic, Render: render, Words: map[string]devices.Availability{
			each.text("payload_not_available", "offline"): devices.Offline,
			each.text("payload_available", "online"):      devices.Online,
		}})
		if i == 0 {
			a.fact("availability_topic", topic)
		}
	}
	switch mode := describe.Mode(o.text("availability_mode", "")); mode {
	case describe.All, describe.Any:
		a.device.Mode = mode
	}
}

// tellFacts says what is announced, under the entity's name; where it is alone,
// also without, and under the names that it has in the topic and in messages.
func (a *announcement) tellFacts(e entity, name string, alone bool) {
	if len(e.object("device")) == 0 && alone {
		a.fact(name, e.label("name")) // there is no other name of the device
	}
	prefixes := []string{name + "_"}
	if alone {
		own := strings.TrimPrefix(cmp.Or(e.label("unique_id"), e.id), a.device.Identity)
		for _, other := range []string{"", lastMember(e.text("value_template", "")), own} {
			prefix := fieldName(other)
			if prefix != "" {
				prefix += "_"
			}
			if !slices.Contains(prefixes, prefix) {
				prefixes = append(prefixes, prefix)
			}
		}
	}
	for _, prefix := range prefixes {
		for _, f := range []struct{ name, option string }{
			{"topic", "state_topic"}, {"state_topic", "state_topic"}, {"command_topic", "command_topic"}, {"template", "value_template"},
			{"value_template", "value_template"}, {"unit", "unit_of_measurement"}, {"device_class", "device_class"}, {"state_class", "state_class"},
		} {
			a.fact(prefix+f.name, e.text(f.option, ""))
		}
	}
}

func validTopic(topic string) error {
	if len(topic) > maxTopic || strings.ContainsAny(topic, "+#\x00") {
		return fmt.Errorf("not a topic: %.60q", topic)
	}
	return nil
}
