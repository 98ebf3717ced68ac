package bridge

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/words"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// maxWaiting is how many messages of one person wait for their turn, and
	// maxUnderway how much of what he wants is under way beside.
	maxWaiting  = 16
	maxUnderway = 16
	// maxPeople bounds how many are remembered. Only who is granted something
	// is; strangers share one place.
	maxPeople = 1000
	// maxSeen is how many messages of a person are remembered, so that each is
	// obeyed once, and seenFor for how long.
	maxSeen = 64
	seenFor = 10 * time.Minute
	// menuFor is how long a number means a line of the menu.
	menuFor = 10 * time.Minute
	// surelyFor is how long a word that makes sure is good for.
	surelyFor = time.Minute
)

// people do one thing after the other for each person, and for different people
// at the same time: one who waits, or floods, is in nobody else's way.
type people struct {
	log     *slog.Logger
	mu      sync.Mutex
	ctx     context.Context // nil while nothing is to begin
	known   map[string]*talk
	working sync.WaitGroup
}

// A talk is what is remembered of one person.
type talk struct {
	waiting  []func(context.Context)
	at       bool // a goroutine works on waiting
	underway int

	// What follows belongs to the goroutine that is at work.
	seen  []heard
	menus map[devices.ID]menu // by whom they were shown
	ask   *surely
}

// heard is a message that was taken.
type heard struct {
	id   string // with the sender's resource
	body string
	at   time.Time
	done bool // something was done by it
}

// A menu is what numbers mean.
type menu struct {
	lines []words.Request
	until time.Time
}

// surely is a command that waits for a word.
type surely struct {
	word    string
	request words.Request
	to      devices.ID
	until   time.Time
}

// start has things done until ctx ends; the function waits for their end.
func (p *people) start(ctx context.Context) (stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ctx = ctx
	return func() {
		p.mu.Lock()
		p.ctx = nil
		for _, t := range p.known {
			t.waiting = nil
		}
		p.mu.Unlock()
		p.working.Wait()
	}
}

// of gives what is known of somebody. It is called with the lock held.
func (p *people) of(who string) *talk {
	t := p.known[who]
	if t == nil {
		if len(p.known) >= maxPeople {
			for other, idle := range p.known {
				if !idle.at && idle.underway == 0 {
					delete(p.known, other)
					break
				}
			}
		}
		t = &talk{menus: make(map[devices.ID]menu)}
		p.known[who] = t
	}
	return t
}

// next has f be done after what somebody wanted before. It reports false where
// too much waits. It does not block.
func (p *people) next(who string, f func(context.Context, *talk)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil {
		return false
	}
	t := p.of(who)
	if len(t.waiting) >= maxWaiting {
		return false
	}
	t.waiting = append(t.waiting, func(ctx context.Context) { f(ctx, t) })
	if !t.at {
		t.at = true
		ctx := p.ctx
		p.working.Go(func() { p.work(ctx, t) })
	}
	return true
}

func (p *people) work(ctx context.Context, t *talk) {
	for {
		p.mu.Lock()
		if len(t.waiting) == 0 {
			t.at = false
			p.mu.Unlock()
			return
		}
		f := t.waiting[0]
		t.waiting = t.waiting[1:]
		p.mu.Unlock()
		p.try(ctx, f)
	}
}

// try does one thing, which harms only itself if it panics.
func (p *people) try(ctx context.Context, f func(context.Context)) {
	defer func() {
		if r := recover(); r != nil {
			p.log.Error("what somebody wanted was not done", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	f(ctx)
}

// beside has f be done at the same time as all else. It reports false where too
// much is under way.
func (p *people) beside(who string, f func(context.Context)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil {
		return false
	}
	t := p.of(who)
	if t.underway >= maxUnderway {
		return false
	}
	t.underway++
	ctx := p.ctx
	p.working.Go(func() {
		defer func() {
			p.mu.Lock()
			t.underway--
			p.mu.Unlock()
		}()
		p.try(ctx, f)
	})
	return true
}

// take notes a message, and reports whether it came before. A message without
// an id cannot be told from another.
func (t *talk) take(id, body string, now time.Time) (again bool) {
	if id == "" {
		return false
	}
	for _, h := range t.seen {
		if h.id == id && h.body == body && now.Sub(h.at) < seenFor {
			return true
		}
	}
	if len(t.seen) == maxSeen {
		t.seen = t.seen[1:]
	}
	t.seen = append(t.seen, heard{id: id, body: body, at: now})
	return false
}

// did notes that something was done by a message.
func (t *talk) did(id string) {
	for i := range t.seen {
		if t.seen[i].id == id {
			t.seen[i].done = true
		}
	}
}

// corrects reports whether a message corrects one by which something was done.
func (t *talk) corrects(id string) bool {
	for _, h := range t.seen {
		if h.id == id && h.done {
			return true
		}
	}
	return false
}
