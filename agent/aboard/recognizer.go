package aboard

import (
	"slices"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// What is recognised at most. A broker gives all that it keeps at once, which
// may be much; after that, who is not heard now is heard later.
const (
	recognizeBurst = 10_000
	recognizeRate  = 1000 // messages a second
)

// A Recognizer finds whose message a stranger's is. It may be used from any
// goroutine.
type Recognizer struct {
	profiles []*profile.Profile

	mu     sync.Mutex
	tokens float64
	filled time.Time
}

// NewRecognizer makes one of the profiles that can tell their devices from
// others.
func NewRecognizer(set *profile.Library) *Recognizer {
	r := &Recognizer{tokens: recognizeBurst}
	for _, id := range set.Names() {
		p := set.Get(id)
		if slices.Contains(p.Transports(), "mqtt") && !takesAll(p) || slices.Contains(p.Transports(), "coap") {
			r.profiles = append(r.profiles, p)
		}
	}
	return r
}

// takesAll reports whether a profile calls any topic its own.
func takesAll(p *profile.Profile) bool {
	for _, topic := range []string{"a", "a/b", "a/b/c", "a/b/c/d"} {
		if p.Matches(profile.Place{Topic: topic}, topic) || p.Matches(profile.Place{Topic: "a"}, topic) {
			return true
		}
	}
	return false
}

// Filters are what to subscribe to on a broker to hear unknown devices: what
// the profiles know, and not everything, because a broker may carry pictures
// and what other programs tell each other.
func (r *Recognizer) Filters() []string {
	var all []string
	for _, p := range r.profiles {
		if !takesAll(p) {
			all = append(all, p.Filters(profile.Place{Topic: "+"})...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Recognize gives the devices that a message tells of.
func (r *Recognizer) Recognize(s devices.Stranger, now time.Time) []Candidate {
	if !r.take(now) {
		return nil
	}
	m := profile.Message{Topic: s.Address, Payload: s.Payload, ContentFormat: s.ContentFormat, Received: now}
	for _, p := range r.profiles {
		if !slices.Contains(p.Transports(), s.Transport) {
			continue
		}
		at := profile.Place{Location: time.Local}
		place := s.Address
		switch s.Transport {
		case "mqtt":
			if place = placeOf(p, s.Address); place == "" || takesAll(p) {
				continue
			}
			at.Topic = place
		default:
			m.Topic = ""
		}
		out, err := p.Decode(at, m)
		if err != nil {
			continue
		}
		c := Candidate{Transport: s.Transport, Link: s.Link, Place: place, Peer: s.Peer, Profile: p.ID(), Model: p.Name(), Identity: out.Identity, Retained: s.Retained}
		for _, reading := range out.Readings {
			c.Sample = append(c.Sample, reading.Fields...)
		}
		return []Candidate{c}
	}
	return nil
}

// placeOf finds the device's topic in one of its messages'.
func placeOf(p *profile.Profile, topic string) string {
	for start := 0; start < len(topic); start++ {
		if start > 0 && topic[start-1] != '/' {
			continue
		}
		for end := start + 1; end <= len(topic); end++ {
			if (end == len(topic) || topic[end] == '/') && p.Matches(profile.Place{Topic: topic[start:end]}, topic) {
				return topic[start:end]
			}
		}
	}
	return ""
}

// take reports whether there is time for one more message.
func (r *Recognizer) take(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.filled.IsZero() {
		r.tokens = min(recognizeBurst, r.tokens+now.Sub(r.filled).Seconds()*recognizeRate)
	}
	r.filled = now
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}
