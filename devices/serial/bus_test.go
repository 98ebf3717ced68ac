package serial_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/profile/framing"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// process runs a program until the test ends.
func process(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	out := &lines{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; `make deps` installs what the tests need", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), out.buf.String())
		}
	})
}

// cable is a serial line between two ports.
func cable(t testing.TB) (here, there string) {
	t.Helper()
	dir := t.TempDir()
	here, there = filepath.Join(dir, "here"), filepath.Join(dir, "there")
	process(t, "socat", "pty,raw,echo=0,link="+here, "pty,raw,echo=0,link="+there)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, a := os.Stat(here)
		_, b := os.Stat(there)
		if a == nil && b == nil {
			return here, there
		}
		if time.Now().After(deadline) {
			t.Fatal("socat makes no ports")
		}
	}
}

// parse reads a profile of the test.
func parse(t testing.TB, id, text string) *profile.Profile {
	t.Helper()
	p, err := profile.Parse(id+".yaml", []byte(strings.ReplaceAll(text, "\t", "  ")))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const slave = `
profile: 1
id: slave
name: Slave
transport: [serial]
port: [{baud: 19200}]
framing: {modbus: {}}
poll:
  - {every: 1s, within: 300ms, modbus: {function: 4, address: 0, count: 3}}
  - {every: 1s, within: 300ms, modbus: {function: 3, address: 0, count: 4}}
  - {every: 1s, within: 300ms, modbus: {function: 1, count: 8}}
  - {every: 1s, within: 300ms, modbus: {function: 2, count: 8}}
decode:
  - {when: {field: "*fc=4*"}, struct: {items: [{name: volts, at: 3, type: f32}, {name: number, type: u16}]}}
  - {when: {field: "*fc=3*"}, struct: {items: [{name: level, at: 3, type: u16}, {name: h1, type: u16}, {name: ratio, type: f32, words: low_first}]}}
  - {when: {field: "*fc=1*"}, struct: {items: [{name: coils, at: 3, type: u8}]}}
  - {when: {field: "*fc=2*"}, struct: {items: [{name: inputs, at: 3, type: u8}]}}
commands:
  - {name: level, argument: {type: integer, min: 0, max: 1000}, modbus: {function: 6, address: 0}}
  - {name: ratio, argument: {type: number}, modbus: {function: 16, address: 2, type: f32, words: low_first}}
  - {name: coil, argument: {type: bool, words: {"on": "1", "off": "0"}}, modbus: {function: 5, address: 1}, confirm: {field: coils, any: true}}
  - {name: elsewhere, argument: {type: integer}, modbus: {function: 6, address: 500}}
`

func units(t testing.TB, p *profile.Profile, numbers ...byte) (all []serial.Device) {
	t.Helper()
	for _, n := range numbers {
		d := device(devices.ID(fmt.Sprintf("unit%d", n)), p)
		d.Unit = n
		all = append(all, d)
	}
	return all
}

// newest waits until a device's newest value of a field is one of a test.
func newest(t testing.TB, sink *devicetest.Sink, id devices.ID, field, want string) {
	t.Helper()
	got := "none"
	for n := 0; ; {
		all := sink.WaitMessages(t, n+1)
		for ; n < len(all); n++ {
			for _, r := range all[n].Readings {
				for _, f := range r.Fields {
					if r.Device == id && f.Name == field {
						if got = f.Value.String(); got == want {
							return
						}
					}
				}
			}
		}
		if n > 10000 {
			t.Fatalf("%s of %s is %s, want %s", field, id, got, want)
		}
	}
}

// Two units of a slave by another's hand, and one that is dead, share a line.
func TestModbus(t *testing.T) {
	t.Parallel()
	here, there := cable(t)
	process(t, "/usr/bin/python3", "testdata/slave.py", there, "19200")
	sink := &devicetest.Sink{}
	port := serial.New(serial.Config{Port: here, Devices: units(t, parse(t, "slave", slave), 1, 2, 3)}, slog.New(slog.DiscardHandler))
	start(t, port, sink)

	newest(t, sink, "unit1", "volts", "230.5")
	newest(t, sink, "unit1", "number", "1")
	newest(t, sink, "unit2", "number", "2")
	newest(t, sink, "unit2", "h1", "201")
	newest(t, sink, "unit1", "coils", "85")   // 01010101
	newest(t, sink, "unit1", "inputs", "238") // 11101110
	sink.WaitAvailability(t, "unit3", devices.Offline)

	tell := func(id devices.ID, name, argument string) (devices.Confirmation, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var expected devices.Confirmation
		err := port.Execute(ctx, devices.Command{Device: id, Name: name, Argument: argument}, func(c devices.Confirmation) { expected = c })
		return expected, err
	}
	for _, c := range []struct {
		id                            devices.ID
		name, argument, field, report string
	}{
		{"unit1", "level", "42", "level", "42"},
		{"unit2", "ratio", "-1.25", "ratio", "-1.25"},
		{"unit2", "coil", "on", "coils", "87"},
	} {
		expected, err := tell(c.id, c.name, c.argument)
		if err != nil || expected.Field != c.field {
			t.Fatalf("%s %s: %v; confirmed by %+v", c.name, c.argument, err, expected)
		}
		newest(t, sink, c.id, c.field, c.report)
	}
	for _, c := range []struct {
		name, argument, says string
		sent                 bool
	}{
		{"level", "1001", "not from 0 to 1000", false},
		{"level", "1; 2", "not a number", false},
		{"reset", "", "no command", false},
		{"elsewhere", "1", "does not have these registers", true},
	} {
		expected, err := tell("unit1", c.name, c.argument)
		if err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, devices.ErrUncertain) || (expected.Field != "") != c.sent {
			t.Errorf("%s %s: %v", c.name, c.argument, err)
		}
	}
	if _, err := tell("unit3", "level", "1"); !errors.Is(err, devices.ErrUncertain) {
		t.Errorf("to a dead unit: %v", err)
	}
	if got := port.Controls("unit1"); len(got) != 4 || got[0].Name != "level" || *got[0].Argument.Max != 1000 {
		t.Errorf("the controls are %+v", got)
	}
	if got := port.Controls("kitchen"); got != nil {
		t.Errorf("of a device of others: %+v", got)
	}
}

// A unit that is dead is asked less often than one that answers.
func TestDeadUnit(t *testing.T) {
	t.Parallel()
	bus, sink := plug(t), &devicetest.Sink{}
	p := parse(t, "slave", `
profile: 1
id: slave
name: Slave
transport: [serial]
port: [{baud: 19200}]
framing: {modbus: {}}
poll: [{every: 1s, within: 50ms, modbus: {function: 3, address: 0, count: 1}}]
decode: [{struct: {items: [{name: level, at: 3, type: u16}]}}]
`)
	start(t, serial.New(serial.Config{Port: bus.Path(), Devices: units(t, p, 1, 2)}, slog.New(slog.DiscardHandler)), sink)
	asked := make(map[byte]int)
	for asked[1] < 5 {
		request := take(t, bus, func(got string) bool { return len(got) == 8 })
		if asked[request[0]]++; request[0] == 1 {
			answer := []byte{1, 3, 2, 0, 42}
			send(t, bus, string(binary.LittleEndian.AppendUint16(answer, framing.CRC16Modbus(answer))))
		}
	}
	sink.WaitMessages(t, 5)
	if asked[2] == 0 || asked[2] >= asked[1] {
		t.Errorf("the dead unit was asked %d times, the other %d times", asked[2], asked[1])
	}
}
