package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
)

const (
	answerTime = time.Minute
	// atOnce items at most are asked for: an answer of more than 256 KiB would
	// be dropped, and an item has 16 KiB at most.
	atOnce = 15
)

// A subscriber is an operator's program: it is told what the log nodes get,
// and fetches what it missed. It keys on node and item id.
type subscriber struct {
	account stream.Account
	service bridge.JID
	gateway string
	devices []string
	say     func(format string, args ...any)

	mu       sync.Mutex
	items    map[string]map[string]*item // device, id
	seen     map[string][]sighting       // device: numbers in the order in which they came
	repeated int                         // items that came again as they were
	faults   []string                    // items that changed, or cannot be read
	replaced []replacement
	changed  chan struct{}   // closed when something new came
	refetch  chan chan error // asks for all nodes to be read, and is told how that went
}

type item struct {
	numbers []int
	cid     string
	at      time.Time
}

// A replacement is an item that came again with the same readings in other
// bytes.
type replacement struct {
	device, id string
	before     time.Time // it came
}

// A sighting is a reading, and the item that brought it.
type sighting struct {
	reading
	id string
}

func newSubscriber(jid, password, server string, cas *x509.CertPool, service, gateway string, devices []string, say func(string, ...any)) (*subscriber, error) {
	own, err := bridge.ParseJID(jid)
	if err != nil {
		return nil, err
	}
	to, err := bridge.ParseJID(service)
	if err != nil {
		return nil, err
	}
	return &subscriber{
		account: stream.Account{JID: own, Password: password, Server: server, TLS: &tls.Config{RootCAs: cas, MinVersion: tls.VersionTLS12}},
		service: to, gateway: gateway, devices: devices, say: say,
		items: make(map[string]map[string]*item), seen: make(map[string][]sighting),
		changed: make(chan struct{}), refetch: make(chan chan error),
	}, nil
}

func (s *subscriber) node(device string) string { return s.gateway + "/" + device + "/log" }

// device gives whose log node it is, "" for any other.
func (s *subscriber) device(node string) string {
	for _, d := range s.devices {
		if s.node(d) == node {
			return d
		}
	}
	return ""
}

// run has session after session until ctx ends.
func (s *subscriber) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.session(ctx); ctx.Err() == nil {
			s.say("subscriber: %v", err)
		}
		select {
		case <-time.After(redial):
		case <-ctx.Done():
		}
	}
}

// PubSub as far as it is needed here (XEP-0060).
type (
	pubsub struct {
		XMLName xml.Name `xml:"http://jabber.org/protocol/pubsub pubsub"`
		Items   struct {
			Node  string        `xml:"node,attr"`
			Items []itemElement `xml:"item"`
		} `xml:"items"`
	}
	itemElement struct {
		ID      string `xml:"id,attr"`
		Payload []byte `xml:",innerxml"`
	}
	message struct {
		Event struct {
			Items struct {
				Node  string        `xml:"node,attr"`
				Items []itemElement `xml:"item"`
			} `xml:"items"`
		} `xml:"http://jabber.org/protocol/pubsub#event event"`
	}
	list struct {
		Query struct {
			Items []struct {
				Name string `xml:"name,attr"`
			} `xml:"item"`
		} `xml:"http://jabber.org/protocol/disco#items query"`
	}
)

func (s *subscriber) session(ctx context.Context) error {
	var mu sync.Mutex
	var waiting []stream.Stanza
	news := make(chan struct{}, 1)
	dialling, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	account := s.account
	session, err := stream.Dial(dialling, stream.Config{
		Account: &account, PingTo: s.service,
		Handler: func(_ *stream.Session, st stream.Stanza) bool {
			if st.Name != "message" || !st.From.Equal(s.service) {
				return false
			}
			mu.Lock()
			waiting = append(waiting, st)
			mu.Unlock()
			select {
			case news <- struct{}{}:
			default:
			}
			return true
		},
	})
	if err != nil {
		return err
	}
	defer session.Close()
	if err := session.Send(ctx, []byte("<presence/>")); err != nil {
		return err
	}
	// Of a node that was fetched everything else comes live.
	fetched := make(map[string]bool)
	retry := time.NewTicker(300 * time.Millisecond)
	defer retry.Stop()
	for {
		for _, d := range s.devices {
			if fetched[d] {
				continue
			}
			there, err := s.subscribe(ctx, session, d)
			if err == nil && there {
				err = s.fetch(ctx, session, d)
				fetched[d] = true
			}
			if err != nil {
				return err
			}
		}
		mu.Lock()
		sts := waiting
		waiting = nil
		mu.Unlock()
		for _, st := range sts {
			var m message
			if err := st.Unmarshal(&m); err != nil {
				return err
			}
			d := s.device(m.Event.Items.Node)
			if d == "" || !fetched[d] {
				continue
			}
			for _, it := range m.Event.Items.Items {
				s.take(d, it)
			}
		}
		select {
		case <-news:
		case <-retry.C: // a node is made when there is something for it
		case done := <-s.refetch:
			var err error
			for _, d := range s.devices {
				if fetched[d] && err == nil {
					err = s.fetch(ctx, session, d)
				}
			}
			if done <- err; err != nil {
				return err
			}
		case <-session.Done():
			return session.Err()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *subscriber) ask(ctx context.Context, session *stream.Session, kind, payload string) (stream.Stanza, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	iq := stream.IQ{To: s.service, Payload: []byte(payload), Type: "get"}
	if kind == "set" {
		iq.Type = "set"
	}
	return session.IQ(ctx, iq)
}

// subscribe reports whether the node is there, and open to us.
func (s *subscriber) subscribe(ctx context.Context, session *stream.Session, device string) (bool, error) {
	answer, err := s.ask(ctx, session, "set", fmt.Sprintf("<pubsub xmlns='http://jabber.org/protocol/pubsub'><subscribe node='%s' jid='%s'/></pubsub>",
		s.node(device), s.account.JID.Bare()))
	if answer.Type == "error" {
		return false, nil
	}
	return err == nil, err
}

// fetch takes in what the node holds and did not come before, in its order.
func (s *subscriber) fetch(ctx context.Context, session *stream.Session, device string) error {
	answer, err := s.ask(ctx, session, "get", fmt.Sprintf("<query xmlns='http://jabber.org/protocol/disco#items' node='%s'/>", s.node(device)))
	if err != nil {
		return err
	}
	var held list
	if err := answer.Unmarshal(&held); err != nil {
		return err
	}
	var wanted []string
	s.mu.Lock()
	for _, it := range held.Query.Items {
		if s.items[device][it.Name] == nil {
			wanted = append(wanted, it.Name)
		}
	}
	s.mu.Unlock()
	slices.SortStableFunc(wanted, compareIDs)
	for some := range slices.Chunk(wanted, atOnce) {
		var asked strings.Builder
		for _, id := range some {
			fmt.Fprintf(&asked, "<item id='%s'/>", id)
		}
		answer, err := s.ask(ctx, session, "get", fmt.Sprintf("<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='%s'>%s</items></pubsub>", s.node(device), &asked))
		if err != nil {
			return err
		}
		var p struct {
			PubSub pubsub `xml:"http://jabber.org/protocol/pubsub pubsub"`
		}
		if err := answer.Unmarshal(&p); err != nil {
			return err
		}
		got := p.PubSub.Items.Items
		slices.SortStableFunc(got, func(a, b itemElement) int { return compareIDs(a.ID, b.ID) })
		for _, it := range got {
			s.take(device, it)
		}
	}
	return nil
}

// compareIDs puts items of one store, <random>.<run>-<first>-<last>, in order.
// Of two stores that share nothing it knows nothing.
func compareIDs(a, b string) int {
	x, y := parseID(a), parseID(b)
	if x.random != y.random {
		return 0
	}
	return cmp.Or(cmp.Compare(x.run, y.run), cmp.Compare(x.first, y.first))
}

type itemID struct {
	random     string
	run, first uint64
}

func (i itemID) store() string { return fmt.Sprint(i.random, ".", i.run) }

func parseID(id string) itemID {
	store, rest, _ := strings.Cut(id, "-")
	random, run, _ := strings.Cut(store, ".")
	first, _, _ := strings.Cut(rest, "-")
	out := itemID{random: random}
	out.run, _ = strconv.ParseUint(run, 10, 64)
	out.first, _ = strconv.ParseUint(first, 10, 64)
	return out
}

// take takes in one item.
func (s *subscriber) take(device string, it itemElement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rs, cid, err := readings(device, it.Payload)
	if err != nil {
		s.faults = append(s.faults, fmt.Sprintf("%s, item %s: %v", device, it.ID, err))
	}
	var ns []int
	for _, r := range rs {
		ns = append(ns, r.n)
	}
	if s.items[device] == nil {
		s.items[device] = make(map[string]*item)
	}
	if old := s.items[device][it.ID]; old != nil {
		s.repeated++
		switch {
		case old.cid == cid:
		case slices.Equal(old.numbers, ns):
			s.replaced = append(s.replaced, replacement{device, it.ID, old.at})
		default:
			s.faults = append(s.faults, fmt.Sprintf("%s, item %s: it had %v at %s, and has %v now", device, it.ID, old.numbers, old.at.Format(stamp), ns))
		}
		return
	}
	s.items[device][it.ID] = &item{numbers: ns, cid: cid, at: time.Now()}
	for _, r := range rs {
		s.seen[device] = append(s.seen[device], sighting{r, it.ID})
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until a reading came.
func (s *subscriber) await(ctx context.Context, device string, n int) error {
	for {
		s.mu.Lock()
		came := slices.ContainsFunc(s.seen[device], func(x sighting) bool { return x.n == n })
		changed := s.changed
		s.mu.Unlock()
		if came {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("number %d of %s did not arrive: %w", n, device, ctx.Err())
		}
	}
}

// read has all nodes read, whatever came live.
func (s *subscriber) read(ctx context.Context) error {
	for {
		done := make(chan error, 1)
		select {
		case s.refetch <- done:
		case <-ctx.Done():
			return fmt.Errorf("the nodes cannot be read: %w", ctx.Err())
		}
		if err := <-done; err == nil || ctx.Err() != nil {
			return err
		}
	}
}
