package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

// greetingFile is in the data directory of a gateway that has not said hello to
// its owners yet.
const greetingFile = "greeting"

// A greeting is the first that an owner hears of a new gateway: that it is
// there, and what can be said to it. It is said once, also where the server, or
// the first owner, comes days later.
type greeting struct {
	path   string
	due    bool // only used by the one who ticks
	owners func() []bridge.JID
	people messenger
	online func() bool
	text   func() string
	log    *slog.Logger
}

// open makes the greeting of a new gateway due, and finds one that was not said.
func (g *greeting) open(fresh bool) error {
	if fresh {
		if err := durable.Replace(g.path, nil); err != nil {
			return err
		}
	}
	_, err := os.Stat(g.path)
	g.due = err == nil
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return err
}

// say says hello where that is due and possible.
func (g *greeting) say(ctx context.Context) {
	if !g.due || !g.online() {
		return
	}
	to := g.owners()
	if len(to) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	if err := g.people.Tell(ctx, to, devices.Gateway, g.text()); err != nil {
		g.log.Warn("not all owners were greeted", "error", err)
		return // it is tried again
	}
	g.due = false
	if err := os.Remove(g.path); err != nil {
		g.log.Warn("owners may be greeted again", "error", err)
	}
}

func (a *Agent) newGreeting(path string) *greeting {
	return &greeting{
		path: path, people: a.bridge, online: a.forward.isOnline, log: a.log,
		owners: func() []bridge.JID { return addresses(a.access.Grants().People(access.Owner, a.timing.moment())) },
		text: func() string {
			a.mu.Lock()
			defer a.mu.Unlock()
			known := map[int]string{0: "I know no devices yet", 1: "I know one device"}[len(a.config.Devices)]
			if known == "" {
				known = fmt.Sprintf("I know %d devices", len(a.config.Devices))
			}
			return fmt.Sprintf("This is the gateway %s, and it works. %s, and tell you when others speak up. Write help to see what you can say, or status for how I am.", a.config.Gateway.ID, known)
		},
	}
}
