package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/agent/calendar"
)

// TestDeviceFile writes files, reads them back, and changes one that somebody
// has edited.
func TestDeviceFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "secret", "s3cret", 0o600)
	path := write(t, dir, "c.yaml", good, 0o644)
	own := func(id string) string { return filepath.Join(dir, "data", DevicesDir, id+".yaml") }
	load := func() []Device {
		t.Helper()
		c, faults := Load(path, testOptions())
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		for i := range c.Devices {
			c.Devices[i].Timezone = calendar.Zone{}
		}
		return c.Devices[1:]
	}
	want := []Device{
		{ID: "a", Name: `no: "x" # y`, Profile: "tasmota", MQTT: &DeviceMQTT{Topic: "on", Broker: "house"}, Identity: "0012", Parent: "kitchen"},
		{ID: "b", Name: "1.10", Profile: "dsmr-p1", Serial: &DeviceSerial{Port: "/dev/ttyUSB0", Baud: 9600}},
		{ID: "c", Name: "Grüße", Profile: "senml", CoAP: &DeviceCoAP{}},
	}
	for _, d := range want {
		text, err := DeviceFile(d, []string{"About it."})
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, "data/devices.d/"+string(d.ID)+".yaml", string(text), 0o600)
	}
	if got := load(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}

	text, err := os.ReadFile(own("a"))
	if err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(text), "#groups: [lights]", "groups: [lights]   # mine", 1)
	want[0].Name, want[0].Groups = "Kitchen plug", []string{"lights"}
	want[0].MQTT, want[0].CoAP, want[0].Profile, want[0].Identity = nil, &DeviceCoAP{}, "senml", ""
	changed, err := Amend([]byte(edited), want[0])
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "data/devices.d/a.yaml", string(changed), 0o600)
	if got := load(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, kept := range []string{"# About it.", "# What people call it.", "# mine", "# Where it is found.", "#timezone: Europe/Berlin"} {
		if !strings.Contains(string(changed), kept) {
			t.Errorf("%q is gone from\n%s", kept, changed)
		}
	}
	for _, broken := range []string{"", "- a", "a: [", "a"} {
		if _, err := Amend([]byte(broken), want[0]); err == nil {
			t.Errorf("%q is changed", broken)
		}
	}
}
