package agent

import (
	"context"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

// A slow robot reports what it was told after a round trip.
type slowRobot struct {
	devices.Driver
	trip   time.Duration
	report func(devices.Message)
}

func (r *slowRobot) Controls(id devices.ID) []devices.Control {
	if id != "lamp" {
		return nil
	}
	return []devices.Control{{Name: "power", Argument: devices.Argument{Type: devices.SwitchArgument, Words: []string{"off", "on"}}}}
}

func (r *slowRobot) Execute(_ context.Context, c devices.Command, expect func(devices.Confirmation)) error {
	on := devices.Bool(c.Argument == "on")
	expect(devices.Confirmation{Field: "power", Value: on, Within: time.Minute})
	time.AfterFunc(r.trip, func() {
		r.report(devices.Message{Readings: []devices.Reading{{Device: c.Device, Fields: []devices.Field{{Name: "power", Value: on, Kind: devices.Status}}}}})
	})
	return nil
}

type benchChat struct {
	XMLName xml.Name `xml:"message"`
	To      string   `xml:"to,attr"`
	Type    string   `xml:"type,attr"`
	ID      string   `xml:"id,attr"`
	Body    string   `xml:"body"`
}

type benchPing struct {
	XMLName xml.Name `xml:"iq"`
	To      string   `xml:"to,attr"`
	Type    string   `xml:"type,attr"`
	ID      string   `xml:"id,attr"`
	Ping    struct{} `xml:"urn:xmpp:ping ping"`
}

// dialPerson logs somebody in. heard gets the bodies of messages.
func dialPerson(b *testing.B, server *xmppserver.Server, name string, heard chan<- string) *stream.Session {
	b.Helper()
	settings, err := config.TLS{CAFile: server.CAFile()}.ClientConfig()
	if err != nil {
		b.Fatal(err)
	}
	who, err := bridge.ParseJID(name + "@localhost")
	if err != nil {
		b.Fatal(err)
	}
	s, err := stream.Dial(b.Context(), stream.Config{
		Account: &stream.Account{JID: who, Password: "password", Server: server.C2S(), Mode: stream.StartTLS, TLS: settings, PlusSeen: new(atomic.Bool)},
		Handler: func(_ *stream.Session, st stream.Stanza) bool {
			var m struct {
				Body string `xml:"body"`
			}
			if st.Name == "message" && st.Unmarshal(&m) == nil && m.Body != "" && heard != nil {
				heard <- m.Body
			}
			return st.Name != "iq"
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	if err := s.Send(b.Context(), struct {
		XMLName xml.Name `xml:"presence"`
	}{}); err != nil {
		b.Fatal(err)
	}
	return s
}

// commandTimes has somebody switch the lamp, and gives how long each took until
// it was confirmed.
func commandTimes(b *testing.B, server *xmppserver.Server, name string, n int) (all []time.Duration) {
	b.Helper()
	heard := make(chan string, 1000)
	s := dialPerson(b, server, name, heard)
	for i := range n {
		began := time.Now()
		word := []string{"on", "off"}[i%2]
		if err := s.Send(b.Context(), benchChat{To: "lamp@" + benchDomain, Type: "chat", ID: fmt.Sprintf("%s-%d", name, i), Body: word}); err != nil {
			b.Fatal(err)
		}
		for deadline := time.After(time.Minute); ; {
			select {
			case text := <-heard:
				if strings.HasPrefix(text, "refused") {
					b.Fatalf("%s: %s", word, text)
				}
				if strings.HasPrefix(text, "confirmed") {
					all = append(all, time.Since(began))
					break
				}
				continue
			case <-deadline:
				b.Fatalf("command %d was not confirmed", i)
			}
			break
		}
	}
	slices.Sort(all)
	return all
}

// BenchmarkCommand has operators switch a lamp by chat, whose own round trip is
// known: while nothing else happens, while the gateway drains a backlog of 20
// devices, and while somebody who may see the lamp floods it with IQs.
func BenchmarkCommand(b *testing.B) {
	const trip, commands, ids, rate = 20 * time.Millisecond, 60, 20, 2000
	server, err := xmppserver.Start(b.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: b.TempDir(), Component: benchDomain, Secret: "secret", Storage: "memory", MaxItems: 10_000, NoNagle: true,
		Users:        map[string]string{"anna": "password", "bob": "password", "carl": "password", "dora": "password"},
		NodeCreators: []string{"gateway@" + benchDomain, benchDomain},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Stop() })
	c := benchConfig(b, server, "mqtt: {listen: \"127.0.0.1:0\"}\n"+valueDevices(ids)+"  - {id: lamp, profile: value, mqtt: {topic: lamp}}\n")
	for _, name := range []string{"bob", "carl", "dora"} {
		c.Operators = append(c.Operators, config.Operator{JID: name + "@localhost", Role: "operator"})
	}
	a, err := New(c, quiet())
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	report := func(m devices.Message) {
		for ctx.Err() == nil {
			if _, err := a.intake.Report(ctx, m); err == nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	for !a.Stats().Online {
		time.Sleep(5 * time.Millisecond)
	}
	ended := make(chan struct{})
	close(ended)
	a.mu.Lock()
	a.crew = append(a.crew, worker{&slowRobot{trip: trip, report: report}, func() {}, ended})
	a.mu.Unlock()
	report(devices.Message{Readings: []devices.Reading{{Device: "lamp", Fields: []devices.Field{{Name: "power", Value: devices.Bool(false)}}}}})

	p := func(all []time.Duration, percent int) time.Duration { return all[len(all)*percent/100] }
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
	alone := commandTimes(b, server, "anna", commands)
	fmt.Printf("command: alone, median %s, p99 %s: %.2f and %.2f times the lamp's own round trip of %s\n",
		ms(p(alone, 50)), ms(p(alone, 99)), float64(p(alone, 50))/float64(trip), float64(p(alone, 99))/float64(trip), ms(trip))

	// A backlog that is made again as it drains.
	load, stop := context.WithCancel(ctx)
	feeding := make(chan struct{})
	go func() {
		defer close(feeding)
		for n := 0; load.Err() == nil; n++ {
			report(devices.Message{Readings: []devices.Reading{{Device: devices.ID(fmt.Sprintf("d%d", n%ids)), Fields: []devices.Field{
				{Name: "temperature", Value: devices.Number(20 + float64(n%100)/10), Unit: "°C"},
			}}}})
			for a.Stats().Waiting > 50_000 && load.Err() == nil {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	for a.Stats().Waiting < 10_000 {
		time.Sleep(time.Millisecond)
	}
	began, before := time.Now(), a.Stats().Outbox.Settled
	draining := commandTimes(b, server, "bob", commands)
	drained := float64(a.Stats().Outbox.Settled-before) / time.Since(began).Seconds()
	stop()
	<-feeding
	fmt.Printf("command: while %.0f readings/s drain, median %s, p99 %s: p99 is %.1f times that alone\n",
		drained, ms(p(draining, 50)), ms(p(draining, 99)), float64(p(draining, 99))/float64(p(alone, 99)))
	for a.Stats().Waiting > 0 {
		time.Sleep(time.Millisecond)
	}

	flooding, sent := make(chan struct{}), 0
	load, stop = context.WithCancel(ctx)
	flood := dialPerson(b, server, "dora", nil)
	began = time.Now()
	go func() {
		defer close(flooding)
		for ; flood.Send(load, benchPing{To: "lamp@" + benchDomain, Type: "get", ID: fmt.Sprintf("f%d", sent)}) == nil; sent++ {
			if ahead := time.Duration(sent)*time.Second/rate - time.Since(began); ahead > time.Millisecond {
				time.Sleep(ahead)
			}
		}
	}()
	flooded := commandTimes(b, server, "carl", commands)
	took := time.Since(began)
	stop()
	<-flooding
	fmt.Printf("command: while %.0f IQs/s come from one, median %s, p99 %s: p99 is %.1f times that alone\n",
		float64(sent)/took.Seconds(), ms(p(flooded, 50)), ms(p(flooded, 99)), float64(p(flooded, 99))/float64(p(alone, 99)))
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
