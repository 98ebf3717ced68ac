package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// allLines are the samples of all firmwares.
func allLines(t testing.TB) (all []Sample) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "firmware-profiles", "testdata", "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		all = append(all, readLines(t, file)...)
	}
	return all
}

var fieldNames = regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`)

// soundOutput checks what must hold of all that comes out, whatever came in.
func soundOutput(out Output, err error) string {
	if err != nil {
		if text := err.Error(); strings.ContainsAny(text, "\n\r") || len(text) > 400 || !utf8.ValidString(text) {
			return fmt.Sprintf("no line for a log: %q", text)
		}
		if len(out.Readings) > 0 {
			return "readings beside an error"
		}
		return ""
	}
	if len(out.Children) > maxDescribed {
		return fmt.Sprintf("%d devices", len(out.Children))
	}
	for _, r := range out.Readings {
		if len(r.Fields) == 0 || len(r.Fields) > maxFields {
			return fmt.Sprintf("a reading of %d fields", len(r.Fields))
		}
		if !r.Time.IsZero() && !devices.Believable(r.Time, received) {
			return fmt.Sprintf("the time %v", r.Time)
		}
		seen := make(map[string]bool)
		for _, f := range r.Fields {
			if !fieldNames.MatchString(f.Name) || len(f.Name) > 2*maxName || seen[f.Name] || !f.Value.IsValid() || len(f.Value.String()) > maxText {
				return fmt.Sprintf("the field %.300v", f)
			}
			if len(f.Unit) > maxUnit+8 || !utf8.ValidString(string(f.Unit)) {
				return fmt.Sprintf("the unit %q", f.Unit)
			}
			seen[f.Name] = true
		}
	}
	for _, child := range out.Children {
		if problem := soundOutput(child, nil); problem != "" {
			return child.Identity + ": " + problem
		}
	}
	return ""
}

// mutations are what a bad line, a hostile device or a broken one makes of a
// message.
func mutations(payload []byte, random *rand.Rand) (all [][]byte) {
	for i := range 8 {
		all = append(all, payload[:len(payload)*i/8])
	}
	all = append(all, slices.Concat(payload, payload), slices.Concat(payload, []byte("\n"), payload), make([]byte, len(payload)))
	noise := make([]byte, 1+random.IntN(300))
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	all = append(all, noise)
	for range 4 {
		flipped := bytes.Clone(payload)
		if len(flipped) > 0 {
			flipped[random.IntN(len(flipped))] ^= 1 << random.IntN(8)
		}
		all = append(all, flipped)
	}
	return all
}

// TestMutatedSamples hears every sample cut, doubled, zeroed, with bits turned,
// and noise in its place: in a session that knows the real ones, and alone.
func TestMutatedSamples(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(7, 7))
	session := library.NewSession(time.UTC)
	heard := 0
	for _, s := range allLines(t) {
		m, err := s.Message(received)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Hear(session, received)
		for _, payload := range mutations(m.Payload, random) {
			m.Payload = payload
			for _, house := range []*Session{session, library.NewSession(time.UTC)} {
				out, err := s.hear(house, m)
				if problem := soundOutput(out, err); problem != "" {
					t.Errorf("%s %q: %s", s.ID, payload, problem)
				}
				heard++
			}
		}
	}
	if heard < 1000 {
		t.Errorf("only %d messages were heard", heard)
	}
}

// TestWrongChecksum turns bits in each byte of the frames whose checksum is good.
func TestWrongChecksum(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	session := library.NewSession(time.UTC)
	frames := 0
	for _, s := range allLines(t) {
		if s.Checksum != "ok" || notHeard[s.ID] != "" || s.Expect.Error != "" {
			continue
		}
		frames++
		m, err := s.Message(received)
		if err != nil {
			t.Fatal(err)
		}
		good := m.Payload
		for i := range good {
			for _, turned := range []byte{0x01, 0x41, 0x80, 0xff} {
				payload := bytes.Clone(good)
				payload[i] ^= turned
				m.Payload = payload
				if out, err := s.hear(session, m); err == nil && len(out.Readings) > 0 {
					t.Errorf("%s with byte %d turned by %02x: %s", s.ID, i, turned, line(out))
				}
			}
		}
	}
	if frames < 70 {
		t.Errorf("only %d frames have a checksum", frames)
	}
}

// monsters are messages that are large or deep, each of about a megabyte.
func monsters() map[string][]byte {
	var object, list, text bytes.Buffer
	for i := 0; object.Len() < 1<<20; i++ {
		fmt.Fprintf(&object, `,"name%d":{"value":%d,"unit":"C"}`, i, i)
		fmt.Fprintf(&list, `,{"ieee_address":"0x%d","friendly_name":"n%d","n":"x%d","v":%d}`, i, i, i, i)
	}
	text.WriteString(strings.Repeat("a=1;b:2,c\t", 1<<20/10))
	const mega = 1 << 20
	return map[string][]byte{
		"an object":       []byte("{" + object.String()[1:] + "}"),
		"a list":          []byte("[" + list.String()[1:] + "]"),
		"a long text":     []byte(`{"state":"` + strings.Repeat("x", mega) + `"}`),
		"a long name":     []byte(`{"` + strings.Repeat("x", mega) + `":1}`),
		"a long number":   bytes.Repeat([]byte("9"), mega),
		"deep objects":    []byte(strings.Repeat(`{"a":`, mega/5)),
		"deep lists":      bytes.Repeat([]byte("["), mega),
		"deep CBOR":       bytes.Repeat([]byte{0x81}, mega),
		"wide CBOR":       append([]byte{0x9a, 0x00, 0x0f, 0xff, 0xfb}, make([]byte, mega)...),
		"CBOR that lies":  {0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"pairs":           text.Bytes(),
		"columns":         bytes.Repeat([]byte("1;2,"), mega/4),
		"small but deep":  []byte(strings.Repeat(`{"a":`, 60000/6) + "1" + strings.Repeat("}", 60000/6)),
		"small and wide":  []byte("{" + object.String()[1:60000] + `"}}`),
		"protobuf":        bytes.Repeat([]byte{0x12, 0x7f}, mega/2),
		"as much as fits": bytes.Repeat([]byte("{}"), maxPayload/2),
	}
}

// TestMonsters sends each profile megabytes on each of its topics. What it
// allocates is bounded by what it was sent, and the time by that which it takes
// to look at each byte as a JSON parser does.
func TestMonsters(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	topics := make(map[string]Sample) // one of each decoding rule would be best; one of each profile and last level is near
	for _, s := range allLines(t) {
		topics[s.Firmware+" "+s.Topic[strings.LastIndexByte(s.Topic, '/')+1:]] = s
	}
	session := library.NewSession(time.UTC)
	var hearing, looking time.Duration
	for name, payload := range monsters() {
		quoted, err := json.Marshal(string(payload))
		if err != nil {
			t.Fatal(err)
		}
		began := cpuTime()
		for range 10 {
			json.Valid(quoted)
		}
		looking += (cpuTime() - began) / 10 * time.Duration(len(topics))
		for _, at := range sortedKeys(topics) {
			s := topics[at]
			m, err := s.Message(received)
			if err != nil {
				t.Fatal(err)
			}
			m.Payload = payload
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := cpuTime()
			out, err := s.hear(session, m)
			hearing += cpuTime() - began
			runtime.ReadMemStats(&after)
			if problem := soundOutput(out, err); problem != "" {
				t.Errorf("%s at %s: %s", name, at, problem)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > uint64(len(payload))*40+8<<20 {
				t.Errorf("%s at %s: %d MiB are allocated for %d KiB", name, at, used>>20, len(payload)>>10)
			}
		}
	}
	t.Logf("hearing took %v, looking %v", hearing, looking)
	if hearing > 5*looking {
		t.Error("hearing takes too long")
	}
}

// example makes a topic that the pattern fits, of the n-th device.
func (p topicPattern) example(n int) string {
	var levels []string
	for _, l := range p.levels {
		switch {
		case l.name == "":
			levels = append(levels, l.text)
		case l.name != "device" && len(l.globs) > 0:
			levels = append(levels, strings.NewReplacer("*", "", "?", "1", "[0-9]", "1").Replace(string(l.globs[0])))
		default:
			levels = append(levels, fmt.Sprintf("d%d", n))
		}
	}
	return strings.Join(levels, "/")
}

// TestManyTopics says something on 10,000 topics of each profile, to one
// session: what that remembers is bounded.
func TestManyTopics(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	payloads := [][]byte{[]byte("21.4"), []byte(`{"state":"ON","temperature":21.4,"model":"x","id":1,"time":"2026-11-23T08:00:00"}`)}
	for _, id := range library.Names() {
		p := library.Get(id)
		if len(p.file.Match) == 0 {
			continue
		}
		session := library.Only(id).NewSession(time.UTC)
		before := heapInUse()
		for n := range 10000 {
			topic := p.file.Match[n%len(p.file.Match)].Topic.example(n)
			out, err := session.Hear(Message{Topic: topic, Payload: payloads[n/len(p.file.Match)%2], ContentFormat: -1, Received: received})
			if problem := soundOutput(out, err); problem != "" {
				t.Errorf("%s %s: %s", id, topic, problem)
			}
		}
		if used := heapInUse() - before; used > 24<<20 {
			t.Errorf("%s: %d MiB are kept of 10,000 topics", id, used>>20)
		}
		runtime.KeepAlive(session)
	}
}

// heapInUse gives the bytes that are reachable.
func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestHostileTemplates announces entities whose templates would run for ever or
// fill the memory, or are none, and lets them read something.
func TestHostileTemplates(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	session := library.NewSession(time.UTC)
	for i, template := range []string{
		`{{ "a" * 1000000000 }}`, `{{ 9 ** 9 ** 9 ** 9 }}`, `{{ range(1000000000) | list | length }}`,
		`{% for i in range(1000000) %}{% for j in range(1000000) %}x{% endfor %}{% endfor %}`,
		`{% set x = "aaaaaaaa" %}{% for i in range(100) %}{% set x = x ~ x %}{% endfor %}{{ x }}`,
		`{% set ns = namespace(x="a") %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}`,
		`{{ value | regex_replace("(a+)+$", "b") }}`, `{{ value | regex_findall("(.*)*") | length }}`,
		`{{ value_json` + strings.Repeat(".a", 10000) + ` }}`, strings.Repeat("{{ (", 10000), strings.Repeat("(", 100000),
		`{{ ` + strings.Repeat("-", 100000) + `1 }}`, `{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}`,
		`{% include "/etc/passwd" %}`, `{{ ''.__class__.__mro__ }}`, `{{ value_json | tojson * 100000 }}`, "{{", "{%", "{{ value }", "\x00", `{{ "\ud800" }}`,
		`{{ value.split('') | join(',') | replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaa') }}`,
	} {
		config, err := json.Marshal(map[string]any{"name": "x", "unique_id": fmt.Sprint("u", i), "state_topic": fmt.Sprint("hostile/", i), "value_template": template, "device": map[string]any{"identifiers": []string{fmt.Sprint("d", i)}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []Message{
			{Topic: fmt.Sprintf("homeassistant/sensor/h%d/config", i), Payload: config},
			{Topic: fmt.Sprint("hostile/", i), Payload: []byte(strings.Repeat("a", 5000))},
			{Topic: fmt.Sprint("hostile/", i), Payload: []byte(`{"a":{"a":1}}`)},
		} {
			m.ContentFormat, m.Received = -1, received
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			out, err := session.Hear(m)
			runtime.ReadMemStats(&after)
			if problem := soundOutput(out, err); problem != "" {
				t.Errorf("%.60q: %s", template, problem)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
				t.Errorf("%.60q: %d MiB are allocated", template, used>>20)
			}
		}
	}
}

// generic are the profiles that take what many firmwares say; devices are told
// to them by the config, or nothing else is left.
var generic = []string{"json", "value", "senml", "lines", "plain", "arduino-json", "csv-lines"}

// TestNoSampleIsTakenByAnother asks every profile for every sample: of those
// whose topics fit, the firmware's own must come first, and alone in its
// priority; a frame or a line of one serial device is refused by the profiles of
// all others.
func TestNoSampleIsTakenByAnother(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range allLines(t) {
		want, renamed := profileOf[s.Firmware]
		if p := library.Get(s.Firmware); !renamed && p != nil {
			want = p.ID()
		}
		own := library.Get(want)
		if own == nil {
			continue
		}
		m, err := s.Message(received)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range library.Names() {
			p := library.Get(id)
			switch {
			case p == own || p.Family() == own.Family() || slices.Contains(generic, id):
			case s.Transport == "mqtt":
				if _, fits := p.captures(newHeard(m), ""); fits && p.Priority() >= own.Priority() {
					t.Errorf("%s %s is taken by %s too", s.ID, s.Topic, id)
				}
			case strings.HasPrefix(id, "modbus-") && strings.HasPrefix(want, "modbus-"): // registers do not say what they are
			case slices.Contains(p.Transports(), s.Transport) && s.Transport == "serial":
				if out, err := p.Decode(Place{}, m); err == nil && len(out.Readings) > 0 {
					t.Errorf("%s %s is taken by %s too: %s", s.ID, s.Topic, id, line(out))
				}
			}
		}
	}
}

// TestMuchIsAnnounced fills a session with announcements of many devices, and
// takes them back.
func TestMuchIsAnnounced(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	session := library.NewSession(time.UTC)
	padding := strings.Repeat("x", 60000)
	topic := func(i int) string { return fmt.Sprintf("homeassistant/sensor/d%d/config", i) }
	hear := func(i int, payload string) error {
		out, err := session.Hear(Message{Topic: topic(i), Payload: []byte(payload), ContentFormat: -1, Received: received})
		if problem := soundOutput(out, err); problem != "" {
			t.Error(problem)
		}
		return err
	}
	config := func(i int) string {
		return fmt.Sprintf(`{"name":"n","unique_id":"u%d","state_topic":"s/%d","icon":%q,"dev":{"ids":"d%d"}}`, i, i, padding, i)
	}
	const many = maxAnnounced/60000 + 10
	refused := 0
	for i := range many {
		if err := hear(i, config(i)); err != nil {
			refused++
			if err.Error() != "more is announced than can be remembered" {
				t.Fatal(err)
			}
		}
	}
	if refused < 10 || session.bytes > maxAnnounced || session.bytes < maxAnnounced*9/10 || len(session.known) != many-refused {
		t.Errorf("%d of %d announcements are refused, %d bytes and %d devices kept", refused, many, session.bytes, len(session.known))
	}
	for i := many; i < 2*many; i++ { // until there is no room for small ones
		if err := hear(i, strings.Replace(config(i), padding, "", 1)); err != nil {
			break
		}
	}
	if err := hear(0, config(0)+strings.Repeat(" ", 1000)); err == nil {
		t.Error("an announcement that grew is taken, though there is no room")
	}
	for i := range 2 * many {
		if err := hear(i, ""); err != nil {
			t.Fatal(err)
		}
	}
	if session.bytes+len(session.announced)+len(session.known)+len(session.topics)+session.parts != 0 {
		t.Errorf("something of them stayed: %d bytes, %d announcements", session.bytes, len(session.announced))
	}
	for i := range 1000 { // of nothing
		_ = hear(i, fmt.Sprintf(`{"name":"n%d"}`, i))
	}
	if len(session.announced) != len(session.known) {
		t.Errorf("%d announcements of %d devices", len(session.announced), len(session.known))
	}
}
