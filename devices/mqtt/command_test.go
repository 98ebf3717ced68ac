package mqtt

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// listen is a device that hears topics; the channel gets topic and payload.
func listen(t testing.TB, url, id, user, password, filter string) <-chan string {
	t.Helper()
	heard := make(chan string, 100)
	o := paho.NewClientOptions().AddBroker(url).SetClientID(id).SetUsername(user).SetPassword(password)
	c := paho.NewClient(o)
	if token := c.Connect(); !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatal("the device cannot connect: ", token.Error())
	}
	t.Cleanup(func() { c.Disconnect(100) })
	token := c.Subscribe(filter, 1, func(_ paho.Client, m paho.Message) { heard <- m.Topic() + " " + string(m.Payload()) })
	if !token.WaitTimeout(patience) || token.Error() != nil {
		t.Fatal("the device cannot subscribe: ", token.Error())
	}
	return heard
}

// execute gives what confirms the command.
func execute(t testing.TB, a devices.Actuator, c devices.Command) (what devices.Confirmation, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	expected := false
	err = a.Execute(ctx, c, func(is devices.Confirmation) { what, expected = is, true })
	if sent := err == nil || errors.Is(err, devices.ErrUncertain); sent != expected {
		t.Errorf("%v: err is %v, and expect was called: %v", c, err, expected)
	}
	return what, err
}

func TestClientExecutes(t *testing.T) {
	m := startMosquitto(t)
	heard := listen(t, m.url(), "plug", "", "", "cmnd/#")
	config := ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Profiles: known(t)}
	ds := []Device{device(t, "plug", "tasmota", "plug")}
	c := NewClient(config, ds, quiet())
	on := devices.Command{Device: "plug", Name: "power", Argument: "on"}
	if _, err := execute(t, c, on); err == nil || !strings.Contains(err.Error(), "has to be heard first") {
		t.Errorf("of a device that was never heard: %v", err)
	}
	sink := &devicetest.Sink{Auto: true}
	_, stop := run(t, c, sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "tele/plug/STATE", Payload: []byte(`{"POWER":"OFF","Dimmer":20}`), QoS: 1})
	sink.WaitMessages(t, 1)

	controls := c.Controls("plug")
	if len(controls) != 2 || controls[0].Name != "power" || controls[0].Argument.Type != devices.SwitchArgument || strings.Join(controls[0].Argument.Words, " ") != "off on toggle" ||
		controls[1].Name != "dimmer" || controls[1].Argument.Type != devices.IntegerArgument || *controls[1].Argument.Max != 100 {
		t.Errorf("its commands are %+v", controls)
	}
	if all := c.Controls("kitchen"); all != nil {
		t.Errorf("the commands of nobody are %+v", all)
	}
	if all := NewScout(config, ds, quiet()).Controls("plug"); all != nil {
		t.Errorf("a scout has the commands %+v", all)
	}
	what, err := execute(t, c, on)
	if err != nil || what.Field != "power" || what.Value != devices.Bool(true) || what.Within <= 0 {
		t.Errorf("on: %+v, %v", what, err)
	}
	for _, refused := range []devices.Command{
		{Device: "plug", Name: "dimmer", Argument: "101"}, {Device: "plug", Name: "dimmer", Argument: "4.5"}, {Device: "plug", Name: "power", Argument: "maybe"},
		{Device: "plug", Name: "fly"}, {Device: "kitchen", Name: "power", Argument: "on"},
	} {
		if _, err := execute(t, c, refused); err == nil || errors.Is(err, devices.ErrUncertain) {
			t.Errorf("%v: %v", refused, err)
		}
	}
	if _, err := execute(t, c, devices.Command{Device: "plug", Name: "dimmer", Argument: "40"}); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"cmnd/plug/POWER ON", "cmnd/plug/Dimmer 40"} {
		if got := <-heard; got != want {
			t.Errorf("the device hears %q, want %q", got, want)
		}
	}
	if log := m.log(); strings.Count(log, "Received PUBLISH from porchlight-test (d0, q1, r0") != 2 {
		t.Error("the commands are not sent with QoS 1")
	}
	stop()
	if _, err := execute(t, c, on); err == nil || errors.Is(err, devices.ErrUncertain) || !strings.Contains(err.Error(), "no connection") {
		t.Errorf("without a link: %v", err)
	}
}

// A cutter is a way to a broker, and cuts it when the broker answers what it
// shall not have answered.
type cutter struct {
	net.Listener
	to  string
	mu  sync.Mutex
	cut byte // the first byte of that answer; 0: none
}

func newCutter(t testing.TB, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &cutter{Listener: l, to: to}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go c.carry(near)
		}
	}()
	return c
}

func (c *cutter) arm(answer byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = answer
}

func (c *cutter) carry(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer far.Close()
	go func() { io.Copy(far, near); far.Close() }()
	b := make([]byte, 4096)
	for {
		n, err := far.Read(b)
		if err != nil {
			return
		}
		c.mu.Lock()
		now := c.cut != 0 && b[0] == c.cut
		if now {
			c.cut = 0
		}
		c.mu.Unlock()
		if now {
			return
		}
		if _, err := near.Write(b[:n]); err != nil {
			return
		}
	}
}

// TestCommandOnABrokenLink has the link break when the broker has the command,
// and before it can say so. The command is not sent again, by nobody: that the
// next link is up is no proof of anything.
func TestCommandOnABrokenLink(t *testing.T) {
	m := startMosquitto(t)
	way := newCutter(t, m.address)
	heard := listen(t, m.url(), "plug", "", "", "cmnd/#")
	c := NewClient(ClientConfig{Name: "house", URL: "mqtt://" + way.Addr().String(), ClientID: "porchlight-test", Profiles: known(t)}, []Device{device(t, "plug", "tasmota", "plug")}, quiet())
	sink := &devicetest.Sink{Auto: true}
	ended, _ := run(t, c, sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "street")
	send(t, p, Publication{Topic: "tele/plug/STATE", Payload: []byte(`{"POWER":"OFF"}`), QoS: 1})
	sink.WaitMessages(t, 1)

	way.arm(typePuback << 4)
	if _, err := execute(t, c, devices.Command{Device: "plug", Name: "power", Argument: "on"}); !errors.Is(err, devices.ErrUncertain) {
		t.Errorf("the answer is %v", err)
	}
	wantEnd(t, ended)
	run(t, c, sink)
	sink.WaitUp(t, 2)
	if _, err := execute(t, c, devices.Command{Device: "plug", Name: "power", Argument: "off"}); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"cmnd/plug/POWER ON", "cmnd/plug/POWER OFF"} {
		if got := <-heard; got != want {
			t.Errorf("the device hears %q, want %q", got, want)
		}
	}
	if n := strings.Count(m.log(), "Received PUBLISH from porchlight-test"); n != 2 {
		t.Errorf("the broker got %d messages", n)
	}
}

// TestBrokerExecutes has the gateway's own broker tell a device something, and
// nobody who is away.
func TestBrokerExecutes(t *testing.T) {
	address := freePort(t)
	users := []User{{"plug", "a password"}, {"lamp", "another"}}
	b := NewBroker(BrokerConfig{Listen: address, Users: users, Profiles: known(t)}, []Device{device(t, "plug", "tasmota", "plug")}, quiet())
	sink := &devicetest.Sink{Auto: true}
	run(t, b, sink)
	sink.WaitUp(t, 1)
	p := publisher(t, "mqtt://"+address, "speaks")
	p.Username, p.Password = "plug", "a password"
	send(t, p, Publication{Topic: "tele/plug/STATE", Payload: []byte(`{"POWER":"OFF"}`), QoS: 1})
	on := devices.Command{Device: "plug", Name: "power", Argument: "on"}
	if _, err := execute(t, b, on); err == nil || !strings.Contains(err.Error(), "nobody who is connected listens") {
		t.Errorf("nobody is there: %v", err)
	}
	heard := listen(t, "mqtt://"+address, "listens", "plug", "a password", "cmnd/plug/#")
	if what, err := execute(t, b, on); err != nil || what.Field != "power" {
		t.Errorf("on: %+v, %v", what, err)
	}
	if got := <-heard; got != "cmnd/plug/POWER ON" {
		t.Errorf("the device hears %q", got)
	}
	if _, err := execute(t, b, devices.Command{Device: "plug", Name: "power", Argument: "maybe"}); err == nil {
		t.Error("maybe is taken")
	}
}
