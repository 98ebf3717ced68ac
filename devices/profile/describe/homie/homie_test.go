package homie

import (
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/profile/describe"
)

// TestHostile gives attributes and documents that no device of the convention
// says: they are refused, or tell nothing.
func TestHostile(t *testing.T) {
	for _, c := range []struct{ topic, payload string }{
		{"homie/car/engine/speed/$datatype", "quaternion"},
		{"homie/5/car/$description", `{"homie":"6.0"}`},
		{"homie/5/car/$description", `[]`},
		{"homie/5/car/$description", `{"homie":5,"nodes":{}}`},
		{"homie/car", "x"},
	} {
		if d, err := Describe(describe.Message{Topic: c.topic, Captures: map[string]string{"device": "car"}, Payload: []byte(c.payload)}); err == nil {
			t.Errorf("%s %s: %+v", c.topic, c.payload, d)
		}
	}
	// A property of an unknown type is ignored, and its neighbour is not.
	d, err := Describe(describe.Message{Topic: "homie/5/car/$description", Captures: map[string]string{"device": "car"},
		Payload: []byte(`{"homie":"5.0","nodes":{"a":{"properties":{"b":{"datatype":"qubit"},"c":{"datatype":"float","format":"0:1` + strings.Repeat("0", 500) + `"}}}}}`)})
	if err != nil || len(d) != 1 || len(d[0].Commands) != 1 || d[0].Commands[0].Argument.Max != nil {
		t.Errorf("%+v %v", d, err)
	}
}
