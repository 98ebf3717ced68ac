package serial_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/serial"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// data is what a meter says, with the checksum behind.
const data = "\x021-0:0.0.0*255(00012345)\r\n1-0:1.8.0*255(000123.45*kWh)\r\n!\r\n\x03|"

// rate fails the test where the port is at another.
func rate(t *testing.T, meter *pty.PTY, want int) {
	t.Helper()
	if got, err := meter.Baud(); err != nil || got != want {
		t.Errorf("the port is at %d baud, want %d; %v", got, want, err)
	}
}

// A meter is asked at 300 baud and answers faster, again and again: by mode C when
// it is told to, by mode B at once. A head that gives back what is sent does no
// harm.
func TestSignOn(t *testing.T) {
	for _, c := range []struct {
		name, meter string
		echo        bool // the head gives it back
		stripped    bool // and the config says so
		baud        int
	}{
		{"mode C", "/LOG5LK13BE803039\r\n", false, false, 9600},
		{"mode C with echo", "/LOG5LK13BE803039\r\n", true, true, 9600},
		{"mode B", "/LOGCLK13BE803039\r\n", false, false, 2400},
		{"mode B with an echo that nobody told of", "/LOGCLK13BE803039\r\n", true, false, 2400},
		{"mode A", "/LOG@LK13BE803039\r\n", false, false, 300},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			meter, sink := plug(t), &devicetest.Sink{}
			port := serial.New(serial.Config{Port: meter.Path(), Echo: c.stripped, Devices: []serial.Device{device("meter", builtin(t, "iec62056-21"))}}, slog.New(slog.DiscardHandler))
			start(t, port, sink)
			give := func(back string) {
				receive(t, meter, back)
				if c.echo {
					send(t, meter, back)
				}
			}
			give("/?!\r\n")
			rate(t, meter, 300)
			send(t, meter, c.meter)
			if mode := c.meter[4]; mode >= '0' && mode <= '9' {
				give(fmt.Sprintf("\x060%c0\r\n", mode))
			}
			for got := 0; got != c.baud; { // the test ends by its own time limit
				got, _ = meter.Baud()
			}
			send(t, meter, data)
			all := values(sink.WaitMessages(t, 1))
			if got := fmt.Sprint(all); got != "[1_0_0_0_0_255=00012345 1_0_1_8_0_255=123.45]" {
				t.Errorf("the readings are %s", got)
			}
			for got := 0; got != 300; {
				got, _ = meter.Baud()
			}
		})
	}
}

// A meter that says who it is and no more is told of, and asked again at the rate
// that it begins with.
func TestSignOnFails(t *testing.T) {
	t.Parallel()
	meter, sink := plug(t), &devicetest.Sink{}
	p := parse(t, "meter", `
profile: 1
id: meter
name: Meter
transport: [serial]
port: [{baud: 300, data_bits: 7, parity: even}]
framing: {telegram: {start: "/", end: "!", sum: bcc}}
decode: [{code: iec62056_21}]
poll: [{every: 1s, sign_on: true}]
`)
	start(t, serial.New(serial.Config{Port: meter.Path(), Devices: []serial.Device{device("meter", p)}}, slog.New(slog.DiscardHandler)), sink)
	receive(t, meter, "/?!\r\n")
	send(t, meter, "/LOG5LK13BE803039\r\n")
	receive(t, meter, "\x06050\r\n")
	if r := sink.WaitRejections(t, 1); !strings.Contains(r[0].Why.Error(), "LK13BE803039") {
		t.Errorf("%v", r[0].Why)
	}
	receive(t, meter, "/?!\r\n")
	rate(t, meter, 300)
}
