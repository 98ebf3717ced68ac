package profile

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/framing"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// A Profile says what a firmware's messages hold. It does not change, and may
// be used from any goroutine.
type Profile struct {
	file   spec
	source []byte
	base   *Profile // that it extends
}

// Parse reads a profile that extends none. The error is a [strictyaml.Faults]
// with all that is wrong.
func Parse(file string, data []byte) (*Profile, error) {
	return parse(file, data, func(string) *Profile { return nil })
}

// parse reads a profile, and finds the one that it extends.
func parse(file string, data []byte, find func(id string) *Profile) (*Profile, error) {
	p := &Profile{source: data, file: defaults()}
	doc, faults := strictyaml.Decode(file, data, &p.file)
	if len(faults) > 0 {
		return nil, faults
	}
	if p.file.Extends != "" {
		base := find(p.file.Extends)
		if base == nil {
			return nil, strictyaml.Faults{doc.Fault("extends", fmt.Sprintf("there is no profile %q", p.file.Extends), "", "name one that is sound; porchlight profile list shows them")}
		}
		p.base = base
		p.file.inherit(base.file, doc.Has)
	}
	if faults = p.file.check(doc); len(faults) == 0 {
		faults = p.runTests(doc)
	}
	if len(faults) > 0 {
		faults.Sort()
		return nil, faults
	}
	return p, nil
}

// defaults is what holds where a profile says nothing.
func defaults() spec {
	return spec{Limits: limitRule{Bytes: maxPayload, Fields: maxFields}, Priority: usualPriority}
}

// usualPriority is that of a profile that says none.
const usualPriority = 50

// inherit takes what the file does not say from another profile.
func (s *spec) inherit(base spec, has func(key string) bool) {
	take := func(key string, from func()) {
		if !has(key) {
			from()
		}
	}
	take("name", func() { s.Name = base.Name })
	take("family", func() { s.Family = base.Family })
	take("transport", func() { s.Transports = base.Transports })
	take("priority", func() { s.Priority = base.Priority })
	take("match", func() { s.Match = slices.Clone(base.Match) })
	take("device", func() { s.Device = base.Device })
	take("decode", func() { s.Decode = base.Decode })
	take("framing", func() { s.Framing = base.Framing })
	take("rest", func() { s.Rest = base.Rest })
	take("time", func() { s.Time = base.Time })
	take("silence", func() { s.Silence = base.Silence })
	take("poll", func() { s.Poll = slices.Clone(base.Poll) })
	take("port", func() { s.Port = base.Port })
	take("limits", func() { s.Limits = base.Limits })
	s.inherited = len(s.Fields)
	s.Fields = slices.Concat(s.Fields, base.Fields)
	s.Commands = slices.Concat(s.Commands, base.Commands)
	params := maps.Clone(base.Params)
	if params == nil {
		params = make(map[string]string)
	}
	maps.Copy(params, s.Params)
	s.Params = params
}

// check finds what is well-formed and makes no sense, and makes the profile
// ready for use.
func (s *spec) check(doc *strictyaml.Document) (faults strictyaml.Faults) {
	add := func(key, problem, allowed, mend string) {
		faults = append(faults, doc.Fault(key, problem, allowed, mend))
	}
	if want := strings.TrimSuffix(path.Base(doc.File()), ".yaml"); s.ID != want {
		add("id", fmt.Sprintf("%q is not the file's name", s.ID), want, "rename one of them")
	}
	for key, missing := range map[string]bool{"name": s.Name == "", "transport": len(s.Transports) == 0, "decode": len(s.Decode) == 0} {
		if missing {
			add(key, "is missing", "", "add it")
		}
	}
	if slices.Contains(s.Transports, "mqtt") == (len(s.Match) == 0) {
		add("match", "topics are for mqtt, and mqtt needs them", "", "add match, or take mqtt out of transport")
	}
	sound := true
	for i := range s.Match {
		m := &s.Match[i]
		key := fmt.Sprintf("match[%d].topic", i)
		if err := m.Topic.compile(s.Params); err != nil {
			add(key, err.Error(), m.Topic.Allowed(), "correct it")
			sound = false
		} else if !m.Topic.has("device") && len(s.Device.Key) == 0 {
			add(key, "no level is the device", "{device...}", "name the level that tells devices apart, or give device: a key")
		}
	}
	if !sound {
		return faults // what follows would repeat it
	}
	s.checkConditions("match", add)
	s.checkDevice(add)
	if err := s.Framing.Check(); err != nil {
		add("framing", err.Error(), "", "correct it")
	}
	s.checkDecode(add)
	s.checkFields(add)
	s.checkCommands(add)
	s.checkPolls(add)
	s.checkRequests(add)
	for i, t := range s.Time {
		if t.Zone != "" && t.Format != "iso" && t.Format != "" {
			add(fmt.Sprintf("time[%d].zone", i), "a time since 1970 has no zone", "", "remove it")
		}
	}
	return faults
}

type addFault func(key, problem, allowed, mend string)

// captured reports whether a topic has a capture of that name.
func (s *spec) captured(name string) bool {
	return slices.ContainsFunc(s.Match, func(m matchRule) bool { return m.Topic.has(name) })
}

func (s *spec) checkConditions(_ string, add addFault) {
	for i, m := range s.Match {
		s.checkWhen(fmt.Sprintf("match[%d].when", i), m.When, add)
	}
}

func (s *spec) checkWhen(key string, c conditions, add addFault) {
	for name := range c {
		if name == "field" && !slices.Equal(s.Transports, []string{"mqtt"}) {
			continue
		}
		if !strings.HasPrefix(name, "/") && !slices.Contains([]string{"format", "first", "payload", "hex", "retained"}, name) && !s.captured(name) {
			add(key, fmt.Sprintf("no topic has the capture %q", name), "", "name a capture of match, a /member, format, first, payload, hex or retained")
		}
	}
}

// checkTemplate checks that a template's captures are there.
func (s *spec) checkTemplate(key string, t template, add addFault, others ...string) {
	for _, name := range t.names() {
		if !slices.Contains(others, name) && !s.captured(name) {
			add(key, fmt.Sprintf("no topic has the capture %q", name), "", "name a capture of match")
		}
	}
}

func (s *spec) checkDevice(add addFault) {
	d := &s.Device
	for key, templates := range map[string]*[]template{"key": &d.Key, "name": &d.Name, "maker": &d.Maker, "model": &d.Model, "firmware": &d.Firmware, "parent": &d.Parent} {
		*templates = slices.Clone(*templates) // of the profile that it extends
		for i := range *templates {
			s.bind("device."+key, &(*templates)[i], add)
			s.checkTemplate("device."+key, (*templates)[i], add)
		}
	}
	s.checkTemplate("device.also", d.Also, add)
	if d.Children != nil {
		s.checkTemplate("device.children.key", d.Children.Key, add, "key")
	}
}

func (s *spec) checkDecode(add addFault) {
	for i, d := range s.Decode {
		key := fmt.Sprintf("decode[%d]", i)
		n := 0
		for _, is := range []bool{d.JSON != nil, d.CBOR != nil, d.SenML != nil, d.XML != nil, d.Value != nil, d.Pairs != nil, d.Columns != nil, d.Struct != nil, d.Registers != nil, d.Code != "", d.Availability != nil, d.Skip, d.Refuse != ""} {
			if is {
				n++
			}
		}
		if n > 1 || n == 0 && d.Describe == "" {
			add(key, fmt.Sprintf("it has %d ways to read a message", n), "one of json, cbor, xml, senml, value, pairs, columns, struct, registers, code, availability, describe, skip, refuse", "keep one")
		}
		if _, ok := describers[d.Describe]; d.Describe != "" && !ok {
			add(key+".describe", fmt.Sprintf("there is no describer %q", d.Describe), strings.Join(sortedKeys(describers), ", "), "choose one of them")
		}
		if d.Live && d.Describe == "" {
			add(key+".live", "what is no announcement is measured now anyway", "", "remove it")
		}
		if len(d.When) == 0 && i < len(s.Decode)-1 {
			add(key, "without when it takes every message, and those after it none", "", "add when, or move it to the end")
		}
		s.checkWhen(key+".when", d.When, add)
		if d.Value != nil {
			s.checkTemplate(key+".value.name", d.Value.Name, add, "field", "payload")
			s.checkTemplate(key+".value.is", d.Value.Is, add, "payload")
		}
		for _, at := range []*treeRule{d.JSON, d.CBOR} {
			if at != nil {
				s.checkTemplate(key, at.At, add)
			}
		}
		if d.Columns != nil {
			s.checkTemplate(key+".columns.at", d.Columns.At, add)
		}
		if d.Registers != nil && len(d.Registers.Items) == 0 {
			add(key+".registers.items", "is empty", "", "say what stands where")
		}
		if d.Struct != nil && len(d.Struct.Items) == 0 {
			add(key+".struct.items", "is empty", "", "say what stands where")
		}
		if d.Struct != nil {
			if _, err := hex.DecodeString(d.Struct.Start); err != nil {
				add(key+".struct.start", "is not hex", "pairs of 0-9 and a-f", "correct it")
			}
		}
	}
}

// maxSelected bounds the alternatives of all selectors of a profile, which are
// compared with each other, and with every member of a message.
const maxSelected = 500

func (s *spec) checkFields(add func(key, problem, allowed, mend string)) {
	selected := 0
	for i := range s.Fields {
		s.Fields[i].goUnder()
		selected += len(s.Fields[i].Select.paths)
	}
	if selected > maxSelected {
		add("fields", fmt.Sprintf("its selectors have %d alternatives", selected), fmt.Sprintf("at most %d", maxSelected), "use * and **")
		return
	}
	for i := range s.Fields {
		f := &s.Fields[i]
		key := fmt.Sprintf("fields[%d]", i)
		if s.inherited > 0 && i >= s.inherited {
			key = "extends" // checked where they stand; a rule before may hide them, which is why there is extends
		} else if before, hidden := hiddenBy(s.Fields[:i], f.Select); hidden != "" {
			add(key+".select", fmt.Sprintf("%q never gets here: fields[%d] takes all of it", hidden, before), "", "move it before that, or remove it")
		}
		s.checkField(key, f, add)
	}
}

// goUnder puts the path of under before those of select, once.
func (r *fieldRule) goUnder() {
	if r.skip > 0 || len(r.Under) == 0 {
		return
	}
	r.skip = len(r.Under)
	under := make([]string, 0, r.skip)
	for _, name := range r.Under {
		under = append(under, glob(name).escaped())
	}
	for i, path := range r.Select.paths {
		r.Select.paths[i] = slices.Concat(under, path)
	}
}

func (s *spec) checkField(key string, f *fieldRule, add addFault) {
	s.checkWhen(key+".when", f.When, add)
	for _, t := range f.Name {
		if len(t.names()) == 0 && !strings.Contains(t.source, "{") && fieldName(t.source) != t.source {
			add(key+".name", fmt.Sprintf("%q is no name", t.source), "a-z, 0-9 and _", "write "+fieldName(t.source))
		}
		s.checkTemplate(key+".name", t, add, "key", "path")
	}
	switch {
	case f.Join != nil && (len(f.Select.paths) > 0 || len(f.Name) != 1):
		add(key, "join makes a member of its own", "join with one name, without select", "remove select, or add name")
	case f.Join != nil:
		f.Select.paths = [][]string{{glob(f.Name[0].source).escaped()}}
	case len(f.Select.paths) == 0:
		add(key+".select", "is missing", "", "add it")
	}
	if f.Drop && (f.Name != nil || f.Kind != "" || f.Type != "" || f.Unit != "" || f.UnitOf != "" || f.Units != nil || f.Parse != "" || f.Words != nil || f.Invalid != nil || f.isArithmetic()) {
		add(key, "what is dropped needs nothing else", "select, when and drop", "remove drop, or the others")
	}
	for _, pattern := range sortedKeys(f.Units) {
		if f.UnitOf == "" && glob(pattern).check() != nil {
			add(key+".units", fmt.Sprintf("%q is no pattern", pattern), "", "correct it")
		}
		checkUnit(key+".units", f.Units[pattern], add)
	}
	checkUnit(key+".unit", f.Unit, add)
	if f.Range != nil && (len(f.Range) != 2 || f.Range[0] > f.Range[1]) {
		add(key+".range", "is not the least and the most", "[-50, 100]", "correct it")
	}
	if f.Words != nil {
		f.words = make(map[string]word)
		for _, name := range sortedKeys(f.Words) {
			v, ok := wordOf(f.Words[name])
			if !ok {
				add(key+".words", fmt.Sprintf("what %q is, is no value", name), "true, false, a number or a text", "correct it")
			}
			f.words[name] = v
		}
	}
}

// checkUnit refuses other spellings of a unit that the vocabulary has.
func checkUnit(key, unit string, add addFault) {
	if u := devices.ParseUnit(unit); string(u) != unit {
		add(key, fmt.Sprintf("%q is spelled %s", unit, u), "", "write "+string(u))
	} else if len(unit) > maxUnit {
		add(key, "is too long for a unit", fmt.Sprintf("at most %d bytes", maxUnit), "shorten it")
	}
}

func (s *spec) checkCommands(add addFault) {
	for i := range s.Commands {
		c := &s.Commands[i]
		key := fmt.Sprintf("commands[%d]", i)
		s.bind(key+".topic", &c.Topic, add)
		s.checkTemplate(key+".name", c.Name, add, "key", "path")
		s.checkTemplate(key+".payload", c.Payload, add, "key", "path", "value")
		switch {
		case c.Topic.isZero() == (len(c.Reply) == 0) && slices.Contains(s.Transports, "mqtt"):
			add(key, "it is sent nowhere, or twice", "topic or reply", "keep one")
		case c.Reply != nil:
			for _, name := range sortedKeys(c.Reply) {
				s.checkReply(key+".reply", name, c.Reply[name], add, "key", "path")
			}
		default:
			s.checkTemplate(key+".topic", c.Topic, add, "key", "path")
		}
		checkUnit(key+".argument.unit", c.Argument.Unit, add)
		if a := c.Argument; a.Min != nil && a.Max != nil && *a.Min > *a.Max {
			add(key+".argument", "min is above max", "", "correct one of them")
		}
	}
}

// hiddenBy finds an alternative of a selector that rules before it take whole,
// and the place of the one that does.
func hiddenBy(rules []fieldRule, s selector) (before int, hidden string) {
	for _, alternative := range s.paths {
		for i, r := range rules {
			if len(r.When) > 0 {
				continue // it may leave some
			}
			for _, taken := range r.Select.paths {
				if covers(taken, alternative) {
					return i, strings.Join(alternative, "/")
				}
			}
		}
	}
	return 0, ""
}

// bind puts the params into a template of a topic.
func (s *spec) bind(key string, t *template, add addFault) {
	text, err := withParams(t.source, s.Params)
	source := t.source
	if err == nil {
		err = t.UnmarshalText([]byte(text))
	}
	t.source = source // for profiles that extend this one, with other params
	if err != nil {
		add(key, err.Error(), "", "correct it")
	}
}

func (s *spec) checkPolls(add addFault) {
	for i := range s.Poll {
		key := fmt.Sprintf("poll[%d]", i)
		p := &s.Poll[i]
		s.bind(key+".topic", &p.Topic, add)
		if p.Topic.isZero() == (len(p.Reply) == 0) && slices.Contains(s.Transports, "mqtt") {
			add(key, "it is sent nowhere, or twice", "topic or reply", "keep one")
		}
		if p.On == "" && p.Every == 0 {
			add(key, "it is never sent", "on or every", "add one")
		}
		s.checkTemplate(key+".topic", p.Topic, add)
		s.checkTemplate(key+".payload", p.Payload, add)
		for _, name := range sortedKeys(p.Reply) {
			s.checkReply(key+".reply", name, p.Reply[name], add)
		}
	}
}

// checkReply checks what replaces a capture.
func (s *spec) checkReply(key, name, text string, add addFault, others ...string) {
	if !s.captured(name) {
		add(key, fmt.Sprintf("no topic has the capture %q", name), "", "name a capture of match")
	}
	var t template
	if err := t.UnmarshalText([]byte(text)); err != nil {
		add(key+"."+name, err.Error(), t.Allowed(), "correct it")
		return
	}
	s.checkTemplate(key+"."+name, t, add, others...)
}

// asksUnannounced reports whether a device is to be asked what it means.
func (s *spec) asksUnannounced() bool {
	return slices.ContainsFunc(s.Poll, func(p pollRule) bool { return p.On == "unannounced" })
}

// ID names the profile in the config.
func (p *Profile) ID() string { return p.file.ID }

// Family is the profile whose devices those of this one are: its own id, where
// it names no other. A device is the same where family and identity are.
func (p *Profile) Family() string { return cmp.Or(p.file.Family, p.file.ID) }

// Name is what people call the firmware.
func (p *Profile) Name() string { return p.file.Name }

// Transports are those that the profile is for: mqtt, coap, serial.
func (p *Profile) Transports() []string { return slices.Clone(p.file.Transports) }

// Framing says how frames are cut out of what the device sends over a serial line.
// [Profile.Decode] takes them as a framer of it gives them.
func (p *Profile) Framing() framing.Rule { return p.file.Framing }

// Silence says what it means that a device says nothing.
func (p *Profile) Silence() devices.Silence {
	s := p.file.Silence
	return devices.Silence{Lost: s.After, Asleep: s.Asleep, Usual: s.Via == "parent"}
}

// Source is the profile's file.
func (p *Profile) Source() []byte { return slices.Clone(p.source) }

// Priority says who takes a message that several match: the highest.
func (p *Profile) Priority() int { return p.file.Priority }

// runTests checks the profile's own samples.
func (p *Profile) runTests(doc *strictyaml.Document) (faults strictyaml.Faults) {
	for i, t := range p.file.Tests {
		key := fmt.Sprintf("tests[%d]", i)
		if problem := p.runTest(t); problem != "" {
			faults = append(faults, doc.Fault(key, problem, "", "correct the profile or the test"))
		}
	}
	return faults
}
