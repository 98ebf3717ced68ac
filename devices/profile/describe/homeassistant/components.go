package homeassistant

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// A part is one value of a component, or one thing to command, or both.
// topic, template, command and encode are the names of the options that have
// them.
type part struct {
	suffix          string // of the name; "" is the component itself
	topic, template string
	states          []word
	command, encode string
	sends           []word
	choices         string // option with the words that can be sent
	usual           []string
	min, max, step  bound
	typ             string // of the argument and the value: number, integer, bool, word, text, none
	kind            string // "": a state, or what Home Assistant's classes say
	unit            string
	variable        string // a further name of the value in the command's template
	member          string // the rendered value is JSON, and this is its member
	wrap            string // template of the payload, where there is no option for one
}

// A word is what people say and what the device does: the value of an option,
// or a default. A word without a default is there only with its option.
type word struct{ say, option, usual string }

// A bound is an option with a number, or a default.
type bound struct {
	option string
	usual  float64
}

var (
	onOff = []word{{"on", "payload_on", "ON"}, {"off", "payload_off", "OFF"}}

	fanParts = []part{
		{topic: "state_topic", template: "state_value_template", states: onOff, command: "command_topic", encode: "command_template", sends: onOff, typ: "bool"},
		{suffix: "percentage", topic: "percentage_state_topic", template: "percentage_value_template", command: "percentage_command_topic", encode: "percentage_command_template",
			typ: "number", min: bound{"", 0}, max: bound{"speed_range_max", 100}},
		{suffix: "preset_mode", topic: "preset_mode_state_topic", template: "preset_mode_value_template", command: "preset_mode_command_topic", encode: "preset_mode_command_template", choices: "preset_modes", typ: "word"},
		{suffix: "oscillation", topic: "oscillation_state_topic", template: "oscillation_value_template", command: "oscillation_command_topic", encode: "oscillation_command_template",
			states: oscillation, sends: oscillation, typ: "bool"},
		{suffix: "direction", topic: "direction_state_topic", template: "direction_value_template", command: "direction_command_topic", encode: "direction_command_template",
			states: direction, sends: direction, typ: "word"},
		{suffix: "speed", topic: "speed_state_topic", template: "speed_value_template", command: "speed_command_topic", choices: "speeds", typ: "word"}, // until 2021.4
	}
	oscillation = []word{{"on", "payload_oscillation_on", "oscillate_on"}, {"off", "payload_oscillation_off", "oscillate_off"}}
	direction   = []word{{"forward", "payload_direction_forward", "forward"}, {"reverse", "payload_direction_reverse", "reverse"}}

	heatingParts = []part{
		{suffix: "mode", topic: "mode_state_topic", template: "mode_state_template", command: "mode_command_topic", encode: "mode_command_template", choices: "modes",
			usual: []string{"auto", "off", "cool", "heat", "dry", "fan_only"}, typ: "word"},
		{suffix: "target_temperature", topic: "temperature_state_topic", template: "temperature_state_template", command: "temperature_command_topic", encode: "temperature_command_template",
			typ: "number", min: bound{"min_temp", 7}, max: bound{"max_temp", 35}, step: bound{"temp_step", 0}, unit: "°C", kind: "setting"},
		{suffix: "current_temperature", topic: "current_temperature_topic", template: "current_temperature_template", typ: "number", unit: "°C", kind: "measurement"},
		{suffix: "power", topic: "power_state_topic", template: "power_state_template", states: onOff, command: "power_command_topic", encode: "power_command_template", sends: onOff, typ: "bool"},
	}
	climateParts = append(slices.Clone(heatingParts), []part{
		{suffix: "target_temperature_high", topic: "temperature_high_state_topic", template: "temperature_high_state_template", command: "temperature_high_command_topic", encode: "temperature_high_command_template",
			typ: "number", min: bound{"min_temp", 7}, max: bound{"max_temp", 35}, step: bound{"temp_step", 0}, unit: "°C", kind: "setting"},
		{suffix: "target_temperature_low", topic: "temperature_low_state_topic", template: "temperature_low_state_template", command: "temperature_low_command_topic", encode: "temperature_low_command_template",
			typ: "number", min: bound{"min_temp", 7}, max: bound{"max_temp", 35}, step: bound{"temp_step", 0}, unit: "°C", kind: "setting"},
		{suffix: "action", topic: "action_topic", template: "action_template", typ: "text"},
		{suffix: "fan_mode", topic: "fan_mode_state_topic", template: "fan_mode_state_template", command: "fan_mode_command_topic", encode: "fan_mode_command_template", choices: "fan_modes",
			usual: []string{"auto", "low", "medium", "high"}, typ: "word"},
		{suffix: "swing_mode", topic: "swing_mode_state_topic", template: "swing_mode_state_template", command: "swing_mode_command_topic", encode: "swing_mode_command_template", choices: "swing_modes",
			usual: []string{"on", "off"}, typ: "word"},
		{suffix: "swing_horizontal_mode", topic: "swing_horizontal_mode_state_topic", template: "swing_horizontal_mode_state_template", command: "swing_horizontal_mode_command_topic",
			encode: "swing_horizontal_mode_command_template", choices: "swing_horizontal_modes", usual: []string{"on", "off"}, typ: "word"},
		{suffix: "preset", topic: "preset_mode_state_topic", template: "preset_mode_value_template", command: "preset_mode_command_topic", encode: "preset_mode_command_template", choices: "preset_modes", typ: "word"},
		{suffix: "aux", topic: "aux_state_topic", template: "aux_state_template", states: onOff, command: "aux_command_topic", sends: onOff, typ: "bool"},
		{suffix: "current_humidity", topic: "current_humidity_topic", template: "current_humidity_template", typ: "number", unit: "%", kind: "measurement"},
		{suffix: "target_humidity", topic: "target_humidity_state_topic", template: "target_humidity_state_template", command: "target_humidity_command_topic", encode: "target_humidity_command_template",
			typ: "number", min: bound{"min_humidity", 30}, max: bound{"max_humidity", 99}, unit: "%", kind: "setting"},
	}...)
)

// components are the parts of each.
var components = map[string][]part{
	"alarm_control_panel": {{topic: "state_topic", template: "value_template", command: "command_topic", typ: "word", variable: "action", sends: []word{
		{"disarm", "payload_disarm", "DISARM"}, {"arm_home", "payload_arm_home", "ARM_HOME"}, {"arm_away", "payload_arm_away", "ARM_AWAY"}, {"arm_night", "payload_arm_night", "ARM_NIGHT"},
		{"arm_vacation", "payload_arm_vacation", "ARM_VACATION"}, {"arm_custom_bypass", "payload_arm_custom_bypass", "ARM_CUSTOM_BYPASS"}, {"trigger", "payload_trigger", "TRIGGER"}}, encode: "command_template"}},
	"binary_sensor": {{topic: "state_topic", template: "value_template", states: onOff, typ: "bool"}},
	"button":        {{command: "command_topic", encode: "command_template", sends: []word{{"", "payload_press", "PRESS"}}, typ: "none"}},
	"camera":        {},
	"climate":       climateParts,
	"cover": {
		{topic: "state_topic", template: "value_template", typ: "word", states: []word{{"open", "state_open", "open"}, {"opening", "state_opening", "opening"}, {"closed", "state_closed", "closed"},
			{"closing", "state_closing", "closing"}, {"stopped", "state_stopped", "stopped"}}, command: "command_topic", sends: openClose},
		{suffix: "position", topic: "position_topic", template: "position_template", command: "set_position_topic", encode: "set_position_template", variable: "position",
			typ: "number", min: bound{"position_closed", 0}, max: bound{"position_open", 100}},
		{suffix: "tilt", topic: "tilt_status_topic", template: "tilt_status_template", command: "tilt_command_topic", encode: "tilt_command_template", variable: "tilt_position",
			typ: "number", min: bound{"tilt_min", 0}, max: bound{"tilt_max", 100}},
	},
	"date":              text("state_topic"),
	"datetime":          text("state_topic"),
	"device_automation": {{topic: "topic", template: "value_template", kind: "event", typ: "text"}},
	"device_tracker":    {{topic: "state_topic", template: "value_template", typ: "text", states: []word{{"home", "payload_home", "home"}, {"not_home", "payload_not_home", "not_home"}}}},
	"event":             {{topic: "state_topic", template: "value_template", kind: "event", member: "event_type", typ: "text"}},
	"fan":               fanParts,
	"humidifier": {
		{topic: "state_topic", template: "state_value_template", states: onOff, command: "command_topic", encode: "command_template", sends: onOff, typ: "bool"},
		{suffix: "target_humidity", topic: "target_humidity_state_topic", template: "target_humidity_state_template", command: "target_humidity_command_topic", encode: "target_humidity_command_template",
			typ: "number", min: bound{"min_humidity", 0}, max: bound{"max_humidity", 100}, unit: "%", kind: "setting"},
		{suffix: "current_humidity", topic: "current_humidity_topic", template: "current_humidity_template", typ: "number", unit: "%", kind: "measurement"},
		{suffix: "mode", topic: "mode_state_topic", template: "mode_state_template", command: "mode_command_topic", encode: "mode_command_template", choices: "modes", typ: "word"},
		{suffix: "action", topic: "action_topic", template: "action_template", typ: "text"},
	},
	"image": {{suffix: "url", topic: "url_topic", template: "url_template", typ: "text"}},
	"lawn_mower": {
		{topic: "activity_state_topic", template: "activity_value_template", typ: "text"},
		{suffix: "start", command: "start_mowing_command_topic", encode: "start_mowing_command_template", sends: []word{{"", "", "start_mowing"}}, typ: "none"},
		{suffix: "pause", command: "pause_command_topic", encode: "pause_command_template", sends: []word{{"", "", "pause"}}, typ: "none"},
		{suffix: "dock", command: "dock_command_topic", encode: "dock_command_template", sends: []word{{"", "", "dock"}}, typ: "none"},
	},
	"light": nil, // see lightParts
	"lock": {{topic: "state_topic", template: "value_template", typ: "word",
		states: []word{{"locked", "state_locked", "LOCKED"}, {"unlocked", "state_unlocked", "UNLOCKED"}, {"locking", "state_locking", "LOCKING"}, {"unlocking", "state_unlocking", "UNLOCKING"},
			{"jammed", "state_jammed", "JAMMED"}, {"open", "state_open", "OPEN"}, {"opening", "state_opening", "OPENING"}},
		command: "command_topic", encode: "command_template", sends: []word{{"lock", "payload_lock", "LOCK"}, {"unlock", "payload_unlock", "UNLOCK"}, {"open", "payload_open", ""}}}},
	"notify": {{command: "command_topic", encode: "command_template", typ: "text"}},
	"number": {{topic: "state_topic", template: "value_template", command: "command_topic", encode: "command_template", typ: "number",
		min: bound{"min", 1}, max: bound{"max", 100}, step: bound{"step", 1}, kind: "setting"}},
	"scene":  {{command: "command_topic", sends: []word{{"", "payload_on", "ON"}}, typ: "none"}},
	"select": {{topic: "state_topic", template: "value_template", command: "command_topic", encode: "command_template", choices: "options", typ: "word", kind: "setting"}},
	"sensor": {{topic: "state_topic", template: "value_template"}},
	"siren": {{topic: "state_topic", template: "state_value_template", command: "command_topic", encode: "command_template", wrap: `{"state": {{ value | tojson }}}`,
		states: []word{{"on", "state_on", ""}, {"on", "payload_on", "ON"}, {"off", "state_off", ""}, {"off", "payload_off", "OFF"}}, sends: onOff, typ: "bool"}},
	"switch": {{topic: "state_topic", template: "value_template", command: "command_topic", encode: "command_template",
		states: []word{{"on", "payload_on", "ON"}, {"off", "payload_off", "OFF"}, {"on", "state_on", ""}, {"off", "state_off", ""}}, sends: onOff, typ: "bool"}},
	"tag":  {{topic: "topic", template: "value_template", kind: "event", typ: "text"}},
	"text": text("state_topic"),
	"time": text("state_topic"),
	"update": {
		{topic: "state_topic", template: "value_template", member: "installed_version", typ: "text", kind: "diagnostic", command: "command_topic", sends: []word{{"", "payload_install", ""}}},
		{suffix: "latest_version", topic: "latest_version_topic", template: "latest_version_template", typ: "text", kind: "diagnostic"},
	},
	"vacuum": {
		{topic: "state_topic", template: "value_template", member: "state", typ: "word", command: "command_topic", sends: []word{
			{"start", "payload_start", "start"}, {"pause", "payload_pause", "pause"}, {"stop", "payload_stop", "stop"}, {"return_to_base", "payload_return_to_base", "return_to_base"},
			{"clean_spot", "payload_clean_spot", "clean_spot"}, {"locate", "payload_locate", "locate"}}},
		{suffix: "fan_speed", topic: "state_topic", template: "value_template", member: "fan_speed", command: "set_fan_speed_topic", choices: "fan_speed_list", typ: "word"},
		{suffix: "battery_level", topic: "state_topic", template: "value_template", member: "battery_level", typ: "number", unit: "%", kind: "diagnostic"},
	},
	"valve": {{topic: "state_topic", template: "value_template", command: "command_topic", encode: "command_template", typ: "word", sends: openClose,
		states: []word{{"open", "state_open", "open"}, {"opening", "state_opening", "opening"}, {"closed", "state_closed", "closed"}, {"closing", "state_closing", "closing"}}}},
	"water_heater": heatingParts,
}

var openClose = []word{{"open", "payload_open", "OPEN"}, {"close", "payload_close", "CLOSE"}, {"stop", "payload_stop", "STOP"}}

func text(topic string) []part {
	return []part{{topic: topic, template: "value_template", command: "command_topic", encode: "command_template", typ: "text", kind: "setting"}}
}

// lightParts are those of a light, which come in three forms.
func lightParts(schema string) []part {
	switch schema {
	case "json":
		return []part{
			{topic: "state_topic", member: "state", states: []word{{"on", "", "ON"}, {"off", "", "OFF"}}, command: "command_topic", sends: []word{{"on", "", "ON"}, {"off", "", "OFF"}},
				wrap: `{"state": {{ value | tojson }}}`, typ: "bool"},
			jsonLight("brightness", "integer", bound{"", 0}, bound{"brightness_scale", 255}),
			jsonLight("color_temp", "integer", bound{"min_mireds", 153}, bound{"max_mireds", 500}),
			{suffix: "effect", topic: "state_topic", member: "effect", command: "command_topic", choices: "effect_list", typ: "word", wrap: `{"state": "ON", "effect": {{ value | tojson }}}`},
			{suffix: "color_mode", topic: "state_topic", member: "color_mode", typ: "text"},
			{suffix: "color", topic: "state_topic", member: "color", typ: "text"},
		}
	case "template":
		templated := func(name, option string) part {
			return part{suffix: name, topic: "state_topic", template: option, command: "command_topic", encode: "command_on_template", variable: name, typ: "integer", min: bound{"", 0}, max: bound{"", 255}}
		}
		temperature := templated("color_temp", "color_temp_template")
		temperature.min, temperature.max = bound{"min_mireds", 153}, bound{"max_mireds", 500}
		return []part{
			{topic: "state_topic", template: "state_template", states: []word{{"on", "", "on"}, {"off", "", "off"}}, command: "command_topic", typ: "bool", sends: []word{{"on", "", "on"}, {"off", "", "off"}}},
			templated("brightness", "brightness_template"), temperature,
			templated("red", "red_template"), templated("green", "green_template"), templated("blue", "blue_template"),
			{suffix: "effect", topic: "state_topic", template: "effect_template", command: "command_topic", encode: "command_on_template", variable: "effect", choices: "effect_list", typ: "word"},
		}
	}
	basic := func(name string, p part) part {
		p.suffix, p.topic, p.template = name, name+"_state_topic", name+"_value_template"
		p.command, p.encode = name+"_command_topic", name+"_command_template"
		return p
	}
	return []part{
		{topic: "state_topic", template: "state_value_template", states: onOff, command: "command_topic", encode: "command_template", sends: onOff, typ: "bool"},
		basic("brightness", part{typ: "integer", min: bound{"", 0}, max: bound{"brightness_scale", 255}}),
		basic("color_temp", part{typ: "integer", min: bound{"min_mireds", 153}, max: bound{"max_mireds", 500}}),
		basic("effect", part{typ: "word", choices: "effect_list"}),
		basic("color_mode", part{typ: "text"}),
		basic("rgb", part{typ: "text"}), basic("rgbw", part{typ: "text"}), basic("rgbww", part{typ: "text"}),
		basic("hs", part{typ: "text"}), basic("xy", part{typ: "text"}),
		basic("white", part{typ: "integer", min: bound{"", 0}, max: bound{"white_scale", 255}}),
	}
}

func jsonLight(name, typ string, low, high bound) part {
	return part{suffix: name, topic: "state_topic", member: name, command: "command_topic", typ: typ, min: low, max: high, wrap: `{"state": "ON", "` + name + `": {{ value }}}`}
}

// resolve settles what depends on other options of the entity.
func (p part) resolve(e entity) part {
	switch e.component {
	case "light":
		p = p.resolveLight(e)
	case "valve":
		if e.truth("reports_position", false) {
			p.typ, p.states, p.sends, p.member = "number", nil, nil, "position"
			p.min, p.max = bound{"position_closed", 0}, bound{"position_open", 100}
			p.variable = "position"
		}
	case "update":
		p.sends = slices.DeleteFunc(slices.Clone(p.sends), func(w word) bool { _, ok := e.options[w.option]; return !ok })
		if p.suffix == "" && len(p.sends) == 0 {
			p.command = ""
		}
	case "vacuum":
		if p.suffix == "fan_speed" && len(e.list("fan_speed_list")) == 0 {
			p.topic, p.command = "", ""
		}
	case "siren":
		if e.text(p.encode, "") != "" {
			p.wrap = ""
		}
	}
	if p.unit == "°C" && strings.EqualFold(strings.TrimLeft(e.text("temperature_unit", ""), "°"), "F") {
		p.unit = "°F"
		if p.min.option != "" {
			p.min.usual, p.max.usual = 45, 95
		}
	}
	return p
}

// resolveLight leaves out what a light in JSON or by templates does not have.
func (p part) resolveLight(e entity) part {
	modes := e.list("supported_color_modes")
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(modes, name) })
	}
	keep := true
	switch e.text("schema", "basic") {
	case "json":
		colors := has("hs", "rgb", "rgbw", "rgbww", "xy") || e.truth("hs", false) || e.truth("rgb", false) || e.truth("xy", false)
		switch p.suffix {
		case "brightness":
			keep = e.truth("brightness", false) || colors || has("brightness", "color_temp", "white")
		case "color_temp":
			keep = has("color_temp") || e.truth("color_temp", false)
		case "effect":
			keep = e.truth("effect", false) || len(e.list("effect_list")) > 0
		case "color_mode":
			keep = len(modes) > 1
		case "color":
			keep = colors
		}
	case "template":
		if p.suffix == "" {
			p.encode = "command_on_template"
		} else {
			keep = e.text(p.template, "") != ""
		}
	}
	if !keep {
		p.topic, p.command = "", ""
	}
	if p.suffix == "color_temp" && e.truth("color_temp_kelvin", false) {
		p.min, p.max, p.unit = bound{"min_kelvin", 2000}, bound{"max_kelvin", 6535}, "K"
	}
	return p
}

func (p part) fieldName(entity string) string {
	if p.suffix == "" {
		return entity
	}
	return entity + "_" + p.suffix
}

func (p part) unitOf(e entity) devices.Unit {
	unit := cmp.Or(e.text("unit_of_measurement", ""), p.unit)
	if p.suffix != "" || e.component != "sensor" && e.component != "number" {
		unit = p.unit
	}
	if e.text("device_class", "") == "temperature" && (unit == "C" || unit == "F") {
		unit = "°" + unit
	}
	return devices.ParseUnit(unit)
}

// kindOf says what a value means. What is of the device and not of the world
// has a category; what is off by default is of little interest to people.
func (p part) kindOf(e entity) string {
	switch {
	case p.kind == "event" || e.component == "binary_sensor" && e.number("off_delay", 0) > 0:
		return "event"
	case e.text("entity_category", "") == "diagnostic":
		return "diagnostic"
	case e.text("entity_category", "") == "config":
		return "setting"
	case p.kind != "":
		return p.kind
	case e.component != "sensor":
		return "state"
	case strings.HasPrefix(e.text("state_class", ""), "total"):
		return "counter"
	case !e.truth("enabled_by_default", true):
		return "diagnostic"
	}
	return ""
}

func (p part) typeOf(e entity) string {
	switch p.typ {
	case "word":
		return "text"
	case "none":
		return ""
	case "":
		switch class := e.text("device_class", ""); {
		case class == "enum" || class == "timestamp" || class == "date":
			return "text"
		case class != "" || e.text("state_class", "") != "" || e.text("unit_of_measurement", "") != "":
			return "number"
		}
	}
	return p.typ
}

// wordsOf are the device's words of a state. A later one of the same meaning
// counts beside the first.
func (p part) wordsOf(e entity) map[string]devices.Value {
	if len(p.states) == 0 {
		return nil
	}
	words := make(map[string]devices.Value, len(p.states))
	for _, w := range p.states {
		said, ok := e.word(w.option, w.usual)
		if !ok || said == "" {
			continue
		}
		if words[said] = devices.Text(w.say); p.typ == "bool" {
			words[said] = devices.Bool(w.say == "on")
		}
	}
	return words
}

func (p part) argument(e entity) describe.Argument {
	a := describe.Argument{Type: p.typ, Unit: p.unitOf(e)}
	switch {
	case p.typ == "number" || p.typ == "integer":
		low, high := p.min.of(e), p.max.of(e)
		low, high = min(low, high), max(low, high) // position_open may be the smaller
		a.Min, a.Max, a.Step = &low, &high, p.step.of(e)
	case p.choices != "":
		a.Words = make(map[string]string)
		choices := e.list(p.choices)
		if len(choices) == 0 {
			choices = p.usual
		}
		for _, word := range choices {
			a.Words[word] = word
		}
		if len(a.Words) == 0 {
			a.Type, a.Words = "text", nil
		}
	case len(p.sends) > 0 && p.sends[0].say != "":
		a.Words = make(map[string]string)
		for _, w := range p.sends {
			if sent, ok := e.word(w.option, w.usual); ok && sent != "" {
				a.Words[w.say] = sent
			}
		}
	case len(p.sends) > 0:
		a.Type = "none"
	}
	return a
}

func (b bound) of(e entity) float64 {
	f := b.usual
	if b.option != "" {
		f = e.number(b.option, b.usual)
	}
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return b.usual
	}
	return f
}

// only is the payload of a command that has no argument.
func (p part) only(e entity) string {
	sent, _ := e.word(p.sends[0].option, p.sends[0].usual)
	return sent
}
