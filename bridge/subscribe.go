package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

// subscribe has the service send somebody what is published of a device, or
// send it no more: the newest values, the log, or, of the gateway, the events
// (XEP-0060 section 8.8.2). Not every service lets an owner do that.
func (b *Bridge) subscribe(ctx context.Context, a asker, id devices.ID, rest []string) (string, error) {
	state, sense := "subscribed", words.Subscribed
	var nodes []*node
	for _, w := range rest {
		switch l := lane(strings.ToLower(w)); {
		case strings.EqualFold(w, "off"):
			state, sense = "none", words.Unsubscribed
		case l == laneNow || l == laneLog:
			nodes = append(nodes, b.deviceNode(id, l))
		case l == laneEvents && id == devices.Gateway:
			if !b.auth.MaySeeEvents(a.bare) {
				return "", ErrNotAllowed
			}
			nodes = append(nodes, b.eventsNode())
		default:
			return "", words.Error(words.WhichNode)
		}
	}
	if nodes == nil {
		nodes = []*node{b.deviceNode(id, laneNow)}
	}
	l := b.link.Load()
	if l == nil {
		return "", ErrOffline
	}
	var names []string
	for _, n := range nodes {
		_, err := l.askOwner(ctx, sharing, n.name, stanza.SetIQ, ownerElement{Subscriptions: &subscriptions{Node: n.name, List: []subscription{{JID: a.bare.String(), State: state}}}})
		var r *refusal
		if errors.As(err, &r) {
			b.log.Info("somebody was not subscribed", "who", a.bare.String(), "error", err)
			return "", words.Error(fmt.Sprintf(words.NotByService, n.name))
		} else if err != nil {
			return "", err
		}
		names = append(names, n.name)
	}
	slices.Sort(names)
	return fmt.Sprintf(sense, strings.Join(slices.Compact(names), ", ")), nil
}
