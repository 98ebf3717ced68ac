package coap

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// A body is a request body that comes in blocks (Block1, RFC 7959 section
// 2.5). A peer has one under way; beginning another drops it, and where very
// many peers have, the oldest.
type body struct {
	key   string // method and options that all blocks share
	bytes []byte
}

const maxBodies = 512

// join takes one block of a request. It returns the whole body when the block
// was the last, else the answer to this block.
func (s *session) join(p *peer, m message.Message, bl block) (whole []byte, answer *response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	had := p.body.key != ""
	whole, answer = p.body.join(m, bl)
	switch has := p.body.key != ""; {
	case had && !has:
		s.bodies = slices.DeleteFunc(s.bodies, func(other *peer) bool { return other == p })
	case !had && has:
		if len(s.bodies) == maxBodies {
			s.bodies[0].body = body{}
			s.bodies = s.bodies[1:]
		}
		s.bodies = append(s.bodies, p)
	}
	return whole, answer
}

// A block is the value of a Block1 option (RFC 7959 section 2.2).
type block struct {
	option uint32
	number int
	more   bool
	size   int
}

func parseBlock(v uint32) (block, error) {
	szx := v & 7
	if szx == 7 {
		return block{}, fmt.Errorf("the block size is reserved")
	}
	return block{option: v, number: int(v >> 4), more: v&8 != 0, size: 16 << szx}, nil
}

func (b *body) join(m message.Message, bl block) (whole []byte, answer *response) {
	key := blockKey(m)
	if bl.number == 0 {
		*b = body{key: key}
	}
	switch {
	case b.key != key || bl.number*bl.size != len(b.bytes):
		*b = body{}
		return nil, &response{code: codes.RequestEntityIncomplete, payload: []byte("a block is missing, begin again with block 0")}
	case bl.more && len(m.Payload) != bl.size || len(m.Payload) > bl.size:
		*b = body{}
		return nil, badRequest("the block has %d bytes, its option says %d", len(m.Payload), bl.size)
	case len(b.bytes)+len(m.Payload) > maxMessage || announced(m) > maxMessage:
		*b = body{}
		r := tooLarge()
		return nil, &r
	}
	b.bytes = append(b.bytes, m.Payload...)
	if bl.more {
		r := response{code: codes.Continue}
		r.addUint(message.Block1, bl.option)
		return nil, &r
	}
	whole = b.bytes
	*b = body{}
	return whole, nil
}

// announced is the size that the device says the whole body has, 0 if it does
// not say.
func announced(m message.Message) uint32 {
	size, err := m.Options.GetUint32(message.Size1)
	if err != nil {
		return 0
	}
	return size
}

// blockKey is equal for the blocks of one body. The token may differ from
// block to block (RFC 7959 section 3.3).
func blockKey(m message.Message) string {
	key := []byte{byte(m.Code)}
	for _, o := range m.Options {
		if !slices.Contains([]message.OptionID{message.Block1, message.Block2, message.Size1}, o.ID) {
			key = fmt.Appendf(key, "%d %q ", o.ID, o.Value)
		}
	}
	return string(key)
}

// paged gives the part of a response that the request asks for, or its first part
// where it is larger than room (Block2, RFC 7959 section 2.4).
func paged(r response, m message.Message, room int) response {
	option, err := m.Options.GetUint32(message.Block2)
	if err != nil && len(r.payload) <= min(room, ourBlock) {
		return r
	}
	bl := block{size: ourBlock}
	if err == nil {
		if bl, err = parseBlock(option); err != nil {
			return *badRequest("%v", err)
		}
	}
	at := bl.number * bl.size
	for bl.size > room && bl.size > 16 {
		bl.size /= 2
	}
	if at > 0 && at >= len(r.payload) {
		return *badRequest("there is no block %d", bl.number)
	}
	szx, more, end := uint32(bits.Len(uint(bl.size))-5), uint32(0), min(at+bl.size, len(r.payload))
	if end < len(r.payload) {
		more = 8
	}
	sum := sha256.Sum256(r.payload)
	r.options = r.options.Add(message.Option{ID: message.ETag, Value: sum[:4]})
	r.addUint(message.Block2, uint32(at/bl.size)<<4|more|szx)
	r.payload = r.payload[at:end]
	return r
}
