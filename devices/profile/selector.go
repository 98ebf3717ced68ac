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
		parts := strings.Split(one, "/")
		anyDepth := 0
		for _, part := range parts {
			if _, err := path.Match(part, ""); err != nil || part == "" {
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
	before, rest, ok := strings.Cut(s, "{")
	if !ok {
		if strings.Contains(s, "}") {
			return nil, errors.New("a } without {")
		}
		return []string{s}, nil
	}
	inner, after, ok := strings.Cut(rest, "}")
	if !ok || strings.Contains(inner, "{") {
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
	literal := !strings.ContainsAny(b[0], `*?[\`)
	return (a[0] == "*" || a[0] == b[0] || literal && glob(a[0]).fits(b[0])) && covers(a[1:], b[1:])
}

// A membersPath leads to one member: names with / between.
type membersPath []string

// UnmarshalText reads the path.
func (p *membersPath) UnmarshalText(text []byte) error {
	*p = strings.Split(string(text), "/")
	if slices.Contains(*p, "") {
		return errors.New("a name in the path is empty")
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
		if n = n.member(step); n == nil {
			return nil, ""
		}
	}
	return n, ""
}
