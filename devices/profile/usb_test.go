package profile

import "testing"

func TestUSBDevices(t *testing.T) {
	all, err := USBDevices()
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if d.Is == "" || d.USB == "" || d.Profile != "" && library.Get(d.Profile) == nil {
			t.Errorf("%+v", d)
		}
	}
	for _, c := range []struct{ vendor, product, maker, name, profile, is string }{
		{"0403", "6015", "VictronEnergy BV", "VE Direct cable", "ve.direct", "a VE.Direct cable of Victron Energy"},
		{"0403", "6001", "EnOcean GmbH", "EnOcean USB 300 DB", "enocean-esp3", "an EnOcean radio"},
		{"0403", "6001", "FTDI", "FT232R USB/UART", "", "a USB to serial adapter"},
		{"10c4", "ea60", "Silicon Labs", "SkyConnect v1.0", "", "a radio for Zigbee or Thread; zigbee2mqtt speaks to it"},
		{"2341", "0001", "", "", "", "an Arduino"},
		{"dead", "beef", "", "", "", ""},
	} {
		var found USBDevice
		for _, d := range all {
			if d.Fits(c.vendor, c.product, c.maker, c.name) {
				found = d
				break
			}
		}
		if found.Profile != c.profile || found.Is != c.is {
			t.Errorf("%s:%s %s %s is %+v", c.vendor, c.product, c.maker, c.name, found)
		}
	}
}
