package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// A card is a machine that a gateway is on, or is to be.
type card struct {
	t    *testing.T
	dir  string
	stop func()
}

func (c *card) path(name string) string { return filepath.Join(c.dir, name) }

// porchlight runs a command, which has to end with that status.
func (c *card) porchlight(status int, args ...string) string {
	c.t.Helper()
	cmd := exec.Command("porchlight", args...)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != status {
		c.t.Fatalf("porchlight %v: status %d, want %d:\n%s", args, got, status, out)
	}
	return string(out)
}

// run has the gateway work until stop.
func (c *card) run() {
	c.t.Helper()
	manager := listenNotify(c.t, c.dir)
	cmd := exec.Command("porchlight", "run", "-c", c.path("p.yaml"))
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+c.path("notify"), "WATCHDOG_USEC=100000")
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := false
	c.stop = func() {
		c.t.Helper()
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			c.t.Errorf("%v\n%s", err, &log)
		}
	}
	c.t.Cleanup(c.stop)
	manager.wait(c.t, "STATUS=0 readings wait, the server is there")
	manager.conn.Close() // nobody reads on
}

// A keep is a server, and how a gateway and its owner are on it.
type keep struct {
	*xmppserver.Server
	xmpp    string   // section of the config
	pubsub  string   // where the nodes are, for the owner
	restore []string // flags that say how to log in as the gateway
	owner   []string // the same as its owner
	anna    string   // file of her password
	session stream.Config
	from    jid.JID
}

// startKeep starts a server for a gateway of a mode: component, account or pep.
func startKeep(t *testing.T, kind xmppserver.Kind, mode string) keep {
	t.Helper()
	users := xmppserver.Accounts("anna", "gateway", "peper")
	o := xmppserver.Options{Dir: t.TempDir(), Component: "gw.localhost", Secret: "s", Users: users}
	if kind == xmppserver.Prosody {
		o.Storage = "memory"
	}
	server, err := xmppserver.Start(t.Context(), kind, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Stop() })
	secrets := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(secrets, name)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	k := keep{Server: server, pubsub: server.PubSub(), anna: file("anna", users["anna"])}
	if mode == "component" {
		k.xmpp = fmt.Sprintf("  component: {domain: gw.localhost, server: %q, secret_file: secret}\n  pubsub: pubsub.localhost\n", server.ComponentAddr())
		k.restore = []string{"--address", "gw.localhost", "--server", server.ComponentAddr(), "--secret-file", file("secret", "s")}
		k.session.Component = &stream.Component{Domain: "gw.localhost", Server: server.ComponentAddr(), Secret: "s"}
		k.from = jid.MustParse("gateway@gw.localhost")
	} else {
		name := map[string]string{"account": "gateway", "pep": "peper"}[mode]
		k.xmpp = fmt.Sprintf("  account: {jid: %s@localhost, password_file: secret, server: %q, tls: {ca_file: %q}}\n", name, server.C2S(), server.CAFile())
		if mode == "pep" {
			k.xmpp += "  pubsub: pep\n"
			k.pubsub = name + "@localhost"
		}
		k.restore = []string{"--address", name + "@localhost", "--server", server.C2S(), "--ca-file", server.CAFile(), "--secret-file", file("secret", users[name])}
		pem, err := os.ReadFile(server.CAFile())
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		k.session.Account = &stream.Account{JID: jid.MustParse(name + "@localhost"), Password: users[name], Server: server.C2S(), TLS: &tls.Config{RootCAs: roots}}
	}
	k.owner = []string{"--address", "anna@localhost", "--server", server.C2S(), "--ca-file", server.CAFile(), "--secret-file", k.anna, "--pubsub", k.pubsub, "--gateway", "gw"}
	return k
}

// secret is what the gateway logs in with.
func (k keep) secret() string {
	if c := k.session.Component; c != nil {
		return c.Secret
	}
	return k.session.Account.Password
}

// as has a session as the gateway, while it is not at work.
func (k keep) as(t *testing.T, do func(ask func(kind stanza.IQType, payload string) string)) {
	t.Helper()
	s, err := stream.Dial(t.Context(), k.session)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	do(func(kind stanza.IQType, payload string) string {
		t.Helper()
		answer, err := s.IQ(t.Context(), stream.IQ{Type: kind, From: k.from, To: jid.MustParse(k.pubsub), Payload: []byte(payload)})
		if err != nil {
			t.Fatal(err)
		}
		return string(answer.Inner)
	})
}

// freePort gives a port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// tell has the device kitchen tell its temperature, until the gateway has
// acknowledged it.
func tell(t *testing.T, port string, temperatures ...string) {
	t.Helper()
	for _, number := range temperatures {
		out, err := exec.Command("mosquitto_pub", "-p", port, "-q", "1", "-t", "tele/kitchen/SENSOR", "-m", `{"DS18B20":{"Temperature":`+number+`}}`).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

// A view is what an owner sees of the whole.
type view struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	seen  []string
}

func (k keep) watch(t *testing.T) *view {
	t.Helper()
	v := &view{t: t, lines: make(chan string, 1000), cmd: exec.Command("porchlight", "watch", "--jid", "anna@localhost", "--password-file", k.anna,
		"--server", k.C2S(), "--pubsub", k.pubsub, "--ca-file", k.CAFile(), "--json", "--verify", "gw/kitchen/log", "gw/gateway/log")}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	v.cmd.Stderr = io.Discard
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.cmd.Process.Kill() })
	go func() {
		defer close(v.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			v.lines <- lines.Text()
		}
	}()
	return v
}

// wait reads until a line holds text.
func (v *view) wait(text string) string {
	v.t.Helper()
	deadline := time.After(waitFor)
	for {
		select {
		case line, ok := <-v.lines:
			if !ok {
				v.t.Fatalf("it ended without %q; there was %q", text, v.seen)
			}
			v.seen = append(v.seen, line)
			if strings.Contains(line, text) {
				return line
			}
		case <-deadline:
			v.t.Fatalf("no %q; there was %q", text, v.seen)
		}
	}
}

var phrasePattern = regexp.MustCompile(`[A-Z2-7]{5}(-[A-Z2-7]{5}){4}`)

// TestBackupToPubSub has a gateway keep its backup on the server, loses its card,
// and brings it back with no more than an address, a secret and the phrase: it
// is the same, and its owner misses nothing and sees nothing twice.
func TestBackupToPubSub(t *testing.T) {
	for name, k := range map[string]func(*testing.T) keep{
		"prosody component":  func(t *testing.T) keep { return startKeep(t, xmppserver.Prosody, "component") },
		"prosody pep":        func(t *testing.T) keep { return startKeep(t, xmppserver.Prosody, "pep") },
		"ejabberd component": func(t *testing.T) keep { return startKeep(t, xmppserver.Ejabberd, "component") },
		"ejabberd account":   func(t *testing.T) keep { return startKeep(t, xmppserver.Ejabberd, "account") },
	} {
		t.Run(name, func(t *testing.T) { backupToPubSub(t, k(t)) })
	}
}

func backupToPubSub(t *testing.T, k keep) {
	port := freePort(t)
	first := &card{t: t, dir: houseDir(t, "gateway: {id: gw, data_dir: data}\nxmpp:\n"+k.xmpp+"operators:\n  - {jid: anna@localhost, role: owner}\nmqtt: {listen: \"127.0.0.1:"+port+"\"}\n")}
	noise := make([]byte, 20_000) // so that there are several parts
	_, _ = rand.Read(noise)       // never fails
	for name, text := range map[string]string{
		"secret": k.secret(), "data/devices.d/kitchen.yaml": "id: kitchen\nname: Kitchen\nprofile: tasmota\nmqtt: {topic: kitchen}\n", "data/noise": string(noise),
	} {
		if err := os.MkdirAll(filepath.Dir(first.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(first.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restore := func(to *card, how []string, more ...string) []string {
		return append(append([]string{"restore", "-c", to.path("p.yaml"), "--from", "pubsub"}, how...), more...)
	}
	second := &card{t: t, dir: houseDir(t, "")}
	for _, name := range []string{"p.yaml", "secret"} {
		if err := os.Remove(second.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	nothing := func() {
		t.Helper()
		if left, err := filepath.Glob(second.path("*")); err != nil || len(left) > 1 { // the phrase
			t.Fatalf("there are %v, %v", left, err)
		}
	}
	typed := second.path("phrase")
	write := func(phrase string) {
		t.Helper()
		if err := os.WriteFile(typed, []byte(phrase+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("AAAAA-AAAAA-AAAAA-AAAAA-AAAAA")
	if out := second.porchlight(exitFailed, restore(second, k.restore, "--phrase-file", typed)...); !strings.Contains(out, "nothing was restored: no backup is there") {
		t.Errorf("before there is any it is said %s", out)
	}

	first.run()
	tell(t, port, "20.1", "20.2", "20.3")
	v := k.watch(t)
	v.wait("20.3")
	out := first.porchlight(exitDone, "backup", "-c", first.path("p.yaml"), "--to", "pubsub")
	phrase := phrasePattern.FindString(out)
	if phrase == "" || !strings.Contains(out, "node gw/backup: ") || !strings.Contains(out, " in 3 items, encrypted, and read back") {
		t.Fatalf("it is said %s", out)
	}
	tell(t, port, "20.4") // after the backup
	before := v.wait("20.4")
	first.stop()
	if err := os.RemoveAll(first.dir); err != nil {
		t.Fatal(err)
	}

	if out := second.porchlight(exitFailed, restore(second, k.restore, "--phrase-file", typed)...); !strings.Contains(out, "nothing was restored: the recovery phrase is wrong") {
		t.Errorf("with a wrong phrase it is said %s", out)
	}
	nothing()
	write(strings.ToLower(phrase))
	out = second.porchlight(exitDone, restore(second, k.restore, "--phrase-file", typed)...)
	if !strings.Contains(out, "The newest whole backup there is of ") || !strings.Contains(out, ", of gateway gw, ") || !strings.Contains(out, "gw is restored as of ") {
		t.Errorf("it is said %s", out)
	}
	second.run()
	tell(t, port, "21.1", "21.2")
	after := v.wait("21.2")
	second.stop()
	_ = v.cmd.Process.Signal(os.Interrupt)
	if verdict := v.wait(`"missing"`); !strings.Contains(verdict, `"missing":0,"doubled":0,"disordered":0,"evicted":0`) {
		t.Errorf("the owner's verdict is %s; he saw %q", verdict, v.seen)
	}
	item := regexp.MustCompile(`"item":"([^"]+)-(\d+)-(\d+)"`)
	if b, a := item.FindStringSubmatch(before), item.FindStringSubmatch(after); b == nil || a == nil || a[1] == b[1] {
		t.Errorf("the numbers of before may come again: %s, then %s", before, after)
	}

	// While it is not running it keeps one by a session of its own. The owner
	// restores it too, who need not know the gateway's secret.
	out = second.porchlight(exitDone, "backup", "-c", second.path("p.yaml"), "--to", "pubsub", "--keep", "2")
	if phrasePattern.MatchString(out) {
		t.Errorf("the phrase is told again: %s", out)
	}
	third := &card{t: t, dir: houseDir(t, "")}
	os.Remove(third.path("p.yaml"))
	third.porchlight(exitDone, restore(third, k.owner, "--phrase-file", typed)...)
	if got, err := os.ReadFile(third.path("secret")); err != nil || string(got) != k.secret() {
		t.Errorf("the owner's copy has the secret %q, %v", got, err)
	}
	if got, err := os.ReadFile(third.path("data/noise")); err != nil || !bytes.Equal(got, noise) {
		t.Errorf("a file is not what it was, %v", err)
	}

	// A part is missing: the one before is taken; then of all.
	newest := regexp.MustCompile(`\d{8}T\d{6}Z-[0-9a-f]{64}-2-3`)
	list := func() (ids []string) {
		k.as(t, func(ask func(stanza.IQType, string) string) {
			ids = newest.FindAllString(ask(stanza.GetIQ, "<query xmlns='http://jabber.org/protocol/disco#items' node='gw/backup'/>"), -1)
		})
		return ids
	}
	ids := list()
	if len(ids) != 2 {
		t.Fatalf("there are %q", ids)
	}
	remove := func(id string) {
		k.as(t, func(ask func(stanza.IQType, string) string) {
			ask(stanza.SetIQ, "<pubsub xmlns='http://jabber.org/protocol/pubsub'><retract node='gw/backup'><item id='"+id+"'/></retract></pubsub>")
		})
	}
	remove(max(ids[0], ids[1]))
	out = third.porchlight(exitDone, restore(third, k.restore, "--force", "--phrase-file", typed)...)
	if !strings.Contains(out, "2 of its 3 parts are there") || !strings.Contains(out, "gw is restored as of ") {
		t.Errorf("with a part missing it is said %s", out)
	}
	remove(min(ids[0], ids[1]))
	config, err := os.ReadFile(third.path("p.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	out = third.porchlight(exitFailed, restore(third, k.restore, "--force", "--phrase-file", typed)...)
	if !strings.Contains(out, "nothing was restored: none of the backups there is whole") {
		t.Errorf("with parts of all missing it is said %s", out)
	}
	if got, err := os.ReadFile(third.path("p.yaml")); err != nil || !bytes.Equal(got, config) {
		t.Errorf("the config was touched: %v", err)
	}

	// Something else under the name of one.
	k.as(t, func(ask func(stanza.IQType, string) string) {
		other := []byte("hello")
		sum := fmt.Sprintf("%x", sha256.Sum256(other))
		ask(stanza.SetIQ, "<pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='gw/backup'><item id='20990101T000000Z-"+sum+"-1-1'>"+
			"<data xmlns='urn:xmpp:bob' type='application/octet-stream' cid='sha-256+"+sum+"@bob.xmpp.org'>"+base64.StdEncoding.EncodeToString(other)+"</data></item></publish></pubsub>")
	})
	out = third.porchlight(exitFailed, restore(third, k.restore, "--force", "--phrase-file", typed)...)
	if !strings.Contains(out, "nothing was restored: this is no backup of a gateway") {
		t.Errorf("of something else it is said %s", out)
	}

	// A server that refuses.
	if err := os.WriteFile(third.path("wrong"), []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out = third.porchlight(exitFailed, restore(third, k.restore, "--force", "--phrase-file", typed, "--secret-file", third.path("wrong"))...)
	if !strings.Contains(out, "nothing was restored: cannot log in: ") || !strings.Contains(out, "correct name and secret") {
		t.Errorf("with a wrong secret it is said %s", out)
	}
}

// TestBackupBySchedule has a gateway keep backups by itself.
func TestBackupBySchedule(t *testing.T) {
	k := startKeep(t, xmppserver.Prosody, "component")
	c := &card{t: t, dir: houseDir(t, "gateway: {id: gw, data_dir: data}\nxmpp:\n"+k.xmpp+"backup: {to: pubsub, keep: 1}\n")}
	doctor := func() string {
		out, _ := exec.Command("porchlight", "doctor", "-c", c.path("p.yaml")).CombinedOutput()
		return string(out)
	}
	if err := os.Mkdir(c.path("data"), 0o700); err != nil {
		t.Fatal(err)
	}
	if out := doctor(); !strings.Contains(out, "broken  backup: there is no recovery phrase") {
		t.Errorf("without a phrase the doctor says %s", out)
	}
	phrase := strings.TrimSpace(c.porchlight(exitDone, "backup", "-c", c.path("p.yaml"), "--show-phrase"))
	c.run()
	loaded, err := loadConfig(c.path("p.yaml"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	newest := func() time.Time {
		t.Helper()
		deadline := time.After(waitFor)
		for {
			status, err := agent.AskBackups(loaded)
			if err != nil || status.Fault != "" {
				t.Fatalf("%+v, %v", status, err)
			}
			if status.Newest != nil {
				return *status.Newest
			}
			select {
			case <-deadline:
				t.Fatal("none is made")
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	made := newest()
	if out := doctor(); !strings.Contains(out, "good    backup: the newest on the server is of ") {
		t.Errorf("the doctor says %s", out)
	}
	// After a start the one that is there will do.
	c.stop()
	c.run()
	if again := newest(); !again.Equal(made) {
		t.Errorf("one of %v is followed by one of %v", made, again)
	}
	c.stop()
	typed := c.path("phrase")
	if err := os.WriteFile(typed, []byte(phrase), 0o600); err != nil {
		t.Fatal(err)
	}
	c.porchlight(exitDone, append([]string{"restore", "-c", c.path("p.yaml"), "--force", "--from", "pubsub", "--phrase-file", typed}, k.restore...)...)
}
