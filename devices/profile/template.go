package profile

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A template is text with placeholders:
//
//	{x}          a capture of the topic, or what else has a name
//	{/a/b}       a member of the message
//	{./a}        a member of the object that a rule selected
//	{/a,/b,c}    those of them that are there, with / between
//	{/a|hex8}    in another form: hex2, hex8, json, lower, upper, slug, above (a/b of
//	             a/b/c), number (the last one in it)
//	{x|before:_} what stands before the first _ in it, or after: it; nothing
//	             where there is none
//	{x|number|hex2} one form after the other
//
// It can be filled where each placeholder has a value that is not empty. Braces
// around anything with a quote or a blank are text, so JSON can be written as
// it is.
type template struct {
	source string
	parts  []piece
}

// A piece is text, or a placeholder.
type piece struct {
	text string
	refs []ref
	form func(string) string
}

// A ref is what a placeholder stands for.
type ref struct {
	name  string      // of a capture
	path  membersPath // of a member
	local bool        // path begins in what a rule selected
}

var placeholder = regexp.MustCompile(`\{[^{}"'\s]+\}`)

// UnmarshalText reads the template.
func (t *template) UnmarshalText(text []byte) error {
	*t = template{source: string(text)}
	rest := t.source
	for {
		at := placeholder.FindStringIndex(rest)
		if at == nil {
			break
		}
		if at[0] > 0 {
			t.parts = append(t.parts, piece{text: rest[:at[0]]})
		}
		p, err := parsePlaceholder(rest[at[0]+1 : at[1]-1])
		if err != nil {
			return fmt.Errorf("%s: %w", rest[at[0]:at[1]], err)
		}
		t.parts = append(t.parts, p)
		rest = rest[at[1]:]
	}
	if rest != "" {
		t.parts = append(t.parts, piece{text: rest})
	}
	return nil
}

// Allowed says what is allowed.
func (template) Allowed() string { return "text with {capture}, {/member/of/message}" }

func parsePlaceholder(s string) (p piece, err error) {
	s, form, _ := strings.Cut(s, "|")
	if p.form = formOf(form); p.form == nil {
		return p, fmt.Errorf("%q is no form; there are %s, before:x, after:x", form, strings.Join(sortedKeys(forms)[1:], ", "))
	}
	for one := range strings.SplitSeq(s, ",") {
		var r ref
		path, isPath := strings.CutPrefix(one, "/")
		if local, ok := strings.CutPrefix(one, "./"); ok {
			path, isPath, r.local = local, true, true
		}
		if isPath {
			err = r.path.UnmarshalText([]byte(path))
		} else if r.name = one; fieldName(one) != one || one == "" {
			err = errors.New("the name of a capture has only a-z, 0-9 and _")
		}
		if err != nil {
			return p, err
		}
		p.refs = append(p.refs, r)
	}
	return p, nil
}

// forms are other ways to write a value.
var forms = map[string]func(string) string{
	"":       func(s string) string { return s },
	"lower":  strings.ToLower,
	"upper":  strings.ToUpper,
	"hex2":   func(s string) string { return hexOf(s, "%02x", 8) },
	"hex8":   func(s string) string { return hexOf(s, "%08x", 32) },
	"slug":   fieldName,
	"above":  func(s string) string { return s[:max(0, strings.LastIndexByte(s, '/'))] },
	"number": lastNumber,
	"json": func(s string) string { // what stands between the quotes
		quoted, err := json.Marshal(s)
		if err != nil {
			return ""
		}
		return string(quoted[1 : len(quoted)-1])
	},
}

// hexOf writes the low bits of a whole number, "" where s is none.
func hexOf(s, format string, bits int) string {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return ""
	}
	return fmt.Sprintf(format, uint64(n)&(1<<bits-1))
}

// formOf gives the form of a name, nil if there is none.
func formOf(name string) func(string) string {
	if first, then, several := strings.Cut(name, "|"); several {
		f, g := formOf(first), formOf(then)
		if f == nil || g == nil {
			return nil
		}
		return func(s string) string { return g(f(s)) }
	}
	kind, around, ok := strings.Cut(name, ":")
	switch {
	case !ok || around == "":
		return forms[name]
	case kind == "before":
		return func(s string) string {
			before, _, found := strings.Cut(s, around)
			if !found {
				return ""
			}
			return before
		}
	case kind == "after":
		return func(s string) string {
			_, after, _ := strings.Cut(s, around)
			return after
		}
	}
	return nil
}

// lastNumber gives the last digits of a text that stand together.
func lastNumber(s string) string {
	s = strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	return s[strings.LastIndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })+1:]
}

// names gives the captures that the template uses.
func (t template) names() (names []string) {
	for _, p := range t.parts {
		for _, r := range p.refs {
			if r.path == nil {
				names = append(names, r.name)
			}
		}
	}
	return names
}

func (t template) isZero() bool { return t.source == "" }

// fill gives the text; ok is false where something that it needs is not there.
func (t template) fill(look func(ref) string) (s string, ok bool) {
	var b strings.Builder
	for _, p := range t.parts {
		if p.refs == nil {
			b.WriteString(p.text)
			continue
		}
		some := false
		for _, r := range p.refs {
			v := p.form(look(r))
			if v == "" {
				continue
			}
			if some {
				b.WriteByte('/')
			}
			b.WriteString(v)
			some = true
		}
		if !some {
			return "", false
		}
	}
	return b.String(), true
}

// firstFilled gives the first template's text that can be filled.
func firstFilled(ts []template, look func(ref) string) string {
	for _, t := range ts {
		if s, ok := t.fill(look); ok && s != "" {
			return s
		}
	}
	return ""
}

// lookUp finds captures, and members of a document.
func lookUp(captures map[string]string, doc *node) func(ref) string {
	return func(r ref) string {
		if r.path == nil {
			return captures[r.name]
		}
		return textAt(doc, r.path)
	}
}

// textAt gives the value at a path as text, "" where there is none.
func textAt(doc *node, path membersPath) string {
	if doc == nil {
		return ""
	}
	n, _ := path.find(doc)
	if n == nil || n.kind != valueNode {
		return ""
	}
	return strings.TrimSpace(n.value.String())
}
