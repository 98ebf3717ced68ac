package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// walk makes fields of a document's members, and tells what they say of the
// device being there, and which of them commands are for.
func (r *reading) walk(doc *node) walker {
	for _, rule := range r.profile.file.Fields {
		if rule.Join != nil && rule.When.hold(r.heard, r.captures) {
			if n := rule.Join.of(doc); n != nil {
				name := rule.Name[0].source
				doc.members = append(doc.members, member{name, n})
			}
		}
	}
	w := walker{reading: r, names: newNames()}
	w.walk(doc, place{})
	return w
}

// A walker goes through a document once.
type walker struct {
	*reading
	names     names
	out       []devices.Field
	dated     []devices.Reading // of fields that have a time of their own
	available devices.Availability
	targets   []target
	objects   []*node // from the document to where the walker is
	only      bool    // what the announcement names, and nothing else

	members []string   // the last path that a rule was looked for,
	rule    *fieldRule // and the rule, nil if there is none
}

// A place is where the walker is.
type place struct {
	members []string // names of members, without the places in lists
	path    string   // the same for people, with the places in lists
	index   string   // only the places in lists
}

// below gives the path for people without its first names.
func (p place) below(names int) string {
	if names == 0 || names > len(p.members) {
		return p.path
	}
	return strings.TrimPrefix(p.path, "_"+strings.Join(p.members[:names], "_"))
}

func (w *walker) walk(n *node, at place) {
	if n.kind == objectNode || n.kind == listNode {
		if rule := w.ruleFor(at.members); rule != nil && len(at.members) > 0 && w.whole(n, at, rule) {
			return
		}
	}
	switch n.kind {
	case objectNode:
		w.objects = append(w.objects, n)
		for _, m := range n.members {
			w.walk(m.node, place{append(slices.Clip(at.members), m.name), at.path + "_" + m.name, at.index})
		}
		w.objects = w.objects[:len(w.objects)-1]
	case listNode:
		for i, item := range n.items {
			number := "_" + strconv.Itoa(i)
			w.walk(item, place{at.members, at.path + number, at.index + number})
		}
	case valueNode:
		w.value(n, at, nil)
	}
}

// whole makes one field of an object or a list, where the rule says so.
func (w *walker) whole(n *node, at place, rule *fieldRule) bool {
	switch {
	case n.kind == objectNode && len(rule.Value) > 0:
		for _, name := range rule.Value {
			if v := n.member(name); v != nil {
				if v.kind == valueNode {
					w.objects = append(w.objects, n)
					w.value(v, at, n)
					w.objects = w.objects[:len(w.objects)-1]
				}
				return true
			}
		}
	case n.kind == listNode && rule.Type == "text":
		var items []string
		for _, item := range n.items {
			if item.kind == valueNode {
				items = append(items, item.value.String())
			}
		}
		w.value(&node{value: devices.List(items...)}, at, nil)
		return true
	}
	return false
}

// value makes a field of a value, which of the object selected is the one that
// the rule names.
func (w *walker) value(n *node, at place, selected *node) {
	for i, c := range w.profile.file.Commands {
		if c.For != nil && c.For.selects(at.members) && len(w.targets) < maxRules {
			w.targets = append(w.targets, target{i, at.members[len(at.members)-1], strings.Join(at.members, "/")})
		}
	}
	f, ok := w.field(n, at, selected)
	if !ok || f.Name == "" {
		return
	}
	f.Name = w.names.unique(f.Name)
	when := w.timeOf(at, selected)
	if when.IsZero() {
		w.out = append(w.out, f)
		return
	}
	i := slices.IndexFunc(w.dated, func(r devices.Reading) bool { return r.Time.Equal(when) })
	if i < 0 {
		i, w.dated = len(w.dated), append(w.dated, devices.Reading{Device: w.at.Device, Time: when})
	}
	w.dated[i].Fields = append(w.dated[i].Fields, f)
}

// timeOf gives the time that the object of a value tells of it, zero where it
// tells none that can be believed.
func (w *walker) timeOf(at place, selected *node) time.Time {
	rule := w.ruleFor(at.members)
	if rule == nil || rule.Time == nil || selected == nil {
		return time.Time{}
	}
	n, _ := rule.Time.Path.find(selected)
	return w.believed(*rule.Time, n)
}

// ruleFor gives the rule that selects a path: that of the announcement, with
// the profile's own where it says nothing; nil if there is none.
func (w *walker) ruleFor(members []string) *fieldRule {
	if w.members != nil && slices.Equal(w.members, members) { // the items of a list have one path
		return w.rule
	}
	var own *fieldRule
	if !w.only {
		own = firstRule(w.profile.file.Fields, members, w.heard, w.captures)
	}
	if w.overlay != nil {
		if announced := firstRule(w.overlay.rules, members, w.heard, w.captures); announced != nil {
			own = announced.over(own)
		}
	}
	w.members, w.rule = slices.Clone(members), own
	return own
}

func firstRule(rules []fieldRule, members []string, h *heard, captures map[string]string) *fieldRule {
	for i := range rules {
		if rules[i].Select.selects(members) && rules[i].When.hold(h, captures) {
			return &rules[i]
		}
	}
	return nil
}

// field applies the first rule that selects a value. ok is false where it is
// no field.
func (w *walker) field(n *node, at place, selected *node) (f devices.Field, ok bool) {
	var rule fieldRule
	if found := w.ruleFor(at.members); found != nil {
		rule = *found
	} else if w.only || w.profile.file.Rest.Create == "none" || w.profile.isTime(at.members, n.value) {
		return f, false
	}
	v := n.value
	if _, word := rule.words[n.text]; n.text != "" && (word || rule.Type == "text") { // else on would be true
		v = devices.Text(n.text)
	}
	if f.Value, ok = rule.convert(v); !ok {
		return f, false
	}
	if a, ok := availabilityWords[rule.Online[strings.TrimSpace(n.value.String())]]; ok {
		w.available = a
	}
	at.path = at.below(rule.skip)
	f.Name = fieldName(at.path)
	if len(rule.Name) > 0 {
		name := firstFilled(rule.Name, w.naming(at, selected))
		if !rule.namedWithin() {
			name += at.index
		}
		f.Name = fieldName(name)
	}
	if v, ok := number(f.Value); ok {
		unit := cmp.Or(rule.unit(at.members, w.objects), deviceUnit(n.unit))
		if unit != "" && rule.Type == "" { // many firmwares quote what they measure
			f.Value = v
		}
		if f.Value.Kind() == devices.NumberValue {
			f.Unit = unit
		}
	}
	f.Kind = rule.kind(f.Value)
	return f, true
}

// namedWithin reports whether the name comes of the object selected, which
// tells the items of a list apart.
func (r *fieldRule) namedWithin() bool {
	return slices.ContainsFunc(r.Name, func(t template) bool { return strings.Contains(t.source, "{./") })
}

// naming finds what a name is made of.
func (w *walker) naming(at place, selected *node) func(ref) string {
	return func(r ref) string {
		switch {
		case r.local && selected != nil:
			return textAt(selected, r.path)
		case r.path != nil:
			return textAt(w.heard.peek(), r.path)
		case r.name == "key" && len(at.members) > 0:
			return at.members[len(at.members)-1]
		case r.name == "path":
			return strings.TrimPrefix(at.path, "_")
		}
		return w.captures[r.name]
	}
}

// unit is the one that a member of the message tells; where it tells none, that
// of the path's last member, or the rule's own.
func (r fieldRule) unit(members []string, objects []*node) devices.Unit {
	if r.UnitOf != "" {
		for _, o := range slices.Backward(objects) {
			if n := o.member(r.UnitOf); n != nil && n.kind == valueNode {
				if u, ok := r.Units[n.value.String()]; ok {
					return devices.Unit(u)
				}
				if u, ok := r.Units["*"]; ok {
					return devices.Unit(u)
				}
				return deviceUnit(n.value.String())
			}
		}
	}
	if len(r.Units) == 0 {
		return devices.Unit(r.Unit)
	}
	last := members[len(members)-1]
	if u, ok := r.Units[last]; ok {
		return devices.Unit(u)
	}
	best := ""
	for pattern := range r.Units {
		if glob(pattern).fits(last) && (len(pattern) > len(best) || len(pattern) == len(best) && pattern < best) {
			best = pattern
		}
	}
	if best != "" {
		return devices.Unit(r.Units[best])
	}
	return devices.Unit(r.Unit)
}

// deviceUnit takes a unit that a device spells, "" where that can be none.
func deviceUnit(s string) devices.Unit {
	u := devices.ParseUnit(s)
	if len(u) > maxUnit || !utf8.ValidString(string(u)) || strings.ContainsFunc(string(u), unicode.IsControl) {
		return ""
	}
	return u
}

// names are those of the fields of a message, each once, with the number that
// the last one had which would be called the same.
type names map[string]int

func newNames() names { return make(names) }

// unique gives a name that is taken already the first number that is free.
func (n names) unique(name string) string {
	free := name
	for n[free] > 0 {
		n[name]++
		free = fmt.Sprintf("%s_%d", name, n[name])
	}
	n[free] = 1
	return free
}

// fieldName makes a name of [a-z0-9_] of any text: lower case, each run of
// other characters one '_', none at the edges.
func fieldName(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		if b.Len() == maxName {
			break
		}
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if b.Len() > 0 && !strings.HasSuffix(b.String(), "_") {
			b.WriteByte('_')
		}
	}
	return strings.Trim(b.String(), "_")
}
