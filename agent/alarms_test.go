package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/calendar"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// A pager is a messenger that keeps what people would have got.
type pager struct {
	got  []string
	ids  map[string]bool
	fail error
}

func (p *pager) Alert(_ context.Context, to []bridge.JID, device devices.ID, text, id string) error {
	if p.fail != nil {
		return p.fail
	}
	if p.ids[id] {
		return fmt.Errorf("the id %s came twice", id)
	}
	p.ids[id] = true
	p.got = append(p.got, fmt.Sprintf("%v ALARM %s %s", to, device, text))
	return nil
}

func (p *pager) Tell(_ context.Context, to []bridge.JID, device devices.ID, text string) error {
	p.got = append(p.got, fmt.Sprintf("%v %s %s", to, device, text))
	return nil
}

// A guard is alarms over a house, with people.
type guard struct {
	*alarms
	t      *testing.T
	pager  *pager
	events []string
	at     time.Time
	online bool
}

func newGuard(t *testing.T) *guard {
	h := newHouse(func(devices.ID) {})
	h.furnish([]devices.Device{{ID: "kitchen"}, {ID: "hub"}, {ID: "bulb", Parent: "hub"}, {ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}}, func(devices.ID) []byte { return nil })
	w := &guard{t: t, pager: &pager{ids: make(map[string]bool)}, at: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), online: true}
	w.open(h, filepath.Join(t.TempDir(), alarmsFile))
	return w
}

// open begins, or begins anew, with what is in the file.
func (w *guard) open(h *house, path string) {
	w.t.Helper()
	var work calendar.Hours
	if err := work.UnmarshalText([]byte("Mon-Fri 08:00-18:00 UTC")); err != nil {
		w.t.Fatal(err)
	}
	w.alarms = &alarms{
		path: path, house: h,
		grants: func() access.Grants {
			return access.Grants{
				{JID: "anna@h", Role: access.Owner, Devices: []string{"nothing"}},
				{JID: "bob@h", Role: access.Operator, Hours: work},
				{JID: "carl@h", Role: access.Viewer},
			}
		},
		now:    func() access.Moment { return access.Moment{Time: w.at, Known: true} },
		event:  func(e bridge.Event) { w.events = append(w.events, e.ID+" "+e.Title) },
		show:   func(devices.ID) {},
		people: w.pager, online: func() bool { return w.online }, log: slog.New(slog.DiscardHandler),
	}
	if err := w.alarms.open(); err != nil {
		w.t.Fatal(err)
	}
}

// passes lets time pass, and gives what people got.
func (w *guard) passes(d time.Duration) string {
	w.at = w.at.Add(d)
	w.look(w.at)
	w.tellDue(w.t.Context(), w.at)
	got := strings.Join(w.pager.got, "\n")
	w.pager.got = nil
	return got
}

func (w *guard) says(device devices.ID, name string, v devices.Value, unit devices.Unit) {
	w.house.mu.Lock()
	w.house.rooms[device].set(bridge.NowValue{Field: devices.Field{Name: name, Value: v, Unit: unit}})
	w.house.mu.Unlock()
	w.touch(device)
}

func (w *guard) lost(device devices.ID, lost bool) {
	w.house.mu.Lock()
	w.house.rooms[device].own = map[bool]devices.State{true: devices.StateLost, false: devices.StateFresh}[lost]
	w.house.mu.Unlock()
	w.touch(device)
}

func (w *guard) want(got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("people got\n%s\nwant\n%s", got, want)
	}
}

// TestAlarms raises one, has nobody look after it, somebody acknowledge it, and
// its cause go and come.
func TestAlarms(t *testing.T) {
	w := newGuard(t)
	w.says("kitchen", "smoke", devices.Bool(false), "")
	w.says("kitchen", "water_leak", devices.Text("true"), "") // no truth value
	w.says("kitchen", "smokes", devices.Bool(true), "")
	w.want(w.passes(0), "")
	w.says("kitchen", "smoke", devices.Bool(true), "")
	w.want(w.passes(0), "[bob@h] ALARM kitchen smoke")
	if s := w.shown("kitchen", devices.StateFresh); s != devices.StateAlarm {
		t.Errorf("it is shown as %s", s)
	}
	if s := w.shown("kitchen", devices.StateLost); s != devices.StateLost {
		t.Errorf("lost, it is shown as %s", s)
	}
	w.says("kitchen", "smoke", devices.Bool(true), "")
	w.want(w.passes(4*time.Minute), "")
	// Nobody looks after it: it is told again, and to owners.
	w.want(w.passes(time.Minute), "[anna@h bob@h] ALARM kitchen smoke (since "+w.at.Add(-5*time.Minute).Local().Format(time.DateTime)+")")
	w.want(w.passes(9*time.Minute), "")
	if got := w.passes(time.Minute); !strings.HasPrefix(got, "[anna@h bob@h] ALARM kitchen smoke") {
		t.Errorf("the third time: %s", got)
	}
	// A restart raises none anew, and goes on.
	w.open(w.house, w.path)
	w.want(w.passes(0), "")
	bob, anna := addresses([]string{"bob@h"})[0], addresses([]string{"anna@h"})[0]
	if all := w.all(func(devices.ID) bool { return true }); len(all) != 1 || all[0].Device != "kitchen" || all[0].Text != "smoke" || !all[0].Acknowledged.Equal(bridge.JID{}) {
		t.Errorf("raised are %+v", all)
	}
	if n := w.acknowledge(anna, func(devices.ID) bool { return true }); n != 1 {
		t.Errorf("%d were acknowledged", n)
	}
	if n := w.acknowledge(bob, func(devices.ID) bool { return true }); n != 0 {
		t.Errorf("%d were acknowledged again", n)
	}
	w.want(w.passes(time.Second), "[bob@h] kitchen acknowledged by anna@h: smoke")
	w.want(w.passes(5*time.Hour), "")
	if all := w.all(func(devices.ID) bool { return true }); len(all) != 1 || all[0].Acknowledged.String() != "anna@h" {
		t.Errorf("raised are %+v", all)
	}
	// What is gone for a moment only is the same alarm.
	w.says("kitchen", "smoke", devices.Bool(false), "")
	w.want(w.passes(59*time.Second), "")
	w.says("kitchen", "smoke", devices.Bool(true), "")
	w.want(w.passes(0), "")
	w.says("kitchen", "smoke", devices.Bool(false), "")
	w.want(w.passes(59*time.Second), "")
	w.want(w.passes(time.Minute), "[bob@h] kitchen over: smoke")
	w.says("kitchen", "smoke", devices.Bool(true), "")
	w.want(w.passes(time.Minute), "[bob@h] ALARM kitchen smoke")
	if len(w.events) != 4 || !strings.HasSuffix(w.events[0], " kitchen: smoke") || !strings.HasSuffix(w.events[1], ": acknowledged") || !strings.HasSuffix(w.events[2], ": over") {
		t.Errorf("events are %q", w.events)
	}
	if ids := slices.Compact(slices.Sorted(slices.Values(w.events))); len(ids) != 4 {
		t.Error("an event has the id of another")
	}
}

func TestAlarmsOfState(t *testing.T) {
	w := newGuard(t)
	w.lost("hub", true) // and with it the bulb, which is not told
	w.want(w.passes(0), "[bob@h] ALARM hub lost")
	w.want(w.passes(2*time.Hour), "") // not urgent
	w.lost("hub", false)
	w.passes(0)
	w.want(w.passes(2*time.Minute), "[bob@h] hub over: lost")

	// The limit of a battery is another once it is low.
	for i, step := range []struct{ percent, want string }{
		{"11", ""}, {"10", "[bob@h] ALARM kitchen battery low, 10 %"}, {"19", ""}, {"20", ""}, {"21", "[bob@h] kitchen over: battery low, 10 %"}, {"11", ""},
	} {
		v, _ := devices.ParseNumber(step.percent)
		w.says("kitchen", "sensor_battery", v, "%")
		got := w.passes(0)
		if got == "" {
			got = w.passes(2 * time.Minute)
		}
		if got != step.want {
			t.Errorf("step %d, %s %%: %s", i, step.percent, got)
		}
	}

	// What a profile calls a fault is one by its value.
	for _, step := range []struct {
		v    devices.Value
		want string
	}{
		{devices.Text("No error"), ""}, {devices.Text("E12"), "[bob@h] ALARM kitchen burner E12"}, {devices.Number(0), "[bob@h] kitchen over: burner E12"},
		{devices.Number(3), "[bob@h] ALARM kitchen burner 3"}, {devices.Bool(false), "[bob@h] kitchen over: burner 3"},
	} {
		w.house.mu.Lock()
		w.house.rooms["kitchen"].set(bridge.NowValue{Field: devices.Field{Name: "burner", Value: step.v, Kind: devices.Fault}})
		w.house.mu.Unlock()
		w.touch("kitchen")
		got := w.passes(0)
		if got == "" {
			got = w.passes(2 * time.Minute)
		}
		if got != step.want {
			t.Errorf("%s: %s", step.v, got)
		}
	}

	// Many at once are one message.
	for _, id := range []devices.ID{"a", "b", "c", "d"} {
		w.lost(id, true)
	}
	w.want(w.passes(0), "[bob@h] ALARM gateway a: lost; b: lost; c: lost; d: lost")

	// At night nobody is on duty, so that owners hear of it.
	w.passes(8 * time.Hour)
	w.says("kitchen", "gas", devices.Bool(true), "")
	w.want(w.passes(0), "[anna@h] ALARM kitchen gas")

	// What cannot be told is told later, and nothing while there is no session.
	w.pager.fail = errors.New("no way")
	w.want(w.passes(5*time.Minute), "")
	w.pager.fail, w.online = nil, false
	w.want(w.passes(5*time.Minute), "")
	w.online = true
	if got := w.passes(0); !strings.HasPrefix(got, "[anna@h] ALARM kitchen gas (since") {
		t.Errorf("later: %s", got)
	}
}

func TestMute(t *testing.T) {
	w := newGuard(t)
	w.at = time.Now() // as mute has it
	w.says("kitchen", "leak", devices.Bool(true), "")
	w.passes(0)
	w.mute("kitchen", time.Hour)
	w.says("kitchen", "smoke", devices.Bool(true), "")
	w.want(w.passes(30*time.Minute), "")
	w.open(w.house, w.path)
	w.touch("kitchen")
	w.want(w.passes(20*time.Minute), "")
	if got := w.passes(20 * time.Minute); strings.Count(got, "ALARM kitchen") != 2 {
		t.Errorf("after an hour: %s", got)
	}
	w.mute("a", time.Hour)
	w.mute("a", 0)
	w.says("a", "tamper", devices.Bool(true), "")
	if got := w.passes(time.Second); !strings.Contains(got, "ALARM a tamper") {
		t.Errorf("unmuted: %s", got)
	}
}
