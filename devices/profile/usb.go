package profile

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"

	profiles "github.com/porchlight-iot/porchlight/firmware-profiles"
)

// A USBDevice is what a USB adapter or board probably is.
type USBDevice struct {
	USB     string `json:"usb"`     // VENDOR:PRODUCT in hex, with * and ?
	Maker   string `json:"maker"`   // pattern of its maker's name, in any case; "" is any
	Product string `json:"product"` // pattern of its name, in any case; "" is any
	Is      string `json:"is"`      // for people
	Profile string `json:"profile"` // that it needs, "" if that is not sure
}

// USBDevices gives those that are known, the more special ones first.
func USBDevices() ([]USBDevice, error) {
	b, err := profiles.FS.ReadFile("usb.json")
	if err != nil {
		return nil, err
	}
	var all []USBDevice
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("cannot read the list of USB devices: %w", err)
	}
	return all, nil
}

// Fits reports whether a device is such a one.
func (d USBDevice) Fits(vendor, product, maker, name string) bool {
	fits := func(pattern, text string) bool {
		ok, err := path.Match(strings.ToLower(pattern), strings.ReplaceAll(strings.ToLower(text), "/", " "))
		return pattern == "" || ok && err == nil
	}
	return fits(d.USB, vendor+":"+product) && fits(d.Maker, maker) && fits(d.Product, name)
}
