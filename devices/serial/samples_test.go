package serial_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/profile/framing"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// samples gives the messages of real devices on serial lines, by firmware. That
// they mean what they should is tested beside the profiles.
func samples(t testing.TB) map[string][]profile.Sample {
	t.Helper()
	files, err := filepath.Glob("../../firmware-profiles/testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no samples: %v", err)
	}
	all := make(map[string][]profile.Sample)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var s profile.Sample
			if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if s.Transport == "serial" {
				all[s.Firmware] = append(all[s.Firmware], s)
			}
		}
		_ = f.Close()
	}
	return all
}

// told writes what readings say.
func told(rs []devices.Reading) string {
	var words []string
	for _, r := range rs {
		for _, f := range r.Fields {
			words = append(words, fmt.Sprintf("%s=%s %s", f.Name, f.Value, f.Unit))
		}
	}
	return strings.Join(words, ", ")
}

// isText reports whether what a device says ends with a line.
func isText(rule framing.Rule) bool {
	return rule.IsLines() || rule.Telegram != nil || rule.JSON != nil
}

// noise is what is between frames, in such a way that a frame after it can be
// found: what a line or a block has before it belongs to it.
func noise(rng *rand.Rand, p *profile.Profile) []byte {
	b := make([]byte, rng.IntN(20))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	switch rule := p.Framing(); {
	case isText(rule): // with a byte that no text has: a word is no noise, and 03 may be of the frame before
		return append(append([]byte{0}, b...), "\r\n"...)
	case rule.Closed != nil:
		return append(b, rule.Closed.End+"\x00"...)
	case rule.HDLC != nil:
		return append(b, 0x7e)
	case rule.MIDI != nil:
		for i := range b {
			b[i] &= 0x7f
		}
	}
	return b
}

// Every sample of a device that speaks comes through a port as it is, cut at any
// place and with noise between.
func TestSamplesThroughAPort(t *testing.T) {
	library, err := library()
	if err != nil {
		t.Fatal(err)
	}
	for firmware, all := range samples(t) {
		p := library.Get(firmware)
		if p == nil || p.Framing().Modbus != nil {
			continue // Modbus: below
		}
		t.Run(firmware, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			var stream []byte
			var want []string
			hearing := p.NewHearing()
			for _, s := range all {
				m, err := s.Message(time.Now())
				if err != nil {
					t.Fatal(err)
				}
				if s.Kind == "command" || strings.HasPrefix(s.Topic, "(") {
					continue // to the device
				}
				frame := slices.Clone(m.Payload)
				if p.Framing().Telegram != nil && s.Topic == "line" {
					frame = fmt.Appendf(nil, "/ABC5METER\r\n\r\n%s\r\n!", frame) // it is of a telegram
				}
				if isText(p.Framing()) {
					frame = append(frame, "\r\n"...)
				}
				stream = append(append(stream, noise(rng, p)...), frame...)
				m.Topic = ""
				out, _, err := hearing.Decode(profile.Place{Location: time.UTC}, m)
				for _, o := range append([]profile.Output{out}, out.Children...) {
					if text := told(o.Readings); err == nil && text != "" {
						want = append(want, text)
					}
				}
			}
			device, sink := plug(t), &devicetest.Sink{Curious: true}
			d := serial.Device{Device: devices.Device{ID: "kitchen", Location: time.UTC}, Profile: p, Place: profile.Place{Device: "kitchen", Location: time.UTC}}
			start(t, serial.New(serial.Config{Port: device.Path(), Devices: []serial.Device{d}}, slog.New(slog.DiscardHandler)), sink)
			for len(stream) > 0 {
				n := min(len(stream), 1+rng.IntN(64))
				send(t, device, string(stream[:n]))
				stream = stream[n:]
			}
			deadline := time.Now().Add(30 * time.Second)
			for {
				got := heard(t, sink)
				if missing := without(want, got); len(missing) == 0 {
					if more := without(got, want); len(more) > 0 {
						t.Errorf("it is said too:\n%s", strings.Join(more, "\n"))
					}
					return
				} else if time.Now().After(deadline) {
					t.Fatalf("not heard:\n%s\nbut:\n%s\n%v", strings.Join(missing, "\n"), strings.Join(without(got, want), "\n"), sink.WaitRejections(t, 0))
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}

// Every sample of a device on a Modbus is what the gateway has asked it.
func TestSamplesOfModbus(t *testing.T) {
	type asked struct {
		profile.Sample
		unit byte
	}
	var answers []asked
	folder := t.TempDir()
	for firmware, all := range samples(t) {
		for _, s := range all {
			var unit, function, address, count int
			if n, _ := fmt.Sscanf(strings.ToLower(s.Topic), "unit=%v fc=%d addr=%v count=%d", &unit, &function, &address, &count); n != 4 {
				continue
			}
			text := fmt.Sprintf("profile: 1\nid: %s\nextends: %s\npoll: [{every: 1s, modbus: {function: %d, address: %d, count: %d}}]\n", s.ID, firmware, function, address, count)
			if err := os.WriteFile(filepath.Join(folder, s.ID+".yaml"), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			answers = append(answers, asked{s, byte(unit)})
		}
	}
	library, err := profile.Load(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range answers {
		t.Run(s.ID, func(t *testing.T) {
			t.Parallel()
			m, err := s.Message(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			out, err := library.Get(s.Firmware).Decode(profile.Place{Location: time.UTC}, m)
			if (err != nil) != (s.Expect.Error != "") {
				t.Fatalf("%v, want %q", err, s.Expect.Error)
			}
			if err == nil && len(out.Readings) == 0 {
				return // not a number, of which nothing comes
			}
			d := device("meter", library.Get(s.ID))
			d.Unit = s.unit
			meter, sink := plug(t), &devicetest.Sink{}
			start(t, serial.New(serial.Config{Port: meter.Path(), Devices: []serial.Device{d}}, slog.New(slog.DiscardHandler)), sink)
			take(t, meter, func(got string) bool { return len(got) == 8 })
			for _, piece := range []string{"\x00\xff", string(m.Payload[:2]), string(m.Payload[2:])} {
				send(t, meter, piece)
			}
			if err != nil {
				sink.WaitRejections(t, 1)
			} else if got := told(sink.WaitMessages(t, 1)[0].Readings); got != told(out.Readings) {
				t.Errorf("want %s, got %s", told(out.Readings), got)
			}
		})
	}
}

// heard gives what came of devices, those that nobody configured too.
func heard(t testing.TB, sink *devicetest.Sink) (all []string) {
	for _, m := range sink.WaitMessages(t, 0) {
		all = append(all, told(m.Readings))
	}
	for _, s := range sink.WaitUnknown(t, 0) {
		if len(s.Fields) > 0 {
			all = append(all, told([]devices.Reading{{Fields: s.Fields}}))
		}
	}
	return all
}

// without gives those of a that are not in b, each as often as it is there more.
func without(a, b []string) (rest []string) {
	count := make(map[string]int)
	for _, s := range b {
		count[s]++
	}
	for _, s := range a {
		if count[s]--; count[s] < 0 {
			rest = append(rest, s)
		}
	}
	return rest
}
