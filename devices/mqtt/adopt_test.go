package mqtt

import (
	"crypto/tls"
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

func TestClientAdopts(t *testing.T) {
	config := ClientConfig{Name: "house", URL: "mqtt://localhost", ClientID: "x"}
	kitchen := []Device{device(t, "kitchen", "json", "kitchen")}
	c := NewClient(config, kitchen, quiet())
	if !c.Adopt(NewClient(config, kitchen, quiet())) {
		t.Error("the same is not adopted")
	}
	if c.Adopt(NewClient(config, []Device{device(t, "kitchen", "json", "other")}, quiet())) {
		t.Error("another topic is adopted, and was not subscribed to")
	}
	config.TLS = new(tls.Config)
	if c.Adopt(NewClient(config, kitchen, quiet())) {
		t.Error("TLS is adopted")
	}
}
