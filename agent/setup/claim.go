package setup

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rsc.io/qr"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/bridge"
)

// ClaimPicture is the file beside the config with the QR code of a [Claim].
const ClaimPicture = "claim.png"

// Contact gives the URI that has a client add a contact (XEP-0147).
func Contact(jid string) string { return uri(jid, "roster") }

func uri(jid, query string) string {
	local, domain, _ := strings.Cut(jid, "@")
	return "xmpp:" + url.PathEscape(local) + "@" + domain + "?" + query
}

// A Claim is what makes whoever sends it to the gateway first its owner.
type Claim struct{ JID, Code string }

// Message is what has to be sent to JID.
func (c Claim) Message() string { return "claim " + c.Code }

// URI has a client open a chat with the message ready to be sent (XEP-0147).
func (c Claim) URI() string { return uri(c.JID, "message;body="+url.PathEscape(c.Message())) }

// Address gives the address of a config's gateway.
func Address(c *config.Config) string {
	if own := c.XMPP.Component; own != nil {
		return "gateway@" + own.Domain
	}
	bare, _, _ := strings.Cut(c.XMPP.Account.JID, "/")
	return bare
}

// OfferClaim makes the claim of a gateway, before its start with a config, and
// writes its QR code to the files of pictures. Where somebody is the owner, by
// the config or by what was granted before, Code is empty and nothing is
// written. Of an offer that fails nothing is left.
func OfferClaim(c *config.Config, source clock.Source, pictures ...string) (claim Claim, err error) {
	claim.JID = Address(c)
	dir := c.Gateway.DataDir
	sample := source.Sample()
	r, err := access.Open(access.Options{
		Dir: dir, CheckJID: bridge.ValidJID, Log: slog.New(slog.DiscardHandler),
		Now: func() access.Moment {
			return access.Moment{Time: clock.VerifyTime(source), Known: sample.Synced}
		},
	})
	grants := agent.Grants(c)
	r.Configure(grants)
	switch {
	case err == nil && !r.Claimable(), err != nil && slices.ContainsFunc(grants, func(g access.Grant) bool { return g.Role == access.Owner }):
		return claim, nil
	case err != nil:
		return claim, fmt.Errorf("cannot make the code to claim the gateway: %w", err)
	}
	made := slices.Clone(pictures) // what is removed again where it fails
	defer func() {
		if err != nil {
			remove(made)
		}
	}()
	uid, gid := Service()
	err = os.MkdirAll(filepath.Dir(dir), 0o755)
	if err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	switch {
	case err == nil:
		made = append(made, dir)
		if uid >= 0 {
			err = os.Chown(dir, uid, gid)
		}
	case errors.Is(err, os.ErrExist):
		err = nil
	}
	if err != nil {
		return claim, fmt.Errorf("cannot make the data directory: %w", err)
	}
	file := filepath.Join(dir, access.ClaimFile)
	if _, none := os.Stat(file); errors.Is(none, os.ErrNotExist) {
		made = append(made, file)
	}
	err = r.OfferClaim()
	if err == nil && uid >= 0 {
		err = os.Chown(file, uid, gid)
	}
	if err != nil {
		return claim, fmt.Errorf("cannot make the code to claim the gateway: %w", err)
	}
	claim.Code = r.ClaimCode()
	code, err := qr.Encode(claim.URI(), qr.M)
	if err != nil {
		return claim, fmt.Errorf("cannot make the QR code: %w", err)
	}
	for _, path := range pictures {
		if err := durable.Replace(path, code.PNG()); err != nil {
			return claim, fmt.Errorf("cannot write the QR code: %w", err)
		}
	}
	return claim, nil
}

// remove takes away what is of no use, the last first.
func remove(paths []string) {
	for _, path := range slices.Backward(paths) {
		_ = os.Remove(path)
	}
}

// quiet is the margin that readers of QR codes need, in modules.
const quiet = 4

// Blocks draws a text's QR code with half blocks, two modules above each other
// in a character. Blocks are what is light: with colored, by the colors of a
// terminal, else as its ground is taken to be dark.
func Blocks(text string, colored bool) (string, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return "", fmt.Errorf("cannot make the QR code: %w", err)
	}
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		if colored {
			b.WriteString("\x1b[97;40m")
		}
		for x := -quiet; x < code.Size+quiet; x++ {
			switch upper, lower := code.Black(x, y), code.Black(x, y+1); {
			case upper && lower:
				b.WriteRune(' ')
			case upper:
				b.WriteRune('▄')
			case lower:
				b.WriteRune('▀')
			default:
				b.WriteRune('█')
			}
		}
		if colored {
			b.WriteString("\x1b[0m")
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}
