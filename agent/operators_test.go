package agent_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// said is what testdata/person.py prints.
type said struct {
	From, Body             string
	Presence, Type, Status string
	Show                   string
	Items, Error           string
	Ready                  bool
	Fault                  string
}

// A person has a chat client.
type person struct {
	t    *testing.T
	name string
	in   io.Writer

	mu   sync.Mutex
	got  []said
	more chan struct{}
}

func newPerson(t *testing.T, server *xmppserver.Server, name string) *person {
	t.Helper()
	host, port, err := net.SplitHostPort(server.C2S())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", filepath.Join("testdata", "person.py"), name+"@localhost", name+"'s password", host, port, server.CAFile(), server.PubSub())
	cmd.Stderr = os.Stderr
	p := &person{t: t, name: name, more: make(chan struct{}, 1)}
	if p.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			var one said
			if err := json.Unmarshal(s.Bytes(), &one); err != nil {
				one.Fault = "unreadable: " + s.Text()
			}
			p.mu.Lock()
			p.got = append(p.got, one)
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		cmd.Wait()
	})
	p.await("to be logged in", func(s said) bool { return s.Ready })
	return p
}

// does has the client do something.
func (p *person) does(what map[string]string) {
	p.t.Helper()
	if err := json.NewEncoder(p.in).Encode(what); err != nil {
		p.t.Fatal(err)
	}
}

// writes sends a chat line, and forgets what came before.
func (p *person) writes(to, line string) {
	p.t.Helper()
	p.forget()
	p.does(map[string]string{"do": "chat", "to": to + "@porch.localhost", "body": line})
}

func (p *person) forget() {
	p.mu.Lock()
	p.got = nil
	p.mu.Unlock()
}

// await gives the first of what came that is ok.
func (p *person) await(what string, ok func(said) bool) said {
	p.t.Helper()
	for deadline := time.After(patience); ; {
		p.mu.Lock()
		all := slices.Clone(p.got)
		p.mu.Unlock()
		if i := slices.IndexFunc(all, ok); i >= 0 {
			return all[i]
		}
		select {
		case <-p.more:
		case <-deadline:
			p.t.Fatalf("%s waited in vain %s, and got %+v", p.name, what, all)
		}
	}
}

// hears waits for a message that begins with a text.
func (p *person) hears(begins string) said {
	p.t.Helper()
	return p.await("for "+begins, func(s said) bool { return strings.HasPrefix(s.Body, begins) })
}

// sees waits for a presence.
func (p *person) sees(device, kind string) said {
	p.t.Helper()
	return p.await("to see "+device+" "+kind, func(s said) bool { return strings.HasPrefix(s.Presence, device+"@porch.localhost") && s.Type == kind })
}

// asks reads a node until the answer is as wanted; "" is that it may be read.
func (p *person) asks(node, want string) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		p.forget()
		p.does(map[string]string{"do": "items", "node": node})
		got := p.await("to read "+node, func(s said) bool { return s.Items == node })
		if got.Error == want {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s reads %s and gets %q, want %q", p.name, node, got.Error, want)
		}
	}
}

// TestOperators is what owners do: anna claims the gateway, switches a plug,
// lets bob in and has him do less, and takes all from him.
func TestOperators(t *testing.T) {
	s, server := newStreet(t)
	dir := filepath.Dir(s.path)
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
devices:
  - {id: plug, profile: tasmota, mqtt: {topic: plug}}
`, server.ComponentAddr(), server.PubSub(), s.broker))
	gateway, stop := startGateway(t, s.path, 3) // MQTT twice, itself
	plug := startTasmota(t, s.broker, "plug")
	s.until("its commands", func() bool { return len(gateway.Controls("plug")) == 2 })

	anna, bob := newPerson(t, server, "anna"), newPerson(t, server, "bob")
	code, err := os.ReadFile(filepath.Join(dir, "data", "claim"))
	if err != nil {
		t.Fatal(err)
	}
	anna.writes("gateway", "claim AAAAA-BBBBB") // of which nobody answers
	anna.writes("gateway", "claim "+strings.ToLower(string(code)))
	anna.hears("this gateway is yours")
	if _, err := os.Stat(filepath.Join(dir, "data", "claim")); !os.IsNotExist(err) {
		t.Errorf("the code is there still: %v", err)
	}
	anna.writes("plug", "on")
	anna.hears("sent")
	anna.hears("confirmed after")
	if got := <-plug.told; got != "POWER ON" {
		t.Errorf("the plug was told %s", got)
	}

	// Bob asks, and is let in.
	bob.writes("plug", "off")
	anna.forget()
	bob.does(map[string]string{"do": "subscribe", "to": "plug@porch.localhost"})
	wish := anna.hears("bob@localhost wants to see plug. Answer: approve 2")
	if !strings.HasPrefix(wish.From, "gateway@porch.localhost") {
		t.Errorf("%s asks", wish.From)
	}
	bob.asks("porch/plug/now", "forbidden")
	anna.writes("gateway", "approve 2 operator")
	anna.hears("bob@localhost is now operator of plug")
	bob.sees("plug", "available")
	bob.sees("plug", "subscribed")
	bob.asks("porch/plug/now", "")
	bob.writes("plug", "off")
	bob.hears("confirmed after")
	if got := <-plug.told; got != "POWER OFF" {
		t.Errorf("the plug was told %s", got)
	}
	bob.writes("plug", "grant bob@localhost owner")
	bob.hears("refused")

	// Less: in an hour that is not now, he is nobody.
	now := time.Now().UTC()
	hours := fmt.Sprintf("%s %02d:00-%02d:00 UTC", now.AddDate(0, 0, 3).Weekday().String()[:3], 1, 2)
	anna.writes("gateway", "grant bob@localhost operator plug hours "+hours)
	anna.hears("bob@localhost is now")
	bob.sees("plug", "unsubscribed")
	bob.asks("porch/plug/now", "forbidden")
	anna.writes("gateway", "grant bob@localhost viewer plug")
	anna.hears("bob@localhost is now")
	bob.does(map[string]string{"do": "subscribe", "to": "plug@porch.localhost"})
	bob.sees("plug", "subscribed")
	bob.writes("plug", "off")
	bob.hears("refused")

	// Nothing: his presence, nodes and words are gone.
	bob.forget()
	anna.writes("gateway", "revoke bob@localhost")
	anna.hears("bob@localhost may no longer")
	bob.sees("plug", "unavailable")
	bob.sees("plug", "unsubscribed")
	bob.asks("porch/plug/now", "forbidden")
	bob.writes("plug", "off")
	anna.writes("gateway", "revoke anna@localhost")
	anna.hears("refused: then nobody would be the owner")

	// An alarm has the plug do not disturb, and anna know.
	anna.forget()
	plug.says("tele/plug/SENSOR", `{"SHT3X":{"Temperature":21.5},"Smoke":true}`, false)
	anna.await("to see an alarm", func(s said) bool {
		return strings.HasPrefix(s.Presence, "plug@porch.localhost") && s.Show == "dnd"
	})
	anna.hears("Alarm: plug: smoke")
	anna.writes("plug", "ack")
	anna.hears("acknowledged: plug")
	anna.writes("plug", "ack")
	anna.hears("there is no alarm to acknowledge")

	// A restart changes nothing.
	stop()
	anna.forget()
	startGateway(t, s.path, 3)
	if p := anna.sees("plug", "available"); p.Show != "dnd" {
		t.Errorf("after a restart, the alarm is gone: %+v", p)
	}
	anna.writes("gateway", "grant")
	if all := anna.hears("anna@localhost"); strings.Contains(all.Body, "bob") {
		t.Errorf("after a restart: %s", all.Body)
	}
	audit := startReader(t, server, "anna's password", "", "events")
	for _, title := range []string{"plug: power on", "gateway: claim", "gateway: approve 2", "plug: power off", "gateway: grant bob@localhost", "gateway: revoke bob@localhost", "plug: smoke", "plug: smoke: acknowledged"} {
		audit.await(t, "the event "+title, func(l line) bool { return strings.EqualFold(l.Title, title) })
	}
	if n := len(plug.told); n > 0 {
		t.Errorf("the plug was told %d more, %s", n, <-plug.told)
	}
}
