package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/porchlight-iot/porchlight/strictyaml"
)

// A WiFi is how a network is joined. It stands on a card, and in no config: what
// joins networks on this machine keeps it.
type WiFi struct {
	Name     SSID        `yaml:"name,required"`
	Password Passphrase  `yaml:"password"` // none is that of an open network
	Country  CountryCode `yaml:"country"`  // "" leaves the machine's
	Hidden   bool        `yaml:"hidden"`   // the network does not tell its name
}

// An SSID is the name of a WiFi.
type SSID string

// UnmarshalText takes the name as it is, with all spaces.
func (s *SSID) UnmarshalText(b []byte) error {
	switch {
	case len(b) == 0:
		return errors.New("is empty")
	case len(b) > 32:
		return fmt.Errorf("%q is %d bytes long", b, len(b))
	case bytes.ContainsFunc(b, unicode.IsControl):
		return fmt.Errorf("%q has a character that cannot be seen", b)
	}
	*s = SSID(b)
	return nil
}

// Allowed says what names there are.
func (SSID) Allowed() string {
	return "a name of 1 to 32 bytes, where a letter such as ä counts as 2 and 🏠 as 4"
}

// Example is a name.
func (SSID) Example() string { return `"Anna's house"` }

// A Passphrase is the password of a WiFi.
type Passphrase struct{ Secret }

var wholeKey = regexp.MustCompile("^[0-9A-Fa-f]{64}$")

// UnmarshalText takes the password as it is, with all spaces.
func (p *Passphrase) UnmarshalText(b []byte) error {
	switch {
	case len(b) == 0 || wholeKey.Match(b):
	case len(b) < 8 || len(b) > 63:
		return fmt.Errorf("is %d bytes long", len(b))
	case bytes.ContainsFunc(b, unicode.IsControl):
		return errors.New("has a character that cannot be seen")
	}
	p.Secret = NewSecret(string(b))
	return nil
}

// Allowed says what passwords there are.
func (Passphrase) Allowed() string {
	return `8 to 63 bytes, where a letter such as ä counts as 2; or 64 of 0-9, a-f; "" for an open network`
}

// Example is a password.
func (Passphrase) Example() string { return `"correct horse battery"` }

// A CountryCode says whose rules for radio hold (ISO 3166-1 alpha-2).
type CountryCode string

var twoLetters = regexp.MustCompile("^[A-Z]{2}$")

// UnmarshalText takes small letters too.
func (c *CountryCode) UnmarshalText(b []byte) error {
	code := strings.ToUpper(string(b))
	switch {
	case code == "UK":
		return errors.New("UK is not the code of a country; that of the United Kingdom is GB")
	case !twoLetters.MatchString(code):
		return fmt.Errorf("%q is not the code of a country", b)
	}
	*c = CountryCode(code)
	return nil
}

// Allowed says what codes there are.
func (CountryCode) Allowed() string { return "two letters (ISO 3166)" }

// Example is a code.
func (CountryCode) Example() string { return "DE" }

const wifiKey = "wifi"

// takeWiFi takes the section from the lines, before anything else is taken.
func (t *taker) takeWiFi(root *yaml.Node) {
	if root.Kind != yaml.MappingNode || root.Style&yaml.FlowStyle != 0 {
		return // that there is no such key is found when it is loaded
	}
	blank := func() [][]byte { return bytes.SplitAfter(bytes.Repeat([]byte("\n"), len(t.lines)-1), []byte("\n")) }
	section, others := blank(), 0
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i]
		from, to := key.Line-1, len(t.lines)
		if key.Value != wifiKey || key.Kind != yaml.ScalarNode {
			others++
			continue
		}
		if i+2 < len(root.Content) {
			to = min(to, root.Content[i+2].Line-1)
		}
		if from < 0 || from >= to || !bytes.HasPrefix(bytes.TrimLeft(t.lines[from], ` "'`), []byte(wifiKey)) {
			return // YAML knows more ends of lines than we do
		}
		// What is said before the next key is said of that. In a text of several
		// lines such a line is none, and that the text ends before is a fault.
		for to > from+1 && (len(bytes.TrimSpace(t.lines[to-1])) == 0 || t.lines[to-1][0] == '#') {
			to--
		}
		copy(section[from:to], t.lines[from:to])
		copy(t.lines[from:to], blank())
		t.taken.WiFi = &WiFi{}
		root.Content[i], root.Content[i+1] = &yaml.Node{}, &yaml.Node{} // so that its password is no secret of the config
	}
	if t.taken.WiFi == nil {
		return
	}
	t.taken.OnlyWiFi = others == 0
	var read struct {
		WiFi *WiFi `yaml:"wifi"`
	}
	_, faults := strictyaml.Decode(t.file, bytes.Join(section, nil), &read)
	t.faults = append(t.faults, faults...)
	if read.WiFi != nil {
		t.taken.WiFi = read.WiFi
	}
}
