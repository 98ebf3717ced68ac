package aboard

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// A bench is a registry on a real directory, with a config that is read anew
// as the agent does.
type bench struct {
	*Registry
	t       *testing.T
	dir     string
	config  *config.Config
	options config.LoadOptions
}

func newBench(t *testing.T, accept, ds string) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), options: config.LoadOptions{Profiles: func(string) (map[string]string, strictyaml.Faults) {
		return map[string]string{"tasmota": "mqtt", "z2m": "mqtt", "senml": "mqtt,coap"}, nil
	}}}
	b.write("secret", "s")
	b.write("c.yaml", fmt.Sprintf(`gateway: {id: gw, data_dir: data}
xmpp:
  component: {domain: gw.localhost, server: "127.0.0.1:1", secret_file: secret}
  pubsub: pubsub.localhost
mqtt:
  listen: 127.0.0.1:1883
  brokers:
    - {name: house, url: "mqtt://127.0.0.1:1"}
    - {name: attic, url: "mqtt://127.0.0.1:2"}
coap: {listen: "127.0.0.1:5683"}
discovery: {accept: %s}
devices: [%s]
`, accept, ds))
	if err := os.Mkdir(filepath.Join(b.dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.open()
	return b
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// open starts anew.
func (b *bench) open() {
	b.t.Helper()
	var err error
	if b.Registry, err = Open(filepath.Join(b.dir, "data")); err != nil {
		b.t.Fatal(err)
	}
	b.reload()
}

func (b *bench) reload() {
	b.t.Helper()
	c, faults := config.Load(filepath.Join(b.dir, "c.yaml"), b.options)
	if len(faults) > 0 {
		b.t.Fatal(faults)
	}
	b.config = c
	b.Configure(c)
}

func (b *bench) ids() (all []devices.ID) {
	for _, p := range b.Pending() {
		all = append(all, p.ID)
	}
	return all
}

func value(name, v string) devices.Field {
	n, err := devices.ParseNumber(v)
	if err != nil {
		panic(err)
	}
	return devices.Field{Name: name, Value: n, Unit: "°C"}
}

// heard is a candidate that told a temperature.
func heard(link, place string) Candidate {
	return Candidate{Transport: "mqtt", Link: link, Place: place, Profile: "tasmota", Identity: place, Sample: []devices.Field{value("temperature", "21.40")}}
}

func TestIDs(t *testing.T) {
	b := newBench(t, "ask", `{id: hall, profile: tasmota, mqtt: {topic: x}, groups: [lights]}`)
	for _, c := range []struct {
		name, place string
		want        devices.ID
	}{
		{"", "kitchen", "kitchen"},
		{"Kitchen", "other", "kitchen-2"},
		{"hall", "a", "hall-2"},     // a device has it
		{"lights", "b", "lights-2"}, // a group
		{"Status", "c", "status-2"}, // a word
		{"7", "d", "device-7"},      // would be taken for the seventh
		{"♥", "e", "device"},
		{strings.Repeat("long ", 20), "f", "long-long-long-long-long-long-long-long"},
		{strings.Repeat("long ", 20), "g", "long-long-long-long-long-long-long-lon-2"},
	} {
		h := heard("house", c.place)
		h.Name = c.name
		p, fresh := b.Seen(h)
		if !fresh || p.ID != c.want {
			t.Errorf("%q is %s, want %s", c.name, p.ID, c.want)
		}
		if _, err := devices.ParseID(string(p.ID)); err != nil || devices.Reserved(string(p.ID)) {
			t.Errorf("%s: %v", p.ID, err)
		}
	}
	coap := func(place string) Candidate {
		return Candidate{Transport: "coap", Place: place, Profile: "senml", Sample: []devices.Field{value("t", "1")}}
	}
	for _, bad := range []string{"hall", "lights", "kitchen", "7", "status", "Kitchen", "a/b", ""} {
		if _, fresh := b.Seen(coap(bad)); fresh {
			t.Errorf("by CoAP, %q is pending", bad)
		}
	}
	if p, fresh := b.Seen(coap("soil")); !fresh || p.ID != "soil" {
		t.Errorf("by CoAP: %+v", p)
	}
	if _, err := b.Admit("soil", Terms{As: "earth"}); err == nil || !strings.Contains(err.Error(), "/d/soil") {
		t.Errorf("it posts to /d/soil: %v", err)
	}
}

// TestDecisionsLast admits and refuses, and starts anew.
func TestDecisionsLast(t *testing.T) {
	b := newBench(t, "ask", "")
	for _, place := range []string{"plug", "spy", "other"} { // 1, 3, 5: even numbers are people
		b.Seen(heard("house", place))
	}
	if _, err := b.Refuse("3"); err != nil {
		t.Fatal(err)
	}
	d, err := b.Admit("plug", Terms{})
	if err != nil || d.ID != "plug" {
		t.Fatal(d, err)
	}
	b.reload()
	if got := b.ids(); !slices.Equal(got, []devices.ID{"other"}) {
		t.Errorf("pending are %v", got)
	}
	b.open()
	b.Seen(heard("house", "spy"))
	b.Seen(heard("house", "other"))
	if got := b.ids(); !slices.Equal(got, []devices.ID{"other"}) {
		t.Errorf("after a start, pending are %v", got)
	}
	if len(b.config.Devices) != 1 || b.config.Devices[0].MQTT.Broker != "house" {
		t.Errorf("the devices are %+v", b.config.Devices)
	}
	// The owner thinks better of it; it need not speak for that.
	if _, err := b.Admit("spy", Terms{Name: "Garden gate"}); err != nil {
		t.Fatal(err)
	}
	b.reload()
	if len(b.config.Devices) != 2 || b.config.Devices[1].Name != "Garden gate" || len(b.Refused()) != 0 {
		t.Errorf("the devices are %+v, refused are %v", b.config.Devices, b.Refused())
	}
	for which, want := range map[string]string{"99": "nothing of that", "nobody": "nothing of that", "": "nothing of that"} {
		if _, err := b.Admit(which, Terms{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", which, err)
		}
		if _, err := b.Refuse(which); err == nil {
			t.Errorf("%q is refused", which)
		}
	}
}

// TestBrokenDecisions sets a file aside that cannot be read.
func TestBrokenDecisions(t *testing.T) {
	for _, text := range []string{"{", `{"version":2}`, "\x00\x00"} {
		dir := t.TempDir()
		path := filepath.Join(dir, decisionsFile)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Open(dir)
		if r == nil || err == nil {
			t.Fatalf("%q: no error", text)
		}
		if kept, err := os.ReadFile(path + ".broken"); err != nil || string(kept) != text {
			t.Errorf("%q is not kept: %v", text, err)
		}
		r.Configure(config.Default())
		r.Seen(heard("house", "spy"))
		if _, err := r.Refuse("spy"); err != nil {
			t.Error(err)
		}
	}
}

// TestSameDevice hears one device in several places.
func TestSameDevice(t *testing.T) {
	const address = "0x00158d00018255df"
	b := newBench(t, "ask", "")
	first := heard("house", "zigbee2mqtt/plug")
	first.Profile, first.Identity = "z2m", address
	b.Seen(first)
	second := heard("attic", "plug")
	second.Profile, second.Identity = "hass", "plug 00:15:8D:00:01:82:55:DF"
	if _, fresh := b.Seen(second); fresh {
		t.Error("it is pending twice")
	}
	if p := b.Pending(); len(p) != 1 || !slices.Equal(p[0].Also, []string{"mqtt attic, topic plug"}) {
		t.Fatalf("pending are %+v", p)
	}
	if _, err := b.Admit("1", Terms{}); err != nil {
		t.Fatal(err)
	}
	b.reload()
	p, fresh := b.Seen(second)
	if !fresh || p.SameAs != b.config.Devices[0].ID {
		t.Fatalf("pending is %+v", p)
	}
	if _, err := b.Admit(string(p.ID), Terms{}); err == nil || !strings.Contains(err.Error(), "the same as") {
		t.Errorf("it is admitted twice: %v", err)
	}
	b.options.Profiles = func(string) (map[string]string, strictyaml.Faults) {
		return map[string]string{"tasmota": "mqtt", "hass": "mqtt"}, nil
	}
	if _, err := b.Admit(string(p.ID), Terms{As: p.SameAs}); err != nil {
		t.Fatal(err)
	}
	b.reload()
	if d := b.config.Devices; len(d) != 1 || d[0].ID != p.SameAs || d[0].Profile != "hass" || d[0].MQTT.Broker != "attic" {
		t.Errorf("the devices are %+v", d)
	}
}

// TestOnlyOwnFiles does not change what stands in the main file.
func TestOnlyOwnFiles(t *testing.T) {
	b := newBench(t, "ask", `{id: hall, profile: tasmota, mqtt: {topic: hall}}`)
	b.Seen(heard("house", "new"))
	_, admit := b.Admit("new", Terms{As: "hall"})
	for what, err := range map[string]error{"admit": admit, "rename": b.Rename("hall", "Hall"), "remove": b.Remove("hall")} {
		if err == nil || !strings.Contains(err.Error(), "c.yaml, line 12; change it there") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Nor what somebody wrote and did not finish.
	b.write("data/unrelated", "")
	if err := os.MkdirAll(filepath.Join(b.dir, "data", "devices.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.write("data/devices.d/new.yaml", "id: new\n")
	if _, err := b.Admit("new", Terms{}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a file is replaced: %v", err)
	}
	for _, err := range []error{b.Rename("nobody", "x"), b.Remove("nobody"), b.Rename("hall", "a\u202eb"), b.Rename("hall", "")} {
		if err == nil {
			t.Error("done what cannot be")
		}
	}
}

// TestHostileStrangers bounds their number, and what each says.
func TestHostileStrangers(t *testing.T) {
	b := newBench(t, "ask", "")
	now := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	b.now = func() time.Time { now = now.Add(time.Second); return now }
	b.Seen(heard("house", "early"))
	b.Seen(heard("house", "silent"))
	for i := range 10_000 {
		c := heard("house", fmt.Sprintf("s%d", i))
		c.Name = strings.Repeat("n", 5000)
		b.Seen(c)
		if i%100 == 0 {
			b.Seen(heard("house", "early"))
		}
	}
	ids := b.ids()
	if len(ids) != maxPending || len(b.by) > 4*maxPending {
		t.Errorf("%d are pending under %d keys", len(ids), len(b.by))
	}
	if !slices.Contains(ids, "early") || slices.Contains(ids, "silent") {
		t.Error("not the one goes that is silent longest")
	}
	evil := heard("house", "evil")
	evil.Name = "Plug\u202e\x1b[2J\n  and\u200b more\xff" + strings.Repeat("x", 500)
	evil.Model = strings.Repeat("ü", 500)
	evil.Identity = "a\nb"
	evil.Peer = "\x00"
	for i := range 100 {
		evil.Sample = append(evil.Sample, devices.Field{Name: fmt.Sprint("f", i), Value: devices.Text("\x1b]0;" + strings.Repeat("v", 500)), Unit: devices.Unit(strings.Repeat("u", 500))})
	}
	p, _ := b.Seen(evil)
	p.keys = nil // are not shown
	if !strings.HasPrefix(p.Name, "Plug [2J and morexx") || len([]rune(p.Name)) != maxName+1 || p.Identity != "" || len(p.Sample) > maxSample ||
		strings.ContainsAny(fmt.Sprint(p), "\x1b\u202e\n\x00") {
		t.Errorf("pending is %q %+v", p.Name, p)
	}
	for _, place := range []string{"", "a\nb", "a/+", "#", "a\u202eb", strings.Repeat("p", 300), "a\xff"} {
		if _, fresh := b.Seen(heard("house", place)); fresh {
			t.Errorf("%q is pending", place)
		}
	}
	d, err := b.Admit(string(p.ID), Terms{})
	if err != nil {
		t.Fatal(err)
	}
	b.reload() // which fails where the file cannot be read
	if got := b.config.Devices[0]; got.Name != d.Name || got.MQTT.Topic != "evil" {
		t.Errorf("the device is %+v", got)
	}
}

func TestAuto(t *testing.T) {
	b := newBench(t, "auto", `{id: hall, profile: tasmota, mqtt: {topic: hall, broker: house}}`)
	old := heard("house", "old")
	old.Retained = true
	b.Seen(old)
	b.Seen(heard("attic", "hall")) // the same as another, probably
	b.Seen(Candidate{Transport: "mqtt", Link: "house", Place: "quiet", Profile: "tasmota"})
	select {
	case <-b.Due():
		t.Fatal("one of these is admitted by itself")
	default:
	}
	for i := range 2*autoAtOnce + 1 {
		b.Seen(heard("house", fmt.Sprintf("s%d", i)))
	}
	rounds := 0
	for {
		select {
		case <-b.Due():
		default:
			if n := len(b.config.Devices); n != 2*autoAtOnce+2 || rounds != 3 {
				t.Errorf("%d devices after %d rounds", n, rounds)
			}
			if got := b.ids(); !slices.Equal(got, []devices.ID{"old", "hall-2"}) {
				t.Errorf("pending are %v", got)
			}
			return
		}
		if _, err := b.AdmitDue(); err != nil {
			t.Fatal(err)
		}
		b.reload()
		rounds++
	}
}

func TestOff(t *testing.T) {
	b := newBench(t, "ask", "")
	b.Seen(heard("house", "plug"))
	c := *b.config
	c.Discovery.Accept = "off"
	b.Configure(&c)
	if _, fresh := b.Seen(heard("house", "other")); fresh || len(b.ids()) > 0 || b.Accepts() {
		t.Errorf("pending are %v", b.ids())
	}
}

func TestHardwareAddress(t *testing.T) {
	for name, want := range map[string]string{
		"0x00158d00018255df":                         "00158d00018255df",
		"shellyplus1-a8032ab12345":                   "a8032ab12345",
		"A8:03:2A:B1:23:45":                          "a8032ab12345",
		"plug a8-03-2a-b1-23-45 x":                   "a8032ab12345",
		"DC4F22A1B2C3":                               "dc4f22a1b2c3",
		"zigbee2mqtt_0x00158d00018255df_temperature": "00158d00018255df",
		"kitchen":                   "",
		"114180000001":              "", // a serial number, as like as not
		"000000000000":              "",
		"ff:ff:ff:ff:ff:ff":         "",
		"a8032ab12345 dc4f22a1b2c3": "",
		"a8032ab123456":             "",
		"deadbeefcafe":              "deadbeefcafe",
		"A8:03:2A:B1:23":            "",
		"1a8032ab12345-a8:03:2a:b1:23:45:66:77:88:99": "",
	} {
		if got := hardwareAddress(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	f.Add("Kitchen\u202e plug\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s, maxName)
		if clean(got, maxName+1) != got || len([]rune(got)) > maxName+1 || strings.ContainsAny(got, "\n\r\t\x00\x1b\u202e\u2066\ufeff") {
			t.Errorf("%q becomes %q", s, got)
		}
	})
}
