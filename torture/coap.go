package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// Times of RFC 7252 section 4.8. ACK_TIMEOUT may be one second where the
// network is known; after MAX_RETRANSMIT the device does not give up but
// begins again, with the same message.
const (
	coapTimeout = time.Second
	coapRetries = 4
)

// coapDevice posts one reading after the other as confirmable requests. It is
// written for this and shares no code with the gateway.
type coapDevice struct {
	*tap
	server  string     // host:port
	chance  *rand.Rand // what the network loses of the answers
	log     func(format string, args ...any)
	mid     uint16
	answers chan []byte
}

// Message types and codes, sections 3 and 12.1.
const (
	coapCON, coapACK, coapRST = 0, 2, 3

	coapEmpty       = 0
	coapPost        = 2
	coapChanged     = 2<<5 | 4
	coapUnavailable = 5<<5 | 3
)

func coapMessage(kind, code byte, mid uint16, token, rest []byte) []byte {
	b := []byte{1<<6 | kind<<4 | byte(len(token)), code, byte(mid >> 8), byte(mid)}
	return append(append(b, token...), rest...)
}

func (d *coapDevice) run(ctx context.Context) {
	conn, err := net.Dial("udp", d.server)
	if err != nil {
		d.log("%s cannot make a socket: %v", d.device, err)
		return
	}
	defer conn.Close()
	d.answers = make(chan []byte, 16)
	go func() {
		for ctx.Err() == nil {
			b := make([]byte, 2048)
			n, err := conn.Read(b) // an error is an ICMP message: nobody listens
			if err == nil && n >= 4 && d.chance.IntN(10) > 0 {
				select {
				case d.answers <- b[:n]:
				default:
				}
			}
		}
	}()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		select {
		case n := <-d.numbers:
			for !d.post(ctx, conn, n) {
				if ctx.Err() != nil {
					return
				}
			}
			d.done(n)
		case <-ctx.Done():
			return
		}
	}
}

// post is one exchange. It reports whether the reading was taken; otherwise
// the server said definitely that it was not.
func (d *coapDevice) post(ctx context.Context, conn net.Conn, n int) bool {
	d.mid++
	token := binary.BigEndian.AppendUint32(nil, uint32(n))
	// Options: Uri-Path (11) twice, Content-Format (12) 50, JSON; section 3.1.
	rest := append([]byte{11<<4 | 1, 'd', byte(len(d.device))}, d.device...)
	rest = append(rest, 1<<4|1, 50, 0xff)
	request := coapMessage(coapCON, coapPost, d.mid, token, append(rest, payload(n)...))
	for {
		wait := coapTimeout
		for range coapRetries + 1 {
			conn.Write(request) // what is lost is sent again
			if taken, answered := d.await(ctx, conn, token, wait); answered || ctx.Err() != nil {
				return taken
			}
			wait = min(2*wait, 4*time.Second)
		}
	}
}

// await waits for the answer to the request. An empty acknowledgement says
// that the answer comes later, in a message of its own (section 5.2.2).
func (d *coapDevice) await(ctx context.Context, conn net.Conn, token []byte, wait time.Duration) (taken, answered bool) {
	timer := time.After(wait)
	for {
		var b []byte
		select {
		case b = <-d.answers:
		case <-timer:
			return false, false
		case <-ctx.Done():
			return false, false
		}
		kind, code, mid := b[0]>>4&3, b[1], binary.BigEndian.Uint16(b[2:])
		if kind == coapCON {
			conn.Write(coapMessage(coapACK, coapEmpty, mid, nil, nil))
		}
		if code == coapEmpty {
			if kind == coapRST && mid == d.mid {
				d.log("%s: a request is reset", d.device)
			}
			continue
		}
		if length := int(b[0] & 15); len(b) < 4+length || string(b[4:4+length]) != string(token) {
			continue // of an exchange before
		}
		switch code {
		case coapChanged:
			return true, true
		case coapUnavailable:
			d.log("%s: 5.03 %s", d.device, coapText(b))
			select {
			case <-timer:
			case <-ctx.Done():
			}
		default:
			d.log("%s is refused: %d.%02d %s", d.device, code>>5, code&31, coapText(b))
			select {
			case <-time.After(coapTimeout):
			case <-ctx.Done():
			}
		}
		return false, true
	}
}

// coapText is for people: all from the last option on.
func coapText(b []byte) string { return fmt.Sprintf("%.60q", b[4:]) }
