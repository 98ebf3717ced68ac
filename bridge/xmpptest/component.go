package xmpptest

import (
	"encoding/xml"
	"fmt"
	"net"
	"sync"
	"testing"
)

// A Script answers one stanza of a component. It may be called from the
// goroutines of several sessions at a time.
type Script func(p *Peer, name string, s Asked)

// Asked is a stanza that the component sent.
type Asked struct {
	ID    string `xml:"id,attr"`
	From  string `xml:"from,attr"`
	To    string `xml:"to,attr"`
	Type  string `xml:"type,attr"`
	Inner string `xml:",innerxml"`
}

// Request reports whether the stanza wants an answer.
func (s Asked) Request(name string) bool { return name == "iq" && (s.Type == "get" || s.Type == "set") }

// A Peer is the server's end of one session.
type Peer struct {
	Conn net.Conn
	Gone chan struct{} // is closed when the session ends
	mu   sync.Mutex
}

// Write sends XML. It may be called from any goroutine; an error shows in what
// does not arrive.
func (p *Peer) Write(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.Conn, format, args...)
}

// Result answers with an element, or with none.
func (p *Peer) Result(s Asked, inner string) {
	p.Write("<iq type='result' id='%s' from='%s' to='%s'>%s</iq>", s.ID, s.To, s.From, inner)
}

// Refuse answers with an error.
func (p *Peer) Refuse(s Asked, kind, conditions string) {
	p.Write("<iq type='error' id='%s' from='%s' to='%s'><error type='%s'>%s</error></iq>", s.ID, s.To, s.From, kind, conditions)
}

// Serve runs a server for a component (XEP-0114) until the test ends, and gives
// its address. Any secret will do.
func Serve(t testing.TB, answer Script) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() { session(conn, answer) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return listener.Addr().String()
}

func session(conn net.Conn, answer Script) {
	defer conn.Close()
	p := &Peer{Conn: conn, Gone: make(chan struct{})}
	defer close(p.Gone)
	d := xml.NewDecoder(conn)
	for {
		token, err := d.Token()
		if err != nil {
			return
		}
		if _, over := token.(xml.EndElement); over {
			p.Write("</stream:stream>")
			return
		}
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Local == "stream" {
			p.Write("<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' xmlns:stream='http://etherx.jabber.org/streams' id='x' from='pi.example.org'>")
			continue
		}
		var s Asked
		if err := d.DecodeElement(&s, &start); err != nil {
			return
		}
		if start.Name.Local == "handshake" {
			p.Write("<handshake/>")
			continue
		}
		answer(p, start.Name.Local, s)
	}
}
