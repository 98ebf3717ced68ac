// Package access decides who may do what, and when: by the config, and by what
// owners granted and revoked since, which a [Registry] keeps in a file.
package access

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/calendar"
	"github.com/porchlight-iot/porchlight/devices"
)

// A Role is what somebody may do. Each includes those before it.
type Role int

// The roles.
const (
	Viewer    Role = iota + 1 // sees, reads, subscribes
	Operator                  // sets, acknowledges
	Installer                 // devices, config
	Owner                     // grants
)

var roleNames = [...]string{Viewer: "viewer", Operator: "operator", Installer: "installer", Owner: "owner"}

// ParseRole reads a role as it is written in the config.
func ParseRole(s string) (Role, bool) {
	i := slices.Index(roleNames[:], s)
	return Role(i), i >= int(Viewer)
}

// String gives the role as it is written.
func (r Role) String() string { return roleNames[r] }

// CheckPattern says why a pattern cannot be one of devices; nil where it can.
func CheckPattern(pattern string) error {
	_, err := path.Match(pattern, "")
	// Ids have no other characters, so such a pattern could never match.
	bad := strings.Trim(pattern, `abcdefghijklmnopqrstuvwxyz0123456789-*?[]^`)
	if pattern == "" || bad != "" || err != nil {
		return fmt.Errorf("%.60q cannot match a device's id", pattern)
	}
	return nil
}

// A Moment is the present, as well as it is known. Where it is not known, Time
// is the earliest that it can be.
type Moment struct {
	Time  time.Time
	Known bool
}

// A Grant lets somebody play a role, perhaps narrowed.
type Grant struct {
	JID     string // bare
	Role    Role
	Devices []string       // patterns as of path.Match; none means all
	Hours   calendar.Hours // zero means always
	Until   calendar.Date  // its first moment, in the zone of Hours, is the end; zero means for good
	By      string         // who granted it; "" is the config
	At      time.Time      // when; zero where By is ""
}

// over reports whether the grant has ended.
func (g Grant) over(now Moment) bool {
	return !g.Until.IsZero() && !now.Time.Before(g.Until.Midnight(g.Hours.Location()))
}

// holds reports whether the grant counts at a time. Hours that cannot be
// compared with the time do not.
func (g Grant) holds(now Moment) bool {
	return !g.over(now) && (g.Hours.IsZero() || now.Known && g.Hours.Contains(now.Time))
}

// covers reports whether the grant is for a device.
func (g Grant) covers(device devices.ID) bool {
	if len(g.Devices) == 0 {
		return true
	}
	for _, pattern := range g.Devices {
		if ok, _ := path.Match(pattern, string(device)); ok {
			return true
		}
	}
	return false
}

// within reports whether g lets nobody do what the grant outer does not, as far
// as that can be seen: of patterns with wildcards only the same are within each
// other, and of hours.
func (g Grant) within(outer Grant) bool {
	if g.Role > outer.Role {
		return false
	}
	if len(outer.Devices) > 0 {
		inside := func(pattern string) bool {
			return slices.Contains(outer.Devices, pattern) || !strings.ContainsAny(pattern, `*?[`) && outer.covers(devices.ID(pattern))
		}
		if len(g.Devices) == 0 || slices.ContainsFunc(g.Devices, func(p string) bool { return !inside(p) }) {
			return false
		}
	}
	if !outer.Hours.IsZero() && g.Hours != outer.Hours {
		return false
	}
	if outer.Until.IsZero() {
		return true
	}
	end := outer.Until.Midnight(outer.Hours.Location())
	return !g.Until.IsZero() && !g.Until.Midnight(g.Hours.Location()).After(end)
}

// Grants are all that is granted. They do not change; the zero value grants
// nothing.
type Grants []Grant

// People gives the bare JIDs of all who have at least a role, on any device, at
// a time, each once.
func (gs Grants) People(role Role, now Moment) []string {
	return gs.who(func(g Grant) bool { return g.Role >= role && g.holds(now) })
}

// Duty gives the bare JIDs of all who have at least a role on a device at a
// time, each once.
func (gs Grants) Duty(role Role, device devices.ID, now Moment) []string {
	return gs.who(func(g Grant) bool { return g.Role >= role && g.covers(device) && g.holds(now) })
}

func (gs Grants) who(counts func(Grant) bool) (people []string) {
	seen := make(map[string]bool)
	for _, g := range gs {
		if !seen[g.JID] && counts(g) {
			seen[g.JID] = true
			people = append(people, g.JID)
		}
	}
	return people
}

// Allows reports whether somebody may act in a role on a device.
func (gs Grants) Allows(who string, role Role, device devices.ID, now Moment) bool {
	return slices.ContainsFunc(gs, func(g Grant) bool {
		return g.JID == who && g.Role >= role && g.covers(device) && g.holds(now)
	})
}

// Plays reports whether somebody has a role on any device.
func (gs Grants) Plays(who string, role Role, now Moment) bool {
	return slices.ContainsFunc(gs, func(g Grant) bool { return g.JID == who && g.Role >= role && g.holds(now) })
}

// Sometimes reports whether somebody has a role on a device, or on any where
// that is "", at the present or a later time.
func (gs Grants) Sometimes(who string, device devices.ID, now Moment) bool {
	return slices.ContainsFunc(gs, func(g Grant) bool {
		return g.JID == who && !g.over(now) && (device == "" || g.covers(device))
	})
}

// mayGive reports whether somebody is an owner of all that a grant is about.
func (gs Grants) mayGive(by string, g Grant, now Moment) bool {
	return slices.ContainsFunc(gs, func(own Grant) bool {
		return own.JID == by && own.Role == Owner && own.holds(now) && g.within(own)
	})
}

// owned reports whether somebody is or will be an owner, of everything where
// that is asked for.
func (gs Grants) owned(all bool, now Moment) bool {
	return slices.ContainsFunc(gs, func(g Grant) bool { return g.Role == Owner && (!all || len(g.Devices) == 0) && !g.over(now) })
}

// Holding says of each grant whether it holds at a time, so that what was told
// to others by it can be told anew when that changes.
func (gs Grants) Holding(now Moment) []bool {
	all := make([]bool, len(gs))
	for i, g := range gs {
		all[i] = g.holds(now)
	}
	return all
}
