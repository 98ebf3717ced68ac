package profile

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"github.com/porchlight-iot/porchlight/devices"
)

// The bounds of a message.
const (
	maxPayload    = 64 << 10
	maxDepth      = 12
	maxMembers    = 2000  // of a document: each is compared with every rule
	maxLabels     = 10000 // of a SenML pack; metrics of Sparkplug
	maxMemberName = 256   // bytes
	maxFields     = 200   // of a reading; a message may have several
	maxText       = 1024  // bytes of a text value; more is cut
	maxName       = 100   // bytes of a field's name, without the number of a collision
	maxUnit       = 24    // bytes of a unit that a device spells
)

// A node is a part of a document: an object, a list, or a value. Members keep
// the order in which they came, because names that collide are numbered by it.
type node struct {
	kind    nodeKind
	members []member // of an object
	items   []*node  // of a list
	value   devices.Value
	unit    string // that stood beside the value
	text    string // what the value was read from, where that may have been meant as a text
}

type nodeKind uint8

const (
	valueNode nodeKind = iota
	objectNode
	listNode
	nullNode
)

type member struct {
	name string
	node *node
}

// member gives a member of an object; nil where there is none.
func (n *node) member(name string) *node {
	for _, m := range n.members {
		if m.name == name {
			return m.node
		}
	}
	return nil
}

// child gives a member of an object, or an item of a list by its number.
func (n *node) child(name string) *node {
	if n.kind == listNode {
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(n.items) {
			return n.items[i]
		}
		return nil
	}
	return n.member(name)
}

// under puts a document under a path.
func under(path string, n *node) *node {
	for _, name := range slices.Backward(splitPath(path)) {
		n = object(name, n)
	}
	return n
}

// object makes an object of one member.
func object(name string, n *node) *node {
	return &node{kind: objectNode, members: []member{{name, n}}}
}

// parseJSON reads a JSON text (RFC 8259) of at most so many values, numbers as
// their literals.
func parseJSON(payload []byte, most int) (*node, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	r := jsonReader{d: d, left: most, most: most}
	n, err := r.value(0)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return n, nil
		} else if err == nil {
			err = errors.New("something follows the value")
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("not JSON: unexpected end at byte %d", len(payload))
	}
	return nil, fmt.Errorf("not JSON: %w at byte %d", err, d.InputOffset())
}

// jsonWords puts what JSON has in the place of words that others print.
func jsonWords(text []byte) []byte {
	var out []byte
	quoted, escaped := false, false
	for i := 0; i < len(text); i++ {
		c := text[i]
		if quoted || c == '"' || !unicode.IsLetter(rune(c)) {
			out = append(out, c)
			if c == '"' && !escaped {
				quoted = !quoted
			}
			escaped = quoted && c == '\\' && !escaped
			continue
		}
		end := i
		for end < len(text) && unicode.IsLetter(rune(text[end])) {
			end++
		}
		word := strings.ToLower(string(text[i:end]))
		if slices.Contains([]string{"nan", "inf", "infinity", "none"}, word) {
			out, word = bytes.TrimRight(out, "+-"), "null"
		}
		out = append(out, word...)
		i = end - 1
	}
	return out
}

type jsonReader struct {
	d          *json.Decoder
	left, most int
}

func (r *jsonReader) value(depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("deeper than %d", maxDepth)
	}
	if r.left--; r.left < 0 {
		return nil, fmt.Errorf("more than %d members", r.most)
	}
	token, err := r.d.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		if t == '[' {
			return r.list(depth)
		}
		return r.object(depth)
	case json.Number:
		v, err := devices.ParseNumber(t.String())
		if err != nil {
			return &node{kind: nullNode}, nil // beyond what a float64 holds
		}
		return &node{value: v}, nil
	case string:
		return &node{value: devices.Text(t)}, nil
	case bool:
		return &node{value: devices.Bool(t)}, nil
	}
	return &node{kind: nullNode}, nil
}

func (r *jsonReader) list(depth int) (*node, error) {
	n := &node{kind: listNode}
	for r.d.More() {
		item, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item)
	}
	_, err := r.d.Token()
	return n, err
}

func (r *jsonReader) object(depth int) (*node, error) {
	n := &node{kind: objectNode}
	for r.d.More() {
		name, err := r.d.Token()
		if err != nil {
			return nil, err
		}
		text, ok := name.(string)
		if !ok {
			return nil, errors.New("a member without a name")
		}
		if len(text) > maxMemberName {
			return nil, fmt.Errorf("a name of %d bytes, more than %d", len(text), maxMemberName)
		}
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.members = append(n.members, member{text, v})
	}
	_, err := r.d.Token()
	return n, err
}

// parseCBOR reads a CBOR item (RFC 8949) of at most so many values. Keys that are integers are written
// as such; members come in the order of their keys.
func parseCBOR(payload []byte, most int) (*node, error) {
	mode, err := cbor.DecOptions{MaxArrayElements: maxLabels, MaxMapPairs: 64, MaxNestedLevels: maxDepth}.DecMode()
	if err != nil {
		return nil, err
	}
	var item any
	if err := mode.Unmarshal(payload, &item); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("not CBOR: unexpected end at byte %d", len(payload))
		}
		return nil, fmt.Errorf("not CBOR: %s", strings.TrimPrefix(err.Error(), "cbor: "))
	}
	n := cborNode(item)
	if n.count() > most {
		return nil, fmt.Errorf("not CBOR: more than %d members", most)
	}
	return n, nil
}

// count gives the values in a document, with the objects and lists around.
func (n *node) count() int {
	sum := 1
	for _, m := range n.members {
		sum += m.node.count()
	}
	for _, item := range n.items {
		sum += item.count()
	}
	return sum
}

func cborNode(item any) *node {
	switch x := item.(type) {
	case map[any]any:
		named := make(map[string]any, len(x))
		for key, v := range x {
			if name := fmt.Sprint(key); len(name) <= maxMemberName {
				named[name] = v
			}
		}
		n := &node{kind: objectNode}
		for _, name := range sortedKeys(named) {
			n.members = append(n.members, member{name, cborNode(named[name])})
		}
		return n
	case []any:
		n := &node{kind: listNode}
		for _, v := range x {
			n.items = append(n.items, cborNode(v))
		}
		return n
	case string:
		return &node{value: devices.Text(x)}
	case []byte:
		return &node{value: devices.Text(base64.RawURLEncoding.EncodeToString(x))}
	case bool:
		return &node{value: devices.Bool(x)}
	}
	if v := cborNumber(item); v.IsValid() {
		return &node{value: v}
	}
	return &node{kind: nullNode}
}

// cborNumber gives the zero Value where item is no finite number.
func cborNumber(item any) devices.Value {
	var literal string
	switch x := item.(type) {
	case uint64:
		literal = strconv.FormatUint(x, 10)
	case int64:
		literal = strconv.FormatInt(x, 10)
	case float64:
		return devices.Number(x)
	case cbor.Tag: // a decimal fraction (RFC 8949 section 3.4.4): 4([-2, 2140]) is 21.40
		parts, ok := x.Content.([]any)
		if x.Number != 4 || !ok || len(parts) != 2 {
			return devices.Value{}
		}
		mantissa, exponent := cborNumber(parts[1]), cborNumber(parts[0])
		places, ok := exponent.Int()
		if _, whole := mantissa.Int(); !ok || !whole {
			return devices.Value{}
		}
		literal = shifted(mantissa.String(), places)
	case big.Int:
		literal = x.String()
	}
	v, err := devices.ParseNumber(literal)
	if err != nil {
		return devices.Value{}
	}
	return v
}

// shifted writes a whole number times ten to the power of places.
func shifted(whole string, places int64) string {
	if places > 0 || places < -30 {
		return fmt.Sprintf("%se%d", whole, places)
	}
	sign, digits := "", whole
	if rest, negative := strings.CutPrefix(whole, "-"); negative {
		sign, digits = "-", rest
	}
	decimals := int(-places)
	if missing := decimals + 1 - len(digits); missing > 0 {
		digits = strings.Repeat("0", missing) + digits
	}
	point := len(digits) - decimals
	return sign + digits[:point] + "." + digits[point:]
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// parsePairs reads names and values on one line: t=21.4 h=45.
func parsePairs(payload []byte, rule pairsRule) (*node, error) {
	line := strings.TrimFunc(string(payload), func(r rune) bool { return unicode.IsSpace(r) && !strings.ContainsRune(rule.Assign, r) })
	if !utf8.ValidString(line) {
		return nil, errors.New("not names and values: not text")
	}
	if strings.Contains(rule.Separators, " ") {
		line = rule.tighten(line)
	}
	n := &node{kind: objectNode}
	for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(rule.Separators, r) }) {
		word = strings.TrimLeft(word, " ")
		i := strings.IndexAny(word, rule.Assign)
		if len(n.members) < len(rule.Names) {
			n.members = append(n.members, member{rule.Names[len(n.members)], &node{value: devices.Text(word)}})
			continue
		}
		if i < 0 && rule.takeUnit(n, word) {
			continue
		}
		first, _ := utf8.DecodeRuneInString(word)
		if i <= 0 || !unicode.IsLetter(first) || len(word[:i]) > maxMemberName {
			return nil, fmt.Errorf("not names and values: %.40q", word)
		}
		if len(n.members) == maxMembers {
			return nil, fmt.Errorf("more than %d values", maxMembers)
		}
		n.members = append(n.members, member{strings.TrimRight(word[:i], " "), rule.value(word[i+1:])})
	}
	if len(n.members) == 0 {
		return nil, errors.New("not names and values: an empty line")
	}
	return n, nil
}

// tighten removes the blanks around the characters between name and value.
func (rule pairsRule) tighten(line string) string {
	var b strings.Builder
	for i, word := range strings.Fields(line) {
		starts := strings.ContainsAny(word[:1], rule.Assign)
		ended := b.Len() > 0 && strings.ContainsAny(b.String()[b.Len()-1:], rule.Assign)
		if i > 0 && !starts && !ended {
			b.WriteByte(' ')
		}
		b.WriteString(word)
	}
	return b.String()
}

// takeUnit gives the last member a unit that stands alone.
func (rule pairsRule) takeUnit(n *node, word string) bool {
	if len(n.members) == 0 || !slices.Contains(rule.Units, word) {
		return false
	}
	last := n.members[len(n.members)-1].node
	if last.value.Kind() != devices.NumberValue || last.unit != "" {
		return false
	}
	last.unit = word
	return true
}

// value reads a bare value, with a unit or without: 21.4, 45%.
func (rule pairsRule) value(s string) *node {
	if rule.Raw {
		return &node{value: devices.Text(strings.TrimSpace(s))}
	}
	for _, u := range rule.Units {
		if number, ok := strings.CutSuffix(s, u); ok {
			if v, err := devices.ParseNumber(number); err == nil { // which takes blanks around
				return &node{value: v, unit: u}
			}
		}
	}
	return &node{value: bare(s)}
}

// bare reads a value that stands without quotes.
func bare(s string) devices.Value {
	s = strings.TrimSpace(s)
	if v, err := devices.ParseNumber(s); err == nil {
		return v
	}
	switch strings.ToLower(s) {
	case "true", "on":
		return devices.Bool(true)
	case "false", "off":
		return devices.Bool(false)
	}
	return devices.Text(s)
}

// notValue knows the words that firmwares write where they have no value. The
// lower-case none is a word for a state.
func notValue(s string) bool {
	s = strings.TrimSpace(s)
	switch strings.ToLower(s) {
	case "", "nan", "-nan", "+nan", "inf", "-inf", "+inf", "infinity", "-infinity",
		"null", "nil", "undefined", "---", "--", "-", "n/a", "unavailable", "unknown":
		return true
	}
	return s == "None"
}
