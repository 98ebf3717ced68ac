package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
	"github.com/porchlight-iot/porchlight/devices"
)

// BenchmarkReconnect has 1,000 devices tell 10 operators how they are, as after
// every reconnect: it gives the stanzas, and how long they take at the pace at
// which they go out.
func BenchmarkReconnect(b *testing.B) {
	const houses, people = 1000, 10
	var presences atomic.Int64
	done := make(chan struct{}, 1)
	server := xmpptest.Serve(b, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		if name == "presence" && presences.Add(1)%(houses*people) == 0 {
			done <- struct{}{}
		}
		obliging(p, name, s)
	})
	auth := rights{}
	for i := range people {
		auth[fmt.Sprintf("operator%d@example.org", i)] = []devices.ID{"*"}
	}
	bridge, err := New(Config{
		Stream:  stream.Config{Component: &stream.Component{Domain: "pi.example.org", Server: server, Secret: "s"}},
		PubSub:  "pubsub.example.org",
		Gateway: "pi",
	}, Options{Auth: auth, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	var all []Device
	for i := range houses {
		all = append(all, Device{ID: devices.ID(fmt.Sprintf("d%d", i))})
	}
	bridge.SetDevices(all)
	for _, d := range all {
		bridge.SetPresence(d.ID, Presence{State: devices.StateFresh, Since: time.Now(), Fields: []devices.Field{{Name: "temperature", Value: devices.Number(21.5), Unit: "°C"}}})
	}
	for b.Loop() {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		began := time.Now()
		go func() { ended <- bridge.Run(ctx) }()
		select {
		case <-done:
		case <-time.After(15 * time.Minute):
			b.Fatalf("%d presences", presences.Load())
		}
		b.ReportMetric(time.Since(began).Seconds(), "s/reconnect")
		b.ReportMetric(float64(presences.Load()), "stanzas")
		cancel()
		<-ended
	}
}
