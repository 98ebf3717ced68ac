package agent_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// patience is a deadline for broken code, never a measure of working code.
const patience = 90 * time.Second

// TestEndToEnd is the main job with nothing but real parts: Mosquitto,
// mosquitto_pub, libcoap's client and a pseudo terminal on the one side, both
// servers in both modes on the other, and slixmpp as the reader, which shares
// no code with the gateway. The server goes away in between.
func TestEndToEnd(t *testing.T) {
	for _, kind := range []xmppserver.Kind{xmppserver.Prosody, xmppserver.Ejabberd} {
		for _, mode := range []string{"component", "account"} {
			t.Run(fmt.Sprintf("%s/%s", kind, mode), func(t *testing.T) { endToEnd(t, kind, mode) })
		}
	}
}

func endToEnd(t *testing.T, kind xmppserver.Kind, mode string) {
	dir := t.TempDir()
	options := xmppserver.Options{
		Dir: filepath.Join(dir, "xmpp"), Component: "porch.localhost", Secret: "a secret of the test",
		Users: map[string]string{"anna": "anna's password", "gateway": "the gateway's password"},
	}
	if kind == xmppserver.Prosody {
		options.Storage = "sql"
	}
	server, err := xmppserver.Start(t.Context(), kind, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	broker := startMosquitto(t)
	coapAddr := freeUDP(t)
	wire, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wire.Close() })

	xmpp := fmt.Sprintf("component: {domain: porch.localhost, server: %q, secret_file: secret}", server.ComponentAddr())
	secret := options.Secret
	if mode == "account" {
		xmpp = fmt.Sprintf("account: {jid: gateway@localhost, password_file: secret, server: %q, tls: {ca_file: %q}}", server.C2S(), server.CAFile())
		secret = options.Users["gateway"]
	}
	write(t, filepath.Join(dir, "secret"), secret)
	path := filepath.Join(dir, "porchlight.yaml")
	write(t, path, fmt.Sprintf(`
gateway: {id: porch, data_dir: %s}
xmpp:
  %s
  pubsub: %s
operators:
  - {jid: anna@localhost, role: owner}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
coap: {listen: "%s"}
devices:
  - {id: kitchen, name: Kitchen, profile: tasmota, mqtt: {topic: kitchen}, timezone: Europe/Berlin}
  - {id: cellar, profile: senml, coap: {}}
  - {id: boiler, profile: lines, serial: {port: %s}}
`, filepath.Join(dir, "data"), xmpp, server.PubSub(), broker, coapAddr, wire.Path()))
	startGateway(t, path, 5) // MQTT twice, CoAP, serial, itself

	contact := ""
	if mode == "component" {
		contact = "kitchen@porch.localhost"
	}
	reader := startReader(t, server, options.Users["anna"], contact, "kitchen/log", "kitchen/now", "cellar/log", "boiler/log", "gateway/now")
	command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(broker), "-q", "1", "-t", "tele/kitchen/SENSOR",
		"-m", `{"Time":"2026-11-23T08:00:00","DS18B20":{"Temperature":20.6}}`)
	pack := filepath.Join(dir, "pack.json")
	write(t, pack, `[{"n":"temperature","u":"Cel","v":7.25},{"n":"humidity","u":"%RH","v":81}]`)
	command(t, "coap-client-notls", "-m", "post", "-t", "110", "-f", pack, "coap://"+coapAddr+"/d/cellar")
	if _, err := wire.Write([]byte("{\"temperature\":61.50,\"pump\":true}\n")); err != nil {
		t.Fatal(err)
	}
	reader.await(t, "kitchen's reading as SenML", func(l line) bool {
		return l.Node == "porch/kitchen/log" && l.has("ds18b20_temperature", "number", 20.6, "Cel") &&
			l.Readings[0].Time == float64(time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC).Unix())
	})
	reader.await(t, "kitchen's newest values as XEP-0323 fields", func(l line) bool {
		return l.Node == "porch/kitchen/now" && l.Item == "current" && l.Device == "kitchen" &&
			l.has("ds18b20_temperature", "number", "20.6", "°C") && l.Readings[0].Time == "2026-11-23T07:00:00Z"
	})
	reader.await(t, "cellar's reading", func(l line) bool {
		return l.Node == "porch/cellar/log" && l.has("temperature", "number", 7.25, "Cel") && l.has("humidity", "number", 81.0, "%RH")
	})
	reader.await(t, "boiler's reading", func(l line) bool {
		return l.Node == "porch/boiler/log" && l.has("temperature", "number", 61.5, nil) && l.has("pump", "bool", true, nil)
	})
	reader.await(t, "the gateway's own values", func(l line) bool {
		return l.Node == "porch/gateway/now" && len(l.Readings) > 0 && l.Readings[0].Fields["uptime"] != nil
	})
	if mode == "component" {
		reader.await(t, "kitchen's presence", func(l line) bool {
			return l.Presence == "kitchen@porch.localhost/gw" && l.Type == "available" && l.Status == "20.6 °C"
		})
	}

	// A killed ejabberd forgets what it accepted a moment before; what it then
	// misses was never the gateway's to send again.
	stop := server.Kill
	if kind == xmppserver.Ejabberd {
		stop = server.Stop
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	const outage = 40
	for i := range outage {
		command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(broker), "-q", "1", "-t", "tele/kitchen/SENSOR", "-m", fmt.Sprintf(`{"COUNTER":{"C1":%d}}`, i+1))
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := startReader(t, server, options.Users["anna"], "", "kitchen/log", "events")
	again.await(t, "the last reading of the outage", func(l line) bool {
		return l.Node == "porch/kitchen/log" && l.has("counter_c1", "number", float64(outage), nil)
	})
	again.await(t, "the end of what the nodes hold", func(l line) bool { return l.Ready })
	var counts []int
	var items []string
	seen := map[string]bool{}
	for _, l := range again.all() {
		if l.Node != "porch/kitchen/log" || seen[l.Item] {
			continue
		}
		seen[l.Item] = true
		items = append(items, l.Item)
		for _, r := range l.Readings {
			if f := r.Fields["counter_c1"]; f != nil {
				counts = append(counts, int(f[1].(float64)))
			}
		}
	}
	sort.Ints(counts)
	want := make([]int, outage)
	for i := range want {
		want[i] = i + 1
	}
	if fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("of the outage arrived %v, want each of 1 to %d once; items %v", counts, outage, items)
	}
	for _, r := range []*slixmpp{reader, again} {
		for _, l := range r.all() {
			if l.Fault != "" {
				t.Errorf("slixmpp finds: %s", l.Fault)
			}
		}
	}
}

// startGateway runs the gateway with a config file until the test ends, or stop
// is called. It returns when so many drivers are up.
func startGateway(t *testing.T, path string, drivers int) (a *agent.Agent, stop func()) {
	t.Helper()
	loadOptions, err := agent.LoadOptions()
	if err != nil {
		t.Fatal(err)
	}
	c, faults := config.Load(path, loadOptions)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return startGatewayWith(t, c, drivers)
}

// startGatewayWith is startGateway with a config that was loaded.
func startGatewayWith(t *testing.T, c *config.Config, drivers int) (a *agent.Agent, stop func()) {
	t.Helper()
	out := &testWriter{t: t, up: make(chan struct{}, 100)}
	log := slog.New(slog.NewTextHandler(out, nil))
	a, err := agent.New(c, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the gateway ended with %v", err)
		}
	})
	t.Cleanup(stop)
	deadline := time.After(patience)
	for range drivers {
		select {
		case <-out.up:
		case <-deadline:
			t.Fatal("not all drivers came up")
		}
	}
	return a, stop
}

// testWriter is the test's log. It tells how many drivers came up.
type testWriter struct {
	t  *testing.T
	up chan struct{}
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(b), "\n"))
	if strings.Contains(string(b), `msg="driver up"`) {
		w.up <- struct{}{}
	}
	return len(b), nil
}

// A line is what testdata/reader.py prints.
type line struct {
	Node, Item, Kind, Device, Base string
	Readings                       []struct {
		Time   any // number in SenML, text in <fields>
		Fields map[string][]any
	}
	Presence, Type, Show, Status string
	Category, Title              string // of an event
	Fault                        string
	Ready                        bool
}

// has reports whether the first reading has a field; a nil unit is not
// compared.
func (l line) has(name, kind string, value, unit any) bool {
	for _, r := range l.Readings {
		if f := r.Fields[name]; f != nil && f[0] == kind && f[1] == value && (unit == nil || f[2] == unit) {
			return true
		}
	}
	return false
}

type slixmpp struct {
	mu    sync.Mutex
	lines []line
	more  chan struct{}
	errs  bytes.Buffer
}

func startReader(t *testing.T, server *xmppserver.Server, password, contact string, nodes ...string) *slixmpp {
	t.Helper()
	host, port, err := net.SplitHostPort(server.C2S())
	if err != nil {
		t.Fatal(err)
	}
	args := []string{filepath.Join("testdata", "reader.py"), "anna@localhost", password, host, port, server.CAFile(), server.PubSub(), contact}
	for _, n := range nodes {
		args = append(args, "porch/"+n)
	}
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Fatal("there is no /usr/bin/python3; `make deps` installs what the tests need")
	}
	cmd := exec.Command("/usr/bin/python3", args...)
	r := &slixmpp{more: make(chan struct{}, 1)}
	cmd.Stderr = &r.errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			var l line
			if err := json.Unmarshal(s.Bytes(), &l); err != nil {
				l.Fault = "unreadable: " + s.Text()
			}
			r.mu.Lock()
			r.lines = append(r.lines, l)
			r.mu.Unlock()
			select {
			case r.more <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		cmd.Wait()
	})
	return r
}

func (r *slixmpp) all() []line {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]line(nil), r.lines...)
}

func (r *slixmpp) await(t *testing.T, what string, ok func(line) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		for _, l := range r.all() {
			if ok(l) {
				return
			}
		}
		select {
		case <-r.more:
		case <-deadline:
			for _, l := range r.all() {
				t.Logf("slixmpp has %+v", l)
			}
			t.Fatalf("slixmpp did not find %s; it says %s", what, r.errs.String())
		}
	}
}

func startMosquitto(t *testing.T) (address string) {
	t.Helper()
	program := "/usr/sbin/mosquitto"
	if _, err := os.Stat(program); err != nil {
		t.Fatal("there is no mosquitto; `make deps` installs what the tests need")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	l.Close()
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	write(t, conf, fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nuser root\n", port(address)))
	cmd := exec.Command(program, "-c", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	deadline := time.Now().Add(patience)
	for {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return address
		}
		if time.Now().After(deadline) {
			t.Fatalf("mosquitto does not answer: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func freeUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

func port(address string) string {
	_, p, _ := net.SplitHostPort(address)
	return p
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("cannot run %s (`make deps` installs it): %v: %s", name, err, out)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
