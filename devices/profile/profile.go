package profile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	profiles "github.com/porchlight-iot/porchlight/firmware-profiles"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// A Profile says what a firmware's messages hold. It does not change, and may
// be used from any goroutine.
type Profile struct {
	file spec
}

// spec is a profile's file.
type spec struct {
	Version    int          `yaml:"profile,required" min:"1" max:"1" doc:"Version of the language."`
	ID         string       `yaml:"id,required" doc:"Name of the profile, which is that of its file."`
	Name       string       `yaml:"name,required" doc:"What people call the firmware."`
	Transports []string     `yaml:"transport,required" enum:"mqtt,coap,serial" doc:"How it is heard."`
	Match      []matchRule  `yaml:"match" doc:"MQTT: the topics that are a device's; any of them."`
	Decode     []decodeRule `yaml:"decode,required" doc:"How a message is read; the first whose conditions hold."`
	Fields     []fieldRule  `yaml:"fields" doc:"What becomes of the members; the first that selects one takes it."`
	Rest       restRule     `yaml:"rest" doc:"What becomes of members that no entry of fields selects."`
	Time       []timeRule   `yaml:"time" doc:"Where the reading's time is; the first that is there and can be believed."`
	Limits     limitRule    `yaml:"limits" doc:"What a message may hold at most."`
}

type matchRule struct {
	Topic topicPattern `yaml:"topic,required" doc:"Levels: text, {x} one level, {x=A|B*} one of these, {x...} one or more, {x*} any number. {device...} is the device's topic."`
}

type decodeRule struct {
	When         map[string]glob   `yaml:"when" doc:"Conditions on captures of the topic, on format (the CoAP content format) or on first (the first character)."`
	JSON         *jsonRule         `yaml:"json" doc:"A JSON object, or a single JSON value."`
	SenML        *struct{}         `yaml:"senml" doc:"A SenML pack, JSON or CBOR."`
	Value        *valueRule        `yaml:"value" doc:"One bare number, word or text."`
	Pairs        *pairsRule        `yaml:"pairs" doc:"Names and values on one line."`
	Availability *availabilityRule `yaml:"availability" doc:"The message tells whether the device is there."`
	Skip         bool              `yaml:"skip" doc:"The message says nothing that another does not."`
}

type jsonRule struct {
	Root []membersPath `yaml:"root" doc:"Paths to look into, the first that is there; a last * is the only member, and its name that of the device; without root it is the whole."`
}

type valueRule struct {
	Name string `yaml:"name,required" doc:"Name of the field; {x} is a capture."`
}

type pairsRule struct {
	Separators string   `yaml:"separators,required" doc:"Characters between pairs."`
	Assign     string   `yaml:"assign,required" doc:"Characters between name and value, which may have blanks around."`
	Units      []string `yaml:"units" doc:"Words that may follow a number, with a blank between or without."`
}

type availabilityRule struct {
	Words map[string]string `yaml:"words,required" enum:"online,offline,asleep" doc:"The firmware's words and what they mean. Quote them."`
	Path  string            `yaml:"path" doc:"The member with the word, where the message is a JSON object."`
}

type fieldRule struct {
	Select  selector          `yaml:"select,required" doc:"Path of members with / between; * and ? as in file names, ** any number of members, {a,b} alternatives. Items of a list are selected by the list's path."`
	Drop    bool              `yaml:"drop" doc:"Not a field."`
	Name    string            `yaml:"name" doc:"Name of the field; without it, that is the path."`
	Kind    string            `yaml:"kind" enum:"measurement,counter,state,event,setting,identity,diagnostic" doc:"What the field means; without it, a number is a measurement and all else a state."`
	Type    string            `yaml:"type" enum:"number,text" doc:"number: a text that holds a number becomes one, another is dropped; text: all becomes a text."`
	Unit    string            `yaml:"unit" doc:"The unit."`
	UnitOf  string            `yaml:"unit_of" doc:"Name of a member beside or above that tells the unit."`
	Units   map[string]string `yaml:"units" doc:"For unit_of: the firmware's spellings and ours; otherwise: last member of the path, with * and ?, and its unit."`
	Parse   string            `yaml:"parse" enum:"duration" doc:"duration: 9T09:29:01 becomes seconds."`
	Words   map[string]bool   `yaml:"words" doc:"Words that mean true or false. Quote them."`
	Invalid []string          `yaml:"invalid" doc:"Values that mean that there is none."`
}

type restRule struct {
	Create string `yaml:"create" enum:"auto,none" doc:"auto: each becomes a field; none: none does."`
}

type timeRule struct {
	Path   membersPath `yaml:"path,required" doc:"Where it is."`
	Format string      `yaml:"format" enum:"iso,s,ms" doc:"iso: 2026-11-23T08:00:00 with or without zone; s, ms: since 1970."`
	Zone   string      `yaml:"zone" enum:"device,utc" doc:"Of an iso time without one: device, as configured for the device, or utc."`
}

type limitRule struct {
	Bytes  strictyaml.Size `yaml:"max_bytes" min:"1" max:"64KiB" doc:"Of the message."`
	Fields int             `yaml:"max_fields" min:"1" max:"200" doc:"Of a reading; those beyond are left out."`
}

// Parse reads a profile. The error is a [strictyaml.Faults] with all that is
// wrong.
func Parse(file string, data []byte) (*Profile, error) {
	p := &Profile{spec{Limits: limitRule{Bytes: maxPayload, Fields: maxFields}}}
	doc, faults := strictyaml.Decode(file, data, &p.file)
	if len(faults) > 0 {
		return nil, faults
	}
	if faults = p.file.check(doc); len(faults) > 0 {
		faults.Sort()
		return nil, faults
	}
	return p, nil
}

// check finds what is well-formed and makes no sense.
func (s *spec) check(doc *strictyaml.Document) (faults strictyaml.Faults) {
	add := func(key, problem, allowed, mend string) {
		faults = append(faults, doc.Fault(key, problem, allowed, mend))
	}
	if want := strings.TrimSuffix(path.Base(doc.File()), ".yaml"); s.ID != want {
		add("id", fmt.Sprintf("%q is not the file's name", s.ID), want, "rename one of them")
	}
	if slices.Contains(s.Transports, "mqtt") == (len(s.Match) == 0) {
		add("match", "topics are for mqtt, and mqtt needs them", "", "add match, or take mqtt out of transport")
	}
	for i, m := range s.Match {
		if !m.Topic.has("device") {
			add(fmt.Sprintf("match[%d].topic", i), "no level is the device", "{device...}", "name the level that tells devices apart")
		}
	}
	s.checkDecode(add)
	s.checkFields(add)
	for i, t := range s.Time {
		if t.Zone != "" && t.Format != "iso" && t.Format != "" {
			add(fmt.Sprintf("time[%d].zone", i), "a time since 1970 has no zone", "", "remove it")
		}
	}
	return faults
}

func (s *spec) checkDecode(add func(key, problem, allowed, mend string)) {
	captured := func(name string) bool {
		return slices.ContainsFunc(s.Match, func(m matchRule) bool { return m.Topic.has(name) })
	}
	for i, d := range s.Decode {
		key := fmt.Sprintf("decode[%d]", i)
		n := 0
		for _, is := range []bool{d.JSON != nil, d.SenML != nil, d.Value != nil, d.Pairs != nil, d.Availability != nil, d.Skip} {
			if is {
				n++
			}
		}
		if n != 1 {
			add(key, fmt.Sprintf("it has %d ways to read a message", n), "one of json, senml, value, pairs, availability, skip", "keep one")
		}
		if len(d.When) == 0 && i < len(s.Decode)-1 {
			add(key, "without when it takes every message, and those after it none", "", "add when, or move it to the end")
		}
		for name := range d.When {
			if name != "format" && name != "first" && !captured(name) {
				add(key+".when", fmt.Sprintf("no topic has the capture %q", name), "", "name a capture of match, format, or first")
			}
		}
		if d.Value != nil {
			for _, name := range placeholders(d.Value.Name) {
				if name != "field" && !captured(name) {
					add(key+".value.name", fmt.Sprintf("no topic has the capture %q", name), "", "name a capture of match")
				}
			}
		}
	}
}

// maxSelected bounds the alternatives of all selectors of a profile, which are
// compared with each other, and with every member of a message.
const maxSelected = 500

func (s *spec) checkFields(add func(key, problem, allowed, mend string)) {
	selected := 0
	for _, f := range s.Fields {
		selected += len(f.Select.paths)
	}
	if selected > maxSelected {
		add("fields", fmt.Sprintf("its selectors have %d alternatives", selected), fmt.Sprintf("at most %d", maxSelected), "use * and **")
		return
	}
	for i, f := range s.Fields {
		key := fmt.Sprintf("fields[%d]", i)
		if before, hidden := hiddenBy(s.Fields[:i], f.Select); hidden != "" {
			add(key+".select", fmt.Sprintf("%q never gets here: fields[%d] takes all of it", hidden, before), "", "move it before that, or remove it")
		}
		if f.Name != "" && fieldName(f.Name) != f.Name {
			add(key+".name", fmt.Sprintf("%q is no name", f.Name), "a-z, 0-9 and _", "write "+fieldName(f.Name))
		}
		if f.Drop && (f.Name != "" || f.Kind != "" || f.Type != "" || f.Unit != "" || f.UnitOf != "" || f.Units != nil || f.Parse != "" || f.Words != nil || f.Invalid != nil) {
			add(key, "what is dropped needs nothing else", "select and drop", "remove drop, or the others")
		}
		for _, pattern := range sortedKeys(f.Units) {
			if _, err := path.Match(pattern, ""); err != nil {
				add(key+".units", fmt.Sprintf("%q is no pattern", pattern), "", "correct it")
			}
		}
	}
}

// hiddenBy finds an alternative of a selector that rules before it take whole,
// and the place of the one that does.
func hiddenBy(rules []fieldRule, s selector) (before int, hidden string) {
	for _, alternative := range s.paths {
		for i, r := range rules {
			for _, taken := range r.Select.paths {
				if covers(taken, alternative) {
					return i, strings.Join(alternative, "/")
				}
			}
		}
	}
	return 0, ""
}

// ID names the profile in the config.
func (p *Profile) ID() string { return p.file.ID }

// Name is what people call the firmware.
func (p *Profile) Name() string { return p.file.Name }

// Transports are those that the profile is for: mqtt, coap, serial.
func (p *Profile) Transports() []string { return slices.Clone(p.file.Transports) }

// A Set is profiles by their ids.
type Set struct {
	names    []string
	profiles map[string]*Profile
}

// Builtin gives the profiles that come with the program.
func Builtin() (*Set, error) {
	s := &Set{profiles: make(map[string]*Profile)}
	entries, err := profiles.FS.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var all error
	for _, e := range entries {
		data, err := profiles.FS.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		p, err := Parse(e.Name(), data)
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		s.names = append(s.names, p.ID())
		s.profiles[p.ID()] = p
	}
	return s, all
}

// Names gives the profiles' ids in order.
func (s *Set) Names() []string { return slices.Clone(s.names) }

// Get gives a profile, or nil where there is none of that id.
func (s *Set) Get(id string) *Profile { return s.profiles[id] }
