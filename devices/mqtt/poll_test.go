package mqtt

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// TestPolls has a device asked when it comes online, and not each time that it
// says so; all of a firmware at the start; and one again and again.
func TestPolls(t *testing.T) {
	folder := t.TempDir()
	const meter = `{profile: 1, id: meter, name: Meter, transport: [mqtt], match: [{topic: "meter/{device}/data"}], decode: [{json: {}}],
		poll: [{every: 1s, topic: "meter/{device}/get", payload: "?"}, {on: start, topic: "meters/get", payload: "all"}]}`
	if err := os.WriteFile(filepath.Join(folder, "meter.yaml"), []byte(meter), 0o600); err != nil {
		t.Fatal(err)
	}
	profiles, err := profile.Load(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []string{"client", "broker"} {
		t.Run(of, func(t *testing.T) {
			ds := []Device{device(t, "plug", "tasmota", "plug"), {Device: devices.Device{ID: "meter"}, Profile: profiles.Get("meter"), Place: profile.Place{Device: "meter", Topic: "m1"}}}
			sink := &devicetest.Sink{Auto: true}
			var url string
			var d devices.Driver
			var heard <-chan string
			if of == "client" {
				m := startMosquitto(t)
				url = m.url()
				heard = listen(t, url, "all", "", "", "#")
				d = NewClient(ClientConfig{Name: "house", URL: url, ClientID: "porchlight-test", Profiles: profiles}, ds, quiet())
				run(t, d, sink)
				sink.WaitUp(t, 1)
			} else {
				address := freePort(t)
				url = "mqtt://" + address
				run(t, NewBroker(BrokerConfig{Listen: address, Profiles: profiles}, ds, quiet()), sink)
				sink.WaitUp(t, 1)
				heard = listen(t, url, "all", "", "", "#")
			}
			p := publisher(t, url, "street")
			send(t, p, Publication{Topic: "tele/plug/LWT", Payload: []byte("Online"), QoS: 1})
			send(t, p, Publication{Topic: "tele/plug/LWT", Payload: []byte("Online"), QoS: 1})
			send(t, p, Publication{Topic: "meter/m1/data", Payload: []byte(`{"power":1}`), QoS: 1})
			counts := make(map[string]int)
			for deadline := time.After(patience); counts["meter/m1/get ?"] < 3; {
				select {
				case is := <-heard:
					counts[is]++
				case <-deadline:
					t.Fatalf("heard: %v", counts)
				}
			}
			if counts["cmnd/plug/STATUS 10"] != 1 || counts["cmnd/plug/STATUS 11"] != 1 {
				t.Errorf("the plug is asked as in %v", counts)
			}
			if want := map[string]int{"client": 1, "broker": 0}[of]; counts["meters/get all"] != want {
				t.Errorf("all are asked %d times, want %d", counts["meters/get all"], want)
			}
		})
	}
}
