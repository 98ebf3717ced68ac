package profile

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Hearing reads what comes over one serial port by a profile, and remembers of
// it what later messages need: what a device taught, whose a message was, which
// values were told with the same time before. It answers devices that wait for it.
// It belongs to one goroutine.
type Hearing struct {
	profile  *Profile
	taught   map[string]string // by identity: what the profile's learn told
	news     bool              // there is more in taught than was asked for
	last     string            // identity of the message before
	told     map[string]string // time and values, by device and names of fields
	answerer answerer
}

// maxHeard bounds the devices that are remembered of a port.
const maxHeard = 1000

// An answerer knows what devices of one protocol ask the gateway.
type answerer interface {
	// answer gives what is to be sent, nil where nothing is asked. m was read
	// without fault.
	answer(m Message, location *time.Location) []byte
	// know has a device be known by its identity.
	know(identity string)
	// numbers gives those that devices have.
	numbers() []int
}

// NewHearing makes one that has heard nothing.
func (p *Profile) NewHearing() *Hearing {
	h := &Hearing{profile: p, taught: make(map[string]string), told: make(map[string]string)}
	for _, rule := range p.file.Decode {
		if rule.Code == "mysensors" {
			h.answerer = newMySensorsGateway()
		}
	}
	return h
}

// Know tells the identity of a device that is configured, so that it is given to no
// other.
func (h *Hearing) Know(identity string) {
	if h.answerer != nil {
		h.answerer.know(identity)
	}
}

// Learns reports whether messages teach what later ones need: it is to be kept over
// a restart, for devices teach it once.
func (h *Hearing) Learns() bool { return !h.profile.file.Device.Learn.isZero() }

// Taught gives what was taught, by the devices' identities; nil where it is the same
// as when Taught was called last.
func (h *Hearing) Taught() map[string]string {
	if !h.news {
		return nil
	}
	h.news = false
	return maps.Clone(h.taught)
}

// Remember has what was taught be known again.
func (h *Hearing) Remember(taught map[string]string) {
	for identity, lesson := range taught {
		if len(h.taught) < maxHeard && len(lesson) <= maxText {
			h.taught[identity] = lesson
		}
	}
}

// Numbers gives the numbers that devices have which ask for one, in order; nil, and
// not only empty, where devices do not ask. A number that was given must be known before it is sent.
func (h *Hearing) Numbers() []int {
	if h.answerer == nil {
		return nil
	}
	return h.answerer.numbers()
}

// Decode reads one message as [Profile.Decode] does. answer is what the device
// waits for, nil where it waits for nothing.
func (h *Hearing) Decode(at Place, m Message) (out Output, answer []byte, err error) {
	captures := h.profile.given(m.Topic)
	for identity, lesson := range h.taught {
		if captures[identity] == "" { // what the house says counts more
			captures[identity] = lesson
		}
	}
	heard := newHeard(m)
	if out, err = h.profile.decode(heard, captures, at, nil); err != nil {
		return out, nil, err
	}
	if h.profile.file.Device.Last {
		if out.Identity == "" {
			out.Identity = h.last
		}
		h.last = out.Identity
	}
	if learn := h.profile.file.Device.Learn; !learn.isZero() && out.look != nil && out.Identity != "" {
		if lesson, ok := learn.fill(out.look); ok && (len(h.taught) < maxHeard || h.taught[out.Identity] != "") {
			h.news = h.news || h.taught[out.Identity] != lesson
			h.taught[out.Identity], h.taught["taught"] = lesson, lesson
		}
	}
	out.Readings = slices.DeleteFunc(out.Readings, func(r devices.Reading) bool { return h.repeats(out.Identity, r) })
	if h.answerer != nil {
		answer = h.answerer.answer(m, at.Location)
	}
	return out, answer, nil
}

// repeats reports whether a reading with a time of its own was told before, as that
// of a gas meter is, which a P1 port repeats until there is a new one. A clock that
// stands still hides no values.
func (h *Hearing) repeats(identity string, r devices.Reading) bool {
	if r.Time.IsZero() {
		return false
	}
	key, values := identity, r.Time.String()
	for _, f := range r.Fields {
		key += " " + f.Name
		values += "\x00" + f.Value.String()
	}
	before, known := h.told[key]
	if known || len(h.told) < maxHeard {
		h.told[key] = values
	}
	return known && before == values
}

// A mySensorsGateway answers what nodes ask their controller (serial API 2.3).
type mySensorsGateway struct {
	nodes  map[int]bool
	values map[string]string // by node, child and type
}

func newMySensorsGateway() *mySensorsGateway {
	return &mySensorsGateway{nodes: make(map[int]bool), values: make(map[string]string)}
}

func (g *mySensorsGateway) know(identity string) {
	if n, err := strconv.Atoi(identity); err == nil {
		g.nodes[n] = true
	}
}

func (g *mySensorsGateway) numbers() []int {
	all := make([]int, 0, len(g.nodes))
	for n := range g.nodes {
		if n > 0 && n < 255 {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all
}

func (g *mySensorsGateway) answer(m Message, location *time.Location) []byte {
	q, err := parseMySensors(m.Payload)
	if err != nil {
		return nil
	}
	g.nodes[q.node] = true
	about := fmt.Sprintf("%d;%d;%d", q.node, q.child, q.kind)
	switch {
	case q.command == 1 && len(g.values) < maxHeard*10:
		g.values[about] = q.payload
	case q.command == 2: // the value that was told last
		if v, ok := g.values[about]; ok {
			return fmt.Appendf(nil, "%d;%d;1;0;%d;%s\n", q.node, q.child, q.kind, v)
		}
	case q.command == 3 && q.kind == 1: // the time, in seconds since 1970 as a clock on the wall counts them
		if location == nil {
			location = time.Local
		}
		_, offset := m.Received.In(location).Zone()
		return fmt.Appendf(nil, "%d;%d;3;0;1;%d\n", q.node, q.child, m.Received.Unix()+int64(offset))
	case q.command == 3 && q.kind == 3: // a number for a new node: one that nobody has
		for n := 1; n < 255; n++ {
			if !g.nodes[n] {
				g.nodes[n] = true
				return fmt.Appendf(nil, "%d;%d;3;0;4;%d\n", q.node, q.child, n)
			}
		}
	case q.command == 3 && q.kind == 6:
		return fmt.Appendf(nil, "%d;%d;3;0;6;M\n", q.node, q.child)
	}
	return nil
}
