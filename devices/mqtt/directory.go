package mqtt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// A Decoder understands one firmware's topics and messages. A
// *[profile.Profile] is one.
type Decoder interface {
	ID() string
	// Family is the profile whose devices these are: ID, but for some.
	Family() string
	// Filters are what to subscribe to for a device, SharedFilters what for
	// all of the firmware together.
	Filters(at profile.Place) []string
	SharedFilters() []string
	// Matches reports whether a topic is the device's. It is only asked about
	// topics in which at.Topic stands as whole levels.
	Matches(at profile.Place, topic string) bool
	Decode(at profile.Place, m profile.Message) (profile.Output, error)
}

// A Device is one device on a broker.
type Device struct {
	devices.Device
	Profile Decoder
	Place   profile.Place
	Broker  string // name of the broker it is on; "" for any
	// Identity is the firmware's own name of it, where Place.Topic is not.
	Identity string
}

// The bounds of a topic.
const (
	maxTopic  = 1024 // bytes
	maxLevels = 16
)

// checkTopic refuses what a publication's topic may not be (MQTT-1.5.3-1,
// MQTT-1.5.3-2, MQTT-3.3.2-2), and what nobody needs.
func checkTopic(topic string) error {
	switch {
	case topic == "":
		return errors.New("the topic is empty")
	case len(topic) > maxTopic:
		return fmt.Errorf("the topic has %d bytes, at most %d are taken", len(topic), maxTopic)
	case !utf8.ValidString(topic) || strings.ContainsRune(topic, 0):
		return errors.New("the topic is not UTF-8, or has a NUL")
	case strings.ContainsAny(topic, "+#"):
		return fmt.Errorf("the topic %.100q has a wildcard", topic)
	case strings.Count(topic, "/") >= maxLevels:
		return fmt.Errorf("the topic %.100q has more than %d levels", topic, maxLevels)
	}
	return nil
}

// A directory finds the device of a topic. It does not change, and may be used
// from any goroutine.
type directory struct {
	devices []Device
	at      map[string][]*Device // by Place.Topic
	by      map[announcer]*Device
}

func newDirectory(ds []Device) *directory {
	d := &directory{devices: ds, at: make(map[string][]*Device), by: make(map[announcer]*Device)}
	for i := range ds {
		d.at[ds[i].Place.Topic] = append(d.at[ds[i].Place.Topic], &ds[i])
		d.by[announcer{ds[i].Profile.Family(), ds[i].Place.Topic}] = &ds[i]
		if ds[i].Identity != "" {
			d.by[announcer{ds[i].Profile.Family(), ds[i].Identity}] = &ds[i]
		}
	}
	return d
}

// get gives the device of an id, or nil.
func (d *directory) get(id devices.ID) *Device {
	for i := range d.devices {
		if d.devices[i].ID == id {
			return &d.devices[i]
		}
	}
	return nil
}

// named gives the device that a family of profiles tells of by one of its
// identities, or nil.
func (d *directory) named(family string, identities ...string) *Device {
	for _, identity := range identities {
		if device := d.by[announcer{family, identity}]; device != nil && identity != "" {
			return device
		}
	}
	return nil
}

// find gives the device of a topic that was checked, or nil. Where several
// match, it is the one whose own topic begins first and is longest, as
// home/kitchen and not home.
func (d *directory) find(topic string) *Device {
	var found *Device
	eachRun(topic, maxLevels, func(run string) bool {
		for _, device := range d.at[run] {
			if device.Profile.Matches(device.Place, topic) {
				found = device
				return true
			}
		}
		return false
	})
	return found
}

// eachRun calls yield with the runs of whole levels of a topic that begin with
// one of the first levels, the longest of each first, until it returns true.
func eachRun(topic string, first int, yield func(run string) bool) {
	for range first {
		for run := topic; ; {
			if yield(run) {
				return
			}
			i := strings.LastIndexByte(run, '/')
			if i < 0 {
				break
			}
			run = run[:i]
		}
		_, rest, more := strings.Cut(topic, "/")
		if !more {
			return
		}
		topic = rest
	}
}

// sharedFilters gives the filters on which devices are announced.
func (d *directory) sharedFilters() (all []string) {
	for _, device := range d.devices {
		for _, f := range device.Profile.SharedFilters() {
			if !slices.Contains(all, f) {
				all = append(all, f)
			}
		}
	}
	return all
}

// filters gives the filters of all devices, each once.
func (d *directory) filters() []string {
	var all []string
	seen := make(map[string]bool)
	add := func(filters []string) {
		for _, f := range filters {
			if !seen[f] {
				seen[f] = true
				all = append(all, f)
			}
		}
	}
	shared := make(map[string]bool)
	for _, device := range d.devices {
		add(device.Profile.Filters(device.Place))
		if id := device.Profile.ID(); !shared[id] {
			shared[id] = true
			add(device.Profile.SharedFilters())
		}
	}
	return all
}

// covered reports whether one of the filters takes a topic in (MQTT 3.1.1
// section 4.7).
func covered(topic string, filters []string) bool {
	return slices.ContainsFunc(filters, func(filter string) bool {
		f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
		for i, level := range f {
			if level == "#" {
				return true
			}
			if i >= len(t) || level != "+" && level != t[i] {
				return i == len(t) && level == "#"
			}
		}
		return len(f) == len(t)
	})
}
