package profile

import (
	"cmp"
	"encoding/json"
	"errors"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// ErrUnknown says that no profile takes a message.
var ErrUnknown = errors.New("no profile knows this topic")

// The bounds of what a session remembers. What is beyond is not remembered.
const (
	maxDescribed    = 20000    // devices
	maxDescriptions = 200000   // parts of them: one device in one announcement
	maxParts        = 5000     // of one device
	maxAnnounced    = 32 << 20 // bytes of all announcements
	maxRules        = 500      // fields, topics and commands of a device
	maxKept         = 4096     // messages that may be understood later
	maxKeptBytes    = 8 << 10  // of each, with its topic
	maxKeptTotal    = 2 << 20  // of all
)

// A Session hears a broker: it lets each message find its own profile, and
// remembers what was announced. It belongs to one goroutine.
type Session struct {
	library  *Library
	location *time.Location
	seed     maphash.Seed

	announced map[string]*announcement // by topic
	known     map[deviceKey]*described
	called    map[deviceKey]*described // by the identity that messages show
	topics    map[string][]*described  // by further topics, of values or availability
	parts     int
	bytes     int // of what was announced

	seen   map[deviceKey]*seen  // by the identity that messages show
	levels map[deviceKey]bool   // by {device} of the topic
	also   map[deviceKey]string // identity, by another one

	kept keptMessages
}

// A deviceKey is a device's in the words of one family of profiles.
type deviceKey struct{ family, key string }

// An announcement is what a topic said last.
type announcement struct {
	hash    uint64
	bytes   int
	devices []deviceKey
}

// described is a device as all announcements together tell of it.
type described struct {
	id       deviceKey
	priority int
	profile  *Profile
	parts    map[string]describe.Device // by topic of the announcement
	order    []string                   // topics in the order in which they came

	whole   describe.Device
	overlay *overlay
	rules   map[string]*overlay    // of further topics
	states  []devices.Availability // of whole.Availability
}

// NewSession makes a session that has heard nothing. location is where times
// without a zone are; nil is the system's.
func (l *Library) NewSession(location *time.Location) *Session {
	return &Session{
		library: l, location: location, seed: maphash.MakeSeed(),
		announced: make(map[string]*announcement), known: make(map[deviceKey]*described), called: make(map[deviceKey]*described), seen: make(map[deviceKey]*seen),
		levels: make(map[deviceKey]bool), also: make(map[deviceKey]string),
		topics: make(map[string][]*described), kept: newKeptMessages(),
	}
}

// Hear reads one message. Its readings have no device id yet: the caller knows
// which one belongs to Output.Identity in the words of Output.Profile. An error
// says in one line what was not understood, with Output.Profile set where a
// profile took the message.
func (s *Session) Hear(m Message) (Output, error) {
	out, err := s.hear(m)
	if err == nil && out.Availability == devices.Offline {
		s.follow(&out)
	}
	return out, err
}

// follow takes along those that hang on a device which is lost.
func (s *Session) follow(out *Output) {
	p := s.library.Get(out.Profile)
	if p == nil || p.file.Silence.Via != "parent" {
		return
	}
	told := make(map[string]bool)
	for _, child := range out.Children {
		told[child.Identity] = true
	}
	for id, d := range s.known {
		parent := d.whole.Parent
		if id.family != p.Family() || parent == "" || parent != out.Identity && parent != out.About.Identity || d.shown() == out.Identity || told[d.shown()] {
			continue
		}
		child := Output{Profile: p.ID(), Identity: d.shown(), Availability: devices.Offline}
		s.complete(&child, d)
		out.Children = append(out.Children, child)
	}
	slices.SortStableFunc(out.Children, func(a, b Output) int { return cmp.Compare(a.Identity, b.Identity) })
}

// HearAt reads a message of a device that is known to be at a place, by its
// profile, whatever others know the topic.
func (s *Session) HearAt(profile string, at Place, m Message) (Output, error) {
	h := newHeard(m)
	h.known = s.heardBefore
	p := s.library.Get(profile)
	if p == nil {
		return Output{}, ErrUnknown
	}
	captures, ok := p.captures(h, at.Topic)
	if !ok {
		return Output{Profile: profile}, ErrNotOurs
	}
	return s.hearOwn(h, p, captures)
}

func (s *Session) hear(m Message) (Output, error) {
	h := newHeard(m)
	h.known = s.heardBefore
	p, captures := s.library.find(h)
	priority := -1
	if p != nil {
		priority = p.Priority()
	}
	claims := slices.DeleteFunc(slices.Clone(s.topics[m.Topic]), func(d *described) bool { return d.priority < priority && (p == nil || d.id.family != p.Family()) })
	if len(claims) > 0 {
		return s.hearClaimed(h, claims, p, captures)
	}
	if p == nil {
		if len(m.Payload) > 0 {
			s.kept.keep(m, deviceKey{}, nil)
		}
		return Output{}, ErrUnknown
	}
	return s.hearOwn(h, p, captures)
}

// hearOwn reads a message by the profile that matches it.
func (s *Session) hearOwn(h *heard, p *Profile, captures map[string]string) (Output, error) {
	describer, rule := p.describerFor(h, captures)
	if describer == nil && len(h.Payload) == 0 {
		return Output{Profile: p.ID(), Identity: p.identityOf(h, captures)}, nil // a retained message is taken back
	}
	if describer == nil {
		out, err := s.decode(h, p, captures)
		if err == nil && len(out.Readings) > 0 && (p.describes() || p.Priority() < announcedPriority) {
			s.kept.keep(h.Message, deviceKey{p.Family(), p.identityOf(h, captures)}, nil)
		}
		return out, err
	}
	out := Output{Profile: p.ID(), Announced: true}
	if len(strings.TrimSpace(string(h.Payload))) == 0 {
		out.Removed = s.takeBack(h.Topic)
		return out, nil
	}
	if limit := int(p.file.Limits.Bytes); len(h.Payload) > limit {
		return out, errors.New("the announcement is too large")
	}
	news, err := describer(describe.Message{Topic: h.Topic, Captures: captures, Payload: h.Payload})
	if err != nil {
		return out, err
	}
	if before := s.announced[h.Topic]; s.bytes-before.size()+len(h.Topic)+len(h.Payload) > maxAnnounced {
		return out, errors.New("more is announced than can be remembered")
	}
	changed, removed := s.announce(h, p, news)
	all := s.facts(p, news)
	if rule.JSON != nil || rule.Value != nil || rule.Code != "" {
		data, err := s.decode(h, p, captures)
		if err != nil {
			return out, err
		}
		all = merge(all, data)
	}
	if len(all) > 0 {
		out = all[0]
		out.Children = append(out.Children, all[1:]...)
		out.fit(maxFields)
	}
	out.Announced, out.Removed = !rule.Live, removed
	if changed {
		out.Earlier = s.again(p, news)
	}
	return out, nil
}

// merge puts what a message says of a device beside what it announces of it.
func merge(all []Output, data Output) []Output {
	for i := range all {
		if all[i].Identity == data.Identity {
			all[i].Availability = cmp.Or(data.Availability, all[i].Availability)
			if len(all[i].Readings) == 0 {
				all[i].Readings = data.Readings
			} else if len(data.Readings) > 0 {
				all[i].Readings[0].Fields = append(all[i].Readings[0].Fields, data.Readings[0].Fields...)
				all[i].Readings[0].Time = data.Readings[0].Time
				all[i].Readings = append(all[i].Readings, data.Readings[1:]...)
			}
			return all
		}
	}
	return append(all, data)
}

// describes reports whether the profile has announcements.
func (p *Profile) describes() bool {
	return slices.ContainsFunc(p.file.Decode, func(r decodeRule) bool { return r.Describe != "" })
}

// announcedPriority is that of descriptions by others: what matches a profile
// of less may yet be announced.
const announcedPriority = 40

func (p *Profile) describerFor(h *heard, captures map[string]string) (describe.Func, decodeRule) {
	if !p.describes() {
		return nil, decodeRule{}
	}
	for _, rule := range p.file.Decode {
		if rule.When.hold(h, captures) {
			return rule.describer(), rule
		}
	}
	return nil, decodeRule{}
}

// decode reads by a profile, with what the device announced.
func (s *Session) decode(h *heard, p *Profile, captures map[string]string) (Output, error) {
	at := Place{Location: s.location}
	d := s.find(p, p.identityOf(h, captures))
	var o *overlay
	if d != nil {
		o = d.ownRules()
	}
	out, err := p.decode(h, captures, at, o)
	if err != nil {
		return Output{Profile: p.ID(), Identity: p.identityOf(h, captures)}, err
	}
	s.see(p, h.Topic, captures, out)
	s.recognise(p, h, captures, out)
	s.complete(&out, d)
	if other := s.also[deviceKey{p.Family(), out.Identity}]; out.About.Identity == "" {
		out.About.Identity = other
	}
	out.Unannounced = d == nil && out.Identity != "" && p.file.asksUnannounced()
	return out, nil
}

// recognise remembers by what else the device of a message is known.
func (s *Session) recognise(p *Profile, h *heard, captures map[string]string, out Output) {
	if len(s.levels) < maxDescribed && out.Identity != "" && captures["device"] != "" && slices.ContainsFunc(p.file.Match, func(m matchRule) bool { return m.Known }) {
		s.levels[deviceKey{p.Family(), captures["device"]}] = true
	}
	also, ok := p.file.Device.Also.fill(lookUp(captures, h.peek()))
	if key := (deviceKey{p.Family(), also}); ok && also != "" && also != out.Identity && out.Identity != "" && (len(s.also) < maxDescribed || s.also[key] != "") {
		s.also[key] = out.Identity
	}
}

// heardBefore reports whether the device of a topic was.
func (s *Session) heardBefore(p *Profile, captures map[string]string) bool {
	return s.levels[deviceKey{p.Family(), captures["device"]}]
}

// complete adds what was announced of a device.
func (s *Session) complete(out *Output, d *described) {
	if d == nil {
		return
	}
	w := d.whole
	a := &out.About
	if w.Identity != out.Identity {
		a.Identity = w.Identity
	}
	a.Name, a.Maker, a.Model = cmp.Or(w.Name, a.Name), cmp.Or(w.Maker, a.Maker), cmp.Or(w.Model, a.Model)
	a.Firmware, a.Parent = cmp.Or(w.Firmware, a.Firmware), cmp.Or(w.Parent, a.Parent)
}

// identityOf gives the identity that a message shows, as far as that is known
// without decoding it.
func (p *Profile) identityOf(h *heard, captures map[string]string) string {
	if keys := p.file.Device.Key; len(keys) > 0 {
		return firstFilled(keys, lookUp(captures, h.peek()))
	}
	return captures["device"]
}

// hearClaimed reads a message on a topic that devices announced.
func (s *Session) hearClaimed(h *heard, claims []*described, p *Profile, captures map[string]string) (Output, error) {
	var all, announced []Output
	var of deviceKey
	if p != nil {
		of = deviceKey{p.Family(), p.identityOf(h, captures)}
	}
	if p != nil && slices.ContainsFunc(claims, func(d *described) bool { return d.id.family == p.Family() && !d.tellsAll(h.Topic) }) {
		own, err := s.hearOwn(h, p, captures) // a topic of the profile, which an announcement only adds to
		if err != nil && !slices.ContainsFunc(claims, func(d *described) bool { return d.hasAvailability(h.Topic) }) {
			return own, err
		} else if err == nil {
			all = append(all, own)
		}
	}
	var trouble error
	for _, d := range claims {
		out := Output{Profile: d.profile.ID(), Identity: cmp.Or(d.whole.Called, d.whole.Identity)}
		s.complete(&out, d)
		if rules := d.rulesOn(h.Topic); rules != nil {
			r := reading{profile: d.profile, heard: h, captures: map[string]string{}, at: Place{Location: s.location}, overlay: rules}
			trouble = cmp.Or(trouble, r.rendered(&out))
		}
		if a := d.hear(h); a != devices.AvailabilityUnknown {
			out.Availability = a
		}
		announced = append(announced, out)
		i := slices.IndexFunc(all, func(o Output) bool { return o.Identity == out.Identity })
		if i >= 0 {
			all[i].Availability = cmp.Or(out.Availability, all[i].Availability)
			all[i].Readings = append(all[i].Readings, out.Readings...)
			continue
		}
		all = append(all, out)
	}
	out := all[0]
	out.Children = append(out.Children, all[1:]...)
	s.kept.keep(h.Message, of, toldBy(announced)) // there may be more in it than was announced so far
	if !out.told() {
		return Output{Profile: out.Profile, Identity: out.Identity}, trouble
	}
	return out, nil
}

// told reports whether there is anything in an output.
func (o Output) told() bool {
	return len(o.Readings) > 0 || o.Availability != devices.AvailabilityUnknown || o.Announced || slices.ContainsFunc(o.Children, Output.told)
}

// tellsAll reports whether it was announced what the topic holds, so that the
// profile's own rules for it do not count.
func (d *described) tellsAll(topic string) bool {
	rules := d.rules[topic]
	return rules != nil && len(rules.fields) > 0
}

func (d *described) hasAvailability(topic string) bool {
	return slices.ContainsFunc(d.whole.Availability, func(a describe.Availability) bool { return a.Topic == topic })
}

// hear takes what a topic of availability says.
func (d *described) hear(h *heard) devices.Availability {
	heardNow := devices.AvailabilityUnknown
	for i, a := range d.whole.Availability {
		if a.Topic != h.Topic {
			continue
		}
		v, ok := valueOf(h, a.Select, a.Render)
		if !ok {
			continue
		}
		if state, ok := a.Words[v]; ok {
			d.states[i], heardNow = state, state
		}
	}
	if heardNow == devices.AvailabilityUnknown {
		return heardNow
	}
	switch d.whole.Mode {
	case describe.All:
		for _, state := range d.states {
			if state == devices.Offline {
				return devices.Offline
			}
		}
		if slices.Contains(d.states, devices.AvailabilityUnknown) {
			return devices.AvailabilityUnknown
		}
		if slices.Contains(d.states, devices.Sleeping) {
			return devices.Sleeping
		}
	case describe.Any:
		if slices.Contains(d.states, devices.Online) {
			return devices.Online
		}
	}
	return heardNow
}

// valueOf gives the text at a selector, made by a template, or the payload.
func valueOf(h *heard, selects string, render describe.Render) (string, bool) {
	switch {
	case render != nil:
		v, ok, err := render(string(h.Payload), h.any())
		return strings.TrimSpace(v), ok && err == nil
	case selects != "":
		var path membersPath
		if path.UnmarshalText([]byte(selects)) != nil || h.peek() == nil {
			return "", false
		}
		v := textAt(h.peek(), path)
		return v, v != ""
	}
	return strings.TrimSpace(string(h.Payload)), true
}

// any gives what a JSON message holds, for templates; nil if it is none.
func (h *heard) any() any {
	if h.decoded {
		return h.foreign
	}
	h.decoded = true
	if _, err := h.json(); err != nil { // for its bounds
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(h.Payload)))
	d.UseNumber()
	if d.Decode(&h.foreign) != nil {
		h.foreign = nil
	}
	return h.foreign
}

// takeBack forgets what a topic announced, and gives the devices that nothing
// is known of any more.
func (s *Session) takeBack(topic string) (removed []string) {
	a := s.announced[topic]
	if a == nil {
		return nil
	}
	delete(s.announced, topic)
	s.bytes -= a.bytes
	for _, id := range a.devices {
		if s.forget(id, topic) {
			removed = append(removed, id.key)
		}
	}
	return removed
}

// forget takes one part of a description away, and reports whether it was the
// last.
func (s *Session) forget(id deviceKey, topic string) (gone bool) {
	d := s.known[id]
	if d == nil {
		return false
	}
	if _, ok := d.parts[topic]; ok {
		delete(d.parts, topic)
		d.order = slices.DeleteFunc(d.order, func(t string) bool { return t == topic })
		s.parts--
	}
	s.unlink(d)
	if len(d.parts) == 0 {
		delete(s.known, id)
		return true
	}
	d.compile()
	s.link(d)
	return false
}

// announce remembers what a topic announced in the place of what it did
// before. changed is false where that is the same.
func (s *Session) announce(h *heard, p *Profile, news []describe.Device) (changed bool, removed []string) {
	hash := maphash.Bytes(s.seed, h.Payload)
	before := s.announced[h.Topic]
	if before != nil && before.hash == hash {
		return false, nil
	}
	now := &announcement{hash: hash, bytes: len(h.Topic) + len(h.Payload)}
	still := make(map[deviceKey]bool, len(news))
	for _, part := range news {
		id := deviceKey{p.Family(), part.Identity}
		if part.Identity == "" {
			continue
		}
		part.Facts = nil // told once, and not kept
		d := s.known[id]
		if d == nil && len(s.known) >= maxDescribed {
			continue
		}
		if d == nil {
			d = &described{id: id, profile: p, priority: p.Priority(), parts: make(map[string]describe.Device)}
			s.known[id] = d
		} else {
			s.unlink(d)
		}
		before, again := d.parts[h.Topic]
		switch {
		case !again && (s.parts >= maxDescriptions || len(d.parts) >= maxParts):
			s.link(d)
			continue
		case !again:
			s.parts++
			d.order = append(d.order, h.Topic)
			d.parts[h.Topic] = part
			d.extend(part) // a device may come in hundreds of parts
		case still[id]: // twice in one announcement
			part = combine(before, part)
			fallthrough
		default:
			d.parts[h.Topic] = part
			d.compile()
		}
		s.link(d)
		if !still[id] {
			still[id] = true
			now.devices = append(now.devices, id)
		}
	}
	if before != nil {
		for _, id := range before.devices {
			if !still[id] && s.forget(id, h.Topic) {
				removed = append(removed, id.key)
			}
		}
	}
	s.bytes -= before.size()
	delete(s.announced, h.Topic)
	if len(now.devices) > 0 {
		s.bytes += now.bytes
		s.announced[h.Topic] = now
	}
	return true, removed
}

// size gives the bytes of an announcement, 0 if there is none.
func (a *announcement) size() int {
	if a == nil {
		return 0
	}
	return a.bytes
}

// unlink takes a device out of the indexes.
func (s *Session) unlink(d *described) {
	if s.called[deviceKey{d.id.family, d.shown()}] == d {
		delete(s.called, deviceKey{d.id.family, d.shown()})
	}
	for _, topic := range d.heardOn() {
		s.topics[topic] = slices.DeleteFunc(s.topics[topic], func(other *described) bool { return other == d })
		if len(s.topics[topic]) == 0 {
			delete(s.topics, topic)
		}
	}
}

// link makes the whole of a device, and puts it into the indexes.
func (s *Session) link(d *described) {
	s.called[deviceKey{d.id.family, d.shown()}] = d
	for _, topic := range d.heardOn() {
		s.topics[topic] = append(s.topics[topic], d)
	}
}

// shown is the identity that the device's messages show.
func (d *described) shown() string { return cmp.Or(d.whole.Called, d.whole.Identity) }

// heardOn gives the further topics of a device, each once.
func (d *described) heardOn() (all []string) {
	for _, t := range d.whole.Topics {
		all = append(all, t.Topic)
	}
	for _, a := range d.whole.Availability {
		if a.Topic != "" && !slices.Contains(all, a.Topic) {
			all = append(all, a.Topic)
		}
	}
	return all
}

// again reads the kept messages of devices that were announced.
func (s *Session) again(p *Profile, news []describe.Device) (all []Earlier) {
	var topics []string
	var shown []deviceKey
	for _, part := range news {
		if d := s.known[deviceKey{p.Family(), part.Identity}]; d != nil {
			shown = append(shown, deviceKey{p.Family(), d.shown()})
			topics = append(topics, d.heardOn()...)
		}
	}
	for _, kept := range s.kept.on(topics, shown) {
		m := kept.Message
		if !concerned(news, m.Topic) {
			continue
		}
		out, err := s.Hear(m)
		if err != nil {
			continue
		}
		if out.without(kept.told); !out.told() {
			continue
		}
		m.Payload = nil
		all = append(all, Earlier{m, out})
	}
	return all
}

// concerned reports whether an announcement may change what a message on a
// topic means.
func concerned(news []describe.Device, topic string) bool {
	return slices.ContainsFunc(news, func(d describe.Device) bool { return d.Concerns == nil || d.Concerns(topic) })
}

// Describe gives what was announced of a device, in the words of a profile;
// false if nothing was.
func (s *Session) Describe(profile, key string) (describe.Device, bool) {
	p := s.library.Get(profile)
	if p == nil {
		return describe.Device{}, false
	}
	d := s.find(p, key)
	if d == nil {
		return describe.Device{}, false
	}
	return d.whole, true
}

// find gives what was announced of a device, by either of its identities; nil
// if nothing was.
func (s *Session) find(p *Profile, key string) *described {
	id := deviceKey{p.Family(), key}
	if d := s.called[id]; d != nil {
		return d
	}
	return s.known[id]
}
