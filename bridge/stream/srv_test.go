package stream

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/porchlight-iot/porchlight/bridge/xmpptest"
)

// nameServer gives a resolver that knows some SRV records, and that every name
// is this machine.
func nameServer(t *testing.T, records map[string]dnsmessage.SRVResource) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			q := m.Questions[0]
			head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
			switch srv, ok := records[q.Name.String()]; {
			case q.Type == dnsmessage.TypeSRV && ok:
				m.Answers = []dnsmessage.Resource{{Header: head, Body: &srv}}
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr("127.0.0.1").As4()}}}
			case q.Type == dnsmessage.TypeSRV:
				m.RCode = dnsmessage.RCodeNameError
			}
			if answer, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(answer, from) // it is asked again
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// TestFoundByName (number 13): a host that SRV records name must show the
// certificate of the domain, and one of its own is worth nothing, because
// nothing vouches for the records.
func TestFoundByName(t *testing.T) {
	const host = "host.hosting.example"
	now := time.Now()
	ofDomain, poolOfDomain := xmpptest.Certificate(t, "example.org", now.Add(-time.Hour), now.Add(time.Hour))
	ofHost, poolOfHost := xmpptest.Certificate(t, host, now.Add(-time.Hour), now.Add(time.Hour))
	for name, c := range map[string]struct {
		mode    TLSMode
		service string // the record that there is
		domain  bool   // the certificate is the domain's
	}{
		"STARTTLS":                      {StartTLS, "_xmpp-client._tcp.example.org.", true},
		"STARTTLS of the host":          {StartTLS, "_xmpp-client._tcp.example.org.", false},
		"direct TLS":                    {Direct, "_xmpps-client._tcp.example.org.", true},
		"direct TLS of the host":        {Direct, "_xmpps-client._tcp.example.org.", false},
		"direct TLS, only STARTTLS had": {Direct, "_xmpp-client._tcp.example.org.", true},
	} {
		t.Run(name, func(t *testing.T) {
			server := newSite(t)
			server.cert, server.pool = ofDomain, poolOfDomain
			if !c.domain {
				server.cert, server.pool = ofHost, poolOfHost
			}
			account := server.account()
			account.Server, account.Mode = "", c.mode
			port := server.Port()
			done := dialling(t, Config{Account: account, resolver: nameServer(t, map[string]dnsmessage.SRVResource{
				c.service: {Target: dnsmessage.MustNewName(host + "."), Port: port},
			})})
			peer := server.Accept()
			var err error
			if strings.HasPrefix(c.service, "_xmpps") {
				err = peer.TLS(&tls.Config{Certificates: []tls.Certificate{server.cert}, NextProtos: []string{"xmpp-client"}})
			} else {
				peer.Header("example.org", offerTLS)
				err = peer.StartTLS(server.cert)
			}
			if (err == nil) != c.domain {
				t.Fatalf("TLS: %v", err)
			}
			if !c.domain {
				peer.Close()
				if d := <-done; d.err == nil || strings.Contains(peer.Seen(), "<auth") {
					t.Errorf("%v, after %q", d.err, peer.Seen())
				}
				return
			}
			peer.Header("example.org", offers("SCRAM-SHA-256"))
			peer.Authenticate("pass word")
			peer.Header("example.org", offerBind)
			peer.Bind("gateway@example.org/x")
			if d := <-done; d.err != nil {
				t.Error(d.err)
			}
		})
	}
}
