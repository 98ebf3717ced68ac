package coap

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/profile/lwm2m"
)

// A lamp is a client of LwM2M as OMA LwM2M Core 1.1 section 6 has it be; no
// client that is a program could be had. It has a thermometer (3303/0), a light
// (3311/0) and the object of the device (3/0).
type lamp struct {
	*device
	format int

	mu       sync.Mutex
	on       bool
	rebooted int
	observer message.Token // of 3303/0
	asked    []string      // what it was
	deaf     bool
}

const lampLinks = `</>;rt="oma.lwm2m",</1/0>,</3/0>,</3303/0>,</3311/0>`

func newLamp(t testing.TB, format int) *lamp {
	l := &lamp{format: format}
	l.device = script(t, l.serve)
	return l
}

// object writes what the lamp has in the format that it has.
func (l *lamp) object(path string) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	values := map[string]string{"3303/0/5700": "21.5", "3/0/0": "Lamp Makers", "3/0/9": "87", "3311/0/5850": fmt.Sprint(l.on), "3311/0/5851": "40"}
	var tlv []byte
	var records []string
	for _, at := range []string{"3/0/0", "3/0/9", "3303/0/5700", "3311/0/5850", "3311/0/5851"} {
		if at != path && !strings.HasPrefix(at, path+"/") {
			continue
		}
		where, _ := lwm2m.ParsePath(at)
		v, _, err := lwm2m.Parse(values[at], where)
		if err != nil {
			l.t.Error(err)
		}
		if tlv, err = lwm2m.AppendTLV(tlv, where, v); err != nil {
			l.t.Error(err)
		}
		record, err := lwm2m.Pack(where, v, false)
		if err != nil {
			l.t.Error(err)
		}
		records = append(records, strings.Trim(string(record), "[]"))
	}
	if l.format == SenMLJSON {
		return []byte("[" + strings.Join(records, ",") + "]")
	}
	return tlv
}

func (l *lamp) serve(m message.Message) []message.Message {
	path := strings.Join(pathOf(m), "/")
	if !isRequest(m) {
		return nil
	}
	l.mu.Lock()
	l.asked = append(l.asked, fmt.Sprintf("%v %s", m.Code, path))
	deaf := l.deaf
	l.mu.Unlock()
	if deaf || m.Type != message.Confirmable {
		return nil
	}
	accept, err := m.Options.GetUint32(message.Accept)
	known := slices.Contains([]string{"3/0", "3303/0", "3311/0", "3303/0/5700", "3311/0/5850", "3311/0/5851", "3/0/9", "3/0/4"}, path)
	switch {
	case !known:
		return []message.Message{reply(m, codes.NotFound, "")}
	case m.Code == codes.GET && err == nil && accept == linkList:
		links := map[string]string{
			"3/0": "</3/0>,</3/0/0>,</3/0/4>,</3/0/9>", "3303/0": "</3303/0>,</3303/0/5700>,</3303/0/5605>",
			"3311/0": "</3311/0>;pmin=10,</3311/0/5850>,</3311/0/5851>,</3311/0/5750>",
		}
		return []message.Message{reply(m, codes.Content, links[path], uintOption(message.ContentFormat, linkList))}
	case m.Code == codes.GET && err == nil && int(accept) != l.format:
		return []message.Message{reply(m, codes.NotAcceptable, "")}
	case m.Code == codes.GET:
		o := []message.Option{uintOption(message.ContentFormat, uint32(l.format))}
		if registers(m) {
			o = append(o, uintOption(message.Observe, 1))
			if path == "3303/0" {
				l.mu.Lock()
				l.observer = slices.Clone(m.Token)
				l.mu.Unlock()
			}
		}
		return []message.Message{reply(m, codes.Content, string(l.object(path)), o...)}
	case m.Code == codes.PUT && path == "3311/0/5850":
		if f, _ := m.Options.GetUint32(message.ContentFormat); int(f) != l.format {
			return []message.Message{reply(m, codes.UnsupportedMediaType, "")}
		}
		v, _ := lwm2m.ParsePath(path)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.format == LwM2MTLV {
			values, err := lwm2m.ParseTLV(m.Payload, v)
			if err != nil || len(values) != 1 {
				return []message.Message{reply(m, codes.BadRequest, "")}
			}
			l.on = values[0].Value.Bool()
		} else {
			l.on = strings.Contains(string(m.Payload), "true")
		}
		return []message.Message{reply(m, codes.Changed, "")}
	case m.Code == codes.POST && path == "3/0/4":
		l.mu.Lock()
		defer l.mu.Unlock()
		l.rebooted++
		return []message.Message{reply(m, codes.Changed, "")}
	}
	return []message.Message{reply(m, codes.MethodNotAllowed, "not this")}
}

// report notifies of another temperature.
func (l *lamp) report(number uint32, payload []byte) {
	l.mu.Lock()
	token := l.observer
	l.mu.Unlock()
	l.device.mid++
	l.send(message.Message{
		Type: message.Confirmable, Code: codes.Content, MessageID: l.device.mid, Token: token, Payload: payload,
		Options: message.Options{uintOption(message.Observe, number), uintOption(message.ContentFormat, uint32(l.format))},
	})
}

func (l *lamp) was(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, a := range l.asked {
		if a == what {
			n++
		}
	}
	return n
}

func managed(id devices.ID) Device {
	d := askedDevice(id, "lwm2m", "")
	d.Identity = "urn:imei:490154203237518"
	return d
}

// A client registers, is observed, told, updated, and goes; in TLV by version
// 1.0, and in SenML by 1.1.
func TestLwM2MClient(t *testing.T) {
	for version, format := range map[string]int{"1.0": LwM2MTLV, "1.1": SenMLJSON} {
		t.Run(version, func(t *testing.T) {
			sink := &devicetest.Sink{Auto: true}
			s := serve(t, sink, managed("lamp"))
			l := newLamp(t, format)
			links := lampLinks
			if format == SenMLJSON {
				links = strings.Replace(links, `"oma.lwm2m"`, `"oma.lwm2m";ct=110`, 1)
			}
			created := l.ask(s, codes.POST, "/rd?ep=urn:imei:490154203237518&lt=600&b=U&lwm2m="+version, links)
			if created.Code != codes.Created || !strings.HasPrefix(location(created), "/rd/") {
				t.Fatalf("%v at %q: %s", created.Code, location(created), created.Payload)
			}
			sink.WaitAvailability(t, "lamp", devices.Online)
			await(t, sink, "temperature", "21.5")
			await(t, sink, "light_control", "false")
			await(t, sink, "light_control_dimmer", "40")
			await(t, sink, "battery_level", "87")
			waitFor(t, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.observer != nil })
			l.report(2, map[int][]byte{LwM2MTLV: {0xe4, 0x16, 0x44, 0x41, 0xb1, 0x99, 0x9a}, SenMLJSON: []byte(`[{"bn":"/3303/0/5700","v":22.2}]`)}[format])
			await(t, sink, "temperature", "22.2")

			// What it has can be told, and nothing else.
			waitFor(t, func() bool { return len(s.Controls("lamp")) == 4 })
			var names []string
			for _, c := range s.Controls("lamp") {
				names = append(names, c.Name)
			}
			if want := []string{"light_control", "light_control_dimmer", "reboot", "temperature_reset_min_and_max_measured_values"}; !slices.Equal(names, want) {
				t.Errorf("controls %v, want %v", names, want)
			}
			tell := func(name, argument string) (devices.Confirmation, error) {
				var c devices.Confirmation
				err := s.Execute(t.Context(), devices.Command{Device: "lamp", Name: name, Argument: argument}, func(what devices.Confirmation) { c = what })
				return c, err
			}
			if c, err := tell("light_control", "on"); err != nil || c.Field != "light_control" || !c.Value.Bool() {
				t.Errorf("on: %+v, %v", c, err)
			}
			await(t, sink, "light_control", "true")
			if _, err := tell("reboot", ""); err != nil || l.was("POST 3/0/4") != 1 {
				t.Errorf("reboot: %v, done %d times", err, l.rebooted)
			}
			if _, err := tell("light_control_dimmer", "70"); err == nil || !strings.Contains(err.Error(), "4.05: not this") {
				t.Errorf("what it refuses: %v", err)
			}
			for name, argument := range map[string]string{"light_control": "perhaps", "light_control_dimmer": "140", "nothing": "1"} {
				if _, err := tell(name, argument); err == nil {
					t.Errorf("%s %s is sent", name, argument)
				}
			}

			if a := l.ask(s, codes.POST, location(created)+"?lt=900", ""); a.Code != codes.Changed {
				t.Errorf("update: %v", a.Code)
			}
			if a := l.ask(s, codes.DELETE, location(created), ""); a.Code != codes.Deleted {
				t.Errorf("de-registration: %v", a.Code)
			}
			sink.WaitAvailability(t, "lamp", devices.Offline)
			if len(s.Controls("lamp")) != 0 {
				t.Error("it can be told something though it is gone")
			}
		})
	}
}

// A client in queue mode is asked while it is awake, and never else; what it is
// told while it sleeps is refused.
func TestLwM2MQueueMode(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := New(Config{Listen: "127.0.0.1:0", Profiles: library(t)}, []Device{managed("lamp")}, slog.New(slog.DiscardHandler))
	s.awake = 2 * time.Second
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx, sink) }()
	t.Cleanup(func() { stop(); <-over })
	sink.WaitUp(t, 1)
	l := newLamp(t, LwM2MTLV)
	created := l.ask(s, codes.POST, "/rd?ep=lamp&lwm2m=1.1&b=U&Q", strings.Replace(lampLinks, `"oma.lwm2m"`, `"oma.lwm2m";ct=11542`, 1))
	if created.Code != codes.Created {
		t.Fatal(created.Code)
	}
	sink.WaitAvailability(t, "lamp", devices.Sleeping)
	await(t, sink, "light_control", "false")
	waitFor(t, func() bool { return len(s.Controls("lamp")) == 4 })

	// It goes to sleep.
	waitFor(t, func() bool { return s.Asleep("lamp") })
	l.mu.Lock()
	l.deaf, l.asked = true, nil
	l.mu.Unlock()
	on := devices.Command{Device: "lamp", Name: "light_control", Argument: "on"}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Execute(short, on, func(devices.Confirmation) { t.Error("it is expected to do it") }); err == nil || !strings.Contains(err.Error(), "sleeps") {
		t.Errorf("told while it sleeps: %v", err)
	}
	l.mu.Lock()
	if len(l.asked) > 0 {
		t.Errorf("asked while it sleeps: %v", l.asked)
	}
	l.deaf = false
	l.mu.Unlock()

	// It wakes while somebody waits.
	done := make(chan error, 1)
	go func() { done <- s.Execute(t.Context(), on, func(devices.Confirmation) {}) }()
	if a := l.ask(s, codes.POST, location(created), ""); a.Code != codes.Changed {
		t.Errorf("update: %v", a.Code)
	}
	if err := <-done; err != nil {
		t.Errorf("told when it wakes: %v", err)
	}
	await(t, sink, "light_control", "true")
}

// A gateway that began anew has a client register again when that reports, and
// not when its lifetime ends.
func TestLwM2MAfterANewStart(t *testing.T) {
	sink := &devicetest.Sink{Auto: true}
	s := New(Config{Listen: "127.0.0.1:0", Profiles: library(t)}, []Device{managed("lamp")}, slog.New(slog.DiscardHandler))
	begin := func(s *Server) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- s.Run(ctx, sink) }()
		return func() { cancel(); <-over }
	}
	stop := begin(s)
	sink.WaitUp(t, 1)
	l := newLamp(t, LwM2MTLV)
	created := l.ask(s, codes.POST, "/rd?ep=lamp&lwm2m=1.0", lampLinks)
	waitFor(t, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.observer != nil })
	at := s.Addr().String()
	stop()
	s = New(Config{Listen: at, Profiles: library(t)}, []Device{managed("lamp")}, slog.New(slog.DiscardHandler))
	defer begin(s)()
	sink.WaitUp(t, 2)
	report := []byte{0xe4, 0x16, 0x44, 0x41, 0xb1, 0x99, 0x9a}
	for n := range uint32(3) {
		l.report(7+n, report)
	}
	waitFor(t, func() bool { return l.was("POST 1/0/8") == 1 })
	if a := l.ask(s, codes.POST, location(created), ""); a.Code != codes.NotFound {
		t.Errorf("the update that it then makes: %v", a.Code)
	}
	l.mu.Lock()
	l.observer = nil
	l.mu.Unlock()
	if a := l.ask(s, codes.POST, "/rd?ep=lamp&lwm2m=1.0", lampLinks); a.Code != codes.Created {
		t.Errorf("again: %v", a.Code)
	}
	waitFor(t, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.observer != nil })
}

// What changes in an update is asked for; versions that nobody speaks and other
// devices' names are refused; strangers are shown.
func TestLwM2MRegistrations(t *testing.T) {
	sink := &devicetest.Sink{Auto: true, Curious: true}
	s := serve(t, sink, managed("lamp"))
	l := newLamp(t, LwM2MTLV)
	if a := l.ask(s, codes.POST, "/rd?ep=lamp&lwm2m=3.0", lampLinks); a.Code != codes.PreconditionFailed {
		t.Errorf("version 3.0: %v", a.Code)
	}
	created := l.ask(s, codes.POST, "/rd?ep=lamp&lwm2m=1.0", `</>;rt="oma.lwm2m",</3311/0>`)
	await(t, sink, "light_control", "false")
	if n := l.was("GET 3303/0"); n != 0 {
		t.Errorf("asked %d times for what it does not have", n)
	}
	if a := l.ask(s, codes.POST, location(created), lampLinks); a.Code != codes.Changed {
		t.Errorf("update: %v", a.Code)
	}
	await(t, sink, "temperature", "21.5")

	stranger := newLamp(t, LwM2MTLV)
	if a := stranger.ask(s, codes.POST, "/rd?ep=Street%20Lamp&lwm2m=1.0", lampLinks); a.Code != codes.Created {
		t.Errorf("a stranger: %v", a.Code)
	}
	waitFor(t, func() bool {
		for _, one := range sink.WaitUnknown(t, 1) {
			for _, f := range one.Fields {
				if f.Name == "temperature" && one.Profile == "lwm2m" {
					return true
				}
			}
		}
		return false
	})
	many := []string{`</>;rt="oma.lwm2m"`}
	for i := range 300 {
		many = append(many, fmt.Sprintf("</%d/%d>", 3300+i%3, i))
	}
	links, err := profile.ParseLinks([]byte(strings.Join(many, ",")))
	if err != nil {
		t.Fatal(err)
	}
	m := newManager(asker{}, nil, links, map[string]string{"lwm2m": "1.0"})
	if got := fmt.Sprint(m.followed()); got != "[3300 3301 3302]" {
		t.Errorf("of very many objects %s are followed", got)
	}
}
