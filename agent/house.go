package agent

import (
	"encoding/json"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// How silence is judged. A device is late after lateFactor of its usual
// interval, and lost after lostFactor; the least times keep a device that
// reports every second from flapping.
const (
	lateFactor = 3
	lostFactor = 20
	leastLate  = time.Minute
	leastLost  = 15 * time.Minute
	// A device that sleeps by design says so by its silence, and may do so for a
	// day: what tells its battery's end is longer.
	sleepAfter      = time.Minute
	leastLostAsleep = 25 * time.Hour
	// learnFrom is how many intervals must have been seen before silence
	// means anything.
	learnFrom = 3
)

// A house is what is known of each device now: its newest values, and how it
// is doing. It is what the `now` lane and presence show.
type house struct {
	changed func(devices.ID) // called, unlocked, when the device's picture changed
	anew    func(restart)    // called, unlocked, when a counter began anew; nil: nobody is told

	mu      sync.Mutex
	started time.Time
	rooms   map[devices.ID]*room
}

// A room is one device in the house.
type room struct {
	device    devices.Device
	values    []bridge.NowValue // in the order in which they first came
	heard     time.Time         // when the newest message came; zero if none came since the start
	newest    time.Time         // the newest reading's own time
	logged    time.Time         // the newest reading's time that went to the log
	usual     time.Duration     // learnt interval; 0 if unknown
	intervals int               // seen, up to learnFrom
	told      devices.Availability
	own       devices.State        // by itself
	state     devices.State        // as it is shown
	lost      time.Time            // since when own is so; zero if it is not
	dirty     bool                 // for the store
	anew      map[string]time.Time // when counters began anew, by their names
}

// A restart is a counter that began anew: less came than before.
type restart struct {
	device devices.ID
	field  devices.Field // as it is now
	before devices.Value
	at     time.Time
}

// oftenAnew is how soon a counter that begins anew again does so by design, as
// that of a day: people are not told.
const oftenAnew = 48 * time.Hour

func newHouse(changed func(devices.ID)) *house {
	return &house{changed: changed, started: time.Now(), rooms: make(map[devices.ID]*room)}
}

// furnish sets which devices there are. Those that stay keep what is known of
// them; stored gives what was kept of one before the start.
func (h *house) furnish(ds []devices.Device, stored func(devices.ID) []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.rooms
	h.rooms = make(map[devices.ID]*room, len(ds))
	for _, d := range ds {
		r := old[d.ID]
		if r == nil {
			r = &room{}
			r.restore(stored(d.ID))
			if r.own == devices.StateLost {
				r.lost = h.started
			}
		}
		r.device = d
		h.rooms[d.ID] = r
	}
}

func (h *house) has(device devices.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rooms[device] != nil
}

func (h *house) isLost(device devices.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.rooms[device]
	return r != nil && r.state == devices.StateLost
}

// take hands a message to the outbox, and remembers the newest values. Both
// are done under one lock, so that the order of the values is that of the
// sequence numbers.
func (h *house) take(m devices.Message, came arrival, add func(devices.Message) (devices.Receipt, []devices.Record, error)) (devices.Receipt, error) {
	h.mu.Lock()
	receipt, records, err := add(m)
	if err != nil {
		h.mu.Unlock()
		return nil, err
	}
	var touched []devices.ID
	var anew []restart
	for i := range records {
		r := h.rooms[records[i].Device]
		if r == nil {
			continue // it was removed a moment ago
		}
		late := came.at.Sub(records[i].Time) > lateReading
		uncertain := records[i].Stamp != "" && !came.certain
		for _, f := range records[i].Fields {
			if before, news := r.countsAnew(f, records[i].Time); news && !late && !uncertain {
				anew = append(anew, restart{r.device.ID, f, before, records[i].Time})
			}
			r.set(bridge.NowValue{Field: f, Time: records[i].Time, Seq: records[i].Seq, Late: late, Uncertain: uncertain})
		}
		if records[i].Time.After(r.logged) && !uncertain {
			r.logged = records[i].Time
		}
		r.hear(came.now, records[i].Time)
		touched = append(touched, records[i].Device)
	}
	h.mu.Unlock()
	h.touch(touched)
	for _, a := range anew {
		if h.anew != nil {
			h.anew(a)
		}
	}
	return receipt, nil
}

// countsAnew reports whether a counter begins anew, and not as often as by
// design, and gives what it was at before.
func (r *room) countsAnew(f devices.Field, at time.Time) (before devices.Value, news bool) {
	if f.Kind != devices.Counter || f.Value.Kind() != devices.NumberValue {
		return before, false
	}
	old := r.value(f.Name)
	if old == nil || old.Value.Kind() != devices.NumberValue || old.Unit != f.Unit || f.Value.Float() >= old.Value.Float() || !at.After(old.Time) {
		return before, false
	}
	if r.anew == nil {
		r.anew = make(map[string]time.Time)
	}
	last, some := r.anew[f.Name]
	r.anew[f.Name] = at // no more of them than values
	return old.Value, !some || at.Sub(last) > oftenAnew
}

// lateReading is the age from which a reading is history and not the present.
const lateReading = time.Minute

// retained gives those readings of a retained message that are news: a broker
// repeats such a message at every subscription, however old it is. The others
// fill what is not known yet, marked.
func (h *house) retained(rs []devices.Reading, came arrival) []devices.Reading {
	h.mu.Lock()
	var fresh []devices.Reading
	var touched []devices.ID
	for _, reading := range rs {
		r := h.rooms[reading.Device]
		if r == nil {
			continue // it was removed a moment ago
		}
		if !reading.Time.IsZero() && reading.Time.After(r.logged) {
			fresh = append(fresh, reading)
			continue
		}
		for _, f := range reading.Fields {
			if r.value(f.Name) == nil {
				at := reading.Time
				if at.IsZero() {
					at = came.at
				}
				r.set(bridge.NowValue{Field: f, Time: at.UTC().Truncate(time.Microsecond), Late: true, Uncertain: reading.Time.IsZero()})
			}
		}
		touched = append(touched, reading.Device)
	}
	h.mu.Unlock()
	h.touch(touched)
	return fresh
}

// repeatTime is how long after a message another may repeat it.
const repeatTime = 5 * time.Second

// without gives the readings that do not only repeat what the device said a
// moment ago.
func (h *house) without(rs []devices.Reading, came arrival) (news []devices.Reading) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, reading := range rs {
		r := h.rooms[reading.Device]
		if r == nil || r.heard.IsZero() || came.now.Sub(r.heard) > repeatTime || !r.says(reading.Fields) {
			news = append(news, reading)
		}
	}
	return news
}

// says reports whether all the fields are as they are known.
func (r *room) says(fields []devices.Field) bool {
	for _, f := range fields {
		if v := r.value(f.Name); v == nil || v.Value != f.Value || v.Late || f.Kind == devices.Event {
			return false
		}
	}
	return true
}

// tell notes what a device, or its last will, says of itself. What a broker
// kept and has told before is no sign of life.
func (h *house) tell(device devices.ID, a devices.Availability, retained bool, now time.Time) {
	h.mu.Lock()
	r := h.rooms[device]
	if r == nil {
		h.mu.Unlock()
		return
	}
	if a == devices.Online && (!retained || r.told != a) {
		r.heard = now
	}
	r.told, r.dirty = a, true
	lost, before := r.lost, r.state
	r.judge(now, h.started)
	r.follow(h.rooms)
	var changed []devices.ID
	if r.lost != lost {
		changed = h.judge(now) // of those that are reached through it too
	}
	if r.state != before && !slices.Contains(changed, device) {
		changed = append(changed, device)
	}
	h.mu.Unlock()
	h.touch(changed)
}

// judge sets the states of all, and gives those whose state changed.
func (h *house) judge(now time.Time) (changed []devices.ID) {
	for _, r := range h.rooms {
		r.judge(now, h.started)
	}
	for id, r := range h.rooms {
		before := r.state
		r.follow(h.rooms)
		if r.state != before {
			changed = append(changed, id)
		}
	}
	return changed
}

// maxParents bounds a chain of them, which may be a ring.
const maxParents = 8

// follow sets what is shown: a device is lost while one is that it is reached
// through, unless it was heard since.
func (r *room) follow(rooms map[devices.ID]*room) {
	r.state = r.own
	if r.own == devices.StateUnknown {
		return
	}
	at := r
	for range maxParents {
		if at = rooms[at.device.Parent]; at == nil || at == r {
			return
		}
		if !at.lost.IsZero() && !r.heard.After(at.lost) {
			r.state = devices.StateLost
			return
		}
	}
}

func (h *house) touch(ds []devices.ID) {
	for _, d := range ds {
		h.changed(d)
	}
}

// tick judges silence. It is called now and then.
func (h *house) tick(now time.Time) {
	h.mu.Lock()
	changed := h.judge(now)
	h.mu.Unlock()
	h.touch(changed)
}

// A picture is what people are shown of a device.
type picture struct {
	state  devices.State
	own    devices.State // whatever it is reached through
	values []bridge.NowValue
	since  time.Time // of the newest reading; zero if there is none
}

func (h *house) picture(device devices.ID) (picture, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.rooms[device]
	if r == nil {
		return picture{}, false
	}
	return picture{r.state, r.own, append([]bridge.NowValue(nil), r.values...), r.newest}, true
}

// all gives the devices in the order of their ids.
func (h *house) states() map[devices.State]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := make(map[devices.State]int)
	for state := devices.StateUnknown; state <= devices.StateLost; state++ {
		n[state] = 0
	}
	for _, r := range h.rooms {
		n[r.state]++
	}
	return n
}

func (h *house) all() []devices.Device {
	h.mu.Lock()
	defer h.mu.Unlock()
	ds := make([]devices.Device, 0, len(h.rooms))
	for _, r := range h.rooms {
		ds = append(ds, r.device)
	}
	sort.Slice(ds, func(i, j int) bool { return ds[i].ID < ds[j].ID })
	return ds
}

// save hands out what is to be kept of the devices that changed since.
func (h *house) save(keep func(devices.ID, []byte)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, r := range h.rooms {
		if r.dirty {
			r.dirty = false
			if b, err := json.Marshal(r.stored()); err == nil {
				keep(id, b)
			}
		}
	}
}

// maxNowValues bounds what is shown of one device.
const maxNowValues = 200

func (r *room) value(name string) *bridge.NowValue {
	for i := range r.values {
		if r.values[i].Name == name {
			return &r.values[i]
		}
	}
	return nil
}

func (r *room) set(v bridge.NowValue) {
	if old := r.value(v.Name); old != nil {
		*old = v
	} else if len(r.values) < maxNowValues {
		r.values = append(r.values, v)
	}
	r.dirty = true
}

// hear learns from a message that came at now.
func (r *room) hear(now, reading time.Time) {
	if !r.heard.IsZero() {
		if d := now.Sub(r.heard); d > 0 {
			switch {
			case r.usual == 0:
				r.usual = d
			case d > r.usual:
				// A long gap counts more than a short one: a device that was
				// late by our measure, and came, is not to be late again at
				// its next gap of that length.
				r.usual = (r.usual + d) / 2
			default:
				r.usual = (9*r.usual + d) / 10
			}
			r.intervals = min(r.intervals+1, learnFrom)
		}
	}
	r.heard = now
	if reading.After(r.newest) {
		r.newest = reading
	}
	if r.told == devices.Offline {
		r.told = devices.AvailabilityUnknown // it speaks
	}
	r.own, r.state, r.lost, r.dirty = devices.StateFresh, devices.StateFresh, time.Time{}, true
}

// judge sets the device's own state by what it told and by its silence.
// Silence before the start is not its fault.
func (r *room) judge(now, started time.Time) {
	r.own = r.judged(now, started)
	switch {
	case r.own != devices.StateLost:
		r.lost = time.Time{}
	case r.lost.IsZero():
		r.lost = now
	}
}

func (r *room) judged(now, started time.Time) devices.State {
	switch r.told {
	case devices.Offline:
		return devices.StateLost
	case devices.Sleeping:
		return devices.StateAsleep
	}
	state := r.own
	if state == devices.StateUnknown || state == devices.StateAsleep || state == devices.StateLost && !r.heard.IsZero() {
		if r.heard.IsZero() {
			return state
		}
		state = devices.StateFresh
	}
	since := r.heard
	if since.Before(started) {
		since = started
	}
	silence, rule := now.Sub(since), r.device.Silence
	late, lost := max(lateFactor*r.usual, leastLate), max(lostFactor*r.usual, leastLost)
	if rule.Asleep {
		late, lost = sleepAfter, max(lost, leastLostAsleep)
	}
	if rule.Lost > 0 {
		late, lost = min(late, rule.Lost), rule.Lost
	} else if rule.Usual || r.intervals < learnFrom && !rule.Asleep {
		return state
	}
	switch {
	case silence > lost:
		return devices.StateLost
	case silence > late && rule.Asleep:
		return devices.StateAsleep
	case silence > late && r.intervals == learnFrom:
		return devices.StateLate
	}
	return state
}

// storedRoom is what a restart keeps of a device.
type storedRoom struct {
	Values    []storedValue        `json:"values,omitempty"`
	Newest    time.Time            `json:"newest"`
	Logged    time.Time            `json:"logged"`
	Usual     time.Duration        `json:"usual,omitempty"`
	Intervals int                  `json:"intervals,omitempty"`
	Told      devices.Availability `json:"told,omitempty"`
	State     devices.State        `json:"state"`
	Anew      map[string]time.Time `json:"anew,omitempty"`
}

type storedValue struct {
	Name  string            `json:"name"`
	Kind  devices.FieldKind `json:"kind,omitempty"`
	Unit  devices.Unit      `json:"unit,omitempty"`
	Type  devices.ValueKind `json:"type"`
	Value string            `json:"value"`
	Time  time.Time         `json:"time"`
}

func (r *room) stored() storedRoom {
	s := storedRoom{Newest: r.newest, Logged: r.logged, Usual: r.usual, Intervals: r.intervals, Told: r.told, State: r.own, Anew: r.anew}
	for _, v := range r.values {
		s.Values = append(s.Values, storedValue{v.Name, v.Kind, v.Unit, v.Value.Kind(), v.Value.String(), v.Time})
	}
	return s
}

func (r *room) restore(b []byte) {
	var s storedRoom
	if json.Unmarshal(b, &s) != nil {
		return // nothing was kept, or nothing that can be read
	}
	r.anew = s.Anew
	r.newest, r.logged, r.usual, r.intervals, r.told, r.own, r.state = s.Newest, s.Logged, s.Usual, s.Intervals, s.Told, s.State, s.State
	for _, v := range s.Values {
		value := devices.Text(v.Value)
		switch v.Type {
		case devices.NumberValue:
			value, _ = devices.ParseNumber(v.Value)
		case devices.BoolValue:
			value = devices.Bool(v.Value == "true")
		}
		if value.IsValid() && len(r.values) < maxNowValues {
			r.values = append(r.values, bridge.NowValue{
				Field: devices.Field{Name: v.Name, Kind: v.Kind, Unit: v.Unit, Value: value}, Time: v.Time, Late: true,
			})
		}
	}
}
