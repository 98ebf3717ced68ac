package profile

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// profileOf tells which profile takes the samples of a firmware, where it has
// another name.
var profileOf = map[string]string{
	"espeasy-domoticz": "espeasy-domoticz",
	"plain":            "",
}

// notHeard are samples that are no message with readings.
var notHeard = map[string]string{
	"modbus-eastron-sdm120-02": "a request, which the driver sends",
	"modbus-pzem004t-v3-03":    "a request, which the driver sends",
	"shelly-coiot-05":          "a request, which the driver sends",
}

// nameless are the firmwares whose messages do not tell who they are of: the
// config does. What their samples call them is not compared.
var nameless = []string{"contiki-ng", "riot", "nordic-openthread", "ocf", "coap-linkformat", "lwm2m", "shelly-coiot"}

// readLines reads the samples of a firmware.
func readLines(t testing.TB, file string) (all []Sample) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var s Sample
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, s)
	}
	return all
}

// TestSampleLines lets every sample of a real device find its own profile, all
// of them being loaded, and compares what it must hold. The samples of one
// firmware are heard by one session, in their order.
func TestSampleLines(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join("..", "..", "firmware-profiles", "testdata", "*.jsonl"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, file := range files {
		firmware := strings.TrimSuffix(filepath.Base(file), ".jsonl")
		t.Run(firmware, func(t *testing.T) {
			want, renamed := profileOf[firmware]
			if !renamed {
				want = firmware
				if p := library.Get(firmware); p != nil { // under another name
					want = p.ID()
				}
			}
			session := library.NewSession(berlin(t))
			for _, s := range readLines(t, file) {
				out, err := s.Hear(session, received)
				shown := Show(s.ID, out, err)
				if notHeard[s.ID] != "" {
					if len(shown.Readings) > 0 {
						t.Errorf("%s: it is %s, and makes readings", s.ID, notHeard[s.ID])
					}
					continue
				}
				if slices.Contains(nameless, firmware) {
					if shown.Device != "" {
						t.Errorf("%s: %s has a name after all: %s", s.ID, firmware, shown.Device)
					}
					s.Expect.Device = ""
				}
				if problem := shown.Check(want, s.Expect); problem != "" {
					got, _ := json.Marshal(shown)
					t.Errorf("%s %s: %s\n%s", s.ID, s.Topic, problem, got)
				}
			}
		})
	}
}
