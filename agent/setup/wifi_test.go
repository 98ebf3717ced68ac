package setup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/agent/config"
)

const homeWiFi = "# The house's.\nwifi:\n  name: \" Anna's \\\"Küche\\\"; 🏠\\\\ \"\n  password: ' grün \\s;\"x\" '\n  country: de\n  hidden: true\n"

// tools are the programs that a WiFi needs, with what they were called for.
type tools struct {
	t   *testing.T
	dir string
}

// newTools has the real nmcli make files, and another one do what asks for a
// NetworkManager that runs: up is what it says when it cannot join.
func newTools(t *testing.T, up string, more ...string) tools {
	t.Helper()
	real, err := exec.LookPath("nmcli")
	if err != nil {
		t.Skip("SKIPPED: nmcli is not there, so nothing is known of WiFi; it is in Debian's package network-manager")
	}
	tool := tools{t, t.TempDir()}
	tool.write("cannot", up)
	tool.write("state", "")
	tool.program("nmcli", fmt.Sprintf(`[ "$1" != --offline ] || exec %q "$@"
echo "nmcli $*" >>%[2]q/calls
case "$*" in
*" show "*) cat %[2]q/state ;;
*" up "*) [ ! -s %[2]q/cannot ] || { echo "Error: $(cat %[2]q/cannot)" >&2; exit 4; } ;;
esac`, real, tool.dir))
	for _, name := range more {
		tool.program(name, fmt.Sprintf(`echo "%s $*" >>%q/calls`, name, tool.dir))
	}
	t.Setenv("PATH", tool.dir+":"+os.Getenv("PATH"))
	return tool
}

func (x tools) program(name, script string) {
	x.t.Helper()
	if err := os.WriteFile(filepath.Join(x.dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		x.t.Fatal(err)
	}
}

func (x tools) write(name, text string) {
	x.t.Helper()
	if err := os.WriteFile(filepath.Join(x.dir, name), []byte(text), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

// calls gives what was asked for since the last time.
func (x tools) calls() string {
	x.t.Helper()
	b, err := os.ReadFile(filepath.Join(x.dir, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		x.t.Fatal(err)
	}
	x.write("calls", "")
	return string(b)
}

// value reads a value of a key file as GLib does, and a name as NetworkManager: a
// list of bytes, or a text in which \; stands for a semicolon.
func value(t *testing.T, text, key string) string {
	t.Helper()
	found := regexp.MustCompile("(?m)^"+key+"=(.*)$").FindAllStringSubmatch(text, -1)
	if len(found) != 1 {
		t.Fatalf("%s is there %d times:\n%s", key, len(found), text)
	}
	v := strings.NewReplacer(`\\`, `\`, `\s`, " ").Replace(found[0][1])
	switch {
	case key != "ssid":
	case regexp.MustCompile("^([0-9]+;)+$").MatchString(v):
		var b []byte
		for n := range strings.SplitSeq(strings.TrimSuffix(v, ";"), ";") {
			c, err := strconv.ParseUint(n, 10, 8)
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, byte(c))
		}
		return string(b)
	default:
		return strings.ReplaceAll(v, `\;`, ";")
	}
	return v
}

// TestWiFiNames: what a network is called and its password reach NetworkManager's
// file byte for byte, and NetworkManager's own reader finds the same.
func TestWiFiNames(t *testing.T) {
	newTools(t, "")
	names := []string{
		"home", " two  spaces ", `"quoted"`, "Anna's", `C:\s\\`, "a;b;", "65;66;", "0x4142", "-x", "--", "#1", "=", "[wifi]", "%s$HOME`id`",
		"Küche", "🏠", "家", strings.Repeat("ä", 16), "yes", "null", "*", `\`, ";", `a\;b`, `\;`, "a\u00a0",
	}
	passwords := []string{"", "password", " 8 chars ", `back\slash\s`, `"quotes"'`, "a;b;c;d;", "#comment", "pässwörd", "=[section]", strings.Repeat("0aF9", 16), strings.Repeat("x", 63), "12345678;"}
	for i := range max(len(names), len(passwords)) {
		name, password := names[i%len(names)], passwords[i%len(passwords)]
		w := config.WiFi{Name: config.SSID(name), Hidden: true, Country: "DE"}
		if err := w.Password.UnmarshalText([]byte(password)); err != nil {
			t.Fatal(err)
		}
		text, err := connection(t.Context(), w)
		if err != nil {
			t.Errorf("%q %q: %v", name, password, err)
			continue
		}
		again, err := tool(t.Context(), text, "nmcli", "--offline", "connection", "modify")
		if err != nil || string(again) != string(text) {
			t.Errorf("%q %q: read back it is\n%s%v\nwritten was\n%s", name, password, again, err, text)
		}
		if got := value(t, string(text), "ssid"); got != name {
			t.Errorf("the name %q is %q", name, got)
		}
		if password == "" && strings.Contains(string(text), "security") {
			t.Errorf("an open network is\n%s", text)
		}
		if password != "" && (value(t, string(text), "psk") != password || value(t, string(text), "key-mgmt") != "wpa-psk") {
			t.Errorf("the password %q is in\n%s", password, text)
		}
		for key, want := range map[string]string{"id": "porchlight", "uuid": connectionID, "hidden": "true", "porchlight.country": "DE"} {
			if got := value(t, string(text), key); got != want {
				t.Errorf("%s is %q", key, got)
			}
		}
	}
}

// TestCardWithWiFi has a WiFi beside a config, beside an invitation and alone.
func TestCardWithWiFi(t *testing.T) {
	const name, password = ` Anna's "Küche"; 🏠\ `, ` grün \s;"x" `
	const joined = `The WiFi " Anna's \"Küche\"; 🏠\\ " is joined.`
	begin := func(t *testing.T, files map[string]string, up string, more ...string) (card, tools) {
		t.Helper()
		tool := newTools(t, up, more...)
		c := newCard(t, files)
		if err := os.Mkdir(c.connections, 0o700); err != nil {
			t.Fatal(err)
		}
		return c, tool
	}
	kept := func(t *testing.T, c card) {
		t.Helper()
		if got := c.list(c.connections); got != connectionFile {
			t.Fatalf("NetworkManager has %q", got)
		}
		file := filepath.Join(c.connections, connectionFile)
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the WiFi: %v, %v", info, err)
		}
		if text := c.read(file); value(t, text, "ssid") != name || value(t, text, "psk") != password || value(t, text, "hidden") != "true" {
			t.Errorf("the WiFi is\n%s", text)
		}
	}
	t.Run("with a config", func(t *testing.T) {
		c, tool := begin(t, map[string]string{CardConfig: strings.Replace(goodCard, "operators:", homeWiFi+"\n# Who may.\noperators:", 1)}, "", "raspi-config")
		if done, err := c.takeOver(); err != nil || !done {
			t.Fatal(done, err)
		}
		kept(t, c)
		want := fmt.Sprintf("raspi-config nonint do_wifi_country DE\nnmcli connection load %s/%s\nnmcli --wait 30 connection up uuid %s\n", c.connections, connectionFile, connectionID)
		if got := tool.calls(); got != want {
			t.Errorf("called was\n%swant\n%s", got, want)
		}
		if told := c.read(filepath.Join(c.boot, CardDone)); !strings.Contains(told, "gateway pi") || !strings.Contains(told, joined) {
			t.Errorf("it is told %q", told)
		}
		if got := c.list(c.boot) + " " + c.list(c.etc); got != "porchlight-done.txt porchlight.yaml xmpp-account-password" {
			t.Errorf("there are %s", got)
		}
		if text := c.read(c.path); strings.Contains(text, "wifi") || strings.Contains(text, "Küche\\\"; ") || strings.Contains(text, password) || !strings.Contains(text, "# Who may.\noperators:") {
			t.Errorf("the config is\n%s", text)
		}
	})
	// The server of the invitation is not there yet, so it is tried again.
	t.Run("with an invitation", func(t *testing.T) {
		files := map[string]string{CardConfig: homeWiFi, CardInvite: "xmpp:example.org?register;preauth=x\nserver: 127.0.0.1:1\n"}
		c, tool := begin(t, files, "", "raspi-config")
		if done, err := c.takeOver(); done || err == nil || errors.As(err, new(CardFault)) {
			t.Fatal(done, err)
		}
		kept(t, c)
		if got := tool.calls(); strings.Count(got, " up ") != 1 {
			t.Errorf("called was\n%s", got)
		}
		if told := c.read(filepath.Join(c.boot, CardErrors)); !strings.Contains(told, joined+"\r\n\r\nIt is tried again by itself.") {
			t.Errorf("it is told %q", told)
		}
		for name, text := range files {
			if got := c.read(filepath.Join(c.boot, name)); got != text {
				t.Errorf("%s is %q", name, got)
			}
		}
		// A network that is joined is left alone; one that is not is tried again.
		tool.write("state", "activated\n")
		if done, err := c.takeOver(); done || err == nil {
			t.Fatal(done, err)
		}
		if got := tool.calls(); strings.Contains(got, " up ") || strings.Contains(got, "raspi-config") {
			t.Errorf("called was\n%s", got)
		}
		tool.write("state", "")
		tool.write("cannot", "no network with SSID")
		if done, err := c.takeOver(); done || err == nil {
			t.Fatal(done, err)
		}
		if got := tool.calls(); !strings.Contains(got, " up ") || strings.Contains(got, "raspi-config") {
			t.Errorf("called was\n%s", got)
		}
		if told := c.read(filepath.Join(c.boot, CardErrors)); !strings.Contains(told, "not joined yet, which is tried again by itself:\r\nnmcli: no network with SSID.\r\n") {
			t.Errorf("it is told %q", told)
		}
	})
	t.Run("alone", func(t *testing.T) {
		c, tool := begin(t, map[string]string{CardConfig: "wifi: {name: open}\n"}, "Connection activation failed: No suitable device found.")
		if err := os.WriteFile(c.path, []byte("the config before"), 0o640); err != nil {
			t.Fatal(err)
		}
		if done, err := c.takeOver(); err != nil || !done {
			t.Fatal(done, err)
		}
		if got := tool.calls(); strings.Contains(got, "reg set") {
			t.Errorf("called was\n%s", got)
		}
		told := c.read(filepath.Join(c.boot, CardDone))
		if !strings.HasPrefix(told, `The WiFi "open" is kept, but not joined yet`) || !strings.Contains(told, "No suitable device found.\r\nA Raspberry Pi leaves its WiFi off") {
			t.Errorf("it is told %q", told)
		}
		if got := c.list(c.boot) + " " + c.list(c.etc); got != "porchlight-done.txt porchlight.yaml" || c.read(c.path) != "the config before" {
			t.Errorf("there are %s, the config %q", got, c.read(c.path))
		}
	})
	t.Run("country without raspi-config", func(t *testing.T) {
		c, tool := begin(t, map[string]string{CardConfig: homeWiFi}, "", "iw")
		if done, err := c.takeOver(); err != nil || !done {
			t.Fatal(done, err)
		}
		if got := tool.calls(); !strings.HasPrefix(got, "iw reg set DE\n") {
			t.Errorf("called was\n%s", got)
		}
		if told := c.read(filepath.Join(c.boot, CardDone)); !strings.Contains(told, "The country DE of the WiFi is set until the next start") {
			t.Errorf("it is told %q", told)
		}
	})
	t.Run("country that raspi-config does not know", func(t *testing.T) {
		c, tool := begin(t, map[string]string{CardConfig: homeWiFi}, "")
		tool.program("raspi-config", "exit 1")
		if done, err := c.takeOver(); done || !errors.As(err, new(CardFault)) {
			t.Fatal(done, err)
		}
		if told := c.read(filepath.Join(c.boot, CardErrors)); !strings.Contains(told, "raspi-config does not take DE") || c.list(c.connections) != "" {
			t.Errorf("it is told %q, and there are %s", told, c.list(c.connections))
		}
	})
	// What needs no network is checked before.
	t.Run("with a config that has a fault", func(t *testing.T) {
		c, tool := begin(t, map[string]string{CardConfig: strings.Replace(goodCard, "tasmota", "tasmoto", 1) + homeWiFi}, "")
		if done, err := c.takeOver(); done || !errors.As(err, new(CardFault)) {
			t.Fatal(done, err)
		}
		if got := tool.calls() + c.list(c.connections); got != "" {
			t.Errorf("half done: %s", got)
		}
	})
}
