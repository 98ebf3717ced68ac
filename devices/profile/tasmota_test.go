package profile

import (
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

// TestTasmotaBoards tells boards of all kinds what to do, by what they
// announced. The short names are those of hatasmota's tests.
func TestTasmotaBoards(t *testing.T) {
	h := newHouse(t)
	board := func(mac, topic, rest string) {
		h.hear("tasmota/discovery/"+mac+"/config", `{"dn":"D","mac":"`+mac+`","md":"M","ofln":"Offline","onln":"Online","state":["OFF","ON","TOGGLE","HOLD"],"sw":"14","t":"`+topic+`","ft":"%prefix%/%topic%/","tp":["cmnd","stat","tele"],`+rest+`,"ver":1}`)
	}
	board("000000000001", "blind", `"rl":[3,3,1,0],"lt_st":0`)
	board("000000000002", "strip", `"rl":[2,0],"lt_st":5`)
	board("000000000003", "fan", `"rl":[1,1,1,1],"if":1,"lt_st":0`)
	board("000000000004", "probe", `"rl":[0],"lt_st":0,"dslp":1`)
	for _, c := range []struct{ device, name, argument, want string }{
		{"blind", "shutter1_position", "30", "cmnd/blind/ShutterPosition1 30"},
		{"blind", "shutter1", "close", "cmnd/blind/Backlog ShutterClose1"},
		{"blind", "power3", "on", "cmnd/blind/POWER3 ON"},
		{"strip", "power", "off", "cmnd/strip/POWER OFF"},
		{"strip", "dimmer", "50", "cmnd/strip/Dimmer 50"},
		{"strip", "ct", "153", "cmnd/strip/CT 153"},
		{"strip", "white", "10", "cmnd/strip/White 10"},
		{"strip", "color", "FF0000", "cmnd/strip/Color FF0000"},
		{"fan", "fanspeed", "3", "cmnd/fan/FanSpeed 3"},
		{"fan", "power4", "toggle", "cmnd/fan/POWER4 TOGGLE"},
	} {
		out, err := h.Encode("tasmota", c.device, c.name, c.argument)
		if got := out.Topic + " " + string(out.Payload); err != nil || got != c.want {
			t.Errorf("%s: %s %v, want %s", c.name, got, err, c.want)
		}
	}
	for _, c := range []struct{ topic, payload, want string }{
		{"stat/blind/RESULT", `{"Shutter1":{"Position":50,"Direction":0,"Target":50,"Tilt":0}}`, "blind: - shutter1_position=50 %, shutter1_direction=0, shutter1_target=50 %, shutter1_tilt=0 °"},
		{"tele/probe/SENSOR", `{"Switch1":"ON","Switch2":"OFF","ANALOG":{"A0":8},"INA219":{"Voltage":4.9,"Current":0.1,"Power":0.5},"ESP32":{"Temperature":41.1},"TempUnit":"C"}`,
			"probe: - switch1=true, switch2=false, analog_a0=8, ina219_voltage=4.9 V, ina219_current=0.1 A, ina219_power=0.5 W, esp32_temperature=41.1 °C"},
		{"stat/strip/STATUS2", `{"StatusFWR":{"Version":"14.1.0(tasmota)","Boot":31,"Core":"2_7_7"}}`, `strip: - version="14.1.0(tasmota)", boot=31, core="2_7_7"`},
		{"tele/strip/INFO1", `{"Info1":{"Module":"MagicHome","Version":"14.1.0(tasmota)"}}`, `strip: - module="MagicHome", version="14.1.0(tasmota)"`},
		{"stat/strip/STATUS6", `{"StatusMQT":{"MqttUser":"secret"}}`, "strip: "},
		{"stat/fan/RESULT", `{"POWER1":"ON"}`, "fan: - power1=true"},
		{"stat/strip/STATUS11", `{"StatusSTS":{"POWER1":"ON","Dimmer":50}}`, "strip: - power1=true, dimmer=50"},
		{"tele/bridge/SENSOR", `{"ZbReceived":{"0x69CF":{"Device":"0x69CF","Power":1,"ActivePower":12,"RMSVoltage":231,"Endpoint":1,"LinkQuality":70}}}`,
			`bridge:  | 0x69CF: - device="0x69CF", power=1, activepower=12 W, rmsvoltage=231 V, endpoint=1, linkquality=70 lqi`},
	} {
		if got := line(h.hear(c.topic, c.payload)); got != c.want {
			t.Errorf("%s: %s, want %s", c.topic, got, c.want)
		}
	}
	if out := h.hear("tele/probe/LWT", "Offline"); out.Availability != devices.Sleeping {
		t.Errorf("a board that sleeps: %+v", out)
	}
}
