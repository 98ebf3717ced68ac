package profile

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// TestWays reads what is no JSON object, each way well and badly. A payload that
// begins with 0x is bytes.
func TestWays(t *testing.T) {
	const items = "decode: [{struct: {items: ["
	hexed := func(text string) string { return fmt.Sprintf("0x%x", text) }
	for _, c := range []struct{ rules, payload, want string }{
		{"decode: [{cbor: {}}]", "0xa2617401616843f09f98", "- h=\"8J-Y\", t=1"},
		{"decode: [{cbor: {}}]", "0xa161619f01f5f6fb3ff8000000000000ff", "- a_0=1, a_1=true, a_3=1.5"},
		{"decode: [{cbor: {}}]", "0xa1617ac482211908ac", "- z=22.20"}, // a decimal fraction
		{"decode: [{cbor: {root: [b], at: x}}]", "0xa26161016162a1616302", "- x_c=2"},
		{"decode: [{cbor: {}}]", "0xa1617ac249010000000000000000", "- z=18446744073709551616"},
		{"decode: [{cbor: {}}]", "0xa26174", "not CBOR: unexpected end at byte 3"},
		{"decode: [{cbor: {}}]", "0xa1617401ff", "not CBOR: "},
		{"decode: [{cbor: {}}]", "0x9909c4" + strings.Repeat("01", 2500), "not CBOR: more than 2000 members"},
		{"decode: [{cbor: {}}]", "0x" + strings.Repeat("81", 100) + "01", "not CBOR: exceeded max nested level 12"},

		{items + "{name: a, type: u8}, {name: b, type: i8}, {name: c, type: u16}, {name: d, type: i16}]}}]", "0x80ffff00fffe", "- a=128, b=-1, c=65280, d=-2"},
		{items + "{name: a, type: u24}, {name: b, type: u32}, {name: c, type: i32}]}}]", "0x01000000000001ffffffff", "- a=65536, b=1, c=-1"},
		{items + "{name: a, type: u64}, {name: b, type: i64}]}}]", "0xfffffffffffffffffffffffffffffffe", "- a=18446744073709551615, b=-2"},
		{items + "{name: a, type: f32}, {name: b, type: f64}]}}]", "0x41a9999a4035666666666666", "- a=21.2, b=21.4"},
		{items + "{name: a, type: f32}, {name: b, type: u8}]}}]", "0x7fc0000007", "- b=7"}, // not a number
		{items + "{name: a, type: bcd8}, {name: b, type: bcd16}, {name: c, type: bcd32}]}}]", "0x42123400056789", "- a=42, b=1234, c=56789"},
		{items + "{name: a, type: bcd8}]}}]", "0x4a", "a: "},
		{items + "{name: b, at: 2, type: u16}], endian: little}}]", "0xffff0102", "- b=513"},
		{items + "{name: b, type: u32, words: low_first}]}}]", "0x0002000100", "- b=65538"},
		{items + "{name: b, type: u32, words: low_first}], endian: little}}]", "0x00010002", "- b=16777728"},
		{items + "{name: a, type: u16}, {name: b, type: u16}], part: true}}]", "0x00010002ff", "- a=1, b=2"},
		{items + "{name: a, type: u16}, {name: b, type: u16}], part: true}}]", "0x000100", "- a=1"},
		{items + "{name: a, type: u16}, {name: b, type: u16}]}}]", "0x000100", "ends at byte 3, within b"},
		{items + `{name: a, at: 1, type: u8}], start: "aa", size: 2}}]`, "0xaa07", "- a=7"},
		{items + `{name: a, at: 1, type: u8}], start: "aa", size: 2}}]`, "0xab07", "does not begin with aa"},
		{items + `{name: a, at: 1, type: u8}], start: "aa", size: 2}}]`, "0xaa0700", "3 bytes instead of 2"},

		{`decode: [{columns: {separator: ",", names: [a, "", c], at: x}}]`, "1, on ,x,2.50", `- x_a=1, x_c1=true, x_c="x", x_c3=2.50`},
		{`decode: [{columns: {separator: " "}}]`, "OK   9 -1", `- c0="OK", c1=9, c2=-1`},
		{`decode: [{columns: {separator: ";"}}]`, ";;5", "- c2=5"},
		{`decode: [{columns: {separator: ";"}}]`, "", "not columns of text"},
		{`decode: [{columns: {separator: ";"}}]`, "0x31ff", "not columns of text"},
		{`decode: [{columns: {separator: ";"}}]`, strings.Repeat("1;", 2001), "more than 2000 values"},

		{`decode: [{pairs: {separators: ",;", assign: "=:", units: [°C, "%"]}}]`, "t=21.4 °C, h: 45%;on=ON", "- t=21.4 °C, h=45 %, on=true"},
		{`decode: [{pairs: {separators: " ", assign: "="}}]`, "t = 21.4 h= 45", "- t=21.4, h=45"},
		{`decode: [{pairs: {separators: ";", assign: "=", names: [kind, number], raw: true}}]`, "20;0A;ID=0012;CMD=SET=2;", `- kind="20", number="0A", id="0012", cmd="SET=2"`},
		{`decode: [{pairs: {separators: "\r\n", assign: "\t", raw: true}}]`, "\r\nV\t12 800\r\nLOAD\tON\r\nempty\t\r\n", `- v="12 800", load="ON"`},
		{`decode: [{pairs: {separators: ",", assign: "="}}]`, "a=1,b", `not names and values: "b"`},
		{`decode: [{pairs: {separators: ",", assign: "="}}]`, "1=2", `not names and values: "1=2"`},
		{`decode: [{pairs: {separators: ",", assign: "="}}]`, " , ", "not names and values: "},
		{`decode: [{pairs: {separators: ",", assign: "="}}]`, "0x61ff3d31", "not names and values: not text"},
		{`decode: [{pairs: {separators: ",", assign: "="}}]`, strings.Repeat("a=1,", 2001), "more than 2000 values"},

		{"decode: [{json: {named: {by: id}}}]", `[{"id":"a","v":1},{"id":"b/c","v":2},{"v":3},4]`, `- a_id="a", a_v=1, b_c_id="b/c", b_c_v=2`},
		{"decode: [{json: {named: {by: id, value: x/y}}}]", `[{"id":"a","x":{"y":5}},{"id":"b"}]`, "- a=5"},
		{"decode: [{json: {named: {by: id}}}]", `{"id":"a"}`, `- id="a"`},
		{"decode: [{json: {quotes: true}}]", `{'a':{'b':'c'}}`, `- a_b="c"`},
		{"decode: [{json: {quotes: true}}]", `{'a':"}`, "not JSON: "},

		{"decode: [{struct: {items: [{name: a, at: 1, type: u8}]}}]\nframing: {fixed: {start: aa, end: ab, size: 4}, sum: sum8, first: 1, after: 1}", "0xaa0707ab", "- a=7"},
		{"decode: [{struct: {items: [{name: a, at: 1, type: u8}]}}]\nframing: {fixed: {start: aa, end: ab, size: 4}}", "0xab0707ab", "not the beginning of a frame"},
		{"decode: [{struct: {items: [{name: a, at: 1, type: u8}]}}]\nframing: {fixed: {start: aa, end: ab, size: 4}}", "0xaa0707aa", "a frame does not end with ab"},
		{"decode: [{struct: {items: [{name: a, at: 1, type: u8}]}}]\nframing: {fixed: {start: aa, size: 4}}", "0xaa0707", "a frame ends after 3 bytes of 4"},
		{"decode: [{struct: {items: [{name: a, at: 1, type: u8}]}}]\nframing: {fixed: {start: aa, size: 4}, sum: sum8, first: 1, after: 1}", "0xaa0708ab", "the checksum is wrong"},
		{"decode: [{struct: {items: [{name: a, type: u8}]}}]\nframing: {fixed: {start: \"07\", size: 3}, sum: not_sum8}", "0x0708f0", "- a=7"},
		{"decode: [{struct: {items: [{name: a, type: u8}]}}]\nframing: {fixed: {start: \"07\", size: 3}, sum: zero_sum8}", "0x0708f1", "- a=7"},
		{"decode: [{struct: {items: [{name: a, type: u8}]}}]\nframing: {fixed: {start: ff, size: 4}, sum: sum16}", "0xffff01fe", "- a=255"},
		{"decode: [{struct: {items: [{name: a, type: u8}]}}]\nframing: {fixed: {start: ff, size: 4}, sum: sum16}", "0xfffffe01", "the checksum is wrong"},
		{"decode: [{struct: {items: [{name: a, type: u8}]}}]\nframing: {modbus: {}}", "0x01040000000271cb", "- a=1"},
		{"decode: [{struct: {items: [{name: a, type: u8}]}}]\nframing: {modbus: {}}", "0x010400000002cb71", "the checksum is wrong"},
		{"decode: [{struct: {items: [{name: a, at: 1, type: u16}, {name: b, type: u16}]}}]\nframing: {hdlc: {}}", "0x7e7d5e7d5d7d317d337e", "- a=32381, b=4371"},
		{`decode: [{pairs: {separators: ",", assign: ":"}}]` + "\nframing: {closed: {end: \"b:\", tail: 1}, sum: zero_sum8}", hexed("a:1,b:") + "6c", "- a=1"},
		{`decode: [{when: {hex: "01??"}, struct: {items: [{name: a, type: u16}]}}]`, "0x0102", "- a=258"},
		{`decode: [{when: {hex: "01??"}, struct: {items: [{name: a, type: u16}]}}]`, "0x010203", "no way to read this kind of message"},
		{`decode: [{when: {field: "*/light"}, value: {name: light}}]`, "5", "no way to read this kind of message"},
	} {
		p, err := profileWith(c.rules)
		if err != nil {
			t.Errorf("%s: %v", c.rules, err)
			continue
		}
		payload := []byte(c.payload)
		if text, ok := strings.CutPrefix(c.payload, "0x"); ok {
			if payload, err = hex.DecodeString(text); err != nil {
				t.Fatal(err)
			}
		}
		out, err := p.Decode(Place{Topic: "kitchen"}, Message{Topic: "kitchen", Payload: payload, ContentFormat: -1, Received: received})
		got := strings.Join(shown(out.Readings), "; ")
		if err != nil {
			got = err.Error()
		}
		if problem := soundOutput(out, err); problem != "" {
			t.Errorf("%s of %.60s: %s", c.rules, c.payload, problem)
		}
		if got != c.want && !(err != nil && strings.HasPrefix(got, c.want)) {
			t.Errorf("%s of %.60s:\n got %s\nwant %s", c.rules, c.payload, got, c.want)
		}
	}
}

// TestNumbers makes numbers of parts of numbers.
func TestNumbers(t *testing.T) {
	for _, c := range []struct{ rules, payload, want string }{
		{"fields: [{name: x, join: {paths: [a, b]}}, {select: '{a,b}', drop: true}]", `{"a":1,"b":2}`, "- x=258"},
		{"fields: [{name: x, join: {paths: [a, b], order: low_first}}, {select: '{a,b}', drop: true}]", `{"a":1,"b":2}`, "- x=513"},
		{"fields: [{name: x, join: {paths: [a, s/b], words: true}}]\nrest: {create: none}", `{"a":1,"s":{"b":65535}}`, "- x=131071"},
		{"fields: [{name: x, join: {paths: [a, b]}}]\nrest: {create: none}", `{"a":1}`, ""},
		{"fields: [{name: x, join: {paths: [a, b]}}]\nrest: {create: none}", `{"a":1,"b":256}`, ""},
		{"fields: [{name: x, join: {paths: [a, b]}}]\nrest: {create: none}", `{"a":1,"b":-1}`, ""},
		{"fields: [{name: x, join: {paths: [a, b]}}]\nrest: {create: none}", `{"a":1,"b":1.5}`, ""},
		{"fields: [{name: x, join: {paths: [a, b]}}]\nrest: {create: none}", `{"a":1,"b":"high"}`, ""},
		{"fields: [{name: x, join: {paths: [a, b]}, signed: 16, scale: 0.1, unit: °C}]\nrest: {create: none}", `{"a":255,"b":206}`, "- x=-5.0 °C"},

		{"fields: [{select: '*', bits: {at: 4, width: 3}}]", `{"a":255,"b":16,"c":15,"d":-1}`, "- a=7, b=1, c=0, d=7"},
		{"fields: [{select: '*', bits: {at: 7, width: 1}, type: bool}]", `{"a":128,"b":127,"c":1.5,"d":"x"}`, "- a=true, b=false"},
		{"fields: [{select: '*', bits: {at: 62, width: 32}}]", `{"a":9223372036854775807,"b":9223372036854775808}`, "- a=1"},

		{"fields: [{select: '*', signed: 16}]", `{"a":32767,"b":32768,"c":65535,"d":"65534"}`, "- a=32767, b=-32768, c=-1, d=-2"},
		{"fields: [{select: '*', signed: 64}]", `{"a":-5}`, "- a=-5"},
		{"fields: [{select: '*', signed: 16, sign: magnitude}]", `{"a":32769,"b":1,"c":32768}`, "- a=-1, b=1, c=0"},
		{"fields: [{select: '*', signed: 16}]", `{"a":1.5,"b":1e3,"c":"-","d":true,"e":7}`, "- e=7"},

		{"fields: [{select: '*', parse: hex}]", `{"a":"00cf","b":"0xFF","c":"7fffffffffffffff"}`, "- a=207, b=255, c=9223372036854775807"},
		{"fields: [{select: '*', parse: hex}]", `{"a":"8000000000000000","b":"-1","c":"xyz","d":"1.5","e":""}`, ""},
		{"fields: [{select: '*', parse: hex, signed: 16, sign: magnitude, scale: 0.1, unit: °C}]", `{"a":"800d"}`, "- a=-1.3 °C"},
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

// TestFaultsOfWays loads what cannot work.
func TestFaultsOfWays(t *testing.T) {
	const topics = `match: [{topic: "{kind}/{device}"}]`
	for text, want := range map[string]string{
		"decode: [{struct: {items: []}}]":                                  "decode[0].struct.items",
		"decode: [{struct: {items: [{name: a, type: u7}]}}]":               "decode[0].struct.items[0].type",
		`decode: [{struct: {start: "4", items: [{name: a, type: u8}]}}]`:   "decode[0].struct.start: is not hex",
		`framing: {fixed: {start: zz, size: 4}}`:                           "framing: start is not bytes in hex",
		`framing: {fixed: {start: aa, size: 4}, first: 2}`:                 "first and after are of a checksum",
		`framing: {hdlc: {}, slip: {}}`:                                    "several kinds of frames",
		`framing: {line: {}, sum: sum8}`:                                   "its own checksum or none",
		`framing: {fixed: {start: aa, size: 4}, sum: md5}`:                 "framing.sum",
		`framing: {telegram: {start: "/-", end: "!"}}`:                     "start is not one character",
		`framing: {closed: {end: ""}}`:                                     "closed needs an end",
		"decode: [{pairs: {separators: ','}}]":                             "decode[0].pairs.assign",
		"decode: [{columns: {}}]":                                          "decode[0].columns.separator",
		`decode: [{columns: {separator: ",", at: "{x}"}}]`:                 `no topic has the capture "x"`,
		"decode: [{json: {named: {}}}]":                                    "decode[0].json.named.by",
		"decode: [{json: {named: {by: a//b}}}]":                            "a name in the path is empty",
		"fields: [{select: a, join: {paths: [a, b]}, name: x}]":            "join makes a member of its own",
		"fields: [{join: {paths: [a, b]}}]":                                "join makes a member of its own",
		"fields: [{select: a, signed: 65}]":                                "fields[0].signed",
		"fields: [{select: a, bits: {at: 63, width: 1}}]":                  "fields[0].bits.at",
		"fields: [{select: a, bits: {at: 1, width: 0}}]":                   "fields[0].bits.width",
		"fields: [{select: a, parse: octal}]":                              "fields[0].parse",
		topics + "\ncommands: [{name: a, reply: {what: x}}]":               `commands[0].reply: no topic has the capture "what"`,
		topics + "\ncommands: [{name: a, reply: {kind: \"{leaf}\"}}]":      `commands[0].reply.kind: no topic has the capture "leaf"`,
		topics + "\ncommands: [{name: a, reply: {kind: \"{key|octal}\"}}]": `"octal" is no form`,
		topics + "\ncommands: [{name: a, reply: {kind: a}, topic: b}]":     "it is sent nowhere, or twice",
		topics + "\npoll: [{on: start, reply: {kind: \"{value}\"}}]":       `poll[0].reply.kind: no topic has the capture "value"`,
		topics + "\npoll: [{on: start, topic: a, payload: \"{leaf}\"}]":    `poll[0].payload: no topic has the capture "leaf"`,
		"transport: [mqtt]\ndecode: [{when: {field: a}, json: {}}]":        `no topic has the capture "field"`,
		"extends: nothing":                                                 `extends: there is no profile "nothing"`,
		`tests: [{topic: kitchen, hex: "7b7d", fields: {a: "1"}}]`:         `tests[0]: a is "", not "1"`,
		`tests: [{topic: kitchen, hex: "7", fields: {a: "1"}}]`:            "tests[0]: hex: ",
		`tests: [{topic: kitchen, payload: "{}", error: never}]`:           `tests[0]: the error is <nil>, not "never"`,
		"aliases: {a: b}": "aliases",
	} {
		if _, err := profileWith(strings.Split(text, "\n")...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for _, sound := range []string{
		topics + "\ncommands: [{name: \"{key}\", for: a, reply: {kind: \"set_{key|lower}\"}}]",
		topics + "\npoll: [{on: start, reply: {kind: \"get_{device}\"}}]",
	} {
		if _, err := profileWith(strings.Split(sound, "\n")...); err != nil {
			t.Errorf("%s: %v", sound, err)
		}
	}
}

// TestExtends loads profiles that build on others.
func TestExtends(t *testing.T) {
	const base = `{profile: 1, id: base, name: Base, aliases: [old, older], transport: [mqtt], params: {root: home, leaf: state},
		match: [{topic: "<root>/{device}/<leaf>"}], decode: [{json: {}}], silence: {after: 7m},
		fields: [{select: t, unit: °C}, {select: "*", kind: setting}], commands: [{name: a, topic: "<root>/{device}/a"}], limits: {max_fields: 3}}`
	builtin := fstest.MapFS{}
	add := func(to fstest.MapFS, id, text string) { to[id+".yaml"] = &fstest.MapFile{Data: []byte(text)} }
	add(builtin, "base", base)
	add(builtin, "cellar", `{profile: 1, id: cellar, extends: base, params: {root: cellar}}`)
	add(builtin, "able", `{profile: 1, id: able, extends: older}`)
	add(builtin, "deeper", `{profile: 1, id: deeper, extends: cellar, name: Deeper, fields: [{select: t, unit: K}], commands: [{name: b, topic: "<root>/{device}/b"}]}`)
	add(builtin, "renamed", `{profile: 1, id: renamed, extends: old, params: {root: renamed}}`)
	add(builtin, "round", `{profile: 1, id: round, extends: about}`)
	add(builtin, "about", `{profile: 1, id: about, extends: round}`)
	add(builtin, "self", `{profile: 1, id: self, extends: self}`)
	add(builtin, "broken", `{profile: 1, id: broken, extends: base, fields: [{select: "{"}]}`)
	add(builtin, "onbroken", `{profile: 1, id: onbroken, extends: broken}`)
	own := fstest.MapFS{}
	add(own, "base", `{profile: 1, id: base, extends: base, params: {root: flat}}`)
	library, err := load(builtin, own, "profiles")
	for _, want := range []string{"about.yaml", "broken.yaml", "onbroken.yaml", "round.yaml", "self.yaml"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing is said of %s: %v", want, err)
		}
	}
	if got := strings.Join(library.Names(), " "); got != "able base cellar deeper renamed" {
		t.Errorf("the profiles are %s", got)
	}
	for topic, want := range map[string]string{
		"flat/a/state":    "base a: - t=21 °C, x=1",
		"cellar/a/state":  "cellar a: - t=21 °C, x=1",
		"renamed/a/state": "renamed a: - t=21 °C, x=1",
		"home/a/state":    "no profile knows this topic",
	} {
		session := library.Only(strings.Split(want, " ")[0]).NewSession(time.UTC)
		out, err := session.Hear(Message{Topic: topic, Payload: []byte(`{"t":21,"x":1}`), ContentFormat: -1, Received: received})
		got := out.Profile + " " + line(out)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s, want %s", topic, got, want)
		}
	}
	session := library.Only("deeper").NewSession(time.UTC)
	out, err := session.Hear(Message{Topic: "cellar/a/state", Payload: []byte(`{"t":21,"x":1,"y":2,"z":3}`), ContentFormat: -1, Received: received})
	if err != nil || line(out) != "a: - t=21 K, x=1, y=2; - z=3" || library.Get("deeper").Name() != "Deeper" {
		t.Errorf("%s, %v", line(out), err)
	}
	sent, err := session.Encode("deeper", "a", "a", "")
	if other, _ := session.Encode("deeper", "a", "b", ""); err != nil || sent.Topic != "cellar/a/a" || other.Topic != "cellar/a/b" {
		t.Errorf("commands to %q and %q, %v", sent.Topic, other.Topic, err)
	}
	for _, alias := range []string{"old", "older"} {
		if p := library.Get(alias); p == nil || p.ID() != "base" {
			t.Errorf("%s is %v", alias, p)
		}
	}
	if p := library.Get("oldest"); p != nil {
		t.Errorf("oldest is %s", p.ID())
	}
}
