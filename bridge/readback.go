package bridge

import (
	"bytes"
	"context"
	"fmt"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/devices"
)

// maxReadBack is how many items of a node are read back: more of the biggest
// would be a stanza that is too big to be read.
const maxReadBack = 40

// A LogItem is an item of a log node.
type LogItem struct {
	Store       string
	First, Last uint64
	Records     []devices.Record
}

// ReadLog gives the newest items of a device's log node, in the order of the
// service; none where there is no node. newest is how many at most; 0 is as many
// as can be read at once. Items that are no packs are left out. Errors are as
// those of [Bridge.PublishLog].
func (b *Bridge) ReadLog(ctx context.Context, device devices.ID, newest int) ([]LogItem, error) {
	l := b.link.Load()
	if l == nil {
		return nil, ErrOffline
	}
	n := b.deviceNode(device, laneLog)
	if newest == 0 {
		newest = maxReadBack
	}
	all, err := l.items(ctx, n, newest)
	if err != nil {
		return nil, err
	}
	var items []LogItem
	for _, item := range all {
		store, first, last, err := ParseItem(item.ID)
		if err == nil {
			var rs []devices.Record
			if _, _, rs, err = DecodeItem(item.ID, bytes.TrimSpace(item.Payload)); err == nil {
				items = append(items, LogItem{store, first, last, rs})
			}
		}
		if err != nil {
			b.log.Debug("an item of the log is none of ours", "node", n.name, "error", err)
		}
	}
	return items, nil
}

// items gives the newest items of a node; none where there is no node.
func (l *link) items(ctx context.Context, n *node, most int) ([]itemElement, error) {
	return l.fetch(ctx, n, itemsElement{Max: most})
}

// fetch gives the items of a node that are asked for; none where there is no node
// or no such item.
func (l *link) fetch(ctx context.Context, n *node, wanted itemsElement) ([]itemElement, error) {
	wanted.Node = n.name
	answer, err := l.ask(ctx, reading, n.name, stanza.GetIQ, pubsubElement{Items: &wanted})
	if is(err, stanza.ItemNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var iq struct {
		PubSub pubsubElement `xml:"http://jabber.org/protocol/pubsub pubsub"`
	}
	if err := answer.Unmarshal(&iq); err != nil {
		return nil, fmt.Errorf("cannot %s node %s: %w", reading, n.name, err)
	}
	if iq.PubSub.Items == nil {
		return nil, nil
	}
	return iq.PubSub.Items.Items, nil
}
