package coap

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	coapnet "github.com/plgd-dev/go-coap/v3/net"
)

const (
	maxPeers = 16384

	// What one peer may send, in datagrams. What exceeds it is dropped, and a
	// device that follows RFC 7252 section 4.7 never comes near.
	peerRate  = 100 // a second
	peerBurst = 200

	// And what all together may send whom nothing is known of: their addresses may
	// be forged. Devices that are new find room between them, as they repeat what
	// they send.
	strangerRate  = 1000
	strangerBurst = 2000

	// Answered exchanges are remembered to recognise repetitions: so many a
	// peer while all together are few, else so many, of strangers less.
	rememberMany  = 512
	rememberFew   = 16
	rememberLeast = 4
	fewAnswered   = 1 << 16

	sweepInterval  = 10 * time.Second
	strangerProbes = 8
)

// A link carries datagrams to one peer. It waits for nothing, and is used from
// any goroutine.
type link interface {
	send(b []byte) error
}

// A socketLink is an address that is spoken to by the session's socket.
type socketLink struct {
	conn  *coapnet.UDPConn
	to    *net.UDPAddr
	local *coapnet.ControlMessage // the address of ours that it speaks to
}

func (l socketLink) send(b []byte) error {
	return l.conn.WriteWithOptions(b, coapnet.WithRemoteAddr(l.to), coapnet.WithControlMessage(l.local))
}

// A peer is one endpoint: an address and a port, or a DTLS association (RFC 7252
// sections 1.2 and 9.1). Where nothing else is said its fields are guarded by
// the session's lock.
type peer struct {
	// These never change.
	name string
	who  string // the device that it has proved to be; "" where it proves nothing
	// forgets is set where one who began anew cannot say so: it does not know the
	// association any more, and drops what it is sent.
	forgets bool
	link    link

	seen      time.Time
	trusted   bool // a reading of it was taken, or it answered what it was asked
	held      int  // by how many of ours, who want it to stay
	bucket    bucket
	complaint bucket
	dropped   int

	gone      bool                // its link has ended
	stale     bool                // it forgot, as it seems
	woken     time.Time           // when it was asked to register, see [service.wake]
	exchanges map[int32]*exchange // by message ID
	answered  []*exchange         // those that are over, oldest first
	queue     []*exchange         // those that are not yet served
	open      int                 // those that are not over
	scheduled bool                // the peer is in ready, or with a worker

	mid   uint16                  // of our last message
	sent  map[int32]*transmission // our confirmable messages under way, by message ID
	turn  chan struct{}           // has one while a message of ours is on the way (NSTART, section 4.7)
	asked int                     // conversations
	spoke time.Time               // when it last answered in one

	body body

	// proven says that it is at its address: it answered what it was asked, or
	// somebody configured it. credit is how many bytes may be sent to it before
	// that, as its address may be forged (RFC 7252 section 11.3).
	proven atomic.Bool
	credit atomic.Int64
}

// amplification is how many times as much may be sent to an address that is not
// proven as came from it (RFC 9175 section 2.4; RFC 9000 section 8.1 has the same).
const amplification = 3

// room is how many bytes may be sent to the peer now.
func (p *peer) room() int {
	if p.proven.Load() {
		return maxDatagram
	}
	return int(max(0, p.credit.Load()))
}

// pay reports whether n bytes may be sent to the peer now.
func (p *peer) pay(n int) bool {
	if p.proven.Load() {
		return true
	}
	if p.credit.Add(-int64(n)) >= 0 {
		return true
	}
	p.credit.Add(int64(n))
	return false
}

// admit finds the peer that a datagram of the socket came from, or makes it. It gives nil
// where the datagram is to be dropped: the peer sends too much, or there are
// too many peers.
func (s *session) admit(from *net.UDPAddr, cm *coapnet.ControlMessage, now time.Time) *peer {
	var local *coapnet.ControlMessage
	if cm != nil && cm.Dst != nil {
		if cm.Dst.IsMulticast() || cm.Dst.Equal(net.IPv4bcast) {
			return nil // nothing here is for groups (RFC 7252 section 8)
		}
		local = &coapnet.ControlMessage{Src: cm.Dst}
	}
	addr := netip.AddrPortFrom(from.AddrPort().Addr().Unmap(), uint16(from.Port))

	s.mu.Lock()
	p := s.peers[addr]
	if p == nil {
		var trouble error
		if !s.strangers.take(now) {
			trouble = errTooManyStrangers
		} else if !s.makeRoom(now) {
			trouble = errTooManyPeers
		}
		if trouble != nil {
			complain := s.complaint.take(now)
			s.mu.Unlock()
			if complain {
				s.sink.Reject(addr.String(), trouble)
			}
			return nil
		}
		p = newPeer(addr.String(), socketLink{s.conn, from, local})
		s.peers[addr] = p
	}
	if !s.charge(p, now) {
		return nil
	}
	return p
}

var errTooManyStrangers = fmt.Errorf("cannot take more than %d datagrams a second of unknown CoAP peers", strangerRate)

var errTooManyPeers = fmt.Errorf("cannot hear more than %d CoAP peers at once", maxPeers)

func newPeer(name string, l link) *peer {
	return &peer{
		name: name, link: l, mid: uint16(rand.Uint32()),
		bucket:    bucket{rate: peerRate, burst: peerBurst},
		complaint: bucket{rate: 1, burst: 1},
	}
}

// isStranger reports whether nothing speaks for the peer: it may be an address
// that somebody forged.
func (p *peer) isStranger() bool { return !p.trusted && p.held == 0 && !p.proven.Load() }

// note has repetitions of an exchange be known.
func (p *peer) note(ex *exchange) {
	if p.exchanges == nil {
		p.exchanges = make(map[int32]*exchange)
	}
	p.exchanges[ex.mid] = ex
}

// attach makes a peer that has a link of its own, as a DTLS association; name
// is for people, who is the device that it has proved to be. Its datagrams come by [session.hear]. It stays until it is
// given to [session.detach].
func (s *session) attach(name string, l link, who string) (*peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers)+s.attached >= maxPeers && !s.makeRoom(time.Now()) {
		return nil, errTooManyPeers
	}
	s.attached++
	p := newPeer(name, l)
	p.who, p.seen, p.held = who, time.Now(), 1
	p.proven.Store(true)
	return p, nil
}

// detach forgets a peer that has a link of its own. What it is asked just now
// fails.
func (s *session) detach(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.attached--
	s.answered -= len(p.answered)
	s.dropBody(p)
	p.answered, p.exchanges, p.gone = nil, nil, true
	for _, tr := range p.sent {
		tr.end(errGone)
	}
	for _, c := range s.conversations {
		if c.peer == p {
			c.fail(errGone)
		}
	}
}

// reach gives the peer at an address that somebody wants to be asked. It stays
// until it is given to [session.release].
func (s *session) reach(addr netip.AddrPort) (*peer, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[addr]
	if p == nil {
		if !s.makeRoom(now) {
			return nil, errTooManyPeers
		}
		p = newPeer(addr.String(), socketLink{conn: s.conn, to: net.UDPAddrFromAddrPort(addr)})
		p.seen = now
		s.peers[addr] = p
	}
	p.held++
	p.proven.Store(true)
	return p, nil
}

// hold keeps a peer until it is given to [session.release].
func (s *session) hold(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.held++
}

// release gives a peer back.
func (s *session) release(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.held--
}

// charge reports whether a datagram of the peer may be used now. It is called
// with the lock held, and gives it back.
func (s *session) charge(p *peer, now time.Time) bool {
	first := p.seen.IsZero()
	p.seen = now
	if p.bucket.take(now) && (first || !p.isStranger() || s.strangers.take(now)) {
		s.mu.Unlock()
		return true
	}
	p.dropped++
	dropped := 0
	if p.complaint.take(now) {
		dropped, p.dropped = p.dropped, 0
	}
	s.mu.Unlock()
	if dropped > 0 {
		s.sink.Reject(p.name, fmt.Errorf("cannot take more than %d datagrams a second, and %d of all unknown peers: %d dropped", peerRate, strangerRate, dropped))
	}
	return false
}

// nextMID gives the message ID of a message of ours. The lock is held.
func (p *peer) nextMID() int32 {
	p.mid++
	return int32(p.mid)
}

// makeRoom reports whether there is room for one more peer, after forgetting
// those that are silent for so long that nothing of them can be repeated. If
// that is not enough, a peer goes that never gave a reading and asks nothing
// now: datagrams with forged addresses must not shut out the real devices.
func (s *session) makeRoom(now time.Time) bool {
	if now.Sub(s.swept) > sweepInterval {
		s.swept = now
		for addr, p := range s.peers {
			if now.Sub(p.seen) > exchangeLifetime && p.open == 0 && p.held == 0 {
				s.forget(addr, p)
			}
		}
	}
	if len(s.peers)+s.attached < maxPeers {
		return true
	}
	probes := 0
	for addr, p := range s.peers { // begins anywhere
		if !p.trusted && p.open == 0 && p.held == 0 {
			s.forget(addr, p)
			return true
		}
		if probes++; probes == strangerProbes {
			break
		}
	}
	return false
}

func (s *session) forget(addr netip.AddrPort, p *peer) {
	s.answered -= len(p.answered)
	s.dropBody(p)
	delete(s.peers, addr)
}

func (s *session) dropBody(p *peer) {
	if p.body.key != "" {
		p.body = body{}
		s.bodies = slices.DeleteFunc(s.bodies, func(other *peer) bool { return other == p })
	}
}

// remember ends an exchange and keeps its reply for repetitions, as long as
// there is room. The lock is held.
func (s *session) remember(ex *exchange) {
	p := ex.peer
	s.open--
	p.open--
	if p.gone {
		return
	}
	s.answered++
	p.answered = append(p.answered, ex)
	keep := rememberMany
	if s.answered > fewAnswered {
		keep = rememberFew
		if p.isStranger() {
			keep = rememberLeast
		}
	}
	for len(p.answered) > keep {
		old := p.answered[0]
		p.answered = p.answered[1:]
		s.answered--
		if p.exchanges[old.mid] == old { // else the ID was used again
			delete(p.exchanges, old.mid)
		}
	}
}

// A bucket lets through burst events at once and rate a second. It begins
// full.
type bucket struct {
	rate, burst float64
	used        float64
	at          time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.used = max(0, b.used-b.rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.used+1 > b.burst {
		return false
	}
	b.used++
	return true
}
