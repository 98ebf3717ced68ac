package mqtt

import (
	"slices"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// device makes one with a profile that comes with the program.
func device(t testing.TB, id devices.ID, name, topic string) Device {
	t.Helper()
	all, err := profile.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	p := all.Get(name)
	if p == nil {
		t.Fatalf("there is no profile %s", name)
	}
	return Device{Device: devices.Device{ID: id}, Profile: p, Place: profile.Place{Device: id, Topic: topic}}
}

func TestCheckTopic(t *testing.T) {
	deep := strings.Repeat("a/", maxLevels-1) + "a"
	for _, topic := range []string{"a", "/", "a//b", "tele/küche/SENSOR", "$SYS/x", deep, strings.Repeat("a", maxTopic)} {
		if err := checkTopic(topic); err != nil {
			t.Errorf("%q: %v", topic, err)
		}
	}
	for topic, want := range map[string]string{
		"": "empty", strings.Repeat("a", maxTopic+1): "1025 bytes", "a\x00b": "NUL", "a\xff": "UTF-8", "\xed\xa0\x80": "UTF-8",
		"a/+/b": "wildcard", "#": "wildcard", deep + "/a": "more than 16 levels",
	} {
		if err := checkTopic(topic); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", topic, err, want)
		}
	}
}

func TestDirectory(t *testing.T) {
	d := newDirectory([]Device{
		device(t, "house", "value", "house"),
		device(t, "kitchen", "tasmota", "kitchen"),
		device(t, "lamp", "json", "house/lamp"),
		device(t, "deep", "json", "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p"),
	})
	for topic, want := range map[string]devices.ID{
		"house": "house", "house/temperature": "house", "house/lamp": "lamp", "house/lamp/LWT": "lamp", "house/a/b": "",
		"tele/kitchen/SENSOR": "kitchen", "kitchen/stat/RESULT": "kitchen", "home/tele/kitchen/STATE": "kitchen",
		"cmnd/kitchen/POWER": "", "kitchen": "", "tele/kitche/SENSOR": "", "tele/kitchens/SENSOR": "", "": "", "/": "", "house/": "house",
		"a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p": "deep", "b/c/d/e/f/g/h/i/j/k/l/m/n/o/p": "",
	} {
		var got devices.ID
		if found := d.find(topic); found != nil {
			got = found.ID
		}
		if got != want {
			t.Errorf("%q is of %q, want %q", topic, got, want)
		}
	}
	twice := newDirectory([]Device{device(t, "a", "json", "x"), device(t, "b", "value", "x")})
	all := twice.filters()
	sorted := slices.Clone(all)
	slices.Sort(sorted)
	if len(all) == 0 || len(slices.Compact(sorted)) != len(all) {
		t.Errorf("filters: %q", all)
	}
}

func TestRights(t *testing.T) {
	d := newDirectory([]Device{
		device(t, "kitchen", "tasmota", "kitchen"),
		device(t, "lamp", "tasmota", "tasmota_49A3BC"), // of the user with its id
		device(t, "bulb", "json", "zigbee/bulb"),       // of the user of the tree
		device(t, "orphan", "tasmota", "orphan"),
		device(t, "nested", "json", "kitchen/zigbee"), // in the tree of one, with the name of another
	})
	var users []User
	for _, name := range []string{"kitchen", "lamp", "zigbee", "bob", "tele"} {
		users = append(users, User{Name: name})
	}
	r := newRights(users, d)
	for _, c := range []struct {
		topic string
		users string // who may
	}{
		{"kitchen", "kitchen"}, {"kitchen/a/b", "kitchen"}, {"kitchen/#", "kitchen"}, {"cmnd/kitchen/#", "kitchen"}, {"+/kitchen/#", "kitchen"},
		{"home/cmnd/kitchen/POWER", "kitchen"}, {"$share/g/cmnd/kitchen/#", "kitchen"},
		{"a/b/c/kitchen", ""}, // too far down
		// On what a device reports only its user may publish, whatever else the topic says.
		{"tele/kitchen/SENSOR", "kitchen"}, {"bob/tele/kitchen/SENSOR", "kitchen"}, {"bob/kitchen/x", "bob"}, {"kitchen/bob/x", "kitchen"},
		{"tele/tasmota_49A3BC/SENSOR", "lamp"}, {"cmnd/tasmota_49A3BC/#", "lamp"}, {"lamp/x", "lamp"},
		{"zigbee/bulb", "zigbee"}, {"zigbee/bridge/state", "zigbee"}, {"zigbee/bulb/set", "zigbee"},
		{"tele/orphan/SENSOR", ""}, {"stat/orphan/RESULT", ""}, {"kitchen/zigbee", "kitchen"},
		{"tele/x", "tele"}, {"tele/kitchen/#", "tele"}, // each message on it is judged by itself
		{"#", ""}, {"+/+", ""}, {"+/#", ""}, {"$SYS/broker/version", ""}, {"$SYS/#", ""}, {"$share/g/#", ""}, {"$share/g", ""}, {"$share/g/$SYS/#", ""},
		{"", ""}, {"/", ""}, {"homeassistant/sensor/x/config", ""}, {strings.Repeat("kitchen/", 16), ""}, {"kitchen/" + strings.Repeat("x", maxTopic), ""},
	} {
		var may []string
		for _, u := range []string{"", "kitchen", "lamp", "zigbee", "bob", "tele", "nobody"} {
			if r.mayUse(u, c.topic) {
				may = append(may, u)
			}
		}
		if got := strings.Join(may, " "); got != c.users {
			t.Errorf("%q may be used by %q, want %q", c.topic, got, c.users)
		}
	}
	open := newRights(nil, d)
	for topic, want := range map[string]bool{"#": true, "any/thing": true, "$SYS/x": false, "$share/g/#": true, "$share/g/$SYS/#": false} {
		if open.mayUse("", topic) != want {
			t.Errorf("without users, %q: %v", topic, !want)
		}
	}
}

// FuzzRights looks for a topic that two may use.
func FuzzRights(f *testing.F) {
	d := newDirectory([]Device{device(f, "kitchen", "tasmota", "kitchen"), device(f, "lamp", "json", "bob/lamp"), device(f, "x", "value", "x")})
	r := newRights([]User{{Name: "kitchen"}, {Name: "bob"}, {Name: "x"}}, d)
	for _, s := range []string{"tele/kitchen/SENSOR", "bob/kitchen/x", "bob/lamp", "+/x/#", "$share/g/x/y", "kitchen/bob/x", "x/y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		n := 0
		for _, u := range []string{"kitchen", "bob", "x"} {
			if r.mayUse(u, topic) {
				n++
			}
		}
		if n > 1 || r.mayUse("", topic) {
			t.Errorf("%q may be used by %d", topic, n)
		}
	})
}
