package xmpptest

import (
	"encoding/xml"
	"fmt"
	"strings"
	"sync"
	"time"
)

// A PubSub is as much of a PubSub service (XEP-0060) as a gateway uses, in
// memory: what was published is there for the next session, and for the test
// to look at. Its method Answer is a [Script]. The zero value is an empty
// service.
type PubSub struct {
	// Before, where it is not nil, may answer a request itself, or not at
	// all: then it returns true.
	Before func(p *Peer, s Asked) bool

	mu    sync.Mutex
	nodes map[string]*pubsubNode
	more  chan struct{} // is closed at the next change
}

type pubsubNode struct {
	order []string
	items map[string]PubSubItem
}

// A PubSubItem is an item as it was published, and how often it was.
type PubSubItem struct {
	ID      string
	Payload string
	Times   int
	Changed bool // later payloads differ from the first
}

type pubsubRequest struct {
	PubSub struct {
		Create *struct {
			Node string `xml:"node,attr"`
		} `xml:"create"`
		Publish *struct {
			Node string `xml:"node,attr"`
			Item struct {
				ID      string `xml:"id,attr"`
				Payload string `xml:",innerxml"`
			} `xml:"item"`
		} `xml:"publish"`
		Items *struct {
			Node string `xml:"node,attr"`
			Max  int    `xml:"max_items,attr"`
		} `xml:"items"`
	} `xml:"pubsub"`
}

// Answer is the service's [Script].
func (s *PubSub) Answer(p *Peer, name string, a Asked) {
	if a.Request(name) && (s.Before == nil || !s.Before(p, a)) {
		s.Accept(p, a)
	}
}

// Accept answers a request as the service does.
func (s *PubSub) Accept(p *Peer, a Asked) {
	var r pubsubRequest
	if err := xml.Unmarshal([]byte("<iq>"+a.Inner+"</iq>"), &r); err != nil {
		p.Refuse(a, "modify", "<bad-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch ps := r.PubSub; {
	case ps.Create != nil:
		if s.nodes[ps.Create.Node] != nil {
			p.Refuse(a, "cancel", "<conflict xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
			return
		}
		if s.nodes == nil {
			s.nodes = make(map[string]*pubsubNode)
		}
		s.nodes[ps.Create.Node] = &pubsubNode{items: make(map[string]PubSubItem)}
		p.Result(a, "")
	case ps.Publish != nil:
		n := s.nodes[ps.Publish.Node]
		if n == nil {
			p.Refuse(a, "cancel", "<item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
			return
		}
		item, there := n.items[ps.Publish.Item.ID]
		if !there {
			n.order = append(n.order, ps.Publish.Item.ID)
		}
		changed := item.Changed || there && item.Payload != ps.Publish.Item.Payload
		n.items[ps.Publish.Item.ID] = PubSubItem{ps.Publish.Item.ID, ps.Publish.Item.Payload, item.Times + 1, changed}
		if s.more != nil {
			close(s.more)
			s.more = nil
		}
		p.Result(a, "")
	case ps.Items != nil:
		n := s.nodes[ps.Items.Node]
		if n == nil {
			p.Refuse(a, "cancel", "<item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
			return
		}
		newest := n.order
		if most := ps.Items.Max; most > 0 && len(newest) > most {
			newest = newest[len(newest)-most:]
		}
		var b strings.Builder
		for _, id := range newest {
			fmt.Fprintf(&b, "<item id='%s'>%s</item>", id, n.items[id].Payload)
		}
		p.Result(a, fmt.Sprintf("<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='%s'>%s</items></pubsub>", ps.Items.Node, b.String()))
	case strings.Contains(a.Inner, "<configure") && a.Type == "get":
		// Owners' requests for a node that is there: nothing to amend.
		p.Result(a, "<pubsub xmlns='http://jabber.org/protocol/pubsub#owner'><configure><x xmlns='jabber:x:data' type='form'>"+
			"<field var='pubsub#access_model'><value>whitelist</value></field><field var='pubsub#persist_items'><value>1</value></field></x></configure></pubsub>")
	case strings.Contains(a.Inner, "urn:xmpp:time"):
		p.Result(a, "<time xmlns='urn:xmpp:time'><tzo>Z</tzo><utc>"+time.Now().UTC().Format(time.RFC3339)+"</utc></time>")
	default:
		p.Result(a, "")
	}
}

// Items gives the items of a node in the order in which each was published
// first.
func (s *PubSub) Items(node string) []PubSubItem {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[node]
	if n == nil {
		return nil
	}
	var all []PubSubItem
	for _, id := range n.order {
		all = append(all, n.items[id])
	}
	return all
}

// More gives a channel that is closed at the next publication.
func (s *PubSub) More() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		s.more = make(chan struct{})
	}
	return s.more
}
