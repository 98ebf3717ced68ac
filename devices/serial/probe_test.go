package serial_test

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// known are the profiles for serial lines that come with the program.
func known(t testing.TB) (all []*profile.Profile) {
	t.Helper()
	library, err := library()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range library.Names() {
		if p := library.Get(id); len(p.Lines()) > 0 {
			all = append(all, p)
		}
	}
	return all
}

// A silent port is not written to unless that is allowed.
func TestProbeDoesNotWrite(t *testing.T) {
	device := plug(t)
	found, heard, err := serial.Probe(t.Context(), serial.Trial{Port: device.Path(), Profiles: known(t), Listen: 100 * time.Millisecond, Say: func(string) {}})
	if err != nil || len(found) != 0 || heard != 0 {
		t.Errorf("found %v, heard %d, %v", found, heard, err)
	}
	port, err := os.OpenFile(device.Path(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = port.Close() }()
	if _, err := port.WriteString("first"); err != nil {
		t.Fatal(err)
	}
	receive(t, device, "first") // and nothing before it
}

// A slave is found by asking.
func TestProbeAsks(t *testing.T) {
	t.Parallel()
	here, there := cable(t)
	process(t, "/usr/bin/python3", "testdata/slave.py", there, "19200")
	p := parse(t, "slave", slave)
	trial := serial.Trial{Port: here, Profiles: []*profile.Profile{builtin(t, "mhz19b"), p}, Listen: 10 * time.Millisecond, Write: true, Unit: 2, Say: func(string) {}}
	for { // until the slave is up
		found, _, err := serial.Probe(t.Context(), trial)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			if f := found[0]; f.Profile != p || !f.Asked || !f.Checked || f.Sound == 0 || f.Line.Baud != 19200 {
				t.Errorf("found %+v", f)
			}
			return
		}
	}
}

// What speaks by itself is found among all profiles, though noise is between.
func TestProbeListens(t *testing.T) {
	for firmware, text := range map[string]string{
		"ve.direct": "\r\nPID\t0xA042\r\nV\t12800\r\nI\t-15\r\nPPV\t130\r\nChecksum\t",
		"rflink":    "20;3A;NewKaku;ID=c142;SWITCH=1;CMD=ON;\r\n",
		"emontx":    "MSG:1,Vrms:246.81,P1:79,E1:0\r\n",
		"lines":     "temperature=21.4 °C, humidity: 45%\n",
	} {
		t.Run(firmware, func(t *testing.T) {
			t.Parallel()
			b := []byte(text)
			if strings.HasSuffix(text, "Checksum\t") {
				sum := byte(0)
				for _, c := range b {
					sum += c
				}
				b = append(b, -sum)
			}
			device := plug(t)
			ctx, cancel := context.WithCancel(t.Context())
			over := make(chan struct{})
			defer func() {
				cancel()
				_ = device.Close()
				<-over
			}()
			go func() {
				defer close(over)
				for ctx.Err() == nil {
					if _, err := device.Write(bytes.Repeat(b, 2)); err != nil {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
			found, _, err := serial.Probe(ctx, serial.Trial{Port: device.Path(), Profiles: known(t), Listen: 300 * time.Millisecond, Say: func(string) {}})
			if err != nil || len(found) == 0 || found[0].Profile.ID() != firmware {
				for _, f := range found {
					t.Logf("%s at %s: %d sound, %d faulty", f.Profile.ID(), f.Line, f.Sound, f.Faulty)
				}
				t.Fatalf("it is %s, %v", firmware, err)
			}
			if f := found[0]; f.Sound < 2 || f.Faulty > 1 {
				t.Errorf("%d frames are sound, %d faulty", f.Sound, f.Faulty)
			}
		})
	}
}
