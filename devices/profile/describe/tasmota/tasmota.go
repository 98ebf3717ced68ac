// Package tasmota reads what Tasmota announces of itself on
// tasmota/discovery/<MAC>/config and …/sensors (SetOption19 off, the default
// since 9.2): the topics of a board, its words, relays, and units. Source of
// the short names: the firmware's xdrv_12_discovery.ino.
package tasmota

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// config is the part of the message …/config that is of use.
type config struct {
	Name      string    `json:"dn"`
	Friendly  []*string `json:"fn"`
	MAC       string    `json:"mac"`
	Module    string    `json:"md"`
	Offline   string    `json:"ofln"`
	Online    string    `json:"onln"`
	States    []string  `json:"state"` // the words for off, on, toggle, hold
	Firmware  string    `json:"sw"`
	Topic     string    `json:"t"`
	FullTopic string    `json:"ft"`
	Prefixes  []string  `json:"tp"` // cmnd, stat, tele
	Relays    []int     `json:"rl"` // 1 relay, 2 light, 3 shutter
	Light     int       `json:"lt_st"`
	Fan       int       `json:"if"`
	Hostname  string    `json:"hn"`
	IP        string    `json:"ip"`
	Battery   int       `json:"bat"`
	Sleeps    int       `json:"dslp"`
	Version   int       `json:"ver"`
}

// The kinds of relay and of light.
const (
	aRelay   = 1
	aLight   = 2
	aShutter = 3

	lightDims       = 1 // and all above
	lightColor      = 3 // and all above
	lightColorWhite = 4 // and all above
	lightWhite      = 2 // colour temperature
	lightColorAll   = 5 // colour and colour temperature
)

// Describe is the describer.
func Describe(m describe.Message) ([]describe.Device, error) {
	switch {
	case strings.HasSuffix(m.Topic, "/config"):
		return describeConfig(m)
	case strings.HasSuffix(m.Topic, "/sensors"):
		return describeSensors(m)
	}
	return nil, errors.New("neither config nor sensors")
}

func describeConfig(m describe.Message) ([]describe.Device, error) {
	var c config
	if err := json.Unmarshal(m.Payload, &c); err != nil {
		return nil, fmt.Errorf("not a Tasmota config: %w", err)
	}
	switch {
	case c.Version != 1:
		return nil, fmt.Errorf("version %d of Tasmota's discovery is not known", c.Version)
	case c.MAC == "" || c.MAC != m.Captures["mac"]:
		return nil, fmt.Errorf("the MAC address %.20q is not that of the topic", c.MAC)
	case len(c.Prefixes) != 3 || c.Topic == "" || !strings.Contains(c.FullTopic, "%prefix%"):
		return nil, errors.New("no topics in the Tasmota config")
	}
	d := describe.Device{
		Identity: c.MAC, Called: c.called(), Name: c.Name, Maker: "Tasmota", Model: c.Module, Firmware: c.Firmware,
		Availability: []describe.Availability{{
			Topic: c.topic(2, "LWT"),
			Words: map[string]devices.Availability{c.Online: devices.Online, c.Offline: devices.Offline},
		}},
		Facts: []describe.Fact{
			describe.Text("name", c.Name), describe.Text("model", c.Module), describe.Text("firmware", c.Firmware),
			describe.Text("topic", c.Topic), describe.Text("fulltopic", c.FullTopic), describe.Text("hostname", c.Hostname),
			describe.Text("ip", c.IP), describe.Text("lwt_online", c.Online), describe.Text("lwt_offline", c.Offline),
		},
	}
	if c.Sleeps != 0 { // it says Offline whenever it goes to sleep
		d.Availability[0].Words[c.Offline] = devices.Sleeping
	}
	c.relays(&d)
	return []describe.Device{d}, nil
}

// called is the part of the full topic that tells boards apart, as the match
// of the profile finds it.
func (c config) called() string {
	full := c.fill(strings.Trim(c.FullTopic, "/"))
	before, after, _ := strings.Cut(full, "%prefix%")
	if after = strings.Trim(after, "/"); after != "" {
		return after
	}
	return strings.Trim(before, "/")
}

func (c config) fill(s string) string {
	return strings.NewReplacer("%topic%", c.Topic, "%hostname%", c.Hostname, "%id%", c.MAC).Replace(s)
}

// topic is a full topic with one of the three prefixes.
func (c config) topic(prefix int, last string) string {
	full := strings.ReplaceAll(c.fill(c.FullTopic), "%prefix%", c.Prefixes[prefix])
	return strings.Trim(full, "/") + "/" + last
}

// relays tells what can be switched, and the words of the states.
func (c config) relays(d *describe.Device) {
	words := map[string]devices.Value{}
	argument := describe.Argument{Type: "bool", Words: map[string]string{"off": "OFF", "on": "ON", "toggle": "TOGGLE"}}
	if len(c.States) >= 2 {
		words[c.States[0]], words[c.States[1]] = devices.Bool(false), devices.Bool(true)
	}
	count, lights, shutters := 0, 0, 0
	for _, kind := range c.Relays {
		if kind != 0 { // those of shutters count too
			count++
		}
	}
	for i, kind := range c.Relays {
		switch kind {
		case aShutter: // two relays each
			if shutters++; shutters%2 == 1 {
				n := shutters/2 + 1
				position := c.command(fmt.Sprintf("shutter%d_position", n), fmt.Sprintf("ShutterPosition%d", n), percent)
				position.Within = slow
				move := c.command(fmt.Sprintf("shutter%d", n), "Backlog", describe.Argument{Type: "word", Words: map[string]string{
					"open": fmt.Sprintf("ShutterOpen%d", n), "close": fmt.Sprintf("ShutterClose%d", n), "stop": fmt.Sprintf("ShutterStop%d", n),
				}})
				move.Confirm, move.Within = fmt.Sprintf("shutter%d_direction", n), slow
				d.Commands = append(d.Commands, position, move)
			}
		case aRelay, aLight:
			name := "POWER"
			if count > 1 {
				name = fmt.Sprintf("POWER%d", i+1)
			}
			if len(words) > 0 {
				selects := describe.Exact(name)
				if count == 1 {
					selects = "{POWER,POWER1}" // the second with SetOption26
				}
				d.Fields = append(d.Fields, describe.Field{Select: selects, Kind: "state", Words: words})
			}
			power := c.command(strings.ToLower(name), name, argument)
			if i < len(c.Friendly) && c.Friendly[i] != nil {
				power.Title = *c.Friendly[i]
			}
			d.Commands = append(d.Commands, power)
			if kind == aLight {
				lights++
			}
		}
	}
	if lights > 0 && c.Light >= lightDims {
		d.Commands = append(d.Commands, c.command("dimmer", "Dimmer", percent))
	}
	if lights > 0 && c.Light >= lightColor {
		d.Commands = append(d.Commands, c.command("color", "Color", describe.Argument{Type: "text"}), c.command("hsbcolor", "HSBColor", describe.Argument{Type: "text"}), c.command("scheme", "Scheme", between(0, 12)))
	}
	if lights > 0 && c.Light >= lightColorWhite {
		d.Commands = append(d.Commands, c.command("white", "White", percent))
	}
	if lights > 0 && (c.Light == lightWhite || c.Light == lightColorAll) {
		d.Commands = append(d.Commands, c.command("ct", "CT", between(153, 500)))
	}
	if c.Fan != 0 {
		d.Commands = append(d.Commands, c.command("fanspeed", "FanSpeed", between(0, 3)))
	}
}

var percent = between(0, 100)

// slow is how long what moves may take.
const slow = 90 * time.Second

func between(low, high float64) describe.Argument {
	return describe.Argument{Type: "integer", Min: &low, Max: &high}
}

func (c config) command(name, word string, a describe.Argument) describe.Command {
	return describe.Command{Name: name, Topic: c.topic(0, word), Argument: a}
}

// describeSensors takes the units. The values in it are readings like those of
// SENSOR, and the profile reads them.
func describeSensors(m describe.Message) ([]describe.Device, error) {
	var s struct {
		SN map[string]json.RawMessage `json:"sn"`
	}
	if err := json.Unmarshal(m.Payload, &s); err != nil {
		return nil, fmt.Errorf("not Tasmota's sensors: %w", err)
	}
	d := describe.Device{Identity: m.Captures["mac"]}
	for _, u := range []struct {
		member, selects string
		spelled         map[string]devices.Unit
	}{
		{"TempUnit", "{**/Temperature*,**/DewPoint*}", map[string]devices.Unit{"C": "°C", "F": "°F"}},
		{"PressureUnit", "{**/Pressure*,**/SeaPressure*}", nil},
		{"SpeedUnit", "**/Speed/**", nil},
	} {
		var unit string
		if json.Unmarshal(s.SN[u.member], &unit) != nil || unit == "" {
			continue
		}
		f := describe.Field{Select: u.selects, Type: "number", Unit: devices.ParseUnit(unit)}
		if known, ok := u.spelled[unit]; ok {
			f.Unit = known
		}
		d.Fields = append(d.Fields, f)
	}
	return []describe.Device{d}, nil
}
