package words

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

func house() Scope {
	return Scope{
		Devices: []Name{{"hall", "Hall lamp"}, {"kitchen", "Kitchen"}, {"cellar", "status"}},
		Groups:  map[string][]devices.ID{"lights": {"hall", "kitchen"}, "none": nil},
	}
}

func TestParse(t *testing.T) {
	at := func(id devices.ID) Scope {
		s := house()
		s.Device, s.Groups = id, nil
		return s
	}
	for _, c := range []struct {
		line string
		in   Scope
		want string // verb, devices, rest, number; or the error
	}{
		{"on", at("kitchen"), "set [] [on] 0"},
		{"  ON! ", at("kitchen"), "set [] [on] 0"},
		{"/off", at("kitchen"), "set [] [off] 0"},
		{"Please turn the off", at("kitchen"), "set [] [off] 0"},
		{"kitchen on", at("kitchen"), "set [kitchen] [on] 0"},
		{"hall on", at("kitchen"), "set [] [hall on] 0"}, // and hall is none of its words
		{"togle", at("kitchen"), "set [] [toggle] 0"},
		{"Set Level 40%", at("kitchen"), "set [] [set Level 40%] 0"},
		{"level := 40", at("kitchen"), "set [] [set level 40] 0"},
		{"set level=40", at("kitchen"), "set [] [set level 40] 0"},
		{"brightness 40 %", at("kitchen"), "set [] [brightness 40 %] 0"},
		{"set temperature 21,5", at("kitchen"), "set [] [set temperature 21,5] 0"},
		{"?", at("kitchen"), "help [] [] 0"},
		{"status?", at("kitchen"), "status [] [] 0"},
		{"stauts", at("kitchen"), "status [] [] 0"},
		{"read temperature", at("kitchen"), "read [] [temperature] 0"},
		{"proof 24 h", at("kitchen"), "proof [] [24 h] 0"},
		{"👍", at("kitchen"), "ack [] [] 0"},
		{"✔️", at("kitchen"), "ack [] [] 0"},
		{"unmute", at("kitchen"), "mute [] [off] 0"},
		{"2", at("kitchen"), "choose [] [] 2"},

		{"kitchen on", house(), "set [kitchen] [on] 0"},
		{"Kitchen", house(), "status [kitchen] [] 0"},
		{"hall lamp off", house(), "set [hall] [off] 0"},
		{"HALL-LAMP off", house(), "set [hall] [off] 0"},
		{"kitchen, hall off", house(), "set [kitchen hall] [off] 0"},
		{"kitchen and hall lamp off", house(), "set [kitchen hall] [off] 0"},
		{"all lights off", house(), "set [hall kitchen] [off] 0"},
		{"lights off", house(), "set [hall kitchen] [off] 0"},
		{"lights and kitchen off", house(), "set [hall kitchen] [off] 0"},
		{"all off", house(), "set [hall kitchen cellar] [off] 0"},
		{"all devices off", house(), "set [hall kitchen cellar] [off] 0"},
		{"turn on the kitchen", house(), "set [kitchen] [on] 0"},
		{"turn the kitchen on", house(), "set [kitchen] [on] 0"},
		{"set kitchen level 40", house(), "set [kitchen] [set level 40] 0"},
		{"kitchen level = 40", house(), "set [kitchen] [set level 40] 0"},
		{"status kitchen", house(), "status [kitchen] [] 0"},
		{"status", house(), "status [] [] 0"},
		{"read kitchen temperature", house(), "read [kitchen] [temperature] 0"},
		{"gateway read", house(), "read [gateway] [] 0"},
		{"mute hall lamp 2h", house(), "mute [hall] [2h] 0"},
		{"on", house(), "set [] [on] 0"},
		{"approve 7 operator kitchen", house(), "approve [] [operator kitchen] 7"},
		{"approve #7", house(), "approve [] [] 7"},
		{"grant Bob@example.net operator kitchen,hall", house(), "grant [] [Bob@example.net operator kitchen , hall] 0"},
		{"claim ABCDE-FGHIJ", house(), "claim [] [ABCDE-FGHIJ] 0"},
		{"de\u202evices\x00", house(), "devices [] [] 0"},

		{"", house(), NothingSaid},
		{"\u200b \u202e", house(), NothingSaid},
		{"aprove 7", house(), "I do not know “aprove”; did you mean approve?"},
		{"kitchne on", house(), "I do not know “kitchne”; did you mean kitchen?"},
		{"bedroom on", house(), "I do not know “bedroom”; write help"},
		{"kitchen, on", house(), "set [kitchen] [on] 0"},
		{"kitchen, bedroom on", house(), "I do not know “bedroom”; write help"},
		{"none off", house(), "there is no device in none that you may see"},
		{"kitchen devices", house(), "devices is not for one device; write it alone"},
		{"approve", house(), "write approve and the number that pending shows"},
		{"approve seven", house(), "write approve and the number that pending shows"},
		{strings.Repeat("on ", 400), house(), fmt.Sprintf(TooLong, MaxLine)},
	} {
		r, err := Parse(c.line, c.in)
		got := fmt.Sprintf("%s %v %v %d", r.Verb, r.Devices, r.Rest, r.Number)
		if err != nil {
			got = err.Error()
			if !errors.As(err, new(Error)) {
				t.Errorf("%q: the error is a %T", c.line, err)
			}
		}
		if got != c.want {
			t.Errorf("%q to %q: %s; want %s", c.line, c.in.Device, got, c.want)
		}
	}
}

func TestResolve(t *testing.T) {
	f := func(x float64) *float64 { return &x }
	level := devices.Control{Name: "level", Argument: devices.Argument{Type: devices.IntegerArgument, Min: f(0), Max: f(254)}}
	wanted := devices.Control{Name: "hc1_seltemp", Title: "Wanted temperature", Argument: devices.Argument{Type: devices.NumberArgument, Min: f(5), Max: f(30), Unit: "°C"}}
	power := devices.Control{Name: "power", Argument: devices.Argument{Type: devices.SwitchArgument, Words: []string{"off", "on", "toggle"}}}
	power2 := power
	power2.Name = "power2"
	roller := devices.Control{Name: "roller_0", Argument: devices.Argument{Type: devices.WordArgument, Words: []string{"open", "close", "stop"}}}
	name := devices.Control{Name: "name", Argument: devices.Argument{Type: devices.TextArgument}}
	restart := devices.Control{Name: "restart"}
	all := []devices.Control{level, wanted, power, roller, name, restart}
	for _, c := range []struct {
		line     string
		controls []devices.Control
		want     string // control and argument; or the error
	}{
		{"on", all, "power on"},
		{"toggle", all, "power toggle"},
		{"set power On", all, "power on"},
		{"power true", all, "power on"},
		{"set level 40", all, "level 40"},
		{"set level 40%", all, "level 102"},
		{"level to 100 %", all, "level 254"},
		{"set wanted temperature 21,5 °C", all, "hc1_seltemp 21.5"},
		{"hc1 seltemp 21.50 degC", all, "hc1_seltemp 21.50"},
		{"hc1-seltemp 21°", all, "hc1_seltemp 21"},
		{"open", all, "roller_0 open"},
		{"set Open", all, "roller_0 open"},
		{"restart", all, "restart "},
		{"set name Otto Möller", all, "name Otto Möller"},
		{"set 40", []devices.Control{power, level}, "level 40"},
		{"on power2", []devices.Control{power, power2}, "power2 on"},
		{"power2 off", []devices.Control{power, power2}, "power2 off"},
		{"set volume 3", all, "it has no “volume”; it has: level, hc1_seltemp, power, roller_0, name, restart"},
		{"set pwoer on", all, "it has no “pwoer”; did you mean power?"},
		{"set", all, "set what? It has: level, hc1_seltemp, power, roller_0, name, restart"},
		{"on", []devices.Control{power, power2}, "it has no “on”; it has: power, power2"},
		{"on", nil, NoControls},
		{"set 40", all, "it has no “40”; it has: level, hc1_seltemp, power, roller_0, name, restart"},
		{"set level", all, "level takes 0 to 254"},
		{"set level 300", all, "level: 300 is not within 0 to 254"},
		{"set level 140%", all, "level: 140 % is not within 0 to 100 %"},
		{"set level 1.5", all, "level takes a whole number, not 1.5"},
		{"set level 3 V", all, "level has no unit; what is “V”?"},
		{"set hc1_seltemp 20 V", all, "hc1_seltemp is in °C, not in “V”"},
		{"set hc1_seltemp 1,000", all, "“1,000” could be two numbers; write it with a point, or without"},
		{"set level much", all, "“much” is not a number"},
		{"restart now", all, "restart takes nothing behind it"},
		{"set power high", all, "power takes one of: off, on, toggle"},
		{"set name", all, "name takes a text"},
	} {
		r, err := Parse(c.line, Scope{Device: "x"})
		if err != nil {
			t.Fatalf("%q: %v", c.line, err)
		}
		control, argument, err := Resolve(c.controls, r.Rest)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = control.Name + " " + argument
		}
		if got != c.want {
			t.Errorf("%q: %s; want %s", c.line, got, c.want)
		}
	}
}

func TestTerms(t *testing.T) {
	for line, want := range map[string]string{
		"operator": "{ operator []  }",
		"Operator kitchen, hall-* hours Mon-Fri 08:00-18:00 Europe/Berlin until 2027-01-01": "{ operator [kitchen hall-*] Mon-Fri 08:00-18:00 Europe/Berlin 2027-01-01}",
		"as viewer for kitchen and hall": "{ viewer [kitchen hall]  }",
		"owner all":                      "{ owner []  }",
		"kitchen":                        "{  [kitchen]  }",
		"until friday":                   "“friday” is not a date; write it as 2027-01-01",
		"oprator kitchen":                "“oprator” is no role; there are viewer, operator, installer, owner",
		"viewer hours Sat, Sun 10-12":    HoursComma,
	} {
		terms, err := ParseTerms(split(line))
		got := fmt.Sprint(terms)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s; want %s", line, got, want)
		}
	}
}

func TestPeriods(t *testing.T) {
	for line, want := range map[string]string{
		"": "1h0m0s", "2h": "2h0m0s", "90 min": "1h30m0s", "for 3 days": "72h0m0s", "1h 30min": "1h30m0s", "off": "0s",
		"40 days": LongPeriod, "long": "“long” is not a time; write it as 2h or 30 min", "2": "“2” is not a time; write it as 2h or 30 min",
	} {
		d, err := ParsePeriod(strings.Fields(line), DefaultMute)
		got := d.String()
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s; want %s", line, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 s", 59 * time.Second: "59 s", 95 * time.Second: "1 min", 125 * time.Minute: "2 h 5 min", 26 * time.Hour: "1 d 2 h", 11 * 24 * time.Hour: "11 d",
	} {
		if got := Span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "1 ms", 84 * time.Millisecond: "84 ms", 1234 * time.Millisecond: "1.2 s", 75 * time.Second: "1 min"} {
		if got := Took(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// TestReadme has every line that the README says one can write understood.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	zero, hundred := 0.0, 100.0
	controls := []devices.Control{
		{Name: "level", Argument: devices.Argument{Type: devices.IntegerArgument, Min: &zero, Max: &hundred, Unit: "%"}},
		{Name: "power", Argument: devices.Argument{Type: devices.SwitchArgument, Words: []string{"off", "on", "toggle"}}},
		{Name: "shutter", Argument: devices.Argument{Type: devices.WordArgument, Words: []string{"open", "close"}}},
	}
	_, section, _ := strings.Cut(string(readme), "## Every client is the remote control")
	section, _, _ = strings.Cut(section, "\n## ")
	tried := 0
	in := house()
	for line := range strings.Lines(section) {
		switch cells := strings.Split(line, "|"); {
		case strings.Contains(line, "| write to a device |"):
			in = Scope{Device: "kitchen", Devices: house().Devices[1:2]}
		case strings.Contains(line, "| write to the gateway |"):
			in = house()
		case len(cells) == 4:
			for i, example := range strings.Split(cells[1], "`") {
				if i%2 == 0 {
					continue
				}
				tried++
				r, err := Parse(example, in)
				if err == nil && r.Verb == Act {
					_, _, err = Resolve(controls, r.Rest)
				}
				switch r.Verb {
				case Approve, Grant:
					_, err = ParseTerms(r.Rest[min(len(r.Rest), map[Verb]int{Approve: 0, Grant: 1}[r.Verb]):])
				case Mute:
					_, err = ParsePeriod(r.Rest, DefaultMute)
				}
				if err != nil {
					t.Errorf("%s: %v", example, err)
				}
			}
		}
	}
	if tried < 30 {
		t.Errorf("%d examples", tried)
	}
}

func FuzzParse(f *testing.F) {
	for _, line := range []string{"kitchen, hall lamp on", "set level 40 %", "all lights off", "x := 1,5", "= = =", "turn the", ", , and", "approve 7 as owner until", "mute 2h 3", "\u202eno\x00", "/?"} {
		f.Add(line, "kitchen")
		f.Add(line, "")
	}
	limit := 10.0
	controls := []devices.Control{
		{Name: "level", Title: "hall", Argument: devices.Argument{Type: devices.IntegerArgument, Max: &limit, Unit: "%"}},
		{Name: "power", Argument: devices.Argument{Type: devices.SwitchArgument, Words: []string{"off", "on"}}},
		{Name: "note", Argument: devices.Argument{Type: devices.TextArgument}},
	}
	f.Fuzz(func(t *testing.T, line, to string) {
		s := house()
		if to != "" {
			s = Scope{Device: "kitchen", Devices: s.Devices[1:2]}
		}
		if c := Clean(line); Clean(c) != c || strings.ContainsFunc(c, func(r rune) bool { return r < ' ' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 }) {
			t.Errorf("%q is cleaned to %q", line, c)
		}
		r, err := Parse(line, s)
		if err != nil {
			if !errors.As(err, new(Error)) || len(err.Error()) > 1000 {
				t.Errorf("%q: %T %v", line, err, err)
			}
			return
		}
		for _, id := range r.Devices {
			if id != devices.Gateway && !slices.Contains(s.all(), id) {
				t.Errorf("%q means %s, which is not in the scope", line, id)
			}
		}
		if r.Verb == Act {
			c, argument, err := Resolve(controls, r.Rest)
			if err == nil && c.Name == "level" {
				if v, numErr := devices.ParseNumber(argument); numErr != nil || v.Float() > limit {
					t.Errorf("%q sets %s", line, argument)
				}
			} else if err != nil && !errors.As(err, new(Error)) {
				t.Errorf("%q: %T", line, err)
			}
		}
		ParseTerms(r.Rest)
		ParsePeriod(r.Rest, 0)
	})
}
