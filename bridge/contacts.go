package bridge

import (
	"maps"
	"slices"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/devices"
)

// presenceInterval is how often the presence of a device may change while its
// state stays.
const presenceInterval = time.Minute

// contacts keeps what the operators were last told of each device, and says
// what they are to be told next. Its size is bounded by devices times
// operators, whatever peers send. It has no clock and no lock: its owner gives
// both.
//
// An account has one presence, which its server gives to all who subscribed:
// there the only operator is the zero JID.
type contacts struct {
	interval time.Duration
	devices  map[devices.ID]*contact
	changed  map[devices.ID]bool      // to be looked at
	later    map[devices.ID]time.Time // changed, but told too short a time ago
	filled   bool                     // all was told once, so that whoever is new was let in since
}

// contact is a device as a contact.
type contact struct {
	presence  Presence // the newest
	told      telling  // what was last given out
	at        time.Time
	revision  int  // counts what was given out
	gone      bool // the device was removed
	operators map[string]*audience
}

// audience is one operator of one device.
type audience struct {
	jid      jid.JID
	revision int    // the last that he was told in this session; 0: none
	declined bool   // he unsubscribed
	answer   string // to his subscribe or unsubscribe: the stanza's type
	back     bool   // he is asked to let the device see him, as contacts do
}

// telling is what makes two presences differ to people. The time of the last
// reading is not in it: it changes with every reading.
type telling struct {
	state devices.State
	text  string
}

// A notice is a presence that is due. Its stanza has no addresses yet.
type notice struct {
	device devices.ID
	to     jid.JID
	stanza presenceElement
}

func newContacts(interval time.Duration) *contacts {
	return &contacts{
		interval: interval,
		devices:  make(map[devices.ID]*contact),
		changed:  make(map[devices.ID]bool),
		later:    make(map[devices.ID]time.Time),
	}
}

// set says how a device is doing now.
func (c *contacts) set(id devices.ID, p Presence) {
	d := c.devices[id]
	if d == nil {
		d = &contact{operators: make(map[string]*audience)}
		c.devices[id] = d
	}
	d.presence = p
	if _, waits := c.later[id]; !waits || p.State != d.told.state {
		c.changed[id] = true
	}
}

// keep says which devices there are. Operators are told of those that are no
// more, which are then forgotten.
func (c *contacts) keep(ids []devices.ID) {
	for _, d := range c.devices {
		d.gone = true
	}
	for _, id := range ids {
		if d := c.devices[id]; d != nil {
			d.gone = false
		} else {
			c.set(id, Presence{})
		}
	}
	c.review()
}

// review has all devices looked at: rights may have changed.
func (c *contacts) review() {
	for id := range c.devices {
		c.changed[id] = true
	}
}

// forget has everything told again: a session began.
func (c *contacts) forget() {
	for _, d := range c.devices {
		for _, a := range d.operators {
			a.revision = 0
		}
	}
	c.review()
}

// ask takes an operator's probe, subscribe or unsubscribe.
func (c *contacts) ask(id devices.ID, who jid.JID, kind string) {
	d := c.devices[id]
	if d == nil || d.gone {
		return
	}
	a := d.operators[who.String()]
	if a == nil {
		a = &audience{jid: who}
		d.operators[who.String()] = a
	}
	a.revision = 0
	a.declined = kind == "unsubscribe"
	switch kind {
	case "subscribe":
		a.answer, a.back = "subscribed", true
	case "unsubscribe":
		a.answer = "unsubscribed"
	}
	c.changed[id] = true
}

// ready gives the devices to be looked at, and when there will be more: zero
// for not before something changes.
func (c *contacts) ready(now time.Time) (ids []devices.ID, again time.Time) {
	for id, at := range c.later {
		if !now.Before(at) {
			delete(c.later, id)
			c.changed[id] = true
		} else if again.IsZero() || at.Before(again) {
			again = at
		}
	}
	return slices.Sorted(maps.Keys(c.changed)), again
}

// due gives about limit notices on some devices. What it gives counts as told;
// what it does not get to stays ready.
func (c *contacts) due(now time.Time, ids []devices.ID, limit int, operators []jid.JID, maySee func(jid.JID, devices.ID) bool) (notices []notice) {
	for _, id := range ids {
		d := c.devices[id]
		if d == nil {
			delete(c.changed, id)
			continue
		}
		if later := d.advance(now, c.interval); !later.IsZero() {
			c.later[id] = later
		} else {
			delete(c.later, id)
		}
		allowed := make(map[string]bool)
		for _, who := range operators {
			if d.gone || !maySee(who, id) {
				continue
			}
			allowed[who.String()] = true
			if d.operators[who.String()] == nil {
				d.operators[who.String()] = &audience{jid: who}
				if c.filled {
					// He may have asked long ago, of a gateway before this one. If
					// he did not, his server drops it (RFC 6121 section 3.1.6).
					d.operators[who.String()].answer = "subscribed"
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(d.operators)) {
			if len(notices) >= limit {
				return notices
			}
			a := d.operators[key]
			if a.answer != "" {
				notices = append(notices, notice{id, a.jid, presenceElement{Type: a.answer}})
				a.answer = ""
			}
			if a.back {
				notices = append(notices, notice{id, a.jid, presenceElement{Type: "subscribe"}})
				a.back = false
			}
			switch {
			case !allowed[key]:
				delete(d.operators, key)
				if a.revision > 0 {
					notices = append(notices,
						notice{id, a.jid, presenceElement{Type: "unavailable"}},
						notice{id, a.jid, presenceElement{Type: "unsubscribed"}})
				}
			case a.revision != d.revision && !a.declined:
				a.revision = d.revision
				notices = append(notices, notice{id, a.jid, d.presence.element()})
			}
		}
		delete(c.changed, id)
		if d.gone {
			delete(c.devices, id)
			delete(c.later, id)
		}
	}
	c.filled = c.filled || len(c.changed) == 0
	return notices
}

// advance takes the newest presence for what is told, if it may change now;
// else it gives the time from which it may.
func (d *contact) advance(now time.Time, interval time.Duration) (later time.Time) {
	newest := telling{d.presence.State, d.presence.text()}
	switch {
	case d.revision > 0 && newest == d.told:
		return time.Time{}
	case d.revision > 0 && newest.state == d.told.state && now.Before(d.at.Add(interval)):
		return d.at.Add(interval)
	}
	d.told, d.at = newest, now
	d.revision++
	return time.Time{}
}

// farewell gives the notices of a clean stop: nobody else sends them for a
// component.
func (c *contacts) farewell() []notice {
	var notices []notice
	for _, id := range slices.Sorted(maps.Keys(c.devices)) {
		d := c.devices[id]
		for _, key := range slices.Sorted(maps.Keys(d.operators)) {
			if a := d.operators[key]; a.revision > 0 {
				a.revision = 0
				notices = append(notices, notice{id, a.jid, presenceElement{Type: "unavailable", Status: noteStopped}})
			}
		}
	}
	return notices
}
