package coap

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// An IKEA TRÅDFRI gateway gives a key to who shows the code on its label. What it
// does, and what the numbers mean, is known from github.com/home-assistant-libs/pytradfri
// (pytradfri/const.py, gateway.py) and from the reports there; IKEA tells nothing.

const (
	labelName = "Client_identity" // of all who show the code
	maxKey    = 64                // bytes

	// anewEvery is how often a gateway is asked for a key at most: it keeps every
	// name that it gave one to.
	anewEvery = 10 * time.Minute
)

// A grant is a key that a gateway gave, and the name that goes with it.
type grant struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

// Grants are what gateways gave, which is kept over a restart.
type grants struct {
	folder  string
	replace func(path string, data []byte) error

	mu sync.Mutex
	of map[string]*granting // by host and port
}

// A granting is what becomes of the code of one gateway.
type granting struct {
	turn  chan struct{} // has one while the gateway is asked for a key
	mu    sync.Mutex
	grant *grant // nil where there is none
	tries int
	err   error     // of the last try
	given time.Time // when the gateway gave a key to this process
}

func (g *granting) now() (*grant, int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.grant, g.tries, g.err
}

// reach gives the peer of an association with a gateway, under the key that it
// gave. Where it gave none, or takes that no longer, it is asked for one: once,
// whatever the number of its devices.
func (k *grants) reach(ctx context.Context, s *session, gateway string, to netip.AddrPort, name string, code []byte) (*peer, func(), error) {
	g, err := k.about(gateway)
	if err != nil {
		return nil, nil, err
	}
	var refused error
	before, tries, _ := g.now()
	if before != nil {
		p, release, err := s.reachSecure(ctx, to, before.Name, []byte(before.Key))
		if err == nil || ctx.Err() != nil {
			return p, release, err
		}
		refused = err
	}
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	now, tried, err := g.now()
	if tried == tries {
		now, err = k.renew(ctx, s, g, gateway, to, name, code, refused)
	}
	<-g.turn
	if err != nil {
		return nil, nil, err
	}
	return s.reachSecure(ctx, to, now.Name, []byte(now.Key))
}

// about gives what is known of a gateway.
func (k *grants) about(gateway string) (*granting, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if g := k.of[gateway]; g != nil {
		return g, nil
	}
	g := &granting{turn: make(chan struct{}, 1)}
	b, err := os.ReadFile(k.file(gateway))
	if err == nil {
		if err = json.Unmarshal(b, &g.grant); err == nil && (g.grant == nil || g.grant.Name == "" || g.grant.Key == "") {
			err = errors.New("it holds none")
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the key that the gateway gave; mend or remove %s: %w", k.file(gateway), err)
	}
	if k.of == nil {
		k.of = make(map[string]*granting)
	}
	k.of[gateway] = g
	return g, nil
}

func (k *grants) file(gateway string) string {
	plain := func(r rune) rune {
		if r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}
	return filepath.Join(k.folder, "granted-"+strings.Map(plain, gateway)+".json")
}

// renew asks a gateway for a key and keeps it. refused says what became of the one
// before.
func (k *grants) renew(ctx context.Context, s *session, g *granting, gateway string, to netip.AddrPort, name string, code []byte, refused error) (*grant, error) {
	if refused != nil && time.Since(g.given) < anewEvery {
		return nil, refused
	}
	old, _, _ := g.now()
	given, err := s.askGrant(ctx, to, name, code, old)
	if err == nil && given != old {
		var b []byte
		if b, err = json.Marshal(given); err == nil {
			err = k.replace(k.file(gateway), b)
		}
		if err != nil {
			err = fmt.Errorf("cannot keep the key that the gateway gave: %w", err)
		}
	}
	if ctx.Err() != nil && given == nil {
		return nil, err // the others try for themselves
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tries++
	g.err = err
	if given != nil && given != old { // also where it could not be kept: it is not given twice
		g.grant, g.given = given, time.Now()
		s.log.Info("CoAP: a gateway gave a key for the code on its label", "gateway", gateway, "name", given.Name)
	}
	return given, err
}

// askGrant asks a gateway for a key under a name of ours. It is a new one each
// time, as the gateway gives no key twice. It gives back old where the gateway,
// now that it is there, does take that.
func (s *session) askGrant(ctx context.Context, to netip.AddrPort, name string, code []byte, old *grant) (*grant, error) {
	p, release, err := s.reachSecure(ctx, to, labelName, code)
	if err != nil {
		return nil, fmt.Errorf("with the code of the gateway: %w", err)
	}
	defer release()
	if old != nil { // it may have been away a moment ago, as after a power cut
		if _, release, err := s.reachSecure(ctx, to, old.Name, []byte(old.Key)); err == nil {
			release()
			return old, nil
		}
	}
	random := make([]byte, 6)
	_, _ = rand.Read(random)
	given := &grant{Name: strings.ToValidUTF8(name[:min(len(name), 24)], "") + "-" + hex.EncodeToString(random)}
	q := get([]string{"15011", "9063"})
	q.code = codes.POST
	if q.payload, err = json.Marshal(map[string]string{"9090": given.Name}); err != nil {
		return nil, err
	}
	got, err := s.do(ctx, p, q)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot ask the gateway for a key: %w", err)
	case !got.ok():
		return nil, fmt.Errorf("cannot ask the gateway for a key: %w", got.refusal())
	}
	var said struct {
		Key string `json:"9091"`
	}
	if err := json.Unmarshal(got.payload, &said); err != nil || said.Key == "" || len(said.Key) > maxKey {
		return nil, errors.New("cannot use the gateway's answer: there is no key in it")
	}
	given.Key = said.Key
	return given, nil
}
