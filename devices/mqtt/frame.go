package mqtt

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// maxPacket is the largest packet that is taken from a broker. The library
// allocates what a header announces, up to 256 MiB, before a byte of it came.
// Zigbee2MQTT announces all devices of a house in one message: some KiB each.
const maxPacket = 2 << 20

// The packet types that a broker sends to a client that publishes with no more
// than QoS 1 (MQTT 3.1.1 section 2.2.1).
const (
	typeConnack  = 2
	typePublish  = 3
	typePuback   = 4
	typeSuback   = 9
	typeUnsuback = 11
	typePingresp = 13
)

// A framer follows the packets on a stream of bytes and refuses those that the
// library cannot bear. It knows nothing of connections, so that it can be
// tested on any bytes. Its zero value is at the beginning of a stream.
type framer struct {
	// filters is how many filters the SUBSCRIBE under way has; its answer
	// must have as many codes (MQTT-3.8.4-5), or the library would index
	// beyond its own. Set from another goroutine; an answer sets it to 0.
	filters atomic.Int32
	leaving atomic.Bool // an UNSUBSCRIBE is under way; as filters
	// published is how many PUBLISH with QoS 1 are not yet answered; as filters.
	published atomic.Int32

	// scouts is set, before the first byte, on the connection of a scout. It
	// hears what is meant for others, so what is too large is no fault of the
	// broker; nobody waits for it.
	scouts bool
	skip   bool // the packet is not to be handed out

	connected bool // the CONNACK came
	state     framerState
	header    byte // first byte of the packet
	length    int  // as far as it was read, then what is left of the packet
	shift     int  // bits of the length that were read
}

type framerState uint8

const (
	atHeader framerState = iota
	inLength
	inBody
)

// feed takes the next bytes, and says whether the stream may go on.
func (f *framer) feed(b []byte) error {
	for len(b) > 0 {
		switch f.state {
		case atHeader:
			f.header, f.length, f.shift, f.state = b[0], 0, 0, inLength
			b = b[1:]
		case inLength:
			f.length |= int(b[0]&0x7f) << f.shift
			f.shift += 7
			more := b[0]&0x80 != 0
			b = b[1:]
			if more && f.shift == 4*7 { // MQTT 3.1.1 section 2.2.3
				return errors.New("the broker sends a length of more than four bytes")
			}
			if more {
				continue
			}
			if err := f.check(); err != nil {
				return err
			}
			f.state = inBody
			if f.length == 0 {
				f.state = atHeader
			}
		case inBody:
			n := min(f.length, len(b))
			f.length -= n
			b = b[n:]
			if f.length == 0 {
				f.state = atHeader
			}
		}
	}
	return nil
}

// check judges a packet by its fixed header.
func (f *framer) check() error {
	kind, qos := f.header>>4, f.header>>1&3
	most := byte(1)
	if f.scouts {
		most = 0
	}
	f.skip = f.scouts && f.connected && kind == typePublish && qos == 0 && f.length > maxPacket
	switch {
	case f.skip:
	case f.length > maxPacket:
		return fmt.Errorf("the broker sends a packet of %d bytes, at most %d are taken", f.length, maxPacket)
	case f.connected == (kind == typeConnack): // MQTT-3.2.0-1, and once
		return fmt.Errorf("the broker sends a packet of type %d where that cannot be", kind)
	case kind == typeConnack:
		f.connected = true
	case kind == typePublish:
		if qos > most { // MQTT-3.8.4-6: no higher than what was asked for
			return fmt.Errorf("the broker sends with QoS %d, subscribed is %d", qos, most)
		}
	case kind == typeSuback:
		if want := int(f.filters.Swap(0)); want == 0 || f.length != 2+want {
			return fmt.Errorf("the broker answers the subscription of %d filters with %d codes", want, f.length-2)
		}
	case kind == typePuback && f.length == 2 && f.published.Add(-1) >= 0:
	case kind == typeUnsuback && f.length == 2 && f.leaving.Swap(false):
	case kind == typePingresp:
	default:
		return fmt.Errorf("the broker sends a packet of type %d, which answers nothing", kind)
	}
	return nil
}

// A framedConn gives the library nothing of a packet that it cannot bear, and
// lets no write wait for ever: the library sets deadlines for publications
// only, and not for pings and acknowledgements.
type framedConn struct {
	net.Conn
	framer framer
	buffer *bufio.Reader // the library reads headers byte by byte
	header []byte        // of the next packet, whole or in part
	ready  []byte        // of it, to be handed out
	fault  error         // sticky
}

func newFramedConn(conn net.Conn) *framedConn {
	return &framedConn{Conn: conn, buffer: bufio.NewReaderSize(conn, 4096)}
}

// Read implements [net.Conn]. Bytes are judged before they are handed out, so
// a header never reaches the library before its verdict.
func (c *framedConn) Read(b []byte) (int, error) {
	for len(c.ready) == 0 && len(b) > 0 {
		switch {
		case c.fault != nil:
			return 0, c.fault
		case c.framer.state == inBody:
			n, err := c.buffer.Read(b[:min(len(b), c.framer.length)])
			c.fault = c.framer.feed(b[:n])
			if n > 0 || err != nil {
				return n, err
			}
		default:
			next, err := c.buffer.ReadByte()
			if err != nil {
				return 0, err
			}
			if c.fault = c.framer.feed([]byte{next}); c.fault != nil {
				return 0, c.fault
			}
			c.header = append(c.header, next)
			if c.framer.skip {
				if _, err := c.buffer.Discard(c.framer.length); err != nil {
					return 0, err
				}
				c.framer.state, c.framer.skip, c.header = atHeader, false, c.header[:0]
			} else if c.framer.state == inBody || c.framer.state == atHeader {
				c.ready, c.header = c.header, nil
			}
		}
	}
	n := copy(b, c.ready)
	c.ready = c.ready[n:]
	return n, nil
}

// Write implements [net.Conn].
func (c *framedConn) Write(b []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// SetDeadline implements [net.Conn]. Write deadlines are Write's.
func (c *framedConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetWriteDeadline implements [net.Conn].
func (c *framedConn) SetWriteDeadline(time.Time) error { return nil }
