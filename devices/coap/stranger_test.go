package coap_test

import (
	"bytes"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// TestStrangers has devices post under names that nobody has. Whether that is
// understood or not, they get the same answer; what is understood is shown.
func TestStrangers(t *testing.T) {
	profiles, err := profile.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	sink := &devicetest.Sink{Auto: true, Curious: true}
	s := start(t, coap.Config{Profiles: profiles}, sink, sink)
	p := poster(t, s.Addr())
	const notFound coap.Code = 4<<5 | 4
	for _, c := range []struct {
		path    string
		format  int
		payload []byte
		profile string // "" where it is not understood
		field   string
	}{
		{"/d/cellar", coap.SenMLJSON, senml("4"), "senml", "temperature"},
		{"/d/attic", coap.JSON, []byte(`{"temperature":21.4}`), "json", "temperature"},
		{"/d/hive/weight", coap.TextPlain, []byte("2.50"), "value", "weight"},
		{"/d/noise", coap.SenMLCBOR, []byte("\xff\xff"), "", ""},
		{"/d/large", coap.SenMLJSON, append(senml("3"), bytes.Repeat([]byte(" "), 5000)...), "", ""}, // in blocks
	} {
		before := len(sink.WaitUnknown(t, 0))
		if got, err := p.Post(t.Context(), c.path, c.format, c.payload); err != nil || got != notFound {
			t.Errorf("%s: got %v, %v", c.path, got, err)
		}
		shown := sink.WaitUnknown(t, 0)[before:]
		if c.profile == "" {
			if len(shown) > 0 {
				t.Errorf("%s: shown is %+v", c.path, shown)
			}
			continue
		}
		if len(shown) != 1 || shown[0].Transport != "coap" || "/d/"+shown[0].Place != c.path && shown[0].Place != "hive" || shown[0].Profile != c.profile ||
			len(shown[0].Fields) != 1 || shown[0].Fields[0].Name != c.field || shown[0].Peer == "" {
			t.Errorf("%s: shown is %+v", c.path, shown)
		}
	}
	for _, m := range sink.WaitMessages(t, 0) {
		t.Errorf("taken: %+v", m.Readings)
	}
}
