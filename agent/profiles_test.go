package agent_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
)

// TestOwnProfiles has an installer write a profile, break it and mend it, while
// the gateway runs. Its device is read by the newest that was whole, the other
// device notices nothing, and no message of either is lost, though they come
// with QoS 0, which nobody sends again.
func TestOwnProfiles(t *testing.T) {
	dir, err := os.MkdirTemp("", "porchlight") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &street{t: t, path: filepath.Join(dir, "porchlight.yaml"), broker: startMosquitto(t)}
	folder := filepath.Join(dir, "data", "profiles")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	meter := func(text string) { write(t, filepath.Join(folder, "meter.yaml"), text) }
	profile := func(name string) string {
		return fmt.Sprintf("profile: 1\nid: meter\nname: Meter\ntransport: [mqtt]\nmatch: [{topic: \"meter/{device}\"}]\ndecode: [{json: {}}]\nfields: [{select: w, name: %s, unit: W}]\n", name)
	}
	const broken = "profile: 1\nid: meter\ncolour: red\n"
	meter(broken)
	write(t, filepath.Join(dir, "secret"), "a secret of the test")
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: "127.0.0.1:1", secret_file: secret}
  pubsub: pubsub.localhost
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
devices:
  - {id: plug, profile: tasmota, mqtt: {topic: plug}}
  - {id: meter, profile: meter, mqtt: {topic: m1}}
`, s.broker))
	load := func(whole bool) *config.Config {
		t.Helper()
		options, err := agent.LoadOptions()
		if err != nil {
			t.Fatal(err)
		}
		c, found := config.Load(s.path, options)
		if c == nil || (len(found) == 0) != whole {
			t.Fatalf("the faults are %v", found)
		}
		return c
	}
	gateway, _ := startGatewayWith(t, load(false), 3) // MQTT twice, itself
	value, sent := 0, 0
	// speak has a device send messages until its newest came, with a field of
	// that name.
	speak := func(device devices.ID, topic, payload, field string) {
		t.Helper()
		s.until(string(device)+" "+field, func() bool {
			value, sent = value+1, sent+1
			command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(s.broker), "-t", topic, "-m", fmt.Sprintf(payload, value))
			for range 20 {
				for _, l := range lines[agent.DeviceLine](s, "devices") {
					for _, f := range l.Fields {
						if l.ID == device && f.Name == field && fmt.Sprint(f.Value) == fmt.Sprint(value) {
							return true
						}
					}
				}
				time.Sleep(20 * time.Millisecond)
			}
			return false
		})
	}
	speak("plug", "tele/plug/SENSOR", `{"COUNTER":{"C1":%d}}`, "counter_c1")
	counted := func() (n int) {
		var status bytes.Buffer
		if err := agent.Look(s.config(), "status", &status); err != nil {
			t.Fatal(err)
		}
		var of agent.StoreStatus
		if err := json.Unmarshal(status.Bytes(), &of); err != nil {
			t.Fatal(err)
		}
		for _, d := range of.Devices {
			if d.Device != devices.Gateway {
				n += d.Disk + d.Memory
			}
		}
		return n
	}

	if d := lines[agent.DeviceLine](s, "devices"); len(d) != 2 || d[0].State != "unknown" {
		t.Errorf("with a broken profile, the devices are %+v", d)
	}

	meter(profile("power"))
	gateway.Reload(load(true))
	speak("meter", "meter/m1", `{"w":%d}`, "power")

	// What came before the subscription does not count; from here on each message
	// does: through another profile, and a broken one.
	early := sent - counted()
	burst := func() {
		t.Helper()
		for range 10 {
			sent += 2
			command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(s.broker), "-t", "meter/m1", "-m", `{"w":1}`)
			command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(s.broker), "-t", "tele/plug/SENSOR", "-m", `{"COUNTER":{"C1":1}}`)
		}
	}
	burst()
	meter(profile("load"))
	gateway.Reload(load(true))
	burst()
	speak("meter", "meter/m1", `{"w":%d}`, "load")
	meter(broken)
	gateway.Reload(load(false))
	burst()
	s.until("all that was sent", func() bool { return counted() == sent-early })
}
