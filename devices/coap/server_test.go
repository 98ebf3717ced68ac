package coap_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// patience is a deadline for broken code, never a measure of working code.
const patience = 30 * time.Second

// newServer makes a server on a free port that knows one device for each
// profile: kitchen (senml), shed (json), scale (value).
func newServer(t testing.TB, config coap.Config) *coap.Server {
	t.Helper()
	var devs []coap.Device
	for id, name := range map[devices.ID]string{"kitchen": "senml", "shed": "json", "scale": "value"} {
		devs = append(devs, coap.Device{
			Device:  devices.Device{ID: id, Profile: name, Location: time.UTC},
			Profile: builtin(t, name),
			Place:   profile.Place{Device: id, Location: time.UTC},
		})
	}
	if config.Listen == "" {
		config.Listen = "127.0.0.1:0"
	}
	s := coap.New(config, devs, slog.New(slog.DiscardHandler))
	s.SetPiggyback(time.Hour)
	return s
}

// start runs a server until the test ends, and waits until it listens.
func start(t testing.TB, config coap.Config, sink devices.Sink, up interface {
	WaitUp(testing.TB, int)
}) *coap.Server {
	t.Helper()
	s := newServer(t, config)
	run(t, s, sink)
	up.WaitUp(t, 1)
	return s
}

func run(t testing.TB, s *coap.Server, sink devices.Sink) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// startSlow runs a server that sends every answer in a message of its own
// which is not there at once.
func startSlow(t testing.TB, sink *devicetest.Sink) *coap.Server {
	t.Helper()
	s := newServer(t, coap.Config{})
	s.SetPiggyback(0)
	run(t, s, sink)
	sink.WaitUp(t, 1)
	return s
}

// A client is a device that sends the datagrams it is told to.
type client struct {
	t    testing.TB
	conn *net.UDPConn
}

func dial(t testing.TB, to net.Addr) *client {
	t.Helper()
	conn, err := net.DialUDP("udp", nil, to.(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t, conn}
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) receive() message.Message {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 64<<10)
	n, err := c.conn.Read(b)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return decode(c.t, b[:n])
}

// ask sends a request again and again, as a device does, until the answer to
// it is there.
func (c *client) ask(b []byte) message.Message {
	c.t.Helper()
	answer := make([]byte, 64<<10)
	for range int(patience / time.Second) {
		c.send(b)
		_ = c.conn.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := c.conn.Read(answer)
			if err != nil {
				break
			}
			if m := decode(c.t, answer[:n]); bytes.Equal(m.Token, decode(c.t, b).Token) {
				return m
			}
		}
	}
	c.t.Fatal("no answer")
	return message.Message{}
}

func decode(t testing.TB, b []byte) message.Message {
	t.Helper()
	m := message.Message{Options: make(message.Options, 0, 32)}
	if _, err := coder.DefaultCoder.Decode(b, &m); err != nil {
		t.Fatalf("%x cannot be read: %v", b, err)
	}
	return m
}

// silent fails if anything was sent to the client before the answer to a ping
// that goes out now.
func (c *client) silent() {
	c.t.Helper()
	c.send([]byte{0x40, 0, 0xff, 0xff})
	if m := c.receive(); m.Type != message.Reset || m.MessageID != 0xffff {
		c.t.Fatalf("want nothing but the answer to a ping, got %v", m.String())
	}
}

// request encodes a request; path is without a leading slash.
func request(t testing.TB, typ message.Type, code codes.Code, mid int32, path string, format int, payload []byte, more ...message.Option) []byte {
	t.Helper()
	m := message.Message{Type: typ, Code: code, MessageID: mid, Token: []byte{0xa, byte(mid)}, Payload: payload}
	for segment := range strings.SplitSeq(path, "/") {
		m.Options = m.Options.Add(message.Option{ID: message.URIPath, Value: []byte(segment)})
	}
	if format > 0 {
		m.Options = m.Options.Add(option(message.ContentFormat, uint32(format)))
	}
	for _, o := range more {
		m.Options = m.Options.Add(o)
	}
	b := make([]byte, 64<<10)
	n, err := coder.DefaultCoder.Encode(m, b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func option(id message.OptionID, v uint32) message.Option {
	b := make([]byte, 4)
	n, _ := message.EncodeUint32(b, v)
	return message.Option{ID: id, Value: b[:n]}
}

func post(t testing.TB, mid int32, device, value string) []byte {
	return request(t, message.Confirmable, codes.POST, mid, "d/"+device, coap.SenMLJSON, senml(value))
}

func senml(value string) []byte {
	return fmt.Appendf(nil, `[{"n":"temperature","u":"Cel","v":%s}]`, value)
}

// libcoap runs libcoap's client as a device. The channel gets nil for an answer
// of class 2, else what was answered.
func libcoap(t testing.TB, s *coap.Server, path, format string, payload []byte, flags ...string) <-chan error {
	t.Helper()
	return libcoapAt(t, "coap-client-notls", fmt.Sprintf("coap://%s/%s", s.Addr(), path), format, payload, flags...)
}

// libcoapAt runs one of its clients, which differ in whose TLS library they have.
func libcoapAt(t testing.TB, client, url, format string, payload []byte, flags ...string) <-chan error {
	t.Helper()
	binary, err := exec.LookPath(client)
	if err != nil {
		t.Fatalf("libcoap's %s is needed, `make deps` installs it: %v", client, err)
	}
	file := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(file, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-v", "6", "-B", "30", "-m", "post", "-f", file}, flags...)
	if format != "" {
		args = append(args, "-t", format)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	cmd := exec.CommandContext(ctx, binary, append(args, url)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	result, over := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(over)
		err := cmd.Wait()
		switch codes := answerCode.FindAllStringSubmatch(out.String(), -1); {
		case len(codes) == 0:
			result <- fmt.Errorf("no answer: %v %s", err, out.String())
		case codes[len(codes)-1][1] == "2.04":
			result <- nil
		default:
			result <- fmt.Errorf("answer %s: %s", codes[len(codes)-1][1], out.String())
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
	return result
}

var answerCode = regexp.MustCompile(`c:([2-5]\.\d\d)`)

func wait(t testing.TB, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		t.Fatal("no result")
		return nil
	}
}

func TestDriverWithLibcoap(t *testing.T) {
	devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
		var s *coap.Server
		return devicetest.Harness{
			New: func(t testing.TB) devices.Driver { s = newServer(t, coap.Config{}); return s },
			Send: func(t testing.TB, value string) <-chan error {
				return libcoap(t, s, "d/kitchen", "110", senml(value))
			},
			SendGarbage: func(t testing.TB) { libcoap(t, s, "d/kitchen", "110", []byte("\xff[{")) },
		}
	})
}

func TestDriverWithPoster(t *testing.T) {
	devicetest.RunDriver(t, func(t *testing.T) devicetest.Harness {
		var s *coap.Server
		send := func(t testing.TB, payload []byte) <-chan error {
			p, err := coap.Dial(t.Context(), s.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			acked, over := make(chan error, 1), make(chan struct{})
			go func() {
				defer close(over)
				code, err := p.Post(ctx, "/d/kitchen", coap.SenMLJSON, payload)
				if err == nil && code != coap.Changed {
					err = fmt.Errorf("answer %v", code)
				}
				acked <- err
			}()
			t.Cleanup(func() {
				cancel()
				<-over
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			})
			return acked
		}
		return devicetest.Harness{
			New:         func(t testing.TB) devices.Driver { s = newServer(t, coap.Config{}); return s },
			Send:        func(t testing.TB, value string) <-chan error { return send(t, senml(value)) },
			SendGarbage: func(t testing.TB) { send(t, []byte("\xff[{")) },
		}
	})
}

func TestContentFormats(t *testing.T) {
	// [{"n":"temperature","u":"Cel","v":21.5}] by the labels of RFC 8428 section 6.
	cbor, err := hex.DecodeString("81a3006b74656d706572617475726501634365" + "6c02f94d60")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path, format string
		payload            []byte
		field, value       string
	}{
		{"SenML JSON", "d/kitchen", "110", senml("21.50"), "temperature", "21.50"},
		{"SenML CBOR", "d/kitchen", "112", cbor, "temperature", "21.5"},
		{"JSON", "d/shed", "50", []byte(`{"temperature": 21.50}`), "temperature", "21.50"},
		{"plain number", "d/scale/weight", "0", []byte("21.50\n"), "weight", "21.50"},
		{"plain number without a format", "d/scale/weight", "", []byte("21.50"), "weight", "21.50"},
	} {
		for _, kind := range [][]string{nil, {"-N"}, {"-m", "put"}} {
			t.Run(c.name+strings.Join(kind, ""), func(t *testing.T) {
				sink := &devicetest.Sink{Auto: true}
				s := start(t, coap.Config{}, sink, sink)
				if err := wait(t, libcoap(t, s, c.path, c.format, c.payload, kind...)); err != nil {
					t.Fatal(err)
				}
				m := sink.WaitMessages(t, 1)[0]
				if len(m.Readings) != 1 || len(m.Readings[0].Fields) != 1 {
					t.Fatalf("want one field, got %+v", m.Readings)
				}
				if f := m.Readings[0].Fields[0]; f.Name != c.field || f.Value.String() != c.value {
					t.Errorf("want %s %s, got %s %s", c.field, c.value, f.Name, f.Value)
				}
				if m.Origin == (devices.Origin{}) || m.Redelivered || m.Window != 0 {
					t.Errorf("origin %x, redelivered %v, window %d", m.Origin, m.Redelivered, m.Window)
				}
			})
		}
	}
}

func TestAnswers(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	for i, c := range []struct {
		name    string
		code    codes.Code
		path    string
		format  int
		payload string
		option  *message.Option
		want    codes.Code
		says    string
	}{
		{"good", codes.POST, "d/kitchen", 110, string(senml("1")), nil, codes.Changed, ""},
		{"good with an unknown elective option", codes.POST, "d/kitchen", 110, string(senml("1")), &message.Option{ID: 2048}, codes.Changed, ""},
		{"good with a query and a trailing slash", codes.PUT, "d/kitchen/", 110, string(senml("1")), &message.Option{ID: message.URIQuery, Value: []byte("a=b")}, codes.Changed, ""},
		{"unknown device", codes.POST, "d/cellar", 110, string(senml("1")), nil, codes.NotFound, "no such device"},
		{"unknown path", codes.POST, "x", 110, string(senml("1")), nil, codes.NotFound, "/d/<device>"},
		{"no device", codes.POST, "d", 110, string(senml("1")), nil, codes.NotFound, "/d/<device>"},
		{"not SenML", codes.POST, "d/kitchen", 110, "{", nil, codes.BadRequest, ""},
		{"nothing", codes.POST, "d/kitchen", 110, "", nil, codes.BadRequest, ""},
		{"GET", codes.GET, "d/kitchen", 0, "", nil, codes.MethodNotAllowed, "POST"},
		{"DELETE", codes.DELETE, "d/kitchen", 0, "", nil, codes.MethodNotAllowed, "POST"},
		{"FETCH", 5, "d/kitchen", 0, "", nil, codes.MethodNotAllowed, "POST"},
		{"XML", codes.POST, "d/kitchen", 41, "<a/>", nil, codes.UnsupportedMediaType, "110"},
		{"critical option", codes.POST, "d/kitchen", 110, string(senml("1")), &message.Option{ID: 2049}, codes.BadOption, "2049"},
		{"proxy", codes.POST, "d/kitchen", 110, string(senml("1")), &message.Option{ID: message.ProxyScheme, Value: []byte("http")}, codes.ProxyingNotSupported, ""},
		{"discovery", codes.GET, ".well-known/core", 0, "", nil, codes.Content, "</d>"},
		{"discovery by POST", codes.POST, ".well-known/core", 0, "", nil, codes.MethodNotAllowed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, s.Addr())
			var more []message.Option
			if c.option != nil {
				more = append(more, *c.option)
			}
			client.send(request(t, message.Confirmable, c.code, int32(i), c.path, c.format, []byte(c.payload), more...))
			m := client.receive()
			if m.Type != message.Acknowledgement || m.MessageID != int32(i) || !bytes.Equal(m.Token, []byte{0xa, byte(i)}) {
				t.Errorf("the answer does not belong to the request: %v", m.String())
			}
			if m.Code != c.want || !strings.Contains(string(m.Payload), c.says) {
				t.Errorf("want %v with %q, got %v with %q", c.want, c.says, m.Code, m.Payload)
			}
			if m.Code >= codes.BadRequest && (len(m.Payload) == 0 || len(m.Payload) > 200) {
				t.Errorf("the diagnostic text has %d bytes", len(m.Payload))
			}
		})
	}
}

// A bomb is a decoder that panics.
type bomb struct{ coap.Decoder }

func (bomb) Decode(profile.Place, profile.Message) (profile.Output, error) { panic("boom") }

// TestDecoderPanics: who made it panic is answered, and all others are served.
func TestDecoderPanics(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := coap.New(coap.Config{Listen: "127.0.0.1:0"}, []coap.Device{
		{Device: devices.Device{ID: "bad"}, Profile: bomb{builtin(t, "senml")}, Place: profile.Place{Device: "bad"}},
		{Device: devices.Device{ID: "kitchen"}, Profile: builtin(t, "senml"), Place: profile.Place{Device: "kitchen"}},
	}, slog.New(slog.DiscardHandler))
	run(t, s, sink)
	sink.WaitUp(t, 1)
	client := dial(t, s.Addr())
	for i, device := range []string{"bad", "kitchen", "bad", "kitchen"} {
		want := codes.BadRequest
		if device == "kitchen" {
			want = codes.Changed
		}
		if m := client.ask(post(t, int32(i+1), device, "1")); m.Code != want {
			t.Errorf("%s: %v", device, m.Code)
		}
	}
	if rejected := sink.WaitRejections(t, 2); !strings.Contains(rejected[0].Why.Error(), "boom") {
		t.Errorf("%v", rejected[0].Why)
	}
}

func TestUnavailable(t *testing.T) {
	sink := &devicetest.Sink{}
	s := start(t, coap.Config{}, sink, sink)
	client := dial(t, s.Addr())
	check := func(t *testing.T) {
		m := client.receive()
		if age, err := m.Options.GetUint32(message.MaxAge); m.Code != codes.ServiceUnavailable || err != nil || age == 0 {
			t.Fatalf("want 5.03 with Max-Age, got %v, %v", m.Code, err)
		}
	}
	t.Run("the reading was lost", func(t *testing.T) {
		client.send(post(t, 1, "kitchen", "1"))
		sink.WaitMessages(t, 1)[0].Settle(errors.New("lost"))
		check(t)
	})
	t.Run("the outbox is full", func(t *testing.T) {
		sink.SetFull(true)
		client.send(post(t, 2, "kitchen", "1"))
		check(t)
		sink.SetFull(false)
	})
}

// A request that comes again before its reading is safe is neither reported
// again nor answered; one that comes after is answered as the first was.
func TestRepetitions(t *testing.T) {
	sink := &devicetest.Sink{}
	s := start(t, coap.Config{}, sink, sink)
	client := dial(t, s.Addr())
	first := post(t, 7, "kitchen", "1")
	for range 5 {
		client.send(first)
	}
	m := sink.WaitMessages(t, 1)[0]
	client.send(first)
	client.silent()
	m.Settle(nil)
	if a := client.receive(); a.Type != message.Acknowledgement || a.MessageID != 7 || a.Code != codes.Changed {
		t.Fatalf("want 2.04, got %v", a.String())
	}
	for range 3 {
		client.send(first)
		if a := client.receive(); a.Type != message.Acknowledgement || a.MessageID != 7 || a.Code != codes.Changed {
			t.Fatalf("want 2.04 again, got %v", a.String())
		}
	}
	// The same message ID with something else in it is another message: the
	// device was reset.
	client.send(post(t, 7, "kitchen", "2"))
	all := sink.WaitMessages(t, 2)
	if len(all) != 2 || all[1].Readings[0].Fields[0].Value.String() != "2" {
		t.Fatalf("want the two readings once each, got %d messages", len(all))
	}
	if all[0].Origin == all[1].Origin {
		t.Error("two messages have one origin")
	}

	non := request(t, message.NonConfirmable, codes.POST, 8, "d/kitchen", coap.SenMLJSON, senml("3"))
	client.send(non)
	client.send(non)
	client.send(post(t, 9, "kitchen", "4"))
	if all = sink.WaitMessages(t, 4); len(all) != 4 || all[3].Readings[0].Fields[0].Value.String() != "4" {
		t.Fatalf("a repeated non-confirmable request was reported again: %d messages", len(all))
	}
}

// RFC 7252 section 5.2.2: what takes long is acknowledged first and answered
// in a message of its own, which is repeated until it is acknowledged.
func TestSeparateAnswer(t *testing.T) {
	sink := &devicetest.Sink{}
	s := startSlow(t, sink)
	client := dial(t, s.Addr())
	ask := post(t, 21, "kitchen", "1")
	client.send(ask)
	m := sink.WaitMessages(t, 1)[0]
	for range 2 { // the second is the answer to a repetition
		if a := client.receive(); a.Type != message.Acknowledgement || a.Code != codes.Empty || a.MessageID != 21 || len(a.Token) != 0 {
			t.Fatalf("want an empty acknowledgement, got %v", a.String())
		}
		client.send(ask)
	}
	if a := client.receive(); a.Code != codes.Empty {
		t.Fatalf("want another empty acknowledgement, got %v", a.String())
	}
	m.Settle(nil)
	first := client.receive()
	if first.Type != message.Confirmable || first.Code != codes.Changed || !bytes.Equal(first.Token, []byte{0xa, 21}) {
		t.Fatalf("want a confirmable 2.04, got %v", first.String())
	}
	again := client.receive() // for want of an acknowledgement
	if again.MessageID != first.MessageID || again.Code != codes.Changed {
		t.Fatalf("want the same again, got %v", again.String())
	}
	client.send([]byte{0x60, 0, byte(first.MessageID >> 8), byte(first.MessageID)})
	client.silent()
	if all := sink.WaitMessages(t, 1); len(all) != 1 {
		t.Fatalf("reported %d times", len(all))
	}
}

func TestSeparateAnswerToLibcoap(t *testing.T) {
	sink := &devicetest.Sink{}
	s := startSlow(t, sink)
	acked := libcoap(t, s, "d/kitchen", "110", senml("1"))
	m := sink.WaitMessages(t, 1)[0]
	// A whole exchange goes by before the reading is safe.
	client := dial(t, s.Addr())
	client.send(post(t, 1, "kitchen", "2"))
	client.receive()
	select {
	case err := <-acked:
		t.Fatalf("answered before the reading was safe: %v", err)
	default:
	}
	m.Settle(nil)
	if err := wait(t, acked); err != nil {
		t.Fatal(err)
	}
}

func TestNonConfirmableIsAnsweredWhenSafe(t *testing.T) {
	sink := &devicetest.Sink{}
	s := start(t, coap.Config{}, sink, sink)
	client := dial(t, s.Addr())
	client.send(request(t, message.NonConfirmable, codes.POST, 3, "d/kitchen", coap.SenMLJSON, senml("1")))
	m := sink.WaitMessages(t, 1)[0]
	client.silent()
	m.Settle(nil)
	if a := client.receive(); a.Type != message.NonConfirmable || a.Code != codes.Changed || !bytes.Equal(a.Token, []byte{0xa, 3}) {
		t.Fatalf("want a non-confirmable 2.04, got %v", a.String())
	}
}

// CoAP does not say what is a repetition; after a start the server does.
func TestResumed(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{Resumed: true}, sink, sink)
	client := dial(t, s.Addr())
	client.send(post(t, 1, "kitchen", "1"))
	client.send(request(t, message.NonConfirmable, codes.POST, 2, "d/kitchen", coap.SenMLJSON, senml("2")))
	all := sink.WaitMessages(t, 2)
	if !all[0].Redelivered || all[1].Redelivered {
		t.Errorf("want the confirmable one as possibly redelivered, got %v, %v", all[0].Redelivered, all[1].Redelivered)
	}
}

// What may have been taken before the start is not refused: the device would
// report it anew, as a message that nobody recognises.
func TestResumedIsNotRefused(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{Resumed: true}, sink, sink)
	client := dial(t, s.Addr())
	sink.SetFull(true)
	first := post(t, 1, "kitchen", "1")
	client.send(first)
	client.send(request(t, message.NonConfirmable, codes.POST, 2, "d/kitchen", coap.SenMLJSON, senml("2")))
	if a := client.receive(); a.Code != codes.ServiceUnavailable || !bytes.Equal(a.Token, []byte{0xa, 2}) {
		t.Fatalf("want 5.03 for the one that cannot be a repetition, got %v", a.String())
	}
	client.silent()
	sink.SetFull(false)
	client.send(first)
	if a := client.receive(); a.Code != codes.Changed || a.MessageID != 1 {
		t.Fatalf("want 2.04, got %v", a.String())
	}
	if all := sink.WaitMessages(t, 1); !all[0].Redelivered {
		t.Error("it is not reported as possibly redelivered")
	}
	client.send(first)
	if a := client.receive(); a.Code != codes.Changed || len(sink.WaitMessages(t, 1)) != 1 {
		t.Fatalf("want 2.04 again and no second report, got %v", a.String())
	}
}

func TestBlocks(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	// Blanks make a pack of any size with one reading.
	pack := func(size int) []byte { return append(senml("1"), bytes.Repeat([]byte(" "), size-len(senml("1")))...) }

	t.Run("libcoap sends a body in blocks", func(t *testing.T) {
		for i, flags := range [][]string{nil, {"-b", "64"}, {"-b", "1024"}} {
			if err := wait(t, libcoap(t, s, "d/kitchen", "110", pack(5000), flags...)); err != nil {
				t.Fatal(err)
			}
			if all := sink.WaitMessages(t, i+1); len(all) != i+1 {
				t.Fatalf("want %d messages, got %d", i+1, len(all))
			}
		}
	})
	t.Run("libcoap sends too large a body", func(t *testing.T) {
		err := wait(t, libcoap(t, s, "d/kitchen", "110", pack(20000)))
		if err == nil || !strings.Contains(err.Error(), "answer 4.13") {
			t.Fatalf("want 4.13, got %v", err)
		}
	})
	block := func(mid int32, number uint32, more bool, payload []byte) []byte {
		v := number<<4 | 2 // 64 bytes
		if more {
			v |= 8
		}
		return request(t, message.Confirmable, codes.POST, mid, "d/kitchen", 110, payload, option(message.Block1, v))
	}
	type step struct {
		number uint32
		more   bool
		bytes  []byte
		want   codes.Code
	}
	body := pack(150)
	for _, c := range []struct {
		name  string
		steps []step
		taken int
	}{
		{"in order", []step{{0, true, body[:64], codes.Continue}, {1, true, body[64:128], codes.Continue}, {2, false, body[128:], codes.Changed}}, 1},
		{"a lone block", []step{{0, false, senml("1"), codes.Changed}}, 1},
		{"the last block alone", []step{{2, false, body[128:], codes.RequestEntityIncomplete}}, 0},
		{"one is missing", []step{{0, true, body[:64], codes.Continue}, {2, false, body[128:], codes.RequestEntityIncomplete}}, 0},
		{"begun again", []step{{0, true, body[:64], codes.Continue}, {0, true, body[:64], codes.Continue}, {1, true, body[64:128], codes.Continue}, {2, false, body[128:], codes.Changed}}, 1},
		{"a short block", []step{{0, true, body[:60], codes.BadRequest}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := &devicetest.Sink{Auto: true}
			s := start(t, coap.Config{}, sink, sink)
			client := dial(t, s.Addr())
			for i, step := range c.steps {
				client.send(block(int32(i), step.number, step.more, step.bytes))
				if m := client.receive(); m.Code != step.want {
					t.Fatalf("step %d: want %v, got %v %q", i, step.want, m.Code, m.Payload)
				}
			}
			client.send(post(t, 100, "kitchen", "9"))
			client.receive()
			if all := sink.WaitMessages(t, 1); len(all) != c.taken+1 {
				t.Fatalf("want %d messages and the last, got %d", c.taken, len(all))
			}
		})
	}
	t.Run("a body without end", func(t *testing.T) {
		client := dial(t, s.Addr())
		for i := range int32(1000) {
			client.send(block(i, uint32(i), true, bytes.Repeat([]byte(" "), 64)))
			switch m := client.receive(); m.Code {
			case codes.Continue:
			case codes.RequestEntityTooLarge:
				if size, err := m.Options.GetUint32(message.Size1); err != nil || size != 8<<10 || i != 128 {
					t.Fatalf("want 4.13 at block 128 with the limit, got it at %d with %d, %v", i, size, err)
				}
				return
			default:
				t.Fatalf("got %v", m.Code)
			}
		}
		t.Fatal("64000 bytes were taken")
	})
}

func TestTooLargeDatagram(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	client := dial(t, s.Addr())
	client.send(request(t, message.Confirmable, codes.POST, 5, "d/kitchen", 110, bytes.Repeat([]byte(" "), 60000)))
	if m := client.receive(); m.Code != codes.RequestEntityTooLarge || m.MessageID != 5 {
		t.Fatalf("want 4.13, got %v", m.String())
	}
	sink.WaitRejections(t, 1)
}

// What one socket sends, however broken, has no effect on another one, nor on
// what the same socket sends next.
func TestMalformedDatagrams(t *testing.T) {
	sink := &devicetest.Sink{}
	s := start(t, coap.Config{}, sink, sink)
	good, bad := dial(t, s.Addr()), dial(t, s.Addr())
	good.send(post(t, 1, "kitchen", "1"))
	bad.send(post(t, 1, "kitchen", "2"))
	sink.WaitMessages(t, 2)

	malformed := [][]byte{
		{},                             // empty
		{0x40},                         // cut
		{0x40, 2, 0},                   // cut
		{0x00, 2, 0, 1},                // version 0
		{0xc0, 2, 0, 1},                // version 3
		{0x49, 2, 0, 1, 1, 2, 3, 4, 5}, // token of 9 bytes
		{0x44, 2, 0, 2, 1},             // token cut
		{0x40, 2, 0, 3, 0xf1},          // reserved option delta
		{0x40, 2, 0, 4, 0xb9, 1},       // option cut
		append([]byte{0x40, 2, 0, 5}, bytes.Repeat([]byte{0x10}, 500)...), // many options
		{0x40, 0x45, 0, 6}, // an answer nobody asked for
		{0x40, 0xe1, 0, 7}, // a reserved class
	}
	for _, b := range malformed {
		bad.send(b)
	}
	resets := 0
	for resets < 7 {
		if m := bad.receive(); m.Type != message.Reset {
			t.Fatalf("want resets, got %v", m.String())
		}
		resets++
	}
	if got := sink.WaitRejections(t, len(malformed)); len(got) != len(malformed) {
		t.Errorf("want %d rejections, got %v", len(malformed), got)
	}
	all := sink.WaitMessages(t, 2)
	all[0].Settle(nil)
	all[1].Settle(nil)
	for _, c := range []*client{good, bad} {
		if m := c.receive(); m.Code != codes.Changed {
			t.Fatalf("want 2.04, got %v", m.String())
		}
	}
}

// blocking is a sink that takes no reading of one device until it is released.
type blocking struct {
	*devicetest.Sink
	device   devices.ID
	entered  chan struct{}
	released chan struct{}
}

func (b *blocking) Report(ctx context.Context, m devices.Message) (devices.Receipt, error) {
	if m.Readings[0].Device == b.device {
		b.entered <- struct{}{}
		<-b.released
	}
	return b.Sink.Report(ctx, m)
}

// While one peer floods, and all it sends hangs in the sink, another is served.
func TestFloodStallsNobodyElse(t *testing.T) {
	recorder := &devicetest.Sink{Auto: true}
	sink := &blocking{Sink: recorder, device: "shed", entered: make(chan struct{}, 1000), released: make(chan struct{})}
	s := start(t, coap.Config{}, sink, recorder)
	t.Cleanup(func() { close(sink.released) })
	flood, other := dial(t, s.Addr()), dial(t, s.Addr())
	send := func(n int) {
		for i := range n {
			flood.send(request(t, message.Confirmable, codes.POST, int32(i), "d/shed", coap.JSON, []byte(`{"a":1}`)))
		}
	}
	send(500)
	<-sink.entered
	for i := range int32(20) {
		send(100)
		// What overflows the socket's buffer is lost for everybody, so that the
		// other one may have to repeat itself.
		if m := other.ask(post(t, i, "kitchen", strconv.Itoa(int(i)))); m.Code != codes.Changed || m.MessageID != i {
			t.Fatalf("want 2.04 for request %d, got %v", i, m.String())
		}
	}
	if n := len(sink.entered); n != 0 {
		t.Errorf("one peer holds %d more workers", n)
	}
	for i, m := range recorder.WaitMessages(t, 20) {
		if v := m.Readings[0].Fields[0].Value.String(); v != strconv.Itoa(i) {
			t.Errorf("message %d has value %s: out of order", i, v)
		}
	}
}

// A peer whose readings never become safe fills its own places only.
func TestOpenRequestsAreBounded(t *testing.T) {
	sink := &devicetest.Sink{}
	s := start(t, coap.Config{}, sink, sink)
	greedy, other := dial(t, s.Addr()), dial(t, s.Addr())
	for i := range int32(17) {
		greedy.send(post(t, i, "kitchen", "1"))
	}
	if m := greedy.receive(); m.Code != codes.ServiceUnavailable || m.MessageID != 16 {
		t.Fatalf("want 5.03 for the 17th, got %v", m.String())
	}
	other.send(post(t, 1, "kitchen", "2"))
	for _, m := range sink.WaitMessages(t, 17) {
		if m.Readings[0].Fields[0].Value.String() == "2" {
			m.Settle(nil)
		}
	}
	if m := other.receive(); m.Code != codes.Changed {
		t.Fatalf("want 2.04, got %v", m.String())
	}
}

// A device that speaks to one of several addresses of the gateway hears the
// answer from that one.
func TestAnswersFromTheAddressAsked(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		t.Run(host, func(t *testing.T) {
			sink := &devicetest.Sink{Auto: true}
			s := start(t, coap.Config{Listen: ":0"}, sink, sink)
			to := &net.UDPAddr{IP: net.ParseIP(host), Port: s.Addr().(*net.UDPAddr).Port}
			if probe, err := net.DialUDP("udp", nil, to); err != nil {
				t.Skipf("this machine has no %s: %v", host, err)
			} else {
				_ = probe.Close()
			}
			client := dial(t, to) // is connected: hears nobody else
			client.send(post(t, 1, "kitchen", "1"))
			if m := client.receive(); m.Code != codes.Changed {
				t.Fatalf("want 2.04, got %v", m.String())
			}
		})
	}
}

func TestCannotListen(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	s := newServer(t, coap.Config{Listen: taken.LocalAddr().String()})
	err = s.Run(t.Context(), &devicetest.Sink{})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), taken.LocalAddr().String()) {
		t.Errorf("want an error that names the address, got %v", err)
	}
	s = newServer(t, coap.Config{Listen: "nonsense"})
	if err := s.Run(t.Context(), &devicetest.Sink{}); err == nil {
		t.Error("want an error for an address without a port")
	}
}

func TestRunAgain(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := newServer(t, coap.Config{})
	for i := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx, sink) }()
		sink.WaitUp(t, i+1)
		client := dial(t, s.Addr())
		client.send(post(t, 1, "kitchen", "1"))
		if m := client.receive(); m.Code != codes.Changed {
			t.Fatalf("want 2.04, got %v", m.String())
		}
		cancel()
		if err := wait(t, ended); err != nil {
			t.Fatal(err)
		}
		if s.Addr() != nil {
			t.Error("a stopped server has an address")
		}
	}
}

// TestAdopts changes the devices of a server at work: what it answered before
// it still knows.
func TestAdopts(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := start(t, coap.Config{}, sink, sink)
	client := dial(t, s.Addr())
	first := client.ask(post(t, 1, "kitchen", "1"))
	attic := coap.Device{Device: devices.Device{ID: "attic"}, Profile: builtin(t, "senml"), Place: profile.Place{Device: "attic", Location: time.UTC}}
	if !s.Adopt(coap.New(coap.Config{Listen: "127.0.0.1:0"}, []coap.Device{attic}, slog.New(slog.DiscardHandler))) {
		t.Fatal("another device is not adopted")
	}
	if again := client.ask(post(t, 1, "kitchen", "1")); again.Code != first.Code {
		t.Errorf("the repetition is answered %v, want %v", again.Code, first.Code)
	}
	if answer := client.ask(post(t, 2, "kitchen", "2")); answer.Code != codes.NotFound {
		t.Errorf("the device that is gone is answered %v", answer.Code)
	}
	client.ask(post(t, 3, "attic", "3"))
	if all := sink.WaitMessages(t, 2); len(all) != 2 || all[1].Readings[0].Device != "attic" {
		t.Errorf("%d messages, the last %+v", len(all), all[len(all)-1].Message)
	}
	if s.Adopt(coap.New(coap.Config{Listen: "127.0.0.1:1"}, nil, slog.New(slog.DiscardHandler))) {
		t.Error("another address is adopted")
	}
}
