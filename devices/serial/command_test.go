package serial_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/serial"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

const switchable = `
profile: 1
id: switch
name: Switch
transport: [serial]
device: {key: "{/id}"}
decode: [{json: {}}]
fields: [{select: id, drop: true}]
commands:
  - {name: power, argument: {type: bool, words: {"on": "ON", "off": "OFF"}}, payload: "{/id} {value}\n"}
`

func switchAt(t testing.TB, path string, ids ...string) *serial.Port {
	t.Helper()
	p := parse(t, "switch", switchable)
	c := serial.Config{Port: path}
	for _, id := range ids {
		d := device(devices.ID(id), p)
		d.Identity = strings.ToUpper(id)
		c.Devices = append(c.Devices, d)
	}
	return serial.New(c, slog.New(slog.DiscardHandler))
}

func execute(port *serial.Port, id devices.ID, name, argument string) (devices.Confirmation, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var expected devices.Confirmation
	err := port.Execute(ctx, devices.Command{Device: id, Name: name, Argument: argument}, func(c devices.Confirmation) { expected = c })
	return expected, err
}

// receive fails the test where a device gets something else next.
func receive(t testing.TB, p *pty.PTY, want string) {
	t.Helper()
	if got := take(t, p, func(got string) bool { return len(got) == len(want) }); got != want {
		t.Errorf("the device got %q, want %q", got, want)
	}
}

// next gives the line that a device gets next.
func next(t testing.TB, p *pty.PTY) string {
	t.Helper()
	return take(t, p, func(got string) bool { return strings.HasSuffix(got, "\n") })
}

func take(t testing.TB, p *pty.PTY, whole func(string) bool) string {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		all := ""
		b := make([]byte, 1)
		for !whole(all) {
			if _, err := p.Read(b); err != nil {
				break
			}
			all += string(b)
		}
		got <- all
	}()
	select {
	case s := <-got:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("the device gets nothing more")
		return ""
	}
}

// Two devices behind one port are told apart by their identity, and so is a
// third that nobody configured.
func TestCommandOfOneOfTwo(t *testing.T) {
	device, sink := plug(t), &devicetest.Sink{}
	port := switchAt(t, device.Path(), "a1", "b2")
	if _, err := execute(port, "a1", "power", "on"); err == nil || !strings.Contains(err.Error(), "heard first") {
		t.Errorf("before it was heard: %v", err)
	}
	start(t, port, sink)
	send(t, device, "{\"id\":\"A1\",\"power\":false}\n{\"id\":\"B2\",\"power\":true}\n{\"id\":\"C3\",\"power\":true}\n{\"id\":\"C;3\",\"power\":true}\n")
	all := sink.WaitMessages(t, 2)
	if all[0].Readings[0].Device != "a1" || all[1].Readings[0].Device != "b2" {
		t.Errorf("the readings are of %s and %s", all[0].Readings[0].Device, all[1].Readings[0].Device)
	}
	if s := sink.WaitUnknown(t, 2)[0]; s.Identity != "C3" || s.Link != device.Path() || s.Profile != "switch" || len(s.Fields) != 1 {
		t.Errorf("the stranger is %+v", s)
	}
	expected, err := execute(port, "b2", "power", "off")
	if err != nil || expected.Field != "power" || expected.Value != devices.Bool(false) {
		t.Errorf("%+v, %v", expected, err)
	}
	receive(t, device, "B2 OFF\n")
	if _, err := execute(port, "c3", "power", "off"); err == nil {
		t.Error("a device that is not configured was told something")
	}
}

// A command is refused while the port is closed, and one that a device does not
// read has an end; readings go on.
func TestCommandThatIsNotRead(t *testing.T) {
	t.Parallel()
	device, sink := plug(t), &devicetest.Sink{}
	p := parse(t, "flood", strings.NewReplacer("id: switch", "id: flood", "{/id} {value}", strings.Repeat("x", 4000)+" {value}").Replace(switchable))
	port := serial.New(serial.Config{Port: device.Path(), Devices: []serial.Device{{
		Device: devices.Device{ID: "a1", Location: time.UTC}, Profile: p, Place: profile.Place{Device: "a1", Location: time.UTC},
	}}}, slog.New(slog.DiscardHandler)).Within(200 * time.Millisecond)
	if _, err := execute(port, "a1", "power", "on"); err == nil || !strings.Contains(err.Error(), "not open") {
		t.Errorf("while the port is closed: %v", err)
	}
	start(t, port, sink)
	for i := 0; ; i++ {
		expected, err := execute(port, "a1", "power", "on")
		if err != nil {
			if !errors.Is(err, devices.ErrUncertain) || expected.Field != "power" {
				t.Errorf("%+v, %v", expected, err)
			}
			break
		}
		if i > 1000 {
			t.Fatal("the device takes everything")
		}
	}
	send(t, device, "{\"power\":true}\n")
	sink.WaitMessages(t, 1)
}

// A sensor that answers only when it is asked, and one that says nothing.
func TestQuestions(t *testing.T) {
	t.Parallel()
	answering, silent := plug(t), plug(t)
	for _, p := range []*pty.PTY{answering, silent} {
		sink := &devicetest.Sink{}
		config := parse(t, "asked", `
profile: 1
id: asked
name: Asked
transport: [serial]
framing: {fixed: {start: ff, size: 9}, sum: zero_sum8, first: 1}
decode: [{struct: {items: [{name: co2, at: 2, type: u16}]}}]
poll: [{every: 1s, within: 200ms, hex: ff0186000000000079}]
`)
		start(t, serial.New(serial.Config{Port: p.Path(), Devices: []serial.Device{device("air", config)}}, slog.New(slog.DiscardHandler)), sink)
		for i := range 3 {
			receive(t, p, "\xff\x01\x86\x00\x00\x00\x00\x00\x79")
			if p == answering {
				send(t, p, "\xff\x86\x01\x9a\x40\x00\x00\x00\x9f")
				sink.WaitMessages(t, i+1)
			}
		}
		if p == silent {
			sink.WaitAvailability(t, "air", devices.Offline)
		}
	}
}
