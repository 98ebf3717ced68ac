package profile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
)

// A registersRule reads answers to requests of Modbus RTU.
type registersRule struct {
	Function int            `yaml:"function" min:"0" max:"4" doc:"The only one that is read: 1 coils, 2 discrete inputs, 3 holding registers, 4 input registers; 0 is any."`
	Items    []registerItem `yaml:"items,required" doc:"What stands where. What an answer has is read, whatever was asked."`
}

type registerItem struct {
	Name  string `yaml:"name,required" doc:"Name of the member."`
	At    int    `yaml:"at" min:"0" max:"65535" doc:"The first register, as it is sent: counted from 0."`
	Type  string `yaml:"type" enum:"bit,u16,i16,u32,i32,u64,i64,f32,f64" doc:"What stands there; u16 if not said, bit of coils and inputs."`
	Words string `yaml:"words" enum:"high_first,low_first" doc:"Order of the registers; high_first if not said."`
}

// bytes is how many the item has.
func (item registerItem) bytes() int {
	bits, err := strconv.Atoi(strings.TrimLeft(item.Type, "uif"))
	if err != nil {
		return 2
	}
	return bits / 8
}

// modbusExceptions are those of MODBUS Application Protocol V1.1b3, section 7.
var modbusExceptions = map[byte]string{
	1: "it does not have this function", 2: "it does not have this address", 3: "it does not take this value", 4: "it failed",
	5: "it needs longer", 6: "it is busy", 8: "its memory is damaged", 10: "the gateway has no way to it", 11: "it does not answer the gateway",
}

// read makes a document of an answer, without its checksum: "unit", and a member
// for each item in it. What was asked tells the address. A request, as a bus with
// an echo shows it, has only the unit.
func (rule registersRule) read(body []byte, asked string) (*node, error) {
	if len(body) < 3 {
		return nil, errors.New("not an answer of Modbus")
	}
	unit, function := body[0], body[1]
	doc := object("unit", whole(int64(unit)))
	if function&0x80 != 0 {
		why, ok := modbusExceptions[body[2]]
		if !ok {
			why = "it gives no reason that is known"
		}
		return nil, fmt.Errorf("unit %d refuses function %d: %s (exception %d)", unit, function&0x7f, why, body[2])
	}
	if function == 0 || function > 4 || len(body) == 6 && int(body[2]) != 3 {
		return doc, nil // an answer to a command, or a question
	}
	data := body[3:]
	if int(body[2]) != len(data) {
		return nil, fmt.Errorf("an answer of %d bytes that says it has %d", len(data), body[2])
	}
	if rule.Function != 0 && int(function) != rule.Function {
		return nil, fmt.Errorf("an answer to function %d", function)
	}
	var u, fc, address, count int
	if _, err := fmt.Sscanf(asked, "unit=%v fc=%v addr=%v count=%v", &u, &fc, &address, &count); err != nil {
		return nil, errors.New("it is not known what was asked")
	}
	want := 2 * count
	if function <= 2 {
		want = (count + 7) / 8
	}
	if u != int(unit) || fc != int(function) || want != len(data) {
		return nil, errors.New("not the answer to what was asked")
	}
	for _, item := range rule.Items {
		if v := item.read(data, item.At-address, count, function); v.IsValid() {
			doc.members = append(doc.members, member{item.Name, &node{value: v}})
		}
	}
	return doc, nil
}

// read gives the value at a place, which is counted from the first register or coil
// of the answer; the zero Value where it is not in it, or a number that is none.
func (item registerItem) read(data []byte, place, count int, function byte) devices.Value {
	if place < 0 || place >= count {
		return devices.Value{}
	}
	if function <= 2 {
		return devices.Bool(data[place/8]>>(place%8)&1 != 0)
	}
	size := item.bytes()
	if 2*place+size > len(data) {
		return devices.Value{}
	}
	b := data[2*place : 2*place+size]
	if item.Words == "low_first" {
		swapped := make([]byte, 0, size)
		for i := size - 2; i >= 0; i -= 2 {
			swapped = append(swapped, b[i], b[i+1])
		}
		b = swapped
	}
	if item.Type == "bit" {
		return devices.Bool(b[1]&1 != 0)
	}
	kind := item.Type
	if kind == "" {
		kind = "u16"
	}
	v, err := structItem{Type: kind}.read(b, false)
	if err != nil {
		return devices.Value{}
	}
	return v
}
