package watch

import "encoding/xml"

// pubsubElement is what a subscriber asks a service and is answered (XEP-0060
// section 6).
type pubsubElement struct {
	XMLName       xml.Name              `xml:"http://jabber.org/protocol/pubsub pubsub"`
	Subscribe     *subscribeElement     `xml:"subscribe"`
	Subscription  *subscriptionElement  `xml:"subscription"`
	Items         *itemsElement         `xml:"items"`
	Affiliations  *affiliationsElement  `xml:"affiliations"`
	Subscriptions *subscriptionsElement `xml:"subscriptions"`
}

// subscriptionsElement is what somebody is subscribed to (section 5.6).
type subscriptionsElement struct {
	Subscriptions []subscriptionElement `xml:"subscription"`
}

// affiliationsElement is what somebody is to the nodes of a service
// (section 5.7).
type affiliationsElement struct {
	Affiliations []affiliation `xml:"affiliation"`
}

type affiliation struct {
	Node        string `xml:"node,attr"`
	Affiliation string `xml:"affiliation,attr"`
}

type subscribeElement struct {
	Node string `xml:"node,attr"`
	JID  string `xml:"jid,attr"`
}

type subscriptionElement struct {
	Node         string `xml:"node,attr"`
	JID          string `xml:"jid,attr"`
	Subscription string `xml:"subscription,attr"`
}

type itemsElement struct {
	Node     string        `xml:"node,attr"`
	MaxItems int           `xml:"max_items,attr,omitempty"`
	Items    []itemElement `xml:"item"`
}

type itemElement struct {
	ID      string `xml:"id,attr"`
	Payload []byte `xml:",innerxml"`
}

// eventElement is a notification (XEP-0060 sections 7.1.2, 8.4.2 and 8.8.4).
// Of the others nothing follows.
type eventElement struct {
	Items        *itemsElement        `xml:"items"`
	Delete       *nodeElement         `xml:"delete"`
	Subscription *subscriptionElement `xml:"subscription"`
}

type nodeElement struct {
	Node string `xml:"node,attr"`
}

// messageElement is a message: a notification, or a line of chat.
type messageElement struct {
	Event *eventElement `xml:"http://jabber.org/protocol/pubsub#event event"`
	Body  string        `xml:"body"`
}

type presenceElement struct {
	XMLName  xml.Name `xml:"presence"`
	To       string   `xml:"to,attr,omitempty"`
	Type     string   `xml:"type,attr,omitempty"`
	Show     string   `xml:"show,omitempty"`
	Status   string   `xml:"status,omitempty"`
	Priority int      `xml:"priority"`
}

// discoItems is disco#items (XEP-0030 section 4), of a service, or of one of
// its nodes (XEP-0060 sections 5.2 and 5.5).
type discoItems struct {
	XMLName xml.Name    `xml:"http://jabber.org/protocol/disco#items query"`
	Node    string      `xml:"node,attr,omitempty"`
	Items   []discoItem `xml:"item"`
	Page    *pageElement
}

type discoItem struct {
	JID  string `xml:"jid,attr"`
	Node string `xml:"node,attr"`
	Name string `xml:"name,attr"` // of an item in a node: its id
}

// pageElement is a page of a result (XEP-0059). A service that does not know
// it gives everything.
type pageElement struct {
	XMLName xml.Name `xml:"http://jabber.org/protocol/rsm set"`
	Max     int      `xml:"max,omitempty"`
	After   string   `xml:"after,omitempty"`
	Last    string   `xml:"last,omitempty"`
	Count   int      `xml:"count,omitempty"`
}
