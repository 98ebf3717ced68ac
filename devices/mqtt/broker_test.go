package mqtt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	mochipackets "github.com/mochi-mqtt/server/v2/packets"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// background sends without waiting, and tells how it went.
func background(p *Publisher, what Publication) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done <- p.Send(ctx, what)
	}()
	return done
}

func TestBroker(t *testing.T) {
	devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
		address := freePort(t)
		p := publisher(t, "mqtt://"+address, "kitchen")
		return devicetest.Harness{
			New: func(t testing.TB) devices.Driver {
				return NewBroker(BrokerConfig{Listen: address}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet())
			},
			Send: func(t testing.TB, v string) <-chan error {
				return background(p, Publication{Topic: "kitchen", Payload: temperature(v), QoS: 1})
			},
			SendGarbage: func(t testing.TB) {
				send(t, p, Publication{Topic: "kitchen", Payload: []byte("{\x00"), QoS: 1})
			},
		}
	})
}

// TestBrokerMosquittoPub has a program of others as the device.
func TestBrokerMosquittoPub(t *testing.T) {
	devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
		address := freePort(t)
		host, port, _ := net.SplitHostPort(address)
		publish := func(t testing.TB, payload string) <-chan error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			device := exec.CommandContext(ctx, find(t, "mosquitto_pub"), "-h", host, "-p", port, "-i", "kitchen", "-q", "1", "-t", "kitchen", "-m", payload)
			if err := device.Start(); err != nil {
				t.Fatal(err)
			}
			ended, result := make(chan struct{}), make(chan error, 1)
			go func() {
				defer close(ended)
				result <- device.Wait() // it waits for its PUBACK
			}()
			t.Cleanup(func() { cancel(); <-ended })
			return result
		}
		return devicetest.Harness{
			New: func(t testing.TB) devices.Driver {
				return NewBroker(BrokerConfig{Listen: address}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet())
			},
			Send: func(t testing.TB, v string) <-chan error {
				return publish(t, string(temperature(v)))
			},
			SendGarbage: func(t testing.TB) { publish(t, "{\x01") },
		}
	})
}

// startBroker starts one for the devices, and gives its address.
func startBroker(t testing.TB, sink devices.Sink, users []User, ds ...Device) (address string, stop func() error) {
	t.Helper()
	address = freePort(t)
	_, stop = run(t, NewBroker(BrokerConfig{Listen: address, Users: users}, ds, quiet()), sink)
	return address, stop
}

// A rawClient speaks MQTT 3.1.1 by hand, so that it sees what libraries hide.
type rawClient struct {
	t testing.TB
	net.Conn
}

// rawConnect connects with a persistent session.
func rawConnect(t testing.TB, address, id, user, password string) *rawClient {
	t.Helper()
	c := rawDial(t, address)
	p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.Keepalive = "MQTT", 4, id, 60
	if user != "" {
		p.UsernameFlag, p.PasswordFlag, p.Username, p.Password = true, true, user, []byte(password)
	}
	c.write(p)
	if ack, ok := c.read().(*packets.ConnackPacket); !ok || ack.ReturnCode != 0 {
		t.Fatalf("not connected: %v", ack)
	}
	return c
}

func rawDial(t testing.TB, address string) *rawClient {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &rawClient{t, conn}
}

func (c *rawClient) write(p packets.ControlPacket) {
	c.t.Helper()
	if err := p.Write(c); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawClient) read() packets.ControlPacket {
	c.t.Helper()
	p, err := packets.ReadPacket(c)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// wantClosed wants the broker to end the connection.
func (c *rawClient) wantClosed() {
	c.t.Helper()
	for {
		p, err := packets.ReadPacket(c)
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			c.t.Fatal("the connection is still there")
		}
		if err != nil {
			return
		}
		if _, ok := p.(*packets.DisconnectPacket); !ok {
			c.t.Fatalf("got %v", p)
		}
	}
}

func (c *rawClient) publish(id uint16, qos byte, topic string, payload []byte) {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.MessageID, p.Qos, p.TopicName, p.Payload = id, qos, topic, payload
	c.write(p)
}

// subscribe gives the code of the answer.
func (c *rawClient) subscribe(filters ...string) []byte {
	c.t.Helper()
	p := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p.MessageID, p.Topics = 9999, filters
	for range filters {
		p.Qoss = append(p.Qoss, 1)
	}
	c.write(p)
	for {
		if ack, ok := c.read().(*packets.SubackPacket); ok {
			return ack.ReturnCodes
		}
	}
}

// wantPong wants nothing before the answer to a ping: what came before it was
// handled, and not answered.
func (c *rawClient) wantPong() {
	c.t.Helper()
	c.write(packets.NewControlPacket(packets.Pingreq))
	if p := c.read(); !isA[*packets.PingrespPacket](p) {
		c.t.Fatalf("got %v before the answer to a ping", p)
	}
}

func isA[P packets.ControlPacket](p packets.ControlPacket) bool {
	_, ok := p.(P)
	return ok
}

func (c *rawClient) wantAck(id uint16) {
	c.t.Helper()
	if ack, ok := c.read().(*packets.PubackPacket); !ok || ack.MessageID != id {
		c.t.Fatalf("got %v, want the acknowledgement of %d", ack, id)
	}
}

// TestBrokerWindow has a device use its whole window while nothing is safe:
// it is heard, and acknowledged in order (MQTT-4.6.0-2), what is of no use
// too.
func TestBrokerWindow(t *testing.T) {
	sink := &devicetest.Sink{}
	address, _ := startBroker(t, sink, nil, device(t, "kitchen", "json", "kitchen"))
	sink.WaitUp(t, 1)
	c := rawConnect(t, address, "kitchen", "", "")
	for id := range uint16(20) {
		c.publish(id+1, 1, "kitchen", temperature(fmt.Sprint(id)))
	}
	c.publish(21, 1, "kitchen", []byte("no JSON"))
	c.publish(22, 1, "elsewhere", []byte("x"))
	got := sink.WaitMessages(t, 20)
	sink.WaitRejections(t, 2)
	if m := got[0]; m.Window != usualWindow || m.Origin == (devices.Origin{}) || m.Origin == got[1].Origin || m.Redelivered {
		t.Errorf("message: %+v", m.Message)
	}
	c.wantPong()
	for i := 19; i > 0; i-- {
		got[i].Settle(nil)
	}
	c.wantPong()
	got[0].Settle(nil)
	for id := range uint16(22) {
		c.wantAck(id + 1)
	}
}

// TestBrokerResend loses a reading: the device is not acknowledged and has to
// connect anew, and what it sends then is known to be the same.
func TestBrokerResend(t *testing.T) {
	for name, lose := range map[string]func(sink *devicetest.Sink, c *rawClient){
		"receipt with an error": func(sink *devicetest.Sink, c *rawClient) {
			c.publish(7, 1, "kitchen", temperature("1"))
			sink.WaitMessages(c.t, 1)[0].Settle(errors.New("disk on fire"))
		},
		"full": func(sink *devicetest.Sink, c *rawClient) {
			c.publish(7, 1, "kitchen", temperature("1"))
			first := sink.WaitMessages(c.t, 1)[0]
			sink.SetFull(true)
			c.publish(8, 1, "kitchen", temperature("2"))
			sink.WaitRejections(c.t, 1)
			sink.SetFull(false)
			_ = first // is still not safe
		},
	} {
		t.Run(name, func(t *testing.T) {
			sink := &devicetest.Sink{}
			address, _ := startBroker(t, sink, nil, device(t, "kitchen", "json", "kitchen"))
			sink.WaitUp(t, 1)
			c := rawConnect(t, address, "kitchen", "", "")
			lose(sink, c)
			c.wantClosed()
			c = rawConnect(t, address, "kitchen", "", "")
			again := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			again.MessageID, again.Qos, again.Dup, again.TopicName, again.Payload = 7, 1, true, "kitchen", temperature("1")
			c.write(again)
			got := sink.WaitMessages(t, 2)
			if got[1].Origin != got[0].Origin || !got[1].Redelivered {
				t.Errorf("sent again: %+v, want the origin of %+v", got[1].Message, got[0].Message)
			}
			got[1].Settle(nil)
			c.wantAck(7)
		})
	}
}

// TestBrokerTakeover has a message come from a connection whose client has
// connected anew, as when the gateway stood still meanwhile: what had been read
// from the old one may be handled after what the new one sent again.
func TestBrokerTakeover(t *testing.T) {
	sink := &devicetest.Sink{}
	b := NewBroker(BrokerConfig{Listen: freePort(t)}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet())
	run(t, b, sink)
	sink.WaitUp(t, 1)
	rawConnect(t, b.listen, "kitchen", "", "")
	server := b.running.Load().server
	old, ok := server.Clients.Get("kitchen")
	if !ok {
		t.Fatal("the client is not known")
	}
	c := rawConnect(t, b.listen, "kitchen", "", "")
	again := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	again.MessageID, again.Qos, again.Dup, again.TopicName, again.Payload = 7, 1, true, "kitchen", temperature("1")
	c.write(again)
	sink.WaitMessages(t, 1)
	_ = server.InjectPacket(old, mochipackets.Packet{ // the error is that its connection is closed
		FixedHeader: mochipackets.FixedHeader{Type: mochipackets.Publish, Qos: 1}, PacketID: 7, TopicName: "kitchen", Payload: temperature("1"),
	})
	got := sink.WaitMessages(t, 2)
	if got[1].Origin != got[0].Origin || !got[1].Redelivered {
		t.Errorf("from the old connection: %+v, want it as the same as %+v, and as possibly redelivered", got[1].Message, got[0].Message)
	}
}

// TestBrokerQoS2 goes through the four packets (MQTT 3.1.1 section 4.3.3), the
// first answer to which waits for the receipt.
func TestBrokerQoS2(t *testing.T) {
	sink := &devicetest.Sink{}
	address, _ := startBroker(t, sink, nil, device(t, "kitchen", "json", "kitchen"))
	sink.WaitUp(t, 1)
	c := rawConnect(t, address, "kitchen", "", "")
	for id := range uint16(2 * brokerInflight) { // no quota is used up
		c.publish(id+1, 2, "kitchen", temperature("1"))
		m := sink.WaitMessages(t, int(id)+1)[id]
		if id == 0 {
			c.wantPong()
		}
		m.Settle(nil)
		if rec, ok := c.read().(*packets.PubrecPacket); !ok || rec.MessageID != id+1 {
			t.Fatalf("got %v, want PUBREC", rec)
		}
		if id == 0 {
			// Sent again, it is answered again and not reported again.
			again := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			again.MessageID, again.Qos, again.Dup, again.TopicName, again.Payload = 1, 2, true, "kitchen", temperature("1")
			c.write(again)
			if rec, ok := c.read().(*packets.PubrecPacket); !ok || rec.MessageID != 1 {
				t.Fatalf("got %v, want PUBREC", rec)
			}
			if n := len(sink.WaitMessages(t, 1)); n != 1 {
				t.Fatalf("reported %d times", n)
			}
		}
		rel := packets.NewControlPacket(packets.Pubrel).(*packets.PubrelPacket)
		rel.MessageID = id + 1
		c.write(rel)
		if comp, ok := c.read().(*packets.PubcompPacket); !ok || comp.MessageID != id+1 {
			t.Fatalf("got %v, want PUBCOMP", comp)
		}
	}
}

// TestBrokerStop acknowledges what is safe when it stops, and nothing else.
func TestBrokerStop(t *testing.T) {
	sink := &devicetest.Sink{}
	address, stop := startBroker(t, sink, nil, device(t, "kitchen", "json", "kitchen"))
	sink.WaitUp(t, 1)
	c := rawConnect(t, address, "kitchen", "", "")
	idle := rawDial(t, address) // says nothing at all
	for id := range uint16(4) {
		c.publish(id+1, 1, "kitchen", temperature("1"))
	}
	got := sink.WaitMessages(t, 4)
	got[0].Settle(nil)
	got[1].Settle(nil)
	got[3].Settle(nil) // behind one that is not safe
	if err := stop(); err != nil {
		t.Error(err)
	}
	c.wantAck(1)
	c.wantAck(2)
	c.wantClosed()
	idle.wantClosed()
}

// TestBrokerPassesOn is a broker to others: before a reading is safe, with the
// same QoS, and retained.
func TestBrokerPassesOn(t *testing.T) {
	sink := &devicetest.Sink{}
	address, _ := startBroker(t, sink, nil, device(t, "kitchen", "json", "kitchen"))
	sink.WaitUp(t, 1)
	listener := rawConnect(t, address, "listener", "", "")
	if codes := listener.subscribe("#", "$SYS/#"); string(codes) != "\x01\x80" {
		t.Fatalf("subscription answered with %x", codes)
	}
	listener.wantPong() // what is retained is sent after the SUBACK; there is nothing yet
	p := publisher(t, "mqtt://"+address, "kitchen")
	for i, topic := range []string{"kitchen", "cmnd/kitchen/POWER"} {
		background(p, Publication{Topic: topic, Payload: temperature("1"), QoS: 1, Retain: true})
		got, ok := listener.read().(*packets.PublishPacket)
		if !ok || got.TopicName != topic || got.Qos != 1 || got.Dup || got.Retain {
			t.Fatalf("message %d: got %v", i, got)
		}
	}
	// The flag is of one delivery, and not of the message (MQTT-3.3.1-3).
	again := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	again.MessageID, again.Qos, again.Dup, again.TopicName = 1, 1, true, "elsewhere"
	rawConnect(t, address, "again", "", "").write(again)
	if got, ok := listener.read().(*packets.PublishPacket); !ok || got.TopicName != "elsewhere" || got.Dup {
		t.Fatalf("got %v", got)
	}
	late := rawConnect(t, address, "late", "", "")
	p2 := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
	p2.MessageID, p2.Topics, p2.Qoss = 1, []string{"kitchen"}, []byte{0}
	late.write(p2)
	if !isA[*packets.SubackPacket](late.read()) {
		t.Fatal("no SUBACK")
	}
	if got, ok := late.read().(*packets.PublishPacket); !ok || !got.Retain {
		t.Fatalf("got %v, want what is retained", got)
	}
	if n := len(sink.WaitMessages(t, 1)); n != 1 {
		t.Errorf("%d messages reached the sink, want 1: passing on is not reporting", n)
	}
}

func TestBrokerLastWill(t *testing.T) {
	for name, users := range map[string][]User{"anonymous": nil, "user": {{"kitchen", "right"}}} {
		t.Run(name, func(t *testing.T) {
			sink := &devicetest.Sink{Auto: true}
			address, _ := startBroker(t, sink, users, device(t, "kitchen", "tasmota", "kitchen"))
			sink.WaitUp(t, 1)
			var login []string
			if users != nil {
				login = []string{"kitchen", "right"}
			}
			testLastWill(t, address, sink, login...)
		})
	}
}

// TestBrokerUsers has each user keep to what is his.
func TestBrokerUsers(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	address, _ := startBroker(t, sink, []User{{"kitchen", "right"}, {"bob", "secret"}},
		device(t, "kitchen", "tasmota", "kitchen"), device(t, "hers", "tasmota", "bob"))
	sink.WaitUp(t, 1)
	url := "mqtt://" + address

	rejections := 0
	for name, p := range map[string]*Publisher{
		"wrong password":       {Username: "kitchen", Password: "wrong"},
		"another's password":   {Username: "kitchen", Password: "secret"},
		"no such user":         {Username: "eve", Password: "right"},
		"anonymous":            {},
		"empty password":       {Username: "kitchen"},
		"the will of another":  {Username: "bob", Password: "secret", Will: &Publication{Topic: "tele/kitchen/LWT", Payload: []byte("Offline")}},
		"a will on a wildcard": {Username: "bob", Password: "secret", Will: &Publication{Topic: "bob/#", Payload: []byte("x")}},
	} {
		t.Run(name, func(t *testing.T) {
			p.url, p.id = url, "someone"
			defer p.Close()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := p.Connect(ctx); err == nil || !strings.Contains(err.Error(), "not Authorized") {
				t.Errorf("connecting: %v", err)
			}
			rejections++
			got := sink.WaitRejections(t, rejections)
			if last := fmt.Sprint(got[len(got)-1]); strings.Contains(last, "right") || strings.Contains(last, "secret") {
				t.Errorf("a password is in %s", last)
			}
		})
	}

	kitchen := rawConnect(t, address, "kitchen", "kitchen", "right")
	if codes := kitchen.subscribe("cmnd/kitchen/#", "+/kitchen/#", "#", "bob/#", "tele/bob/SENSOR", "$share/g/kitchen/x", "$SYS/#"); string(codes) != "\x01\x01\x80\x80\x80\x01\x80" {
		t.Errorf("subscriptions answered with %x", codes)
	}
	// What another may not publish is acknowledged, so that he goes on, and
	// goes nowhere.
	bob := rawConnect(t, address, "bob", "bob", "secret")
	for i, topic := range []string{"tele/kitchen/SENSOR", "cmnd/kitchen/POWER", "kitchen/x", "homeassistant/sensor/x/config", "$SYS/x/y", strings.Repeat("bob/", 17)} {
		qos := byte(1)
		if i == 4 {
			qos = 0 // the library drops it without a word
		}
		bob.publish(uint16(i+1), qos, topic, temperature("1"))
		if qos == 1 {
			bob.wantAck(uint16(i + 1))
		}
	}
	bob.publish(50, 1, "bob/tele/SENSOR", temperature("1"))
	bob.wantAck(50)
	bob.publish(51, 1, "bob/kitchen/x", []byte("matches kitchen's filter, and is bob's"))
	bob.wantAck(51)
	if got := sink.WaitMessages(t, 1); got[0].Readings[0].Device != "hers" || len(got) != 1 {
		t.Errorf("got %d messages, the first %+v", len(got), got[0].Readings)
	}
	kitchen.wantPong()
	publisherOfKitchen := publisher(t, url, "kitchen-2")
	publisherOfKitchen.Username, publisherOfKitchen.Password = "kitchen", "right"
	send(t, publisherOfKitchen, Publication{Topic: "cmnd/kitchen/POWER", Payload: []byte("ON"), QoS: 1})
	if got, ok := kitchen.read().(*packets.PublishPacket); !ok || got.TopicName != "cmnd/kitchen/POWER" {
		t.Errorf("got %v", got)
	}

	// A session, with what it has subscribed to, is not another's to take.
	thief := publisher(t, url, "kitchen")
	thief.Username, thief.Password = "bob", "secret"
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := thief.Connect(ctx); err == nil {
		t.Error("a session was taken by another user")
	}
	for kitchen.t = t; ; {
		kitchen.write(packets.NewControlPacket(packets.Pingreq))
		if isA[*packets.PingrespPacket](kitchen.read()) {
			break
		}
	}
}

func TestBrokerNeedsUsers(t *testing.T) {
	for _, listen := range []string{":0", "0.0.0.0:0", "[::]:0", "192.0.2.1:1883", "nonsense"} {
		err := NewBroker(BrokerConfig{Listen: listen}, nil, quiet()).Run(context.Background(), &devicetest.Sink{})
		if !errors.Is(err, devices.ErrRefused) {
			t.Errorf("%s without users: %v", listen, err)
		}
	}
}

func TestBrokerPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = NewBroker(BrokerConfig{Listen: l.Addr().String()}, nil, quiet()).Run(context.Background(), &devicetest.Sink{})
	if err == nil || !strings.Contains(err.Error(), "address already in use") || errors.Is(err, devices.ErrRefused) {
		t.Errorf("%v", err)
	}
}

// TestBrokerLimits keeps a client from taking more than its part.
func TestBrokerLimits(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	address, _ := startBroker(t, sink, []User{{"kitchen", "right"}}, device(t, "kitchen", "json", "kitchen"))
	sink.WaitUp(t, 1)
	connect := func(id string) *rawClient { return rawConnect(t, address, id, "kitchen", "right") }

	t.Run("packet", func(t *testing.T) {
		c := connect("one")
		if _, err := io.WriteString(c, "\x30\xff\xff\xff\x7f"); err != nil {
			t.Fatal(err)
		}
		c.wantClosed()
	})
	t.Run("before CONNECT", func(t *testing.T) {
		c := rawDial(t, address)
		if _, err := io.WriteString(c, "\x10\xff\xff\xff\x7f"); err != nil {
			t.Fatal(err)
		}
		c.wantClosed()
	})
	t.Run("wildcard", func(t *testing.T) {
		c := connect("one")
		c.publish(1, 1, "kitchen/+", nil)
		c.wantClosed()
		if last := sink.WaitRejections(t, 1); !strings.Contains(last[0].Why.Error(), "wildcard") {
			t.Errorf("rejected: %v", last)
		}
	})
	t.Run("filters", func(t *testing.T) {
		c := connect("one")
		filter := func(i int) string { return fmt.Sprintf("kitchen/%d", i) }
		for i := range subscriptions {
			if codes := c.subscribe(filter(i)); codes[0] != 1 {
				t.Fatalf("filter %d answered with %x", i, codes)
			}
		}
		if codes := c.subscribe(filter(subscriptions)); codes[0] != 0x80 {
			t.Errorf("one filter too many answered with %x", codes)
		}
	})
	t.Run("retained", func(t *testing.T) {
		c := connect("one")
		p := publisher(t, "mqtt://"+address, "two")
		p.Username, p.Password = "kitchen", "right"
		send(t, p, Publication{Topic: "kitchen/large", Payload: make([]byte, maxRetainedOne+1), QoS: 1, Retain: true})
		send(t, p, Publication{Topic: "kitchen/small", Payload: make([]byte, maxRetainedOne), QoS: 1, Retain: true})
		sub := packets.NewControlPacket(packets.Subscribe).(*packets.SubscribePacket)
		sub.MessageID, sub.Topics, sub.Qoss = 1, []string{"kitchen/large", "kitchen/small"}, []byte{0, 0}
		c.write(sub)
		c.read() // SUBACK, if there is room for two more
		fresh := connect("three")
		fresh.write(sub)
		fresh.read()
		if got, ok := fresh.read().(*packets.PublishPacket); !ok || got.TopicName != "kitchen/small" {
			t.Errorf("got %.80v", got)
		}
		fresh.wantPong()
	})
	t.Run("sessions", func(t *testing.T) {
		for i := range userSessions {
			// Some are there from above.
			conn := rawDial(t, address)
			p := packets.NewControlPacket(packets.Connect).(*packets.ConnectPacket)
			p.ProtocolName, p.ProtocolVersion, p.ClientIdentifier, p.Keepalive = "MQTT", 4, fmt.Sprint("many-", i), 60
			p.UsernameFlag, p.PasswordFlag, p.Username, p.Password = true, true, "kitchen", []byte("right")
			conn.write(p)
			if ack := conn.read().(*packets.ConnackPacket); ack.ReturnCode != 0 {
				return
			}
		}
		t.Errorf("one user has more than %d sessions", userSessions)
	})
}

// TestBrokerStuckClient has a client that never reads: the others go on, and
// so does the broker's end.
func TestBrokerStuckClient(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	address, stop := startBroker(t, sink, nil, device(t, "kitchen", "json", "kitchen"))
	sink.WaitUp(t, 1)
	stuck := rawConnect(t, address, "stuck", "", "")
	stuck.Conn.(*net.TCPConn).SetReadBuffer(4096)
	stuck.subscribe("#")
	p := publisher(t, "mqtt://"+address, "kitchen")
	for range 400 { // 20 MiB
		send(t, p, Publication{Topic: "noise", Payload: make([]byte, 50<<10)})
	}
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	sink.WaitMessages(t, 1)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// FuzzBroker sends what no client would, after a proper CONNECT. A panic in a
// goroutine of the library would end the test; one that is caught is rejected
// with that word.
func FuzzBroker(f *testing.F) {
	sink := &devicetest.Sink{Auto: true}
	address, _ := startBroker(f, sink, nil, device(f, "kitchen", "json", "kitchen"))
	sink.WaitUp(f, 1)
	for _, s := range []string{
		"\x32\x0d\x00\x07kitchen\x00\x01{}", "\x82\x08\x00\x01\x00\x03a/b\x01", "\xa2\x07\x00\x01\x00\x03a/b", "\xc0\x00", "\xe0\x00",
		"\x34\x0d\x00\x07kitchen\x00\x01{}\x62\x02\x00\x01", "\x40\x02\x00\x01", "\x10\x10", "\x30\xff\xff\xff\x7f", "\xf0\x02\x00\x00", "\x82\x02\x00\x01",
	} {
		f.Add([]byte(s), byte(4))
		f.Add([]byte(s), byte(5))
	}
	n := 0
	f.Fuzz(func(t *testing.T, in []byte, version byte) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		n++
		connect := append([]byte("\x00\x04MQTT"), version, 2, 0, 60)
		if version == 5 {
			connect = append(connect, 0)
		}
		id := fmt.Sprint("fuzz-", n)
		connect = append(binary.BigEndian.AppendUint16(connect, uint16(len(id))), id...)
		conn.Write(append([]byte{0x10, byte(len(connect))}, connect...))
		conn.Write(in)
		conn.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, conn)
		for _, r := range sink.WaitRejections(t, 0) {
			if strings.Contains(r.Why.Error(), "panic") {
				t.Fatal(r.Why)
			}
		}
	})
}
