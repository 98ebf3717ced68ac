package mqtt

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// A talk is messages that an ear hears.
type talk struct {
	t         testing.TB
	ear       *ear
	directory *directory
	sink      *devicetest.Sink
}

func newTalk(t testing.TB, profiles *profile.Library, ds ...Device) *talk {
	return &talk{t, newEar(profiles, false), newDirectory(ds), &devicetest.Sink{Auto: true, Curious: true}}
}

// hear gives what a message has brought: <device>.<field>=<value> <unit>.
func (k *talk) hear(topic, payload string) (fields []string) {
	k.t.Helper()
	before := len(k.sink.WaitMessages(k.t, 0))
	if _, _, err := k.ear.report(k.t.Context(), k.directory, publication{topic: topic, payload: []byte(payload), qos: 1}, k.sink); err != nil {
		k.t.Fatal(err)
	}
	for _, m := range k.sink.WaitMessages(k.t, 0)[before:] {
		for _, r := range m.Readings {
			for _, f := range r.Fields {
				fields = append(fields, fmt.Sprintf("%s.%s=%s %s", r.Device, f.Name, f.Value, f.Unit))
			}
		}
	}
	slices.Sort(fields)
	return fields
}

func (k *talk) want(topic, payload string, fields ...string) {
	k.t.Helper()
	if got := k.hear(topic, payload); !slices.Equal(got, fields) {
		k.t.Errorf("%s %s brings %q, want %q", topic, payload, got, fields)
	}
}

// TestAnnouncedIsNoReading has configured devices announce themselves, with
// values: those are of then, and facts are not measured.
func TestAnnouncedIsNoReading(t *testing.T) {
	k := newTalk(t, known(t), device(t, "plug", "tasmota", "plug"), device(t, "sensor", "zigbee2mqtt", "hall/sensor"), device(t, "bridge", "zigbee2mqtt", "bridge"))
	k.want("tasmota/discovery/DC4F22A1B2C3/config", announcement)
	k.want("tasmota/discovery/DC4F22A1B2C3/sensors", `{"sn":{"Time":"2026-11-23T08:00:00","AM2301":{"Temperature":20.6}},"ver":1}`)
	k.want("zigbee2mqtt/bridge/devices", bridged)
	k.want("tele/plug/SENSOR", `{"AM2301":{"Temperature":20.7},"TempUnit":"C"}`, "plug.am2301_temperature=20.7 °C")
	k.want("zigbee2mqtt/hall/sensor", `{"temperature":21.40}`, "sensor.temperature=21.40 °C")
}

// TestChildren has a bridge tell of itself and of those behind it in one
// message, which is acknowledged as one.
func TestChildren(t *testing.T) {
	child := device(t, "door", "tasmota", "0x5ADF")
	k := newTalk(t, known(t), device(t, "bridge", "tasmota", "zb"), child)
	before := len(k.sink.WaitMessages(t, 0))
	k.want("tele/zb/SENSOR", `{"ZbReceived":{"0x5ADF":{"Temperature":20.5},"0x1111":{"Temperature":3}}}`, "door.temperature=20.5 °C")
	if got := len(k.sink.WaitMessages(t, 1)) - before; got != 1 {
		t.Errorf("%d messages", got)
	}
	if s := k.sink.WaitUnknown(t, 1); s[0].Identity != "0x1111" {
		t.Errorf("the stranger is %+v", s[0])
	}
}

// TestOwnProfileOfManyThatFit has two devices on the same kind of topics, one
// of which has a profile of its installer's, that extends the other's. Each is
// read by its own.
func TestOwnProfileOfManyThatFit(t *testing.T) {
	folder := t.TempDir()
	const own = `{profile: 1, id: a-tasmota, name: Ours, extends: tasmota, fields: [{select: "AM2301/Temperature", name: attic, unit: °C}]}`
	if err := os.WriteFile(filepath.Join(folder, "a-tasmota.yaml"), []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := profile.Load(folder)
	if err != nil {
		t.Fatal(err)
	}
	of := func(id devices.ID, name, topic string) Device {
		return Device{Device: devices.Device{ID: id}, Profile: all.Get(name), Place: profile.Place{Device: id, Topic: topic}}
	}
	k := newTalk(t, all, of("attic", "a-tasmota", "attic"), of("cellar", "tasmota", "cellar"), of("kitchen", "json", "kitchen"))
	k.want("tele/attic/SENSOR", `{"AM2301":{"Temperature":20.7}}`, "attic.attic=20.7 °C")
	k.want("tele/cellar/SENSOR", `{"AM2301":{"Temperature":20.7}}`, "cellar.am2301_temperature=20.7 °C")
	k.want("kitchen", `{"temperature":1}`, "kitchen.temperature=1 ")
}

// TestFamily has a device that is configured by one version of a convention,
// and speaks another.
func TestFamily(t *testing.T) {
	k := newTalk(t, known(t), device(t, "car", "homie4", "super-car"))
	k.want("homie/super-car/$homie", "3.0.1")
	k.want("homie/super-car/$name", "Super car")
	k.want("homie/super-car/$nodes", "engine")
	k.want("homie/super-car/engine/$properties", "temperature")
	k.want("homie/super-car/engine/temperature/$datatype", "float")
	k.want("homie/super-car/engine/temperature/$unit", "°C")
	k.want("homie/super-car/engine/temperature", "21.5", "car.engine_temperature=21.5 °C")
}

// TestRepeats: which of a Tasmota's messages may say again what another said.
func TestRepeats(t *testing.T) {
	k := newTalk(t, known(t), device(t, "plug", "tasmota", "plug"))
	k.want("stat/plug/RESULT", `{"POWER":"ON"}`, "plug.power=true ")
	k.want("stat/plug/POWER", "ON", "plug.power=true ")
	k.want("stat/plug/POWER", `{"POWER":"ON"}`, "plug.power=true ")
	for i, want := range []bool{false, true, false} {
		if m := k.sink.WaitMessages(t, 3)[i]; m.Repeats != want {
			t.Errorf("message %d repeats: %v", i, m.Repeats)
		}
	}
}
