package mqtt

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	mochipackets "github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/goleak"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// A script is a broker's side of one connection. It may call the connection's
// helpers, which end it where the client went away.
type script func(c *scripted)

// A scripted connection does what real brokers do not.
type scripted struct {
	net.Conn
	subscribe *packets.SubscribePacket // after subscribed
}

// gone ends a script whose client went away.
type gone struct{}

// read gives the client's next packet.
func (c *scripted) read() packets.ControlPacket {
	p, err := packets.ReadPacket(c)
	if err != nil {
		panic(gone{})
	}
	return p
}

func (c *scripted) write(s string) {
	if _, err := io.WriteString(c, s); err != nil {
		panic(gone{})
	}
}

// connected answers CONNECT.
func (c *scripted) connected() {
	c.read()
	c.write(connack)
}

// subscribed answers CONNECT and reads SUBSCRIBE.
func (c *scripted) subscribed() {
	c.connected()
	c.subscribe = c.read().(*packets.SubscribePacket)
}

// suback answers SUBSCRIBE with a code, so many times.
func (c *scripted) suback(n int, code byte) {
	id := c.subscribe.MessageID
	c.write(string([]byte{0x90, byte(2 + n), byte(id >> 8), byte(id)}) + strings.Repeat(string([]byte{code}), n))
}

// up answers everything as it should be.
func (c *scripted) up() {
	c.subscribed()
	c.suback(len(c.subscribe.Topics), 1)
}

// publish sends with QoS 1.
func (c *scripted) publish(id uint16, topic, payload string) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = 1, id, topic, []byte(payload)
	if p.Write(c) != nil {
		panic(gone{})
	}
}

// drain reads until the client goes.
func (c *scripted) drain() {
	for {
		c.read()
	}
}

// hostile starts a broker that goes by the script for each connection.
func hostile(t testing.TB, does script) (url string) {
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
			func() {
				defer conn.Close()
				defer func() {
					if r := recover(); r != nil && r != (gone{}) {
						panic(r)
					}
				}()
				conn.SetDeadline(time.Now().Add(2 * patience))
				does(&scripted{Conn: conn})
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "mqtt://" + l.Addr().String()
}

// TestHostileBroker ends Run with one clear error, and has nothing left behind.
func TestHostileBroker(t *testing.T) {
	for name, c := range map[string]struct {
		does script
		want string
	}{
		"closes at once":           {func(c *scripted) {}, "cannot connect"},
		"closes after CONNECT":     {func(c *scripted) { c.read() }, "EOF"},
		"closes after CONNACK":     {func(c *scripted) { c.connected() }, "lost the broker"},
		"closes when subscribed":   {func(c *scripted) { c.up() }, "EOF"},
		"speaks something else":    {func(c *scripted) { c.write("SSH-2.0-OpenSSH_9.2\r\n"); c.drain() }, "of type 5 where that cannot be"},
		"is not available":         {func(c *scripted) { c.read(); c.write("\x20\x02\x00\x03"); c.drain() }, "server Unavailable"},
		"refuses for no reason":    {func(c *scripted) { c.read(); c.write("\x20\x02\x00\x4d"); c.drain() }, "lost the broker"},
		"an empty CONNACK":         {func(c *scripted) { c.read(); c.write("\x20\x00"); c.drain() }, "cannot connect"},
		"256 MiB before CONNACK":   {func(c *scripted) { c.read(); c.write("\x20\xff\xff\xff\x7f"); c.drain() }, "268435455 bytes"},
		"256 MiB":                  {func(c *scripted) { c.up(); c.write("\x30\xff\xff\xff\x7f"); c.drain() }, "268435455 bytes"},
		"length without end":       {func(c *scripted) { c.up(); c.write("\x30\xff\xff\xff\xff\xff\xff"); c.drain() }, "more than four bytes"},
		"half a packet":            {func(c *scripted) { c.up(); c.write("\x30\x10\x00\x07kit") }, "EOF"},
		"topic beyond its packet":  {func(c *scripted) { c.up(); c.write("\x30\x03\xff\xff\x00"); c.drain() }, "lost the broker"},
		"an empty PUBLISH":         {func(c *scripted) { c.up(); c.write("\x32\x00"); c.drain() }, "lost the broker"},
		"QoS 2":                    {func(c *scripted) { c.up(); c.write("\x34\x0b\x00\x07kitchen\x00\x01"); c.drain() }, "QoS 2"},
		"a filter is refused":      {func(c *scripted) { c.subscribed(); c.suback(len(c.subscribe.Topics), 0x80); c.drain() }, "kitchen"},
		"too many codes":           {func(c *scripted) { c.subscribed(); c.suback(len(c.subscribe.Topics)+1, 1); c.drain() }, "3 filters with 4 codes"},
		"too few codes":            {func(c *scripted) { c.subscribed(); c.suback(1, 1); c.drain() }, "3 filters with 1 codes"},
		"a second SUBACK":          {func(c *scripted) { c.up(); c.suback(3, 1); c.suback(3, 1); c.drain() }, "0 filters with 3 codes"},
		"SUBACK of another packet": {func(c *scripted) { c.subscribed(); c.subscribe.MessageID++; c.suback(3, 1); c.suback(3, 1); c.Close() }, "lost the broker"},
		"PUBACK for SUBSCRIBE": {func(c *scripted) {
			c.subscribed()
			id := c.subscribe.MessageID
			c.write(string([]byte{0x40, 2, byte(id >> 8), byte(id)}))
			c.drain()
		}, "type 4, which answers nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			url := hostile(t, c.does)
			var was, is runtime.MemStats
			runtime.ReadMemStats(&was)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			err := kitchenOn(t, url).Run(ctx, &devicetest.Sink{})
			runtime.ReadMemStats(&is)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Run ended with %v, want %q", err, c.want)
			}
			if refused := strings.Contains(name, "refused"); errors.Is(err, devices.ErrRefused) != refused {
				t.Errorf("%v is a refusal: %v", err, !refused)
			}
			if n := is.TotalAlloc - was.TotalAlloc; n > 64<<20 {
				t.Errorf("%d MiB were allocated", n>>20)
			}
			goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("github.com/porchlight-iot/porchlight/devices/mqtt.hostile.func1"))
		})
	}
}

// TestHostileTopics wants what can never be used out of the way: it is
// rejected and acknowledged, in its turn, and what comes after it is heard.
func TestHostileTopics(t *testing.T) {
	bad := []string{"", "a\xff", "a\x00b", "kitchen/+", "#", strings.Repeat("k", maxTopic+1), strings.Repeat("/", maxLevels), strings.Repeat("x", 65535)}
	acks := make(chan uint16, 100)
	url := hostile(t, func(c *scripted) {
		c.up()
		for i, topic := range bad {
			c.publish(uint16(i+1), topic, "x")
		}
		c.publish(100, "kitchen", `{"temperature":1}`)
		for {
			if ack, ok := c.read().(*packets.PubackPacket); ok {
				acks <- ack.MessageID
			}
		}
	})
	sink := &devicetest.Sink{Auto: true}
	run(t, kitchenOn(t, url), sink)
	sink.WaitMessages(t, 1)
	if got := sink.WaitRejections(t, len(bad)); len(got) != len(bad) {
		t.Errorf("%d rejections: %v", len(got), got)
	}
	for i := range len(bad) + 1 {
		want := uint16(i + 1)
		if i == len(bad) {
			want = 100
		}
		select {
		case got := <-acks:
			if got != want {
				t.Errorf("acknowledgement %d is of %d", want, got)
			}
		case <-time.After(patience):
			t.Fatalf("no acknowledgement of %d", want)
		}
	}
}

// TestHostileFlood sends without waiting for an acknowledgement. What waits is
// bounded: of QoS 0 some is dropped and told, with QoS 1 the connection ends.
func TestHostileFlood(t *testing.T) {
	t.Run("QoS 0", func(t *testing.T) {
		enough := make(chan struct{})
		url := hostile(t, func(c *scripted) {
			c.up()
			for {
				select {
				case <-enough:
					c.drain()
				default:
					c.write("\x30\x1b\x00\x07kitchen" + `{"temperature":21}`)
				}
			}
		})
		sink := &slowSink{Sink: devicetest.Sink{Auto: true}, wait: make(chan struct{})}
		_, stop := run(t, kitchenOn(t, url), sink)
		sink.WaitRejections(t, 10)
		close(enough)
		close(sink.wait)
		sink.WaitMessages(t, 2)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	t.Run("QoS 1", func(t *testing.T) {
		url := hostile(t, func(c *scripted) {
			c.up()
			for id := uint16(1); ; id++ {
				c.publish(id, "kitchen", `{"temperature":1}`)
			}
		})
		ended, _ := run(t, kitchenOn(t, url), &devicetest.Sink{})
		if err := wantEnd(t, ended); !strings.Contains(err.Error(), "lower its limit of messages in flight") {
			t.Errorf("Run ended with %v", err)
		}
	})
}

// TestFloodLeavesRoom has a device flood with QoS 0 while nothing is decoded:
// what is dropped is its own, and another's messages get through.
func TestFloodLeavesRoom(t *testing.T) {
	acknowledged := make(chan struct{})
	url := hostile(t, func(c *scripted) {
		c.up()
		for range maxQueued + 10 {
			c.write("\x30\x1b\x00\x07kitchen" + `{"temperature":21}`)
		}
		c.write("\x30\x1a\x00\x06cellar" + `{"temperature":21}`)
		c.publish(1, "cellar", `{"temperature":22}`)
		for {
			if _, ok := c.read().(*packets.PubackPacket); ok {
				close(acknowledged)
				c.drain()
			}
		}
	})
	client := NewClient(ClientConfig{Name: "house", URL: url, ClientID: "porchlight-test"},
		[]Device{device(t, "kitchen", "json", "kitchen"), device(t, "cellar", "json", "cellar")}, quiet())
	sink := &slowSink{Sink: devicetest.Sink{Auto: true}, wait: make(chan struct{})}
	ended, _ := run(t, client, sink)
	sink.WaitRejections(t, maxQueued*3/4)
	close(sink.wait)
	select {
	case <-acknowledged:
	case err := <-ended:
		t.Fatalf("Run ended with %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the other device's message is not acknowledged")
	}
	var cellar []string
	for _, m := range sink.WaitMessages(t, 2) {
		if m.Readings[0].Device == "cellar" {
			cellar = append(cellar, value(m))
		}
	}
	if fmt.Sprint(cellar) != "[21 22]" {
		t.Errorf("of the other device arrived %v", cellar)
	}
}

// A slowSink holds up whoever reports.
type slowSink struct {
	devicetest.Sink
	wait chan struct{}
}

func (s *slowSink) Report(ctx context.Context, m devices.Message) (devices.Receipt, error) {
	<-s.wait
	return s.Sink.Report(ctx, m)
}

// TestStopWhileConnecting ends Run in each phase of a connection that the
// broker does not go on with.
func TestStopWhileConnecting(t *testing.T) {
	for name, does := range map[string]func(c *scripted, there chan<- struct{}){
		"before CONNACK": func(c *scripted, there chan<- struct{}) { c.read(); there <- struct{}{}; c.drain() },
		"before SUBACK":  func(c *scripted, there chan<- struct{}) { c.subscribed(); there <- struct{}{}; c.drain() },
		"before TLS":     func(c *scripted, there chan<- struct{}) { there <- struct{}{}; io.Copy(io.Discard, c) },
	} {
		t.Run(name, func(t *testing.T) {
			there := make(chan struct{}, 1)
			url := hostile(t, func(c *scripted) { does(c, there) })
			if name == "before TLS" {
				url = strings.Replace(url, "mqtt:", "mqtts:", 1)
			}
			_, stop := run(t, kitchenOn(t, url), &devicetest.Sink{})
			<-there
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestClientTLS goes by a certificate of its own, to a real broker.
func TestClientTLS(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600)
	m := startMosquitto(t, "allow_anonymous true", "certfile "+certFile, "keyfile "+keyFile)
	url := strings.Replace(m.url(), "mqtt:", "mqtts:", 1)

	ended, _ := run(t, kitchenOn(t, url), &devicetest.Sink{})
	var unknown x509.UnknownAuthorityError
	if err := wantEnd(t, ended); !errors.As(err, &unknown) {
		t.Errorf("with an unknown certificate: %v", err)
	}

	roots := x509.NewCertPool()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(cert)
	sink := &devicetest.Sink{}
	c := NewClient(ClientConfig{Name: "house", URL: url, ClientID: "porchlight-test", TLS: &tls.Config{RootCAs: roots}}, []Device{device(t, "kitchen", "json", "kitchen")}, quiet())
	run(t, c, sink)
	sink.WaitUp(t, 1)
}

// allowAll lets everybody do everything.
type allowAll struct{ mochi.HookBase }

func (allowAll) Provides(b byte) bool {
	return b == mochi.OnConnectAuthenticate || b == mochi.OnACLCheck
}

func (allowAll) OnConnectAuthenticate(*mochi.Client, mochipackets.Packet) bool { return true }

func (allowAll) OnACLCheck(*mochi.Client, string, bool) bool { return true }

// TestClientWebsocket goes over a websocket. The broker is a plain one of the
// library's, because not every Mosquitto was built with websockets.
func TestClientWebsocket(t *testing.T) {
	server := mochi.New(&mochi.Options{Logger: quiet()})
	if err := server.AddHook(&allowAll{}, nil); err != nil {
		t.Fatal(err)
	}
	address := freePort(t)
	if err := server.AddListener(listeners.NewWebsocket(listeners.Config{ID: "ws", Address: address})); err != nil {
		t.Fatal(err)
	}
	if err := server.Serve(); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	// Its listener opens its socket after Serve returned, so the driver is run
	// again until it is there, as its supervisor would.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sink := &devicetest.Sink{Auto: true}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for c := kitchenOn(t, "ws://"+address+"/mqtt"); ctx.Err() == nil; {
			c.Run(ctx, sink)
		}
	}()
	defer func() { cancel(); <-ended }()
	sink.WaitUp(t, 1)
	send(t, publisher(t, "ws://"+address, "kitchen"), Publication{Topic: "kitchen", Payload: temperature("1"), QoS: 1})
	sink.WaitMessages(t, 1)
}

func TestWhereHidesPasswords(t *testing.T) {
	c := NewClient(ClientConfig{Name: "house", URL: "mqtt://porch:hunter2@127.0.0.1:1"}, nil, quiet())
	err := c.Run(context.Background(), &devicetest.Sink{})
	if err == nil || strings.Contains(fmt.Sprint(err), "hunter2") {
		t.Errorf("%v", err)
	}
}
