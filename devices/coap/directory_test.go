package coap

import (
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// serve runs a server until the test ends.
func serve(t testing.TB, sink *devicetest.Sink, devs ...Device) *Server {
	t.Helper()
	s := New(Config{Listen: "127.0.0.1:0", Profiles: library(t)}, devs, slog.New(slog.DiscardHandler))
	s.grace = 0
	drive(t, s, sink)
	return s
}

// ask sends a request to a server and gives its answer.
func (d *device) ask(s *Server, code codes.Code, url, payload string) message.Message {
	d.t.Helper()
	path, query, _ := strings.Cut(url, "?")
	q := get(segments(path))
	q.code, q.payload, q.format = code, []byte(payload), linkList
	if query != "" {
		q.query = strings.Split(query, "&")
	}
	m := q.message()
	d.mid++
	m.MessageID, m.Token = d.mid, []byte{byte(d.mid), 0xaa}
	d.mu.Lock()
	d.from = s.Addr()
	d.mu.Unlock()
	d.send(m)
	return d.next("answer", func(a message.Message) bool { return !isRequest(a) && string(a.Token) == string(m.Token) })
}

func location(m message.Message) string {
	where, _ := m.Options.LocationPath()
	return where
}

// thermometer answers as a device with one resource that can be observed.
func thermometer(links string) func(m message.Message) []message.Message {
	return func(m message.Message) []message.Message {
		o := []message.Option{uintOption(message.ContentFormat, SenMLJSON), uintOption(message.MaxAge, 3600)}
		switch {
		case !isRequest(m) || m.Type != message.Confirmable:
			return nil
		case strings.Join(pathOf(m), "/") == ".well-known/core":
			return []message.Message{reply(m, codes.Content, links)}
		case registers(m):
			return []message.Message{reply(m, codes.Content, temperature("22"), append(o, uintOption(message.Observe, 1))...)}
		case m.Code == codes.GET:
			return []message.Message{reply(m, codes.Content, temperature("21"), o...)}
		}
		return []message.Message{reply(m, codes.MethodNotAllowed, "")}
	}
}

const oneLink = `</temp>;ct=110;rt="temperature";obs`

// An endpoint registers, is observed, updates, and goes.
func TestRegistration(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	kitchen := askedDevice("kitchen", "senml", "")
	attic := askedDevice("attic", "senml", "")
	attic.Identity = "urn:dev:mac:0024befffe804ff1"
	s := serve(t, sink, kitchen, attic)
	d := script(t, thermometer(oneLink))
	created := d.ask(s, codes.POST, "/rd?ep=kitchen&lt=600", oneLink)
	where := location(created)
	if created.Code != codes.Created || !strings.HasPrefix(where, "/rd/") {
		t.Fatalf("%v at %q: %s", created.Code, where, created.Payload)
	}
	sink.WaitAvailability(t, "kitchen", devices.Online)
	await(t, sink, "temperature", "22")
	if a := d.ask(s, codes.POST, where+"?lt=900", ""); a.Code != codes.Changed {
		t.Errorf("update: %v %s", a.Code, a.Payload)
	}
	// It begins anew, and keeps its place.
	before := len(sink.WaitMessages(t, 1))
	if a := d.ask(s, codes.POST, "/rd?ep=kitchen", oneLink); a.Code != codes.Created || location(a) != where {
		t.Errorf("again: %v at %q", a.Code, location(a))
	}
	sink.WaitMessages(t, before+1) // it is observed again
	if a := d.ask(s, codes.GET, where, ""); a.Code != codes.MethodNotAllowed {
		t.Errorf("GET: %v", a.Code)
	}
	if a := d.ask(s, codes.DELETE, where, ""); a.Code != codes.Deleted {
		t.Errorf("removal: %v %s", a.Code, a.Payload)
	}
	sink.WaitAvailability(t, "kitchen", devices.Offline)
	d.next("cancellation", func(m message.Message) bool {
		v, err := m.Options.GetUint32(message.Observe)
		return isRequest(m) && err == nil && v == 1
	})
	if a := d.ask(s, codes.POST, where+"?lt=900", ""); a.Code != codes.NotFound {
		t.Errorf("after it: %v %s", a.Code, a.Payload)
	}

	// Without links, and by the name that its firmware has.
	other := script(t, thermometer(oneLink))
	for _, lifetime := range []string{"600", "1"} {
		if a := other.ask(s, codes.POST, "/.well-known/rd?ep=urn:dev:mac:0024befffe804ff1&lt="+lifetime, ""); a.Code != codes.Changed {
			t.Errorf("simple registration: %v %s", a.Code, a.Payload)
		}
		if lifetime == "600" {
			sink.WaitAvailability(t, "attic", devices.Online)
			other.next("registration of an observer", registers)
		}
	}
	sink.WaitAvailability(t, "attic", devices.Offline) // its lifetime has ended
}

func TestWrongRegistrations(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := serve(t, sink)
	d := script(t, thermometer(oneLink))
	for url, want := range map[string]codes.Code{
		"/rd": codes.BadRequest, "/rd?ep=": codes.BadRequest, "/rd?ep=a%00": codes.Created,
		"/rd?ep=a\x00": codes.BadRequest, "/rd?ep=" + strings.Repeat("x", 64): codes.BadRequest,
		"/rd?ep=a&lt=0": codes.BadRequest, "/rd?ep=a&lt=x": codes.BadRequest, "/rd?ep=a&ep=b": codes.BadRequest,
		"/rd?ep=a&base=coap://192.0.2.1:5683": codes.BadRequest, "/rd?ep=a&base=http://127.0.0.1": codes.BadRequest,
		"/rd?ep=a&base=coap://example.org": codes.BadRequest, "/rd?ep=a&base=coap://127.0.0.1:5683/x": codes.BadRequest,
		"/rd/nowhere": codes.NotFound, "/rd/a/b": codes.NotFound,
	} {
		if a := d.ask(s, codes.POST, url, oneLink); a.Code != want || a.Code >= codes.BadRequest && len(a.Payload) == 0 {
			t.Errorf("%q: %v %q, want %v", url, a.Code, a.Payload, want)
		}
	}
	if a := d.ask(s, codes.POST, "/rd?ep=a", "no links"); a.Code != codes.BadRequest {
		t.Errorf("no links: %v", a.Code)
	}
	if a := d.ask(s, codes.PUT, "/rd?ep=a", oneLink); a.Code != codes.MethodNotAllowed {
		t.Errorf("PUT: %v", a.Code)
	}
	for i := 1; ; i++ { // one is there already
		a := d.ask(s, codes.POST, fmt.Sprintf("/rd?ep=x%d", i), "")
		if a.Code == codes.Created && i < maxPeerRegistrations {
			continue
		}
		if a.Code != codes.ServiceUnavailable || i != maxPeerRegistrations {
			t.Errorf("registration %d: %v %s", i, a.Code, a.Payload)
		}
		break
	}
}

// An endpoint that nobody knows is shown with what it holds; once somebody has
// admitted it, it is observed.
func TestUnknownEndpoint(t *testing.T) {
	sink := &devicetest.Sink{Auto: true, Curious: true}
	s := serve(t, sink)
	d := script(t, thermometer(oneLink))
	if a := d.ask(s, codes.POST, "/rd?ep=Attic.1", oneLink); a.Code != codes.Created {
		t.Fatalf("%v %s", a.Code, a.Payload)
	}
	shown := sink.WaitUnknown(t, 2)[1]
	if shown.Place != "attic-1" || shown.Identity != "Attic.1" || shown.Profile != "senml" || len(shown.Fields) != 1 || shown.Fields[0].Name != "temperature" {
		t.Fatalf("%+v", shown)
	}
	admitted := askedDevice("attic-1", "senml", "")
	admitted.Identity = "Attic.1"
	if !s.Adopt(New(Config{Listen: "127.0.0.1:0", Profiles: library(t)}, []Device{admitted}, slog.New(slog.DiscardHandler))) {
		t.Fatal("not adopted")
	}
	await(t, sink, "temperature", "22")
}

// What registered can be told what to do.
func TestCommandToAnEndpoint(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := serve(t, sink, askedDevice("board", "riot", ""))
	told := make(chan string, 1)
	d := script(t, func(m message.Message) []message.Message {
		switch {
		case m.Code == codes.PUT:
			told <- strings.Join(pathOf(m), "/") + " " + string(m.Payload)
			return []message.Message{reply(m, codes.Changed, "")}
		case isRequest(m):
			return []message.Message{reply(m, codes.Content, "1", uintOption(message.ContentFormat, 0))}
		}
		return nil
	})
	command := devices.Command{Device: "board", Name: "value", Argument: "7"}
	if err := s.Execute(t.Context(), command, func(devices.Confirmation) {}); err == nil || !strings.Contains(err.Error(), "has not registered") {
		t.Errorf("before it registered: %v", err)
	}
	d.ask(s, codes.POST, "/rd?ep=board", `</riot/value>`)
	await(t, sink, "value", "1")
	if all := s.Controls("board"); len(all) != 1 || all[0].Name != "value" {
		t.Fatalf("%+v", all)
	}
	if err := s.Execute(t.Context(), command, func(devices.Confirmation) {}); err != nil {
		t.Fatal(err)
	}
	if got := next(t, told); got != "riot/value 7" {
		t.Errorf("told %q", got)
	}
}

// Whoever asks from an address that is not proven is sent no more than three
// times what came from there, and has all in the end.
func TestNoAmplification(t *testing.T) {
	s := serve(t, &devicetest.Sink{Auto: true})
	conn, err := net.DialUDP("udp", nil, s.Addr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	sent, received := 0, 0
	ask := func(q request, mid int32) message.Message {
		m := q.message()
		m.MessageID = mid
		b, err := encoded(m)
		if err != nil {
			t.Fatal(err)
		}
		sent += len(b)
		_, _ = conn.Write(b)
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 2000)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if received += n; received > amplification*sent {
			t.Errorf("after %v: %d bytes for %d", m.String(), received, sent)
		}
		return decoded(t, buf[:n])
	}
	core := get(path(".well-known/core"))
	first := ask(core, 1)
	v, err := first.Options.GetUint32(message.Block2)
	if first.Code != codes.Content || err != nil || v&8 == 0 {
		t.Fatalf("%v", first.String())
	}
	whole := string(first.Payload)
	for n := uint32(1); v&8 != 0; n++ {
		more := core
		more.options = message.Options{uintOption(message.Block2, n<<4|v&7)}
		m := ask(more, int32(n+1))
		if v, err = m.Options.GetUint32(message.Block2); err != nil || m.Code != codes.Content {
			t.Fatalf("%v", m.String())
		}
		whole += string(m.Payload)
	}
	if want := strings.Join(ownLinks, ","); whole != want {
		t.Errorf("got %q", whole)
	}
	long := ask(get(path("/x")), 100) // its text is longer than may be sent
	if long.Code != codes.NotFound {
		t.Errorf("%v", long.String())
	}
	for i := range int32(50) {
		_ = ask(get(path("d/y")), 200+i)
	}
}

// libcoap's client reads what there is, in the blocks that it is given.
func TestOwnLinks(t *testing.T) {
	s := serve(t, &devicetest.Sink{Auto: true})
	for query, want := range map[string]string{
		"": strings.Join(ownLinks, ","), "?rt=core.rd*": ownLinks[1], "?ct=110": ownLinks[0], "?href=/rd": ownLinks[1], "?rt=x": "",
	} {
		out, err := exec.Command("coap-client-notls", fmt.Sprintf("coap://%v/.well-known/core%s", s.Addr(), query)).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: %v: %s", query, err, out)
		}
	}
}

// Whatever is sent to an address that is not proven, and why ever, it gets three
// times what came from there, and not more; what it is asked proves it.
func TestForgedAddressIsSentLittle(t *testing.T) {
	d := script(t, func(m message.Message) []message.Message { return nil })
	s := asking(t, &devicetest.Sink{})
	d.mu.Lock()
	d.from = s.conn.LocalAddr()
	d.mu.Unlock()
	ping := message.Message{Type: message.Confirmable, MessageID: 7}
	d.send(ping) // 4 bytes, and 4 are the answer
	d.next("answer", func(m message.Message) bool { return m.Type == message.Reset })
	s.mu.Lock()
	p := s.peers[d.addr()]
	s.mu.Unlock()
	for range 10 {
		s.send(p, []byte{0x40, 0, 0, 1})
	}
	if p.room() != 0 {
		t.Errorf("%d bytes are left of 12", p.room())
	}
	p.proven.Store(true)
	s.send(p, []byte{0x40, 0, 0, 99})
	for n := 0; ; n++ {
		if m := d.next("ping", func(message.Message) bool { return true }); m.MessageID == 99 {
			if n != 2 {
				t.Errorf("%d messages were sent to it before it was proven, for want of room for more than 2", n)
			}
			break
		}
	}
}
