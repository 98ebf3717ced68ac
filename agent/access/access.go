// Package access decides who may do what, and when.
package access

import (
	"path"
	"slices"
	"time"

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

// ParseRole reads a role as it is written in the config.
func ParseRole(s string) (Role, bool) {
	for i, name := range []string{"viewer", "operator", "installer", "owner"} {
		if s == name {
			return Viewer + Role(i), true
		}
	}
	return 0, false
}

// A Grant lets somebody play a role, perhaps narrowed.
type Grant struct {
	JID     string // bare
	Role    Role
	Devices []string             // patterns as of path.Match; none means all
	Hours   func(time.Time) bool // nil means always
	Until   time.Time            // exclusive; zero means for good
}

// holds reports whether the grant counts at a time.
func (g Grant) holds(now time.Time) bool {
	return (g.Until.IsZero() || now.Before(g.Until)) && (g.Hours == nil || g.Hours(now))
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

// Grants are all that is granted. They do not change; the zero value grants
// nothing.
type Grants []Grant

// People gives the bare JIDs of all who are granted anything at a time, each
// once.
func (gs Grants) People(now time.Time) []string {
	var people []string
	seen := make(map[string]bool)
	for _, g := range gs {
		if g.holds(now) && !seen[g.JID] {
			seen[g.JID] = true
			people = append(people, g.JID)
		}
	}
	return people
}

// Allows reports whether somebody may act in a role on a device.
func (gs Grants) Allows(who string, role Role, device devices.ID, now time.Time) bool {
	for _, g := range gs {
		if g.JID == who && g.Role >= role && g.holds(now) && g.covers(device) {
			return true
		}
	}
	return false
}

// Plays reports whether somebody has a role on any device.
func (gs Grants) Plays(who string, role Role, now time.Time) bool {
	for _, g := range gs {
		if g.JID == who && g.Role >= role && g.holds(now) {
			return true
		}
	}
	return false
}

// Change reports whether any grant begins or ceases to hold between two times,
// so that what was told to others by it is to be told anew.
func (gs Grants) Change(from, to time.Time) bool {
	return slices.ContainsFunc(gs, func(g Grant) bool { return g.holds(from) != g.holds(to) })
}
