package bridge

import (
	"context"
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	nsPubSub      = "http://jabber.org/protocol/pubsub"
	nsPubSubOwner = "http://jabber.org/protocol/pubsub#owner"
	nsNodeConfig  = "http://jabber.org/protocol/pubsub#node_config"
	nsOptions     = "http://jabber.org/protocol/pubsub#publish-options"
)

// A lane is what a node is for.
type lane string

const (
	laneNow    lane = "now"
	laneLog    lane = "log"
	laneEvents lane = "events"
	laneBackup lane = "backup"
	laneLease  lane = "lease"
)

// A node is a PubSub node of this gateway, and what is known of it. It lives
// as long as the Bridge.
type node struct {
	name   string
	device devices.ID // empty where it is of the gateway as a whole
	lane   lane

	// turn is held by the one who makes, configures or shares the node.
	turn chan struct{}
	// ready is set once the node was made, or its configuration compared, in
	// this run. It is written by the holder of turn.
	ready atomic.Bool
	// shared is set once the members are those who may see the node, and
	// unset when that may have changed.
	shared atomic.Bool
	// revision counts how often the node was made or configured, so that of
	// many who find it missing one makes it. It is written by the holder of
	// turn.
	revision atomic.Uint64
	// members are the bare JIDs that the service is known to have; nil where
	// that is not known. They belong to the holder of turn.
	members map[string]bool
}

func newNode(name string, device devices.ID, l lane) *node {
	return &node{name: name, device: device, lane: l, turn: make(chan struct{}, 1)}
}

// take waits for the node's turn.
func (n *node) take(ctx context.Context) error {
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *node) give() { <-n.turn }

// title is shown to everybody who asks the service for its nodes, so it names
// nobody and nothing.
func (n *node) title() string {
	switch n.lane {
	case laneNow:
		return "Latest values"
	case laneLog:
		return "Readings"
	case laneBackup:
		return "Backups"
	case laneLease:
		return "Lease"
	}
	return "Events"
}

// content is the namespace of the node's payloads.
func (n *node) content(payload string) string {
	switch {
	case n.lane == laneEvents:
		return "urn:xmpp:pubsub-social-feed:1" // XEP-0472: a feed of Atom entries
	case n.lane == laneLog && payload == PayloadSenML, n.lane == laneBackup:
		return nsBoB
	case n.lane == laneLease:
		return nsLease
	}
	return nsFields
}

// form is a data form (XEP-0004).
type form struct {
	XMLName xml.Name    `xml:"jabber:x:data x"`
	Type    string      `xml:"type,attr"`
	Title   string      `xml:"title,omitempty"`
	Fields  []formField `xml:"field"`
}

type formField struct {
	Var      string        `xml:"var,attr"`
	Type     string        `xml:"type,attr,omitempty"`
	Label    string        `xml:"label,attr,omitempty"`
	Validate *formValidate `xml:"http://jabber.org/protocol/xdata-validate validate"`
	Values   []string      `xml:"value"`
	Options  []formOption  `xml:"option"`
}

type formOption struct {
	Label string `xml:"label,attr"`
	Value string `xml:"value"`
}

// formValidate bounds a field (XEP-0122).
type formValidate struct {
	DataType string     `xml:"datatype,attr"`
	Range    *formRange `xml:"http://jabber.org/protocol/xdata-validate range"`
}

type formRange struct {
	Min string `xml:"min,attr,omitempty"`
	Max string `xml:"max,attr,omitempty"`
}

// value is the first value of a field, and whether the form has the field.
func (f form) value(name string) (string, bool) {
	for _, field := range f.Fields {
		if field.Var == name {
			if len(field.Values) == 0 {
				return "", true
			}
			return field.Values[0], true
		}
	}
	return "", false
}

func submit(formType string, fields ...formField) form {
	head := formField{Var: "FORM_TYPE", Type: "hidden", Values: []string{formType}}
	return form{Type: "submit", Fields: append([]formField{head}, fields...)}
}

func field(name, value string) formField {
	return formField{Var: name, Values: []string{value}}
}

// Fields of a node's configuration (XEP-0060 section 16.4.4).
const (
	optTitle    = "pubsub#title"
	optType     = "pubsub#type"
	optAccess   = "pubsub#access_model"
	optPublish  = "pubsub#publish_model"
	optPersist  = "pubsub#persist_items"
	optMaxItems = "pubsub#max_items"
	optSendLast = "pubsub#send_last_published_item"
	optNotify   = "pubsub#notification_type"
	optRetract  = "pubsub#notify_retract"
)

// A nodeForm is the service's default node configuration form. ejabberd
// refuses a form with a field that it does not know.
type nodeForm struct {
	known    map[string]bool
	maxItems string   // the most that a node can keep
	access   []string // access models; nil where it does not tell
}

// plainForm is for a service that does not show its form: the fields that any
// service has that can keep a node private and whole.
func plainForm() nodeForm {
	return nodeForm{
		known:    map[string]bool{optAccess: true, optPublish: true, optPersist: true, optMaxItems: true},
		maxItems: "max",
	}
}

// readForm takes what matters out of a default form.
func readForm(f form) nodeForm {
	n := nodeForm{known: make(map[string]bool), maxItems: "max"}
	for _, field := range f.Fields {
		n.known[field.Var] = true
		if field.Var == optAccess {
			for _, o := range field.Options {
				n.access = append(n.access, o.Value)
			}
		}
		v := field.Validate
		if field.Var != optMaxItems || v == nil || v.DataType == "pubsub:integer-or-max" || v.Range == nil {
			continue
		}
		// A service from before "max" was a value (XEP-0060 1.16).
		if most, err := strconv.ParseUint(v.Range.Max, 10, 31); err == nil && most > 0 {
			n.maxItems = v.Range.Max
		}
	}
	return n
}

// max is the max_items of a node.
func (f nodeForm) max(l lane) string {
	if l == laneNow || l == laneLease {
		return "1"
	}
	return f.maxItems
}

// enforced are the settings that a node must have: without them strangers
// read it, others write to it, or it forgets.
func enforced() []formField {
	return []formField{
		field(optAccess, "whitelist"),
		field(optPublish, "publishers"),
		field(optPersist, "1"),
	}
}

// settings is the configuration that a node is made with.
func (f nodeForm) settings(n *node, payload string) form {
	last := "on_sub"
	if n.lane == laneBackup {
		last = "never"
	}
	all := append(enforced(),
		field(optTitle, n.title()),
		field(optType, n.content(payload)),
		field(optMaxItems, f.max(n.lane)),
		field(optSendLast, last),
		field(optNotify, "headline"),
		field(optRetract, "0"),
	)
	return submit(nsNodeConfig, slices.DeleteFunc(all, func(field formField) bool { return !f.known[field.Var] })...)
}

// amends gives the enforced settings, if have differs from one of them.
func amends(have form) []formField {
	for _, want := range enforced() {
		got, there := have.value(want.Var)
		if want.Values[0] == "1" && got == "true" {
			got = "1" // both are xs:boolean
		}
		if there && got != want.Values[0] {
			return slices.DeleteFunc(enforced(), func(f formField) bool {
				_, known := have.value(f.Var)
				return !known
			})
		}
	}
	return nil
}

// pubsubElement and ownerElement are requests and answers of a PubSub service.
type pubsubElement struct {
	XMLName   xml.Name `xml:"http://jabber.org/protocol/pubsub pubsub"`
	Create    *nodeRef `xml:"create"`
	Configure *formRef `xml:"configure"`
	Publish   *publishElement
	Retract   *retractElement
	Options   *formRef `xml:"publish-options"`
	Items     *itemsElement
}

type ownerElement struct {
	XMLName       xml.Name      `xml:"http://jabber.org/protocol/pubsub#owner pubsub"`
	Default       *formRef      `xml:"default"`
	Delete        *nodeRef      `xml:"delete"`
	Configure     *formRef      `xml:"configure"`
	Affiliations  *affiliations `xml:"affiliations"`
	Subscriptions *subscriptions
}

// itemsElement asks for the newest items of a node, and holds them.
type itemsElement struct {
	XMLName xml.Name      `xml:"items"`
	Node    string        `xml:"node,attr"`
	Max     int           `xml:"max_items,attr,omitempty"`
	Items   []itemElement `xml:"item"`
}

type nodeRef struct {
	Node string `xml:"node,attr"`
}

type formRef struct {
	Node string `xml:"node,attr,omitempty"`
	Form *form  `xml:"jabber:x:data x"`
}

type affiliations struct {
	Node string        `xml:"node,attr"`
	List []affiliation `xml:"affiliation"`
}

type affiliation struct {
	JID  string `xml:"jid,attr"`
	Role string `xml:"affiliation,attr"`
}

type subscriptions struct {
	XMLName xml.Name       `xml:"subscriptions"`
	Node    string         `xml:"node,attr"`
	List    []subscription `xml:"subscription"`
}

type subscription struct {
	JID   string `xml:"jid,attr"`
	State string `xml:"subscription,attr"`
	SubID string `xml:"subid,attr,omitempty"`
}

// ask sends a request about a node to the service.
func (l *link) ask(ctx context.Context, s step, node string, kind stanza.IQType, payload any) (stream.Stanza, error) {
	answer, err := l.session.IQ(ctx, stream.IQ{Type: kind, From: l.publisher, To: l.service, Payload: payload})
	if err != nil {
		return stream.Stanza{}, refused(s, node, answer, err)
	}
	return answer, nil
}

// askOwner asks as the node's owner, and reads the answer.
func (l *link) askOwner(ctx context.Context, s step, node string, kind stanza.IQType, payload ownerElement) (ownerElement, error) {
	answer, err := l.ask(ctx, s, node, kind, payload)
	if err != nil || kind == stanza.SetIQ {
		return ownerElement{}, err
	}
	var iq struct {
		Owner ownerElement `xml:"http://jabber.org/protocol/pubsub#owner pubsub"`
	}
	if err := answer.Unmarshal(&iq); err != nil {
		return ownerElement{}, fmt.Errorf("cannot %s node %s: %w", s, node, err)
	}
	return iq.Owner, nil
}

// ensure makes the node, or compares its configuration, unless that was done
// in this run. The caller holds the node's turn. The members come later, by
// sync: that an operator cannot be a member must not hold up what he would
// read.
func (l *link) ensure(ctx context.Context, n *node) error {
	if n.ready.Load() {
		return nil
	}
	crashpoint.At(crashpoint.NodeMissing)
	err := l.set(n, func(settings form) error {
		_, err := l.ask(ctx, creating, n.name, stanza.SetIQ, pubsubElement{
			Create:    &nodeRef{n.name},
			Configure: &formRef{Form: &settings},
		})
		return err
	})
	crashpoint.At(crashpoint.NodeMade)
	if is(err, stanza.Conflict) {
		err = l.amend(ctx, n)
		crashpoint.At(crashpoint.NodeConfigured)
	}
	if err != nil {
		return err
	}
	n.members = nil
	n.made()
	l.bridge.wakeSharing(n)
	return nil
}

// manyItems are asked for where the service does not know "max".
const manyItems = "10000"

// set sends all settings of a node. Openfire shows nothing that tells whether it
// knows "max", reads it as a number, and fails.
func (l *link) set(n *node, send func(settings form) error) error {
	f := l.form
	err := send(f.settings(n, l.bridge.cfg.Payload))
	if f.max(n.lane) == "max" && is(err, stanza.InternalServerError) {
		f.maxItems = manyItems
		err = send(f.settings(n, l.bridge.cfg.Payload))
	}
	return err
}

// made says that the node is as it should be.
func (n *node) made() {
	n.revision.Add(1)
	n.ready.Store(true)
}

// amend enforces the settings that matter on a node that was there before.
func (l *link) amend(ctx context.Context, n *node) error {
	have, err := l.askOwner(ctx, configuring, n.name, stanza.GetIQ, ownerElement{Configure: &formRef{Node: n.name}})
	if err != nil {
		return err
	}
	if have.Configure == nil || have.Configure.Form == nil {
		return fmt.Errorf("cannot %s node %s: the service shows no form", configuring, n.name)
	}
	fields := amends(*have.Configure.Form)
	if fields == nil {
		return nil
	}
	return l.configure(ctx, n, submit(nsNodeConfig, fields...))
}

// configure sets some of a node's settings.
func (l *link) configure(ctx context.Context, n *node, f form) error {
	_, err := l.askOwner(ctx, configuring, n.name, stanza.SetIQ, ownerElement{Configure: &formRef{Node: n.name, Form: &f}})
	return err
}

// restore sets all settings of a node that the service made by itself, or that
// another changed.
func (l *link) restore(ctx context.Context, n *node) error {
	if err := l.set(n, func(settings form) error { return l.configure(ctx, n, settings) }); err != nil {
		return err
	}
	n.made()
	return nil
}

// sync makes the node's members on the service those who may see it.
func (l *link) sync(ctx context.Context, n *node) error {
	if err := n.take(ctx); err != nil {
		return err
	}
	defer n.give()
	if n.lane != laneBackup { // which is made with the first backup, if there is ever one
		if err := l.ensure(ctx, n); err != nil {
			return err
		}
	}
	n.shared.Store(true) // before those who may see it are asked for
	answer, err := l.askOwner(ctx, sharing, n.name, stanza.GetIQ, ownerElement{Affiliations: &affiliations{Node: n.name}})
	switch {
	case is(err, stanza.ItemNotFound) && n.lane == laneBackup:
		return nil
	case is(err, stanza.ItemNotFound):
		n.ready.Store(false)
		return l.ensure(ctx, n)
	case is(err, stanza.FeatureNotImplemented):
		if n.members == nil {
			n.members = make(map[string]bool)
		}
		return l.share(ctx, n)
	case err != nil:
		return err
	}
	before := n.members
	n.members = make(map[string]bool)
	if answer.Affiliations != nil {
		for _, a := range answer.Affiliations.List {
			who, err := jid.Parse(a.JID)
			if err != nil {
				continue
			}
			switch a.Role {
			case "member":
				n.members[who.Bare().String()] = true
			case "owner", "publisher":
				n.members[who.Bare().String()] = false
			}
		}
	}
	for who, member := range before {
		if _, still := n.members[who]; member && !still {
			// The node lost members that it had: the service made it anew
			// at a publish, as ejabberd does, with settings of its own.
			if err := l.restore(ctx, n); err != nil {
				return err
			}
			break
		}
	}
	return l.share(ctx, n)
}

// share brings the members, which are known, to those who may see the node.
// Members with the value false are there by a higher right and stay.
func (l *link) share(ctx context.Context, n *node) error {
	wanted := l.bridge.viewers(n)
	var add, drop []affiliation
	for _, who := range slices.Sorted(maps.Keys(wanted)) {
		if _, has := n.members[who]; !has {
			add = append(add, affiliation{who, "member"})
		}
	}
	for _, who := range slices.Sorted(maps.Keys(n.members)) {
		if n.members[who] && !wanted[who] {
			drop = append(drop, affiliation{who, "none"})
		}
	}
	if len(drop) > 0 {
		// First, because Prosody refuses to take the right of one who is
		// subscribed.
		err := l.unsubscribe(ctx, n, drop)
		switch {
		case is(err, stanza.FeatureNotImplemented):
			// Of an account's own nodes ejabberd lets nobody end another's
			// subscription, and lets subscribers read. Outcasts may not, but
			// are still sent what is published.
			l.bridge.log.Warn("the service does not let us end a subscription: who lost the right to a node may go on receiving it until he unsubscribes or the node is deleted",
				"node", n.name, "who", drop[0].JID, "count", len(drop))
			for i := range drop {
				drop[i].Role = "outcast"
			}
		case err != nil:
			return err
		}
	}
	// In pieces: a change of several is not atomic everywhere, and an answer
	// that never comes should cost little.
	for piece := range slices.Chunk(append(drop, add...), 20) {
		_, err := l.askOwner(ctx, sharing, n.name, stanza.SetIQ, ownerElement{Affiliations: &affiliations{n.name, piece}})
		crashpoint.At(crashpoint.MembersSet)
		if err != nil {
			return err
		}
		for _, a := range piece {
			if a.Role == "member" {
				n.members[a.JID] = true
			} else {
				delete(n.members, a.JID)
			}
		}
	}
	return nil
}

// unsubscribe ends the subscriptions of those who will no longer be members: a
// service need not do that by itself.
func (l *link) unsubscribe(ctx context.Context, n *node, dropped []affiliation) error {
	answer, err := l.askOwner(ctx, sharing, n.name, stanza.GetIQ, ownerElement{Subscriptions: &subscriptions{Node: n.name}})
	if err != nil {
		return err
	}
	if answer.Subscriptions == nil {
		return nil
	}
	var end []subscription
	for _, s := range answer.Subscriptions.List {
		who, err := jid.Parse(s.JID)
		if err != nil || s.State == "none" {
			continue
		}
		bare := who.Bare().String()
		if slices.ContainsFunc(dropped, func(a affiliation) bool { return a.JID == bare }) {
			end = append(end, subscription{s.JID, "none", s.SubID})
		}
	}
	if len(end) == 0 {
		return nil
	}
	_, err = l.askOwner(ctx, sharing, n.name, stanza.SetIQ, ownerElement{Subscriptions: &subscriptions{Node: n.name, List: end}})
	return err
}
