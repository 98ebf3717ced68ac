package profile

import (
	"errors"
	"fmt"
	"regexp"
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
	source string
	levels []level // once compiled
	least  int     // levels of a topic that it fits
	most   int     // the same; 0: any number
}

// A level is one part of a pattern: text, or a capture of one level or more.
type level struct {
	text     string // where it is no capture
	name     string
	globs    []glob // of which one must match, the first level if there are several; none: anything
	not      []glob // of which none may
	min, max int    // levels; max 0: any number
}

// UnmarshalText takes the pattern; compile reads it.
func (p *topicPattern) UnmarshalText(text []byte) error {
	p.source = string(text)
	return nil
}

// compile reads the pattern, with <name> replaced by the param of that name.
func (p *topicPattern) compile(params map[string]string) error {
	text, err := withParams(p.source, params)
	if err != nil {
		return err
	}
	p.levels = nil
	for part := range strings.SplitSeq(text, "/") {
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
	p.least, p.most = 0, len(p.levels)
	for _, l := range p.levels {
		p.least += l.min
		if l.max == 0 {
			several++
			p.most = 0
		}
	}
	if several > maxSeveral || len(p.levels) > maxLevels {
		return fmt.Errorf("more than %d levels, or more than %d captures of several", maxLevels, maxSeveral)
	}
	return nil
}

var param = regexp.MustCompile(`<([a-z_]+)>`)

func withParams(s string, params map[string]string) (out string, err error) {
	out = param.ReplaceAllStringFunc(s, func(name string) string {
		v, ok := params[strings.Trim(name, "<>")]
		if !ok {
			err = fmt.Errorf("there is no param %s", name)
		}
		return v
	})
	return out, err
}

// Allowed says what is allowed.
func (topicPattern) Allowed() string {
	return "levels with / between: text, {x}, {x=A|B*}, {x=!A}, {x...}, {x...=!A}, {x*}, <param>"
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
	if choice {
		for g := range strings.SplitSeq(globs, "|") {
			which := &l.globs
			if not, ok := strings.CutPrefix(g, "!"); ok {
				which, g = &l.not, not
			}
			if err := glob(g).check(); err != nil {
				return l, err
			}
			*which = append(*which, glob(g))
		}
	}
	switch {
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
// is the one given, or any if that is "".
func (p topicPattern) match(topic, device string) (map[string]string, bool) {
	n := strings.Count(topic, "/") + 1
	if n > maxLevels || n < p.least || p.most > 0 && n > p.most {
		return nil, false
	}
	captures := matchLevels(p.levels, strings.Split(topic, "/"), device)
	return captures, captures != nil
}

// matchLevels tries every length of a capture, the shortest first; nil where
// none fits.
func matchLevels(pattern []level, topic []string, device string) map[string]string {
	if len(pattern) == 0 {
		if len(topic) > 0 {
			return nil
		}
		return make(map[string]string)
	}
	l := pattern[0]
	most := l.max
	if most == 0 {
		most = len(topic)
	}
	for n := l.min; n <= most && n <= len(topic); n++ {
		taken := strings.Join(topic[:n], "/")
		if !l.fits(taken, device) {
			continue
		}
		if captures := matchLevels(pattern[1:], topic[n:], device); captures != nil {
			if l.name != "" {
				captures[l.name] = taken
			}
			return captures
		}
	}
	return nil
}

func (l level) fits(s, device string) bool {
	switch {
	case l.name == "":
		return s == l.text
	case l.name == "device" && device != "" && s != device:
		return false
	}
	if l.max == 0 {
		s, _, _ = strings.Cut(s, "/")
	}
	switch {
	case slices.ContainsFunc(l.not, func(g glob) bool { return g.fits(s) }):
		return false
	case len(l.globs) == 0:
		return true
	}
	return slices.ContainsFunc(l.globs, func(g glob) bool { return g.fits(s) })
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
	case l.name == "device" && device != "":
		return [][]string{{device}}
	case l.max == 0 && last:
		return [][]string{{"#"}}
	case l.max == 0 && l.min == 0:
		return [][]string{nil, {"+"}}
	}
	// One filter a word is better than one that takes in all of them, as long
	// as they are few.
	if n := len(l.globs); n > 0 && n <= 2 && !slices.ContainsFunc(l.globs, func(g glob) bool { return !g.isLiteral() }) {
		var out [][]string
		for _, g := range l.globs {
			out = append(out, []string{string(g)})
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
