package coap

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	coapnet "github.com/plgd-dev/go-coap/v3/net"
)

const (
	maxPeers = 2048

	// What one peer may send, in datagrams. What exceeds it is dropped, and a
	// device that follows RFC 7252 section 4.7 never comes near.
	peerRate  = 100 // a second
	peerBurst = 200

	// Answered exchanges are remembered to recognise repetitions: so many a
	// peer while all together are few, else so many.
	rememberMany = 512
	rememberFew  = 16
	fewAnswered  = 1 << 16

	sweepInterval  = 10 * time.Second
	strangerProbes = 8
)

// A peer is one endpoint: an address and a port (RFC 7252 section 1.2). Where
// nothing else is said its fields are guarded by the session's lock.
type peer struct {
	// These never change.
	name  string
	udp   *net.UDPAddr
	local *coapnet.ControlMessage // the address of ours that it speaks to

	seen      time.Time
	trusted   bool // a reading of it was taken
	bucket    bucket
	complaint bucket
	dropped   int

	exchanges map[int32]*exchange // by message ID
	answered  []*exchange         // those that are over, oldest first
	queue     []*exchange         // those that are not yet served
	open      int                 // those that are not over
	scheduled bool                // the peer is in ready, or with a worker

	separate map[int32]chan struct{} // our confirmable messages, closed when acknowledged

	body body // touched only by the worker that has the peer
}

// admit finds the peer that a datagram came from, or makes it. It gives nil
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
		if !s.makeRoom(now) {
			complain := s.complaint.take(now)
			s.mu.Unlock()
			if complain {
				s.sink.Reject(addr.String(), fmt.Errorf("cannot hear more than %d CoAP peers at once", maxPeers))
			}
			return nil
		}
		p = &peer{
			name: addr.String(), udp: from, local: local,
			bucket:    bucket{rate: peerRate, burst: peerBurst},
			complaint: bucket{rate: 1, burst: 1},
			exchanges: make(map[int32]*exchange),
			separate:  make(map[int32]chan struct{}),
		}
		s.peers[addr] = p
	}
	p.seen = now
	if p.bucket.take(now) {
		s.mu.Unlock()
		return p
	}
	p.dropped++
	dropped := 0
	if p.complaint.take(now) {
		dropped, p.dropped = p.dropped, 0
	}
	s.mu.Unlock()
	if dropped > 0 {
		s.sink.Reject(p.name, fmt.Errorf("cannot take more than %d datagrams a second: %d dropped", peerRate, dropped))
	}
	return nil
}

// makeRoom reports whether there is room for one more peer, after forgetting
// those that are silent for so long that nothing of them can be repeated. If
// that is not enough, a peer goes that never gave a reading and asks nothing
// now: datagrams with forged addresses must not shut out the real devices.
func (s *session) makeRoom(now time.Time) bool {
	if now.Sub(s.swept) > sweepInterval {
		s.swept = now
		for addr, p := range s.peers {
			if now.Sub(p.seen) > exchangeLifetime && p.open == 0 {
				s.forget(addr, p)
			}
		}
	}
	if len(s.peers) < maxPeers {
		return true
	}
	probes := 0
	for addr, p := range s.peers { // begins anywhere
		if !p.trusted && p.open == 0 {
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
	delete(s.peers, addr)
}

// remember ends an exchange and keeps its reply for repetitions, as long as
// there is room. The lock is held.
func (s *session) remember(ex *exchange) {
	p := ex.peer
	s.open--
	p.open--
	s.answered++
	p.answered = append(p.answered, ex)
	keep := rememberMany
	if s.answered > fewAnswered {
		keep = rememberFew
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
