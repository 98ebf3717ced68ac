package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
	"github.com/porchlight-iot/porchlight/devices"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.yaml")
	faulty := filepath.Join(dir, "faulty.yaml")
	files := map[string]string{
		filepath.Join(dir, "secret"): "s3cret",
		good: "gateway: {data_dir: data}\nxmpp:\n  component: {domain: gw.localhost, server: \"127.0.0.1:5347\", secret_file: secret}\n" +
			"  pubsub: pubsub.localhost\nrules: []\n",
		faulty: "gateway: {data_dir: data}\nxmpp: {pubsub: pubsub.localhost}\noperatrs: []\n",
	}
	for name, data := range files {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		args   []string
		status int
		stdout string
	}{
		"good": {[]string{"check", "-c", good}, exitDone,
			"warning: " + good + ":5:1: rules: has no effect in this version; no rule is followed\n" + good + ": good\n"},
		"faulty": {[]string{"check", "-c", faulty}, exitConfig,
			faulty + ":2:1: xmpp: has neither component nor account; allowed: exactly one of component, account; add component, or account if the gateway has an account on a server\n" +
				faulty + ":3:1: operatrs: is not a known key; allowed: keys gateway, xmpp, operators, mqtt, coap, discovery, devices, outbox, backup, metrics, rules, web; did you mean \"operators\"?\n"},
		"not there": {[]string{"check", "-c", good + ".x"}, exitConfig,
			good + ".x:1:1: (document): cannot read " + good + ".x: no such file or directory; allowed: a file that can be read; make it, or correct the path\n"},
		"wrong flag": {[]string{"check", "--offline"}, exitUsage, ""},
		"arguments":  {[]string{"check", good}, exitUsage, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if status := execute(t.Context(), tt.args, &stdout, &stderr); status != tt.status || stdout.String() != tt.stdout {
				t.Errorf("status %d, want %d; got\n%s\nwant\n%s\nstderr %s", status, tt.status, stdout.String(), tt.stdout, stderr.String())
			}
			if (tt.status == exitUsage) != (stderr.Len() > 0) {
				t.Errorf("stderr is %q", stderr.String())
			}
		})
	}
	t.Run("by the environment", func(t *testing.T) {
		t.Setenv("PORCHLIGHT_CONFIG", faulty)
		var stdout, stderr bytes.Buffer
		if status := execute(t.Context(), []string{"check"}, &stdout, &stderr); status != exitConfig {
			t.Errorf("status %d", status)
		}
	})
}

// listen accepts connections on loopback, and hands each to serve, until the
// test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

// certify makes a certificate for localhost, and a file that trusts it.
func certify(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

func TestCheckOnline(t *testing.T) {
	certificate, caFile := certify(t)
	plain := listen(t, func(net.Conn) {})
	secured := listen(t, func(conn net.Conn) {
		// A client that does not trust the certificate ends the handshake.
		_ = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}}).HandshakeContext(t.Context())
	})
	_, securedPort, err := net.SplitHostPort(secured)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()

	component := func(server string) config.XMPP {
		return config.XMPP{Component: &config.Component{Domain: "gw.localhost", Server: server}}
	}
	broker := func(url string, settings *config.TLS) *config.MQTT {
		return &config.MQTT{Brokers: []config.Broker{{Name: "house", URL: url, TLS: settings}}}
	}
	port := func(path string) []config.Device {
		return []config.Device{{ID: devices.ID("meter"), Serial: &config.DeviceSerial{Port: path}}}
	}
	tests := map[string]struct {
		c    config.Config
		want string // of what follows the line of the clock
		err  error
	}{
		"good": {
			config.Config{MQTT: broker("mqtts://localhost:"+securedPort, &config.TLS{CAFile: caFile}), Devices: port(slave.Name())},
			`good    DNS localhost \(broker house\): .*127\.0\.0\.1.*
good    TCP localhost:\d+ \(broker house\): connected to 127\.0\.0\.1:\d+ in \S+
good    TLS localhost:\d+ \(broker house\): TLS 1\.3, certificate for localhost until \S+
good    serial port /dev/pts/\d+: is there and may be used
`, nil},
		"nothing listens": {
			config.Config{XMPP: component(closed)},
			`broken  TCP 127\.0\.0\.1:\d+ \(xmpp\.component\): connect: connection refused; next: start the server, or correct the port: nothing listens there
`, errVerdict},
		"no such name": {
			config.Config{XMPP: config.XMPP{Account: &config.Account{JID: "gw@example.invalid", Server: "xmpp.invalid:5222"}}},
			`broken  DNS xmpp\.invalid \(xmpp\.account\): lookup xmpp\.invalid.*; next: correct the name, or check the network and /etc/resolv\.conf
`, errVerdict},
		"a certificate that nobody trusts": {
			config.Config{MQTT: broker("ssl://localhost:"+securedPort, nil)},
			`(?s:.*)broken  TLS localhost:\d+ \(broker house\): tls: failed to verify certificate: .*; next: give the server a certificate for localhost, or name its authority in ca_file
`, errVerdict},
		"no TLS there": {
			config.Config{XMPP: config.XMPP{Account: &config.Account{JID: "gw@localhost", Server: plain, TLS: config.TLS{Mode: config.Direct}}}},
			`(?s:.*)broken  TLS 127\.0\.0\.1:\d+ \(xmpp\.account\): .*; next: check that this port speaks TLS
`, errVerdict},
		"no port there": {
			config.Config{Devices: port("/dev/porchlight-test-none")},
			`broken  serial port /dev/porchlight-test-none: is not there; next: plug it in; 'ls /dev/serial/by-id' shows what is
`, errVerdict},
		"no device": {
			config.Config{Devices: port(caFile)},
			`broken  serial port .*/ca\.pem: is not a device; next: correct the path
`, errVerdict},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := checkOnline(t.Context(), &tt.c, clock.Machine(), &out)
			if !errors.Is(err, tt.err) {
				t.Errorf("the outcome is %v, want %v", err, tt.err)
			}
			if !regexp.MustCompile(`^(good|look)    clock: shows .*\n` + tt.want + `$`).MatchString(out.String()) {
				t.Errorf("got\n%s\nwant\n%s", out.String(), tt.want)
			}
		})
	}
}

func TestCheckOnlineEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := config.Config{XMPP: config.XMPP{Component: &config.Component{Server: "localhost:1"}}}
	if err := checkOnline(ctx, &c, clock.Machine(), &strings.Builder{}); err == nil {
		t.Error("nothing was tried, and that is good")
	}
}

// TestCheckOnlineXMPP tries a real server: with a good config, with a wrong
// secret, and while the gateway runs.
func TestCheckOnlineXMPP(t *testing.T) {
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Component: "gw.localhost", Secret: "s3cret", Users: map[string]string{"gateway": "pa ss"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	dir := t.TempDir()
	write := func(name, data string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("good", "s3cret")
	write("wrong", "guessed")
	write("password", "pa ss")
	check := func(name, xmpp string) (int, string) {
		file := write(name+".yaml", fmt.Sprintf("gateway: {id: gw, data_dir: %s}\nxmpp:\n  %s\n  pubsub: %s\n", filepath.Join(dir, "data"), xmpp, server.PubSub()))
		var stdout, stderr bytes.Buffer
		status := execute(t.Context(), []string{"check", "--online", "-c", file}, &stdout, &stderr)
		return status, stdout.String() + stderr.String()
	}
	component := func(secret string) string {
		return fmt.Sprintf("component: {domain: gw.localhost, server: %q, secret_file: %s}", server.ComponentAddr(), secret)
	}
	account := func(tls string) string {
		return fmt.Sprintf("account: {jid: gateway@localhost, password_file: password, server: %q%s}", server.C2S(), tls)
	}
	tests := map[string]struct {
		xmpp   string
		status int
		want   string
	}{
		"component": {component("good"), exitDone, `(?s)good    TCP .*good    login: as gw\.localhost\ngood    PubSub service: pubsub\.localhost\ngood    node creation: made and deleted .*`},
		"account":   {account(fmt.Sprintf(", tls: {ca_file: %q}", server.CAFile())), exitDone, `(?s)good    login: as gateway@localhost/.*good    node creation: `},
		"secret":    {component("wrong"), exitFailed, `(?s)good    TCP .*broken  login: cannot log in to .*not-authorized.*; next: correct name and secret`},
		"authority": {account(""), exitFailed, `broken  login: .*certificate.*; next: give the server a certificate for the domain, or name its authority in ca_file`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, got := check(name, tt.xmpp)
			if status != tt.status || !regexp.MustCompile(tt.want).MatchString(got) {
				t.Errorf("status %d, want %d; got\n%s\nwant\n%s", status, tt.status, got, tt.want)
			}
		})
	}
	t.Run("running", func(t *testing.T) {
		if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		o, err := outbox.Open(filepath.Join(dir, "data", "outbox.db"), outbox.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		status, got := check("running", component("good"))
		if status != exitDone || !strings.Contains(got, "look    login: the gateway is running") {
			t.Errorf("status %d; got\n%s", status, got)
		}
	})
}
