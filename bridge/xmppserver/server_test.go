package xmppserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/sasl"
	"mellium.im/xmpp"
	"mellium.im/xmpp/component"
	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"
)

const (
	domain = "pi-test.localhost"
	secret = `s"e'c\ret`
)

var (
	kinds = []Kind{Prosody, Ejabberd}
	users = map[string]string{"gateway": "first", "anna-m.x": `pa ss"word'\é`}
)

func each(t *testing.T, test func(t *testing.T, kind Kind)) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			test(t, kind)
		})
	}
}

func start(t *testing.T, kind Kind, opts Options) *Server {
	t.Helper()
	opts.Dir = t.TempDir()
	s, err := Start(t.Context(), kind, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func roots(t *testing.T, s *Server) *x509.CertPool {
	t.Helper()
	pem, err := os.ReadFile(s.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in the CA file")
	}
	return pool
}

func connect(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// login opens an account's session: STARTTLS, SCRAM, bind. Without channel
// binding: ejabberd 23.01 offers it under TLS 1.3, and then does not know
// tls-exporter (RFC 9266).
func login(t *testing.T, s *Server, user, password string, mechanism sasl.Mechanism) (*xmpp.Session, error) {
	t.Helper()
	addr := jid.MustParse(user + "@" + s.Domain())
	conn := connect(t, s.C2S())
	session, err := xmpp.NewClientSession(t.Context(), addr, conn,
		xmpp.StartTLS(&tls.Config{RootCAs: roots(t, s), ServerName: s.Domain()}),
		xmpp.SASL("", password, mechanism),
		xmpp.BindResource())
	if err != nil {
		return nil, err
	}
	serve(t, session, conn)
	return session, nil
}

// attach opens the component's session.
func attach(t *testing.T, s *Server, secret string) (*xmpp.Session, error) {
	t.Helper()
	conn := connect(t, s.ComponentAddr())
	session, err := component.NewSession(t.Context(), jid.MustParse(domain), []byte(secret), conn)
	if err != nil {
		return nil, err
	}
	serve(t, session, conn)
	return session, nil
}

func serve(t *testing.T, session *xmpp.Session, conn net.Conn) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() { _ = session.Serve(nil) }) // ends with the connection
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
}

// ask sends an IQ to the PubSub service and returns its error, if it answers
// with one.
func ask(t *testing.T, s *Server, session *xmpp.Session, from string, kind stanza.IQType, payload string) error {
	t.Helper()
	iq := stanza.IQ{Type: kind, To: jid.MustParse(s.PubSub())}
	if from != "" {
		iq.From = jid.MustParse(from)
	}
	return session.UnmarshalIQElement(t.Context(), xml.NewDecoder(strings.NewReader(payload)), iq, nil)
}

const (
	createNode  = `<pubsub xmlns='http://jabber.org/protocol/pubsub'><create node='n'/></pubsub>`
	publishItem = `<pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='n'><item id='1'><r xmlns='urn:test'/></item></publish></pubsub>`
	fetchItems  = `<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='n'/></pubsub>`
)

func TestAccounts(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		s := start(t, kind, Options{Users: users})
		if _, err := login(t, s, "anna-m.x", "wrong", sasl.ScramSha1); err == nil {
			t.Error("a wrong password is accepted")
		}
		anna, err := login(t, s, "anna-m.x", users["anna-m.x"], sasl.ScramSha1)
		if err != nil {
			t.Fatalf("login: %v", err)
		}
		if err := ask(t, s, anna, "", stanza.SetIQ, createNode); err == nil {
			t.Error("anybody may create nodes")
		}
		gateway, err := login(t, s, "gateway", users["gateway"], sasl.ScramSha1)
		if err != nil {
			t.Fatalf("login: %v", err)
		}
		if err := ask(t, s, gateway, "", stanza.SetIQ, createNode); err != nil {
			t.Errorf("the gateway's account may not create a node: %v", err)
		}
	})
}

func TestSCRAM256(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		s := start(t, kind, Options{Users: users, SCRAM256: true, AllowPlaintext: true})
		if _, err := login(t, s, "anna-m.x", users["anna-m.x"], sasl.ScramSha256); err != nil {
			t.Errorf("login: %v", err)
		}
		if offer := features(t, s); strings.Contains(offer, "SHA-1<") {
			t.Errorf("SCRAM-SHA-1 is offered too: %s", offer)
		}
	})
}

func TestDirectTLS(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		s := start(t, kind, Options{})
		conn, err := tls.Dial("tcp", s.DirectTLS(), &tls.Config{RootCAs: roots(t, s), ServerName: s.Domain()})
		if err != nil {
			t.Fatalf("with our authority: %v", err)
		}
		conn.Close()
		conn, err = tls.Dial("tcp", s.DirectTLS(), &tls.Config{ServerName: s.Domain()})
		if err == nil {
			conn.Close()
			t.Fatal("accepted without our authority")
		}
	})
}

// features are what the server offers a client before TLS.
func features(t *testing.T, s *Server) string {
	t.Helper()
	conn := connect(t, s.C2S())
	fmt.Fprintf(conn, "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='%s' version='1.0'>", s.Domain())
	var got strings.Builder
	for buf := make([]byte, 1024); !strings.Contains(got.String(), "</stream:features>"); {
		n, err := conn.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v after %s", err, &got)
		}
	}
	return got.String()
}

func TestPlaintextOnlyOnRequest(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		for _, allow := range []bool{false, true} {
			offer := features(t, start(t, kind, Options{AllowPlaintext: allow}))
			if got := strings.Contains(offer, "SCRAM-SHA-1"); got != allow {
				t.Errorf("AllowPlaintext %v: the server offers %s", allow, offer)
			}
			if strings.Contains(offer, ">PLAIN<") {
				t.Errorf("the server offers PLAIN: %s", offer)
			}
		}
	})
}

// TestForClients asks a Prosody for what clients of people need beside the
// rest: the mechanism PLAIN, and a WebSocket (RFC 7395).
func TestForClients(t *testing.T) {
	t.Parallel()
	s := start(t, Prosody, Options{Users: users, Plain: true, WebSocket: true})
	if _, err := login(t, s, "gateway", users["gateway"], sasl.Plain); err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequest(http.MethodGet, "http"+strings.TrimPrefix(s.WebSocket(), "ws"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Protocol": "xmpp",
		"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
	} {
		request.Header.Set(name, value)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("the WebSocket answers %s", answer.Status)
	}
	if _, err := Start(t.Context(), Ejabberd, Options{Dir: t.TempDir(), WebSocket: true}); err == nil {
		t.Error("ejabberd takes an option that is Prosody's")
	}
}

func TestComponent(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		s := start(t, kind, Options{Component: domain, Secret: secret})
		if _, err := attach(t, s, "wrong"); err == nil {
			t.Error("a wrong secret is accepted")
		}
		session, err := attach(t, s, secret)
		if err != nil {
			t.Fatalf("handshake: %v", err)
		}
		if err := ask(t, s, session, "gateway@"+domain, stanza.SetIQ, createNode); err != nil {
			t.Errorf("the component may not create a node: %v", err)
		}
	})
}

func TestRestartKeepsPortsAndData(t *testing.T) {
	for _, c := range []struct {
		kind    Kind
		storage string
		forgets bool
	}{
		{Prosody, "", false},
		{Prosody, "sql", false},
		{Prosody, "memory", true},
		{Ejabberd, "", false},
	} {
		t.Run(strings.TrimSuffix(string(c.kind)+"-"+c.storage, "-"), func(t *testing.T) {
			t.Parallel()
			s := start(t, c.kind, Options{Storage: c.storage, Users: users, MaxItems: 20000})
			gateway, err := login(t, s, "gateway", users["gateway"], sasl.ScramSha1)
			if err != nil {
				t.Fatal(err)
			}
			for _, payload := range []string{createNode, publishItem} {
				if err := ask(t, s, gateway, "", stanza.SetIQ, payload); err != nil {
					t.Fatal(err)
				}
			}
			// The kill comes last: what ejabberd accepted in the last second
			// before one may be gone.
			for _, how := range []struct {
				name string
				end  func() error
			}{
				{"stop", s.Stop},
				{"restart", func() error { return nil }},
				{"kill", s.Kill},
			} {
				name, end := how.name, how.end
				before, pid := s.C2S(), s.PID()
				if err := end(); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if err := s.Restart(t.Context()); err != nil {
					t.Fatalf("restart after %s: %v", name, err)
				}
				if s.C2S() != before || s.PID() == pid {
					t.Errorf("after %s: port %s, process %d; before %s, %d", name, s.C2S(), s.PID(), before, pid)
				}
				gateway, err := login(t, s, "gateway", users["gateway"], sasl.ScramSha1)
				if err != nil {
					t.Fatalf("after %s: %v", name, err)
				}
				err = ask(t, s, gateway, "", stanza.GetIQ, fetchItems)
				if forgets := err != nil; forgets != c.forgets {
					t.Errorf("after %s: %v; expected the node to be forgotten: %v", name, err, c.forgets)
				}
			}
		})
	}
}

func TestShaper(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		start(t, kind, Options{Shaper: true})
	})
}

func TestSeveralAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for _, kind := range []Kind{Prosody, Prosody, Ejabberd, Ejabberd} {
		dir := t.TempDir()
		wg.Go(func() {
			s, err := Start(t.Context(), kind, Options{Dir: dir, Component: domain, Secret: secret})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() {
				if err := s.Stop(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	wg.Wait()
}

func TestNothingStays(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		s := start(t, kind, Options{Component: domain, Secret: secret})
		for name, end := range map[string]func() error{"stop": s.Stop, "kill": s.Kill} {
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			server, ok := lookup(s.PID())
			if !ok {
				t.Fatal("it is not running")
			}
			all := append(descendants(server.pid), server)
			t.Logf("%d processes", len(all))
			if err := end(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, p := range all {
				if now, ok := lookup(p.pid); ok && now.start == p.start {
					t.Errorf("process %d is there after %s", p.pid, name)
				}
			}
			if conn, err := net.Dial("tcp", s.C2S()); err == nil {
				conn.Close()
				t.Errorf("%s answers after %s", s.C2S(), name)
			}
			if err := end(); err != nil {
				t.Errorf("second %s: %v", name, err)
			}
		}
	})
}

func TestStopTellsOfCrash(t *testing.T) {
	s, err := Start(t.Context(), Prosody, Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	server, err := os.FindProcess(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	done := s.child.done
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	<-done
	if err := s.Stop(); err == nil {
		t.Error("no error")
	}
	if err := s.Stop(); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

// TestDiesWithParent kills a process which has started a server.
func TestDiesWithParent(t *testing.T) {
	const asParent = "XMPPSERVER_TEST_PARENT"
	if kind := os.Getenv(asParent); kind != "" {
		s, err := Start(t.Context(), Kind(kind), Options{Dir: os.Getenv(asParent + "_DIR")})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("server", s.PID())
		_, _ = io.Copy(io.Discard, os.Stdin) // until killed, or until the test that reads us ends
		_ = s.Stop()
		return
	}
	each(t, func(t *testing.T, kind Kind) {
		parent := exec.Command(os.Args[0], "-test.run=^TestDiesWithParent$")
		parent.Env = append(os.Environ(), asParent+"="+string(kind), asParent+"_DIR="+t.TempDir())
		parent.Stderr = os.Stderr
		stdin, err := parent.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		stdout, err := parent.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := parent.Start(); err != nil {
			t.Fatal(err)
		}
		line, readErr := bufio.NewReader(stdout).ReadString('\n')
		pid, numErr := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "server ")))
		all := append(descendants(pid), process{pid: pid})
		parent.Process.Kill()
		_ = parent.Wait() // killed
		if err := errors.Join(readErr, numErr); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		deadline := time.Now().Add(30 * time.Second)
		for _, p := range all {
			for {
				now, ok := lookup(p.pid)
				if !ok || p.start != "" && now.start != p.start {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("process %d is still there", p.pid)
				}
				time.Sleep(5 * time.Millisecond) // nobody tells us of the end of another's child
			}
		}
	})
}

func TestFaults(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		kind Kind
		opts Options
		want string
	}{
		{"kind", t.Context(), "openfire", Options{Dir: t.TempDir()}, `"openfire"`},
		{"directory", t.Context(), Prosody, Options{}, "no directory"},
		{"secret", t.Context(), Prosody, Options{Dir: t.TempDir(), Component: domain}, "no secret"},
		{"storage", t.Context(), Prosody, Options{Dir: t.TempDir(), Storage: "tape"}, `"tape"`},
		{"ejabberd storage", t.Context(), Ejabberd, Options{Dir: t.TempDir(), Storage: "sql"}, "Prosody only"},
		{"context", cancelled, Prosody, Options{Dir: t.TempDir()}, "context canceled"},
		{"ejabberd's own words", t.Context(), Ejabberd, Options{Dir: t.TempDir(), NodeCreators: []string{"@@"}}, "Invalid value of option"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Start(c.ctx, c.kind, c.opts)
			if err == nil {
				_ = s.Stop()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\ndoes not say %s", err, c.want)
			}
		})
	}
}

func TestMissingPackage(t *testing.T) {
	if _, err := program("no-such-server"); err == nil {
		t.Fatal("a program that is not there was found")
	}
	for _, want := range []string{"make deps", "apt install prosody lua-dbi-sqlite3"} {
		if err := missing("Prosody", "prosody", "lua-dbi-sqlite3"); !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

// TestVerbose also shows that a log that nobody reads fast does not matter.
func TestVerbose(t *testing.T) {
	each(t, func(t *testing.T, kind Kind) {
		var log lockedBuffer
		s := start(t, kind, Options{Verbose: &log})
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if log.Len() == 0 {
			t.Error("no log")
		}
		if info, err := os.Stat(s.LogFile()); err != nil || info.Size() == 0 {
			t.Errorf("the log file is empty: %v", err)
		}
	})
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Len()
}

func TestPrivate(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), Prosody, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v: the keys are open to others", info.Mode())
	}
}

func TestPortsAreReservedOnce(t *testing.T) {
	held, err := reserve()
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []int{held.c2s, held.tls, held.component} {
		if mark, err := take(port); err == nil {
			mark.Close()
			t.Errorf("port %d was given twice", port)
		}
	}
	held.release()
	l, err := net.Listen("tcp", addr(0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if mark, err := take(l.Addr().(*net.TCPAddr).Port); err == nil {
		mark.Close()
		t.Error("a port in use was given")
	}
}
