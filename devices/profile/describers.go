package profile

import (
	"github.com/porchlight-iot/porchlight/devices/profile/describe"
	"github.com/porchlight-iot/porchlight/devices/profile/describe/homeassistant"
	"github.com/porchlight-iot/porchlight/devices/profile/describe/homie"
	"github.com/porchlight-iot/porchlight/devices/profile/describe/sparkplug"
	"github.com/porchlight-iot/porchlight/devices/profile/describe/tasmota"
	"github.com/porchlight-iot/porchlight/devices/profile/describe/zigbee2mqtt"
)

// describers are all of them, by the names that profiles give.
var describers = map[string]describe.Func{
	"homeassistant": homeassistant.Describe,
	"homie":         homie.Describe,
	"sparkplug":     sparkplug.Describe,
	"tasmota":       tasmota.Describe,
	"zigbee2mqtt":   zigbee2mqtt.Describe,
}
