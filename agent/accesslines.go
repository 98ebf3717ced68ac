package agent

import (
	"encoding/json"
	"io"
	"log/slog"
	"time"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// An AccessLine is what `porchlight access` tells: a grant, or with a number
// somebody who waits to be let in.
type AccessLine struct {
	JID     string       `json:"jid"`
	Role    string       `json:"role,omitempty"`
	Devices []string     `json:"devices,omitempty"` // patterns; absent: all
	Hours   string       `json:"hours,omitempty"`
	Until   string       `json:"until,omitempty"`
	Holds   bool         `json:"holds"`        // now
	By      string       `json:"by,omitempty"` // who granted it; absent: the config
	Number  int          `json:"number,omitempty"`
	Wants   []devices.ID `json:"wants,omitempty"`
}

// Access writes who is granted what, by a config and by what was granted since,
// and who waits, JSON a line each.
func Access(c *config.Config, w io.Writer) error {
	now := func() access.Moment { return access.Moment{Time: time.Now(), Known: true} }
	r, err := access.Open(access.Options{Dir: c.Gateway.DataDir, Now: now, CheckJID: bridge.ValidJID, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	r.Configure(Grants(c))
	var lines []AccessLine
	all := r.Grants()
	for i, holds := range all.Holding(now()) {
		g := all[i]
		l := AccessLine{JID: g.JID, Role: g.Role.String(), Devices: g.Devices, Hours: g.Hours.String(), Holds: holds, By: g.By}
		if !g.Until.IsZero() {
			l.Until = g.Until.String()
		}
		lines = append(lines, l)
	}
	for _, p := range r.Waiting() {
		lines = append(lines, AccessLine{JID: p.JID, Number: p.Number, Wants: p.Wants})
	}
	return encodeAll(json.NewEncoder(w), lines)
}
