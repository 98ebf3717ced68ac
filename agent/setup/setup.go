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
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/clock"
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
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, nil, fmt.Errorf("cannot make the config's directory: %w", err)
	}
	stage, err := os.MkdirTemp(dir, ".setup-")
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
	if c != nil {
		// A data directory beside the config is where the config will be.
		if rel, err := filepath.Rel(stage, c.Gateway.DataDir); err == nil && filepath.IsLocal(rel) {
			c.Gateway.DataDir = filepath.Join(dir, rel)
		}
	}
	return c, faults, nil
}

// ErrRefused says that a try went wrong, which was reported.
var ErrRefused = errors.New("it did not work")

// Try logs in with the answers and finds out where readings can be kept: on the
// PubSub service of the answers or the server, else, for an account, on its own
// nodes. It gives the answers with what it found. path is where the config will
// be, source the machine's clock, by which certificates are judged.
func (a Answers) Try(ctx context.Context, path string, source clock.Source, report func(bridge.Trial)) (Answers, error) {
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
		err = agent.TryXMPP(ctx, c, clock.Verifying(source), func(t bridge.Trial) {
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

// Install puts a config and its secrets into their places, the file path and
// beside it: first the secrets, which only the gateway's user may read, then the
// config, all at once. A config that was there is kept as .before. Where nobody
// is the owner it offers the claim, see [OfferClaim]. What wants room is done
// before anything is changed, so that a full disk leaves all as it was.
func Install(path string, d config.Taken, source clock.Source, pictures ...string) (Claim, error) {
	c, faults, err := load(d, path, filepath.Base(path))
	switch {
	case err != nil:
		return Claim{}, err
	case c == nil:
		return Claim{}, faults
	}
	return install(path, d, func() (Claim, error) { return OfferClaim(c, source, pictures...) }, pictures)
}

// install is Install of a draft that was checked.
func install(path string, d config.Taken, offer func() (Claim, error), pictures []string) (claim Claim, err error) {
	uid, gid := Service()
	dir := filepath.Dir(path)
	var drafts []durable.Draft
	defer func() {
		for _, draft := range drafts {
			_ = draft.Drop()
		}
	}()
	for name, secret := range d.Secrets {
		draft, err := durable.Write(filepath.Join(dir, name), []byte(secret+"\n"), 0o600, uid, gid)
		if err != nil {
			return claim, fmt.Errorf("cannot write a secret: %w", err)
		}
		drafts = append(drafts, draft)
	}
	text, err := WriteConfig(path, d.Text)
	if err != nil {
		return claim, err
	}
	drafts = append(drafts, text)
	if claim, err = offer(); err != nil {
		return claim, err
	}
	if err = Put(path, drafts); err != nil && claim.Code != "" {
		remove(pictures)
	}
	return claim, err
}

// WriteConfig makes the draft of a checked config.
func WriteConfig(path string, text []byte) (durable.Draft, error) {
	uid, gid := Service()
	if gid >= 0 {
		uid = 0 // the gateway reads it and never writes it
	}
	draft, err := durable.Write(path, text, 0o640, uid, gid)
	if err != nil {
		return draft, fmt.Errorf("cannot write the config: %w", err)
	}
	return draft, nil
}

// Put puts drafts into their places, one after the other; the last is that of the
// config at path. The config that was there is kept as .before.
func Put(path string, drafts []durable.Draft) error {
	before := path + ".before"
	if err := os.Remove(before); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot keep the config that was there: %w", err)
	}
	if err := os.Link(path, before); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot keep the config that was there: %w", err)
	}
	for _, draft := range drafts {
		if err := draft.Put(); err != nil {
			return fmt.Errorf("cannot put the config into its place: %w", err)
		}
	}
	return nil
}

// Remedy gives what a person can do about a disk that takes nothing more, or takes
// it of others only; "" where that is not what went wrong.
func Remedy(err error) string {
	dir := "/"
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		dir = filepath.Dir(path.Path)
	case errors.As(err, &link):
		dir = filepath.Dir(link.New)
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Sprintf("The disk or card is full where %s is. Make room (df -h %[1]s shows how full it is), then try again.", dir)
	case errors.Is(err, unix.EROFS):
		return fmt.Sprintf("The disk or card can only be read where %s is. A card that fails becomes that: start again, and where that does not help, take another card.", dir)
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return fmt.Sprintf("Only another user may do that in %s, most often root: put sudo before the command.", dir)
	}
	return ""
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
