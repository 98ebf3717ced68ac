package profile

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// ErrNotOurs says that a topic is not the device's.
var ErrNotOurs = errors.New("not a topic of the device")

// Filters gives the MQTT topic filters to subscribe for a device. None lies
// within another, because a broker may deliver a message once for each filter
// (MQTT 3.1.1 section 3.3.5). Topics that do not have the device as a level are
// not among them: those are for a [Session].
func (p *Profile) Filters(at Place) []string {
	if at.Topic == "" {
		return nil
	}
	return p.filters(at.Topic)
}

func (p *Profile) filters(device string) []string {
	var all []string
	for _, m := range p.file.Match {
		if device == "" || m.Topic.has("device") {
			all = addFilters(all, m.Topic.filters(device))
		}
	}
	return all
}

// addFilters adds filters that do not lie in others.
func addFilters(all, more []string) []string {
	for _, f := range more {
		if slices.ContainsFunc(all, func(other string) bool { return takesIn(other, f) }) {
			continue
		}
		all = slices.DeleteFunc(all, func(other string) bool { return takesIn(f, other) })
		all = append(all, f)
	}
	return all
}

// Matches reports whether an MQTT topic is the device's.
func (p *Profile) Matches(at Place, topic string) bool {
	if at.Topic == "" {
		return false
	}
	return slices.ContainsFunc(p.file.Match, func(m matchRule) bool {
		_, ok := m.Topic.match(topic, at.Topic)
		return ok && m.Topic.has("device")
	})
}

// Decode reads one message of the device at a place. It is bounded in time
// and memory, whatever the message holds, and its errors say in one line what
// was not understood. A message that has nothing to tell gives no reading and
// no error.
func (p *Profile) Decode(at Place, m Message) (Output, error) {
	h := newHeard(m)
	captures := p.given(m.Topic)
	if at.Topic != "" {
		c, ok := p.captures(h, at.Topic)
		if !ok {
			return Output{}, ErrNotOurs
		}
		captures = c
	}
	return p.decode(h, captures, at, nil)
}

// given is what is known of a message whose topic is not matched: what was asked,
// and the params.
func (p *Profile) given(field string) map[string]string {
	captures := map[string]string{"field": field}
	maps.Copy(captures, p.file.Params)
	return captures
}

// captures finds the first entry of match that fits; device "" is any.
func (p *Profile) captures(h *heard, device string) (map[string]string, bool) {
	for _, m := range p.file.Match {
		if device != "" && !m.Topic.has("device") {
			continue
		}
		if c, ok := m.Topic.match(h.Topic, device); ok && m.When.hold(h, c) && (!m.Known || device != "" || h.known != nil && h.known(p, c)) {
			return c, true
		}
	}
	return nil, false
}

// heard is a message, with what was found out of it so far.
type heard struct {
	Message
	peeked   bool
	document *node // of a JSON object, nil if it is none
	decoded  bool
	foreign  any                                               // what JSON holds, for templates
	known    func(p *Profile, captures map[string]string) bool // whether the device was heard before; nil: it was not
}

func newHeard(m Message) *heard { return &heard{Message: m} }

// peek gives the document of a JSON object; nil if it is none.
func (h *heard) peek() *node {
	if !h.peeked {
		h.peeked = true
		if text := strings.TrimSpace(string(h.Payload[:min(len(h.Payload), 64)])); strings.HasPrefix(text, "{") {
			h.document, _ = h.json()
		}
	}
	return h.document
}

// json reads the message as JSON, once if it is an object.
func (h *heard) json() (*node, error) {
	if h.document != nil {
		return h.document, nil
	}
	n, err := parseJSON(h.Payload, maxMembers)
	if err == nil && n.kind == objectNode {
		h.peeked, h.document = true, n
	}
	return n, err
}

// value is what a condition is on. ok is false where there is none.
func (h *heard) value(name string, captures map[string]string) (_ string, ok bool) {
	switch {
	case strings.HasPrefix(name, "/"):
		doc := h.peek()
		if doc == nil {
			return "", false
		}
		n := doc
		for _, step := range splitPath(name[1:]) {
			if n = n.child(step); n == nil {
				return "", false
			}
		}
		return n.value.String(), n.kind != nullNode
	case name == "first":
		text := strings.TrimSpace(string(h.Payload[:min(len(h.Payload), 64)]))
		if text == "" {
			return "", false
		}
		return text[:1], true
	case name == "payload":
		text := strings.TrimSpace(string(h.Payload[:min(len(h.Payload), maxText)]))
		return text, text != "" && len(h.Payload) <= maxText
	case name == "hex":
		return hex.EncodeToString(h.Payload[:min(len(h.Payload), maxText)]), len(h.Payload) <= maxText
	case name == "format":
		return strconv.Itoa(h.ContentFormat), h.ContentFormat >= 0
	case name == "retained":
		return strconv.FormatBool(h.Retained), true
	}
	v, ok := captures[name]
	return v, ok
}

// hold reports whether all conditions do.
func (c conditions) hold(h *heard, captures map[string]string) bool {
	for name, want := range c {
		not, negative := strings.CutPrefix(string(want), "!")
		got, ok := h.value(name, captures)
		if fits := ok && glob(not).fits(got); fits == negative {
			return false
		}
	}
	return true
}

// An overlay is what a device announced of its messages: rules that go before
// the profile's own.
type overlay struct {
	rules  []fieldRule
	fields []describe.Field // of a further topic, each with its rule
}

// decode reads a message whose topic fits.
func (p *Profile) decode(h *heard, captures map[string]string, at Place, o *overlay) (Output, error) {
	if limit := int(p.file.Limits.Bytes); len(h.Payload) > limit {
		return Output{}, fmt.Errorf("%d bytes are more than the %d that a message may have", len(h.Payload), limit)
	}
	if h.ContentFormat < 0 && !p.file.Framing.IsLines() {
		body, err := p.file.Framing.Open(h.Payload)
		if err != nil {
			return Output{}, err
		}
		h.Payload = body
	}
	for _, rule := range p.file.Decode {
		if !rule.When.hold(h, captures) {
			continue
		}
		r := reading{profile: p, rule: rule, heard: h, captures: captures, at: at, overlay: o}
		out, err := r.read()
		if err != nil {
			return Output{}, err
		}
		out.Profile, out.Repeats = p.ID(), rule.Repeats
		out.fit(p.file.Limits.Fields)
		return out, nil
	}
	return Output{}, errors.New("no way to read this kind of message")
}

// A reading is the work of reading one message.
type reading struct {
	profile  *Profile
	rule     decodeRule
	heard    *heard
	captures map[string]string
	at       Place
	overlay  *overlay
}

func (r *reading) read() (Output, error) {
	rule, h := r.rule, r.heard
	switch {
	case rule.Refuse != "":
		return Output{}, errors.New(rule.Refuse)
	case rule.SenML != nil:
		out, err := readSenML(r.at, h.Message)
		if out.Identity == "" {
			out.Identity = r.captures["device"]
		}
		return out, err
	}
	if decode := partDecoders[rule.Code]; decode != nil {
		return r.inParts(decode)
	}
	doc, key, available, err := r.document()
	if err != nil {
		return Output{}, err
	}
	out := Output{Identity: key, Availability: available}
	look := lookUp(r.captures, cmpNode(h.peek(), doc))
	if key == "" {
		out.Identity = r.captures["device"]
		if keys := r.profile.file.Device.Key; len(keys) > 0 {
			out.Identity = firstFilled(keys, look)
		}
	}
	out.About = r.about(look)
	if r.at.Topic == "" && (len(r.profile.file.Commands) > 0 || !r.profile.file.Device.Learn.isZero()) {
		out.look = look
	}
	if doc == nil {
		return out, nil
	}
	if c := r.profile.file.Device.Children; c != nil && r.at.Topic == "" { // else they stay fields of the one that was asked for
		if out.Children, err = r.children(c, doc, out.Identity); err != nil {
			return Output{}, err
		}
	}
	r.fill(&out, doc)
	return out, nil
}

func cmpNode(a, b *node) *node {
	if a != nil {
		return a
	}
	return b
}

func (r *reading) about(look func(ref) string) About {
	d := r.profile.file.Device
	return About{
		Name: firstFilled(d.Name, look), Maker: firstFilled(d.Maker, look), Model: firstFilled(d.Model, look),
		Firmware: firstFilled(d.Firmware, look), Parent: firstFilled(d.Parent, look),
	}
}

// fill makes a document's reading.
func (r *reading) fill(out *Output, doc *node) {
	w := r.walk(doc)
	out.targets = w.targets
	if w.available != devices.AvailabilityUnknown {
		out.Availability = w.available
	}
	out.Readings = w.dated
	if len(w.out) > 0 {
		now := r.time(doc)
		i := slices.IndexFunc(out.Readings, func(dated devices.Reading) bool { return dated.Time.Equal(now) })
		if i < 0 {
			i, out.Readings = len(out.Readings), append(out.Readings, devices.Reading{Device: r.at.Device, Time: now})
		}
		out.Readings[i].Fields = append(w.out, out.Readings[i].Fields...)
	}
	slices.SortStableFunc(out.Readings, func(a, b devices.Reading) int {
		switch {
		case a.Time.IsZero() == b.Time.IsZero():
			return a.Time.Compare(b.Time)
		case a.Time.IsZero(): // it is of now
			return 1
		}
		return -1
	})
}

// fit has the fields beyond those that one reading may have follow in readings
// of the same time: what was acknowledged is not to be lost.
func (o *Output) fit(most int) {
	if slices.ContainsFunc(o.Readings, func(r devices.Reading) bool { return len(r.Fields) > most }) {
		var all []devices.Reading
		for _, r := range o.Readings {
			for part := range slices.Chunk(r.Fields, most) {
				r.Fields = part
				all = append(all, r)
			}
		}
		o.Readings = all
	}
	for i := range o.Children {
		o.Children[i].fit(most)
	}
}

// maxChildren bounds the devices in one message.
const maxChildren = 500

// children takes the parts of a document that are devices of their own out of
// it.
func (r *reading) children(rule *childrenRule, doc *node, parent string) (all []Output, err error) {
	doc.extract(rule.Each, nil, func(name string, part *node) {
		key := name
		captures := map[string]string{"key": name}
		for k, v := range r.captures {
			captures[k] = v
		}
		if !rule.Key.isZero() {
			key, _ = rule.Key.fill(lookUp(captures, part))
		}
		if key == "" {
			return
		}
		if len(all) == maxChildren {
			err = fmt.Errorf("more than %d devices in one message", maxChildren)
			return
		}
		child := Output{Profile: r.profile.ID(), Identity: key}
		sub := *r
		sub.captures = captures
		child.About = sub.about(lookUp(captures, part))
		child.About.Parent = parent
		sub.fill(&child, part)
		all = append(all, child)
	})
	return all, err
}

// extract takes out the objects that a selector selects.
func (n *node) extract(s selector, at []string, take func(name string, part *node)) {
	if n.kind != objectNode {
		return
	}
	kept := n.members[:0:0]
	for _, m := range n.members {
		path := append(slices.Clip(at), m.name)
		if m.node.kind == objectNode && s.selects(path) {
			take(m.name, m.node)
			continue
		}
		m.node.extract(s, path, take)
		kept = append(kept, m)
	}
	n.members = kept
}

// document reads the message in the way of the rule. It is nil where there is
// nothing to make fields of; identity is "" where the document does not tell.
func (r *reading) document() (doc *node, identity string, available devices.Availability, err error) {
	rule, h := r.rule, r.heard
	look := lookUp(r.captures, h.peek())
	switch {
	case rule.Availability != nil:
		available, err = rule.Availability.read(h)
	case rule.Value != nil:
		doc, err = rule.Value.read(h.Payload, look)
	case rule.Pairs != nil:
		doc, err = parsePairs(h.Payload, *rule.Pairs)
	case rule.Columns != nil:
		doc, err = rule.Columns.read(h.Payload, look)
	case rule.Struct != nil:
		doc, err = rule.Struct.read(h.Payload)
	case rule.Registers != nil:
		doc, err = rule.Registers.read(h.Payload, h.Topic)
	case rule.Code != "":
		doc, identity, available, err = decoders[rule.Code](h.Payload, r.captures)
	case rule.XML != nil:
		if doc, err = parseXML(h.Payload, maxMembers); err == nil && doc.kind != objectNode {
			doc = object("value", doc)
		}
	case rule.CBOR != nil:
		if doc, err = parseCBOR(h.Payload, maxMembers); err == nil {
			doc, identity = rule.CBOR.within(doc, look)
		}
	case rule.JSON != nil:
		switch {
		case rule.JSON.Quotes:
			doc, err = parseJSON(bytes.ReplaceAll(h.Payload, []byte("'"), []byte(`"`)), maxMembers)
		case rule.JSON.Words:
			doc, err = parseJSON(jsonWords(h.Payload), maxMembers)
		default:
			doc, err = h.json()
		}
		if err == nil {
			doc, identity = rule.JSON.within(doc, look)
		}
	}
	return doc, identity, available, err
}

// decoders are those in code, by name.
var decoders = map[string]func(payload []byte, captures map[string]string) (doc *node, identity string, available devices.Availability, err error){
	"sparkplug":   readSparkplug,
	"attributes":  readAttributes,
	"dsmr":        readDSMR,
	"iec62056_21": readIEC62056,
	"sml":         readSML,
	"esp3":        readESP3,
	"firmata":     readFirmata,
	"mysensors":   readMySensors,
	"nmea":        readNMEA,
}

// within gives the part of the document that the rule looks into, and the name
// of the device where the path to that has it.
func (rule treeRule) within(doc *node, look func(ref) string) (_ *node, identity string) {
	for _, best := range rule.Best {
		best.choose(doc)
	}
	for _, root := range rule.Root {
		if inner, name := root.find(doc); inner != nil {
			doc, identity = inner, name
			break
		}
	}
	if rule.Named != nil {
		doc = rule.Named.members(doc)
	}
	at, _ := rule.At.fill(look)
	switch {
	case at != "":
		doc = under(at, doc)
	case doc.kind != objectNode:
		doc = object("value", doc)
	}
	return doc, identity
}

// choose puts the best item of a list into the list's place.
func (rule bestRule) choose(doc *node) {
	list, _ := rule.List.find(doc)
	if list == nil || list.kind != listNode || len(list.items) == 0 {
		return
	}
	best, most := list.items[0], math.Inf(-1)
	for _, item := range list.items {
		if n, _ := rule.By.find(item); n != nil && n.kind == valueNode && n.value.Kind() == devices.NumberValue && n.value.Float() > most {
			best, most = item, n.value.Float()
		}
	}
	*list = *best
}

// members makes an object of a list; a document that is none stays as it is.
func (rule namedRule) members(doc *node) *node {
	if doc.kind != listNode {
		return doc
	}
	all, links := &node{kind: objectNode}, &node{kind: objectNode}
	for _, item := range doc.items {
		name := textAt(item, rule.By)
		if name == "" || len(name) > maxMemberName {
			continue
		}
		if len(rule.Value) > 0 {
			value, _ := rule.Value.find(item)
			if value == nil {
				links.members = append(links.members, member{name, item.firsts(rule.Links)})
				continue
			}
			item = value
		}
		all.members = append(all.members, member{name, item})
	}
	if len(rule.Links) > 0 && len(links.members) > 0 {
		all.members = append(all.members, member{"links", links})
	}
	return all
}

// firsts gives an object of some of the members, of lists the first item.
func (n *node) firsts(names []string) *node {
	all := &node{kind: objectNode}
	for _, name := range names {
		m := n.member(name)
		if m != nil && m.kind == listNode && len(m.items) > 0 {
			m = m.items[0]
		}
		if m != nil && m.kind == valueNode {
			all.members = append(all.members, member{name, m})
		}
	}
	return all
}

// read makes a document of one member. The field is called value where its
// name comes out empty.
func (rule valueRule) read(payload []byte, look func(ref) string) (*node, error) {
	text := strings.TrimSpace(string(payload))
	if !utf8.ValidString(text) || len(text) > maxText {
		return nil, errors.New("not a number, a word or a short text")
	}
	withPayload := func(r ref) string {
		if r.name == "payload" {
			return text
		}
		return look(r)
	}
	name, _ := rule.Name.fill(withPayload)
	if !rule.Is.isZero() {
		whole, _ := rule.Is.fill(withPayload)
		text = strings.TrimSpace(whole)
	}
	v, meant := devices.Text(text), ""
	if !rule.Raw {
		v, meant = bare(text), text
	}
	if fieldName(name) == "" {
		name = "value"
	}
	return under(name, &node{value: v, text: meant}), nil
}

func (rule availabilityRule) read(h *heard) (devices.Availability, error) {
	word := strings.TrimSpace(string(h.Payload))
	if rule.Path != "" && strings.HasPrefix(word, "{") {
		doc, err := h.json()
		if err != nil {
			return devices.AvailabilityUnknown, err
		}
		n := doc.member(rule.Path)
		if n == nil || n.kind != valueNode {
			return devices.AvailabilityUnknown, fmt.Errorf("no word for availability in the member %s", rule.Path)
		}
		word = n.value.String()
	}
	if a, ok := availabilityWords[rule.Words[word]]; ok {
		return a, nil
	}
	return devices.AvailabilityUnknown, fmt.Errorf("not a word for availability: %.40q", word)
}

// availabilityWords are those of the language.
var availabilityWords = map[string]devices.Availability{"online": devices.Online, "offline": devices.Offline, "asleep": devices.Sleeping}

// describer gives the describer of a rule, nil if it has none.
func (rule decodeRule) describer() describe.Func { return describers[rule.Describe] }
