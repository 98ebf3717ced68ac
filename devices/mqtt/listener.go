package mqtt

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	maxConnections = 2 * brokerClients // those before CONNECT among them
	greetingTime   = 10 * time.Second  // from a connection to its CONNECT
	acceptPause    = 100 * time.Millisecond
	// peerWriteTime is short because the library has those who publish to a
	// client wait for it.
	peerWriteTime = 2 * time.Second
)

// A listener accepts the broker's connections. The library's own gives up for
// ever when the process has no file descriptor left for a moment, waits
// without limit for a CONNECT, and cannot be closed while it does.
type listener struct {
	net.Listener
	sink   devices.Sink
	failed chan error // why no more connections are accepted

	mu      sync.Mutex
	closed  bool
	peers   map[*peer]bool
	serving sync.WaitGroup // Serve, and a goroutine for each peer
}

func newListener(l net.Listener, sink devices.Sink) *listener {
	own := &listener{Listener: l, sink: sink, failed: make(chan error, 1), peers: make(map[*peer]bool)}
	own.serving.Add(1)
	return own
}

// ID implements [listeners.Listener].
func (l *listener) ID() string { return "tcp" }

// Protocol implements [listeners.Listener].
func (l *listener) Protocol() string { return "tcp" }

// Address implements [listeners.Listener].
func (l *listener) Address() string { return l.Addr().String() }

// Init implements [listeners.Listener].
func (l *listener) Init(*slog.Logger) error { return nil }

// Serve implements [listeners.Listener].
func (l *listener) Serve(establish listeners.EstablishFn) {
	defer l.serving.Done()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			l.serve(conn, establish)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			var passing interface{ Temporary() bool }
			if !errors.As(err, &passing) || !passing.Temporary() {
				l.failed <- err
				return
			}
			time.Sleep(acceptPause) // no descriptor is free; connections wait in the kernel
		}
	}
}

func (l *listener) serve(conn net.Conn, establish listeners.EstablishFn) {
	p := &peer{Conn: conn, gone: make(chan struct{}), debts: make(chan debt, brokerInflight)}
	l.mu.Lock()
	if l.closed || len(l.peers) >= maxConnections {
		l.mu.Unlock()
		conn.Close()
		return
	}
	l.peers[p] = true
	l.serving.Add(1)
	l.mu.Unlock()
	go func() {
		defer l.serving.Done()
		defer func() {
			p.Close()
			l.mu.Lock()
			delete(l.peers, p)
			l.mu.Unlock()
			// The library has been made to panic by its input before.
			if r := recover(); r != nil {
				l.sink.Reject(conn.RemoteAddr().String(), fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
			}
		}()
		if p.SetDeadline(time.Now().Add(greetingTime)) == nil {
			establish(l.ID(), p) //nolint:errcheck // ends with the connection, for whatever reason
		}
	}()
}

// Close implements [listeners.Listener]. It returns when all connections are
// served.
func (l *listener) Close(closeClients listeners.CloseFn) {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.Listener.Close()
	closeClients(l.ID())
	l.closePeers()
	l.serving.Wait()
}

func (l *listener) closePeers() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.peers {
		p.Close()
	}
}

// A peer is a client's connection, and what the broker owes to it.
type peer struct {
	net.Conn
	debts chan debt // acknowledgements, in order
	paid  bool      // somebody is paying them; of the goroutine that reads
	gone  chan struct{}
	once  sync.Once
}

// Write implements [net.Conn]. A client that does not read is given up, and so
// is one that got half a packet: the library would go on after it.
func (p *peer) Write(b []byte) (int, error) {
	if err := p.Conn.SetWriteDeadline(time.Now().Add(peerWriteTime)); err != nil {
		return 0, err
	}
	n, err := p.Conn.Write(b)
	if err != nil {
		p.Close()
	}
	return n, err
}

// SetDeadline implements [net.Conn]. Write deadlines are Write's.
func (p *peer) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// Close implements [net.Conn].
func (p *peer) Close() error {
	p.once.Do(func() { close(p.gone) })
	return p.Conn.Close()
}
