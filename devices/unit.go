package devices

import "strings"

// A Unit is a unit of measurement in the spelling that people read: °C, %,
// kWh. A unit outside the table stays as the device spelled it.
type Unit string

// units is every unit whose name in SenML differs from ours, and every one of
// the secondary units; the others, as W, V and lx, have one name. Sources: the
// registries SenML Units (RFC 8428 section 12.1, RFC 8798 section 2) and
// Secondary Units (RFC 8798 section 3) of IANA.
var units = []struct {
	unit      Unit
	senml     string
	secondary bool
}{
	{"°C", "Cel", false},
	{"Ω", "Ohm", false},
	{"°", "deg", false},
	{"m²", "m2", false},
	{"m³", "m3", false},
	{"kg/m³", "kg/m3", false},
	{"cd/m²", "cd/m2", false},
	{"m/s²", "m/s2", false},
	{"m³/s", "m3/s", false},
	{"W/m²", "W/m2", false},
	{"ms", "ms", true},
	{"min", "min", true},
	{"h", "h", true},
	{"MHz", "MHz", true},
	{"kW", "kW", true},
	{"kVA", "kVA", true},
	{"kvar", "kvar", true},
	{"Ah", "Ah", true},
	{"Wh", "Wh", true},
	{"kWh", "kWh", true},
	{"varh", "varh", true},
	{"kvarh", "kvarh", true},
	{"kVAh", "kVAh", true},
	{"Wh/km", "Wh/km", true},
	{"KiB", "KiB", true},
	{"GB", "GB", true},
	{"Mbit/s", "Mbit/s", true},
	{"B/s", "B/s", true},
	{"MB/s", "MB/s", true},
	{"mV", "mV", true},
	{"mA", "mA", true},
	{"dBm", "dBm", true},
	{"µg/m³", "ug/m3", true},
	{"mm/h", "mm/h", true},
	{"m/h", "m/h", true},
	{"ppm", "ppm", true},
	{"/1000", "/1000", true},
	{"hPa", "hPa", true},
	{"mm", "mm", true},
	{"cm", "cm", true},
	{"km", "km", true},
	{"km/h", "km/h", true},
	{"ppb", "ppb", true},
	{"ppt", "ppt", true},
	{"VAh", "VAh", true},
	{"mg/l", "mg/l", true},
	{"µg/l", "ug/l", true},
	{"g/l", "g/l", true},
}

// SenML gives the unit's name in the registries of SenML, for a field of that
// name, and whether it is one of the secondary ones, which a pack that uses
// them has to announce (RFC 9100). A percentage is relative humidity, the
// energy left in a battery, or a plain ratio, depending on what it is of. A
// unit in neither registry is given as it is.
func (u Unit) SenML(field string) (name string, secondary bool) {
	if u == "%" {
		switch {
		case strings.Contains(field, "humidity"):
			return "%RH", false
		case strings.Contains(field, "battery"):
			return "%EL", false
		}
		return "/100", true
	}
	for _, row := range units {
		if row.unit == u {
			return row.senml, row.secondary
		}
	}
	return string(u), false
}

// UnitFromSenML gives the spelling that people read of a SenML unit.
func UnitFromSenML(name string) Unit {
	switch name {
	case "%RH", "%EL", "/100":
		return "%"
	}
	for _, row := range units {
		if row.senml == name {
			return row.unit
		}
	}
	return Unit(name)
}

// spellings are what devices write for units that have one spelling here, with
// the micro sign U+00B5 and not the Greek letter U+03BC. Only what can mean
// nothing else is here: C is also the coulomb, and F the farad.
var spellings = map[string]Unit{
	"degC": "°C", "deg C": "°C", "Celsius": "°C", "celsius": "°C", "ºC": "°C", "℃": "°C",
	"degF": "°F", "deg F": "°F", "Fahrenheit": "°F", "fahrenheit": "°F", "ºF": "°F", "℉": "°F",
	"m2": "m²", "m3": "m³", "m3/h": "m³/h", "m3/s": "m³/s", "m/s2": "m/s²", "W/m2": "W/m²", "kg/m3": "kg/m³", "mg/m3": "mg/m³",
	"ug/m3": "µg/m³", "ug/m³": "µg/m³", "µg/m3": "µg/m³", "us": "µs", "uS/cm": "µS/cm", "uV": "µV", "uA": "µA",
	"Ohm": "Ω", "ohm": "Ω", "kOhm": "kΩ", "lux": "lx", "mbar": "hPa", "L": "l", "L/min": "l/min", "L/h": "l/h", "KWh": "kWh",
}

// ParseUnit gives a unit that a device spelled in its own way the spelling of
// the table, where it clearly is one of it. The number beside it stays as it
// is.
func ParseUnit(s string) Unit {
	// Ω and µ have a second code point each: OHM SIGN and GREEK SMALL MU.
	s = strings.ReplaceAll(strings.TrimSpace(s), "\u03bc", "\u00b5")
	s = strings.ReplaceAll(s, "\u2126", "\u03a9")
	if u, ok := spellings[s]; ok {
		return u
	}
	return Unit(s)
}
