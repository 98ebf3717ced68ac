package devices

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// A Device is what the gateway knows of a device apart from what it says.
type Device struct {
	ID       ID
	Name     string         // what people call it; the ID where they gave none
	Profile  string         // the firmware profile that decodes it
	Groups   []string       // for commands to several devices
	Parent   ID             // the device that it is reached through; "" if there is none
	Location *time.Location // in which its times without a zone are; never nil
	Silence  Silence
}

// Silence is what it means that a device says nothing. The zero Silence has it
// judged by the device's own interval.
type Silence struct {
	Lost   time.Duration // it is lost after so long; 0 is by its interval
	Asleep bool          // it sleeps between its messages
	Usual  bool          // it means nothing: another tells when it is lost
}

// A Reading is what one device said at one time: its fields stand together
// and share the time.
type Reading struct {
	Device ID
	// Time is the device's own time, or zero where it told none or none that
	// can be believed; the gateway's clock then decides.
	Time   time.Time
	Fields []Field
	// Stamp says in the terms of the gateway's clock when the reading came,
	// where Time is the gateway's and more may become known of it. Only the
	// clock reads it.
	Stamp string
}

// A Field is one named value of a reading.
type Field struct {
	Name  string // [a-z0-9_]+, without a unit
	Value Value
	Unit  Unit
	Kind  FieldKind
}

// FieldKind says what a field means to people.
type FieldKind uint8

// The kinds of a field.
const (
	Measurement FieldKind = iota
	Counter               // only rises, but for resets
	Status                // on, open, mode
	Event                 // something that happened; two alike are two
	Setting
	Identity
	Diagnostic // of the device, not of the world: signal, heap, uptime
	Fault      // that something is wrong: true, a number but 0, a text that is no word for well
)

// An Origin identifies the message that a reading came from, so that one
// which is delivered again is recognised. The zero Origin identifies nothing.
type Origin [8]byte

// NewOrigin identifies a message by parts that are the same whenever the
// transport repeats it, and differ between messages: the first 8 bytes of
// SHA-256 over the parts, each with its length before it.
func NewOrigin(parts ...[]byte) Origin {
	h := sha256.New()
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		h.Write(p)
	}
	return Origin(h.Sum(nil)[:8])
}

// A Message is all that one message of a transport said. It is acknowledged
// as a whole, so its readings stand or fall together.
type Message struct {
	Readings []Reading
	Origin   Origin
	// Redelivered is set where the transport itself says that it may have
	// delivered this message before (the MQTT DUP flag, MQTT-3.3.1.1). Only
	// then is Origin compared: two equal messages are two messages.
	Redelivered bool
	// Retained is set where the message was kept by a broker and its age is
	// not known (MQTT-3.3.1.3).
	Retained bool
	// Repeats is set where the source may have said the same a moment ago, in
	// another message. What is the same then is no reading.
	Repeats bool
	// Window is how many messages the source keeps under way unacknowledged;
	// 0 where it does not wait for acknowledgements.
	Window int
}

// A Stranger is a device that is not configured, as one of its messages shows
// it. What it says of itself is not to be trusted.
type Stranger struct {
	Transport string // mqtt, coap or serial
	// Link is the broker's name in the config, "" being the gateway's own; the
	// path of a serial port; by CoAP the URL where it is asked, "" being that it
	// posts or registers.
	Link string
	// Place is what the config would name: its topic or its identity by MQTT,
	// the name that it posts or registers under by CoAP, the path of a serial port.
	Place   string
	Peer    string // who sent it, for people; "" where that is not known
	Profile string // id of the firmware profile that knows it
	// Identity is the firmware's own name of the device, verbatim, Parent that
	// of the one that it hangs on.
	Identity, Parent string
	Name, Model      string  // for people; "" where it told none
	Fields           []Field // a sample; none where the message told only of the device
	Retained         bool    // as of a [Message]
}

// A Record is a reading in its place in the device's log.
type Record struct {
	// Seq counts the readings of one device in one run of the store, from 1.
	Seq uint64
	// Reading has a Time that is never zero, to the microsecond, and differs
	// from the record's before.
	Reading
	// Origin is set while the reading is not yet on disk: the log node then
	// is the only memory of the message it came from.
	Origin Origin
	// Bounds are the earliest and the latest time that it can be, where the
	// time is not certain; the latest is zero where it has no bound.
	Bounds *[2]time.Time
}
