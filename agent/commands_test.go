package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// A tasmota does what it is told, and says so, as the firmware does.
type tasmota struct {
	t     *testing.T
	topic string
	mute  atomic.Bool
	told  chan string
	conn  paho.Client
}

func startTasmota(t *testing.T, broker, topic string) *tasmota {
	t.Helper()
	d := &tasmota{t: t, topic: topic, told: make(chan string, 100)}
	d.conn = paho.NewClient(paho.NewClientOptions().AddBroker("tcp://" + broker).SetClientID("DVES_" + topic).SetOrderMatters(false))
	d.wait(d.conn.Connect())
	t.Cleanup(func() { d.conn.Disconnect(100) })
	d.wait(d.conn.Subscribe("cmnd/"+topic+"/#", 0, d.obey))
	d.says("tele/"+topic+"/LWT", "Online", true)
	d.says("tele/"+topic+"/STATE", `{"POWER":"OFF","Dimmer":20}`, false)
	return d
}

func (d *tasmota) wait(token paho.Token) {
	d.t.Helper()
	if !token.WaitTimeout(patience) || token.Error() != nil {
		d.t.Fatalf("the device cannot: %v", token.Error())
	}
}

func (d *tasmota) says(topic, payload string, retain bool) {
	d.t.Helper()
	d.wait(d.conn.Publish(topic, 1, retain, payload))
}

func (d *tasmota) obey(_ paho.Client, m paho.Message) {
	name := strings.TrimPrefix(m.Topic(), "cmnd/"+d.topic+"/")
	if name == "STATUS" {
		return // it is asked how it is, of which nothing follows here
	}
	d.told <- name + " " + string(m.Payload())
	if d.mute.Load() {
		return
	}
	answer := fmt.Sprintf(`{"POWER":"%s"}`, m.Payload())
	if name == "Dimmer" {
		answer = fmt.Sprintf(`{"POWER":"ON","Dimmer":%s}`, m.Payload())
	}
	d.conn.Publish("stat/"+d.topic+"/RESULT", 0, false, answer)
	if name == "POWER" {
		d.conn.Publish("stat/"+d.topic+"/POWER", 0, false, m.Payload())
	}
}

// outcomes waits for all of a command.
func outcomes(t *testing.T, a *agent.Agent, name, argument string) (all []bridge.Outcome) {
	t.Helper()
	deadline := time.After(patience)
	answers := a.Execute(t.Context(), "anna@localhost/phone", devices.Command{Device: "plug", Name: name, Argument: argument})
	for {
		select {
		case o, more := <-answers:
			if !more {
				return all
			}
			all = append(all, o)
		case <-deadline:
			t.Fatalf("%s %s has no end", name, argument)
		}
	}
}

// TestCommands has a device of a real Mosquitto told what to do.
func TestCommands(t *testing.T) {
	dir, err := os.MkdirTemp("", "porchlight") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &street{t: t, path: filepath.Join(dir, "porchlight.yaml"), broker: startMosquitto(t)}
	write(t, filepath.Join(dir, "secret"), "a secret of the test")
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: "127.0.0.1:1", secret_file: secret}
  pubsub: pubsub.localhost
operators:
  - {jid: anna@localhost, role: operator}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
devices:
  - {id: plug, profile: tasmota, mqtt: {topic: plug}}
`, s.broker))
	gateway, _ := startGateway(t, s.path, 3) // MQTT twice, itself
	d := startTasmota(t, s.broker, "plug")
	s.until("its commands", func() bool { return len(gateway.Controls("plug")) == 2 })

	told := func(want string) {
		t.Helper()
		select {
		case got := <-d.told:
			if got != want {
				t.Errorf("the device was told %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("the device was never told %q", want)
		}
	}
	commands, answered := 0, 1 // the last, by the control socket
	confirmed := func(name, argument, want string) {
		t.Helper()
		commands, answered = commands+1, answered+1
		got := outcomes(t, gateway, name, argument)
		if len(got) != 2 || got[0].Kind != bridge.Sent || got[0].Err != nil || got[1].Kind != bridge.Confirmed || got[1].After <= 0 {
			t.Errorf("%s %s: %+v", name, argument, got)
		}
		told(want)
	}
	refused := func(name, argument, why string) {
		t.Helper()
		commands++
		got := outcomes(t, gateway, name, argument)
		if len(got) != 1 || got[0].Kind != bridge.Refused || !strings.Contains(got[0].Err.Error(), why) {
			t.Errorf("%s %s: %+v", name, argument, got)
		}
	}
	confirmed("on", "", "POWER ON")
	confirmed("power", "off", "POWER OFF")
	confirmed("toggle", "", "POWER TOGGLE")
	confirmed("dimmer", "40", "Dimmer 40")
	refused("dimmer", "140", "140 is not from 0 to 100")
	refused("dimmer", "bright", `"bright" is not a number`)
	refused("power", "maybe", `"maybe" is none of off, on, toggle`)
	refused("fly", "", `no command "fly"; it has power, dimmer`)

	// What it does not answer is sent, and no more is known; a second command
	// does not take the place of the first.
	d.mute.Store(true)
	commands++
	if got := outcomes(t, gateway, "on", ""); len(got) != 1 || got[0].Kind != bridge.Sent {
		t.Errorf("without an answer: %+v", got)
	}
	told("POWER ON")
	d.mute.Store(false)
	confirmed("off", "", "POWER OFF")

	// A flood is refused where it begins. Who is late is refused, too.
	late, cancel := context.WithCancel(t.Context())
	cancel()
	commands++
	if o := <-gateway.Execute(late, "", devices.Command{Device: "plug", Name: "on"}); o.Kind != bridge.Refused || !strings.Contains(o.Err.Error(), "too late") {
		t.Errorf("late: %+v", o)
	}
	d.mute.Store(true)
	var flood []<-chan bridge.Outcome
	for range 12 {
		commands++
		flood = append(flood, gateway.Execute(late, "", devices.Command{Device: "plug", Name: "on"}))
	}
	busy := 0
	for _, answers := range flood {
		if o := <-answers; errors.Is(o.Err, bridge.ErrBusy) {
			busy++
		} else if o.Kind != bridge.Refused {
			t.Errorf("one of a flood: %+v", o)
		}
	}
	t.Logf("of a flood of 12, %d found no room", busy)
	commands -= max(0, busy-2) // the first is told, and how many more

	// By the control socket, as the command does.
	d.mute.Store(false)
	commands++
	if out, err := s.ask("command", agent.DeviceArgs{Which: "plug", Name: "dimmer", Value: "55"}); err != nil || !strings.Contains(out, `{"outcome":"sent"}`) || !strings.Contains(out, `"outcome":"confirmed","seconds":`) {
		t.Errorf("command: %v %s", err, out)
	}
	told("Dimmer 55")
	if out, err := s.ask("command", agent.DeviceArgs{Which: "plug"}); err != nil || !strings.Contains(out, `{"name":"power","title":"Switch","type":"switch","words":["off","on","toggle"]}`) {
		t.Errorf("the list: %v %s", err, out)
	}

	d.says("tele/plug/LWT", "Offline", true)
	s.until("the device to be lost", func() bool {
		return strings.Contains(fmt.Sprintf("%+v", lines[agent.DeviceLine](s, "devices")), "State:lost")
	})
	refused("on", "", "the device is lost")
	if len(d.told) > 0 {
		t.Errorf("the device was told more: %s", <-d.told)
	}

	// RESULT and POWER tell the same, and are one reading: of STATE, of each
	// command that was answered, and of the dimmers.
	s.until("the readings", func() bool {
		var status bytes.Buffer
		if err := agent.Look(s.config(), "status", &status); err != nil {
			t.Fatal(err)
		}
		var of agent.StoreStatus
		if err := json.Unmarshal(status.Bytes(), &of); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, d := range of.Devices {
			if d.Device == "plug" {
				n += d.Disk + d.Memory
			}
		}
		if n > 1+answered {
			t.Fatalf("%d readings of %d answers", n, answered)
		}
		return n == 1+answered
	})

	// Each is an event, also of who was refused; and so is the alarm.
	commands++
	s.until(fmt.Sprintf("%d events", commands), func() bool {
		var status strings.Builder
		if err := agent.Look(s.config(), "status", &status); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(status.String(), fmt.Sprintf(`"plug":{"alarms":%d,`, commands))
	})
}
