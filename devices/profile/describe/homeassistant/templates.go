package homeassistant

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
	"github.com/porchlight-iot/porchlight/devices/profile/jinja"
)

// A path is one place in a message that a template looks at.
var path = regexp.MustCompile(`value_json(?:\.\w+|\[\s*(?:'[^']*'|"[^"]*"|\d+)\s*\])+`)

// renderer makes a value of a message by a template; nil where there is none,
// because the payload is the value then. A template that we do not know how to
// evaluate, but that looks at one place only, is taken for what stands there.
func renderer(source string) (describe.Render, error) {
	if strings.TrimSpace(source) == "" {
		return nil, nil
	}
	t, err := jinja.Compile(source)
	if err != nil {
		places := path.FindAllString(source, -1)
		for _, other := range places {
			if other != places[0] {
				return nil, err
			}
		}
		if len(places) == 0 {
			return nil, err
		}
		if t, err = jinja.Compile("{{ " + places[0] + " }}"); err != nil {
			return nil, err
		}
	}
	return func(payload string, document any) (string, bool, error) {
		vars := jinja.Vars{"value": payload}
		if document != nil {
			vars["value_json"] = document
		}
		value, err := t.Render(vars)
		if errors.Is(err, jinja.ErrUndefined) {
			return "", false, nil
		}
		return value, err == nil && value != "", err
	}, nil
}

// lastMember is the name of what a template looks at: temperature of
// {{ value_json.sensor['temperature'] }}; "" where it is not one place.
func lastMember(template string) string {
	place := path.FindString(template)
	if place == "" || strings.Count(template, "value_json") != strings.Count(template, place) {
		return ""
	}
	members := strings.FieldsFunc(place, func(c rune) bool { return strings.ContainsRune(`.[]'" `, c) })
	last := members[len(members)-1]
	if len(members) > 2 && strings.Trim(last, "0123456789") == "" {
		last = members[len(members)-2] + last // peaks[1] is peaks1
	}
	return last
}

// render makes the value of a part. None, as Home Assistant has it, is no
// value.
func (p part) render(e entity) (describe.Render, error) {
	by, err := renderer(e.text(p.template, ""))
	if err != nil {
		return nil, err
	}
	trigger, triggered := e.text("payload", ""), e.component == "device_automation"
	return func(payload string, document any) (string, bool, error) {
		value, ok := strings.TrimSpace(payload), true
		if by != nil {
			var err error
			if value, ok, err = by(payload, document); !ok {
				return "", false, err
			}
			document = nil
		}
		switch {
		case p.member != "":
			value, ok = p.memberOf(value, document)
		case by == nil && (strings.HasPrefix(value, "{") || strings.HasPrefix(value, "[")):
			return "", false, nil // a whole document is no value
		case triggered && trigger != "" && value != trigger:
			return "", false, nil
		}
		return value, ok && value != "" && value != "None" && value != "null", nil
	}, nil
}

// memberOf looks into a value that may be a JSON object. Where it is none, it
// is the component's own value.
func (p part) memberOf(value string, document any) (string, bool) {
	if document == nil && strings.HasPrefix(value, "{") {
		d := json.NewDecoder(strings.NewReader(value))
		d.UseNumber()
		if d.Decode(&document) != nil {
			return "", false
		}
	}
	object, ok := document.(map[string]any)
	if !ok {
		return value, p.suffix == ""
	}
	if color, ok := object[p.member].(map[string]any); ok {
		return colorOf(color)
	}
	return textOf(object[p.member])
}

// colorOf writes a colour of a light as its numbers.
func colorOf(color map[string]any) (string, bool) {
	for _, space := range [][]string{{"r", "g", "b"}, {"h", "s"}, {"x", "y"}} {
		var all []string
		for _, name := range space {
			if s, ok := textOf(color[name]); ok {
				all = append(all, s)
			}
		}
		if len(all) == len(space) {
			return strings.Join(all, ","), true
		}
	}
	return "", false
}

// encoder makes the payload of a command by the templates that the entity has;
// nil where the argument is the payload.
func (p part) encoder(e entity, c describe.Command) (func(devices.Value) (string, error), error) {
	on := e.text(p.encode, p.wrap)
	off := on
	if e.component == "light" && e.text("schema", "") == "template" && p.suffix == "" {
		off = e.text("command_off_template", "")
	}
	if strings.TrimSpace(on) == "" {
		return nil, nil
	}
	template, err := jinja.Compile(on)
	if err != nil {
		return nil, err
	}
	templateOff, err := jinja.Compile(off)
	if err != nil {
		return nil, err
	}
	vars := jinja.Vars{}
	for _, name := range []string{"position_open", "position_closed", "tilt_min", "tilt_max"} {
		vars[name] = e.number(name, map[string]float64{"position_open": 100, "tilt_max": 100}[name])
	}
	return func(value devices.Value) (string, error) {
		given := make(jinja.Vars, len(vars)+3)
		for name, v := range vars {
			given[name] = v
		}
		t := template
		var sent any = value.String()
		switch c.Argument.Type {
		case "number", "integer":
			sent = json.Number(value.String())
		case "none":
			sent = c.Payload
		}
		given["value"], given["state"] = sent, "on"
		if sent == "off" {
			given["state"], t = "off", templateOff
		}
		if p.variable != "" {
			given[p.variable] = sent
		}
		payload, err := t.Render(given)
		if err != nil {
			return "", fmt.Errorf("cannot encode the command: %w", err)
		}
		return payload, nil
	}, nil
}
