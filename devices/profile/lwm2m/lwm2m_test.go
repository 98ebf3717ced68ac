package lwm2m

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

func read(t *testing.T, path, text string) (string, error) {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	at, _ := ParsePath(path)
	values, err := ParseTLV(b, at)
	var all []string
	for _, v := range values {
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s=%s %s", v.Path, v.Value, v.Unit)))
	}
	return strings.Join(all, ", "), err
}

// TestTLV reads the examples of OMA LwM2M Core 1.1 section 7.4.3, and what
// clients make of the same.
func TestTLV(t *testing.T) {
	for name, c := range map[string]struct{ path, hex, want string }{
		"access control": {"/2", "08000EC10001C101008302417F07C1037F 080212C10003C101008702417F0761013601C1037F",
			"2/0/0=1, 2/0/1=0, 2/0/2/127=7, 2/0/3=127, 2/2/0=3, 2/2/1=0, 2/2/2/127=7, 2/2/2/310=1, 2/2/3=127"},
		"an instance in its own path":   {"/1/0", "08000FC10001C40100015180C10601C10755", "1/0/0=1, 1/0/1=86400 s, 1/0/6=true, 1/0/7=U"},
		"resources of the only one":     {"/3", "C109 64 C60E2B30323A3030", "3/0/9=100 %, 3/0/14=+02:00"},
		"one resource":                  {"/3/0/9", "C10964", "3/0/9=100 %"},
		"several of one":                {"/3/0/7", "880708 42000ED8 42011388", "3/0/7/0=3800 mV, 3/0/7/1=5000 mV"},
		"one of several":                {"/3/0/7/1", "42011388", "3/0/7/1=5000 mV"},
		"links":                         {"/3/0/22", "8816 0C 44000042 0000 44 01 0042 0001", "3/0/22/0=66:0, 3/0/22/1=66:1"},
		"negative":                      {"/4/0/2", "C102B0", "4/0/2=-80 dBm"},
		"a float of 4":                  {"/3303/0/5700", "E41644 41AB3333", "3303/0/5700=21.4 °C"},
		"a float of 8":                  {"/3304/1", "E81644 08 4046800000000000", "3304/1/5700=45 %"},
		"a switch":                      {"/3311/0/5850", "E116DA 01", "3311/0/5850=true"},
		"a text that nobody knows":      {"/10234/0/0", "C400 61626364", "10234/0/0=abcd"},
		"what is shared among objects":  {"/26241/0/5700", "E41644 41AB3333", "26241/0/5700=21.4"},
		"bytes that nobody knows":       {"/10234/0/0", "C3 00 0001FF", "10234/0/0=AAH_"},
		"nothing":                       {"/3/0", "", ""},
		"a number that is none":         {"/3303/0/5700", "E41644 7FC00000", ""},
		"instances with large numbers":  {"/3303", "2807D0 07 E41644 41AB3333", "3303/2000/5700=21.4 °C"},
		"a resource with a long length": {"/3/0/0", "D0000003616263", "3/0/0=abc"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := read(t, c.path, c.hex)
			if err != nil || got != c.want {
				t.Errorf("%q, %v\nwant %q", got, err, c.want)
			}
		})
	}
}

func TestWrongTLV(t *testing.T) {
	for name, c := range map[string]struct{ path, hex string }{
		"ends in a number":         {"/3/0", "C1"},
		"ends in a length":         {"/3/0", "C800"},
		"ends in a value":          {"/3/0", "C10A"},
		"a resource in a resource": {"/3/0", "8307 C10A05"},
		"an instance in another":   {"/3/0", "0801 03 C10964"},
		"another resource":         {"/3/0/9", "C10A05"},
		"twice the same":           {"/3/0", "C10964 C10965"},
		"a long truth value":       {"/3311/0", "E216DA 0101"},
		"a whole number of 3":      {"/3/0", "C309 000064"},
		"a float of 2":             {"/3303/0", "E21644 4140"},
		"no text":                  {"/3/0", "C200 FFFE"},
		"an instance of nothing":   {"/3/0", "4100 05"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := read(t, c.path, c.hex); err == nil {
				t.Errorf("taken: %s", got)
			}
		})
	}
}

// TestWritten reads what is written.
func TestWritten(t *testing.T) {
	number := func(s string) devices.Value {
		v, err := devices.ParseNumber(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for path, v := range map[string]devices.Value{
		"/3311/0/5850": devices.Bool(true), "/3311/0/5851": number("70"), "/3308/1/5900": number("21.5"), "/3308/0/5900": number("-4"),
		"/3/0/14": devices.Text("+02:00"), "/3341/0/5527": devices.Text(strings.Repeat("x", 300)), "/3/0/13": number("1795939200"), "/1/0/1": number("40000"),
		"/3340/0/5521": number("99999"), "/1/0/2": number("-129"),
	} {
		at, _ := ParsePath(path)
		b, err := AppendTLV(nil, at, v)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		values, err := ParseTLV(b, at[:2])
		if err != nil || len(values) != 1 || values[0].Value.String() != v.String() || !reflect.DeepEqual(values[0].Path, at) {
			t.Errorf("%s: %v %v of %x, not %v", path, values, err, b, v)
		}
	}
	for path, v := range map[string]devices.Value{"/3311/0/5850": number("1"), "/3311/0/5851": number("1.5"), "/9999/0/1": number("1"), "/3/0/4": devices.Text("")} {
		at, _ := ParsePath(path)
		if b, err := AppendTLV(nil, at, v); err == nil {
			t.Errorf("%s = %v is written: %x", path, v, b)
		}
	}
}

func TestName(t *testing.T) {
	for path, want := range map[string]string{
		"/3303/0/5700": "temperature", "/3303/2/5700": "temperature_2", "/3303/0/5602": "temperature_max_measured_value",
		"/3/0/9": "battery_level", "/3/0/7/1": "power_source_voltage_1", "/3311/0/5850": "light_control", "/3311/0/5851": "light_control_dimmer",
		"/3302/0/5500": "presence", "/6/0/0": "location_latitude", "/3342/0/5500": "on_off_switch", "/26241/0/5700": "object_26241_sensor_value",
		"/3/0/99": "", "/3303/0": "",
	} {
		at, ok := ParsePath(path)
		if got := Name(at); !ok || got != want {
			t.Errorf("%s is %q, not %q", path, got, want)
		}
	}
	for _, path := range []string{"", "/", "/a", "/1/2/3/4/5", "/65536", "/-1", "//1"} {
		if at, ok := ParsePath(path); ok && path != "//1" {
			t.Errorf("%q is a path: %v", path, at)
		}
	}
}

func FuzzTLV(f *testing.F) {
	for _, s := range []string{"08000EC10001C101008302417F07C1037F", "E41644 41AB3333", "880708420000", "C8001400"} {
		b, _ := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		f.Add("/3303/0", b)
		f.Add("/2", b)
	}
	f.Fuzz(func(t *testing.T, path string, b []byte) {
		at, ok := ParsePath(path)
		if !ok {
			return
		}
		values, err := ParseTLV(b, at)
		if err == nil && len(values) > len(b) {
			t.Errorf("%d values of %d bytes", len(values), len(b))
		}
		for _, v := range values {
			if len(v.Path) < 3 || len(v.Value.String()) > max(maxText, len(b)) || !v.Value.IsValid() {
				t.Errorf("%v", v)
			}
		}
	})
}
