package profile

import (
	"encoding/xml"
	"errors"
	"fmt"

	"github.com/porchlight-iot/porchlight/devices"
)

// readAttributes reads an XML element whose values are its attributes, as small
// devices write one: <light solar="456"/> is {"light": {"solar": 456}}.
func readAttributes(payload []byte, _ map[string]string) (*node, string, devices.Availability, error) {
	var element struct {
		XMLName xml.Name
		Values  []xml.Attr `xml:",any,attr"`
	}
	if err := xml.Unmarshal(payload, &element); err != nil {
		return nil, "", devices.AvailabilityUnknown, fmt.Errorf("not XML: %w", err)
	}
	doc := &node{kind: objectNode}
	for _, a := range element.Values {
		if len(doc.members) == maxMembers || len(a.Name.Local) > maxMemberName {
			return nil, "", devices.AvailabilityUnknown, errors.New("not XML of a few values")
		}
		doc.members = append(doc.members, member{a.Name.Local, &node{value: bare(a.Value), text: a.Value}})
	}
	return object(element.XMLName.Local, doc), "", devices.AvailabilityUnknown, nil
}
