package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run runs a driver until the test ends, or stop is called, which gives what
// Run gave.
func run(t testing.TB, d devices.Driver, sink devices.Sink) (ended <-chan error, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result, done := make(chan error, 1), make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = d.Run(ctx, sink)
		result <- err
	}()
	stop = func() error {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("Run does not end with its context")
		}
		return err
	}
	t.Cleanup(func() { stop() })
	return result, stop
}

// wantEnd waits until Run ends by itself, and gives why.
func wantEnd(t testing.TB, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		if err == nil {
			t.Fatal("Run ended without an error")
		}
		return err
	case <-time.After(patience):
		t.Fatal("Run does not end")
		return nil
	}
}

// publisher is a device; it ends with the test.
func publisher(t testing.TB, url, id string) *Publisher {
	t.Helper()
	p := NewPublisher(url, id)
	t.Cleanup(p.Close)
	return p
}

func send(t testing.TB, p *Publisher, what Publication) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.Send(ctx, what); err != nil {
		t.Fatal(err)
	}
}

func temperature(value string) []byte { return fmt.Appendf(nil, `{"temperature":%s}`, value) }

func value(m *devicetest.Taken) string { return m.Readings[0].Fields[0].Value.String() }

func kitchenOn(t testing.TB, url string) *Client {
	return NewClient(ClientConfig{Name: "house", URL: url, ClientID: "porchlight-test"}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet())
}

func TestClient(t *testing.T) {
	devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
		m := startMosquitto(t)
		p := publisher(t, m.url(), "kitchen")
		return devicetest.Harness{
			New: func(t testing.TB) devices.Driver { return kitchenOn(t, m.url()) },
			Send: func(t testing.TB, v string) <-chan error {
				send(t, p, Publication{Topic: "kitchen", Payload: temperature(v), QoS: 1})
				return nil // the broker acknowledges the device, not we
			},
			SendGarbage: func(t testing.TB) {
				send(t, p, Publication{Topic: "kitchen", Payload: []byte("{\x00"), QoS: 1})
			},
			Break: func(t testing.TB) {
				m.save(t) // by itself it does so every half hour
				m.kill()
				m.start(t)
			},
			Resends: true,
		}
	})
}

// TestClientHoldsAcknowledgement has a broker with a window of one: it sends
// the second message when the first was acknowledged, and not before.
func TestClientHoldsAcknowledgement(t *testing.T) {
	m := startMosquitto(t, "allow_anonymous true", "max_inflight_messages 1")
	sink := &devicetest.Sink{}
	_, stop := run(t, kitchenOn(t, m.url()), sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "kitchen")
	for _, v := range []string{"1", "2", "3"} {
		send(t, p, Publication{Topic: "kitchen", Payload: temperature(v), QoS: 1})
	}
	first := sink.WaitMessages(t, 1)[0]
	if first.Window != usualWindow || first.Origin == (devices.Origin{}) || first.Redelivered || first.Retained {
		t.Errorf("message: %+v", first.Message)
	}
	if n := strings.Count(m.log(), "Received PUBACK from porchlight-test"); n != 0 {
		t.Errorf("%d acknowledgements before the first reading was safe", n)
	}
	first.Settle(nil)
	second := sink.WaitMessages(t, 2)[1]
	m.waitFor(t, "one acknowledgement", func(log string) bool { return strings.Count(log, "Received PUBACK from porchlight-test") == 1 })
	// The last that is safe when the driver is to stop is acknowledged still.
	second.Settle(nil)
	sink.WaitMessages(t, 3)[2].Settle(nil)
	if err := stop(); err != nil {
		t.Error(err)
	}
	m.waitFor(t, "three acknowledgements, and a clean end", func(log string) bool {
		return strings.Count(log, "Received PUBACK from porchlight-test") == 3 && strings.Contains(log, "Received DISCONNECT from porchlight-test")
	})
}

// TestClientAcknowledgesInOrder settles receipts in the wrong order
// (MQTT-4.6.0-2).
func TestClientAcknowledgesInOrder(t *testing.T) {
	m := startMosquitto(t)
	sink := &devicetest.Sink{}
	run(t, kitchenOn(t, m.url()), sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "kitchen")
	const n = 12
	for i := range n {
		send(t, p, Publication{Topic: "kitchen", Payload: temperature(fmt.Sprint(i)), QoS: 1})
	}
	got := sink.WaitMessages(t, n)
	for i := n - 1; i >= 0; i-- {
		got[i].Settle(nil)
	}
	const line = "Received PUBACK from porchlight-test (Mid: "
	m.waitFor(t, "all acknowledgements", func(log string) bool { return strings.Count(log, line) == n })
	for i, part := range strings.Split(m.log(), line)[1:] {
		if want := fmt.Sprintf("%d, ", i+1); !strings.HasPrefix(part, want) {
			t.Errorf("acknowledgement %d is of %.10q", i+1, part)
		}
	}
}

// TestClientLostReading wants a reading that was not made safe again, and with
// it those behind it.
func TestClientLostReading(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, sink *devicetest.Sink, send func(v string)) error{
		"receipt with an error": func(t *testing.T, sink *devicetest.Sink, send func(v string)) error {
			send("1")
			send("2")
			got := sink.WaitMessages(t, 2)
			got[1].Settle(nil)
			got[0].Settle(errors.New("disk on fire"))
			return errors.New("disk on fire")
		},
		"full": func(t *testing.T, sink *devicetest.Sink, send func(v string)) error {
			sink.SetFull(true)
			send("1")
			send("2")
			return devices.ErrFull
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := startMosquitto(t)
			p := publisher(t, m.url(), "kitchen")
			c := kitchenOn(t, m.url())
			sink := &devicetest.Sink{}
			ended, _ := run(t, c, sink)
			sink.WaitUp(t, 1)
			cause := lose(t, sink, func(v string) {
				send(t, p, Publication{Topic: "kitchen", Payload: temperature(v), QoS: 1})
			})
			if err := wantEnd(t, ended); !strings.Contains(err.Error(), cause.Error()) {
				t.Errorf("Run ended with %q, want %q in it", err, cause)
			}
			again := &devicetest.Sink{Auto: true}
			run(t, c, again)
			for i, taken := range again.WaitMessages(t, 2) {
				if value(taken) != fmt.Sprint(i+1) || !taken.Redelivered && name != "full" {
					t.Errorf("message %d: %+v", i+1, taken.Message)
				}
			}
			m.waitFor(t, "both acknowledgements", func(log string) bool {
				return strings.Count(log, "Received PUBACK from porchlight-test") == 2
			})
		})
	}
}

// TestClientQoS0 sends what nobody acknowledges: what is lost of it is
// rejected, and the connection stays.
func TestClientQoS0(t *testing.T) {
	m := startMosquitto(t)
	sink := &devicetest.Sink{}
	run(t, kitchenOn(t, m.url()), sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "kitchen")
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("1")})
	first := sink.WaitMessages(t, 1)[0]
	if first.Window != 0 || first.Origin != (devices.Origin{}) {
		t.Errorf("message: %+v", first.Message)
	}
	first.Settle(errors.New("lost"))
	sink.SetFull(true)
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("2")})
	if r := sink.WaitRejections(t, 1)[0]; !errors.Is(r.Why, devices.ErrFull) {
		t.Errorf("rejected: %+v", r)
	}
	sink.SetFull(false)
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("3")})
	if got := sink.WaitMessages(t, 2)[1]; value(got) != "3" {
		t.Errorf("got %s", value(got))
	}
}

func TestClientRetained(t *testing.T) {
	m := startMosquitto(t)
	p := publisher(t, m.url(), "kitchen")
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1, Retain: true})
	sink := &devicetest.Sink{Auto: true}
	run(t, kitchenOn(t, m.url()), sink)
	if got := sink.WaitMessages(t, 1)[0]; !got.Retained {
		t.Error("a retained message is not marked")
	}
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("2"), QoS: 1, Retain: true})
	if got := sink.WaitMessages(t, 2)[1]; got.Retained {
		t.Error("a live message is marked as retained")
	}
}

// TestClientUseless sends many messages that no one understands: they must not
// eat the broker's window.
func TestClientUseless(t *testing.T) {
	m := startMosquitto(t)
	d := device(t, "kitchen", "json", "kitchen")
	c := NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test"}, []Device{{Device: d.Device, Profile: wide{d.Profile}, Place: d.Place}}, quiet())
	sink := &devicetest.Sink{Auto: true}
	run(t, c, sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "other")
	const n = 3 * usualWindow
	for i := range n {
		what := Publication{Topic: "kitchen", Payload: []byte("no JSON"), QoS: 1}
		switch i % 3 {
		case 1:
			what.Topic = "garage/door"
		case 2:
			what.Topic = strings.Repeat("deep/", maxLevels) + "x"
		}
		send(t, p, what)
	}
	sink.WaitRejections(t, n)
	send(t, p, Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	sink.WaitMessages(t, 1)
}

// wide subscribes to everything.
type wide struct{ Decoder }

func (wide) Filters(at profile.Place) []string { return []string{"#"} }

func TestClientLastWill(t *testing.T) {
	m := startMosquitto(t)
	d := device(t, "kitchen", "tasmota", "kitchen")
	sink := &devicetest.Sink{Auto: true}
	run(t, NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test"}, []Device{d}, quiet()), sink)
	sink.WaitUp(t, 1)
	testLastWill(t, m.address, sink)
}

// testLastWill connects a device that says that it is there, and kills it.
func testLastWill(t *testing.T, address string, sink *devicetest.Sink, login ...string) {
	t.Helper()
	p := publisher(t, "mqtt://"+address, "online")
	if len(login) == 2 {
		p.Username, p.Password = login[0], login[1]
	}
	send(t, p, Publication{Topic: "tele/kitchen/LWT", Payload: []byte("Online"), QoS: 1, Retain: true})
	sink.WaitAvailability(t, "kitchen", devices.Online)
	host, port, _ := strings.Cut(address, ":")
	args := []string{"-h", host, "-p", port, "-i", "doomed", "-q", "1", "-l", "-t", "tele/kitchen/STATE",
		"--will-topic", "tele/kitchen/LWT", "--will-payload", "Offline", "--will-qos", "1", "--will-retain"}
	if len(login) == 2 {
		args = append(args, "-u", login[0], "-P", login[1])
	}
	device := exec.Command(find(t, "mosquitto_pub"), args...)
	in, err := device.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := device.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, `{"POWER":"ON"}`)
	sink.WaitMessages(t, 1)
	device.Process.Kill()
	device.Wait()
	sink.WaitAvailability(t, "kitchen", devices.Offline)
}

func TestClientRefused(t *testing.T) {
	passwords := filepath.Join(t.TempDir(), "passwords")
	if err := os.WriteFile(passwords, []byte("porch:right\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(find(t, "mosquitto_passwd"), "-U", passwords).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	acl := filepath.Join(t.TempDir(), "acl")
	if err := os.WriteFile(acl, []byte("user porch\ntopic read kitchen\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := startMosquitto(t, "allow_anonymous false", "password_file "+passwords, "acl_file "+acl)
	for name, c := range map[string]struct{ user, password, want string }{
		"wrong password": {"porch", "wrong", `user "porch"`},
		"no such user":   {"nobody", "right", `user "nobody"`},
		"anonymous":      {"", "", "not Authorized"},
	} {
		t.Run(name, func(t *testing.T) {
			sink := &devicetest.Sink{}
			ended, _ := run(t, NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Username: c.user, Password: c.password},
				[]Device{device(t, "kitchen", "json", "kitchen")}, quiet()), sink)
			err := wantEnd(t, ended)
			if !errors.Is(err, devices.ErrRefused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run ended with %v", err)
			}
			if c.password != "" && strings.Contains(err.Error(), c.password) {
				t.Errorf("the password is in %q", err)
			}
		})
	}
	t.Run("right password", func(t *testing.T) {
		sink := &devicetest.Sink{}
		run(t, NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Username: "porch", Password: "right"}, nil, quiet()), sink)
		sink.WaitUp(t, 1)
	})
}

// TestClientIDTwice has two clients of one id push each other out.
func TestClientIDTwice(t *testing.T) {
	m := startMosquitto(t)
	ctx, cancel := context.WithCancel(context.Background())
	rival := make(chan struct{})
	go func() {
		defer close(rival)
		for c := kitchenOn(t, m.url()); ctx.Err() == nil; {
			c.Run(ctx, &devicetest.Sink{})
		}
	}()
	defer func() { cancel(); <-rival }()
	c := kitchenOn(t, m.url())
	var all []string
	for range 20 {
		running, stop := context.WithTimeout(ctx, patience)
		err := c.Run(running, &devicetest.Sink{})
		stop()
		if err == nil {
			t.Fatal("Run ended without an error, or not at all")
		}
		if all = append(all, err.Error()); strings.Contains(err.Error(), `another client has the id "porchlight-test"`) {
			return
		}
	}
	t.Errorf("never told of the other client: %q", all)
}

func TestClientShare(t *testing.T) {
	m := startMosquitto(t)
	sink := &devicetest.Sink{Auto: true}
	run(t, NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test", Share: "porch"}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet()), sink)
	sink.WaitUp(t, 1)
	m.waitFor(t, "the shared subscription", func(log string) bool { return strings.Contains(log, "$share/porch/kitchen (QoS 1)") })
	send(t, publisher(t, m.url(), "kitchen"), Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	sink.WaitMessages(t, 1)
}

// TestClientManyDevices has more filters than go in one packet.
func TestClientManyDevices(t *testing.T) {
	m := startMosquitto(t)
	first := device(t, "kitchen", "tasmota", "kitchen")
	var all []Device
	for i := range 3 * filtersAtOnce {
		d := first
		d.ID = devices.ID(fmt.Sprintf("d%d", i))
		d.Place.Device, d.Place.Topic = d.ID, string(d.ID)
		all = append(all, d)
	}
	sink := &devicetest.Sink{Auto: true}
	run(t, NewClient(ClientConfig{Name: "house", URL: m.url(), ClientID: "porchlight-test"}, all, quiet()), sink)
	sink.WaitUp(t, 1)
	p := publisher(t, m.url(), "all")
	for _, i := range []int{0, filtersAtOnce, 3*filtersAtOnce - 1} {
		send(t, p, Publication{Topic: fmt.Sprintf("tele/d%d/SENSOR", i), Payload: temperature("1"), QoS: 1})
	}
	if got := sink.WaitMessages(t, 3); got[2].Readings[0].Device != "d299" {
		t.Errorf("the last is of %s", got[2].Readings[0].Device)
	}
}
