package profile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// A selector selects members by their path.
type selector struct {
	paths [][]string // alternatives, each a list of patterns
}

const (
	maxAlternatives = 256 // of braces that multiply
	maxAnyDepth     = 2   // **, each of which is tried at every depth
)

// UnmarshalText reads the selector.
func (s *selector) UnmarshalText(text []byte) error {
	all, err := expand(string(text))
	if err != nil {
		return err
	}
	for _, one := range all {
		parts := splitPath(one)
		anyDepth := 0
		for _, part := range parts {
			if glob(part).check() != nil || part == "" {
				return fmt.Errorf("%q is no pattern", part)
			}
			if part == "**" {
				anyDepth++
			}
		}
		if anyDepth > maxAnyDepth || len(parts) > maxDepth+1 {
			return fmt.Errorf("more than %d times **, or more than %d names", maxAnyDepth, maxDepth+1)
		}
		s.paths = append(s.paths, parts)
	}
	return nil
}

// Allowed says what is allowed.
func (selector) Allowed() string { return "names with / between, *, ?, **, {a,b}" }

// expand resolves {a,b}, which may not lie in each other.
func expand(s string) ([]string, error) {
	before, rest, ok := cutUnescaped(s, '{')
	if !ok {
		if _, _, closed := cutUnescaped(s, '}'); closed {
			return nil, errors.New("a } without {")
		}
		return []string{s}, nil
	}
	inner, after, ok := cutUnescaped(rest, '}')
	if _, _, again := cutUnescaped(inner, '{'); !ok || again {
		return nil, errors.New("a { without its own }")
	}
	tails, err := expand(after)
	if err != nil {
		return nil, err
	}
	if (strings.Count(inner, ",")+1)*len(tails) > maxAlternatives {
		return nil, fmt.Errorf("more than %d alternatives", maxAlternatives)
	}
	var out []string
	for choice := range strings.SplitSeq(inner, ",") {
		for _, tail := range tails {
			out = append(out, before+choice+tail)
		}
	}
	return out, nil
}

// cutUnescaped is strings.Cut at a character that has no backslash before it.
func cutUnescaped(s string, at byte) (before, after string, found bool) {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case at:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// splitPath splits at each / that has no backslash before it.
func splitPath(s string) (parts []string) {
	for more := true; more; {
		var part string
		part, s, more = cutUnescaped(s, '/')
		parts = append(parts, part)
	}
	return parts
}

func (s selector) selects(members []string) bool {
	return slices.ContainsFunc(s.paths, func(p []string) bool { return matchPath(p, members) })
}

func matchPath(pattern, members []string) bool {
	switch {
	case len(pattern) == 0:
		return len(members) == 0
	case pattern[0] == "**":
		for n := range len(members) + 1 {
			if matchPath(pattern[1:], members[n:]) {
				return true
			}
		}
		return false
	case len(members) == 0:
		return false
	}
	return glob(pattern[0]).fits(members[0]) && matchPath(pattern[1:], members[1:])
}

// covers reports whether pattern a surely takes every path that b takes. It
// may miss some, as [ab] for a.
func covers(a, b []string) bool {
	switch {
	case len(a) == 0:
		return len(b) == 0
	case a[0] == "**":
		for n := range len(b) + 1 {
			if covers(a[1:], b[n:]) {
				return true
			}
		}
		return false
	case len(b) == 0 || b[0] == "**":
		return false
	}
	return (a[0] == "*" || a[0] == b[0] || glob(b[0]).isLiteral() && glob(a[0]).fits(b[0])) && covers(a[1:], b[1:])
}

// A membersPath leads to one member: names with / between, \/ for a / in a name.
// A number is a place in a list.
type membersPath []string

// UnmarshalText reads the path.
func (p *membersPath) UnmarshalText(text []byte) error {
	*p = splitPath(string(text))
	for i, name := range *p {
		if name == "" {
			return errors.New("a name in the path is empty")
		}
		(*p)[i] = strings.ReplaceAll(name, `\/`, "/")
	}
	return nil
}

// Allowed says what is allowed.
func (membersPath) Allowed() string { return "names with / between" }

// find follows the path; nil where it leads nowhere. A last * is the only
// member of an object, and its name is given too.
func (p membersPath) find(n *node) (found *node, name string) {
	for i, step := range p {
		if step == "*" && i == len(p)-1 && len(n.members) == 1 {
			return n.members[0].node, n.members[0].name
		}
		if n = n.child(step); n == nil {
			return nil, ""
		}
	}
	return n, ""
}

// A glob is a pattern of path.Match, which here knows no /.
type glob string

// UnmarshalText checks the pattern.
func (g *glob) UnmarshalText(text []byte) error {
	*g = glob(text)
	return g.check()
}

func (g glob) check() error {
	if _, err := path.Match(string(g), ""); err != nil {
		return fmt.Errorf("%q is no pattern", string(g))
	}
	return nil
}

// escaped gives the pattern that fits only this text.
func (g glob) escaped() string { return escape.Replace(string(g)) }

var escape = strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`)

func (g glob) isLiteral() bool { return !strings.ContainsAny(string(g), `*?[\`) }

var noSlash = strings.NewReplacer("/", "\x00")

func (g glob) fits(s string) bool {
	if g.isLiteral() || g == "*" {
		return g == "*" || string(g) == s
	}
	if strings.Contains(s, "/") {
		g, s = glob(noSlash.Replace(string(g))), noSlash.Replace(s)
	}
	ok, _ := path.Match(string(g), s)
	return ok
}
