// Package profile reads firmware profiles, which say as data what a device is:
// how its messages are recognised and what readings they hold. It is pure: no
// network, no clock, no state between messages.
//
// A message goes through a profile in this order. match finds whose topic it
// is, and names parts of the topic. decode says how to read it: the result is a
// document, a tree of objects, lists and values. fields says what becomes of
// each value: its name, unit, meaning. time says where the reading's own time
// is. The keys of a profile are explained at the fields of the type spec.
package profile

import (
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Place is where one configured device is found, and what a profile cannot
// know by itself.
type Place struct {
	Device devices.ID
	// Topic is the device's name or base topic on the broker, as the profile
	// understands it; empty for CoAP and serial.
	Topic string
	// Location is the zone of times that come without one.
	Location *time.Location
}

// A Message is one unit that a driver cut out of its transport: an MQTT
// publication, a CoAP body, a line.
type Message struct {
	Topic         string // MQTT topic; CoAP path below the device; empty for serial
	Payload       []byte
	ContentFormat int // CoAP (RFC 7252 section 12.3); -1 where there is none
	Received      time.Time
}

// An Output is what a message said.
type Output struct {
	// Identity is the firmware's own name of the device, verbatim: what the
	// message tells, else the part of the topic that is the device's; empty if
	// there is neither.
	Identity string
	// Readings have the Place's device set.
	Readings     []devices.Reading
	Availability devices.Availability
}
