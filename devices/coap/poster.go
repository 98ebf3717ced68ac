package coap

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/pkg/runner/periodic"
	"github.com/plgd-dev/go-coap/v3/udp"
	"github.com/plgd-dev/go-coap/v3/udp/client"
)

// A Code is the code of an answer (RFC 7252 section 12.1.2).
type Code uint8

// Changed says that what was posted is safe.
const Changed Code = 2<<5 | 4

// String gives the code as the RFC writes it: 2.04.
func (c Code) String() string { return fmt.Sprintf("%d.%02d", c>>5, c&31) }

// A Poster is a simulated device that posts readings. It is one endpoint, with
// a port of its own.
type Poster struct {
	conn *client.Conn
	stop chan struct{}
}

// Dial makes a poster to the server at addr, host:port. Nothing is sent yet;
// ctx bounds the look-up of the name.
func Dial(ctx context.Context, addr string) (*Poster, error) {
	var dialer net.Dialer
	socket, err := dialer.DialContext(ctx, "udp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot reach CoAP server %s: %w", addr, err)
	}
	stop := make(chan struct{})
	conn := udp.Client(socket.(*net.UDPConn), // what a network of "udp" gives
		options.WithCloseSocket(),
		options.WithErrors(func(error) {}), // Post returns what matters
		options.WithTransmission(1, ackTimeout, maxRetransmit),
		options.WithMaxMessageSize(maxMessage),
		options.WithBlockwise(true, blockwise.SZX1024, maxTransmitWait),
		// The default looks for what to repeat every 4 seconds only.
		options.WithPeriodicRunner(periodic.New(stop, ackTimeout/8)),
	)
	return &Poster{conn: conn, stop: stop}, nil
}

// Post posts a payload to a path, /d/<device>, as a confirmable request, which
// is repeated until it is acknowledged. It waits for the answer until ctx
// ends, and no longer than RFC 7252 lets a device wait (93 s). An answer that
// refuses is not an error. contentFormat may be [NoFormat].
func (p *Poster) Post(ctx context.Context, path string, contentFormat int, payload []byte) (Code, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTransmitWait)
	defer cancel()
	format := message.MediaType(max(contentFormat, 0))
	req, err := p.conn.NewPostRequest(ctx, path, format, bytes.NewReader(payload))
	if err != nil {
		return 0, fmt.Errorf("cannot post to %s: %w", path, err)
	}
	defer p.conn.ReleaseMessage(req)
	if contentFormat < 0 {
		req.Remove(message.ContentFormat)
	}
	answer, err := p.conn.Do(req)
	if err != nil {
		return 0, fmt.Errorf("cannot post to %s: %w", path, err)
	}
	defer p.conn.ReleaseMessage(answer)
	return Code(answer.Code()), nil
}

// Close gives the port back and waits for what the poster has running.
func (p *Poster) Close() error {
	close(p.stop)
	err := p.conn.Close()
	select {
	case <-p.conn.Done():
	case <-time.After(ackTimeout): // the read ends with the socket
	}
	if err != nil {
		return fmt.Errorf("cannot close the poster: %w", err)
	}
	return nil
}
