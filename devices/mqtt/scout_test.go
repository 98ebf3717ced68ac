package mqtt

import (
	"fmt"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// TestScout hears strangers on a real broker, and no device that is
// configured. What is too large for it is passed over.
func TestScout(t *testing.T) {
	m := startMosquitto(t)
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "tele/porch/LWT", Payload: []byte("Online"), QoS: 1, Retain: true})
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Share: "porch"}
	sink := &devicetest.Sink{}
	run(t, NewScout(config, []Device{device(t, "kitchen", "json", "kitchen")}, []string{"#"}, quiet()), sink)
	sink.WaitUp(t, 1)
	m.waitFor(t, "its subscription", func(log string) bool { return strings.Contains(log, "	# (QoS 0)") })
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	send(t, p, Publication{Topic: "camera/snapshot", Payload: make([]byte, maxPacket+1), QoS: 1})
	send(t, p, Publication{Topic: "tele/porch/SENSOR", Payload: temperature("2"), QoS: 1})
	got := sink.WaitUnknown(t, 2)
	for i, want := range []devices.Stranger{
		{Address: "tele/porch/LWT", Payload: []byte("Online"), Retained: true},
		{Address: "tele/porch/SENSOR", Payload: temperature("2")},
	} {
		want.Transport, want.Link, want.Peer, want.ContentFormat = "mqtt", "house", m.url(), -1
		if fmt.Sprint(got[i]) != fmt.Sprint(want) {
			t.Errorf("stranger %d is %+v, want %+v", i, got[i], want)
		}
	}
	if log := m.log(); strings.Contains(log, "PUBACK from porchlight-test-discovery") || strings.Contains(log, "Sending PUBLISH to porchlight-test-discovery (d0, q1") {
		t.Error("strangers are acknowledged, and so take places in a window")
	}
}

// TestScoutTakesNoPlace has a broker with a window of one message, which is
// taken. Strangers are heard all the same, and the device's next message when
// the first is acknowledged.
func TestScoutTakesNoPlace(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_inflight_messages 1")
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test"}
	ds := []Device{device(t, "kitchen", "json", "kitchen")}
	sink := &devicetest.Sink{}
	run(t, NewClient(config, ds, quiet()), sink)
	run(t, NewScout(config, ds, []string{"#"}, quiet()), sink)
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
	sink := &devicetest.Sink{Knows: func(s devices.Stranger) bool { return s.Address == "tele/porch/SENSOR" }}
	address := freePort(t)
	run(t, NewBroker(BrokerConfig{Listen: address}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet()), sink)
	sink.WaitUp(t, 1)
	c := rawConnect(t, address, "porch", "", "")
	for id, topic := range []string{"tele/porch/SENSOR", "somewhere"} {
		c.publish(uint16(id+1), 1, topic, temperature("1"))
		c.wantAck(uint16(id + 1))
	}
	got := sink.WaitUnknown(t, 2)
	if got[0].Link != "" || got[0].Transport != "mqtt" || !strings.Contains(got[0].Peer, "porch") {
		t.Errorf("the stranger is %+v", got[0])
	}
	if r := sink.WaitRejections(t, 1); len(r) != 1 || !strings.Contains(r[0].Why.Error(), "somewhere") {
		t.Errorf("rejected: %v", r)
	}
}
