// Package setup makes the config of a new gateway: of answers that somebody
// gave, or of a file on the card that it starts from. Nothing is put into its
// place before it was checked, and what has a secret never is where others can
// read it.
package setup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// Answers are what a gateway needs to know. Account or Component is set.
type Answers struct {
	Account   *Account
	Component *Component
	PubSub    string // "" has an account's server asked
	Owner     string // bare JID; "" is nobody yet
	Broker    string // URL of an MQTT broker; "" is none
	DataDir   string // "" is the default
}

// JID is the gateway's own address.
func (a Answers) JID() string {
	if a.Component != nil {
		return "gateway@" + a.Component.Domain
	}
	return a.Account.JID
}

// Account is an account on a server.
type Account struct {
	JID, Password string
	Server        string // host:port; "" finds it
	CAFile        string // "" trusts whom the system does
}

// Component is a component of a server.
type Component struct{ Domain, Secret, Server string }

// The names of the files that hold the secrets, beside the config.
const (
	passwordName = "password"
	secretName   = "secret"
)

var text = template.Must(template.New("porchlight.yaml").Funcs(template.FuncMap{"q": quote}).Parse(
	`# The configuration of Porchlight. "porchlight check" says what is wrong with
# it, "systemctl reload porchlight" takes over devices and operators.
{{- with .DataDir}}
gateway: {data_dir: {{q .}}}
{{- end}}
xmpp:
{{- with .Account}}
  account:
    jid: {{q .JID}}
    password_file: ` + passwordName + `
{{- with .Server}}
    server: {{q .}}
{{- end}}
{{- with .CAFile}}
    tls: {ca_file: {{q .}}}
{{- end}}
{{- end}}
{{- with .Component}}
  component:
    domain: {{q .Domain}}
    server: {{q .Server}}
    secret_file: ` + secretName + `
{{- end}}
{{- with .PubSub}}
  pubsub: {{q .}}
{{- end}}
{{- with .Owner}}
operators:
  - {jid: {{q .}}, role: owner}
{{- end}}
{{- with .Broker}}
mqtt:
  brokers:
    - {name: house, url: {{q .}}}
{{- end}}
`))

// quote writes a text of YAML, which JSON's are.
func quote(s string) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(s)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// Draft gives the config and the secrets that it names.
func (a Answers) Draft() (config.Taken, error) {
	var b bytes.Buffer
	if err := text.Execute(&b, a); err != nil {
		return config.Taken{}, fmt.Errorf("cannot write the config: %w", err)
	}
	d := config.Taken{Text: b.Bytes(), Secrets: map[string]string{}}
	if a.Account != nil {
		d.Secrets[passwordName] = a.Account.Password
	}
	if a.Component != nil {
		d.Secrets[secretName] = a.Component.Secret
	}
	return d, nil
}

// Config gives the config that the answers make, checked, for who only logs in
// with it: nothing stays on the disk.
func (a Answers) Config() (*config.Config, error) {
	a.DataDir = "none" // in the folder that load makes
	d, err := a.Draft()
	if err != nil {
		return nil, err
	}
	c, faults, err := load(d, filepath.Join(os.TempDir(), "porchlight.yaml"), "what was given")
	if err == nil && c == nil {
		err = faults
	}
	return c, err
}

// load reads a draft as it would be read in its place, the file path. The faults
// name the file as shown.
func load(d config.Taken, path, shown string) (*config.Config, strictyaml.Faults, error) {
	options, err := agent.LoadOptions()
	if err != nil {
		return nil, nil, err
	}
	stage, err := os.MkdirTemp(filepath.Dir(path), ".setup-")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot check the config: %w", err)
	}
	defer os.RemoveAll(stage)
	for name, secret := range d.Secrets {
		if err := os.WriteFile(filepath.Join(stage, name), []byte(secret), 0o600); err != nil {
			return nil, nil, fmt.Errorf("cannot check the config: %w", err)
		}
	}
	file := filepath.Join(stage, filepath.Base(path))
	if err := os.WriteFile(file, d.Text, 0o600); err != nil {
		return nil, nil, fmt.Errorf("cannot check the config: %w", err)
	}
	c, faults := config.Load(file, options)
	for i := range faults {
		f := &faults[i]
		if f.File == file {
			f.File = shown
		}
		for _, text := range []*string{&f.Problem, &f.Mend} {
			*text = strings.ReplaceAll(*text, stage+"/", "")
		}
	}
	return c, faults, nil
}

// ErrRefused says that a try went wrong, which was reported.
var ErrRefused = errors.New("it did not work")

// Try logs in with the answers and finds out where readings can be kept: on the
// PubSub service of the answers or the server, else, for an account, on its own
// nodes. It gives the answers with what it found. path is where the config will
// be.
func (a Answers) Try(ctx context.Context, path string, report func(bridge.Trial)) (Answers, error) {
	try := func(a Answers, report func(bridge.Trial)) (failed *bridge.Trial, err error) {
		d, err := a.Draft()
		if err != nil {
			return nil, err
		}
		c, faults, err := load(d, path, filepath.Base(path))
		if err != nil {
			return nil, err
		}
		if c == nil {
			return nil, faults
		}
		err = agent.TryXMPP(ctx, c, func(t bridge.Trial) {
			if t.Err != nil && !t.Harmless {
				failed = &t
			}
			report(t)
		})
		return failed, err
	}
	var trials []bridge.Trial
	failed, err := try(a, func(t bridge.Trial) { trials = append(trials, t) })
	if err != nil {
		return a, err
	}
	own := a.Account != nil && a.PubSub == "" && failed != nil && failed.Step != "login"
	for _, t := range trials {
		if own && t.Err != nil {
			// It may be that only operators of the server make nodes there.
			t.Harmless, t.Next = true, "the account's own nodes are used instead"
		}
		report(t)
		if t.Step == "PubSub service" && t.Err == nil && a.PubSub == "" {
			a.PubSub = t.Seen
		}
	}
	if own {
		a.PubSub = config.PEP
		failed, err = try(a, func(t bridge.Trial) {
			if t.Step != "login" {
				report(t)
			}
		})
	}
	if err == nil && failed != nil {
		err = ErrRefused
	}
	return a, err
}

// What the package makes.
const (
	serviceUser    = "porchlight"
	defaultDataDir = "/var/lib/porchlight"
)

// Install puts a checked config and its secrets into their places: first the
// secrets, which only the gateway's user may read, then the config, all at once.
// A config that was there is kept as .before.
func Install(path string, d config.Taken) error {
	uid, gid := Service()
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("cannot make the config's directory: %w", err)
	}
	for name, secret := range d.Secrets {
		if err := durable.ReplaceAs(filepath.Join(dir, name), []byte(secret+"\n"), 0o600, uid, gid); err != nil {
			return fmt.Errorf("cannot write a secret: %w", err)
		}
	}
	return InstallConfig(path, d.Text)
}

// InstallConfig puts a checked config into its place, all at once. One that was
// there is kept as .before.
func InstallConfig(path string, text []byte) error {
	before := path + ".before"
	if err := os.Remove(before); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot keep the config that was there: %w", err)
	}
	if err := os.Link(path, before); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot keep the config that was there: %w", err)
	}
	uid, gid := Service()
	if gid >= 0 {
		uid = 0 // the gateway reads it and never writes it
	}
	if err := durable.ReplaceAs(path, text, 0o640, uid, gid); err != nil {
		return fmt.Errorf("cannot write the config: %w", err)
	}
	return nil
}

// Service gives who runs the gateway where the package is installed, for root;
// -1 is who does it.
func Service() (uid, gid int) {
	if os.Geteuid() != 0 {
		return -1, -1
	}
	u, err := user.Lookup(serviceUser)
	if err != nil {
		return -1, -1
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return -1, -1
	}
	if gid, err = strconv.Atoi(u.Gid); err != nil {
		return -1, -1
	}
	return uid, gid
}
