package agent

import (
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// Grants are those of a config, with addresses in the form that stanzas have.
func Grants(c *config.Config) access.Grants {
	var all access.Grants
	for _, o := range c.Operators {
		role, _ := access.ParseRole(o.Role) // the config was checked
		g := access.Grant{JID: o.JID, Role: role, Devices: o.Devices, Hours: o.Hours, Until: o.Until}
		if j, err := bridge.ParseJID(o.JID); err == nil {
			g.JID = j.Bare().String()
		}
		all = append(all, g)
	}
	return all
}

// An authorizer answers by the newest grants.
type authorizer struct {
	registry *access.Registry
	now      func() access.Moment
}

// Operators implements [bridge.Authorizer].
func (a *authorizer) Operators() []bridge.JID {
	return addresses(a.registry.Grants().People(access.Viewer, a.now()))
}

// addresses gives those of people; what is none is left out.
func addresses(people []string) (jids []bridge.JID) {
	for _, person := range people {
		if j, err := bridge.ParseJID(person); err == nil { // the config and the file were checked
			jids = append(jids, j)
		}
	}
	return jids
}

// MaySee implements [bridge.Authorizer].
func (a *authorizer) MaySee(who bridge.JID, device devices.ID) bool {
	return a.May(who, bridge.MayRead, device)
}

// MaySeeEvents implements [bridge.Authorizer].
func (a *authorizer) MaySeeEvents(who bridge.JID) bool {
	return a.May(who, bridge.MayInstall, "")
}

// May implements [bridge.Authorizer].
func (a *authorizer) May(who bridge.JID, right bridge.Right, device devices.ID) bool {
	all, role, bare := a.registry.Grants(), access.Viewer+access.Role(right), who.Bare().String()
	if device == "" {
		return all.Plays(bare, role, a.now())
	}
	return all.Allows(bare, role, device, a.now())
}

// AtOtherTimes implements [bridge.Authorizer].
func (a *authorizer) AtOtherTimes(who bridge.JID, device devices.ID) bool {
	return a.registry.Grants().Sometimes(who.Bare().String(), device, a.now())
}

// may reports whether the author of a command, a full JID, has a right on a
// device. "" is one who may use the data directory, and may do all.
func (a *Agent) may(author string, right bridge.Right, device devices.ID) bool {
	if author == "" {
		return true
	}
	who, err := bridge.ParseJID(author)
	return err == nil && a.auth.May(who, right, device)
}

// moment is the present for grants, a moment ago at most: rights are asked for
// so often that the kernel is not each time. While the time is not known it is
// the earliest that it can be, so that a board without a clock does not bring
// back what has ended.
func (t *timing) moment() access.Moment {
	if t.clock == nil {
		return access.Moment{Time: time.Now()}
	}
	now := time.Now()
	if last := t.lately.Load(); last != nil && now.Sub(last.at) < momentFor {
		return last.moment
	}
	at, known := t.clock.Time()
	if !known {
		at = t.clock.VerifyTime()
	}
	fresh := &lately{access.Moment{Time: at, Known: known}, now}
	t.lately.Store(fresh)
	return fresh.moment
}

// momentFor is for how long a moment is the present.
const momentFor = 100 * time.Millisecond

type lately struct {
	moment access.Moment
	at     time.Time
}

// openAccess makes the registry of grants.
func (a *Agent) openAccess(c *config.Config) {
	var err error
	a.access, err = access.Open(access.Options{Dir: c.Gateway.DataDir, Now: a.timing.moment, CheckJID: bridge.ValidJID, Log: a.log})
	if err != nil {
		a.log.Error("what was granted and revoked in chat cannot be read; until it is mended and read again, only owners of the config may do anything", "error", err)
	}
	a.access.Configure(Grants(c))
	a.auth = authorizer{a.access, a.timing.moment}
}

// granted has everybody know that the grants changed.
func (a *Agent) granted() {
	if err := a.access.OfferClaim(); err != nil {
		a.log.Error("the code to claim the gateway is only in the log", "error", err)
	}
	a.bridge.Regrant()
	a.orders.review()
}

// passing notices when grants begin or cease to hold as time passes.
func (a *Agent) passing() {
	holding := a.access.Grants().Holding(a.timing.moment())
	if !slices.Equal(holding, a.holding) {
		a.holding = holding
		a.granted()
	}
}
