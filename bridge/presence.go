package bridge

import (
	"encoding/xml"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Presence is what people see of a device in their contact lists.
type Presence struct {
	State  devices.State
	Fields []devices.Field
	Since  time.Time // of the last reading; zero where there was none
	Note   string    // shown instead of the fields
}

const (
	// maxStatus bounds the status text, in characters.
	maxStatus = 120

	noteStopped = "gateway stopped"
)

// presenceElement is a presence stanza.
type presenceElement struct {
	XMLName xml.Name `xml:"presence"`
	From    string   `xml:"from,attr,omitempty"`
	To      string   `xml:"to,attr,omitempty"`
	Type    string   `xml:"type,attr,omitempty"`
	Show    string   `xml:"show,omitempty"`
	Status  string   `xml:"status,omitempty"`
	Idle    *idleElement
	Caps    *capsElement
	Photo   *photoHash
}

// idleElement tells the time of the last reading (XEP-0319).
type idleElement struct {
	XMLName xml.Name `xml:"urn:xmpp:idle:1 idle"`
	Since   string   `xml:"since,attr"`
}

// show maps a state to <show/>; false where the device is unavailable.
func show(s devices.State) (string, bool) {
	switch s {
	case devices.StateFresh:
		return "", true
	case devices.StateLate:
		return "away", true
	case devices.StateAsleep:
		return "xa", true
	case devices.StateAlarm:
		return "dnd", true
	}
	return "", false
}

// element makes the stanza without its addresses.
func (p Presence) element() presenceElement {
	e := presenceElement{Status: p.text()}
	var available bool
	if e.Show, available = show(p.State); !available {
		e.Type = "unavailable"
		return e
	}
	if !p.Since.IsZero() {
		e.Idle = &idleElement{Since: timestamp(p.Since)}
	}
	caps := deviceCaps()
	e.Caps = &caps
	return e
}

// text is the reading for people: what was measured first, then counters, then
// states; what the device says of itself never.
func (p Presence) text() string {
	if p.Note != "" {
		return clip(printable(p.Note), maxStatus)
	}
	var text strings.Builder
	length := 0
	for _, kind := range []devices.FieldKind{devices.Measurement, devices.Counter, devices.Status, devices.Event} {
		for _, f := range p.Fields {
			if f.Kind != kind || !f.Value.IsValid() {
				continue
			}
			part := clip(fieldText(f), maxStatus)
			n := len([]rune(part))
			if length > 0 {
				n += len([]rune(" · "))
			}
			if length+n > maxStatus {
				return text.String()
			}
			if length > 0 {
				text.WriteString(" · ")
			}
			text.WriteString(part)
			length += n
		}
	}
	return text.String()
}

// fieldText is a field as people read it. A unit says what a number is, and so
// does on or off of a thing that is only switched; else the name does.
func fieldText(f devices.Field) string {
	value := printable(f.Value.String())
	if f.Value.Kind() == devices.BoolValue {
		value = "off"
		if f.Value.Bool() {
			value = "on"
		}
	}
	if f.Unit != "" {
		return value + " " + printable(string(f.Unit))
	}
	switch f.Name {
	case "on", "power", "output", "relay", "switch", "state":
		return value
	}
	return strings.ReplaceAll(f.Name, "_", " ") + " " + value
}

// printable replaces what could break a line or hide text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' ||
			r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' {
			return ' '
		}
		return r
	}, s)
}
