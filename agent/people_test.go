package agent_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// A phone is somebody's client.
type phone struct {
	t       *testing.T
	session *stream.Session
	mu      sync.Mutex
	heard   []stream.Stanza
	more    chan struct{}
}

func startPhone(t *testing.T, server *xmppserver.Server, user, password string) *phone {
	t.Helper()
	pem, err := os.ReadFile(server.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	p := &phone{t: t, more: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p.session, err = stream.Dial(ctx, stream.Config{
		Account: &stream.Account{JID: jid.MustParse(user + "@localhost"), Password: password, Server: server.C2S(), TLS: &tls.Config{RootCAs: roots}},
		Log:     slog.New(slog.DiscardHandler),
		Handler: func(_ *stream.Session, st stream.Stanza) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.heard = append(p.heard, st)
			close(p.more)
			p.more = make(chan struct{})
			return st.Name != "iq"
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.session.Close() })
	p.ask(stanza.GetIQ, "", `<query xmlns='jabber:iq:roster'/>`)
	p.send(`<presence/>`)
	return p
}

func (p *phone) send(text string, args ...any) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.session.Send(ctx, fmt.Appendf(nil, text, args...)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *phone) ask(kind stanza.IQType, to, payload string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	iq := stream.IQ{Type: kind, Payload: []byte(payload)}
	if to != "" {
		iq.To = jid.MustParse(to)
	}
	st, err := p.session.IQ(ctx, iq)
	if err != nil {
		p.t.Logf("%s is answered %v", payload, err)
	}
	return string(st.Inner)
}

// says writes to a contact, and waits for what is answered after it: the bodies
// of so many messages.
func (p *phone) says(to, text string, answers int) []string {
	p.t.Helper()
	p.mu.Lock()
	seen := len(p.heard)
	p.mu.Unlock()
	host := "porch.localhost"
	if to == "porch" {
		host = "localhost"
	}
	p.send(`<message to='%s@%s' type='chat' id='%d'><body>%s</body></message>`, to, host, time.Now().UnixNano(), text)
	var got []string
	p.wait("an answer to "+text, func(all []stream.Stanza) bool {
		got = nil
		for _, st := range all[seen:] {
			var m struct {
				Body string `xml:"body"`
			}
			// The greeting of a new gateway comes when it comes.
			if st.Name == "message" && st.From.Localpart() == to && st.Unmarshal(&m) == nil && m.Body != "" && !strings.HasPrefix(m.Body, "This is the gateway ") {
				got = append(got, m.Body)
			}
		}
		return len(got) >= answers
	})
	return got
}

func (p *phone) wait(what string, right func([]stream.Stanza) bool) {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		all, more := p.heard, p.more
		p.mu.Unlock()
		if right(all) {
			return
		}
		select {
		case <-more:
		case <-deadline:
			for _, st := range all {
				p.t.Logf("heard %s %s from %s: %s", st.Name, st.Type, st.From, st.Inner)
			}
			p.t.Fatalf("no %s", what)
		}
	}
}

func (p *phone) hears(name, kind, from, part string) {
	p.t.Helper()
	p.wait(fmt.Sprintf("%s %s %q from %s", name, kind, part, from), func(all []stream.Stanza) bool {
		for _, st := range all {
			if st.Name == name && st.Type == kind && strings.HasPrefix(st.From.String(), from) && strings.Contains(string(st.Inner), part) {
				return true
			}
		}
		return false
	})
}

// TestPeople has two people and a lamp, from the first word to the last: Anna
// claims the gateway, lets the lamp in and switches it, from a chat and a form;
// Bob asks, is let in, limited to hours, and shut out; and all of it is in the
// audit.
func TestPeople(t *testing.T) {
	s, server := newStreet(t)
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
`, server.ComponentAddr(), server.PubSub(), s.broker))
	startGateway(t, s.path, 3) // MQTT twice, itself
	anna, bob := startPhone(t, server, "anna", "anna's password"), startPhone(t, server, "bob", "bob's password")
	expect := func(p *phone, to, text string, want ...string) {
		t.Helper()
		for i, got := range p.says(to, text, len(want))[:len(want)] {
			if !strings.HasPrefix(got, want[i]) {
				t.Errorf("%s: answered %q, want %q", text, got, want[i])
			}
		}
	}

	code, err := os.ReadFile(filepath.Join(filepath.Dir(s.path), "data", "claim"))
	if err != nil {
		t.Fatal(err)
	}
	bob.send(`<message to='gateway@porch.localhost' type='chat' id='x'><body>claim AAAAA-AAAAA</body></message>`)
	expect(anna, "gateway", "claim "+strings.ToLower(strings.TrimSpace(string(code))), "this gateway is yours")

	lamp := startTasmota(t, s.broker, "lamp")
	s.pending("lamp")
	anna.hears("message", "chat", "gateway@porch.localhost", "lamp")
	expect(anna, "gateway", "pending", "1  device lamp")
	expect(anna, "gateway", "approve 1 as Hall lamp", "admitted as lamp")
	s.until("the lamp can be told", func() bool {
		lamp.says("tele/lamp/STATE", `{"POWER":"OFF","Dimmer":20}`, false)
		return strings.HasPrefix(anna.says("gateway", "hall lamp on", 1)[0], "sent")
	})
	anna.hears("message", "chat", "gateway@porch.localhost", "confirmed after ")
	anna.send(`<presence to='lamp@porch.localhost' type='subscribe'/>`)
	anna.hears("presence", "subscribed", "lamp@porch.localhost", "")
	expect(anna, "lamp", "off", "sent", "confirmed after ")
	expect(anna, "lamp", "set dimmer 140", "refused: dimmer: 140 is not within 0 to 100 %")
	form := anna.ask(stanza.SetIQ, "lamp@porch.localhost", `<command xmlns='http://jabber.org/protocol/commands' node='set' action='execute'/>`)
	var shown struct {
		Session string `xml:"sessionid,attr"`
	}
	if err := xml.Unmarshal([]byte(form), &shown); err != nil || !strings.Contains(form, `var="dimmer"`) {
		t.Fatalf("%s, %v", form, err)
	}
	if done := anna.ask(stanza.SetIQ, "lamp@porch.localhost", `<command xmlns='http://jabber.org/protocol/commands' node='set' action='complete' sessionid='`+shown.Session+
		`'><x xmlns='jabber:x:data' type='submit'><field var='dimmer'><value>40</value></field></x></command>`); !strings.Contains(done, "confirmed after ") {
		t.Errorf("the form: %s", done)
	}

	bob.send(`<presence to='lamp@porch.localhost' type='subscribe'/>`)
	anna.hears("message", "chat", "gateway@porch.localhost", "bob@localhost")
	expect(anna, "gateway", "approve 2 operator lamp", "bob@localhost is now operator")
	bob.hears("presence", "subscribed", "lamp@porch.localhost", "")
	bob.hears("presence", "", "lamp@porch.localhost/gw", "")
	expect(bob, "lamp", "toggle", "sent")
	expect(bob, "gateway", "grant bob@localhost owner", "refused: you may not do that")

	never := time.Now().AddDate(0, 0, 3).Format("Mon")
	expect(anna, "gateway", "grant bob@localhost operator lamp hours "+never+" 08:00-18:00", "bob@localhost is now operator for lamp, "+never+" 08:00-18:00")
	bob.hears("presence", "unavailable", "lamp@porch.localhost/gw", "")
	expect(bob, "lamp", "on", "refused: you may do that at other times only")
	expect(anna, "gateway", "revoke bob@localhost", "bob@localhost may no longer")
	bob.send(`<message to='lamp@porch.localhost' type='chat' id='y'><body>on</body></message>`)

	reader := startReader(t, server, "anna's password", "", "events")
	for _, title := range []string{"claim", "lamp: power on", "lamp: power off", "lamp: dimmer 40", "lamp: power toggle", "lamp: on", "grant bob@localhost", "revoke bob@localhost"} {
		reader.await(t, title, func(l line) bool { return l.Node == "porch/events" && strings.Contains(fmt.Sprint(l), title) })
	}
	if n := len(lamp.told); n != 4 {
		t.Errorf("the lamp was told %d times", n)
	}
}

// TestPeopleOfAnAccount has an operator of one lamp talk to a gateway that is
// an account: its one contact, in chat and by a form.
func TestPeopleOfAnAccount(t *testing.T) {
	s, server := newStreet(t)
	write(t, filepath.Join(filepath.Dir(s.path), "password"), "porch's password")
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  account: {jid: porch@localhost, password_file: password, server: %q, tls: {ca_file: %q}}
  pubsub: pep
operators:
  - {jid: bob@localhost, role: operator, devices: [lamp]}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
devices:
  - {id: lamp, name: Hall lamp, profile: tasmota, mqtt: {topic: lamp}, groups: [lights]}
  - {id: other, profile: tasmota, mqtt: {topic: other}, groups: [lights]}
`, server.C2S(), server.CAFile(), s.broker))
	startGateway(t, s.path, 3)
	lamp, other := startTasmota(t, s.broker, "lamp"), startTasmota(t, s.broker, "other")
	bob := startPhone(t, server, "bob", "bob's password")
	bob.send(`<presence to='porch@localhost' type='subscribe'/>`)
	bob.hears("presence", "subscribed", "porch@localhost", "")
	s.until("the lamp can be told", func() bool {
		lamp.says("tele/lamp/STATE", `{"POWER":"OFF","Dimmer":20}`, false)
		return strings.HasPrefix(bob.says("porch", "hall lamp on", 1)[0], "sent")
	})
	bob.hears("message", "chat", "porch@localhost", "confirmed after ")
	if got := bob.says("porch", "devices", 1)[0]; !strings.HasPrefix(got, "lamp (Hall lamp): fresh, ") || !strings.HasSuffix(got, "\nlights: lamp") {
		t.Errorf("devices: %q", got)
	}
	if got := bob.says("porch", "other on", 1)[0]; got != "I do not know “other”; write help" {
		t.Errorf("another's: %q", got)
	}
	full := "porch@localhost/gw-porch"
	if got := bob.ask(stanza.SetIQ, full, `<command xmlns='http://jabber.org/protocol/commands' node='tell'><x xmlns='jabber:x:data' type='submit'><field var='device'><value>lamp</value></field><field var='words'><value>dimmer 40</value></field></x></command>`); !strings.Contains(got, "confirmed after ") {
		t.Errorf("the form: %s", got)
	}
	if got := bob.ask(stanza.SetIQ, full, `<command xmlns='http://jabber.org/protocol/commands' node='tell'><x xmlns='jabber:x:data' type='submit'><field var='device'><value>other</value></field><field var='words'><value>on</value></field></x></command>`); !strings.Contains(got, "refused: there is no device other") {
		t.Errorf("the form of another's: %s", got)
	}
	if len(other.told) != 0 {
		t.Errorf("the other was told %s", <-other.told)
	}
}
