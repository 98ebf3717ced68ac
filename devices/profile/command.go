package profile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// A Command is what a device can be told.
type Command struct {
	Name     string // as a field's
	Title    string // for people, "" if there is none
	Argument describe.Argument
	Confirm  string        // name of the field that confirms it
	Within   time.Duration // for that
	Risk     devices.Risk

	rule      *commandRule
	announced *describe.Command
	target    target // of the member that it is for
}

// Control tells the command as people and programs are shown it.
func (c Command) Control() devices.Control {
	a := devices.Argument{Type: argumentTypes[c.Argument.Type], Min: c.Argument.Min, Max: c.Argument.Max, Step: c.Argument.Step, Unit: c.Argument.Unit}
	for word := range c.Argument.Words {
		a.Words = append(a.Words, word)
	}
	if a.Words == nil && a.Type == devices.SwitchArgument {
		a.Words = []string{"off", "on"}
	}
	slices.Sort(a.Words)
	return devices.Control{Name: c.Name, Title: c.Title, Argument: a, Risk: c.Risk}
}

// argumentTypes are the words of a profile.
var argumentTypes = map[string]devices.ArgumentType{
	"": devices.NoArgument, "none": devices.NoArgument, "bool": devices.SwitchArgument, "number": devices.NumberArgument,
	"integer": devices.IntegerArgument, "word": devices.WordArgument, "text": devices.TextArgument,
}

// risks are the words of a profile.
var risks = map[string]devices.Risk{"read": devices.ReadOnly, "hazardous": devices.Hazardous}

// confirmedWithin is for devices that say nothing else.
const confirmedWithin = 5 * time.Second

// An Outgoing is a message to a device.
type Outgoing struct {
	// Topic is an MQTT topic. By CoAP it is a path below the device's own, "" for
	// that itself, with a query after ?; one that begins with / is whole.
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	Method  string // CoAP: put, post, get or delete
	Format  int    // CoAP: content format of the payload
	// Field is the name of the field that confirms it, with Value, or with any
	// value where that is the zero Value, no later than Within.
	Field  string
	Value  devices.Value
	Within time.Duration
}

// A target is a member that a command is for.
type target struct {
	command int
	key     string // the member's name
	path    string // with those above it
}

// seen is what was heard of a device, for commands.
type seen struct {
	topic   string
	targets []target
}

// see remembers what commands need.
func (s *Session) see(p *Profile, topic string, captures map[string]string, out Output) {
	if len(p.file.Commands)+len(p.file.Poll) == 0 || out.Identity == "" {
		return
	}
	v := s.notice(p, out.Identity)
	if v == nil {
		return
	}
	if v.topic == "" || captures["device"] != "" { // else it does not tell where to answer
		v.topic = topic
	}
	v.add(out.targets)
}

// notice gives what was seen of a device; nil where no more can be remembered.
func (s *Session) notice(p *Profile, identity string) *seen {
	key := deviceKey{p.ID(), identity}
	v := s.seen[key]
	if v == nil && len(s.seen) < maxDescribed {
		v = &seen{}
		s.seen[key] = v
	}
	return v
}

func (v *seen) add(targets []target) {
	for _, t := range targets {
		if len(v.targets) < maxRules && !slices.Contains(v.targets, t) {
			v.targets = append(v.targets, t)
		}
	}
}

// Expect has [Session.Commands] know a device of CoAP, by the key that
// [Session.HearBody] will be given, before it was heard.
func (s *Session) Expect(profile, key string) {
	if p := s.library.Get(profile); p != nil {
		s.notice(p, key)
	}
}

// HearBody reads a body of CoAP, of a device whose profile is known. Nothing in
// it says whose it is; key does, from then on.
func (s *Session) HearBody(profile, key string, at Place, m Message) (Output, error) {
	p := s.library.Get(profile)
	if p == nil {
		return Output{}, ErrUnknown
	}
	out, err := p.decode(newHeard(m), map[string]string{"field": m.Topic}, at, nil)
	if err != nil {
		return Output{Profile: p.ID()}, err
	}
	if v := s.notice(p, key); v != nil {
		v.add(out.targets)
	}
	return out, nil
}

// Commands gives what a device can be told, by what it announced and by the
// profile; key is the identity that its messages show.
func (s *Session) Commands(profile, key string) (all []Command) {
	add := adder(&all)
	if d, ok := s.Describe(profile, key); ok {
		for i := range d.Commands {
			if c := &d.Commands[i]; c.Topic != "" {
				add(Command{Name: c.Name, Title: c.Title, Argument: c.Argument, Confirm: c.Confirm, Within: c.Within, Risk: c.Risk, announced: c})
			}
		}
	}
	p := s.library.Get(profile)
	if p == nil {
		return all
	}
	v := s.seen[deviceKey{p.ID(), key}]
	if v == nil {
		return all
	}
	captures := p.capturesOf(v.topic)
	p.commands(v, func(r ref) string { return captures[r.name] }, add)
	return all
}

// adder completes commands and adds those that are not there.
func adder(all *[]Command) func(Command) {
	names := make(map[string]bool)
	return func(c Command) {
		c.Name = fieldName(c.Name)
		c.Confirm = cmp.Or(fieldName(c.Confirm), c.Name)
		c.Within = cmp.Or(c.Within, confirmedWithin)
		if c.Name != "" && !names[c.Name] {
			names[c.Name] = true
			*all = append(*all, c)
		}
	}
}

// commands gives those of the profile.
func (p *Profile) commands(v *seen, more func(ref) string, add func(Command)) {
	for i := range p.file.Commands {
		rule := &p.file.Commands[i]
		for _, to := range v.of(i, rule) {
			look := func(r ref) string {
				switch r.name {
				case "key":
					return to.key
				case "path":
					return to.path
				}
				return more(r)
			}
			c := Command{Title: rule.Title, Argument: rule.Argument.argument(), Risk: risks[rule.Risk], rule: rule, target: to}
			c.Name, _ = rule.Name.fill(look)
			if rule.Confirm != nil {
				c.Confirm, _ = rule.Confirm.Field.fill(look)
				c.Within = rule.Confirm.Within
			}
			add(c)
		}
	}
}

// of gives the members that a command is for; the zero one where it is for
// none.
func (v *seen) of(command int, rule *commandRule) (all []target) {
	if rule.For == nil {
		return []target{{}}
	}
	for _, t := range v.targets {
		if t.command == command {
			all = append(all, t)
		}
	}
	return all
}

func (a argumentRule) argument() describe.Argument {
	return describe.Argument{Type: a.Type, Words: a.Words, Min: a.Min, Max: a.Max, Step: a.Step, Unit: devices.Unit(a.Unit)}
}

// Encode makes the message that gives a device a command. The error says what
// is wrong with the argument, in words for the one who gave it.
func (s *Session) Encode(profile, key, name, argument string) (Outgoing, error) {
	all := s.Commands(profile, key)
	i := slices.IndexFunc(all, func(c Command) bool { return c.Name == name })
	if i < 0 {
		return Outgoing{}, fmt.Errorf("the device has no command %q", name)
	}
	c := all[i]
	sent, value, err := c.take(argument)
	if err != nil {
		return Outgoing{}, fmt.Errorf("%s: %w", name, err)
	}
	out := Outgoing{Field: c.Confirm, Value: value, Within: c.Within}
	if a := c.announced; a != nil {
		out.Topic, out.QoS, out.Retain = a.Topic, a.QoS, a.Retain
		payload := strings.ReplaceAll(cmp.Or(a.Payload, "{value}"), "{value}", sent)
		if a.Encode != nil {
			if payload, err = a.Encode(devices.Text(sent)); err != nil {
				return Outgoing{}, fmt.Errorf("%s: %w", name, err)
			}
		}
		out.Payload = []byte(payload)
		return out, checkTopic(out.Topic)
	}
	out.QoS, out.Retain = byte(c.rule.QoS), c.rule.Retain
	out.Method, out.Format = cmp.Or(c.rule.Method, "put"), c.rule.Format
	if c.rule.Confirm != nil && c.rule.Confirm.Any {
		out.Value = devices.Value{}
	}
	payload := c.rule.Payload
	if payload.isZero() {
		payload = template{parts: []piece{{refs: []ref{{name: "value"}}, form: forms[""]}}}
	}
	p := s.library.Get(profile)
	err = p.address(&out, s.seen[deviceKey{p.ID(), key}].topic, c.rule.Topic, c.rule.Reply, payload, map[string]string{"key": c.target.key, "path": c.target.path, "value": sent})
	return out, err
}

// address fills in topic and payload.
func (p *Profile) address(out *Outgoing, heardOn string, topic template, reply map[string]string, payload template, more map[string]string) error {
	captures := p.capturesOf(heardOn)
	look := func(r ref) string { return cmp.Or(more[r.name], captures[r.name]) }
	text, ok := payload.fill(look)
	if !ok && more["value"] != "" {
		return errors.New("the payload cannot be made")
	}
	out.Payload = []byte(text)
	if reply == nil && topic.isZero() {
		return nil // checked: only by CoAP
	}
	if reply == nil {
		if out.Topic, ok = topic.fill(look); !ok {
			return errors.New("the device was not heard on a topic that tells where to answer")
		}
	} else if out.Topic, ok = p.reply(heardOn, reply, look); !ok {
		return errors.New("the device was not heard on a topic that can be answered")
	}
	return checkTopic(out.Topic)
}

func checkTopic(topic string) error {
	if topic == "" || strings.ContainsAny(topic, "+#\x00") || !utf8.ValidString(topic) {
		return fmt.Errorf("%.100q is no topic that can be sent to", topic)
	}
	return nil
}

// capturesOf gives the captures of a topic, whatever was said on it.
func (p *Profile) capturesOf(topic string) map[string]string {
	for _, m := range p.file.Match {
		if c, ok := m.Topic.match(topic, ""); ok {
			return c
		}
	}
	return nil
}

// reply gives a topic with some captures replaced.
func (p *Profile) reply(topic string, with map[string]string, look func(ref) string) (string, bool) {
	for _, m := range p.file.Match {
		c, ok := m.Topic.match(topic, "")
		if !ok {
			continue
		}
		for name, text := range with {
			var t template
			if t.UnmarshalText([]byte(text)) != nil {
				return "", false
			}
			if c[name], ok = t.fill(look); !ok || !m.Topic.has(name) {
				return "", false
			}
		}
		var levels []string
		for _, l := range m.Topic.levels {
			if l.name == "" {
				levels = append(levels, l.text)
			} else if v := c[l.name]; v != "" {
				levels = append(levels, v)
			}
		}
		return strings.Join(levels, "/"), true
	}
	return "", false
}

// take checks an argument, and gives what is sent, and the value that the
// device will report; the zero Value where that cannot be known.
func (c Command) take(argument string) (sent string, value devices.Value, err error) {
	a := c.Argument
	argument = strings.TrimSpace(argument)
	switch a.Type {
	case "", "none":
		if argument != "" {
			return "", value, errors.New("it takes no argument")
		}
		return "", value, nil
	case "bool", "word":
		return wordFor(a, argument)
	case "text":
		if !utf8.ValidString(argument) || len(argument) > maxText || strings.ContainsFunc(argument, unicode.IsControl) {
			return "", value, fmt.Errorf("not a text of at most %d bytes", maxText)
		}
		return argument, devices.Text(argument), nil
	}
	v, err := devices.ParseNumber(argument)
	if err != nil {
		return "", value, fmt.Errorf("%.40q is not a number", argument)
	}
	if _, whole := v.Int(); a.Type == "integer" && !whole {
		return "", value, fmt.Errorf("%s is not a whole number", v)
	}
	if a.Min != nil && v.Float() < *a.Min || a.Max != nil && v.Float() > *a.Max {
		return "", value, fmt.Errorf("%s is not %s", v, span(a))
	}
	scaled := v
	if c.rule != nil {
		rule := c.rule.Argument
		if rule.Scale != 0 {
			scaled = affine(v, 0, rule.Scale)
		}
		if rule.Round != nil {
			scaled, _ = devices.ParseNumber(strconv.FormatFloat(scaled.Float(), 'f', *rule.Round, 64))
		}
	}
	return scaled.String(), v, nil
}

// span says what a number may be.
func span(a describe.Argument) string {
	switch {
	case a.Min != nil && a.Max != nil:
		return fmt.Sprintf("from %v to %v", *a.Min, *a.Max)
	case a.Min != nil:
		return fmt.Sprintf("at least %v", *a.Min)
	}
	return fmt.Sprintf("at most %v", *a.Max)
}

// wordFor takes one of the words that are allowed.
func wordFor(a describe.Argument, argument string) (sent string, value devices.Value, err error) {
	words := a.Words
	if words == nil && a.Type == "bool" {
		words = map[string]string{"on": "true", "off": "false"}
	}
	name := argument
	sent, ok := words[name]
	if !ok { // people write On
		for _, w := range sortedKeys(words) {
			if strings.EqualFold(w, argument) {
				name, sent, ok = w, words[w], true
				break
			}
		}
	}
	switch {
	case !ok:
		return "", value, fmt.Errorf("%.40q is none of %s", argument, strings.Join(sortedKeys(words), ", "))
	case a.Type == "word":
		return sent, devices.Text(name), nil
	case name == "on" || name == "off":
		return sent, devices.Bool(name == "on"), nil
	}
	return sent, value, nil // toggle: whatever comes
}

// Polls gives what to ask a device, on "online" or "unannounced", or to ask all,
// on "start", with how often to repeat it; 0 is once. key is the identity that
// its messages show, "" on start.
func (s *Session) Polls(profile, key, on string) (all []Outgoing, every []time.Duration) {
	p := s.library.Get(profile)
	if p == nil {
		return nil, nil
	}
	heardOn := ""
	if v := s.seen[deviceKey{profile, key}]; v != nil {
		heardOn = v.topic
	}
	for _, rule := range p.file.Poll {
		var out Outgoing
		if rule.On != on || p.address(&out, heardOn, rule.Topic, rule.Reply, rule.Payload, nil) != nil {
			continue
		}
		all, every = append(all, out), append(every, rule.Every)
	}
	return all, every
}
