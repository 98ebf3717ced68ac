package profile

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Sample is a message of a real device, and what is known of it. The samples
// in firmware-profiles/testdata are lines of these.
type Sample struct {
	ID         string  `json:"id"`
	Firmware   string  `json:"firmware"`
	Transport  string  `json:"transport"`
	Topic      string  `json:"topic_or_path"`
	Payload    *string `json:"payload,omitempty"`
	PayloadHex string  `json:"payload_hex,omitempty"`
	Format     *int    `json:"ct,omitempty"` // CoAP content format
	Retained   bool    `json:"retained,omitempty"`
	Kind       string  `json:"kind,omitempty"`     // event, discovery, command
	Checksum   string  `json:"checksum,omitempty"` // ok, bad, none
	Expect     Expect  `json:"expect"`
	Source     string  `json:"source,omitempty"`
	Note       string  `json:"note,omitempty"`
}

// Expect is what must come out of a sample; more may.
type Expect struct {
	Device string          `json:"device"`
	Fields []ExpectedField `json:"fields"`
	Error  string          `json:"error,omitempty"`
}

// An ExpectedField has the name that the firmware gives it.
type ExpectedField struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
	Unit  string `json:"unit"`
}

// Message makes a message of a sample.
func (s Sample) Message(received time.Time) (Message, error) {
	m := Message{Topic: s.Topic, ContentFormat: -1, Received: received, Retained: s.Retained}
	if s.Transport == "coap" {
		var beside, query string
		m.Topic, beside, _ = strings.Cut(strings.TrimPrefix(m.Topic, "/"), " ")
		if strings.Contains(beside, "#") {
			m.Sender = beside // what an option of CoIoT says
		}
		m.Topic, query, _ = strings.Cut(m.Topic, "?")
		if asked, err := url.ParseQuery(query); err == nil && fieldName(asked.Get("ep")) != "" {
			m.Sender = asked.Get("ep") // the endpoint that registers
		}
	}
	if s.Format != nil {
		m.ContentFormat = *s.Format
	}
	if s.Payload != nil {
		m.Payload = []byte(*s.Payload)
		return m, nil
	}
	var err error
	m.Payload, err = hex.DecodeString(strings.ReplaceAll(s.PayloadHex, " ", ""))
	return m, err
}

// Hear lets a session hear the sample. A message of MQTT finds its own profile;
// what was read of a port or of a CoAP server is read by that of its firmware,
// which the config names for these.
func (s Sample) Hear(session *Session, received time.Time) (Output, error) {
	m, err := s.Message(received)
	if err != nil {
		return Output{}, fmt.Errorf("not a sample: %w", err)
	}
	return s.hear(session, m)
}

// hear lets a session hear a message on the sample's way.
func (s Sample) hear(session *Session, m Message) (Output, error) {
	if s.Transport == "mqtt" || s.Transport == "" {
		return session.Hear(m)
	}
	p := session.library.Get(s.Firmware)
	if p == nil {
		return Output{}, fmt.Errorf("there is no profile %q", s.Firmware)
	}
	out, err := p.Decode(Place{Location: session.location}, m)
	out.Profile = p.ID()
	return out, err
}

// Shown is what a message says, as `porchlight profile test` prints it.
type Shown struct {
	ID       string         `json:"id"`
	Profile  string         `json:"profile"`
	Device   string         `json:"device"`
	Readings []ShownReading `json:"readings"`
	Error    string         `json:"error"`
}

// ShownReading is one reading. Device is set where it is not that of the line.
type ShownReading struct {
	Device string       `json:"device,omitempty"`
	Time   *time.Time   `json:"time"`
	Fields []ShownField `json:"fields"`
}

// ShownField is one field.
type ShownField struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
	Unit  string `json:"unit"`
	Kind  string `json:"kind"`
}

// Show makes what people and scripts see of an output: availability is the
// field online, and the devices of one message stand together.
func Show(id string, out Output, err error) Shown {
	s := Shown{ID: id, Profile: out.Profile, Device: out.Identity, Readings: []ShownReading{}}
	if err != nil {
		s.Error = err.Error()
		return s
	}
	if len(out.Readings) == 0 && out.Availability == devices.AvailabilityUnknown && len(out.Children) > 0 {
		s.Device = out.Children[0].Identity // the message is of what hangs on it
	}
	s.add(out)
	return s
}

func (s *Shown) add(out Output) {
	device := ""
	if out.Identity != s.Device {
		device = out.Identity
	}
	online, told := map[devices.Availability]bool{devices.Online: true, devices.Sleeping: true, devices.Offline: false}[out.Availability]
	readings := out.Readings
	if told && len(readings) == 0 {
		readings = []devices.Reading{{}}
	}
	for i, r := range readings {
		shown := ShownReading{Device: device}
		if !r.Time.IsZero() {
			utc := r.Time.UTC()
			shown.Time = &utc
		}
		if told && i == 0 {
			shown.Fields = append(shown.Fields, ShownField{"online", online, "", "state"})
		}
		for _, f := range r.Fields {
			shown.Fields = append(shown.Fields, ShownField{f.Name, valueOfJSON(f.Value), string(f.Unit), kindWord(f.Kind)})
		}
		s.Readings = append(s.Readings, shown)
	}
	for _, child := range out.Children {
		s.add(child)
	}
}

func valueOfJSON(v devices.Value) any {
	switch v.Kind() {
	case devices.NumberValue:
		return json.Number(v.String())
	case devices.BoolValue:
		return v.Bool()
	}
	if items := v.Items(); items != nil {
		return items
	}
	return v.String()
}

func kindWord(k devices.FieldKind) string {
	for _, word := range sortedKeys(kinds) {
		if kinds[word] == k {
			return word
		}
	}
	return ""
}

// Check compares what came out with what must, and says in a line what is
// missing; "" if nothing is.
func (s Shown) Check(profile string, want Expect) string {
	if want.Error != "" {
		if s.Error == "" {
			return fmt.Sprintf("taken, but must be refused: %s", want.Error)
		}
		return ""
	}
	switch {
	case s.Error != "":
		return s.Error
	case profile != "" && s.Profile != profile:
		return fmt.Sprintf("taken by the profile %q, not %q", s.Profile, profile)
	case s.Device != want.Device:
		return fmt.Sprintf("device %q, not %q", s.Device, want.Device)
	}
	var missing []string
	for _, w := range want.Fields {
		if problem := s.lacks(w); problem != "" {
			missing = append(missing, problem)
		}
	}
	return strings.Join(missing, "; ")
}

func (s Shown) lacks(w ExpectedField) string {
	name := fieldName(w.Name)
	other := ""
	for _, r := range s.Readings {
		for _, f := range r.Fields {
			switch {
			case f.Name != name:
			case sameValue(f.Value, w.Value) && f.Unit == string(devices.ParseUnit(w.Unit)):
				return ""
			case other == "":
				other = fmt.Sprintf("%s is %v %s, not %v %s", name, f.Value, f.Unit, w.Value, w.Unit)
			}
		}
	}
	if other != "" {
		return other
	}
	return fmt.Sprintf("no %s (%v %s)", name, w.Value, w.Unit)
}

func sameValue(got, want any) bool {
	switch w := want.(type) {
	case float64:
		n, ok := got.(json.Number)
		if !ok {
			return false
		}
		f, err := n.Float64()
		return err == nil && math.Abs(f-w) <= 1e-6
	case []any:
		var items []string
		for _, item := range w {
			items = append(items, fmt.Sprint(item))
		}
		list, _ := got.([]string)
		return slices.Equal(list, items)
	}
	return got == want
}

// runTest runs one of the profile's own tests: what is wrong, "" if nothing.
func (p *Profile) runTest(t testRule) string {
	s := p.sampleOf(t)
	m, err := s.Message(testTime)
	if err != nil {
		return "hex: " + err.Error()
	}
	l := &Library{profiles: map[string]*Profile{p.ID(): p}, aliases: make(map[string]string)}
	l.index()
	out, err := s.hear(l.NewSession(time.UTC), m)
	if err != nil || t.Error != "" {
		if err == nil || t.Error == "" || !strings.Contains(err.Error(), t.Error) {
			return fmt.Sprintf("the error is %v, not %q", err, t.Error)
		}
		return ""
	}
	shown := Show("", out, nil)
	if t.Device != "" && shown.Device != t.Device {
		return fmt.Sprintf("the device is %q, not %q", shown.Device, t.Device)
	}
	got := make(map[string]string)
	for _, r := range shown.Readings {
		for _, f := range r.Fields {
			got[f.Name] = strings.TrimSpace(fmt.Sprint(f.Value) + " " + f.Unit)
		}
	}
	var wrong []string
	for _, name := range sortedKeys(t.Fields) {
		if v, ok := got[name]; !ok || v != t.Fields[name] {
			wrong = append(wrong, fmt.Sprintf("%s is %q, not %q", name, v, t.Fields[name]))
		}
	}
	return strings.Join(wrong, "; ")
}

// sampleOf makes a sample of a test. A profile that takes no message by itself
// is told that it is for this one.
func (p *Profile) sampleOf(t testRule) Sample {
	s := Sample{Firmware: p.ID(), Transport: "mqtt", Topic: t.Topic, PayloadHex: t.Hex}
	if t.Hex == "" {
		s.Payload = &t.Payload
	}
	if len(p.file.Match) == 0 || p.Priority() == 0 {
		s.Transport = p.file.Transports[len(p.file.Transports)-1]
	}
	return s
}

// testTime is when the messages of tests are taken to come.
var testTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
