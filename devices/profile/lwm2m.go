package profile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/lwm2m"
)

// The content formats of LwM2M (OMA LwM2M Core 1.1 section 7.4, and 1.0).
const (
	formatText  = 0
	formatLinks = 40
	formatBytes = 42
	formatCBOR  = 60
	formatTLV   = 11542
	formatOld   = 11543 // JSON of 1.0
)

// readLwM2M reads what a client registers, and the objects that it reports, in
// any of the formats. What it reports becomes an object of objects of their
// instances, of their resources: 3303/0/5700.
func readLwM2M(m Message) ([]part, error) {
	path, isObject := lwm2m.ParsePath(m.Topic)
	first := strings.TrimSpace(string(m.Payload[:min(len(m.Payload), 64)]))
	switch format := m.ContentFormat; {
	case format == formatLinks, !isObject && strings.HasPrefix(first, "<"):
		return readRegistration(m)
	case strconv.Itoa(format) == senmlJSON, strconv.Itoa(format) == senmlCBOR, format < 0 && strings.HasPrefix(first, "["):
		return readObjectPack(m)
	case format == formatOld, format < 0 && strings.HasPrefix(first, "{"):
		return readOldJSON(m)
	case !isObject:
		return nil, errors.New("no path of an object")
	case format == formatText, format == formatBytes, format == formatCBOR:
		return readResource(m, path)
	case format == formatTLV, format < 0:
		values, err := lwm2m.ParseTLV(m.Payload, path)
		if err != nil {
			return nil, err
		}
		return []part{{doc: objectsOf(values)}}, nil
	}
	return nil, fmt.Errorf("content format %d is none of LwM2M", m.ContentFormat)
}

// readRegistration reads the objects that a client has (section 6.2.1.2).
func readRegistration(m Message) ([]part, error) {
	links, err := ParseLinks(m.Payload)
	if err != nil {
		return nil, err
	}
	root := "/"
	for _, l := range links {
		if slices.Contains(strings.Fields(l.Attribute("rt")), "oma.lwm2m") {
			root = l.Target // the objects may be below another path
		}
	}
	var all []part
	seen := make(map[int]bool)
	for _, l := range links {
		doc, about := &node{kind: objectNode}, l.about()
		path, ok := lwm2m.ParsePath(strings.TrimPrefix(l.Target, root))
		switch {
		case ok && len(path) <= 2:
			object := strconv.Itoa(path[0])
			if !seen[path[0]] {
				doc.members = append(doc.members, member{"object", textNode(object)})
			}
			seen[path[0]] = true
			if len(path) == 1 && len(about.members) > 0 {
				doc.put([]string{"object", object}, about)
			}
			if len(path) == 2 {
				doc.members = append(doc.members, member{"instance", textNode(path.String())})
			}
		case l.Target == root && len(about.members) > 0:
			doc.members = append(doc.members, member{"root", about})
		default:
			doc.members = append(doc.members, member{"resource", textNode(l.Target)})
		}
		all = append(all, part{doc: doc})
	}
	return all, nil
}

// readResource reads one value (sections 7.4.1, 7.4.2 and 7.4.4).
func readResource(m Message, at lwm2m.Path) ([]part, error) {
	if len(at) < 3 {
		return nil, fmt.Errorf("%s has more than one value, which needs another format than %d", at, m.ContentFormat)
	}
	v := lwm2m.Value{Path: at}
	var err error
	switch m.ContentFormat {
	case formatText:
		v.Value, v.Unit, err = lwm2m.Parse(strings.TrimSpace(string(m.Payload)), at)
	case formatBytes:
		v.Value, v.Unit, err = lwm2m.Read(m.Payload, at)
		if r, ok := lwm2m.Find(at[0], at[2]); ok && r.Type != lwm2m.Opaque && r.Type != lwm2m.String {
			err = fmt.Errorf("%s is no bytes", at)
		}
	default:
		var doc *node
		if doc, err = parseCBOR(m.Payload, 2); err == nil {
			if doc.kind != valueNode {
				return nil, fmt.Errorf("%s is no value", at)
			}
			v.Value = doc.value
			r, _ := lwm2m.Find(at[0], at[2])
			v.Unit = r.Unit
		}
	}
	if err != nil {
		return nil, err
	}
	return []part{{doc: objectsOf([]lwm2m.Value{v})}}, nil
}

// objectsOf makes a document of values. What a resource beside one says of its
// unit holds for it.
func objectsOf(values []lwm2m.Value) *node {
	told := make(map[string]devices.Unit)
	for _, v := range values {
		if len(v.Path) == 3 && v.Path[0] >= 1000 && v.Path[2] == 5701 && v.Value.Kind() == devices.TextValue {
			told[v.Path[:2].String()] = deviceUnit(string(devices.UnitFromSenML(v.Value.String())))
		}
	}
	doc := &node{kind: objectNode}
	for _, v := range values {
		unit := v.Unit
		if len(v.Path) >= 3 && (v.Path[2] == 5700 || v.Path[2] >= 5601 && v.Path[2] <= 5604) {
			unit = cmp.Or(told[v.Path[:2].String()], unit)
		}
		doc.put(strings.Split(v.Path.String(), "/"), &node{value: v.Value, unit: string(unit)})
	}
	return doc
}

// readObjectPack reads SenML whose names are paths (section 7.4.5): a part a
// time. Units are what the pack says, as it speaks for itself.
func readObjectPack(m Message) ([]part, error) {
	doc, err := parsePack(m)
	if err != nil {
		return nil, fmt.Errorf("not SenML: %w", err)
	}
	for _, item := range doc.items {
		item.rename("vlo", "vs") // a link to an object
	}
	return packParts(doc, m)
}

// readOldJSON reads what version 1.0 called JSON: {"bn":"/3/0/","e":[{"n":"0",
// "sv":"x"}]}.
func readOldJSON(m Message) ([]part, error) {
	in, err := parseJSON(m.Payload, maxLabels)
	if err != nil {
		return nil, err
	}
	list := in.member("e")
	if list == nil || list.kind != listNode {
		return nil, errors.New("not the JSON of LwM2M: it has no list e")
	}
	for i, item := range list.items {
		if item.kind != objectNode {
			return nil, fmt.Errorf("not the JSON of LwM2M: entry %d is no object", i)
		}
		item.rename("sv", "vs")
		item.rename("ov", "vs")
		item.rename("bv", "vb")
	}
	if len(list.items) > 0 {
		for _, name := range []string{"bn", "bt"} {
			if n := in.member(name); n != nil {
				list.items[0].members = append(list.items[0].members, member{name, n})
			}
		}
	}
	return packParts(list, m)
}

// rename renames a member, where there is none of the new name.
func (n *node) rename(from, to string) {
	for i := range n.members {
		if n.members[i].name == from && n.member(to) == nil {
			n.members[i].name = to
		}
	}
}

func packParts(doc *node, m Message) ([]part, error) {
	records, err := resolve(doc)
	if err != nil {
		return nil, fmt.Errorf("not SenML: %w", err)
	}
	type timed struct {
		at     time.Time
		order  int64
		values []lwm2m.Value
	}
	var times []*timed
	byOrder := make(map[int64]*timed)
	if len(records) > maxMembers {
		return nil, fmt.Errorf("more than %d values", maxMembers)
	}
	for _, r := range records {
		at, order := r.when(m.Received)
		t := byOrder[order]
		if t == nil {
			t = &timed{at: at, order: order}
			times = append(times, t)
			byOrder[order] = t
		}
		name := r.base + r.name
		path, ok := lwm2m.ParsePath(name)
		if !ok || len(path) < 3 {
			return nil, fmt.Errorf("not SenML of LwM2M: %.40q is no path of a value", name)
		}
		if r.value.IsValid() {
			t.values = append(t.values, lwm2m.Value{Path: path, Value: r.value, Unit: deviceUnit(string(devices.UnitFromSenML(r.unit)))})
		}
	}
	slices.SortStableFunc(times, func(a, b *timed) int { return cmp.Compare(a.order, b.order) })
	var all []part
	for _, t := range times {
		all = append(all, part{objectsOf(t.values), t.at})
	}
	return all, nil
}
