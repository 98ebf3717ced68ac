package stream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
)

// TestLostAnswers (number 1): what waits for an answer when the session ends
// learns that nothing is known of it.
func TestLostAnswers(t *testing.T) {
	s, c, _ := asComponent(t)
	done := make(chan error, 1)
	go func() {
		_, err := s.IQ(t.Context(), IQ{Type: stanza.SetIQ, From: jid.MustParse(testDomain), To: jid.MustParse("b.example"), Payload: []byte("<a xmlns='b'/>")})
		done <- err
	}()
	c.Expect("</iq>")
	c.Close()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("the request ends with %v", err)
	}
	<-s.Done()
	if err := s.Err(); !errors.Is(err, io.EOF) || Delay(err) != Transient || !strings.Contains(err.Error(), "the server closed the connection") {
		t.Errorf("the session ends with %v", err)
	}
}

// asking asks b.example, who is given time until cancel is called.
func asking(t *testing.T, s *Session) (cancel func(), done <-chan error) {
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := s.IQ(ctx, IQ{Type: stanza.GetIQ, From: jid.MustParse(testDomain), To: jid.MustParse("b.example"), Payload: []byte("<a xmlns='b'/>")})
		result <- err
	}()
	return cancel, result
}

// TestAnswersNobodyWaitsFor (number 6) are dropped, and stop nothing.
func TestAnswersNobodyWaitsFor(t *testing.T) {
	s, c, h := asComponent(t)
	cancel, done := asking(t, s)
	id := between(c.Expect("</iq>"), `id="`, `"`)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ends with %v", err)
	}
	answer := "<iq type='result' id='" + id + "' from='b.example' to='" + testDomain + "'><big xmlns='b'>" + strings.Repeat("x", 1000) + "</big></iq>"
	c.Send(strings.Repeat(answer, 200))
	alive(t, c, h)
	if got := s.Dropped(); got != 200 {
		t.Errorf("%d were dropped, want 200", got)
	}
}

// TestRequestFlood (number 6): who asks and does not read the answers neither
// stops the reading nor fills the memory.
func TestRequestFlood(t *testing.T) {
	s, c, h := asComponent(t)
	if err := s.hold(t.Context()); err != nil { // nothing can be sent
		t.Fatal(err)
	}
	var flood strings.Builder
	for i := range 10 * maxReplies {
		fmt.Fprintf(&flood, "<iq type='get' id='f%d' from='a@b.example' to='x@porch.example.org'><a xmlns='b'/></iq>", i)
	}
	c.Send(flood.String())
	alive(t, c, h)
	if waiting := len(s.replies); waiting > maxReplies {
		t.Errorf("%d answers wait", waiting)
	}
	if s.Dropped() == 0 {
		t.Error("what got no answer was not counted")
	}
	s.release()
	c.Expect("service-unavailable")
}

// TestPing finds a server that says nothing any more.
func TestPing(t *testing.T) {
	cfg := func(server *xmpptest.Server) Config {
		return Config{
			Component: &Component{Domain: testDomain, Server: server.Addr(), Secret: "x"},
			PingTo:    jid.MustParse("pubsub.example.org"),
			PingEvery: time.Millisecond,
		}
	}
	t.Run("answered", func(t *testing.T) {
		server := xmpptest.Listen(t)
		s, c := admit(t, server, cfg(server))
		for range 3 { // any answer will do
			ping := c.Expect("</iq>")
			if !strings.Contains(ping, `from="`+testDomain+`"`) || !strings.Contains(ping, `to="pubsub.example.org"`) || !strings.Contains(ping, "urn:xmpp:ping") {
				t.Errorf("asks by %s", ping)
			}
			c.Send("<iq type='error' id='" + between(ping, `id="`, `"`) + "' from='pubsub.example.org' to='" + testDomain + "'><error type='cancel'><service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>")
		}
		go io.Copy(io.Discard, c) // what it still asks
		if err := s.Close(); err != nil || s.Err() != nil {
			t.Errorf("%v, %v", err, s.Err())
		}
	})
	t.Run("late, while other things come", func(t *testing.T) {
		server := xmpptest.Listen(t)
		config := cfg(server)
		config.PingTimeout = 2 * time.Second
		s, c := admit(t, server, config)
		var talking sync.WaitGroup
		talking.Go(func() {
			var err error
			for tick := time.Tick(10 * time.Millisecond); err == nil; <-tick {
				_, err = io.WriteString(c, "<message from='anna@example.org' to='"+testDomain+"'/>")
			}
		})
		for range 2 { // the second is asked after the first was given up
			c.Expect("urn:xmpp:ping")
		}
		if err := s.Err(); err != nil {
			t.Error(err)
		}
		go io.Copy(io.Discard, c)
		s.Close()
		talking.Wait()
	})
	t.Run("unanswered", func(t *testing.T) {
		server := xmpptest.Listen(t)
		config := cfg(server)
		config.PingTimeout = time.Millisecond
		s, _ := admit(t, server, config)
		select {
		case <-s.Done():
			if err := s.Err(); !errors.Is(err, context.DeadlineExceeded) || Delay(err) != Transient || !strings.Contains(err.Error(), "does not answer a ping") {
				t.Errorf("%v", err)
			}
		case <-time.After(patience):
			t.Error("the session goes on")
		}
	})
}

// TestConflict (number 15) is what a server says whose other connection of
// ours is half open; it is left alone for a minute.
func TestConflict(t *testing.T) {
	server := xmpptest.Listen(t)
	done := dialling(t, Config{Component: &Component{Domain: testDomain, Server: server.Addr(), Secret: "x"}})
	c := server.Accept()
	c.Expect(">")
	c.Send("<stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:component:accept' id='1'>")
	c.Expect("</handshake>")
	c.Send("<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>Component already connected</text></stream:error></stream:stream>")
	if d := <-done; Delay(d.err) != Conflict {
		t.Errorf("class %d: %v", Delay(d.err), d.err)
	}
}

func TestBackoff(t *testing.T) {
	var b Backoff
	for _, least := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		if got := b.Next(Transient, 0); got < least*time.Second || got > least*time.Second*3/2 {
			t.Errorf("waits %v, want about %d s", got, least)
		}
	}
	if got := b.Next(Transient, time.Hour); got > 2*time.Second {
		t.Errorf("after a good session it waits %v", got)
	}
	if got := b.Next(Refused, 0); got < 5*time.Minute {
		t.Errorf("when refused it waits %v", got)
	}
}

// TestComponentTLS wraps the component's connection, where it is not on this
// machine (number 14).
func TestComponentTLS(t *testing.T) {
	cert, pool := xmpptest.Certificate(t, "example.org", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	for name, c := range map[string]struct {
		name  string
		roots *x509.CertPool
		ok    bool
	}{
		"good":           {"example.org", pool, true},
		"another's name": {"other.example", pool, false},
		"the host's":     {"", pool, false}, // 127.0.0.1
		"not of ours":    {"example.org", x509.NewCertPool(), false},
	} {
		t.Run(name, func(t *testing.T) {
			server := xmpptest.Listen(t)
			done := dialling(t, Config{Component: &Component{
				Domain: testDomain, Server: server.Addr(), Secret: "x", TLS: &tls.Config{ServerName: c.name, RootCAs: c.roots},
			}})
			peer := server.Accept()
			if peer.TLS(&tls.Config{Certificates: []tls.Certificate{cert}}) == nil && c.ok {
				peer.Component(testDomain)
			}
			d := <-done
			if (d.err == nil) != c.ok {
				t.Errorf("%v", d.err)
			}
			if !c.ok && (Delay(d.err) != Conflict || peer.Seen() != "") {
				t.Errorf("class %d, sent %q", Delay(d.err), peer.Seen())
			}
		})
	}
}

// TestNames: what Unmarshal gives is what was sent, in its namespaces.
func TestNames(t *testing.T) {
	_, c, h := asComponent(t)
	c.Send("<message id='1' from='a@b.example' to='x@porch.example.org' xml:lang='de'>" +
		"<a:outer xmlns:a='urn:a'><inner xmlns=''>1</inner><inner xmlns='urn:b' a:at='2'>&lt;2&gt;</inner></a:outer></message>")
	st := h.await(t, "1")
	type inner struct {
		XMLName xml.Name
		At      string `xml:"urn:a at,attr"`
		Text    string `xml:",chardata"`
	}
	var got struct {
		From  string `xml:"from,attr"`
		Outer struct {
			Inner []inner `xml:",any"`
		} `xml:"urn:a outer"`
	}
	if err := st.Unmarshal(&got); err != nil {
		t.Fatal(err)
	}
	want := []inner{{xml.Name{Local: "inner"}, "", "1"}, {xml.Name{Space: "urn:b", Local: "inner"}, "2", "<2>"}}
	if got.From != "a@b.example" || st.Lang != "de" || st.Child.Space != "urn:a" || !slices.Equal(got.Outer.Inner, want) {
		t.Errorf("got %+v of %s", got, st.Inner)
	}
}
