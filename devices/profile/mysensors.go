package profile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// readMySensors makes a document of a line of a MySensors gateway, serial API 2.3:
// node;child;command;ack;type;payload. What a sensor says of itself or reports
// stands under its number and the name of the type, 6/V_TEMP; what a node says
// under the name alone; "device" is the node.
func readMySensors(payload []byte, _ map[string]string) (doc *node, _ string, _ devices.Availability, err error) {
	m, err := parseMySensors(payload)
	if err != nil {
		return nil, "", 0, err
	}
	doc = object("device", &node{value: devices.Text(strconv.Itoa(m.node))})
	value := &node{value: bare(m.payload), text: m.payload}
	switch m.command {
	case 0:
		child := strconv.Itoa(m.child)
		if m.child == 255 {
			child = "node"
		}
		doc.put([]string{child, nameOf(mySensorsPresentations, m.kind, "S_")}, &node{value: devices.Text(m.payload)})
	case 1:
		if m.payload != "" {
			doc.put([]string{strconv.Itoa(m.child), nameOf(mySensorsValues, m.kind, "V_")}, value)
		}
	case 3:
		name := mySensorsInternals[m.kind]
		switch {
		case name == "" || name == "log":
		case m.payload == "":
			doc.put([]string{name}, &node{value: devices.Bool(true)})
		default:
			doc.put([]string{name}, value)
		}
	} // 2 asks for a value, 4 is for new firmware
	return doc, "", 0, nil
}

// A mySensorsMessage is one line.
type mySensorsMessage struct {
	node, child, command, kind int
	payload                    string
}

func parseMySensors(line []byte) (m mySensorsMessage, err error) {
	text := strings.TrimSpace(string(line))
	parts := strings.SplitN(text, ";", 6) // a position has semicolons in it
	if len(parts) != 6 || !utf8.ValidString(text) {
		return m, errors.New("not a line of MySensors: six parts with semicolons between")
	}
	var ack int
	for i, to := range []struct {
		into *int
		most int
	}{{&m.node, 255}, {&m.child, 255}, {&m.command, 4}, {&ack, 1}, {&m.kind, 255}} {
		n, err := strconv.ParseUint(parts[i], 10, 8)
		if err != nil || int(n) > to.most {
			return m, fmt.Errorf("not a line of MySensors: part %d is %.20q", i+1, parts[i])
		}
		*to.into = int(n)
	}
	m.payload = parts[5]
	return m, nil
}

func nameOf(names []string, kind int, prefix string) string {
	if kind < len(names) {
		return prefix + names[kind]
	}
	return prefix + strconv.Itoa(kind)
}

// Names of the types, each by its number: mysensors.org/download/serial_api_20.
var (
	mySensorsPresentations = strings.Fields(`DOOR MOTION SMOKE BINARY DIMMER COVER TEMP HUM BARO WIND RAIN UV WEIGHT POWER HEATER DISTANCE LIGHT_LEVEL
		ARDUINO_NODE ARDUINO_REPEATER_NODE LOCK IR WATER AIR_QUALITY CUSTOM DUST SCENE_CONTROLLER RGB_LIGHT RGBW_LIGHT COLOR_SENSOR HVAC MULTIMETER
		SPRINKLER WATER_LEAK SOUND VIBRATION MOISTURE INFO GAS GPS WATER_QUALITY`)
	mySensorsValues = strings.Fields(`TEMP HUM STATUS PERCENTAGE PRESSURE FORECAST RAIN RAINRATE WIND GUST DIRECTION UV WEIGHT DISTANCE IMPEDANCE ARMED
		TRIPPED WATT KWH SCENE_ON SCENE_OFF HVAC_FLOW_STATE HVAC_SPEED LIGHT_LEVEL VAR1 VAR2 VAR3 VAR4 VAR5 UP DOWN STOP IR_SEND IR_RECEIVE FLOW VOLUME
		LOCK_STATUS LEVEL VOLTAGE CURRENT RGB RGBW ID UNIT_PREFIX HVAC_SETPOINT_COOL HVAC_SETPOINT_HEAT HVAC_FLOW_MODE TEXT CUSTOM POSITION IR_RECORD
		PH ORP EC VAR VA POWER_FACTOR MULTI_MESSAGE`)
)

// mySensorsInternals are those that say something of a node.
var mySensorsInternals = map[int]string{
	0: "battery", 1: "time_request", 2: "version", 3: "id_request", 5: "inclusion_mode", 6: "config_request", 9: "log", 11: "sketch_name", 12: "sketch_version",
	14: "gateway_ready", 21: "discover_response", 22: "heartbeat", 25: "pong", 26: "registration_request", 28: "debug", 29: "signal", 32: "pre_sleep", 33: "post_sleep",
}
