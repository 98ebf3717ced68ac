package profile

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// SharedFilters gives the MQTT topic filters on which a profile is told of
// devices without their name in the topic: announcements, and what a radio
// hears. [Profile.Filters] has the others.
func (p *Profile) SharedFilters() []string {
	var all []string
	for _, m := range p.file.Match {
		if !m.Topic.has("device") {
			all = addFilters(all, m.Topic.filters(""))
		}
	}
	return all
}

// Posted reads what an unknown device sent to the gateway itself by CoAP, by
// the profile that says most of it.
func (l *Library) Posted(m Message) (Output, error) {
	var ps []*Profile
	for _, id := range l.names {
		// One that has conditions for all that it reads is for a server that is asked.
		if p := l.profiles[id]; slices.Contains(p.file.Transports, "coap") && len(p.file.Decode[len(p.file.Decode)-1].When) == 0 {
			ps = append(ps, p)
		}
	}
	slices.SortStableFunc(ps, func(a, b *Profile) int {
		return cmp.Or(cmp.Compare(b.Priority(), a.Priority()), cmp.Compare(a.leniency(), b.leniency()))
	})
	structured := strings.HasPrefix(strings.TrimSpace(string(m.Payload[:min(len(m.Payload), 64)])), "{")
	for _, p := range ps {
		if p.leniency() == 1 && m.ContentFormat <= 0 && !structured {
			continue // a bare number is JSON too, and its name is in the path
		}
		if out, err := p.Decode(Place{Location: time.Local}, m); err == nil && len(out.Readings) > 0 {
			return out, nil
		}
	}
	return Output{}, ErrUnknown
}

// ByCode gives the profile that reads messages with a decoder in code, the first
// by its id; nil if none does.
func (l *Library) ByCode(code string) *Profile {
	for _, id := range l.names {
		if p := l.profiles[id]; slices.ContainsFunc(p.file.Decode, func(r decodeRule) bool { return r.Code == code }) {
			return p
		}
	}
	return nil
}

// leniency ranks profiles by how much they take for theirs.
func (p *Profile) leniency() int {
	strictest := 3
	for _, rule := range p.file.Decode {
		switch {
		case rule.SenML != nil:
			strictest = min(strictest, 0)
		case rule.JSON != nil, rule.CBOR != nil:
			strictest = min(strictest, 1)
		case rule.Value == nil:
			strictest = min(strictest, 2)
		}
	}
	return strictest
}

// In says in which zone the times without one are of messages that are heard
// from now on; nil is the system's.
func (s *Session) In(location *time.Location) { s.location = location }
