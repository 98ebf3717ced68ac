package profile

import (
	"slices"
	"testing"
)

// FuzzDecoders gives anything to each decoder in code, past the checksum that
// frames have, and the document to the fields of its profile.
func FuzzDecoders(f *testing.F) {
	library, err := Builtin()
	if err != nil {
		f.Fatal(err)
	}
	var all []*Profile
	for _, id := range library.Names() {
		p := library.Get(id)
		if slices.Contains(p.Transports(), "serial") && slices.ContainsFunc(p.file.Decode, func(r decodeRule) bool { return r.Code != "" || r.Registers != nil }) {
			all = append(all, p)
		}
	}
	for _, s := range allLines(f) {
		which := slices.IndexFunc(all, func(p *Profile) bool { return p.ID() == s.Firmware })
		if which < 0 {
			continue
		}
		m, err := s.Message(received)
		if err != nil {
			f.Fatal(err)
		}
		if body, err := all[which].Framing().Open(m.Payload); err == nil {
			f.Add(uint8(which), m.Topic, body)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, topic string, body []byte) {
		p := all[int(which)%len(all)]
		h := newHeard(Message{Topic: topic, Payload: body, ContentFormat: -1, Received: received})
		r := reading{profile: p, rule: p.file.Decode[0], heard: h, captures: p.given(topic)}
		out, err := r.read()
		if problem := soundOutput(out, err); problem != "" {
			t.Errorf("%s of %q: %s", p.ID(), body, problem)
		}
		if len(out.Identity) > maxText {
			t.Errorf("%s: an identity of %d bytes", p.ID(), len(out.Identity))
		}
	})
}
