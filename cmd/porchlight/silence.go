package main

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/watch"
)

// silentAfter is for how long nothing comes of a gateway that has fallen silent:
// it reports on itself each minute.
const silentAfter = 5 * time.Minute

// A silence says once when a gateway falls silent that was heard before, and
// when it is heard again. That may be the gateway, its power, or its network:
// the presence of a component outlives it.
type silence struct {
	watch.Handler
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	up    bool
	heard map[string]time.Time
	said  map[string]bool
}

func newSilence(h watch.Handler, log *slog.Logger) *silence {
	return &silence{Handler: h, log: log, now: time.Now, heard: make(map[string]time.Time), said: make(map[string]bool)}
}

// Reading implements [watch.Handler].
func (s *silence) Reading(r watch.Reading) {
	gateway, _, _ := strings.Cut(r.Node, "/")
	s.mu.Lock()
	s.heard[gateway] = s.now()
	if s.said[gateway] {
		delete(s.said, gateway)
		s.log.Info("the gateway is heard again", "gateway", gateway)
	}
	s.mu.Unlock()
	s.Handler.Reading(r)
}

// Link implements [watch.Handler]: that of our own link is nobody's silence.
func (s *silence) Link(up bool) {
	s.mu.Lock()
	s.up = up
	for gateway := range s.heard {
		s.heard[gateway] = s.now()
	}
	s.mu.Unlock()
	s.Handler.Link(up)
}

// watch looks until ctx ends.
func (s *silence) watch(ctx context.Context) {
	tick := time.NewTicker(silentAfter / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.look()
		}
	}
}

func (s *silence) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.up {
		return
	}
	for gateway, last := range s.heard {
		if !s.said[gateway] && s.now().Sub(last) >= silentAfter {
			s.said[gateway] = true
			s.log.Warn("the gateway has fallen silent", "gateway", gateway, "since", last.Format(time.DateTime))
		}
	}
}
