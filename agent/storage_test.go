package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// TestTroubledPresence has the gateway's presence tell of a damaged store, for
// a day, and of none that is well.
func TestTroubledPresence(t *testing.T) {
	usual := bridge.Presence{State: devices.StateFresh}
	options := outbox.Options{Encode: func(devices.ID, time.Time, []devices.Record, int) ([]byte, int) { return nil, 1 }}
	path := filepath.Join(t.TempDir(), "o.db")
	for _, damaged := range []bool{false, true} {
		if damaged {
			if err := os.WriteFile(path, []byte("noise"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o, err := outbox.Open(path, options)
		if err != nil {
			t.Fatal(err)
		}
		p := troubled(usual, o, time.Hour)
		if damaged != (p.State == devices.StateAlarm && p.Note != "") {
			t.Errorf("damaged %v: %+v", damaged, p)
		}
		if p := troubled(usual, o, 25*time.Hour); p.State != devices.StateFresh {
			t.Errorf("a day later: %+v", p)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
