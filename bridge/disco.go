package bridge

import (
	"crypto/sha1" // XEP-0115 names SHA-1, and Prosody honours nothing else
	"encoding/base64"
	"encoding/xml"
	"slices"
	"strings"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/devices"
)

// Namespaces of what is answered.
const (
	nsInfo    = "http://jabber.org/protocol/disco#info"
	nsItems   = "http://jabber.org/protocol/disco#items"
	nsCaps    = "http://jabber.org/protocol/caps"
	nsVersion = "jabber:iq:version"
	nsLast    = "jabber:iq:last"
	nsTime    = "urn:xmpp:time"
	nsPing    = "urn:xmpp:ping"
	nsRSM     = "http://jabber.org/protocol/rsm"

	// capsNode names this software (XEP-0115 section 4).
	capsNode = "https://github.com/porchlight-iot/porchlight"

	// maxItems is how many items one answer holds; the rest comes page by
	// page (XEP-0059).
	maxItems = 200
)

// infoQuery is disco#info (XEP-0030 section 3).
type infoQuery struct {
	XMLName  xml.Name   `xml:"http://jabber.org/protocol/disco#info query"`
	Node     string     `xml:"node,attr,omitempty"`
	Identity []identity `xml:"identity"`
	Features []feature  `xml:"feature"`
}

type identity struct {
	Category string `xml:"category,attr"`
	Type     string `xml:"type,attr"`
	Name     string `xml:"name,attr,omitempty"`
}

type feature struct {
	Var string `xml:"var,attr"`
}

// itemsQuery is disco#items (XEP-0030 section 4).
type itemsQuery struct {
	XMLName xml.Name    `xml:"http://jabber.org/protocol/disco#items query"`
	Node    string      `xml:"node,attr,omitempty"`
	Items   []discoItem `xml:"item"`
	Page    *page
}

type discoItem struct {
	JID  string `xml:"jid,attr"`
	Node string `xml:"node,attr,omitempty"`
	Name string `xml:"name,attr,omitempty"`
}

// page is a request for, or the description of, a part of a long answer
// (XEP-0059).
type page struct {
	XMLName xml.Name   `xml:"http://jabber.org/protocol/rsm set"`
	Max     *int       `xml:"max"`
	After   *string    `xml:"after"`
	First   *pageFirst `xml:"first"`
	Last    string     `xml:"last,omitempty"`
	Count   *int       `xml:"count"`
}

type pageFirst struct {
	Index int    `xml:"index,attr"`
	ID    string `xml:",chardata"`
}

// capsElement tells what a client would be answered (XEP-0115).
type capsElement struct {
	XMLName xml.Name `xml:"http://jabber.org/protocol/caps c"`
	Hash    string   `xml:"hash,attr"`
	Node    string   `xml:"node,attr"`
	Ver     string   `xml:"ver,attr"`
}

// deviceInfo is what every device answers: one class, so that a client asks
// once for all of them. People's names for a device are no part of it.
func deviceInfo() infoQuery {
	return infoQuery{
		Identity: []identity{{"client", "bot", "Porchlight"}},
		Features: features(nsInfo, nsItems, nsCaps, nsVersion, nsLast, nsTime, nsPing, nsRSM, nsCommands, nsReceipts, nsReactions, nsFields, nsControl, nsVCard),
	}
}

// domainInfo is what the component's domain answers.
func domainInfo() infoQuery {
	return infoQuery{
		Identity: []identity{{"component", "generic", "Porchlight"}},
		Features: features(nsInfo, nsItems, nsVersion, nsPing, nsRSM),
	}
}

func features(vars ...string) []feature {
	slices.Sort(vars)
	all := make([]feature, len(vars))
	for i, v := range vars {
		all[i].Var = v
	}
	return all
}

// deviceCaps is the verification string of deviceInfo (XEP-0115 section 5.1).
func deviceCaps() capsElement {
	info := deviceInfo()
	var s strings.Builder
	for _, i := range info.Identity {
		s.WriteString(i.Category + "/" + i.Type + "//" + i.Name + "<")
	}
	for _, f := range info.Features {
		s.WriteString(f.Var + "<")
	}
	sum := sha1.Sum([]byte(s.String()))
	return capsElement{Hash: "sha-1", Node: capsNode, Ver: base64.StdEncoding.EncodeToString(sum[:])}
}

// discoInfo answers disco#info of a target; false where there is no such node.
func discoInfo(to target, node string) (infoQuery, bool) {
	if to.domain {
		return domainInfo(), node == ""
	}
	info := deviceInfo()
	caps := deviceCaps()
	info.Node = node
	return info, node == "" || node == caps.Node+"#"+caps.Ver
}

// domainItems lists the devices that who may see.
func (b *Bridge) domainItems(who jid.JID) []discoItem {
	var items []discoItem
	for _, d := range b.sortedDevices() {
		if b.auth.MaySee(who, d.ID) {
			if j, err := deviceJID(b.domain, d.ID); err == nil {
				items = append(items, discoItem{JID: j.Bare().String(), Name: d.Name})
			}
		}
	}
	return items
}

// deviceItems lists the nodes of a device that who may see. An account has no
// contact a device, so the gateway lists the nodes of all.
func (b *Bridge) deviceItems(who jid.JID, id devices.ID, service jid.JID) []discoItem {
	var items []discoItem
	for _, d := range b.sortedDevices() {
		if d.ID != id && b.component || !b.auth.MaySee(who, d.ID) {
			continue
		}
		for _, n := range []*node{b.deviceNode(d.ID, laneNow), b.deviceNode(d.ID, laneLog)} {
			items = append(items, discoItem{JID: service.String(), Node: n.name, Name: n.title()})
		}
	}
	if id == devices.Gateway && b.auth.MaySeeEvents(who) {
		n := b.eventsNode()
		items = append(items, discoItem{JID: service.String(), Node: n.name, Name: n.title()})
	}
	return items
}

// paged cuts items to the page that was asked for, or to the first where they
// are too many for one answer. Every item is its own id: its JID and node.
func paged(items []discoItem, ask *page) itemsQuery {
	id := func(i discoItem) string { return i.JID + " " + i.Node }
	limit, from := maxItems, 0
	if ask != nil {
		if ask.Max != nil && *ask.Max >= 0 {
			limit = min(limit, *ask.Max)
		}
		if ask.After != nil && *ask.After != "" {
			from = slices.IndexFunc(items, func(i discoItem) bool { return id(i) == *ask.After }) + 1
		}
	} else if len(items) <= limit {
		return itemsQuery{Items: items}
	}
	count := len(items)
	cut := items[from:min(from+limit, count)]
	answer := itemsQuery{Items: cut, Page: &page{Count: &count}}
	if len(cut) > 0 {
		answer.Page.First = &pageFirst{from, id(cut[0])}
		answer.Page.Last = id(cut[len(cut)-1])
	}
	return answer
}
