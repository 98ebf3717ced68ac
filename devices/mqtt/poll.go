package mqtt

import (
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// leastPoll is how long nothing is asked twice: a device may come online again
// and again.
const leastPoll = time.Minute

// pollEvery is how often it is looked which questions are due.
const pollEvery = time.Second

// A question is one of those that a profile has for a device.
type question struct {
	profile, identity, on string
	number                int
}

// An asked question was.
type asked struct {
	at    time.Time
	every time.Duration // 0: it is not to be asked again by itself
}

// questions gives what is to be asked because of what a configured device said.
func (e *ear) questions(profileID string, o profile.Output, now time.Time) (all []profile.Outgoing) {
	if e.session == nil || o.Identity == "" {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	all = e.ask(profileID, o.Identity, "", now)
	if o.Availability == devices.Online {
		all = append(all, e.ask(profileID, o.Identity, "online", now)...)
	}
	if o.Unannounced {
		all = append(all, e.ask(profileID, o.Identity, "unannounced", now)...)
	}
	return all
}

// ask gives the questions of a kind that were not asked lately. It is called
// with e.mu held.
func (e *ear) ask(profileID, identity, on string, now time.Time) (all []profile.Outgoing) {
	outs, every := e.session.Polls(profileID, identity, on)
	for i, out := range outs {
		q := question{profileID, identity, on, i}
		before, again := e.asked[q]
		if again && now.Sub(before.at) < max(leastPoll, before.every) || !again && len(e.asked) >= maxAnnounced {
			continue
		}
		e.asked[q] = asked{now, every[i]}
		all = append(all, out)
	}
	return all
}

// due gives the questions whose time has come again, of devices that are still
// configured.
func (e *ear) due(d *directory, now time.Time) (all []profile.Outgoing) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for q, a := range e.asked {
		if a.every == 0 || now.Sub(a.at) < a.every {
			continue
		}
		if q.identity != "" && d.named(e.family(q.profile), q.identity) == nil {
			delete(e.asked, q)
			continue
		}
		outs, _ := e.session.Polls(q.profile, q.identity, q.on)
		if q.number < len(outs) {
			all = append(all, outs[q.number])
		}
		e.asked[q] = asked{now, a.every}
	}
	return all
}

// begin gives what to ask all devices of the configured profiles.
func (e *ear) begin(d *directory, now time.Time) (all []profile.Outgoing) {
	if e.session == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	done := make(map[string]bool)
	for i := range d.devices {
		if id := d.devices[i].Profile.ID(); !done[id] {
			done[id] = true
			all = append(all, e.ask(id, "", "start", now)...)
		}
	}
	return all
}
