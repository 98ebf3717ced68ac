package coap

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/udp/coder"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// Transmission parameters of RFC 7252 section 4.8.
const (
	ackTimeout       = 2 * time.Second
	maxRetransmit    = 4
	maxTransmitSpan  = 45 * time.Second
	maxTransmitWait  = 93 * time.Second
	exchangeLifetime = 247 * time.Second
)

const (
	// piggyback is how long an answer may take to travel inside the
	// acknowledgement: the device repeats its request after ackTimeout.
	piggyback = 1500 * time.Millisecond

	maxDatagram = 64 << 10 // what UDP can carry
	maxMessage  = 8 << 10  // what is taken, as one datagram or as one body
	maxOptions  = 32
	workers     = 4
	maxOpen     = 2048 // exchanges under way, of all peers
	maxPeerOpen = 16   // and of one
)

// A session is the message layer of one run: its peers, what they ask, and what
// they are asked (see [session.do]). Datagrams come from a socket (datagram) or
// from links of their own (attach, hear).
type session struct {
	ctx                   context.Context
	sink                  devices.Sink
	log                   *slog.Logger
	conn                  *coapnet.UDPConn
	serve                 func(*exchange) (response, devices.Receipt) // answers requests; nil: there is nothing to ask
	stray                 func(p *peer, now time.Time)                // is told of who reports to one who did not ask; nil: nobody
	coiot                 *coiot                                      // nil: nobody hears those who tell a group
	pulse                 *devices.Pulse                              // of listen
	began                 time.Time
	resumed               bool
	piggyback, ackTimeout time.Duration
	wg                    sync.WaitGroup // all goroutines of the session

	// ready holds the peers that have requests to serve, each once, so that
	// peers take turns and a peer's own requests keep their order.
	ready chan *peer

	mu            sync.Mutex
	peers         map[netip.AddrPort]*peer // by the socket
	attached      int                      // peers with links of their own
	shared        map[string]*shared       // associations of those that are asked
	open          int                      // exchanges under way
	answered      int                      // exchanges that are remembered
	conversations map[string]*conversation // by token
	groups        map[string]chan *peer    // who answered what a group was asked, by token
	groupMID      uint16
	bodies        []*peer // that have one under way, the oldest first
	swept         time.Time
	strangers     bucket // of datagrams from all whom nothing is known of
	complaint     bucket // about strangers, and peers that found no place
}

// An exchange is one request and what became of it.
type exchange struct {
	peer        *peer
	confirmable bool
	mid         int32
	sum         [sha256.Size]byte // of the datagram
	came        time.Time

	// request is the whole of it until it is served, then only the token is
	// left. Its slices point into a copy of the datagram.
	request message.Message

	// reply is what a repetition of the request gets; nil while nothing was
	// sent. Guarded by the session's lock.
	reply []byte
}

func newSession(ctx context.Context, sink devices.Sink, conn *coapnet.UDPConn, log *slog.Logger) *session {
	return &session{
		ctx: ctx, sink: sink, conn: conn, log: log, pulse: new(devices.Pulse), began: time.Now(), piggyback: piggyback, ackTimeout: ackTimeout,
		ready:         make(chan *peer, maxPeers),
		peers:         make(map[netip.AddrPort]*peer),
		shared:        make(map[string]*shared),
		conversations: make(map[string]*conversation),
		groups:        make(map[string]chan *peer),
		strangers:     bucket{rate: strangerRate, burst: strangerBurst},
		complaint:     bucket{rate: 1, burst: 1},
	}
}

// listen takes datagrams from the socket until the session ends.
func (s *session) listen() error {
	buf := make([]byte, maxDatagram)
	defer s.pulse.Rest()
	for {
		var from *net.UDPAddr
		var cm *coapnet.ControlMessage
		s.pulse.Rest()
		n, err := s.conn.ReadWithOptions(buf, coapnet.WithGetRemoteAddr(&from), coapnet.WithGetControlMessage(&cm))
		switch {
		case s.ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		s.pulse.Busy()
		s.datagram(from, cm, buf[:n])
	}
}

// datagram takes one datagram of the socket; b is valid until it returns. It is
// called from the read loop only and waits for nothing.
func (s *session) datagram(from *net.UDPAddr, cm *coapnet.ControlMessage, b []byte) {
	now := time.Now()
	if s.coiot != nil && cm != nil && cm.Dst.IsMulticast() {
		s.coiot.datagram(s.conn, from.AddrPort(), b)
		return
	}
	if p := s.admit(from, cm, now); p != nil {
		s.receive(p, b, now)
	}
}

// hear takes one datagram of an attached peer; b is valid until it returns. It
// waits for nothing, and may be called from any goroutine, but not from two for
// one peer.
func (s *session) hear(p *peer, b []byte) {
	now := time.Now()
	s.mu.Lock()
	if s.charge(p, now) {
		s.receive(p, b, now)
	}
}

func (s *session) receive(p *peer, b []byte, now time.Time) {
	p.credit.Add(amplification * int64(len(b)))
	m := message.Message{Options: make(message.Options, 0, maxOptions)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil {
		s.sink.Reject(p.name, fmt.Errorf("cannot read the datagram as CoAP: %w", err))
		// RFC 7252 section 4.2: a confirmable message that cannot be read is
		// reset, everything else is ignored.
		if len(b) >= 4 && b[0]>>4 == 1<<2|byte(message.Confirmable) {
			s.send(p, []byte{1<<6 | byte(message.Reset)<<4, 0, b[2], b[3]})
		}
		return
	}
	switch class := m.Code >> 5; {
	case m.Code == codes.Empty && (m.Type == message.Acknowledgement || m.Type == message.Reset):
		s.acknowledged(p, m)
	case m.Type == message.Reset: // section 4.2: it has to be empty
	case m.Code == codes.Empty: // a ping (section 4.3)
		s.reset(p, m)
	case m.Code == codes.Content && s.coiot != nil && len(m.Token) == 0 && s.coiot.described(p.name, m): // no other request of ours is without a token
	case class == 2 || class == 4 || class == 5:
		s.response(p, m, b, now)
	case m.Type == message.Acknowledgement:
	case m.Code == coiotStatus && s.coiot != nil && m.Type == message.NonConfirmable: // to the gateway alone
		s.coiot.status(origin{s.conn, p.name}, m, now)
	case class != 0 || s.serve == nil:
		s.sink.Reject(p.name, fmt.Errorf("cannot use a message of code %d.%02d", class, m.Code&31))
		s.reset(p, m)
	case len(b) > maxMessage:
		s.sink.Reject(p.name, fmt.Errorf("cannot take a message of %d bytes: at most %d", len(b), maxMessage))
		s.answerAtOnce(p, m, tooLarge())
	default:
		r, refused := critical(m)
		switch {
		case !refused:
			s.take(p, m, b, now)
		case m.Type == message.Confirmable:
			s.answerAtOnce(p, m, r)
		default: // section 5.4.1: rejected, not answered
			s.send(p, encode(message.Message{Type: message.Reset, MessageID: m.MessageID}))
		}
		if refused {
			s.sink.Reject(p.name, fmt.Errorf("cannot serve a request: %s", r.payload))
		}
	}
}

// reset tells the sender of a confirmable message that it was not wanted.
func (s *session) reset(p *peer, m message.Message) {
	if m.Type == message.Confirmable {
		s.send(p, encode(message.Message{Type: message.Reset, MessageID: m.MessageID}))
	}
}

// take starts an exchange, or treats a repetition as the first was treated
// (RFC 7252 section 4.5).
func (s *session) take(p *peer, m message.Message, b []byte, now time.Time) {
	sum := sha256.Sum256(b)
	s.mu.Lock()
	if s.repeated(p, m, sum, now) {
		return
	}
	if p.open >= maxPeerOpen || s.open >= maxOpen {
		s.mu.Unlock()
		if m.Type != message.Confirmable || !s.unsure(now) {
			s.answerAtOnce(p, m, unavailable("too many requests are under way", retryWhenBusy))
		}
		return
	}
	ex := &exchange{
		peer: p, confirmable: m.Type == message.Confirmable, mid: m.MessageID, sum: sum, came: now,
		request: message.Message{Options: make(message.Options, 0, maxOptions)},
	}
	// Decoding the copy cannot fail, as decoding the original did not.
	_, _ = coder.DefaultCoder.Decode(append([]byte(nil), b...), &ex.request)
	p.note(ex)
	p.queue = append(p.queue, ex)
	p.open++
	s.open++
	schedule := !p.scheduled
	p.scheduled = true
	s.mu.Unlock()
	if schedule {
		s.ready <- p // has room for every peer
	}
}

// repeated treats a message that came before as it was treated then. It is
// called with the lock held, and gives it back where it reports true.
func (s *session) repeated(p *peer, m message.Message, sum [sha256.Size]byte, now time.Time) bool {
	// The whole datagram is compared, not the message ID alone: small devices
	// begin with the same ID after each reset, and repetitions are identical.
	old := p.exchanges[m.MessageID]
	if old == nil || old.sum != sum || now.Sub(old.came) >= exchangeLifetime {
		return false
	}
	reply := old.reply
	s.mu.Unlock()
	if reply != nil && old.confirmable {
		s.send(p, reply)
	}
	return true
}

// unsure reports whether a confirmable request that comes at a moment may have
// been taken by the gateway before this one. It is not refused then, but left
// to be repeated: a device that hears 5.03 reports the reading again as another
// message, and both would count.
func (s *session) unsure(came time.Time) bool {
	return s.resumed && came.Sub(s.began) < maxTransmitSpan
}

// drop forgets an exchange, as if the network had lost the request.
func (s *session) drop(ex *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := ex.peer
	s.open--
	p.open--
	if p.exchanges[ex.mid] == ex {
		delete(p.exchanges, ex.mid)
	}
}

func (s *session) startWorkers() {
	for range workers {
		s.wg.Go(func() {
			for {
				select {
				case <-s.ctx.Done():
					return
				case p := <-s.ready:
					s.serveNext(p)
				}
			}
		})
	}
}

// serveNext serves one request of the peer and puts the peer at the end of the
// line if it has more.
func (s *session) serveNext(p *peer) {
	s.mu.Lock()
	ex := p.queue[0]
	p.queue = p.queue[1:]
	s.mu.Unlock()

	r, receipt := s.serve(ex)
	ex.request = message.Message{Token: slices.Clone(ex.request.Token)} // lets go of the datagram
	switch {
	case receipt != nil:
		s.wg.Go(func() { s.await(ex, r, receipt) })
	case r.code == codes.Empty:
		s.drop(ex)
	default:
		s.answer(ex, r)
	}

	s.mu.Lock()
	p.trusted = p.trusted || receipt != nil
	p.scheduled = len(p.queue) > 0
	again := p.scheduled
	s.mu.Unlock()
	if again {
		s.ready <- p
	}
}

// await answers when the receipt is done. A confirmable request that has to
// wait is acknowledged with an empty message, and the answer follows in a
// message of its own (RFC 7252 section 5.2.2).
func (s *session) await(ex *exchange, r response, receipt devices.Receipt) {
	timer := time.NewTimer(s.piggyback)
	defer timer.Stop()
	select {
	case <-receipt.Done():
	case <-s.ctx.Done():
		return
	case <-timer.C:
		if ex.confirmable {
			ack := encode(message.Message{Type: message.Acknowledgement, MessageID: ex.mid})
			s.mu.Lock()
			ex.reply = ack
			s.mu.Unlock()
			s.send(ex.peer, ack)
		}
		timer.Reset(maxTransmitWait - s.piggyback)
		select {
		case <-receipt.Done():
		case <-s.ctx.Done():
			return
		case <-timer.C:
			// Section 4.8.2: the device has given up by now. Not so the reading,
			// which may be at the server, so that it is not refused.
			s.mu.Lock()
			s.remember(ex)
			s.mu.Unlock()
			return
		}
	}
	if receipt.Err() != nil {
		r = unavailable("the reading could not be kept", retryWhenBusy)
	}
	s.answer(ex, r)
}

// answer sends the response to a request and ends the exchange: inside the
// acknowledgement, or, where that was already sent, in a confirmable message
// that is repeated until the device acknowledges it.
func (s *session) answer(ex *exchange, r response) {
	p := ex.peer
	r = afforded(p, r, ex.request.Token)
	m := message.Message{Code: r.code, Token: ex.request.Token, Options: r.options, Payload: r.payload}

	s.mu.Lock()
	switch {
	case !ex.confirmable:
		m.Type, m.MessageID = message.NonConfirmable, p.nextMID()
	case ex.reply == nil:
		m.Type, m.MessageID = message.Acknowledgement, ex.mid
	default:
		m.Type, m.MessageID = message.Confirmable, p.nextMID()
	}
	b := encode(m)
	crashpoint.At(crashpoint.Answering)
	defer crashpoint.At(crashpoint.Answered)
	if m.Type != message.Confirmable {
		ex.reply = b
		s.remember(ex)
		s.mu.Unlock()
		s.send(p, b)
		return
	}
	s.mu.Unlock()

	// Until then the exchange counts as open, so that a peer which
	// acknowledges nothing holds maxPeerOpen goroutines and not more.
	if err := s.transmit(s.ctx, p, m.MessageID, b); err != nil && s.ctx.Err() == nil {
		s.log.Debug("CoAP: a response is lost", "peer", p.name, "error", err)
	}

	s.mu.Lock()
	s.remember(ex)
	s.mu.Unlock()
}

// answerAtOnce answers without an exchange. A repetition is a new request.
func (s *session) answerAtOnce(p *peer, request message.Message, r response) {
	r = afforded(p, r, request.Token)
	m := message.Message{Code: r.code, Token: request.Token, Options: r.options, Payload: r.payload}
	m.Type, m.MessageID = message.Acknowledgement, request.MessageID
	if request.Type == message.NonConfirmable {
		s.mu.Lock()
		m.Type, m.MessageID = message.NonConfirmable, p.nextMID()
		s.mu.Unlock()
	}
	s.send(p, encode(m))
}

// send sends a datagram, unless it is more than the peer may be sent.
func (s *session) send(p *peer, b []byte) {
	if !p.pay(len(b)) {
		s.log.Debug("CoAP: not sent to an address that is not proven", "peer", p.name)
		return
	}
	if err := p.link.send(b); err != nil && s.ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		s.log.Debug("CoAP: cannot send", "peer", p.name, "error", err)
	}
}
