package jinja

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

type tokenKind uint8

const (
	textToken   tokenKind = iota // between the tags
	beginToken                   // {{ or {%
	endToken                     // }} or %}
	nameToken                    // also the operators that are words
	numberToken                  // as written, without _
	stringToken
	operatorToken
	lastToken
)

type token struct {
	kind tokenKind
	text string
}

var operators = []string{"//", "**", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "(", ")", "[", "]", "{", "}", ".", ":", ",", "|", "="}

// scan cuts the source into tokens.
func (p *parser) scan() {
	rest := p.source
	trim := false // the tag before ended with a minus
	for rest != "" {
		begin := nextTag(rest)
		text, tag := rest[:begin], rest[begin:]
		if trim {
			text = strings.TrimLeftFunc(text, unicode.IsSpace)
		}
		if len(tag) > 2 && tag[2] == '-' {
			text = strings.TrimRightFunc(text, unicode.IsSpace)
		}
		if text != "" {
			p.tokens = append(p.tokens, token{textToken, text})
		}
		if tag == "" {
			break
		}
		if tag[1] == '#' {
			comment, after, ok := strings.Cut(tag[2:], "#}")
			if !ok {
				fail("a comment without end")
			}
			trim, rest = strings.HasSuffix(comment, "-"), after
			continue
		}
		rest, trim = p.scanTag(tag)
		if n := len(p.tokens); n >= 3 && p.tokens[n-3] == (token{beginToken, "{%"}) && p.tokens[n-2] == (token{nameToken, "raw"}) {
			p.tokens = p.tokens[:n-3]
			rest, trim = p.scanRaw(rest, trim)
		}
	}
	p.tokens = append(p.tokens, token{kind: lastToken})
}

// nextTag finds where the next tag or comment begins.
func nextTag(s string) int {
	for i := 0; i+1 < len(s); i++ {
		if s[i] == '{' && strings.IndexByte("{%#", s[i+1]) >= 0 {
			return i
		}
	}
	return len(s)
}

func (p *parser) scanRaw(rest string, trim bool) (after string, trimNext bool) {
	for at := 0; at < len(rest); {
		i := strings.Index(rest[at:], "{%")
		if i < 0 {
			break
		}
		text, tag := rest[:at+i], rest[at+i+2:]
		inner, after, ok := strings.Cut(tag, "%}")
		if ok && strings.TrimSpace(strings.Trim(inner, "-+")) == "endraw" {
			if trim {
				text = strings.TrimLeftFunc(text, unicode.IsSpace)
			}
			if strings.HasPrefix(inner, "-") {
				text = strings.TrimRightFunc(text, unicode.IsSpace)
			}
			p.tokens = append(p.tokens, token{textToken, text})
			return after, strings.HasSuffix(inner, "-")
		}
		at += i + 2
	}
	fail("raw without endraw")
	return "", false
}

// scanTag reads one tag. A closing brace ends it only where none is open.
func (p *parser) scanTag(tag string) (rest string, trim bool) {
	end := map[byte]string{'{': "}}", '%': "%}"}[tag[1]]
	p.tokens = append(p.tokens, token{beginToken, tag[:2]})
	rest = tag[2:]
	if rest != "" && (rest[0] == '-' || rest[0] == '+') {
		rest = rest[1:]
	}
	open := 0
	for {
		rest = strings.TrimLeftFunc(rest, unicode.IsSpace)
		if rest == "" {
			fail("a tag without end")
		}
		if open == 0 {
			if after, ok := strings.CutPrefix(rest, end); ok {
				p.tokens = append(p.tokens, token{endToken, end})
				return after, false
			}
			if after, ok := strings.CutPrefix(rest, "-"+end); ok {
				p.tokens = append(p.tokens, token{endToken, end})
				return after, true
			}
		}
		var t token
		t, rest = p.scanToken(rest)
		if t.kind == operatorToken {
			switch t.text {
			case "(", "[", "{":
				open++
			case ")", "]", "}":
				open--
			}
		}
		p.tokens = append(p.tokens, t)
	}
}

func (p *parser) scanToken(s string) (t token, rest string) {
	c, _ := utf8.DecodeRuneInString(s)
	switch {
	case c == '_' || unicode.IsLetter(c):
		n := strings.IndexFunc(s, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
		if n < 0 {
			n = len(s)
		}
		return token{nameToken, s[:n]}, s[n:]
	case c >= '0' && c <= '9':
		n := len(p.tokens)
		afterDot := p.tokens[n-1] == token{operatorToken, "."}
		size := numberLength(s, !afterDot)
		return token{numberToken, strings.ReplaceAll(s[:size], "_", "")}, s[size:]
	case c == '\'' || c == '"':
		return scanString(s)
	}
	for _, op := range operators {
		if rest, ok := strings.CutPrefix(s, op); ok {
			return token{operatorToken, op}, rest
		}
	}
	fail("unexpected character %q", c)
	return token{}, ""
}

// numberLength measures a number literal. After a dot only a whole number can
// follow: a.0.1 is two items.
func numberLength(s string, fraction bool) int {
	digits := func(i int) int {
		for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '_') {
			i++
		}
		return i
	}
	if len(s) > 1 && s[0] == '0' && strings.IndexByte("xXoObB", s[1]) >= 0 {
		i := 2
		for i < len(s) && (s[i] == '_' || s[i] < utf8.RuneSelf && (unicode.IsDigit(rune(s[i])) || unicode.IsLetter(rune(s[i])))) {
			i++
		}
		return i
	}
	i := digits(0)
	if !fraction {
		return i
	}
	if i+1 < len(s) && s[i] == '.' && digits(i+1) > i+1 {
		i = digits(i + 1)
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		j := i + 1
		if j < len(s) && (s[j] == '+' || s[j] == '-') {
			j++
		}
		if digits(j) > j {
			i = digits(j)
		}
	}
	return i
}

var escapes = map[byte]string{'n': "\n", 't': "\t", 'r': "\r", '0': "\x00", 'b': "\b", 'f': "\f", 'a': "\a", 'v': "\v", '\n': ""}

func scanString(s string) (t token, rest string) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == s[0]:
			return token{stringToken, b.String()}, s[i+1:]
		case c == '\\' && i+1 < len(s):
			i++
			if size := map[byte]int{'x': 2, 'u': 4}[s[i]]; size > 0 {
				if i+size >= len(s) {
					fail("a string without end")
				}
				b.WriteRune(rune(wholeNumber(s[i+1:i+1+size], 16)))
				i += size
			} else if plain, ok := escapes[s[i]]; ok {
				b.WriteString(plain)
			} else if s[i] == '\\' || s[i] == '\'' || s[i] == '"' {
				b.WriteByte(s[i])
			} else {
				b.WriteString(s[i-1 : i+1]) // as in Python, \d of a pattern is kept
			}
		default:
			b.WriteByte(c)
		}
	}
	fail("a string without end")
	return token{}, ""
}
