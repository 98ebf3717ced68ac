// Package profile reads firmware profiles, which say as data what a device is:
// how its messages are recognised, what readings they hold, and how it is told
// what to do. It has no network and no clock, and all that it does is bounded in
// time and memory, whatever a message or a profile holds.
//
// A [Library] is all profiles. A [Profile] reads the messages of one configured
// device: [Profile.Decode]. A [Session] hears a whole broker: each message finds
// its own profile, and what devices announced of themselves is remembered and
// used. What an announcement says is read by describers, see package describe. A
// [Hearing] hears a serial port, whose frames package framing cuts.
//
// A message goes through a profile in this order. match finds whose topic it
// is, and names parts of the topic. decode says how to read it: the result is a
// document, a tree of objects, lists and values. device says who it is. fields
// says what becomes of each value: its name, unit, meaning. time says where the
// reading's own time is. The language is explained in
// firmware-profiles/README.md, its keys at the fields of the type spec.
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
	// Sender is the firmware's own name of the device where it stands beside the
	// message: an option of CoAP, the endpoint that registered. "" where there is
	// none.
	Sender   string
	Received time.Time
	// Retained is set where a broker kept the message and its age is not known
	// (MQTT-3.3.1.3).
	Retained bool
}

// An Output is what a message said of one device.
type Output struct {
	Profile string // id of the profile that read it
	// Identity is the firmware's own name of the device, verbatim: what the
	// message tells, else the part of the topic that is the device's; empty if
	// there is neither.
	Identity string
	// About is what is known of the device apart from its readings.
	About About
	// Readings have the Place's device set.
	Readings     []devices.Reading
	Availability devices.Availability
	// Children are the other devices that the message tells of.
	Children []Output

	// Announced is set where the readings are what an announcement says, which
	// is no measurement.
	Announced bool
	// Unannounced is set where the device has not yet announced what it means,
	// and its profile can ask it to: [Session.Polls] on "unannounced".
	Unannounced bool
	// Repeats is set where the message may say again what another said a moment
	// ago.
	Repeats bool
	// Removed are the identities of devices that the message takes back.
	Removed []string
	// Earlier are messages that came before the announcement that this one is,
	// read again with what it told.
	Earlier []Earlier

	targets []target         // of the profile's commands, in this message
	look    func(ref) string // into this message
}

// Earlier is a message that is understood only now.
type Earlier struct {
	Message Message // without its payload
	Output
}

// About is what a firmware tells of a device.
type About struct {
	// Identity is the one that the device announced, where its messages show
	// another.
	Identity                     string
	Name, Maker, Model, Firmware string
	Parent                       string // identity of the device that it hangs on
}
