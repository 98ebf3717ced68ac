package agent_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
)

// forget drops what was heard.
func (p *phone) forget() {
	p.mu.Lock()
	p.heard = nil
	p.mu.Unlock()
}

// reads waits until a node may be read, or may not.
func (p *phone) reads(pubsub, node string, may bool) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		got := p.ask(stanza.GetIQ, pubsub, `<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='`+node+`'/></pubsub>`)
		if strings.Contains(got, "<items") == may {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s may be read %t, and answers %s", node, !may, got)
		}
	}
}

// TestRevoking has an operator see a plug and its node until he is revoked, at
// once and over a restart; then an alarm of the plug tell its owner.
func TestRevoking(t *testing.T) {
	s, server := newStreet(t)
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
operators:
  - {jid: anna@localhost, role: owner}
  - {jid: bob@localhost, role: operator, devices: [plug]}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
devices:
  - {id: plug, profile: tasmota, mqtt: {topic: plug}}
`, server.ComponentAddr(), server.PubSub(), s.broker))
	gateway, stop := startGateway(t, s.path, 3) // MQTT twice, itself
	plug := startTasmota(t, s.broker, "plug")
	s.until("its commands", func() bool { return len(gateway.Controls("plug")) == 2 })
	anna, bob := startPhone(t, server, "anna", "anna's password"), startPhone(t, server, "bob", "bob's password")
	expect := func(p *phone, to, text, want string) {
		t.Helper()
		if got := p.says(to, text, 1)[0]; !strings.HasPrefix(got, want) {
			t.Errorf("%s: answered %q, want %q", text, got, want)
		}
	}

	bob.send(`<presence to='plug@porch.localhost' type='subscribe'/>`)
	bob.hears("presence", "subscribed", "plug@porch.localhost", "")
	bob.hears("presence", "", "plug@porch.localhost/gw", "")
	bob.reads(server.PubSub(), "porch/plug/now", true)
	expect(bob, "plug", "on", "sent")

	bob.forget()
	expect(anna, "gateway", "revoke bob@localhost", "bob@localhost may no longer")
	bob.hears("presence", "unavailable", "plug@porch.localhost/gw", "")
	bob.hears("presence", "unsubscribed", "plug@porch.localhost", "")
	bob.reads(server.PubSub(), "porch/plug/now", false)
	expect(anna, "gateway", "revoke anna@localhost", "refused: then nobody would be the owner")

	// An alarm: do not disturb, until somebody has seen it, and after that.
	anna.forget()
	plug.says("tele/plug/SENSOR", `{"SHT3X":{"Temperature":21.5},"Smoke":true}`, false)
	anna.hears("presence", "", "plug@porch.localhost/gw", "dnd</show>")
	anna.hears("message", "chat", "plug@porch.localhost", "Alarm: plug: smoke")
	expect(anna, "plug", "ack", "acknowledged: plug")
	expect(anna, "plug", "ack", "there is no alarm to acknowledge")

	// The config names bob still; what was revoked stays so.
	stop()
	anna.forget()
	bob.forget()
	gateway, _ = startGateway(t, s.path, 3)
	s.until("its commands", func() bool {
		plug.says("tele/plug/STATE", `{"POWER":"ON","Dimmer":20}`, false)
		return len(gateway.Controls("plug")) == 2
	})
	anna.hears("presence", "", "plug@porch.localhost/gw", "dnd</show>")
	expect(anna, "plug", "on", "sent")
	bob.send(`<message to='plug@porch.localhost' type='chat' id='x'><body>off</body></message>`)
	expect(anna, "gateway", "pending", "nothing and nobody")
	bob.mu.Lock()
	heard := append([]stream.Stanza(nil), bob.heard...)
	bob.mu.Unlock()
	for _, st := range heard {
		if st.From.Domainpart() == "porch.localhost" && st.Type != "error" {
			t.Errorf("bob, who was revoked, hears %s %s from %s: %s", st.Name, st.Type, st.From, st.Inner)
		}
	}
	for range 2 {
		select {
		case got := <-plug.told:
			if got != "POWER ON" {
				t.Errorf("the plug was told %s", got)
			}
		case <-time.After(patience):
			t.Fatal("the plug was not told twice")
		}
	}
	if n := len(plug.told); n > 0 {
		t.Errorf("the plug was told %d more, %s", n, <-plug.told)
	}

	// Somebody edits what was granted, with a mistake at first.
	file := filepath.Join(filepath.Dir(s.path), "data", "access.yaml")
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), "grants: []") || !strings.Contains(string(text), `jid: "bob@localhost"`) {
		t.Fatalf("%v in\n%s", err, text)
	}
	grants := "grants:\n  - {jid: bob@localhost, role: %s, devices: [plug]}"
	write(t, file, strings.Replace(string(text), "grants: []", fmt.Sprintf(grants, "boss"), 1))
	gateway.Reload(s.config())
	if got := anna.says("gateway", "grant dora@localhost viewer", 1)[0]; !strings.Contains(got, "access.yaml has to be mended first") {
		t.Errorf("with a broken file, anna is answered %s", got)
	}
	write(t, file, strings.Replace(string(text), "grants: []", fmt.Sprintf(grants, "viewer"), 1))
	gateway.Reload(s.config())
	bob.hears("presence", "", "plug@porch.localhost/gw", "dnd</show>")
	expect(bob, "plug", "off", "refused: you may not do that")

	audit := startReader(t, server, "anna's password", "", "events")
	for _, title := range []string{"plug: power on", "gateway: revoke bob@localhost", "gateway: revoke anna@localhost", "plug: smoke", "plug: smoke: acknowledged"} {
		audit.await(t, "the event "+title, func(l line) bool { return strings.EqualFold(l.Title, title) })
	}
}
