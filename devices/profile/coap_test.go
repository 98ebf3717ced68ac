package profile

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// tells writes what a message of a profile says, a reading in [].
func tells(t *testing.T, profile string, m Message) string {
	t.Helper()
	set, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	m.Received = received
	out, err := set.Get(profile).Decode(Place{Device: "kitchen", Location: time.UTC}, m)
	if err != nil {
		return "! " + err.Error()
	}
	var all []string
	for _, r := range out.Readings {
		var fields []string
		for _, f := range r.Fields {
			fields = append(fields, strings.TrimSpace(fmt.Sprintf("%s=%s %s", f.Name, f.Value, f.Unit)))
		}
		all = append(all, "["+strings.Join(fields, ", ")+"]")
	}
	return strings.TrimSpace(out.Identity + " " + strings.Join(all, " "))
}

// TestLwM2M reads what clients send in each of the formats. The JSON and SenML
// are examples of OMA LwM2M Core 1.1 section 7.4 and those that Leshan tests its
// decoder with (LwM2mNodeDecoderTest).
func TestLwM2M(t *testing.T) {
	pack, err := cbor.Marshal([]map[int]any{{-2: "/3303/0/", 0: "5700", 2: 21.5}, {0: "5701", 3: "Cel"}})
	if err != nil {
		t.Fatal(err)
	}
	bytes := func(s string) string {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, c := range map[string]struct {
		path    string
		format  int
		payload string
		want    string
	}{
		"text":                    {"3303/0/5700", 0, "21.40\n", "[3303_0_5700=21.40 °C]"},
		"a switch as text":        {"3311/0/5850", 0, "1", "[3311_0_5850=true]"},
		"text that is no number":  {"3303/0/5700", 0, "warm", `! "warm" is not a number`},
		"text of an instance":     {"3303/0", 0, "21", "! 3303/0 has more than one value, which needs another format than 0"},
		"bytes":                   {"6/0/4", 42, "\x00\x01\xff", "[6_0_4=AAH_]"},
		"CBOR":                    {"3303/0/5700", 60, bytes("f94d60"), "[3303_0_5700=21.5 °C]"},
		"SenML CBOR":              {"3303/0", 112, string(pack), "[3303_0_5700=21.5 °C, 3303_0_5701=Cel]"},
		"SenML without a format":  {"3/0", -1, `[{"bn":"/3/0/","n":"9","v":80}]`, "[3_0_9=80]"},
		"a link in SenML":         {"3/0", 110, `[{"bn":"/3/0/22/","n":"0","vlo":"66:0"}]`, "[3_0_22_0=66:0]"},
		"old JSON":                {"3/0", 11543, `{"bn":"/","e":[{"n":"3/0/0","sv":"x"},{"n":"3/0/9","v":7},{"n":"1/0/6","bv":true}]}`, "[3_0_0=x, 3_0_9=7, 1_0_6=true]"},
		"old JSON of a series":    {"1024/0", 11543, `{"bn":"/1024/0/","e":[{"n":"1","v":22.9,"t":-30},{"n":"1","v":22.4,"t":-5},{"n":"0","sv":"a","t":-5}],"bt":25462634}`, "[1024_0_1=22.9] [1024_0_1=22.4, 1024_0_0=a]"},
		"old JSON without e":      {"3/0", 11543, `{"a":1}`, "! not the JSON of LwM2M: it has no list e"},
		"names that are no paths": {"3/0", 110, `[{"n":"temperature","v":1}]`, `! not SenML of LwM2M: "temperature" is no path of a value`},
		"a text that is none":     {"3303/0", 11542, bytes("e4164441ab3333e3164546fc00"), "! 3303/0/5701: not a text"},
		"a long text":             {"3323/0", 11542, bytes("e4164442c80000") + bytes("f0167604b4") + strings.Repeat("x", 1204), "[3323_0_5700=100 Pa, 3323_0_5750=" + strings.Repeat("x", maxText-3) + "…]"},
		"a unit beside":           {"3323/0", 11542, bytes("e4164442c80000") + bytes("e31645") + "hPa", "[3323_0_5700=100 hPa, 3323_0_5701=hPa]"},
		"no path":                 {"hello", 11542, "\x01", "! no path of an object"},
		"another format":          {"3/0", 41, "<a/>", "! content format 41 is none of LwM2M"},
		"a registration": {"rd", 40, `</lwm2m>;rt="oma.lwm2m";ct=11543,</lwm2m/3/0>,</lwm2m/3303/0>,</lwm2m/3303/1>,</lwm2m/5>;ver=1.0,</other>`,
			"[root_rt=oma.lwm2m, root_ct=11543] [object=3, instance=3/0] [object=3303, instance=3303/0] [instance=3303/1] [object=5, object_5_ver=1.0] [resource=/other]"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tells(t, "lwm2m", Message{Topic: c.path, ContentFormat: c.format, Payload: []byte(c.payload)}); got != c.want {
				t.Errorf("%s\nwant %s", got, c.want)
			}
		})
	}
}

func TestLinks(t *testing.T) {
	for links, want := range map[string]string{
		"": "",
		`</sensors>;ct=40;title="Sensor Index",</sensors/temp>;rt="temperature-c";if="sensor"`: "[resource=/sensors, sensors_ct=40, sensors_title=Sensor Index] [resource=/sensors/temp, sensors_temp_rt=temperature-c, sensors_temp_if=sensor]",
		`</a>;title="a, b; \"c\" <d>";obs , </b>; ct="0 50"`:                                   `[resource=/a, a_title=a, b; "c" <d>, a_obs=true] [resource=/b, b_ct=0 50]`,
		`<http://www.example.com/sensors/t123>;anchor="/sensors/temp";rel="describedby"`:       "[describedby=http://www.example.com/sensors/t123]",
		`</a>;`:                               "[resource=/a]",
		`</a`:                                 "! not a list of links: a link ends early",
		`</a>;t="x`:                           "! not a list of links: a text in quotes does not end",
		`</a></b>`:                            `! not a list of links: "</b>" between two`,
		`/a`:                                  `! not a list of links: "/a" is no link`,
		`</a>;t=x y`:                          `! not a list of links: "y" between two`,
		"</a>\xff":                            "! not a list of links: not text",
		strings.Repeat("</a>,", 501) + "</a>": "! not a list of links: more than 500",
	} {
		if got := tells(t, "coap-linkformat", Message{Topic: ".well-known/core", ContentFormat: 40, Payload: []byte(links)}); got != want {
			t.Errorf("%.60s\nis   %s\nwant %s", links, got, want)
		}
	}
}

// TestCoIoT reads what devices of several kinds say. The ids and their meaning
// are those of descriptions that devices gave (ioBroker.shelly b19d1dd
// src/lib/devices/gen1); the numbers are ours.
func TestCoIoT(t *testing.T) {
	for payload, want := range map[string]string{
		`{"G":[[0,9103,0],[0,1101,1],[0,1201,0],[0,4201,12.5],[0,4203,77],[0,3104,41.2],[0,3105,999],[0,6102,0]]}`: "SHSW-25#AABBCC#2 [9103_cfgchanged=0, 1101_output=true, 1201_output=false, 4201_power=12.5 W, 4203_energy=77 Wmin, 3104_devicetemp=41.2 °C, 6102_overpower=false]",
		`{"G":[[0,3108,-1],[0,3109,-1],[0,3106,-1],[0,3111,64]]}`:                                                  "SHSW-25#AABBCC#2 [3111_battery=64 %]",
		`{"G":[[0,111,50],[0,9102,["button","alarm"]]]}`:                                                           "SHSW-25#AABBCC#2 [111=50, 9102_wakeupevent=button,alarm]",
		`{"G":[[0,111]]}`:   "! not CoIoT: no list of channels, ids and values",
		`{"G":7}`:           "! not CoIoT: neither a status nor a description",
		`{"sen":[{"D":1}]}`: "! not CoIoT: sensor 0 has no id",
		`x`:                 "! neither a status nor a description",
	} {
		if got := tells(t, "shelly-coiot", Message{Topic: "cit/s", ContentFormat: -1, Payload: []byte(payload), Sender: "SHSW-25#AABBCC#2"}); got != want {
			t.Errorf("%s\nis   %s\nwant %s", payload, got, want)
		}
	}
}

// TestContikiXML reads the XML that its resources write (res-light.c; the
// numbers are ours). That of sht11 is none.
func TestContikiXML(t *testing.T) {
	for payload, want := range map[string]string{
		`<light photosynthetic="123" solar="456"/>`: "[light_photosynthetic=123, light_solar=456]",
		`<Temperature ="21" Humidity="45"/>`:        "! not XML: XML syntax error on line 1: expected attribute name in element",
	} {
		if got := tells(t, "contiki-ng", Message{Topic: "sensors/light", ContentFormat: 41, Payload: []byte(payload)}); got != want {
			t.Errorf("%s\nis   %s\nwant %s", payload, got, want)
		}
	}
}

func FuzzLinks(f *testing.F) {
	f.Add([]byte(`</a>;title="a, b; \"c\" <d>";obs , </b>; ct="0 50"`))
	f.Fuzz(func(t *testing.T, b []byte) {
		links, err := ParseLinks(b)
		if err == nil && len(links) > len(b)/2 {
			t.Errorf("%d links of %d bytes", len(links), len(b))
		}
	})
}
