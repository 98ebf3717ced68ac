package profile

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

// permutations of the numbers below n.
func permutations(n int) (all [][]int) {
	if n == 0 {
		return [][]int{nil}
	}
	for _, p := range permutations(n - 1) {
		for i := 0; i <= len(p); i++ {
			all = append(all, slices.Insert(slices.Clone(p), i, n-1))
		}
	}
	return all
}

// said are the newest values of each device, over all that was heard; what a
// session understands later counts where it came.
type said map[string]string

func (s said) take(out Output) {
	for _, r := range out.Readings {
		for _, f := range r.Fields {
			if f.Kind != devices.Identity {
				s[out.Identity+" "+f.Name] = f.Value.String() + string(f.Unit)
			}
		}
	}
	if out.Availability != devices.AvailabilityUnknown {
		s[out.Identity+" availability"] = fmt.Sprint(out.Availability)
	}
	for _, child := range out.Children {
		s.take(child)
	}
	for _, earlier := range out.Earlier {
		s.take(earlier.Output)
	}
}

// TestAnnouncedInAnyOrder hears the announcements of one device and its data
// in every order.
func TestAnnouncedInAnyOrder(t *testing.T) {
	messages := [][2]string{
		{"homeassistant/sensor/pump_power/config", `{"dev":{"ids":"pump","name":"Pump"},"name":"Power","stat_t":"diy/pump/data","val_tpl":"{{ value_json.p }}","unit_of_meas":"W","avty_t":"diy/pump/lwt"}`},
		{"homeassistant/sensor/pump_total/config", `{"dev":{"ids":["pump"]},"name":"Total","stat_t":"diy/pump/data","val_tpl":"{{ value_json['total'] / 1000 }}","unit_of_meas":"kWh","stat_cla":"total"}`},
		{"homeassistant/switch/pump/config", `{"dev":{"ids":["pump"]},"name":null,"cmd_t":"diy/pump/set","stat_t":"diy/pump/on","pl_on":"1","pl_off":"0"}`},
		{"diy/pump/data", `{"p":40.0,"total":1500}`},
		{"diy/pump/on", "1"},
		{"diy/pump/lwt", "online"},
	}
	want := map[string]string{"pump power": "40.0W", "pump total": "1.5kWh", "pump switch": "true", "pump availability": fmt.Sprint(devices.Online)}
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, order := range permutations(len(messages)) {
		h := library.NewSession(berlin(t))
		got := make(said)
		for _, i := range order {
			out, err := h.Hear(Message{Topic: messages[i][0], Payload: []byte(messages[i][1]), ContentFormat: -1, Received: received})
			if err == nil {
				got.take(out)
			}
		}
		for name, value := range want {
			if got[name] != value {
				t.Fatalf("%v: %s is %q, want %q", order, name, got[name], value)
			}
		}
	}
}

// TestSamplesBackwards hears the samples from the last to the first: the data
// says in the end what it says in their order.
func TestSamplesBackwards(t *testing.T) {
	lines := readLines(t, filepath.Join("..", "..", "firmware-profiles", "testdata", "homeassistant-discovery.jsonl"))
	slices.Reverse(lines)
	h := newHouse(t)
	got := make(said)
	for _, s := range lines {
		m, err := s.Message(received)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := h.Hear(m); err == nil {
			got.take(out)
		}
	}
	for name, value := range map[string]string{"garden garden": "true", "sensorBedroom temperature": "23.20°C", "sensorBedroom humidity": "43.70%"} {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

// TestHomeAssistantDevice follows a device from its announcement to its end.
func TestHomeAssistantDevice(t *testing.T) {
	h := newHouse(t)
	const config = "homeassistant/device/x1/config"
	h.hear(config, `{"dev":{"ids":"x1","name":"Heater"},"o":{"name":"diy"},"stat_t":"diy/x1","avty_t":"diy/x1/lwt","cmps":{
		"t":{"p":"sensor","dev_cla":"temperature","unit_of_meas":"°C","val_tpl":"{{ value_json.t }}","uniq_id":"x1t"},
		"s":{"p":"number","name":"Target","cmd_t":"diy/x1/target","val_tpl":"{{ value_json.target }}","min":5,"max":30,"uniq_id":"x1s"},
		"m":{"p":"select","name":"Mode","cmd_t":"diy/x1/mode","ops":["eco","boost"],"val_tpl":"{{ value_json.mode }}","cmd_tpl":"{\"mode\":\"{{ value }}\"}","uniq_id":"x1m"}}}`)
	if got := line(h.hear("diy/x1", `{"t":21.50,"target":22,"mode":"eco"}`)); got != `x1: - mode="eco", target=22, temperature=21.50 °C` {
		t.Error(got)
	}
	if got := line(h.hear("diy/x1", `{"t":21.60}`)); got != `x1: - temperature=21.60 °C` {
		t.Error(got)
	}
	for _, c := range []struct{ name, argument, want string }{
		{"target", "20", "diy/x1/target 20 target=20"},
		{"target", "40", "target: 40 is not from 5 to 30"},
		{"mode", "boost", `diy/x1/mode {"mode":"boost"} mode=boost`},
		{"mode", "party", `mode: "party" is none of boost, eco`},
	} {
		out, err := h.Encode("homeassistant-discovery", "x1", c.name, c.argument)
		got := out.Topic + " " + string(out.Payload) + " " + out.Field + "=" + out.Value.String()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s %s: %s, want %s", c.name, c.argument, got, c.want)
		}
	}
	if out := h.hear("diy/x1/lwt", "offline"); out.Availability != devices.Offline || out.Identity != "x1" {
		t.Errorf("%+v", out)
	}
	if out := h.hear(config, ""); !slices.Equal(out.Removed, []string{"x1"}) {
		t.Errorf("removed %v", out.Removed)
	}
	if out, err := h.Hear(Message{Topic: "diy/x1", Payload: []byte(`{"t":1}`)}); err == nil && strings.Contains(line(out), "°C") {
		t.Errorf("known after its end: %s", line(out))
	}
}
