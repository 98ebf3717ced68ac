package setup

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/makiuchi-d/gozxing"
	"github.com/makiuchi-d/gozxing/qrcode"

	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
)

// scan reads a QR code as a phone would.
func scan(t *testing.T, picture image.Image) string {
	t.Helper()
	bitmap, err := gozxing.NewBinaryBitmapFromImage(picture)
	if err != nil {
		t.Fatal(err)
	}
	found, err := qrcode.NewQRCodeReader().Decode(bitmap, nil)
	if err != nil {
		t.Fatalf("no QR code is seen: %v", err)
	}
	return found.GetText()
}

// unowned is the config of an account's gateway without an owner.
func unowned(jid, dataDir string) *config.Config {
	c := config.Default()
	c.Gateway.DataDir, c.XMPP.Account = dataDir, &config.Account{JID: jid}
	return c
}

// knowing is the clock of a machine that knows the time.
func knowing() *clock.Fake {
	now := clock.NewFake(time.Now(), time.Now())
	now.Sync(0, 0)
	return now
}

// TestClaimPicture scans what a new gateway's installer scans, and what it says
// is the code that the gateway will offer.
func TestClaimPicture(t *testing.T) {
	data, path := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), ClaimPicture)
	c, err := OfferClaim(unowned("o'hara's gate@example.org", data), knowing(), path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(filepath.Join(data, access.ClaimFile))
	if err != nil || c.Code != strings.TrimSpace(string(file)) {
		t.Fatalf("the code is %q, and the gateway will have %q, %v", c.Code, file, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	picture, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := scan(t, picture), "xmpp:o%27hara%27s%20gate@example.org?message;body=claim%20"+c.Code; got != want {
		t.Errorf("the picture says %q, want %q", got, want)
	}
	if again, err := OfferClaim(unowned("gate@example.org", data), knowing()); err != nil || again.Code != c.Code {
		t.Errorf("a second time the code is %q, %v; it was %q", again.Code, err, c.Code)
	}
}

// TestClaimOfAnOwnersGateway: a code that does nothing is not shown.
func TestClaimOfAnOwnersGateway(t *testing.T) {
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "access.yaml"), []byte("version: 1\ngrants:\n  - {jid: anna@example.org, role: owner}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	picture := filepath.Join(t.TempDir(), ClaimPicture)
	if c, err := OfferClaim(unowned("gate@example.org", data), knowing(), picture); err != nil || c.Code != "" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, path := range []string{picture, filepath.Join(data, access.ClaimFile)} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestBlocks(t *testing.T) {
	const text = "xmpp:gateway@porch.example.org?roster"
	for _, colored := range []bool{false, true} {
		drawn, err := Blocks(text, colored)
		if err != nil {
			t.Fatal(err)
		}
		if colored != strings.Contains(drawn, "\x1b[97;40m") {
			t.Errorf("colored %v: %q", colored, drawn)
		}
		// A terminal of light characters on a dark ground.
		const module = 6
		lines := strings.Split(strings.NewReplacer("\x1b[97;40m", "", "\x1b[0m", "").Replace(strings.TrimSuffix(drawn, "\n")), "\n")
		picture := image.NewGray(image.Rect(0, 0, len([]rune(lines[0]))*module, 2*len(lines)*module))
		for y, line := range lines {
			for x, c := range []rune(line) {
				for py := range 2 * module {
					for px := range module {
						if c == '█' || c == '▀' && py < module || c == '▄' && py >= module {
							picture.SetGray(x*module+px, 2*y*module+py, color.Gray{Y: 0xff})
						}
					}
				}
			}
		}
		if got := scan(t, picture); got != text {
			t.Errorf("the terminal says %q, want %q", got, text)
		}
	}
}
