package profile

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// ErrNotOurs says that a topic is not the device's.
var ErrNotOurs = errors.New("not a topic of the device")

// Filters gives the MQTT topic filters to subscribe for a device. None lies
// within another, because a broker may deliver a message once for each filter
// (MQTT 3.1.1 section 3.3.5).
func (p *Profile) Filters(at Place) []string {
	if at.Topic == "" {
		return nil
	}
	var all []string
	for _, m := range p.file.Match {
		for _, f := range m.Topic.filters(at.Topic) {
			if slices.ContainsFunc(all, func(other string) bool { return takesIn(other, f) }) {
				continue
			}
			all = slices.DeleteFunc(all, func(other string) bool { return takesIn(f, other) })
			all = append(all, f)
		}
	}
	return all
}

// Matches reports whether an MQTT topic is the device's.
func (p *Profile) Matches(at Place, topic string) bool {
	_, ok := p.captures(at, topic)
	return ok
}

func (p *Profile) captures(at Place, topic string) (map[string]string, bool) {
	if at.Topic == "" {
		return nil, false
	}
	for _, m := range p.file.Match {
		if c, ok := m.Topic.match(topic, at.Topic); ok {
			return c, true
		}
	}
	return nil, false
}

// Decode reads one message of the device at a place. It is bounded in time
// and memory, whatever the message holds, and its errors say in one line what
// was not understood. A message that has nothing to tell gives no reading and
// no error.
func (p *Profile) Decode(at Place, m Message) (Output, error) {
	if limit := int(p.file.Limits.Bytes); len(m.Payload) > limit {
		return Output{}, fmt.Errorf("%d bytes are more than the %d that a message may have", len(m.Payload), limit)
	}
	captures := map[string]string{"field": m.Topic}
	if at.Topic != "" {
		c, ok := p.captures(at, m.Topic)
		if !ok {
			return Output{}, ErrNotOurs
		}
		captures = c
	}
	if text := strings.TrimSpace(string(m.Payload[:min(len(m.Payload), 64)])); text != "" {
		captures["first"] = text[:1]
	}
	if m.ContentFormat >= 0 {
		captures["format"] = strconv.Itoa(m.ContentFormat)
	}
	for _, rule := range p.file.Decode {
		if rule.holds(captures) {
			out, err := p.read(rule, at, m, captures)
			if err != nil {
				return Output{}, err
			}
			if out.Identity == "" {
				out.Identity = captures["device"]
			}
			return out, nil
		}
	}
	return Output{}, errors.New("no way to read this kind of message")
}

func (rule decodeRule) holds(captures map[string]string) bool {
	for name, want := range rule.When {
		if got, ok := captures[name]; !ok || !want.fits(got) {
			return false
		}
	}
	return true
}

func (p *Profile) read(rule decodeRule, at Place, m Message, captures map[string]string) (out Output, err error) {
	var doc *node
	switch {
	case rule.Skip:
		return Output{}, nil
	case rule.Availability != nil:
		out.Availability, err = rule.Availability.read(m.Payload)
		return out, err
	case rule.SenML != nil:
		return readSenML(at, m)
	case rule.Value != nil:
		doc, err = rule.Value.read(m.Payload, captures)
	case rule.Pairs != nil:
		doc, err = parsePairs(m.Payload, *rule.Pairs)
	default:
		doc, out.Identity, err = rule.JSON.read(m.Payload)
	}
	if err != nil {
		return Output{}, err
	}
	if fields := p.fields(doc); len(fields) > 0 {
		out.Readings = []devices.Reading{{Device: at.Device, Time: p.time(doc, at, m), Fields: fields}}
	}
	return out, nil
}

// read gives the part of the document that the rule looks into, and the name
// of the device where the path to that has it.
func (rule jsonRule) read(payload []byte) (doc *node, identity string, err error) {
	if doc, err = parseJSON(payload, maxMembers); err != nil {
		return nil, "", err
	}
	for _, root := range rule.Root {
		if inner, name := root.find(doc); inner != nil {
			doc, identity = inner, name
			break
		}
	}
	if doc.kind != objectNode {
		doc = object("value", doc)
	}
	return doc, identity, nil
}

// read makes a document of one member. The field is called value where its
// name comes out empty.
func (rule valueRule) read(payload []byte, captures map[string]string) (*node, error) {
	text := strings.TrimSpace(string(payload))
	if !utf8.ValidString(text) || len(text) > maxText {
		return nil, errors.New("not a number, a word or a short text")
	}
	name := fill(rule.Name, func(capture string) string { return captures[capture] })
	if fieldName(name) == "" {
		name = "value"
	}
	return object(name, &node{value: bare(text)}), nil
}

func (rule availabilityRule) read(payload []byte) (devices.Availability, error) {
	word := strings.TrimSpace(string(payload))
	if rule.Path != "" && strings.HasPrefix(word, "{") {
		doc, err := parseJSON(payload, maxMembers)
		if err != nil {
			return devices.AvailabilityUnknown, err
		}
		n := doc.member(rule.Path)
		if n == nil || n.kind != valueNode {
			return devices.AvailabilityUnknown, fmt.Errorf("no word for availability in the member %s", rule.Path)
		}
		word = n.value.String()
	}
	switch rule.Words[word] {
	case "online":
		return devices.Online, nil
	case "offline":
		return devices.Offline, nil
	case "asleep":
		return devices.Sleeping, nil
	}
	return devices.AvailabilityUnknown, fmt.Errorf("not a word for availability: %.40q", word)
}
