package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
	"github.com/porchlight-iot/porchlight/devices"
)

// obliging answers every request with an empty result.
func obliging(p *xmpptest.Peer, name string, s xmpptest.Asked) {
	if s.Request(name) {
		p.Result(s, "")
	}
}

func runScripted(t *testing.T, server string, change func(*Bridge)) *running {
	t.Helper()
	r := &running{t: t, ups: make(chan bool, 1000), auth: &changing{r: rights{"anna@example.org": {"*"}}}}
	var err error
	r.Bridge, err = New(Config{
		Stream:  stream.Config{Component: &stream.Component{Domain: "pi.example.org", Server: server, Secret: "s"}},
		PubSub:  "pubsub.example.org",
		Gateway: "pi",
	}, Options{Auth: r.auth, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), OnSession: func(up bool) { r.ups <- up }})
	if err != nil {
		t.Fatal(err)
	}
	r.wait = func(stream.Class, time.Duration) time.Duration { return time.Millisecond }
	if change != nil {
		change(r.Bridge)
	}
	r.start()
	return r
}

func (r *running) start() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				r.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			r.t.Error("Run does not end with its context")
		}
	})
	r.t.Cleanup(r.stop)
}

func isPublish(s xmpptest.Asked) bool { return strings.Contains(s.Inner, "<publish ") }

func TestAPackThatClosesTheStreamTwiceIsTooBig(t *testing.T) {
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		if isPublish(s) && strings.Contains(s.Inner, "big-1-1") {
			p.Write("<stream:error><policy-violation xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>")
			p.Conn.Close()
			return
		}
		obliging(p, name, s)
	})
	r := runScripted(t, server, nil)
	var verdicts []Verdict
	for range 2 {
		r.waitSession(true)
		err := r.PublishLog(context30(t), "kitchen", "big-1-1", []byte{0x80})
		if err == nil {
			t.Fatal("accepted")
		}
		verdicts = append(verdicts, Judge(err))
		r.waitSession(false)
	}
	if verdicts[0] != Keep || verdicts[1] != Split {
		t.Errorf("verdicts %v, want keep, then split", verdicts)
	}
	r.waitSession(true)
	if err := r.PublishLog(context30(t), "kitchen", "small-1-1", []byte{0x80}); err != nil {
		t.Errorf("another pack: %v", err)
	}
}

// TestMaxIsNoNumber has a service fail, as Openfire does, at "max" where it reads
// a number.
func TestMaxIsNoNumber(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		if strings.Contains(s.Inner, "<create ") && strings.Contains(s.Inner, "kitchen/log") {
			most := "a number"
			if strings.Contains(s.Inner, "<value>max</value>") {
				most = "max"
			}
			mu.Lock()
			asked = append(asked, most)
			mu.Unlock()
			if most == "max" {
				p.Refuse(s, "cancel", "<internal-server-error xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
				return
			}
			if !strings.Contains(s.Inner, "<value>"+manyItems+"</value>") {
				p.Refuse(s, "modify", "<bad-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
				return
			}
		}
		obliging(p, name, s)
	})
	r := runScripted(t, server, nil)
	r.waitSession(true)
	if err := r.PublishLog(context30(t), "kitchen", "m-1-1", []byte{0x80}); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := strings.Join(asked, ", "); got != "max, a number" {
		t.Errorf("asked for %s", got)
	}
}

func TestASilentServerIsLeft(t *testing.T) {
	var mu sync.Mutex
	sessions := 0
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		if strings.Contains(s.Inner, nsPing) {
			mu.Lock()
			defer mu.Unlock()
			if sessions++; sessions == 1 {
				return // nothing is said any more
			}
		}
		obliging(p, name, s)
	})
	r := runScripted(t, server, func(b *Bridge) {
		b.cfg.Stream.PingEvery, b.cfg.Stream.PingTimeout = 10*time.Millisecond, 100*time.Millisecond
	})
	r.waitSession(true)
	r.waitSession(false)
	r.waitSession(true)
	if err := r.PublishLog(context30(t), "kitchen", "s-1-1", []byte{0x80}); err != nil {
		t.Error(err)
	}
}

func TestAnErrorAnswersAPing(t *testing.T) {
	pings := make(chan struct{}, 100)
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		if strings.Contains(s.Inner, nsPing) {
			p.Refuse(s, "cancel", "<service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
			pings <- struct{}{}
			return
		}
		obliging(p, name, s)
	})
	r := runScripted(t, server, func(b *Bridge) { b.cfg.Stream.PingEvery = 10 * time.Millisecond })
	r.waitSession(true)
	for range 5 {
		<-pings
	}
	select {
	case <-r.ups:
		t.Error("the session ended")
	default:
	}
}

func TestRefusals(t *testing.T) {
	const ns = " xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>"
	for _, c := range []struct {
		name, kind, conditions string
		on                     string // the request that is refused
		want                   Verdict
	}{
		{"too big", "modify", "<not-acceptable" + ns + "<payload-too-big xmlns='http://jabber.org/protocol/pubsub#errors'/>", "<publish ", Split},
		{"invalid payload", "modify", "<bad-request" + ns + "<invalid-payload xmlns='http://jabber.org/protocol/pubsub#errors'/>", "<publish ", SetAside},
		{"not acceptable", "modify", "<not-acceptable" + ns, "<publish ", SetAside},
		{"forbidden", "auth", "<forbidden" + ns, "<publish ", Park},
		{"restarting", "wait", "<remote-server-not-found" + ns, "<publish ", Keep},
		{"busy", "wait", "<resource-constraint" + ns, "<publish ", Keep},
		{"unknown", "cancel", "<something-new" + ns, "<publish ", Keep},
		{"no condition", "cancel", "", "<publish ", Keep},
		{"a form that is disliked", "wait", "<resource-constraint" + ns, "<create ", Park},
		{"no right to create", "auth", "<forbidden" + ns, "<create ", Park},
		{"service gone at create", "wait", "<service-unavailable" + ns, "<create ", Keep},
		{"never as it should be", "cancel", "<conflict" + ns + "<precondition-not-met xmlns='http://jabber.org/protocol/pubsub#errors'/>", "<publish ", Park},
		{"never there", "cancel", "<item-not-found" + ns, "<publish ", Keep},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
				if strings.Contains(s.Inner, c.on) {
					p.Refuse(s, c.kind, c.conditions)
					return
				}
				obliging(p, name, s)
			})
			r := runScripted(t, server, nil)
			r.waitSession(true)
			err := r.PublishLog(context30(t), "kitchen", "s-1-1", []byte{0x80})
			if got := Judge(err); got != c.want {
				t.Errorf("%v: %v, want %v", err, got, c.want)
			}
		})
	}
}

func TestOneOfManyMakesAMissingNode(t *testing.T) {
	var mu sync.Mutex
	there, creates := false, 0
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case strings.Contains(s.Inner, "<create ") && strings.Contains(s.Inner, "/kitchen/log"):
			creates++
			there = creates > 1 // the first is deleted at once
			p.Result(s, "")
		case isPublish(s) && !there:
			p.Refuse(s, "cancel", "<item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
		default:
			obliging(p, name, s)
		}
	})
	r := runScripted(t, server, nil)
	r.waitSession(true)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if err := r.PublishLog(context30(t), "kitchen", ItemID("s", uint64(i+1), uint64(i+1)), []byte{0x80}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if creates != 2 {
		t.Errorf("the node was made %d times, want twice", creates)
	}
}

func TestHostilePeers(t *testing.T) {
	begin := make(chan *xmpptest.Peer, 1)
	answers := make(chan xmpptest.Asked, 100)
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, s xmpptest.Asked) {
		select {
		case begin <- p:
		default:
		}
		if name == "iq" && (s.Type == "result" || s.Type == "error") {
			answers <- s
			return
		}
		obliging(p, name, s)
	})
	r := runScripted(t, server, func(b *Bridge) {
		b.SetDevices([]Device{{ID: devices.Gateway}, {ID: "kitchen"}})
	})
	r.waitSession(true)
	p := <-begin
	ask := func(id, from, to, kind, payload string) {
		p.Write("<iq id='%s' from='%s' to='%s' type='%s'>%s</iq>", id, from, to, kind, payload)
	}
	const anna = "anna@example.org/x"
	for i, payload := range []string{
		"<query xmlns='http://jabber.org/protocol/disco#items'><set xmlns='http://jabber.org/protocol/rsm'><max>many</max></set></query>",
		"<query xmlns='http://jabber.org/protocol/disco#items'><set xmlns='http://jabber.org/protocol/rsm'><max>-5</max><after>nowhere</after></set></query>",
		"<query xmlns='http://jabber.org/protocol/disco#info' node='" + strings.Repeat("x", 10000) + "'/>",
		"<nothing xmlns='urn:of-ours'/>",
		"<query xmlns='jabber:iq:last'>text</query>",
	} {
		id := fmt.Sprint("h", i)
		ask(id, anna, "kitchen@pi.example.org", "get", payload)
		select {
		case a := <-answers:
			if a.ID != id || a.To != anna || a.From != "kitchen@pi.example.org" {
				t.Errorf("%.60s: answered with %+v", payload, a)
			}
		case <-time.After(patience):
			t.Fatalf("%.60s: not answered", payload)
		}
	}
	for _, kind := range []string{"subscribe", "subscribed", "unsubscribe", "probe", "error", "nonsense", ""} {
		p.Write("<presence from='anna@example.org' to='kitchen@pi.example.org' type='%s'/>", kind)
		p.Write("<presence from='eve@example.org' to='nothing@pi.example.org' type='%s'/>", kind)
	}
	p.Write("<message from='eve@example.org' to='kitchen@pi.example.org'><body>x</body></message>")
	if err := r.PublishLog(context30(t), "kitchen", "s-1-1", []byte{0x80}); err != nil {
		t.Error(err)
	}
	ask("last", anna, "kitchen@pi.example.org", "get", "<ping xmlns='urn:xmpp:ping'/>")
	for a := range answers {
		if a.ID == "last" {
			break
		}
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	server := xmpptest.Serve(t, obliging)
	ignore := goleak.IgnoreCurrent()
	r := runScripted(t, server, nil)
	r.waitSession(true)
	r.stop()
	// The server's own goroutine for the session ends with the connection.
	goleak.VerifyNone(t, ignore, goleak.IgnoreAnyFunction("github.com/porchlight-iot/porchlight/bridge/xmpptest.session"))
	if err := r.PublishNow(context30(t), "kitchen", nil); !errors.Is(err, ErrOffline) {
		t.Errorf("after the end: %v", err)
	}
}
