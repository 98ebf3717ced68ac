package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
)

const (
	// serviceTimeout is for each who is asked whether he is the service:
	// some that a server lists are not there.
	serviceTimeout = 10 * time.Second
	// maxCandidates bounds how many are asked.
	maxCandidates = 50
)

// FindService asks the server of a session's account for its PubSub service
// (XEP-0060 section 5.1).
func FindService(ctx context.Context, s *stream.Session) (JID, error) {
	server := s.Server()
	var list struct {
		Query itemsQuery `xml:"http://jabber.org/protocol/disco#items query"`
	}
	if err := get(ctx, s, jid.JID{}, server, itemsQuery{}, &list); err != nil {
		return JID{}, fmt.Errorf("cannot ask %s for its PubSub service: %w", server, err)
	}
	items := list.Query.Items
	// The likely ones first.
	slices.SortStableFunc(items, func(a, b discoItem) int {
		return strings.Count(b.JID, "pubsub") - strings.Count(a.JID, "pubsub")
	})
	var silent error
	for i, item := range items {
		service, err := jid.Parse(item.JID)
		if err != nil || i == maxCandidates {
			continue
		}
		is, err := isPubSub(ctx, s, jid.JID{}, service)
		switch {
		case is:
			return service, nil
		case ctx.Err() != nil:
			return JID{}, ctx.Err()
		case errors.Is(err, stream.ErrClosed):
			return JID{}, err
		case err != nil && !errors.As(err, new(stanza.Error)):
			silent = errors.Join(silent, fmt.Errorf("%s does not say what it is: %w", service, err))
		}
	}
	return JID{}, errors.Join(fmt.Errorf("cannot find a PubSub service at %s: name one", server), silent)
}

// isPubSub reports whether a peer is a PubSub service, or an account with nodes
// of its own (XEP-0163).
func isPubSub(ctx context.Context, s *stream.Session, from, service jid.JID) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	var info struct {
		Query infoQuery `xml:"http://jabber.org/protocol/disco#info query"`
	}
	if err := get(ctx, s, from, service, infoQuery{}, &info); err != nil {
		return false, err
	}
	return slices.ContainsFunc(info.Query.Identity, func(id identity) bool {
		return id.Category == "pubsub" && (id.Type == "service" || id.Type == "pep")
	}), nil
}
