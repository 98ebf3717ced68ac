package bridge

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

// patience is how long a test waits for an event before it fails.
const patience = 30 * time.Second

const componentDomain = "pi-test.localhost"

// A mode is one way to be on a server.
type mode string

const (
	asComponent mode = "component"
	asAccount   mode = "account"
	asPEP       mode = "pep"
)

var modes = []mode{asComponent, asAccount, asPEP}

// A site is a real server with its people.
type site struct {
	*xmppserver.Server
	kind  xmppserver.Kind
	users map[string]string
	roots *x509.CertPool
}

func startSite(t *testing.T, kind xmppserver.Kind) *site {
	t.Helper()
	s := &site{kind: kind, users: xmppserver.Accounts("anna", "bob", "eve", "gateway", "poor", "other", "peper")}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var err error
	s.Server, err = xmppserver.Start(ctx, kind, xmppserver.Options{
		Dir:          t.TempDir(),
		Component:    componentDomain,
		Secret:       "a long secret",
		Users:        s.users,
		NodeCreators: []string{"gateway@" + componentDomain, "gateway@localhost", "other@localhost"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	pem, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	s.roots = x509.NewCertPool()
	if !s.roots.AppendCertsFromPEM(pem) {
		t.Fatal("the server's authority cannot be read")
	}
	return s
}

func (s *site) account(user string) *stream.Account {
	return &stream.Account{
		JID:      jid.MustParse(user + "@localhost"),
		Password: s.users[user],
		Server:   s.C2S(),
		TLS:      &tls.Config{RootCAs: s.roots},
	}
}

func (s *site) config(m mode, gateway string) Config {
	c := Config{Gateway: gateway}
	switch m {
	case asComponent:
		c.Stream.Component = &stream.Component{Domain: componentDomain, Server: s.ComponentAddr(), Secret: "a long secret"}
		c.PubSub = s.PubSub()
	case asAccount:
		c.Stream.Account = s.account("gateway")
	case asPEP:
		c.Stream.Account = s.account("peper")
		c.PubSub = ServicePEP
	}
	return c
}

// service is where the nodes of a gateway of that mode are.
func (s *site) service(m mode) jid.JID {
	if m == asPEP {
		return jid.MustParse("peper@localhost")
	}
	return jid.MustParse(s.PubSub())
}

// A person is an operator, or a stranger, with a client.
type person struct {
	t       *testing.T
	session *stream.Session
	mu      sync.Mutex
	heard   []stream.Stanza
	more    chan struct{}
}

func (s *site) login(t *testing.T, user string) *person {
	t.Helper()
	p := &person{t: t, more: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var err error
	p.session, err = stream.Dial(ctx, stream.Config{
		Account: s.account(user),
		Log:     slog.New(slog.DiscardHandler),
		Handler: func(_ *stream.Session, st stream.Stanza) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.heard = append(p.heard, st)
			close(p.more)
			p.more = make(chan struct{})
			return st.Name != "iq"
		},
	})
	if err != nil {
		t.Fatalf("%s cannot log in: %v", user, err)
	}
	t.Cleanup(func() { p.session.Close() })
	// Only who asked for the roster is told of subscriptions (RFC 6121
	// section 2.1.6).
	if _, err := p.ask(stanza.GetIQ, jid.JID{}, `<query xmlns='jabber:iq:roster'/>`); err != nil {
		t.Fatal(err)
	}
	p.send(`<presence/>`)
	return p
}

func (p *person) send(text string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.session.Send(ctx, []byte(text)); err != nil {
		p.t.Fatal(err)
	}
}

// wait gives the first stanza heard that is right.
func (p *person) wait(what string, right func(stream.Stanza) bool) stream.Stanza {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		i := slices.IndexFunc(p.heard, right)
		if i >= 0 {
			defer p.mu.Unlock()
			return p.heard[i]
		}
		more, heard := p.more, p.heard
		p.mu.Unlock()
		select {
		case <-more:
		case <-deadline:
			for _, st := range heard {
				p.t.Logf("heard %s %s from %s: %s", st.Name, st.Type, st.From, st.Inner)
			}
			p.t.Fatalf("no %s", what)
		}
	}
}

func (p *person) heardAnything(right func(stream.Stanza) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.heard, right)
}

// ask sends an IQ.
func (p *person) ask(kind stanza.IQType, to jid.JID, payload any) (stream.Stanza, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if text, ok := payload.(string); ok {
		payload = []byte(text)
	}
	return p.session.IQ(ctx, stream.IQ{Type: kind, To: to, Payload: payload})
}

func (p *person) subscribe(service jid.JID, node string) error {
	_, err := p.ask(stanza.SetIQ, service, fmt.Sprintf(
		`<pubsub xmlns='http://jabber.org/protocol/pubsub'><subscribe node='%s' jid='%s'/></pubsub>`, node, p.session.Addr().Bare()))
	return err
}

type itemsAnswer struct {
	PubSub struct {
		Items struct {
			Items []struct {
				ID      string `xml:"id,attr"`
				Payload []byte `xml:",innerxml"`
			} `xml:"item"`
		} `xml:"items"`
	} `xml:"http://jabber.org/protocol/pubsub pubsub"`
}

func (p *person) items(service jid.JID, node string) (itemsAnswer, error) {
	var a itemsAnswer
	st, err := p.ask(stanza.GetIQ, service, fmt.Sprintf(`<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='%s'/></pubsub>`, node))
	if err != nil {
		return a, err
	}
	return a, st.Unmarshal(&a)
}

// eventually tries until it works: members come in their own time.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// A changing Authorizer is one whose answers a test can change.
type changing struct {
	mu sync.Mutex
	r  rights
}

func (c *changing) set(r rights) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r = r
}

func (c *changing) get() rights {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r
}

func (c *changing) Operators() []jid.JID                       { return c.get().Operators() }
func (c *changing) MaySee(who jid.JID, device devices.ID) bool { return c.get().MaySee(who, device) }
func (c *changing) MaySeeEvents(who jid.JID) bool              { return c.get().MaySeeEvents(who) }
func (c *changing) May(who jid.JID, right Right, device devices.ID) bool {
	return c.get().May(who, right, device)
}
func (c *changing) AtOtherTimes(who jid.JID, device devices.ID) bool {
	return c.get().AtOtherTimes(who, device)
}

// A running bridge.
type running struct {
	*Bridge
	t    *testing.T
	auth *changing
	desk desk
	ups  chan bool
	stop func()
}

func runBridge(t *testing.T, cfg Config) *running {
	t.Helper()
	r := newRunning(t, cfg)
	r.start()
	return r
}

// newRunning makes a bridge that is not started.
func newRunning(t *testing.T, cfg Config) *running {
	t.Helper()
	r := &running{t: t, ups: make(chan bool, 100), auth: &changing{r: rights{"anna@localhost": {"*"}, "bob@localhost": {"kitchen"}}}}
	var err error
	r.Bridge, err = New(cfg, Options{Auth: r.auth, Executor: &r.desk, Office: &r.desk, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), OnSession: func(up bool) { r.ups <- up }})
	if err != nil {
		t.Fatal(err)
	}
	r.SetDevices([]Device{{ID: devices.Gateway, Name: "Gateway"}, {ID: "kitchen", Name: "Kitchen", Model: "DS18B20"}, {ID: "meter", Name: "Electricity"}})
	return r
}

func (r *running) waitSession(up bool) {
	r.t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case got := <-r.ups:
			if got == up {
				return
			}
		case <-deadline:
			r.t.Fatalf("the session does not become up=%v", up)
		}
	}
}

func context30(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func (r *running) publishLog(device devices.ID, first uint64) string {
	r.t.Helper()
	id, err := r.tryLog(device, first)
	if err != nil {
		r.t.Fatalf("publishing: %v (%v)", err, Judge(err))
	}
	return id
}

func (r *running) tryLog(device devices.ID, first uint64) (string, error) {
	rs := someRecords()
	for i := range rs {
		rs[i].Seq = first + uint64(i)
	}
	payload, n := r.EncodeLog(device, noon, rs, 0)
	id := ItemID("k3f.1", first, first+uint64(n)-1)
	return id, r.PublishLog(context30(r.t), device, id, payload)
}

// config reads a node's configuration as its owner.
func (r *running) config(n *node) form {
	r.t.Helper()
	answer, err := r.link.Load().askOwner(context30(r.t), configuring, n.name, stanza.GetIQ, ownerElement{Configure: &formRef{Node: n.name}})
	if err != nil {
		r.t.Fatal(err)
	}
	return *answer.Configure.Form
}

func (r *running) checkConfig(n *node) {
	r.t.Helper()
	have := r.config(n)
	known := r.link.Load().form.known
	for name, want := range map[string]string{
		optAccess: "whitelist", optPublish: "publishers", optPersist: "1", optTitle: n.title(), optSendLast: map[bool]string{true: "never", false: "on_sub"}[n.lane == laneBackup], optNotify: "headline", optRetract: "0",
	} {
		got, there := have.value(name)
		if (want == "1" && got == "true") || (want == "0" && got == "false") {
			got = want
		}
		if known[name] && (!there || got != want) {
			r.t.Errorf("node %s has %s = %q, want %q", n.name, name, got, want)
		}
	}
	one := n.lane == laneNow || n.lane == laneLease
	if got, _ := have.value(optMaxItems); one && got != "1" || !one && got != "max" && len(got) < 3 {
		r.t.Errorf("node %s keeps %q items", n.name, got)
	}
}

func TestRealServers(t *testing.T) {
	for _, kind := range []xmppserver.Kind{xmppserver.Prosody, xmppserver.Ejabberd} {
		t.Run(string(kind), func(t *testing.T) {
			s := startSite(t, kind)
			for _, m := range modes {
				t.Run(string(m), func(t *testing.T) {
					t.Run("try", func(t *testing.T) { testTry(t, s, m) })
					t.Run("publish", func(t *testing.T) { testPublish(t, s, m) })
					t.Run("repair", func(t *testing.T) { testRepair(t, s, m) })
					t.Run("revoke", func(t *testing.T) { testRevoke(t, s, m) })
					if m != asPEP { // an account may always publish to itself
						t.Run("forbidden", func(t *testing.T) { testForbidden(t, s, m) })
					}
					t.Run("presence and disco", func(t *testing.T) { testPresence(t, s, m) })
					t.Run("people", func(t *testing.T) { testPeople(t, s, m) })
					t.Run("restart", func(t *testing.T) { testRestart(t, s, m) })
				})
			}
		})
	}
}

// testTry has nothing wrong, then a wrong secret, then a service that is not there.
func testTry(t *testing.T, s *site, m mode) {
	try := func(cfg Config) (trials []Trial) {
		Try(context30(t), cfg, func(trial Trial) { trials = append(trials, trial) })
		return trials
	}
	good := try(s.config(m, "try-"+string(m)))
	steps := []string{"login", "PubSub service", "node creation", "node settings", "members", "stanza size"}
	if m == asComponent {
		steps = append(steps, "coming back")
	}
	var got []string
	for _, trial := range good {
		got = append(got, trial.Step)
	}
	if !slices.Equal(got, steps) {
		t.Fatalf("steps %q, want %q: %+v", got, steps, good)
	}
	for _, trial := range good {
		if trial.Step == "node settings" && trial.Harmless {
			trial.Seen = trial.Err.Error() // this Prosody keeps few items
			if !strings.Contains(trial.Seen, "access whitelist, keeps ") || trial.Next == "" {
				t.Errorf("%+v", trial)
			}
			continue
		}
		if trial.Err != nil || trial.Seen == "" || trial.Next != "" {
			t.Errorf("%+v", trial)
		}
	}
	owner := s.login(t, map[mode]string{asComponent: "anna", asAccount: "gateway", asPEP: "peper"}[m])
	service := s.service(m)
	if answer, err := owner.ask(stanza.GetIQ, service, itemsQuery{}); err != nil || strings.Contains(string(answer.Inner), "try-"+string(m)) {
		t.Errorf("the node is still there: %s, %v", answer.Inner, err)
	}

	cfg := s.config(m, "try")
	if m == asComponent {
		cfg.Stream.Component.Secret = "a wrong one"
	} else {
		cfg.Stream.Account.Password = "a wrong one"
	}
	if wrong := try(cfg); len(wrong) != 1 || wrong[0].Err == nil || !strings.Contains(wrong[0].Next, "secret") {
		t.Errorf("with a wrong secret: %+v", wrong)
	}
	cfg = s.config(m, "try")
	cfg.PubSub = "nobody.localhost"
	if none := try(cfg); len(none) != 2 || none[1].Err == nil || !strings.Contains(none[1].Next, "write pubsub") {
		t.Errorf("with a service that is not there: %+v", none)
	}
}

func testPublish(t *testing.T, s *site, m mode) {
	r := runBridge(t, s.config(m, "pub-"+string(m)))
	r.waitSession(true)
	service := s.service(m)
	if got := r.link.Load().service; !got.Equal(service) {
		t.Fatalf("the nodes are at %s, want %s", got, service)
	}
	anna, bob, eve := s.login(t, "anna"), s.login(t, "bob"), s.login(t, "eve")
	log, now, events := r.deviceNode("kitchen", laneLog), r.deviceNode("kitchen", laneNow), r.eventsNode()

	id := r.publishLog("kitchen", 1)
	if again := r.publishLog("kitchen", 1); again != id {
		t.Fatalf("%s and %s", id, again)
	}
	eventually(t, "anna subscribes", func() error { return anna.subscribe(service, log.name) })
	got, err := anna.items(service, log.name)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.PubSub.Items.Items); n != 1 {
		t.Fatalf("%d items after an item was published twice", n)
	}
	device, bn, rs, err := DecodeItem(got.PubSub.Items.Items[0].ID, bytes.TrimSpace(got.PubSub.Items.Items[0].Payload))
	if err != nil || device != "kitchen" || len(rs) != 3 || !strings.HasSuffix(bn, "/pub-"+string(m)+"/kitchen/") {
		t.Fatalf("%s %s %d readings, %v", device, bn, len(rs), err)
	}

	second := r.publishLog("kitchen", 4)
	event := anna.wait("event with "+second, func(st stream.Stanza) bool {
		return st.Name == "message" && strings.Contains(string(st.Inner), second)
	})
	if event.Type != "headline" || !event.From.Bare().Equal(service) {
		t.Errorf("the event is a %s from %s", event.Type, event.From)
	}

	for _, c := range []struct {
		who  string
		p    *person
		node string
	}{
		{"eve", eve, log.name}, {"eve", eve, now.name}, {"eve", eve, events.name},
		{"bob", bob, r.deviceNode("meter", laneLog).name}, {"bob", bob, events.name},
	} {
		if err := c.p.subscribe(service, c.node); err == nil {
			t.Errorf("%s may subscribe to %s", c.who, c.node)
		}
		if _, err := c.p.items(service, c.node); err == nil {
			t.Errorf("%s may read %s", c.who, c.node)
		}
	}
	eventually(t, "bob subscribes", func() error { return bob.subscribe(service, now.name) })

	if err := r.PublishNow(context30(t), "kitchen", []NowValue{{Field: devices.Field{Name: "temperature", Value: num("21.40"), Unit: "°C"}, Time: noon, Seq: 7}}); err != nil {
		t.Fatal(err)
	}
	bob.wait("values", func(st stream.Stanza) bool {
		return st.Name == "message" && strings.Contains(string(st.Inner), `21.40`) && strings.Contains(string(st.Inner), "current")
	})
	if err := r.PublishEvent(context30(t), Event{ID: "e1", Time: noon, Category: "loss", Device: "kitchen", Title: "lost", Loss: &Loss{Device: "kitchen", Store: "s.1", First: 1, Last: 2, Reason: "full"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "anna reads the events", func() error {
		got, err := anna.items(service, events.name)
		if err == nil && (len(got.PubSub.Items.Items) != 1 || !strings.Contains(string(got.PubSub.Items.Items[0].Payload), `first=`)) {
			err = fmt.Errorf("items %+v", got)
		}
		return err
	})
	for _, n := range []*node{log, now, events} {
		r.checkConfig(n)
	}

	back, err := r.ReadLog(context30(t), "kitchen", 0)
	if err != nil || len(back) != 2 {
		t.Fatalf("%d items read back, %v", len(back), err)
	}
	for _, item := range back {
		if item.Store != "k3f.1" || item.First != 1 && item.First != 4 || item.Last != item.First+2 || item.Records[0].Origin != someRecords()[0].Origin {
			t.Errorf("read back %+v", item)
		}
	}
	if none, err := r.ReadLog(context30(t), "nobody", 0); len(none) != 0 || err != nil {
		t.Errorf("of a node that is not there: %v, %v", none, err)
	}

	// Many at once, as the forwarder does.
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if _, err := r.tryLog([]devices.ID{"kitchen", "meter", devices.Gateway}[i%3], uint64(100+10*i)); err != nil {
				t.Errorf("publishing among many: %v", err)
			}
		})
	}
	wg.Wait()
	// A full node's newest fit in a stanza.
	if back, err := r.ReadLog(context30(t), "kitchen", 0); err != nil || len(back) < 20 {
		t.Errorf("%d items read back, %v", len(back), err)
	}
	if err := r.PublishLog(context30(t), "kitchen", "k3f.1-9-9", nil); Judge(err) != SetAside {
		t.Errorf("an empty pack: %v", err)
	}
	r.stop()
	if err := r.PublishLog(context30(t), "kitchen", id, []byte{0x80}); !errors.Is(err, ErrOffline) || Judge(err) != Keep {
		t.Errorf("after the end: %v", err)
	}
}

func testRepair(t *testing.T, s *site, m mode) {
	r := runBridge(t, s.config(m, "rep-"+string(m)))
	r.waitSession(true)
	service := s.service(m)
	anna := s.login(t, "anna")
	log := r.deviceNode("kitchen", laneLog)
	r.publishLog("kitchen", 1)
	eventually(t, "anna subscribes", func() error { return anna.subscribe(service, log.name) })

	l := r.link.Load()
	_, err := l.ask(context30(t), configuring, log.name, stanza.SetIQ, []byte(`<pubsub xmlns='http://jabber.org/protocol/pubsub#owner'><delete node='`+log.name+`'/></pubsub>`))
	if err != nil {
		t.Fatal(err)
	}
	r.publishLog("kitchen", 4)
	if got, _ := r.config(log).value(optAccess); got != "whitelist" {
		t.Errorf("the node was made again with access %q", got)
	}
	// What happens every hour anyway: ejabberd makes nodes by itself.
	r.unshare()
	wake(r.wakeShare)
	eventually(t, "anna subscribes to the new node", func() error { return anna.subscribe(service, log.name) })
	eventually(t, "the new node is configured", func() error {
		if got, _ := r.config(log).value(optSendLast); got != "on_sub" {
			return fmt.Errorf("%s is %q", optSendLast, got)
		}
		return nil
	})
	r.checkConfig(log)

	open := submit(nsNodeConfig, field(optAccess, "open"))
	if err := l.configure(context30(t), log, open); err != nil {
		t.Fatal(err)
	}
	r.publishLog("kitchen", 7)
	r.checkConfig(log)
	r.stop()

	// A node that another run left open.
	again := runBridge(t, s.config(m, "rep-"+string(m)))
	again.waitSession(true)
	if err := again.link.Load().configure(context30(t), log, open); err != nil {
		t.Fatal(err)
	}
	again.stop()
	last := runBridge(t, s.config(m, "rep-"+string(m)))
	last.waitSession(true)
	eventually(t, "the node that was left open is closed", func() error {
		if got, _ := last.config(log).value(optAccess); got != "whitelist" {
			return fmt.Errorf("its access is %q", got)
		}
		return nil
	})
	last.checkConfig(log)
}

func testRevoke(t *testing.T, s *site, m mode) {
	r := runBridge(t, s.config(m, "rev-"+string(m)))
	r.waitSession(true)
	service := s.service(m)
	anna, bob := s.login(t, "anna"), s.login(t, "bob")
	log := r.deviceNode("kitchen", laneLog)
	eventually(t, "bob subscribes", func() error { return bob.subscribe(service, log.name) })
	eventually(t, "anna subscribes", func() error { return anna.subscribe(service, log.name) })
	id := r.publishLog("kitchen", 1)
	bob.wait("event", func(st stream.Stanza) bool { return strings.Contains(string(st.Inner), id) })

	r.auth.set(rights{"anna@localhost": {"*"}, "eve@localhost": {"kitchen"}})
	r.Regrant()
	eve := s.login(t, "eve")
	eventually(t, "eve, who was let in, subscribes", func() error { return eve.subscribe(service, log.name) })
	eventually(t, "bob is shut out", func() error {
		if _, err := bob.items(service, log.name); err == nil {
			return errors.New("bob may still read")
		}
		return nil
	})
	r.settle(log)
	second := r.publishLog("kitchen", 4)
	for _, p := range []*person{anna, eve} {
		p.wait("event", func(st stream.Stanza) bool { return strings.Contains(string(st.Inner), second) })
	}
	// What the service sent to anna after, it would have sent to bob before he
	// is answered.
	if _, err := bob.items(service, log.name); err == nil {
		t.Error("bob may read again")
	}
	if m == asPEP && s.kind == xmppserver.Ejabberd {
		return // which lets nobody end a subscription to an account's node
	}
	if bob.heardAnything(func(st stream.Stanza) bool { return strings.Contains(string(st.Inner), second) }) {
		t.Error("bob gets events though his right is gone")
	}
}

// settle waits until a node's members are as they should be.
func (r *running) settle(n *node) {
	r.t.Helper()
	eventually(r.t, "the members are set", func() error {
		if err := n.take(context30(r.t)); err != nil {
			return err
		}
		defer n.give()
		if !n.shared.Load() {
			return errors.New("not yet")
		}
		return nil
	})
}

func testForbidden(t *testing.T, s *site, m mode) {
	cfg := s.config(m, "for-"+string(m))
	if m == asAccount {
		cfg.Stream.Account = s.account("poor")
	}
	r := runBridge(t, cfg)
	r.waitSession(true)
	other := s.login(t, "other")
	taken := "for-" + string(m) + "/taken/log"
	// Under load ejabberd's database is not always ready at once.
	var err error
	for range 20 {
		if _, err = other.ask(stanza.SetIQ, s.service(m), `<pubsub xmlns='http://jabber.org/protocol/pubsub'><create node='`+taken+`'/></pubsub>`); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if m == asComponent {
		// The gateway's own JID may do anything on a Prosody that is set up
		// as ours is; another of its domain may not.
		l := r.link.Load()
		r.link.Store(&link{
			bridge: l.bridge, session: l.session, service: l.service, form: l.form,
			publisher: jid.MustParse("poor@" + componentDomain),
			under:     underway{sizes: make(map[sent]int)},
		})
	}
	if _, err := r.tryLog("taken", 1); Judge(err) != Park {
		t.Errorf("a node of another: %v (%v)", err, Judge(err))
	}
}

func testPresence(t *testing.T, s *site, m mode) {
	r := runBridge(t, s.config(m, "pre-"+string(m)))
	r.waitSession(true)
	anna, bob, eve := s.login(t, "anna"), s.login(t, "bob"), s.login(t, "eve")
	shown := devices.Field{Name: "temperature", Value: num("21.40"), Unit: "°C"}
	state := Presence{State: devices.StateFresh, Fields: []devices.Field{shown}, Since: time.Now().Add(-time.Hour)}
	is := func(name, from, kind, part string) func(stream.Stanza) bool {
		return func(st stream.Stanza) bool {
			return st.Name == name && st.From.String() == from && st.Type == kind && strings.Contains(string(st.Inner), part)
		}
	}
	if m != asComponent {
		r.SetPresence(devices.Gateway, state)
		account := r.account.String()
		full := r.link.Load().session.Addr()
		anna.send(`<presence to='` + account + `' type='subscribe'/>`)
		anna.wait("subscribed", is("presence", account, "subscribed", ""))
		anna.wait("status", is("presence", full.String(), "", "21.40 °C"))
		eve.send(`<presence to='` + account + `' type='subscribe'/>`)
		var items struct {
			Query itemsQuery `xml:"http://jabber.org/protocol/disco#items query"`
		}
		st, err := anna.ask(stanza.GetIQ, full, `<query xmlns='http://jabber.org/protocol/disco#items'/>`)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Unmarshal(&items); err != nil || len(items.Query.Items) != 7 {
			t.Errorf("%d nodes, %v", len(items.Query.Items), err)
		}
		if _, err := eve.ask(stanza.GetIQ, full, `<query xmlns='http://jabber.org/protocol/disco#items'/>`); err == nil {
			t.Error("eve sees the nodes")
		}
		r.stop()
		anna.wait("farewell", is("presence", full.String(), "unavailable", "gateway stopped"))
		// An account's server answers a request for subscription with an empty
		// unavailable presence of its own.
		if eve.heardAnything(func(st stream.Stanza) bool {
			return st.Name == "presence" && st.From.Bare().String() == account && (st.Type != "unavailable" || len(st.Inner) > 0)
		}) {
			t.Error("eve got a presence")
		}
		return
	}

	kitchen, meter := "kitchen@"+componentDomain, "meter@"+componentDomain
	r.SetPresence("kitchen", state)
	r.SetPresence("meter", Presence{State: devices.StateLate, Note: "7 kWh"})
	anna.wait("kitchen", is("presence", kitchen+"/gw", "", "21.40 °C"))
	anna.wait("meter", is("presence", meter+"/gw", "", "<show"))
	bob.wait("kitchen", is("presence", kitchen+"/gw", "", "urn:xmpp:idle:1"))

	anna.send(`<presence to='` + meter + `' type='subscribe'/>`)
	anna.wait("subscribed", is("presence", meter, "subscribed", ""))
	eve.send(`<presence to='` + kitchen + `' type='subscribe'/>`)
	eve.send(`<presence to='nothing@` + componentDomain + `' type='subscribe'/>`)
	bob.send(`<presence to='` + meter + `' type='subscribe'/>`)

	// A later login has the contact's presence by a probe.
	late := s.login(t, "anna")
	late.wait("meter", is("presence", meter+"/gw", "", "7 kWh"))

	domain := jid.MustParse(componentDomain)
	names := func(p *person) (got []string) {
		st, err := p.ask(stanza.GetIQ, domain, `<query xmlns='http://jabber.org/protocol/disco#items'/>`)
		if err != nil {
			t.Fatal(err)
		}
		var items struct {
			Query itemsQuery `xml:"http://jabber.org/protocol/disco#items query"`
		}
		if err := st.Unmarshal(&items); err != nil {
			t.Fatal(err)
		}
		for _, i := range items.Query.Items {
			got = append(got, i.JID+"="+i.Name)
		}
		return got
	}
	if got, want := names(anna), []string{"gateway@pi-test.localhost=Gateway", "kitchen@pi-test.localhost=Kitchen", "meter@pi-test.localhost=Electricity"}; !slices.Equal(got, want) {
		t.Errorf("anna sees %q, want %q", got, want)
	}
	if got, want := names(bob), []string{"kitchen@pi-test.localhost=Kitchen"}; !slices.Equal(got, want) {
		t.Errorf("bob sees %q, want %q", got, want)
	}
	for query, part := range map[string]string{
		`<query xmlns='http://jabber.org/protocol/disco#info'/>`:                                                           "urn:xmpp:ping",
		`<query xmlns='http://jabber.org/protocol/disco#info' node='` + deviceCaps().Node + "#" + deviceCaps().Ver + `'/>`: deviceCaps().Ver,
		`<query xmlns='http://jabber.org/protocol/disco#items'/>`:                                                          "pre-component/kitchen/log",
		`<query xmlns='jabber:iq:version'/>`:                                                                               "DS18B20",
		`<query xmlns='jabber:iq:last'/>`:                                                                                  "seconds=",
		`<time xmlns='urn:xmpp:time'/>`:                                                                                    "utc",
		`<ping xmlns='urn:xmpp:ping'/>`:                                                                                    "",
	} {
		for _, to := range []string{kitchen, kitchen + "/gw"} {
			st, err := bob.ask(stanza.GetIQ, jid.MustParse(to), query)
			if err != nil || !strings.Contains(string(st.Inner), part) {
				t.Errorf("%s asked %s: %s, %v", to, query, st.Inner, err)
			}
		}
		shape := map[string]string{}
		for who, p := range map[string]*person{"eve": eve, "bob": bob} {
			for _, to := range []string{"kitchen", "meter", "nothing"} {
				if who == "bob" && to == "kitchen" {
					continue
				}
				st, err := p.ask(stanza.GetIQ, jid.MustParse(to+"@"+componentDomain), query)
				if err == nil {
					t.Errorf("%s may ask %s %s", who, to, query)
				}
				shape[string(st.Inner)] = who + " asks " + to
			}
		}
		if len(shape) != 1 {
			t.Errorf("%s: refusals differ: %q", query, shape)
		}
	}
	if _, err := eve.ask(stanza.GetIQ, domain, `<query xmlns='http://jabber.org/protocol/disco#info'/>`); err == nil {
		t.Error("eve may ask the domain")
	}

	r.auth.set(rights{"anna@localhost": {"*"}})
	r.Regrant()
	bob.wait("kitchen gone", is("presence", kitchen+"/gw", "unavailable", ""))
	r.stop()
	anna.wait("farewell of kitchen", is("presence", kitchen+"/gw", "unavailable", "gateway stopped"))
	anna.wait("farewell of meter", is("presence", meter+"/gw", "unavailable", "gateway stopped"))
	fromUs := func(st stream.Stanza) bool {
		return st.Name == "presence" && st.From.Domainpart() == componentDomain && st.Type != "error"
	}
	if eve.heardAnything(fromUs) {
		t.Error("eve got a presence")
	}
	if m == asPEP && s.kind == xmppserver.Ejabberd {
		return // which lets nobody end a subscription to an account's node
	}
	if bob.heardAnything(func(st stream.Stanza) bool { return fromUs(st) && st.From.Localpart() == "meter" }) {
		t.Error("bob got the presence of a device that is not his")
	}
}

func testRestart(t *testing.T, s *site, m mode) {
	r := runBridge(t, s.config(m, "res-"+string(m)))
	r.waitSession(true)
	id := r.publishLog("kitchen", 1)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	r.waitSession(false)
	r.waitSession(true)
	if again := r.publishLog("kitchen", 1); again != id {
		t.Fatalf("%s and %s", id, again)
	}
	r.publishLog("kitchen", 4)
	anna := s.login(t, "anna")
	eventually(t, "anna reads", func() error {
		got, err := anna.items(s.service(m), r.deviceNode("kitchen", laneLog).name)
		if err == nil && len(got.PubSub.Items.Items) != 2 {
			err = fmt.Errorf("%d items, want 2", len(got.PubSub.Items.Items))
		}
		return err
	})
}
