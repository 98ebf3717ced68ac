package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
)

// TestDevices has an unknown device speak to the gateway's own broker, and
// does by command what an owner does with it. There is no XMPP server: the
// readings wait.
func TestDevices(t *testing.T) {
	dir, err := os.MkdirTemp("", "porchlight") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	broker := l.Addr().(*net.TCPAddr).Port
	l.Close()
	for name, text := range map[string]string{
		"secret": "s",
		"p.yaml": fmt.Sprintf("gateway: {id: gw, data_dir: data}\nxmpp:\n  component: {domain: gw.localhost, server: \"127.0.0.1:1\", secret_file: secret}\n  pubsub: pubsub.localhost\nmqtt: {listen: \"127.0.0.1:%d\"}\n", broker),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	options, err := agent.LoadOptions()
	if err != nil {
		t.Fatal(err)
	}
	c, faults := config.Load(filepath.Join(dir, "p.yaml"), options)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	gateway, err := agent.New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- gateway.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	run := func(args ...string) (int, string) {
		var stdout, stderr bytes.Buffer
		status := execute(t.Context(), append(args, "-c", filepath.Join(dir, "p.yaml")), &stdout, &stderr)
		return status, stdout.String() + stderr.String()
	}
	do := func(args ...string) (int, string) { return run(append([]string{"devices"}, args...)...) }
	want := func(status int, pattern string, args ...string) {
		t.Helper()
		if got, out := do(args...); got != status || !regexp.MustCompile(pattern).MatchString(out) {
			t.Errorf("%v: status %d, want %d and %s:\n%s", args, got, status, pattern, out)
		}
	}
	say := func(topic string) error {
		out, err := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(broker), "-q", "1", "-t", "tele/"+topic+"/SENSOR",
			"-m", `{"AM2301":{"Temperature":21.40,"Humidity":45},"TempUnit":"C"}`).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	}
	for deadline := time.Now().Add(30 * time.Second); say("plug") != nil; { // until it listens
		if time.Now().After(deadline) {
			t.Fatal(say("plug"))
		}
	}
	if err := say("spy"); err != nil {
		t.Fatal(err)
	}
	want(exitDone, `(?s)^1  plug  \(plug, Tasmota\)\n   mqtt broker, topic plug; profile tasmota; \d messages?, the newest at .*am2301_temperature 21.40 °C, am2301_humidity 45 %\n3  spy `, "pending")
	want(exitDone, `^\{"number":1,"id":"plug",.*"fields":\[\{"name":"am2301_temperature","value":21.40,"unit":"°C"\}`, "pending", "--json")
	want(exitDone, "^refused spy\n$", "refuse", "spy")
	want(exitDone, "^admitted as kitchen-plug\n$", "admit", "1", "--as", "kitchen-plug", "--name", "Kitchen plug")
	want(exitDone, "^nothing is pending\nrefused: spy\n$", "pending")
	want(exitFailed, "cannot admit 1: nothing of that name or number", "admit", "1")
	if err := say("plug"); err != nil { // acknowledged, so it is safe
		t.Fatal(err)
	}
	want(exitDone, `(?m)^kitchen-plug  Kitchen plug  tasmota  mqtt, topic plug  fresh  .*am2301_temperature 21.40 °C`)
	if status, out := run("command", "kitchen-plug"); status != exitDone || out != "it is not known that the device can be told anything; some have to be heard first\n" {
		t.Errorf("the commands of one that told none: status %d: %s", status, out)
	}
	if out, err := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(broker), "-q", "1", "-t", "tele/plug/STATE", "-m", `{"POWER":"OFF","Dimmer":20}`).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if status, out := run("command", "kitchen-plug"); status != exitDone || out != "power   off, on, toggle  Switch\ndimmer  0 to 100 %\n" {
		t.Errorf("the commands: status %d: %s", status, out)
	}
	if status, out := run("command", "kitchen-plug", "on"); status != exitFailed || out != "refused: nobody who is connected listens on cmnd/plug/POWER\n" {
		t.Errorf("a command to nobody: status %d: %s", status, out)
	}
	if status, out := run("command", "attic", "on"); status != exitFailed || out != "refused: there is no device attic\n" {
		t.Errorf("a command to a device that is not: status %d: %s", status, out)
	}
	want(exitDone, "^renamed kitchen-plug\n$", "rename", "kitchen-plug", "Hall: plug #1")
	want(exitDone, `(?m)^kitchen-plug  Hall: plug #1  `)
	want(exitDone, "^removed kitchen-plug\n$", "remove", "kitchen-plug")
	want(exitDone, "^there are no devices\n$")
	want(exitFailed, "cannot remove kitchen-plug: there is no such device", "remove", "kitchen-plug")
	if _, out := do("pending"); !strings.Contains(out, "refused: spy, kitchen-plug") {
		t.Error(out)
	}
}
