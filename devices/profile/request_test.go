package profile

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

const teller = `
profile: 1
id: teller
name: Teller
transport: [serial]
decode: [{json: {}}]
commands:
%s
`

func parseTeller(t *testing.T, commands string) *Profile {
	t.Helper()
	p, err := Parse("teller.yaml", fmt.Appendf(nil, teller, commands))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// hear reads a message, as a driver does for commands.
func hear(t *testing.T, p *Profile, c *Correspondent, message string) {
	t.Helper()
	out, err := p.Decode(Place{Device: "a"}, Message{Payload: []byte(message), ContentFormat: -1})
	if err != nil {
		t.Fatal(err)
	}
	c.Hear(out)
}

// What is put into a template is a value, and nothing more, whoever gives it.
func TestTell(t *testing.T) {
	for _, c := range []struct {
		command, heard, argument string
		want, says               string
	}{
		{`{argument: {type: text}, payload: "10;{value};\r\n"}`, "{}", "on the wall", "10;on the wall;\r\n", ""},
		{`{argument: {type: text}, payload: "10;{value};\r\n"}`, "{}", "a;10;REBOOT", "", `one of the characters ";`},
		{`{argument: {type: text}, payload: "10;{value};\r\n"}`, "{}", "a\r\n10;REBOOT", "", "not a text"},
		{`{argument: {type: text}, payload: "10;{value};\r\n"}`, "{}", "a\x1b[2J", "", "not a text"},
		{`{argument: {type: text}, payload: "say {value}\n"}`, "{}", "+++", "", "+++"},
		{`{argument: {type: text}, payload: "{value}\n"}`, "{}", "AT&F", "", "a modem would take it"},
		{`{argument: {type: text}, payload: "{value}\n"}`, "{}", " at&f", "", "a modem would take it"},
		{`{argument: {type: text}, payload: "{value}\n"}`, "{}", "a/", "", "a modem would take it"},
		{`{argument: {type: text}, payload: "+{value}\n"}`, "{}", "++", "", `one of the characters "+`},
		{`{argument: {type: text}, payload: "AT+VOL={value}\r"}`, "{}", "5", "AT+VOL=5\r", ""},
		{`{argument: {type: integer, min: 0, max: 9}, payload: "L{value}\n"}`, "{}", "7", "L7\n", ""},
		{`{argument: {type: integer, min: 0, max: 9}, payload: "L{value}\n"}`, "{}", "7\n", "L7\n", ""},
		{`{argument: {type: integer, min: 0, max: 9}, payload: "L{value}\n"}`, "{}", "70", "", "not from 0 to 9"},
		{`{argument: {type: bool, words: {"on": "ON", "off": "OFF"}}, payload: "10;{/protocol};{/ID};{value};\r\n"}`, `{"protocol":"NewKaku","ID":"00c142"}`, "On", "10;NewKaku;00c142;ON;\r\n", ""},
		{`{argument: {type: bool, words: {"on": "ON", "off": "OFF"}}, payload: "10;{/protocol};{/ID};{value};\r\n"}`, `{"protocol":"NewKaku","ID":"1;ALLON"}`, "on", "", `one of the characters ";`},
		{`{argument: {type: bool, words: {"on": "ON", "off": "OFF"}}, payload: "10;{/protocol};{/ID};{value};\r\n"}`, `{"protocol":"New\nKaku","ID":"1"}`, "on", "", "control character"},
		{`{argument: {type: bool, words: {"on": "ON", "off": "OFF"}}, payload: "10;{/protocol};{/ID};{value};\r\n"}`, "", "on", "", "has to be heard first"},
		{`{hex: ff0187000000000078}`, "{}", "", "\xff\x01\x87\x00\x00\x00\x00\x00\x78", ""},
		{`{hex: ff0187000000000078}`, "{}", "now", "", "takes no argument"},
	} {
		p := parseTeller(t, "  - "+strings.Replace(c.command, "{", "{name: go, ", 1))
		var to Correspondent
		if c.heard != "" {
			hear(t, p, &to, c.heard)
		}
		r, expected, err := p.Tell(&to, "go", c.argument)
		switch {
		case c.says != "":
			if err == nil || !strings.Contains(err.Error(), c.says) || r.Payload != nil {
				t.Errorf("%s with %q: %q, %v; want an error with %s", c.command, c.argument, r.Payload, err, c.says)
			}
		case err != nil || string(r.Payload) != c.want || expected.Field != "go":
			t.Errorf("%s with %q: %q, %v; want %q", c.command, c.argument, r.Payload, err, c.want)
		}
	}
}

// One command for each member that was heard of.
func TestTellForMembers(t *testing.T) {
	p := parseTeller(t, `  - {name: "{key}", for: "relay*", argument: {type: bool, words: {"on": "1", "off": "0"}}, payload: "{key}={value}\n"}`)
	var to Correspondent
	if got := p.Commands(&to); len(got) != 0 {
		t.Errorf("before anything was heard: %+v", got)
	}
	hear(t, p, &to, `{"relay1":1,"relay2":0,"other":3}`)
	r, expected, err := p.Tell(&to, "relay2", "on")
	if err != nil || string(r.Payload) != "relay2=1\n" || expected.Field != "relay2" || expected.Value != devices.Bool(true) {
		t.Errorf("%q, %+v, %v", r.Payload, expected, err)
	}
}

func TestModbusWords(t *testing.T) {
	for _, c := range []struct {
		modbus, argument string
		want             []uint16
		says             string
	}{
		{"function: 6", "65535", []uint16{65535}, ""},
		{"function: 6", "65536", nil, "not a whole number from 0 to 65535"},
		{"function: 6", "-1", nil, "not a whole number from 0 to 65535"},
		{"function: 6", "1.5", nil, "not a whole number"},
		{"function: 6, type: i16", "-2", []uint16{0xfffe}, ""},
		{"function: 6, type: i16", "-40000", nil, "from -32768"},
		{"function: 16, type: u32", "65538", []uint16{1, 2}, ""},
		{"function: 16, type: u32, words: low_first", "65538", []uint16{2, 1}, ""},
		{"function: 16, type: i32", "-1", []uint16{0xffff, 0xffff}, ""},
		{"function: 16, type: f32", "230.5", []uint16{0x4366, 0x8000}, ""},
		{"function: 16, type: f32, words: low_first", "230.5", []uint16{0x8000, 0x4366}, ""},
		{"function: 5", "2", nil, "from 0 to 1"},
	} {
		p := parseTeller(t, "  - {name: go, argument: {type: number}, modbus: {address: 7, "+c.modbus+"}}")
		r, _, err := p.Tell(&Correspondent{}, "go", c.argument)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s of %s: %v", c.modbus, c.argument, err)
			}
			continue
		}
		if err != nil || !slices.Equal(r.Modbus.Values, c.want) || r.Modbus.Address != 7 {
			t.Errorf("%s of %s: %+v, %v", c.modbus, c.argument, r.Modbus, err)
		}
	}
}

func TestQuestions(t *testing.T) {
	p, err := Parse("asker.yaml", []byte(`
profile: 1
id: asker
name: Asker
transport: [serial]
port: [{baud: 9600, data_bits: 7, parity: even}, {baud: 4800}]
decode: [{json: {}}]
poll:
  - {every: 5s, modbus: {function: 4, address: 0x0010, count: 80}, within: 200ms}
  - {every: 10s, hex: ff0186000000000079}
  - {on: start, payload: "10;VERSION;\r\n"}
  - {every: 1m, sign_on: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Lines()); got != "[9600 7E1 4800 8N1]" {
		t.Errorf("the lines are %s", got)
	}
	all := p.Questions()
	if len(all) != 4 {
		t.Fatalf("want 4 questions, got %+v", all)
	}
	if m := all[0]; m.Modbus.Topic(1) != "unit=1 fc=4 addr=0x0010 count=80" || m.Within != 200*time.Millisecond || m.Every != 5*time.Second {
		t.Errorf("%+v", m)
	}
	if hex.EncodeToString(all[1].Payload) != "ff0186000000000079" || string(all[2].Payload) != "10;VERSION;\r\n" || all[2].Every != 0 || !all[3].SignOn {
		t.Errorf("%+v", all)
	}
}

func TestFaultsOfRequests(t *testing.T) {
	for key, c := range map[string]struct{ text, says string }{
		"two ways":  {`poll: [{every: 5s, hex: "00", payload: "a"}]`, "poll[0]: it has 2 ways"},
		"no way":    {`poll: [{every: 5s}]`, "poll[0]: it has 0 ways"},
		"no hex":    {`poll: [{every: 5s, hex: "0g"}]`, "poll[0].hex: is not hex"},
		"too many":  {`poll: [{every: 5s, modbus: {function: 3, count: 126}}]`, "poll[0].modbus.count: 126 registers"},
		"function":  {`poll: [{every: 5s, modbus: {function: 6, count: 1}}]`, "poll[0].modbus.function: "},
		"write":     {`commands: [{name: a, argument: {type: number}, modbus: {function: 7}}]`, "commands[0].modbus.function: "},
		"two words": {`commands: [{name: a, argument: {type: number}, modbus: {function: 6, type: f32}}]`, "commands[0].modbus.type: has two registers"},
		"no value":  {`commands: [{name: a, modbus: {function: 6}}]`, "commands[0].modbus: nothing is to be written"},
		"no place":  {`commands: [{name: a, argument: {type: number}, hex: "00"}]`, "commands[0].hex: has no place"},
		"no baud":   {`port: [{baud: 3}]`, "port[0].baud"},
		"no parity": {`port: [{baud: 300, parity: some}]`, "port[0].parity"},
	} {
		_, err := Parse("x.yaml", []byte("profile: 1\nid: x\nname: X\ntransport: [serial]\ndecode: [{json: {}}]\n"+c.text+"\n"))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %s", key, err, c.says)
		}
	}
	if _, err := Parse("x.yaml", []byte("profile: 1\nid: x\nname: X\ntransport: [mqtt]\nmatch: [{topic: \"{device}\"}]\ndecode: [{json: {}}]\npoll: [{on: start, topic: a, hex: \"00\"}]\n")); err == nil || !strings.Contains(err.Error(), "for serial lines") {
		t.Errorf("hex by MQTT: %v", err)
	}
}
