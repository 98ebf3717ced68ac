// Package link is a TCP connection that fails on demand: a proxy before a
// server.
package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A Flow is how the bytes of one direction go.
type Flow struct {
	Held bool // they wait
	Rate int  // bytes a second; 0 is no limit
}

// A Condition is how a link is.
type Condition struct {
	Refuse bool // new connections are reset
	Up     Flow // towards the server
	Down   Flow
}

// A Link stands before one server. Its methods may be called from any
// goroutine.
type Link struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu        sync.Mutex
	condition Condition
	changed   chan struct{} // closed when condition changes
	pairs     map[*pair]bool
	closed    bool
}

// A pair is one connection through the link.
type pair struct {
	client, server *net.TCPConn
	dead           bool // forwards nothing any more
	over           chan struct{}
	once           sync.Once
}

// end closes both sides with a reset: nobody is told that all had been sent.
func (p *pair) end() {
	p.once.Do(func() {
		close(p.over)
		for _, c := range []*net.TCPConn{p.client, p.server} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	})
}

// New makes a link on a free port of this machine to the server at target,
// which need not be there yet.
func New(target string) (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("cannot make a link to %s: %w", target, err)
	}
	link := &Link{listener: l, target: target, changed: make(chan struct{}), pairs: make(map[*pair]bool)}
	link.running.Go(link.accept)
	return link, nil
}

// Addr is what to connect to instead of the server.
func (l *Link) Addr() string { return l.listener.Addr().String() }

// Set makes the link so from now on; the zero Condition is a good link.
func (l *Link) Set(c Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.condition = c
	close(l.changed)
	l.changed = make(chan struct{})
}

// Reset breaks the connections that there are.
func (l *Link) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		p.end()
	}
}

// Forget has the connections that there are half open for ever: what either
// side sends is taken and goes nowhere, and neither is told when the other
// goes.
func (l *Link) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		p.dead = true
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Close ends the link and its connections.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.listener.Close()
	l.Reset()
	l.running.Wait()
}

func (l *Link) accept() {
	for {
		c, err := l.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue
		}
		l.running.Go(func() { l.serve(c.(*net.TCPConn)) })
	}
}

func (l *Link) serve(client *net.TCPConn) {
	p := &pair{client: client, over: make(chan struct{})}
	l.mu.Lock()
	refuse := l.condition.Refuse || l.closed
	l.mu.Unlock()
	server, err := net.DialTimeout("tcp", l.target, time.Second)
	if err != nil || refuse {
		if err == nil {
			server.Close()
		}
		_ = client.SetLinger(0)
		_ = client.Close()
		return
	}
	p.server = server.(*net.TCPConn)
	l.mu.Lock()
	l.pairs[p] = true
	if l.closed || l.condition.Refuse {
		p.end()
	}
	l.mu.Unlock()

	var both sync.WaitGroup
	both.Go(func() { l.pump(p, p.server, p.client, func(c Condition) Flow { return c.Up }) })
	both.Go(func() { l.pump(p, p.client, p.server, func(c Condition) Flow { return c.Down }) })
	both.Wait()
	l.mu.Lock()
	delete(l.pairs, p)
	l.mu.Unlock()
	p.end()
}

// pump carries one direction until either end is gone.
func (l *Link) pump(p *pair, to, from *net.TCPConn, which func(Condition) Flow) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		dead := !l.pass(p, which, n)
		if dead && err == nil {
			continue
		}
		if err == nil {
			if _, err = to.Write(buf[:n]); err == nil {
				continue
			}
		}
		switch {
		case dead:
			_ = from.Close() // and the other end does not know
		case errors.Is(err, io.EOF) && to.CloseWrite() == nil:
			// The other side may still have something to say.
		default:
			p.end()
		}
		return
	}
}

// pass waits until n bytes may go on. It reports false where they may not any
// more.
func (l *Link) pass(p *pair, which func(Condition) Flow, n int) bool {
	for {
		l.mu.Lock()
		flow, changed, dead := which(l.condition), l.changed, p.dead
		l.mu.Unlock()
		switch {
		case dead:
			return false
		case flow.Held:
			select {
			case <-changed:
			case <-p.over:
				return false
			}
			continue
		case flow.Rate > 0:
			select {
			case <-time.After(time.Duration(n) * time.Second / time.Duration(flow.Rate)):
			case <-p.over:
				return false
			}
		}
		return true
	}
}
