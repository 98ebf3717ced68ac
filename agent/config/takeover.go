package config

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// A Taken is a config whose secrets were taken out of its text.
type Taken struct {
	Text    []byte            // names files instead of holding secrets
	Secrets map[string]string // their contents by their names, which are without folders
	WiFi    *WiFi             // what the text said of it, which it says no more; nil is nothing
	// That there was nothing but the WiFi, so that the text is no config.
	OnlyWiFi bool
}

// TakeSecrets takes secrets out of a config as somebody wrote it who can write
// one file only, on a card: there password, secret and psk may hold the secret
// itself, where a config that is loaded has password_file and so on, and there
// may be a section wifi. Everything else in the text stays as it is, each thing
// in its line, so that faults are found there. Faults are in secrets and in the
// WiFi only.
func TakeSecrets(file string, text []byte) (Taken, strictyaml.Faults) {
	// Editors of other systems begin with a mark and end lines in their own way.
	text = bytes.ReplaceAll(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), []byte("\r\n"), []byte("\n"))
	taken := Taken{Text: text, Secrets: map[string]string{}}
	var root yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&root); err != nil || len(root.Content) == 0 {
		return taken, nil // that it cannot be read is found when it is loaded
	}
	t := taker{file: file, taken: &taken, lines: bytes.SplitAfter(text, []byte("\n"))}
	t.takeWiFi(root.Content[0])
	t.walk(root.Content[0], nil)
	// From the end on, so that columns stay right.
	for i := len(t.edits) - 1; i >= 0; i-- {
		t.edits[i].apply(t.lines)
	}
	taken.Text = bytes.Join(t.lines, nil)
	return taken, t.faults
}

// inline are the keys that hold a secret on a card, and the key that names its
// file.
var inline = map[string]string{"password": "password_file", "secret": "secret_file", "psk": "psk_file", "security_code": "security_code_file"}

// OnCard gives faults of a config that is to be taken over in the words of who
// wrote it, where the keys of secrets are those without _file.
func OnCard(faults strictyaml.Faults) strictyaml.Faults {
	pairs := []string{"; the file needs mode 0600", ""}
	for key, named := range inline {
		pairs = append(pairs, named, key)
	}
	words := strings.NewReplacer(pairs...)
	told := slices.Clone(faults)
	for i := range told {
		f := &told[i]
		known := slices.Collect(maps.Keys(inline))
		if !strings.Contains(f.Key, ".") {
			known = []string{wifiKey}
		}
		if near := strictyaml.Nearest(f.Key[strings.LastIndex(f.Key, ".")+1:], known); f.Problem == "is not a known key" && near != "" {
			f.Mend = fmt.Sprintf("did you mean %q?", near)
		}
		f.Key, f.Problem, f.Allowed, f.Mend = words.Replace(f.Key), words.Replace(f.Problem), words.Replace(f.Allowed), words.Replace(f.Mend)
	}
	return told
}

type taker struct {
	file   string
	taken  *Taken
	lines  [][]byte
	edits  []edit
	faults strictyaml.Faults
}

// An edit replaces bytes of a line.
type edit struct {
	line, from, to int // from 0
	text           string
}

func (e edit) apply(lines [][]byte) {
	l := lines[e.line]
	lines[e.line] = append(append(bytes.Clone(l[:e.from]), e.text...), l[e.to:]...)
}

func (t *taker) walk(n *yaml.Node, path []string) {
	switch n.Kind {
	case yaml.SequenceNode:
		for i, item := range n.Content {
			step := fmt.Sprint(i)
			if name := valueOf(item, "name"); name != "" {
				step = name
			}
			t.walk(item, append(path[:len(path):len(path)], step))
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			at := append(path[:len(path):len(path)], key.Value)
			if named, is := inline[key.Value]; is && value.Kind == yaml.ScalarNode {
				t.take(key, value, named, at)
				continue
			}
			t.walk(value, at)
		}
	}
}

func valueOf(n *yaml.Node, key string) string {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1].Value
		}
	}
	return ""
}

// take moves one secret.
func (t *taker) take(key, value *yaml.Node, named string, path []string) {
	fault := func(problem, mend string) {
		t.faults = append(t.faults, strictyaml.Fault{
			File: t.file, Line: value.Line, Column: value.Column, Key: strings.Join(path, "."),
			Problem: problem, Allowed: "a text in one line", Mend: mend,
		})
	}
	from, to, ok := t.extent(value)
	begins, known := 0, false
	if line := key.Line - 1; line >= 0 && line < len(t.lines) {
		begins, known = byteOf(t.lines[line], key.Column)
		known = known && bytes.HasPrefix(t.lines[line][begins:], []byte(key.Value)) // and not "password"
	}
	switch {
	case value.Value == "" || value.Tag == "!!null":
		fault("is empty", "write the secret")
		return
	case strictyaml.Typographic(value):
		fault("is in typographic quotes, which would become part of the secret", `replace them by straight ones (")`)
		return
	case !ok || !known || value.Anchor != "" || strings.ContainsAny(value.Value, "\r\n"):
		fault("cannot be taken over as it is written", `write it in one line, in "quotes"`)
		return
	}
	name := fileName(path)
	for n := 2; t.taken.Secrets[name] != ""; n++ {
		name = fmt.Sprintf("%s-%d", fileName(path), n)
	}
	t.taken.Secrets[name] = value.Value
	t.edits = append(t.edits,
		edit{key.Line - 1, begins, begins + len(key.Value), named},
		edit{value.Line - 1, from, to, name})
}

// fileName is for a secret at a path: xmpp.account.password becomes
// xmpp-account-password.
func fileName(path []string) string {
	words := make([]string, 0, len(path))
	for _, step := range path {
		if word := devices.Slug(step); word != "" {
			words = append(words, string(word))
		}
	}
	return filepath.Base(strings.Join(words, "-"))
}

// extent finds the bytes of a scalar in its line.
func (t *taker) extent(value *yaml.Node) (from, to int, ok bool) {
	if value.Line < 1 || value.Line > len(t.lines) {
		return 0, 0, false
	}
	// Columns are counted in characters.
	line := t.lines[value.Line-1]
	from, ok = byteOf(line, value.Column)
	if !ok {
		return 0, 0, false
	}
	rest := line[from:]
	switch value.Style &^ yaml.TaggedStyle {
	case yaml.DoubleQuotedStyle:
		for i := 1; i < len(rest); i++ {
			switch rest[i] {
			case '\\':
				i++
			case '"':
				return from, from + i + 1, rest[0] == '"'
			}
		}
	case yaml.SingleQuotedStyle:
		for i := 1; i < len(rest); i++ {
			if rest[i] != '\'' {
				continue
			}
			if i+1 < len(rest) && rest[i+1] == '\'' {
				i++
				continue
			}
			return from, from + i + 1, rest[0] == '\''
		}
	case 0:
		return from, from + len(value.Value), bytes.HasPrefix(rest, []byte(value.Value))
	}
	return 0, 0, false
}

// byteOf gives the place of a character, counted from 1.
func byteOf(line []byte, column int) (int, bool) {
	n := 1
	for i := range string(line) {
		if n == column {
			return i, true
		}
		n++
	}
	return 0, false
}
