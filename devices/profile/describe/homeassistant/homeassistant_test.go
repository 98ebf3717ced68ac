package homeassistant

import (
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

func announce(topic, payload string) (describe.Device, error) {
	all, err := Describe(describe.Message{Topic: topic, Payload: []byte(payload)})
	if err != nil || len(all) == 0 {
		return describe.Device{}, err
	}
	return all[0], nil
}

// values are what a message says by an announcement: name=value unit kind.
func values(d describe.Device, topic, payload string) string {
	var document any
	decoder := json.NewDecoder(strings.NewReader(payload))
	decoder.UseNumber()
	if decoder.Decode(&document) != nil || decoder.More() {
		document = nil
	}
	var all []string
	for _, t := range d.Topics {
		if t.Topic != topic {
			continue
		}
		for _, f := range t.Fields {
			v, ok, err := f.Render(payload, document)
			if err != nil {
				all = append(all, err.Error())
			} else if ok {
				if word, known := f.Words[v]; known {
					v = word.String()
				}
				all = append(all, strings.Join(strings.Fields(f.Name+"="+v+" "+string(f.Unit)+" "+f.Kind), " "))
			}
		}
	}
	return strings.Join(all, ", ")
}

// sends are the commands: topic, and what is sent for an argument.
func sends(d describe.Device, name, argument string) string {
	for _, c := range d.Commands {
		if c.Name != name {
			continue
		}
		if c.Argument.Words != nil {
			word, ok := c.Argument.Words[argument]
			if !ok {
				return fmt.Sprint("one of ", slices.Sorted(maps.Keys(c.Argument.Words)))
			}
			argument = word
		}
		payload := strings.ReplaceAll(c.Payload, "{value}", argument)
		if c.Payload == "" {
			payload = argument
		}
		if c.Encode != nil {
			var err error
			if payload, err = c.Encode(devices.Text(argument)); err != nil {
				return err.Error()
			}
		}
		span := ""
		if c.Argument.Min != nil {
			span = fmt.Sprintf(" (%s %v..%v)", c.Argument.Type, *c.Argument.Min, *c.Argument.Max)
		}
		return c.Topic + " " + payload + span
	}
	return "no command"
}

// TestComponents goes through what can be announced. data is <topic>
// <payload>, command <name> <argument>.
func TestComponents(t *testing.T) {
	tried := map[string]bool{"camera": true, "tag": true, "date": true, "datetime": true, "time": true} // nothing, or as others
	for _, c := range []struct{ component, config, data, want, command, sent string }{
		{"sensor", `{"name":"Power","stat_t":"t","unit_of_meas":"W","stat_cla":"measurement"}`, "t 12.50", "power=12.50 W", "", ""},
		{"sensor", `{"name":"Total","stat_t":"t","unit_of_meas":"kWh","stat_cla":"total_increasing","val_tpl":"{{ value_json.e | float }}"}`, `t {"e":1.50}`, "total=1.50 kWh counter", "", ""},
		{"sensor", `{"name":"Heap","stat_t":"t","ent_cat":"diagnostic"}`, "t 1", "heap=1 diagnostic", "", ""},
		{"sensor", `{"name":"Dust","stat_t":"t","unit_of_meas":"µg/m³"}`, "t 1", "dust=1 µg/m³", "", ""},
		{"sensor", `{"dev_cla":"temperature","unit_of_meas":"F","stat_t":"t"}`, "t 70", "temperature=70 °F", "", ""},
		{"sensor", `{"val_tpl":"{{ value_json.a.rssi }}","stat_t":"t","en":false}`, `t {"a":{"rssi":-70}}`, "rssi=-70 diagnostic", "", ""},
		{"sensor", `{"name":"None","stat_t":"t"}`, "t None", "", "", ""},
		{"sensor", `{"name":"All","stat_t":"t"}`, `t {"a":1}`, "", "", ""},
		{"sensor", `{"name":"Uptime","stat_t":"t","val_tpl":"{{ (as_timestamp(now()) - value_json.up) | timestamp_local }}"}`, `t {"up":5}`, "uptime=5", "", ""}, // approximately
		{"binary_sensor", `{"name":"Door","stat_t":"t"}`, "t ON", "door=true state", "", ""},
		{"binary_sensor", `{"name":"Contact","stat_t":"t","pl_on":false,"pl_off":true,"val_tpl":"{{ value_json.contact }}"}`, `t {"contact":false}`, "contact=true state", "", ""},
		{"binary_sensor", `{"name":"Motion","stat_t":"t","off_dly":30}`, "t ON", "motion=true event", "", ""},
		{"switch", `{"name":"Plug","cmd_t":"c","stat_t":"t","pl_on":"1","pl_off":0}`, "t 1", "plug=true state", "plug on", "c 1"},
		{"switch", `{"name":"Plug","cmd_t":"c","stat_t":"t","stat_on":"an","stat_off":"aus","cmd_tpl":"{\"on\": \"{{ value }}\"}"}`, "t aus", "plug=false state", "plug off", `c {"on": "OFF"}`},
		{"button", `{"name":"Restart","cmd_t":"c","pl_prs":"go"}`, "", "", "restart", "c go"},
		{"button", `{"name":"Restart","cmd_t":"c","cmd_tpl":"<{{ value }}>"}`, "", "", "restart", "c <PRESS>"},
		{"scene", `{"name":"Film","cmd_t":"c"}`, "", "", "film", "c ON"},
		{"number", `{"name":"Limit","cmd_t":"c","stat_t":"t","min":-5,"max":20,"step":0.5,"unit_of_meas":"°C"}`, "t 7", "limit=7 °C setting", "limit 7.5", "c 7.5 (number -5..20)"},
		{"number", `{"name":"Limit","cmd_t":"c","cmd_tpl":"{\"x\": {{ value * 10 }} }"}`, "", "", "limit 7.5", `c {"x": 75.0 } (number 1..100)`},
		{"select", `{"name":"Mode","cmd_t":"c","stat_t":"t","ops":["a","b"]}`, "t a", "mode=a setting", "mode c", "one of [a b]"},
		{"text", `{"name":"Line","cmd_t":"c","stat_t":"t"}`, "t hello", "line=hello setting", "line hi", "c hi"},
		{"cover", `{"name":"Blind","cmd_t":"c","stat_t":"t","pos_t":"p","set_pos_t":"sp"}`, "t opening", "blind=opening state", "blind stop", "c STOP"},
		{"cover", `{"name":"Blind","pos_t":"p","pos_tpl":"{{ value_json.position }}","set_pos_t":"sp","set_pos_tpl":"{ \"position\": {{ position }} }"}`, `p {"position":40}`, "blind_position=40 state", "blind_position 30", `sp { "position": 30 } (number 0..100)`},
		{"cover", `{"name":"Blind","cmd_t":"c","pl_stop":null}`, "", "", "blind stop", "one of [close open]"},
		{"cover", `{"name":"Blind","tilt_status_t":"ts","tilt_cmd_t":"tc","tilt_min":10,"tilt_max":90}`, "ts 50", "blind_tilt=50 state", "blind_tilt 20", "tc 20 (number 10..90)"},
		{"valve", `{"name":"Water","cmd_t":"c","stat_t":"t"}`, "t closed", "water=closed state", "water close", "c CLOSE"},
		{"valve", `{"name":"Water","cmd_t":"c","stat_t":"t","pos":true}`, `t {"position":30,"state":"opening"}`, "water=30 state", "water 10", "c 10 (number 0..100)"},
		{"lock", `{"name":"Door","cmd_t":"c","stat_t":"t"}`, "t LOCKED", "door=locked state", "door unlock", "c UNLOCK"},
		{"lock", `{"name":"Door","cmd_t":"c","pl_open":"OPEN"}`, "", "", "door x", "one of [lock open unlock]"},
		{"climate", `{"name":"Heat","curr_temp_t":"ct","temp_stat_t":"tt","temp_cmd_t":"tc","min_temp":5,"max_temp":30,"mode_stat_t":"m","mode_cmd_t":"mc","modes":["off","heat"],"act_t":"a"}`, "tt 21.5", "heat_target_temperature=21.5 °C setting", "heat_target_temperature 20", "tc 20 (number 5..30)"},
		{"climate", `{"name":"Heat","curr_temp_t":"ct","temp_unit":"F"}`, "ct 70", "heat_current_temperature=70 °F measurement", "", ""},
		{"climate", `{"name":"Heat","mode_stat_t":"m","mode_cmd_t":"mc","modes":["off","heat"]}`, "m heat", "heat_mode=heat state", "heat_mode cool", "one of [heat off]"},
		{"climate", `{"name":"Heat","pr_mode_cmd_t":"p","pr_mode_cmd_tpl":"{\"preset\":\"{{ value }}\"}","pr_modes":["eco"]}`, "", "", "heat_preset eco", `p {"preset":"eco"}`},
		{"water_heater", `{"name":"Tank","temp_stat_t":"t","temp_cmd_t":"c"}`, "t 50", "tank_target_temperature=50 °C setting", "tank_target_temperature 20", "c 20 (number 7..35)"},
		{"humidifier", `{"name":"Air","cmd_t":"c","stat_t":"t","hum_cmd_t":"hc","hum_stat_t":"hs"}`, "hs 50", "air_target_humidity=50 % setting", "air_target_humidity 40", "hc 40 (number 0..100)"},
		{"fan", `{"name":"Fan","cmd_t":"c","stat_t":"t","pct_cmd_t":"pc","pct_stat_t":"ps","spd_rng_max":10}`, "ps 4", "fan_percentage=4 state", "fan_percentage 5", "pc 5 (number 0..10)"},
		{"fan", `{"name":"Fan","osc_cmd_t":"oc","osc_stat_t":"os"}`, "os oscillate_on", "fan_oscillation=true state", "fan_oscillation off", "oc oscillate_off"},
		{"light", `{"name":"Lamp","cmd_t":"c","stat_t":"t","bri_cmd_t":"bc","bri_stat_t":"bs","bri_scl":100}`, "bs 40", "lamp_brightness=40 state", "lamp_brightness 50", "bc 50 (integer 0..100)"},
		{"light", `{"name":"Lamp","schema":"json","cmd_t":"c","stat_t":"t","brightness":true,"sup_clrm":["color_temp","xy"],"min_mirs":150}`, `t {"state":"ON","brightness":20,"color":{"x":0.1,"y":0.2},"color_mode":"xy"}`,
			"lamp=true state, lamp_brightness=20 state, lamp_color_mode=xy state, lamp_color=0.1,0.2 state", "lamp_color_temp 300", `c {"state": "ON", "color_temp": 300} (integer 150..500)`},
		{"light", `{"name":"Lamp","schema":"json","cmd_t":"c","stat_t":"t"}`, `t {"state":"OFF","brightness":20}`, "lamp=false state", "lamp off", `c {"state": "OFF"}`},
		{"light", `{"name":"Lamp","schema":"template","cmd_t":"c","stat_t":"t","stat_tpl":"{{ value.split(',')[0] }}","bri_tpl":"{{ value.split(',')[1] }}","cmd_on_tpl":"on,{{ brightness | default('') }}","cmd_off_tpl":"off"}`,
			"t on,7", "lamp=true state, lamp_brightness=7 state", "lamp off", "c off"},
		{"light", `{"name":"Lamp","schema":"template","cmd_t":"c","bri_tpl":"{{ 1 }}","cmd_on_tpl":"{{ state }},{{ brightness }}","cmd_off_tpl":"off"}`, "", "", "lamp_brightness 9", "c on,9 (integer 0..255)"},
		{"siren", `{"name":"Siren","cmd_t":"c","stat_t":"t"}`, "t ON", "siren=true state", "siren on", `c {"state": "ON"}`},
		{"vacuum", `{"name":"Robot","cmd_t":"c","stat_t":"t","set_fan_spd_t":"f","fanspd_lst":["min","max"]}`, `t {"state":"docked","battery_level":80,"fan_speed":"min"}`,
			"robot=docked state, robot_fan_speed=min state, robot_battery_level=80 % diagnostic", "robot start", "c start"},
		{"lawn_mower", `{"name":"Mower","act_stat_t":"t","dock_cmd_t":"d"}`, "t mowing", "mower=mowing state", "mower_dock", "d dock"},
		{"alarm_control_panel", `{"name":"Alarm","cmd_t":"c","stat_t":"t","cmd_tpl":"{\"action\":\"{{ action }}\"}"}`, "t armed_home", "alarm=armed_home state", "alarm arm_home", `c {"action":"ARM_HOME"}`},
		{"event", `{"name":"Bell","stat_t":"t","evt_typ":["press"]}`, `t {"event_type":"press"}`, "bell=press event", "", ""},
		{"device_automation", `{"atype":"trigger","type":"action","stype":"single","t":"t","pl":"single"}`, "t single", "device_automation=single event", "", ""},
		{"device_automation", `{"atype":"trigger","type":"action","stype":"single","t":"t","pl":"single"}`, "t double", "", "", ""},
		{"device_tracker", `{"name":"Tag","stat_t":"t","pl_home":"here"}`, "t here", "tag=home state", "", ""},
		{"update", `{"name":"Firmware","stat_t":"t","cmd_t":"c","pl_inst":"go"}`, `t {"installed_version":"1.2","latest_version":"1.3"}`, "firmware=1.2 diagnostic", "firmware", "c go"},
		{"notify", `{"name":"Say","cmd_t":"c"}`, "", "", "say hello", "c hello"},
		{"image", `{"name":"Map","url_t":"t"}`, "t http://x", "map_url=http://x state", "", ""},
	} {
		tried[c.component] = true
		d, err := announce("homeassistant/"+c.component+"/x/config", c.config)
		if err != nil {
			t.Errorf("%s %s: %v", c.component, c.config, err)
			continue
		}
		topic, payload, _ := strings.Cut(c.data, " ")
		if got := values(d, topic, payload); got != c.want {
			t.Errorf("%s %s\non %s\n got %s\nwant %s", c.component, c.config, c.data, got, c.want)
		}
		if name, argument, _ := strings.Cut(c.command, " "); name != "" {
			if got := sends(d, name, argument); got != c.sent {
				t.Errorf("%s %s\ncommand %s\n got %s\nwant %s", c.component, c.config, c.command, got, c.sent)
			}
		}
	}
	for component := range components {
		if !tried[component] {
			t.Errorf("%s is not tried", component)
		}
	}
}

func TestDevice(t *testing.T) {
	d, err := announce("homeassistant/sensor/node/a/config", `{"dev":{"ids":["dev1","other"],"cns":[["mac","aa:bb"]],"name":"Kitchen","mf":"M","mdl":"X","sw":"1.0","hw":"2","sn":"3","via_device":"hub"},
		"name":"Kitchen Temperature","~":"base/k","stat_t":"~/t","avty_t":"~/avty","pl_avail":"da","pl_not_avail":"weg"}`)
	if err != nil {
		t.Fatal(err)
	}
	if d.Identity != "dev1" || d.Name != "Kitchen" || d.Maker != "M" || d.Model != "X" || d.Firmware != "1.0" || d.Parent != "hub" {
		t.Errorf("%+v", d)
	}
	if got := values(d, "base/k/t", "21"); got != "temperature=21" {
		t.Error(got)
	}
	if a := d.Availability; len(a) != 1 || a[0].Topic != "base/k/avty" || a[0].Words["da"] != devices.Online || a[0].Words["weg"] != devices.Offline {
		t.Errorf("%+v", a)
	}
	for payload, identity := range map[string]string{
		`{"stat_t":"t"}`:                                 "node",
		`{"stat_t":"t","dev":{"ids":"one"}}`:             "one",
		`{"stat_t":"t","dev":{"ids":[12]}}`:              "12",
		`{"stat_t":"t","dev":{"cns":[["mac","aa:bb"]]}}`: "aa:bb",
		`{"stat_t":"t","device":{"identifiers":[]}}`:     "node",
	} {
		if d, err := announce("homeassistant/sensor/node/a/config", payload); err != nil || d.Identity != identity {
			t.Errorf("%s: %q, %v", payload, d.Identity, err)
		}
	}
}

func TestAvailability(t *testing.T) {
	d, err := announce("homeassistant/sensor/a/config", `{"stat_t":"t","val_tpl":"{{ value_json.x }}","avty_mode":"all","avty":[{"t":"bridge","val_tpl":"{{ value_json.state }}"},
		{"topic":"dev","payload_available":"1","payload_not_available":0},{"t":"t","val_tpl":"{{ 'online' if value_json.x is defined else 'offline' }}"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Availability) != 2 || d.Mode != describe.All || d.Availability[1].Words["0"] != devices.Offline {
		t.Fatalf("%+v", d.Availability)
	}
	if v, ok, err := d.Availability[0].Render(`{"state":"online"}`, map[string]any{"state": "online"}); v != "online" || !ok || err != nil {
		t.Error(v, ok, err)
	}
}

func TestWholeDevice(t *testing.T) {
	d, err := announce("homeassistant/device/x/config", `{"dev":{"ids":"x","name":"X"},"o":{"name":"p"},"~":"b","stat_t":"~/state","avty_t":"~/a","cmps":{
		"a":{"p":"sensor","name":"T","val_tpl":"{{ value_json.t }}","unit_of_meas":"°C"},
		"b":{"p":"sensor","name":"T","stat_t":"own/t"},
		"gone":{"p":"sensor"},
		"odd":{"p":"teapot","name":"O"},
		"bad":{"p":"sensor","name":"B","val_tpl":"{{ now() }}"},
		"sw":{"platform":"switch","name":"S","cmd_t":"~/set","val_tpl":"{{ value_json.s }}"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := values(d, "b/state", `{"t":21.0,"s":"ON"}`), "t=21.0 °C, s=true state"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := values(d, "own/t", "5"); got != "t_b=5" {
		t.Error(got)
	}
	if got := sends(d, "s", "on"); got != "b/set ON" {
		t.Error(got)
	}
	if len(d.Availability) != 1 || d.Availability[0].Topic != "b/a" {
		t.Errorf("%+v", d.Availability)
	}
}

func TestTopics(t *testing.T) {
	for topic, want := range map[string]string{
		"homeassistant/sensor/a/config":       "sensor  a",
		"homeassistant/sensor/n/a/config":     "sensor n a",
		"homeassistant/sensor/light/a/config": "sensor light a",
		"my/own/prefix/switch/a/config":       "switch  a",
		"my/own/prefix/switch/n/a/config":     "switch n a",
		"homeassistant/device/a/config":       "device  a",
		"homeassistant/teapot/a/config":       "!",
		"homeassistant/sensor/a/state":        "!",
		"sensor/a/config":                     "!",
		"config":                              "!",
	} {
		component, node, object, err := splitTopic(topic)
		got := component + " " + node + " " + object
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", topic, got, want)
		}
	}
}

func TestMigration(t *testing.T) {
	all, err := Describe(describe.Message{Topic: "homeassistant/sensor/a/config", Payload: []byte(`{"migrate_discovery": true}`)})
	if err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct{ topic, payload, want string }{
		{"homeassistant/sensor/a/config", `{`, "not an announcement of Home Assistant's: unexpected EOF"},
		{"homeassistant/sensor/a/config", `[]`, "not an announcement of Home Assistant's: json: cannot unmarshal array into Go value of type map[string]interface {}"},
		{"homeassistant/sensor/a/config", `{}`, "the sensor has no topic that can be used"},
		{"homeassistant/sensor/a/config", `{"stat_t":"a/#"}`, `not a topic: "a/#"`},
		{"homeassistant/sensor/a/config", `{"stat_t":"t","val_tpl":"{{ now() }}"}`, `cannot compile the template: the function "now" is not known`},
		{"homeassistant/teapot/a/config", `{}`, `the component "teapot" is not known`},
		{"homeassistant/device/a/config", `{}`, "no components in the announcement of a device"},
		{"homeassistant/device/a/config", `{"cmps":{"a":{"p":"sensor","name":"x"}}}`, "no component of the announcement can be understood"},
	} {
		if _, err := announce(c.topic, c.payload); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.payload, err, c.want)
		}
	}
}

// TestHostile bounds what an announcement and the messages by it can cost.
func TestHostile(t *testing.T) {
	many := func(n int, one string) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`"c%d":%s`, i, one))
		}
		return `{"cmps":{` + strings.Join(all, ",") + `}}`
	}
	var before, after runtime.MemStats
	for _, payload := range []string{
		strings.Repeat("[", 100000), `{"a":` + strings.Repeat("[", 100000), `{"a":` + strings.Repeat(`{"a":`, 50000),
		many(maxComponents, `{"p":"climate","name":"x","stat_t":"t","curr_temp_t":"t","temp_stat_t":"t","mode_stat_t":"t","mode_cmd_t":"c","act_t":"t"}`),
		many(5000, `{"p":"sensor","stat_t":"t"}`),
		many(maxComponents, `{"p":"sensor","stat_t":"t","val_tpl":"{% for i in range(10**9) %}x{% endfor %}"}`),
		`{"stat_t":"` + strings.Repeat("t", 100000) + `"}`,
		`{"~":"` + strings.Repeat("t", 50000) + `","stat_t":"~/~"}`,
		`{"stat_t":"t","avty":[` + strings.Repeat(`{"t":"a"},`, 20000) + `{"t":"a"}]}`,
		`{"stat_t":"t","cmd_t":"t","ops":[` + strings.Repeat(`"a",`, 50000) + `"b"]}`,
		`{"stat_t":"t","name":"` + strings.Repeat("n", 200000) + `"}`,
		`{"stat_t":{"a":1},"dev":[],"cmps":"x","avty":5,"name":[],"val_tpl":[],"qos":"x","min":"NaN","max":1e999}`,
		`{"cmd_t":"c","min":"NaN","max":"inf","step":-1,"cmd_tpl":"{{ 'a' * 10**9 }}","qos":99}`,
		"\x00\xff", "null", "5", `"x"`, strings.Repeat("x", maxPayload+1),
	} {
		for _, component := range []string{"sensor", "device", "number", "select", "light", "climate"} {
			runtime.ReadMemStats(&before)
			d, err := announce("homeassistant/"+component+"/a/config", payload)
			for _, topic := range d.Topics {
				for _, f := range topic.Fields {
					_, _, _ = f.Render("x", nil)
				}
			}
			for _, c := range d.Commands {
				if c.Encode != nil {
					_, _ = c.Encode(devices.Text("5"))
				}
			}
			runtime.ReadMemStats(&after)
			if made := after.TotalAlloc - before.TotalAlloc; made > 64<<20 {
				t.Errorf("%.60s: %d bytes made", payload, made)
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 250) {
				t.Errorf("%.60s: not one short line: %v", payload, err)
			}
		}
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add("homeassistant/switch/irrigation/config", `{"~":"homeassistant/switch/irrigation","name":"garden","cmd_t":"~/set","stat_t":"~/state"}`, "ON")
	f.Add("homeassistant/device/x/config", `{"dev":{"ids":"x"},"cmps":{"a":{"p":"light","schema":"json","cmd_t":"c","stat_t":"t"}}}`, `{"state":"ON"}`)
	f.Add("homeassistant/climate/n/x/config", `{"temp_cmd_tpl":"{{ value }}","temp_cmd_t":"c","curr_temp_t":"t","curr_temp_tpl":"{{ value_json.a }}"}`, `{"a":1}`)
	f.Fuzz(func(t *testing.T, topic, config, payload string) {
		d, err := announce(topic, config)
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("not one line: %q", err)
		}
		for _, topic := range d.Topics {
			values(d, topic.Topic, payload)
		}
		for _, c := range d.Commands {
			sends(d, c.Name, payload)
		}
	})
}

func BenchmarkDescribe(b *testing.B) {
	m := describe.Message{Topic: "homeassistant/sensor/0x0017880104e45522/temperature/config", Payload: []byte(`{"availability":[{"topic":"zigbee2mqtt/bridge/state","value_template":"{{ value_json.state }}"}],"device":{"identifiers":["zigbee2mqtt_0x0017880104e45522"],"manufacturer":"Aqara","model":"Temperature and humidity sensor","model_id":"WSDCGQ11LM","name":"weather_sensor","via_device":"zigbee2mqtt_bridge_0x00124b00120144ae"},"default_entity_id":"sensor.weather_sensor_temperature","device_class":"temperature","enabled_by_default":true,"object_id":"weather_sensor_temperature","state_class":"measurement","state_topic":"zigbee2mqtt/weather_sensor","unique_id":"0x0017880104e45522_temperature_zigbee2mqtt","unit_of_measurement":"°C","value_template":"{{ value_json[\"temperature\"] }}"}`)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Describe(m); err != nil {
			b.Fatal(err)
		}
	}
}
