package profile

import (
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

// TestShellyGen2 hears a device whose prefix is not its id: both are one, and
// commands go to the prefix.
func TestShellyGen2(t *testing.T) {
	h := newHouse(t)
	if out, _ := h.Hear(Message{Topic: "garage/online", Payload: []byte("true")}); out.Profile == "shelly-gen2" {
		t.Errorf("a topic that anything may have is taken: %+v", out)
	}
	const full = `{"src":"shellypro4pm-f008d1d8b8b8","dst":"garage/events","method":"NotifyFullStatus","params":{"ts":1.5,
		"switch:0":{"id":0,"output":false,"apower":0,"aenergy":{"total":11.5,"by_minute":[1,2,3],"minute_ts":1}},"switch:1":{"id":1,"output":true},
		"cover:0":{"id":0,"state":"open","current_pos":50},"light:0":{"id":0,"output":true,"brightness":20},"input:0":{"id":0,"state":null},
		"number:200":{"value":4.5},"sys":{"mac":"F008D1D8B8B8","uptime":7}}}`
	out := h.hear("garage/events/rpc", full)
	if got := line(out); got != "shellypro4pm-f008d1d8b8b8: - switch_0_output=false, switch_0_apower=0 W, switch_0_aenergy_total=11.5 Wh, switch_1_output=true, "+
		"cover_0_state=\"open\", cover_0_current_pos=50 %, light_0_output=true, light_0_brightness=20 %, number_200_value=4.5, sys_mac=\"F008D1D8B8B8\", sys_uptime=7 s" {
		t.Error(got)
	}
	if k := out.Readings[0].Fields[2].Kind; k != devices.Counter {
		t.Errorf("the energy is a %v", k)
	}
	if out := h.hear("garage/online", "false"); out.Profile != "shelly-gen2" || out.Availability != devices.Offline || out.About.Identity != "shellypro4pm-f008d1d8b8b8" {
		t.Errorf("%+v", out)
	}
	if out := h.hear("garage/status/switch:0", `{"id":0,"output":true}`); out.Identity != "garage" || out.About.Identity != "shellypro4pm-f008d1d8b8b8" {
		t.Errorf("%+v", out)
	}
	for _, c := range []struct{ device, name, argument, want string }{
		{"shellypro4pm-f008d1d8b8b8", "switch_1_output", "off", "garage/command/switch:1 off"},
		{"garage", "switch_0_output", "toggle", "garage/command/switch:0 toggle"},
		{"shellypro4pm-f008d1d8b8b8", "cover_0_state", "close", "garage/command/cover:0 close"},
		{"shellypro4pm-f008d1d8b8b8", "cover_0_current_pos", "30", `garage/rpc {"id":1,"src":"porchlight","method":"Cover.GoToPosition","params":{"id":0,"pos":30}}`},
		{"shellypro4pm-f008d1d8b8b8", "light_0_brightness", "80", `garage/rpc {"id":1,"src":"porchlight","method":"Light.Set","params":{"id":0,"brightness":80}}`},
		{"shellypro4pm-f008d1d8b8b8", "number_200_value", "7.5", `garage/rpc {"id":1,"src":"porchlight","method":"Number.Set","params":{"id":200,"value":7.5}}`},
		{"garage", "update", "", "garage/command status_update"},
	} {
		sent, err := h.Encode("shelly-gen2", c.device, c.name, c.argument)
		if got := sent.Topic + " " + string(sent.Payload); err != nil || got != c.want {
			t.Errorf("%s: %s %v, want %s", c.name, got, err, c.want)
		}
	}
	// Both generations announce on the same topic when they are asked.
	if out := h.hear("shellies/announce", `{"id":"shellyplus1pm-4417939341dc","mac":"4417939341DC","model":"SNSW-001P16EU","gen":2,"ver":"1.0.0","app":"Plus1PM"}`); out.Profile != "shelly-gen2" || out.Identity != "shellyplus1pm-4417939341dc" || out.About.Model != "SNSW-001P16EU" {
		t.Errorf("%+v", out)
	}
	if out := h.hear("shellies/announce", `{"id":"shelly1","model":"SHSW-1","mac":"8CAAB54B98DF"}`); out.Profile != "shelly-gen1" {
		t.Errorf("%+v", out)
	}
	if got := line(h.hear("someone/rpc", `{"id":1,"src":"shellypro4pm-f008d1d8b8b8","dst":"someone","result":{"switch:0":{"id":0,"apower":5.5}}}`)); got != "shellypro4pm-f008d1d8b8b8: - switch_0_apower=5.5 W" {
		t.Error(got)
	}
	h.hear("porchlight/rpc", `{"id":1,"src":"shellypro4pm-f008d1d8b8b8","dst":"porchlight","result":{"was_on":false}}`)
	h.hear("porchlight/rpc", `{"id":1,"src":"shellypro4pm-f008d1d8b8b8","dst":"porchlight","result":null}`)
	if sent, err := h.Encode("shelly-gen2", "shellypro4pm-f008d1d8b8b8", "switch_1_output", "off"); err != nil || sent.Topic != "garage/command/switch:1" {
		t.Errorf("after an answer: %+v %v", sent, err)
	}
}
