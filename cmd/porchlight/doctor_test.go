package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// examined runs the doctor and gives its findings.
func examined(t *testing.T, status int, file string, more ...string) []finding {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if got := execute(t.Context(), append([]string{"doctor", "--json", "-c", file}, more...), &stdout, &stderr); got != status {
		t.Errorf("exit status %d, want %d\n%s%s", got, status, &stdout, &stderr)
	}
	var found []finding
	for lines := json.NewDecoder(&stdout); ; {
		var f finding
		if err := lines.Decode(&f); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		if f.Verdict != verdictGood && f.Next == "" {
			t.Errorf("nothing to do next: %s", f)
		}
		found = append(found, f)
	}
}

func wantFinding(t *testing.T, found []finding, verdict, what, evidence string) {
	t.Helper()
	for _, f := range found {
		if f.Verdict == verdict && strings.Contains(f.What, what) && strings.Contains(f.Evidence, evidence) {
			return
		}
	}
	t.Errorf("there is no %q of %q: %q, but %v", verdict, what, evidence, found)
}

// TestDoctor asks for a gateway that works, first stopped and then running,
// and for one whose server and devices are away.
func TestDoctor(t *testing.T) {
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Component: "gw.localhost", Secret: "s", Storage: "memory",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	broker := free.Addr().String()
	free.Close()
	dir := houseDir(t, fmt.Sprintf(`
gateway: {id: gw, data_dir: data}
xmpp:
  component: {domain: gw.localhost, server: %q, secret_file: secret}
  pubsub: pubsub.localhost
mqtt: {listen: %q}
devices:
  - {id: kitchen, profile: tasmota, mqtt: {topic: kitchen}}
  - {id: soil, profile: senml, coap: {url: "coap://127.0.0.1:9/x"}}
`, server.ComponentAddr(), broker))
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "p.yaml")
	found := examined(t, exitFailed, file)
	wantFinding(t, found, verdictGood, "node creation", "made and deleted")
	wantFinding(t, found, verdictLook, "node settings", "keeps at most 256 items")
	wantFinding(t, found, verdictGood, "stanza size", "was taken")
	wantFinding(t, found, verdictGood, "coming back", "")
	wantFinding(t, found, verdictGood, "(mqtt.listen)", "is free")
	wantFinding(t, found, verdictLook, "data directory", "can be read by others (mode 0755)")
	wantFinding(t, found, verdictLook, "gateway", "has not run yet")
	wantFinding(t, found, verdictBroken, "CoAP coap://127.0.0.1:9/x", "no answer")

	manager := listenNotify(t, dir)
	gateway := exec.Command("porchlight", "run", "-c", file)
	gateway.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	if err := gateway.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = gateway.Process.Signal(os.Interrupt)
		_ = gateway.Wait()
	}()
	manager.wait(t, "READY=1")
	for deadline := time.Now().Add(waitFor); ; time.Sleep(50 * time.Millisecond) {
		found = examined(t, exitFailed, file)
		if online := found[indexOf(found, "gateway")]; online.Verdict == verdictGood {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("the gateway is not online: %s", online)
		}
	}
	wantFinding(t, found, verdictGood, "(mqtt.listen)", "is taken, as it should be")
	wantFinding(t, found, verdictLook, "device kitchen", "never heard")
	wantFinding(t, found, verdictLook, "login", "the gateway is running")
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	wantFinding(t, examined(t, exitFailed, file), verdictBroken, "(xmpp.component)", "refused")
}

// TestDoctorsClock has a machine in 1970 find its server good, and one whose clock
// is far ahead hear that this is why no certificate holds.
func TestDoctorsClock(t *testing.T) {
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Users: map[string]string{"gateway": "s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	file := filepath.Join(houseDir(t, fmt.Sprintf(`
gateway: {id: gw, data_dir: data}
xmpp: {account: {jid: gateway@localhost, password_file: secret, server: %q, tls: {ca_file: %q}}, pubsub: pep}
`, server.C2S(), server.CAFile())), "p.yaml")
	for year, want := range map[int]finding{
		1970: good("login", "as gateway@localhost/"),
		2150: broken("login", "certificate has expired or is not yet valid", ""),
	} {
		now := time.Date(year, 1, 1, 0, 0, 9, 0, time.UTC)
		var found []finding
		examine(t.Context(), file, clock.NewFake(time.Now(), now), func(f finding) { found = append(found, f) })
		past := ""
		if year == 1970 {
			past = " UTC, which is long past"
		}
		wantFinding(t, found, verdictLook, "clock", "shows "+now.Format(time.DateTime)+past)
		wantFinding(t, found, want.Verdict, want.What, want.Evidence)
		next := found[indexOf(found, "login")].Next
		if year == 2150 && !strings.Contains(next, "compare the clock of this machine") {
			t.Errorf("next is %q", next)
		}
	}
}

// TestClockOfThisMachine is not told as long past.
func TestClockOfThisMachine(t *testing.T) {
	if f := tryClock(clock.Machine()); strings.Contains(f.Evidence, "long past") {
		t.Error(f)
	}
}

func indexOf(found []finding, what string) int {
	for i, f := range found {
		if f.What == what {
			return i
		}
	}
	return 0
}

// TestDoctorWithoutConfig is what somebody sees who has just installed it.
func TestDoctorWithoutConfig(t *testing.T) {
	found := examined(t, exitFailed, filepath.Join(t.TempDir(), "none.yaml"))
	wantFinding(t, found, verdictBroken, "config", "is not there")
	if next := found[len(found)-1].Next; next != "porchlight init" {
		t.Errorf("next is %q", next)
	}
	broken := houseDir(t, "xmpp: {pubsub: pubsub.localhost}\npasword: x\n")
	wantFinding(t, examined(t, exitFailed, filepath.Join(broken, "p.yaml")), verdictBroken, "config", "p.yaml:2:1: pasword: is not a known key")
}

// TestBundle puts secrets into every place where people have them, and looks
// for each in what a helper gets.
func TestBundle(t *testing.T) {
	t.Run("config good", func(t *testing.T) { testBundle(t, "mqtt://127.0.0.1:1", true) })
	// A password in the url is a fault, so nothing knows what the secrets are.
	t.Run("config faulty", func(t *testing.T) { testBundle(t, "mqtt://who:sEcret-url@127.0.0.1:1", false) })
}

func testBundle(t *testing.T, url string, known bool) {
	dir := houseDir(t, `
gateway: {id: gw, data_dir: data}
xmpp:
  component: {domain: gw.localhost, server: "127.0.0.1:1", secret_file: component}
  pubsub: pubsub.localhost
mqtt:
  listen: 127.0.0.1:0
  users: [{name: kitchen, password_file: user}]
  brokers: [{name: house, url: "`+url+`"}, {name: other, url: "mqtt://127.0.0.1:1", client_id: o, username: me, password_env: PORCHLIGHT_TEST_SECRET}]
# old password: "sEcret in a comment"
`)
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(filepath.Join(data, "devices.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PORCHLIGHT_TEST_SECRET", "sEcret-env")
	for name, text := range map[string]string{
		"component": "sEcret-component", "user": "sEcret-user\n", "data/claim": "sEcret-claim\n",
		"data/devices.d/lamp.yaml": "id: lamp\nprofile: tasmota\nmqtt: {topic: sEcret-user}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bundle := filepath.Join(dir, "bundle.tar.gz")
	examined(t, exitFailed, filepath.Join(dir, "p.yaml"), "--bundle", bundle)
	info, err := os.Stat(bundle)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the bundle has mode %v", info.Mode())
	}
	packed, err := os.Open(bundle)
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	zip, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
		if strings.Contains(string(text), "sEcret") {
			t.Errorf("%s tells a secret:\n%s", h.Name, text)
		}
	}
	for _, name := range []string{"doctor.txt", "doctor.json", "version.txt", "porchlight.yaml", "devices.d/lamp.yaml"} {
		if files["porchlight/"+name] == "" && (known || name != "devices.d/lamp.yaml") {
			t.Errorf("there is no %s in it", name)
		}
	}
	if !strings.Contains(files["porchlight/porchlight.yaml"], "secret_file: component") {
		t.Errorf("what is no secret is gone:\n%s", files["porchlight/porchlight.yaml"])
	}
	// A second bundle does not take the place of the first.
	var stderr bytes.Buffer
	if status := execute(t.Context(), []string{"doctor", "-c", filepath.Join(dir, "p.yaml"), "--bundle", bundle}, io.Discard, &stderr); status != exitFailed || !strings.Contains(stderr.String(), "exists") {
		t.Errorf("status %d, %s", status, &stderr)
	}
}
