package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// A Document remembers where in the file everything stood, so that checks
// which come after decoding can name the place too.
type Document struct {
	file string
	root *yaml.Node // nil if the file could not be parsed
}

// File gives the name that Decode was called with.
func (d *Document) File() string { return d.file }

// At gives the place of what path leads to: strings are keys, ints are places
// in a list. It is the value's place where that is a single value or a list
// item, else the place of its key. If the path goes further than the file,
// it is the place of the last that is there.
func (d *Document) At(path ...any) (line, column int) {
	n := d.root
	if n == nil {
		return 1, 1
	}
	line, column = n.Line, n.Column
	for depth, step := range path {
		if depth == maxDepth {
			break
		}
		key, value := child(n, step)
		if value == nil {
			break
		}
		n = value
		line, column = placeOf(key, value)
	}
	return max(line, 1), max(column, 1)
}

// Has reports whether the file itself holds key, a path as in Fault; "" is the
// whole document, which is there if it could be parsed.
func (d *Document) Has(key string) bool {
	n := d.root
	for _, step := range parsePath(key) {
		if n == nil {
			return false
		}
		_, n = child(n, step)
	}
	return n != nil
}

// Fault makes a fault about key, a path such as devices[2].serial.baud, with
// the place where that stands.
func (d *Document) Fault(key, problem, allowed, mend string) Fault {
	line, column := d.At(parsePath(key)...)
	return Fault{File: d.file, Line: line, Column: column, Key: key, Problem: problem, Allowed: allowed, Mend: mend}
}

func placeOf(key, value *yaml.Node) (line, column int) {
	if key != nil && value.Kind != yaml.ScalarNode {
		return key.Line, key.Column
	}
	return value.Line, value.Column
}

// child takes one step down, through aliases. key is nil in a list.
func child(n *yaml.Node, step any) (key, value *yaml.Node) {
	n = follow(n)
	switch step := step.(type) {
	case int:
		if n.Kind == yaml.SequenceNode && step >= 0 && step < len(n.Content) {
			return nil, follow(n.Content[step])
		}
	case string:
		if n.Kind != yaml.MappingNode {
			return nil, nil
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if k := follow(n.Content[i]); k.Kind == yaml.ScalarNode && k.Value == step {
				return n.Content[i], follow(n.Content[i+1])
			}
		}
	}
	return nil, nil
}

// follow gives what an alias stands for. An alias cannot stand for an alias.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// A path is kept as a chain and written out only for a fault: a file of long
// keys would else cost memory by the square.
type path struct {
	up   *path
	step any // string or int
	key  *yaml.Node
}

func (p *path) String() string {
	if p == nil {
		return ""
	}
	var steps []any
	for ; p != nil; p = p.up {
		steps = append(steps, p.step)
	}
	var b strings.Builder
	for i := len(steps) - 1; i >= 0; i-- {
		switch s := steps[i].(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", s)
		case string:
			if !plainKey(s) {
				fmt.Fprintf(&b, "[%s]", quote(s))
				continue
			}
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s)
		}
	}
	return b.String()
}

// plainKey reports whether s can stand in a path as it is.
func plainKey(s string) bool {
	if s == "" || len(s) > 60 {
		return false
	}
	for _, r := range s {
		if r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return false
		}
	}
	return true
}

// parsePath is the inverse of path.String. What it cannot read ends the path.
func parsePath(s string) []any {
	var steps []any
	for s != "" {
		switch {
		case s[0] == '.':
			s = s[1:]
		case strings.HasPrefix(s, `["`):
			quoted, err := strconv.QuotedPrefix(s[1:])
			if err != nil {
				return steps
			}
			key, err := strconv.Unquote(quoted)
			if err != nil {
				return steps
			}
			steps = append(steps, key)
			s = strings.TrimPrefix(s[1+len(quoted):], "]")
		case s[0] == '[':
			number, rest, ok := strings.Cut(s[1:], "]")
			i, err := strconv.Atoi(number)
			if !ok || err != nil {
				return steps
			}
			steps = append(steps, i)
			s = rest
		default:
			end := strings.IndexAny(s, ".[")
			if end < 0 {
				end = len(s)
			}
			steps = append(steps, s[:end])
			s = s[end:]
		}
	}
	return steps
}

// parse reads one YAML document. An empty one gives an empty mapping.
func parse(file string, data []byte) (root *yaml.Node, fault *Fault) {
	if len(data) > MaxBytes {
		return nil, &Fault{File: file, Line: 1, Column: 1,
			Problem: fmt.Sprintf("is %d bytes long", len(data)),
			Allowed: "at most " + Size(MaxBytes).String(),
			Mend:    "remove what is not needed"}
	}
	// The library panics where it finds itself in a state that it did not
	// expect; for the one who wrote the file that is a syntax error.
	defer func() {
		if r := recover(); r != nil {
			f := syntaxFault(file, data, fmt.Errorf("%v", r))
			root, fault = nil, &f
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1, Column: 1}, nil
	}
	if err == nil {
		if err = dec.Decode(&next); err == nil {
			return nil, &Fault{File: file, Line: next.Line, Column: next.Column,
				Problem: "a second document begins here",
				Allowed: "one document a file",
				Mend:    "remove the line --- and what follows it"}
		}
	}
	if !errors.Is(err, io.EOF) {
		f := syntaxFault(file, data, err)
		return nil, &f
	}
	root = doc.Content[0]
	if isNull(root) {
		root = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: max(root.Line, 1), Column: max(root.Column, 1)}
	}
	return root, nil
}

// syntaxFault turns the library's error into a fault. The library tells a line
// but no column, is one line short in what its parser (not its scanner) finds,
// and of a tab says only that it cannot start a token.
func syntaxFault(file string, data []byte, err error) Fault {
	problem := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", " ")
	line, column := 1, 1
	if rest, ok := strings.CutPrefix(problem, "line "); ok {
		number, rest, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			line, problem = n, rest
			if strings.HasPrefix(problem, "did not find expected") {
				line++
			}
		}
	}
	mend := "check indentation, quotes and brackets at this line and the one above"
	if strings.HasPrefix(problem, "mapping values are not allowed") {
		problem = "a colon stands where no key can be"
		mend = "indent keys of one level alike, with a space after each colon, here and in the line above; a text with a colon in it needs quotes"
	}
	anchor, unknownAnchor := strings.CutPrefix(problem, "unknown anchor '")
	anchor, _, _ = strings.Cut(anchor, "'")
	switch {
	case strings.Contains(problem, "control characters"), strings.Contains(problem, "UTF-8"):
		line, column = find(data, func(text []byte) int {
			at := 0
			for at < len(text) {
				r, size := utf8.DecodeRune(text[at:])
				if r == utf8.RuneError && size == 1 || unicode.IsControl(r) && !strings.ContainsRune("\t\r\n", r) {
					return at
				}
				at += size
			}
			return -1
		})
		mend = "remove the character here, or save the file as UTF-8"
	case unknownAnchor:
		line, column = find(data, func(text []byte) int { return bytes.Index(text, []byte("*"+anchor)) })
		mend = "put a text that begins with * into quotes"
	default:
		tabLine, tabColumn := find(data, func(text []byte) int {
			blank := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]
			return bytes.IndexByte(blank, '\t')
		})
		if tabLine > 0 {
			return Fault{File: file, Line: tabLine, Column: tabColumn,
				Problem: "a tab indents this line", Allowed: "spaces", Mend: "replace each tab by spaces"}
		}
	}
	return Fault{File: file, Line: max(line, 1), Column: max(column, 1),
		Problem: "cannot be read as YAML: " + clip(problem), Allowed: "YAML", Mend: mend}
}

// find gives the place of the first line in which index finds something; 0, 0
// if it finds nothing.
func find(data []byte, index func(line []byte) int) (line, column int) {
	for text := range bytes.Lines(data) {
		line++
		if i := index(text); i >= 0 {
			return line, utf8.RuneCount(text[:i]) + 1
		}
	}
	return 0, 0
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }
