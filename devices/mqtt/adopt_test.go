package mqtt

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// TestBrokerAdopts changes devices and users of a broker at work: what is
// retained stays, and so do the connections of users who did not change.
func TestBrokerAdopts(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	address := freePort(t)
	kitchen, cellar := device(t, "kitchen", "json", "kitchen"), device(t, "cellar", "json", "cellar")
	b := NewBroker(BrokerConfig{Listen: address, Users: []User{{"kitchen", "a"}, {"bob", "b"}, {"eve", "e"}}}, []Device{kitchen}, quiet())
	run(t, b, sink)
	sink.WaitUp(t, 1)
	stays := rawConnect(t, address, "kitchen", "kitchen", "a")
	changes := rawConnect(t, address, "bob", "bob", "b")
	leaves := rawConnect(t, address, "eve", "eve", "e")
	retained := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	retained.MessageID, retained.Qos, retained.Retain, retained.TopicName, retained.Payload = 1, 1, true, "kitchen", temperature("1")
	stays.write(retained)
	stays.wantAck(1)

	after := BrokerConfig{Listen: address, Users: []User{{"kitchen", "a"}, {"bob", "new"}, {"cellar", "c"}}}
	if !b.Adopt(NewBroker(after, []Device{kitchen, cellar}, quiet())) {
		t.Fatal("a new user and a new device are not adopted")
	}
	changes.wantClosed()
	leaves.wantClosed()
	rawConnect(t, address, "bob", "bob", "new")
	fresh := rawConnect(t, address, "cellar", "cellar", "c")
	fresh.publish(1, 1, "cellar", temperature("2"))
	fresh.wantAck(1)
	if got := sink.WaitMessages(t, 2)[1].Readings[0].Device; got != "cellar" {
		t.Errorf("the reading is of %s", got)
	}
	if codes := stays.subscribe("kitchen"); string(codes) != "\x01" {
		t.Fatalf("subscription answered with %x", codes)
	}
	if got, ok := stays.read().(*packets.PublishPacket); !ok || !got.Retain {
		t.Errorf("got %v, want what is retained", got)
	}

	for name, next := range map[string]devices.Driver{
		"another address": NewBroker(BrokerConfig{Listen: "127.0.0.1:1"}, nil, quiet()),
		"another driver":  kitchenOn(t, "mqtt://"+address),
	} {
		if b.Adopt(next) {
			t.Errorf("%s is adopted", name)
		}
	}
	open := NewBroker(BrokerConfig{Listen: "0.0.0.0:1883", Users: after.Users}, nil, quiet())
	if open.Adopt(NewBroker(BrokerConfig{Listen: "0.0.0.0:1883"}, nil, quiet())) {
		t.Error("a broker for other machines is adopted without users")
	}
}

// TestClientAdopts changes the devices of a client at work. Its connection
// stays, so that nothing of QoS 0 is lost of the others; a device that is gone
// is not heard any more.
func TestClientAdopts(t *testing.T) {
	m := startMosquitto(t)
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", TLS: new(tls.Config)}
	kitchen, cellar, attic := device(t, "kitchen", "json", "kitchen"), device(t, "cellar", "json", "cellar"), device(t, "attic", "json", "attic")
	c := NewClient(config, []Device{kitchen, cellar}, quiet())
	sink := &devicetest.Sink{Auto: true}
	run(t, c, sink)
	sink.WaitUp(t, 1)
	if !c.Adopt(NewClient(config, []Device{kitchen, attic}, quiet())) {
		t.Fatal("other devices are not adopted")
	}
	m.waitFor(t, "the new filter", func(log string) bool { return strings.Contains(log, "attic (QoS 1)") })
	m.waitFor(t, "the end of the old", func(log string) bool { return strings.Contains(log, "Sending UNSUBACK to porchlight-test") })
	p := publisher(t, m.url(), "all")
	for i, topic := range []string{"cellar", "kitchen", "attic"} {
		send(t, p, Publication{Topic: topic, Payload: temperature(fmt.Sprint(i)), QoS: 1})
	}
	var heard []devices.ID
	for _, taken := range sink.WaitMessages(t, 2) {
		heard = append(heard, taken.Readings[0].Device)
	}
	if fmt.Sprint(heard) != "[kitchen attic]" {
		t.Errorf("heard %v", heard)
	}
	if n := strings.Count(m.log(), "as porchlight-test"); n != 1 {
		t.Errorf("%d connections", n)
	}
	for name, change := range map[string]func(*ClientConfig){
		"another client id": func(c *ClientConfig) { c.ClientID = "y" },
		"other TLS":         func(c *ClientConfig) { c.TLS = new(tls.Config) },
	} {
		other := config
		change(&other)
		if c.Adopt(NewClient(other, []Device{kitchen}, quiet())) {
			t.Errorf("%s is adopted", name)
		}
	}
	if c.Adopt(NewScout(config, []Device{kitchen}, quiet())) {
		t.Error("a scout is adopted")
	}
}
