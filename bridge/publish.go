package bridge

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"

	"mellium.im/xmpp/stanza"
	xmppstream "mellium.im/xmpp/stream"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// publishElement holds one item: of more, Prosody keeps only the first
// (XEP-0060 section 7.1.1 allows one).
type publishElement struct {
	XMLName xml.Name    `xml:"publish"`
	Node    string      `xml:"node,attr"`
	Item    itemElement `xml:"item"`
}

type itemElement struct {
	ID      string `xml:"id,attr"`
	Payload []byte `xml:",innerxml"`
}

// retractElement removes one item (XEP-0060 section 7.2).
type retractElement struct {
	XMLName xml.Name `xml:"retract"`
	Node    string   `xml:"node,attr"`
	Item    itemRef  `xml:"item"`
}

type itemRef struct {
	ID string `xml:"id,attr"`
}

// maxRepairs is how often one publish makes or configures its node. After a
// publish to a node that is there and as it should be nothing is left to
// repair.
const maxRepairs = 2

// PublishLog publishes a pack to the device's log node. payload is what
// [Bridge.EncodeLog] made; with the same item and the same bytes it may be
// published again and again. The node is made and repaired where it needs it.
//
// The Publish methods may be called from many goroutines; the caller sees to
// the order within one node. They return once the service answered, ctx ended
// or the session did, at the latest after a minute. [Judge] says what an error
// means; it is [ErrOffline] where there is no session.
func (b *Bridge) PublishLog(ctx context.Context, device devices.ID, item string, payload []byte) error {
	text, err := WrapLog(payload)
	if err != nil {
		return fmt.Errorf("cannot publish item %s of %s: %w", item, device, err)
	}
	return b.publish(ctx, b.deviceNode(device, laneLog), item, text)
}

// PublishNow publishes the newest values of all of a device's fields to its
// now node, in place of those before. See [Bridge.PublishLog].
func (b *Bridge) PublishNow(ctx context.Context, device devices.ID, values []NowValue) error {
	text, err := encodeNow(device, values)
	if err != nil {
		return fmt.Errorf("%w: %w", errPayload, err)
	}
	return b.publish(ctx, b.deviceNode(device, laneNow), "current", text)
}

// PublishEvent publishes an event. See [Bridge.PublishLog].
func (b *Bridge) PublishEvent(ctx context.Context, e Event) error {
	device := e.Device
	if device == "" {
		device = devices.Gateway
	}
	text, err := encodeEvent(e, b.host, b.deviceAddress(device))
	if err != nil {
		return fmt.Errorf("%w: %w", errPayload, err)
	}
	return b.publish(ctx, b.eventsNode(), e.ID, text)
}

func (b *Bridge) publish(ctx context.Context, n *node, item string, payload []byte) error {
	l := b.link.Load()
	if l == nil {
		return ErrOffline
	}
	return l.deliver(ctx, n, item, payload)
}

// deliver publishes an item, and makes and repairs its node where it needs it.
func (l *link) deliver(ctx context.Context, n *node, item string, payload []byte) error {
	if !n.ready.Load() {
		if err := l.repair(ctx, n, n.revision.Load(), l.ensure); err != nil {
			return err
		}
	}
	for repairs := 0; ; repairs++ {
		revision := n.revision.Load()
		err := l.publish(ctx, n, item, payload)
		var r *refusal
		if repairs == maxRepairs || !errors.As(err, &r) {
			return err
		}
		mend := l.restore
		switch {
		case r.detail == "precondition-not-met" || r.condition == stanza.Conflict:
		case r.condition == stanza.ItemNotFound:
			mend = l.remake
		default:
			return err
		}
		if err := l.repair(ctx, n, revision, mend); err != nil {
			return err
		}
	}
}

// repair mends the node, unless another did since it had that revision.
func (l *link) repair(ctx context.Context, n *node, revision uint64, mend func(context.Context, *node) error) error {
	if err := n.take(ctx); err != nil {
		return fmt.Errorf("cannot wait for node %s: %w", n.name, err)
	}
	defer n.give()
	if n.revision.Load() != revision {
		return nil
	}
	return mend(ctx, n)
}

// remake makes a node that the service no longer has.
func (l *link) remake(ctx context.Context, n *node) error {
	l.bridge.log.Warn("a node is gone from the PubSub service and is made again", "node", n.name)
	n.ready.Store(false)
	return l.ensure(ctx, n)
}

// publish sends one item. The options keep a service that makes missing nodes
// by itself from making an open one (XEP-0060 section 7.1.5), and an account's
// from making one for a single item; ejabberd 23.01 knows only two of them
// and refuses a third with resource-constraint.
func (l *link) publish(ctx context.Context, n *node, item string, payload []byte) error {
	options := []formField{field(optAccess, "whitelist"), field(optPersist, "1")}
	third := l.pep && !l.limited.Load()
	if third {
		options = append(options, field(optMaxItems, l.form.max(n.lane)))
	}
	form := submit(nsOptions, options...)
	pack := sent{n.name, item}
	l.under.begin(pack, len(payload))
	crashpoint.At(crashpoint.Publishing)
	_, err := l.ask(ctx, publishing, n.name, stanza.SetIQ, pubsubElement{
		Publish: &publishElement{Node: n.name, Item: itemElement{item, payload}},
		Options: &formRef{Form: &form},
	})
	crashpoint.At(crashpoint.PublishAnswered)
	if errors.Is(err, stream.ErrClosed) && l.struck(pack) {
		err = fmt.Errorf("cannot publish item %s to node %s: %w", item, n.name, errTooBig)
	}
	l.under.end(pack)
	switch {
	case err == nil:
		l.bridge.strikes.clear(pack)
	case third && is(err, stanza.ResourceConstraint):
		l.limited.Store(true)
		return l.publish(ctx, n, item, payload)
	}
	return err
}

// struck reports whether the server closed the stream twice with this pack
// under way, which is how servers answer a stanza that is too big for them. Of
// all packs under way only the biggest is to blame.
func (l *link) struck(pack sent) bool {
	<-l.session.Done() // which is near; then the reason is known
	if !errors.Is(l.session.Err(), xmppstream.PolicyViolation) {
		return false
	}
	l.blame.Do(func() { l.bridge.strikes.add(l.under.biggest()) })
	return l.bridge.strikes.count(pack) >= 2
}
