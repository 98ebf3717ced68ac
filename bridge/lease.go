package bridge

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// nsLease is the payload of a lease node.
const nsLease = "https://github.com/porchlight-iot/porchlight/ns/lease"

const (
	// leaseEvery is how often a lease is renewed, and leaseLapse how long its
	// count must have stood still for another to take it.
	leaseEvery = time.Minute
	leaseLapse = 3 * time.Minute
	// lastLook is the longest between two looks at another's lease: on most
	// servers each puts the other's session out for a moment.
	lastLook = 15 * time.Minute
	// aside is how long another session of our name is given: that of a passive
	// gateway, or of porchlight doctor, is gone by then.
	aside = 10 * time.Second
	// leaseTime bounds a look. It asks again after firstLook, and after twice as
	// long each time: ejabberd gives two connections of one component half of
	// the answers each.
	leaseTime = 15 * time.Second
	firstLook = time.Second
	// leaseRefused is how long a service that wants no lease is left alone.
	leaseRefused = time.Hour
)

// ErrSucceeded says that a gateway which was restored from a backup of this one
// has taken its place, so that [Bridge.Run] ended.
var ErrSucceeded = errors.New("another gateway was restored from a backup of this one and has taken its place. " +
	"If this one is to go on all the same: stop the other, and run here porchlight backup, then porchlight restore --force with that file")

// ErrPassive says that another gateway of this one's identity is at work, so
// that this one publishes nothing and does nothing.
var ErrPassive = errors.New("another gateway is at work with this one's component or account, so this one is passive: it keeps its readings, publishes nothing and takes no commands. " +
	"Stop the other, or give this one a component or an account of its own")

// errPutOut says that another session of our name ended one that had the lease.
// Whoever that is has none.
var errPutOut = errors.New("another session was made under this name")

// A leaseElement is the one item of a lease node: who of those with one identity
// is at work. No clock is in it: it is alive while its count grows.
type leaseElement struct {
	XMLName    xml.Name `xml:"https://github.com/porchlight-iot/porchlight/ns/lease lease"`
	Holder     string   `xml:"holder,attr"` // empty: it was given back
	Run        string   `xml:"run,attr"`
	Process    string   `xml:"process,attr,omitempty"`
	Count      uint64   `xml:"count,attr"` // the fencing counter
	Generation int64    `xml:"generation,attr,omitempty"`
}

// A lease is what a Bridge knows of the lease on its identity. It lives as long
// as the Bridge.
type lease struct {
	holder     string // empty: none is kept
	run        string // of this Bridge
	process    string
	over       func(process string) bool // may be nil
	generation int64

	heeds   atomic.Bool // what is asked of us is listened to
	passive atomic.Bool // another is at work

	every, lapse, aside time.Duration // what tests make faster

	mu    sync.Mutex
	count uint64       // that this run wrote last; 0 before
	wrote time.Time    // when it did; monotonic
	seen  leaseElement // another's
	since time.Time    // seen has stood still; monotonic
	looks int          // that found another alive, in a row
}

func newLease(o Options) *lease {
	return &lease{
		holder: o.Holder, run: rand.Text(), process: o.Process, over: o.Over, generation: o.Generation,
		every: leaseEvery, lapse: leaseLapse, aside: aside,
	}
}

// judge tells whether this gateway may go on, or begin, with the lease found:
// nil, [ErrPassive] or [ErrSucceeded]. Where it may, next is what it has to write.
func (s *lease) judge(found leaseElement, now time.Time) (next leaseElement, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case found.Generation > s.generation:
		return next, fmt.Errorf("%w (generation %d, this is %d)", ErrSucceeded, found.Generation, s.generation)
	case found.Holder == "", found.Run == s.run, found.Generation < s.generation:
	case found.Holder == s.holder && s.count == 0: // of the run before this
	case found.Count < s.count: // written late by one who has lost it
	case s.over != nil && s.over(found.Process):
	case found == s.seen && now.Sub(s.since) >= s.lapse:
	default:
		if found != s.seen {
			s.seen, s.since = found, now
		}
		s.passive.Store(true)
		return next, ErrPassive
	}
	s.looks = 0
	s.passive.Store(false)
	return leaseElement{
		Holder: s.holder, Run: s.run, Process: s.process,
		Count: max(found.Count, s.count) + 1, Generation: s.generation,
	}, nil
}

// left is how long it is until the lease is to be renewed.
func (s *lease) left() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.every - time.Since(s.wrote)
}

// has reports whether this run has written the lease, and did not lose it.
func (s *lease) has() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count > 0 && !s.passive.Load()
}

// pause is how long a passive gateway leaves the other alone: longer each time.
func (s *lease) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := min(s.lapse<<s.looks, max(lastLook, s.lapse))
	s.looks = min(s.looks+1, 8)
	return d + mathrand.N(d/4) // two of them do not look at once
}

// leaseNode gives the node of the lease. It is named by the identity and not by
// the gateway's id, which by default is that of the machine: two boards with one
// config have different ones. Services tell names of nodes to everybody, so it
// does not show the address.
func (b *Bridge) leaseNode() *node {
	own := b.account
	if b.component {
		own = b.domain
	}
	sum := sha256.Sum256([]byte("porchlight lease " + own.String()))
	return b.node(hex.EncodeToString(sum[:8])+"/"+string(laneLease), "", laneLease)
}

// claim finds at the beginning of a session whether this gateway may be at work.
// Where the service knows no leases, it may. The other comes first: the longer
// a session of this name lasts, the more it disturbs.
func (l *link) claim(ctx context.Context) error {
	s := l.bridge.lease
	var found, next leaseElement
	var err error
	if s.holder != "" {
		found, next, err = l.look(ctx)
	}
	if errors.Is(err, ErrPassive) || errors.Is(err, ErrSucceeded) {
		return err
	}
	var failed error
	if l.form, failed = l.defaultForm(ctx); failed != nil {
		return failed
	}
	switch {
	case s.holder == "", err != nil, found.Run == s.run && s.left() > 0:
	case found.Run == "":
		err = l.write(ctx, next, l.deliver)
	default: // there is a node, and no time is lost to see that it is as it should be
		err = l.write(ctx, next, l.publish)
	}
	switch {
	case l.over(ctx):
		return errors.Join(err, l.session.Err())
	case err != nil && !errors.As(err, new(*refusal)):
		return err // as where it does not answer for its form
	case err != nil && s.passive.Load() && Judge(err) != Park:
		return fmt.Errorf("%w; whether it still is cannot be seen: %w", ErrPassive, err)
	case err != nil:
		s.passive.Store(false)
		l.bridge.log.Info("it cannot be seen whether another gateway has this one's identity", "error", err)
	}
	s.heeds.Store(true)
	return nil
}

// look reads the lease and judges it.
func (l *link) look(ctx context.Context) (found, next leaseElement, err error) {
	ctx, cancel := context.WithTimeout(ctx, leaseTime)
	defer cancel()
	var items []itemElement
	for patience := firstLook; ; patience *= 2 {
		asking, done := context.WithTimeout(ctx, patience)
		items, err = l.items(asking, l.bridge.leaseNode(), 1)
		done()
		if !errors.Is(err, context.DeadlineExceeded) || l.over(ctx) {
			break
		}
	}
	if err != nil {
		return found, next, err
	}
	if len(items) > 0 && xml.Unmarshal(items[0].Payload, &found) != nil {
		found = leaseElement{} // another's hand wrote it
	}
	next, err = l.bridge.lease.judge(found, time.Now())
	return found, next, err
}

// write publishes the lease.
func (l *link) write(ctx context.Context, e leaseElement, publish func(context.Context, *node, string, []byte) error) error {
	payload, err := xml.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTime)
	defer cancel()
	if err := publish(ctx, l.bridge.leaseNode(), "current", payload); err != nil {
		return err
	}
	s := l.bridge.lease
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count, s.wrote = max(s.count, e.Count), time.Now()
	return nil
}

// keepLease renews the lease until ctx ends or another has it.
func (l *link) keepLease(ctx context.Context) {
	s := l.bridge.lease
	if s.holder == "" {
		return
	}
	for wait := s.left(); ; {
		pause(ctx, wait)
		_, next, err := l.look(ctx)
		if err == nil {
			err = l.write(ctx, next, l.deliver)
		}
		wait = s.every
		switch {
		case l.yield(err), l.over(ctx):
			return
		case Judge(err) == Park:
			wait = leaseRefused
		case err != nil:
			l.bridge.log.Debug("the lease is not renewed", "error", err)
		}
	}
}

// yield ends the session where err says that another is at work. Nothing is
// published from then on.
func (l *link) yield(err error) bool {
	if !errors.Is(err, ErrPassive) && !errors.Is(err, ErrSucceeded) {
		return false
	}
	l.bridge.link.CompareAndSwap(l, nil)
	l.bridge.lease.heeds.Store(false)
	l.yielding.Do(func() { l.lost <- err })
	return true
}

// giveBack lets another take the lease at once.
func (l *link) giveBack() {
	if !l.bridge.lease.has() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewellTimeout)
	defer cancel()
	_, next, err := l.look(ctx)
	if next.Holder = ""; err == nil {
		err = l.write(ctx, next, l.publish)
	}
	if err != nil {
		l.bridge.log.Debug("the lease is not given back", "error", err)
	}
}

// Holds tells before a command is carried out that this gateway is still the one
// at work, as [ErrPassive] where it is not. Two sessions of one account can be
// there at once, and both hear what is written to the account; a component's
// stanzas come to one connection. An answer that does not come says nothing
// against it.
func (b *Bridge) Holds(ctx context.Context) error {
	if b.lease.passive.Load() {
		return ErrPassive
	}
	l := b.link.Load()
	if b.component || l == nil || b.lease.holder == "" {
		return nil
	}
	if _, _, err := l.look(ctx); l.yield(err) {
		return err
	}
	return nil
}

// Passive reports whether another gateway of this one's identity is at work.
func (b *Bridge) Passive() bool { return b.lease.passive.Load() }
