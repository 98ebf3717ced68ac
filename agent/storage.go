package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// probeEvery is how often a disk that failed is tried. Each success is a
	// new start, which must not be all that the gateway does.
	probeEvery = 15 * time.Second
	// probeSize is about what a commit writes.
	probeSize = 64 << 10
)

// watchStore waits for the store to fail, and then for the disk to work again.
// After a failed write nobody knows what a file holds that is open still, so
// that the gateway ends then, for whoever keeps it running to start it anew.
func (a *Agent) watchStore(ctx context.Context, dir string, end func()) {
	select {
	case <-ctx.Done():
		return
	case <-a.outbox.Failed():
	}
	a.outbox.AddNote(storeNote("the store cannot be written", a.outbox.Stats().Fault+"; what comes is sent, and kept in memory until then"))
	a.present(devices.Gateway)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := probe(dir); err == nil {
			a.log.Info("the disk can be written again; the gateway ends, to read the store anew")
			end()
			return
		}
	}
}

// recoveryShown is for how long the gateway's presence tells of a damage.
const recoveryShown = 24 * time.Hour

// A store is what a gateway's presence depends on.
type store interface {
	Failed() <-chan struct{}
	Recovered() *outbox.Recovery
}

// troubled has the gateway's presence tell of its store, where that has failed
// or was found damaged at the start, which was so long ago.
func troubled(p bridge.Presence, s store, ago time.Duration) bridge.Presence {
	select {
	case <-s.Failed():
		p.State, p.Note = devices.StateAlarm, "the store cannot be written"
		return p
	default:
	}
	if s.Recovered() != nil && ago < recoveryShown {
		p.State, p.Note = devices.StateAlarm, "the store was damaged; the events tell more"
	}
	return p
}

// probe writes as much to a directory as the store does at a time.
func probe(dir string) error {
	f, err := os.CreateTemp(dir, "probe-")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, probeSize))
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}

// recoveryNote tells of a damaged store as an event.
func recoveryNote(r outbox.Recovery) []byte { return storeNote("the store was damaged", r.String()) }

func storeNote(title, summary string) []byte {
	now := time.Now()
	return note(bridge.Event{
		ID: fmt.Sprintf("store-%d", now.UnixMicro()), Time: now, Category: "alarm", Device: devices.Gateway,
		Title: title, Summary: summary,
	})
}
