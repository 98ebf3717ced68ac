package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/setup"
	"github.com/porchlight-iot/porchlight/bridge"
)

// runInit asks what a gateway must know, tries it, and writes the config.
func runInit(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("init", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` to write (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	address := flags.String("address", "", "the account's `JID`, or the component's domain")
	secretFile := flags.String("secret-file", "", "`FILE` that holds the password, or the component's secret")
	owner := flags.String("owner", "", "your own `JID`; empty has the gateway claimed later, by a code")
	server := flags.String("server", "", "`HOST:PORT` of the server (default found by DNS; for a component 127.0.0.1:5347)")
	pubsub := flags.String("pubsub", "", "`JID` of the publish-subscribe service, or pep (default found)")
	broker := flags.String("broker", "", "`URL` of an MQTT broker (default one on this machine, if there is one; none for none)")
	caFile := flags.String("ca-file", "", "PEM `FILE` of the authority that signed the server's certificate (default those of the system)")
	dataDir := flags.String("data-dir", "", "`FOLDER` for what the gateway keeps (default /var/lib/porchlight)")
	if err := parse(flags, args); err != nil {
		return err
	}
	if err := absolute(dataDir, caFile); err != nil {
		return err
	}
	file, source := config.Path(*path), clock.Machine()
	if _, err := os.Stat(file); err == nil {
		return fmt.Errorf("%s is there already: edit it, or move it away first", file)
	}
	ask := &asker{in: bufio.NewReader(os.Stdin), out: stdout, terminal: term.IsTerminal(int(os.Stdin.Fd()))}
	a := setup.Answers{PubSub: *pubsub, DataDir: *dataDir}
	who, err := ask.answer("address", *address, "Address of the gateway: an account (gateway@example.org), or a component's domain (porch.example.org)", isAddress)
	if err != nil {
		return err
	}
	if err := isServer(*server); err != nil {
		return err
	}
	secret := ""
	if *secretFile != "" {
		b, err := os.ReadFile(*secretFile)
		if err != nil {
			return fmt.Errorf("cannot read the secret: %w", err)
		}
		if secret = strings.TrimRight(string(b), "\r\n"); secret == "" {
			return usageError(*secretFile + " is empty: write the secret into it")
		}
	}
	component := !strings.Contains(who, "@")
	if component {
		if *server == "" {
			*server = "127.0.0.1:5347"
		}
		if a.PubSub == "" {
			_, parent, _ := strings.Cut(who, ".")
			a.PubSub = "pubsub." + parent
		}
		if secret == "" {
			secret = rand.Text()
		}
		a.Component = &setup.Component{Domain: who, Secret: secret, Server: *server}
	} else {
		if secret == "" {
			if secret, err = ask.secret("secret-file", "Password of "+who); err != nil {
				return err
			}
		}
		a.Account = &setup.Account{JID: who, Password: secret, Server: *server, CAFile: *caFile}
	}
	switch {
	case given(flags, "owner") && *owner == "":
	case !given(flags, "owner") && !ask.terminal:
		return usageError("there is no terminal to ask at: give --owner")
	default:
		if a.Owner, err = ask.answer("", *owner, "Your own address, which may do everything (anna@example.org; Enter for a code to claim the gateway with)", isPerson); err != nil {
			return err
		}
	}
	switch *broker {
	case "":
		a.Broker = localBroker()
	case "none":
	default:
		if !strings.Contains(*broker, "://") {
			return usageError(fmt.Sprintf("--broker %s is no URL: write mqtt://%[1]s", *broker))
		}
		a.Broker = *broker
	}
	if component {
		printSnippets(stdout, a, *secretFile == "")
		if *secretFile == "" {
			if !ask.terminal {
				return usageError("a component's secret must be known to the server first: give it by --secret-file")
			}
			if _, err := ask.answer("", "", "Press Enter when the server has it", nil); err != nil {
				return err
			}
		}
	}
	for {
		fmt.Fprintln(stdout)
		found, err := a.Try(ctx, file, source, func(t bridge.Trial) {
			switch {
			case t.Err == nil:
				fmt.Fprintln(stdout, good(t.Step, t.Seen))
			case t.Harmless:
				fmt.Fprintln(stdout, look(t.Step, t.Err.Error(), t.Next))
			default:
				fmt.Fprintln(stdout, broken(t.Step, t.Err.Error(), t.Next))
			}
		})
		if err == nil {
			a = found
			break
		}
		if !errors.Is(err, setup.ErrRefused) {
			return err
		}
		if !ask.terminal || ctx.Err() != nil {
			return fmt.Errorf("nothing was written: %w", err)
		}
		if a.Account != nil {
			again, err := ask.secret("", "Password of "+who+" (again; Enter for the same)")
			if err != nil {
				return err
			}
			if again != "" {
				a.Account.Password = again
			}
			continue
		}
		if _, err := ask.answer("", "", "Press Enter to try again, Ctrl-C to stop", nil); err != nil {
			return err
		}
	}
	picture := filepath.Join(filepath.Dir(file), setup.ClaimPicture)
	draft, err := a.Draft()
	if err != nil {
		return err
	}
	claim, err := setup.Install(file, draft, source, picture)
	if err != nil {
		return fmt.Errorf("nothing was written: %w", err)
	}
	fmt.Fprintln(stdout)
	var faults bytes.Buffer
	if _, _, err := checkConfig(file, &faults); err != nil {
		return fmt.Errorf("%s was written, and has faults:\n%s", file, &faults)
	}
	fmt.Fprintf(stdout, "%s is written.\nNext: sudo systemctl start porchlight (or: porchlight run -c %s)\n", file, file)
	uri := setup.Contact(a.JID())
	if claim.Code == "" { // it has an owner
		fmt.Fprintf(stdout, "Then add the contact %s in your client, or by your phone's camera:\n\n", a.JID())
	} else {
		uri = claim.URI()
		fmt.Fprintf(stdout, "Then send this to %s in your client, and the gateway is yours:\n\n%s\n\nor by your phone's camera, also from %s:\n\n",
			a.JID(), claim.Message(), picture)
	}
	blocks, err := setup.Blocks(uri, isTerminal(stdout))
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n%s\n", blocks, uri)
	return nil
}

// absolute makes paths of flags whole, which mean other files in a config.
func absolute(paths ...*string) (err error) {
	for _, path := range paths {
		if *path != "" && err == nil {
			*path, err = filepath.Abs(*path)
		}
	}
	return err
}

// given reports whether a flag was, perhaps with nothing in it.
func given(flags *flag.FlagSet, name string) (yes bool) {
	flags.Visit(func(f *flag.Flag) { yes = yes || f.Name == name })
	return yes
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// An asker asks whoever sits at a terminal.
type asker struct {
	in       *bufio.Reader
	out      io.Writer
	terminal bool
}

// answer gives what the flag said, else what is answered. Without a terminal a
// missing answer is wrong usage, as is a flag that check finds fault with; it
// gives the answer as it is to be. What is answered wrongly is asked again.
func (a *asker) answer(flag, said, question string, check func(string) (string, error)) (string, error) {
	if check == nil {
		check = func(s string) (string, error) { return s, nil }
	}
	if said != "" {
		return check(said)
	}
	if !a.terminal {
		return "", usageError(fmt.Sprintf("there is no terminal to ask at: give --%s", flag))
	}
	for {
		fmt.Fprintf(a.out, "%s: ", question)
		line, err := a.in.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("cannot read the answer: %w", err)
		}
		if line = strings.TrimSpace(line); line == "" && flag == "" {
			return "", nil
		} else if line == "" {
			continue
		}
		answer, err := check(line)
		if err == nil {
			return answer, nil
		}
		fmt.Fprintln(a.out, err)
	}
}

// isAddress checks the address of a gateway. It may be copied as a URI.
func isAddress(s string) (string, error) {
	s = strings.TrimPrefix(s, "xmpp:")
	if err := bridge.ValidJID(s); err != nil {
		return "", usageError(fmt.Sprintf("%q is no address; it is like gateway@example.org, or for a component porch.example.org", s))
	}
	if bare, _, is := strings.Cut(s, "/"); is {
		return "", usageError(fmt.Sprintf("%q has a resource, which follows the /; write %s", s, bare))
	}
	return s, nil
}

// isPerson checks the address of a person.
func isPerson(s string) (string, error) {
	address, err := isAddress(s)
	if err != nil || !strings.Contains(address, "@") {
		return "", usageError(fmt.Sprintf("%q is no address of a person; it is like anna@example.org", s))
	}
	return address, nil
}

func isServer(s string) error {
	if s == "" {
		return nil
	}
	if host, port, err := net.SplitHostPort(s); err != nil || host == "" || port == "" {
		return usageError(fmt.Sprintf("--server %s is no server and port; it is like xmpp.example.org:5222", s))
	}
	return nil
}

// secret asks without showing what is typed.
func (a *asker) secret(flag, question string) (string, error) {
	if !a.terminal {
		return "", usageError(fmt.Sprintf("there is no terminal to ask at: give --%s", flag))
	}
	fmt.Fprintf(a.out, "%s: ", question)
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(a.out)
	if err != nil {
		return "", fmt.Errorf("cannot read the password: %w", err)
	}
	return string(b), nil
}

// localBroker gives the URL of a broker on this machine; "" where none listens.
func localBroker() string {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:1883", time.Second)
	if err != nil {
		return ""
	}
	conn.Close()
	return "mqtt://127.0.0.1:1883"
}

// printSnippets prints what the server's operator adds to its config;
// configs/prosody.cfg.lua and configs/ejabberd.yml have more, and why.
func printSnippets(w io.Writer, a setup.Answers, fresh bool) {
	c := a.Component
	secret := c.Secret
	if !fresh {
		secret = "the secret that you have"
	}
	_, port, _ := net.SplitHostPort(c.Server)
	fmt.Fprintf(w, `
Prosody: add this to /etc/prosody/prosody.cfg.lua, then: sudo systemctl restart prosody

Component %[1]q
	component_secret = %[2]q
	component_conflict_resolve = "kick_old"

Component %[3]q "pubsub"
	admins = { %[4]q }
	pubsub_max_items = 10000

ejabberd: add this to the keys of the same names in /etc/ejabberd/ejabberd.yml, then: sudo systemctl restart ejabberd

listen:
  - port: %[5]s
    ip: 127.0.0.1
    module: ejabberd_service
    hosts: {%[1]q: {password: %[2]q}}
acl: {porchlight: {server: %[1]q}}
access_rules: {pubsub_createnode: [{allow: local}, {allow: porchlight}]}

`, c.Domain, secret, a.PubSub, "gateway@"+c.Domain, port)
}
