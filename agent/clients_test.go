//go:build clients

package agent_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// TestClients has clients that people use talk to a lamp, and programs made with
// libraries that people use. What each of them shows is left in dist/clients.
func TestClients(t *testing.T) {
	s, server := newStreet(t, func(o *xmppserver.Options) { o.Plain, o.WebSocket = true, true })
	write(t, s.path, fmt.Sprintf(`
gateway: {id: porch, data_dir: data}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
operators:
  - {jid: anna@localhost, role: owner}
  - {jid: bob@localhost, role: operator}
mqtt:
  brokers:
    - {name: house, url: "mqtt://%s"}
devices:
  - {id: lamp, name: Hall lamp, profile: tasmota, mqtt: {topic: lamp}, groups: [lights]}
`, server.ComponentAddr(), server.PubSub(), s.broker))
	startGateway(t, s.path, 3)
	lamp := startTasmota(t, s.broker, "lamp")
	phone := startPhone(t, server, "anna", "anna's password")
	s.until("the lamp can be told", func() bool {
		lamp.says("tele/lamp/STATE", `{"POWER":"OFF","Dimmer":20}`, false)
		return strings.HasPrefix(phone.says("lamp", "off", 1)[0], "sent")
	})
	host, port, err := net.SplitHostPort(server.C2S())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("..", "dist", "clients")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	keep := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// script has a client run by a script of ours, which prints what it sees.
	script := func(t *testing.T, command []string, parts ...string) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		keep(filepath.Base(t.Name())+".txt", out)
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
		for _, part := range append(parts, "\nend\n") {
			if !strings.Contains(string(out), part) {
				t.Errorf("it does not show %q", part)
			}
		}
	}
	t.Run("slixmpp", func(t *testing.T) {
		script(t, []string{"/usr/bin/python3", "testdata/talker.py", "anna@localhost", "anna's password", host, port, server.CAFile(), "lamp@porch.localhost"},
			"presence: gw available", "chat: sent / confirmed after ", "receipt: yes", "commands: ", " toggle", "form: ", " dimmer", "note: confirmed after ",
			"control:", "readout: done ", "vcard: Hall lamp image/png")
	})
	t.Run("profanity", func(t *testing.T) { profanity(t, port, lamp, keep) })
	t.Run("converse", func(t *testing.T) {
		site := http.NewServeMux()
		site.Handle("/", http.FileServer(http.Dir("testdata/clients/node_modules/converse.js/dist")))
		site.Handle("/converse.html", http.FileServer(http.Dir("testdata/clients")))
		web := httptest.NewServer(site)
		defer web.Close()
		lamp.forget()
		script(t, []string{"node", "testdata/clients/converse.mjs", web.URL + "/converse.html?websocket=" + url.QueryEscape(server.WebSocket()), "bob@localhost", "bob's password", "lamp@porch.localhost", dir},
			"contact: Hall lamp online", "help: ", "set dimmer <0 to 100 %>", "on: confirmed after ", "commands: ", " toggle", "form: ", " dimmer", "note: confirmed after ")
		lamp.wasTold(t, "Dimmer 65")
	})
	t.Run("xmppjs", func(t *testing.T) {
		t.Setenv("NODE_EXTRA_CA_CERTS", server.CAFile())
		lamp.forget()
		script(t, []string{"node", "testdata/clients/xmppjs.mjs", server.C2S(), "bob@localhost", "bob's password", "lamp@porch.localhost"},
			"presence: lamp@porch.localhost/gw available ", "chat: sent / confirmed after ", "control: <", "setResponse", "refused: ", "readout: ", "dimmer=70")
		lamp.wasTold(t, "Dimmer 70")
	})
	t.Run("strophe", func(t *testing.T) {
		lamp.forget()
		script(t, []string{"node", "testdata/clients/strophe.mjs", server.WebSocket(), "bob@localhost", "bob's password", "lamp@porch.localhost"},
			"presence: lamp@porch.localhost/gw available ", "chat: sent / confirmed after ", "commands: ", " toggle", "form: ", " dimmer", "note: confirmed after ")
		lamp.wasTold(t, "Dimmer 75")
	})
	t.Run("go-sendxmpp", func(t *testing.T) { goSendXMPP(t, port, server.CAFile(), lamp, keep) })
}

// forget lets go of what the lamp was told so far.
func (d *tasmota) forget() {
	for len(d.told) > 0 {
		<-d.told
	}
}

// wasTold waits until the lamp is told that, whatever it is told before.
func (d *tasmota) wasTold(t *testing.T, what string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case told := <-d.told:
			if told == what {
				return
			}
		case <-deadline:
			t.Errorf("the lamp was not told %s", what)
			return
		}
	}
}

// profanity has Profanity driven in a terminal, as by somebody at its keys.
func profanity(t *testing.T, port string, lamp *tasmota, keep func(string, []byte)) {
	home := t.TempDir()
	accounts := filepath.Join(home, ".local", "share", "profanity", "accounts")
	if err := os.MkdirAll(filepath.Dir(accounts), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, accounts, "[anna@localhost]\nenabled=true\njid=anna@localhost\nserver=127.0.0.1\nport="+port+"\nresource=prof\npassword=anna's password\ntls.policy=trust\nauth.policy=default\npresence.last=online\npresence.login=online\n")
	socket := filepath.Join(home, "tmux")
	tmux := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("tmux", append([]string{"-S", socket}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+home, "TERM=screen-256color", "LANG=C.UTF-8", "XDG_DATA_HOME=", "XDG_CONFIG_HOME=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	tmux("new-session", "-d", "-x", "110", "-y", "40", "profanity", "-a", "anna@localhost")
	defer tmux("kill-server")
	var all strings.Builder
	screen := func(what, part string, times int) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for {
			text := tmux("capture-pane", "-p")
			if strings.Count(text, part) >= times {
				fmt.Fprintf(&all, "---- %s\n%s\n", what, text)
				return
			}
			if time.Now().After(deadline) {
				keep("profanity.txt", []byte(all.String()+text))
				t.Fatalf("%s: there is no %q on\n%s", what, part, text)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	types := func(line string) {
		t.Helper()
		tmux("send-keys", "-l", line)
		tmux("send-keys", "Enter")
	}
	screen("logged in", "logged in successfully", 1)
	types("/sub request lamp@porch.localhost")
	types("/msg lamp@porch.localhost status")
	screen("status", "Hall lamp is fresh", 1)
	types("on")
	screen("on", "confirmed after", 1)
	types("help")
	screen("help", "set dimmer <0 to 100 %>", 1)
	types("/cmd list")
	screen("commands", "!   toggle", 1)
	types("/cmd exec off")
	screen("a command", "confirmed after", 2)
	types("/cmd exec set")
	screen("a form", "Set…", 1)
	lamp.forget()
	types("/field2 55")
	types("/form submit")
	lamp.wasTold(t, "Dimmer 55")
	types("/win 2")
	screen("submitted", "confirmed after", 3)
	keep("profanity.txt", []byte(all.String()))
}

// goSendXMPP has go-sendxmpp tell the lamp something, as a shell script does,
// and then listen while the lamp is lost.
func goSendXMPP(t *testing.T, port, caFile string, lamp *tasmota, keep func(string, []byte)) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "go-sendxmpp", append([]string{"-u", "bob@localhost", "-p", "bob's password", "-j", "localhost:" + port}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "SSL_CERT_FILE="+caFile)
		return cmd
	}
	lamp.forget()
	tell := command("lamp@porch.localhost")
	tell.Stdin = strings.NewReader("off\n")
	if out, err := tell.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lamp.wasTold(t, "POWER OFF")

	listen := command("--debug", "--listen") // it tells what it hears in XML, then in words
	out, err := listen.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	listen.Stderr = listen.Stdout
	if err := listen.Start(); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	told := false
	for lines := bufio.NewScanner(out); !told && lines.Scan(); {
		line := lines.Text()
		fmt.Fprintln(&all, line)
		if strings.HasPrefix(line, "<presence ") && strings.Contains(line, "from='bob@localhost/") { // it is there
			lamp.says("tele/lamp/LWT", "Offline", true)
		}
		told = strings.Contains(line, " lamp@porch.localhost: Alarm: Hall lamp: lost")
	}
	cancel()
	_ = listen.Wait() // it was killed
	keep("go-sendxmpp.txt", []byte(all.String()))
	if !told {
		t.Errorf("it does not show the alarm:\n%s", &all)
	}
}
