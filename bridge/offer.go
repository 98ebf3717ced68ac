package bridge

import (
	"encoding/xml"

	"mellium.im/xmpp/jid"
)

// maxOffer bounds how many contacts are offered at once.
const maxOffer = 100

// rosterOffer suggests contacts (XEP-0144): the client asks its user about
// them.
type rosterOffer struct {
	XMLName xml.Name    `xml:"http://jabber.org/protocol/rosterx x"`
	Items   []offerItem `xml:"item"`
}

type offerItem struct {
	Action string `xml:"action,attr"`
	JID    string `xml:"jid,attr"`
	Name   string `xml:"name,attr,omitempty"`
}

// offer suggests the devices that somebody may see; nil where there are none,
// or devices are no contacts.
func (b *Bridge) offer(who jid.JID) *rosterOffer {
	if !b.component {
		return nil
	}
	o := &rosterOffer{}
	for _, d := range b.visible(who) {
		if j, err := deviceJID(b.domain, d.ID); err == nil && len(o.Items) < maxOffer {
			o.Items = append(o.Items, offerItem{"add", j.Bare().String(), printable(d.Name)})
		}
	}
	if len(o.Items) == 0 {
		return nil
	}
	return o
}
