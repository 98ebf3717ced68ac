package profile

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
	profiles "github.com/porchlight-iot/porchlight/firmware-profiles"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// berlin is where the devices of the tests are.
func berlin(t testing.TB) *time.Location {
	t.Helper()
	l, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func builtin(t testing.TB, id string) *Profile {
	t.Helper()
	set, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	p := set.Get(id)
	if p == nil {
		t.Fatalf("there is no profile %s; there are %v", id, set.Names())
	}
	return p
}

// received is after everything that the samples tell of.
var received = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// A sample is one case of firmware-profiles/testdata/<profile>.json.
type sample struct {
	Source       string   `json:"source"`                 // where the message was seen
	Device       string   `json:"device,omitempty"`       // topic of the device; empty where there is none
	Topic        string   `json:"topic,omitempty"`        //
	Format       *int     `json:"format,omitempty"`       // CoAP content format
	Payload      string   `json:"payload,omitempty"`      //
	PayloadHex   string   `json:"payload_hex,omitempty"`  //
	Identity     string   `json:"identity,omitempty"`     //
	Readings     []string `json:"readings,omitempty"`     // "time name=value unit, …"; time - where there is none
	Availability string   `json:"availability,omitempty"` // online, offline, sleeping
	Error        string   `json:"error,omitempty"`        // part of it
}

func samplesFile(id string) string {
	return filepath.Join("..", "..", "firmware-profiles", "testdata", id+".json")
}

func readSamples(t testing.TB, id string) (samples []sample) {
	t.Helper()
	data, err := os.ReadFile(samplesFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has lines: TestSampleLines
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &samples); err != nil {
		t.Fatalf("%s: %v", samplesFile(id), err)
	}
	return samples
}

func (s sample) payload(t testing.TB) []byte {
	if s.PayloadHex == "" {
		return []byte(s.Payload)
	}
	payload, err := hex.DecodeString(s.PayloadHex)
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

func (s sample) decode(t testing.TB, p *Profile) (Output, error) {
	m := Message{Topic: s.Topic, Payload: s.payload(t), ContentFormat: -1, Received: received}
	if s.Format != nil {
		m.ContentFormat = *s.Format
	}
	return p.Decode(Place{Device: "kitchen", Topic: s.Device, Location: berlin(t)}, m)
}

// shown writes readings as the samples have them.
func shown(rs []devices.Reading) []string {
	var out []string
	for _, r := range rs {
		at := "-"
		if !r.Time.IsZero() {
			at = r.Time.UTC().Format(time.RFC3339Nano)
		}
		var fields []string
		for _, f := range r.Fields {
			s := f.Name + "=" + f.Value.String()
			if f.Value.Kind() == devices.TextValue {
				s = f.Name + "=" + fmt.Sprintf("%q", f.Value.String())
			}
			if f.Unit != "" {
				s += " " + string(f.Unit)
			}
			fields = append(fields, s)
		}
		out = append(out, at+" "+strings.Join(fields, ", "))
	}
	return out
}

// TestSamples runs every profile over its samples, which are messages seen of
// real firmwares. `go test -run Samples -v` with UPDATE=1 writes what comes
// out into files where a sample has none yet, for a person to read.
func TestSamples(t *testing.T) {
	set, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	words := map[devices.Availability]string{devices.Online: "online", devices.Offline: "offline", devices.Sleeping: "sleeping"}
	for _, id := range set.Names() {
		samples := readSamples(t, id)
		for i := range samples {
			s := &samples[i]
			t.Run(fmt.Sprintf("%s/%d", id, i), func(t *testing.T) {
				out, err := s.decode(t, set.Get(id))
				if err != nil {
					if s.Error == "" || !strings.Contains(err.Error(), s.Error) {
						t.Errorf("%s: %v, want %q", s.Source, err, s.Error)
					}
					return
				}
				got := shown(out.Readings)
				if os.Getenv("UPDATE") != "" && s.Readings == nil && s.Availability == "" && s.Identity == "" {
					s.Readings, s.Availability, s.Identity = got, words[out.Availability], out.Identity
				}
				if !slices.Equal(got, s.Readings) || words[out.Availability] != s.Availability || out.Identity != s.Identity || s.Error != "" {
					t.Errorf("%s:\n got %q %q %s\nwant %q %q %s %s", s.Source, out.Identity, got, words[out.Availability], s.Identity, s.Readings, s.Availability, s.Error)
				}
			})
		}
		if os.Getenv("UPDATE") != "" && len(samples) > 0 {
			var b strings.Builder
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			e.SetIndent("", " ")
			if err := e.Encode(samples); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(samplesFile(id), []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestFilters(t *testing.T) {
	for id, want := range map[string]string{
		"tasmota": "tele/kitchen/+ +/tele/kitchen/+ stat/kitchen/+ +/stat/kitchen/+ kitchen/tele/+ kitchen/stat/+",
		"json":    "kitchen kitchen/LWT kitchen/availability",
		"senml":   "kitchen kitchen/LWT kitchen/availability",
		"value":   "kitchen kitchen/+",
		"lines":   "",
	} {
		got := builtin(t, id).Filters(Place{Topic: "kitchen"})
		slices.Sort(got)
		wanted := strings.Fields(want)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Errorf("%s: %q, want %q", id, got, wanted)
		}
		if got := builtin(t, id).Filters(Place{}); len(got) > 0 {
			t.Errorf("%s without a topic: %q", id, got)
		}
	}
}

func TestTakesIn(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "a/b", false}, {"a/b", "a", false},
		{"+", "a", true}, {"a", "+", false}, {"a/+", "a/b", true}, {"a/+", "a", false}, {"a/+", "a/b/c", false},
		{"#", "a/b", true}, {"a/#", "a", true}, {"a/#", "a/+/c", true}, {"a/+", "a/#", false}, {"a/#", "b/c", false},
	} {
		if got := takesIn(c.a, c.b); got != c.want {
			t.Errorf("%s takes in %s: %v", c.a, c.b, got)
		}
	}
}

func TestMatches(t *testing.T) {
	p := builtin(t, "tasmota")
	for topic, want := range map[string]bool{
		"tele/kitchen/SENSOR": true, "home/tele/kitchen/STATE": true, "kitchen/stat/RESULT": true,
		"tele/hall/SENSOR": false, "cmnd/kitchen/POWER": false, "kitchen": false, "tele/kitchen": false, "": false,
		strings.Repeat("a/", maxLevels) + "tele/kitchen/SENSOR": false,
		strings.Repeat("/", 65535):                              false,
	} {
		if got := p.Matches(Place{Topic: "kitchen"}, topic); got != want {
			t.Errorf("%.40s: %v", topic, got)
		}
		if p.Matches(Place{}, topic) {
			t.Errorf("%.40s is a topic of a device that has none", topic)
		}
	}
	if !p.Matches(Place{Topic: "house/kitchen"}, "tele/house/kitchen/SENSOR") {
		t.Error("a device's topic may have levels")
	}
}

// profileWith makes a profile of lines, which take the place of the same keys
// of one that is sound.
func profileWith(lines ...string) (*Profile, error) {
	whole := map[string]string{"profile": "1", "id": "x", "name": "X", "transport": "[mqtt, coap]", "match": `[{topic: "{device...}"}]`, "decode": "[{json: {}}]"}
	text := ""
	for _, line := range lines {
		key, _, _ := strings.Cut(line, ":")
		delete(whole, key)
		text += line + "\n"
	}
	for _, key := range sortedKeys(whole) {
		text += key + ": " + whole[key] + "\n"
	}
	return Parse("profiles/x.yaml", []byte(text))
}

func TestFaultsOfProfile(t *testing.T) {
	if _, err := profileWith(); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"profile: 2":                                                      "profile: 2 is out of bounds",
		"id: y":                                                           `id: "y" is not the file's name; allowed: x`,
		"transport: [zigbee]":                                             "transport[0]",
		"transport: [serial]":                                             "match: topics are for mqtt",
		"match: []":                                                       "match: topics are for mqtt",
		`match: [{topic: "a/{b}"}]`:                                       "match[0].topic: no level is the device",
		`match: [{topic: "{device"}]`:                                     "a capture ends with }",
		`match: [{topic: "{device}+"}]`:                                   "a capture ends with }",
		`match: [{topic: "+/{device}"}]`:                                  "a level is text or one {capture}",
		`match: [{topic: "{d=[}"}]`:                                       "is no pattern",
		`match: [{topic: "{a}/{a}"}]`:                                     "is captured twice",
		`match: [{topic: "{A}"}]`:                                         "the name of a capture",
		"decode: [{json: {}, skip: true}]":                                "it has 2 ways to read a message",
		"decode: [{}]":                                                    "it has 0 ways to read a message",
		"decode: [{json: {}}, {skip: true}]":                              "without when it takes every message",
		"decode: [{when: {colour: red}, json: {}}]":                       `no topic has the capture "colour"`,
		"decode: [{when: {first: '['}, json: {}}]":                        "decode[0].when.first",
		`decode: [{value: {name: "{leaf}"}}]`:                             `decode[0].value.name: no topic has the capture "leaf"`,
		"decode: [{json: {root: [a//b]}}]":                                "a name in the path is empty",
		"decode: [{availability: {words: {a: up}}}]":                      `"up" is not one of the allowed values`,
		`fields: [{select: "{a,{b}"}]`:                                    "a { without its own }",
		`fields: [{select: "a}"}]`:                                        "a } without {",
		`fields: [{select: "a//b"}]`:                                      "is no pattern",
		`fields: [{select: "[a"}]`:                                        "is no pattern",
		`fields: [{select: "` + strings.Repeat("{a,b}", 9) + `"}]`:        "more than 256 alternatives",
		`fields: [{select: "**"}, {select: a}]`:                           `fields[1].select: "a" never gets here: fields[0] takes all of it`,
		`fields: [{select: "a/*"}, {select: "{b,a/c}"}]`:                  `fields[1].select: "a/c" never gets here`,
		`match: [{topic: "{device...}/{a*}/{b*}/{c*}"}]`:                  "more than 3 captures of several",
		`match: [{topic: "{device...}` + strings.Repeat("/a", 30) + `"}]`: "more than 24 levels",
		`fields: [{select: "**/a/**/b/**"}]`:                              "more than 2 times **",
		`fields: [{select: "` + strings.Repeat("a/", 20) + `a"}]`:         "more than 13 names",
		`fields: [` + strings.Repeat(`{select: "{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}"}, `, 4) + `]`: "its selectors have 512 alternatives",
		"fields: [{select: a, words: {ON: true}}]":                                                 "fields[0].words.ON: is a truth value",
		"fields: [{select: a, words: {A: yes}}]":                                                   `what "A" is, is no value`,
		"fields: [{select: a, name: A b}]":                                                         "write a_b",
		"fields: [{select: a, drop: true, unit: W}]":                                               "what is dropped needs nothing else",
		"fields: [{select: a, units: {'[': W}}]":                                                   `"[" is no pattern`,
		"fields: [{select: a, kind: measure}]":                                                     "fields[0].kind",
		"fields: [{unit: W}]":                                                                      "fields[0].select: is missing",
		"time: [{path: t, format: s, zone: utc}]":                                                  "a time since 1970 has no zone",
		"rest: {create: all}":                                                                      "rest.create",
		"limits: {max_bytes: 5MiB}":                                                                "limits.max_bytes",
		"limits: {max_fields: 0}":                                                                  "limits.max_fields",
		"feilds: []":                                                                               `did you mean "fields"?`,
	} {
		if _, err := profileWith(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestFaultsTogether checks that one reading of a file tells all.
func TestFaultsTogether(t *testing.T) {
	_, err := profileWith("id: y", `fields: [{select: "**"}, {select: b}]`, "time: [{path: t, format: ms, zone: utc}]")
	var faults strictyaml.Faults
	if !errors.As(err, &faults) || len(faults) != 3 {
		t.Fatalf("%v", err)
	}
	for i, f := range faults {
		if f.File != "profiles/x.yaml" || f.Line != i+1 || f.Column == 0 {
			t.Errorf("%v", f)
		}
	}
}

// decodeOne reads a payload from the topic of a device, and gives its fields.
func decodeOne(t *testing.T, p *Profile, payload string) string {
	t.Helper()
	out, err := p.Decode(Place{Device: "kitchen", Topic: "kitchen", Location: berlin(t)}, Message{Topic: "kitchen", Payload: []byte(payload), ContentFormat: -1, Received: received})
	if err != nil {
		t.Fatalf("%s: %v", payload, err)
	}
	return strings.Join(shown(out.Readings), "; ")
}

func TestRules(t *testing.T) {
	for _, c := range []struct{ rules, payload, want string }{
		// The words that YAML once took for truth values stay words.
		{`fields: [{select: a, words: {"ON": true, "off": false, "yes": true, "n": false}}]`, `{"a":"ON","b":"ON"}`, `- a=true, b="ON"`},
		{`fields: [{select: '*', words: {"ON": true, "off": false, "yes": true, "n": false}}]`, `{"a":"off","b":"yes","c":"n","d":"no"}`, `- a=false, b=true, c=false, d="no"`},
		{"fields: [{select: a, words: {'1': true}}]", `{"a":1}`, "- a=true"},
		{"fields: [{select: a, name: temperature, unit: °C}]", `{"a":1,"temperature":2}`, "- temperature=1 °C, temperature_2=2"},
		{"fields: [{select: '**/a', name: t}]", `{"x":[{"a":1},{"a":[2,3]}]}`, "- t_0=1, t_1_0=2, t_1_1=3"},
		{"fields: [{select: a, type: number}]", `{"a":"+01.50","b":"1"}`, `- a=1.50, b="1"`},
		{"fields: [{select: '*', type: number}]", `{"a":"high","b":"1"}`, "- b=1"},
		{"fields: [{select: a, type: text, unit: V}]", `{"a":1.50}`, `- a="1.50"`},
		{"fields: [{select: '*', invalid: ['999', error]}]", `{"a":999.0,"b":"error","c":9990}`, "- c=9990"},
		{"fields: [{select: '*', parse: duration, unit: s}]", `{"a":"0T00:00:07","b":"01:00:00","c":"soon","d":"1T1:1","e":"-1T00:00:00"}`, "- a=7 s, b=3600 s"},
		{"fields: [{select: '**', unit_of: u, units: {C: °C}, unit: K}]", `{"u":"C","a":1,"x":{"b":2,"u":"degF"},"y":{"u":7}}`, `- u="C", a=1 °C, x_b=2 °F, x_u="degF", y_u=7 7`},
		{"fields: [{select: '**', unit_of: u, unit: K}]", `{"a":1,"x":{"b":2,"u":"` + strings.Repeat("x", 25) + `"},"y":{"c":1,"u":"\u0007"}}`, `- a=1 K, x_b=2, x_u="xxxxxxxxxxxxxxxxxxxxxxxxx", y_c=1, y_u="\a"`},
		{"fields: [{select: '*', units: {'p*': W, 'power*': VA, power: var}, unit: V}]", `{"p1":1,"power1":2,"power":3,"u":4,"on":true}`, "- p1=1 W, power1=2 VA, power=3 var, u=4 V, on=true"},
		{"fields: [{select: '{a,b}/?'}, {select: '**', drop: true}]", `{"a":{"x":1,"xy":2},"b":{"y":3},"c":4}`, "- a_x=1, b_y=3"},
		{"fields: [{select: a}]\nrest: {create: none}", `{"a":1,"b":2}`, "- a=1"},
		{"limits: {max_fields: 2}", `{"a":1,"b":2,"c":3}`, "- a=1, b=2; - c=3"},
		{"time: [{path: meta/t, zone: utc}]", `{"meta":{"t":"2026-07-01T08:00:00","n":1}}`, "2026-07-01T08:00:00Z meta_n=1"},
		{"time: [{path: t}]", `{"t":"2026-07-01 08:00:00.25","n":1}`, "2026-07-01T06:00:00.25Z n=1"},
		{"time: [{path: t, zone: device}]", `{"t":"2026-07-01T08:00:00Z","n":1}`, "2026-07-01T08:00:00Z n=1"},
		{"time: [{path: t, format: ms}, {path: u, format: s}]", `{"t":7,"u":1795420800,"n":1}`, "2026-11-23T08:00:00Z n=1"},
		{"time: [{path: t, format: s}]", `{"t":1795435500,"n":1}`, "2026-11-23T12:05:00Z n=1"},
		{"time: [{path: t, format: s}]", `{"t":1795435501,"n":1}`, "- n=1"},
		{"time: [{path: t, format: s}]", `{"t":1577836799,"n":1}`, "- n=1"},
		{"time: [{path: t, format: s}]", `{"t":1e300,"n":1}`, "- t=1e300, n=1"},
		{"decode: [{json: {root: [a/b, c]}}]", `{"c":{"x":1},"a":{"b":{"y":2}}}`, "- y=2"},
		{"decode: [{json: {root: [a/b, c]}}]", `{"c":{"x":1},"a":2}`, "- x=1"},
		{"decode: [{json: {root: [a/*]}}]", `{"a":{"b":{"y":2}}}`, "- y=2"},
		{"decode: [{json: {root: [a/*]}}]", `{"a":{"b":{"y":2},"c":{"y":3}}}`, "- a_b_y=2, a_c_y=3"},
		{"decode: [{json: {}}]", `[1,[true,"x"],{"a":null}]`, `- value_0=1, value_1_0=true, value_1_1="x"`},
		{"decode: [{json: {}}]", `null`, ""},
		{"decode: [{json: {}}]", `{"a":1,"A":2,"Ä":3,"a_2":4,"":5}`, "- a=1, a_2=2, a_2_2=4"},
		{"decode: [{json: {}}]", `{"a":"NaN","b":"","c":"---","d":null,"e":1e999}`, ""},
	} {
		p, err := profileWith(strings.Split(c.rules, "\n")...)
		if err != nil {
			t.Errorf("%s: %v", c.rules, err)
			continue
		}
		if got := decodeOne(t, p, c.payload); got != c.want {
			t.Errorf("%s of %s:\n got %s\nwant %s", c.rules, c.payload, got, c.want)
		}
	}
}

// TestUnder reads a message whose values lie deep, beside a list of which one
// item counts.
func TestUnder(t *testing.T) {
	p, err := Parse("deep.yaml", []byte(`
profile: 1
id: deep
name: Deep
transport: [mqtt]
params: {base: deep}
match: [{topic: "<base>/{kind}/{pin}/{state}"}, {topic: "<base>/{leaf=*_data*}"}, {topic: "{device...=!deep|!a}/{leaf=far_data}"}]
device: {key: ["{device}", "{leaf|before:_data}", "<base>"]}
decode:
  - {when: {pin: "*"}, value: {name: "{kind}/{payload}", is: "{state}"}}
  - json: {at: "{leaf|after:_data_}", best: [{list: rx, by: meta/snr}]}
fields:
  - {under: up/payload, select: "{t,*/t}", unit: °C}
  - {under: up/payload, select: "**"}
tests:
  - topic: deep/a_data
    payload: '{"up":{"payload":{"t":1,"in":{"t":2},"l":[3,4]},"n":5},"rx":[{"meta":{"snr":1},"id":"far"},{"meta":{"snr":7.5},"id":"near"},{"id":"x"}]}'
    device: a
    fields: {t: 1 °C, in_t: 2 °C, l_0: "3", l_1: "4", up_n: "5", rx_meta_snr: "7.5", rx_id: near}
  - {topic: deep/b_data_hc1, payload: '{"rx":[{"id":"first"},{"id":"second"}]}', device: b, fields: {hc1_rx_id: first}}
  - {topic: x/y/far_data, payload: '{"n":1}', device: x/y, fields: {n: "1"}}
  - {topic: deep/y/far_data, payload: '{"n":1}', error: no profile}
  - {topic: deep/gpio/14/1, payload: "relay", device: deep, fields: {gpio_relay: "1"}}
`))
	if err != nil {
		t.Fatal(err)
	}
	wider, err := parse("wider.yaml", []byte("profile: 1\nid: wider\nextends: deep\nparams: {base: a/b}\n"+
		"tests: [{topic: a/b/c_data, payload: '{\"up\":{\"payload\":{\"t\":1}}}', fields: {t: 1 °C}}, {topic: a/b/x/y/1, payload: z, device: a/b}]"), func(string) *Profile { return p })
	if err != nil || wider == nil {
		t.Fatal(err)
	}
}

func TestKinds(t *testing.T) {
	kinds := map[string]devices.FieldKind{"measurement": devices.Measurement, "counter": devices.Counter, "state": devices.Status,
		"event": devices.Event, "setting": devices.Setting, "identity": devices.Identity, "diagnostic": devices.Diagnostic}
	for word, want := range kinds {
		p, err := profileWith("fields: [{select: a, kind: " + word + "}]")
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.Decode(Place{}, Message{Payload: []byte(`{"a":1,"b":2,"c":true,"d":"on"}`), ContentFormat: -1})
		if err != nil {
			t.Fatal(err)
		}
		f := out.Readings[0].Fields
		if f[0].Kind != want || f[1].Kind != devices.Measurement || f[2].Kind != devices.Status || f[3].Kind != devices.Status {
			t.Errorf("%s: %+v", word, f)
		}
	}
}

// TestErrors pins what a person reads in the log.
func TestErrors(t *testing.T) {
	object, lines := builtin(t, "json"), builtin(t, "lines")
	deep := strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)
	for _, c := range []struct {
		p             *Profile
		payload, want string
	}{
		{object, `{"temperature":21`, "not JSON: unexpected end at byte 17"},
		{object, ``, "not JSON: unexpected end at byte 0"},
		{object, `{"a":1}{"b":2}`, "not JSON: something follows the value at byte 8"},
		{object, `{"a" 1}`, "not JSON: invalid character '1' after object key at byte 5"},
		{object, deep, "not JSON: deeper than 12 at byte 64"},
		{object, `{"a":[` + strings.Repeat("1,", maxMembers) + `1]}`, "not JSON: more than 2000 members at byte 4001"},
		{object, `{"` + strings.Repeat("x", maxMemberName+1) + `":1}`, "not JSON: a name of 257 bytes, more than 256 at byte 260"},
		{object, `{"a":"` + strings.Repeat("x", maxPayload) + `"}`, "65544 bytes are more than the 65536 that a message may have"},
		{lines, "", "not names and values: an empty line"},
		{lines, "load " + strings.Repeat("x", 100), `not names and values: "load"`},
		{lines, "=1", `not names and values: "=1"`},
	} {
		_, err := c.p.Decode(Place{Device: "kitchen"}, Message{Payload: []byte(c.payload), ContentFormat: -1, Received: received})
		if err == nil || err.Error() != c.want {
			t.Errorf("%.40s: %v, want %s", c.payload, err, c.want)
		}
	}
	if _, err := builtin(t, "tasmota").Decode(Place{Topic: "kitchen"}, Message{Topic: "tele/hall/STATE"}); !errors.Is(err, ErrNotOurs) {
		t.Error(err)
	}
	small, err := profileWith("limits: {max_bytes: 10}", "decode: [{when: {first: '{'}, json: {}}]")
	if err != nil {
		t.Fatal(err)
	}
	for payload, want := range map[string]string{
		`{"a":12345}`: "11 bytes are more than the 10 that a message may have",
		`[1]`:         "no way to read this kind of message",
		"":            "no way to read this kind of message",
	} {
		if _, err := small.Decode(Place{}, Message{Payload: []byte(payload), ContentFormat: -1}); err == nil || err.Error() != want {
			t.Errorf("%s: %v", payload, err)
		}
	}
}

// TestManyFields sends more fields than a reading may have: what does not fit
// follows in readings of the same time, for the message is acknowledged.
func TestManyFields(t *testing.T) {
	const many = 2*maxFields + 50
	var records, numbers, records2 []string
	for i := range many {
		records = append(records, fmt.Sprintf(`{"n":"a","v":%d}`, i))
		records2 = append(records2, fmt.Sprintf(`{"n":"a","v":%d,"t":%d}`, i, i%2))
		numbers = append(numbers, strconv.Itoa(i))
	}
	list := `[` + strings.Join(numbers, ",") + `]`
	for _, c := range []struct {
		profile, payload string
		format           int
		readings         int
	}{
		{"json", `{"a":` + list + `}`, -1, 3},
		{"senml", "[" + strings.Join(records, ",") + "]", 110, 3},
		{"senml", "[" + `{"bt":1784000000},` + strings.Join(records2, ",") + "]", 110, 4},
	} {
		out, err := builtin(t, c.profile).Decode(Place{Device: "kitchen"}, Message{Payload: []byte(c.payload), ContentFormat: c.format, Received: received})
		if err != nil || len(out.Readings) != c.readings {
			t.Errorf("%s: %v, %d readings", c.profile, err, len(out.Readings))
		}
		got := make(map[string]string)
		for i, r := range out.Readings {
			if len(r.Fields) > maxFields || r.Device != "kitchen" || i > 0 && r.Time.Before(out.Readings[i-1].Time) {
				t.Errorf("%s: %d fields of %s at %v", c.profile, len(r.Fields), r.Device, r.Time)
			}
			for _, f := range r.Fields {
				got[r.Time.String()+f.Name] = f.Value.String()
			}
		}
		if values := slices.Sorted(maps.Values(got)); len(got) != many || !slices.Equal(values, slices.Sorted(slices.Values(numbers))) {
			t.Errorf("%s: %d fields of %d", c.profile, len(got), many)
		}
	}
	// A device of several in one message has as many.
	p, err := profileWith("device: {children: {each: '*'}}")
	if err != nil {
		t.Fatal(err)
	}
	payload := `{"x":{"a":` + list + `}}`
	out, err := p.Decode(Place{}, Message{Topic: "kitchen", Payload: []byte(payload), ContentFormat: -1, Received: received})
	if err != nil || len(out.Children) != 1 || len(out.Children[0].Readings) != 3 {
		t.Errorf("%v, %+v", err, out.Children)
	}
	// What an announcement says of itself leaves all readings beside it.
	both := merge([]Output{{Identity: "a", Readings: []devices.Reading{{Fields: make([]devices.Field, 1)}}}}, Output{Identity: "a", Readings: out.Children[0].Readings})
	if rs := both[0].Readings; len(rs) != 3 || len(rs[0].Fields) != maxFields+1 || len(rs[2].Fields) != many-2*maxFields {
		t.Errorf("%d readings", len(rs))
	}
	// More devices than are looked at are refused, all of them.
	payload = `{` + strings.Repeat(`"x":{"a":1},`, maxChildren) + `"x":{"a":1}}`
	if out, err = p.Decode(Place{}, Message{Topic: "kitchen", Payload: []byte(payload), ContentFormat: -1, Received: received}); err == nil || err.Error() != "more than 500 devices in one message" {
		t.Errorf("%v, %d devices", err, len(out.Children))
	}
}

// TestLongTexts sends texts that are longer than a value may be: they are cut, and
// it shows. What a message of nothing else says is refused.
func TestLongTexts(t *testing.T) {
	long := strings.Repeat("ä", maxText/2+1)
	want := strings.Repeat("ä", maxText/2-2) + "…" // the ellipsis has three bytes
	whole := strings.Repeat("ä", maxText/2)
	var board []byte
	for _, octet := range []byte(long) {
		board = append(board, octet&0x7f, octet>>7)
	}
	for _, c := range []struct {
		profile, payload string
		format           int
		want             []string
	}{
		{"json", `{"a":"` + long + `","b":1}`, -1, []string{"a=" + want, "b=1"}},
		{"json", `{"a":"` + whole + `","b":1}`, -1, []string{"a=" + whole, "b=1"}},
		{"json", `{"a":["` + long + `","x"]}`, -1, []string{"a_0=" + want, "a_1=x"}},
		{"senml", `[{"n":"a","vs":"` + long + `"},{"n":"b","v":1}]`, 110, []string{"a=" + want, "b=1"}},
		{"firmata", "\xf0\x71" + string(board) + "\xf7", -1, []string{"text=" + want}},
		{"value", long, -1, nil},
	} {
		out, err := builtin(t, c.profile).Decode(Place{Device: "kitchen"}, Message{Topic: "kitchen", Payload: []byte(c.payload), ContentFormat: c.format, Received: received})
		var got []string
		for _, r := range out.Readings {
			for _, f := range r.Fields {
				got = append(got, f.Name+"="+f.Value.String())
			}
		}
		if (err != nil) != (c.want == nil) || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %q", c.profile, err, got)
		}
	}
	for rule, payload := range map[string]string{
		"xml: {}":          "<v><a>" + long + "</a><b>1</b></v>",
		"code: attributes": `<v a="` + long + `" b="1"/>`,
	} {
		p, err := profileWith("decode: [{" + rule + "}]")
		if err != nil {
			t.Fatal(err)
		}
		if got := decodeOne(t, p, payload); !strings.Contains(got, `"`+want+`", `) || !strings.Contains(got, "b=1") {
			t.Errorf("%s: %s", rule, got)
		}
	}
	// A device that announces itself may say a text and nothing else; a picture is none.
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	h := library.NewSession(time.UTC)
	for _, m := range [][2]string{
		{"homeassistant/sensor/news/config", `{"uniq_id":"news","name":"News","stat_t":"diy/news"}`},
		{"diy/news", long},
		{"diy/news", strings.Repeat("\xff\xd8", maxText)},
	} {
		out, err := h.Hear(Message{Topic: m[0], Payload: []byte(m[1]), ContentFormat: -1, Received: received})
		if err != nil {
			t.Fatal(err)
		}
		if out.Announced {
			continue
		}
		if m[1] == long && (len(out.Readings) != 1 || out.Readings[0].Fields[0].Value.String() != want) || m[1] != long && len(out.Readings) != 0 {
			t.Errorf("%.40q: %+v", m[1], out.Readings)
		}
	}
}

// TestBounds sends what is cut rather than refused.
func TestBounds(t *testing.T) {
	long := strings.Repeat("x", 250)
	out, err := builtin(t, "json").Decode(Place{}, Message{Payload: []byte(`{"` + long + `a":1,"` + long + `b":2}`), ContentFormat: -1})
	if err != nil || out.Readings[0].Fields[0].Name != long[:maxName] || out.Readings[0].Fields[1].Name != long[:maxName]+"_2" {
		t.Errorf("%v, %+v", err, out.Readings)
	}
}

func TestShifted(t *testing.T) {
	for _, c := range []struct {
		whole  string
		places int64
		want   string
	}{
		{"2140", -2, "21.40"}, {"5", -2, "0.05"}, {"-5", -1, "-0.5"}, {"-2140", -2, "-21.40"}, {"7", 3, "7e3"}, {"7", -31, "7e-31"}, {"7", 0, "7."}, {"12", -2, "0.12"},
	} {
		if got := shifted(c.whole, c.places); got != c.want {
			t.Errorf("%se%d: %s", c.whole, c.places, got)
		}
	}
}

// TestConcurrent decodes with one profile from several goroutines, as drivers
// do; the race detector judges.
func TestConcurrent(t *testing.T) {
	p := builtin(t, "tasmota")
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				_, err := p.Decode(Place{Topic: "kitchen"}, Message{Topic: "tele/kitchen/SENSOR", Payload: []byte(`{"DS18B20":{"Temperature":20.6}}`), ContentFormat: -1})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func FuzzDecode(f *testing.F) {
	set, err := Builtin()
	if err != nil {
		f.Fatal(err)
	}
	for i, id := range set.Names() {
		for _, s := range readSamples(f, id) {
			format := -1
			if s.Format != nil {
				format = *s.Format
			}
			f.Add(uint8(i), s.Topic, s.payload(f), format)
		}
	}
	for _, s := range allLines(f) { // of ports and CoAP servers, whose profiles have no other samples
		if p := set.Get(s.Firmware); s.Transport != "mqtt" && p != nil {
			m, err := s.Message(received)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(slices.Index(set.Names(), p.ID())), m.Topic, m.Payload, m.ContentFormat)
		}
	}
	wellFormed := regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)
	f.Fuzz(func(t *testing.T, which uint8, topic string, payload []byte, format int) {
		p := set.Get(set.Names()[int(which)%len(set.Names())])
		at := Place{Device: "kitchen", Topic: "kitchen", Location: time.UTC}
		if !p.Matches(at, topic) {
			at.Topic = ""
		}
		out, err := p.Decode(at, Message{Topic: topic, Payload: payload, ContentFormat: format, Received: received})
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 300 || len(out.Readings) > 0 {
				t.Errorf("%q", err)
			}
			return
		}
		var last time.Time
		for _, r := range out.Readings {
			if r.Device != "kitchen" || len(r.Fields) == 0 || len(r.Fields) > maxFields {
				t.Errorf("reading of %s with %d fields", r.Device, len(r.Fields))
			}
			if !r.Time.IsZero() && (!devices.Believable(r.Time, received) || r.Time.Before(last)) {
				t.Errorf("time %v after %v", r.Time, last)
			}
			if !r.Time.IsZero() {
				last = r.Time
			}
			seen := map[string]bool{}
			for _, field := range r.Fields {
				if !wellFormed.MatchString(field.Name) || len(field.Name) > 200 || seen[field.Name] ||
					!field.Value.IsValid() || len(field.Value.String()) > maxText || len(field.Unit) > maxUnit+8 || !utf8.ValidString(string(field.Unit)) {
					t.Errorf("field %+v", field)
				}
				seen[field.Name] = true
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	entries, err := profiles.FS.ReadDir(".")
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range entries {
		data, err := profiles.FS.ReadFile(e.Name())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse("x.yaml", []byte(text))
		if err != nil {
			return
		}
		at := Place{Device: "a", Topic: "a/b"}
		filters := p.Filters(at)
		if len(filters) > maxFilters*len(p.file.Match) {
			t.Errorf("%d filters", len(filters))
		}
		for i, a := range filters {
			for j, b := range filters {
				if i != j && takesIn(a, b) {
					t.Errorf("%s lies in %s", b, a)
				}
			}
		}
		_, _ = p.Decode(Place{Device: "a"}, Message{Payload: []byte(`{"a":{"b":[1,"x"]},"t":7}`), ContentFormat: -1, Received: received})
	})
}
