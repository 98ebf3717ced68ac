package setup

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// The files on a boot partition. Whoever writes them sees no others of the
// machine, so what becomes of them is told beside them.
const (
	CardConfig = "porchlight.yaml"       // a config that may hold its secrets, a WiFi, or both
	CardInvite = "porchlight-invite.txt" // an invitation
	CardErrors = "porchlight-errors.txt" // what is wrong, in words
	CardDone   = "porchlight-done.txt"   // that all went well
	CardClaim  = "porchlight-claim.png"  // how the gateway is claimed, as a QR code
	CardFull   = "porchlight-errors-no-room-on-this-partition.txt"
)

// maxCardFile is more than any config.
const maxCardFile = 1 << 20

// A CardFault is what the one who wrote the card must mend.
type CardFault struct{ what string }

func (f CardFault) Error() string { return f.what }

func faultsOf(faults strictyaml.Faults) error {
	return cardFault("In the file is wrong, each with its line and the place in that line:\n\n%v", config.OnCard(faults))
}

func cardFault(format string, args ...any) error { return CardFault{fmt.Sprintf(format, args...)} }

// A Card is a boot partition, and the gateway that it is for.
type Card struct {
	Dir     string // where the partition is
	Config  string // the gateway's config file
	DataDir string // that of a gateway which is invited; "" is the default
	Clock   clock.Source

	// Connections is NetworkManager's folder of connections; "" is where Debian
	// has it.
	Connections string
	patience    time.Duration // how long a WiFi is tried for; 0 is joinFor
}

// TakeOver makes the file on the partition the gateway's config, checks it
// first, and takes it from the partition, which anybody can read who holds the
// card. A WiFi that it names is joined first. It reports whether there was a
// file. What is wrong is also written to [CardErrors]; the file is left as it is
// then, and the gateway's config too.
// Trying again is of use where the error is no [CardFault]. Where nobody is the
// owner of the gateway, it is to be claimed, and [CardDone] says how.
func (c Card) TakeOver(ctx context.Context) (done bool, err error) {
	found, err := c.files()
	if err != nil || len(found) == 0 {
		return false, err
	}
	// Where nothing can be removed, secrets would stay, and the same file would
	// be taken over again at each start.
	said := c.path(CardErrors)
	if err := os.WriteFile(said, []byte("The file is being looked at.\n"), 0o600); err != nil {
		err = fmt.Errorf("cannot write to the boot partition, so nothing is taken over: %w", err)
		if errors.Is(err, unix.ENOSPC) {
			// A name needs no room.
			err = errors.Join(err, os.Remove(said), os.WriteFile(c.path(CardFull), nil, 0o600))
		}
		return false, err
	}
	told, err := c.take(ctx, found)
	if err != nil {
		text := "Porchlight could not be set up.\n\n" + err.Error() + "\n"
		if remedy := Remedy(err); remedy != "" {
			text += "\n" + remedy + "\n"
		}
		if errors.As(err, new(CardFault)) {
			text += "\nMend " + strings.Join(found, ", ") + " and start again.\n"
		} else {
			text += "\nIt is tried again by itself.\n"
		}
		text += "\n" + c.Clock.Sample().Wall.UTC().Format(time.DateTime) + " UTC by this machine's clock\n"
		return false, errors.Join(err, os.WriteFile(said, crlf(text), 0o600))
	}
	// In the place of what was said before, so that no room is needed any more.
	if err := os.WriteFile(said, crlf(told+"\n"), 0o600); err != nil {
		return false, fmt.Errorf("cannot write to the boot partition: %w", err)
	}
	for _, name := range found {
		if err := wipe(c.path(name)); err != nil {
			return false, errors.Join(err, os.WriteFile(said, crlf(told+"\n\nBut "+name+" could not be removed from the card, and holds secrets: remove it.\n"), 0o600))
		}
	}
	_ = os.Remove(c.path(CardFull)) // of the time before
	return true, errors.Join(os.Rename(said, c.path(CardDone)), durable.SyncDir(c.Dir))
}

// take takes the files over. Where there is a WiFi, it is joined when all that
// needs no network was checked, and before what needs one.
func (c Card) take(ctx context.Context, found []string) (told string, err error) {
	var written, invitation []string
	for _, name := range found {
		if strings.HasPrefix(strings.ToLower(name), CardConfig) {
			written = append(written, name)
		} else {
			invitation = append(invitation, name)
		}
	}
	if len(written) > 1 || len(invitation) > 1 {
		return "", cardFault("There are %s: keep one of them.", strings.Join(found, " and "))
	}
	var draft config.Taken
	for _, name := range written {
		text, err := readCardFile(c.path(name))
		if err != nil {
			return "", err
		}
		var faults strictyaml.Faults
		if draft, faults = config.TakeSecrets(CardConfig, text); len(faults) > 0 {
			return "", faultsOf(faults)
		}
	}
	joined := ""
	join := func() (err error) {
		if draft.WiFi != nil {
			joined, err = c.join(ctx, *draft.WiFi)
		}
		return err
	}
	switch {
	case len(found) > 1 && !draft.OnlyWiFi:
		return "", cardFault("There are %s: keep one of them. Beside an invitation, %s may have wifi: and nothing else.", strings.Join(found, " and "), CardConfig)
	case len(invitation) > 0:
		told, err = c.takeInvitation(ctx, c.path(invitation[0]), join)
	case draft.OnlyWiFi:
		err = join()
	default:
		told, err = c.takeConfig(ctx, draft, join)
	}
	switch {
	case joined == "":
	case err != nil:
		err = fmt.Errorf("%w\n\n%s", err, joined)
	default:
		told = strings.TrimPrefix(told+"\n\n"+joined, "\n\n")
	}
	return told, err
}

func (c Card) path(name string) string { return filepath.Join(c.Dir, name) }

// crlf ends lines as the plainest editors want them.
func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

// files gives the names of the files that are for us. Some systems hide the
// end of a name and add another .txt, and none tells capitals apart there.
func (c Card) files() (found []string, err error) {
	entries, err := os.ReadDir(c.Dir)
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
	return utf8Of(text), nil
}

// utf8Of gives a text that begins with a mark of UTF-16, as editors of Windows
// write, in UTF-8, and others as they are.
func utf8Of(text []byte) []byte {
	var order binary.ByteOrder = binary.LittleEndian
	switch {
	case bytes.HasPrefix(text, []byte("\xff\xfe")):
	case bytes.HasPrefix(text, []byte("\xfe\xff")):
		order = binary.BigEndian
	default:
		return text
	}
	units := make([]uint16, 0, len(text)/2)
	for rest := text[2:]; len(rest) >= 2; rest = rest[2:] {
		units = append(units, order.Uint16(rest))
	}
	return []byte(string(utf16.Decode(units)))
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

// tryFor bounds the try of a config's server.
const tryFor = time.Minute

func (c Card) takeConfig(ctx context.Context, draft config.Taken, join func() error) (told string, err error) {
	loaded, faults, err := load(draft, c.Config, CardConfig)
	switch {
	case err != nil:
		return "", err
	case loaded == nil:
		return "", faultsOf(faults)
	}
	if err := join(); err != nil {
		return "", err
	}
	// What the server refuses is a fault of the file. A server that is away comes
	// back, maybe only when this machine is where it is to be.
	later, err := c.try(ctx, loaded)
	if err != nil {
		return "", err
	}
	claim, err := install(c.Config, draft, func() (Claim, error) {
		claim, err := OfferClaim(loaded, c.Clock, c.pictures()...)
		if errors.Is(err, unix.EROFS) {
			// A data directory that the config has elsewhere, and the gateway
			// alone is let write to. Its log has the code then.
			return Claim{}, nil
		}
		return claim, err
	}, c.pictures())
	if err != nil {
		return "", err
	}
	told = fmt.Sprintf("The config was taken over: this is the gateway %s. Its secrets are no longer here.", loaded.Gateway.ID)
	if later != "" {
		told += "\n\nNot everything works yet, and it is tried again by itself:\n" + later
	}
	if claim.Code != "" {
		told += "\n\n" + claimText(claim)
	}
	return told, nil
}

// try gives what of a config does not work yet, or the fault that its server
// refuses it.
func (c Card) try(ctx context.Context, loaded *config.Config) (later string, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	var refused error
	err = agent.TryXMPP(ctx, loaded, clock.Verifying(c.Clock), func(t bridge.Trial) {
		switch {
		case t.Err == nil || t.Harmless:
		case t.Step == "login" && stream.Delay(t.Err) == stream.Refused:
			refused = cardFault("The server refuses the login of %s: %v.\nNext: %s.", Address(loaded), t.Err, t.Next)
		default:
			later = fmt.Sprintf("%s: %v.\nNext: %s.", t.Step, t.Err, t.Next)
		}
	})
	if errors.Is(err, agent.ErrRunning) {
		err = nil // which shows soon enough
	}
	return later, errors.Join(err, refused)
}

// pictures are where a QR code for the claim is put: beside the config, and where
// the one looks who wrote the card.
func (c Card) pictures() []string {
	return []string{filepath.Join(filepath.Dir(c.Config), ClaimPicture), c.path(CardClaim)}
}

func claimText(claim Claim) string {
	return fmt.Sprintf("It belongs to nobody yet. Who sends this to %s in a chat first is its owner:\n\n%s\n\n%s has it for the camera of a phone.", claim.JID, claim.Message(), CardClaim)
}

// A pending invitation is kept until the config is in its place: a power cut in
// between must not leave an account that nobody knows the password of.
type pending struct {
	Token    string `json:"token"`
	JID      string `json:"jid"`
	Password string `json:"password"`
}

const pendingName = ".invitation"

func (c Card) takeInvitation(ctx context.Context, card string, join func() error) (told string, err error) {
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
		if err := bridge.ValidJID(owner); err != nil || !strings.Contains(owner, "@") {
			return "", cardFault("owner: %q is no address of a person. It is like anna@example.org.", owner)
		}
	}
	if server := more["server"]; server != "" {
		if _, port, err := net.SplitHostPort(server); err != nil || port == "" {
			return "", cardFault("server: %q is no address of a server with its port. It is like xmpp.example.org:5222.", server)
		}
	}
	if err := join(); err != nil {
		return "", err
	}
	dir := filepath.Dir(c.Config)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("cannot make the config's directory: %w", err)
	}
	kept := filepath.Join(dir, pendingName)
	var p pending
	if b, err := os.ReadFile(kept); err == nil && json.Unmarshal(b, &p) == nil && p.Token != in.Token {
		p = pending{}
	}
	answers := func() Answers {
		return Answers{Account: &Account{JID: p.JID, Password: p.Password, Server: more["server"]}, Owner: owner, DataDir: c.DataDir}
	}
	var failed bridge.Trial
	try := func() (Answers, error) {
		return answers().Try(ctx, c.Config, c.Clock, func(t bridge.Trial) {
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
		made, refused := c.enroll(ctx, in, more["server"], p, kept)
		switch {
		case refused == nil:
			p = made
			found, err = try()
		case p.Token == "" || !bridge.Lasting(refused): // else it was made before
			return "", c.explainInvitation(refused, in)
		}
	}
	switch {
	case errors.Is(err, ErrRefused):
		return "", fmt.Errorf("the account %s was made, and cannot be used yet.\n%s: %w. %s", p.JID, failed.Step, failed.Err, failed.Next)
	case err != nil:
		return "", err
	}
	draft, err := found.Draft()
	if err != nil {
		return "", err
	}
	claim, err := Install(c.Config, draft, c.Clock, c.pictures()...)
	if err != nil {
		return "", err
	}
	told = fmt.Sprintf("The gateway has the account %s", p.JID)
	switch {
	case claim.Code != "":
		told += ".\n\n" + claimText(claim)
	case owner != "":
		told += fmt.Sprintf(" and belongs to %s.", owner)
	default:
		told += " and belongs to whom it did before."
	}
	if err := os.Remove(kept); err != nil {
		return "", fmt.Errorf("cannot remove what the invitation left: %w", err)
	}
	return told, nil
}

// enroll makes an account, the one of before where there is one, and remembers it
// before the server does. That of before may be taken by somebody else: what was
// to be asked for next could not be kept.
func (c Card) enroll(ctx context.Context, in bridge.Invitation, server string, before pending, kept string) (pending, error) {
	for try := 0; ; try++ {
		p := before
		if before.Token == "" || try > 0 {
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
		err = bridge.Register(ctx, stream.Config{Account: &stream.Account{
			JID: j, Password: p.Password, Server: server, TLS: &tls.Config{Time: clock.Verifying(c.Clock)},
		}}, in.Token)
		if !errors.Is(err, bridge.ErrTaken) || in.Name != "" || try == 3 {
			if before.Token == "" && bridge.Lasting(err) {
				err = errors.Join(err, os.Remove(kept)) // there is no such account
			}
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

func (c Card) explainInvitation(err error, in bridge.Invitation) error {
	switch {
	case errors.Is(err, bridge.ErrInvitation):
		return cardFault("%v.\nAsk for a new one; each is good for one gateway, and for some days.", err)
	case errors.Is(err, bridge.ErrTaken):
		return cardFault("%v.\nAsk for an invitation that leaves the name open.", err)
	case errors.Is(err, bridge.ErrNoRegistration):
		return cardFault("%v.\nThe operator of %s can allow it for those who are invited: in Prosody by the module invites_register.", err, in.Domain)
	case Remedy(err) != "":
		return err
	}
	if now := c.Clock.Sample(); !now.Synced && bridge.Untimely(err) {
		return fmt.Errorf("%w\nThis machine's clock shows %s, which nothing keeps right; it learns the time from the network, and without the time it cannot tell whether the server is the right one. Check the network: the cable, or name and password of the WiFi", err, now.Wall.UTC().Format(time.DateTime))
	}
	if stream.Delay(err) == stream.Conflict {
		return fmt.Errorf("%w\nSo it may be another server. Its operator has to give it a certificate for %s from an authority that is trusted everywhere, and to renew it in time", err, in.Domain)
	}
	return fmt.Errorf("%w\nCheck the network (the cable, or name and password of the WiFi), and whether the name of the server is right and it runs", err)
}

// readInvitation reads the invitation and what more may stand below it, as
// "owner: anna@example.org".
func readInvitation(text string) (in bridge.Invitation, more map[string]string, err error) {
	more = map[string]string{}
	text = strings.TrimPrefix(text, "\xef\xbb\xbf")
	const wrapped = "<>\"'“”„" // as texts have it that it is copied from
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if in.Token == "" {
			if in, err = bridge.ParseInvitation(strings.Trim(line, wrapped)); err != nil {
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
