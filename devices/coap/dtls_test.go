package coap_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

var kitchenKey = []byte("0123456789abcdef")

// keys has one for kitchen and one for shed, and none for scale.
func keys() map[string][]byte {
	return map[string][]byte{"kitchen": kitchenKey, "shed": []byte("fedcba9876543210")}
}

func startSecure(t testing.TB, sink *devicetest.Sink, secure coap.Secure) *coap.Server {
	t.Helper()
	if secure.Listen == "" {
		secure.Listen = "127.0.0.1:0"
	}
	return start(t, coap.Config{Secure: &secure}, sink, sink)
}

// A secureClient is a device that speaks DTLS by pion.
type secureClient struct {
	t    testing.TB
	conn *dtls.Conn
	wire *wire
	mid  int32
}

// A wire is a socket that can be cut, so that nobody hears of it, and changed.
type wire struct {
	mu  sync.Mutex
	cut bool
	*net.UDPConn
}

func (w *wire) WriteTo(b []byte, to net.Addr) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return len(b), nil
	}
	return w.UDPConn.WriteTo(b, to)
}

func (w *wire) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		w.mu.Lock()
		conn := w.UDPConn
		w.mu.Unlock()
		n, from, err := conn.ReadFrom(b)
		w.mu.Lock()
		changed := w.UDPConn != conn
		w.mu.Unlock()
		if err == nil || !changed {
			return n, from, err
		}
	}
}

// cutOff takes the device's power: it says no goodbye.
func (c *secureClient) cutOff() {
	c.wire.mu.Lock()
	c.wire.cut = true
	c.wire.mu.Unlock()
	_ = c.conn.Close()
	_ = c.wire.UDPConn.Close()
}

func quietly() logging.LoggerFactory {
	f := logging.NewDefaultLoggerFactory()
	f.Writer, f.DefaultLogLevel, f.ScopeLevels = io.Discard, logging.LogLevelDisabled, nil
	return f
}

func bind(t testing.TB, local string) *net.UDPConn {
	t.Helper()
	addr, err := net.ResolveUDPAddr("udp", local)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// dialSecure makes a handshake from an address of ours.
func dialSecure(t testing.TB, s *coap.Server, local string, more ...dtls.ClientOption) (*secureClient, error) {
	t.Helper()
	w := &wire{UDPConn: bind(t, local)}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := dtls.ClientWithOptions(w, s.SecureAddr(), append([]dtls.ClientOption{dtls.WithLoggerFactory(quietly()), dtls.WithFlightInterval(200 * time.Millisecond)}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	c := &secureClient{t: t, conn: conn, wire: w}
	if err := conn.HandshakeContext(ctx); err != nil {
		return c, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return c, nil
}

func as(identity string, key []byte) []dtls.ClientOption {
	return []dtls.ClientOption{
		dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }),
		dtls.WithPSKIdentityHint([]byte(identity)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
	}
}

func kitchen(t testing.TB, s *coap.Server, local string, more ...dtls.ClientOption) *secureClient {
	t.Helper()
	c, err := dialSecure(t, s, local, append(as("kitchen", kitchenKey), more...)...)
	if err != nil {
		t.Fatalf("no handshake: %v", err)
	}
	return c
}

// post posts a temperature, again and again as a device does, and gives the code
// of the answer.
func (c *secureClient) post(device, value string) codes.Code {
	c.t.Helper()
	c.mid++
	b := post(c.t, c.mid, device, value)
	for range int(patience / time.Second) {
		if _, err := c.conn.Write(b); err != nil {
			c.t.Fatal(err)
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(time.Second))
		in := make([]byte, 2000)
		for {
			n, err := c.conn.Read(in)
			if err != nil {
				break
			}
			if m := decode(c.t, in[:n]); bytes.Equal(m.Token, decode(c.t, b).Token) {
				return m.Code
			}
		}
	}
	c.t.Fatal("no answer")
	return 0
}

// libcoap's clients post over DTLS, with the libraries of others: as themselves,
// and as nobody else.
func TestLibcoapWithKeys(t *testing.T) {
	for _, client := range []string{"coap-client-openssl", "coap-client-gnutls"} {
		t.Run(client, func(t *testing.T) {
			sink := &devicetest.Sink{Auto: true}
			s := startSecure(t, sink, coap.Secure{Keys: keys()})
			at := func(device string) string { return fmt.Sprintf("coaps://%s/d/%s", s.SecureAddr(), device) }
			post := func(device, identity string, key []byte) error {
				return wait(t, libcoapAt(t, client, at(device), "110", senml("21.4"), "-u", identity, "-k", string(key)))
			}
			if err := post("kitchen", "kitchen", kitchenKey); err != nil {
				t.Fatal(err)
			}
			if got := sink.WaitMessages(t, 1); got[0].Message.Readings[0].Device != "kitchen" {
				t.Errorf("reading of %s", got[0].Message.Readings[0].Device)
			}
			large := wait(t, libcoapAt(t, client, at("kitchen"), "110", []byte("["+strings.Repeat(`{"n":"a","v":1},`, 200)+`{"n":"a","v":1}]`), "-u", "kitchen", "-k", string(kitchenKey)))
			if large != nil {
				t.Errorf("a body in blocks: %v", large)
			}
			if err := post("shed", "kitchen", kitchenKey); err == nil || !strings.Contains(err.Error(), "answer 4.03") {
				t.Errorf("as another: %v", err)
			}
			if err := post("scale", "kitchen", kitchenKey); err == nil || !strings.Contains(err.Error(), "answer 4.03") {
				t.Errorf("as one without a key: %v", err)
			}
			if err := post("kitchen", "nobody", kitchenKey); err == nil || !strings.Contains(err.Error(), "no answer") {
				t.Errorf("as one whom nobody knows: %v", err)
			}
			if n := len(sink.WaitMessages(t, 2)); n != 2 {
				t.Errorf("%d messages are taken", n)
			}
		})
	}
}

// A device that has a key cannot be played without it.
func TestKeyIsNeeded(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: keys()})
	c := dial(t, s.Addr())
	if m := c.ask(post(t, 1, "kitchen", "21.4")); m.Code != codes.Unauthorized {
		t.Errorf("kitchen in the clear: %v", m.Code)
	}
	if m := c.ask(request(t, message.Confirmable, codes.POST, 2, "d/scale", 0, []byte("81.5"))); m.Code != codes.Changed {
		t.Errorf("scale, which has no key: %v", m.Code)
	}
}

func TestWrongKey(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: keys()})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for identity, key := range map[string][]byte{"kitchen": []byte("x"), "nobody": kitchenKey, "": {}, "shed": kitchenKey} {
		w := bind(t, "127.0.0.1:0")
		conn, err := dtls.ClientWithOptions(w, s.SecureAddr(), append(as(identity, key), dtls.WithLoggerFactory(quietly()))...)
		if err != nil {
			continue // pion wants an identity
		}
		short, done := context.WithTimeout(ctx, 2*time.Second)
		if err := conn.HandshakeContext(short); err == nil {
			t.Errorf("%q is taken with another key", identity)
		}
		done()
	}
	if c := kitchen(t, s, "127.0.0.1:0"); c.post("kitchen", "21.4") != codes.Changed {
		t.Error("the right key is not taken any more")
	}
	if n := len(sink.WaitMessages(t, 1)); n != 1 {
		t.Errorf("%d messages are taken", n)
	}
}

// A device that begins anew on the port that it had is heard again, and its old
// association goes; one that only says hello harms nobody.
func TestRebootOnTheSamePort(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: keys()})
	first := kitchen(t, s, "127.0.0.1:0")
	local := first.wire.LocalAddr().String()
	if code := first.post("kitchen", "1"); code != codes.Changed {
		t.Fatal(code)
	}
	for range 3 {
		first.cutOff()
		first = kitchen(t, s, local)
		if code := first.post("kitchen", "2"); code != codes.Changed {
			t.Fatal(code)
		}
	}
	if n := s.Associations(); n != 1 {
		t.Errorf("%d associations of one device", n)
	}

	// Another who can send from there, and has no key: hello and no more, alerts,
	// and what no key protects.
	hello := firstFlight(t)
	forged := [][]byte{
		hello,
		{21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 9, 9, 0, 2, 2, 40},             // a fatal alert
		{21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 9, 8, 0, 2, 1, 0},              // goodbye
		{23, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 9, 7, 0, 1, 1},                 // data without a key
		{20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 9, 6, 0, 1, 7},                 // no ChangeCipherSpec
		{99, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 9, 5, 0, 1, 7},                 // nothing known
		{21, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 9, 4, 0, 18, 1, 2, 3, 4, 5, 6}, // cut off
		{23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 9, 3, 0, 3, 1, 2, 3},           // not by our keys
	}
	for i, b := range forged {
		if _, err := first.wire.WriteTo(b, s.SecureAddr()); err != nil {
			t.Fatal(err)
		}
		if code := first.post("kitchen", fmt.Sprint(10+i)); code != codes.Changed {
			t.Fatalf("after %x: %v", b, code)
		}
	}
	sink.WaitMessages(t, 4+len(forged))
}

// firstFlight gives a ClientHello, as it is on the wire.
func firstFlight(t testing.TB) []byte {
	t.Helper()
	silent := bind(t, "127.0.0.1:0")
	conn, err := dtls.ClientWithOptions(bind(t, "127.0.0.1:0"), silent.LocalAddr(), append(as("kitchen", kitchenKey), dtls.WithLoggerFactory(quietly()))...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	go func() { _ = conn.HandshakeContext(ctx); close(over) }()
	b := make([]byte, 2000)
	_ = silent.SetReadDeadline(time.Now().Add(patience))
	n, err := silent.Read(b)
	cancel()
	<-over
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// A device whose address changes goes on by its connection id (RFC 9146), and is
// answered where it is now.
func TestAddressChanges(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: keys()})
	c := kitchen(t, s, "127.0.0.1:0", dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))
	for i := range 3 {
		if code := c.post("kitchen", fmt.Sprint(i)); code != codes.Changed {
			t.Fatal(code)
		}
		// What its router makes of it: the same device, another port.
		next := bind(t, "127.0.0.1:0")
		c.wire.mu.Lock()
		old := c.wire.UDPConn
		c.wire.UDPConn = next
		c.wire.mu.Unlock()
		_ = old.Close()
	}
	if n := s.Associations(); n != 1 {
		t.Errorf("%d associations", n)
	}
}

// A flood of hellos, with which nobody goes on, neither takes room nor keeps a
// device out.
func TestHandshakeFlood(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: keys()})
	c := kitchen(t, s, "127.0.0.1:0") // whose address is known from then on
	before := runtime.NumGoroutine()
	hello := firstFlight(t)
	stop, over := make(chan struct{}), make(chan struct{})
	sent := make(chan struct{}, 1)
	go func() {
		defer close(over)
		var sockets []*net.UDPConn
		for i := range 300 {
			from := &net.UDPAddr{IP: net.IPv4(127, 1, byte(i), 1)}
			conn, err := net.DialUDP("udp", from, s.SecureAddr().(*net.UDPAddr))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			sockets = append(sockets, conn)
		}
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			_, _ = sockets[n%len(sockets)].Write(hello)
			if n == len(sockets) {
				sent <- struct{}{}
			}
		}
	}()
	<-sent
	if code := c.post("kitchen", "20"); code != codes.Changed {
		t.Errorf("what was agreed before: %v", code)
	}
	c = kitchen(t, s, "127.0.0.1:0")
	if code := c.post("kitchen", "21.4"); code != codes.Changed {
		t.Errorf("while others flood: %v", code)
	}
	if n := s.Handshakes(); n > 256+32 {
		t.Errorf("%d handshakes are under way", n)
	}
	if n := runtime.NumGoroutine() - before; n > 2500 {
		t.Errorf("%d goroutines", n)
	}
	close(stop)
	<-over
}

// One address whose handshakes fail is refused before long, others are not.
func TestFailingHandshakesAreBounded(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: keys()})
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range 60 {
		w := bind(t, "127.0.0.2:0")
		conn, err := dtls.ClientWithOptions(w, s.SecureAddr(), append(as("kitchen", []byte("wrong")), dtls.WithLoggerFactory(quietly()))...)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() { _ = conn.HandshakeContext(ctx) })
	}
	for sink.WaitRejections(t, 1); ; {
		all := sink.WaitRejections(t, 1)
		if last := all[len(all)-1]; strings.Contains(last.Why.Error(), "too many handshakes of this address failed") {
			break
		}
		sink.WaitRejections(t, len(all)+1)
	}
	if n := s.Handshakes(); n > 256+20 {
		t.Errorf("%d handshakes are under way", n)
	}
	for i := range 25 { // more than may fail
		c := kitchen(t, s, "127.0.0.1:0")
		if code := c.post("kitchen", fmt.Sprint(i)); code != codes.Changed {
			t.Fatal(code)
		}
		c.cutOff()
	}
	if n := s.Associations(); n > 8 {
		t.Errorf("%d associations of one device", n)
	}
	cancel()
	all.Wait()
}

// New keys hold at once, and what the old ones opened is closed.
func TestKeysChange(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	secure := coap.Secure{Listen: "127.0.0.1:0", Keys: keys()}
	s := start(t, coap.Config{Listen: "127.0.0.1:0", Secure: &secure}, sink, sink)
	c := kitchen(t, s, "127.0.0.1:0")
	other, err := dialSecure(t, s, "127.0.0.1:0", as("shed", keys()["shed"])...)
	if err != nil {
		t.Fatal(err)
	}
	if code := c.post("kitchen", "1"); code != codes.Changed {
		t.Fatal(code)
	}
	changed := secure
	changed.Keys = keys()
	changed.Keys["kitchen"] = []byte("another key there")
	if !s.Adopt(newServer(t, coap.Config{Listen: "127.0.0.1:0", Secure: &changed})) {
		t.Fatal("new keys need a new start")
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.conn.Read(make([]byte, 100)); !errors.Is(err, io.EOF) {
		t.Errorf("the association with the old key ends with %v", err)
	}
	if _, err := dialSecure(t, s, "127.0.0.1:0", append(as("kitchen", []byte("another key there")), dtls.WithLoggerFactory(quietly()))...); err != nil {
		t.Errorf("with the new key: %v", err)
	}
	if m := request(t, message.Confirmable, codes.POST, 9, "d/shed", 50, []byte(`{"a":1}`)); true {
		if _, err := other.conn.Write(m); err != nil {
			t.Errorf("the other device: %v", err)
		}
	}
	sink.WaitMessages(t, 2)
	moved := secure
	moved.Listen = "127.0.0.1:1"
	if s.Adopt(newServer(t, coap.Config{Listen: "127.0.0.1:0", Secure: &moved})) {
		t.Error("another address is adopted")
	}
}

// certificates makes an authority, and a certificate of it for each name.
func certificates(t testing.TB, names ...string) (*x509.CertPool, []tls.Certificate) {
	t.Helper()
	make1 := func(n int64, name string, parent *x509.Certificate, by any) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IsCA: parent == nil, BasicConstraintsValid: true, DNSNames: []string{name},
		}
		if parent == nil {
			parent, by = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key, der
	}
	authority, authorityKey, _ := make1(1, "authority", nil, nil)
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	var all []tls.Certificate
	for i, name := range names {
		_, key, der := make1(int64(i)+2, name, authority, authorityKey)
		all = append(all, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	}
	return pool, all
}

// Devices with certificates post as what stands in them, beside those with keys.
func TestCertificates(t *testing.T) {
	pool, certs := certificates(t, "gateway", "kitchen")
	_, strangers := certificates(t, "kitchen")
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: map[string][]byte{"shed": keys()["shed"]}, Certificate: &certs[0], Authorities: pool})
	trust := func(c tls.Certificate) []dtls.ClientOption {
		return []dtls.ClientOption{dtls.WithCertificates(c), dtls.WithRootCAs(pool), dtls.WithServerName("gateway")}
	}
	c, err := dialSecure(t, s, "127.0.0.1:0", trust(certs[1])...)
	if err != nil {
		t.Fatal(err)
	}
	if code := c.post("kitchen", "21.4"); code != codes.Changed {
		t.Error(code)
	}
	if code := c.post("scale", "21.4"); code != codes.Forbidden {
		t.Errorf("as another: %v", code)
	}
	if _, err := dialSecure(t, s, "127.0.0.1:0", as("shed", keys()["shed"])...); err != nil {
		t.Errorf("with a key: %v", err)
	}
	if _, err := dialSecure(t, s, "127.0.0.1:0", trust(strangers[0])...); err == nil {
		t.Error("a certificate of another authority is taken")
	}
	if _, err := dialSecure(t, s, "127.0.0.1:0", dtls.WithRootCAs(pool), dtls.WithServerName("gateway")); err == nil {
		t.Error("a device without a certificate is taken")
	}
}

// A device that is asked by coaps answers, with TLS libraries of others; and one
// that begins anew in its place does.
func TestAskWithKey(t *testing.T) {
	for _, binary := range []string{"coap-server-openssl", "coap-server-gnutls"} {
		t.Run(binary, func(t *testing.T) {
			free := bind(t, "127.0.0.1:0")
			plain := free.LocalAddr().(*net.UDPAddr).Port
			_ = free.Close()
			kill := secureServer(t, binary, plain)
			device := coap.Device{
				Device:  devices.Device{ID: "clock", Profile: "value", Location: time.UTC},
				Profile: builtin(t, "value"), Place: profile.Place{Device: "clock", Location: time.UTC},
				URL: fmt.Sprintf("coaps://127.0.0.1:%d/time?ticks", plain+1), Observe: true, Key: []byte("a key"), KeyName: "gateway",
			}
			set, err := profile.Builtin()
			if err != nil {
				t.Fatal(err)
			}
			sink := &devicetest.Sink{Auto: true}
			c := coap.NewClient(coap.ClientConfig{Profiles: set}, []coap.Device{device}, slog.New(slog.DiscardHandler))
			ctx, cancel := context.WithCancel(context.Background())
			over := make(chan error, 1)
			go func() { over <- c.Run(ctx, sink) }()
			sink.WaitMessages(t, 2)
			if binary == "coap-server-openssl" { // one is enough
				kill()
				n := len(sink.WaitMessages(t, 2))
				secureServer(t, binary, plain)
				sink.WaitMessages(t, n+1)
			}
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
	}
}

// secureServer runs one of libcoap's servers, which speaks DTLS one port above
// the one given, until the test ends or kill is called.
func secureServer(t *testing.T, binary string, plain int) (kill func()) {
	t.Helper()
	server := exec.Command(binary, "-A", "127.0.0.1", "-p", fmt.Sprint(plain), "-k", "a key")
	if err := server.Start(); err != nil {
		t.Fatalf("libcoap's %s is needed, `make deps` installs it: %v", binary, err)
	}
	kill = func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}
	t.Cleanup(kill)
	ping := dial(t, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: plain})
	for late := time.Now().Add(patience); ; { // until it is there
		if time.Now().After(late) {
			t.Fatalf("%s does not answer", binary)
		}
		_, _ = ping.conn.Write([]byte{0x40, 0, 0, 1})
		_ = ping.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := ping.conn.Read(make([]byte, 100))
		if err == nil {
			return kill
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			time.Sleep(10 * time.Millisecond) // nobody is there yet
		}
	}
}

// FuzzRecords throws datagrams at the listener, beside a device that goes on.
func FuzzRecords(f *testing.F) {
	hello := firstFlight(f)
	f.Add(hello)
	f.Add([]byte{25, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 9})
	f.Add(append(bytes.Clone(hello), hello...))
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(f, sink, coap.Secure{Keys: keys()})
	conn := bind(f, "127.0.0.1:0")
	c := kitchen(f, s, "127.0.0.1:0")
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := conn.WriteTo(b, s.SecureAddr()); err != nil {
			return // too large
		}
		_, _ = c.wire.WriteTo(b, s.SecureAddr())
	})
	if code := c.post("kitchen", "21.4"); code != codes.Changed {
		f.Error(code)
	}
}

// A device over DTLS is in all one by which a driver is judged.
func TestDriverWithKeys(t *testing.T) {
	devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
		var s *coap.Server
		send := func(t testing.TB, payload []byte) <-chan error {
			return libcoapAt(t, "coap-client-openssl", fmt.Sprintf("coaps://%s/d/kitchen", s.SecureAddr()), "110", payload, "-u", "kitchen", "-k", string(kitchenKey))
		}
		return devicetest.Harness{
			New: func(t testing.TB) devices.Driver {
				s = newServer(t, coap.Config{Secure: &coap.Secure{Listen: "127.0.0.1:0", Keys: keys()}})
				return s
			},
			Send:        func(t testing.TB, value string) <-chan error { return send(t, senml(value)) },
			SendGarbage: func(t testing.TB) { send(t, []byte("\xff[{")) },
		}
	})
}

// An association that says nothing for long goes; one with a connection id may
// sleep longer.
func TestSilentAssociations(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := startSecure(t, sink, coap.Secure{Keys: keys()})
	plain := kitchen(t, s, "127.0.0.1:0")
	sleeper := kitchen(t, s, "127.0.0.1:0", dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))
	for _, c := range []*secureClient{plain, sleeper} {
		if code := c.post("kitchen", "1"); code != codes.Changed {
			t.Fatal(code)
		}
	}
	s.Age(2 * time.Hour)
	_ = plain.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := plain.conn.Read(make([]byte, 100)); !errors.Is(err, io.EOF) {
		t.Errorf("the silent one ends with %v", err)
	}
	if code := sleeper.post("kitchen", "2"); code != codes.Changed {
		t.Errorf("the sleeper: %v", code)
	}
	if n := s.Associations(); n != 1 {
		t.Errorf("%d associations", n)
	}
}
