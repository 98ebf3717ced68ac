package bridge

import (
	"context"
	"encoding/xml"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// maxRequests is how many requests wait for an answer.
	maxRequests = 256
	// An operator may send so many requests at once, and so many a second.
	requestBurst = 100
	requestRate  = 10

	answerTimeout = 15 * time.Second
)

// A request is one that will be answered.
type request struct {
	session *stream.Session
	stanza  stream.Stanza
	to      target
}

// hear is called on the goroutine that reads the stream. What is not for us,
// or from one who may not see what he asks of, is not taken: the stream then
// answers as for anything that nobody serves, so that a stranger cannot tell
// what is from what is not.
func (b *Bridge) hear(s *stream.Session, st stream.Stanza) bool {
	who := st.From.Bare()
	to, ok := b.aim(st.To)
	if !ok || who.Equal(b.account) && !b.component || b.component && who.Domainpart() == b.host {
		return false // nothing of ours asks us anything
	}
	switch r := b.roomOf(st.From); {
	case r != nil && st.Name == "presence":
		r.hear(st)
		return true
	case r != nil && st.Name == "message":
		if st.Type == "groupchat" {
			b.hearRoom(st)
		}
		return true
	case st.Name == "message":
		b.hearMessage(st, to)
		return true
	}
	if st.Name == "presence" {
		b.hearPresence(st, to)
		return true
	}
	if !b.knows(who, to) || st.Name != "iq" || !b.limits.allow(who.String(), time.Now()) {
		return false
	}
	select {
	case b.requests <- request{s, st, to}:
		return true
	default:
		return false
	}
}

// hearPresence takes what somebody wants of a contact (RFC 6121 section 3). A
// stranger's wish waits, unanswered, for an owner. To his probe the answer is
// that he is not subscribed, to whatever name (section 4.3.2): his contact list
// heals, and he learns nothing.
func (b *Bridge) hearPresence(st stream.Stanza, to target) {
	who := st.From.Bare()
	if to.domain || st.Type != "subscribe" && st.Type != "unsubscribe" && st.Type != "probe" {
		return
	}
	_, there := b.device(to.device)
	if b.component && there && b.auth.MaySee(who, to.device) || !b.component && b.mayBrowse(who) {
		b.mu.Lock()
		b.contacts.ask(to.device, who, st.Type)
		b.mu.Unlock()
		wake(b.wakePresence)
		return
	}
	if who.Localpart() == "" || !b.limits.allow(strangers, time.Now()) {
		return
	}
	switch {
	case st.Type == "subscribe" && there && b.office != nil:
		b.people.next(strangers, func(context.Context, *talk) { b.office.Knock(who, to.device) })
	case st.Type == "probe" && b.component:
		b.people.next(strangers, func(ctx context.Context, _ *talk) {
			if l := b.link.Load(); l != nil {
				l.session.Send(ctx, presenceElement{From: st.To.Bare().String(), To: who.String(), Type: "unsubscribed"})
			}
		})
	}
}

// aim says what a stanza was sent to. All that an account gets is for the
// gateway.
func (b *Bridge) aim(to jid.JID) (target, bool) {
	if !b.component {
		return target{device: devices.Gateway}, true
	}
	return targetOf(b.domain, to)
}

// knows reports whether who, a bare JID, may know that the target exists, and
// it does. Whoever is granted anything may talk to the gateway.
func (b *Bridge) knows(who jid.JID, to target) bool {
	if to.domain || to.device == devices.Gateway {
		return b.mayBrowse(who)
	}
	_, there := b.device(to.device)
	return there && b.auth.MaySee(who, to.device)
}

// answer serves requests until ctx ends.
func (b *Bridge) answer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-b.requests:
			b.serve(ctx, r)
		}
	}
}

// iqElement is an answer.
type iqElement struct {
	XMLName xml.Name `xml:"iq"`
	Type    string   `xml:"type,attr"`
	ID      string   `xml:"id,attr"`
	From    string   `xml:"from,attr,omitempty"`
	To      string   `xml:"to,attr,omitempty"`
	Payload any
}

// errorElement is a stanza error (RFC 6120 section 8.3).
type errorElement struct {
	XMLName   xml.Name `xml:"error"`
	Type      string   `xml:"type,attr"`
	Condition emptyElement
	Text      *errorText
	Specific  *emptyElement
	Param     *paramErrorElement
}

type errorText struct {
	XMLName xml.Name `xml:"urn:ietf:params:xml:ns:xmpp-stanzas text"`
	Text    string   `xml:",chardata"`
}

// An iqError is a refusal of a request of somebody who may know that it is
// there.
type iqError struct {
	kind      string // cancel, modify, wait, auth
	condition stanza.Condition
	specific  xml.Name // beside the condition; zero: none
	text      string   // for people; "" is none
	param     string   // what of a control request is wrong (XEP-0325); "" is none
}

func (e iqError) Error() string { return string(e.condition) + " " + e.text }

func badRequest(text string) error {
	return iqError{kind: "modify", condition: stanza.BadRequest, text: text}
}

// errResponded says that the answer went out already.
var errResponded = errors.New("answered")

// errNotServed has a request answered as if nobody served it.
var errNotServed error = iqError{kind: "cancel", condition: stanza.ServiceUnavailable}

func (e iqError) element() errorElement {
	out := errorElement{Type: e.kind, Condition: empty(stanza.NSError, string(e.condition))}
	if e.text != "" {
		out.Text = &errorText{Text: e.text}
	}
	if e.specific.Local != "" {
		out.Specific = &emptyElement{e.specific}
	}
	if e.param != "" {
		out.Param = &paramErrorElement{Var: e.param, Text: e.text}
	}
	return out
}

// serve answers a request: at once, or, what may take its time, beside.
func (b *Bridge) serve(ctx context.Context, r request) {
	slow := b.slow(r)
	if slow == nil {
		payload, err := b.reply(r)
		b.respond(ctx, r, payload, err)
		return
	}
	if !b.people.beside(r.stanza.From.Bare().String(), func(ctx context.Context) {
		payload, err := slow(ctx, r)
		b.respond(ctx, r, payload, err)
	}) {
		b.respond(ctx, r, nil, iqError{kind: "wait", condition: stanza.ResourceConstraint})
	}
}

// slow gives what serves a request that may wait for a device or a disk.
func (b *Bridge) slow(r request) func(context.Context, request) (any, error) {
	if r.to.domain {
		return nil
	}
	set := r.stanza.Type == "set"
	switch name := r.stanza.Child; {
	case set && name == xml.Name{Space: nsCommands, Local: "command"}:
		return b.command
	case set && name == xml.Name{Space: nsControl, Local: "set"} && b.executor != nil:
		return b.control
	case !set && name == xml.Name{Space: nsControl, Local: "getForm"} && b.executor != nil:
		return b.controlForm
	case !set && name == xml.Name{Space: nsFields, Local: "req"}:
		return b.readout
	case !set && r.to.device == devices.Gateway && (name.Space == nsItems || name.Space == nsInfo):
		// Who and what waits to be let in is among its commands.
		return func(_ context.Context, r request) (any, error) { return b.reply(r) }
	}
	return nil
}

// respond sends the answer to a request.
func (b *Bridge) respond(ctx context.Context, r request, payload any, err error) {
	if errors.Is(err, errResponded) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	st := r.stanza
	answer := iqElement{Type: "result", ID: st.ID, To: st.From.String(), Payload: payload}
	if b.component {
		answer.From = st.To.String()
	}
	if err != nil {
		var refusal iqError
		if !errors.As(err, &refusal) {
			refusal = errNotServed.(iqError)
		}
		answer.Type, answer.Payload = "error", refusal.element()
	}
	if err := r.session.Send(ctx, answer); err != nil {
		b.log.Debug("a request was not answered", "from", st.From.String(), "error", err)
	}
}

// reply makes the payload of the answer.
func (b *Bridge) reply(r request) (any, error) {
	if r.stanza.Type != "get" {
		return nil, errNotServed
	}
	a := asker{full: r.stanza.From, bare: r.stanza.From.Bare(), to: r.to.device}
	switch r.stanza.Child.Space {
	case nsInfo:
		var ask struct {
			Query infoQuery `xml:"http://jabber.org/protocol/disco#info query"`
		}
		if err := r.stanza.Unmarshal(&ask); err != nil {
			return nil, err
		}
		info, ok := discoInfo(r.to, ask.Query.Node)
		if !ok && !r.to.domain {
			info, ok = b.commandInfo(a, ask.Query.Node)
		}
		if !ok {
			return nil, errNotServed
		}
		return info, nil
	case nsItems:
		var ask struct {
			Query itemsQuery `xml:"http://jabber.org/protocol/disco#items query"`
		}
		if err := r.stanza.Unmarshal(&ask); err != nil {
			return nil, err
		}
		switch {
		case ask.Query.Node == nsCommands && !r.to.domain:
			q := paged(b.commandItems(a, r.stanza.To.String()), ask.Query.Page)
			q.Node = nsCommands
			return q, nil
		case ask.Query.Node != "":
			return nil, errNotServed
		}
		return b.items(a.bare, r.to, ask.Query.Page)
	case nsPing:
		return nil, nil
	case nsVersion:
		return b.version(r.to), nil
	}
	if r.to.domain {
		return nil, errNotServed
	}
	switch r.stanza.Child.Space {
	case nsVCard:
		return b.vCard(r.to.device), nil
	case nsLast:
		return b.last(r.to.device, time.Now())
	case nsTime:
		return entityTime(time.Now()), nil
	}
	return nil, errNotServed
}

// items answers disco#items.
func (b *Bridge) items(who jid.JID, to target, ask *page) (any, error) {
	if to.domain {
		return paged(b.domainItems(who), ask), nil
	}
	l := b.link.Load()
	if l == nil {
		return nil, errNotServed // the service of the nodes is not known yet
	}
	return paged(b.deviceItems(who, to.device, l.service), ask), nil
}

// versionQuery is XEP-0092.
type versionQuery struct {
	XMLName xml.Name `xml:"jabber:iq:version query"`
	Name    string   `xml:"name"`
	Version string   `xml:"version"`
}

// version tells the gateway's software; of a device, the model, where it is
// known.
func (b *Bridge) version(to target) versionQuery {
	v := versionQuery{Name: "Porchlight", Version: "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	if d, ok := b.device(to.device); ok && !to.domain && d.ID != devices.Gateway && d.Model != "" {
		v.Name, v.Version = d.Model, "through Porchlight "+v.Version
	}
	return v
}

// lastQuery is XEP-0012.
type lastQuery struct {
	XMLName xml.Name `xml:"jabber:iq:last query"`
	Seconds int64    `xml:"seconds,attr"`
}

// last tells the seconds since a device's last reading.
func (b *Bridge) last(id devices.ID, now time.Time) (any, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.contacts.devices[id]
	if c == nil || c.presence.Since.IsZero() {
		return nil, errNotServed
	}
	return lastQuery{Seconds: max(0, int64(now.Sub(c.presence.Since)/time.Second))}, nil
}

// timeQuery is XEP-0202.
type timeQuery struct {
	XMLName xml.Name `xml:"urn:xmpp:time time"`
	Zone    string   `xml:"tzo"`
	UTC     string   `xml:"utc"`
}

func entityTime(now time.Time) timeQuery {
	zone := now.Format("-07:00")
	return timeQuery{Zone: zone, UTC: now.UTC().Format("2006-01-02T15:04:05Z")}
}

// limits keeps a token bucket an operator. Strangers never come this far, so
// the map holds no more than were ever operators in this run.
type limits struct {
	mu      sync.Mutex
	buckets map[string]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// allow takes a token of who's.
func (l *limits) allow(who string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.buckets[who]
	if k == nil {
		k = &bucket{requestBurst, now}
		l.buckets[who] = k
	}
	k.tokens = min(requestBurst, k.tokens+max(0, now.Sub(k.at).Seconds())*requestRate)
	k.at = now
	if k.tokens < 1 {
		return false
	}
	k.tokens--
	return true
}
