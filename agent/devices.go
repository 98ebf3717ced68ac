package agent

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/aboard"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// admitDue admits devices of which nobody has to be asked, until ctx ends.
func (a *Agent) admitDue(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.aboard.Due():
		}
		admitted, err := a.aboard.AdmitDue()
		if err != nil {
			a.log.Error("unknown devices stay pending", "error", err)
		}
		if len(admitted) == 0 {
			continue
		}
		if err := a.refresh(); err != nil {
			a.log.Error("the files of devices have faults", "error", err)
		}
	}
}

// Admit takes in a device that is pending under a number or an id, or was
// refused, and gives its id. The gateway hears it from then on.
func (a *Agent) Admit(which string, t aboard.Terms) (devices.ID, error) {
	d, err := a.aboard.Admit(which, t)
	if err != nil {
		return "", err
	}
	return d.ID, a.refresh()
}

// Refuse has a pending device stay away, and gives the id that it would have.
func (a *Agent) Refuse(which string) (devices.ID, error) { return a.aboard.Refuse(which) }

// Rename changes what people call a device that has its own file.
func (a *Agent) Rename(id devices.ID, name string) error {
	if err := a.aboard.Rename(id, name); err != nil {
		return err
	}
	return a.refresh()
}

// Remove takes out a device that has its own file, and has it stay away.
func (a *Agent) Remove(id devices.ID) error {
	if err := a.aboard.Remove(id); err != nil {
		return err
	}
	return a.refresh()
}

// refresh takes over the files of devices as they are now. The error tells of
// those that have faults, whose devices are not there; the others are.
func (a *Agent) refresh() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx == nil {
		return nil // it stops, and reads them at its next start
	}
	at := a.profiles
	next, faults := a.config.Refresh(loadOptions(func(string) (*profile.Library, error) { return at, nil }))
	if next != nil {
		a.change(next)
	}
	return faults.Err()
}

// restartEvent tells that a counter began anew, so that who adds up its rises
// does not take the fall for one.
func restartEvent(r restart) bridge.Event {
	return bridge.Event{
		ID: fmt.Sprintf("device-%s-%s-anew-%d", r.device, r.field.Name, r.at.UnixMicro()), Time: r.at,
		Category: "device", Device: r.device, Title: fmt.Sprintf("%s: %s counts anew", r.device, r.field.Name),
		Summary: strings.TrimSpace(fmt.Sprintf("it was at %s and is at %s %s", r.before, r.field.Value, r.field.Unit)),
	}
}

// deviceEvents tells what became of which device between two configs.
func deviceEvents(before, after []config.Device, now time.Time) []bridge.Event {
	var all []bridge.Event
	tell := func(d config.Device, what, summary string) {
		all = append(all, bridge.Event{
			ID: fmt.Sprintf("device-%s-%s-%d", d.ID, strings.ReplaceAll(what, " ", "-"), now.UnixMicro()), Time: now,
			Category: "device", Device: d.ID, Title: fmt.Sprintf("%s: %s", d.ID, what), Summary: summary,
		})
	}
	old := make(map[devices.ID]config.Device, len(before))
	for _, d := range before {
		old[d.ID] = d
	}
	for _, d := range after {
		was, there := old[d.ID]
		delete(old, d.ID)
		switch {
		case !there:
			tell(d, "added", fmt.Sprintf("%s, by the profile %s; %s", d.Name, d.Profile, aboard.WayOf(d)))
			continue
		case was.Name != d.Name:
			tell(d, "renamed", fmt.Sprintf("it was called %s and is called %s", was.Name, d.Name))
		}
		if was.Profile != d.Profile || !reflect.DeepEqual([]any{was.MQTT, was.Serial, was.CoAP}, []any{d.MQTT, d.Serial, d.CoAP}) {
			tell(d, "moved", fmt.Sprintf("it was heard as %s, by the profile %s; now as %s, by %s", aboard.WayOf(was), was.Profile, aboard.WayOf(d), d.Profile))
		}
	}
	for _, d := range before {
		if _, gone := old[d.ID]; gone {
			tell(d, "removed", d.Name)
		}
	}
	return all
}

// A DeviceLine is a device as `porchlight devices` tells it.
type DeviceLine struct {
	ID      devices.ID `json:"id"`
	Name    string     `json:"name"`
	Profile string     `json:"profile"`
	Way     string     `json:"way"` // how it is reached
	// Written is the file of its configuration, and Own whether that has this
	// device alone.
	Written string `json:"written"`
	Own     bool   `json:"own"`
	// Of a gateway at work:
	State  string       `json:"state,omitempty"`
	Since  *time.Time   `json:"since,omitempty"` // of its newest reading
	Fields []StoreField `json:"fields,omitempty"`
}

// A PendingLine is a device that `porchlight devices pending` tells of.
type PendingLine struct {
	Number   int          `json:"number,omitempty"`
	ID       devices.ID   `json:"id"`
	Name     string       `json:"name"`
	Model    string       `json:"model,omitempty"`
	Profile  string       `json:"profile"`
	Way      string       `json:"way"`
	Also     []string     `json:"also,omitempty"`   // other ways
	SameAs   devices.ID   `json:"sameAs,omitempty"` // the configured device that it seems to be
	Refused  bool         `json:"refused,omitempty"`
	Heard    *time.Time   `json:"heard,omitempty"`
	Messages int          `json:"messages,omitempty"`
	Retained bool         `json:"retained,omitempty"` // a broker kept what is shown; it may be old
	Fields   []StoreField `json:"fields,omitempty"`
}

// deviceLines tells of a config's devices, and with a gateway how they are.
func deviceLines(c *config.Config, a *Agent) []DeviceLine {
	lines := make([]DeviceLine, 0, len(c.Devices))
	for _, d := range c.Devices {
		l := DeviceLine{ID: d.ID, Name: d.Name, Profile: d.Profile, Way: aboard.WayOf(d)}
		l.Written, _, l.Own = c.Written(d.ID)
		if a != nil {
			if p, ok := a.house.picture(d.ID); ok {
				l.State = a.alarms.shown(d.ID, p.state).String()
				if !p.since.IsZero() {
					l.Since = &p.since
				}
				for _, v := range p.values {
					l.Fields = append(l.Fields, storeField(v.Field))
				}
			}
		}
		lines = append(lines, l)
	}
	slices.SortStableFunc(lines, func(x, y DeviceLine) int { return strings.Compare(string(x.ID), string(y.ID)) })
	return lines
}

// pendingLines tells of those that wait, then of those that were refused.
func (a *Agent) pendingLines() []PendingLine {
	var lines []PendingLine
	for _, p := range a.aboard.Pending() {
		l := PendingLine{
			Number: p.Number, ID: p.ID, Name: p.Label(), Model: p.Model, Profile: p.Profile, Way: p.Way(), Also: p.Also,
			SameAs: p.SameAs, Heard: &p.Heard, Messages: p.Messages, Retained: p.Retained,
		}
		for _, f := range p.Sample {
			l.Fields = append(l.Fields, storeField(f))
		}
		lines = append(lines, l)
	}
	return append(lines, refusedLines(a.aboard)...)
}

func refusedLines(r *aboard.Registry) []PendingLine {
	var lines []PendingLine
	for _, d := range r.Refused() {
		lines = append(lines, PendingLine{ID: d.ID, Name: d.Label(), Model: d.Model, Profile: d.Profile, Way: d.Way(), Refused: true})
	}
	return lines
}
