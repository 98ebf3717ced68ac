package profile

import "testing"

// TestZWave hears nodes by number and by name, in all forms of payload, and
// tells them what to do.
func TestZWave(t *testing.T) {
	h := newHouse(t)
	h.hear("zwave/Hall/plug/nodeinfo", `{"id":40,"name":"plug","loc":"Hall","manufacturer":"Aeotec","productLabel":"ZW096","firmwareVersion":"1.4","status":"Alive","ready":true,"neighbors":[1,2]}`)
	for _, c := range []struct{ topic, payload, want string }{
		{"zwave/Hall/plug/37/0/currentValue", "true", "Hall/plug: - 37_0_currentvalue=true"},
		{"zwave/Hall/plug/37/0/targetValue", `{"time":1795435140000,"value":false}`, "Hall/plug: 2026-11-23T11:59:00Z 37_0_targetvalue=false"},
		{"zwave/cellar/40/38/0/targetValue", "99", "cellar/40: - 38_0_targetvalue=99"},
		{"zwave/40/112/0/200/15", "7", "40: - 112_0_200_15=7"},
		{"zwave/40/50/0/value/65537", `{"nodeId":40,"unit":"kWh","value":12.5,"min":0,"lastUpdate":1795435140000}`, "40: 2026-11-23T11:59:00Z 50_0_value_65537=12.5 kWh"},
		{"zwave/40/50/1/value/65537", `{"nodeId":40,"unit":"kWh","min":0}`, "40: "},
		{"zwave/40/49/0/Air_temperature", `{"time":1795435140000,"value":null}`, "40: "},
		{"zwave/40/49/0/Air_temperature", `{"nodeId":40,"unit":"°F","value":70.5}`, "40: - 49_0_air_temperature=70.5 °F"},
		{"zwave/office/thermostat_setpoint/endpoint_0/setpoint/1", "21", "office: - thermostat_setpoint_endpoint_0_setpoint_1=21"},
		{"zwave/office/switch_binary/endpoint_1/targetValue/set", "true", "office: "},
		{"zwave/driver/status", "true", "driver: "},
	} {
		if got := line(h.hear(c.topic, c.payload)); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.topic, c.payload, got, c.want)
		}
	}
	if out := h.hear("zwave/Hall/plug/37/0/currentValue", "false"); out.About.Identity != "40" {
		t.Errorf("the node of the name is not known: %+v", out.About)
	}
	for _, c := range []struct{ device, name, argument, want string }{
		{"Hall/plug", "37_0_targetvalue", "on", "zwave/Hall/plug/37/0/targetValue/set true"},
		{"cellar/40", "38_0_targetvalue", "50", "zwave/cellar/40/38/0/targetValue/set 50"},
		{"office", "thermostat_setpoint_endpoint_0_setpoint_1", "20.5", "zwave/office/thermostat_setpoint/endpoint_0/setpoint/1/set 20.5"},
	} {
		out, err := h.Encode("zwave-js-ui", c.device, c.name, c.argument)
		if got := out.Topic + " " + string(out.Payload); err != nil || got != c.want {
			t.Errorf("%s: %s %v, want %s", c.name, got, err, c.want)
		}
	}
}
