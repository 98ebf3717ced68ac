package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"mellium.im/xmpp/stanza"
)

const (
	// maxAnswer is what an answer to a request for items should stay below,
	// in bytes. An item may be larger than others of its node, so it is well
	// below what a stream takes in.
	maxAnswer = 128 << 10
	// fullPack is the size of a large item.
	fullPack = 16 << 10

	// maxUnlisted is how many sessions may end while a node is listed, before
	// the list is taken for the cause.
	maxUnlisted = 2
)

// fetchStale fetches what those nodes hold that were not fetched, or are to be
// fetched again.
func (s *session) fetchStale(ctx context.Context) error {
	for {
		stale := slices.DeleteFunc(s.sorted(), func(n *node) bool { return n.fetched || !n.subscribed })
		if len(stale) == 0 {
			return nil
		}
		for _, n := range stale {
			if err := s.catchUp(ctx, n); err != nil {
				return err
			}
			s.drain()
		}
	}
}

// catchUp fetches what a node holds, and then takes in what came for it
// meanwhile.
func (s *session) catchUp(ctx context.Context, n *node) error {
	err := s.fetch(ctx, n)
	e, refused := refusal(err)
	switch {
	case refused && e.Condition == stanza.ItemNotFound:
		s.gone(n.name)
		return nil
	case refused:
		s.sayRefused(n, "fetch from", err, string(e.Condition))
	case err != nil:
		return fmt.Errorf("cannot fetch from %s: %w", n.name, err)
	}
	n.fetched, n.overflow = !n.overflow, false
	for _, it := range s.release(n) {
		s.feed(n, it, true)
	}
	s.mu.Lock()
	n.missing = s.ledger.Node(n.name).Missing
	s.mu.Unlock()
	return nil
}

// fetch takes in what a node holds and did not come before.
func (s *session) fetch(ctx context.Context, n *node) error {
	switch n.lane {
	case laneNow:
		items, err := s.items(ctx, itemsElement{Node: n.name, MaxItems: 1})
		for _, it := range items {
			s.feed(n, it, false)
		}
		return err
	case laneEvents:
		return s.fetchEvents(ctx, n)
	}
	return s.fetchLog(ctx, n)
}

// items asks for items (XEP-0060 section 6.5).
func (s *session) items(ctx context.Context, ask itemsElement) ([]itemElement, error) {
	answer, err := s.pubsub(ctx, stanza.GetIQ, pubsubElement{Items: &ask})
	if err != nil || answer.Items == nil {
		return nil, err
	}
	return answer.Items.Items, nil
}

// held lists the ids of the items that a node holds, in no order.
//
// Not all services give items page by page (XEP-0059), and all of them at once
// may be more than a stream takes; but each gives items by their ids. A
// service that does not list the ids, as that of an account does not to those
// who are no contacts, gives its newest items, and they are returned at once;
// so is done where the list is too long.
func (s *session) held(ctx context.Context, n *node) (ids []string, items map[string]itemElement, err error) {
	if n.unlisted < maxUnlisted {
		list, err := s.list(ctx, s.service, n.name)
		_, refused := refusal(err)
		switch {
		case err == nil:
			n.unlisted = 0
			for _, item := range list {
				ids = append(ids, item.Name)
			}
			return ids, nil, nil
		case refused:
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			n.unlisted = maxUnlisted
			s.o.Log.Warn("a node does not list its items, so only the newest are fetched", "node", n.name, "error", err)
		default:
			n.unlisted++ // perhaps it was the list that ended the session
			return nil, nil, err
		}
	}
	for most := maxAnswer / fullPack; ; most *= 2 {
		some, err := s.items(ctx, itemsElement{Node: n.name, MaxItems: most})
		if err != nil {
			return nil, nil, err
		}
		ids, items = nil, make(map[string]itemElement)
		size := 0
		for _, it := range some {
			ids = append(ids, it.ID)
			items[it.ID] = it
			size += len(it.Payload)
		}
		// Services differ in whether the newest comes first or last.
		if len(some) < most || size > maxAnswer || s.knows(n, some[0].ID) && s.knows(n, some[len(some)-1].ID) {
			return ids, items, nil
		}
	}
}

// knows reports whether an item of a node came before.
func (s *session) knows(n *node, id string) bool {
	if n.lane == laneEvents {
		return n.seen.has(id)
	}
	p, err := ParseItemID(id)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ledger.Knows(n.name, p)
}

// byID gets items by their ids, as many at a time as fit an answer, and gives
// each answer to got, with the ids asked for.
func (s *session) byID(ctx context.Context, n *node, ids []string, got func(asked []string, items map[string]itemElement) error) error {
	largest := fullPack
	for len(ids) > 0 {
		asked := ids[:min(len(ids), max(1, maxAnswer/largest))]
		ids = ids[len(asked):]
		ask := itemsElement{Node: n.name}
		for _, id := range asked {
			ask.Items = append(ask.Items, itemElement{ID: id})
		}
		answer, err := s.items(ctx, ask)
		if e, refused := refusal(err); err != nil && (!refused || e.Condition != stanza.ItemNotFound) {
			return err
		}
		items := make(map[string]itemElement)
		for _, it := range answer {
			items[it.ID] = it
			largest = max(largest, len(it.Payload))
		}
		if err := got(asked, items); err != nil {
			return err
		}
	}
	return nil
}

// fetchLog fetches from a log node.
func (s *session) fetchLog(ctx context.Context, n *node) error {
	ids, items, err := s.held(ctx, n)
	if err != nil {
		return err
	}
	held := s.packs(n, ids)
	s.oldest(n, held)
	var wanted []string
	for _, p := range held {
		if id := p.String(); !s.knows(n, id) {
			wanted = append(wanted, id)
		}
	}
	take := func(asked []string, items map[string]itemElement) error {
		var vanished []string
		for _, id := range asked {
			if _, ok := items[id]; !ok {
				vanished = append(vanished, id)
			}
		}
		if len(vanished) > 0 {
			if err := s.evicted(ctx, n, vanished); err != nil {
				return err
			}
		}
		for _, id := range asked {
			if it, ok := items[id]; ok {
				s.feed(n, it, false)
			}
		}
		return nil
	}
	if items != nil {
		return take(wanted, items)
	}
	return s.byID(ctx, n, wanted, take)
}

// packs gives those of ids that a gateway gives to log items, in the order in
// which they were published, as far as it is known: each store's in the order
// of its runs and numbers, one store after the other.
func (s *session) packs(n *node, ids []string) []ItemID {
	var packs []ItemID
	for _, id := range ids {
		p, err := ParseItemID(id)
		if err != nil {
			if n.bad.add(id) {
				s.o.Log.Warn("item ignored", "node", n.name, "item", id, "error", err)
			}
			continue
		}
		if !n.bad.has(id) {
			packs = append(packs, p)
		}
	}
	stores := make(map[string]int)
	for _, p := range packs {
		random, _ := p.run()
		if _, ok := stores[random]; !ok {
			stores[random] = len(stores)
		}
	}
	slices.SortStableFunc(packs, func(a, b ItemID) int {
		ra, _ := a.run()
		rb, _ := b.run()
		if ra != rb {
			return stores[ra] - stores[rb]
		}
		return a.compare(b)
	})
	return packs
}

// oldest tells the ledger which is the oldest item of each store.
func (s *session) oldest(n *node, held []ItemID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := ""
	for i, p := range held {
		if random, _ := p.run(); i == 0 || random != last {
			s.ledger.Oldest(n.name, p)
			last = random
		}
	}
}

// evicted is for items that were listed, and then not given: those that are no
// longer listed made room for newer ones.
func (s *session) evicted(ctx context.Context, n *node, vanished []string) error {
	ids, _, err := s.held(ctx, n)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range vanished {
		if slices.Contains(ids, id) {
			continue
		}
		if p, err := ParseItemID(id); err == nil {
			s.ledger.Evicted(n.name, p)
		}
	}
	return nil
}

// fetchEvents fetches from an events node, and takes in what it holds in the
// order of time.
func (s *session) fetchEvents(ctx context.Context, n *node) error {
	ids, items, err := s.held(ctx, n)
	if err != nil {
		return err
	}
	var wanted []string
	for _, id := range ids {
		if !s.knows(n, id) && !n.bad.has(id) {
			wanted = append(wanted, id)
		}
	}
	type dated struct {
		at time.Time
		it itemElement
	}
	var events []dated
	take := func(_ []string, items map[string]itemElement) error {
		for _, it := range items {
			e, err := readEvent(n.name, it)
			if err != nil {
				s.feed(n, it, false) // says why
				continue
			}
			events = append(events, dated{e.Time, it})
		}
		return nil
	}
	if items != nil {
		err = take(wanted, items)
	} else {
		err = s.byID(ctx, n, wanted, take)
	}
	slices.SortStableFunc(events, func(a, b dated) int { return a.at.Compare(b.at) })
	for _, e := range events {
		s.feed(n, e.it, false)
	}
	return err
}
