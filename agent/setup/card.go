package setup

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

// The files on a boot partition. Whoever writes them sees no others of the
// machine, so what becomes of them is told beside them.
const (
	CardConfig = "porchlight.yaml"       // a config that may hold its secrets
	CardInvite = "porchlight-invite.txt" // an invitation
	CardErrors = "porchlight-errors.txt" // what is wrong, in words
	CardDone   = "porchlight-done.txt"   // that all went well
	CardClaim  = "porchlight-claim.png"  // how the gateway is claimed, as a QR code
)

// maxCardFile is more than any config.
const maxCardFile = 1 << 20

// A CardFault is what the one who wrote the card must mend.
type CardFault struct{ what string }

func (f CardFault) Error() string { return f.what }

func cardFault(format string, args ...any) error { return CardFault{fmt.Sprintf(format, args...)} }

// TakeOver makes the file on a boot partition the gateway's config at path,
// checks it first, and takes it from the partition, which anybody can read who
// holds the card. It reports whether there was one. What is wrong is also
// written to [CardErrors]; the file is left as it is then, and the gateway's
// config too. Trying again is of use where the error is no [CardFault]. Where
// nobody is named as the owner of an invited gateway, it is to be claimed, and
// [CardDone] says how. dataDir is that of a gateway that is invited; "" is the
// default.
func TakeOver(ctx context.Context, dir, path, dataDir string) (done bool, err error) {
	found, err := cardFiles(dir)
	if err != nil || len(found) == 0 {
		return false, err
	}
	// Where nothing can be removed, secrets would stay, and the same file would
	// be taken over again at each start.
	if err := os.WriteFile(filepath.Join(dir, CardErrors), []byte("The file is being looked at.\n"), 0o600); err != nil {
		return false, fmt.Errorf("cannot write to the boot partition, so nothing is taken over: %w", err)
	}
	told := ""
	switch {
	case len(found) > 1:
		err = cardFault("There are %s: keep one of them.", strings.Join(found, " and "))
	case strings.HasPrefix(strings.ToLower(found[0]), CardConfig):
		told, err = takeConfig(filepath.Join(dir, found[0]), path)
	default:
		told, err = takeInvitation(ctx, filepath.Join(dir, found[0]), path, dataDir)
	}
	if err != nil {
		text := "Porchlight could not be set up.\n\n" + err.Error() + "\n"
		if errors.As(err, new(CardFault)) {
			text += "\nMend " + strings.Join(found, ", ") + " and start again.\n"
		} else {
			text += "\nIt is tried again by itself.\n"
		}
		text += "\n" + time.Now().UTC().Format(time.DateTime) + " UTC by this machine's clock\n"
		return false, errors.Join(err, os.WriteFile(filepath.Join(dir, CardErrors), crlf(text), 0o600))
	}
	if err := wipe(filepath.Join(dir, found[0])); err != nil {
		return false, err
	}
	return true, errors.Join(
		os.WriteFile(filepath.Join(dir, CardDone), crlf(told+"\n"), 0o600),
		os.Remove(filepath.Join(dir, CardErrors)), durable.SyncDir(dir))
}

// crlf ends lines as the plainest editors want them.
func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

// cardFiles gives the names of the files that are for us. Some systems hide the
// end of a name and add another .txt, and none tells capitals apart there.
func cardFiles(dir string) (found []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the boot partition: %w", err)
	}
	for _, e := range entries {
		name := strings.ToLower(e.Name())
		for _, known := range []string{CardConfig, CardInvite} {
			if e.Type().IsRegular() && (name == known || name == known+".txt") {
				found = append(found, e.Name())
			}
		}
	}
	return found, nil
}

func readCardFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCardFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read the file: %w", err)
	case len(text) > maxCardFile:
		return nil, cardFault("The file is too long to be ours.")
	}
	return text, nil
}

// wipe removes a file with secrets. That its bytes are overwritten first is
// worth little on a card, which writes elsewhere.
func wipe(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_, err = f.Write(make([]byte, info.Size()))
			err = errors.Join(err, f.Sync(), f.Close())
		}
	}
	if err = errors.Join(err, os.Remove(path)); err != nil {
		return fmt.Errorf("cannot remove %s, which may hold secrets: %w", filepath.Base(path), err)
	}
	return nil
}

func takeConfig(card, path string) (told string, err error) {
	text, err := readCardFile(card)
	if err != nil {
		return "", err
	}
	draft, faults := config.TakeSecrets(CardConfig, text)
	if len(faults) > 0 {
		return "", CardFault{faults.Error()}
	}
	c, faults, err := load(draft, path, CardConfig)
	switch {
	case err != nil:
		return "", err
	case c == nil:
		return "", CardFault{faults.Error()}
	}
	if err := Install(path, draft); err != nil {
		return "", err
	}
	return fmt.Sprintf("The config was taken over: this is the gateway %s. Its secrets are no longer here.", c.Gateway.ID), nil
}

// A pending invitation is kept until the config is in its place: a power cut in
// between must not leave an account that nobody knows the password of.
type pending struct {
	Token    string `json:"token"`
	JID      string `json:"jid"`
	Password string `json:"password"`
}

const pendingName = ".invitation"

func takeInvitation(ctx context.Context, card, path, dataDir string) (told string, err error) {
	text, err := readCardFile(card)
	if err != nil {
		return "", err
	}
	in, more, err := readInvitation(string(text))
	if err != nil {
		return "", err
	}
	owner := more["owner"]
	if owner == "" {
		owner = in.Inviter
	}
	if owner != "" {
		if err := bridge.ValidJID(owner); err != nil {
			return "", cardFault("%q is no address of an owner: %v", owner, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return "", fmt.Errorf("cannot make the config's directory: %w", err)
	}
	kept := filepath.Join(filepath.Dir(path), pendingName)
	var p pending
	if b, err := os.ReadFile(kept); err == nil && json.Unmarshal(b, &p) == nil && p.Token != in.Token {
		p = pending{}
	}
	answers := func() Answers {
		return Answers{Account: &Account{JID: p.JID, Password: p.Password, Server: more["server"]}, Owner: owner, DataDir: dataDir}
	}
	var failed bridge.Trial
	try := func() (Answers, error) {
		return answers().Try(ctx, path, func(t bridge.Trial) {
			if t.Err != nil && !t.Harmless {
				failed = t
			}
		})
	}
	var found Answers
	if p.Token != "" {
		found, err = try()
	}
	if p.Token == "" || errors.Is(err, ErrRefused) && failed.Step == "login" {
		made, refused := enroll(ctx, in, more["server"], p, kept)
		switch {
		case refused == nil:
			p = made
			found, err = try()
		case p.Token == "" || !bridge.Lasting(refused): // else it was made before
			return "", explainInvitation(refused, in)
		}
	}
	switch {
	case errors.Is(err, ErrRefused):
		return "", fmt.Errorf("the account %s was made, and cannot be used yet.\n%s: %w. %s", p.JID, failed.Step, failed.Err, failed.Next)
	case err != nil:
		return "", err
	}
	told = fmt.Sprintf("The gateway has the account %s and belongs to %s.", p.JID, owner)
	if owner == "" {
		claim, err := OfferClaim(p.JID, dataDir, filepath.Join(filepath.Dir(path), ClaimPicture), filepath.Join(filepath.Dir(card), CardClaim))
		if err != nil {
			return "", err
		}
		told = fmt.Sprintf("The gateway has the account %s and belongs to whom it did before.", p.JID)
		if claim.Code != "" {
			told = fmt.Sprintf("The gateway has the account %s and belongs to nobody yet. Who sends it this first is its owner:\n\n%s\n\n%s has it for the camera of a phone.", p.JID, claim.Message(), CardClaim)
		}
	}
	draft, err := found.Draft()
	if err != nil {
		return "", err
	}
	if err := Install(path, draft); err != nil {
		return "", err
	}
	if err := os.Remove(kept); err != nil {
		return "", fmt.Errorf("cannot remove what the invitation left: %w", err)
	}
	return told, nil
}

// enroll makes an account, the one of before where there is one, and remembers it
// before the server does.
func enroll(ctx context.Context, in bridge.Invitation, server string, before pending, kept string) (pending, error) {
	for try := 0; ; try++ {
		p := before
		if before.Token == "" {
			name := in.Name
			if name == "" {
				name = gatewayName()
				if try > 0 {
					name += "-" + strings.ToLower(rand.Text()[:4])
				}
			}
			p = pending{Token: in.Token, JID: name + "@" + in.Domain, Password: rand.Text()}
		}
		b, err := json.Marshal(p)
		if err != nil {
			return p, err
		}
		if err := durable.Replace(kept, b); err != nil {
			return p, fmt.Errorf("cannot keep the password of the account: %w", err)
		}
		j, err := bridge.ParseJID(p.JID)
		if err != nil {
			return p, err
		}
		err = bridge.Register(ctx, stream.Config{Account: &stream.Account{JID: j, Password: p.Password, Server: server}}, in.Token)
		if !errors.Is(err, bridge.ErrTaken) || in.Name != "" || before.Token != "" || try == 3 {
			return p, err
		}
	}
}

// gatewayName is the gateway's id by default, as a name that says what it is.
func gatewayName() string {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	host, _, _ = strings.Cut(host, ".")
	if slug := devices.Slug(host); slug != "" {
		return string(slug)
	}
	return "porchlight"
}

func explainInvitation(err error, in bridge.Invitation) error {
	switch {
	case errors.Is(err, bridge.ErrInvitation):
		return cardFault("%v.\nAsk for a new one; each is good for one gateway, and for some days.", err)
	case errors.Is(err, bridge.ErrTaken):
		return cardFault("%v.\nAsk for an invitation that leaves the name open.", err)
	case errors.Is(err, bridge.ErrNoRegistration):
		return cardFault("%v.\nThe operator of %s can allow it for those who are invited: in Prosody by the module invites_register.", err, in.Domain)
	}
	if year := time.Now().Year(); year < 2024 {
		return fmt.Errorf("%w\nThis machine's clock shows the year %d; without a network it does not learn the time, and without the time it cannot tell whether the server is the right one", err, year)
	}
	return fmt.Errorf("%w\nCheck the network: the cable, or name and password of the WiFi", err)
}

// readInvitation reads the invitation and what more may stand below it, as
// "owner: anna@example.org".
func readInvitation(text string) (in bridge.Invitation, more map[string]string, err error) {
	more = map[string]string{}
	text = strings.TrimPrefix(text, "\xef\xbb\xbf")
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if in.Token == "" {
			if in, err = bridge.ParseInvitation(line); err != nil {
				return in, nil, CardFault{err.Error()}
			}
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		key = strings.ToLower(strings.TrimSpace(key))
		if !ok || key != "owner" && key != "server" {
			return in, nil, cardFault("The line %q is not understood. Below the invitation there may be owner: and server:.", line)
		}
		more[key] = strings.TrimPrefix(strings.TrimSpace(value), "xmpp:")
	}
	if in.Token == "" {
		return in, nil, cardFault("The file is empty. Its first line is the invitation, which begins with xmpp:")
	}
	return in, more, nil
}
