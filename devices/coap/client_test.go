package coap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// builtins reads them once.
var builtins = sync.OnceValues(profile.Builtin)

// library gives the profiles that the gateway comes with, and those in texts.
func library(t testing.TB, texts ...string) *profile.Library {
	t.Helper()
	all, err := builtins()
	if err != nil {
		t.Fatal(err)
	}
	if len(texts) == 0 {
		return all
	}
	dir := t.TempDir()
	for i, text := range texts {
		id, _, _ := strings.Cut(strings.TrimPrefix(text, "profile: 1\nid: "), "\n")
		if err := os.WriteFile(filepath.Join(dir, id+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(i, err)
		}
	}
	if all, err = all.Reload(dir); err != nil {
		t.Fatal(err)
	}
	return all
}

func askedDevice(id devices.ID, profileID, url string) Device {
	return Device{
		Device: devices.Device{ID: id, Profile: profileID, Location: time.UTC},
		Place:  profile.Place{Device: id, Location: time.UTC},
		URL:    url,
	}
}

// drive runs a driver until the test ends, and waits until it is up.
func drive(t testing.TB, d devices.Driver, sink *devicetest.Sink) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- d.Run(ctx, sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	sink.WaitUp(t, 1)
}

// runClient runs a client until the test ends.
func runClient(t testing.TB, sink *devicetest.Sink, profiles *profile.Library, devs ...Device) *Client {
	t.Helper()
	c := NewClient(ClientConfig{Profiles: profiles}, devs, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	drive(t, c, sink)
	return c
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

// put has libcoap's client put a body somewhere.
func put(t testing.TB, addr netip.AddrPort, path, format, body string) {
	t.Helper()
	cmd := exec.Command("coap-client-notls", "-m", "put", "-t", format, "-f", "-", fmt.Sprintf("coap://%v%s", addr, path))
	cmd.Stdin = strings.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func temperature(v string) string {
	return `[{"n":"temperature","u":"Cel","v":` + v + `}]`
}

func TestClientIsADriver(t *testing.T) {
	for _, observe := range []bool{true, false} {
		t.Run(fmt.Sprintf("observe %v", observe), func(t *testing.T) {
			devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
				addr, _ := libcoapServer(t, 0, "-d", "10")
				return devicetest.Harness{
					New: func(t testing.TB) devices.Driver {
						d := askedDevice("kitchen", "senml", fmt.Sprintf("coap://%v/kitchen", addr))
						d.Observe, d.Every = observe, 100*time.Millisecond
						return NewClient(ClientConfig{Profiles: library(t)}, []Device{d}, slog.New(slog.DiscardHandler))
					},
					Send: func(t testing.TB, value string) <-chan error {
						put(t, addr, "/kitchen", "110", temperature(value))
						return nil
					},
					SendGarbage: func(t testing.TB) { put(t, addr, "/kitchen", "110", "\xff[{") },
				}
			})
		})
	}
}

func value(m *devicetest.Taken, name string) string {
	for _, r := range m.Readings {
		for _, f := range r.Fields {
			if f.Name == name {
				return f.Value.String()
			}
		}
	}
	return ""
}

// await waits for a message that holds a value.
func await(t testing.TB, sink *devicetest.Sink, name, want string) {
	t.Helper()
	for n := 1; ; n++ {
		all := sink.WaitMessages(t, n)
		if value(all[n-1], name) == want {
			return
		}
	}
}

// A device without a path in its URL says itself what it has.
func TestClientLooksAround(t *testing.T) {
	links := `</hello>;ct=0,</sensors/light>;rt="LightSensor";ct="0 50";obs,</sensors/picture>;rt="picture";ct=22,` +
		`</pack>;if="core.s";ct="50 110 112",<coap://elsewhere/x>;rt="x",</rd>;rt="core.rd"`
	var mu sync.Mutex
	var asked []string
	d := script(t, func(m message.Message) []message.Message {
		if !isRequest(m) {
			return nil
		}
		where := strings.Join(pathOf(m), "/")
		accept, err := m.Options.GetUint32(message.Accept)
		if err != nil {
			accept = 999
		}
		mu.Lock()
		if a := fmt.Sprintf("%s %d", where, accept); !slices.Contains(asked, a) {
			asked = append(asked, a)
		}
		mu.Unlock()
		switch {
		case where == ".well-known/core":
			return []message.Message{reply(m, codes.Content, links, uintOption(message.ContentFormat, 40))}
		case where == "pack" && accept == SenMLCBOR:
			return []message.Message{reply(m, codes.NotAcceptable, "")}
		case where == "pack":
			return []message.Message{reply(m, codes.Content, temperature("21.5"), uintOption(message.ContentFormat, accept))}
		}
		return []message.Message{reply(m, codes.Content, "123;456", uintOption(message.ContentFormat, 0))}
	})
	sink := &devicetest.Sink{Auto: true}
	one := askedDevice("kitchen", "senml", "coap://"+d.addr().String())
	one.Every = 50 * time.Millisecond
	runClient(t, sink, library(t), one)
	for _, m := range sink.WaitMessages(t, 3) {
		if v := value(m, "temperature"); v != "21.5" {
			t.Errorf("%+v", m.Readings)
		}
	}
	if r := sink.WaitRejections(t, 1); r[0].Source != "kitchen" || !strings.Contains(r[0].Why.Error(), "/sensors/light") {
		t.Errorf("%v", r)
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(asked)
	want := []string{".well-known/core 999", "pack 110", "pack 112", "sensors/light 0", "sensors/light 50", "sensors/light 999"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked for\n%q, want\n%q", asked, want)
	}
}

// What a device has at its path is asked for in the form that can be read.
func TestClientFindsAForm(t *testing.T) {
	d := script(t, func(m message.Message) []message.Message {
		accept, err := m.Options.GetUint32(message.Accept)
		switch {
		case !isRequest(m):
			return nil
		case err != nil:
			return []message.Message{reply(m, codes.Content, "<t>1</t>", uintOption(message.ContentFormat, 41))}
		case accept == JSON:
			return []message.Message{reply(m, codes.Content, `{"temperature":4}`, uintOption(message.ContentFormat, JSON))}
		}
		return []message.Message{reply(m, codes.NotAcceptable, "")}
	})
	sink := &devicetest.Sink{Auto: true}
	one := askedDevice("kitchen", "json", fmt.Sprintf("coap://localhost:%d/t", d.addr().Port()))
	one.Every = 50 * time.Millisecond
	runClient(t, sink, library(t), one)
	await(t, sink, "temperature", "4")
}

const commandedLamp = `profile: 1
id: lamp
name: Lamp
transport: [coap]
decode: [{json: {}}]
commands:
  - {name: power, argument: {type: bool, words: {"off": "0", "on": "1"}}, payload: "{\"power\":{value}}", format: 50}
  - {name: level, topic: "level?unit=percent", method: post, argument: {type: integer, min: 0, max: 100}}
  - {name: reset, topic: /reset, method: post}
  - {name: lost, topic: /lost, method: post}
`

// A device that is told something while it is asked is asked again: the answer may
// be of before.
func TestToldWhileAsked(t *testing.T) {
	var on atomic.Bool
	d := script(t, func(m message.Message) []message.Message {
		switch {
		case m.Code == codes.PUT:
			on.Store(true)
			return []message.Message{reply(m, codes.Changed, "")}
		case m.Code == codes.GET && on.Load():
			return []message.Message{reply(m, codes.Content, `{"power":1}`, uintOption(message.ContentFormat, JSON))}
		case m.Code == codes.GET:
			return []message.Message{{Type: message.Acknowledgement, MessageID: m.MessageID}} // it thinks about it
		}
		return nil
	})
	sink := &devicetest.Sink{Auto: true}
	one := askedDevice("lamp", "lamp", fmt.Sprintf("coap://%v/lamp", d.addr()))
	one.Every = time.Hour
	c := runClient(t, sink, library(t, commandedLamp), one)
	asked := d.next("question", func(m message.Message) bool { return m.Code == codes.GET })
	if err := c.Execute(t.Context(), devices.Command{Device: "lamp", Name: "power", Argument: "on"}, func(devices.Confirmation) {}); err != nil {
		t.Fatal(err)
	}
	before := reply(asked, codes.Content, `{"power":0}`, uintOption(message.ContentFormat, JSON))
	before.Type, before.MessageID = message.NonConfirmable, 7
	d.send(before)
	await(t, sink, "power", "1")
}

// A command is sent once, its answer carried back, and what the device then
// holds is read.
func TestClientCommands(t *testing.T) {
	var mu sync.Mutex
	power := "0"
	var told []string
	came := make(map[int32]bool)
	d := script(t, func(m message.Message) []message.Message {
		mu.Lock()
		defer mu.Unlock()
		where := strings.Join(pathOf(m), "/")
		if m.Code > codes.GET && m.Code <= codes.DELETE && !came[m.MessageID] { // what nobody answers comes again
			came[m.MessageID] = true
			told = append(told, fmt.Sprintf("%v %s %v %d %s", m.Code, where, mustQueries(m), formatOf(m), m.Payload))
		}
		switch {
		case m.Code == codes.GET:
			return []message.Message{reply(m, codes.Content, `{"power":`+power+`}`, uintOption(message.ContentFormat, JSON))}
		case m.Code == codes.PUT:
			power = strings.Trim(string(m.Payload), `{}"powe:r`)
			return []message.Message{reply(m, codes.Changed, "")}
		case where == "lamp/level":
			return []message.Message{reply(m, codes.Forbidden, "it is locked")}
		case where == "reset":
			return []message.Message{{Type: message.Reset, MessageID: m.MessageID}}
		}
		return nil
	})
	sink := &devicetest.Sink{Auto: true}
	one := askedDevice("lamp", "lamp", fmt.Sprintf("coap://%v/lamp", d.addr()))
	one.Every = time.Hour
	c := runClient(t, sink, library(t, commandedLamp), one)
	if all := c.Controls("lamp"); len(all) != 4 || all[0].Name != "power" || all[0].Argument.Type != devices.SwitchArgument {
		t.Fatalf("%+v", all)
	}
	if all := c.Controls("other"); all != nil {
		t.Errorf("another device: %+v", all)
	}
	await(t, sink, "power", "0")
	execute := func(ctx context.Context, name, argument string) (devices.Confirmation, error) {
		var expected devices.Confirmation
		err := c.Execute(ctx, devices.Command{Device: "lamp", Name: name, Argument: argument}, func(what devices.Confirmation) { expected = what })
		return expected, err
	}
	if what, err := execute(t.Context(), "power", "on"); err != nil || what.Field != "power" {
		t.Errorf("%+v, %v", what, err)
	}
	await(t, sink, "power", "1")
	if what, err := execute(t.Context(), "level", "200"); err == nil || what.Field != "" {
		t.Errorf("200 %%: %+v, %v", what, err)
	}
	if _, err := execute(t.Context(), "level", "40"); err == nil || err.Error() != "the device answers 4.03: it is locked" {
		t.Errorf("what the device refuses: %v", err)
	}
	if _, err := execute(t.Context(), "reset", ""); !errors.Is(err, errReset) || errors.Is(err, devices.ErrUncertain) {
		t.Errorf("what it resets: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	uncertain := make(chan error, 1)
	go func() {
		_, err := execute(ctx, "lost", "")
		uncertain <- err
	}()
	d.next("command", func(m message.Message) bool { return slices.Equal(pathOf(m), []string{"lost"}) })
	cancel()
	if err := next(t, uncertain); !errors.Is(err, devices.ErrUncertain) {
		t.Errorf("what it does not answer: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	want := []string{`PUT lamp [] 50 {"power":1}`, `POST lamp/level [unit=percent] 0 40`, `POST reset [] -1 `, `POST lost [] -1 `}
	if !slices.Equal(told, want) {
		t.Errorf("told\n%q, want\n%q", told, want)
	}
}

func mustQueries(m message.Message) []string {
	all, _ := m.Options.Queries()
	return all
}

// Other devices are asked after a change, and those that stay are not asked
// anew.
func TestClientAdopts(t *testing.T) {
	answers := func(m message.Message) []message.Message {
		if registers(m) {
			return []message.Message{reply(m, codes.Content, temperature("1"), uintOption(message.Observe, 1), uintOption(message.ContentFormat, SenMLJSON), uintOption(message.MaxAge, 3600))}
		}
		if isRequest(m) && m.Type == message.Confirmable {
			return []message.Message{reply(m, codes.Content, temperature("1"), uintOption(message.ContentFormat, SenMLJSON))}
		}
		return nil
	}
	stays, goes, comes := script(t, answers), script(t, answers), script(t, answers)
	make := func(id devices.ID, d *device) Device {
		one := askedDevice(id, "senml", fmt.Sprintf("coap://%v/x", d.addr()))
		one.Observe = true
		return one
	}
	sink := &devicetest.Sink{Auto: true}
	profiles := library(t)
	c := runClient(t, sink, profiles, make("stays", stays), make("goes", goes))
	sink.WaitMessages(t, 2)
	stays.next("registration", registers)
	c.Adopt(NewClient(ClientConfig{Profiles: profiles}, []Device{make("stays", stays), make("comes", comes)}, slog.New(slog.DiscardHandler)))
	goes.next("cancellation", func(m message.Message) bool {
		v, err := m.Options.GetUint32(message.Observe)
		return err == nil && v == 1
	})
	if all := sink.WaitMessages(t, 3); all[2].Readings[0].Device != "comes" {
		t.Errorf("%+v", all[2].Readings)
	}
	select {
	case m := <-stays.got:
		t.Errorf("the one that stays is asked anew: %v", m.String())
	default:
	}
}
