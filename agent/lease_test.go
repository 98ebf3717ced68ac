package agent_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// TestTwoGateways has two boards with one config, but for what each calls itself
// by default. What people want is done once, and the second keeps its readings.
func TestTwoGateways(t *testing.T) {
	for _, mode := range []string{"component", "account"} {
		t.Run(mode, func(t *testing.T) {
			dir := t.TempDir()
			server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
				Dir: filepath.Join(dir, "xmpp"), Component: "porch.localhost", Secret: "the gateway's secret",
				Users: map[string]string{"anna": "anna's password", "porch": "the gateway's secret"}, Storage: "memory",
				NodeCreators: []string{"gateway@porch.localhost", "porch@localhost"},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := server.Stop(); err != nil {
					t.Error(err)
				}
			})
			broker := startMosquitto(t)
			write(t, filepath.Join(dir, "secret"), "the gateway's secret")
			xmpp := fmt.Sprintf("component: {domain: porch.localhost, server: %q, secret_file: secret}", server.ComponentAddr())
			to, line := "plug", "on"
			if mode == "account" {
				xmpp = fmt.Sprintf("account: {jid: porch@localhost, password_file: secret, server: %q, tls: {ca_file: %q}}", server.C2S(), server.CAFile())
				to, line = "porch", "plug on"
			}
			board := func(id string) string {
				path := filepath.Join(dir, id+".yaml")
				write(t, path, fmt.Sprintf(`
gateway: {id: %s, data_dir: %[1]s}
xmpp:
  %s
  pubsub: %s
operators:
  - {jid: anna@localhost, role: owner}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
devices:
  - {id: plug, profile: tasmota, mqtt: {topic: plug}}
`, id, xmpp, server.PubSub(), broker))
				return path
			}
			s := &street{t: t, path: board("pi-4f2a"), broker: broker}
			first, stop := startGateway(t, s.path, 3) // MQTT twice, itself
			s.until("the first is online", func() bool { return first.Stats().Online })
			second, _ := startGateway(t, board("pi-90c1"), 3)
			d := startTasmota(t, broker, "plug")
			s.until("the first knows the plug", func() bool { return len(first.Controls("plug")) > 0 })
			s.until("the second is passive", func() bool { return second.Stats().Passive && len(second.Controls("plug")) > 0 })
			s.until("the first is back", func() bool { return first.Stats().Online })

			anna := startPhone(t, server, "anna", "anna's password")
			if got := anna.says(to, line, 2); len(got) != 2 {
				t.Errorf("it is answered %q", got)
			}
			d.says("tele/plug/STATE", `{"POWER":"ON","Dimmer":30}`, false)
			s.until("the second has what it hears", func() bool { return second.Stats().Waiting > 1 })
			stop()
			if st := second.Stats(); st.Online || !st.Passive {
				t.Errorf("the second did not stay passive: %+v", st)
			}
			if told := len(d.told); told != 1 {
				t.Errorf("the device was told %d times", told)
			}
		})
	}
}
