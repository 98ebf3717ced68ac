package setup

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"rsc.io/qr"

	"github.com/porchlight-iot/porchlight/agent/access"
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

// OfferClaim makes the claim of a new gateway, before its first start, and writes
// its QR code to the files of pictures. jid is the gateway's address. An empty
// dataDir is the default. Where what is there belongs to somebody, Code is empty,
// and no picture is written.
func OfferClaim(jid, dataDir string, pictures ...string) (Claim, error) {
	c := Claim{JID: jid}
	if dataDir == "" {
		dataDir = defaultDataDir
	}
	uid, gid := Service()
	err := os.Mkdir(dataDir, 0o700)
	switch {
	case err == nil && uid >= 0:
		err = os.Chown(dataDir, uid, gid)
	case errors.Is(err, os.ErrExist):
		err = nil
	}
	if err != nil {
		return c, fmt.Errorf("cannot make the data directory: %w", err)
	}
	r, err := access.Open(access.Options{
		Dir: dataDir, CheckJID: bridge.ValidJID, Log: slog.New(slog.DiscardHandler),
		Now: func() access.Moment { return access.Moment{Time: time.Now(), Known: true} },
	})
	if err == nil {
		err = r.OfferClaim()
	}
	if err == nil && uid >= 0 && r.ClaimCode() != "" {
		err = os.Chown(filepath.Join(dataDir, access.ClaimFile), uid, gid)
	}
	if err != nil {
		return c, fmt.Errorf("cannot make the code to claim the gateway: %w", err)
	}
	if c.Code = r.ClaimCode(); c.Code == "" {
		return c, nil
	}
	code, err := qr.Encode(c.URI(), qr.M)
	if err != nil {
		return c, fmt.Errorf("cannot make the QR code: %w", err)
	}
	for _, path := range pictures {
		if err := durable.Replace(path, code.PNG()); err != nil {
			return c, fmt.Errorf("cannot write the QR code: %w", err)
		}
	}
	return c, nil
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
