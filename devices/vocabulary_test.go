package devices

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
)

func TestParseNumber(t *testing.T) {
	for in, want := range map[string]string{
		"21.40": "21.40", "0": "0", "-0.5": "-0.5", "+7": "7", "007": "7", ".5": "0.5", "5.": "5",
		"1e3": "1e3", " 12 ": "12", "-00.10": "-0.10", "12345678901234567890": "12345678901234567890",
	} {
		v, err := ParseNumber(in)
		if err != nil || v.String() != want {
			t.Errorf("%q: %q, %v; want %q", in, v, err, want)
		}
	}
	for _, in := range []string{"", "-", "nan", "NaN", "inf", "0x10", "1_000", "1,5", "--1", "1e", "1e999", ".", "21 C", strings.Repeat("9", 65)} {
		if v, err := ParseNumber(in); err == nil {
			t.Errorf("%q is taken for %q", in, v)
		}
	}
}

func TestValue(t *testing.T) {
	v, _ := ParseNumber("21.40")
	if v.Float() != 21.4 {
		t.Errorf("%v", v.Float())
	}
	if n, ok := Number(42).Int(); !ok || n != 42 {
		t.Errorf("%d %v", n, ok)
	}
	if _, ok := v.Int(); ok {
		t.Error("21.40 is not a whole number")
	}
	if !Bool(true).Bool() || Bool(false).Bool() || Text("true").Bool() {
		t.Error("truth values")
	}
	if (Value{}).IsValid() || !Text("").IsValid() {
		t.Error("validity")
	}
}

func TestSlug(t *testing.T) {
	for in, want := range map[string]ID{
		"Kitchen": "kitchen", "Home/Kitchen:1": "home-kitchen-1", "  a  b ": "a-b", "Küche": "k-che", "---": "", "☃": "",
		strings.Repeat("a", 60): ID(strings.Repeat("a", 40)), strings.Repeat("a", 39) + "-b": ID(strings.Repeat("a", 39)),
	} {
		if got := Slug(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestParseID(t *testing.T) {
	for _, good := range []string{"a", "kitchen-1", "0", strings.Repeat("a", 40)} {
		if _, err := ParseID(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "Kitchen", "a b", "a_b", "ä", strings.Repeat("a", 41)} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if !Reserved("gateway") || !Reserved("plot") || Reserved("kitchen") || Reserved("") {
		t.Error("reserved names")
	}
}

func TestNumber(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0", 21.4: "21.4", -0.5: "-0.5", 1e20: "100000000000000000000", 1e21: "1e+21", 1e-6: "0.000001", 1e-7: "1e-07",
		math.Inf(1): "", math.Inf(-1): "", math.NaN(): "",
	} {
		v := Number(f)
		if v.String() != want || v.IsValid() != (want != "") || want != "" && v.Float() != f {
			t.Errorf("%v: %q", f, v)
		}
		if v.IsValid() {
			if again, err := ParseNumber(v.String()); err != nil || again.Float() != f {
				t.Errorf("%v: %q is read as %q, %v", f, v, again, err)
			}
		}
	}
}

func TestUnitSenML(t *testing.T) {
	for _, c := range []struct {
		unit      Unit
		field     string
		name      string
		secondary bool
	}{
		{"°C", "temperature", "Cel", false}, {"%", "am2301_humidity", "%RH", false}, {"%", "battery", "%EL", false},
		{"%", "load", "/100", true}, {"kWh", "energy_total", "kWh", true}, {"hPa", "pressure", "hPa", true}, {"Pa", "pressure", "Pa", false},
		{"W", "battery", "W", false}, {"lx", "light", "lx", false}, {"m³", "gas", "m3", false}, {"µg/m³", "pm10", "ug/m3", true},
		{"°", "wind", "deg", false}, {"dBm", "signal", "dBm", true}, {"min", "t", "min", true}, {"s", "t", "s", false}, {"var", "q", "var", false},
		{"kvarh", "q", "kvarh", true}, {"Ω", "r", "Ohm", false},
		{"", "count", "", false}, {"/", "ratio", "/", false},
		// In neither registry.
		{"bar", "p", "bar", false}, {"°F", "t", "°F", false}, {"l/min", "flow", "l/min", false}, {"furlong", "x", "furlong", false},
	} {
		name, secondary := c.unit.SenML(c.field)
		if name != c.name || secondary != c.secondary {
			t.Errorf("%s of %s: %s %v", c.unit, c.field, name, secondary)
		}
		if back := UnitFromSenML(name); back != c.unit {
			t.Errorf("%s comes back as %s", c.unit, back)
		}
	}
	seen := make(map[string]bool)
	for _, row := range units {
		if seen[string(row.unit)] || seen["senml "+row.senml] {
			t.Errorf("%s or %s stands twice", row.unit, row.senml)
		}
		seen[string(row.unit)], seen["senml "+row.senml] = true, true
	}
}

func TestParseUnit(t *testing.T) {
	for in, want := range map[string]Unit{
		"°C": "°C", "Celsius": "°C", "degC": "°C", " °C ": "°C", "℃": "°C", "lux": "lx", "m3": "m³", "ug/m3": "\u00b5g/m³",
		"\u03bcg/m3": "\u00b5g/m³", "\u03bcS": "\u00b5S", "\u2126": "\u03a9", "kOhm": "kΩ", "mbar": "hPa",
		// These could mean something else, or are right as they are.
		"C": "C", "F": "F", "M": "M", "kWh": "kWh", "": "", "stones": "stones",
	} {
		if got := ParseUnit(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for in, u := range spellings {
		if again := ParseUnit(string(u)); again != u {
			t.Errorf("%q becomes %q, and that %q", in, u, again)
		}
	}
}

func TestNewOrigin(t *testing.T) {
	a := NewOrigin([]byte("kitchen"), []byte("21.4"))
	if a == (Origin{}) || a != NewOrigin([]byte("kitchen"), []byte("21.4")) {
		t.Errorf("%x", a)
	}
	for _, parts := range [][]string{{"kitchen21", ".4"}, {"kitchen21.4"}, {"kitchen", "21.4", ""}, {"21.4", "kitchen"}, {}} {
		var other [][]byte
		for _, p := range parts {
			other = append(other, []byte(p))
		}
		if NewOrigin(other...) == a {
			t.Errorf("%q are the same message", parts)
		}
	}
	// It is on disk and in log nodes: it may never change.
	if got, want := fmt.Sprintf("%x", a), "aa0034a3f4668f12"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestStates(t *testing.T) {
	for s, want := range map[State]string{StateUnknown: "unknown", StateFresh: "fresh", StateLate: "late", StateAsleep: "asleep", StateAlarm: "alarm", StateLost: "lost"} {
		if s.String() != want {
			t.Errorf("%d: %s", s, s)
		}
	}
}

func FuzzParseNumber(f *testing.F) {
	for _, s := range []string{"21.40", "-0", "1e-7", "+.5", "5.", "007", "1E+3", "x", " 1 ", "1e999", "NaN"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseNumber(s)
		if err != nil {
			if v.IsValid() {
				t.Errorf("%q: %q and %v", s, v, err)
			}
			return
		}
		if !json.Valid([]byte(v.String())) {
			t.Errorf("%q becomes %q, which JSON does not take", s, v)
		}
		if again, err := ParseNumber(v.String()); err != nil || again != v {
			t.Errorf("%q becomes %q, and that %q (%v)", s, v, again, err)
		}
		if want, err := strconv.ParseFloat(strings.TrimSpace(s), 64); err == nil && want != v.Float() {
			t.Errorf("%q becomes %v", s, v.Float())
		}
	})
}

func FuzzSlug(f *testing.F) {
	for _, s := range []string{"Home/Kitchen:1", "---", "a", "Küche", "\xff", strings.Repeat("ab-", 20)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseID(s); err == nil && string(id) != s {
			t.Errorf("%q is taken for %q", s, id)
		}
		id := Slug(s)
		if id == "" {
			return
		}
		if _, err := ParseID(string(id)); err != nil {
			t.Error(err)
		}
		if Slug(string(id)) != id {
			t.Errorf("%q is not a slug of itself", id)
		}
	})
}

func TestList(t *testing.T) {
	if v := List("yard", "driveway"); v.String() != "yard,driveway" || len(v.Items()) != 2 || v.Kind() != TextValue {
		t.Errorf("%v, %q", v, v.Items())
	}
	if v := List("a,b", "c"); v.Items() != nil {
		t.Errorf("%q", v.Items())
	}
	if v := Text("a,b"); v.Items() != nil {
		t.Errorf("%q", v.Items())
	}
}
