package mqtt

import (
	"strings"
	"unicode/utf8"
)

// ownLevels is how many levels of a topic may come before a user's name in it:
// kitchen/temperature, tele/kitchen/SENSOR, home/tele/kitchen/STATE.
const ownLevels = 3

// Rights say who may use which topics of the broker. Each topic has one owner
// at most, who alone may publish and hear it; what nobody owns, nobody may
// use:
//
//   - A topic on which a configured device reports belongs to the device's
//     user: the one with the name of the device's topic, of its first level, or
//     of the device's id, in that order.
//   - Any other topic belongs to the first of its levels, among the first three,
//     that names a user, or is the topic of a user's device.
//
// A filter (MQTT 3.1.1 section 4.7) may be subscribed to if the second rule
// gives it to the user; each message is then judged by both. Topics that begin
// with $ are the broker's.
type rights struct {
	directory *directory
	users     map[string]bool
	names     map[string]string // users' names, and topics of their devices: the user
}

func newRights(users []User, d *directory) *rights {
	r := &rights{directory: d, users: make(map[string]bool), names: make(map[string]string)}
	for _, u := range users {
		r.users[u.Name] = true
		r.names[u.Name] = u.Name
	}
	for i := range d.devices {
		topic := d.devices[i].Place.Topic
		if user := r.ofDevice(&d.devices[i]); user != "" && r.names[topic] == "" {
			r.names[topic] = user
		}
	}
	return r
}

func (r *rights) ofDevice(d *Device) string {
	first, _, _ := strings.Cut(d.Place.Topic, "/")
	for _, name := range []string{d.Place.Topic, first, string(d.ID)} {
		if r.users[name] {
			return name
		}
	}
	return ""
}

// named applies the second rule.
func (r *rights) named(topic string) (user string) {
	eachRun(topic, ownLevels, func(run string) bool {
		user = r.names[run]
		return user != ""
	})
	return user
}

// mayUse reports whether a user may publish or hear a topic, or subscribe to a
// filter.
func (r *rights) mayUse(user, topic string) bool {
	if group, ok := strings.CutPrefix(topic, "$share/"); ok {
		_, topic, _ = strings.Cut(group, "/")
	}
	switch {
	case strings.HasPrefix(topic, "$"), len(topic) > maxTopic, strings.Count(topic, "/") >= maxLevels, !utf8.ValidString(topic):
		return false
	case len(r.users) == 0:
		return true
	case user == "":
		return false
	case !strings.ContainsAny(topic, "+#"):
		if device := r.directory.find(topic); device != nil {
			return r.ofDevice(device) == user
		}
	}
	return r.named(topic) == user
}
