package profile

import (
	"slices"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

// TestCommands tells devices what to do, by what was heard of them.
func TestCommands(t *testing.T) {
	h := newHouse(t)
	h.hear("house/tele/hall/lamp/STATE", `{"POWER1":"ON","POWER2":"OFF","Dimmer":40}`)
	h.hear("kitchen/tele/LWT", "Online")
	h.hear("shellies/shelly1/relay/0", "on")
	h.hear("solar/114172608275/0/power", "5.7")
	h.hear("zigbee2mqtt/bridge/devices", "["+plug+"]")
	h.hear("zigbee2mqtt/group", `{"state":"ON"}`)
	h.hear("wled/bed/g", "127")
	h.hear("bath/switch/heater/state", "ON")
	h.hear("bath/cover/blind/state", "open")
	h.hear("valetudo/robot/FanSpeedControlCapability/preset", "max")
	h.hear("frigate/front/detect/state", "ON")
	h.hear("ems-esp/thermostat_data", `{"hc1":{"seltemp":20}}`)
	h.hear("home/omg/SYStoMQTT", `{"uptime":3}`)
	h.hear("v3/app@ttn/devices/dev1/up", `{"end_device_ids":{"device_id":"dev1"},"uplink_message":{"f_port":1}}`)
	for _, c := range []struct{ profile, device, name, argument, want string }{
		{"wled", "bed", "power", "on", "wled/bed ON brightness="},
		{"wled", "bed", "brightness", "256", "brightness: 256 is not from 0 to 255"},
		{"wled", "bed", "preset", "3", `wled/bed/api {"ps":3} brightness=`},
		{"esphome", "bath", "heater", "off", "bath/switch/heater/command OFF heater=false"},
		{"esphome", "bath", "blind", "close", "bath/cover/blind/command CLOSE blind="},
		{"valetudo", "robot", "fan", "off", "valetudo/robot/FanSpeedControlCapability/preset/set off fanspeedcontrolcapability_preset=off"},
		{"valetudo", "robot", "operation", "home", "valetudo/robot/BasicControlCapability/operation/set HOME statusstateattribute_status="},
		{"frigate", "front", "detect", "off", "frigate/front/detect/set OFF detect_state=false"},
		{"ems-esp", "thermostat", "hc1_seltemp", "21.5", "ems-esp/thermostat/hc1/seltemp 21.5 hc1_seltemp=21.5"},
		{"ems-esp", "thermostat", "hc1_seltemp", "35", "hc1_seltemp: 35 is not from 5 to 30"},
		{"openmqttgateway", "omg", "restart", "", `home/omg/commands/MQTTtoSYS/config {"cmd":"restart"} uptime=`},
		{"ttn-v3", "dev1", "downlink", `a"b`, `v3/app@ttn/devices/dev1/down/push {"downlinks":[{"f_port":1,"frm_payload":"a\"b","priority":"NORMAL"}]} downlink_queued_f_port=`},
		{"tasmota", "hall/lamp", "power2", "on", "house/cmnd/hall/lamp/POWER2 ON power2=true"},
		{"tasmota", "hall/lamp", "power2", "Toggle", "house/cmnd/hall/lamp/POWER2 TOGGLE power2="},
		{"tasmota", "hall/lamp", "power2", "dim", `power2: "dim" is none of off, on, toggle`},
		{"tasmota", "hall/lamp", "power3", "on", `the device has no command "power3"`},
		{"tasmota", "hall/lamp", "dimmer", "100", "house/cmnd/hall/lamp/Dimmer 100 dimmer=100"},
		{"tasmota", "hall/lamp", "dimmer", "101", "dimmer: 101 is not from 0 to 100"},
		{"tasmota", "hall/lamp", "dimmer", "1.5", "dimmer: 1.5 is not a whole number"},
		{"tasmota", "hall/lamp", "dimmer", "full", `dimmer: "full" is not a number`},
		{"shelly-gen1", "shelly1", "relay_0", "off", "shellies/shelly1/relay/0/command off relay_0=false"},
		{"shelly-gen1", "shelly1", "update", "", "shellies/shelly1/command update update="},
		{"shelly-gen1", "shelly1", "update", "now", "update: it takes no argument"},
		{"opendtu", "114172608275", "limit_relative", "50.5", "solar/114172608275/cmd/limit_nonpersistent_relative 50.5 status_limit_relative=50.5"},
		{"zigbee2mqtt", "plug", "state", "on", `zigbee2mqtt/plug/set {"state":"GO"} state=true`},
		{"zigbee2mqtt", "plug", "mode", "b", `zigbee2mqtt/plug/set {"mode":"b"} mode=b`},
		{"zigbee2mqtt", "group", "state", "off", `zigbee2mqtt/group/set {"state":"OFF"} state=false`},
	} {
		out, err := h.Encode(c.profile, c.device, c.name, c.argument)
		got := out.Topic + " " + string(out.Payload) + " " + out.Field + "=" + out.Value.String()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s %s %s:\n got %s\nwant %s", c.device, c.name, c.argument, got, c.want)
		}
	}
	polls, _ := h.Polls("tasmota", "kitchen", "online")
	if len(polls) != 2 || polls[0].Topic != "kitchen/cmnd/STATUS" || string(polls[0].Payload) != "10" {
		t.Errorf("%+v", polls)
	}
	if polls, _ = h.Polls("shelly-gen1", "", "start"); len(polls) != 1 || polls[0].Topic != "shellies/command" {
		t.Errorf("%+v", polls)
	}
}

// TestRisk says what can come of a command, by the profile or by what the
// device announced.
func TestRisk(t *testing.T) {
	h := newHouse(t)
	h.hear("v3/app@ttn/devices/dev1/up", `{"end_device_ids":{"device_id":"dev1"},"uplink_message":{"f_port":1}}`)
	h.hear("house/tele/hall/lamp/STATE", `{"POWER1":"ON"}`)
	h.hear("homeassistant/lock/door/config", `{"name":"Lock","uniq_id":"l","cmd_t":"door/set","stat_t":"door/state","dev":{"ids":"door"}}`)
	h.hear("homeassistant/cover/blind/config", `{"name":"Blind","uniq_id":"b","cmd_t":"blind/set","dev_cla":"shade","dev":{"ids":"door"}}`)
	h.hear("homeassistant/cover/garage/config", `{"name":"Garage","uniq_id":"g","cmd_t":"garage/set","dev_cla":"garage","dev":{"ids":"door"}}`)
	for _, c := range []struct {
		profile, device, name string
		want                  devices.Risk
	}{
		{"ttn-v3", "dev1", "downlink", devices.Hazardous},
		{"tasmota", "hall/lamp", "power1", devices.Reversible},
		{"homeassistant-discovery", "door", "lock", devices.Hazardous},
		{"homeassistant-discovery", "door", "blind", devices.Reversible},
		{"homeassistant-discovery", "door", "garage", devices.Hazardous},
	} {
		all := h.Commands(c.profile, c.device)
		if i := slices.IndexFunc(all, func(x Command) bool { return x.Name == c.name }); i < 0 || all[i].Risk != c.want {
			t.Errorf("%s of %s, want %s: %+v", c.name, c.device, c.want, all)
		}
	}
}

// TestCommandNeverLeaves lets what a device is called be no way out of its
// topic.
func TestCommandNeverLeaves(t *testing.T) {
	h := newHouse(t)
	h.hear("zigbee2mqtt/bridge/devices", "["+strings.ReplaceAll(plug, `"plug"`, `"+/#"`)+"]")
	if out, err := h.Encode("zigbee2mqtt", "+/#", "state", "on"); err == nil {
		t.Errorf("%+v", out)
	}
}
