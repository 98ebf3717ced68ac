package bridge

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"
	xmppstream "mellium.im/xmpp/stream"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// shareEvery is how often the members are looked at though nothing
	// changed: who may see what also depends on the time of day, and a
	// service may have made a node anew.
	shareEvery = time.Hour
	// shareRetry is how soon it is tried again where it failed.
	shareRetry = time.Minute

	// presencePace is how many presences a second go out.
	presencePace = 50
	// presenceGather is how long changes gather before they go out.
	presenceGather = 100 * time.Millisecond

	farewellTimeout = 5 * time.Second
)

// A link is one session with all that is known of its other end.
type link struct {
	bridge    *Bridge
	session   *stream.Session
	service   jid.JID // of the PubSub nodes
	publisher jid.JID // whom they belong to; zero for an account, whose server fills it in
	pep       bool
	form      nodeForm

	// limited is set once the service refused more than two publish-options.
	limited atomic.Bool

	under underway
	blame sync.Once

	// lost has why the lease is, where it is.
	lost     chan error
	yielding sync.Once
}

// establish finds out what publishing needs to know, and whether this gateway may.
func (b *Bridge) establish(ctx context.Context, s *stream.Session) (*link, error) {
	l := &link{bridge: b, session: s, under: underway{sizes: make(map[sent]int)}, lost: make(chan error, 1)}
	var err error
	if b.component {
		if l.publisher, err = b.domain.WithLocal(string(devices.Gateway)); err != nil {
			return nil, fmt.Errorf("cannot make the gateway's JID: %v", err)
		}
	}
	switch b.cfg.PubSub {
	case ServicePEP:
		l.pep, l.service = true, b.account
	case "":
		if l.service, err = FindService(ctx, s); err != nil {
			return nil, err
		}
	default:
		if l.service, err = jid.Parse(b.cfg.PubSub); err != nil {
			return nil, ValidJID(b.cfg.PubSub)
		}
	}
	return l, l.claim(ctx)
}

// get asks a peer and reads its answer.
func (l *link) get(ctx context.Context, to jid.JID, query, answer any) error {
	return get(ctx, l.session, l.publisher, to, query, answer)
}

// get is for who has no link yet; from is zero for an account.
func get(ctx context.Context, s *stream.Session, from, to jid.JID, query, answer any) error {
	st, err := s.IQ(ctx, stream.IQ{Type: stanza.GetIQ, From: from, To: to, Payload: query})
	if err != nil {
		return err
	}
	return st.Unmarshal(answer)
}

// defaultForm asks for the service's default node configuration (XEP-0060
// section 8.3).
func (l *link) defaultForm(ctx context.Context) (nodeForm, error) {
	answer, err := l.askOwner(ctx, configuring, "(default)", stanza.GetIQ, ownerElement{Default: &formRef{}})
	var r *refusal
	switch {
	case errors.As(err, &r):
		l.bridge.log.Info("the PubSub service shows no default configuration", "service", l.service.String(), "error", err)
		return plainForm(), nil
	case err != nil:
		return nodeForm{}, err
	case answer.Default == nil || answer.Default.Form == nil:
		return plainForm(), nil
	}
	return readForm(*answer.Default.Form), nil
}

// run serves the session until it, or ctx, ends.
func (l *link) run(ctx context.Context) error {
	b := l.bridge
	var wg sync.WaitGroup
	// What runs beside ends before the farewell, so it must not end with ctx.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	b.running.Busy()
	b.mu.Lock()
	b.contacts.forget()
	b.mu.Unlock()
	b.Regrant()
	told := make(chan struct{})
	wg.Go(func() { l.tellPresences(inner, sync.OnceFunc(func() { close(told) })) })
	wg.Go(func() { l.shareNodes(inner) })
	wg.Go(func() { l.askTime(inner) })
	wg.Go(func() { l.keepLease(inner) })
	for _, r := range b.rooms {
		wg.Go(func() { l.keepRoom(inner, r) })
	}

	if !b.component {
		// What is said to an account that is not available is refused, or kept. An
		// answer shows that the server has gone so far.
		select {
		case <-told:
			_ = l.session.Ping(ctx)
		case <-ctx.Done():
		case <-l.session.Done():
		}
	}
	b.link.Store(l)
	b.onSession(true)
	crashpoint.At(crashpoint.SessionUp)
	var err error
	b.running.Rest()
	select {
	case <-ctx.Done():
	case <-l.session.Done():
		err = l.session.Err()
	case err = <-l.lost:
	}
	if errors.Is(err, xmppstream.Conflict) && b.lease.has() {
		err = fmt.Errorf("%w: %w", errPutOut, err)
	}
	b.running.Busy()
	defer b.running.Rest()
	crashpoint.At(crashpoint.SessionDown)
	b.lease.heeds.Store(false)
	b.link.Store(nil)
	b.onSession(false)
	cancel()
	wg.Wait()
	if ctx.Err() != nil {
		l.farewell()
		l.giveBack()
	}
	return errors.Join(err, l.session.Close())
}

// shareNodes makes every node, and keeps its members those who may see it.
func (l *link) shareNodes(ctx context.Context) {
	b := l.bridge
	retry := shareRetry
	for {
		b.mu.Lock()
		ids := make([]devices.ID, 0, len(b.devices))
		for id := range b.devices {
			ids = append(ids, id)
		}
		b.mu.Unlock()
		nodes := []*node{b.eventsNode(), b.backupNode(b.cfg.Gateway)}
		for _, id := range ids {
			nodes = append(nodes, b.deviceNode(id, laneNow), b.deviceNode(id, laneLog))
		}
		var first error
		failed := 0
		if !b.component {
			if err := errors.Join(l.tidyRoster(ctx), l.introduce(ctx)); err != nil {
				first, failed = err, 1
			}
		}
		for _, n := range nodes {
			if n.shared.Load() {
				continue
			}
			err := l.sync(ctx, n)
			if l.over(ctx) {
				return
			}
			if err != nil {
				n.shared.Store(false)
				failed++
				if first == nil {
					first = err
				}
			}
		}
		again := shareEvery
		if failed > 0 {
			b.log.Warn("operators cannot be let in everywhere", "failures", failed, "first", first)
			again, retry = retry, min(2*retry, shareEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-b.wakeShare:
		case <-time.After(again):
			if failed == 0 {
				b.unshare()
			}
		}
	}
}

// over reports whether the session or the one who uses it ended.
func (l *link) over(ctx context.Context) bool {
	select {
	case <-l.session.Done():
		return true
	default:
		return ctx.Err() != nil
	}
}

// unshare has all nodes looked at again.
func (b *Bridge) unshare() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		n.shared.Store(false)
	}
}

// wakeSharing has one node looked at.
func (b *Bridge) wakeSharing(n *node) {
	n.shared.Store(false)
	wake(b.wakeShare)
}

// tellPresences tells operators how devices are doing.
func (l *link) tellPresences(ctx context.Context, told func()) {
	defer told()
	b := l.bridge
	review := time.NewTicker(time.Minute) // who may see what also depends on the time of day
	defer review.Stop()
	for {
		notices, again := b.dueNotices(time.Now())
		for _, n := range notices {
			if l.tell(ctx, n) != nil {
				// The session is at its end, and all is told again on the next.
				return
			}
		}
		told()
		pause(ctx, max(presenceGather, time.Second*time.Duration(len(notices))/presencePace))
		if len(notices) > 0 && ctx.Err() == nil {
			continue
		}
		var timer <-chan time.Time
		if !again.IsZero() {
			timer = time.After(time.Until(again))
		}
		select {
		case <-ctx.Done():
			return
		case <-b.wakePresence:
		case <-timer:
		case <-review.C:
			b.mu.Lock()
			b.contacts.review()
			b.mu.Unlock()
		}
	}
}

// pause waits, if ctx lets it.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// dueNotices asks for the rights between two looks at the contacts, not under
// their lock.
func (b *Bridge) dueNotices(now time.Time) (notices []notice, again time.Time) {
	b.mu.Lock()
	ids, again := b.contacts.ready(now)
	b.mu.Unlock()
	if len(ids) == 0 {
		return nil, again
	}
	if len(ids) > presencePace {
		ids = ids[:presencePace]
		again = now
	}
	if !b.component {
		b.mu.Lock()
		defer b.mu.Unlock()
		everybody := func(_ jid.JID, id devices.ID) bool { return id == devices.Gateway }
		return b.contacts.due(now, ids, presencePace, []jid.JID{{}}, everybody), again
	}
	var operators []jid.JID
	type grant struct {
		who    string
		device devices.ID
	}
	granted := make(map[grant]bool)
	for _, who := range b.auth.Operators() {
		who = who.Bare()
		operators = append(operators, who)
		for _, id := range ids {
			if b.auth.MaySee(who, id) {
				granted[grant{who.String(), id}] = true
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.contacts.due(now, ids, presencePace, operators, func(who jid.JID, id devices.ID) bool {
		return granted[grant{who.String(), id}]
	}), again
}

// tell sends a notice.
func (l *link) tell(ctx context.Context, n notice) error {
	e := n.stanza
	e.To = n.to.String()
	subscription := e.Type == "subscribe" || e.Type == "subscribed" || e.Type == "unsubscribed"
	switch {
	case l.bridge.component:
		from, err := deviceJID(l.bridge.domain, n.device)
		if err != nil {
			return nil // a device id is always a localpart
		}
		// Subscriptions are between bare JIDs (RFC 6121 section 3.1).
		if e.From = from.String(); subscription {
			e.From = from.Bare().String()
		}
		if e.Caps != nil { // it is there
			e.Photo = &photoHash{Photo: l.bridge.pictures[kindOf(n.device, l.bridge.state(n.device).Fields)].hash}
		}
	case e.Type == "unavailable" && e.Status != noteStopped:
		// The account is there as long as the gateway is: without a presence
		// it would get no messages.
		e.Type, e.Show = "", "away"
	}
	return l.session.Send(ctx, e)
}

// farewell tells all who were told anything that the gateway stops.
func (l *link) farewell() {
	ctx, cancel := context.WithTimeout(context.Background(), farewellTimeout)
	defer cancel()
	for _, r := range l.bridge.rooms {
		if joined, _, _ := r.state(); joined {
			_ = l.enter(ctx, r, "unavailable") // what follows fails, too
		}
	}
	l.bridge.mu.Lock()
	notices := l.bridge.contacts.farewell()
	l.bridge.mu.Unlock()
	for _, n := range notices {
		if err := l.tell(ctx, n); err != nil {
			l.bridge.log.Warn("not everybody was told that the gateway stops", "error", err)
			return
		}
	}
}

type rosterQuery struct {
	XMLName xml.Name     `xml:"jabber:iq:roster query"`
	Items   []rosterItem `xml:"item"`
}

type rosterItem struct {
	JID          string `xml:"jid,attr"`
	Subscription string `xml:"subscription,attr"`
}

// tidyRoster ends the presence subscriptions of those who may no longer see
// the gateway: the account's server remembers them for ever.
func (l *link) tidyRoster(ctx context.Context) error {
	var roster struct {
		Query rosterQuery `xml:"jabber:iq:roster query"`
	}
	if err := l.get(ctx, l.bridge.account, rosterQuery{}, &roster); err != nil {
		return fmt.Errorf("cannot read the account's roster: %w", err)
	}
	for _, item := range roster.Query.Items {
		who, err := jid.Parse(item.JID)
		if err != nil || item.Subscription != "from" && item.Subscription != "both" ||
			l.bridge.mayBrowse(who.Bare()) {
			continue
		}
		if err := l.tell(ctx, notice{devices.Gateway, who.Bare(), presenceElement{Type: "unsubscribed"}}); err != nil {
			return fmt.Errorf("cannot end a subscription: %w", err)
		}
	}
	return nil
}
