package profile

import (
	"fmt"
	"math"
	"strconv"

	"github.com/porchlight-iot/porchlight/devices"
)

// An eepField is one value in the data of a telegram, as the EnOcean Equipment
// Profiles 2.6.8 have it.
type eepField struct {
	name      string // the shortcut
	at, width int    // the first bit, the highest of the first byte being 0, and how many
	from, to  int    // numbers that are values,
	low, high float64
	unit      string   // which they mean
	words     []string // instead: what 0, 1 … mean
}

// read gives the value; nil where it is not there, or out of its range.
func (f eepField) read(data []byte) *node {
	if f.at+f.width > 8*len(data) {
		return nil
	}
	raw := 0
	for bit := f.at; bit < f.at+f.width; bit++ {
		raw = raw<<1 | int(data[bit/8]>>(7-bit%8)&1)
	}
	switch {
	case f.words != nil && raw < len(f.words) && f.words[raw] != "":
		return &node{value: devices.Text(f.words[raw])}
	case f.words != nil:
		return &node{value: devices.Text(strconv.Itoa(raw))}
	case raw < min(f.from, f.to) || raw > max(f.from, f.to):
		return nil
	}
	step := (f.high - f.low) / float64(f.to-f.from)
	v, err := devices.ParseNumber(strconv.FormatFloat(f.low+float64(raw-f.from)*step, 'f', decimalsOf(step), 64))
	if err != nil {
		return nil
	}
	return &node{value: v, unit: f.unit}
}

// decimalsOf gives how many decimals say as much as a step does.
func decimalsOf(step float64) int {
	step = math.Abs(step)
	for places := range 4 {
		if math.Abs(step-math.Round(step)) < 1e-9 || step >= 1 && places > 0 {
			return places
		}
		step *= 10
	}
	return 4
}

func number8(name string, at, from, to int, low, high float64, unit string) eepField {
	return eepField{name: name, at: at, width: 8, from: from, to: to, low: low, high: high, unit: unit}
}

func words1(name string, at int, zero, one string) eepField {
	return eepField{name: name, at: at, width: 1, words: []string{zero, one}}
}

// eepFields gives the values of a profile; known is false where it is none of those
// that are known here.
func eepFields(eep string, data []byte) (fields []eepField, known bool) {
	var kind int
	if _, err := fmt.Sscanf(eep, "A5-02-%02X", &kind); err == nil {
		return temperatureFields(kind)
	}
	if _, err := fmt.Sscanf(eep, "D2-01-%02X", &kind); err == nil {
		return actuatorFields(data)
	}
	if _, err := fmt.Sscanf(eep, "A5-12-%02X", &kind); err == nil {
		return meterFields(kind, data)
	}
	fields, known = eepTable[eep]
	return fields, known
}

// temperatureFields are those of A5-02: ranges of 40 and of 80 degrees, and two of
// ten bits.
func temperatureFields(kind int) ([]eepField, bool) {
	low, span := 0.0, 40.0
	switch {
	case kind >= 0x01 && kind <= 0x0b:
		low = float64(kind-5) * 10
	case kind >= 0x10 && kind <= 0x1b:
		low, span = float64(kind-0x16)*10, 80
	case kind == 0x20:
		return []eepField{{name: "TMP", at: 14, width: 10, from: 1023, to: 0, low: -10, high: 41.2, unit: "°C"}}, true
	case kind == 0x30:
		return []eepField{{name: "TMP", at: 14, width: 10, from: 1023, to: 0, low: -40, high: 62.3, unit: "°C"}}, true
	default:
		return nil, false
	}
	return []eepField{number8("TMP", 16, 255, 0, low, low+span, "°C")}, true
}

// actuatorFields are those of D2-01, by the command in the telegram.
func actuatorFields(data []byte) ([]eepField, bool) {
	channel := eepField{name: "IO", at: 11, width: 5, from: 0, to: 29, high: 29}
	switch command := data[0] & 0x0f; {
	case command == 4 && len(data) == 3:
		return []eepField{
			words1("PF", 0, "disabled", "enabled"), words1("PFD", 1, "not detected", "detected"),
			words1("OC", 8, "ready", "executed"), {name: "EL", at: 9, width: 2, words: []string{"ok", "warning", "failure", "not supported"}},
			channel, words1("LC", 16, "disabled", "enabled"), {name: "OV", at: 17, width: 7, from: 0, to: 100, high: 100, unit: "%"},
		}, true
	case command == 7 && len(data) == 6:
		units := []string{"Ws", "Wh", "kWh", "W", "kW"}
		unit := data[1] >> 5
		if int(unit) >= len(units) {
			return nil, false
		}
		return []eepField{channel, {name: "MV", at: 16, width: 31 + 1, from: 0, to: math.MaxInt32, high: math.MaxInt32, unit: units[unit]}}, true
	}
	return nil, false
}

// meterFields are those of A5-12: what was counted, or how fast it is, in units
// that the telegram tells.
func meterFields(kind int, data []byte) ([]eepField, bool) {
	if kind > 3 || len(data) < 4 {
		return nil, false
	}
	f := eepField{name: "MR", at: 0, width: 24, from: 0, to: 1<<24 - 1, high: (1<<24 - 1) / math.Pow10(int(data[3]&3)), unit: []string{"", "kWh", "m³", "m³"}[kind]}
	if data[3]&4 != 0 {
		f.name, f.unit = "rate", []string{"1/s", "W", "l/s", "l/s"}[kind]
	}
	return []eepField{f, {name: "TI", at: 24, width: 4, from: 0, to: 15, high: 15}}, true
}

var (
	supply      = number8("SVC", 0, 0, 255, 0, 5.1, "V")
	supply250   = number8("SVC", 0, 0, 250, 0, 5, "V")
	buttons     = []string{"Button AI", "Button AO", "Button BI", "Button BO"}
	rocker      = []eepField{{name: "R1", at: 0, width: 3, words: buttons}, words1("EB", 3, "released", "pressed"), {name: "R2", at: 4, width: 3, words: buttons}, words1("SA", 7, "No 2nd action", "2nd action valid")}
	buttons4    = append(buttons[:4:4], "Button CI", "Button CO", "Button DI", "Button DO")
	rocker4     = []eepField{{name: "R1", at: 0, width: 3, words: buttons4}, words1("EB", 3, "released", "pressed"), {name: "R2", at: 4, width: 3, words: buttons4}, words1("SA", 7, "No 2nd action", "2nd action valid")}
	occupied    = words1("OCC", 31, "Button pressed", "Button released")
	setPoint    = number8("SP", 8, 0, 255, 0, 255, "")
	roomTemp    = number8("TMP", 16, 255, 0, 0, 40, "°C")
	fan         = number8("FAN", 0, 0, 255, 0, 255, "")
	slide       = words1("SLSW", 31, "Position I / Night / Off", "Position O / Day / On")
	wetRoom     = []eepField{number8("SP", 0, 0, 255, 0, 255, ""), number8("HUM", 8, 0, 250, 0, 100, "%"), number8("TMP", 16, 0, 250, 0, 40, "°C")}
	motionLight = func(light, low, high float64) []eepField {
		return []eepField{supply, number8("ILL", 8, 0, 255, 0, light, "lx"), number8("TMP", 16, 0, 255, low, high, "°C"), words1("PIRS", 30, "PIR on", "PIR off"), occupied}
	}
)

var eepTable = map[string][]eepField{
	"F6-01-01": {words1("PB", 3, "Released", "Pressed")},
	"F6-02-01": rocker,
	"F6-02-02": rocker,
	"F6-03-01": rocker4,
	"F6-03-02": rocker4,
	"F6-05-01": {{name: "WAS", at: 0, width: 8, words: append(make([]string, 17), "Water detected")}},
	"F6-10-00": {{name: "WIN", at: 2, width: 2, words: []string{"vertical", "up", "vertical", "down"}}},
	"D5-00-01": {words1("CO", 7, "open", "closed")},
	"A5-04-01": {number8("HUM", 8, 0, 250, 0, 100, "%"), number8("TMP", 16, 0, 250, 0, 40, "°C")},
	"A5-04-02": {number8("HUM", 8, 0, 250, 0, 100, "%"), number8("TMP", 16, 0, 250, -20, 60, "°C")},
	"A5-04-03": {number8("HUM", 0, 0, 255, 0, 100, "%"), {name: "TMP", at: 14, width: 10, from: 0, to: 1023, low: -20, high: 60, unit: "°C"}, words1("TTP", 31, "Heartbeat", "Event triggered")},
	"A5-05-01": {{name: "BAR", at: 6, width: 10, from: 0, to: 1023, low: 500, high: 1150, unit: "hPa"}, words1("TTP", 31, "Heartbeat", "Event triggered")},
	"A5-06-01": {supply, number8("ILL2", 8, 0, 255, 300, 30000, "lx"), number8("ILL1", 16, 0, 255, 600, 60000, "lx"), words1("RS", 31, "ILL1", "ILL2")},
	"A5-06-02": {supply, number8("ILL2", 8, 0, 255, 0, 510, "lx"), number8("ILL1", 16, 0, 255, 0, 1020, "lx"), words1("RS", 31, "ILL1", "ILL2")},
	"A5-06-03": {supply250, {name: "ILL", at: 8, width: 10, from: 0, to: 1000, high: 1000, unit: "lx"}},
	"A5-07-01": {supply250, {name: "PIR", at: 16, width: 1, words: []string{"off", "on"}}},
	"A5-07-02": {supply250, words1("PIR", 24, "off", "on")},
	"A5-07-03": {supply250, {name: "ILL", at: 8, width: 10, from: 0, to: 1000, high: 1000, unit: "lx"}, words1("PIR", 24, "off", "on")},
	"A5-08-01": motionLight(510, 0, 51),
	"A5-08-02": motionLight(1020, 0, 51),
	"A5-08-03": motionLight(1530, -30, 50),
	"A5-09-04": {number8("HUM", 0, 0, 200, 0, 100, "%"), number8("Conc", 8, 0, 255, 0, 2550, "ppm"), number8("TMP", 16, 0, 255, 0, 51, "°C")},
	"A5-09-05": {{name: "Conc", at: 0, width: 16, from: 0, to: 65535, high: 65535, unit: "ppb"}, {name: "VOC_ID", at: 16, width: 8, words: []string{"VOCT (total)", "Formaldehyde", "Benzene", "Styrene", "Toluene"}}},
	"A5-10-01": {fan, setPoint, roomTemp, occupied},
	"A5-10-02": {fan, setPoint, roomTemp, slide},
	"A5-10-03": {setPoint, roomTemp},
	"A5-10-04": {fan, setPoint, roomTemp},
	"A5-10-05": {setPoint, roomTemp, occupied},
	"A5-10-06": {setPoint, roomTemp, slide},
	"A5-10-10": append(wetRoom[:3:3], occupied),
	"A5-10-12": wetRoom,
	"A5-11-02": {number8("CVAR", 0, 0, 255, 0, 100, "%"), number8("ASP", 16, 0, 255, 0, 51.2, "°C"), words1("ALR", 24, "No alarm", "Alarm")},
	"A5-11-03": {number8("BSP", 0, 0, 100, 0, 100, "%"), {name: "ST", at: 22, width: 2, words: []string{"No status available", "Blind is stopped", "Blind opens", "Blind closes"}}},
	"A5-13-01": {number8("DWS", 0, 0, 255, 0, 999, "lx"), number8("TMP", 8, 0, 255, -40, 80, "°C"), number8("WND", 16, 0, 255, 0, 70, "m/s"), words1("D/N", 29, "day", "night"), words1("RAN", 30, "no rain", "rain")},
	"A5-14-01": {supply250, words1("CT", 31, "closed", "open")},
	"A5-20-01": {
		number8("CV", 0, 0, 100, 0, 100, "%"), words1("SO", 8, "off", "on"), words1("ENIE", 9, "false", "true"), words1("ES", 10, "false", "true"), words1("BCAP", 11, "false", "true"),
		words1("CCO", 12, "false", "true"), words1("FTS", 13, "false", "true"), words1("DWO", 14, "false", "true"), words1("ACO", 15, "false", "true"), number8("TMP", 16, 0, 255, 0, 40, "°C"),
	},
	"A5-30-03": {number8("TMP", 8, 255, 0, 0, 40, "°C"), words1("WA0", 19, "Low", "High"), words1("DI3", 20, "Low", "High"), words1("DI2", 21, "Low", "High"), words1("DI1", 22, "Low", "High"), words1("DI0", 23, "Low", "High")},
	"D2-04-00": {number8("CO2", 0, 0, 255, 0, 2000, "ppm"), number8("HUM", 8, 0, 200, 0, 100, "%"), number8("TMP", 16, 0, 255, 0, 51, "°C"), words1("DNM", 24, "day", "night")},
	"D2-05-00": {{name: "POS", at: 1, width: 7, from: 0, to: 100, high: 100, unit: "%"}, {name: "ANG", at: 9, width: 7, from: 0, to: 100, high: 100, unit: "%"}},
	"D2-14-41": {{name: "TMP", at: 0, width: 10, from: 0, to: 1000, low: -40, high: 60, unit: "°C"}, number8("HUM", 10, 0, 200, 0, 100, "%"), {name: "ILL", at: 18, width: 17, from: 0, to: 100000, high: 100000, unit: "lx"}, words1("CO", 67, "Open", "Closed")},
}
