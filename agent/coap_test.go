package agent_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

// TestCoAPBothWays has, with a config of ten lines, libcoap's client post a pack,
// another post with a key, a client of LwM2M register and be told what to do, and
// libcoap's server be observed. The server dies, and one that begins anew in its
// place is seen again.
func TestCoAPBothWays(t *testing.T) {
	dir := t.TempDir()
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: filepath.Join(dir, "xmpp"), Component: "porch.localhost", Secret: "a secret of the test",
		Users: map[string]string{"anna": "anna's password"}, Storage: "sql",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	write(t, filepath.Join(dir, "secret"), "a secret of the test")
	listen, secure, clock := freeUDP(t), freeUDP(t), freeUDP(t)
	path := filepath.Join(dir, "porchlight.yaml")
	write(t, path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
operators: [{jid: anna@localhost, role: owner}]
coap: {listen: %q, dtls: {listen: %q, psk_file: keys}}
devices:
  - {id: attic, profile: senml, coap: {}}
  - {id: cellar, profile: senml, coap: {}}
  - {id: lamp, profile: lwm2m, coap: {}}
  - {id: porch-lamp, profile: lwm2m, coap: {}}
  - {id: clock, profile: value, coap: {url: "coap://%s/time?ticks", observe: true, every: 1s}}
`, server.ComponentAddr(), server.PubSub(), listen, secure, clock))
	write(t, filepath.Join(dir, "keys"), fmt.Sprintf("attic:%x\nporch-lamp:%x\n", "a key of the test", "a key of the lamp"))
	died := libcoapServer(t, clock)
	gateway, _ := startGateway(t, path, 3) // CoAP twice, itself
	reader := startReader(t, server, "anna's password", "", "cellar/log", "attic/log", "lamp/log", "porch-lamp/log", "clock/log")

	pack := filepath.Join(dir, "pack.json")
	write(t, pack, `[{"n":"temperature","u":"Cel","v":7.25},{"n":"humidity","u":"%RH","v":81}]`)
	command(t, "coap-client-notls", "-m", "post", "-t", "110", "-f", pack, "coap://"+listen+"/d/cellar")
	reader.await(t, "the pack", func(l line) bool {
		return l.Node == "porch/cellar/log" && l.has("temperature", "number", 7.25, "Cel") && l.has("humidity", "number", 81.0, "%RH")
	})
	command(t, "coap-client-openssl", "-m", "post", "-t", "110", "-f", pack, "-u", "attic", "-k", "a key of the test", "coaps://"+secure+"/d/attic")
	reader.await(t, "the pack with a key", func(l line) bool {
		return l.Node == "porch/attic/log" && l.has("temperature", "number", 7.25, "Cel")
	})
	lamp(t, listen, "lamp", "")
	lamp(t, secure, "porch-lamp", "a key of the lamp")
	for _, id := range []devices.ID{"lamp", "porch-lamp"} {
		reader.await(t, "the lamp's thermometer", func(l line) bool {
			return l.Node == "porch/"+string(id)+"/log" && l.has("temperature", "number", 21.5, "Cel")
		})
		for end := time.Now().Add(patience); len(gateway.Controls(id)) == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s can be told nothing", id)
			}
		}
		confirmed := false
		for o := range gateway.Execute(t.Context(), "anna@localhost", devices.Command{Device: id, Name: "on"}) {
			confirmed = confirmed || o.Kind == bridge.Confirmed
		}
		if !confirmed {
			t.Errorf("%s does not confirm that it is on", id)
		}
	}
	later := func(than float64) func(line) bool {
		return func(l line) bool { return l.Node == "porch/clock/log" && ticks(l) > than }
	}
	reader.await(t, "the clock", later(0))
	died()
	last := 0.0
	for _, l := range reader.all() {
		if l.Node == "porch/clock/log" {
			last = max(last, ticks(l))
		}
	}
	libcoapServer(t, clock)
	reader.await(t, "the clock after it began anew", later(last+1))
}

// ticks gives the newest value of the clock in a line.
func ticks(l line) (newest float64) {
	for _, r := range l.Readings {
		if f := r.Fields["time"]; f != nil {
			if v, ok := f[1].(float64); ok {
				newest = max(newest, v)
			}
		}
	}
	return newest
}

// libcoapServer runs libcoap's example server until the test ends or kill is
// called.
func libcoapServer(t *testing.T, address string) (kill func()) {
	t.Helper()
	cmd := exec.Command("coap-server-notls", "-A", "127.0.0.1", "-p", port(address))
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot run coap-server-notls (`make deps` installs it): %v", err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	return kill
}
