package agent

import (
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// houseOf makes a house with the device kitchen and a fake outbox, which
// counts what it took.
func houseOf(t *testing.T, started time.Time) (h *house, taken *[]devices.Record) {
	t.Helper()
	h = newHouse(func(devices.ID) {})
	h.started = started
	h.furnish([]devices.Device{{ID: "kitchen"}}, func(devices.ID) []byte { return nil })
	return h, new([]devices.Record)
}

func (h *house) report(t *testing.T, taken *[]devices.Record, now time.Time, name, value string) {
	t.Helper()
	v, err := devices.ParseNumber(value)
	if err != nil {
		t.Fatal(err)
	}
	m := devices.Message{Readings: []devices.Reading{{Device: "kitchen", Time: now, Fields: []devices.Field{{Name: name, Value: v}}}}}
	_, err = h.take(m, at(now), func(m devices.Message) (devices.Receipt, []devices.Record, error) {
		var rs []devices.Record
		for _, r := range m.Readings {
			rs = append(rs, devices.Record{Seq: uint64(len(*taken)) + 1, Reading: r})
			*taken = append(*taken, rs...)
		}
		return nil, rs, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCounterBeginsAnew has counters fall. That of a total is told, that of a
// day once, until it stops to be one.
func TestCounterBeginsAnew(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	told := map[string]int{}
	h.anew = func(r restart) { told[r.field.Name]++ }
	report := func(hour int, name, value string, kind devices.FieldKind) {
		v, err := devices.ParseNumber(value)
		if err != nil {
			t.Fatal(err)
		}
		now := start.Add(time.Duration(hour) * time.Hour)
		_, err = h.take(devices.Message{Readings: []devices.Reading{{Device: "kitchen", Time: now, Fields: []devices.Field{{Name: name, Value: v, Kind: kind}}}}},
			at(now), func(m devices.Message) (devices.Receipt, []devices.Record, error) {
				*taken = append(*taken, devices.Record{Seq: uint64(len(*taken)) + 1, Reading: m.Readings[0]})
				return nil, (*taken)[len(*taken)-1:], nil
			})
		if err != nil {
			t.Fatal(err)
		}
	}
	for day := range 5 {
		report(24*day, "total", []string{"100", "110", "110", "3", "4"}[day], devices.Counter)
		report(24*day, "today", "0", devices.Counter)
		report(24*day, "temperature", []string{"21", "20", "19", "18", "17"}[day], devices.Measurement)
		report(24*day+12, "today", "7", devices.Counter)
	}
	if told["total"] != 1 || told["today"] != 1 || told["temperature"] != 0 {
		t.Errorf("told %v", told)
	}
	report(24*30, "today", "1", devices.Counter)
	if told["today"] != 2 {
		t.Errorf("told %v", told)
	}
}

func (h *house) stateAt(now time.Time) devices.State {
	h.tick(now)
	p, _ := h.picture("kitchen")
	return p.state
}

func TestSilenceBecomesState(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	if s := h.stateAt(start.Add(24 * time.Hour)); s != devices.StateUnknown {
		t.Errorf("a device that was never heard is %s", s)
	}
	now := start
	for range 5 {
		now = now.Add(5 * time.Minute)
		h.report(t, taken, now, "temperature", "21.4")
	}
	for _, c := range []struct {
		silence time.Duration
		want    devices.State
	}{
		{5 * time.Minute, devices.StateFresh},
		{14 * time.Minute, devices.StateFresh},
		{16 * time.Minute, devices.StateLate},
		{99 * time.Minute, devices.StateLate},
		{101 * time.Minute, devices.StateLost},
	} {
		if s := h.stateAt(now.Add(c.silence)); s != c.want {
			t.Errorf("after %s of silence: %s, want %s", c.silence, s, c.want)
		}
	}
	now = now.Add(102 * time.Minute)
	h.report(t, taken, now, "temperature", "21.4")
	if s := h.stateAt(now); s != devices.StateFresh {
		t.Errorf("it speaks, and is %s", s)
	}
}

// TestHysteresis has a device whose gaps grow: it is late once, not at each.
func TestHysteresis(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	now := start
	for range 5 {
		now = now.Add(time.Minute)
		h.report(t, taken, now, "temperature", "21")
	}
	late := 0
	for range 6 {
		if h.stateAt(now.Add(10*time.Minute)) == devices.StateLate {
			late++
		}
		now = now.Add(10 * time.Minute)
		h.report(t, taken, now, "temperature", "21")
	}
	if late != 1 {
		t.Errorf("late %d times for one change of pace", late)
	}
}

func TestLastWill(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	h.report(t, taken, start, "temperature", "21")
	h.tell("kitchen", devices.Offline, false, start)
	if s := h.stateAt(start); s != devices.StateLost {
		t.Errorf("its will says offline, and it is %s", s)
	}
	h.tell("kitchen", devices.Online, false, start)
	if s := h.stateAt(start); s != devices.StateFresh {
		t.Errorf("it says online, and is %s", s)
	}
	h.tell("kitchen", devices.Sleeping, false, start)
	if s := h.stateAt(start.Add(100 * time.Hour)); s != devices.StateAsleep {
		t.Errorf("it sleeps by design, and is %s", s)
	}
}

// TestPulledCable has a device be lost with its port, and judged as before once the
// port is back.
func TestPulledCable(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	now := start
	for range 5 {
		now = now.Add(10 * time.Second)
		h.report(t, taken, now, "temperature", "21")
	}
	now = now.Add(time.Second)
	h.tell("kitchen", devices.Offline, false, now)
	if got := h.stateAt(now); got != devices.StateLost {
		t.Errorf("without its port it is %s", got)
	}
	now = now.Add(time.Second)
	h.tell("kitchen", devices.AvailabilityUnknown, false, now)
	if got := h.stateAt(now); got != devices.StateFresh {
		t.Errorf("back at once it is %s", got)
	}
	h.tell("kitchen", devices.Offline, false, now)
	now = now.Add(10 * time.Minute)
	h.tell("kitchen", devices.AvailabilityUnknown, false, now)
	if got := h.stateAt(now); got != devices.StateLate {
		t.Errorf("back after ten minutes, and silent, it is %s", got)
	}
	h.report(t, taken, now, "temperature", "21")
	if got := h.stateAt(now); got != devices.StateFresh {
		t.Errorf("heard again it is %s", got)
	}
}

// TestRestart keeps what was known, and holds no silence before the start
// against a device.
func TestRestart(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	now := start
	for range 5 {
		now = now.Add(time.Minute)
		h.report(t, taken, now, "temperature", "21.40")
	}
	kept := map[devices.ID][]byte{}
	h.save(func(id devices.ID, b []byte) { kept[id] = b })
	later := now.Add(10 * time.Hour)
	h = newHouse(func(devices.ID) {})
	h.started = later
	h.furnish([]devices.Device{{ID: "kitchen"}}, func(id devices.ID) []byte { return kept[id] })
	p, _ := h.picture("kitchen")
	if p.state != devices.StateFresh || len(p.values) != 1 || p.values[0].Value.String() != "21.40" || !p.since.Equal(now) {
		t.Errorf("after a restart: %+v", p)
	}
	if s := h.stateAt(later.Add(2 * time.Minute)); s != devices.StateFresh {
		t.Errorf("two minutes after the start it is %s", s)
	}
	if s := h.stateAt(later.Add(4 * time.Minute)); s != devices.StateLate {
		t.Errorf("four minutes after the start it is %s", s)
	}
}

func TestRetainedIsNotFresh(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	value := func(v float64, at time.Time) []devices.Reading {
		return []devices.Reading{{Device: "kitchen", Time: at, Fields: []devices.Field{{Name: "temperature", Value: devices.Number(v)}}}}
	}
	if fresh := h.retained(value(20, time.Time{}), at(start)); len(fresh) != 0 {
		t.Error("a retained value without a time is logged")
	}
	if p, _ := h.picture("kitchen"); len(p.values) != 1 || !p.values[0].Uncertain || !p.values[0].Late {
		t.Errorf("it fills what is not known, marked: %+v", p.values)
	}
	h.report(t, taken, start, "temperature", "21")
	if fresh := h.retained(value(20, start.Add(-time.Hour)), at(start)); len(fresh) != 0 {
		t.Error("a retained value older than the log is logged")
	}
	if p, _ := h.picture("kitchen"); p.values[0].Value.Float() != 21 {
		t.Error("a retained value replaced a newer one")
	}
	if fresh := h.retained(value(22, start.Add(time.Second)), at(start)); len(fresh) != 1 {
		t.Error("a retained value that is newer than the log is not logged")
	}
}

// at is an arrival at a time that is known.
func at(t time.Time) arrival { return arrival{now: t, at: t, certain: true} }

// TestParent has a device that is reached through another be lost with it, and
// come back with it, whatever it is itself.
func TestParent(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	var changed []devices.ID
	h, taken := houseOf(t, start)
	h.changed = func(id devices.ID) { changed = append(changed, id) }
	all := []devices.Device{{ID: "kitchen", Parent: "router"}, {ID: "router", Parent: "bridge"}, {ID: "bridge"}, {ID: "ring", Parent: "ring2"}, {ID: "ring2", Parent: "ring"}, {ID: "orphan", Parent: "gone"}}
	h.furnish(all, func(devices.ID) []byte { return nil })
	state := func(id devices.ID) devices.State {
		p, _ := h.picture(id)
		return p.state
	}
	h.report(t, taken, start, "temperature", "21")
	for _, d := range all[1:] {
		h.tell(d.ID, devices.Online, false, start)
	}
	now := start.Add(time.Second)
	changed = nil
	h.tell("bridge", devices.Offline, false, now)
	if state("kitchen") != devices.StateLost || state("router") != devices.StateLost || state("ring") != devices.StateFresh || len(changed) != 3 {
		t.Errorf("the bridge is lost: kitchen is %s, router %s, ring %s; %v changed", state("kitchen"), state("router"), state("ring"), changed)
	}
	h.tick(now.Add(time.Second))
	if state("kitchen") != devices.StateLost {
		t.Errorf("a tick later, kitchen is %s", state("kitchen"))
	}

	// One that speaks is there, whoever passes it on.
	h.report(t, taken, now.Add(2*time.Second), "temperature", "22")
	h.tick(now.Add(3 * time.Second))
	if state("kitchen") != devices.StateFresh || state("router") != devices.StateLost {
		t.Errorf("it speaks: kitchen is %s, router %s", state("kitchen"), state("router"))
	}

	// What it is by itself stays, over a restart too.
	kept := map[devices.ID][]byte{}
	h.save(func(id devices.ID, b []byte) { kept[id] = b })
	h = newHouse(func(devices.ID) {})
	h.started = now.Add(time.Minute)
	h.furnish(all, func(id devices.ID) []byte { return kept[id] })
	h.tick(h.started)
	if state("router") != devices.StateLost || state("kitchen") != devices.StateLost {
		t.Errorf("after a restart: kitchen is %s, router %s", state("kitchen"), state("router"))
	}
	h.tell("bridge", devices.Online, true, h.started.Add(time.Second))
	if state("bridge") != devices.StateFresh || state("router") != devices.StateFresh || state("kitchen") != devices.StateFresh {
		t.Errorf("the bridge is back: bridge is %s, router %s, kitchen %s", state("bridge"), state("router"), state("kitchen"))
	}
}

// TestRetainedOnlineIsNoLife has a broker repeat that a device is online, which
// it was when it became silent.
func TestRetainedOnlineIsNoLife(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	h.tell("kitchen", devices.Online, true, start)
	if s := h.stateAt(start); s != devices.StateFresh {
		t.Errorf("its broker says that it is online, and it is %s", s)
	}
	now := start
	for range 5 {
		now = now.Add(time.Minute)
		h.report(t, taken, now, "temperature", "21")
	}
	now = now.Add(time.Hour)
	if s := h.stateAt(now); s != devices.StateLost {
		t.Fatalf("silent for an hour, it is %s", s)
	}
	h.tell("kitchen", devices.Online, true, now)
	if s := h.stateAt(now); s != devices.StateLost {
		t.Errorf("the broker repeats what it was, and it is %s", s)
	}
	h.tell("kitchen", devices.Online, false, now)
	if s := h.stateAt(now); s != devices.StateFresh {
		t.Errorf("it says that it is online, and is %s", s)
	}
}

// TestSilenceOfAProfile judges silence as a profile says.
func TestSilenceOfAProfile(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		silence devices.Silence
		want    map[time.Duration]devices.State
	}{
		"a time":          {devices.Silence{Lost: 30 * time.Minute}, map[time.Duration]devices.State{29 * time.Minute: devices.StateLate, 31 * time.Minute: devices.StateLost}},
		"asleep":          {devices.Silence{Asleep: true}, map[time.Duration]devices.State{30 * time.Second: devices.StateFresh, 5 * time.Minute: devices.StateAsleep, 24 * time.Hour: devices.StateAsleep, 26 * time.Hour: devices.StateLost}},
		"asleep, a time":  {devices.Silence{Asleep: true, Lost: 3 * time.Hour}, map[time.Duration]devices.State{2 * time.Hour: devices.StateAsleep, 4 * time.Hour: devices.StateLost}},
		"another tells":   {devices.Silence{Usual: true}, map[time.Duration]devices.State{1000 * time.Hour: devices.StateFresh}},
		"by its interval": {devices.Silence{}, map[time.Duration]devices.State{2 * time.Minute: devices.StateLate, 16 * time.Minute: devices.StateLost}},
	} {
		h, taken := houseOf(t, start)
		h.furnish([]devices.Device{{ID: "kitchen", Silence: c.silence}}, func(devices.ID) []byte { return nil })
		now := start
		for range 5 {
			now = now.Add(10 * time.Second)
			h.report(t, taken, now, "temperature", "21.4")
		}
		for silence, want := range c.want {
			if s := h.stateAt(now.Add(silence)); s != want {
				t.Errorf("%s: after %s it is %s, want %s", name, silence, s, want)
			}
		}
		if h.report(t, taken, now.Add(2000*time.Hour), "temperature", "21.5"); h.stateAt(now.Add(2000*time.Hour)) != devices.StateFresh {
			t.Errorf("%s: it speaks, and is not fresh", name)
		}
	}
}

// TestRepetition has a device say the same twice in a moment, as a Tasmota does
// by RESULT and POWER: that is one reading. Later, or another value, is two.
func TestRepetition(t *testing.T) {
	start := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	h, taken := houseOf(t, start)
	says := func(v string) []devices.Reading {
		n, _ := devices.ParseNumber(v)
		return []devices.Reading{{Device: "kitchen", Fields: []devices.Field{{Name: "power", Value: n}}}}
	}
	if news := h.without(says("1"), at(start)); len(news) != 1 {
		t.Error("the first is a repetition")
	}
	h.report(t, taken, start, "power", "1")
	for _, c := range []struct {
		value string
		after time.Duration
		want  int
	}{{"1", time.Second, 0}, {"0", time.Second, 1}, {"1", time.Minute, 1}} {
		if news := h.without(says(c.value), at(start.Add(c.after))); len(news) != c.want {
			t.Errorf("%s after %s brings %d readings, want %d", c.value, c.after, len(news), c.want)
		}
	}
}
