package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/watch"
)

func TestSilence(t *testing.T) {
	var log bytes.Buffer
	clock := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	s := newSilence(newPrinter(&bytes.Buffer{}, slog.New(slog.DiscardHandler), func(error) {}), slog.New(slog.NewTextHandler(&log, nil)))
	s.now = func() time.Time { return clock }
	said := func(want ...string) {
		t.Helper()
		s.look()
		if n := strings.Count(log.String(), "\n"); n != len(want) {
			t.Errorf("%d lines, want %d: %s", n, len(want), &log)
		}
		for _, w := range want {
			if !strings.Contains(log.String(), w) {
				t.Errorf("%q is not said: %s", w, &log)
			}
		}
		log.Reset()
	}
	s.Link(true)
	s.Reading(watch.Reading{Node: "one/gateway/log", Device: "gateway"})
	s.Reading(watch.Reading{Node: "two/gateway/log", Device: "gateway"})
	clock = clock.Add(silentAfter - time.Second)
	s.Reading(watch.Reading{Node: "two/kitchen/log", Device: "kitchen"})
	said()
	clock = clock.Add(time.Second)
	said("fallen silent\" gateway=one")
	clock = clock.Add(silentAfter)
	said("gateway=two")
	said()
	s.Reading(watch.Reading{Node: "one/gateway/log", Device: "gateway"})
	said("heard again\" gateway=one")
	// While we hear nobody, nobody is silent.
	s.Link(false)
	clock = clock.Add(time.Hour)
	said()
	s.Link(true)
	said()
	clock = clock.Add(silentAfter)
	said("fallen silent\" gateway=one")
}
