package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

// alarmPrefix begins the id of a message that tells an alarm. The device
// follows, and a dot, so that who answers the message answers for the device,
// also after a restart.
const alarmPrefix = "alarm-"

// Alert tells people of an alarm of a device, with a request for a receipt
// (XEP-0184), and for the message to be kept for who is away (XEP-0334). It is
// acknowledged by the word ack, by an answer (XEP-0461) or by a reaction
// (XEP-0444) to it, which come to [Office.Acknowledge]. Rooms that want alarms hear
// it as well. Clients show one
// message of an id: when an alarm is told again, it needs another. The error
// says who was not told.
func (b *Bridge) Alert(ctx context.Context, to []JID, device devices.ID, text, id string) error {
	body := fmt.Sprintf(words.Alarm, b.nameOf(device), printable(text)) + "\n" + words.AlarmTail
	b.tellRooms(ctx, fmt.Sprintf(words.Alarm, b.nameOf(device), printable(text)))
	return b.toAll(ctx, to, chatElement{From: b.speaker(device), Body: body, ID: alarmPrefix + string(device) + "." + id, Alarm: true})
}

// Tell tells people something, as a device or the gateway.
func (b *Bridge) Tell(ctx context.Context, to []JID, device devices.ID, text string) error {
	return b.toAll(ctx, to, chatElement{From: b.speaker(device), Body: text})
}

func (b *Bridge) toAll(ctx context.Context, to []JID, c chatElement) error {
	var all error
	for _, who := range to {
		c.To = who
		if err := b.send(ctx, c); err != nil {
			all = errors.Join(all, fmt.Errorf("cannot tell %s: %w", who, err))
		}
	}
	return all
}

// speaker is as whom something is said of a device: one that is not there any
// more says nothing.
func (b *Bridge) speaker(id devices.ID) devices.ID {
	if _, there := b.device(id); !there {
		return devices.Gateway
	}
	return id
}

// alarmOf gives the device whose alarm a message told.
func alarmOf(message string) (devices.ID, bool) {
	rest, found := strings.CutPrefix(message, alarmPrefix)
	name, _, dot := strings.Cut(rest, ".")
	id, err := devices.ParseID(name)
	return id, found && dot && err == nil
}

// reacted takes a reaction to an alarm for an acknowledgement. To other
// messages it means nothing.
func (b *Bridge) reacted(ctx context.Context, a asker, r reactions) {
	device, ok := alarmOf(r.ID)
	if !ok || !slices.ContainsFunc(r.Signs, func(s string) bool { return s != "" && s != "👎" && s != "❌" }) {
		return
	}
	answer := b.do(ctx, a, nil, words.Request{Verb: words.Ack, Devices: []devices.ID{device}})
	b.say(ctx, a.full, a.to, answer.text)
}

// answersAlarm gives what an answer to an alarm wants: what it says, of that
// device, or, where that is no word of ours, that the alarm is seen.
func answersAlarm(message string, r words.Request, err error) (words.Request, bool) {
	device, ok := alarmOf(message)
	if !ok {
		return r, false
	}
	known := err == nil && (r.Verb != words.Act || len(r.Rest) > 0 && slices.Contains([]string{"on", "off", "toggle", "set"}, r.Rest[0]))
	if !known {
		r = words.Request{Verb: words.Ack}
	}
	if r.Verb.OfDevice() && r.Devices == nil {
		r.Devices = []devices.ID{device}
	}
	return r, true
}
