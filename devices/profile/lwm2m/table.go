// Package lwm2m knows the objects of LwM2M (OMA LwM2M 1.1), and reads and writes
// their values in the encoding TLV (OMA-TS-LightweightM2M_Core-V1_1 section
// 7.4.3), which has no types: they are those of the table.
package lwm2m

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/porchlight-iot/porchlight/devices"
)

// objects.txt has the objects that people use: those of the core, and the
// sensors and switches of IPSO. The facts are those of the registry
// (github.com/OpenMobileAlliance/lwm2m-registry b62ffc2), with the units that
// it had in earlier versions, or names as the usual ones. A line is
//
//	3303 temperature * Cel
//
// an object: its number, its name, "*" where it can have several instances, the
// unit of what it measures; or, below it,
//
//	5700 Rf sensor_value
//
// a resource: its number, the operations R, W and E, its type, "*" where it can
// have several instances, its name, its unit.
//
//go:embed objects.txt
var objects string

// A Type is that of a resource's value.
type Type byte

// The types (section 7.4, data types in appendix C).
const (
	String   Type = 's'
	Integer  Type = 'i'
	Unsigned Type = 'u'
	Float    Type = 'f'
	Boolean  Type = 'b'
	Opaque   Type = 'o'
	Time     Type = 't'
	Link     Type = 'l' // to an object's instance
	NoType   Type = '-' // what can only be executed
)

// An Object is what the registry says of one.
type Object struct {
	ID       int
	Name     string
	Multiple bool
	unit     devices.Unit
	of       map[int]Resource
	order    []int
}

// A Resource is what the registry says of one.
type Resource struct {
	Name                      string
	Type                      Type
	Read, Write, Run, Several bool
	Unit                      devices.Unit
}

type table struct {
	objects map[int]Object
	// shared has the resources that mean the same wherever they are: those from
	// 5500 on (registry, "reusable resources").
	shared map[int]Resource
}

var known = sync.OnceValue(func() table {
	t := table{make(map[int]Object), make(map[int]Resource)}
	var o *Object
	for line := range strings.Lines(objects) {
		words := strings.Fields(line)
		id, err := strconv.Atoi(words[0])
		if err != nil {
			panic("lwm2m: a wrong line in the table: " + line)
		}
		if line[0] != ' ' {
			o = &Object{ID: id, Name: words[1], Multiple: words[2] == "*", of: make(map[int]Resource)}
			if len(words) > 3 {
				o.unit = devices.UnitFromSenML(words[3])
			}
			t.objects[id] = *o
			continue
		}
		r := Resource{Name: words[2]}
		what := strings.TrimSuffix(words[1], "*")
		r.Several = what != words[1]
		r.Type = Type(what[len(what)-1])
		r.Read, r.Write, r.Run = strings.Contains(what, "R"), strings.Contains(what, "W"), strings.Contains(what, "E")
		switch {
		case len(words) > 3:
			r.Unit = devices.ParseUnit(string(devices.UnitFromSenML(words[3])))
		case r.Type == Float && (id == 5700 || id >= 5601 && id <= 5604):
			r.Unit = o.unit
		case r.Type == Time:
			r.Unit = "s"
		}
		o.of[id], o.order = r, append(o.order, id)
		t.objects[o.ID] = *o
		if _, ok := t.shared[id]; !ok && id >= 5500 {
			t.shared[id] = r
		}
	}
	return t
})

// Find gives what is known of a resource. One of an object that is not in the
// table may yet be one that has its meaning in all of them.
func Find(object, resource int) (Resource, bool) {
	t := known()
	if r, ok := t.objects[object].of[resource]; ok {
		return r, true
	}
	r, ok := t.shared[resource]
	return r, ok && object >= 1000
}

// Resources gives the numbers of an object's resources, in order; none where
// the object is not known.
func Resources(object int) []int { return known().objects[object].order }

// A Path is that of an object, an instance of it, a resource, or an instance of
// that: one to four numbers.
type Path []int

// ParsePath reads /3303/0/5700.
func ParsePath(s string) (Path, bool) {
	s = strings.Trim(s, "/")
	if s == "" {
		return nil, false
	}
	words := strings.Split(s, "/")
	if len(words) > 4 {
		return nil, false
	}
	var p Path
	for _, w := range words {
		n, err := strconv.ParseUint(w, 10, 16)
		if err != nil {
			return nil, false
		}
		p = append(p, int(n))
	}
	return p, true
}

// String gives 3303/0/5700.
func (p Path) String() string {
	var words []string
	for _, n := range p {
		words = append(words, strconv.Itoa(n))
	}
	return strings.Join(words, "/")
}

// in appends numbers to a copy.
func (p Path) in(ids ...int) Path { return append(p[:len(p):len(p)], ids...) }

// main are the resources that are what their object is about.
var main = []int{5700, 5500, 5550, 5600, 5650, 5850, 5900, 5902, 5800, 5536, 5548, 5547}

// Name gives what a path is for people: temperature of 3303/0/5700,
// temperature_1 of the next instance, temperature_max_measured_value of its
// 5602, battery_level of 3/0/9, which is of the device itself. It is "" where the path is of no value that the
// table knows.
func Name(p Path) string {
	if len(p) < 3 {
		return ""
	}
	r, ok := Find(p[0], p[2])
	if !ok {
		return ""
	}
	o, named := known().objects[p[0]]
	name := r.Name
	if p[0] != deviceObject {
		object := fmt.Sprintf("object_%d", p[0])
		if named {
			object = o.Name
		}
		name = object + "_" + r.Name
		if o.about() == p[2] {
			name = object
		}
	}
	if p[1] > 0 {
		name += "_" + strconv.Itoa(p[1])
	}
	if len(p) == 4 {
		name += "_" + strconv.Itoa(p[3])
	}
	return name
}

// deviceObject is the one that tells of the device itself.
const deviceObject = 3

// about is the resource that an object is about, -1 if none is.
func (o Object) about() int {
	for _, id := range main {
		if r, ok := o.of[id]; ok && !r.Run {
			return id
		}
	}
	return -1
}
