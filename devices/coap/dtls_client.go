package coap

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/pion/dtls/v3"
)

// A shared association is one that several devices behind one gateway are asked
// over: such a gateway has room for few.
type shared struct {
	ready chan struct{} // closed when the handshake is over
	err   error
	peer  *peer
	close func()

	users int // guarded by the session's lock
}

// maxSharedAsked is how many conversations there may be with a peer that stands
// for several devices.
const maxSharedAsked = 256

// reachSecure gives the peer of a DTLS association with a device that is asked,
// with the key that the device knows by a name: the one that there is, or a new
// one. It stays until release is called by all who have it, and is gone when the
// device ends the association.
func (s *session) reachSecure(ctx context.Context, to netip.AddrPort, name string, key []byte) (p *peer, release func(), err error) {
	id := fmt.Sprintf("%s %q %x", to, name, sha256.Sum256(key))
	s.mu.Lock()
	one := s.shared[id]
	if one != nil && one.peer != nil && (one.peer.gone || one.peer.stale) {
		one = nil // those who have it find out too
	}
	own := one == nil
	if own {
		one = &shared{ready: make(chan struct{})}
		s.shared[id] = one
	}
	one.users++
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		one.users--
		last := one.users == 0
		if last && s.shared[id] == one {
			delete(s.shared, id)
		}
		s.mu.Unlock()
		if last && one.close != nil {
			one.close()
		}
	}
	if own {
		p, closes, err := s.dialSecure(ctx, to, name, key)
		s.mu.Lock()
		one.peer, one.close, one.err = p, closes, err
		if err != nil && s.shared[id] == one {
			delete(s.shared, id)
		}
		s.mu.Unlock()
		close(one.ready)
	}
	select {
	case <-one.ready:
	case <-ctx.Done():
		end := release   // which the return overwrites
		s.wg.Go(func() { // whoever makes the handshake ends it
			<-one.ready
			end()
		})
		return nil, nil, ctx.Err()
	}
	if one.err != nil {
		release()
		return nil, nil, one.err
	}
	return one.peer, release, nil
}

// dialSecure makes an association, from a socket of its own.
func (s *session) dialSecure(ctx context.Context, to netip.AddrPort, name string, key []byte) (p *peer, closes func(), err error) {
	socket, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open a socket to the device: %w", err)
	}
	from := &only{UDPConn: socket, from: netip.AddrPortFrom(to.Addr().Unmap(), to.Port())}
	conn, err := dtls.ClientWithOptions(from, net.UDPAddrFromAddrPort(to),
		dtls.WithLoggerFactory(noLog()),
		dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }),
		dtls.WithPSKIdentityHint([]byte(name)),
		dtls.WithCipherSuites(slices.Concat(keySuites[1:], keySuites[:1])...), // the first is more work for the device
		dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))
	if err != nil {
		_ = socket.Close()
		return nil, nil, fmt.Errorf("cannot speak DTLS: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := conn.HandshakeContext(limited); err != nil {
		_ = conn.Close()
		_ = socket.Close()
		if errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("it does not answer, or has another key")
		}
		return nil, nil, fmt.Errorf("cannot agree on keys with the device: %w", err)
	}
	from.complete.Store(true)
	if p, err = s.attach(to.String(), secureLink{conn}, ""); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	p.forgets = true
	over := make(chan struct{})
	s.wg.Go(func() {
		defer close(over)
		defer s.detach(p)
		buf := make([]byte, maxMessage)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			s.hear(p, buf[:n])
		}
	})
	return p, func() {
		_ = conn.Close() // ends the read, and closes the socket
		<-over
	}, nil
}

// An only is a socket that hears one address, and once the handshake is complete
// nothing that no key protects: an alert, which anybody can send, would end the
// association.
type only struct {
	*net.UDPConn
	from     netip.AddrPort
	complete atomic.Bool
}

// ReadFrom implements [net.PacketConn].
func (o *only) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := o.UDPConn.ReadFromUDPAddrPort(b)
		if err != nil {
			return n, nil, err
		}
		r, _, ok := cutRecord(b[:n])
		forged := o.complete.Load() && ok && r.epoch == 0 && r.kind != handshakeRecord && r.kind != changeCipherSpec
		if netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) == o.from && !forged {
			return n, net.UDPAddrFromAddrPort(from), nil
		}
	}
}
