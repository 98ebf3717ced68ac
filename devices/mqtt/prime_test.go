package mqtt

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// porchSensor announces itself as Home Assistant has it, and nothing else tells
// whose its topic is.
const porchSensor = `{"name":"Temperature","uniq_id":"porch_t","stat_t":"some/where","unit_of_meas":"°C","dev":{"ids":["porch"],"name":"Porch"}}`

// TestAnnouncedBeforeTheSession: a device is known by what it announced, and
// nothing else. While the gateway is away it speaks; the gateway that comes is
// new, and remembers nothing. The broker gives the messages of the session
// first; they are understood all the same.
func TestAnnouncedBeforeTheSession(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_inflight_messages 2")
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Profiles: known(t)}
	ds := []Device{device(t, "porch", "homeassistant-discovery", "porch")}
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "homeassistant/sensor/porch/config", Payload: []byte(porchSensor), QoS: 1, Retain: true})
	sink := &devicetest.Sink{Auto: true}
	_, stop := run(t, NewClient(config, ds, quiet()), sink)
	sink.WaitUp(t, 1)
	m.waitFor(t, "its topic", func(log string) bool { return strings.Contains(log, "some/where (QoS 1)") })
	stop()
	const n = 20
	for range n {
		send(t, p, Publication{Topic: "some/where", Payload: []byte("21.5"), QoS: 1})
	}
	sink = &devicetest.Sink{Auto: true}
	run(t, NewClient(config, ds, quiet()), sink)
	for i, taken := range sink.WaitMessages(t, n) {
		if r := taken.Readings[0]; r.Device != "porch" || r.Fields[0].Value.String() != "21.5" || r.Fields[0].Unit != "°C" {
			t.Errorf("message %d is %+v", i, r)
		}
	}
}

// TestClientAdoptsProfiles changes the profiles under a client at work. Its
// connection stays; what is retained comes again, and what was announced is
// known to the new profiles as it was to the old.
func TestClientAdoptsProfiles(t *testing.T) {
	m := startMosquitto(t)
	folder := t.TempDir()
	before, err := profile.Load(folder)
	if err != nil {
		t.Fatal(err)
	}
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "homeassistant/sensor/porch/config", Payload: []byte(porchSensor), QoS: 1, Retain: true})
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Profiles: before}
	porch, plug := device(t, "porch", "homeassistant-discovery", "porch"), device(t, "plug", "tasmota", "plug")
	c := NewClient(config, []Device{porch, plug}, quiet())
	sink := &devicetest.Sink{Auto: true}
	run(t, c, sink)
	sink.WaitUp(t, 1)
	m.waitFor(t, "its topic", func(log string) bool { return strings.Contains(log, "some/where (QoS 1)") })

	const own = `{profile: 1, id: tasmota, name: Ours, extends: tasmota, fields: [{select: "AM2301/Temperature", name: attic, unit: °C}]}`
	if err := os.WriteFile(filepath.Join(folder, "tasmota.yaml"), []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	config.Profiles, err = before.Reload(folder)
	if err != nil || config.Profiles == before {
		t.Fatal("the profiles are not taken over: ", err)
	}
	plug.Profile = config.Profiles.Get("tasmota")
	if !c.Adopt(NewClient(config, []Device{porch, plug}, quiet())) {
		t.Fatal("other profiles are not adopted")
	}
	m.waitFor(t, "its filters anew", func(log string) bool { return strings.Count(log, "some/where (QoS 1)") == 2 })
	send(t, p, Publication{Topic: "some/where", Payload: []byte("21.5"), QoS: 0})
	send(t, p, Publication{Topic: "tele/plug/SENSOR", Payload: []byte(`{"AM2301":{"Temperature":20.7}}`), QoS: 0})
	got := sink.WaitMessages(t, 2)
	if f := got[0].Readings[0].Fields[0]; f.Value.String() != "21.5" || f.Unit != "°C" {
		t.Errorf("what was announced is %+v", f)
	}
	if f := got[1].Readings[0].Fields[0]; f.Name != "attic" {
		t.Errorf("by the new profile it is %+v", f)
	}
	if n := strings.Count(m.log(), " as porchlight-test ("); n != 1 {
		t.Errorf("%d connections", n)
	}
}
