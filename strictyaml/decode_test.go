package strictyaml

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

type testFile struct {
	Name    string            `yaml:"name,required" doc:"What people call it."`
	On      bool              `yaml:"on"`
	Mode    string            `yaml:"mode" enum:"ask,auto,off" doc:"What to do."`
	Count   int               `yaml:"count" min:"1" max:"10"`
	Small   uint8             `yaml:"small"`
	Ratio   float64           `yaml:"ratio" min:"-1"`
	Wait    time.Duration     `yaml:"wait" min:"1s" max:"1h"`
	Limit   Size              `yaml:"limit" min:"1KiB"`
	Tags    []string          `yaml:"tags" enum:"red,green"`
	Labels  map[string]string `yaml:"labels"`
	Serial  *testSerial       `yaml:"serial"`
	Parts   []testSerial      `yaml:"parts"`
	By      map[string]testID `yaml:"by"`
	Any     yaml.Node         `yaml:"any"`
	Ignored string
}

type testSerial struct {
	Port string `yaml:"port,required"`
	Baud int    `yaml:"baud"`
}

func (s *testSerial) SetDefaults() { s.Baud = 115200 }

type testID string

func (id *testID) UnmarshalText(b []byte) error {
	if string(b) == "bad" {
		return errors.New("is bad")
	}
	*id = testID(b)
	return nil
}

func (id testID) Allowed() string { return "ids" }

func (id testID) Example() string { return "good" }

func TestDecode(t *testing.T) {
	const in = `# a comment
name: 1.10
on: true
mode: off
count: 0x0a
small: +255
ratio: -.5e0
wait: 1m30s
limit: 256MiB
tags: [red, &g green, *g]
labels: {on: yes, 2: no, t: 2027-01-01}
serial: &s {port: /dev/ttyS0}
parts:
  - *s
  - port: "true"
    baud: 300
by: {x: 12}
any: {a: [*g, *s], b: null}
`
	got := testFile{Ignored: "kept", Count: 3}
	doc, faults := Decode("f.yaml", []byte(in), &got)
	if faults.Err() != nil {
		t.Fatal(faults)
	}
	node := got.Any
	got.Any = yaml.Node{}
	want := testFile{
		Name: "1.10", On: true, Mode: "off", Count: 10, Small: 255, Ratio: -.5, Wait: 90 * time.Second, Limit: 256 << 20,
		Tags: []string{"red", "green", "green"}, Labels: map[string]string{"on": "yes", "2": "no", "t": "2027-01-01"},
		Serial: &testSerial{"/dev/ttyS0", 115200}, Parts: []testSerial{{"/dev/ttyS0", 115200}, {"true", 300}},
		By: map[string]testID{"x": "12"}, Ignored: "kept",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	var tree any
	if err := node.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprint(tree); s != "map[a:[green map[port:/dev/ttyS0]] b:<nil>]" {
		t.Errorf("the node holds %s", s)
	}

	places := []struct {
		path []any
		want string
	}{
		{nil, "2:1"},
		{[]any{"name"}, "2:7"},
		{[]any{"parts"}, "13:1"},
		{[]any{"parts", 1}, "15:5"},
		{[]any{"parts", 1, "baud"}, "16:11"},
		{[]any{"parts", 0, "port"}, "12:19"}, // where the alias leads
		{[]any{"parts", 1, "missing", "deeper"}, "15:5"},
		{[]any{"parts", 7}, "13:1"},
		{[]any{"nothing"}, "2:1"},
	}
	for _, p := range places {
		line, column := doc.At(p.path...)
		if got := fmt.Sprintf("%d:%d", line, column); got != p.want {
			t.Errorf("At(%v) = %s, want %s", p.path, got, p.want)
		}
	}
	if !doc.Has("parts[1].baud") || doc.Has("parts[0].baud") || doc.Has("parts[2].port") || !doc.Has("") {
		t.Error("Has does not tell what is there")
	}
	f := doc.Fault("parts[1].baud", "is odd", "even ones", "make it even")
	if got, want := f.String(), "f.yaml:16:11: parts[1].baud: is odd; allowed: even ones; make it even"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	f = doc.Fault(`labels["2"]`, "is odd", "", "")
	if got, want := f.String(), `f.yaml:11:22: labels["2"]: is odd`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestFaults holds the words that people read. Each case is a file and all of
// its faults.
func TestFaults(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"empty":         {"", `f:1:1: name: is missing; allowed: a text; add it`},
		"only comments": {"# nothing\n", `f:1:1: name: is missing; allowed: a text; add it`},
		"unknown keys, several at once": {"name: x\nmdoe: off\nSerial: {}\nfoo: 1\nserial: {prot: a, port: b}\n", strings.Join([]string{
			`f:2:1: mdoe: is not a known key; allowed: keys name, on, mode, count, small, ratio, wait, limit, tags, labels, serial, parts, by, any; did you mean "mode"?`,
			`f:3:1: Serial: is not a known key; allowed: keys name, on, mode, count, small, ratio, wait, limit, tags, labels, serial, parts, by, any; did you mean "serial"?`,
			`f:4:1: foo: is not a known key; allowed: keys name, on, mode, count, small, ratio, wait, limit, tags, labels, serial, parts, by, any; remove it, or put # before the line`,
			`f:5:10: serial.prot: is not a known key; allowed: keys port, baud; did you mean "port"?`,
		}, "\n")},
		"twice":                 {"name: a\non: true\nname: b\n", `f:3:1: name: is given twice, first in line 1; allowed: each key once; remove one of the two`},
		"missing in list":       {"name: a\nparts:\n  - baud: 3\n", `f:3:5: parts[0].port: is missing; allowed: a text; add it`},
		"missing in mapping":    {"name: a\nserial:\n  baud: 3\n", `f:2:1: serial.port: is missing; allowed: a text; add it`},
		"yes is no truth value": {"name: a\non: yes\n", `f:2:5: on: "yes" is not a truth value; allowed: true, false; write true`},
		"off is no truth value": {"name: a\non: OFF\n", `f:2:5: on: "OFF" is not a truth value; allowed: true, false; write false`},
		"quoted truth":          {"name: a\non: 'true'\n", `f:2:5: on: "true" is not a truth value; allowed: true, false; write true`},
		"enum":                  {"name: a\nmode: Auto\n", `f:2:7: mode: "Auto" is not one of the allowed values; allowed: ask, auto, off; did you mean "auto"?`},
		"enum in list":          {"name: a\ntags: [red, blue]\n", `f:2:13: tags[1]: "blue" is not one of the allowed values; allowed: red, green; choose one of them`},
		"octal":                 {"name: a\ncount: 010\n", `f:2:8: count: "010" is not a whole number; allowed: a whole number from 1 to 10; write a whole number, as 10`},
		"quoted number":         {"name: a\ncount: \"3\"\n", `f:2:8: count: "3" is not a whole number; allowed: a whole number from 1 to 10; remove the quotes`},
		"fraction":              {"name: a\ncount: 1.5\n", `f:2:8: count: "1.5" is not a whole number; allowed: a whole number from 1 to 10; write a whole number, as 10`},
		"out of bounds": {"name: a\ncount: 11\nsmall: 256\nratio: -2\nlimit: 1B\nwait: 0s\n", strings.Join([]string{
			`f:2:8: count: 11 is out of bounds; allowed: a whole number from 1 to 10; choose one within`,
			`f:3:8: small: 256 is out of bounds; allowed: a whole number; choose one within`,
			`f:4:8: ratio: -2 is out of bounds; allowed: a number, at least -1; choose one within`,
			`f:5:8: limit: 1B is out of bounds; allowed: a number of bytes, alone or with kB, MB, GB, KiB, MiB or GiB, at least 1KiB; choose one within`,
			`f:6:7: wait: 0s is out of bounds; allowed: a duration from 1s to 1h; choose one within`,
		}, "\n")},
		"infinite":       {"name: a\nratio: .inf\n", `f:2:8: ratio: ".inf" is not a number; allowed: a number, at least -1; write a number, as 1.5`},
		"huge":           {"name: a\nratio: 1e999\n", `f:2:8: ratio: "1e999" is not a number; allowed: a number, at least -1; write a number, as 1.5`},
		"no unit":        {"name: a\nwait: 5\n", `f:2:7: wait: "5" is not a duration; allowed: a duration from 1s to 1h; write a number with its unit, as 5s or 1m30s`},
		"no size":        {"name: a\nlimit: 5 elephants\n", `f:2:8: limit: "5 elephants" has no unit of a size; allowed: a number of bytes, alone or with kB, MB, GB, KiB, MiB or GiB, at least 1KiB; write for example 256MiB`},
		"size too large": {"name: a\nlimit: 9999999999GiB\n", `f:2:8: limit: is too large for a size; allowed: a number of bytes, alone or with kB, MB, GB, KiB, MiB or GiB, at least 1KiB; write for example 256MiB`},
		"own type":       {"name: a\nby: {k.1: bad}\n", `f:2:11: by["k.1"]: is bad; allowed: ids; write for example good`},
		"no value": {"name:\non: ~\nserial:\n", strings.Join([]string{
			`f:1:6: name: has no value; allowed: a text; give it one, or put # before the line`,
			`f:2:5: on: has no value; allowed: true, false; give it one, or put # before the line`,
			`f:3:8: serial: has no value; allowed: a mapping with the keys port, baud; give it one, or put # before the line`,
		}, "\n")},
		"wrong kinds": {"name: [a]\nserial: x\nparts: {}\nlabels: []\nlimit: {}\n", strings.Join([]string{
			`f:1:1: name: is a list; allowed: a text; write one value`,
			`f:2:9: serial: is a single value; allowed: a mapping with the keys port, baud; write its keys below it, indented, or as {key: value}`,
			`f:3:1: parts: is a mapping; allowed: a list; write its items below it, each after a dash, or as [item, item]`,
			`f:4:1: labels: is a list; allowed: a mapping; write its keys below it, indented, or as {key: value}`,
			`f:5:1: limit: is a mapping; allowed: a number of bytes, alone or with kB, MB, GB, KiB, MiB or GiB, at least 1KiB; write one value`,
		}, "\n")},
		"document is a list": {"- a\n", `f:1:1: (document): is a list; allowed: a mapping with the keys name, on, mode, count, small, ratio, wait, limit, tags, labels, serial, parts, by, any; write its keys below it, indented, or as {key: value}`},
		"tag": {"name: !secret a\ncount: !!int \"\"\n", strings.Join([]string{
			`f:1:7: name: the tag "!secret" has no meaning here; remove it`,
			`f:2:8: count: the tag "!!int" has no meaning here; remove it`,
		}, "\n")},
		"merge key":     {"name: a\nserial: {<<: {port: x}, port: y}\n", `f:2:10: serial["<<"]: merge keys are not read; write the keys out`},
		"key no text":   {"name: a\n? [x]\n: y\n", `f:2:3: (document): has a key that is no text; check the brackets and the dash before it`},
		"tab":           {"name: a\nserial:\n\tport: x\n", `f:3:1: (document): a tab indents this line; allowed: spaces; replace each tab by spaces`},
		"syntax":        {"name: a\nserial: {port: x\n", `f:2:1: (document): cannot be read as YAML: did not find expected ',' or '}'; allowed: YAML; check indentation, quotes and brackets at this line and the one above`},
		"unknown alias": {"name: *nobody\n", `f:1:7: (document): cannot be read as YAML: unknown anchor 'nobody' referenced; allowed: YAML; put a text that begins with * into quotes`},
		"wrong indent":  {"name: a\nserial:\n  port: x\n baud: 3\n", `f:4:1: (document): cannot be read as YAML: did not find expected key; allowed: YAML; check indentation, quotes and brackets at this line and the one above`},
		"curly quotes":  {"name: “a”\n", `f:1:7: name: "“a”" is in typographic quotes, which become part of the text; allowed: a text, in straight quotes (") where it needs any; replace the quotes by straight ones; a plain editor does not change them`},
		"two colons":    {"name: a\nmode: b: c\n", `f:2:1: (document): cannot be read as YAML: a colon stands where no key can be; allowed: YAML; indent keys of one level alike, with a space after each colon, here and in the line above; a text with a colon in it needs quotes`},
		"open quote":    {"name: a\nmode: \"b\nserial: {}\n", `f:2:1: (document): cannot be read as YAML: found unexpected end of stream; allowed: YAML; check indentation, quotes and brackets at this line and the one above`},
		"not UTF-8":     {"name: a\nmode: b\xffc\n", `f:2:8: (document): cannot be read as YAML: invalid leading UTF-8 octet; allowed: YAML; remove the character here, or save the file as UTF-8`},
		"two documents": {"name: a\n---\nname: b\n", `f:2:1: (document): a second document begins here; allowed: one document a file; remove the line --- and what follows it`},
		"binary":        {"name: a\x00\n", `f:1:8: (document): cannot be read as YAML: control characters are not allowed; allowed: YAML; remove the character here, or save the file as UTF-8`},
		"too long":      {"name: " + strings.Repeat("a", MaxBytes), `f:1:1: (document): is 1048582 bytes long; allowed: at most 1MiB; remove what is not needed`},
		"long value":    {"name: a\nmode: " + strings.Repeat("ä", 100), `f:2:7: mode: "` + strings.Repeat("ä", 60) + `…" is not one of the allowed values; allowed: ask, auto, off; choose one of them`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var into testFile
			doc, faults := Decode("f", []byte(tt.in), &into)
			if doc == nil {
				t.Fatal("no document")
			}
			if got := faults.Error(); got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

// TestHostile checks that no small file costs much.
func TestHostile(t *testing.T) {
	laughs := "name: a\nany:\n  - &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 12; i++ {
		laughs += fmt.Sprintf("  - &a%d [%s]\n", i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	lists := "name: a\nparts:\n  - &a0 {port: x, baud: [y]}\n" + strings.Repeat("  - *a0\n", 1000)
	tests := map[string]struct{ in, problem string }{
		"a billion laughs":       {laughs, "holds more than 200000 values, aliases counted at each use"},
		"an alias of itself":     {"name: a\nany: &a [*a]\n", "is nested more than 64 deep"},
		"a mapping of itself":    {"name: a\nserial: &a {port: *a}\n", "is a mapping"},
		"deep":                   {"name: a\nany: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "is nested more than 64 deep"},
		"deeper":                 {"name: a\nany: " + strings.Repeat("[", 500000), "cannot be read as YAML"},
		"deep blocks":            {"name: a\nany:\n" + strings.Repeat("- ", 400000), "cannot be read as YAML"},
		"many faults":            {lists, "has more than 100 faults"},
		"long keys, each a path": {"name: a\nlabels:\n  " + strings.Repeat("k", 900) + ": {" + strings.Repeat("a: 1,", 50000) + "}", "is a mapping"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var into testFile
			_, faults := Decode("f", []byte(tt.in), &into)
			if len(faults) == 0 || len(faults) > maxFaults+1 {
				t.Fatalf("%d faults", len(faults))
			}
			if len(faults.Error()) > 64<<10 {
				t.Errorf("%d bytes of faults", len(faults.Error()))
			}
			if all := faults.Error(); !strings.Contains(all, tt.problem) {
				t.Errorf("%.300s\ndoes not say %q", all, tt.problem)
			}
		})
	}
}

func TestSize(t *testing.T) {
	tests := map[string]Size{"0": 0, "10": 10, "1kB": 1000, "10MB": 10e6, "256MiB": 256 << 20, "2 GiB": 2 << 30, "3gb": 3e9, "1024B": 1024}
	for in, want := range tests {
		var got Size
		if err := got.UnmarshalText([]byte(in)); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", in, got, err, want)
			continue
		}
		var again Size
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != want {
			t.Errorf("%q as text is %s, which is %d, %v", in, got, again, err)
		}
	}
	for _, in := range []string{"", "MiB", "-1", "1.5GiB", "1TiBs", "0x10", "99999999999999999999", "9223372036854775807kB"} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is taken as %d", in, s)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"listen", "users", "brokers", "password_file", "url"}
	tests := map[string]string{
		"lisen": "listen", "Listen": "listen", "password-file": "password_file", "passwordfile": "password_file", "user": "users",
		"urls": "url", "ulr": "url", "broker": "brokers", "xyz": "", "": "", "a": "",
		strings.Repeat("x", 1000): "",
	}
	for in, want := range tests {
		if got := Nearest(in, known); got != want {
			t.Errorf("Nearest(%.20q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"name: x\non: yes\n", "serial: &a {port: *a}", "a: !!int\n", "? [x]\n: y", "\t", "any: &a [*a, {b: *a}]", "%YAML 1.1\n---\n- x",
		"parts: [{port: 1, baud: 0x1}, {baud: 1_000}]", "limit: 3 MB\nwait: 1h\nratio: 1e5", "name: |\n  text\n  more\n", "\xff\xfea\x00", "<<: *x", "--- !x {}\n...\n---\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var into testFile
		doc, faults := Decode("f", data, &into)
		if len(faults) > maxFaults+1 {
			t.Fatalf("%d faults", len(faults))
		}
		for _, fault := range faults {
			if fault.Line < 1 || fault.Column < 1 || strings.ContainsAny(fault.String(), "\n\r") {
				t.Errorf("odd fault %+v", fault)
			}
			line, column := doc.At(parsePath(fault.Key)...)
			if line < 1 || column < 1 {
				t.Errorf("%q is at %d:%d", fault.Key, line, column)
			}
		}
		if len(faults) == 0 && into.Name == "" && !doc.Has("name") {
			t.Error("the missing name is no fault")
		}
	})
}
