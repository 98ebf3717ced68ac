package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/porchlight-iot/porchlight/agent"
)

// A served gateway is what a service manager is told of.
type served interface {
	Ready() <-chan struct{}
	Stuck() []string
	Stats() agent.Stats
}

// statusEvery is how often a service manager is told how it goes.
const statusEvery = 30 * time.Second

// serve tells the service manager, where there is one (sd_notify(3)), when the
// gateway is ready and how it goes, until ctx ends. It feeds the watchdog
// only while no part of the gateway is stuck.
func serve(ctx context.Context, g served, log *slog.Logger) {
	tell := func(state ...string) bool {
		sent, err := daemon.SdNotify(false, strings.Join(state, "\n"))
		if err != nil {
			log.Warn("cannot tell the service manager", "error", err)
		}
		return sent
	}
	select {
	case <-ctx.Done():
		return
	case <-g.Ready():
	}
	if !tell(daemon.SdNotifyReady, statusLine(g)) {
		return // nobody asked for it
	}
	every := statusEvery
	// The process that systemd means is checked by the library.
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the watchdog is not fed", "error", err)
	}
	if watchdog > 0 {
		every = min(every, watchdog/4)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			tell(daemon.SdNotifyStopping, "STATUS=saying goodbye")
			return
		case <-tick.C:
		}
		stuck := strings.Join(g.Stuck(), ", ")
		if stuck != said {
			said = stuck
			if stuck != "" {
				log.Error("a part of the gateway does not get on; the watchdog is not fed", "parts", stuck)
			}
		}
		switch {
		case stuck != "":
			tell("STATUS=stuck: " + stuck)
		case watchdog > 0:
			tell(daemon.SdNotifyWatchdog, statusLine(g))
		default:
			tell(statusLine(g))
		}
	}
}

// statusLine is what systemctl status shows.
func statusLine(g served) string {
	s := g.Stats()
	line := fmt.Sprintf("STATUS=%d readings wait", s.Waiting)
	switch {
	case s.Online:
		line += ", the server is there"
	case s.Passive:
		line += ", another gateway is at work in this one's place"
	default:
		line += ", no server"
	}
	if s.Outbox.Fault != "" {
		line += "; the store cannot be written: " + strings.ReplaceAll(s.Outbox.Fault, "\n", " ")
	}
	return line
}
