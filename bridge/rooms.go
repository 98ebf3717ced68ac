package bridge

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

// A Room is a group chat to join (XEP-0045). It is trusted: whom it names as
// its members, those are.
type Room struct {
	JID    JID
	Nick   string
	Alarms bool // alarms are told there
}

const (
	joinTime      = 30 * time.Second
	roomRetry     = 30 * time.Second
	roomRetryMost = 30 * time.Minute
	// roomPing is how often a room is asked whether we are still in it
	// (XEP-0410).
	roomPing = 5 * time.Minute
	// maxOccupants bounds whom a room can make us remember.
	maxOccupants = 1000
)

// A room is one of them, and who is in it.
type room struct {
	Room
	change chan struct{} // has one when joined or why changed

	mu        sync.Mutex
	nick      string // ours, there
	joined    bool
	hides     bool               // it does not tell us who its people are
	why       string             // it is not joined
	occupants map[string]jid.JID // the real JID, full or bare, by nick
}

func newRoom(r Room) *room {
	r.JID = r.JID.Bare()
	return &room{Room: r, change: make(chan struct{}, 1), nick: r.Nick, why: words.NotYetKnown, occupants: make(map[string]jid.JID)}
}

// set notes whether the room is joined.
func (r *room) set(joined bool, why string) {
	r.mu.Lock()
	r.joined, r.why = joined, why
	if !joined {
		clear(r.occupants)
	}
	r.mu.Unlock()
	wake(r.change)
}

func (r *room) state() (joined bool, nick, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.joined, r.nick, r.why
}

func (r *room) hidden() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hides
}

// rename takes another nick, where ours is somebody else's.
func (r *room) rename() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nick += "_"; len(r.nick) > len(r.Nick)+5 {
		r.nick = r.Nick
	}
}

// who gives the real JID of an occupant.
func (r *room) who(nick string) (jid.JID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	j, ok := r.occupants[nick]
	return j, ok
}

// roomOf gives the room that a stanza comes from.
func (b *Bridge) roomOf(from jid.JID) *room {
	for _, r := range b.rooms {
		if r.JID.Equal(from.Bare()) {
			return r
		}
	}
	return nil
}

type roomPresence struct {
	User *struct {
		Item struct {
			JID  string `xml:"jid,attr"`
			Role string `xml:"role,attr"`
		} `xml:"item"`
		Status []struct {
			Code string `xml:"code,attr"`
		} `xml:"status"`
	} `xml:"http://jabber.org/protocol/muc#user x"`
	Error *stanza.Error `xml:"error"`
}

func (p roomPresence) has(code string) bool {
	return p.User != nil && slices.ContainsFunc(p.User.Status, func(s struct {
		Code string `xml:"code,attr"`
	}) bool {
		return s.Code == code
	})
}

// hear takes what the room says of who is in it.
func (r *room) hear(st stream.Stanza) {
	var p roomPresence
	if len(st.Inner) > maxMessage || st.Unmarshal(&p) != nil {
		return
	}
	nick := st.From.Resourcepart()
	_, own, _ := r.state()
	self := p.has("110") || nick == own
	switch {
	case st.Type == "error" && (nick == own || nick == ""):
		why := "error"
		if p.Error != nil {
			why = string(p.Error.Condition)
		}
		if why == string(stanza.Conflict) {
			r.rename()
		}
		r.set(false, why)
	case st.Type == "unavailable" && self:
		why := words.Left
		switch {
		case p.has("301"):
			why = words.Banned
		case p.has("307"):
			why = words.Kicked
		case p.has("303"):
			return // renamed: the new name follows
		}
		r.set(false, why)
	case st.Type == "unavailable":
		r.mu.Lock()
		delete(r.occupants, nick)
		r.mu.Unlock()
	case st.Type == "" && self && p.has("201"):
		// It was made because we came. A room of strangers is no place for
		// alarms: whoever wants one makes it, and says who may come in.
		r.set(false, words.NoSuchRoom)
	case st.Type == "" && self:
		r.mu.Lock()
		r.nick = nick
		r.hides = !p.has("100") && p.User != nil && p.User.Item.Role != "moderator"
		r.mu.Unlock()
		r.set(true, "")
	case st.Type == "" && p.User != nil:
		r.mu.Lock()
		defer r.mu.Unlock()
		real, err := jid.Parse(p.User.Item.JID)
		if p.User.Item.JID == "" || err != nil || real.Localpart() == "" {
			delete(r.occupants, nick) // whom it does not name, nobody obeys
		} else if _, there := r.occupants[nick]; there || len(r.occupants) < maxOccupants {
			r.occupants[nick] = real
		}
	}
}

// hearRoom takes what is said in a room: to us, by somebody whom the room
// names, and who is granted something. All else is talk among people.
func (b *Bridge) hearRoom(st stream.Stanza) {
	r := b.roomOf(st.From)
	if r == nil || len(st.Inner) > maxMessage {
		return
	}
	real, known := r.who(st.From.Resourcepart())
	_, own, _ := r.state()
	if !known || st.From.Resourcepart() == own || !b.mayBrowse(real.Bare()) || !b.limits.allow(real.Bare().String(), time.Now()) {
		return
	}
	b.people.next(real.Bare().String(), func(ctx context.Context, t *talk) {
		var m messageElement
		if st.Unmarshal(&m) != nil || m.wrapped() || m.Answer != nil || len(m.Delays) > 0 || m.Replace != nil {
			return // what was said before we came is history
		}
		line, err := m.line()
		if err != nil {
			return
		}
		line, ours := addressed(line, own)
		if !ours || t.take(st.From.String()+" "+st.ID, line, time.Now()) && st.ID != "" {
			return
		}
		a := asker{full: real, bare: real.Bare(), to: devices.Gateway, room: st.From, token: st.ID}
		q, err := b.understand(a, t, line)
		switch {
		case err == nil && !q.Verb.OfDevice() && q.Verb != words.Help && q.Verb != words.Devices:
			err = words.Error(words.NotInRooms)
		case err != nil:
		default:
			b.tell(ctx, a, t, q)
			return
		}
		b.answerTo(ctx, a, err.Error())
	})
}

// addressed gives what is said to a nick: "porch: kitchen on".
func addressed(line, nick string) (string, bool) {
	line = strings.TrimPrefix(line, "@")
	if len(line) <= len(nick) || !strings.EqualFold(line[:len(nick)], nick) {
		return "", false
	}
	rest := line[len(nick):]
	if !strings.ContainsAny(rest[:1], ":, ") {
		return "", false
	}
	return strings.TrimLeft(rest, ":, "), true
}

// tellRooms says something in the rooms that want alarms.
func (b *Bridge) tellRooms(ctx context.Context, text string) {
	for _, r := range b.rooms {
		if joined, _, _ := r.state(); joined && r.Alarms {
			b.send(ctx, chatElement{To: r.JID, From: devices.Gateway, Type: "groupchat", Body: text})
		}
	}
}

// roomList tells of the rooms.
func (b *Bridge) roomList() string {
	var lines []string
	for _, r := range b.rooms {
		if joined, nick, why := r.state(); joined {
			line := fmt.Sprintf(words.InRoom, r.JID, nick)
			if r.hidden() {
				line += words.HidingRoom
			}
			lines = append(lines, line)
		} else {
			lines = append(lines, fmt.Sprintf(words.NotInRoom, r.JID, why))
		}
	}
	if lines == nil {
		return words.NoRooms
	}
	return strings.Join(lines, "\n")
}

type joinElement struct {
	XMLName xml.Name `xml:"http://jabber.org/protocol/muc x"`
	History struct {
		Most int `xml:"maxstanzas,attr"`
	} `xml:"history"`
}

// enter sends a presence to a room.
func (l *link) enter(ctx context.Context, r *room, kind string) error {
	_, nick, _ := r.state()
	to, err := r.JID.WithResource(nick)
	if err != nil {
		return fmt.Errorf("cannot use %q as a name in a room: %v", nick, err)
	}
	p := struct {
		presenceElement
		Join *joinElement
	}{presenceElement: presenceElement{To: to.String(), Type: kind}}
	if l.bridge.component {
		p.From = string(devices.Gateway) + "@" + l.bridge.host + "/" + resource
	}
	if kind == "" {
		p.Join = &joinElement{}
	}
	return l.session.Send(ctx, p)
}

// keepRoom has us be in a room until ctx ends.
func (l *link) keepRoom(ctx context.Context, r *room) {
	wait := roomRetry
	for {
		r.set(false, words.NotYetKnown)
		began := time.Now()
		if err := l.join(ctx, r); err == nil {
			l.stay(ctx, r)
		}
		if l.over(ctx) {
			return
		}
		_, _, why := r.state()
		if time.Since(began) > roomRetryMost {
			wait = roomRetry
		}
		l.bridge.log.Warn("a room is not joined", "room", r.JID.String(), "why", why, "again_in", wait)
		pause(ctx, wait)
		wait = min(2*wait, roomRetryMost)
	}
}

var errNotJoined = errors.New("the room is not joined")

// join enters a room, and waits for what it says to that.
func (l *link) join(ctx context.Context, r *room) error {
	select {
	case <-r.change:
	default:
	}
	if err := l.enter(ctx, r, ""); err != nil {
		r.set(false, err.Error())
		return err
	}
	deadline := time.NewTimer(joinTime)
	defer deadline.Stop()
	select {
	case <-ctx.Done():
	case <-l.session.Done():
	case <-r.change:
	case <-deadline.C:
		r.set(false, words.NoRoomAnswer)
	}
	joined, _, why := r.state()
	if why == words.NoSuchRoom {
		l.enter(ctx, r, "unavailable")
	}
	if !joined {
		return errNotJoined
	}
	return nil
}

// stay returns when we are no longer in a room.
func (l *link) stay(ctx context.Context, r *room) {
	tick := time.NewTicker(roomPing)
	defer tick.Stop()
	for {
		joined, nick, _ := r.state()
		if !joined {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-l.session.Done():
			return
		case <-r.change:
		case <-tick.C:
			if to, err := r.JID.WithResource(nick); err == nil && l.isOut(ctx, to) {
				r.set(false, words.Left)
			}
		}
	}
}

// isOut asks a room by a ping to ourselves whether we are no longer in it
// (XEP-0410 section 3).
func (l *link) isOut(ctx context.Context, self jid.JID) bool {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	from := l.publisher
	if l.bridge.component {
		from, _ = from.WithResource(resource)
	}
	_, err := l.session.IQ(ctx, stream.IQ{Type: stanza.GetIQ, From: from, To: self, Payload: empty(nsPing, "ping")})
	var e stanza.Error
	return errors.As(err, &e) && (e.Condition == stanza.NotAcceptable || e.Condition == stanza.ItemNotFound)
}
