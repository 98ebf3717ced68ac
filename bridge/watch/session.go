package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
)

const (
	// New nodes are looked for soon after something changed, then less often.
	leastPoll = time.Second
	mostPoll  = time.Minute

	// doubtEvery is how often missing readings are looked for again.
	doubtEvery = time.Minute

	listTimeout = 30 * time.Second

	// subscribers is how many subscriptions are under way at once.
	subscribers = 8

	// maxNodes bounds what is watched of a service.
	maxNodes = 20000
	// pageSize is how many items of a list are asked for at once.
	pageSize = 200
	maxPages = 1000
)

// A session is one session with all that it needs. It belongs to the
// goroutine that runs the Watcher.
type session struct {
	*Watcher
	stream  *stream.Session
	self    jid.JID // bare
	service jid.JID
	in      *inbox
	to      Handler

	waiting  int           // bytes that wait for nodes to be fetched
	poll     time.Duration // between looks for new nodes
	lookNext time.Time
	saidNo   bool // that the service does not list its nodes
}

// serve watches on one session until it, or ctx, ends.
func (w *Watcher) serve(ctx context.Context, st *stream.Session, service jid.JID, in *inbox, to Handler) error {
	s := &session{Watcher: w, stream: st, self: st.Addr().Bare(), service: service, in: in, to: to}
	for _, n := range w.nodes {
		n.forget()
	}
	err := s.run(ctx)
	// What came before the end is not lost with it.
	s.drain()
	if why := st.Err(); why != nil {
		return why // and not what failed for it
	}
	return err
}

func (s *session) run(ctx context.Context) error {
	// A service sends its notifications to the bare JID, and servers pass
	// headlines on to resources of a priority that is not negative
	// (RFC 6121 section 8.5.2.1.1).
	if err := s.stream.Send(ctx, presenceElement{}); err != nil {
		return err
	}
	for _, contact := range s.o.Contacts {
		if err := s.stream.Send(ctx, presenceElement{To: contact, Type: "subscribe"}); err != nil {
			return err
		}
	}
	if s.service.Equal(jid.JID{}) {
		var err error
		if s.service, err = bridge.FindService(ctx, s.stream); err != nil {
			return err
		}
	}
	if err := s.look(ctx); err != nil {
		return err
	}
	s.to.Link(true)
	defer s.to.Link(false)
	look := time.NewTimer(0)
	defer look.Stop()
	doubt := time.NewTicker(doubtEvery)
	defer doubt.Stop()
	for {
		var err error
		look.Reset(time.Until(s.lookNext))
		select {
		case <-ctx.Done():
			return nil
		case <-s.stream.Done():
			return s.stream.Err()
		case <-s.in.ready:
			s.drain()
			err = s.fetchStale(ctx)
		case <-look.C:
			err = s.look(ctx)
		case <-doubt.C:
			s.doubt()
			err = s.fetchStale(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// refusal tells the error that a peer answered with from the failure to get an
// answer.
func refusal(err error) (stanza.Error, bool) {
	var e stanza.Error
	ok := errors.As(err, &e)
	return e, ok
}

// get asks the service, or another peer, and reads the answer.
func (s *session) get(ctx context.Context, to jid.JID, query, answer any) error {
	st, err := s.stream.IQ(ctx, stream.IQ{Type: stanza.GetIQ, To: to, Payload: query})
	if err != nil {
		return err
	}
	return st.Unmarshal(answer)
}

// list is disco#items, all pages of it. A list that is too long for a stanza
// does not come: that is an error after a while, or the end of the session.
func (s *session) list(ctx context.Context, of jid.JID, node string) ([]discoItem, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var all []discoItem
	after := ""
	for range maxPages {
		var answer struct {
			Query discoItems `xml:"http://jabber.org/protocol/disco#items query"`
		}
		ask := discoItems{Node: node, Page: &pageElement{Max: pageSize, After: after}}
		if err := s.get(ctx, of, ask, &answer); err != nil {
			return nil, err
		}
		all = append(all, answer.Query.Items...)
		page := answer.Query.Page
		if page == nil || page.Last == "" || page.Last == after || len(answer.Query.Items) == 0 || len(all) == page.Count {
			return all, nil
		}
		after = page.Last
	}
	return all, nil
}

// node gives the node of a name, and makes it; nil where it is not one of a
// gateway, or one too many.
func (w *Watcher) node(name string) *node {
	if n := w.nodes[name]; n != nil {
		return n
	}
	n := newNode(name)
	if n != nil && len(w.nodes) < maxNodes {
		w.nodes[name] = n
		return n
	}
	return nil
}

func (w *Watcher) sorted() []*node {
	return slices.SortedFunc(maps.Values(w.nodes), compareNodes)
}

// look finds new nodes, subscribes to them and fetches what they hold.
func (s *session) look(ctx context.Context) error {
	known := len(s.nodes)
	if len(s.o.Nodes) == 0 {
		if err := s.findNodes(ctx); err != nil {
			return err
		}
	}
	if err := s.checkSubscriptions(ctx); err != nil {
		return err
	}
	subscribed, err := s.subscribeAll(ctx)
	if err != nil {
		return err
	}
	s.poll = min(max(2*s.poll, leastPoll), mostPoll)
	if subscribed > 0 || len(s.nodes) > known {
		s.poll = leastPoll
	}
	s.lookNext = time.Now().Add(s.poll)
	return s.fetchStale(ctx)
}

// findNodes looks for new nodes: those that the service says the operator is a
// member of, and those that it lists to anybody. Prosody does not know the
// former; ejabberd may list only a hundred of the latter.
func (s *session) findNodes(ctx context.Context) error {
	var names []string
	affiliations, err := s.affiliations(ctx)
	_, refused := refusal(err)
	if err != nil && !refused {
		return fmt.Errorf("cannot ask %s for the operator's nodes: %w", s.service, err)
	}
	for _, a := range affiliations {
		if a.Affiliation != "none" && a.Affiliation != "outcast" {
			names = append(names, a.Node)
		}
	}
	items, err := s.list(ctx, s.service, "")
	if e, refusedToo := refusal(err); refusedToo {
		if refused && !s.saidNo {
			s.saidNo = true
			s.o.Log.Warn("the service does not list its nodes, so name those to watch", "service", s.service.String(), "error", e)
		}
	} else if err != nil {
		return fmt.Errorf("cannot list the nodes of %s: %w", s.service, err)
	}
	for _, item := range items {
		names = append(names, item.Node)
	}
	for _, name := range names {
		if s.o.Now != nil || !strings.HasSuffix(name, "/"+string(laneNow)) {
			s.node(name)
		}
	}
	return nil
}

func (s *session) affiliations(ctx context.Context) ([]affiliation, error) {
	answer, err := s.pubsub(ctx, stanza.GetIQ, pubsubElement{Affiliations: &affiliationsElement{}})
	if err != nil || answer.Affiliations == nil {
		return nil, err
	}
	return answer.Affiliations.Affiliations, nil
}

// checkSubscriptions finds out which subscriptions the service no longer knows:
// ejabberd does not say that a node was deleted. That it knows one is no proof:
// Prosody lists those of deleted nodes, which were made again since.
func (s *session) checkSubscriptions(ctx context.Context) error {
	answer, err := s.pubsub(ctx, stanza.GetIQ, pubsubElement{Subscriptions: &subscriptionsElement{}})
	if _, refused := refusal(err); refused || err == nil && answer.Subscriptions == nil {
		return nil
	} else if err != nil {
		return fmt.Errorf("cannot ask %s for the operator's subscriptions: %w", s.service, err)
	}
	subscribed := make(map[string]bool)
	for _, sub := range answer.Subscriptions.Subscriptions {
		if sub.JID == s.self.String() && sub.Subscription == "subscribed" {
			subscribed[sub.Node] = true
		}
	}
	for _, n := range s.nodes {
		if n.subscribed && !subscribed[n.name] {
			s.release(n)
			n.forget()
		}
	}
	return nil
}

// pubsub asks the service for something.
func (s *session) pubsub(ctx context.Context, kind stanza.IQType, ask pubsubElement) (pubsubElement, error) {
	st, err := s.stream.IQ(ctx, stream.IQ{Type: kind, To: s.service, Payload: ask})
	if err != nil {
		return pubsubElement{}, err
	}
	var answer struct {
		PubSub pubsubElement `xml:"http://jabber.org/protocol/pubsub pubsub"`
	}
	if err := st.Unmarshal(&answer); err != nil {
		return pubsubElement{}, err
	}
	return answer.PubSub, nil
}

// subscribeAll subscribes to the nodes that are due, and counts those where it
// could. A refusal concerns its node alone; an error ends the session.
func (s *session) subscribeAll(ctx context.Context) (subscribed int, err error) {
	var due []*node
	for _, n := range s.sorted() {
		if now := time.Now(); !n.subscribed && !now.Before(n.retry) {
			due = append(due, n)
		}
	}
	errs := make([]error, len(due))
	var wg sync.WaitGroup
	slots := make(chan struct{}, subscribers)
	for i, n := range due {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = s.subscribe(ctx, n.name)
			<-slots
		})
	}
	wg.Wait()
	for i, n := range due {
		if errs[i] == nil {
			n.subscribed, n.wait, n.said = true, 0, ""
			subscribed++
			continue
		}
		var not errNotSubscribed
		e, refused := refusal(errs[i])
		if !refused && !errors.As(errs[i], &not) {
			return subscribed, fmt.Errorf("cannot subscribe to %s: %w", n.name, errs[i])
		}
		n.refused(time.Now())
		s.sayRefused(n, "subscribe to", errs[i], string(e.Condition))
	}
	return subscribed, nil
}

// errNotSubscribed is a subscription's state where it is not "subscribed":
// pending or unconfigured (XEP-0060 section 4.2).
type errNotSubscribed string

func (e errNotSubscribed) Error() string { return "the subscription is " + string(e) }

func (s *session) subscribe(ctx context.Context, node string) error {
	// The bare JID, so that the subscription is there when the operator comes
	// again.
	answer, err := s.pubsub(ctx, stanza.SetIQ, pubsubElement{Subscribe: &subscribeElement{Node: node, JID: s.self.String()}})
	if err != nil {
		return err
	}
	if sub := answer.Subscription; sub != nil && sub.Subscription != "" && sub.Subscription != "subscribed" {
		return errNotSubscribed(sub.Subscription)
	}
	return nil
}

// sayRefused tells a refusal once. Nodes that were not asked for by name may
// well be somebody else's.
func (s *session) sayRefused(n *node, what string, err error, why string) {
	if n.said == what+why {
		return
	}
	n.said = what + why
	say := s.o.Log.Warn
	if len(s.o.Nodes) == 0 {
		say = s.o.Log.Debug
	}
	say("cannot "+what+" a node", "node", n.name, "error", err)
}

// doubt has nodes fetched of which readings are newly missing: it may be that
// only their notifications were lost on the way.
func (s *session) doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n.fetched && s.ledger.Node(n.name).Missing > n.missing {
			n.fetched = false
		}
	}
}

// drain takes in what came.
func (s *session) drain() {
	stanzas, overflow := s.in.empty()
	for _, st := range stanzas {
		switch st.Name {
		case "presence":
			s.presence(st)
		case "message":
			s.message(st)
		}
	}
	if overflow {
		s.o.Log.Warn("more came than could be held, so it is fetched")
		for _, n := range s.nodes {
			n.fetched = false
		}
	}
}

func (s *session) presence(st stream.Stanza) {
	var p presenceElement
	if st.Type == "error" || st.From.Equal(s.stream.Addr()) {
		return
	}
	if err := st.Unmarshal(&p); err != nil {
		s.o.Log.Debug("presence ignored", "from", st.From.String(), "error", err)
		return
	}
	s.to.Presence(Presence{From: st.From, Device: deviceOf(st.From), Type: st.Type, Show: p.Show, Status: p.Status})
}

func (s *session) message(st stream.Stanza) {
	var m messageElement
	if err := st.Unmarshal(&m); err != nil {
		s.o.Log.Warn("message ignored", "from", st.From.String(), "error", err)
		return
	}
	switch e := m.Event; {
	case !st.From.Equal(s.service):
		// Anybody may send what looks like a notification.
		if m.Body != "" && (st.Type == "" || st.Type == "normal" || st.Type == "chat") {
			s.to.Event(said(st.From, m.Body, time.Now()))
		}
	case e == nil || st.Type == "error":
	case e.Items != nil:
		s.notified(e.Items)
	case e.Delete != nil:
		s.gone(e.Delete.Node)
	case e.Subscription != nil && e.Subscription.Subscription != "subscribed":
		s.gone(e.Subscription.Node)
	}
}

// gone is for a node that was deleted, or of which the subscription ended.
// Gateways make deleted nodes again.
func (s *session) gone(name string) {
	if n := s.nodes[name]; n != nil {
		s.release(n)
		n.forget()
		n.refused(time.Now())
		s.poll, s.lookNext = leastPoll, n.retry
	}
}

func (s *session) notified(items *itemsElement) {
	n := s.nodes[items.Node]
	if n == nil {
		return
	}
	for _, it := range items.Items {
		switch {
		case !n.fetched:
			s.hold(n, it)
		case len(strings.TrimSpace(string(it.Payload))) == 0:
			n.fetched = false // the service announces only the id
		default:
			s.feed(n, it, true)
		}
	}
}

// hold keeps an item until its node is fetched. What is too much for that is
// fetched once more.
func (s *session) hold(n *node, it itemElement) {
	if n.overflow {
		return
	}
	size := itemSize(it)
	if s.waiting+size > s.holds {
		s.release(n)
		n.overflow = true
		return
	}
	s.waiting += size
	n.waiting = append(n.waiting, it)
}

// release gives what waited for a node.
func (s *session) release(n *node) []itemElement {
	waiting := n.waiting
	for _, it := range waiting {
		s.waiting -= itemSize(it)
	}
	n.waiting = nil
	return waiting
}

func itemSize(it itemElement) int { return len(it.Payload) + len(it.ID) + 100 }

// feed takes in one item.
func (s *session) feed(n *node, it itemElement, live bool) {
	if err := s.take(n, it, live); err != nil && n.bad.add(it.ID) {
		s.o.Log.Warn("item ignored", "node", n.name, "item", it.ID, "error", err)
	}
}

func (s *session) take(n *node, it itemElement, live bool) error {
	now := time.Now()
	switch n.lane {
	case laneNow:
		readings, err := readNow(n.name, n.device, it, now)
		if err != nil {
			return err
		}
		if s.o.Now != nil {
			for _, r := range readings {
				s.o.Now(r)
			}
		}
	case laneEvents:
		if n.seen.has(it.ID) {
			return nil
		}
		e, err := readEvent(n.name, it)
		if err != nil {
			return err
		}
		n.seen.add(it.ID)
		if l := e.Loss; l != nil {
			s.mu.Lock()
			s.ledger.Lost(logNodeName(n.gateway, l.Device), ItemID{l.Store, l.First, l.Last}, l.Kept...)
			s.mu.Unlock()
		}
		s.to.Event(e)
	case laneLog:
		pack, readings, err := readLog(n.name, n.device, it, now)
		if err != nil {
			return err
		}
		s.mu.Lock()
		sight := s.ledger.Add(n.name, pack, live)
		s.mu.Unlock()
		switch sight {
		case Fresh:
			for _, r := range readings {
				s.to.Reading(r)
			}
		case Changed:
			s.o.Log.Warn("an item came again with another content", "node", n.name, "item", it.ID)
		}
	}
	return nil
}
