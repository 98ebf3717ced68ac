package watch

import (
	"context"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmpp"
	"mellium.im/xmpp/component"
	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// patience is how long a test waits for what should come.
const patience = 30 * time.Second

const (
	domain = "pi.localhost"
	secret = "s3cret"
	anna   = "anna@localhost"
)

func eachServer(t *testing.T, test func(t *testing.T, kind xmppserver.Kind)) {
	for _, kind := range []xmppserver.Kind{xmppserver.Prosody, xmppserver.Ejabberd} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

func startServer(t *testing.T, kind xmppserver.Kind, o xmppserver.Options) *xmppserver.Server {
	t.Helper()
	o.Dir, o.Component, o.Secret = t.TempDir(), domain, secret
	o.Users = map[string]string{"anna": "pw", "gateway": "pw"}
	s, err := xmppserver.Start(t.Context(), kind, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func roots(t *testing.T, s *xmppserver.Server) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatal("no certificate in the CA file")
	}
	return pool
}

// A publisher is what a gateway is to a watcher, on a session of its own that
// shares no code with the watcher's.
type publisher struct {
	t       *testing.T
	from    string // JID
	service string
	session *xmpp.Session
	encode  *bridge.Bridge
}

func publish(t *testing.T, s *xmppserver.Server) *publisher {
	t.Helper()
	conn, err := net.Dial("tcp", s.ComponentAddr())
	if err != nil {
		t.Fatal(err)
	}
	session, err := component.NewSession(t.Context(), jid.MustParse(domain), []byte(secret), conn)
	if err != nil {
		t.Fatal(err)
	}
	serveSession(t, session, conn)
	return &publisher{t, "gateway@" + domain, s.PubSub(), session, encoder(t, bridge.PayloadSenML)}
}

func serveSession(t *testing.T, session *xmpp.Session, conn net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { _ = session.Serve(nil) }) // ends with the connection
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
}

// ask sends an IQ to the service and fails the test if it is refused.
func (p *publisher) ask(payload string) {
	p.t.Helper()
	if err := p.try(payload); err != nil {
		p.t.Fatalf("%v, to %.300s", err, payload)
	}
}

func (p *publisher) try(payload string) error {
	iq := stanza.IQ{Type: stanza.SetIQ, To: jid.MustParse(p.service)}
	if p.from != "" {
		iq.From = jid.MustParse(p.from)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	return p.session.UnmarshalIQElement(ctx, xml.NewDecoder(strings.NewReader(payload)), iq, nil)
}

// create makes a node with members.
func (p *publisher) create(node string, maxItems int, members ...string) {
	p.t.Helper()
	p.ask(fmt.Sprintf(`<pubsub xmlns='http://jabber.org/protocol/pubsub'><create node='%s'/><configure><x xmlns='jabber:x:data' type='submit'>`+
		`<field var='FORM_TYPE' type='hidden'><value>http://jabber.org/protocol/pubsub#node_config</value></field>`+
		`<field var='pubsub#access_model'><value>whitelist</value></field>`+
		`<field var='pubsub#publish_model'><value>publishers</value></field>`+
		`<field var='pubsub#persist_items'><value>1</value></field>`+
		`<field var='pubsub#max_items'><value>%d</value></field>`+
		`<field var='pubsub#send_last_published_item'><value>on_sub</value></field>`+
		`<field var='pubsub#notification_type'><value>headline</value></field></x></configure></pubsub>`, node, maxItems))
	p.admit(node, members...)
}

func (p *publisher) admit(node string, members ...string) {
	p.t.Helper()
	for _, member := range members {
		p.ask(fmt.Sprintf(`<pubsub xmlns='http://jabber.org/protocol/pubsub#owner'><affiliations node='%s'><affiliation jid='%s' affiliation='member'/></affiliations></pubsub>`, node, member))
	}
}

func (p *publisher) item(node, id string, payload []byte) {
	p.t.Helper()
	p.ask(fmt.Sprintf(`<pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='%s'><item id='%s'>%s</item></publish></pubsub>`, node, id, payload))
}

// pack publishes the readings first to last of a device, whose node this is,
// in one run of a store.
func (p *publisher) pack(node, store string, first, last uint64) {
	p.t.Helper()
	var seqs []uint64
	for seq := first; seq <= last; seq++ {
		seqs = append(seqs, seq)
	}
	_, device, _, _ := parseNode(node)
	p.item(node, bridge.ItemID(store, first, last), payload(p.t, p.encode, records(device, time.Date(2026, 9, 1, 10, 0, 0, 0, time.UTC), seqs...)))
}

// A recorder is a Handler that keeps what comes.
type recorder struct {
	mu        sync.Mutex
	changed   chan struct{}
	ended     chan struct{} // closed when there comes no more
	readings  []Reading
	now       []Reading
	events    []Event
	presences []Presence
	ups       int
	up        bool
}

func newRecorder() *recorder {
	return &recorder{changed: make(chan struct{}), ended: make(chan struct{})}
}

func (r *recorder) change(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *recorder) Reading(x Reading) { r.change(func() { r.readings = append(r.readings, x) }) }
func (r *recorder) Now(x Reading)     { r.change(func() { r.now = append(r.now, x) }) }
func (r *recorder) Event(e Event)     { r.change(func() { r.events = append(r.events, e) }) }
func (r *recorder) Presence(p Presence) {
	r.change(func() { r.presences = append(r.presences, p) })
}
func (r *recorder) Link(up bool) {
	r.change(func() {
		r.up = up
		if up {
			r.ups++
		}
	})
}

// look lets f look at what came.
func (r *recorder) look(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// wait waits until what it asks for is so.
func (r *recorder) wait(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		ok, changed := so(), r.changed
		n := len(r.readings)
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-r.ended:
			t.Fatalf("waited in vain for %s: the watcher has ended", what)
		case <-deadline:
			t.Fatalf("waited in vain for %s; %d readings came", what, n)
		}
	}
}

func (r *recorder) waitReadings(t *testing.T, n int) {
	t.Helper()
	r.wait(t, fmt.Sprint(n, " readings"), func() bool { return len(r.readings) >= n })
}

func (r *recorder) waitUp(t *testing.T, times int) {
	t.Helper()
	r.wait(t, "the link", func() bool { return r.up && r.ups >= times })
}

// numbers gives the numbers of a node's readings in the order in which they
// came.
func (r *recorder) numbers(node string) []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var seqs []uint64
	for _, x := range r.readings {
		if x.Node == node {
			seqs = append(seqs, x.Seq)
		}
	}
	return seqs
}

func upTo(n uint64) []uint64 {
	var seqs []uint64
	for seq := uint64(1); seq <= n; seq++ {
		seqs = append(seqs, seq)
	}
	return seqs
}

// watching is a Watcher that runs.
type watching struct {
	*Watcher
	*recorder
	stop func() error
}

func startWatch(t *testing.T, s *xmppserver.Server, change func(*Options)) *watching {
	t.Helper()
	r := newRecorder()
	o := Options{
		JID: anna, Password: "pw", Server: s.C2S(), CAs: roots(t, s), PubSub: s.PubSub(),
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o)
	}
	w := New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.Run(ctx, r)
		close(r.ended)
	}()
	stop := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			return errors.New("the watcher does not end")
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return &watching{w, r, stop}
}

// testLog writes a log to a test's.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (w *watching) want(t *testing.T, want Counts) {
	t.Helper()
	if got := w.Counts(); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

// A gate is a network that can be cut.
type gate struct {
	to string
	l  net.Listener

	mu     sync.Mutex
	closed bool
	conns  []net.Conn
	wg     sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{to: to, l: l}
	g.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.pass(conn)
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.cut()
		g.wg.Wait()
	})
	return g
}

func (g *gate) pass(in net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	out, err := net.Dial("tcp", g.to)
	if g.closed || err != nil {
		in.Close()
		if err == nil {
			out.Close()
		}
		return
	}
	g.conns = append(g.conns, in, out)
	for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
		g.wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1]) // ends when either is closed
			pair[0].Close()
			pair[1].Close()
		})
	}
}

// cut ends all connections, and lets none through until open.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = false
}

func (g *gate) addr() string { return g.l.Addr().String() }

func equal(t *testing.T, what string, got, want []uint64) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
