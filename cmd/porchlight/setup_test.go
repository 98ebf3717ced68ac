package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// invitingServer is a Prosody that makes accounts for those who are invited.
func invitingServer(t *testing.T) *xmppserver.Server {
	t.Helper()
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: t.TempDir(), Invites: true, Component: "gw.localhost", Secret: "the server's secret",
		Users: map[string]string{"anna": "anna's password", "gateway": "the gateway's password"},
		// Only the gateway of the server's operator may use the service.
		NodeCreators: []string{"gateway@gw.localhost"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	return server
}

// trusting is a command that trusts the server, if there is one.
func trusting(ctx context.Context, server *xmppserver.Server, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "porchlight", args...)
	if server != nil {
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+server.CAFile())
	}
	return cmd
}

// TestFirstboot has an invitation become a gateway that works, and one that was
// used already be told.
func TestFirstboot(t *testing.T) {
	server := invitingServer(t)
	uri, err := server.Invite(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := houseDir(t, "")
	boot := func(name, text string) (folder, config string) {
		folder, config = filepath.Join(dir, name, "boot"), filepath.Join(dir, name, "etc", "porchlight.yaml")
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "porchlight-invite.txt"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return folder, config
	}
	invitation := fmt.Sprintf("%s\r\nOwner: anna@localhost\r\nserver: %s\r\n", uri, server.C2S())

	// While the server is away nothing is lost.
	folder, file := boot("first", strings.Replace(invitation, server.C2S(), "127.0.0.1:1", 1))
	out, err := trusting(t.Context(), server, "firstboot", "--boot-dir", folder, "-c", file, "--data-dir", filepath.Join(dir, "data")).CombinedOutput()
	if err == nil {
		t.Errorf("without a server: %s", out)
	}
	told, err := os.ReadFile(filepath.Join(folder, "porchlight-errors.txt"))
	if err != nil || !strings.Contains(string(told), "Check the network") || !strings.Contains(string(told), "tried again by itself") {
		t.Errorf("it is told %q, %v", told, err)
	}

	boot("first", invitation)
	if out, err := trusting(t.Context(), server, "firstboot", "--boot-dir", folder, "-c", file, "--data-dir", filepath.Join(dir, "data")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	left, err := filepath.Glob(folder + "/*")
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "porchlight-done.txt" {
		t.Errorf("on the boot partition are %v, %v", left, err)
	}
	config, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(config), `{jid: "anna@localhost", role: owner}`) || !strings.Contains(string(config), `pubsub: "pep"`) {
		t.Errorf("the config is\n%s%v", config, err)
	}
	if out, err := trusting(t.Context(), server, "check", "--online", "-c", file).CombinedOutput(); err != nil {
		t.Errorf("the config does not work: %v\n%s", err, out)
	}
	if hidden, _ := filepath.Glob(filepath.Dir(file) + "/.*"); len(hidden) > 0 {
		t.Errorf("left behind: %v", hidden)
	}

	hears(t, server, file, "This is the gateway ", "")

	claimed(t, server, boot, dir)

	// A config whose PubSub service refuses is taken over, and it is said.
	folder, file = boot("refused", "")
	os.Remove(filepath.Join(folder, "porchlight-invite.txt"))
	text := fmt.Sprintf("gateway: {data_dir: data}\nxmpp:\n  account: {jid: gateway@localhost, password: \"the gateway's password\", server: %q}\n  pubsub: pubsub.localhost\n", server.C2S())
	if err := os.WriteFile(filepath.Join(folder, "porchlight.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := trusting(t.Context(), server, "firstboot", "--boot-dir", folder, "-c", file).CombinedOutput(); err != nil {
		t.Errorf("where the service refuses: %v: %s", err, out)
	}
	if told, err = os.ReadFile(filepath.Join(folder, "porchlight-done.txt")); err != nil || !strings.Contains(string(told), "node creation: ") || !strings.Contains(string(told), "Next: write pubsub: pep") || !strings.Contains(string(told), "\nclaim ") {
		t.Errorf("it is told %q, %v", told, err)
	}

	folder, file = boot("second", invitation)
	cmd := trusting(t.Context(), server, "firstboot", "--boot-dir", folder, "-c", file, "--data-dir", filepath.Join(dir, "data"))
	out, err = cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != exitConfig {
		t.Errorf("with a used invitation: %v: %s", err, out)
	}
	told, err = os.ReadFile(filepath.Join(folder, "porchlight-errors.txt"))
	if err != nil || !strings.Contains(string(told), "it was used, is too old, or is of another server") {
		t.Errorf("it is told %q, %v", told, err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("there is a config all the same")
	}
}

// claimed has an invitation of the server, which names nobody, become a gateway
// that anna claims by what is on the card.
func claimed(t *testing.T, server *xmppserver.Server, boot func(name, text string) (folder, config string), dir string) {
	t.Helper()
	uri, err := server.Invite(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	folder, file := boot("claimed", uri+"\nserver: "+server.C2S()+"\n")
	if out, err := trusting(t.Context(), server, "firstboot", "--boot-dir", folder, "-c", file, "--data-dir", filepath.Join(dir, "claimed", "data")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	told, err := os.ReadFile(filepath.Join(folder, "porchlight-done.txt"))
	claim := regexp.MustCompile(`claim [2-9A-Z]{5}-[2-9A-Z]{5}`).FindString(string(told))
	if err != nil || claim == "" {
		t.Fatalf("it is told %q, %v", told, err)
	}
	for _, picture := range []string{filepath.Join(folder, "porchlight-claim.png"), filepath.Join(filepath.Dir(file), "claim.png")} {
		if info, err := os.Stat(picture); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", picture, info, err)
		}
	}
	hears(t, server, file, "this gateway is yours", claim)
}

// hears runs a gateway until anna hears something of it in a chat, where she says
// something first, once it is online, unless that is empty.
func hears(t *testing.T, server *xmppserver.Server, file, want, says string) {
	t.Helper()
	pem, err := os.ReadFile(server.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	ctx, cancel := context.WithTimeout(t.Context(), waitFor)
	defer cancel()
	heard := make(chan struct{})
	var once sync.Once
	anna, err := stream.Dial(ctx, stream.Config{
		Account: &stream.Account{JID: jid.MustParse("anna@localhost"), Password: "anna's password", Server: server.C2S(), TLS: &tls.Config{RootCAs: roots}},
		Log:     slog.New(slog.DiscardHandler),
		Handler: func(_ *stream.Session, st stream.Stanza) bool {
			if st.Name == "message" && strings.Contains(string(st.Inner), want) {
				once.Do(func() { close(heard) })
			}
			return st.Name != "iq"
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer anna.Close()
	if err := anna.Send(ctx, []byte("<presence/>")); err != nil {
		t.Fatal(err)
	}
	gateway := trusting(ctx, server, "run", "-c", file)
	log, err := gateway.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := gateway.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = gateway.Process.Signal(os.Interrupt)
		_ = gateway.Wait()
	}()
	config, err := os.ReadFile(file)
	address := regexp.MustCompile(`jid: "(\S+)"`).FindSubmatch(config)
	if err != nil || address == nil {
		t.Fatalf("the config has no address: %v\n%s", err, config)
	}
	online := regexp.MustCompile(`msg="?online\b`)
	go func() {
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if says != "" && online.MatchString(lines.Text()) {
				_ = anna.Send(ctx, fmt.Appendf(nil, "<message to='%s' type='chat' id='1'><body>%s</body></message>", address[1], says))
			}
		}
	}()
	select {
	case <-heard:
	case <-ctx.Done():
		t.Errorf("anna does not hear %q", want)
	}
}

// TestFirstbootAfterPowerCut has the power fail between the account and the
// config.
func TestFirstbootAfterPowerCut(t *testing.T) {
	server := invitingServer(t)
	uri, err := server.Invite(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := houseDir(t, "")
	file := filepath.Join(dir, "porchlight.yaml")
	invite := filepath.Join(dir, "porchlight-invite.txt")
	write := func() {
		if err := os.WriteFile(invite, fmt.Appendf(nil, "%s\nowner: anna@localhost\nserver: %s\n", uri, server.C2S()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	// What is left by then: the account is made, the config is not there.
	kept := filepath.Join(dir, ".invitation")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := trusting(ctx, server, "firstboot", "--boot-dir", dir, "-c", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var state []byte
	for deadline := time.Now().Add(waitFor); len(state) == 0; {
		if state, _ = os.ReadFile(kept); time.Now().After(deadline) {
			t.Fatal("nothing was remembered before the server was asked")
		}
	}
	_ = cmd.Wait()
	cancel()
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("the first start made no config: %v", err)
	}
	for path, text := range map[string][]byte{kept: state} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	os.Remove(file)
	os.Remove(filepath.Join(dir, "password"))
	write()
	if out, err := trusting(t.Context(), server, "firstboot", "--boot-dir", dir, "-c", file).CombinedOutput(); err != nil {
		t.Fatalf("after the power cut: %v\n%s", err, out)
	}
	if out, err := trusting(t.Context(), server, "check", "--online", "-c", file).CombinedOutput(); err != nil {
		t.Errorf("the config does not work: %v\n%s", err, out)
	}
}

// TestInit gives the answers as flags: those that work, and those that do not.
func TestInit(t *testing.T) {
	server := invitingServer(t)
	dir := houseDir(t, "")
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		args   []string
		status int
		out    string
	}{
		"account": {[]string{"--address", "gateway@localhost", "--secret-file", write("right", "the gateway's password\n"), "--owner", "anna@localhost", "--server", server.C2S(), "--broker", "none"},
			exitDone, `(?s)good    login: .*look    node creation: .*the account's own nodes are used.*good    node creation.*is written\.\nNext: sudo systemctl start porchlight.*contact gateway@localhost.*▀.*xmpp:gateway@localhost\?roster`},
		"component": {[]string{"--address", "gw.localhost", "--secret-file", write("shared", "the server's secret"), "--owner", "anna@localhost", "--server", server.ComponentAddr(), "--broker", "none"},
			exitDone, `(?s)Component "gw\.localhost".*admins = \{ "gateway@gw\.localhost" \}.*good    login: as gw\.localhost.*good    coming back.*contact gateway@gw\.localhost`},
		"nobody's": {[]string{"--address", "gateway@localhost", "--secret-file", filepath.Join(dir, "right"), "--owner", "", "--server", server.C2S(), "--broker", "none"},
			exitDone, `(?s)send this to gateway@localhost in your client.*\nclaim [2-9A-Z]{5}-[2-9A-Z]{5}\n.*claim\.png.*▀.*xmpp:gateway@localhost\?message;body=claim%20`},
		"wrong password": {[]string{"--address", "gateway@localhost", "--secret-file", write("wrong", "guessed"), "--owner", "anna@localhost", "--server", server.C2S()},
			exitFailed, `(?s)broken  login: .*next: correct name and secret.*nothing was written`},
		"no server": {[]string{"--address", "gateway@localhost", "--secret-file", filepath.Join(dir, "right"), "--owner", "anna@localhost", "--server", "127.0.0.1:1"},
			exitFailed, `(?s)broken  login: .*refused; next: start the server.*nothing was written`},
		"no owner": {[]string{"--address", "gateway@localhost", "--secret-file", filepath.Join(dir, "right")},
			exitUsage, `there is no terminal to ask at: give --owner`},
		"no address": {[]string{"--address", "gate way@localhost", "--secret-file", filepath.Join(dir, "right"), "--owner", "anna@localhost"},
			exitUsage, `"gate way@localhost" is no address; it is like`},
		"resource": {[]string{"--address", "gateway@localhost/pi", "--secret-file", filepath.Join(dir, "right"), "--owner", "anna@localhost"},
			exitUsage, `write gateway@localhost`},
		"owner is no person": {[]string{"--address", "gateway@localhost", "--secret-file", filepath.Join(dir, "right"), "--owner", "anna"},
			exitUsage, `"anna" is no address of a person`},
		"empty secret": {[]string{"--address", "gateway@localhost", "--secret-file", write("empty", "\n"), "--owner", "anna@localhost"},
			exitUsage, `empty is empty: write the secret into it`},
		"server without port": {[]string{"--address", "gateway@localhost", "--secret-file", filepath.Join(dir, "right"), "--owner", "anna@localhost", "--server", "localhost"},
			exitUsage, `--server localhost is no server and port`},
		"broker is no URL": {[]string{"--address", "gateway@localhost", "--secret-file", filepath.Join(dir, "right"), "--owner", "anna@localhost", "--server", server.C2S(), "--broker", "10.0.0.2"},
			exitUsage, `write mqtt://10\.0\.0\.2`},
		"no such domain": {[]string{"--address", "gateway@nosuch.invalid", "--secret-file", filepath.Join(dir, "right"), "--owner", "anna@localhost"},
			exitFailed, `(?s)broken  login: .*next: correct the domain, or check the network`},
		"URI": {[]string{"--address", "xmpp:gateway@localhost", "--secret-file", filepath.Join(dir, "right"), "--owner", "xmpp:anna@localhost", "--server", server.C2S(), "--broker", "none"},
			exitDone, `is written`},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"), "porchlight.yaml")
			cmd := trusting(t.Context(), server, append([]string{"init", "-c", file, "--data-dir", filepath.Join(dir, "data")}, c.args...)...)
			out, _ := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != c.status || !regexp.MustCompile(c.out).Match(out) {
				t.Errorf("status %d, want %d:\n%s\nwant %s", got, c.status, out, c.out)
			}
			_, err := os.Stat(file)
			if (err == nil) != (c.status == exitDone) {
				t.Errorf("the config: %v", err)
			}
			if c.status != exitDone {
				return
			}
			if out, err := trusting(t.Context(), server, "check", "--online", "-c", file).CombinedOutput(); err != nil {
				t.Errorf("the config does not work: %v\n%s", err, out)
			}
			cmd = trusting(t.Context(), server, append([]string{"init", "-c", file}, c.args...)...)
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "is there already") {
				t.Errorf("a second time: %v: %s", err, out)
			}
		})
	}
}

// TestInitAsks answers at a terminal, with a wrong password first.
func TestInitAsks(t *testing.T) {
	server := invitingServer(t)
	dir := houseDir(t, "")
	file := filepath.Join(dir, "etc", "porchlight.yaml")
	cmd := trusting(t.Context(), server, "init", "-c", file, "--server", server.C2S(), "--data-dir", filepath.Join(dir, "data"), "--broker", "none")
	terminal, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var mu sync.Mutex
	var shown bytes.Buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 1024)
		for {
			n, err := terminal.Read(buf)
			mu.Lock()
			shown.Write(buf[:n])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	answer := func(question, text string) {
		t.Helper()
		for deadline := time.Now().Add(waitFor); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			now := shown.String()
			if strings.Contains(now, question) {
				shown.Reset()
				mu.Unlock()
				break
			}
			mu.Unlock()
			if time.Now().After(deadline) {
				t.Fatalf("it does not ask for %q: %s", question, now)
			}
		}
		if _, err := io.WriteString(terminal, text+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	answer("Address of the gateway", "gate way")
	answer("is no address; it is like gateway@example.org", "gateway@localhost")
	answer("Password of gateway@localhost: ", "guessed")
	answer("Your own address", "anna")
	answer("is no address of a person", "anna@localhost")
	answer("Password of gateway@localhost (again", "the gateway's password")
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, &shown)
	}
	<-ended
	if strings.Contains(shown.String(), "the gateway's password") {
		t.Error("the password is shown")
	}
	if out, err := trusting(t.Context(), server, "check", "--online", "-c", file).CombinedOutput(); err != nil {
		t.Errorf("the config does not work: %v\n%s", err, out)
	}
}
