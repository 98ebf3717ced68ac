package coap

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	"github.com/pion/transport/v4/packetio"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
)

// Secure says where to listen for devices that speak DTLS (RFC 7252 section 9),
// and how they prove who they are: by a key, or by a certificate. A device may
// then post as itself and as no other, and one that has a key posts in no other
// way.
type Secure struct {
	Listen string // host:port, UDP

	// Keys are those that devices share with the gateway (RFC 4279), by what they
	// call themselves: their id, or their identity.
	Keys map[string][]byte

	// Certificate is the gateway's, and Authorities are those who sign the
	// devices', which have the device's name as their common name, or as their
	// first DNS name where they have none. Both are nil where there are only keys.
	Certificate *tls.Certificate
	Authorities *x509.CertPool
	// Now is the time by which certificates are judged; nil is the system's.
	Now func() time.Time
}

const (
	maxAssociations = 1000 // that are complete
	maxOfOne        = 8    // and of one device
	maxUnverified   = 256  // handshakes whose peer has not proved its address
	maxHandshakes   = 32   // handshakes whose peer has

	verifyTime    = 3 * time.Second // to prove the address
	handshakeTime = 20 * time.Second

	// An association that says nothing goes after idleTime; with a connection id
	// (RFC 9146) it is meant to outlast the sleep of the device.
	idleTime    = time.Hour
	idleTimeCID = 25 * time.Hour

	// What one address may try in vain: so many handshakes at once, and so many a
	// second. Those that succeed do not count.
	failureBurst = 20
	failureRate  = 0.2
	maxSources   = 1024

	// newHandshakes is how many may begin a second, which bounds the work for
	// forged addresses. An address that has made one before is not counted.
	newHandshakes = 500

	cidSize      = 8
	recordHeader = 13
	inboxSize    = 32 << 10
)

// The types of records (RFC 5246 section 6.2.1, RFC 9146 section 4).
const (
	changeCipherSpec = 20
	handshakeRecord  = 22
	cidRecord        = 25
)

// Constrained devices have CCM (RFC 7252 section 9.1.3, RFC 7925), older clients
// of LwM2M CBC. The device's order counts.
var (
	keySuites = []dtls.CipherSuiteID{
		dtls.TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256, dtls.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256,
		dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_256_CCM_8, dtls.TLS_PSK_WITH_AES_128_CBC_SHA256,
	}
	certificateSuites = []dtls.CipherSuiteID{
		dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, dtls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8,
		dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, dtls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
)

// A secureListener takes the datagrams of one socket apart and hands the records
// to associations. Those of pion/dtls know nothing of each other: which record
// is whose, what an attacker may do who sees nothing, and a device that began
// anew on the same port, are decided here.
type secureListener struct {
	session *session
	server  *Server
	conn    *coapnet.UDPConn
	options []dtls.ServerOption

	mu         sync.Mutex
	pending    map[netip.AddrPort]*association
	unverified int
	complete   map[netip.AddrPort]*association // the newest of an address
	byCID      map[[cidSize]byte]*association  // pending and complete
	alive      map[*association]bool           // complete
	sources    map[netip.Addr]*bucket
	known      map[netip.Addr]bool // who have made a handshake
	begin      bucket
	complaint  bucket
}

// An association is a handshake, and what came of it (RFC 6347 section 4.2). It
// is the net.PacketConn below pion's connection.
type association struct {
	listener *secureListener
	from     netip.AddrPort // where it began
	cid      [cidSize]byte
	in       *packetio.Buffer
	cancel   context.CancelFunc
	began    time.Time
	local    *coapnet.ControlMessage

	// Guarded by the listener's lock:
	random   []byte // of the ClientHello
	cookie   []byte // that it was sent
	verified bool   // it sent the cookie back
	received int    // bytes, and
	sent     int    // bytes, until it did
	identity string
	asked    string // identity for which a key was looked for
	key      []byte
	hasCID   bool
	settled  bool // it sent something by the new keys, so nothing of the handshake is missing
	seen     time.Time
}

// listenSecure takes datagrams until the session ends.
func (s *Server) listenSecure(ss *session, conn *coapnet.UDPConn) error {
	l := &secureListener{
		session: ss, server: s, conn: conn,
		pending: make(map[netip.AddrPort]*association), complete: make(map[netip.AddrPort]*association),
		byCID: make(map[[cidSize]byte]*association), alive: make(map[*association]bool),
		sources: make(map[netip.Addr]*bucket), known: make(map[netip.Addr]bool),
		begin: bucket{rate: newHandshakes, burst: newHandshakes}, complaint: bucket{rate: 1, burst: 5},
	}
	suites := keySuites
	if cert := s.config.Secure.Certificate; cert != nil {
		suites = slices.Concat(certificateSuites, keySuites)
		// Asked for, and demanded in prove: pion would demand one of those with keys.
		l.options = append(l.options, dtls.WithCertificates(*cert), dtls.WithClientAuth(dtls.RequestClientCert))
	}
	l.options = append(l.options, dtls.WithLoggerFactory(noLog()), dtls.WithCipherSuites(suites...),
		// Without one, pion's message lacks its length where the suite has ECDHE (RFC 5489 section 2).
		dtls.WithPSKIdentityHint([]byte("porchlight")))
	s.listener.Store(l)
	ss.wg.Go(l.sweep)
	buf := make([]byte, maxDatagram)
	for {
		var from *net.UDPAddr
		var cm *coapnet.ControlMessage
		n, err := conn.ReadWithOptions(buf, coapnet.WithGetRemoteAddr(&from), coapnet.WithGetControlMessage(&cm))
		switch {
		case ss.ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		var local *coapnet.ControlMessage
		if cm != nil && cm.Dst != nil {
			if cm.Dst.IsMulticast() || cm.Dst.Equal(net.IPv4bcast) {
				continue
			}
			local = &coapnet.ControlMessage{Src: cm.Dst}
		}
		addr := netip.AddrPortFrom(from.AddrPort().Addr().Unmap(), uint16(from.Port))
		l.datagram(addr, local, buf[:n], time.Now())
	}
}

// noLog keeps pion from writing to the standard error stream.
func noLog() logging.LoggerFactory {
	f := logging.NewDefaultLoggerFactory()
	f.Writer, f.DefaultLogLevel, f.ScopeLevels = io.Discard, logging.LogLevelDisabled, nil
	return f
}

// A record is one of a datagram (RFC 6347 section 4.1).
type record struct {
	kind, epoch int
	cid         []byte
	body        []byte
	whole       []byte
}

// cutRecord cuts the first record off; ok is false where there is none.
func cutRecord(b []byte) (r record, rest []byte, ok bool) {
	if len(b) < recordHeader || b[1] != 0xfe {
		return r, nil, false
	}
	r.kind, r.epoch = int(b[0]), int(b[3])<<8|int(b[4])
	head := recordHeader
	if r.kind == cidRecord {
		head += cidSize
		if len(b) < head {
			return r, nil, false
		}
		r.cid = b[11 : 11+cidSize]
	}
	end := head + int(b[head-2])<<8 + int(b[head-1])
	if end > len(b) {
		return r, nil, false
	}
	r.body, r.whole = b[head:end], b[:end]
	return r, b[end:], true
}

// A clientHello is what matters of one here (RFC 6347 section 4.2.1).
type clientHello struct{ random, cookie []byte }

// hello reads the first fragment of a ClientHello.
func (r record) hello() (h clientHello, ok bool) {
	b := r.body
	if r.kind != handshakeRecord || r.epoch != 0 || len(b) < 12 || b[0] != 1 || b[6]|b[7]|b[8] != 0 {
		return h, false
	}
	b = b[12:]
	if len(b) < 2+32+1 {
		return h, false
	}
	h.random = b[2:34]
	b = b[34:]
	if n := 1 + int(b[0]); len(b) < n+1 {
		return h, false
	} else if b = b[n:]; len(b) < 1+int(b[0]) {
		return h, false
	}
	h.cookie = b[1 : 1+int(b[0])]
	return h, true
}

// datagram hands the records of one to their associations. It waits for nothing.
func (l *secureListener) datagram(from netip.AddrPort, local *coapnet.ControlMessage, b []byte, now time.Time) {
	for len(b) > 0 {
		r, rest, ok := cutRecord(b)
		if !ok {
			return // RFC 6347 section 4.1.2.7
		}
		b = rest
		l.mu.Lock()
		to, complain := l.route(from, local, r, now)
		l.mu.Unlock()
		for _, a := range to {
			a.deliver(from, r.whole)
		}
		if complain != nil {
			l.session.sink.Reject(from.String(), complain)
		}
	}
}

// route finds whose a record is. The lock is held.
func (l *secureListener) route(from netip.AddrPort, local *coapnet.ControlMessage, r record, now time.Time) (to []*association, complain error) {
	pending, complete := l.pending[from], l.complete[from]
	hello, isHello := r.hello()
	switch {
	case r.kind == cidRecord:
		if a := l.byCID[[cidSize]byte(r.cid)]; a != nil {
			a.hasCID = true
			to = append(to, a)
		}
	case isHello:
		// A device that began anew says hello on the port that it had. What it was
		// stays until it has shown that it is the same (RFC 6347 section 4.2.8).
		return l.hello(pending, from, local, hello, len(r.whole), now)
	case r.epoch == 0 && pending != nil:
		to = append(to, pending)
	case r.epoch == 0:
		// No key protects these, and whoever knows an address and a port can send
		// them: an alert would end the association. All that it can need is the last
		// of the handshake once more, until it has shown that it has ours.
		usable := r.kind == handshakeRecord || r.kind == changeCipherSpec && bytes.Equal(r.body, []byte{1})
		if complete != nil && !complete.settled && usable {
			to = append(to, complete)
		}
	default:
		// Only the keys tell which it is for: the other cannot read it.
		for _, a := range []*association{complete, pending} {
			if a != nil {
				to = append(to, a)
			}
		}
	}
	return to, nil
}

// hello takes a ClientHello: it begins a handshake, or goes on with one.
func (l *secureListener) hello(p *association, from netip.AddrPort, local *coapnet.ControlMessage, h clientHello, size int, now time.Time) (to []*association, complain error) {
	switch {
	case p != nil && len(h.cookie) > 0:
		if !bytes.Equal(h.cookie, p.cookie) || !bytes.Equal(h.random, p.random) {
			return nil, nil // pion would end the handshake
		}
		if !p.verified {
			if why := l.admit(from.Addr(), now); why != nil {
				if l.complaint.take(now) {
					complain = why
				}
				return nil, complain
			}
			p.verified = true
			l.unverified--
		}
		return []*association{p}, nil
	case p != nil && bytes.Equal(h.random, p.random):
		p.received += size
		return []*association{p}, nil
	case p != nil && p.verified && now.Sub(p.began) < verifyTime:
		return nil, nil // nobody may end it who has only seen that it began
	case len(h.cookie) > 0 || !l.known[from.Addr()] && !l.begin.take(now):
		return nil, nil
	}
	if p != nil {
		l.drop(p)
	}
	if l.unverified >= maxUnverified {
		l.drop(l.oldest())
	}
	a := &association{listener: l, from: from, local: local, in: packetio.NewBuffer(), began: now, seen: now, received: size, random: bytes.Clone(h.random)}
	a.in.SetLimitSize(inboxSize)
	_, _ = rand.Read(a.cid[:])
	ctx, cancel := context.WithCancel(l.session.ctx)
	a.cancel = cancel
	l.pending[from], l.byCID[a.cid] = a, a
	l.unverified++
	l.session.wg.Go(func() { a.run(ctx) })
	return []*association{a}, nil
}

// admit reports why an address that was proved may not go on, nil if it may.
func (l *secureListener) admit(from netip.Addr, now time.Time) error {
	if len(l.pending)-l.unverified >= maxHandshakes {
		return errors.New("cannot agree on keys with so many at once: it may try again")
	}
	b := l.sources[from]
	if b == nil {
		if len(l.sources) >= maxSources {
			for other, b := range l.sources { // those that are full again tell nothing
				if b.used-b.rate*now.Sub(b.at).Seconds() <= 0 || len(l.sources) >= 2*maxSources {
					delete(l.sources, other)
				}
			}
		}
		b = &bucket{rate: failureRate, burst: failureBurst}
		l.sources[from] = b
	}
	if !b.take(now) {
		return errors.New("cannot agree on keys: too many handshakes of this address failed")
	}
	return nil
}

// oldest gives the handshake that makes room for another.
func (l *secureListener) oldest() (a *association) {
	var known *association
	for _, p := range l.pending {
		switch {
		case p.verified:
		case l.known[p.from.Addr()]:
			known = p
		case a == nil || p.began.Before(a.began):
			a = p
		}
	}
	return cmp.Or(a, known)
}

// drop ends a handshake. The lock is held.
func (l *secureListener) drop(a *association) {
	if l.pending[a.from] == a {
		delete(l.pending, a.from)
		if !a.verified {
			l.unverified--
		}
	}
	if !l.alive[a] {
		delete(l.byCID, a.cid)
	}
	a.cancel()
}

// run makes the handshake and then hears what the peer says, until that ends.
func (a *association) run(ctx context.Context) {
	defer a.cancel()
	l := a.listener
	prove := time.AfterFunc(verifyTime, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !a.verified {
			l.drop(a)
		}
	})
	defer prove.Stop()
	limited, done := context.WithTimeout(ctx, handshakeTime)
	conn, err := a.handshake(limited)
	done()
	if err == nil {
		err = l.establish(a)
	}
	if err == nil {
		err = a.hear(ctx, conn)
	} else {
		err = refusal(a.asked, err)
	}
	l.mu.Lock()
	complain := err != nil && a.verified && ctx.Err() == nil && l.complaint.take(time.Now())
	l.drop(a)
	l.forget(a)
	l.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // tells the peer, where it is not the one that ended it
	}
	_ = a.in.Close()
	if complain {
		l.session.sink.Reject(a.from.String(), err)
	}
}

// hear hands what the peer says to the session, until it or ctx ends.
func (a *association) hear(ctx context.Context, conn *dtls.Conn) error {
	l := a.listener
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the read
	defer stop()
	p, err := l.session.attach(fmt.Sprintf("%s (%.60q)", a.from, a.identity), secureLink{conn}, a.identity)
	if err != nil {
		return err
	}
	defer l.session.detach(p)
	buf := make([]byte, maxMessage) // more than pion takes
	for {
		n, err := conn.Read(buf)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("cannot hear the device any more: %w", err)
		}
		l.mu.Lock()
		a.settled, a.seen = true, time.Now()
		l.mu.Unlock()
		l.session.hear(p, buf[:n])
	}
}

type secureLink struct{ conn *dtls.Conn }

func (l secureLink) send(b []byte) error {
	_, err := l.conn.Write(b)
	return err
}

// refusal says why a handshake came to nothing. A wrong key shows in that the
// peer's last message cannot be read.
func refusal(identity string, err error) error {
	var why error
	switch {
	case errors.Is(err, context.DeadlineExceeded) && identity != "":
		why = fmt.Errorf("the key of %.60q is probably not the one that the device has", identity)
	case errors.Is(err, context.DeadlineExceeded):
		why = errors.New("the device did not go on")
	default:
		why = err
	}
	return fmt.Errorf("cannot agree on keys: %w", why)
}

func (a *association) handshake(ctx context.Context) (*dtls.Conn, error) {
	options := append([]dtls.ServerOption{
		dtls.WithPSK(a.keyOf),
		dtls.WithVerifyConnection(a.prove),
		dtls.WithConnectionIDGenerator(func() []byte { return bytes.Clone(a.cid[:]) }),
	}, a.listener.options...)
	conn, err := dtls.ServerWithOptions(a, net.UDPAddrFromAddrPort(a.from), options...)
	if err != nil {
		return nil, err
	}
	return conn, conn.HandshakeContext(ctx)
}

// keyOf gives the key of an identity. One that is not known is an error: an
// empty key would be one that everybody has.
func (a *association) keyOf(identity []byte) ([]byte, error) {
	l := a.listener
	key, ok := (*l.server.keys.Load())[string(identity)]
	l.mu.Lock()
	defer l.mu.Unlock()
	a.asked, a.key = string(identity), key
	if !ok || len(key) == 0 || len(identity) == 0 {
		return nil, fmt.Errorf("nobody called %.60q has a key", identity)
	}
	return key, nil
}

// prove finds out who the peer has shown to be.
func (a *association) prove(state *dtls.State) error {
	identity := string(state.IdentityHint)
	if identity == "" {
		var err error
		if identity, err = a.listener.server.certified(state.PeerCertificates); err != nil {
			return err
		}
	}
	l := a.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	a.identity = identity
	return nil
}

// certified gives the name in a certificate that an authority has signed.
func (s *Server) certified(raw [][]byte) (string, error) {
	secure := s.config.Secure
	if len(raw) == 0 || secure.Authorities == nil {
		return "", errors.New("the device shows no certificate")
	}
	o := x509.VerifyOptions{Roots: secure.Authorities, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if secure.Now != nil {
		o.CurrentTime = secure.Now()
	}
	var leaf *x509.Certificate
	for i, der := range raw {
		cert, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
			return "", fmt.Errorf("the device's certificate cannot be read: %w", err)
		case i == 0:
			leaf = cert
		default:
			o.Intermediates.AddCert(cert)
		}
	}
	if _, err := leaf.Verify(o); err != nil {
		return "", fmt.Errorf("the device's certificate is not good: %w", err)
	}
	switch {
	case leaf.Subject.CommonName != "":
		return leaf.Subject.CommonName, nil
	case len(leaf.DNSNames) > 0:
		return leaf.DNSNames[0], nil
	}
	return "", errors.New("the device's certificate has no name")
}

// establish puts an association whose handshake is complete in the place of the
// one that the address had, if any.
func (l *secureListener) establish(a *association) error {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending[a.from] != a || a.identity == "" {
		return context.Canceled // another took its place
	}
	delete(l.pending, a.from)
	if b := l.sources[a.from.Addr()]; b != nil {
		b.used = max(0, b.used-1)
	}
	if len(l.known) >= maxSources {
		for other := range l.known { // begins anywhere
			delete(l.known, other)
			break
		}
	}
	l.known[a.from.Addr()] = true
	if old := l.complete[a.from]; old != nil {
		l.forget(old)
	}
	var longest, own *association // without a word
	of := 0
	for other := range l.alive {
		if longest == nil || other.seen.Before(longest.seen) {
			longest = other
		}
		if other.identity == a.identity {
			of++
			if own == nil || other.seen.Before(own.seen) {
				own = other
			}
		}
	}
	switch {
	case of >= maxOfOne:
		l.forget(own)
	case len(l.alive) >= maxAssociations:
		l.forget(longest)
	}
	a.seen = now
	l.alive[a], l.complete[a.from], l.byCID[a.cid] = true, a, a
	return nil
}

// forget ends an association. The lock is held.
func (l *secureListener) forget(a *association) {
	delete(l.alive, a)
	delete(l.byCID, a.cid)
	if l.complete[a.from] == a {
		delete(l.complete, a.from)
	}
	a.cancel()
}

// sweep ends associations that are silent, and those whose key was taken away.
func (l *secureListener) sweep() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.session.ctx.Done():
			return
		case <-l.server.rekeyed:
		case <-tick.C:
		}
		now, keys := time.Now(), *l.server.keys.Load()
		l.mu.Lock()
		for a := range l.alive {
			idle := idleTime
			if a.hasCID {
				idle = idleTimeCID
			}
			if now.Sub(a.seen) > idle || a.key != nil && !bytes.Equal(keys[a.identity], a.key) {
				l.forget(a)
			}
		}
		l.mu.Unlock()
	}
}

// deliver hands one record to pion. What finds no room is lost, as on the way.
func (a *association) deliver(from netip.AddrPort, whole []byte) {
	address, err := from.MarshalBinary()
	if err != nil || len(address) > 255 || len(address)+1+len(whole) > maxMessage { // pion reads no more
		return
	}
	b := append(append([]byte{byte(len(address))}, address...), whole...)
	_, _ = a.in.Write(b)
}

// ReadFrom implements [net.PacketConn].
func (a *association) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := a.in.Read(b)
	if err != nil {
		return 0, nil, err
	}
	end := 1 + int(b[0])
	var from netip.AddrPort
	if err := from.UnmarshalBinary(b[1:end]); err != nil {
		return 0, nil, err
	}
	return copy(b, b[end:n]), net.UDPAddrFromAddrPort(from), nil
}

// WriteTo implements [net.PacketConn]. A peer that has not proved its address
// gets no more than a little for what it sent: it may be another's.
func (a *association) WriteTo(b []byte, to net.Addr) (int, error) {
	l := a.listener
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, net.ErrClosed
	}
	l.mu.Lock()
	if !a.verified {
		if r, _, ok := cutRecord(b); ok && r.kind == handshakeRecord && r.epoch == 0 && len(r.body) > 15 && r.body[0] == 3 && len(r.body) >= 15+int(r.body[14]) {
			a.cookie = bytes.Clone(r.body[15 : 15+int(r.body[14])]) // of the HelloVerifyRequest
		}
		if a.sent += len(b); a.sent > amplification*a.received {
			l.mu.Unlock()
			return len(b), nil
		}
	}
	l.mu.Unlock()
	if err := (socketLink{l.conn, udp, a.local}).send(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close implements [net.PacketConn]; the socket is that of all.
func (a *association) Close() error { return a.in.Close() }

// LocalAddr implements [net.PacketConn].
func (a *association) LocalAddr() net.Addr { return a.listener.conn.LocalAddr() }

// SetDeadline implements [net.PacketConn].
func (a *association) SetDeadline(t time.Time) error { return a.in.SetReadDeadline(t) }

// SetReadDeadline implements [net.PacketConn].
func (a *association) SetReadDeadline(t time.Time) error { return a.in.SetReadDeadline(t) }

// SetWriteDeadline implements [net.PacketConn]; writing waits for nothing.
func (a *association) SetWriteDeadline(time.Time) error { return nil }
