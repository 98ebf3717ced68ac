package mqtt

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// known are the profiles that come with the program.
func known(t testing.TB) *profile.Library {
	t.Helper()
	all, err := profile.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestScout hears strangers on a real broker, and no device that is
// configured. What is too large for it is passed over.
func TestScout(t *testing.T) {
	m := startMosquitto(t)
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "tele/porch/SENSOR", Payload: temperature("1"), QoS: 1, Retain: true})
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Share: "porch", Profiles: known(t)}
	sink := &devicetest.Sink{Curious: true}
	run(t, NewScout(config, []Device{device(t, "kitchen", "tasmota", "kitchen")}, quiet()), sink)
	sink.WaitUp(t, 1)
	sink.WaitUnknown(t, 1)
	send(t, p, Publication{Topic: "tele/kitchen/SENSOR", Payload: temperature("2"), QoS: 1})
	send(t, p, Publication{Topic: "tele/porch/STATE", Payload: make([]byte, maxPacket+1), QoS: 1})
	send(t, p, Publication{Topic: "tele/porch/SENSOR", Payload: temperature("3"), QoS: 1})
	send(t, p, Publication{Topic: "home/tele/attic/SENSOR", Payload: temperature("4"), QoS: 1})
	got := sink.WaitUnknown(t, 3)
	for i, want := range []struct {
		place, value string
		retained     bool
	}{{"porch", "1", true}, {"porch", "3", false}, {"attic", "4", false}} {
		s := got[i]
		if s.Place != want.place || s.Identity != want.place || s.Retained != want.retained || len(s.Fields) != 1 || s.Fields[0].Value.String() != want.value ||
			s.Transport != "mqtt" || s.Link != "house" || s.Profile != "tasmota" || s.Peer != m.url() {
			t.Errorf("stranger %d is %+v, want %+v", i, s, want)
		}
	}
	if log := m.log(); strings.Contains(log, "PUBACK from porchlight-test-discovery") || !strings.Contains(log, "porchlight-test-discovery 0 tele/+/+") && !strings.Contains(log, "(QoS 0)") {
		t.Error("strangers are acknowledged, and so take places in a window")
	}
}

// TestScoutTakesNoPlace has a broker with a window of one message, which is
// taken. Strangers are heard all the same, and the device's next message when
// the first is acknowledged.
func TestScoutTakesNoPlace(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_inflight_messages 1")
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Profiles: known(t)}
	ds := []Device{device(t, "kitchen", "json", "kitchen")}
	sink := &devicetest.Sink{Curious: true}
	run(t, NewClient(config, ds, quiet()), sink)
	run(t, NewScout(config, ds, quiet()), sink)
	sink.WaitUp(t, 2)
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	first := sink.WaitMessages(t, 1)[0]
	const strangers = 200
	for i := range strangers {
		send(t, p, Publication{Topic: fmt.Sprintf("tele/s%d/SENSOR", i), Payload: temperature("1"), QoS: 1})
	}
	sink.WaitUnknown(t, strangers)
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("2"), QoS: 1})
	first.Settle(nil)
	if second := sink.WaitMessages(t, 2)[1]; value(second) != "2" {
		t.Errorf("got %s", value(second))
	}
}

// TestBrokerShowsStrangers has the gateway's own broker acknowledge what is
// of no configured device, whether a profile knows it or not.
func TestBrokerShowsStrangers(t *testing.T) {
	sink := &devicetest.Sink{Curious: true}
	address := freePort(t)
	run(t, NewBroker(BrokerConfig{Listen: address, Profiles: known(t)}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet()), sink)
	sink.WaitUp(t, 1)
	c := rawConnect(t, address, "porch", "", "")
	for id, topic := range []string{"tele/porch/SENSOR", "somewhere"} {
		c.publish(uint16(id+1), 1, topic, temperature("1"))
		c.wantAck(uint16(id + 1))
	}
	got := sink.WaitUnknown(t, 1)
	if len(got) != 1 || got[0].Link != "" || got[0].Place != "porch" || !strings.Contains(got[0].Peer, "porch") {
		t.Errorf("the strangers are %+v", got)
	}
	if r := sink.WaitRejections(t, 1); len(r) != 1 || !strings.Contains(r[0].Why.Error(), "somewhere") {
		t.Errorf("rejected: %v", r)
	}
}

// announcement is what a Tasmota says of itself, as far as it matters here.
const announcement = `{"ip":"192.168.1.40","dn":"Plug","fn":["Kitchen plug",null],"hn":"kitchen-plug","mac":"DC4F22A1B2C3","md":"Sonoff S20","t":"plug","ft":"%prefix%/%topic%/","tp":["cmnd","stat","tele"],"ofln":"Offline","onln":"Online","state":["OFF","ON","TOGGLE","HOLD"],"rl":[1,0],"sw":"13.1.0","ver":1}`

// TestScoutReadsAnnouncements knows a device by what it announced, in any
// order.
func TestScoutReadsAnnouncements(t *testing.T) {
	m := startMosquitto(t)
	sink := &devicetest.Sink{Curious: true}
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Profiles: known(t)}
	run(t, NewScout(config, nil, quiet()), sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "tele/plug/SENSOR", Payload: temperature("1"), QoS: 1})
	send(t, p, Publication{Topic: "tasmota/discovery/DC4F22A1B2C3/config", Payload: []byte(announcement), QoS: 1, Retain: true})
	send(t, p, Publication{Topic: "tele/plug/SENSOR", Payload: temperature("2"), QoS: 1})
	var last devices.Stranger
	for n := 1; len(last.Fields) == 0 || last.Fields[0].Value.String() != "2"; n++ {
		last = sink.WaitUnknown(t, n)[n-1]
	}
	if last.Place != "plug" || last.Identity != "DC4F22A1B2C3" || last.Name == "" || !strings.Contains(last.Model, "Sonoff S20") {
		t.Errorf("the stranger is %+v", last)
	}
}

// TestFloodOfStrangers has more of them speak than are looked at. The others
// are told, once the log wants it, and left alone.
func TestFloodOfStrangers(t *testing.T) {
	e := newEar(known(t), true)
	now := time.Now()
	for range strangerBurst {
		if !e.take(now) {
			t.Fatal("a burst is not taken")
		}
	}
	if e.take(now) || e.take(now.Add(-time.Hour)) {
		t.Error("more is taken than a burst")
	}
	now = now.Add(-time.Hour).Add(time.Second) // the clock was set back
	taken := 0
	for e.take(now) {
		taken++
	}
	if taken != strangerRate {
		t.Errorf("in a second %d are taken", taken)
	}
	e.filled = time.Now().Add(time.Hour)
	sink := &devicetest.Sink{Curious: true}
	if _, _, err := e.report(t.Context(), newDirectory(nil), publication{topic: "tele/s/SENSOR", payload: temperature("1"), qos: 1}, sink); err != nil {
		t.Fatal(err)
	}
	if got := sink.WaitRejections(t, 1); !errors.Is(got[0].Why, errTooMany) {
		t.Errorf("told is %v", got[0].Why)
	}
}

// bridged is what Zigbee2MQTT announces, as far as it matters here.
const bridged = `[{"ieee_address":"0x00158d00018255df","type":"EndDevice","supported":true,"friendly_name":"hall/sensor","definition":{"model":"WSDCGQ11LM","vendor":"Aqara","description":"Temperature and humidity sensor","exposes":[{"type":"numeric","name":"temperature","property":"temperature","unit":"°C","access":1},{"type":"numeric","name":"humidity","property":"humidity","unit":"%","access":1}]},"manufacturer":"LUMI","model_id":"lumi.weather"}]`

// TestBridge has devices behind a bridge: as strangers they have names and
// addresses of their own; configured, they are lost with the bridge.
func TestBridge(t *testing.T) {
	m := startMosquitto(t)
	p := publisher(t, m.url(), "bridge")
	send(t, p, Publication{Topic: "zigbee2mqtt/bridge/devices", Payload: []byte(bridged), QoS: 1, Retain: true})
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Profiles: known(t)}
	sink := &devicetest.Sink{Auto: true, Curious: true}
	scout, client := NewScout(config, nil, quiet()), NewClient(config, nil, quiet())
	run(t, scout, sink)
	run(t, client, sink)
	sink.WaitUp(t, 2)
	data := Publication{Topic: "zigbee2mqtt/hall/sensor", Payload: []byte(`{"temperature":21.40,"humidity":45}`), QoS: 1}
	send(t, p, data)
	var s devices.Stranger
	for n := 1; len(s.Fields) == 0; n++ {
		s = sink.WaitUnknown(t, n)[n-1]
	}
	if s.Place != "hall/sensor" || s.Identity != "0x00158d00018255df" || s.Name != "hall/sensor" || s.Parent != "bridge" || s.Fields[0].Unit != "°C" {
		t.Errorf("the stranger is %+v", s)
	}

	sensor := device(t, "sensor", "zigbee2mqtt", s.Place)
	if !scout.Adopt(NewScout(config, []Device{sensor}, quiet())) || !client.Adopt(NewClient(config, []Device{sensor}, quiet())) {
		t.Fatal("the device is not adopted")
	}
	m.waitFor(t, "its filters", func(log string) bool {
		return strings.Contains(log, "zigbee2mqtt/bridge/#") && strings.Contains(log, "zigbee2mqtt/hall/sensor (QoS 1)")
	})
	send(t, p, data)
	if got := sink.WaitMessages(t, 1)[0].Readings; len(got) != 1 || got[0].Device != "sensor" || len(got[0].Fields) != 2 {
		t.Errorf("got %+v", got)
	}
	send(t, p, Publication{Topic: "zigbee2mqtt/bridge/state", Payload: []byte(`{"state":"offline"}`), QoS: 1, Retain: true})
	sink.WaitAvailability(t, "sensor", devices.Offline)
	send(t, p, Publication{Topic: "zigbee2mqtt/bridge/state", Payload: []byte(`{"state":"online"}`), QoS: 1, Retain: true})
	sink.WaitAvailability(t, "sensor", devices.AvailabilityUnknown)
}

// TestLargeAnnouncement has a bridge with many devices, which it announces in
// one message.
func TestLargeAnnouncement(t *testing.T) {
	m := startMosquitto(t)
	p := publisher(t, m.url(), "bridge")
	all := strings.TrimSuffix(bridged, "]")
	for i := 0; len(all) < 1<<20; i++ {
		all += fmt.Sprintf(`,{"ieee_address":"0x%016x","friendly_name":"room/%d","description":"%s"}`, i, i, strings.Repeat("x", 10_000))
	}
	send(t, p, Publication{Topic: "zigbee2mqtt/bridge/devices", Payload: []byte(all + "]"), QoS: 0, Retain: true})
	sink := &devicetest.Sink{Auto: true}
	run(t, NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Profiles: known(t)}, []Device{device(t, "sensor", "zigbee2mqtt", "hall/sensor")}, quiet()), sink)
	sink.WaitUp(t, 1)
	send(t, p, Publication{Topic: "zigbee2mqtt/hall/sensor", Payload: []byte(`{"temperature":21.40}`), QoS: 1})
	if got := sink.WaitMessages(t, 1)[0].Readings; len(got) != 1 || got[0].Fields[0].Unit != "°C" {
		t.Errorf("got %+v", got)
	}
}

// BenchmarkStrangers compares what a message costs: of a configured device, of
// a stranger that a profile knows, and of 10,000 topics that none does.
func BenchmarkStrangers(b *testing.B) {
	profiles := known(b)
	d := newDirectory([]Device{device(b, "kitchen", "tasmota", "kitchen")})
	for name, topic := range map[string]func(i int) string{
		"configured": func(int) string { return "tele/kitchen/SENSOR" },
		"stranger":   func(i int) string { return fmt.Sprintf("tele/s%d/SENSOR", i%10_000) },
		"foreign":    func(i int) string { return fmt.Sprintf("foreign/s%d/x", i%10_000) },
	} {
		b.Run(name, func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			e := newEar(profiles, false)
			payload := temperature("21.40")
			b.ReportAllocs()
			for i := range b.N {
				if _, _, _, _, err := e.read(d, publication{topic: topic(i), payload: payload}); err != nil && name != "foreign" {
					b.Fatal(err)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1024, "KiB-kept")
			runtime.KeepAlive(e)
		})
	}
}
