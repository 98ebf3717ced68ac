package profile

import (
	"slices"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
)

// TestHomieAttributes hears the attributes of one property one by one, after
// its value: the convention leaves their order open.
func TestHomieAttributes(t *testing.T) {
	h := newHouse(t)
	h.hear("homie/hall/door/count", "3")
	h.hear("homie/hall/door/open", "true")
	h.hear("homie/hall/$stats/uptime", "120")
	var last Output
	for _, attribute := range [][2]string{
		{"door/count/$unit", "#"}, {"door/count/$datatype", "string"}, {"door/open/$settable", "true"}, {"door/open/$datatype", "boolean"},
		{"door/open/$name", "The door"}, {"door/mode/$format", "ON,OFF,auto"}, {"door/mode/$settable", "true"}, {"door/mode/$datatype", "enum"},
		{"lights/level/$unit", "%"}, {"lights/level/$format", "0:100:5"}, {"lights/level/$datatype", "integer"}, {"lights/$array", "0-1"},
		{"door/bell/$retained", "false"}, {"door/bell/$datatype", "integer"}, {"$name", "Hall"}, {"$fw/name", "homie-esp8266"}, {"$fw/version", "3.0.0"},
	} {
		last = h.hear("homie/hall/"+attribute[0], attribute[1])
		if !last.Announced || last.Identity != "hall" {
			t.Errorf("%s: %+v", attribute[0], last)
		}
	}
	for _, c := range [][2]string{
		{"door/count", "hall: - door_count=\"3\""}, // a string, as announced
		{"door/mode", `hall: - door_mode="ON"`},
		{"lights_1/level", "hall: - lights_1_level=55 %"},
		{"door/bell", "hall: - door_bell=1"},
		{"$stats/signal", "hall: - stats_signal=24 %"},
	} {
		payload := map[string]string{"door/count": "3", "door/mode": "ON", "lights_1/level": "55", "door/bell": "1", "$stats/signal": "24"}[c[0]]
		out := h.hear("homie/hall/"+c[0], payload)
		if line(out) != c[1] || out.About.Name != "Hall" || out.About.Firmware != "3.0.0" {
			t.Errorf("%s: %s %+v, want %s", c[0], line(out), out.About, c[1])
		}
	}
	if f := h.hear("homie/hall/door/bell", "1").Readings[0].Fields[0]; f.Kind != devices.Event {
		t.Errorf("the bell is %v", f.Kind)
	}
	for _, c := range []struct{ name, argument, want string }{
		{"door_open", "off", "homie/hall/door/open/set false door_open=false"},
		{"door_mode", "auto", "homie/hall/door/mode/set auto door_mode=auto"},
		{"lights_level", "5", `the device has no command "lights_level"`},
	} {
		out, err := h.Encode("homie3", "hall", c.name, c.argument)
		got := out.Topic + " " + string(out.Payload) + " " + out.Field + "=" + out.Value.String()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	if out := h.hear("homie/hall/$state", "sleeping"); out.Availability != devices.Sleeping {
		t.Errorf("%+v", out)
	}
}

// TestHomieDocument knows a tree of devices by their descriptions, and loses
// all of it with its root.
func TestHomieDocument(t *testing.T) {
	h := newHouse(t)
	h.hear("homie/5/lamp/light/level", "40")
	out := h.hear("homie/5/lamp/$description", `{"homie":"5.0","version":7,"name":"Lamp","root":"bridge","parent":"relay","nodes":{"light":{"properties":{
		"level":{"datatype":"integer","format":"0:255","settable":true},"color":{"datatype":"color","format":"rgb,hsv","settable":true},
		"since":{"datatype":"datetime"},"left":{"datatype":"duration"},"raw":{"datatype":"json"},"power":{"datatype":"boolean","format":"aus,an","settable":true}}}}}`)
	if len(out.Earlier) != 1 || line(out.Earlier[0].Output) != "lamp: - light_level=40" {
		t.Errorf("%+v", out.Earlier)
	}
	for topic, c := range map[string][2]string{
		"color": {"rgb,100,100,100", `lamp: - light_color="rgb,100,100,100"`},
		"since": {"2026-11-23T08:00:00Z", `lamp: - light_since="2026-11-23T08:00:00Z"`},
		"left":  {"PT12H5M46S", `lamp: - light_left="PT12H5M46S"`},
		"raw":   {`{"a":1}`, `lamp: - light_raw="{\"a\":1}"`},
		"name":  {"\x00", "lamp: "},
	} {
		if got := line(h.hear("homie/5/lamp/light/"+topic, c[0])); got != c[1] {
			t.Errorf("%s: %s, want %s", topic, got, c[1])
		}
	}
	for name, argument := range map[string]string{"light_level": "255", "light_power": "an", "light_color": "rgb,1,2,3"} {
		if _, err := h.Encode("homie5", "lamp", name, argument); err != nil {
			t.Error(err)
		}
	}
	if _, err := h.Encode("homie5", "lamp", "light_level", "256"); err == nil {
		t.Error("256 is sent")
	}
	h.hear("homie/5/relay/$description", `{"homie":"5.0","version":1,"root":"bridge","children":["lamp"]}`)
	if out := h.hear("homie/5/lamp/$state", "ready"); out.Availability != devices.Online || out.About.Parent != "relay" {
		t.Errorf("%+v", out)
	}
	h.hear("homie/5/bridge/$state", "ready")
	h.hear("homie/5/relay/$state", "sleeping")
	out = h.hear("homie/5/bridge/$state", "lost")
	var lost []string
	for _, child := range out.Children {
		if child.Availability == devices.Offline {
			lost = append(lost, child.Identity)
		}
	}
	if slices.Sort(lost); !slices.Equal(lost, []string{"lamp", "relay"}) || out.Availability != devices.Offline {
		t.Errorf("lost %v %+v", lost, out)
	}
	back := map[string]devices.Availability{}
	for _, child := range h.hear("homie/5/bridge/$state", "ready").Children {
		back[child.Identity] = child.Availability
	}
	if back["lamp"] != devices.Online || back["relay"] != devices.Sleeping {
		t.Errorf("%v", back)
	}
}

// TestHomieElsewhere finds devices below another base topic.
func TestHomieElsewhere(t *testing.T) {
	h := newHouse(t)
	h.hear("devices/hall/$homie", "4.0.0")
	h.hear("devices/hall/th/temperature/$unit", "°F")
	h.hear("devices/hall/th/temperature/$datatype", "float")
	if got := line(h.hear("devices/hall/th/temperature", "70.5")); got != "hall: - th_temperature=70.5 °F" {
		t.Error(got)
	}
	h.hear("homie/homie/homie/homie/$unit", "V") // all are called the same
	if got := line(h.hear("homie/homie/homie/homie", "5")); got != "homie: - homie_homie=5 V" {
		t.Error(got)
	}
	h.hear("cellar/5/hall2/$description", `{"homie":"5.0","nodes":{"n":{"properties":{"on":{"datatype":"boolean","settable":true}}}}}`)
	if got := line(h.hear("cellar/5/hall2/n/on", "false")); got != "hall2: - n_on=false" {
		t.Error(got)
	}
	if out, err := h.Encode("homie5", "hall2", "n_on", "on"); err != nil || out.Topic != "cellar/5/hall2/n/on/set" || string(out.Payload) != "true" {
		t.Errorf("%+v %v", out, err)
	}
}
