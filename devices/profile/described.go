package profile

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// compile makes one description of the parts, and rules of it.
func (d *described) compile() {
	var whole describe.Device
	for _, topic := range d.order {
		whole = combine(whole, d.parts[topic])
	}
	d.whole, d.states = describe.Device{}, nil
	d.extend(whole)
}

// extend adds a part, which is the newest.
func (d *described) extend(part describe.Device) {
	whole := combine(d.whole, part)
	d.whole = whole
	d.states = append(d.states, make([]devices.Availability, len(whole.Availability)-len(d.states))...)
	d.overlay, d.rules = nil, nil
}

// ownRules gives the rules for messages that the profile knows. They are made
// when a message comes, for a description may come in hundreds of parts.
func (d *described) ownRules() *overlay {
	if d.overlay == nil {
		d.overlay = &overlay{rules: rulesOf(d.whole.Fields)}
	}
	return d.overlay
}

// rulesOn gives those for a further topic; nil if it is none.
func (d *described) rulesOn(topic string) *overlay {
	if d.rules == nil {
		d.rules = make(map[string]*overlay)
		for _, t := range d.whole.Topics {
			d.rules[t.Topic] = &overlay{fields: t.Fields}
		}
	}
	o := d.rules[topic]
	if o != nil && o.rules == nil {
		o.rules = rulesOf(o.fields)
	}
	return o
}

// combine adds a part to a description. What the part does not say stays.
func combine(a, b describe.Device) describe.Device {
	a.Identity, a.Called = cmp.Or(b.Identity, a.Identity), cmp.Or(b.Called, a.Called)
	a.Name, a.Maker, a.Model = cmp.Or(b.Name, a.Name), cmp.Or(b.Maker, a.Maker), cmp.Or(b.Model, a.Model)
	a.Firmware, a.Parent, a.Mode = cmp.Or(b.Firmware, a.Firmware), cmp.Or(b.Parent, a.Parent), cmp.Or(b.Mode, a.Mode)
	a.Fields = combineFields(a.Fields, b.Fields)
	a.Topics = addByKey(a.Topics, b.Topics, func(t describe.Topic) string { return t.Topic }, func(x, y describe.Topic) describe.Topic {
		x.Fields = combineFields(x.Fields, y.Fields)
		return x
	})
	a.Availability = addByKey(a.Availability, b.Availability, func(v describe.Availability) string { return v.Topic + "\n" + v.Select },
		func(x, y describe.Availability) describe.Availability {
			if y.Words != nil {
				x.Words = y.Words
			}
			if y.Render != nil {
				x.Render = y.Render
			}
			return x
		})
	a.Commands = addByKey(a.Commands, b.Commands, func(c describe.Command) string { return c.Name }, combineCommands)
	return a
}

func combineFields(a, b []describe.Field) []describe.Field {
	return addByKey(a, b, func(f describe.Field) string { return f.Select + "\n" + f.Name }, func(x, y describe.Field) describe.Field {
		x.Unit, x.Kind, x.Type = cmp.Or(y.Unit, x.Unit), cmp.Or(y.Kind, x.Kind), cmp.Or(y.Type, x.Type)
		x.Scale, x.Bits = cmp.Or(y.Scale, x.Scale), cmp.Or(y.Bits, x.Bits)
		if y.Words != nil {
			x.Words = y.Words
		}
		if y.Render != nil {
			x.Render = y.Render
		}
		if y.Invalid != nil {
			x.Invalid = y.Invalid
		}
		x.Hidden, x.Unitless = x.Hidden || y.Hidden, x.Unitless || y.Unitless
		return x
	})
}

func combineCommands(x, y describe.Command) describe.Command {
	x.Title, x.Topic, x.Payload = cmp.Or(y.Title, x.Title), cmp.Or(y.Topic, x.Topic), cmp.Or(y.Payload, x.Payload)
	x.Confirm, x.Within, x.QoS = cmp.Or(y.Confirm, x.Confirm), cmp.Or(y.Within, x.Within), cmp.Or(y.QoS, x.QoS)
	x.Retain, x.Risk = x.Retain || y.Retain, max(x.Risk, y.Risk)
	if y.Encode != nil {
		x.Encode = y.Encode
	}
	a, b := &x.Argument, y.Argument
	a.Type, a.Step, a.Unit = cmp.Or(b.Type, a.Type), cmp.Or(b.Step, a.Step), cmp.Or(b.Unit, a.Unit)
	if b.Words != nil {
		a.Words = b.Words
	}
	a.Min, a.Max = cmp.Or(b.Min, a.Min), cmp.Or(b.Max, a.Max)
	return x
}

// addByKey adds items to others, combining those of one key. No list grows
// beyond what a device may have.
func addByKey[T any](all, more []T, key func(T) string, combine func(a, b T) T) []T {
	if len(more) == 0 {
		return all
	}
	all = slices.Clone(all)
	at := make(map[string]int, len(all))
	for i, one := range all {
		at[key(one)] = i
	}
	for _, one := range more {
		if i, ok := at[key(one)]; ok {
			all[i] = combine(all[i], one)
		} else if len(all) < maxRules {
			at[key(one)] = len(all)
			all = append(all, one)
		}
	}
	return all
}

// rulesOf makes a rule of the language of each; one whose selector is wrong
// selects nothing.
func rulesOf(fields []describe.Field) (rules []fieldRule) {
	for _, f := range fields {
		r := fieldRule{Drop: f.Hidden, Kind: f.Kind, Type: f.Type, Unit: string(deviceUnit(string(f.Unit))), Scale: f.Scale, Signed: f.Bits, Invalid: f.Invalid, words: maps.Clone(f.Words), unitless: f.Unitless && f.Unit == ""}
		if name := fieldName(f.Name); name != "" {
			r.Name = []template{{source: name, parts: []piece{{text: name}}}}
		}
		if f.Render == nil && r.Select.UnmarshalText([]byte(cmp.Or(f.Select, "value"))) != nil {
			r.Select = selector{}
		}
		rules = append(rules, r)
	}
	return rules
}

// rendered makes a reading of a message on a further topic of a device: of what
// was announced, and nothing else. A field that cannot be made leaves the
// others; the error is that of the first.
func (r *reading) rendered(out *Output) (trouble error) {
	var doc *node
	payload := string(r.heard.Payload)
	w := walker{reading: r, names: newNames()}
	for i, f := range r.overlay.fields {
		if f.Render == nil {
			if doc == nil {
				doc = r.plain()
			}
			continue
		}
		text, ok, err := f.Render(payload, r.heard.any())
		trouble = cmp.Or(trouble, err)
		if !ok || err != nil {
			continue
		}
		w.rule, w.members = &r.overlay.rules[i], []string{""}
		w.value(&node{value: bare(strings.TrimSpace(text)), text: strings.TrimSpace(text)}, place{members: []string{""}, path: f.Name}, nil)
	}
	if doc != nil {
		w.only = true
		w.walk(doc, place{})
	}
	if len(w.out) > 0 {
		out.Readings = []devices.Reading{{Device: r.at.Device, Time: r.time(cmpNode(doc, object("value", &node{kind: nullNode}))), Fields: w.out}}
		out.fit(r.profile.file.Limits.Fields)
	}
	return trouble
}

// plain reads a message as JSON, or as the one value that it is.
func (r *reading) plain() *node {
	if doc := r.heard.peek(); doc != nil {
		return doc
	}
	text := strings.TrimSpace(string(r.heard.Payload))
	return object("value", &node{value: bare(text), text: text})
}

// facts makes readings of what announcements say of themselves.
func (s *Session) facts(p *Profile, news []describe.Device) (all []Output) {
	for i, part := range news {
		if i == maxChildren {
			break
		}
		out := Output{Profile: p.ID(), Identity: part.Identity, Announced: true}
		s.complete(&out, s.known[deviceKey{p.Family(), part.Identity}])
		names := newNames()
		var fields []devices.Field
		for _, f := range part.Facts {
			name := fieldName(f.Name)
			value, ok := f.Value, true
			if len(value.String()) > maxText {
				value, ok = short(value)
			}
			if !ok || name == "" || !value.IsValid() || value.Kind() == devices.TextValue && value.String() == "" {
				continue
			}
			fields = append(fields, devices.Field{Name: names.unique(name), Value: value, Unit: deviceUnit(string(f.Unit)), Kind: kinds[cmp.Or(f.Kind, "identity")]})
		}
		if len(fields) > 0 {
			out.Readings = []devices.Reading{{Fields: fields}}
		}
		all = append(all, out)
	}
	return all
}
