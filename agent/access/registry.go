package access

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// file is in the data directory.
	file = "access.yaml"

	maxGrants  = 1000
	maxRevoked = 1000
	// maxPeople is how many strangers are kept: each costs a write, and the
	// attention of an owner.
	maxPeople = 50
	maxWants  = 20 // devices that one asks for

	waits  = 7 * 24 * time.Hour
	denied = 30 * 24 * time.Hour
)

// A Person is a stranger who wants to see devices.
type Person struct {
	Number  int // even, so that it is never taken for a device's, which is odd
	JID     string
	Wants   []devices.ID // the gateway's is all of them
	Since   time.Time
	Refused bool // and is not heard for a while
}

// A revocation is of all that the config grants somebody.
type revocation struct {
	jid, by string
	at      time.Time
}

// A state is what the file holds. It does not change.
type state struct {
	grants  Grants
	revoked []revocation
	people  []Person
	last    int // number given to a person
}

// Options are what a Registry is given by its owner.
type Options struct {
	Dir      string        // the data directory
	Now      func() Moment // must not block
	CheckJID func(string) error
	Log      *slog.Logger
}

// A Registry knows who is granted what: by the config, and by the file
// access.yaml in the data directory, whose word beats the config's. Its methods
// may be called from any goroutine; those that change something wait for the
// disk.
//
// Where the file cannot be used at a start, it is not known who was revoked.
// Until somebody mends it and has it read again, only the owners of the config
// may do anything, less those whose revocation can be read; nothing is granted
// or revoked, so that the file stays as it is.
type Registry struct {
	o     Options
	claim claim

	deciding sync.Mutex // held, before mu, while something is decided and written

	mu      sync.Mutex
	config  Grants
	state   state
	broken  error  // why the file cannot be used
	known   bool   // the file was understood once
	granted Grants // what counts of all this
}

// Open makes the registry of a data directory, without the config's grants. The
// error tells that the file cannot be used.
func Open(o Options) (*Registry, error) {
	r := &Registry{o: o}
	return r, r.Reload()
}

func (r *Registry) path() string { return filepath.Join(r.o.Dir, file) }

// Reload reads the file again. The error says why it cannot be used; what it
// said before then holds.
func (r *Registry) Reload() error {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	return r.reload()
}

// reload is Reload, with r.deciding held.
func (r *Registry) reload() error {
	s, err := r.read()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = err
	switch {
	case err == nil:
		r.state, r.known = s, true
	case !r.known:
		r.state = state{revoked: s.revoked}
	}
	r.count()
	return err
}

// Configure takes what the config grants.
func (r *Registry) Configure(config Grants) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.config = config
	r.count()
}

// Grants gives what is granted, first by the config.
func (r *Registry) Grants() Grants {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.granted
}

// count says what counts. It is called with r.mu held.
func (r *Registry) count() {
	r.granted = r.state.with(r.config)
	if r.broken != nil && !r.known {
		r.granted = slices.DeleteFunc(r.granted, func(g Grant) bool { return g.Role != Owner })
	}
}

// with gives what counts of the config's grants, and the file's.
func (s state) with(config Grants) Grants {
	all := make(Grants, 0, len(config)+len(s.grants))
	for _, g := range config {
		if !slices.ContainsFunc(s.revoked, func(x revocation) bool { return x.jid == g.JID }) {
			all = append(all, g)
		}
	}
	return append(all, s.grants...)
}

// The reasons for which nothing is decided. The first tells a stranger nothing.
var (
	ErrNotAllowed = errors.New("only an owner may do that")
	errMore       = errors.New("that is more than your own grant covers")
	errLastOwner  = errors.New("then nobody would be the owner; make somebody else an owner first")
	errNobody     = errors.New("nobody of that number waits")
)

// change has one decision made, written and kept. The file is read before, so
// that what somebody wrote into it meanwhile is not lost.
func (r *Registry) change(decide func(s *state, now Moment) error) error {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	if err := r.reload(); err != nil {
		return fmt.Errorf("%s has to be mended first: %w", file, err)
	}
	r.mu.Lock()
	next := r.state
	r.mu.Unlock()
	now := r.o.Now()
	next.grants, next.revoked, next.people = slices.Clone(next.grants), slices.Clone(next.revoked), slices.Clone(next.people)
	next.people = slices.DeleteFunc(next.people, func(p Person) bool { return p.over(now) })
	if err := decide(&next, now); err != nil {
		return err
	}
	if err := r.write(next); err != nil {
		return fmt.Errorf("cannot write %s: %w", file, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = next
	r.count()
	return nil
}

// all gives the grants as they would be.
func (r *Registry) all(s *state) Grants {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.with(r.config)
}

// Grant gives somebody a role, instead of all that he had. by is the bare JID
// of an owner, who may give no more than he has.
func (r *Registry) Grant(by string, g Grant) error {
	return r.change(func(s *state, now Moment) error {
		before := r.all(s)
		if err := before.mayTake(by, g.JID, now); err != nil {
			return err
		}
		s.forget(g.JID)
		s.revoke(revocation{g.JID, by, now.Time})
		if err := r.add(s, before, by, g, now); err != nil {
			return err
		}
		return r.keptOwner(s, before, now)
	})
}

// mayTake says why somebody may not change what another is granted.
func (gs Grants) mayTake(by, from string, now Moment) error {
	if !gs.Plays(by, Owner, now) {
		return ErrNotAllowed
	}
	for _, g := range gs {
		if g.JID == from && !g.over(now) && !gs.mayGive(by, g, now) {
			return errMore
		}
	}
	return nil
}

// add grants something more.
func (r *Registry) add(s *state, before Grants, by string, g Grant, now Moment) error {
	if !before.Plays(by, Owner, now) {
		return ErrNotAllowed
	}
	if g.Role < Viewer || g.Role > Owner {
		return errors.New("there is no such role; the roles are viewer, operator, installer, owner")
	}
	for _, pattern := range g.Devices {
		if err := CheckPattern(pattern); err != nil {
			return err
		}
	}
	if err := r.o.CheckJID(g.JID); err != nil {
		return err
	}
	switch {
	case g.over(now):
		return fmt.Errorf("%s is over already", g.Until)
	case !before.mayGive(by, g, now):
		return errMore
	case len(s.grants) >= maxGrants:
		return fmt.Errorf("more than %d grants were given; revoke some", maxGrants)
	}
	g.By, g.At = by, now.Time
	s.grants = append(s.grants, g)
	s.people = slices.DeleteFunc(s.people, func(p Person) bool { return p.JID == g.JID })
	return nil
}

func (s *state) forget(jid string) {
	s.grants = slices.DeleteFunc(s.grants, func(g Grant) bool { return g.JID == jid })
}

// revoke has the config grant somebody nothing.
func (s *state) revoke(x revocation) {
	s.revoked = slices.DeleteFunc(s.revoked, func(old revocation) bool { return old.jid == x.jid })
	s.revoked = append(s.revoked, x)
}

// keptOwner refuses to be left without an owner.
func (r *Registry) keptOwner(s *state, before Grants, now Moment) error {
	switch {
	case before.owned(true, now) && !r.all(s).owned(true, now):
		return errLastOwner
	case len(s.revoked) > maxRevoked:
		return fmt.Errorf("more than %d people were revoked; take out of %s those whom the config does not name", maxRevoked, file)
	}
	return nil
}

// Revoke takes all that somebody is granted, by the config too.
func (r *Registry) Revoke(by, from string) error {
	return r.change(func(s *state, now Moment) error {
		before := r.all(s)
		if err := before.mayTake(by, from, now); err != nil {
			return err
		}
		if !slices.ContainsFunc(before, func(g Grant) bool { return g.JID == from }) {
			return fmt.Errorf("%s is granted nothing", from)
		}
		s.forget(from)
		s.revoke(revocation{from, by, now.Time})
		return r.keptOwner(s, before, now)
	})
}

// over reports whether a person is to be forgotten.
func (p Person) over(now Moment) bool {
	limit := waits
	if p.Refused {
		limit = denied
	}
	return now.Known && now.Time.Sub(p.Since) > limit
}

// Knock keeps that a stranger wants to see a device that there is. fresh is set
// where he did not wait before. Who was denied lately does not wait, nor who
// will see it in his hours.
func (r *Registry) Knock(who string, device devices.ID) (p Person, fresh bool, err error) {
	known := func(s *state) bool {
		now := r.o.Now()
		return r.all(s).Sometimes(who, device, now) || slices.ContainsFunc(s.people, func(p Person) bool {
			return p.JID == who && !p.over(now) && (p.Refused || slices.Contains(p.Wants, device) || len(p.Wants) >= maxWants)
		})
	}
	r.mu.Lock()
	before := r.state
	r.mu.Unlock()
	if known(&before) {
		return p, false, nil // the disk is not asked for what somebody repeats
	}
	err = r.change(func(s *state, now Moment) error {
		if known(s) {
			return nil
		}
		for i := range s.people {
			if s.people[i].JID == who {
				p = s.people[i]
				p.Wants = append(slices.Clone(p.Wants), device)
				s.people[i] = p
				return nil
			}
		}
		if len(s.people) >= maxPeople {
			return fmt.Errorf("%d people wait or were denied lately; %s does not wait", maxPeople, who)
		}
		if err := r.o.CheckJID(who); err != nil {
			return err
		}
		s.last += 2
		p = Person{Number: s.last, JID: who, Wants: []devices.ID{device}, Since: now.Time}
		s.people = append(s.people, p)
		fresh = true
		return nil
	})
	return p, fresh && err == nil, err
}

// Waiting gives the strangers who wait, in the order in which they came.
func (r *Registry) Waiting() []Person {
	r.mu.Lock()
	people := slices.Clone(r.state.people)
	r.mu.Unlock()
	now := r.o.Now()
	return slices.DeleteFunc(people, func(p Person) bool { return p.Refused || p.over(now) })
}

// Admit gives a stranger who waits what he wants, or what g says, beside what he
// has; g.JID is not looked at. by is as of Grant.
func (r *Registry) Admit(by string, number int, g Grant) (granted Grant, err error) {
	err = r.change(func(s *state, now Moment) error {
		before := r.all(s)
		if !before.Plays(by, Owner, now) {
			return ErrNotAllowed
		}
		i, err := s.waiting(number)
		if err != nil {
			return err
		}
		p := s.people[i]
		g.JID = p.JID
		if len(g.Devices) == 0 && !slices.Contains(p.Wants, devices.Gateway) {
			for _, id := range p.Wants {
				g.Devices = append(g.Devices, string(id))
			}
		}
		granted = g
		return r.add(s, before, by, g, now)
	})
	return granted, err
}

// Deny has a stranger wait no more.
func (r *Registry) Deny(by string, number int) (p Person, err error) {
	err = r.change(func(s *state, now Moment) error {
		if !r.all(s).Plays(by, Owner, now) {
			return ErrNotAllowed
		}
		i, err := s.waiting(number)
		if err != nil {
			return err
		}
		p = s.people[i]
		s.people[i].Refused, s.people[i].Since = true, now.Time
		return nil
	})
	return p, err
}

func (s *state) waiting(number int) (int, error) {
	i := slices.IndexFunc(s.people, func(p Person) bool { return p.Number == number && !p.Refused })
	if i < 0 {
		return i, errNobody
	}
	return i, nil
}
