package profile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// fields makes fields of a document's members.
func (p *Profile) fields(doc *node) []devices.Field {
	w := walker{profile: p, names: newNames()}
	w.walk(doc, place{})
	return w.out
}

// A walker goes through a document once.
type walker struct {
	profile *Profile
	names   names
	out     []devices.Field
	objects []*node // from the document to where the walker is

	members []string // the last path that a rule was looked for,
	rule    int      // and its place, -1 if there is none
}

// A place is where the walker is.
type place struct {
	members []string // names of members, without the places in lists
	path    string   // the same for people, with the places in lists
	index   string   // only the places in lists
}

func (w *walker) walk(n *node, at place) {
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
		w.value(n, at)
	}
}

func (w *walker) value(n *node, at place) {
	if len(w.out) >= w.profile.file.Limits.Fields {
		return
	}
	f, ok := w.field(n, at)
	if !ok || f.Name == "" {
		return
	}
	f.Name = w.names.unique(f.Name)
	w.out = append(w.out, f)
}

// field applies the first rule that selects a value. ok is false where it is
// no field.
func (w *walker) field(n *node, at place) (f devices.Field, ok bool) {
	if w.members == nil || !slices.Equal(w.members, at.members) { // the items of a list have one path
		w.members = at.members
		w.rule = slices.IndexFunc(w.profile.file.Fields, func(r fieldRule) bool { return r.Select.selects(at.members) })
	}
	var rule fieldRule
	switch {
	case w.rule >= 0:
		rule = w.profile.file.Fields[w.rule]
	case w.profile.file.Rest.Create == "none" || w.profile.isTime(at.members, n.value):
		return f, false
	}
	if f.Value, ok = rule.convert(n.value); !ok {
		return f, false
	}
	f.Name = fieldName(at.path)
	if rule.Name != "" {
		f.Name = rule.Name + at.index
	}
	f.Kind = rule.kind(f.Value)
	if f.Value.Kind() == devices.NumberValue {
		if f.Unit = rule.unit(at.members, w.objects); f.Unit == "" {
			f.Unit = deviceUnit(n.unit)
		}
	}
	return f, true
}

// convert gives the value that the rule makes of a device's; ok is false where
// that is none.
func (r fieldRule) convert(v devices.Value) (_ devices.Value, ok bool) {
	if r.Drop || v.Kind() == devices.TextValue && !acceptable(v.String()) || r.isInvalid(v) {
		return v, false
	}
	text := strings.TrimSpace(v.String())
	if meaning, ok := r.Words[text]; ok {
		return devices.Bool(meaning), true
	}
	switch {
	case r.Parse == "duration":
		return parseDuration(text)
	case r.Type == "number" && v.Kind() == devices.TextValue:
		v, err := devices.ParseNumber(text)
		return v, err == nil
	case r.Type == "text":
		return devices.Text(v.String()), true
	}
	return v, true
}

func acceptable(text string) bool { return len(text) <= maxText && !notValue(text) }

func (r fieldRule) isInvalid(v devices.Value) bool {
	return slices.ContainsFunc(r.Invalid, func(bad string) bool {
		if v.String() == bad {
			return true
		}
		n, err := devices.ParseNumber(bad)
		return err == nil && v.Kind() == devices.NumberValue && n.Float() == v.Float()
	})
}

func (r fieldRule) kind(v devices.Value) devices.FieldKind {
	switch r.Kind {
	case "measurement":
		return devices.Measurement
	case "counter":
		return devices.Counter
	case "state":
		return devices.Status
	case "event":
		return devices.Event
	case "setting":
		return devices.Setting
	case "identity":
		return devices.Identity
	case "diagnostic":
		return devices.Diagnostic
	}
	if v.Kind() == devices.NumberValue {
		return devices.Measurement
	}
	return devices.Status
}

// unit is the one that a member of the message tells, or that of the path's
// last member, or the rule's own.
func (r fieldRule) unit(members []string, objects []*node) devices.Unit {
	if r.UnitOf != "" {
		for _, o := range slices.Backward(objects) {
			if n := o.member(r.UnitOf); n != nil && n.kind == valueNode {
				if u, ok := r.Units[n.value.String()]; ok {
					return devices.Unit(u)
				}
				return deviceUnit(n.value.String())
			}
		}
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

// parseDuration reads days, hours, minutes and seconds: 9T09:29:01.
func parseDuration(s string) (devices.Value, bool) {
	days, clock, ok := strings.Cut(s, "T")
	if !ok {
		days, clock = "0", s
	}
	parts := strings.Split(clock, ":")
	if len(parts) != 3 {
		return devices.Value{}, false
	}
	total := uint64(0)
	for i, part := range append([]string{days}, parts...) {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return devices.Value{}, false
		}
		total += n * []uint64{86400, 3600, 60, 1}[i]
	}
	v, err := devices.ParseNumber(strconv.FormatUint(total, 10))
	return v, err == nil
}

// names are those of a reading's fields, each once.
type names map[string]bool

func newNames() names { return make(names) }

// unique gives a name that is taken already the first number that is free.
func (n names) unique(name string) string {
	free := name
	for i := 2; n[free]; i++ {
		free = fmt.Sprintf("%s_%d", name, i)
	}
	n[free] = true
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
