package profile

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Link is one of a list of links (RFC 6690 section 2).
type Link struct {
	Target     string
	Attributes []Attribute
}

// An Attribute is one of a link. One without a value is a flag.
type Attribute struct {
	Name, Value string
	Flag        bool
}

// Attribute gives the value of the first attribute of that name, "" if there is
// none.
func (l Link) Attribute(name string) string {
	for _, a := range l.Attributes {
		if a.Name == name {
			return a.Value
		}
	}
	return ""
}

const (
	maxLinks      = 500
	maxAttributes = 30
)

// ParseLinks reads a list of links, with blanks where they do no harm: devices
// write them for people.
func ParseLinks(payload []byte) (all []Link, err error) {
	if !utf8.Valid(payload) {
		return nil, errors.New("not a list of links: not text")
	}
	r := linkReader{rest: strings.TrimSpace(strings.TrimRight(string(payload), "\x00"))}
	for r.rest != "" {
		if len(all) == maxLinks {
			return nil, fmt.Errorf("not a list of links: more than %d", maxLinks)
		}
		l, err := r.link()
		if err != nil {
			return nil, fmt.Errorf("not a list of links: %w", err)
		}
		all = append(all, l)
		if !r.take(',') && r.rest != "" {
			return nil, fmt.Errorf("not a list of links: %.20q between two", r.rest)
		}
	}
	return all, nil
}

type linkReader struct{ rest string }

// take takes a character, and the blanks around it.
func (r *linkReader) take(c byte) bool {
	r.rest = strings.TrimLeft(r.rest, " \t\r\n")
	if r.rest == "" || r.rest[0] != c {
		return false
	}
	r.rest = strings.TrimLeft(r.rest[1:], " \t\r\n")
	return true
}

func (r *linkReader) link() (l Link, err error) {
	if !r.take('<') {
		return l, fmt.Errorf("%.20q is no link", r.rest)
	}
	var ok bool
	if l.Target, r.rest, ok = strings.Cut(r.rest, ">"); !ok {
		return l, errors.New("a link ends early")
	}
	if len(l.Target) > maxText {
		return l, fmt.Errorf("a target of more than %d bytes", maxText)
	}
	for r.take(';') {
		if len(l.Attributes) == maxAttributes {
			return l, fmt.Errorf("more than %d attributes of %s", maxAttributes, l.Target)
		}
		a, err := r.attribute()
		if err != nil {
			return l, err
		}
		if a.Name != "" {
			l.Attributes = append(l.Attributes, a)
		}
	}
	return l, nil
}

func (r *linkReader) attribute() (a Attribute, err error) {
	end := strings.IndexAny(r.rest, "=;, \t\r\n")
	if end < 0 {
		end = len(r.rest)
	}
	a.Name, r.rest = r.rest[:end], r.rest[end:]
	switch {
	case len(a.Name) > maxMemberName:
		return a, fmt.Errorf("an attribute's name of more than %d bytes", maxMemberName)
	case !r.take('='):
		a.Flag = true
		return a, nil
	case !r.take('"'):
		end := strings.IndexAny(r.rest, ";, \t\r\n")
		if end < 0 {
			end = len(r.rest)
		}
		a.Value, r.rest = r.rest[:end], r.rest[end:]
		return a, nil
	}
	var b strings.Builder
	for i := 0; i < len(r.rest); i++ {
		switch c := r.rest[i]; {
		case c == '"':
			a.Value, r.rest = b.String(), r.rest[i+1:]
			return a, nil
		case c == '\\' && i+1 < len(r.rest): // quoted-pair
			i++
			b.WriteByte(r.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return a, errors.New("a text in quotes does not end")
}

// readLinks makes a part of each link: its target, and its attributes under
// that. One to elsewhere is what its relation says.
func readLinks(m Message) ([]part, error) {
	links, err := ParseLinks(m.Payload)
	if err != nil {
		return nil, err
	}
	var all []part
	for _, l := range links {
		doc := &node{kind: objectNode}
		name := "resource"
		if rel := l.Attribute("rel"); rel != "" {
			name = rel
		}
		doc.members = append(doc.members, member{name, textNode(l.Target)})
		if about := l.about(); len(about.members) > 0 && !strings.Contains(l.Target, "://") {
			doc.members = append(doc.members, member{l.Target, about})
		}
		all = append(all, part{doc: doc})
	}
	return all, nil
}

// about is an object of the attributes.
func (l Link) about() *node {
	doc := &node{kind: objectNode}
	for _, a := range l.Attributes {
		n := textNode(a.Value)
		if a.Flag {
			n = &node{value: devices.Bool(true)}
		}
		doc.members = append(doc.members, member{a.Name, n})
	}
	return doc
}
