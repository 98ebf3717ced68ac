package stream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"mellium.im/xmpp/dial"
)

const (
	// maxUnread is what the server may send without one stanza coming to an
	// end. Servers let a stranger send half a megabyte from afar, and what they
	// escape grows to six times that: nobody is to end our session by it.
	maxUnread = 4 << 20
	// writeTimeout is for one piece of a stanza: a server may be as slow as it
	// likes, as long as it takes something. ejabberd as it is shipped takes 3 kB
	// a second from a client, in gulps, with up to 40 s of nothing between them.
	writeTimeout = time.Minute
	writePiece   = 4 << 10
	// maxUnsent is how much may wait in the system's buffer that was not yet
	// sent: what waits there cannot be overtaken, and is lost with the
	// connection.
	maxUnsent = 16 << 10
	// unansweredFor is how long sent data may stay unacknowledged by TCP: a
	// half-open connection is found before the user wonders.
	unansweredFor = 30 * time.Second
)

var errTooLong = fmt.Errorf("the server sent more than %d bytes without ending a stanza", maxUnread)

// A conn is the connection as the library sees it. It hands out single bytes,
// so that the library's decoder takes none that come after the negotiation;
// and it bounds what the decoder takes in one piece.
type conn struct {
	net.Conn
	in     *bufio.Reader
	unread int   // bytes since the last call of settle
	under  *conn // that carries this one, with STARTTLS; else nil
}

func newConn(c net.Conn) *conn { return &conn{Conn: c, in: bufio.NewReader(c)} }

// Read is called by one goroutine at a time, like ReadByte and settle.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	return n, c.count(n, err)
}

// ReadByte implements [io.ByteReader].
func (c *conn) ReadByte() (byte, error) {
	b, err := c.in.ReadByte()
	if err != nil {
		return 0, err
	}
	return b, c.count(1, nil)
}

func (c *conn) count(n int, err error) error {
	if c.unread += n; c.unread > maxUnread {
		return errTooLong
	}
	return err
}

// settle says that a stanza ended.
func (c *conn) settle() {
	c.unread = 0
	if c.under != nil {
		c.under.settle()
	}
}

// send writes b, each piece of it in time.
func (c *conn) send(b []byte, each time.Duration) error {
	for len(b) > 0 {
		n := min(len(b), writePiece)
		if err := c.SetWriteDeadline(time.Now().Add(each)); err != nil {
			return err
		}
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// ConnectionState is what the library asks for channel binding.
func (c *conn) ConnectionState() tls.ConnectionState {
	if t, ok := c.Conn.(*tls.Conn); ok {
		return t.ConnectionState()
	}
	return tls.ConnectionState{}
}

// tune sets what a connection needs that may be cut without a word.
func tune(_, _ string, raw syscall.RawConn) error {
	var err error
	outer := raw.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unansweredFor.Milliseconds())),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent))
	})
	return errors.Join(outer, err)
}

// dialer is used for all connections.
func dialer() net.Dialer {
	return net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second, Control: tune}
}

// connect opens the connection for a config. direct reports whether TLS is
// spoken on it from the first byte.
func connect(ctx context.Context, cfg Config) (c net.Conn, direct bool, err error) {
	d := dialer()
	d.Resolver = cfg.resolver
	if own := cfg.Component; own != nil {
		c, err = d.DialContext(ctx, "tcp", own.Server)
		if err != nil || own.TLS == nil {
			return c, false, err
		}
		settings := own.TLS.Clone()
		if settings.ServerName == "" {
			settings.ServerName, _, _ = net.SplitHostPort(own.Server)
		}
		settings.MinVersion = max(settings.MinVersion, tls.VersionTLS12)
		c, err = secure(ctx, c, settings)
		return c, true, err
	}
	own := cfg.Account
	switch {
	case own.Server != "" && own.Mode == Direct:
		if c, err = d.DialContext(ctx, "tcp", own.Server); err != nil {
			return nil, false, err
		}
		c, err = secure(ctx, c, own.directTLS())
		return c, true, err
	case own.Server != "":
		if own.Mode == Off && !loopback(own.Server) {
			return nil, false, fmt.Errorf("TLS is off, and %s is not this machine", own.Server)
		}
		c, err = d.DialContext(ctx, "tcp", own.Server)
		return c, false, err
	case own.Mode == Off:
		return nil, false, errors.New("TLS is off, and no server on this machine is named")
	}
	found := dial.Dialer{Dialer: d, TLSConfig: own.directTLS()}
	if own.Mode == StartTLS {
		found.NoTLS = true
	}
	c, err = found.Dial(ctx, "tcp", own.JID)
	_, direct = c.(*tls.Conn)
	return c, direct, err
}

// settings are the account's TLS settings, for the JID's domain whatever the
// host is called (RFC 6120 section 13.7.2.1).
func (a *Account) settings() *tls.Config {
	settings := &tls.Config{}
	if a.TLS != nil {
		settings = a.TLS.Clone()
	}
	settings.ServerName = a.JID.Domainpart()
	settings.MinVersion = max(settings.MinVersion, tls.VersionTLS12)
	return settings
}

func (a *Account) directTLS() *tls.Config {
	settings := a.settings()
	settings.NextProtos = []string{"xmpp-client"}
	return settings
}

// secure makes the handshake, so that its error is told as such.
func secure(ctx context.Context, c net.Conn, settings *tls.Config) (net.Conn, error) {
	t := tls.Client(c, settings)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return t, nil
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
