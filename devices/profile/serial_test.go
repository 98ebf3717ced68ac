package profile

import (
	"encoding/hex"
	"strings"
	"testing"
)

// TestSerialCommands tells serial devices something after one of their messages,
// and compares the bytes with those that their documents have.
func TestSerialCommands(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	hexed := func(text string) string { return hex.EncodeToString([]byte(text)) }
	for _, c := range []struct {
		profile, heard, command, argument string
		want, says                        string // hex, or a part of the error
	}{
		{"rflink", "20;2D;NewKaku;ID=00c142;SWITCH=1;CMD=ON;", "cmd", "off", hexed("10;NewKaku;00c142;1;OFF;\r\n"), ""},
		{"rflink", "20;2D;NewKaku;ID=00c142;SWITCH=1;CMD=ON;", "cmd", "all off", hexed("10;NewKaku;00c142;1;ALLOFF;\r\n"), ""},
		{"rflink", "20;2D;NewKaku;ID=00c142;SWITCH=1;CMD=ON;", "level", "14", hexed("10;NewKaku;00c142;1;14;\r\n"), ""},
		{"rflink", "20;2D;NewKaku;ID=00c142;SWITCH=1;CMD=ON;", "level", "16", "", "not from 0 to 15"},
		{"rflink", "20;2D;NewKaku;ID=00c142;SWITCH=1;CMD=ON;", "cmd", "ON;10;REBOOT", "", "is none of"},
		{"rflink", "20;2D;NewKaku;ID=+++;SWITCH=1;CMD=ON;", "cmd", "on", "", "+++"},
		{"rflink", "20;2D;UPM/Esic;ID=0001;TEMP=00cf;", "cmd", "on", "", "no command"},
		{"mysensors", "13;7;1;0;2;0", "7_v_status", "on", hexed("13;7;1;1;2;1\n"), ""},
		{"mysensors", "13;8;1;0;3;50", "8_v_percentage", "75", hexed("13;8;1;1;3;75\n"), ""},
		{"mysensors", "13;8;1;0;3;50", "8_v_percentage", "75.5", "", "not a whole number"},
		{"mysensors", "13;9;1;0;47;hello", "9_v_text", "a;b", "", "part what is sent"},
		{"mysensors", "13;9;1;0;47;hello", "9_v_text", "good night", hexed("13;9;1;1;47;good night\n"), ""},
		{"firmata", "0x910200", "d9", "on", "f50901", ""},
		{"firmata", "0x910200", "d15", "off", "f50f00", ""},
		{"firmata", "0xe47f07", "d9", "on", "", "no command"},
		{"mhz19b", "0xff86027c42000000ba", "calibrate", "", "ff0187000000000078", ""},
		{"mhz19b", "0xff86027c42000000ba", "self_calibration", "on", "ff0179a000000000e6", ""},
		{"mhz19b", "0xff86027c42000000ba", "self_calibration", "off", "ff01790000000000" + "86", ""},
		{"sds011", "0xaac00600060058d93dab", "sleep", "", "aab406010000000000000000000000ffff05ab", ""},
		{"pms5003", "", "sleep", "", "424de400000173", ""},
		{"sps30", "", "clean", "", "7e005600a97e", ""},
	} {
		p := library.Get(c.profile)
		var to Correspondent
		if c.heard != "" {
			payload := []byte(c.heard)
			if text, ok := strings.CutPrefix(c.heard, "0x"); ok {
				payload = unhex(t, text)
			}
			out, err := p.Decode(Place{Device: "a"}, Message{Payload: payload, ContentFormat: -1, Received: received})
			if err != nil {
				t.Fatalf("%s %s: %v", c.profile, c.heard, err)
			}
			to.Hear(out)
		}
		r, _, err := p.Tell(&to, c.command, c.argument)
		switch {
		case c.says != "":
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s %s %s: %q, %v, want %s", c.profile, c.command, c.argument, r.Payload, err, c.says)
			}
		case err != nil || hex.EncodeToString(r.Payload) != c.want:
			t.Errorf("%s %s %s: %x, %v, want %s", c.profile, c.command, c.argument, r.Payload, err, c.want)
		}
	}
}

// TestSerialQuestions frames what profiles send, where it has the frame of what
// they hear: its checksum is good.
func TestSerialQuestions(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"mhz19b", "sps30"} {
		p := library.Get(id)
		if len(p.Questions()) == 0 {
			t.Errorf("%s asks nothing", id)
		}
		for _, q := range p.Questions() {
			if _, err := p.Framing().Open(q.Payload); err != nil {
				t.Errorf("%s asks %x: %v", id, q.Payload, err)
			}
		}
	}
}
