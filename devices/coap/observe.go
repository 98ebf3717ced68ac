package coap

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
)

// errNotObservable says that a resource answers, but does not report by itself.
var errNotObservable = errors.New("the resource does not report by itself")

const (
	notificationRoom = 8
	// reorderTime is how long a notification may be on the way after a later one
	// (RFC 7641 section 3.4).
	reorderTime = 128 * time.Second
	// A notification may be so late, and no later, that a peer asks again
	// whether it is still wanted (section 3.3.1).
	overdueLeast, overdueMost = 5 * time.Second, 15 * time.Second
	// With one that forgets, so that what follows fits into the same time.
	forgottenLeast, forgottenMost = time.Second, 5 * time.Second
)

// observe has a peer report what is at q, and gives each report that is newer
// than the one before to take, whole. When Max-Age has passed without one, or
// atLeast, which may be 0, it registers again, as the peer may have begun anew
// and forgotten. It returns why it ended: ctx did, the peer is silent or says no,
// or errNotObservable after the one answer that there was. Only the last means
// that the peer was heard.
func (s *session) observe(ctx context.Context, p *peer, q request, atLeast time.Duration, take func(answer)) error {
	c, err := s.converse(p, notificationRoom)
	if err != nil {
		return err
	}
	defer c.close()
	o := observation{conversation: c, request: q, take: take}
	defer o.cancel()
	for silent := 0; ; {
		err := o.register(ctx)
		if err == nil {
			err = o.follow(ctx, atLeast)
		}
		switch {
		case err == nil:
			silent = 0
		case errors.Is(err, errSilent) && ctx.Err() == nil && o.heard && silent == 0 && !p.forgets:
			silent++ // it may only have missed this
		default:
			return err
		}
	}
}

// An observation is a conversation in which a peer reports.
type observation struct {
	*conversation
	request request
	take    func(answer)

	heard  bool // there was a notification
	anew   bool // the next one counts whatever its number
	number uint32
	at     time.Time
	maxAge time.Duration
}

// register asks to be told, with the token that there is: a peer that knows it
// then has one observer and not two (section 4.1).
func (o *observation) register(ctx context.Context) error {
	m := o.request.message()
	m.Options = m.Options.Add(message.Option{ID: message.Observe})
	o.anew, o.maxAge = true, 0
	return o.send(ctx, m)
}

// cancel tells the peer that it is enough, once. If that is lost, its next
// report is refused.
func (o *observation) cancel() {
	if !o.heard {
		return
	}
	m := o.request.message()
	m.Options = m.Options.Add(uintOption(message.Observe, 1))
	s := o.session
	s.mu.Lock()
	m.Type, m.Token, m.MessageID = message.NonConfirmable, o.token, o.peer.nextMID()
	s.mu.Unlock()
	if b, err := encoded(m); err == nil {
		s.send(o.peer, b)
	}
}

// follow takes notifications until it is time to register again.
func (o *observation) follow(ctx context.Context, atLeast time.Duration) error {
	began := time.Now()
	timer := time.NewTimer(maxTransmitWait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			if o.anew {
				return errSilent
			}
			return nil
		case m, ok := <-o.answers:
			if !ok {
				return errGone
			}
			if err := o.notification(ctx, m); err != nil {
				return err
			}
			least, most := overdueLeast, overdueMost
			if o.peer.forgets {
				least, most = forgottenLeast, forgottenMost
			}
			wait := o.maxAge + least + rand.N(most-least)
			if atLeast > 0 {
				wait = min(wait, max(0, atLeast-time.Since(began)))
			}
			timer.Reset(wait)
		}
	}
}

func (o *observation) notification(ctx context.Context, m message.Message) error {
	a, now := newAnswer(m), time.Now()
	number, reports := a.observe()
	switch {
	case !a.ok():
		o.heard = false // section 3.2: it has taken us off its list
		return a.refusal()
	case reports && !o.anew && !newer(number, o.number) && now.Sub(o.at) <= reorderTime:
		return nil
	}
	o.anew, o.number, o.at, o.maxAge = false, number, now, a.maxAge()
	o.heard = o.heard || reports
	if v, err := m.Options.GetUint32(message.Block2); err == nil && v&8 != 0 {
		// RFC 7959 section 3.4: the rest is fetched as ever. The first block is too,
		// so that all are of one representation.
		whole, err := o.session.do(ctx, o.peer, o.request)
		if err != nil {
			return err
		}
		if !whole.ok() {
			return whole.refusal()
		}
		whole.options = a.options
		a = whole
	}
	o.take(a)
	if !reports {
		return errNotObservable
	}
	return nil
}

// newer compares numbers of 24 bits (section 3.4).
func newer(a, b uint32) bool {
	return (a-b)&0xffffff != 0 && (a-b)&0xffffff < 1<<23
}
