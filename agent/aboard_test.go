package agent_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

// A street is a gateway between a real Mosquitto and a real Prosody, with
// devices that nobody configured.
type street struct {
	t      *testing.T
	path   string // of the config
	broker string
}

// config loads the config as it is now.
func (s *street) config() *config.Config {
	s.t.Helper()
	options, err := agent.LoadOptions()
	if err != nil {
		s.t.Fatal(err)
	}
	c, faults := config.Load(s.path, options)
	if c == nil {
		s.t.Fatal(faults)
	}
	return c
}

// says publishes a sensor's reading as Tasmota does.
func (s *street) says(topic, value string) {
	s.t.Helper()
	command(s.t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(s.broker), "-q", "1", "-t", "tele/"+topic+"/SENSOR",
		"-m", `{"DS18B20":{"Temperature":`+value+`},"TempUnit":"C"}`)
}

// ask asks the gateway as the command does.
func (s *street) ask(what string, args agent.DeviceArgs) (string, error) {
	s.t.Helper()
	var b bytes.Buffer
	err := agent.AskDevices(s.config(), what, args, &b)
	return b.String(), err
}

func (s *street) must(what string, args agent.DeviceArgs) {
	s.t.Helper()
	if out, err := s.ask(what, args); err != nil {
		s.t.Fatalf("%s: %v: %s", what, err, out)
	}
}

// lines gives the answer to a question.
func lines[T any](s *street, what string) (all []T) {
	s.t.Helper()
	out, err := s.ask(what, agent.DeviceArgs{})
	if err != nil {
		s.t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var l T
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			s.t.Fatalf("%v in %s", err, out)
		}
		all = append(all, l)
	}
}

// pending waits until a device is.
func (s *street) pending(id devices.ID) agent.PendingLine {
	s.t.Helper()
	var found agent.PendingLine
	s.until("pending "+string(id), func() bool {
		for _, l := range lines[agent.PendingLine](s, "pending") {
			if l.ID == id && !l.Refused {
				found = l
				return true
			}
		}
		return false
	})
	return found
}

func (s *street) isPending(id devices.ID) bool {
	s.t.Helper()
	for _, l := range lines[agent.PendingLine](s, "pending") {
		if l.ID == id && !l.Refused {
			return true
		}
	}
	return false
}

func (s *street) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// saysUntil publishes until somebody sees it: a device that was just admitted is
// heard from the moment on at which the broker knows.
func (s *street) saysUntil(topic, value string, seen func() bool) {
	s.t.Helper()
	s.until(topic+" to be heard", func() bool {
		s.says(topic, value)
		for range 20 {
			if seen() {
				return true
			}
			time.Sleep(20 * time.Millisecond)
		}
		return false
	})
}

func (r *slixmpp) has(node, name string, value float64) bool {
	for _, l := range r.all() {
		if l.Node == node && l.has(name, "number", value, "Cel") {
			return true
		}
	}
	return false
}

// newStreet makes a street with a Mosquitto, and a Prosody for its gateway.
func newStreet(t *testing.T, with ...func(*xmppserver.Options)) (s *street, server *xmppserver.Server) {
	t.Helper()
	dir, err := os.MkdirTemp("", "porchlight") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	options := xmppserver.Options{
		Dir: filepath.Join(dir, "xmpp"), Component: "porch.localhost", Secret: "a secret of the test",
		Users: map[string]string{"anna": "anna's password", "bob": "bob's password", "porch": "porch's password"}, Storage: "sql",
	}
	for _, change := range with {
		change(&options)
	}
	server, err = xmppserver.Start(t.Context(), xmppserver.Prosody, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s = &street{t: t, path: filepath.Join(dir, "porchlight.yaml"), broker: startMosquitto(t)}
	write(t, filepath.Join(dir, "secret"), "a secret of the test")
	return s, server
}

// TestComingAboard has unknown devices speak. One is admitted, and its readings
// arrive; it is renamed, its hardware is swapped, it is removed and admitted
// again, and all the time has one id, its nodes and its numbers. Another is
// refused and stays away, over a restart too. Then devices come by themselves.
func TestComingAboard(t *testing.T) {
	s, server := newStreet(t)
	dir := filepath.Dir(s.path)
	text := fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
operators:
  - {jid: anna@localhost, role: owner}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
discovery: {accept: ask}
`, server.ComponentAddr(), server.PubSub(), s.broker)
	write(t, s.path, text)
	gateway, stop := startGateway(t, s.path, 3) // MQTT twice, itself

	s.says("plug", "20.6")
	p := s.pending("plug")
	if p.Name != "plug" || p.Profile != "tasmota" || p.Way != "mqtt house, topic plug" || p.Messages == 0 || p.Number != 1 ||
		len(p.Fields) != 1 || p.Fields[0].Name != "ds18b20_temperature" || fmt.Sprint(p.Fields[0].Value) != "20.6" || p.Fields[0].Unit != "°C" {
		t.Errorf("pending is %+v", p)
	}
	s.must("admit", agent.DeviceArgs{Which: "1", Name: "Kitchen plug"})
	file := filepath.Join(dir, "data", "devices.d", "plug.yaml")
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "name: Kitchen plug\n") || !strings.Contains(string(text), "# Heard by mqtt house, topic plug.") {
		t.Errorf("its file: %v\n%s", err, text)
	}
	reader := startReader(t, server, "anna's password", "", "plug/log", "events")
	s.saysUntil("plug", "21.5", func() bool { return reader.has("porch/plug/log", "ds18b20_temperature", 21.5) })

	s.says("spy", "1")
	s.pending("spy")
	s.must("refuse", agent.DeviceArgs{Which: "spy"})
	s.says("spy", "2")
	s.says("marker", "3") // the broker keeps their order
	s.pending("marker")
	if s.isPending("spy") {
		t.Error("what was refused is pending again")
	}

	// Somebody makes a mistake in its file: until it is mended, all goes on.
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(good)+"grups: [lights]\n")
	options, err := agent.LoadOptions()
	if err != nil {
		t.Fatal(err)
	}
	c, faults := config.Load(s.path, options)
	if c == nil || len(faults) != 1 {
		t.Fatalf("faults: %v", faults)
	}
	gateway.Reload(c)
	s.says("plug", "21.75")
	reader.await(t, "the reading of one whose file is broken", func(l line) bool {
		return l.Node == "porch/plug/log" && l.has("ds18b20_temperature", "number", 21.75, "Cel")
	})
	write(t, file, string(good))
	gateway.Reload(s.config())

	// The name changes, and new hardware comes in its place.
	s.must("rename", agent.DeviceArgs{Which: "plug", Name: "Hall plug"})
	s.says("tasmota_A1B2C3", "22")
	s.pending("tasmota-a1b2c3")
	s.must("admit", agent.DeviceArgs{Which: "tasmota-a1b2c3", As: "plug"})
	if d := lines[agent.DeviceLine](s, "devices"); len(d) != 1 || d[0].ID != "plug" || d[0].Name != "Hall plug" || d[0].Way != "mqtt house, topic tasmota_A1B2C3" || d[0].State != "fresh" {
		t.Errorf("the devices are %+v", d)
	}
	s.saysUntil("tasmota_A1B2C3", "22.5", func() bool { return reader.has("porch/plug/log", "ds18b20_temperature", 22.5) })

	// It goes, stays away, and comes back to what was kept.
	s.must("remove", agent.DeviceArgs{Which: "plug"})
	s.says("tasmota_A1B2C3", "0")
	s.says("marker2", "3")
	s.pending("marker2")
	if s.isPending("plug") || s.isPending("tasmota-a1b2c3") {
		t.Error("what was removed is pending")
	}
	s.must("admit", agent.DeviceArgs{Which: "plug"})
	s.saysUntil("tasmota_A1B2C3", "23.5", func() bool { return reader.has("porch/plug/log", "ds18b20_temperature", 23.5) })

	stop()
	if d := lines[agent.DeviceLine](s, "devices"); len(d) != 1 || d[0].State != "" {
		t.Errorf("without a gateway, the devices are %+v", d)
	}
	command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(s.broker), "-r", "-t", "tele/gone/SENSOR", "-m", `{"AM2301":{"Temperature":1}}`)
	gateway, _ = startGateway(t, s.path, 3)
	s.saysUntil("tasmota_A1B2C3", "24.5", func() bool { return reader.has("porch/plug/log", "ds18b20_temperature", 24.5) })
	s.says("spy", "3")
	s.says("marker3", "3")
	s.pending("marker3")
	if s.isPending("spy") {
		t.Error("what was refused is pending after a restart")
	}

	// All of one run is one row of numbers.
	runs := make(map[string][][2]int)
	for _, l := range reader.all() {
		if l.Node == "porch/plug/log" {
			store, span, _ := strings.Cut(l.Item, "-")
			var of [2]int
			if _, err := fmt.Sscanf(span, "%d-%d", &of[0], &of[1]); err != nil {
				t.Errorf("item %s: %v", l.Item, err)
			}
			runs[store] = append(runs[store], of)
		}
	}
	if len(runs) != 2 {
		t.Errorf("items of %d runs: %v", len(runs), runs)
	}
	for store, spans := range runs {
		slices.SortFunc(spans, func(a, b [2]int) int { return a[0] - b[0] })
		next := 1
		for _, span := range spans {
			if span[0] > next {
				t.Errorf("of %s arrived %v: %d is missing", store, spans, next)
			}
			next = max(next, span[1]+1)
		}
	}
	for _, title := range []string{"plug: added", "plug: renamed", "plug: moved", "plug: removed"} {
		reader.await(t, "the event "+title, func(l line) bool { return l.Category == "device" && l.Title == title })
	}

	// Who speaks comes aboard by itself. What the broker kept may be gone, and
	// does not.
	if gone := s.pending("gone"); !gone.Retained {
		t.Error("what the broker kept is not marked")
	}
	write(t, s.path, strings.Replace(text, "accept: ask", "accept: auto", 1))
	gateway.Reload(s.config())
	s.says("lamp", "25")
	s.until("the lamp to come aboard", func() bool {
		_, err := os.Stat(filepath.Join(dir, "data", "devices.d", "lamp.yaml"))
		return err == nil
	})
	if !s.isPending("gone") {
		t.Error("what the broker kept came aboard by itself")
	}
	lamp := startReader(t, server, "anna's password", "", "lamp/log")
	s.saysUntil("lamp", "25.5", func() bool { return lamp.has("porch/lamp/log", "ds18b20_temperature", 25.5) })
	for _, r := range []*slixmpp{reader, lamp} {
		for _, l := range r.all() {
			if l.Fault != "" {
				t.Errorf("slixmpp finds: %s", l.Fault)
			}
		}
	}
}
