package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// The links that can fail: of the gateway to the XMPP server and to the
// broker, and of devices to the gateway's own broker.
const (
	linkXMPP    = "xmpp"
	linkBroker  = "broker"
	linkDevices = "devices"
)

// A kind is a kind of fault.
type kind struct {
	name   string
	weight int
	lasts  bool // it goes on for a time
	link   bool // it happens to a link
	disk   bool // it needs a disk that can fail
}

func kinds() []kind {
	return []kind{
		{name: "kill", weight: 5},
		{name: "term", weight: 2},
		{name: "stop", weight: 1, lasts: true},
		{name: "power-cut", weight: 5, disk: true},
		{name: "lying-card", weight: 1, lasts: true, disk: true},
		{name: "disk-full", weight: 1, lasts: true, disk: true},
		{name: "disk-read-only", weight: 1, lasts: true, disk: true},
		{name: "disk-bad-writes", weight: 1, lasts: true, disk: true},
		{name: "disk-bad-syncs", weight: 1, lasts: true, disk: true},
		{name: "clock-step", weight: 1, lasts: true},
		{name: "clock-slew", weight: 1, lasts: true},
		{name: "clock-1970", weight: 1, lasts: true},
		{name: "broker-stop", weight: 1, lasts: true},
		{name: "broker-kill", weight: 2, lasts: true},
		{name: "broker-stall", weight: 1, lasts: true},
		{name: "server-stop", weight: 1, lasts: true},
		{name: "server-kill", weight: 2, lasts: true},
		{name: "server-stall", weight: 1, lasts: true},
		{name: "link-cut", weight: 2, lasts: true, link: true},
		{name: "link-flap", weight: 1, lasts: true, link: true},
		{name: "link-held", weight: 2, lasts: true, link: true},
		{name: "link-up-held", weight: 1, lasts: true, link: true},
		{name: "link-down-held", weight: 2, lasts: true, link: true},
		{name: "link-slow", weight: 1, lasts: true, link: true},
		{name: "link-half-open", weight: 1, link: true},
	}
}

// A fault happens once.
type fault struct {
	kind
	at    time.Duration // after the beginning of the cycle
	until time.Duration // of one that lasts
	link  string
	seed  uint64 // of what chance decides in it
}

func (f fault) String() string {
	s := fmt.Sprintf("%.1fs %s", f.at.Seconds(), f.name)
	if f.link != "" {
		s += " " + f.link
	}
	if f.lasts {
		s += fmt.Sprintf(" for %.1fs", (f.until - f.at).Seconds())
	}
	return s
}

// plan gives the faults of one cycle: one to three, of the kinds that are
// allowed. The same arguments give the same plan.
func plan(seed uint64, cycle int, allowed []kind) []fault {
	r := rand.New(rand.NewPCG(seed, uint64(cycle)))
	total := 0
	for _, k := range allowed {
		total += k.weight
	}
	var faults []fault
	for range 1 + r.IntN(3) {
		f := fault{at: moment(r), seed: r.Uint64()}
		left := r.IntN(total)
		for _, k := range allowed {
			if left -= k.weight; left < 0 {
				f.kind = k
				break
			}
		}
		if f.until = f.at; f.lasts {
			f.until += moment(r)
		}
		if f.kind.link {
			f.link = []string{linkXMPP, linkBroker, linkDevices}[r.IntN(3)]
		}
		faults = append(faults, f)
	}
	slices.SortFunc(faults, func(a, b fault) int { return int(a.at - b.at) })
	return faults
}

// moment is mostly short, and from 200 ms to 3 s.
func moment(r *rand.Rand) time.Duration {
	d := time.Duration(r.ExpFloat64() * float64(time.Second))
	return min(max(d, 200*time.Millisecond), 3*time.Second)
}

// choose gives the kinds whose names are in a list with commas, or begin with
// a word of it that ends in a hyphen; "" is all. Without a disk those that need
// one are left out.
func choose(list string, disk bool) ([]kind, error) {
	var chosen []kind
	for _, k := range kinds() {
		if wanted := list == "" || slices.ContainsFunc(strings.Split(list, ","), func(word string) bool {
			return word == k.name || strings.HasSuffix(word, "-") && strings.HasPrefix(k.name, word)
		}); wanted && (disk || !k.disk) {
			chosen = append(chosen, k)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("there are no faults to choose from in %q", list)
	}
	return chosen, nil
}
