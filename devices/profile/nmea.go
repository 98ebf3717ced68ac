package profile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// readNMEA makes a document of a sentence of NMEA 0183: a member for each value,
// by the names of the tables below; what is empty is not there. "device" is the
// talker. A sentence that says itself that it has no data is an error; one that is
// not in the tables has no values. There is a library for these sentences, but it
// reads what is empty as 0.
func readNMEA(payload []byte, _ map[string]string) (doc *node, _ string, _ devices.Availability, err error) {
	text := strings.TrimSpace(string(payload))
	if strings.HasPrefix(text, `\`) { // a tag block, NMEA 0183 V4 section 7
		if _, after, ok := strings.Cut(text[1:], `\`); ok {
			text = after
		}
	}
	body, sum, ok := strings.Cut(text, "*")
	switch {
	case len(body) < 6 || body[0] != '$' && body[0] != '!':
		return nil, "", 0, errors.New("not a sentence of NMEA 0183")
	case !ok:
		return nil, "", 0, errors.New("a sentence without checksum")
	}
	if want, err := strconv.ParseUint(sum, 16, 8); err != nil || len(sum) != 2 || byte(want) != exclusiveOr(body[1:]) {
		return nil, "", 0, errors.New("the checksum is wrong")
	}
	fields := strings.Split(body[1:], ",")
	head := fields[0]
	if len(head) != 5 || body[0] == '!' {
		return &node{kind: objectNode}, "", 0, nil // a maker's own, or AIS
	}
	s := sentence{talker: head[:2], kind: head[2:], fields: fields[1:]}
	if s.isVoid() {
		return nil, "", 0, fmt.Errorf("%s says that it has no data", head)
	}
	doc = object("device", &node{value: devices.Text(s.talker)})
	switch s.kind {
	case "XDR":
		s.transducers(doc)
	case "RMC":
		s.moment(doc, 0, s.at(8))
	case "ZDA":
		if y := s.at(3); len(y) == 4 {
			s.moment(doc, 0, s.at(1)+s.at(2)+y)
		}
	}
	for _, f := range sentences[s.kind] {
		if v := f.read(s); v != nil {
			doc.members = append(doc.members, member{f.name, v})
		}
	}
	return doc, "", 0, nil
}

func exclusiveOr(s string) (sum byte) {
	for i := range len(s) {
		sum ^= s[i]
	}
	return sum
}

type sentence struct {
	talker, kind string
	fields       []string
}

// at gives a field, the first behind the name being 0; "" where it is not there.
func (s sentence) at(i int) string {
	if i < len(s.fields) {
		return strings.TrimSpace(s.fields[i])
	}
	return ""
}

// isVoid reports whether a sentence says that its data are none: the status V, no
// fix, the mode N.
func (s sentence) isVoid() bool {
	place, known := map[string]int{"RMC": 1, "GLL": 5, "MWV": 4, "ROT": 1, "RSA": 1, "THS": 1, "RPM": 4, "APB": 0, "XTE": 0}[s.kind]
	switch {
	case known && s.at(place) == "V":
		return true
	case s.kind == "GGA":
		return s.at(5) == "0" || s.at(5) == ""
	case s.kind == "GNS":
		return strings.Trim(s.at(5), "N") == ""
	case s.kind == "VTG":
		return s.at(8) == "N"
	case s.kind == "GSA":
		return s.at(1) == "1"
	}
	return false
}

// moment puts a time of day and a date (ddmmyy or ddmmyyyy) together: as "time" for
// people, and as "at" for the reading.
func (s sentence) moment(doc *node, clock int, date string) {
	layout := "020106150405"
	if len(date) == 8 {
		layout = "02012006150405"
	}
	t, err := time.Parse(layout, date+s.at(clock))
	if err != nil {
		return
	}
	if len(date) == 6 && t.Year() >= 2069 { // Go's own turn of the century is 69
		t = t.AddDate(-100, 0, 0)
	}
	text := t.Format("2006-01-02T15:04:05.999999999Z07:00")
	doc.members = append(doc.members, member{"at", &node{value: devices.Text(text)}}, member{"time", &node{value: devices.Text(text)}})
}

// A sentenceField is one value of a sentence.
type sentenceField struct {
	name, unit string
	place      int
	form       sentenceForm
}

type sentenceForm uint8

const (
	plainField    sentenceForm = iota // a number
	positionField                     // degrees and minutes, and a side behind
	sidedField                        // a number, and a side behind: W, S and L are negative
	wordField                         // a text
	windField                         // a speed, and its unit behind
)

// sentences are the values of those that are known (IEC 61162-1; gpsd.io/NMEA.html).
var sentences = map[string][]sentenceField{
	"RMC": {{"latitude", "°", 2, positionField}, {"longitude", "°", 4, positionField}, {"speed", "kn", 6, 0}, {"course", "°", 7, 0}, {"variation", "°", 9, sidedField}},
	"GGA": {{"latitude", "°", 1, positionField}, {"longitude", "°", 3, positionField}, {"fix", "", 5, 0}, {"satellites", "", 6, 0}, {"hdop", "", 7, 0}, {"altitude", "m", 8, 0}, {"geoid_separation", "m", 10, 0}},
	"GNS": {{"latitude", "°", 1, positionField}, {"longitude", "°", 3, positionField}, {"mode", "", 5, wordField}, {"satellites", "", 6, 0}, {"hdop", "", 7, 0}, {"altitude", "m", 8, 0}, {"geoid_separation", "m", 9, 0}},
	"GLL": {{"latitude", "°", 0, positionField}, {"longitude", "°", 2, positionField}},
	"VTG": {{"course_true", "°", 0, 0}, {"course_magnetic", "°", 2, 0}, {"speed_kn", "kn", 4, 0}, {"speed_kmh", "km/h", 6, 0}},
	"GSA": {{"mode", "", 0, wordField}, {"fix_type", "", 1, 0}, {"pdop", "", 14, 0}, {"hdop", "", 15, 0}, {"vdop", "", 16, 0}},
	"GSV": {{"satellites_in_view", "", 2, 0}},
	"HDT": {{"heading", "°", 0, 0}},
	"THS": {{"heading", "°", 0, 0}},
	"HDM": {{"heading_magnetic", "°", 0, 0}},
	"HDG": {{"heading", "°", 0, 0}, {"deviation", "°", 1, sidedField}, {"variation", "°", 3, sidedField}},
	"ROT": {{"rate_of_turn", "°/min", 0, 0}},
	"MWV": {{"wind_angle", "°", 0, 0}, {"wind_reference", "", 1, wordField}, {"wind_speed", "", 2, windField}},
	"MWD": {{"wind_direction", "°", 0, 0}, {"wind_direction_magnetic", "°", 2, 0}, {"wind_speed_kn", "kn", 4, 0}, {"wind_speed_ms", "m/s", 6, 0}},
	"VWR": {{"wind_angle", "°", 0, sidedField}, {"wind_speed_kn", "kn", 2, 0}, {"wind_speed_ms", "m/s", 4, 0}, {"wind_speed_kmh", "km/h", 6, 0}},
	"VWT": {{"wind_angle", "°", 0, sidedField}, {"wind_speed_kn", "kn", 2, 0}, {"wind_speed_ms", "m/s", 4, 0}, {"wind_speed_kmh", "km/h", 6, 0}},
	"MTW": {{"water_temperature", "°C", 0, 0}},
	"MTA": {{"air_temperature", "°C", 0, 0}},
	"MDA": {
		{"pressure", "bar", 2, 0}, {"air_temperature", "°C", 4, 0}, {"water_temperature", "°C", 6, 0}, {"humidity", "%", 8, 0}, {"dew_point", "°C", 10, 0},
		{"wind_direction", "°", 12, 0}, {"wind_direction_magnetic", "°", 14, 0}, {"wind_speed_kn", "kn", 16, 0}, {"wind_speed_ms", "m/s", 18, 0},
	},
	"DBT": {{"depth", "m", 2, 0}},
	"DBK": {{"depth_below_keel", "m", 2, 0}},
	"DBS": {{"depth_below_surface", "m", 2, 0}},
	"DPT": {{"depth", "m", 0, 0}, {"offset", "m", 1, 0}},
	"VHW": {{"heading_true", "°", 0, 0}, {"heading_magnetic", "°", 2, 0}, {"speed_kn", "kn", 4, 0}, {"speed_kmh", "km/h", 6, 0}},
	"VBW": {{"speed_water", "kn", 0, 0}, {"speed_water_across", "kn", 1, 0}, {"speed_ground", "kn", 3, 0}, {"speed_ground_across", "kn", 4, 0}},
	"VLW": {{"distance_total", "NM", 0, 0}, {"distance", "NM", 2, 0}},
	"RSA": {{"rudder", "°", 0, 0}},
	"RPM": {{"source", "", 0, wordField}, {"rpm", "1/min", 2, 0}, {"pitch", "%", 3, 0}},
	"TXT": {{"text", "", 3, wordField}},
}

// read gives the value; nil where the field is empty, or none.
func (f sentenceField) read(s sentence) *node {
	text := s.at(f.place)
	if text == "" {
		return nil
	}
	unit := f.unit
	switch f.form {
	case wordField:
		if f.name == "wind_reference" {
			text = map[string]string{"R": "relative", "T": "true"}[text]
		}
		return &node{value: devices.Text(text)}
	case positionField:
		return position(text, s.at(f.place+1))
	case sidedField:
		if side := s.at(f.place + 1); side == "W" || side == "S" || side == "L" {
			text = "-" + text
		}
	case windField:
		var known bool
		if unit, known = map[string]string{"N": "kn", "M": "m/s", "K": "km/h", "S": "mph"}[s.at(f.place+1)]; !known {
			return nil
		}
	}
	v, err := devices.ParseNumber(plainNumber(text))
	if err != nil {
		return nil
	}
	return &node{value: v, unit: unit}
}

// position reads degrees and minutes, 5133.82, and the side.
func position(text, side string) *node {
	whole, _, _ := strings.Cut(text, ".")
	if len(whole) < 3 {
		return nil
	}
	degrees, err := strconv.ParseUint(text[:len(whole)-2], 10, 8)
	minutes, err2 := strconv.ParseFloat(text[len(whole)-2:], 64)
	limit := map[string]float64{"N": 90, "S": 90, "E": 180, "W": 180}[side]
	at := float64(degrees) + minutes/60
	if err != nil || err2 != nil || !(minutes >= 0 && minutes < 60) || at > limit {
		return nil
	}
	if side == "S" || side == "W" {
		at = -at
	}
	v, err := devices.ParseNumber(strconv.FormatFloat(at, 'f', 7, 64))
	if err != nil {
		return nil
	}
	return &node{value: v, unit: "°"}
}

// transducerKinds name the values of XDR whose sender did not, or by a number only.
var transducerKinds = map[string]string{
	"A": "angle", "C": "temperature", "D": "depth", "F": "frequency", "H": "humidity", "N": "force", "P": "pressure", "R": "flow",
	"B": "absolute_humidity", "G": "generic", "I": "current", "L": "salinity", "S": "switch", "T": "tachometer", "U": "voltage", "V": "volume",
}

// transducerUnits are those of XDR by kind and unit.
var transducerUnits = map[string]string{
	"AD": "°", "CC": "°C", "DM": "m", "FH": "Hz", "HP": "%", "NN": "N", "PB": "bar", "PP": "Pa", "Rl": "l/s", "RL": "l/s", "BK": "kg/m³",
	"IA": "A", "LS": "ppt", "TR": "1/min", "UV": "V", "VM": "m³", "VP": "%",
}

// transducers reads the values of XDR, each four fields: kind, value, unit, name.
func (s sentence) transducers(doc *node) {
	for i := 0; i+1 < len(s.fields) && len(doc.members) < maxMembers; i += 4 {
		kind, unit, name := s.at(i), s.at(i+2), s.at(i+3)
		v, err := devices.ParseNumber(plainNumber(s.at(i + 1)))
		if err != nil {
			continue
		}
		if _, err := strconv.Atoi(name); err == nil || fieldName(name) == "" {
			name = strings.TrimSuffix(transducerKinds[kind]+"_"+name, "_")
		}
		if name = name[:min(len(name), maxMemberName)]; name != "" {
			doc.members = append(doc.members, member{name, &node{value: v, unit: transducerUnits[kind+unit]}})
		}
	}
}
