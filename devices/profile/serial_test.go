package profile

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/framing"
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

// TestHearing reads messages whose meaning depends on those before.
func TestHearing(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		profile string
		heard   []struct{ payload, want, answer string }
	}{
		{"enocean-esp3", []struct{ payload, want, answer string }{
			{"0x55000a0701eba5000055080181b7440001ffffffff2d0075", "0181b744: a5_02_05_tmp=26.7 °C", ""},
			{"0x" + esp3("a5 0828 0280 0181b744 00"), "0181b744: teach_in=\"A5-02-05\"", ""},
			{"0x" + esp3("a5 1008 0280 0181b744 00"), "0181b744: teach_in=\"A5-04-01\"", ""},
			{"0x" + esp3("a5 00 7d 7d 0a 0181b744 00"), "0181b744: a5_04_01_hum=50.0 %, a5_04_01_tmp=20.0 °C", ""},
			{"0x" + esp3("a5 00 00 55 08 0181b745 00"), "0181b745: a5_02_05_tmp=26.7 °C", ""},
		}},
		{"ve.direct", []struct{ payload, want, answer string }{
			{closed("\r\nPID\t0x203\r\nV\t12065\r\nChecksum\t"), "0x203: pid=\"0x203\", v=12.065 V", ""},
			{closed("\r\nH1\t-149322\r\nChecksum\t"), "0x203: h1=-149.322 Ah", ""},
		}},
		{"csv-lines", []struct{ payload, want, answer string }{
			{"1,2", "pms: raw01=2 µg/m³", ""},
			{"# temp, hum, lux", "pms: ", ""},
			{"21.5, 40, 300", "pms: temp=21.5 °C, hum=40 %, lux=300", ""},
		}},
		{"mysensors", []struct{ payload, want, answer string }{
			{"1;255;3;0;6;0", "1: config_request=0", "1;255;3;0;6;M\n"},
			{"255;255;3;0;3;", "255: id_request=true", "255;255;3;0;4;2\n"}, // 1 was heard
			{"255;255;3;0;3;", "255: id_request=true", "255;255;3;0;4;3\n"},
			{"1;255;3;0;1;", "1: time_request=true", "1;255;3;0;1;" + mySensorsTime + "\n"},
			{"1;1;2;0;17;", "1: ", ""},
			{"1;1;1;0;17;42", "1: 1_v_watt=42 W", ""},
			{"1;1;2;0;17;", "1: ", "1;1;1;0;17;42\n"},
		}},
	} {
		p := library.Get(c.profile)
		h := p.NewHearing()
		h.Know("254")
		for _, m := range c.heard {
			payload := []byte(m.payload)
			if text, ok := strings.CutPrefix(m.payload, "0x"); ok {
				payload = unhex(t, text)
			}
			out, answer, err := h.Decode(Place{Location: berlin(t)}, Message{Payload: payload, ContentFormat: -1, Received: received})
			got := out.Identity + ": "
			for _, r := range out.Readings {
				for i, f := range r.Fields {
					if f.Name == "rssi" || f.Name == "t21" {
						continue
					}
					if i > 0 {
						got += ", "
					}
					got += strings.TrimPrefix(strings.Join(shown([]devices.Reading{{Fields: []devices.Field{f}}}), ""), "- ")
				}
			}
			if err != nil || got != m.want || string(answer) != m.answer {
				t.Errorf("%s %q: %s, answer %q, %v; want %s, %q", c.profile, m.payload, got, answer, err, m.want, m.answer)
			}
		}
	}
}

// mySensorsTime is when the messages of tests are received, as a clock in Berlin
// shows it.
var mySensorsTime = func() string {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		return ""
	}
	_, offset := received.In(zone).Zone()
	return strconv.FormatInt(received.Unix()+int64(offset), 10)
}()

// esp3 makes a packet of a telegram.
func esp3(telegram string) string {
	data, _ := hex.DecodeString(strings.ReplaceAll(telegram, " ", ""))
	header := []byte{0, byte(len(data)), 0, 1}
	packet := append([]byte{0x55}, header...)
	packet = append(packet, esp3Sum(header))
	packet = append(packet, data...)
	return hex.EncodeToString(append(packet, esp3Sum(data)))
}

func esp3Sum(b []byte) (crc byte) {
	for _, octet := range b {
		for bit := 7; bit >= 0; bit-- {
			top := crc>>7 ^ octet>>bit&1
			crc = crc<<1 ^ 7*top
		}
	}
	return crc
}

// closed adds the checksum of a block of VE.Direct.
func closed(block string) string {
	var sum byte
	for _, c := range []byte(block) {
		sum += c
	}
	return block + string([]byte{-sum})
}

// TestGasIsToldOnce hears a P1 port twice: the gas meter's value has the same time
// and is told once.
func TestGasIsToldOnce(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	h := library.Get("dsmr-p1").NewHearing()
	counts := []int{}
	for _, clock := range []string{"261123080000W", "261123080001W"} {
		telegram := "/ISK5\\2M550T-1012\r\n\r\n0-0:1.0.0(" + clock + ")\r\n1-0:1.7.0(00.111*kW)\r\n0-1:24.2.1(261123075500W)(00246.138*m3)\r\n!\r\n"
		out, _, err := h.Decode(Place{Location: berlin(t)}, Message{Payload: []byte(telegram), ContentFormat: -1, Received: time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)})
		if err != nil {
			t.Fatal(err)
		}
		counts = append(counts, len(out.Readings))
	}
	if !slices.Equal(counts, []int{2, 1}) {
		t.Errorf("readings of two telegrams: %v", counts)
	}
}

// TestStreams lets the framer of each firmware cut its samples out of one stream,
// in pieces of any size, with noise and cut frames between: the readings are those
// of each sample alone, and no others.
func TestStreams(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	samples := make(map[string][]Sample)
	for _, s := range allLines(t) {
		if p := library.Get(s.Firmware); s.Transport == "serial" && p != nil && p.Framing().Modbus == nil {
			samples[s.Firmware] = append(samples[s.Firmware], s)
		}
	}
	for firmware, all := range samples {
		random := rand.New(rand.NewPCG(5, 5))
		p := library.Get(firmware)
		rule := p.Framing()
		for _, noisy := range []bool{false, true} {
			var stream []byte
			var want []string
			for _, s := range all {
				m, err := s.Message(received)
				if err != nil {
					t.Fatal(err)
				}
				out, err := p.Decode(Place{Location: time.UTC}, m)
				if err != nil || len(out.Readings) == 0 || s.ID == "iec62056-21-02" { // a line, which somebody else cut
					continue
				}
				frame := slices.Clone(m.Payload)
				switch {
				case rule.IsLines() || rule.JSON != nil:
					frame = append(frame, "\r\n"...)
				case rule.Telegram != nil && bytes.HasSuffix(frame, []byte("!")):
					frame = append(frame, "\r\n"...)
				}
				if noisy {
					cut := frame[:random.IntN(len(frame))]
					if rule.IsLines() {
						cut = append([]byte{0x80, 0xfe, '\r', 0xff, 0x00}, '\n') // half a line may be a line
					}
					if rule.MIDI != nil { // has no checksum
						cut = nil
					}
					if rule.JSON != nil {
						cut = append(slices.Clone(cut), '\n')
					}
					stream = append(stream, cut...)
					want = append(want, line(out)) // which the rest of a cut frame may swallow
				}
				stream = append(stream, frame...)
				if noisy {
					stream = append(stream, frame...)
				}
				want = append(want, line(out))
			}
			f := framing.New(rule)
			var got []string
			take := func(f framing.Frame) {
				if f.Err != nil {
					if !noisy {
						t.Errorf("%s: %v", firmware, f.Err)
					}
					return
				}
				out, err := p.Decode(Place{Location: time.UTC}, Message{Payload: f.Bytes, ContentFormat: -1, Received: received})
				if err == nil && len(out.Readings) > 0 {
					got = append(got, line(out))
				}
			}
			for len(stream) > 0 {
				n := min(len(stream), 1+random.IntN(60))
				f.Cut(stream[:n], take)
				stream = stream[n:]
			}
			f.Idle(take)
			if !noisy && !slices.Equal(got, want) {
				t.Errorf("%s:\n got %q\nwant %q", firmware, got, want)
			}
			for i, w := range want {
				if noisy && !slices.Contains(got, w) {
					t.Errorf("%s: among noise, %d of %q does not come", firmware, i, w)
				}
			}
			for _, g := range got {
				if !slices.Contains(want, g) && rule.Sum != "crc8" { // by which one of 256 is taken
					t.Errorf("%s: %q is of no sample", firmware, g)
				}
			}
		}
	}
}

// TestP1Time reads times in the hour that comes twice when summer time ends, and
// others.
func TestP1Time(t *testing.T) {
	for text, want := range map[string]string{
		"261025023000S": "2026-10-25T00:30:00Z",
		"261025023000W": "2026-10-25T01:30:00Z",
		"261025030000W": "2026-10-25T02:00:00Z",
		"260701120000S": "2026-07-01T10:00:00Z",
		"260701120000":  "2026-07-01T10:00:00Z",
		"261301120000W": "",
		"26070112000":   "",
		"632525252525W": "",
	} {
		got := ""
		if at, ok := parseDSMRTime(text, berlin(t)); ok {
			got = at.UTC().Format(time.RFC3339)
		}
		if got != want {
			t.Errorf("%s is %s, not %s", text, got, want)
		}
	}
}
