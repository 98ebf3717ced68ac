package agent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
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
