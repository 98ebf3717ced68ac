package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// Devices that share a port have one driver, if they can be told apart.
func TestDevicesShareAPort(t *testing.T) {
	library, err := profile.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	var c config.Config
	add := func(id devices.ID, profile string, s config.DeviceSerial) {
		c.Devices = append(c.Devices, config.Device{ID: id, Profile: profile, Serial: &s})
	}
	add("house", "modbus-eastron-sdm630", config.DeviceSerial{Port: "/dev/bus", Unit: 1, Baud: 9600})
	add("oven", "modbus-pzem004t-v3", config.DeviceSerial{Port: "/dev//bus", Unit: 2})
	add("gps", "nmea0183", config.DeviceSerial{Port: "/dev/bus"})
	add("garden", "rflink", config.DeviceSerial{Port: "/dev/radio"})
	add("hall", "rflink", config.DeviceSerial{Port: "/dev/radio"})
	list, err := drivers(&c, library, false, &tlsSettings{}, slog.New(slog.DiscardHandler))
	if err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), "gps is not heard: its profile nmea0183, and modbus-eastron-sdm630 of house") {
		t.Errorf("the error is %v", err)
	}
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
	}
	if got := strings.Join(names, ", "); got != "serial /dev/bus, serial /dev/radio" {
		t.Errorf("the drivers are %s", got)
	}
}

// What a gateway gives for the code in the config is kept in the data directory, for
// the user alone. The gateway is a script, on go-coap (see devices/coap).
func TestGrantedKeyIsKept(t *testing.T) {
	router := mux.NewRouter()
	for path, body := range map[string]string{"/15011/9063": `{"9091":"the key that it gave"}`, "/15001/65537": `{"9001":"Hall","9003":65537,"3311":[{"5850":1,"5851":77}]}`} {
		if err := router.Handle(path, mux.HandlerFunc(func(w mux.ResponseWriter, _ *mux.Message) {
			_ = w.SetResponse(codes.Content, message.AppJSON, strings.NewReader(body))
		})); err != nil {
			t.Fatal(err)
		}
	}
	l, err := coapnet.NewDTLSListener("udp4", "127.0.0.1:0", coapnet.NewDTLSServerOptions(
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		piondtls.WithPSK(func(name []byte) ([]byte, error) {
			switch {
			case string(name) == "Client_identity":
				return []byte("the code"), nil
			case strings.HasPrefix(string(name), "porch-"):
				return []byte("the key that it gave"), nil
			}
			return nil, errors.New("unknown")
		})))
	if err != nil {
		t.Fatal(err)
	}
	server := dtls.NewServer(options.WithMux(router), options.WithErrors(func(error) {}))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := errors.Join(<-served, l.Close()); err != nil {
			t.Error(err)
		}
	})

	library, err := profile.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	c := config.Config{Devices: []config.Device{{ID: "hall", Profile: "tradfri", CoAP: &config.DeviceCoAP{
		URL: fmt.Sprintf("coaps://%s/15001/65537", l.Addr()), SecurityCode: config.NewSecret("the code "),
	}}}}
	c.Gateway.ID, c.Gateway.DataDir = "porch", t.TempDir()
	list, err := drivers(&c, library, false, &tlsSettings{}, slog.New(slog.DiscardHandler))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	sink := &devicetest.Sink{Auto: true}
	go func() { over <- list[0].Run(ctx, sink) }()
	m := sink.WaitMessages(t, 1)[0]
	cancel()
	if err := <-over; err != nil || m.Readings[0].Device != "hall" {
		t.Errorf("%+v, %v", m.Readings, err)
	}
	files, _ := filepath.Glob(filepath.Join(c.Gateway.DataDir, "granted-*"))
	if len(files) != 1 {
		t.Fatalf("kept are %q", files)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// A houseSink lets a house hear a driver.
type houseSink struct {
	*house
	taken int
}

func (s *houseSink) Report(_ context.Context, m devices.Message) (devices.Receipt, error) {
	return s.take(m, at(time.Now()), func(m devices.Message) (devices.Receipt, []devices.Record, error) {
		var all []devices.Record
		for _, r := range m.Readings {
			s.taken++
			r.Time = time.Now()
			all = append(all, devices.Record{Seq: uint64(s.taken), Reading: r})
		}
		return nil, all, nil
	})
}

func (s *houseSink) Availability(id devices.ID, a devices.Availability, retained bool) {
	s.tell(id, a, retained, time.Now())
}
func (s *houseSink) Unknown(devices.Stranger) bool { return false }
func (s *houseSink) Reject(string, error)          {}
func (s *houseSink) Up(string)                     {}

// A device whose cable is pulled is lost at once, and the one beside it is not.
func TestCableIsPulled(t *testing.T) {
	library, err := profile.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan devices.ID, 100)
	h := newHouse(func(id devices.ID) { changed <- id })
	var c config.Config
	var wires []*pty.PTY
	path := filepath.Join(t.TempDir(), "meter")
	for _, id := range []devices.ID{"meter", "boiler"} {
		wire, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = wire.Close() }()
		wires = append(wires, wire)
		port := wire.Path()
		if id == "meter" {
			if err := os.Symlink(port, path); err != nil {
				t.Fatal(err)
			}
			port = path
		}
		c.Devices = append(c.Devices, config.Device{ID: id, Profile: "lines", Serial: &config.DeviceSerial{Port: port}})
	}
	h.furnish([]devices.Device{c.Devices[0].Device(), c.Devices[1].Device()}, func(devices.ID) []byte { return nil })
	list, err := drivers(&c, library, false, &tlsSettings{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	crew := crew{}.change(ctx, list, func(ctx context.Context, d devices.Driver) {
		supervise(ctx, d, &houseSink{house: h}, slog.New(slog.DiscardHandler))
	})
	defer crew.dismiss()
	defer stop()
	await := func(id devices.ID, want devices.State) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			if p, _ := h.picture(id); p.state == want {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				p, _ := h.picture(id)
				t.Fatalf("%s is %s, want %s", id, p.state, want)
			}
		}
	}
	say := func(wire *pty.PTY) {
		t.Helper()
		if _, err := wire.Write([]byte("a=1\n")); err != nil {
			t.Fatal(err)
		}
	}
	say(wires[0])
	say(wires[1])
	await("meter", devices.StateFresh)
	await("boiler", devices.StateFresh)
	if err := errors.Join(os.Remove(path), wires[0].Close()); err != nil {
		t.Fatal(err)
	}
	await("meter", devices.StateLost)
	if p, _ := h.picture("boiler"); p.state != devices.StateFresh {
		t.Errorf("the other is %s", p.state)
	}
	again, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if err := os.Symlink(again.Path(), path); err != nil {
		t.Fatal(err)
	}
	say(again)
	await("meter", devices.StateFresh)
}
