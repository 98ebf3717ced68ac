package watch

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"mellium.im/sasl"
	"mellium.im/xmpp"
	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

const (
	kitchen = "gw/kitchen/log"
	cellar  = "gw/cellar/log"
	events  = "gw/events"
)

// TestWatch has history, live readings, and servers that are killed and come
// again while readings go on.
func TestWatch(t *testing.T) {
	for _, format := range []string{bridge.PayloadSenML, bridge.PayloadFields} {
		t.Run(format, func(t *testing.T) {
			eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
				s := startServer(t, kind, xmppserver.Options{})
				p := publish(t, s)
				p.encode = encoder(t, format)
				p.create(kitchen, 200, anna)
				p.create(cellar, 200, anna)
				p.pack(kitchen, "a.1", 1, 10)
				p.pack(kitchen, "a.1", 11, 11)

				w := startWatch(t, s, nil)
				w.waitUp(t, 1)
				equal(t, "history", w.numbers(kitchen), upTo(11))

				for i := range uint64(20) {
					p.pack(kitchen, "a.1", 12+2*i, 13+2*i)
					p.pack(cellar, "a.1", i+1, i+1)
				}
				p.pack(kitchen, "a.1", 50, 51) // again: its answer was lost
				p.pack(kitchen, "a.1", 10+40, 11+40)
				w.waitReadings(t, 51+20)

				for i, end := range []func() error{s.Kill, s.Stop} {
					if err := end(); err != nil {
						t.Fatal(err)
					}
					w.wait(t, "the end of the link", func() bool { return !w.up })
					if err := s.Restart(t.Context()); err != nil {
						t.Fatal(err)
					}
					p = publish(t, s)
					p.encode = encoder(t, format)
					next := uint64(52 + 3*i)
					p.pack(kitchen, "a.1", next, next)
					w.waitUp(t, 2+i)
					p.pack(kitchen, "a.1", next+1, next+2)
					w.waitReadings(t, 71+3+3*i)
				}
				p.pack(kitchen, "a.2", 1, 5) // the gateway starts again
				w.waitReadings(t, 71+6+5)

				equal(t, "kitchen", w.numbers(kitchen), append(upTo(57), upTo(5)...))
				equal(t, "cellar", w.numbers(cellar), upTo(20))
				w.want(t, Counts{Readings: 82})
			})
		})
	}
}

// TestFaults publishes what a gateway must not.
func TestFaults(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		for i, c := range []struct {
			name    string
			publish func(node string)
			want    Counts
		}{
			{"missing", func(node string) {
				p.pack(node, "a.1", 1, 3)
				p.pack(node, "a.1", 6, 7)
			}, Counts{Readings: 5, Missing: 2}},
			{"doubled", func(node string) {
				p.pack(node, "a.1", 1, 3)
				p.pack(node, "a.1", 3, 5)
			}, Counts{Readings: 5, Doubled: 1}},
			{"changed", func(node string) {
				p.pack(node, "a.1", 1, 3)
				p.item(node, "a.1-1-3", payload(t, p.encode, records("d2", time.Now(), 1, 2, 3)))
				p.pack(node, "a.1", 4, 5)
			}, Counts{Readings: 5, Doubled: 3}},
			{"disordered", func(node string) {
				p.pack(node, "a.1", 1, 2)
				p.pack(node, "a.1", 4, 5)
				p.pack(node, "a.1", 3, 3)
			}, Counts{Readings: 5, Disordered: 1}},
		} {
			node := fmt.Sprintf("gw/d%d/log", i)
			p.create(node, 100, anna)
			t.Run(c.name+" live", func(t *testing.T) {
				w := startWatch(t, s, func(o *Options) { o.Nodes = []string{node} })
				w.waitUp(t, 1)
				c.publish(node)
				w.waitReadings(t, int(c.want.Readings))
				w.want(t, c.want)
			})
			t.Run(c.name+" in history", func(t *testing.T) {
				w := startWatch(t, s, func(o *Options) { o.Nodes = []string{node} })
				w.waitUp(t, 1)
				want := c.want
				want.Disordered = 0 // history has no order
				if c.name == "changed" {
					want.Doubled = 0 // what was there before is not known
				}
				w.want(t, want)
			})
		}
	})
}

// TestAway cuts the watcher off while readings come: those that the node still
// has are fetched, the others are called evicted.
func TestAway(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		p.create(kitchen, 5, anna)
		p.create(cellar, 100, anna)
		g := newGate(t, s.C2S())
		w := startWatch(t, s, func(o *Options) { o.Server = g.addr() })
		w.waitUp(t, 1)
		p.pack(kitchen, "a.1", 1, 2)
		p.pack(cellar, "a.1", 1, 2)
		w.waitReadings(t, 4)
		g.cut()
		w.wait(t, "the end of the link", func() bool { return !w.up })
		for i := range uint64(10) {
			p.pack(kitchen, "a.1", 3+2*i, 4+2*i)
		}
		for i := range uint64(30) {
			p.pack(cellar, "a.1", 3+2*i, 4+2*i)
		}
		p.pack(cellar, "a.1", 64, 65) // a gap and a double, far from each other
		g.open()
		w.waitUp(t, 2)
		equal(t, "kitchen", w.numbers(kitchen), append(upTo(2), upTo(22)[12:]...))
		equal(t, "cellar", w.numbers(cellar), append(upTo(62), 64, 65))
		w.want(t, Counts{Readings: 12 + 64, Evicted: 10, Missing: 1})

		p.pack(cellar, "a.1", 63, 63)
		p.pack(kitchen, "a.1", 23, 23)
		w.waitReadings(t, 12+64+2)
		w.want(t, Counts{Readings: 12 + 66, Evicted: 10, Disordered: 1})
	})
}

// TestLoss has the gateway explain a gap on its events node.
func TestLoss(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		p.create(kitchen, 100, anna)
		p.create(events, 100, anna)
		p.item(events, "l1", fmt.Appendf(nil, lossEntry, 3, 4))
		p.pack(kitchen, "a.1", 1, 2)
		p.pack(kitchen, "a.1", 5, 6)
		w := startWatch(t, s, nil)
		w.waitUp(t, 1)
		w.want(t, Counts{Readings: 4, Lost: 2})
		p.pack(kitchen, "a.1", 9, 9)
		p.item(events, "l2", fmt.Appendf(nil, lossEntry, 7, 7))
		w.wait(t, "the event", func() bool { return len(w.events) == 2 })
		w.waitReadings(t, 5)
		w.want(t, Counts{Readings: 5, Lost: 3, Missing: 1})
		w.look(func() {
			if e := w.events[1]; e.Item != "l2" || e.Loss == nil || e.Loss.First != 7 || e.Device != "kitchen" {
				t.Errorf("event %+v", e)
			}
		})
	})
}

// TestNewNodes makes nodes, admits to nodes, and deletes nodes while the
// watcher watches.
func TestNewNodes(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		p.create(kitchen, 100) // nobody is admitted
		p.create("not of a gateway", 100, anna)
		p.pack(kitchen, "a.1", 1, 2)
		w := startWatch(t, s, func(o *Options) { o.PubSub = "" }) // the server is asked
		w.waitUp(t, 1)
		w.want(t, Counts{})

		p.create(cellar, 100, anna)
		p.pack(cellar, "a.1", 1, 3)
		w.waitReadings(t, 3)
		p.admit(kitchen, anna)
		w.waitReadings(t, 5)
		p.ask(fmt.Sprintf(`<pubsub xmlns='http://jabber.org/protocol/pubsub#owner'><delete node='%s'/></pubsub>`, cellar))
		p.create(cellar, 100, anna)
		p.pack(cellar, "a.1", 4, 5)
		w.waitReadings(t, 7)
		p.pack(cellar, "a.1", 6, 6)
		w.waitReadings(t, 8)
		w.want(t, Counts{Readings: 8})
	})
}

// TestNow names a now node beside a node that there is not, and one that is
// closed.
func TestNow(t *testing.T) {
	const now = "gw/kitchen/now"
	const fields = `<fields xmlns='urn:xmpp:iot:sensordata' seqnr='%d' done='true'><node nodeId='kitchen'><timestamp value='2026-09-01T10:15:00Z'>` +
		`<numeric name='temperature' momentary='true' automaticReadout='true' value='21.40' unit='°C'/></timestamp></node></fields>`
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		p.create(now, 1, anna)
		p.create(kitchen, 100, anna)
		p.create(cellar, 100)
		p.item(now, "current", fmt.Appendf(nil, fields, 1))
		var w *watching
		w = startWatch(t, s, func(o *Options) {
			o.Nodes = []string{now, cellar, "gw/attic/log"}
			o.Now = func(r Reading) { w.recorder.Now(r) }
		})
		w.wait(t, "the values", func() bool { return len(w.now) > 0 && w.up })
		p.pack(kitchen, "a.1", 1, 2)
		p.item(now, "current", fmt.Appendf(nil, fields, 2))
		w.wait(t, "the new values", func() bool { return w.now[len(w.now)-1].Seq == 2 })
		if got := w.numbers(kitchen); len(got) > 0 {
			t.Errorf("readings of a node that was not named: %v", got)
		}
	})
}

// TestManyNodes has more nodes than ejabberd lists at once.
func TestManyNodes(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		const n = 230
		for i := range n {
			node := fmt.Sprintf("gw/d%d/log", i)
			p.create(node, 100, anna)
			p.pack(node, "a.1", 1, 1)
		}
		w := startWatch(t, s, nil)
		w.waitUp(t, 1)
		w.want(t, Counts{Readings: n})
		p.pack("gw/d117/log", "a.1", 2, 2)
		w.waitReadings(t, n+1)
		w.want(t, Counts{Readings: n + 1})
	})
}

// TestFullNode fetches far more than fits one answer.
func TestFullNode(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{MaxItems: 2000, Storage: map[xmppserver.Kind]string{xmppserver.Prosody: "memory"}[kind]})
		p := publish(t, s)
		const packs, each = 800, 75
		p.create(kitchen, 2000, anna)
		for i := range uint64(packs) {
			p.pack(kitchen, "a.1", 1+i*each, each+i*each)
		}
		// What is published again moves to the end of the node.
		p.pack(kitchen, "a.1", 1, each)
		w := startWatch(t, s, nil)
		w.waitUp(t, 1)
		equal(t, "history", w.numbers(kitchen), upTo(packs*each))
		w.want(t, Counts{Readings: packs * each})
	})
}

// TestAccount watches the nodes of a gateway that has an account, which tells
// only its contacts what nodes it has.
func TestAccount(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		conn, err := net.Dial("tcp", s.C2S())
		if err != nil {
			t.Fatal(err)
		}
		session, err := xmpp.NewClientSession(t.Context(), jid.MustParse("gateway@localhost"), conn,
			xmpp.StartTLS(&tls.Config{RootCAs: roots(t, s), ServerName: s.Domain()}),
			xmpp.SASL("", "pw", sasl.ScramSha1), xmpp.BindResource())
		if err != nil {
			t.Fatal(err)
		}
		serveSession(t, session, conn)
		p := &publisher{t, "", "gateway@localhost", session, encoder(t, bridge.PayloadSenML)}
		p.create(kitchen, 100, anna)
		for i := range uint64(20) {
			p.pack(kitchen, "a.1", i+1, i+1)
		}
		w := startWatch(t, s, func(o *Options) { o.PubSub, o.Nodes = "gateway@localhost", []string{kitchen} })
		w.waitUp(t, 1)
		equal(t, "history", w.numbers(kitchen), upTo(20))
		p.pack(kitchen, "a.1", 21, 22)
		w.waitReadings(t, 22)
		w.want(t, Counts{Readings: 22})
	})
}

// TestPresence has a device, a stranger's notification and a line of chat.
func TestPresence(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		p.create(kitchen, 100, anna)
		w := startWatch(t, s, nil)
		w.waitUp(t, 1)
		send := func(text string) {
			t.Helper()
			if err := p.session.Send(t.Context(), xml.NewDecoder(strings.NewReader(text))); err != nil {
				t.Fatal(err)
			}
		}
		send(`<presence xmlns='jabber:component:accept' from='kitchen@pi.localhost/gw' to='anna@localhost'><show>away</show><status>21.4 °C</status></presence>`)
		w.wait(t, "the presence", func() bool { return len(w.presences) > 0 })
		var presence Presence
		w.look(func() { presence = w.presences[0] })
		if got := presence; got.Device != "kitchen" || got.Show != "away" || got.Status != "21.4 °C" || got.Type != "" {
			t.Errorf("presence %+v", got)
		}
		forged := payload(t, p.encode, records("kitchen", time.Now(), 7))
		send(fmt.Sprintf(`<message xmlns='jabber:component:accept' type='headline' from='pubsub@pi.localhost' to='anna@localhost'>`+
			`<event xmlns='http://jabber.org/protocol/pubsub#event'><items node='%s'><item id='a.1-7-7'>%s</item></items></event></message>`, kitchen, forged))
		send(`<message xmlns='jabber:component:accept' type='chat' from='kitchen@pi.localhost/gw' to='anna@localhost'><body>ALARM: too hot</body></message>`)
		w.wait(t, "the chat", func() bool { return len(w.events) > 0 })
		var event Event
		w.look(func() { event = w.events[0] })
		if got := event; got.Device != "kitchen" || got.Category != CategoryMessage || got.Title != "ALARM: too hot" {
			t.Errorf("event %+v", got)
		}
		w.want(t, Counts{}) // the stranger's notification came before
	})
}

// TestRefused has the wrong password.
func TestRefused(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		for name, o := range map[string]Options{
			"password":  {JID: anna, Password: "wrong", Server: s.C2S(), CAs: roots(t, s)},
			"authority": {JID: anna, Password: "pw", Server: s.C2S()},
		} {
			err := New(o).Run(t.Context(), newRecorder())
			if err == nil || !strings.Contains(err.Error(), "cannot log in as anna@localhost") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestRunRefusesWrongOptions(t *testing.T) {
	for _, o := range []Options{
		{JID: "@"},
		{JID: "localhost"},
		{JID: anna, PubSub: "@"},
		{JID: anna, Nodes: []string{"kitchen"}},
	} {
		if err := New(o).Run(t.Context(), newRecorder()); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

// slow is a Handler that waits at the first reading.
type slow struct {
	*recorder
	begin chan struct{}
}

func (s slow) Reading(r Reading) {
	<-s.begin
	s.recorder.Reading(r)
}

// TestSlowHandler lets more come than is held: nothing of it is missing.
func TestSlowHandler(t *testing.T) {
	eachServer(t, func(t *testing.T, kind xmppserver.Kind) {
		s := startServer(t, kind, xmppserver.Options{})
		p := publish(t, s)
		p.create(kitchen, 200, anna)
		r := slow{newRecorder(), make(chan struct{})}
		w := New(Options{JID: anna, Password: "pw", Server: s.C2S(), CAs: roots(t, s), PubSub: s.PubSub()})
		w.holds = 10 << 10
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx, r) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		r.waitUp(t, 1)
		const packs, each = 50, 20
		for i := range uint64(packs) {
			p.pack(kitchen, "a.1", 1+i*each, each+i*each)
		}
		close(r.begin)
		r.waitReadings(t, packs*each)
		if got, want := w.Counts(), (Counts{Readings: packs * each}); got != want {
			t.Errorf("counts %+v, want %+v", got, want)
		}
		if got := r.numbers(kitchen); !slices.IsSorted(got) {
			t.Errorf("out of order: %v", got)
		}
	})
}
