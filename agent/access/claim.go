package access

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/durable"
)

const (
	// ClaimFile is in the data directory while there is no owner.
	ClaimFile = "claim"

	// How often somebody may try, and all together, in claimPer, and how many
	// wrong tries have the code replaced.
	claimTries    = 5
	claimAllTries = 60
	claimWrong    = 10
	claimPer      = time.Hour
)

// A claim is the code by which somebody becomes the first owner.
type claim struct {
	mu    sync.Mutex
	code  string // "" while there is an owner
	wrong int
	tries []claimTry // of the last hour
}

type claimTry struct {
	who string
	at  time.Time // by the machine's clock, which also counts where the time is not known
}

// claimLetters are those that nobody takes for another.
const claimLetters = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"

const codeLetters = 10

func newCode() string {
	b := make([]byte, codeLetters)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = claimLetters[int(b[i])%len(claimLetters)] // 256 is a multiple of 32
	}
	return string(b[:5]) + "-" + string(b[5:])
}

// OfferClaim has a code in the log and in the file claim while nobody is the
// owner, and neither otherwise. A code that is in the file stays, so that one
// which was shown before the gateway's first start, or its last, is good.
func (r *Registry) OfferClaim() error {
	r.claim.mu.Lock()
	defer r.claim.mu.Unlock()
	return r.offer()
}

// ClaimCode gives the code that is offered; "" is none, as there is an owner.
func (r *Registry) ClaimCode() string {
	r.claim.mu.Lock()
	defer r.claim.mu.Unlock()
	return r.claim.code
}

// Claimable reports whether somebody can become the owner by a code.
func (r *Registry) Claimable() bool {
	r.mu.Lock()
	usable := r.broken == nil
	r.mu.Unlock()
	return usable && !r.Grants().owned(false, r.o.Now())
}

// offer is OfferClaim, with r.claim.mu held.
func (r *Registry) offer() error {
	path := filepath.Join(r.o.Dir, ClaimFile)
	switch {
	case !r.Claimable():
		r.claim.code = ""
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case r.claim.code != "":
		return nil
	}
	if text, err := os.ReadFile(path); err == nil && len(plain(string(text))) == codeLetters {
		r.setCode(strings.TrimSpace(string(text)))
		return nil
	}
	return r.renewCode()
}

// renewCode is called with r.claim.mu held.
func (r *Registry) renewCode() error {
	r.setCode(newCode())
	return durable.Replace(filepath.Join(r.o.Dir, ClaimFile), []byte(r.claim.code+"\n"))
}

func (r *Registry) setCode(code string) {
	r.claim.code, r.claim.wrong = code, 0
	r.o.Log.Warn("nobody is the owner yet; who sends this to the gateway is", "send", "claim "+code)
}

// Claim makes who, a bare JID, the owner. The error is [ErrNotAllowed] whether
// the code is wrong, or too many were, or there is an owner.
func (r *Registry) Claim(who, code string) error {
	r.claim.mu.Lock()
	defer r.claim.mu.Unlock()
	if r.claim.code == "" || !r.Claimable() || !r.claim.mayTry(who, time.Now()) {
		return ErrNotAllowed
	}
	if subtle.ConstantTimeCompare([]byte(plain(code)), []byte(plain(r.claim.code))) != 1 {
		if r.claim.wrong++; r.claim.wrong >= claimWrong {
			if err := r.renewCode(); err != nil {
				r.o.Log.Error("the new code to claim the gateway is only in this log", "error", err)
			}
		}
		return ErrNotAllowed
	}
	err := r.change(func(s *state, now Moment) error {
		if r.all(s).owned(false, now) {
			return ErrNotAllowed
		}
		if err := r.o.CheckJID(who); err != nil {
			return err
		}
		s.forget(who)
		s.grants = append(s.grants, Grant{JID: who, Role: Owner, By: ClaimFile, At: now.Time})
		s.people = slices.DeleteFunc(s.people, func(p Person) bool { return p.JID == who })
		return nil
	})
	if err != nil {
		return err
	}
	r.o.Log.Info("the gateway was claimed", "owner", who)
	return r.offer()
}

// plain is what counts of a code as people type it.
func plain(code string) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(claimLetters, c) {
			return c
		}
		return -1
	}, strings.ToUpper(code))
}

func (c *claim) mayTry(who string, now time.Time) bool {
	c.tries = slices.DeleteFunc(c.tries, func(t claimTry) bool { return now.Sub(t.at) > claimPer })
	own := 0
	for _, t := range c.tries {
		if t.who == who {
			own++
		}
	}
	if own >= claimTries || len(c.tries) >= claimAllTries {
		return false
	}
	c.tries = append(c.tries, claimTry{who, now})
	return true
}
