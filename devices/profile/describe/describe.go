// Package describe is what a firmware that announces itself tells of its
// devices, in terms that package profile understands.
//
// A describer is a [Func]: it reads one announcement and has no memory. The
// session of package profile remembers for all of them, by one rule: what a
// topic announced holds until the same topic announces something else, and an
// empty message on it takes it back. What several topics announce of one device
// is one description: a device is the same where [Device.Identity] is, a field
// or a command where its name is, and of each member that is empty in one
// announcement the value of another counts. So Homie's $unit and $datatype, and
// the many config topics of one Home Assistant device, may come in any order,
// and messages that came before their announcement are read again after it.
//
// A profile names its describer in decode: {when: {leaf: devices}, describe:
// zigbee2mqtt}. To add one, write a package beside describe/tasmota and give it
// a line in the list of devices/profile/describers.go.
package describe

import (
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Message is an announcement. It is never empty: that takes back, and the
// session sees to it.
type Message struct {
	Topic    string
	Captures map[string]string // of the topic, by the profile's match
	Payload  []byte
}

// A Func reads an announcement: what it tells, of each device. What it tells is
// not trusted: a Func is bounded in time and memory by the size of the message,
// and may not panic. An error says in one line what was not understood; it
// leaves what the topic announced before.
type Func func(m Message) ([]Device, error)

// A Device is what one announcement tells of one device.
type Device struct {
	// Identity is the device's own, which stays when it is renamed.
	Identity string
	// Called is the identity that its data messages show, where that is
	// another: the friendly name of Zigbee2MQTT, the topic of a Tasmota.
	Called string

	Name     string // what its owner calls it
	Maker    string
	Model    string
	Firmware string
	Parent   string // identity of the device that it hangs on

	// Fields say how to understand the messages that the profile itself
	// recognises as those of this device. They go before the profile's own.
	Fields []Field
	// Topics are further ones on which the device is heard, whatever profile
	// may know them. A profile of higher priority keeps its own.
	Topics []Topic
	// Availability of the device, by topics that the profile does not know, or
	// by words that are not the profile's own.
	Availability []Availability
	Mode         Mode // of several Availability
	Commands     []Command

	// Concerns tells of which topics the announcement changes the meaning, so
	// that earlier messages on others are not read again; nil: it may be of any.
	Concerns func(topic string) bool

	// Facts are what the announcement itself says, for people: shown as fields
	// of kind identity and by `porchlight profile test`.
	Facts []Fact
}

// A Topic is one on which a device is heard.
type Topic struct {
	Topic  string // exact, no filter
	Fields []Field
}

// A Field is one value of the device's messages.
type Field struct {
	// Select is where it is, as in a profile's fields; [Exact] makes one of
	// names. A bare payload on a [Topic] is the member "value".
	Select string
	// Render, where it is set, makes the value instead.
	Render Render

	Name string // as devices.Field, cleaned by the caller; "": the path
	Unit devices.Unit
	// Unitless: it has no unit, whatever the profile would guess.
	Unitless bool
	Kind     string // as in a profile: measurement, counter, state, event, setting, identity, diagnostic
	Type     string // number, integer, bool, text; "": as it comes
	Words    map[string]devices.Value
	Scale    float64 // 0 is 1
	// Bits is the width of a number whose sign is its highest bit.
	Bits int
	// Invalid are values that mean that there is none.
	Invalid []string
	// Hidden: not a field.
	Hidden bool
}

// A Render makes a value of a message, as a template does. It gets the payload
// and, where that is JSON, what it holds, numbers as json.Number; nil where it
// is none. ok is false where the message has no such value.
type Render func(payload string, document any) (value string, ok bool, err error)

// Availability is one topic that tells whether the device is there.
type Availability struct {
	Topic string // exact; "": the ones that the profile knows
	// Select and Render as in Field; both empty: the whole payload.
	Select string
	Render Render
	Words  map[string]devices.Availability
}

// A Mode says what several topics of availability mean together.
type Mode string

// The modes, as Home Assistant names them.
const (
	Latest Mode = "" // the last that spoke
	All    Mode = "all"
	Any    Mode = "any"
)

// A Command is what the device can be told.
type Command struct {
	Name    string // as a field's; where there is a field of that name, it is what the command sets
	Title   string // for people
	Topic   string // exact
	Payload string // {value} is the argument; "" is {value}
	// Encode, where it is set, makes the payload instead of Payload.
	Encode func(value devices.Value) (string, error)
	Retain bool
	QoS    byte

	Argument Argument
	// Confirm is the name of the field whose report of the value confirms it;
	// "" is Name.
	Confirm string
	Within  time.Duration // for that; 0 is the usual
	Risk    devices.Risk
}

// An Argument is what may be given to a command.
type Argument struct {
	Type  string            // number, integer, bool, word, text, none; "" is none
	Words map[string]string // for bool and word: what people say, and what is sent
	Min   *float64
	Max   *float64
	Step  float64
	Unit  devices.Unit
}

// A Fact is one thing that an announcement says.
type Fact struct {
	Name  string // cleaned by the caller
	Value devices.Value
	Unit  devices.Unit
	Kind  string // "" is identity
}

// Text makes a fact of a text; an empty one is no fact, and the session leaves
// it out.
func Text(name, value string) Fact { return Fact{Name: name, Value: devices.Text(value)} }

// Exact makes a selector of the names of members.
func Exact(names ...string) string {
	escaped := make([]string, len(names))
	for i, name := range names {
		escaped[i] = special.Replace(name)
	}
	return strings.Join(escaped, "/")
}

var special = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `{`, `\{`, `}`, `\}`, `,`, `\,`, `/`, `\/`)
