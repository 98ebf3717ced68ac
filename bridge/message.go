package bridge

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"fmt"
	"strings"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	nsReceipts  = "urn:xmpp:receipts"
	nsReactions = "urn:xmpp:reactions:0"

	// maxMessage bounds a message that is looked at, and maxStranger one of
	// who is granted nothing.
	maxMessage  = 16 << 10
	maxStranger = 2 << 10
	// maxBody bounds what is answered.
	maxBody = 6 << 10

	// strangers is under which they share their place among people.
	strangers = ""
)

// messageElement is what is looked at in a message.
type messageElement struct {
	Bodies    []string    `xml:"body"`
	Delays    []stampAttr `xml:"urn:xmpp:delay delay"`               // XEP-0203
	OldDelays []stampAttr `xml:"jabber:x:delay x"`                   // XEP-0091
	Request   *struct{}   `xml:"urn:xmpp:receipts request"`          // XEP-0184
	Replace   *idAttr     `xml:"urn:xmpp:message-correct:0 replace"` // XEP-0308
	Reply     *idAttr     `xml:"urn:xmpp:reply:0 reply"`             // XEP-0461
	Reactions *reactions  `xml:"urn:xmpp:reactions:0 reactions"`     // XEP-0444
	Answer    *struct{}   `xml:"https://github.com/porchlight-iot/porchlight/ns/answer answer"`
	// A message in a message: somebody else's words.
	Forwarded *struct{} `xml:"urn:xmpp:forward:0 forwarded"`
	Sent      *struct{} `xml:"urn:xmpp:carbons:2 sent"`
	Received  *struct{} `xml:"urn:xmpp:carbons:2 received"`
	Result    *struct{} `xml:"urn:xmpp:mam:2 result"`
	// Of an encrypted message, the body says that it is one.
	Encryption *struct{} `xml:"urn:xmpp:eme:0 encryption"`
	Omemo      *struct{} `xml:"eu.siacs.conversations.axolotl encrypted"`
	Omemo2     *struct{} `xml:"urn:xmpp:omemo:2 encrypted"`
	OpenPGP    *struct{} `xml:"jabber:x:encrypted x"`
}

type idAttr struct {
	ID string `xml:"id,attr"`
}

type stampAttr struct {
	Stamp string `xml:"stamp,attr"`
}

type reactions struct {
	ID    string   `xml:"id,attr"`
	Signs []string `xml:"reaction"`
}

func (m messageElement) wrapped() bool {
	return m.Forwarded != nil || m.Sent != nil || m.Received != nil || m.Result != nil
}

func (m messageElement) encrypted() bool {
	return m.Encryption != nil || m.Omemo != nil || m.Omemo2 != nil || m.OpenPGP != nil
}

// line is what was written: without what it quotes.
func (m messageElement) line() (string, error) {
	if len(m.Bodies) == 0 {
		return "", nil
	}
	var lines []string
	for l := range strings.Lines(m.Bodies[0]) {
		if l = words.Clean(l); l != "" && !strings.HasPrefix(l, ">") {
			lines = append(lines, l)
		}
	}
	switch {
	case len(lines) == 0:
		return "", nil
	case len(lines) > 1:
		return "", words.Error(words.ManyLines)
	}
	return lines[0], nil
}

// hearMessage is called on the goroutine that reads the stream.
func (b *Bridge) hearMessage(st stream.Stanza, to target) {
	if st.Type != "" && st.Type != "chat" && st.Type != "normal" || to.domain || len(st.Inner) > maxMessage {
		return
	}
	who := st.From.Bare()
	answer := b.converse
	switch {
	case b.knows(who, to):
	case b.laterKnows(who, to):
		answer = b.turnAway
	default:
		b.hearStranger(st, to)
		return
	}
	if !b.limits.allow(who.String(), time.Now()) {
		return
	}
	b.people.next(who.String(), func(ctx context.Context, t *talk) { answer(ctx, t, st, to.device) })
}

// hearStranger takes what a stranger may write: that the gateway is his. He is
// not answered, whether he is right or wrong, but by the office.
func (b *Bridge) hearStranger(st stream.Stanza, to target) {
	if to.device != devices.Gateway || b.office == nil || len(st.Inner) > maxStranger || !b.limits.allow(strangers, time.Now()) {
		return
	}
	b.people.next(strangers, func(ctx context.Context, _ *talk) {
		var m messageElement
		if st.Unmarshal(&m) != nil || m.wrapped() || m.Answer != nil {
			return
		}
		line, err := m.line()
		if err != nil {
			return
		}
		r, err := words.Parse(line, words.Scope{})
		if err != nil || r.Verb != words.Claim {
			return
		}
		a := asker{full: st.From, bare: st.From.Bare(), to: devices.Gateway}
		a.given, a.late = b.late(m)
		if text := b.claim(a, r); text != "" {
			b.say(ctx, st.From, devices.Gateway, text)
		}
	})
}

// laterKnows reports whether somebody may talk to a device at other times.
func (b *Bridge) laterKnows(who jid.JID, to target) bool {
	if to.device == devices.Gateway {
		return b.auth.AtOtherTimes(who, "")
	}
	_, there := b.device(to.device)
	return there && b.auth.AtOtherTimes(who, to.device)
}

// turnAway answers somebody who may talk to the device at other times. That he
// wanted something of it is in the audit, because the executor refuses it.
func (b *Bridge) turnAway(ctx context.Context, t *talk, st stream.Stanza, to devices.ID) {
	var m messageElement
	if st.Unmarshal(&m) != nil || m.wrapped() || m.Answer != nil || len(m.Bodies) == 0 || t.take(st.From.Resourcepart()+" "+st.ID, m.Bodies[0], time.Now()) && st.ID != "" {
		return
	}
	if line, err := m.line(); err == nil && to != devices.Gateway && b.executor != nil {
		if r, err := words.Parse(line, words.Scope{Device: to}); err == nil && r.Verb == words.Act {
			b.executor.Execute(ctx, st.From.String(), devices.Command{Device: to, Name: strings.Join(r.Rest, " "), Token: st.ID})
		}
	}
	b.say(ctx, st.From, to, refusedText(words.NotNow))
}

// converse answers one message of somebody who may see the device.
func (b *Bridge) converse(ctx context.Context, t *talk, st stream.Stanza, to devices.ID) {
	var m messageElement
	if st.Unmarshal(&m) != nil || m.wrapped() || m.Answer != nil {
		return
	}
	a := asker{full: st.From, bare: st.From.Bare(), to: to, token: st.ID}
	a.given, a.late = b.late(m)
	if m.Reactions != nil {
		b.reacted(ctx, a, *m.Reactions)
		return
	}
	if len(m.Bodies) == 0 {
		return // that he is typing, or has read something
	}
	if m.Request != nil && st.ID != "" {
		b.send(ctx, chatElement{To: st.From, From: to, Type: st.Type, Received: &receivedElement{ID: st.ID}})
	}
	id := ""
	if st.ID != "" {
		id = st.From.Resourcepart() + " " + st.ID
	}
	if t.take(id, m.Bodies[0], time.Now()) {
		return
	}
	line, err := m.line()
	switch {
	case m.encrypted():
		err = words.Error(words.Encrypted)
	case m.Replace != nil && t.corrects(st.From.Resourcepart()+" "+m.Replace.ID):
		err = fmt.Errorf("%s: %s", Refused, words.Again)
	}
	if err != nil {
		b.say(ctx, st.From, to, err.Error())
		return
	}
	if line == "" {
		return
	}
	r, err := b.understand(a, t, line)
	if m.Reply != nil {
		if meant, ok := answersAlarm(m.Reply.ID, r, err); ok {
			r, err = meant, nil
		}
	}
	if err != nil {
		b.say(ctx, st.From, to, err.Error())
		return
	}
	if b.tell(ctx, a, t, r) {
		t.did(id)
	}
}

// tell does what is wanted, and answers. It reports whether something was done.
func (b *Bridge) tell(ctx context.Context, a asker, t *talk, r words.Request) (done bool) {
	answer := b.do(ctx, a, t, r)
	if answer.orders == nil && answer.offer != nil && !a.inRoom() {
		b.send(ctx, chatElement{To: a.full, From: a.to, Body: answer.text, Offer: answer.offer})
		return false
	}
	if answer.orders == nil {
		b.answerTo(ctx, a, answer.text)
		return changes(r.Verb) && r.Verb != words.Act && !strings.HasPrefix(answer.text, refusedText(""))
	}
	if !b.people.beside(a.bare.String(), func(ctx context.Context) {
		defer answer.orders.end()
		for _, wait := range []func(context.Context) string{answer.orders.first, answer.orders.last} {
			// Who was shut out meanwhile hears no more.
			if text := wait(ctx); text != "" && b.knows(a.bare, target{device: a.to}) {
				b.answerTo(ctx, a, text)
			}
		}
	}) {
		answer.orders.end()
		b.answerTo(ctx, a, words.Busy)
	}
	return answer.orders.given
}

// late tells when a message was given, where it was kept since, and why what
// it changes is not done any more; "" where it is. Who sent it, or any server on
// the way, may have said how long it was.
func (b *Bridge) late(m messageElement) (given time.Time, why string) {
	now, known := b.now()
	for _, d := range append(m.Delays, m.OldDelays...) {
		at, err := time.Parse(time.RFC3339, d.Stamp)
		if err != nil {
			at, err = time.Parse("20060102T15:04:05", d.Stamp) // XEP-0091
		}
		if err != nil {
			at = time.Unix(0, 0) // that it was kept is known, and no more
		}
		if given.IsZero() || at.Before(given) {
			given = at
		}
	}
	age := now.Sub(given)
	switch {
	case given.IsZero():
		return given, ""
	case !known || age < -lateAfter || given.Unix() == 0:
		return given, words.NoClock
	case age > lateAfter:
		return given, fmt.Sprintf(words.TooLate, words.Span(age))
	}
	return given, ""
}

// chatElement is a message to be sent. Its addresses are put in with it.
type chatElement struct {
	From     devices.ID
	To       jid.JID
	Type     string // chat, where it is empty
	ID       string // a random one, where it is empty
	Body     string
	Received *receivedElement
	Offer    *rosterOffer
	Alarm    bool // it wants a receipt, and to be kept for who is away
}

type receivedElement struct {
	XMLName xml.Name `xml:"urn:xmpp:receipts received"`
	ID      string   `xml:"id,attr"`
}

type messageOut struct {
	XMLName  xml.Name `xml:"message"`
	From     string   `xml:"from,attr,omitempty"`
	To       string   `xml:"to,attr"`
	Type     string   `xml:"type,attr,omitempty"`
	ID       string   `xml:"id,attr"`
	Body     string   `xml:"body,omitempty"`
	Received *receivedElement
	Offer    *rosterOffer
	More     []any
}

// An emptyElement is one that says something by being there.
type emptyElement struct{ XMLName xml.Name }

func empty(space, local string) emptyElement {
	return emptyElement{xml.Name{Space: space, Local: local}}
}

type originElement struct {
	XMLName xml.Name `xml:"urn:xmpp:sid:0 origin-id"`
	ID      string   `xml:"id,attr"`
}

// nsAnswer marks what a gateway says by itself, so that another one that hears
// it does not answer.
const nsAnswer = "https://github.com/porchlight-iot/porchlight/ns/answer"

// answerTo answers somebody: where he asked.
func (b *Bridge) answerTo(ctx context.Context, a asker, text string) {
	if a.inRoom() {
		b.send(ctx, chatElement{To: a.room.Bare(), From: devices.Gateway, Type: "groupchat", Body: a.room.Resourcepart() + ": " + text})
		return
	}
	b.say(ctx, a.full, a.to, text)
}

// say sends a text as the device's.
func (b *Bridge) say(ctx context.Context, to jid.JID, from devices.ID, text string) {
	b.send(ctx, chatElement{To: to, From: from, Body: text})
}

// send sends a message. What cannot be sent was meant for the moment, and is
// dropped; the error is for who can do better.
func (b *Bridge) send(ctx context.Context, c chatElement) error {
	l := b.link.Load()
	if l == nil {
		return ErrOffline
	}
	m := messageOut{To: c.To.String(), Type: c.Type, ID: c.ID, Body: clipLines(c.Body, maxBody), Received: c.Received, Offer: c.Offer}
	if m.Type == "" {
		m.Type = "chat"
	}
	if m.ID == "" {
		m.ID = rand.Text()
	}
	if c.Body != "" {
		m.More = append(m.More, empty(nsAnswer, "answer"))
	}
	if c.Alarm {
		m.More = append(m.More, empty(nsReceipts, "request"), empty("urn:xmpp:hints", "store"), originElement{ID: m.ID})
	}
	if b.component {
		from, err := deviceJID(b.domain, c.From)
		if err != nil {
			return err
		}
		m.From = from.String()
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	err := l.session.Send(ctx, m)
	if err != nil {
		b.log.Debug("a message was not sent", "to", m.To, "error", err)
	}
	return err
}

// clipLines cuts a text after a line, and says how many are missing.
func clipLines(text string, most int) string {
	if len(text) <= most {
		return text
	}
	cut := strings.LastIndexByte(text[:most], '\n')
	if cut < 0 {
		return clip(text, most/4)
	}
	return text[:cut] + "\n" + fmt.Sprintf(words.AndMore, strings.Count(text[cut+1:], "\n")+1)
}
