package coap

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	maxRegistrations     = 4096 // of all peers
	maxPeerRegistrations = 16   // from one address
	maxEndpointName      = 63   // bytes (RFC 9176 section 5)
	defaultLifetime      = 90000 * time.Second

	maxLooking = 8 // endpoints that nobody knows and that are looked at, at a time
)

// A directory has the endpoints that registered (RFC 9176). It is not kept: after
// a new start an endpoint's update is answered 4.04, so that it registers again.
type directory struct {
	mu      sync.Mutex
	byID    map[string]*registration
	byName  map[string]*registration // by endpoint and sector
	looking int
	wakes   bucket        // guarded by the session's lock
	wake    chan struct{} // has one where what there is to do has changed
}

// A registration is an endpoint that registered.
type registration struct {
	id, name, sector string
	peer             *peer
	links            []profile.Link // none: it is asked for them
	lifetime         time.Duration
	until            time.Time

	device  devices.ID // "" while it is none of ours
	asker   asker
	stop    func() // ends the asking; nil while it is not asked
	lwm2m   bool
	query   map[string]string // with which it registered as a client of LwM2M
	manager *manager          // of such a one, while it is asked
}

// register serves /rd and /.well-known/rd.
func (s *service) register(ex *exchange, path []string) response {
	m, own := ex.request, path[0] == "rd"
	query, err := queryOf(m)
	if err != nil {
		return *badRequest("%v", err)
	}
	payload, answer := s.body(ex, ex.peer.name)
	switch {
	case answer != nil:
		return *answer
	case own && len(path) == 2:
		return inBlocks(s.registered(ex, path[1], query, payload), m)
	case m.Code != codes.POST:
		return response{code: codes.MethodNotAllowed, payload: []byte("register by POST /rd?ep=<name>")}
	case !own && len(payload) > 0:
		return *badRequest("simple registration has no body: the links are asked for")
	}
	var links []profile.Link
	if own {
		if f := formatOf(m); f != NoFormat && f != linkList {
			return response{code: codes.UnsupportedMediaType, payload: []byte("register links as content format 40")}
		}
		if links, err = profile.ParseLinks(payload); err != nil {
			return *badRequest("%v", err)
		}
	}
	r, refused := s.enter(ex.peer, query, links)
	if refused != nil {
		return inBlocks(*refused, m)
	}
	if !own {
		return response{code: codes.Changed}
	}
	created := response{code: codes.Created, options: message.Options{
		{ID: message.LocationPath, Value: []byte("rd")}, {ID: message.LocationPath, Value: []byte(r.id)},
	}}
	return inBlocks(created, m)
}

// enter makes a registration, or renews the one of that name.
func (s *service) enter(p *peer, query map[string]string, links []profile.Link) (*registration, *response) {
	name, sector := query["ep"], query["d"]
	_, managed := query["lwm2m"]
	usual := defaultLifetime
	if managed {
		usual = managedLifetime
	}
	lifetime, err := lifetimeOf(query, usual)
	switch {
	case err != nil:
		return nil, badRequest("%v", err)
	case name == "" || len(name) > maxEndpointName || len(sector) > maxEndpointName || !printable(name) || !printable(sector):
		return nil, badRequest("ep has to be a name of 1 to %d bytes", maxEndpointName)
	case managed && !speaks(query["lwm2m"]):
		return nil, &response{code: codes.PreconditionFailed, payload: []byte("LwM2M 1.0 and 1.1 are spoken")}
	}
	at, refused := s.base(p, query)
	if refused != nil {
		return nil, refused
	}
	_, device := s.named(name)
	if no, may := s.may(p, name, device); !may {
		s.release(at)
		return nil, &no
	}
	d := &s.directory
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.byName[name+"\x00"+sector]
	switch {
	case old != nil && old.peer.isSecure() && !at.isSecure():
		s.release(at)
		return nil, &errNotYours
	case old != nil && links == nil && old.links == nil && old.peer == at: // it only says that it is still there
		s.release(at)
		s.renew(old, lifetime)
		return old, nil
	case old == nil:
		from := 0
		for _, r := range d.byID {
			if sameHost(r.peer, at) {
				from++
			}
		}
		if len(d.byID) >= maxRegistrations || from >= maxPeerRegistrations {
			s.release(at)
			busy := unavailable("too many endpoints are registered", retryWhenFull)
			return nil, &busy
		}
	}
	id := make([]byte, 10)
	_, _ = rand.Read(id)
	r := &registration{
		id: strings.ToLower(base32.StdEncoding.EncodeToString(id)), name: name, sector: sector,
		peer: at, links: links, lwm2m: managed, query: query,
	}
	if old != nil { // section 5: the resource stays the same
		r.id = old.id
		s.leave(old)
	}
	d.byID[r.id], d.byName[name+"\x00"+sector] = r, r
	s.renew(r, lifetime)
	return r, nil
}

// renew begins a lifetime. It is called with the directory locked.
func (s *service) renew(r *registration, lifetime time.Duration) {
	r.lifetime, r.until = lifetime, time.Now().Add(lifetime+s.server.grace)
	s.greet(r)
	s.directory.changed()
}

// base gives the peer that is to be asked: the one that registers, or another
// port of it. Another address is not taken: it has not asked for that.
func (s *service) base(p *peer, query map[string]string) (*peer, *response) {
	text, given := query["base"]
	if !given {
		s.hold(p)
		return p, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "coap" || u.Path != "" && u.Path != "/" {
		return nil, badRequest("base has to be coap://<address>:<port>")
	}
	from, ok := p.link.(socketLink)
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if u.Port() == "" {
		port, err = 5683, nil
	}
	addr, notIP := netip.ParseAddr(u.Hostname())
	if !ok || err != nil || notIP != nil || addr.WithZone("") != from.to.AddrPort().Addr().Unmap().WithZone("") {
		return nil, badRequest("base has to be the address that you register from")
	}
	if uint16(port) == from.to.AddrPort().Port() {
		s.hold(p)
		return p, nil
	}
	at, err := s.meetAt(p, from, uint16(port))
	if err != nil {
		busy := unavailable(err.Error(), retryWhenBusy)
		return nil, &busy
	}
	return at, nil
}

// meetAt gives the peer at another port of the address of one, on the credit of
// that one.
func (s *session) meetAt(p *peer, from socketLink, port uint16) (*peer, error) {
	addr := netip.AddrPortFrom(from.to.AddrPort().Addr().Unmap(), port)
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.peers[addr]
	if at == nil {
		now := time.Now()
		if !s.makeRoom(now) {
			return nil, errTooManyPeers
		}
		at = newPeer(addr.String(), socketLink{s.conn, net.UDPAddrFromAddrPort(addr), from.local})
		at.seen = now
		at.credit.Store(p.credit.Swap(0))
		s.peers[addr] = at
	}
	at.held++
	return at, nil
}

// errNotYours answers who would take an endpoint over that is known by its key.
var errNotYours = response{code: codes.Forbidden, payload: []byte("the endpoint has registered by DTLS")}

// isSecure reports whether the peer is on a link of its own.
func (p *peer) isSecure() bool {
	_, plain := p.link.(socketLink)
	return !plain
}

func sameHost(a, b *peer) bool {
	x, ok := a.link.(socketLink)
	y, also := b.link.(socketLink)
	if !ok || !also {
		return a == b
	}
	return x.to.IP.Equal(y.to.IP)
}

// registered serves /rd/<id>: update and removal.
func (s *service) registered(ex *exchange, id string, query map[string]string, payload []byte) response {
	d := &s.directory
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.byID[id]
	if r == nil {
		return notFound("no such registration; register again by POST /rd?ep=<name>")
	}
	if ex.peer.who != r.peer.who {
		return errNotYours
	}
	switch ex.request.Code {
	case codes.DELETE:
		s.leave(r)
		s.part(r)
		return response{code: codes.Deleted}
	case codes.POST, codes.PUT:
	default:
		return response{code: codes.MethodNotAllowed, payload: []byte("update by POST, remove by DELETE")}
	}
	lifetime, err := lifetimeOf(query, r.lifetime)
	if err != nil {
		return *badRequest("%v", err)
	}
	at, refused := s.base(ex.peer, query)
	if refused != nil {
		return *refused
	}
	if r.peer.isSecure() && !at.isSecure() {
		s.release(at)
		return errNotYours
	}
	if r.lwm2m && s.revise(r, query, payload) {
		s.quiet(r) // so that it is asked for what it has now
	}
	if at == r.peer {
		s.release(at)
	} else { // section 5.3.1: it has another address now
		s.leave(r)
		r.peer = at
		d.byID[r.id], d.byName[r.name+"\x00"+r.sector] = r, r
	}
	s.renew(r, lifetime)
	return response{code: codes.Changed}
}

// greet finds out whose registration it is. It is called with the directory
// locked.
func (s *service) greet(r *registration) {
	id, device := s.named(r.name)
	if r.device != id {
		s.quiet(r)
		r.device = id
	}
	if id == "" {
		s.show(r)
		return
	}
	s.sink.Availability(id, r.state(), false)
	if r.manager != nil {
		r.manager.awake.ring()
	}
	if r.stop == nil && s.server.ear.Load() != nil {
		device.Observe = true // what can be; the rest is asked for
		r.asker = asker{session: s.session, device: device, ear: s.server.ear.Load, told: &bell{}}
		if r.lwm2m {
			s.manage(r)
		} else {
			s.attend(r)
		}
	}
}

// named gives the device of ours that an endpoint calls itself by; "" if there is
// none.
func (s *service) named(endpoint string) (devices.ID, Device) {
	all := *s.server.devices.Load()
	if device, ok := all[devices.ID(endpoint)]; ok {
		return device.ID, device
	}
	for id, device := range all {
		if device.Identity != "" && device.Identity == endpoint {
			return id, device
		}
	}
	return "", Device{}
}

// attend has an endpoint of ours be asked, as long as it is registered.
func (s *service) attend(r *registration) {
	ctx, cancel := context.WithCancel(s.ctx)
	r.stop = cancel
	p, a, all := r.peer, r.asker, resources(r.links)
	s.hold(p)
	s.wg.Go(func() {
		defer s.release(p)
		for wait := retryFirst; ; wait = min(2*wait, retryLast) {
			began := time.Now()
			err := a.ask(ctx, p, all)
			switch {
			case ctx.Err() != nil:
				return
			case errors.Is(err, errNothing):
				wait = uselessWait
			case time.Since(began) > 2*maxTransmitWait:
				wait = retryFirst
			}
			s.log.Info("CoAP: an endpoint cannot be asked", "device", a.device.ID, "peer", p.name, "reason", err)
			if !a.sleep(ctx, wait) {
				return
			}
		}
	})
}

func (s *service) quiet(r *registration) {
	if r.stop != nil {
		r.stop()
		r.stop, r.manager = nil, nil
	}
}

// show shows an endpoint that is none of ours: a few of its resources are read,
// so that people know what it is.
func (s *service) show(r *registration) {
	d := &s.directory
	profiles, id := s.server.profiles.Load(), devices.Slug(r.name)
	stranger := devices.Stranger{Transport: "coap", Place: string(id), Peer: r.peer.name, Identity: r.name}
	if profiles == nil || id == "" || d.looking >= maxLooking || !s.sink.Unknown(stranger) {
		return
	}
	if r.lwm2m {
		s.showManaged(r, stranger)
		return
	}
	d.looking++
	p, all := r.peer, resources(r.links)
	s.hold(p)
	s.wg.Go(func() {
		defer func() {
			s.release(p)
			d.mu.Lock()
			d.looking--
			d.mu.Unlock()
		}()
		_ = s.sample(s.ctx, p, profiles, all, &stranger) // what was read until then is shown
		if len(stranger.Fields) > 0 {
			s.sink.Unknown(stranger)
		}
	})
}

// leave takes a registration out. It is called with the directory locked.
func (s *service) leave(r *registration) {
	d := &s.directory
	s.quiet(r)
	delete(d.byID, r.id)
	delete(d.byName, r.name+"\x00"+r.sector)
	s.release(r.peer)
}

// part tells that an endpoint is not there any more.
func (s *service) part(r *registration) {
	if r.device != "" {
		s.sink.Availability(r.device, devices.Offline, false)
	}
}

// changed has keep look again.
func (d *directory) changed() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// keep ends registrations with their lifetime, and finds out whose they are when
// there are other devices.
func (s *service) keep() {
	d := &s.directory
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		anew := false
		select {
		case <-s.ctx.Done():
			d.mu.Lock()
			defer d.mu.Unlock()
			for _, r := range d.byID {
				s.quiet(r)
			}
			return
		case <-s.server.changed:
			anew = true
		case <-d.wake:
		case <-timer.C:
		}
		now, first := time.Now(), time.Time{}
		d.mu.Lock()
		for _, r := range d.byID {
			switch {
			case !r.until.After(now):
				s.leave(r)
				s.part(r)
				continue
			case anew:
				s.quiet(r)
				s.greet(r)
			}
			if first.IsZero() || r.until.Before(first) {
				first = r.until
			}
		}
		d.mu.Unlock()
		if !first.IsZero() {
			timer.Reset(time.Until(first))
		}
	}
}

// of gives the registration of a device; nil if there is none.
func (d *directory) of(id devices.ID) (a asker, p *peer, m *manager) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.byID {
		if r.device == id && r.stop != nil {
			return r.asker, r.peer, r.manager
		}
	}
	return asker{}, nil, nil
}

func lifetimeOf(query map[string]string, otherwise time.Duration) (time.Duration, error) {
	text, ok := query["lt"]
	if !ok {
		return otherwise, nil
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil || seconds == 0 {
		return 0, errors.New("lt has to be a number of seconds, from 1 to 4294967295")
	}
	return time.Duration(seconds) * time.Second, nil
}

// maxQueries bounds the parameters of a request.
const maxQueries = 16

func queryOf(m message.Message) (map[string]string, error) {
	all := make(map[string]string)
	for _, o := range m.Options {
		if o.ID != message.URIQuery {
			continue
		}
		name, value, _ := strings.Cut(string(o.Value), "=")
		if _, twice := all[name]; twice || len(all) == maxQueries {
			return nil, fmt.Errorf("the parameter %.20q stands twice, or there are more than %d", name, maxQueries)
		}
		all[name] = value
	}
	return all, nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
