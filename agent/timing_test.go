package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

// keptTime is a machine whose clock something keeps right. Its times are after
// the program was made, also where time is virtual and begins in 2000.
type keptTime struct{ began time.Time }

func (keptTime) Boot() (string, error) { return "0b3c1f2e-0000-4000-8000-000000000001", nil }

func (k keptTime) Sample() clock.Sample {
	now := time.Now()
	for now.Year() < 2027 {
		now = now.AddDate(10, 0, 0)
	}
	return clock.Sample{Boottime: time.Since(k.began) + time.Minute, Wall: now, Synced: true, MaxError: time.Millisecond}
}

// knownTime is a timing that knows the time.
func knownTime(t *testing.T) *timing {
	t.Helper()
	timing := &timing{source: keptTime{time.Now()}, log: slog.New(slog.DiscardHandler)}
	timing.boot(nil)
	if timing.clock == nil || !timing.clock.Known() {
		t.Fatal("the time is not known")
	}
	return timing
}

// A board is a gateway's store and clock, on a machine without one.
type board struct {
	t      *testing.T
	fake   *clock.Fake
	timing *timing
	bridge *bridge.Bridge
	path   string
	outbox *outbox.Outbox
	intake *intake
}

func (b *board) boot() {
	b.t.Helper()
	log := slog.New(slog.DiscardHandler)
	b.timing = &timing{source: b.fake, log: log}
	var err error
	b.outbox, err = outbox.Open(b.path, outbox.Options{
		Encode: b.bridge.EncodeLog, Ack: outbox.AckDisk, CommitAfter: time.Millisecond,
		Boot: b.timing.boot, State: b.timing.state, Date: b.timing.date, Apply: b.timing.apply, Now: b.timing.now,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	h := newHouse(func(devices.ID) {})
	h.furnish([]devices.Device{{ID: "kitchen"}}, b.outbox.State)
	b.intake = &intake{outbox: b.outbox, house: h, orders: &orders{house: h}, timing: b.timing, log: log}
}

func (b *board) report(n int) {
	b.t.Helper()
	r, err := b.intake.Report(b.t.Context(), devices.Message{Readings: []devices.Reading{{Device: "kitchen", Fields: []devices.Field{{Name: "n", Value: devices.Number(float64(n))}}}}})
	if err != nil {
		b.t.Fatal(err)
	}
	<-r.Done() // it is on disk
}

// publish gives what is published, in its order.
func (b *board) publish() (rs []devices.Record) {
	b.t.Helper()
	for b.outbox.Stats().Disk > 0 {
		p := b.outbox.Next()
		if p == nil {
			<-b.outbox.Ready()
			continue
		}
		text, err := bridge.WrapLog(p.Payload)
		if err != nil {
			b.t.Fatal(err)
		}
		_, _, some, err := bridge.DecodeItem(p.Item(), bytes.TrimSpace(text))
		if err != nil {
			b.t.Fatal(err)
		}
		rs = append(rs, some...)
		b.outbox.Settle(p)
	}
	return rs
}

// TestTimeBecomesKnown has a board report in three boots, in each before it
// knows the time, in one without it ever being known: in the order of the
// reports, with the true times where they can be known, and with bounds where
// not. The counts follow: those of the second boot belong to no period.
func TestTimeBecomesKnown(t *testing.T) {
	truth := time.Date(2027, 3, 1, 8, 0, 0, 0, time.UTC)
	b := &board{t: t, fake: clock.NewFake(truth, time.Unix(0, 0)), path: filepath.Join(t.TempDir(), "o.db")}
	var err error
	b.bridge, err = bridge.New(bridge.Config{
		Stream: stream.Config{Component: &stream.Component{Domain: "pi.example.org", Server: "127.0.0.1:1", Secret: "s"}}, PubSub: "pubsub.example.org", Gateway: "pi",
	}, bridge.Options{Auth: &authorizer{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var want []time.Time
	report := func() {
		want = append(want, b.fake.Truth())
		b.report(len(want))
	}
	// The first boot begins in 1970 and learns the time after three hours.
	b.boot()
	report()
	b.fake.Pass(3 * time.Hour)
	report()
	b.fake.Sync(0, 10*time.Millisecond)
	b.timing.clock.Known() // it is looked at now and then
	b.fake.Pass(time.Minute)
	report()
	if err := b.outbox.Close(); err != nil {
		t.Fatal(err)
	}
	// The second never does.
	b.fake.Reboot(time.Hour, time.Unix(0, 0))
	b.boot()
	b.fake.Pass(10 * time.Minute)
	report()
	b.fake.Pass(5 * time.Second)
	report()
	if err := b.outbox.Close(); err != nil {
		t.Fatal(err)
	}
	// The third is told by the server.
	b.fake.Reboot(time.Hour, time.Unix(0, 0))
	b.boot()
	defer b.outbox.Close()
	report()
	b.fake.Pass(time.Minute)
	b.timing.told(b.fake.Truth(), 100*time.Millisecond)
	report()

	got := b.publish()
	if len(got) != len(want) {
		t.Fatalf("%d readings are published, want %d", len(got), len(want))
	}
	for i, r := range got {
		if n := r.Fields[0].Value.String(); n != fmt.Sprint(i+1) {
			t.Errorf("reading %s is number %d", n, i+1)
		}
		wrong := r.Time.Sub(want[i]).Abs()
		switch uncertain := i == 3 || i == 4; {
		case !uncertain && (r.Bounds != nil || wrong > 2*time.Second):
			t.Errorf("reading %d is of %s, want %s; bounds %v", i+1, r.Time, want[i], r.Bounds)
		case uncertain && (r.Bounds == nil || want[i].Before(r.Bounds[0]) || want[i].After(r.Bounds[1])):
			t.Errorf("reading %d is within %v, which %s is not", i+1, r.Bounds, want[i])
		}
	}
	if between := got[4].Time.Sub(got[3].Time); between != 5*time.Second {
		t.Errorf("two readings five seconds apart are published as %v apart", between)
	}
	for _, c := range []struct {
		until          time.Duration
		given, undated uint64
	}{{5 * time.Hour, 3, 2}, {24 * time.Hour, 5, 2}} {
		a, err := b.outbox.Proof(proof.Question{Since: truth, Until: truth.Add(c.until)})
		if err != nil {
			t.Fatal(err)
		}
		if a.Total.Given != c.given || a.Total.Accepted != c.given || a.Undated == nil || a.Undated.Given != c.undated || a.Whole() {
			t.Errorf("until %v: %+v, undated %+v", c.until, a, a.Undated)
		}
		if span := a.To.Sub(a.From); c.given == 3 && span > 5*time.Hour {
			t.Errorf("%+v", a)
		}
	}
}
