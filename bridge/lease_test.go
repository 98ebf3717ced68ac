package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
	"github.com/porchlight-iot/porchlight/devices"
)

// ever is longer than a test.
const ever = time.Hour

// newHolder makes a bridge that keeps a lease, and is not started.
func newHolder(t *testing.T, cfg Config, holder string) *running {
	t.Helper()
	r := newRunning(t, cfg)
	r.lease = newLease(Options{Holder: holder})
	r.lease.lapse, r.lease.aside = ever, 0
	r.executor = &fenced{&r.desk, r.Bridge}
	r.wait = func(c stream.Class, _ time.Duration) time.Duration {
		if c == stream.Transient {
			return 100 * time.Millisecond
		}
		return 5 * time.Second // as minutes
	}
	return r
}

// fenced is a desk that asks before it does what it is told.
type fenced struct {
	*desk
	b *Bridge
}

func (f *fenced) Execute(ctx context.Context, author string, c devices.Command) <-chan Outcome {
	if err := f.b.Holds(ctx); err != nil {
		f.note("refused: %v", err)
		out := make(chan Outcome, 1)
		out <- Outcome{Kind: Refused, Err: err}
		close(out)
		return out
	}
	return f.desk.Execute(ctx, author, c)
}

func (r *running) isPassive() {
	r.t.Helper()
	eventually(r.t, "it is passive", func() error {
		if !r.Passive() || r.link.Load() != nil {
			return errors.New("it is not")
		}
		return nil
	})
}

// isAtWork asserts that what it publishes arrives.
func (r *running) isAtWork(first uint64) {
	r.t.Helper()
	eventually(r.t, "what it publishes arrives", func() error { _, err := r.tryLog("kitchen", first); return err })
}

// vanish ends a bridge as a power cut does: the lease is not given back.
func (r *running) vanish() {
	r.lease.mu.Lock()
	r.lease.count = 0
	r.lease.mu.Unlock()
	r.stop()
}

// TestLease has two gateways with one component, or one account. One of them is
// at work, whatever its config calls it.
func TestLease(t *testing.T) {
	for _, kind := range []xmppserver.Kind{xmppserver.Prosody, xmppserver.Ejabberd} {
		for _, m := range modes {
			t.Run(fmt.Sprintf("%s/%s", kind, m), func(t *testing.T) {
				if kind == xmppserver.Ejabberd && m == asComponent {
					t.Skip("ejabberd gives each of two connections of a component half of the answers: it takes tries until it is known who is passive")
				}
				t.Parallel()
				testLease(t, startSite(t, kind), m)
			})
		}
	}
}

func testLease(t *testing.T, s *site, m mode) {
	first := newHolder(t, s.config(m, "first"), "card 1")
	first.start()
	first.waitSession(true)
	n := first.leaseNode()
	first.checkConfig(n)
	eve := s.login(t, "eve")
	if _, err := eve.items(s.service(m), n.name); err == nil {
		t.Error("a stranger reads the lease")
	}

	// A second one is passive, and the first, which it may have put out, goes on.
	second := newHolder(t, s.config(m, "second"), "card 2")
	second.start()
	second.isPassive()
	if _, err := second.tryLog("kitchen", 1); !errors.Is(err, ErrOffline) {
		t.Errorf("a passive gateway publishes: %v", err)
	}
	if err := second.Holds(context30(t)); !errors.Is(err, ErrPassive) {
		t.Errorf("a passive gateway may do what it is told: %v", err)
	}
	first.isAtWork(1)
	second.stop()

	// A start of the same one after a kill waits for nothing.
	first.vanish()
	again := newHolder(t, s.config(m, "first"), "card 1")
	again.start()
	again.waitSession(true)
	if again.Passive() || len(again.ups) != 0 {
		t.Error("a new start was passive")
	}

	// One that vanished is succeeded, once its lease has stood still.
	again.vanish()
	third := newHolder(t, s.config(m, "third"), "card 3")
	third.lease.lapse = 100 * time.Millisecond
	third.start()
	third.waitSession(true)
	if third.lease.count <= again.lease.seen.Count {
		t.Errorf("the counter fell to %d", third.lease.count)
	}
	// The one that comes back finds a newer counter.
	back := newHolder(t, s.config(m, "first"), "card 1")
	back.start()
	back.isPassive()
	back.stop()
	third.isAtWork(5)

	// A lease that was given back is free.
	third.stop()
	fourth := newHolder(t, s.config(m, "fourth"), "card 4")
	fourth.start()
	fourth.waitSession(true)
	if fourth.Passive() {
		t.Error("a lease was not given back")
	}
}

func refusedThere(what string) bool { return strings.HasPrefix(what, "refused: ") }

// TestLeaseOfCopiedCards has two sessions of one account at once, of which each
// takes the lease for its own: the cards are copies. A command is carried out by
// one of them, and the other ends before it publishes any more.
func TestLeaseOfCopiedCards(t *testing.T) {
	s := startSite(t, xmppserver.Prosody)
	var all []*running
	for _, gateway := range []string{"first", "second"} {
		r := newHolder(t, s.config(asAccount, gateway), "card")
		if gateway == "second" {
			r.lease.every = 50 * time.Millisecond
		}
		r.start()
		r.waitSession(true)
		all = append(all, r)
	}
	anna := s.login(t, "anna")
	gateway := all[0].account.String()
	level := 0
	eventually(t, "the one that lost the lease is told something", func() error {
		if slices.ContainsFunc(all[0].desk.all(), refusedThere) {
			return nil
		}
		level++ // the second may not be there yet, for the server
		anna.send(fmt.Sprintf(`<message to='%s' type='chat' id='m%d'><body>kitchen level %[2]d</body></message>`, gateway, level))
		return errors.New("not yet")
	})
	times := make(map[string]int)
	for _, what := range slices.Concat(all[0].desk.all(), all[1].desk.all()) {
		if times[what]++; times[what] > 1 && !refusedThere(what) {
			t.Errorf("%s: %d times", what, times[what])
		}
	}
	all[0].isPassive()
	all[1].isAtWork(1)

	// Nobody has to tell them anything.
	third := newHolder(t, s.config(asAccount, "third"), "card")
	third.lease.every = 50 * time.Millisecond
	third.start()
	third.waitSession(true)
	eventually(t, "one of two is at work", func() error {
		if all[1].Passive() == third.Passive() {
			return errors.New("not yet")
		}
		return nil
	})
}

// TestLeaseRefused has a service that lets nobody make a node for the lease: the
// gateway works as if there were no leases.
func TestLeaseRefused(t *testing.T) {
	server := xmpptest.Serve(t, func(p *xmpptest.Peer, name string, a xmpptest.Asked) {
		if strings.Contains(a.Inner, "/lease") {
			p.Refuse(a, "auth", "<forbidden xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>")
			return
		}
		obliging(p, name, a)
	})
	r := runScripted(t, server, func(b *Bridge) { b.lease = newLease(Options{Holder: "card"}) })
	r.waitSession(true)
	r.publishLog("kitchen", 1)
	if err := r.Holds(context30(t)); err != nil || r.Passive() {
		t.Errorf("it is held back: %v", err)
	}
}

// TestJudgeLease is who goes on with what it finds.
func TestJudgeLease(t *testing.T) {
	at := time.Now()
	ours := func() *lease {
		return &lease{holder: "me", run: "now", generation: 2, count: 5, lapse: time.Minute}
	}
	fresh := func() *lease { return &lease{holder: "me", run: "now", generation: 2, lapse: time.Minute} }
	for name, tt := range map[string]struct {
		s     *lease
		found leaseElement
		want  error
		count uint64
	}{
		"nothing there":                     {fresh(), leaseElement{}, nil, 1},
		"ours":                              {ours(), leaseElement{Holder: "me", Run: "now", Count: 5, Generation: 2}, nil, 6},
		"lost by the server":                {ours(), leaseElement{}, nil, 6},
		"of our run before":                 {fresh(), leaseElement{Holder: "me", Run: "before", Count: 9, Generation: 2}, nil, 10},
		"a copy of our card, which is new":  {ours(), leaseElement{Holder: "me", Run: "copy", Count: 6, Generation: 2}, ErrPassive, 0},
		"another's":                         {fresh(), leaseElement{Holder: "you", Run: "r", Count: 9, Generation: 2}, ErrPassive, 0},
		"another's, newer than ours":        {ours(), leaseElement{Holder: "you", Run: "r", Count: 6, Generation: 2}, ErrPassive, 0},
		"written late by who has lost it":   {ours(), leaseElement{Holder: "you", Run: "r", Count: 4, Generation: 2}, nil, 6},
		"given back":                        {fresh(), leaseElement{Run: "r", Count: 4, Generation: 2}, nil, 5},
		"of the one before a restore":       {fresh(), leaseElement{Holder: "you", Run: "r", Count: 4, Generation: 1}, nil, 5},
		"of one that was restored from us":  {ours(), leaseElement{Holder: "you", Run: "r", Count: 4, Generation: 3}, ErrSucceeded, 0},
		"and which is not at work just now": {fresh(), leaseElement{Run: "r", Count: 4, Generation: 3}, ErrSucceeded, 0},
	} {
		next, err := tt.s.judge(tt.found, at)
		if !errors.Is(err, tt.want) || next.Count != tt.count || err == nil && (next.Holder != "me" || next.Run != "now" || next.Generation != 2) {
			t.Errorf("%s: %+v, %v", name, next, err)
		}
	}

	s := fresh()
	s.over = func(process string) bool { return process == "killed" }
	for process, want := range map[string]error{"killed": nil, "elsewhere": ErrPassive} {
		if _, err := s.judge(leaseElement{Holder: "you", Run: "r", Process: process, Count: 9, Generation: 2}, at); !errors.Is(err, want) {
			t.Errorf("of a process %s: %v", process, err)
		}
	}

	// Another is gone when its count stood still for long, not before.
	s = fresh()
	found := leaseElement{Holder: "you", Run: "r", Count: 9, Generation: 2}
	for _, step := range []struct {
		after time.Duration
		count uint64
		want  error
	}{{0, 9, ErrPassive}, {59 * time.Second, 9, ErrPassive}, {time.Hour, 10, ErrPassive}, {time.Hour + time.Minute, 10, nil}} {
		found.Count = step.count
		if _, err := s.judge(found, at.Add(step.after)); !errors.Is(err, step.want) || s.passive.Load() != (step.want != nil) {
			t.Errorf("after %v at %d: %v", step.after, step.count, err)
		}
	}
}
