package agent_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/agent"
)

// TestBridgedDevices has a Zigbee2MQTT announce two devices at a real Mosquitto.
// The readings of each arrive under its own node at a subscriber of a real
// Prosody, with the units that were announced. The bridge goes offline, and both
// go with it; each that speaks is back.
func TestBridgedDevices(t *testing.T) {
	s, server := newStreet(t)
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
operators:
  - {jid: anna@localhost, role: owner}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
discovery: {accept: "off"}
devices:
  - {id: hall, profile: zigbee2mqtt, mqtt: {topic: hall/sensor}}
  - {id: garden, profile: zigbee2mqtt, mqtt: {topic: garden}, identity: "0x2"}
`, server.ComponentAddr(), server.PubSub(), s.broker))
	say := func(topic, payload string, more ...string) {
		t.Helper()
		command(t, "mosquitto_pub", append([]string{"-h", "127.0.0.1", "-p", port(s.broker), "-q", "1", "-t", "zigbee2mqtt/" + topic, "-m", payload}, more...)...)
	}
	expose := func(address, name, property, unit string) string {
		return fmt.Sprintf(`{"ieee_address":%q,"type":"EndDevice","supported":true,"friendly_name":%q,"definition":{"model":"M","vendor":"V","description":"D","exposes":[{"type":"numeric","name":%q,"property":%q,"unit":%q,"access":1}]}}`, address, name, property, property, unit)
	}
	say("bridge/state", `{"state":"online"}`, "-r")
	say("bridge/devices", "["+expose("0x1", "hall/sensor", "temperature", "°C")+","+expose("0x2", "garden", "gust", "m/s")+"]", "-r")
	startGateway(t, s.path, 2) // MQTT, itself

	reader := startReader(t, server, "anna's password", "garden@porch.localhost", "hall/log", "garden/log")
	say("hall/sensor", `{"temperature":21.5}`)
	say("garden", `{"gust":7.5}`)
	reader.await(t, "the reading of the hall", func(l line) bool {
		return l.Node == "porch/hall/log" && l.has("temperature", "number", 21.5, "Cel")
	})
	reader.await(t, "the reading of the garden", func(l line) bool {
		return l.Node == "porch/garden/log" && l.has("gust", "number", 7.5, "m/s")
	})
	reader.await(t, "the garden's presence", func(l line) bool {
		return l.Presence == "garden@porch.localhost/gw" && l.Type == "available"
	})
	states := func() (all string) {
		for _, d := range lines[agent.DeviceLine](s, "devices") {
			all += fmt.Sprintf("%s %s\n", d.ID, d.State)
		}
		return all
	}
	if got := states(); got != "garden fresh\nhall fresh\n" {
		t.Errorf("the devices are\n%s", got)
	}

	seen := len(reader.all())
	say("bridge/state", `{"state":"offline"}`, "-r")
	s.until("both to be lost", func() bool { return states() == "garden lost\nhall lost\n" })
	reader.await(t, "the garden's end", func(l line) bool { return l.Presence == "garden@porch.localhost/gw" && l.Type == "unavailable" })
	say("bridge/state", `{"state":"online"}`, "-r")
	say("hall/sensor", `{"temperature":21.75}`)
	s.until("one to be back", func() bool { return strings.Contains(states(), "hall fresh\n") })
	for _, l := range reader.all()[seen:] {
		if l.Fault != "" {
			t.Errorf("slixmpp finds: %s", l.Fault)
		}
	}
}
