package mqtt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// What is read at most of strangers. A broker gives all that it keeps at once,
// which may be much; after that, who is not heard now is heard later.
const (
	strangerBurst = 10_000
	strangerRate  = 1000 // messages a second
)

// maxAnnounced bounds the further topics that announcements name.
const maxAnnounced = 20_000

// An ear reads the messages of one link, each by the profile of its device,
// and remembers what devices announce of themselves. It may be used from any
// goroutine.
type ear struct {
	profiles *profile.Library // nil: of configured devices only, as each one's profile says
	primed   bool             // it has heard what was announced; of the client's Run alone
	limited  bool             // it hears everything: strangers have only a part of the time

	mu        sync.Mutex
	session   *profile.Session
	announced map[announcer][]string // further topics
	parents   map[announcer]string   // identities of those that devices hang on
	shown     map[announcer]string   // identities that the messages of configured devices show, by their places
	asked     map[question]asked
	topics    int // in announced
	tokens    float64
	filled    time.Time
}

// An announcer is a device in the words of a family of profiles.
type announcer struct{ family, identity string }

func newEar(profiles *profile.Library, limited bool) *ear {
	e := &ear{profiles: profiles, limited: limited, announced: make(map[announcer][]string), parents: make(map[announcer]string), shown: make(map[announcer]string), asked: make(map[question]asked), tokens: strangerBurst}
	if profiles != nil {
		e.session = profiles.NewSession(nil)
	}
	return e
}

// A saying is what a message says of a configured device.
type saying struct {
	device *Device
	profile.Output
	indirect bool // another device says it
}

// news is what a publication brings beside readings.
type news struct {
	announced bool               // topics were announced
	ask       []profile.Outgoing // to be sent, without waiting for anything
}

// read reads a publication. changed says that topics were announced. The error
// says what was not understood, and device whose it is, where that is known.
func (e *ear) read(d *directory, p publication) (says []saying, strangers []devices.Stranger, changed bool, device *Device, err error) {
	// A message that makes a decoder panic is one that it does not understand. It
	// would come again, and end every other device's link too.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder panics: %v", r)
		}
	}()
	m := profile.Message{Topic: p.topic, Payload: p.payload, ContentFormat: -1, Received: time.Now(), Retained: p.retained}
	device = d.find(p.topic)
	var out profile.Output
	err = errNoDevice
	if e.session != nil {
		out, changed, err = e.hear(m, device)
	}
	if device != nil && e.family(out.Profile) != device.Profile.Family() {
		out, err = e.decode(m, device)
	}
	if err != nil {
		if device == nil {
			device = e.owner(d, out)
		}
		return nil, nil, changed, device, err
	}
	announced := out.Announced
	for i, o := range flat(out) {
		if o.Availability != devices.AvailabilityUnknown {
			says = append(says, e.children(d, o)...)
		}
		owner := e.owner(d, o)
		if owner == nil && i == 0 {
			owner = device
		}
		o.Children = nil
		if owner != nil && o.Identity != "" {
			e.mu.Lock()
			e.shown[announcer{owner.Profile.Family(), owner.Place.Topic}] = o.Identity
			e.mu.Unlock()
		}
		switch {
		case owner == nil:
			if s, ok := e.stranger(p, o, i == 0 && !announced); ok {
				strangers = append(strangers, s)
			}
		case !announced:
			says = append(says, saying{owner, o, false})
		}
	}
	for _, earlier := range out.Earlier { // of strangers: what is configured was read when it came
		for _, o := range flat(earlier.Output) {
			if e.owner(d, o) == nil && d.find(earlier.Message.Topic) == nil {
				if s, ok := e.stranger(publication{source: p.source, broker: p.broker, topic: earlier.Message.Topic, retained: earlier.Message.Retained}, o, false); ok {
					strangers = append(strangers, s)
				}
			}
		}
	}
	return says, strangers, changed, device, nil
}

// children gives what it means for configured devices that the one is there, or
// not, that they hang on: without it they cannot be heard. That it is there
// says nothing of them, but that one has to listen again.
func (e *ear) children(d *directory, parent profile.Output) (says []saying) {
	what := profile.Output{Availability: devices.AvailabilityUnknown}
	if parent.Availability == devices.Offline {
		what.Availability = devices.Offline
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range d.devices {
		device := &d.devices[i]
		if family := device.Profile.Family(); family == e.family(parent.Profile) && e.parents[announcer{family, device.Place.Topic}] == parent.Identity && parent.Identity != "" {
			says = append(says, saying{device, what, true})
		}
	}
	return says
}

// flat gives an output and those of all its children.
func flat(o profile.Output) []profile.Output {
	all := []profile.Output{o}
	for _, child := range o.Children {
		child.Profile = cmp.Or(child.Profile, o.Profile)
		child.About.Parent = cmp.Or(child.About.Parent, o.Identity)
		all = append(all, flat(child)...)
	}
	return all
}

// family gives that of a profile.
func (e *ear) family(id string) string {
	if e.profiles == nil || e.profiles.Get(id) == nil {
		return id
	}
	return e.profiles.Get(id).Family()
}

// owner gives the configured device that an output is of, or nil.
func (e *ear) owner(d *directory, o profile.Output) *Device {
	return d.named(e.family(o.Profile), o.Identity, o.About.Identity)
}

// decode reads a message of a device by the device's own profile, where others
// know the topic too, or better.
func (e *ear) decode(m profile.Message, device *Device) (out profile.Output, err error) {
	if e.session == nil {
		out, err = device.Profile.Decode(device.Place, m)
	} else {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.session.In(device.Place.Location)
		out, err = e.session.HearAt(device.Profile.ID(), device.Place, m)
	}
	out.Profile = device.Profile.ID()
	return out, err
}

// hear has the session hear a message.
func (e *ear) hear(m profile.Message, device *Device) (out profile.Output, changed bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session.In(nil)
	if device != nil {
		e.session.In(device.Place.Location)
	} else if e.limited && !e.take(m.Received) {
		return out, false, errTooMany
	}
	if out, err = e.session.Hear(m); err != nil || !out.Announced {
		return out, false, err
	}
	for _, identity := range out.Removed {
		changed = e.announce(announcer{e.family(out.Profile), identity}, nil) || changed
	}
	for _, o := range flat(out) {
		about, ok := e.session.Describe(o.Profile, o.Identity)
		if !ok {
			continue
		}
		var topics []string
		for _, t := range about.Topics {
			topics = append(topics, t.Topic)
		}
		for _, a := range about.Availability {
			if a.Topic != "" {
				topics = append(topics, a.Topic)
			}
		}
		topics = slices.DeleteFunc(topics, func(t string) bool { return checkTopic(t) != nil || strings.HasPrefix(t, "$") })
		who := announcer{e.family(o.Profile), cmp.Or(about.Called, o.Identity)}
		changed = e.announce(who, topics) || changed
		if about.Parent != "" && (len(e.parents) < maxAnnounced || e.parents[who] != "") {
			e.parents[who] = about.Parent
		}
	}
	return out, changed, nil
}

func (e *ear) announce(who announcer, topics []string) (changed bool) {
	before := e.announced[who]
	if slices.Equal(before, topics) || e.topics-len(before)+len(topics) > maxAnnounced {
		return false
	}
	e.topics += len(topics) - len(before)
	if e.announced[who] = topics; len(topics) == 0 {
		delete(e.announced, who)
	}
	return true
}

// take reports whether there is time for one more message of a stranger.
func (e *ear) take(now time.Time) bool {
	if !e.filled.IsZero() {
		e.tokens = min(strangerBurst, e.tokens+max(0, now.Sub(e.filled).Seconds())*strangerRate)
	}
	if e.filled = now; e.tokens < 1 {
		return false
	}
	e.tokens--
	return true
}

// announcedTopics gives the further topics of the devices that are configured,
// or of those that are not.
func (e *ear) announcedTopics(d *directory, configured bool) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []string
	for who, topics := range e.announced {
		if (d.named(who.family, who.identity) != nil) == configured {
			all = append(all, topics...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// stranger makes one of an output. own says that the topic is the device's, so
// that it may be found by it.
func (e *ear) stranger(p publication, o profile.Output, own bool) (devices.Stranger, bool) {
	known := e.profiles.Get(o.Profile)
	if known == nil || known.Priority() == 0 || o.Identity == "" {
		return devices.Stranger{}, false
	}
	s := devices.Stranger{
		Transport: "mqtt", Link: p.broker, Place: o.Identity, Peer: p.source, Profile: o.Profile,
		Identity: cmp.Or(o.About.Identity, o.Identity), Parent: o.About.Parent, Name: o.About.Name,
		Model: strings.TrimSpace(o.About.Maker + " " + o.About.Model), Retained: p.retained,
	}
	if s.Model == "" {
		s.Model = known.Name()
	}
	if own && !known.Matches(profile.Place{Topic: s.Place}, p.topic) {
		s.Place = cmp.Or(placeOf(known, p.topic), s.Place)
	}
	if !o.Announced {
		for _, r := range o.Readings {
			s.Fields = append(s.Fields, r.Fields...)
		}
	}
	return s, true
}

// placeOf finds the device's own topic in that of one of its messages.
func placeOf(p Decoder, topic string) (place string) {
	eachRun(topic, maxLevels, func(run string) bool {
		if p.Matches(profile.Place{Topic: run}, topic) {
			place = run
		}
		return place != ""
	})
	return place
}

var (
	errNoDevice = errors.New("no device is configured for it")
	errTooMany  = errors.New("messages of unknown devices come faster than they are looked at")
)

// report decodes a publication and hands it to the sink. The receipt is nil where
// nothing has to be waited for. An error means that the sink does not take it
// now. What nobody understands is rejected, and that is no error: it would not
// get better by being sent again.
func (e *ear) report(ctx context.Context, d *directory, p publication, sink devices.Sink) (_ devices.Receipt, n news, _ error) {
	if err := checkTopic(p.topic); err != nil {
		sink.Reject(p.source, err)
		return nil, n, nil
	}
	says, strangers, changed, device, err := e.read(d, p)
	n.announced = changed
	if err != nil {
		source := p.source
		if device != nil {
			source = string(device.ID)
		} else if errors.Is(err, profile.ErrUnknown) {
			err = errNoDevice
		}
		sink.Reject(source, fmt.Errorf("topic %q: %w", p.topic, err))
		return nil, n, nil
	}
	unwanted := false
	for _, s := range strangers {
		unwanted = !sink.Unknown(s) && len(s.Fields) > 0 || unwanted
	}
	// A broker elsewhere gives only what was asked for, so who is a stranger
	// there is one of a neighbourhood's that share a topic.
	if unwanted && e.limited {
		sink.Reject(p.source, fmt.Errorf("topic %q: %w", p.topic, errNoDevice))
	}
	m := devices.Message{Retained: p.retained, Repeats: true}
	for _, s := range says {
		if s.Availability != devices.AvailabilityUnknown || s.indirect {
			sink.Availability(s.device.ID, s.Availability, p.retained)
		}
		if !s.indirect {
			n.ask = append(n.ask, e.questions(s.Profile, s.Output, time.Now())...)
		}
		for _, r := range s.Readings {
			r.Device = s.device.ID
			m.Readings, m.Repeats = append(m.Readings, r), m.Repeats && s.Repeats
		}
	}
	if len(m.Readings) == 0 {
		return nil, n, nil
	}
	if p.qos > 0 {
		m.Origin = devices.NewOrigin([]byte(p.session), []byte(p.topic), []byte{byte(p.id >> 8), byte(p.id)}, p.payload)
		m.Redelivered, m.Window = p.duplicate, usualWindow
	}
	receipt, err := sink.Report(ctx, m)
	return receipt, n, err
}
