package coap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/profile/lwm2m"
)

// lwm2mOldJSON is a content format of LwM2M 1.0.
const lwm2mOldJSON = 11543

const (
	// A client in queue mode hears what it is sent for so long after its own last
	// message (section 6.5; it has MAX_TRANSMIT_WAIT there, and this leaves some).
	awakeTime = 60 * time.Second
	// readEvery is how often is read what changes all the time and tells little:
	// the objects of the device and of its connection.
	readEvery = time.Hour

	maxFollowed = 10 // objects of one client, less than maxAsked
)

// A manager is the server's side of one LwM2M client, as long as one registration
// of it lasts: it has the client report its objects, and tells it what to do.
type manager struct {
	asker
	peer    *peer
	root    []string // path that the objects are below
	objects []lwm2m.Path
	formats []int         // those to ask for, the best first
	sleeps  bool          // queue mode
	hears   time.Duration // how long after its own last message, if it sleeps
	awake   *bell         // it said something

	mu       sync.Mutex
	controls map[string]lwm2m.Path // of what it has, by name
	format   int                   // in which it last reported
}

// managedLifetime is for clients that say none (section 5.3.1).
const managedLifetime = 86400 * time.Second

// speaks reports whether a version is one that the server speaks.
func speaks(version string) bool { return version == "1.0" || version == "1.1" || version == "1.2" }

// queues reports whether a client that registered so sleeps between its messages:
// in version 1.0 that is part of the binding.
func queues(query map[string]string) bool {
	_, queue := query["Q"]
	return queue || strings.Contains(query["b"], "Q")
}

// state is what a registration says of the device.
func (r *registration) state() devices.Availability {
	if r.lwm2m && queues(r.query) {
		return devices.Sleeping
	}
	return devices.Online
}

// revise takes what an update says anew (section 6.2.2), and reports whether that
// changes what the client is asked for.
func (s *service) revise(r *registration, query map[string]string, payload []byte) (changed bool) {
	merged := maps.Clone(r.query)
	for _, name := range []string{"b", "Q"} {
		if v, ok := query[name]; ok {
			merged[name] = v
		}
	}
	changed = queues(merged) != queues(r.query)
	r.query = merged
	if len(payload) == 0 {
		return changed
	}
	links, err := profile.ParseLinks(payload)
	if err != nil {
		s.sink.Reject(r.peer.name, err)
		return changed
	}
	if !reflect.DeepEqual(links, r.links) {
		r.links, changed = links, true
	}
	return changed
}

// wakeEvery and wakeRate bound the requests to register: to one peer, and a second.
const (
	wakeEvery = time.Minute
	wakeRate  = 5
)

// wake asks a peer that reports to us, and that we do not know, to update its
// registration (resource 1/0/8, Registration Update Trigger). We have begun anew
// since it registered; the update is answered 4.04, so that it registers again
// now, and not when its lifetime ends, which may be tomorrow.
func (s *service) wake(p *peer, now time.Time) {
	s.mu.Lock()
	due := now.Sub(p.woken) > wakeEvery && s.directory.wakes.take(now)
	if due {
		p.woken = now
		p.held++
	}
	s.mu.Unlock()
	if !due {
		return
	}
	s.wg.Go(func() {
		defer s.release(p)
		ctx, cancel := context.WithTimeout(s.ctx, ackTimeout*4)
		defer cancel()
		q := get([]string{"1", "0", "8"})
		q.code = codes.POST
		_, _ = s.do(ctx, p, q) // whatever it says to that
	})
}

// manage follows a client that is ours. It is called with the directory locked.
func (s *service) manage(r *registration) {
	ctx, cancel := context.WithCancel(s.ctx)
	r.stop = cancel
	m := newManager(r.asker, r.peer, r.links, r.query)
	m.hears = s.server.awake
	r.manager = m
	s.hold(m.peer)
	s.wg.Go(func() {
		defer s.release(m.peer)
		m.run(ctx)
	})
}

// showManaged shows a client that is none of ours, with some of what it has. It
// is called with the directory locked.
func (s *service) showManaged(r *registration, stranger devices.Stranger) {
	d := &s.directory
	p := s.server.profiles.Load().ByCode("lwm2m")
	if p == nil {
		return
	}
	d.looking++
	stranger.Profile = p.ID()
	m := newManager(asker{session: s.session, device: Device{Profile: p}, told: &bell{}}, r.peer, r.links, r.query)
	s.hold(m.peer)
	s.wg.Go(func() {
		defer func() {
			s.release(m.peer)
			d.mu.Lock()
			d.looking--
			d.mu.Unlock()
		}()
		objects := m.followed()
		for _, path := range objects[:min(len(objects), maxSampled)] {
			one := m.resource(path)
			if len(one.formats) > 0 {
				one.accept = one.formats[0]
			}
			got, err := m.do(s.ctx, m.peer, one.request())
			if err != nil {
				break
			}
			out, err := m.device.decode(profile.Message{Topic: path.String(), Payload: got.payload, ContentFormat: got.format, Received: time.Now()})
			if !got.ok() || err != nil {
				continue
			}
			m.understand(got, &out)
			for _, reading := range out.Readings {
				stranger.Fields = append(stranger.Fields, reading.Fields...)
			}
		}
		if len(stranger.Fields) > 0 {
			s.sink.Unknown(stranger)
		}
	})
}

// newManager reads what a client said when it registered (section 6.2.1).
func newManager(a asker, p *peer, links []profile.Link, query map[string]string) *manager {
	m := &manager{asker: a, peer: p, awake: &bell{}, controls: make(map[string]lwm2m.Path), format: NoFormat, sleeps: queues(query), hears: awakeTime}
	root, told := "/", []int(nil)
	for _, l := range links {
		if !slices.Contains(strings.Fields(l.Attribute("rt")), "oma.lwm2m") {
			continue
		}
		root, m.root = l.Target, segments(l.Target)
		for _, ct := range strings.Fields(l.Attribute("ct")) {
			if n, err := strconv.Atoi(ct); err == nil {
				told = append(told, n)
			}
		}
	}
	for _, l := range links {
		if path, ok := lwm2m.ParsePath(strings.TrimPrefix(l.Target, root)); ok && len(path) <= 2 && len(m.objects) < 100 {
			m.objects = append(m.objects, path)
		}
	}
	for _, f := range []int{SenMLCBOR, SenMLJSON, LwM2MTLV, lwm2mOldJSON} {
		if slices.Contains(told, f) || len(told) == 0 && query["lwm2m"] == "1.0" && f == LwM2MTLV {
			m.formats = append(m.formats, f)
		}
	}
	m.asker.heard = m.understand
	return m
}

// resource is what is at a path of the client.
func (m *manager) resource(path lwm2m.Path) resource {
	return resource{path: slices.Concat(m.root, segments(path.String())), formats: m.formats, accept: NoFormat, learned: true, below: len(m.root)}
}

// followed gives what is asked of the client: each instance of an object that it
// has, or where these are too many the object as a whole; not those that are the
// server's business or secret.
func (m *manager) followed() (all []lwm2m.Path) {
	of := make(map[int][]lwm2m.Path)
	var order []int
	for _, path := range m.objects {
		object := path[0]
		if object < 3 || object == 21 || object > 8 && object < 32 {
			continue
		}
		if of[object] == nil {
			order = append(order, object)
		}
		if len(path) == 2 {
			of[object] = append(of[object], path)
		} else if of[object] == nil {
			of[object] = []lwm2m.Path{}
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { // those of people first
		return cmp.Compare(b/1000, a/1000)
	})
	count := 0
	for _, object := range order {
		count += max(1, len(of[object]))
	}
	for _, object := range order {
		switch instances := of[object]; {
		case len(instances) == 0, count > maxFollowed && len(instances) > 1:
			all = append(all, lwm2m.Path{object})
		default:
			all = append(all, instances...)
		}
	}
	return all[:min(len(all), maxFollowed)]
}

// run follows the client's objects until ctx ends.
func (m *manager) run(ctx context.Context) {
	var followers sync.WaitGroup
	for _, path := range m.followed() {
		followers.Go(func() { m.follow(ctx, path) })
	}
	followers.Wait()
	<-ctx.Done()
}

// follow has one object be reported, or reads it again and again. A client that
// does not answer, as it sleeps or is away, is asked again when it was heard.
func (m *manager) follow(ctx context.Context, path lwm2m.Path) {
	r := m.resource(path)
	if !m.sleeps && !m.sleep(ctx, rand.N(time.Second)) { // so that not all are asked at once
		return
	}
	every, observe := cmp.Or(m.device.Every, defaultEvery), true
	if path[0] < 32 && path[0] != 6 {
		every, observe = readEvery, false
	}
	for said, known := false, false; ctx.Err() == nil; {
		if !m.wait(ctx) {
			return
		}
		var err error
		if !known {
			if err = m.discover(ctx, path); err == nil {
				known = true
			}
		}
		var first profile.Output
		if err == nil {
			r, first, err = m.settle(ctx, m.peer, r)
		}
		if err == nil && observe {
			err = m.reported(ctx, r)
			if observe = !errors.Is(err, errNotObservable); !observe {
				first, err = profile.Output{}, nil // the one answer was taken
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case isFatal(err):
			m.log.Debug("CoAP: a LwM2M client does not answer", "device", m.device.ID, "object", path.String(), "error", err)
			if !m.spoken(ctx, retryLast) {
				return
			}
		case err != nil:
			if !said {
				m.sink.Reject(string(m.device.ID), fmt.Errorf("cannot read /%s: %w", path, err))
			}
			said = true
			if !m.sleep(ctx, uselessWait) {
				return
			}
		default:
			m.report(ctx, first, false)
			if !m.again(ctx, every) {
				return
			}
		}
	}
}

// again waits until something is to be read again: with time, or as the client
// was told something. It reports false when ctx ends.
func (m *manager) again(ctx context.Context, every time.Duration) bool {
	timer := time.NewTimer(every)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-m.told.rung():
		return m.sleep(ctx, settleTime)
	case <-ctx.Done():
		return false
	}
}

// wait waits until the client is awake. It reports false when ctx ends.
func (m *manager) wait(ctx context.Context) bool {
	for m.asleep() {
		select {
		case <-m.awake.rung():
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// spoken waits until the client was, or, of one that does not sleep, for so long.
func (m *manager) spoken(ctx context.Context, atMost time.Duration) bool {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	var late <-chan time.Time
	if !m.sleeps {
		late = timer.C
	}
	select {
	case <-m.awake.rung():
		return true
	case <-late:
		return true
	case <-ctx.Done():
		return false
	}
}

func (m *manager) asleep() bool {
	if !m.sleeps {
		return false
	}
	s := m.session
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(m.peer.seen) > m.hears
}

// reported has the client report what is at r, until that ends. Other than
// [session.observe] it does not register again when the client is silent: that
// is what it does between two reports, and its registration tells whether it is
// there (section 6.4).
func (m *manager) reported(ctx context.Context, r resource) error {
	c, err := m.converse(m.peer, notificationRoom)
	if err != nil {
		return err
	}
	defer c.close()
	o := observation{conversation: c, request: r.request(), take: func(got answer) { m.asker.take(ctx, r, got, false) }}
	defer o.cancel()
	if err := o.register(ctx); err != nil {
		return err
	}
	late := time.NewTimer(maxTransmitWait)
	defer late.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			if o.anew {
				return errSilent
			}
		case got, ok := <-o.answers:
			if !ok {
				return errGone
			}
			if err := o.notification(ctx, got); err != nil {
				return err
			}
			m.awake.ring()
		}
	}
}

// understand gives what the client reported the names and units of the table.
func (m *manager) understand(got answer, out *profile.Output) {
	m.mu.Lock()
	m.format = got.format
	m.mu.Unlock()
	for i := range out.Readings {
		name(out.Readings[i].Fields)
	}
}

// name calls fields of paths as the table does, where that is a name for one of
// them only.
func name(fields []devices.Field) {
	taken := make(map[string]bool)
	for _, f := range fields {
		taken[f.Name] = true
	}
	for i := range fields {
		f := &fields[i]
		path, ok := lwm2m.ParsePath(strings.ReplaceAll(f.Name, "_", "/"))
		if !ok || len(path) < 3 {
			continue
		}
		if known, ok := lwm2m.Find(path[0], path[2]); ok && f.Unit == "" && f.Value.Kind() == devices.NumberValue {
			f.Unit = known.Unit
		}
		if better := lwm2m.Name(path); better != "" && !taken[better] {
			taken[better] = true
			f.Name = better
		}
	}
}

// discover asks which resources an object has (section 6.3.2), so that people can
// be shown what they can tell it. A client that does not say has only those that
// it reports.
func (m *manager) discover(ctx context.Context, path lwm2m.Path) error {
	q := get(m.resource(path).path)
	q.accept = linkList
	got, err := m.do(ctx, m.peer, q)
	if err != nil || !got.ok() {
		return err
	}
	links, err := profile.ParseLinks(got.payload)
	if err != nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range links {
		at, ok := lwm2m.ParsePath(strings.TrimPrefix(strings.Trim(l.Target, "/"), strings.Join(m.root, "/")))
		if !ok || len(at) != 3 || at[0] != path[0] || len(m.controls) >= 200 {
			continue
		}
		if known, ok := lwm2m.Find(at[0], at[2]); ok && tellable(at, known) {
			m.controls[lwm2m.Name(at)] = at
		}
	}
	return nil
}

// tellable reports whether a resource is one that people tell something: not
// what a thing is called, nor when it measured.
func tellable(at lwm2m.Path, r lwm2m.Resource) bool {
	switch {
	case r.Several || at[2] == 5750 || at[2] == 5751 || at[2] == 5701 || at[2] == 5518:
		return false
	case at[0] < 1000:
		return at[0] == 3 && r.Run
	case r.Run:
		return true
	}
	return r.Write && (r.Type == lwm2m.Boolean || r.Type == lwm2m.Float || r.Type == lwm2m.Integer || r.Type == lwm2m.Unsigned || r.Type == lwm2m.String)
}

// can gives what the client can be told.
func (m *manager) can() (all []devices.Control) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, at := range m.controls {
		r, _ := lwm2m.Find(at[0], at[2])
		c := devices.Control{Name: name, Title: strings.ReplaceAll(name, "_", " "), Argument: devices.Argument{Unit: r.Unit}}
		switch {
		case r.Run:
			c.Argument = devices.Argument{}
		case r.Type == lwm2m.Boolean:
			c.Argument = devices.Argument{Type: devices.SwitchArgument, Words: []string{"off", "on"}}
		case r.Type == lwm2m.String:
			c.Argument = devices.Argument{Type: devices.TextArgument}
		case r.Type == lwm2m.Float:
			c.Argument.Type = devices.NumberArgument
		default:
			c.Argument.Type = devices.IntegerArgument
		}
		if r.Unit == "%" {
			least, most := 0.0, 100.0
			c.Argument.Min, c.Argument.Max = &least, &most
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b devices.Control) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// tell writes a resource or has it executed (sections 6.3.3 and 6.3.5), and
// carries the answer back.
func (m *manager) tell(ctx context.Context, c devices.Command, expect func(devices.Confirmation)) error {
	m.mu.Lock()
	at, ok := m.controls[c.Name]
	format := m.format
	m.mu.Unlock()
	if !ok {
		return fmt.Errorf("%s has nothing called %.40q that can be told", m.device.ID, c.Name)
	}
	known, _ := lwm2m.Find(at[0], at[2])
	q := get(m.resource(at).path)
	confirmed := devices.Confirmation{Within: 5 * time.Second}
	tries := []request{q}
	if known.Run {
		tries[0].code = codes.POST
	} else {
		v, _, err := lwm2m.Parse(strings.TrimSpace(c.Argument), at)
		switch {
		case err != nil:
			return err
		case known.Unit == "%" && (v.Float() < 0 || v.Float() > 100):
			return fmt.Errorf("%s is not from 0 to 100", v)
		}
		if tries, err = m.writes(q, at, v, format); err != nil {
			return err
		}
		confirmed.Field, confirmed.Value = c.Name, v
	}
	if m.asleep() {
		// It is not kept for later: one that wakes while somebody waits has it.
		waiting, cancel := context.WithTimeout(ctx, patienceForSleepers)
		defer cancel()
		if !m.wait(waiting) {
			return errors.New("the device sleeps, and hears commands when it has reported")
		}
	}
	expect(confirmed)
	var got answer
	for _, q := range tries {
		var err error
		got, err = m.do(ctx, m.peer, q)
		switch {
		case errors.Is(err, errSilent), errors.Is(err, errGone):
			return fmt.Errorf("%w: %w", err, devices.ErrUncertain)
		case err != nil:
			return err
		}
		if got.code != codes.UnsupportedMediaType {
			break
		}
	}
	if !got.ok() {
		return got.refusal()
	}
	m.told.ring()
	return m.readBack(ctx, at, known)
}

// patienceForSleepers is how long a command waits for a client to wake.
const patienceForSleepers = 3 * time.Second

// readBack reads what was written, as not every client reports it.
func (m *manager) readBack(ctx context.Context, at lwm2m.Path, known lwm2m.Resource) error {
	if known.Run || !known.Read {
		return nil
	}
	r := m.resource(at)
	if len(m.formats) > 0 {
		r.accept = m.formats[0]
	}
	if got, err := m.do(ctx, m.peer, r.request()); err == nil && got.ok() {
		m.asker.take(ctx, r, got, true)
	}
	return nil
}

// writes gives the requests that write a value, in the format that the client
// itself writes first, one after the other until it takes one.
func (m *manager) writes(q request, at lwm2m.Path, v devices.Value, format int) (all []request, err error) {
	order := []int{format, LwM2MTLV, SenMLJSON, TextPlain}
	for i, f := range order {
		if slices.Contains(order[:i], f) {
			continue
		}
		one := q
		one.code, one.format = codes.PUT, f
		switch f {
		case LwM2MTLV:
			one.payload, err = lwm2m.AppendTLV(nil, at, v)
		case SenMLJSON, SenMLCBOR:
			one.payload, err = lwm2m.Pack(at, v, f == SenMLCBOR)
		case TextPlain:
			one.payload = []byte(v.String())
			if v.Kind() == devices.BoolValue {
				one.payload = []byte(map[bool]string{true: "1", false: "0"}[v.Bool()])
			}
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}
