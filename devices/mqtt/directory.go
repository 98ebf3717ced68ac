package mqtt

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// A Decoder understands one firmware's topics and messages. A
// *[profile.Profile] is one.
type Decoder interface {
	// Filters are what to subscribe to for a device.
	Filters(at profile.Place) []string
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
}

func newDirectory(ds []Device) *directory {
	d := &directory{devices: ds, at: make(map[string][]*Device)}
	for i := range ds {
		d.at[ds[i].Place.Topic] = append(d.at[ds[i].Place.Topic], &ds[i])
	}
	return d
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

// filters gives the filters of all devices, each once.
func (d *directory) filters() []string {
	var all []string
	seen := make(map[string]bool)
	for _, device := range d.devices {
		for _, f := range device.Profile.Filters(device.Place) {
			if !seen[f] {
				seen[f] = true
				all = append(all, f)
			}
		}
	}
	return all
}
