package profile

import (
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A part is what a message says of one time, or of one thing among several: it
// is a reading of its own.
type part struct {
	doc  *node
	time time.Time // zero where the message tells none that can be believed
}

// partDecoders are those decoders in code whose messages may have several parts,
// by name.
var partDecoders = map[string]func(m Message) ([]part, error){
	"coiot":      readCoIoT,
	"linkformat": readLinks,
	"lwm2m":      readLwM2M,
}

// inParts reads a message that may have several.
func (r *reading) inParts(decode func(m Message) ([]part, error)) (Output, error) {
	parts, err := decode(r.heard.Message)
	if err != nil {
		return Output{}, err
	}
	out := Output{Identity: r.heard.Sender}
	for _, p := range parts {
		w := r.walk(p.doc)
		if w.available != devices.AvailabilityUnknown {
			out.Availability = w.available
		}
		out.Readings = append(out.Readings, w.dated...)
		if len(w.out) > 0 {
			out.Readings = append(out.Readings, devices.Reading{Device: r.at.Device, Time: p.time, Fields: w.out})
		}
	}
	return out, nil
}

// textNode is a text that a decoder read, which is never taken for a number.
func textNode(s string) *node { return &node{value: devices.Text(s)} }
