package aboard

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
)

// The bounds of what a device may say of itself.
const (
	maxName     = 80 // characters
	maxIdentity = 100
	maxPlace    = 200
	maxText     = 60 // of a value in the sample
	maxSample   = 24 // fields
)

// A Candidate is a device as one of its messages shows it.
type Candidate struct {
	Transport string `json:"transport"` // mqtt, coap, serial
	Link      string `json:"link"`      // as of a [devices.Stranger]
	// Place is what the config names: the device's topic, the name that it
	// posts under, the path of its port.
	Place   string `json:"place"`
	Peer    string `json:"peer,omitempty"` // who sent it, for people
	Profile string `json:"profile"`
	// Identity is the firmware's own name of the device, Parent that of the one
	// that it hangs on; "" if there is none.
	Identity string `json:"identity,omitempty"`
	Parent   string `json:"parent,omitempty"`
	Name     string `json:"name,omitempty"`
	Model    string `json:"model,omitempty"` // for people

	Sample   []devices.Field `json:"-"`
	Retained bool            `json:"-"` // it may be old: a broker kept it
}

// Of gives the candidate that a stranger is.
func Of(s devices.Stranger) Candidate {
	return Candidate{
		Transport: s.Transport, Link: s.Link, Place: s.Place, Peer: s.Peer, Profile: s.Profile,
		Identity: s.Identity, Parent: s.Parent, Name: s.Name, Model: s.Model, Sample: s.Fields, Retained: s.Retained,
	}
}

// cleaned gives the candidate as it may be shown and written, or false where it
// could not be configured.
func (c Candidate) cleaned() (Candidate, bool) {
	if c.Place == "" || clean(c.Place, maxPlace) != c.Place || strings.ContainsAny(c.Place, "+#") {
		return c, false
	}
	if c.posts() { // to its id
		_, number := strconv.Atoi(c.Place) // which would be taken for another's
		if id, err := devices.ParseID(c.Place); err != nil || number == nil || devices.Reserved(string(id)) {
			return c, false
		}
	}
	if clean(c.Identity, maxIdentity) != c.Identity {
		c.Identity = "" // half of it would be another's
	}
	if clean(c.Parent, maxIdentity) != c.Parent {
		c.Parent = ""
	}
	c.Name, c.Model, c.Peer = clean(c.Name, maxName), clean(c.Model, maxName), clean(c.Peer, maxName)
	var sample []devices.Field
	for _, f := range c.Sample[:min(len(c.Sample), maxSample)] {
		f.Unit = devices.Unit(clean(string(f.Unit), maxText))
		if f.Value.Kind() == devices.TextValue {
			f.Value = devices.Text(clean(f.Value.String(), maxText))
		}
		sample = append(sample, f)
	}
	c.Sample = sample
	return c, true
}

// clean makes one line of what a device said, without what cannot be seen or
// turns the direction of what follows (Unicode's Cf), cut after n characters.
func clean(s string, n int) string {
	var b strings.Builder
	runes := 0
	for _, r := range strings.ToValidUTF8(s, "") {
		if unicode.IsSpace(r) || unicode.IsControl(r) {
			r = ' '
		}
		if unicode.Is(unicode.Cf, r) || r == ' ' && (b.Len() == 0 || strings.HasSuffix(b.String(), " ")) {
			continue
		}
		if runes++; runes > n {
			return strings.TrimRightFunc(b.String(), unicode.IsSpace) + "…"
		}
		b.WriteRune(r)
	}
	return strings.TrimRight(b.String(), " ")
}

// device is the candidate as the config has it.
func (c Candidate) device(id devices.ID, name string) config.Device {
	d := config.Device{ID: id, Name: name, Profile: c.Profile, Identity: c.Identity}
	switch c.Transport {
	case "mqtt":
		d.MQTT = &config.DeviceMQTT{Topic: c.Place, Broker: c.Link}
		if c.Link == anyLink {
			d.MQTT.Broker = ""
		}
	case "coap":
		d.CoAP = &config.DeviceCoAP{URL: c.Link}
	case "serial":
		d.Serial = &config.DeviceSerial{Port: c.Place}
	}
	return d
}

// anyLink is the link of a configured device that is looked for on every
// broker.
const anyLink = "*"

// of gives a configured device as a candidate, so that both have the same
// keys.
func of(d config.Device) Candidate {
	c := Candidate{Profile: d.Profile, Identity: d.Identity, Name: d.Name}
	switch {
	case d.MQTT != nil:
		c.Transport, c.Link, c.Place = "mqtt", cmp.Or(d.MQTT.Broker, anyLink), d.MQTT.Topic
	case d.Serial != nil:
		c.Transport, c.Link, c.Place = "serial", d.Serial.Port, d.Serial.Port
	case d.CoAP != nil:
		c.Transport, c.Link, c.Place = "coap", d.CoAP.URL, string(d.ID)
	}
	return c
}

// posts reports whether it speaks to the gateway by CoAP, under its id.
func (c Candidate) posts() bool { return c.Transport == "coap" && c.Link == "" }

// place is what tells it from all others in the same house.
func (c Candidate) place() string {
	if c.Transport == "serial" { // several may share a port
		return "place " + strings.Join([]string{c.Transport, c.Link, c.Profile, c.Place, c.Identity}, "\x00")
	}
	return "place " + strings.Join([]string{c.Transport, c.Link, c.Profile, c.Place}, "\x00")
}

// certain are the keys by which it is surely the same: its place, and a
// hardware address, which means the same whoever tells it.
func (c Candidate) certain() []string {
	keys := []string{c.place()}
	if address := hardwareAddress(cmp.Or(c.Identity, c.Place)); address != "" {
		keys = append(keys, "address "+address)
	}
	return keys
}

// likely are the keys by which it probably is the same in another place: two
// brokers that pass messages on to each other, or two houses that use one name.
func (c Candidate) likely() []string {
	return append(c.certain()[1:], "name "+c.Profile+"\x00"+cmp.Or(c.Identity, c.Place))
}

// lives reports whether a configured device is found where the candidate is.
func (c Candidate) lives(d config.Device) bool {
	o := of(d)
	return o.Transport == c.Transport && o.Place == c.Place && (o.Link == c.Link || o.Link == anyLink)
}

// separated are addresses with colons, or with hyphens.
var separated = []*regexp.Regexp{
	regexp.MustCompile(`(?i)(?:^|[^0-9a-f:])([0-9a-f]{2}(?::[0-9a-f]{2}){5}(?:(?::[0-9a-f]{2}){2})?)(?:$|[^0-9a-f:])`),
	regexp.MustCompile(`(?i)(?:^|[^0-9a-f-])([0-9a-f]{2}(?:-[0-9a-f]{2}){5}(?:(?:-[0-9a-f]{2}){2})?)(?:$|[^0-9a-f-])`),
}

// hardwareAddress finds an EUI-48 or EUI-64 in a name (RFC 9542 section 2.1):
// 0x00158d00018255df, shellyplus1-a8032ab12345, A8:03:2A:B1:23:45. It is "" where there
// is none, or more than one, or one that everybody has.
func hardwareAddress(name string) string {
	var found string
	use := func(hex string) bool {
		hex = strings.ToLower(hex)
		if strings.Trim(hex, "0") == "" || strings.Trim(hex, "f") == "" || strings.Trim(hex, "0123456789") == "" && len(hex) == 12 {
			return true // as many digits are a serial number, a date, a telephone number
		}
		if found != "" && found != hex {
			return false
		}
		found = hex
		return true
	}
	for _, form := range separated {
		for _, m := range form.FindAllStringSubmatch(name, -1) {
			if !use(strings.NewReplacer(":", "", "-", "").Replace(m[1])) {
				return ""
			}
		}
	}
	for _, word := range strings.FieldsFunc(name, func(r rune) bool { return r < utf8.RuneSelf && !isAlnum(byte(r)) }) {
		hex := strings.TrimPrefix(strings.TrimPrefix(word, "0x"), "0X")
		if len(hex) != 12 && len(hex) != 16 {
			continue
		}
		if _, err := strconv.ParseUint(hex, 16, 64); err == nil && !use(hex) {
			return ""
		}
	}
	return found
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
