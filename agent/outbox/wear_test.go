package outbox

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// BenchmarkWear measures what a day of ten readings a second in all writes to
// the card, from hours of virtual time. The aims are 50 MB where the server
// answers, and 600 MB where it is away or the disk acknowledges.
func BenchmarkWear(b *testing.B) {
	measure := func(name string, ack Ack, online bool) {
		for _, n := range []int{1, 20} {
			for _, window := range []int{0, 20} { // of a source that does not wait, and of MQTT
				for _, after := range []time.Duration{time.Second, 10 * time.Second, 30 * time.Second} {
					b.Run(fmt.Sprintf("%s/devices=%d/window=%d/after=%v", name, n, window, after), func(b *testing.B) {
						inBubble(b, func(t *testing.T) {
							options := Options{Encode: encodeText, Ack: ack, CommitAfter: after}
							wear(b, open(t, filepath.Join(shmDir(t), "o.db"), options), online, n, window)
						})
					})
				}
			}
		}
	}
	measure("online", AckServer, true)
	measure("offline", AckServer, false)
	measure("disk", AckDisk, true)
}

// inBubble runs a part of a benchmark in virtual time, which only tests have.
func inBubble(b *testing.B, part func(t *testing.T)) {
	all := func(string, string) (bool, error) { return true, nil }
	if !testing.RunTests(all, []testing.InternalTest{{Name: b.Name(), F: func(t *testing.T) { synctest.Test(t, part) }}}) {
		b.Fail()
	}
}

func wear(b *testing.B, o *Outbox, online bool, n, window int) {
	var written atomic.Int64
	beforeWrites(o.db, func(page []byte, _ int64) error {
		written.Add(int64(len(page)))
		return nil
	})
	journal := o.journal.file
	o.journal.writeAt = func(page []byte, at int64) (int, error) {
		written.Add(int64(len(page)))
		return journal.WriteAt(page, at)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for online {
			select {
			case <-o.Ready():
			case <-ended:
				return
			}
			for p := o.Next(); p != nil; p = o.Next() {
				time.AfterFunc(50*time.Millisecond, func() { o.Settle(p) })
			}
		}
	}()
	house, before, count := newOrdinary(n), o.Stats(), b.N*36_000
	for i := range count {
		m := devices.Message{Readings: []devices.Reading{house.reading(i % n)}, Window: window}
		if window > 0 {
			m.Origin = devices.NewOrigin(fmt.Append(nil, i))
		}
		if _, _, err := o.Append(m); err != nil {
			b.Error(err)
			return
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
	s, day := o.Stats(), 24/float64(b.N)
	if online != (s.Settled > uint64(count-100)) {
		b.Errorf("online %v, and %d of %d readings were settled", online, s.Settled, count)
	}
	b.ReportMetric(float64(written.Load())/1e6*day, "MB/day")
	b.ReportMetric(float64(s.Commits-before.Commits)*day, "commits/day")
	b.ReportMetric(float64(s.Batches-before.Batches)*day, "batches/day")
	b.ReportMetric(0, "ns/op")
}
