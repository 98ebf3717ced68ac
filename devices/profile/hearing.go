package profile

import (
	"maps"
	"slices"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Hearing reads what comes over one serial port by a profile, and remembers of
// it what later messages need: what a device taught, whose a message was, which
// readings were told with the same time before. It belongs to one goroutine.
type Hearing struct {
	profile *Profile
	taught  map[string]string // by identity: what the profile's learn told
	last    string            // identity of the message before
	told    map[string]string // time and values, by device and names of fields
}

// maxHeard bounds the devices that are remembered of a port.
const maxHeard = 1000

// NewHearing makes one that has heard nothing.
func (p *Profile) NewHearing() *Hearing {
	return &Hearing{profile: p, taught: make(map[string]string), told: make(map[string]string)}
}

// Decode reads one message as [Profile.Decode] does.
func (h *Hearing) Decode(at Place, m Message) (Output, error) {
	captures := maps.Clone(h.taught)
	maps.Copy(captures, h.profile.given(m.Topic)) // what the house says counts more
	out, err := h.profile.decode(newHeard(m), captures, at, nil)
	if err != nil {
		return out, err
	}
	if h.profile.file.Device.Last {
		if out.Identity == "" {
			out.Identity = h.last
		}
		h.last = out.Identity
	}
	if learn := h.profile.file.Device.Learn; !learn.isZero() && out.look != nil && out.Identity != "" {
		if lesson, ok := learn.fill(out.look); ok && (len(h.taught) < maxHeard || h.taught[out.Identity] != "") {
			h.taught[out.Identity], h.taught["taught"] = lesson, lesson
		}
	}
	out.Readings = slices.DeleteFunc(out.Readings, func(r devices.Reading) bool { return h.repeats(out.Identity, r) })
	return out, nil
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
