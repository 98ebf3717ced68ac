package coap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	maxResources = 16 // of one device
	// learnEvery is how often it is looked whether a device has other resources.
	learnEvery = time.Hour
	// After a failure a device is tried again so soon, then less and less often.
	retryFirst, retryLast = 5 * time.Second, time.Minute
	uselessWait           = 10 * time.Minute // where it answers, and nothing of it is understood
	defaultEvery          = time.Minute
)

// formats are the content formats that can be read, those first that say most.
var formats = []int{SenMLCBOR, SenMLJSON, CBOR, JSON, TextPlain, LwM2MTLV, Octets}

// A resource is one that a device has, and that tells something.
type resource struct {
	path    []string
	query   []string
	formats []int // that it has, of those that can be read; empty: it does not say
	accept  int   // which of them is asked for; NoFormat is none in particular
	reports bool  // it says that it can be observed
	learned bool  // by looking around, not from the config
	below   int   // how many of path are only where the device has all of its own
}

func (r resource) String() string { return "/" + strings.Join(r.path, "/") }

func (r resource) request() request {
	q := get(r.path, r.query...)
	q.accept = r.accept
	return q
}

// An asker asks one device, as long as it is there.
type asker struct {
	*session
	device Device
	ear    func() *ear // that of now
	told   *bell       // the device was told something
	// heard, where it is set, is given what was read, to be changed.
	heard func(got answer, out *profile.Output)
}

// ask asks a peer for what it has until ctx ends, or it is silent, or it is time
// to look around again. With no resources given it looks around.
func (a asker) ask(ctx context.Context, p *peer, all []resource) error {
	looked := len(all) == 0
	if looked {
		var err error
		if all, err = a.look(ctx, p); err != nil {
			return err
		}
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, learnEvery, errLookAgain)
		defer cancel()
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var followers sync.WaitGroup
	for _, r := range all {
		followers.Go(func() {
			if err := a.follow(ctx, p, r); err != nil {
				fail(err)
			}
		})
	}
	followers.Wait()
	if ctx.Err() == nil {
		return errNothing
	}
	return context.Cause(ctx)
}

var (
	errLookAgain = errors.New("it is time to look around again")
	errNothing   = errors.New("the device has nothing that its profile understands")
)

// look asks a device what it has (RFC 6690 section 4).
func (a asker) look(ctx context.Context, p *peer) ([]resource, error) {
	list, err := a.do(ctx, p, get([]string{".well-known", "core"}))
	switch {
	case err != nil:
		return nil, err
	case !list.ok():
		return nil, fmt.Errorf("cannot read what the device has: %w; name a path in its url", list.refusal())
	}
	links, err := profile.ParseLinks(list.payload)
	if err != nil {
		return nil, fmt.Errorf("cannot read what the device has: %w", err)
	}
	all := resources(links)
	if len(all) == 0 {
		return nil, errNothing
	}
	return all, nil
}

// resources gives those that may be worth asking for: where some say what they
// are (rt, if) or that they report (obs), only those.
func resources(links []profile.Link) (all []resource) {
	var telling []resource
	for _, l := range links {
		u, err := url.Parse(l.Target)
		if err != nil || u.Host != "" || u.Scheme != "" || !strings.HasPrefix(u.Path, "/") || l.Attribute("anchor") != "" {
			continue // it is elsewhere
		}
		r := resource{path: unescaped(u), accept: NoFormat, learned: true}
		r.query = queries(u)
		if len(r.path) == 0 || r.path[0] == ".well-known" || strings.HasPrefix(l.Attribute("rt"), "core.") {
			continue // about the server, or for other servers
		}
		readable := true
		for _, one := range l.Attributes {
			switch one.Name {
			case "obs":
				r.reports = true
			case "ct":
				readable = false
				for _, ct := range strings.Fields(one.Value) {
					if n, err := strconv.Atoi(ct); err == nil && slices.Contains(formats, n) {
						r.formats = append(r.formats, n)
					}
				}
			}
		}
		if !readable && len(r.formats) == 0 {
			continue
		}
		slices.SortFunc(r.formats, func(x, y int) int {
			return cmp.Compare(slices.Index(formats, x), slices.Index(formats, y))
		})
		all = append(all, r)
		if r.reports || l.Attribute("rt") != "" || l.Attribute("if") != "" {
			telling = append(telling, r)
		}
	}
	if len(telling) > 0 {
		all = telling
	}
	return all[:min(len(all), maxResources)]
}

// follow asks for one resource. It gives an error where the peer is of no use
// any more, and none where the resource is not.
func (a asker) follow(ctx context.Context, p *peer, r resource) error {
	every := cmp.Or(a.device.Every, defaultEvery)
	if !a.sleep(ctx, rand.N(min(every/20, time.Second)+1)) { // so that not all are asked at once
		return nil
	}
	rung := a.told.rung() // what is told from here on may not be in the answer
	r, first, err := a.settle(ctx, p, r)
	for ; err != nil; r, first, err = a.settle(ctx, p, r) {
		if isFatal(err) || ctx.Err() != nil {
			return err
		}
		a.sink.Reject(string(a.device.ID), fmt.Errorf("cannot use %s: %w", r, err))
		if r.learned || !a.sleep(ctx, every) {
			return nil // until it is looked around again
		}
	}
	for a.device.Observe && (r.reports || !r.learned) {
		err := a.observe(ctx, p, r.request(), a.device.Every, func(got answer) { a.take(ctx, r, got, false) })
		if isFatal(err) || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, errNotObservable) {
			a.log.Info("CoAP: a resource does not report by itself; it is asked", "device", a.device.ID, "resource", r.String(), "every", every)
			first = profile.Output{}
			break
		}
		a.sink.Reject(string(a.device.ID), fmt.Errorf("cannot observe %s: %w", r, err))
		if !a.sleep(ctx, min(every, time.Minute)) {
			return nil
		}
	}
	a.report(ctx, first, false)
	return a.poll(ctx, p, r, every, rung)
}

// poll asks again and again, and when somebody told the device something, which
// rung tells.
func (a asker) poll(ctx context.Context, p *peer, r resource, every time.Duration, rung <-chan struct{}) error {
	next, told := time.NewTimer(every), false
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-rung:
			rung = a.told.rung() // also while it is asked
			told = true
			next.Reset(settleTime) // it may not have done it yet
		case <-next.C:
			told = false
			next.Reset(every)
		}
		got, err := a.do(ctx, p, r.request())
		switch {
		case ctx.Err() != nil:
			return nil
		case isFatal(err):
			return err
		case err != nil:
			a.sink.Reject(string(a.device.ID), fmt.Errorf("cannot read %s: %w", r, err))
			continue
		}
		a.take(ctx, r, got, told)
	}
}

// settleTime is how long after a command a device is asked once more.
const settleTime = 2 * time.Second

// settle finds the form in which a resource can be read, and gives what it holds
// now.
func (a asker) settle(ctx context.Context, p *peer, r resource) (resource, profile.Output, error) {
	accept := append(slices.Clone(r.formats), NoFormat)
	if len(r.formats) == 0 {
		accept = append(accept, formats...)
	}
	var trouble error
	for _, r.accept = range accept {
		got, err := a.do(ctx, p, r.request())
		if err != nil {
			return r, profile.Output{}, err
		}
		switch got.code {
		case codes.NotAcceptable, codes.BadOption, codes.UnsupportedMediaType:
			trouble = cmp.Or(trouble, got.refusal())
			continue
		}
		out, err := a.read(r, got)
		if err == nil && (!r.learned || len(out.Readings) > 0) {
			return r, out, nil
		}
		if !got.ok() {
			return r, out, err
		}
		trouble = cmp.Or(trouble, err, errors.New("it tells nothing"))
	}
	return r, profile.Output{}, trouble
}

// take hands on what a device answered.
func (a asker) take(ctx context.Context, r resource, got answer, repeats bool) {
	out, err := a.read(r, got)
	if err != nil {
		a.sink.Reject(string(a.device.ID), fmt.Errorf("cannot use %s: %w", r, err))
		return
	}
	a.report(ctx, out, repeats)
}

func (a asker) read(r resource, got answer) (profile.Output, error) {
	if !got.ok() {
		return profile.Output{}, got.refusal()
	}
	out, err := a.ear().hear(a.device, profile.Message{
		Topic: strings.Join(r.path[r.below:], "/"), Payload: got.payload, ContentFormat: got.format, Received: time.Now(),
	})
	if err == nil && a.heard != nil {
		a.heard(got, &out)
	}
	return out, err
}

func (a asker) report(ctx context.Context, out profile.Output, repeats bool) {
	switch {
	case out.Availability != devices.AvailabilityUnknown:
		a.sink.Availability(a.device.ID, out.Availability, false)
	case len(out.Readings) == 0 && out.Profile != "":
		a.sink.Availability(a.device.ID, devices.Online, false)
	}
	if len(out.Readings) == 0 {
		return
	}
	// What it holds can be asked for again, so nothing waits for the receipt.
	if _, err := a.sink.Report(ctx, devices.Message{Readings: out.Readings, Repeats: repeats || out.Repeats}); err != nil && ctx.Err() == nil {
		a.sink.Reject(string(a.device.ID), err)
	}
}

func (a asker) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// isFatal reports whether an error is the peer's, whatever it is asked for.
func isFatal(err error) bool {
	return errors.Is(err, errSilent) || errors.Is(err, errGone) || errors.Is(err, errReset)
}

// A bell can be heard by several.
type bell struct {
	mu sync.Mutex
	c  chan struct{}
}

func (b *bell) rung() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

// tell gives a device a command, and carries its answer back.
func (a asker) tell(ctx context.Context, p *peer, own []string, c devices.Command, expect func(devices.Confirmation)) error {
	q, confirmed, err := a.ear().encode(a.device, c, own)
	if err != nil {
		return err
	}
	expect(confirmed)
	got, err := a.do(ctx, p, q)
	switch {
	case errors.Is(err, errSilent), errors.Is(err, errGone):
		return fmt.Errorf("%w: %w", err, devices.ErrUncertain)
	case err != nil:
		return err
	case !got.ok():
		return got.refusal()
	}
	a.told.ring()
	return nil
}
