package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// alarmsFile is in the data directory.
	alarmsFile = "alarms.json"

	// lowBattery raises an alarm, and wellBattery ends it, in percent.
	lowBattery  = 10
	wellBattery = 20
	// clearAfter is how long the cause of an alarm must be gone: what comes back
	// before is the same alarm.
	clearAfter = time.Minute

	// lookEvery is how often devices are looked at, at most.
	lookEvery = 100 * time.Millisecond

	maxAlarms = 10 // of a device
	// maxAlarmText is how many characters of a device's own are told.
	maxAlarmText = 100
	maxMute      = 31 * 24 * time.Hour
	// manyAlarms are told in one message.
	manyAlarms = 4
	// tellTime is for a message to reach the server, and retell when it is tried
	// again where it did not.
	tellTime = 10 * time.Second
	retell   = 30 * time.Second
)

// When an alarm that nobody acknowledges is told again. The second time, and
// from then on, owners hear of it too.
var (
	repeatUrgent = []time.Duration{5 * time.Minute, 10 * time.Minute, time.Hour}
	repeatOther  = []time.Duration{24 * time.Hour}
)

// faultNames are those of truth values that mean that something is wrong,
// whether or not their profile says so; alone, or after a _: water_leak.
var faultNames = []string{"fault", "alarm", "smoke", "leak", "flood", "gas", "carbon_monoxide", "tamper"}

// wellWords are what a text of the kind fault says while nothing is wrong.
var wellWords = []string{"", "-", "0", "ok", "good", "normal", "none", "no", "no error", "no_error", "off", "clear", "false"}

// A messenger reaches people.
type messenger interface {
	// Alert tells of an alarm. The id is another each time.
	Alert(ctx context.Context, to []bridge.JID, device devices.ID, text, id string) error
	// Tell says something as a device.
	Tell(ctx context.Context, to []bridge.JID, device devices.ID, text string) error
}

// alarms are what people have to look after. They follow from what is known of
// the devices, and outlast a restart.
type alarms struct {
	path   string
	house  *house
	grants func() access.Grants
	now    func() access.Moment
	event  func(bridge.Event)
	show   func(devices.ID) // has the device's presence made anew
	people messenger
	online func() bool
	log    *slog.Logger

	wake chan struct{}

	writing sync.Mutex // held, before mu, while the file is written

	mu      sync.Mutex // never held while the disk is waited for
	changed map[devices.ID]bool
	watched map[devices.ID]*watched
	news    []due // to be told once, as it is
}

// watched is a device that has, or had a moment ago, an alarm; or is muted.
type watched struct {
	Muted  time.Time `json:"muted,omitzero"` // until then
	Alarms []*alarm  `json:"alarms,omitempty"`
}

// An alarm is one that is raised.
type alarm struct {
	What  string    `json:"what"` // lost, battery, or the name of a field
	Text  string    `json:"text"` // for people, without the device
	Since time.Time `json:"since"`
	By    string    `json:"by,omitempty"`   // the JID of who acknowledged it
	Told  int       `json:"told,omitempty"` // how often

	gone time.Time // since when its cause is; zero: it is there
	next time.Time // when it is told again; zero: at once
}

func (a *alarm) urgent() bool { return a.What != causeLost && a.What != causeBattery }

// The causes that are no fields.
const (
	causeLost    = "lost"
	causeBattery = "battery"
)

// open reads the alarms that were raised before the start. The error tells that
// they cannot be read.
func (a *alarms) open() error {
	a.watched = make(map[devices.ID]*watched)
	a.changed = make(map[devices.ID]bool)
	a.wake = make(chan struct{}, 1)
	data, err := os.ReadFile(a.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &a.watched)
	}
	if a.watched == nil { // the file says null
		a.watched = make(map[devices.ID]*watched)
	}
	maps.DeleteFunc(a.watched, func(_ devices.ID, w *watched) bool { return w == nil })
	for id, w := range a.watched {
		a.changed[id] = true
		w.Alarms = slices.DeleteFunc(w.Alarms, func(al *alarm) bool { return al == nil })
		for _, al := range w.Alarms {
			if al.Told > 0 {
				al.next = time.Now().Add(al.pause())
			}
		}
	}
	return err
}

// save writes them down.
func (a *alarms) save() {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.mu.Lock()
	data, err := json.MarshalIndent(a.watched, "", " ")
	a.mu.Unlock()
	if err == nil {
		err = durable.Replace(a.path, append(data, '\n'))
	}
	if err != nil {
		a.log.Error("after a restart, alarms will be raised again", "error", err)
	}
}

// touch says that a device's picture changed.
func (a *alarms) touch(device devices.ID) {
	a.mu.Lock()
	a.changed[device] = true
	a.mu.Unlock()
	a.signal()
}

func (a *alarms) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// run raises alarms and tells people until ctx ends.
func (a *alarms) run(ctx context.Context) {
	for _, d := range a.house.all() {
		a.touch(d.ID)
	}
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-ticker.C:
		}
		now := time.Now()
		a.look(now)
		a.tellDue(ctx, now)
		select { // readings may come by the thousand
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}

// look raises and ends alarms.
func (a *alarms) look(now time.Time) {
	a.mu.Lock()
	for id, w := range a.watched {
		if len(w.Alarms) > 0 || !w.Muted.IsZero() && !now.Before(w.Muted) {
			a.changed[id] = true
		}
	}
	var news []devices.ID
	for id := range a.changed {
		if a.lookAt(id, now) {
			news = append(news, id)
		}
	}
	clear(a.changed)
	a.mu.Unlock()
	if len(news) > 0 {
		a.save()
	}
	for _, id := range news {
		a.show(id)
	}
}

// lookAt reports whether there is anything new of a device.
func (a *alarms) lookAt(id devices.ID, now time.Time) (news bool) {
	p, there := a.house.picture(id)
	w := a.watched[id]
	if !there {
		delete(a.watched, id)
		return w != nil
	}
	if w == nil {
		w = &watched{}
	}
	if !w.Muted.IsZero() && !now.Before(w.Muted) {
		w.Muted, news = time.Time{}, true
	}
	has := func(cause string) bool {
		return slices.ContainsFunc(w.Alarms, func(al *alarm) bool { return al.What == cause })
	}
	found := causes(p, has)
	for _, al := range w.Alarms {
		switch _, there := found[al.What]; {
		case there:
			al.gone = time.Time{}
		case al.gone.IsZero():
			al.gone = now
		case now.Sub(al.gone) >= clearAfter:
			news = true
			a.raise(id, al, "over", "", fmt.Sprintf("since %s", al.Since.Format(time.DateTime)))
			if al.Told > 0 {
				a.news = append(a.news, due{device: id, text: "over: " + al.Text, to: a.duty(id)})
			}
		}
	}
	w.Alarms = slices.DeleteFunc(w.Alarms, func(al *alarm) bool { return !al.gone.IsZero() && now.Sub(al.gone) >= clearAfter })
	if w.Muted.IsZero() {
		for _, cause := range slices.Sorted(maps.Keys(found)) {
			if has(cause) || len(w.Alarms) >= maxAlarms {
				continue
			}
			al := &alarm{What: cause, Text: found[cause], Since: a.now().Time.UTC().Truncate(time.Microsecond)}
			w.Alarms = append(w.Alarms, al)
			a.raise(id, al, "raised", "", "")
			news = true
		}
	}
	if len(w.Alarms) == 0 && w.Muted.IsZero() {
		delete(a.watched, id)
	} else {
		a.watched[id] = w
	}
	return news
}

// raise puts what became of an alarm into the events node.
func (a *alarms) raise(id devices.ID, al *alarm, became, author, summary string) {
	e := bridge.Event{
		ID: fmt.Sprintf("alarm-%s-%s-%d", id, al.What, al.Since.UnixMicro()), Time: al.Since,
		Category: "alarm", Device: id, Author: author, Title: fmt.Sprintf("%s: %s", id, al.Text), Summary: summary,
	}
	if became != "raised" {
		e.ID += "-" + became
		e.Time = a.now().Time
		e.Title += ": " + became
	}
	a.event(e)
}

// causes are those of alarms, by what is known of a device, with their texts.
func causes(p picture, raised func(cause string) bool) map[string]string {
	found := make(map[string]string)
	if p.own == devices.StateLost {
		found[causeLost] = "lost"
		if !p.since.IsZero() {
			found[causeLost] += ", last heard at " + p.since.Local().Format(time.DateTime)
		}
	}
	for _, v := range p.values {
		switch {
		case v.Kind == devices.Setting || v.Kind == devices.Identity || v.Kind == devices.Event || v.Kind == devices.Counter:
		case v.Kind == devices.Fault:
			if text, wrong := fault(v.Field); wrong {
				found[v.Name] = text
			}
		case isBattery(v.Field):
			limit := float64(lowBattery)
			if raised(causeBattery) {
				limit = wellBattery
			}
			if v.Value.Float() <= limit {
				found[causeBattery] = fmt.Sprintf("battery low, %s %%", v.Value)
			}
		case v.Value.Kind() != devices.BoolValue || !v.Value.Bool():
		case ends(v.Name, "battery_low"), ends(v.Name, "low_battery"):
			found[causeBattery] = "battery low"
		case slices.ContainsFunc(faultNames, func(name string) bool { return ends(v.Name, name) }):
			found[v.Name] = strings.ReplaceAll(v.Name, "_", " ")
		}
	}
	return found
}

// fault reports whether a field of that kind says that something is wrong, and
// how people are told.
func fault(f devices.Field) (text string, wrong bool) {
	text = strings.ReplaceAll(f.Name, "_", " ")
	switch f.Value.Kind() {
	case devices.BoolValue:
		return text, f.Value.Bool()
	case devices.NumberValue:
		return text + " " + f.Value.String(), f.Value.Float() != 0
	}
	said := []rune(f.Value.String())
	return text + " " + string(said[:min(len(said), maxAlarmText)]), !slices.Contains(wellWords, strings.ToLower(strings.TrimSpace(string(said))))
}

// ends reports whether a name is, or ends with, a word.
func ends(name, word string) bool { return name == word || strings.HasSuffix(name, "_"+word) }

func isBattery(f devices.Field) bool {
	return f.Value.Kind() == devices.NumberValue && f.Unit == "%" && (ends(f.Name, "battery") || ends(f.Name, "battery_level") || ends(f.Name, "battery_percentage"))
}

// pause is how long an alarm that was told waits.
func (al *alarm) pause() time.Duration {
	all := repeatOther
	if al.urgent() {
		all = repeatUrgent
	}
	return all[min(max(al.Told, 1), len(all))-1]
}

// A due is something to be told now.
type due struct {
	device devices.ID
	text   string
	to     []bridge.JID
	alarm  *alarm // nil: it is none
	id     string // of the message that tells an alarm
}

// duty gives those who look after a device now.
func (a *alarms) duty(id devices.ID) []bridge.JID {
	return addresses(a.grants().Duty(access.Operator, id, a.now()))
}

// tellDue tells people of what is due.
func (a *alarms) tellDue(ctx context.Context, now time.Time) {
	if !a.online() {
		return
	}
	a.mu.Lock()
	news := a.news
	a.news = nil
	a.mu.Unlock()
	for _, all := range [][]due{news, a.due(now)} {
		for len(all) > 0 {
			// Those for the same people are told together where they are many.
			same := slices.DeleteFunc(slices.Clone(all), func(d due) bool { return !sameJIDs(d.to, all[0].to) })
			all = slices.DeleteFunc(all, func(d due) bool { return sameJIDs(d.to, same[0].to) })
			if len(same) >= manyAlarms {
				var texts []string
				for _, d := range same {
					texts = append(texts, fmt.Sprintf("%s: %s", d.device, d.text))
				}
				a.tell(ctx, now, same, devices.Gateway, strings.Join(texts, "; "))
				continue
			}
			for i := range same {
				a.tell(ctx, now, same[i:i+1], same[i].device, same[i].text)
			}
		}
	}
}

func sameJIDs(x, y []bridge.JID) bool {
	return slices.EqualFunc(x, y, func(x, y bridge.JID) bool { return x.Equal(y) })
}

// due gives what is to be told, to whom.
func (a *alarms) due(now time.Time) (all []due) {
	grants, moment := a.grants(), a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(a.watched)) {
		w := a.watched[id]
		if !w.Muted.IsZero() {
			continue
		}
		for _, al := range w.Alarms {
			if al.By != "" || now.Before(al.next) || !al.gone.IsZero() {
				continue
			}
			to := grants.Duty(access.Operator, id, moment)
			if len(to) == 0 || al.Told > 0 {
				for _, owner := range grants.People(access.Owner, moment) {
					if !slices.Contains(to, owner) {
						to = append(to, owner)
					}
				}
			}
			if len(to) == 0 {
				al.next = now.Add(retell)
				continue
			}
			text := al.Text
			if moment.Time.Sub(al.Since) > lateReading {
				text += fmt.Sprintf(" (since %s)", al.Since.Local().Format(time.DateTime))
			}
			slices.Sort(to)
			all = append(all, due{id, text, addresses(to), al, fmt.Sprintf("%s-%d-%d", al.What, al.Since.UnixMicro(), al.Told)})
		}
	}
	return all
}

// tell tells some of what is due, of one kind, in one message.
func (a *alarms) tell(ctx context.Context, now time.Time, all []due, device devices.ID, text string) {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	if all[0].alarm == nil {
		if err := a.people.Tell(ctx, all[0].to, device, text); err != nil {
			a.log.Warn("what became of an alarm was not told to all", "device", device, "error", err)
		}
		return
	}
	err := a.people.Alert(ctx, all[0].to, device, text, all[0].id)
	if err != nil {
		a.log.Warn("an alarm was not told to all, and will be told again", "device", device, "error", err)
	}
	a.mu.Lock()
	for _, d := range all {
		if err != nil {
			d.alarm.next = now.Add(retell)
			continue
		}
		d.alarm.Told++
		d.alarm.next = now.Add(d.alarm.pause())
	}
	a.mu.Unlock()
	if err == nil {
		a.save()
	}
}

// raised reports whether a device has an alarm.
func (a *alarms) raised(device devices.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.watched[device]
	return w != nil && len(w.Alarms) > 0
}

// all gives those that are raised, by device.
func (a *alarms) all(see func(devices.ID) bool) (all []bridge.Alarm) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(a.watched)) {
		if !see(id) {
			continue
		}
		for _, al := range a.watched[id].Alarms {
			one := bridge.Alarm{Device: id, Text: al.Text, Since: al.Since}
			if al.By != "" {
				if who, err := bridge.ParseJID(al.By); err == nil {
					one.Acknowledged = who
				}
			}
			all = append(all, one)
		}
	}
	return all
}

// acknowledge ends the repetition of the alarms of some devices, and gives how
// many there were that nobody had acknowledged. The others on duty are told.
func (a *alarms) acknowledge(who bridge.JID, of func(devices.ID) bool) (n int) {
	a.mu.Lock()
	for _, id := range slices.Sorted(maps.Keys(a.watched)) {
		if !of(id) {
			continue
		}
		for _, al := range a.watched[id].Alarms {
			if al.By != "" {
				continue
			}
			al.By = who.Bare().String()
			a.raise(id, al, "acknowledged", who.String(), "")
			n++
			others := slices.DeleteFunc(a.duty(id), func(j bridge.JID) bool { return j.Equal(who.Bare()) })
			if al.Told > 0 && len(others) > 0 {
				a.news = append(a.news, due{device: id, text: fmt.Sprintf("acknowledged by %s: %s", who.Bare(), al.Text), to: others})
			}
		}
	}
	a.mu.Unlock()
	if n > 0 {
		a.save()
		a.signal()
	}
	return n
}

// mute has a device raise no alarm for a while; 0 ends that. What is raised is
// not told again meanwhile.
func (a *alarms) mute(device devices.ID, d time.Duration) {
	a.mu.Lock()
	w := a.watched[device]
	if w == nil {
		w = &watched{}
		a.watched[device] = w
	}
	w.Muted = time.Time{}
	if d > 0 {
		w.Muted = time.Now().Add(d)
	}
	a.mu.Unlock()
	a.save()
	a.touch(device)
}

// shown is the state of a device as people see it.
func (a *alarms) shown(device devices.ID, state devices.State) devices.State {
	switch state {
	case devices.StateFresh, devices.StateLate, devices.StateAsleep:
		if a.raised(device) {
			return devices.StateAlarm
		}
	}
	return state
}
