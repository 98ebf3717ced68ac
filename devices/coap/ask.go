package coap

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

const (
	echo message.OptionID = 252 // RFC 9175 section 2.2

	maxAsked         = 16   // conversations with one peer
	maxConversations = 8192 // and with all

	maxAnswer   = 64 << 10 // bytes of an answer, or of what is sent, in blocks
	maxBlocks   = 1024     // of one answer
	ourBlock    = 1024     // bytes of a block, until the peer wants less
	ourSZX      = 6        // which is that
	maxTransfer = 5 * time.Minute

	// forgottenAfter is how many repetitions a peer that forgets gets: a new
	// association costs it less than the wait.
	forgottenAfter = 1
	maxAnew        = 5 // times that an answer is read from its beginning again
)

var errChanged = errors.New("the answer changed while it was read")

// What becomes of a request that is not answered. After all but errBusy the peer
// may have done what it was asked.
var (
	errBusy   = errors.New("too many requests to the device are under way")
	errSilent = errors.New("the device does not answer")
	errReset  = errors.New("the device does not know what it was sent (reset)")
	errGone   = errors.New("the connection to the device has ended")
)

// A request is what a peer is asked.
type request struct {
	code    codes.Code
	path    []string
	query   []string
	accept  int // content format; NoFormat is any
	format  int // of the payload
	payload []byte
	options message.Options // further ones
}

// get makes a request for what is at a path.
func get(path []string, query ...string) request {
	return request{code: codes.GET, path: path, query: query, accept: NoFormat, format: NoFormat}
}

func (q request) message() message.Message {
	m := message.Message{Type: message.Confirmable, Code: q.code, Payload: q.payload}
	for _, o := range q.options {
		m.Options = m.Options.Add(o)
	}
	for _, p := range q.path {
		m.Options = m.Options.Add(message.Option{ID: message.URIPath, Value: []byte(p)})
	}
	for _, p := range q.query {
		m.Options = m.Options.Add(message.Option{ID: message.URIQuery, Value: []byte(p)})
	}
	if q.accept >= 0 {
		m.Options = m.Options.Add(uintOption(message.Accept, uint32(q.accept)))
	}
	if q.format >= 0 && len(q.payload) > 0 {
		m.Options = m.Options.Add(uintOption(message.ContentFormat, uint32(q.format)))
	}
	return m
}

func uintOption(id message.OptionID, v uint32) message.Option {
	b := make([]byte, 4)
	n, _ := message.EncodeUint32(b, v)
	return message.Option{ID: id, Value: b[:n]}
}

// An answer is what a peer said to a request, all blocks of it.
type answer struct {
	code    codes.Code
	format  int // content format; NoFormat where it does not say
	options message.Options
	payload []byte
}

// ok reports whether the peer did what it was asked.
func (a answer) ok() bool { return a.code>>5 == 2 }

// refusal is the peer's no, with its words (RFC 7252 section 5.5.2).
func (a answer) refusal() error {
	text := ""
	if a.format == NoFormat || a.format == TextPlain {
		text = strings.TrimSpace(string(a.payload[:min(len(a.payload), maxDiagnostic)]))
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		text = ""
	}
	if text == "" {
		return fmt.Errorf("the device answers %s", Code(a.code))
	}
	return fmt.Errorf("the device answers %s: %s", Code(a.code), text)
}

// maxAge is how long the answer may be taken for fresh (RFC 7252 section 5.10.5).
func (a answer) maxAge() time.Duration {
	seconds, err := a.options.GetUint32(message.MaxAge)
	if err != nil {
		seconds = 60
	}
	return time.Duration(seconds) * time.Second
}

// observe is the number of a notification (RFC 7641 section 3.2).
func (a answer) observe() (number uint32, ok bool) {
	number, err := a.options.GetUint32(message.Observe)
	return number & 0xffffff, err == nil
}

func newAnswer(m message.Message) answer {
	return answer{code: m.Code, format: formatOf(m), options: m.Options, payload: m.Payload}
}

// do asks a peer, with a body of any size in both directions, and gives its
// answer, whatever that says. Until the peer has acknowledged one message
// nothing else is sent to it, so requests to one peer wait for each other; it
// takes no longer than ctx and maxTransfer allow. It may be called from any
// goroutine.
func (s *session) do(ctx context.Context, p *peer, q request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTransfer)
	defer cancel()
	c, err := s.converse(p, 1)
	if err != nil {
		return answer{}, err
	}
	defer c.close()
	for n := 0; ; n++ {
		first, err := c.put(ctx, q)
		if err != nil {
			return answer{}, err
		}
		a, err := c.rest(ctx, q, first)
		if errors.Is(err, errChanged) && q.code == codes.GET && n < maxAnew {
			continue // also where a peer takes a repetition for another request
		}
		return a, err
	}
}

// put sends a request, its body in blocks if it is large (RFC 7959 section 2.5).
func (c *conversation) put(ctx context.Context, q request) (message.Message, error) {
	m, payload := q.message(), q.payload
	switch {
	case len(payload) > maxAnswer:
		return message.Message{}, fmt.Errorf("cannot send %d bytes: at most %d", len(payload), maxAnswer)
	case len(payload) <= ourBlock:
		got, err := c.ask(ctx, m)
		size, smaller := smallerBlock(got, ourSZX)
		if err != nil || got.Code != codes.RequestEntityTooLarge || !smaller || len(payload) <= 16<<size {
			return got, err
		}
		return c.putBlocks(ctx, m, payload, size)
	}
	m.Options = m.Options.Add(uintOption(message.Size1, uint32(len(payload))))
	return c.putBlocks(ctx, m, payload, ourSZX)
}

// smallerBlock gives the size of blocks that a peer asks for, as an exponent.
func smallerBlock(m message.Message, szx uint32) (uint32, bool) {
	v, err := m.Options.GetUint32(message.Block1)
	return v & 7, err == nil && v&7 < szx
}

func (c *conversation) putBlocks(ctx context.Context, m message.Message, payload []byte, szx uint32) (message.Message, error) {
	for at := 0; ; {
		size := 16 << szx
		end := min(at+size, len(payload))
		more := uint32(0)
		if end < len(payload) {
			more = 8
		}
		m.Payload = payload[at:end]
		m.Options = m.Options.Set(uintOption(message.Block1, uint32(at/size)<<4|more|szx))
		got, err := c.ask(ctx, m)
		wanted, smaller := smallerBlock(got, szx)
		switch {
		case err != nil:
			return got, err
		case got.Code == codes.RequestEntityTooLarge && at == 0 && smaller:
			szx = wanted // section 2.9.3
			continue
		case got.Code != codes.Continue || more == 0:
			return got, nil
		case smaller:
			szx = wanted
		}
		at = end
	}
}

// rest fetches the blocks of an answer after the first (RFC 7959 section 2.4).
func (c *conversation) rest(ctx context.Context, q request, m message.Message) (answer, error) {
	v, err := m.Options.GetUint32(message.Block2)
	if err != nil || v&8 == 0 {
		return newAnswer(m), nil
	}
	if v>>4 != 0 || v&7 == 7 || len(m.Payload) != 16<<(v&7) {
		return answer{}, errors.New("the device begins its answer with another block than the first")
	}
	whole, tag := newAnswer(m), etag(m)
	whole.payload = slices.Clone(m.Payload)
	more := q
	more.payload = nil
	more.options = slices.DeleteFunc(slices.Clone(q.options), func(o message.Option) bool { return o.ID == message.Observe })
	for range maxBlocks {
		szx := v & 7
		ask := more.message()
		ask.Options = ask.Options.Set(uintOption(message.Block2, uint32(len(whole.payload)>>(szx+4))<<4|szx))
		next, err := c.ask(ctx, ask)
		if err != nil {
			return answer{}, err
		}
		if next.Code != m.Code {
			return newAnswer(next), nil
		}
		v, err = next.Options.GetUint32(message.Block2)
		size := 16 << (v & 7)
		switch {
		case err != nil || v&7 == 7 || int(v>>4)*size != len(whole.payload):
			return answer{}, errors.New("the device answers with another block than it was asked for")
		case !bytes.Equal(etag(next), tag):
			return answer{}, errChanged
		case v&8 != 0 && len(next.Payload) != size || len(next.Payload) > size:
			return answer{}, fmt.Errorf("a block has %d bytes, its option says %d", len(next.Payload), size)
		case len(whole.payload)+len(next.Payload) > maxAnswer:
			return answer{}, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
		}
		whole.payload = append(whole.payload, next.Payload...)
		if v&8 == 0 {
			return whole, nil
		}
	}
	return answer{}, fmt.Errorf("the answer has more than %d blocks", maxBlocks)
}

func etag(m message.Message) []byte {
	tag, _ := m.Options.GetBytes(message.ETag)
	return tag
}

// A conversation is what a peer is asked under one token: a request after the
// other, or an observation. It belongs to one goroutine.
type conversation struct {
	session *session
	peer    *peer
	token   message.Token
	answers chan message.Message // closed where the link has ended

	// Guarded by the session's lock:
	under *transmission // the message of ours on the way; nil if none is
	over  bool
}

// converse begins a conversation. Up to room answers may wait to be received;
// a confirmable one for which there is no room is not acknowledged, so that it
// comes again.
func (s *session) converse(p *peer, room int) (*conversation, error) {
	token := newToken()
	c := &conversation{session: s, peer: p, token: token, answers: make(chan message.Message, room)}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p.gone:
		return nil, errGone
	case p.asked >= maxAsked && !p.forgets || p.asked >= maxSharedAsked || len(s.conversations) >= maxConversations:
		return nil, errBusy
	}
	if p.turn == nil {
		p.turn = make(chan struct{}, 1)
	}
	p.asked++
	p.held++
	s.conversations[string(token)] = c
	return c, nil
}

// newToken gives one that nobody can guess (RFC 7252 section 5.3.1).
func newToken() message.Token {
	token := make(message.Token, 8)
	_, _ = rand.Read(token)
	return token
}

// close ends a conversation. What still comes is refused, which ends an
// observation (RFC 7641 section 3.6).
func (c *conversation) close() {
	s := c.session
	s.mu.Lock()
	defer s.mu.Unlock()
	c.peer.asked--
	c.peer.held--
	delete(s.conversations, string(c.token))
}

// fail is called with the session's lock held.
func (c *conversation) fail(error) {
	if !c.over {
		c.over = true
		close(c.answers)
	}
}

// ask sends one message and waits for one answer.
func (c *conversation) ask(ctx context.Context, m message.Message) (message.Message, error) {
	got, err := c.askOnce(ctx, m)
	if tag, e := got.Options.GetBytes(echo); err == nil && e == nil && got.Code == codes.Unauthorized && len(tag) <= 40 {
		// RFC 9175 section 2.3: the peer wants to know that we are here.
		m.Options = m.Options.Set(message.Option{ID: echo, Value: slices.Clone(tag)})
		return c.askOnce(ctx, m)
	}
	return got, err
}

func (c *conversation) askOnce(ctx context.Context, m message.Message) (message.Message, error) {
	if err := c.send(ctx, m); err != nil {
		return message.Message{}, err
	}
	late := time.NewTimer(maxTransmitWait)
	defer late.Stop()
	select {
	case got, ok := <-c.answers:
		if !ok {
			return got, errGone
		}
		return got, nil
	case <-late.C:
		return message.Message{}, errSilent
	case <-ctx.Done():
		return message.Message{}, fmt.Errorf("%w in time", errSilent)
	}
}

// send sends a confirmable message, again and again, until it is acknowledged or
// answered.
func (c *conversation) send(ctx context.Context, m message.Message) error {
	s, p := c.session, c.peer
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return errBusy
	case <-s.ctx.Done():
		return errGone
	}
	defer func() { <-p.turn }()
	s.mu.Lock()
	m.Token, m.MessageID = c.token, p.nextMID()
	s.mu.Unlock()
	b, err := encoded(m)
	if err != nil {
		return err
	}
	return s.transmitFor(ctx, p, m.MessageID, b, c)
}

// A transmission is a confirmable message that is not yet acknowledged.
type transmission struct {
	token message.Token
	done  chan struct{}
	err   error // when done
}

// end is called with the session's lock held.
func (t *transmission) end(err error) {
	select {
	case <-t.done:
	default:
		t.err = err
		close(t.done)
	}
}

// transmit sends a confirmable message, again and again, until it is
// acknowledged or the peer may be taken to be gone (RFC 7252 section 4.2).
func (s *session) transmit(ctx context.Context, p *peer, mid int32, b []byte) error {
	return s.transmitFor(ctx, p, mid, b, nil)
}

// transmitFor does so for a conversation, whose answer acknowledges it too.
func (s *session) transmitFor(ctx context.Context, p *peer, mid int32, b []byte, c *conversation) error {
	tr := &transmission{done: make(chan struct{})}
	s.mu.Lock()
	if p.sent == nil {
		p.sent = make(map[int32]*transmission)
	}
	p.sent[mid] = tr
	if c != nil {
		tr.token, c.under = c.token, tr
	}
	if p.gone {
		tr.end(errGone)
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(p.sent, mid)
		if c != nil {
			c.under = nil
		}
	}()
	timeout := s.ackTimeout + mathrand.N(s.ackTimeout/2)
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for n := 0; ; n++ {
		s.send(p, b)
		select {
		case <-tr.done:
			return tr.err
		case <-s.ctx.Done():
			return errGone
		case <-ctx.Done():
			return fmt.Errorf("%w in time", errSilent)
		case <-timer.C:
		}
		if p.forgets && n == forgottenAfter {
			s.mu.Lock()
			p.stale = true
			s.mu.Unlock()
			return errSilent
		}
		if n == maxRetransmit {
			return errSilent
		}
		timeout *= 2
		timer.Reset(timeout)
	}
}

// acknowledged ends the repetition of a message of ours. A reset ends it too:
// the peer does not know what it is about.
func (s *session) acknowledged(p *peer, m message.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tr := p.sent[m.MessageID]; tr != nil {
		if m.Type == message.Reset {
			tr.end(errReset)
		} else {
			tr.end(nil)
		}
	}
}

// response takes an answer to what the peer was asked, once.
func (s *session) response(p *peer, m message.Message, b []byte, now time.Time) {
	sum := sha256.Sum256(b)
	s.mu.Lock()
	if m.Type != message.Acknowledgement && s.repeated(p, m, sum, now) {
		return
	}
	if group := s.groups[string(m.Token)]; group != nil {
		select {
		case group <- p:
		default:
		}
		s.mu.Unlock()
		return
	}
	c := s.conversations[string(m.Token)]
	if c != nil && c.peer != p || m.Type == message.Acknowledgement && (p.sent[m.MessageID] == nil || !bytes.Equal(p.sent[m.MessageID].token, m.Token)) {
		c = nil // section 5.3.2: it is no answer of this peer to this request
	}
	if c == nil || c.over || len(m.Options) > maxOptions {
		s.mu.Unlock()
		if m.Type != message.Acknowledgement {
			s.sink.Reject(p.name, errors.New("cannot use an answer that nobody waits for"))
			if _, err := m.Options.GetUint32(message.Observe); err == nil && s.stray != nil {
				s.stray(p, now)
			}
			// Sections 4.2 and 4.3, and RFC 7641 section 3.6.
			s.send(p, encode(message.Message{Type: message.Reset, MessageID: m.MessageID}))
		}
		return
	}
	p.trusted, p.spoke = true, now          // nobody else knows the token
	p.bucket.used = max(0, p.bucket.used-1) // it was asked for
	p.proven.Store(true)
	if c.under != nil {
		c.under.end(nil)
	}
	whole := message.Message{Options: make(message.Options, 0, maxOptions)}
	// Decoding the copy cannot fail, as decoding the original did not.
	_, _ = coder.DefaultCoder.Decode(slices.Clone(b), &whole)
	select {
	case c.answers <- whole:
	default:
		s.mu.Unlock()
		return
	}
	if m.Type == message.Acknowledgement {
		s.mu.Unlock()
		return
	}
	ex := &exchange{peer: p, confirmable: m.Type == message.Confirmable, mid: m.MessageID, sum: sum, came: now}
	if ex.confirmable {
		ex.reply = encode(message.Message{Type: message.Acknowledgement, MessageID: m.MessageID})
	}
	p.note(ex)
	s.open++
	p.open++
	s.remember(ex)
	s.mu.Unlock()
	if ex.confirmable {
		s.send(p, ex.reply)
	}
}
