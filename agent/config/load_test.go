package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/strictyaml"
)

func testOptions() LoadOptions {
	return LoadOptions{
		Profiles: func(string) (map[string]string, strictyaml.Faults) {
			return map[string]string{"tasmota": "mqtt", "dsmr-p1": "serial", "senml": "mqtt,coap", "lines": ""}, nil
		},
		CheckJID: func(s string) error {
			if strings.Contains(s, "♥") {
				return errors.New("has a heart")
			}
			return nil
		},
	}
}

// good is a config without fault; cases of TestFaults change it.
const good = `gateway: {id: gw, data_dir: data}
xmpp:
  component: {domain: gw.example.org, server: "127.0.0.1:5347", secret_file: secret}
  pubsub: pubsub.example.org
operators:
  - {jid: anna@example.org, role: owner}
mqtt:
  brokers:
    - {name: house, url: "mqtt://127.0.0.1:1883"}
coap: {listen: "127.0.0.1:5683"}
devices:
  - {id: kitchen, profile: tasmota, mqtt: {topic: kitchen}}
`

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "secret", "s3cret\r\n", 0o600)
	write(t, dir, "data/devices.d/meter.yaml", "id: meter\nname: Electricity\nprofile: dsmr-p1\nserial: {port: /dev/ttyUSB0}\ntimezone: Europe/Berlin\n", 0o644)
	write(t, dir, "data/devices.d/soil.yaml", "id: soil\nprofile: senml\ncoap: {}\n", 0o644)
	write(t, dir, "data/devices.d/.soil.yaml", "hidden", 0o644)
	write(t, dir, "data/devices.d/README", "not a device", 0o644)
	in := strings.Replace(good, "anna@example.org", "Anna@Example.org", 1)
	c, faults := Load(write(t, dir, "c.yaml", in, 0o644), testOptions())
	if faults != nil {
		t.Fatal(faults)
	}
	if got := c.Operators[0].JID; got != "anna@example.org" {
		t.Errorf("the operator is %s", got)
	}
	if got := c.XMPP.Component.Secret.Reveal(); got != "s3cret" {
		t.Errorf("the secret is %q", got)
	}
	if got := c.Gateway.DataDir; got != filepath.Join(dir, "data") {
		t.Errorf("the data directory is %s", got)
	}
	var ids []string
	for _, d := range c.Devices {
		ids = append(ids, string(d.ID))
	}
	if got := strings.Join(ids, " "); got != "kitchen meter soil" {
		t.Errorf("the devices are %s", got)
	}
	if s := c.Devices[1].Serial; *s != (DeviceSerial{Port: "/dev/ttyUSB0"}) {
		t.Errorf("the port is %+v", *s)
	}
	if d := c.Devices[1].Device(); d.Location.String() != "Europe/Berlin" || d.Name != "Electricity" || d.ID != "meter" {
		t.Errorf("the device is %+v", d)
	}
	if d := c.Devices[2].Device(); d.Location == nil || d.Name != "soil" {
		t.Errorf("the device is %+v", d)
	}
}

func TestSecretsFromElsewhere(t *testing.T) {
	dir, credentials := t.TempDir(), t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	t.Setenv("HOUSE", "from the environment")
	// systemd gives a credential to a user by an access list, whose mask shows as
	// the group's rights.
	write(t, credentials, "secret", "from systemd", 0o440)
	write(t, dir, "beside", "beside", 0o600)
	in := strings.Replace(good, `mqtt://127.0.0.1:1883"`, `mqtt://127.0.0.1:1883", username: u, password_env: HOUSE`, 1)
	in = strings.Replace(in, "  brokers:\n", "  listen: 127.0.0.1:1884\n  users: [{name: kitchen, password_file: beside}]\n  brokers:\n", 1)
	c, faults := Load(write(t, dir, "c.yaml", in, 0o644), testOptions())
	if faults != nil {
		t.Fatal(faults)
	}
	for _, s := range []struct{ got, want string }{
		{c.XMPP.Component.Secret.Reveal(), "from systemd"},
		{c.MQTT.Brokers[0].Password.Reveal(), "from the environment"},
		{c.MQTT.Users[0].Password.Reveal(), "beside"},
	} {
		if s.got != s.want {
			t.Errorf("got the secret %q, want %q", s.got, s.want)
		}
	}
}

func TestLoadNoFile(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "cannot read " + filepath.Join(dir, "none.yaml") + ": no such file or directory",
		dir:                             dir + " is not a file",
		"/dev/zero":                     "/dev/zero is not a file",
	} {
		c, faults := Load(path, LoadOptions{})
		if c != nil || len(faults) != 1 || faults[0].Problem != want || faults[0].File != path {
			t.Errorf("got %v, %v; want %s", c, faults, want)
		}
	}
}

func TestPath(t *testing.T) {
	t.Setenv("PORCHLIGHT_CONFIG", "")
	os.Unsetenv("PORCHLIGHT_CONFIG")
	if got := Path(""); got != "/etc/porchlight/porchlight.yaml" {
		t.Error(got)
	}
	t.Setenv("PORCHLIGHT_CONFIG", "/x")
	if got := Path(""); got != "/x" {
		t.Error(got)
	}
	if got := Path("y"); got != "y" {
		t.Error(got)
	}
}

func TestGatewayID(t *testing.T) {
	for _, tt := range []struct{ host, machine, want string }{
		{"pi", "4f2a0123456789abcdef0123456789ab\n", "pi-4f2a"},
		{"Raspberry Pi.local", "4F2A01", "raspberry-pi-4f2a"},
		{"", "4f2a", "porchlight-4f2a"},
		{"пи", "", "porchlight"},
		{"pi", "", "pi"},
		{strings.Repeat("a", 34) + "-" + strings.Repeat("b", 40), "4f2a", strings.Repeat("a", 34) + "-4f2a"},
		{strings.Repeat("a", 60), "4f2a", strings.Repeat("a", 35) + "-4f2a"},
	} {
		if got := gatewayID(tt.host, tt.machine); got != tt.want || len(got) > 40 {
			t.Errorf("gatewayID(%q, %q) = %q, want %q", tt.host, tt.machine, got, tt.want)
		}
	}
}

func TestNotYet(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "secret", "s3cret", 0o600)
	write(t, dir, "psk", "a:01\nb:02\n", 0o600)
	write(t, dir, "data/devices.d/soil.yaml", "id: soil\nprofile: senml\ncoap: {url: \"coap://[fd00::1]/sensors\", observe: true}\nparent: gone\n", 0o644)
	in := strings.Replace(good, "pubsub.example.org\n", "pubsub.example.org\n  rooms: [{jid: house@conference.example.org}]\n", 1)
	in = strings.Replace(in, "coap: {", `coap: {dtls: {listen: ":5684", psk_file: psk}, `, 1)
	in += "discovery: {accept: auto}\nmetrics: {listen: \"127.0.0.1:9464\"}\nrules: []\nweb: {}\n"
	path := write(t, dir, "c.yaml", in, 0o644)
	c, faults := Load(path, testOptions())
	if faults != nil {
		t.Fatal(faults)
	}
	var got strings.Builder
	for _, f := range c.NotYet() {
		got.WriteString(strings.ReplaceAll(f.String(), dir+"/", "") + "\n")
	}
	const want = `data/devices.d/soil.yaml:4:9: parent: has no effect: there is no such device; correct it, or remove it
c.yaml:16:1: rules: has no effect in this version; no rule is followed
c.yaml:17:1: web: has no effect in this version; nothing listens there
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	if c.XMPP.Rooms[0].Nick != "gw" {
		t.Errorf("the nick is %q", c.XMPP.Rooms[0].Nick)
	}
	if got := c.CoAP.DTLS.PSK.Reveal(); got != "a:01\nb:02" {
		t.Errorf("the keys are %q", got)
	}
}

func FuzzLoad(f *testing.F) {
	for _, name := range []string{"porchlight.yaml", "minimal.yaml"} {
		data, err := os.ReadFile(configs + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add(good)
	f.Add("xmpp: {account: {jid: a@b, tls: {mode: off, client_key_file: x, client_cert_file: y}}, rooms: [{}]}\n" +
		"operators: [{jid: \"@/\", role: owner, devices: [\"[\"], hours: x, until: 1}]\ncoap: {dtls: {listen: \"[::1%a]:1\"}}\nmetrics: {}\n" +
		"mqtt: {listen: \":0\", users: [{}], brokers: [{url: \"ws://[::1]/a?b#c\", tls: {}}]}\ndevices: [{coap: {url: \"%\"}, serial: {}, mqtt: {}}]\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in string) {
		path := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(path, []byte(in), 0o600); err != nil {
			t.Fatal(err)
		}
		c, faults := Load(path, testOptions())
		if (c == nil) != (len(faults) > 0) {
			t.Errorf("%d faults and the config %v", len(faults), c)
		}
		for _, fault := range faults {
			if s := fault.String(); strings.ContainsAny(s, "\n\r") || fault.Line < 1 || fault.Column < 1 {
				t.Errorf("odd fault %q", s)
			}
		}
		if c != nil {
			c.NotYet()
		}
	})
}
