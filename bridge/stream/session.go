package stream

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/crashpoint"
)

// answerTime is how long an IQ may stay unanswered where the caller's context
// sets no shorter time.
const answerTime = 60 * time.Second

// maxReplies bounds the answers that wait to be sent for nobody.
const maxReplies = 64

// A Session is one authenticated stream. Its methods may be called from any
// goroutine.
type Session struct {
	cfg   Config
	conn  *conn
	addr  jid.JID
	space string

	writing chan struct{} // is held by the one who writes
	heard   atomic.Uint64 // counts what was read

	mu      sync.Mutex
	pending map[string]question
	dropped uint64
	err     error
	closing bool

	replies chan []byte
	ended   chan struct{} // is closed when reading ended
	done    chan struct{} // is closed when all has
}

// A question is an IQ that waits for its answer.
type question struct {
	to     jid.JID
	answer chan Stanza
}

func newSession(cfg Config, c *conn, addr jid.JID, space string) *Session {
	return &Session{
		cfg: cfg, conn: c, addr: addr, space: space,
		writing: make(chan struct{}, 1),
		pending: make(map[string]question), replies: make(chan []byte, maxReplies),
		ended: make(chan struct{}), done: make(chan struct{}),
	}
}

func (s *Session) start() {
	var all sync.WaitGroup
	all.Go(s.read)
	all.Go(s.reply)
	if !s.cfg.PingTo.Equal(jid.JID{}) {
		all.Go(s.ping)
	}
	go func() {
		all.Wait()
		s.conn.Close()
		close(s.done)
	}()
}

// Addr is the component's domain, or the account's full JID.
func (s *Session) Addr() jid.JID { return s.addr }

// Server is whom to ask about the server: the account's domain. A component
// does not learn its server's name, and asks its own domain.
func (s *Session) Server() jid.JID { return s.addr.Domain() }

// Done is closed when the session ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err tells why the session ended; nil after Close. It is defined once Done is
// closed.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Dropped counts stanzas that could not be used, and answers from somebody who
// was not asked.
func (s *Session) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

func (s *Session) drop() {
	s.mu.Lock()
	s.dropped++
	s.mu.Unlock()
}

// read is the session's reading goroutine.
func (s *Session) read() {
	defer close(s.ended)
	r := newReader(s.conn, s.space)
	for {
		st, err := r.next()
		s.heard.Add(1)
		switch {
		case errors.Is(err, errDropped):
			s.drop()
			continue
		case err != nil:
			s.end(explain(err))
			return
		}
		s.dispatch(st)
	}
}

// end notes why the session ends, the first reason only, and has reading stop.
func (s *Session) end(err error) {
	s.mu.Lock()
	if s.err == nil && !s.closing {
		s.err = err
	}
	s.mu.Unlock()
	s.conn.Close()
}

func (s *Session) dispatch(st Stanza) {
	request := st.Name == "iq" && (st.Type == "get" || st.Type == "set")
	switch {
	case request && st.ID == "":
		s.drop() // RFC 6120 section 8.2.3, rule 1; there is no answering it
	case request && st.Child.Local == "":
		s.refuse(st, "modify", "bad-request") // RFC 6120 section 8.2.3, rule 2
	case st.Name == "iq" && (st.Type == "result" || st.Type == "error"):
		if !s.answer(st) {
			s.drop()
		}
	case st.Name == "iq" && !request:
		s.drop()
	case !s.handle(st) && request:
		s.refuse(st, "cancel", "service-unavailable") // rule 4
	}
}

// handle gives a stanza to the handler, which harms only itself if it panics.
func (s *Session) handle(st Stanza) (taken bool) {
	if s.cfg.Handler == nil {
		return false
	}
	defer func() {
		if r := recover(); r != nil {
			s.cfg.Log.Error("a stanza was not handled", "from", st.From, "panic", r)
			taken = false
		}
	}()
	return s.cfg.Handler(s, st)
}

// answer gives an answer to who waits for it, if it comes from who was asked.
func (s *Session) answer(st Stanza) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, ok := s.pending[st.ID]
	if !ok || !s.speaksFor(st.From, q.to) {
		return false
	}
	delete(s.pending, st.ID)
	q.answer <- st // buffered, and there is one answer
	return true
}

// speaksFor reports whether an answer from somebody is one to what to was
// asked. A client's server answers for the account and for itself without an
// address, or with either (RFC 6120 section 8.1.2.1).
func (s *Session) speaksFor(from, to jid.JID) bool {
	if from.Equal(to) {
		return true
	}
	if s.cfg.Component != nil {
		return false
	}
	own := func(j jid.JID) bool {
		return j.Equal(jid.JID{}) || j.Equal(s.addr.Bare()) || j.Equal(s.addr) || j.Equal(s.addr.Domain())
	}
	return own(from) && own(to)
}

// refuse answers a request that nobody takes on. There is no waiting on the
// reading goroutine: where too many wait already, this one gets no answer.
func (s *Session) refuse(st Stanza, kind, condition string) {
	e := struct {
		XMLName xml.Name `xml:"iq"`
		Type    string   `xml:"type,attr"`
		ID      string   `xml:"id,attr"`
		From    string   `xml:"from,attr,omitempty"`
		To      string   `xml:"to,attr,omitempty"`
		Error   struct {
			Type      string `xml:"type,attr"`
			Condition struct{ XMLName xml.Name }
		} `xml:"error"`
	}{Type: "error", ID: st.ID, To: st.From.String()}
	if s.cfg.Component != nil {
		e.From = st.To.String()
	}
	e.Error.Type = kind
	e.Error.Condition.XMLName = xml.Name{Space: "urn:ietf:params:xml:ns:xmpp-stanzas", Local: condition}
	b, err := xml.Marshal(e)
	if err != nil {
		s.drop()
		return
	}
	select {
	case s.replies <- b:
	default:
		s.drop()
	}
}

// reply sends what refuse made.
func (s *Session) reply() {
	for {
		select {
		case <-s.ended:
			return
		case b := <-s.replies:
			if s.Send(context.Background(), b) != nil {
				s.drop()
			}
		}
	}
}

// ErrClosed says that the session has ended.
var ErrClosed = errors.New("the XMPP session has ended")

// Send sends one stanza: XML as []byte, or a value that is marshalled as a
// whole before its first byte goes out. A component's stanza must have a `to`,
// and a `from` within its domain, because a server closes the stream of one
// that lacks them. An error of the network ends the session.
func (s *Session) Send(ctx context.Context, st any) error {
	b, err := marshal(st)
	if err != nil {
		return fmt.Errorf("cannot send a stanza: %w", err)
	}
	if s.cfg.Component != nil {
		if err := s.checkAddresses(b); err != nil {
			return fmt.Errorf("cannot send a stanza: %w", err)
		}
	}
	if err := s.hold(ctx); err != nil {
		return err
	}
	defer s.release()
	if s.over() {
		return ErrClosed
	}
	if err := s.conn.send(b, cmp.Or(s.cfg.writeTimeout, writeTimeout)); err != nil {
		// What of the stanza went out is not known: nothing may follow it.
		s.end(err)
		return fmt.Errorf("cannot send a stanza: %w", err)
	}
	return nil
}

// hold waits until nobody else writes.
func (s *Session) hold(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cannot send a stanza: %w", err)
	}
	select {
	case s.writing <- struct{}{}:
		return nil
	case <-s.ended:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("cannot send a stanza: %w", ctx.Err())
	}
}

func (s *Session) release() { <-s.writing }

// over reports whether nothing may be sent any more: after the end of our
// stream, neither.
func (s *Session) over() bool {
	select {
	case <-s.ended:
		return true
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func marshal(st any) (b []byte, err error) {
	if b, ok := st.([]byte); ok {
		return b, nil
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return xml.Marshal(st)
}

// checkAddresses looks at a stanza that is ready to be sent.
func (s *Session) checkAddresses(b []byte) error {
	token, err := xml.NewDecoder(bytes.NewReader(b)).Token()
	if err != nil {
		return err
	}
	start, ok := token.(xml.StartElement)
	if !ok {
		return errors.New("it does not begin with an element")
	}
	var from, to bool
	for _, a := range start.Attr {
		switch a.Name {
		case xml.Name{Local: "from"}:
			j, err := jid.Parse(a.Value)
			if err != nil || !j.Domain().Equal(s.addr) {
				return fmt.Errorf("its from %q is not within %s", a.Value, s.addr)
			}
			from = true
		case xml.Name{Local: "to"}:
			if _, err := jid.Parse(a.Value); err != nil {
				return fmt.Errorf("its to %q is no address: %v", a.Value, err)
			}
			to = true
		}
	}
	if !from || !to {
		return errors.New("it has no from or no to")
	}
	return nil
}

// An IQ is a request. For an account From may be zero.
type IQ struct {
	Type     stanza.IQType // get or set
	From, To jid.JID
	Payload  any // one element: XML as []byte, or a value to be marshalled
}

// IQ sends a request and gives its answer. An answer of type error is returned
// with an error that wraps a [stanza.Error]. Without an answer the error wraps
// ctx's, or [ErrClosed].
func (s *Session) IQ(ctx context.Context, iq IQ) (Stanza, error) {
	payload, err := marshal(iq.Payload)
	if err != nil {
		return Stanza{}, fmt.Errorf("cannot send an IQ: %w", err)
	}
	// RFC 6120 section 8.1.3: nobody can guess it.
	id := rand.Text()
	request, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"iq"`
		Type    string   `xml:"type,attr"`
		ID      string   `xml:"id,attr"`
		From    string   `xml:"from,attr,omitempty"`
		To      string   `xml:"to,attr,omitempty"`
		Payload []byte   `xml:",innerxml"`
	}{Type: string(iq.Type), ID: id, From: iq.From.String(), To: iq.To.String(), Payload: payload})
	if err != nil {
		return Stanza{}, fmt.Errorf("cannot send an IQ: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	q := question{iq.To, make(chan Stanza, 1)}
	s.mu.Lock()
	s.pending[id] = q
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.pending, id)
		s.mu.Unlock()
	}()
	if err := s.Send(ctx, request); err != nil {
		return Stanza{}, err
	}
	crashpoint.At(crashpoint.StanzaSent)
	select {
	case st := <-q.answer:
		return st, answerError(st)
	case <-s.ended:
		return Stanza{}, ErrClosed
	case <-ctx.Done():
		return Stanza{}, fmt.Errorf("no answer from %s: %w", iq.To, ctx.Err())
	}
}

// answerError gives the error of an answer of type error.
func answerError(st Stanza) error {
	if st.Type != "error" {
		return nil
	}
	var e struct {
		Error stanza.Error `xml:"error"`
	}
	if err := st.Unmarshal(&e); err != nil || e.Error.Condition == "" {
		e.Error = stanza.Error{Type: stanza.Cancel, Condition: stanza.UndefinedCondition}
	}
	return fmt.Errorf("%s answers: %w", st.From, e.Error)
}

const (
	pingEvery   = 25 * time.Second
	pingTimeout = 20 * time.Second
)

// Ping asks the PingTo of the config (XEP-0199). An answer shows that the server
// has done what was sent before; [stanza.Error] is one, too.
func (s *Session) Ping(ctx context.Context) error {
	type ping struct {
		XMLName xml.Name `xml:"urn:xmpp:ping ping"`
	}
	request := IQ{Type: stanza.GetIQ, To: s.cfg.PingTo, Payload: ping{}}
	if s.cfg.Component != nil {
		request.From = s.addr
	}
	_, err := s.IQ(ctx, request)
	return err
}

// ping is the session's pinging goroutine.
func (s *Session) ping() {
	tick := time.NewTicker(cmp.Or(s.cfg.PingEvery, pingEvery))
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		}
		heard := s.heard.Load()
		ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(s.cfg.PingTimeout, pingTimeout))
		err := s.Ping(ctx)
		cancel()
		// Behind a shaper the ping waits in line with all else that was sent;
		// whatever came meanwhile shows as well that somebody is there.
		if err != nil && !errors.As(err, new(stanza.Error)) && s.heard.Load() == heard {
			s.end(fmt.Errorf("the server does not answer a ping: %w", err))
			return
		}
	}
}

// closeTime is how long the server may take to close its side.
const closeTime = 5 * time.Second

// Close ends the stream in order, waiting a moment for the server to do the
// same. It may be called more than once.
func (s *Session) Close() error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	s.mu.Unlock()
	if first {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		if s.hold(ctx) == nil {
			err := s.conn.send([]byte("</stream:stream>"), closeTime)
			s.release()
			if err == nil {
				select {
				case <-s.ended:
				case <-ctx.Done():
				}
			}
		}
		s.conn.Close()
	}
	<-s.done
	return nil
}
