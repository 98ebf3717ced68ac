package jinja

import (
	"math"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode"
)

// A method is called on a value: value.split(','). Only these are there; what
// Go has is out of reach.
type method struct {
	params string
	call   func(r *run, v any, args []any) any
}

var textMethods = map[string]method{
	"split":      {"sep maxsplit", split},
	"strip":      {"chars", trim},
	"lstrip":     {"chars", func(r *run, v any, a []any) any { return strings.TrimLeft(v.(string), textOr(r, a[0], " \t\n\r\f\v")) }},
	"rstrip":     {"chars", func(r *run, v any, a []any) any { return strings.TrimRight(v.(string), textOr(r, a[0], " \t\n\r\f\v")) }},
	"lower":      {"", perText(strings.ToLower)},
	"upper":      {"", perText(strings.ToUpper)},
	"title":      {"", perText(title)},
	"capitalize": {"", perText(capitalize)},
	"replace":    {"old new count", replace},
	"startswith": {"prefix", func(r *run, v any, a []any) any { return strings.HasPrefix(v.(string), text(r, a[0])) }},
	"endswith":   {"suffix", func(r *run, v any, a []any) any { return strings.HasSuffix(v.(string), text(r, a[0])) }},
	"find":       {"sub", find},
	"count": {"sub", func(r *run, v any, a []any) any {
		r.spend(len(v.(string)))
		return int64(strings.Count(v.(string), text(r, a[0])))
	}},
	"join": {"items", func(r *run, v any, a []any) any { return join(r, a[0], []any{v, absent{}}) }},
	"zfill": {"width", func(r *run, v any, a []any) any {
		return r.padded(v.(string), "0", int(min(intOr(a[0], 0), maxMemory)))
	}},
	"isdigit":   {"", every(unicode.IsDigit)},
	"isnumeric": {"", every(unicode.IsNumber)},
	"isalpha":   {"", every(unicode.IsLetter)},
	"isalnum":   {"", every(func(c rune) bool { return unicode.IsLetter(c) || unicode.IsNumber(c) })},
	"format":    {"...", func(r *run, v any, a []any) any { return r.braces(v.(string), a) }},
}

var mappingMethods = map[string]method{
	"get":    {"key default", get},
	"items":  {"", pairs},
	"keys":   {"", func(r *run, v any, _ []any) any { return r.list(r.items(v)) }},
	"values": {"", func(r *run, v any, _ []any) any { d := r.open(v.(*dict)); return r.list(d.values) }},
}

var listMethods = map[string]method{
	"count": {"item", func(r *run, v any, a []any) any {
		n := int64(0)
		for _, item := range r.items(v) {
			if r.equal(item, a[0]) {
				n++
			}
		}
		return n
	}},
	"index": {"item", func(r *run, v any, a []any) any {
		for i, item := range r.items(v) {
			if r.equal(item, a[0]) {
				return int64(i)
			}
		}
		fail("the item is not in the list")
		return nil
	}},
}

var noMethods = map[string]method{}

// methods of a value.
func methodsOf(v any) map[string]method {
	switch v.(type) {
	case string:
		return textMethods
	case *dict:
		return mappingMethods
	case *list:
		return listMethods
	}
	return noMethods
}

// method reads the arguments of a call; what is called is known when the value
// is, but a name that no value has is refused at once.
func (p *parser) method(of expression, name string) expression {
	_, text := textMethods[name]
	_, mapping := mappingMethods[name]
	_, list := listMethods[name]
	if !text && !mapping && !list {
		fail("the method %.40q is not known", name)
	}
	p.at-- // the parenthesis
	args := p.arguments(name, "...")
	return func(r *run) any {
		r.spend(0)
		v := of(r)
		missed(v)
		m, ok := methodsOf(v)[name]
		if !ok {
			fail("%s has no method %s", typeName(v), name)
		}
		if s, ok := v.(string); ok {
			r.take(len(s))
		}
		return m.call(r, v, fill(args(r), m.params))
	}
}

func split(r *run, v any, a []any) any {
	s := v.(string)
	n := int(min(max(intOr(a[1], -1), -1), maxMemory))
	if n >= 0 {
		n++
	}
	r.take(16 * len(s))
	var parts []string
	if !given(a[0]) || a[0] == nil {
		parts = strings.Fields(s)
		if n > 0 && len(parts) > n {
			fail("split by blanks takes no number")
		}
	} else {
		separator := text(r, a[0])
		if separator == "" {
			fail("an empty separator")
		}
		parts = strings.SplitN(s, separator, n)
	}
	l := r.list(make([]any, len(parts)))
	for i, part := range parts {
		l.items[i] = part
	}
	return l
}

func find(r *run, v any, a []any) any {
	s := v.(string)
	i := strings.Index(s, text(r, a[0]))
	if i < 0 {
		return int64(-1)
	}
	return int64(len(r.runes(s[:i])))
}

func every(f func(rune) bool) func(*run, any, []any) any {
	return func(_ *run, v any, _ []any) any {
		s := v.(string)
		return s != "" && strings.IndexFunc(s, func(c rune) bool { return !f(c) }) < 0
	}
}

func get(r *run, v any, a []any) any {
	if found, ok := r.member(v.(*dict), a[0]); ok {
		return found
	}
	if given(a[1]) {
		return a[1]
	}
	return nil
}

// regex compiles a pattern, and pays for running it over n bytes. Go's engine
// needs time for each byte and each instruction; it knows no backreferences
// and does not look around.
func (r *run) regex(pattern, ignoreCase any, n int) *regexp.Regexp {
	source := text(r, pattern)
	if len(source) > 512 {
		fail("a pattern of %d bytes", len(source))
	}
	if given(ignoreCase) && truth(ignoreCase) {
		source = "(?i)" + source
	}
	parsed, err := syntax.Parse(source, syntax.Perl)
	if err != nil {
		fail("the pattern: %w", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		fail("the pattern: %w", err)
	}
	r.take(256 * len(program.Inst))
	r.spend(int(min(int64(n+64)*int64(len(program.Inst))/4, math.MaxInt32)))
	compiled, err := regexp.Compile(source)
	if err != nil {
		fail("the pattern: %w", err)
	}
	return compiled
}

const maxMatches = 500

func few[T any](matches []T) []T {
	if len(matches) > maxMatches {
		fail("more than %d matches", maxMatches)
	}
	return matches
}

func regexMatch(r *run, v any, a []any) any {
	s := text(r, v)
	at := r.regex(a[0], a[1], len(s)).FindStringIndex(s)
	return at != nil && at[0] == 0
}

func regexSearch(r *run, v any, a []any) any {
	s := text(r, v)
	return r.regex(a[0], a[1], len(s)).MatchString(s)
}

func regexReplace(r *run, v any, a []any) any {
	s := text(r, v)
	re := r.regex(a[0], a[2], len(s))
	to := goReplacement.Replace(backReference.ReplaceAllString(textOr(r, a[1], ""), "\x00{$1$2}"))
	var out []byte
	at := 0
	for _, m := range few(re.FindAllStringSubmatchIndex(s, maxMatches+1)) {
		r.take(8*len(m) + m[0] - at + len(to) + strings.Count(to, "${")*(m[1]-m[0]))
		out = append(out, s[at:m[0]]...)
		out = re.ExpandString(out, to, s, m)
		at = m[1]
	}
	return string(append(out, s[at:]...))
}

// Python writes \1 and \g<1> for what Go writes ${1}.
var (
	backReference = regexp.MustCompile(`\\(\d)|\\g<(\w+)>`)
	goReplacement = strings.NewReplacer("$", "$$", "\x00", "$")
)

func regexFindAll(r *run, v any, a []any) any {
	s := text(r, v)
	re := r.regex(a[0], a[1], len(s))
	l := r.list(nil)
	for _, m := range few(re.FindAllStringSubmatch(s, maxMatches+1)) {
		r.take(64 * len(m))
		var groups []any
		for _, g := range m[1:] {
			groups = append(groups, g)
		}
		switch len(groups) {
		case 0:
			l.items = append(l.items, m[0])
		case 1:
			l.items = append(l.items, groups[0])
		default:
			l.items = append(l.items, &list{groups, true})
		}
	}
	return l
}

func regexFindIndex(r *run, v any, a []any) any {
	return r.item(regexFindAll(r, v, []any{a[0], a[2]}), intOr(a[1], 0))
}

func (r *run) padded(s, with string, width int) string {
	missing := width - len(s)
	if missing <= 0 {
		return s
	}
	r.take(missing)
	sign := ""
	if with == "0" && s != "" && (s[0] == '-' || s[0] == '+') {
		sign, s = s[:1], s[1:]
	}
	return sign + strings.Repeat(with, missing) + s
}

// A verb is what stands in %5.2f, and in {:05.2f}.
type verb struct {
	left, zero, plus bool
	width, precision int // precision -1: none
	kind             byte
}

// readVerb reads it at the beginning of s, and how long it is.
func readVerb(s string) (v verb, size int) {
	v.precision = -1
	i := 0
	for ; i < len(s) && strings.IndexByte("-0+ <>", s[i]) >= 0; i++ {
		v.left = v.left || s[i] == '-' || s[i] == '<'
		v.zero = v.zero || s[i] == '0'
		v.plus = v.plus || s[i] == '+'
	}
	number := func() int {
		n := 0
		for ; i < len(s) && s[i] >= '0' && s[i] <= '9' && n < 1000; i++ {
			n = 10*n + int(s[i]-'0')
		}
		if n > 200 {
			fail("a format of more than 200 characters")
		}
		return n
	}
	v.width = number()
	if i < len(s) && s[i] == '.' {
		i++
		v.precision = number()
	}
	if i < len(s) {
		v.kind = s[i]
		i++
	}
	return v, i
}

func (r *run) formatted(v verb, value any) string {
	var s string
	switch v.kind {
	case 'd', 'i', 'x', 'X', 'b', 'o':
		n, ok := toInt(value)
		if !ok {
			f, isReal := value.(real)
			if !isReal || v.kind != 'd' && v.kind != 'i' {
				missed(value)
				fail("%s instead of a whole number", typeName(value))
			}
			n, _ = toIntOr(r, f, []any{absent{}, absent{}}).(int64)
		}
		s = strconv.FormatInt(n, map[byte]int{'d': 10, 'i': 10, 'x': 16, 'X': 16, 'b': 2, 'o': 8}[v.kind])
		if v.kind == 'X' {
			s = strings.ToUpper(s)
		}
	case 'f', 'F', 'e', 'g':
		f, ok := toFloat(value)
		if !ok {
			missed(value)
			fail("%s instead of a number", typeName(value))
		}
		if v.precision < 0 {
			v.precision = 6
		}
		s = strconv.FormatFloat(f, v.kind|0x20, v.precision, 64)
	case 's':
		s = r.text(value)
		if all := r.runes(s); v.precision >= 0 && v.precision < len(all) {
			s = string(all[:v.precision])
		}
		v.zero = false
	default:
		fail("an unknown format")
	}
	if v.plus && v.kind != 's' && !strings.HasPrefix(s, "-") {
		s = "+" + s
	}
	switch {
	case v.left:
		missing := max(v.width-len(s), 0)
		r.take(missing)
		return s + strings.Repeat(" ", missing)
	case v.zero:
		return r.padded(s, "0", v.width)
	}
	return r.padded(s, " ", v.width)
}

// printf is Python's 'text' % values.
func (r *run) printf(format string, args []any) any {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(format, "%")
		r.take(len(before))
		b.WriteString(before)
		if !found {
			break
		}
		if rest, ok := strings.CutPrefix(after, "%"); ok {
			b.WriteByte('%')
			format = rest
			continue
		}
		v, size := readVerb(after)
		if len(args) == 0 {
			fail("too few values for the format")
		}
		s := r.formatted(v, args[0])
		r.take(len(s))
		b.WriteString(s)
		args, format = args[1:], after[size:]
	}
	if len(args) > 0 {
		fail("too many values for the format")
	}
	return b.String()
}

// braces is Python's 'text'.format(values), with {} and {0:.2f}.
func (r *run) braces(format string, args []any) any {
	var b strings.Builder
	next := 0
	for format != "" {
		i := strings.IndexAny(format, "{}")
		if i < 0 {
			i = len(format)
		}
		r.take(i)
		b.WriteString(format[:i])
		if format = format[i:]; format == "" {
			break
		}
		if len(format) > 1 && format[1] == format[0] {
			b.WriteByte(format[0])
			format = format[2:]
			continue
		}
		inner, rest, ok := strings.Cut(format[1:], "}")
		if format[0] == '}' || !ok {
			fail("a brace without its other")
		}
		format = rest
		which, how, _ := strings.Cut(inner, ":")
		at := next
		if next++; which != "" {
			at = int(wholeNumber(which, 10))
		}
		if at < 0 || at >= len(args) {
			fail("too few values for the format")
		}
		s := ""
		if how == "" {
			s = r.text(args[at])
		} else {
			v, size := readVerb(how)
			if size != len(how) {
				fail("an unknown format")
			}
			if v.kind == 0 {
				v.kind = 's'
			}
			s = r.formatted(v, args[at])
		}
		r.take(len(s))
		b.WriteString(s)
	}
	return b.String()
}
