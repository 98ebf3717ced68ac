package profile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// The bounds of a topic and a pattern: matching tries every length of a capture
// of several levels.
const (
	maxLevels  = 24
	maxSeveral = 3
)

// maxFilters bounds the filters of one pattern.
const maxFilters = 8

// A topicPattern is an MQTT topic with captures.
type topicPattern struct {
	levels []level
}

// A level is one part of a pattern: text, or a capture of one level or more.
type level struct {
	text     string // where it is no capture
	name     string
	globs    []string // of which one must match; none: anything
	min, max int      // levels; max 0: any number
}

// UnmarshalText reads the pattern.
func (p *topicPattern) UnmarshalText(text []byte) error {
	for part := range strings.SplitSeq(string(text), "/") {
		l, err := parseLevel(part)
		if err != nil {
			return fmt.Errorf("%q: %w", part, err)
		}
		if l.name != "" && p.has(l.name) {
			return fmt.Errorf("%q is captured twice", l.name)
		}
		p.levels = append(p.levels, l)
	}
	several := 0
	for _, l := range p.levels {
		if l.max == 0 {
			several++
		}
	}
	if several > maxSeveral || len(p.levels) > maxLevels {
		return fmt.Errorf("more than %d levels, or more than %d captures of several", maxLevels, maxSeveral)
	}
	return nil
}

// Allowed says what is allowed.
func (topicPattern) Allowed() string {
	return "levels with / between: text, {x}, {x=A|B*}, {x...}, {x*}"
}

func parseLevel(s string) (level, error) {
	inner, ok := strings.CutPrefix(s, "{")
	if !ok {
		if strings.ContainsAny(s, "{}+#") {
			return level{}, errors.New("a level is text or one {capture}")
		}
		return level{text: s, min: 1, max: 1}, nil
	}
	inner, ok = strings.CutSuffix(inner, "}")
	if !ok {
		return level{}, errors.New("a capture ends with }")
	}
	l := level{min: 1, max: 1}
	name, globs, choice := strings.Cut(inner, "=")
	switch {
	case choice:
		l.globs = strings.Split(globs, "|")
		for _, g := range l.globs {
			if _, err := path.Match(g, ""); err != nil {
				return l, fmt.Errorf("%q is no pattern", g)
			}
		}
	case strings.HasSuffix(name, "..."):
		name, l.max = strings.TrimSuffix(name, "..."), 0
	case strings.HasSuffix(name, "*"):
		name, l.min, l.max = strings.TrimSuffix(name, "*"), 0, 0
	}
	if name == "" || fieldName(name) != name {
		return l, errors.New("the name of a capture has only a-z, 0-9 and _")
	}
	l.name = name
	return l, nil
}

// has reports whether the pattern captures name.
func (p topicPattern) has(name string) bool {
	return slices.ContainsFunc(p.levels, func(l level) bool { return l.name == name })
}

// match gives the captures of a topic that the pattern fits, where {device}
// is the one given.
func (p topicPattern) match(topic, device string) (map[string]string, bool) {
	if strings.Count(topic, "/") >= maxLevels {
		return nil, false
	}
	captures := make(map[string]string)
	if !matchLevels(p.levels, strings.Split(topic, "/"), device, captures) {
		return nil, false
	}
	return captures, true
}

// matchLevels tries every length of a capture, the shortest first.
func matchLevels(pattern []level, topic []string, device string, captures map[string]string) bool {
	if len(pattern) == 0 {
		return len(topic) == 0
	}
	l := pattern[0]
	most := l.max
	if most == 0 {
		most = len(topic)
	}
	for n := l.min; n <= most && n <= len(topic); n++ {
		taken := strings.Join(topic[:n], "/")
		if l.fits(taken, device) && matchLevels(pattern[1:], topic[n:], device, captures) {
			if l.name != "" {
				captures[l.name] = taken
			}
			return true
		}
	}
	return false
}

func (l level) fits(s, device string) bool {
	switch {
	case l.name == "":
		return s == l.text
	case l.name == "device":
		return s == device
	case len(l.globs) == 0:
		return true
	}
	return slices.ContainsFunc(l.globs, func(g string) bool { return glob(g).fits(s) })
}

// filters gives the MQTT topic filters (MQTT 3.1.1 section 4.7) that cover the
// topics of a device. No filter has any number of levels before its end, so
// {x*} is taken there as none or one.
func (p topicPattern) filters(device string) []string {
	var out [][]string
	for i, l := range p.levels {
		alternatives := l.filter(device, i == len(p.levels)-1)
		if i == 0 {
			out = alternatives
			continue
		}
		if len(l.globs) > 0 && len(out)*len(alternatives) > maxFilters {
			alternatives = [][]string{{"+"}}
		}
		var longer [][]string
		for _, a := range alternatives {
			for _, start := range out {
				longer = append(longer, slices.Concat(start, a))
			}
		}
		out = longer
	}
	var filters []string
	for _, levels := range out {
		filters = append(filters, strings.Join(levels, "/"))
	}
	return filters
}

func (l level) filter(device string, last bool) [][]string {
	switch {
	case l.name == "":
		return [][]string{{l.text}}
	case l.name == "device":
		return [][]string{{device}}
	case l.max == 0 && last:
		return [][]string{{"#"}}
	case l.max == 0 && l.min == 0:
		return [][]string{nil, {"+"}}
	}
	// One filter a word is better than one that takes in all of them, as long
	// as they are few.
	if n := len(l.globs); n > 0 && n <= 2 && !strings.ContainsAny(strings.Join(l.globs, ""), `*?[\`) {
		var out [][]string
		for _, g := range l.globs {
			out = append(out, []string{g})
		}
		return out
	}
	return [][]string{{"+"}}
}

// takesIn reports whether every topic of filter b is one of filter a.
func takesIn(a, b string) bool {
	for {
		levelA, restA, moreA := strings.Cut(a, "/")
		levelB, restB, moreB := strings.Cut(b, "/")
		switch {
		case levelA == "#":
			return true
		case levelB == "#", levelA != "+" && levelA != levelB:
			return false
		case !moreA || !moreB:
			return !moreB && (!moreA || restA == "#") // a/# is a too (MQTT 3.1.1 section 4.7.1.2)
		}
		a, b = restA, restB
	}
}

// A glob is a pattern of path.Match.
type glob string

// UnmarshalText checks the pattern.
func (g *glob) UnmarshalText(text []byte) error {
	if _, err := path.Match(string(text), ""); err != nil {
		return fmt.Errorf("%q is no pattern", text)
	}
	*g = glob(text)
	return nil
}

func (g glob) fits(s string) bool {
	ok, _ := path.Match(string(g), s)
	return ok
}

// placeholders gives the names in braces.
func placeholders(s string) (names []string) {
	fill(s, func(name string) string {
		names = append(names, name)
		return ""
	})
	return names
}

// fill replaces each {name}. What it fills in is not looked at again.
func fill(s string, value func(name string) string) string {
	var b strings.Builder
	for {
		before, rest, open := strings.Cut(s, "{")
		name, after, closed := strings.Cut(rest, "}")
		if !open || !closed {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(before)
		b.WriteString(value(name))
		s = after
	}
}
