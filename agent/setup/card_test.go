package setup

import (
	"encoding/binary"
	"errors"
	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/config"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
)

const goodCard = `gateway: {id: pi, data_dir: DATA}
xmpp:
  account: {jid: pi@example.org, server: "127.0.0.1:1", password: "grün 'und' \"rot\""}
mqtt: {brokers: [{name: house, url: "mqtt://127.0.0.1:1"}]}
operators: [{jid: anna@example.org, role: owner}]
devices:
  - {id: kitchen, name: " Küche \"oben\"; #1 🍅 ", profile: tasmota, mqtt: {topic: "a b"}}
`

// A card is a boot partition and the place of the config.
type card struct {
	t               *testing.T
	boot, etc, path string
	connections     string // NetworkManager's, which is not there
}

func newCard(t *testing.T, files map[string]string) card {
	t.Helper()
	dir := t.TempDir()
	c := card{t, filepath.Join(dir, "boot"), filepath.Join(dir, "etc"), filepath.Join(dir, "etc", "porchlight.yaml"), filepath.Join(dir, "connections")}
	for _, d := range []string{c.boot, c.etc} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		text = strings.ReplaceAll(text, "DATA", filepath.Join(dir, "data"))
		if err := os.WriteFile(filepath.Join(c.boot, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// takeOver has a machine take the card that knows the time.
func (c card) takeOver() (bool, error) {
	c.t.Helper()
	return Card{Dir: c.boot, Config: c.path, Clock: knowing(), Connections: c.connections, patience: 1}.TakeOver(c.t.Context())
}

// list gives what is in a folder.
func (c card) list(dir string) string {
	c.t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func (c card) read(path string) string {
	c.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

func utf16Of(order binary.AppendByteOrder, s string) string {
	b := order.AppendUint16(nil, 0xfeff)
	for _, unit := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, unit)
	}
	return string(b)
}

// TestCardIsTakenOver has editors of other systems write the file, and name it.
func TestCardIsTakenOver(t *testing.T) {
	for name, encode := range map[string]func(string) string{
		"porchlight.yaml":     func(s string) string { return "\xef\xbb\xbf" + s },
		"Porchlight.YAML.txt": func(s string) string { return utf16Of(binary.LittleEndian, s) },
		"PORCHLIGHT.YAML":     func(s string) string { return utf16Of(binary.BigEndian, s) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCard(t, map[string]string{name: strings.ReplaceAll(goodCard, "\n", "\r\n"), CardErrors: "of the time before", "config.txt": "the board's"})
			path := filepath.Join(c.boot, name)
			if err := os.WriteFile(path, []byte(encode(c.read(path))), 0o600); err != nil {
				t.Fatal(err)
			}
			done, err := c.takeOver()
			if err != nil || !done {
				t.Fatal(done, err)
			}
			if got := c.list(c.boot); got != "config.txt porchlight-done.txt" {
				t.Errorf("on the boot partition are %s", got)
			}
			if told := c.read(filepath.Join(c.boot, CardDone)); !strings.Contains(told, "gateway pi") || !strings.Contains(told, "it is tried again by itself:\r\nlogin: ") || strings.Contains(told, "claim") {
				t.Errorf("it is told %q", told)
			}
			if got := c.list(c.etc); got != "porchlight.yaml xmpp-account-password" {
				t.Errorf("beside the config are %s", got)
			}
			for file, mode := range map[string]os.FileMode{"porchlight.yaml": 0o640, "xmpp-account-password": 0o600} {
				if info, err := os.Stat(filepath.Join(c.etc, file)); err != nil || info.Mode().Perm() != mode {
					t.Errorf("%s has mode %v, %v", file, info.Mode(), err)
				}
			}
			loaded, faults := config.Load(c.path, config.LoadOptions{})
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			if got := loaded.XMPP.Account.Password.Reveal(); got != `grün 'und' "rot"` {
				t.Errorf("the password is %q", got)
			}
			if got := loaded.Devices[0].Name; got != ` Küche "oben"; #1 🍅 ` {
				t.Errorf("the device is %q", got)
			}
			// There is nothing to do the next time.
			if done, err := c.takeOver(); err != nil || done {
				t.Errorf("again: %v, %v", done, err)
			}
		})
	}
}

const ownersLine = "operators: [{jid: anna@example.org, role: owner}]\n"

// TestCardOffersClaim: whoever wrote a config without an owner finds on the card
// how to become it, unless somebody is the owner already.
func TestCardOffersClaim(t *testing.T) {
	text := strings.Replace(goodCard, ownersLine, "operators: [{jid: bob@example.org, role: viewer}]\n", 1)
	for name, account := range map[string]string{
		"account":   "xmpp:pi@example.org?",
		"component": "xmpp:gateway@porch.example.org?",
	} {
		t.Run(name, func(t *testing.T) {
			text := text
			if name == "component" {
				from, to := strings.Index(text, "  account:"), strings.Index(text, "mqtt:")
				text = text[:from] + "  component: {domain: porch.example.org, server: \"127.0.0.1:1\", secret: x}\n  pubsub: p.example.org\n" + text[to:]
			}
			c := newCard(t, map[string]string{CardConfig: text})
			if done, err := c.takeOver(); err != nil || !done {
				t.Fatal(done, err)
			}
			code := strings.TrimSpace(c.read(filepath.Join(filepath.Dir(c.boot), "data", access.ClaimFile)))
			if told := c.read(filepath.Join(c.boot, CardDone)); !strings.Contains(told, "\r\n\r\nclaim "+code+"\r\n\r\n") {
				t.Errorf("the code is %q, and it is told %q", code, told)
			}
			for _, path := range []string{filepath.Join(c.boot, CardClaim), filepath.Join(c.etc, ClaimPicture)} {
				picture, err := png.Decode(strings.NewReader(c.read(path)))
				if err != nil {
					t.Fatal(err)
				}
				if got, want := scan(t, picture), account+"message;body=claim%20"+code; got != want {
					t.Errorf("%s says %q, want %q", path, got, want)
				}
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", path, info, err)
				}
			}
		})
	}
	t.Run("owned", func(t *testing.T) {
		c := newCard(t, map[string]string{CardConfig: text})
		data := filepath.Join(filepath.Dir(c.boot), "data")
		err := errors.Join(os.Mkdir(data, 0o700), os.WriteFile(filepath.Join(data, "access.yaml"), []byte("version: 1\ngrants:\n  - {jid: anna@example.org, role: owner}\n"), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		if done, err := c.takeOver(); err != nil || !done {
			t.Fatal(done, err)
		}
		if got, told := c.list(c.boot), c.read(filepath.Join(c.boot, CardDone)); got != CardDone || strings.Contains(told, "claim") {
			t.Errorf("there are %s, and it is told %q", got, told)
		}
	})
}

// TestCardWithFaults leaves everything as it was, and says what is wrong beside
// the file.
func TestCardWithFaults(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"typo":          {map[string]string{CardConfig: strings.Replace(goodCard, "jid:", "jdi:", 1)}, `porchlight.yaml:3:13: xmpp.account.jdi: is not a known key`},
		"no profile":    {map[string]string{CardConfig: strings.Replace(goodCard, "tasmota", "tasmoto", 1)}, `porchlight.yaml:7:`},
		"no YAML":       {map[string]string{CardConfig: "xmpp: [\n"}, `porchlight.yaml:`},
		"empty":         {map[string]string{CardConfig: ""}, `porchlight.yaml:1:1`},
		"a picture":     {map[string]string{CardConfig: "\x89PNG\r\n\x1a\n\x00\x00"}, `porchlight.yaml:1:1`},
		"no password":   {map[string]string{CardConfig: strings.Replace(goodCard, `"grün 'und' \"rot\""`, `""`, 1)}, `porchlight.yaml:3:67: xmpp.account.password: is empty`},
		"both":          {map[string]string{CardConfig: goodCard, CardInvite: "xmpp:example.org?register;preauth=x"}, "keep one of them"},
		"no invitation": {map[string]string{CardInvite: "https://example.org/i#abc\n"}, "the address of a web page"},
		"more":          {map[string]string{CardInvite: "xmpp:anna@example.org?roster;preauth=x;ibr=y\nwifi: home\n"}, `The line "wifi: home" is not understood`},
		"pasword":       {map[string]string{CardConfig: strings.Replace(goodCard, "password:", "pasword:", 1)}, `did you mean "password"?`},
		"no secret":     {map[string]string{CardConfig: "xmpp: {account: {jid: a@example.org}}\n"}, `xmpp.account.password: is missing; allowed: one of password, password_env; add it`},
		"no address":    {map[string]string{CardInvite: "Hello anna\n"}, `"Hello anna" does not begin with xmpp:`},
		"no owner":      {map[string]string{CardInvite: "xmpp:example.org?register;preauth=x\nowner: anna\n"}, `owner: "anna" is no address of a person`},
		"no port":       {map[string]string{CardInvite: "xmpp:example.org?register;preauth=x\nserver: example.org\n"}, `server: "example.org" is no address of a server with its port`},
		"curly quotes":  {map[string]string{CardConfig: strings.Replace(goodCard, `"grün 'und' \"rot\""`, `“grün”`, 1)}, `xmpp.account.password: is in typographic quotes`},
		"curly address": {map[string]string{CardConfig: strings.Replace(goodCard, "pi@example.org", "“pi@example.org”", 1)}, `xmpp.account.jid: "“pi@example.org”" is in typographic quotes`},
		"two addresses": {map[string]string{CardInvite: "xmpp:a.org?register;preauth=x\nxmpp:b.org?register;preauth=x\n"}, "is not understood"},
		"a tab":         {map[string]string{CardConfig: strings.Replace(goodCard, "  account:", "\taccount:", 1)}, `porchlight.yaml:3:1: (document): a tab indents this line`},
		"long name":     {map[string]string{CardConfig: goodCard + "wifi: {name: \"" + strings.Repeat("ä", 17) + "\", password: not-to-be-told}\n"}, `porchlight.yaml:8:14: wifi.name: "` + strings.Repeat("ä", 17) + `" is 34 bytes long; allowed: a name of 1 to 32 bytes`},
		"no name":       {map[string]string{CardConfig: "wifi: {password: not-to-be-told}\n"}, `porchlight.yaml:1:1: wifi.name: is missing`},
		"short":         {map[string]string{CardConfig: goodCard + "wifi:\n  name: home\n  password: \"2short!\"\n"}, `porchlight.yaml:10:13: wifi.password: is 7 bytes long; allowed: 8 to 63 bytes`},
		"no value":      {map[string]string{CardConfig: goodCard + "wifi:\n  name: home\n  password:\n"}, `porchlight.yaml:10:12: wifi.password: has no value`},
		"country":       {map[string]string{CardConfig: goodCard + "wifi: {name: home, country: Germany}\n"}, `porchlight.yaml:8:29: wifi.country: "Germany" is not the code of a country; allowed: two letters (ISO 3166); write for example DE`},
		"kingdom":       {map[string]string{CardConfig: goodCard + "wifi: {name: home, country: uk}\n"}, `that of the United Kingdom is GB`},
		"ssid":          {map[string]string{CardConfig: "wifi: {ssid: home, password: not-to-be-told}\n"}, `porchlight.yaml:1:8: wifi.ssid: is not a known key; allowed: keys name, password, country, hidden`},
		"wfi":           {map[string]string{CardConfig: "wfi: {name: home, password: not-to-be-told}\n" + goodCard}, `porchlight.yaml:1:1: wfi: is not a known key; allowed: keys gateway,`},
		"wi-fi":         {map[string]string{CardConfig: "Wifi: {name: home, password: not-to-be-told}\n" + goodCard}, `did you mean "wifi"?`},
		"two":           {map[string]string{CardConfig: "wifi: {name: home}\n" + goodCard + "wifi: {name: home}\n"}, `porchlight.yaml:9:1: wifi: is given twice`},
		"a WiFi, both":  {map[string]string{CardConfig: goodCard + "wifi: {name: home}\n", CardInvite: "xmpp:example.org?register;preauth=x"}, "Beside an invitation, porchlight.yaml may have wifi: and nothing else"},
		"other system":  {map[string]string{CardConfig: goodCard + "wifi: {name: home, password: not-to-be-told}\n"}, "This machine has no NetworkManager"},
		"other invited": {map[string]string{CardConfig: "wifi: {name: home, password: not-to-be-told}\n", CardInvite: "xmpp:example.org?register;preauth=x"}, "This machine has no NetworkManager"},
		"nothing":       {map[string]string{CardInvite: "# later\r\n"}, "The file is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			card := newCard(t, c.files)
			before := card.list(card.boot)
			done, err := card.takeOver()
			if done || !errors.As(err, new(CardFault)) {
				t.Fatalf("%v, %v", done, err)
			}
			if told := card.read(filepath.Join(card.boot, CardErrors)); !strings.Contains(told, c.want) || strings.Contains(told, ".setup-") || strings.Contains(told, "not-to-be-told") || !strings.Contains(told, "start again.\r\n") {
				t.Errorf("it is told\n%s\nwant %s", told, c.want)
			}
			os.Remove(filepath.Join(card.boot, CardErrors))
			if after := card.list(card.boot); after != before {
				t.Errorf("on the boot partition are %s, before %s", after, before)
			}
			if got := card.list(card.etc); got != "" {
				t.Errorf("half done: %s", got)
			}
		})
	}
}

// TestCardIsReadOnly: what cannot be removed would be taken over for ever.
func TestCardIsReadOnly(t *testing.T) {
	c := newCard(t, map[string]string{CardConfig: goodCard})
	// A folder in the errors' place keeps root from writing them too.
	if err := os.Mkdir(filepath.Join(c.boot, CardErrors), 0o700); err != nil {
		t.Fatal(err)
	}
	if done, err := c.takeOver(); done || err == nil || errors.As(err, new(CardFault)) {
		t.Errorf("%v, %v", done, err)
	}
	if got := c.list(c.etc); got != "" {
		t.Errorf("half done: %s", got)
	}
}

// TestConfigBeforeIsKept takes over a second file.
func TestConfigBeforeIsKept(t *testing.T) {
	c := newCard(t, map[string]string{CardConfig: goodCard})
	if err := os.WriteFile(c.path, []byte("the config before"), 0o640); err != nil {
		t.Fatal(err)
	}
	if done, err := c.takeOver(); err != nil || !done {
		t.Fatal(done, err)
	}
	if got := c.read(c.path + ".before"); got != "the config before" {
		t.Errorf("kept is %q", got)
	}
}

// TestDraftsAreValid has each kind of answers pass the check, also those with
// characters that YAML makes something of.
func TestDraftsAreValid(t *testing.T) {
	c := newCard(t, nil)
	for name, a := range map[string]Answers{
		"account":   {Account: &Account{JID: "pi@example.org", Password: `a: "b" #c`, Server: "[::1]:5222"}, Owner: `anna@example.org`, PubSub: "pep"},
		"component": {Component: &Component{Domain: "porch.example.org", Secret: "no", Server: "127.0.0.1:5347"}, PubSub: "pubsub.example.org", Owner: "o+hara@example.org", Broker: "mqtt://127.0.0.1:1883", DataDir: `/tmp/a "b": #c`},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := a.Draft()
			if err != nil {
				t.Fatal(err)
			}
			loaded, faults, err := load(d, c.path, "porchlight.yaml")
			if err != nil || len(faults) > 0 {
				t.Fatalf("%v %v\n%s", faults, err, d.Text)
			}
			if a.Owner != "" && loaded.Operators[0].JID != a.Owner || a.DataDir != "" && loaded.Gateway.DataDir != a.DataDir {
				t.Errorf("%+v", loaded)
			}
		})
	}
}
