package agent_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
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
	// More than a reading may have follows in another.
	var records []string
	for i := range 250 {
		records = append(records, fmt.Sprintf(`{"n":"of_many_%d","v":%d}`, i, i))
	}
	many := filepath.Join(dir, "many.json")
	write(t, many, "["+strings.Join(records, ",")+"]")
	command(t, "coap-client-notls", "-m", "post", "-t", "110", "-f", many, "coap://"+listen+"/d/cellar")
	for i := range 250 {
		reader.await(t, "each of many fields", func(l line) bool {
			return l.Node == "porch/cellar/log" && l.has(fmt.Sprintf("of_many_%d", i), "number", float64(i), "")
		})
	}
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

// TestCoAPCommand has a resource of libcoap's server be told a value: it is
// confirmed by what is read there then.
func TestCoAPCommand(t *testing.T) {
	dir := t.TempDir()
	board := freeUDP(t)
	libcoapServer(t, board, "-d", "4")
	url := "coap://" + board + "/riot/value"
	path := filepath.Join(dir, "porchlight.yaml")
	write(t, filepath.Join(dir, "secret"), "a secret of the test")
	write(t, path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: "127.0.0.1:1", secret_file: secret}
  pubsub: pubsub.localhost
operators: [{jid: anna@localhost, role: owner}]
devices:
  - {id: board, profile: riot, coap: {url: %q, every: 1s}}
`, url))
	command(t, "coap-client-notls", "-m", "put", "-t", "0", "-e", "5", url)
	a, _ := startGateway(t, path, 2) // CoAP, itself
	for deadline := time.Now().Add(patience); len(a.Controls("board")) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the board can be told nothing")
		}
	}
	tell := func(value string) (all []bridge.Outcome) {
		for o := range a.Execute(t.Context(), "anna@localhost/phone", devices.Command{Device: "board", Name: "value", Argument: value}) {
			all = append(all, o)
		}
		return all
	}
	var all []bridge.Outcome
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if all = tell("42"); all[0].Kind != bridge.Refused { // else it was not reached yet
			break
		}
	}
	if len(all) != 2 || all[0].Kind != bridge.Sent || all[0].Err != nil || all[1].Kind != bridge.Confirmed {
		t.Errorf("42: %+v", all)
	}
	if all := tell("256"); len(all) != 1 || all[0].Kind != bridge.Refused {
		t.Errorf("256: %+v", all)
	}
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
func libcoapServer(t *testing.T, address string, flags ...string) (kill func()) {
	t.Helper()
	cmd := exec.Command("coap-server-notls", append([]string{"-A", "127.0.0.1", "-p", port(address)}, flags...)...)
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
