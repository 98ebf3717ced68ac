// Package strictyaml reads YAML files that people write into structs, and
// tells them everything that is wrong at once: unknown keys with the nearest
// known one, keys given twice, wrong types, values that are not allowed, each
// with its line and column and a way to mend it.
//
// It is stricter than YAML where YAML surprises. Truth values are true and
// false only, and yes, no, on and off stay texts. Numbers are decimal (or 0x),
// never octal. A text takes a plain value just as it was written, so 1.10
// stays "1.10". A key without a value is a fault. Merge keys are a fault;
// anchors and aliases are not, within bounds.
//
// A field of a struct is read from the key that its tag yaml:"key" names; a
// field without the tag is not read. More tags:
//
//	yaml:"key,required"  the key must be there
//	enum:"a,b,c"         the values that a text, or each text of a list, may have
//	min:"1" max:"10"     bounds of a number, a duration or a [Size]
//	alone:"true"         a single value stands for a list of one
//	quote:"true"         a map's keys that YAML 1.1 took for truth values, as on,
//	                     have to be quoted
//	doc:"…"              a description, for [Schema]
//
// Fields may be strings, bools, whole and floating-point numbers,
// [time.Duration], [Size], [yaml.Node], structs, slices, maps with string
// keys, pointers to all of these, and every type with an UnmarshalText method,
// whose error becomes the fault. Such a type may also have a method Allowed()
// string, which says what is allowed, and Example() string. A type with the
// method SetDefaults() is given its defaults before it is read.
package strictyaml

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxBytes is the largest file that is read.
const MaxBytes = 1 << 20

// These bound what a hostile file can cost.
const (
	maxNodes  = 200_000 // values read, each use of an alias counted anew
	maxDepth  = 64
	maxFaults = 100
)

// Decode reads the YAML document data into the struct that into points to.
// What the file does not mention keeps the value it has in the struct. file is
// used in faults only. The document is never nil. Where there are faults, into
// holds what could be read.
//
// Decode panics if into is not a pointer to a struct or has a field of a type
// that cannot be read.
func Decode(file string, data []byte, into any) (*Document, Faults) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("strictyaml: cannot decode into %T, it is no pointer to a struct", into))
	}
	doc := &Document{file: file}
	root, fault := parse(file, data)
	if fault != nil {
		return doc, Faults{*fault}
	}
	doc.root = root
	d := decoder{file: file}
	d.value(root, v.Elem(), nil, rule{}, 0)
	d.faults.Sort()
	return doc, d.faults
}

type decoder struct {
	file   string
	faults Faults
	nodes  int
	full   bool // no more is read: too many nodes or faults
}

// A rule is what the tags of a field demand of its value.
type rule struct {
	enum     []string
	min, max string
	alone    bool
	quote    bool
}

func (d *decoder) fault(n *yaml.Node, p *path, problem, allowed, mend string) {
	if d.full {
		return
	}
	var key *yaml.Node
	if p != nil {
		key = p.key
	}
	line, column := placeOf(key, n)
	f := Fault{d.file, max(line, 1), max(column, 1), p.String(), problem, allowed, mend}
	if len(d.faults) == maxFaults {
		d.full = true
		f.Key, f.Problem, f.Allowed, f.Mend = "", fmt.Sprintf("has more than %d faults", maxFaults), "", "mend these first"
	}
	d.faults = append(d.faults, f)
}

// enter counts a value and reports whether it may be read.
func (d *decoder) enter(n *yaml.Node, p *path, depth int) bool {
	if d.full {
		return false
	}
	if d.nodes++; d.nodes > maxNodes {
		d.fault(n, nil, fmt.Sprintf("holds more than %d values, aliases counted at each use", maxNodes), "", "use fewer aliases")
		d.full = true
		return false
	}
	if depth > maxDepth {
		d.fault(n, p, fmt.Sprintf("is nested more than %d deep", maxDepth), "", "check for an alias within its own anchor")
		return false
	}
	return true
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, p *path, r rule, depth int) {
	n = follow(n)
	if !d.enter(n, p, depth) {
		return
	}
	if node, ok := v.Addr().Interface().(*yaml.Node); ok {
		if c := d.copy(n, p, depth); c != nil {
			*node = *c
		}
		return
	}
	if isNull(n) {
		d.fault(n, p, "has no value", wanted(v.Type(), r), "give it one, or put # before the line")
		return
	}
	if Typographic(n) {
		d.fault(n, p, quote(n.Value)+" is in typographic quotes, which become part of the text", `a text, in straight quotes (") where it needs any`, "replace the quotes by straight ones; a plain editor does not change them")
		return
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fault(n, p, "the tag "+quote(n.Tag)+" has no meaning here", "", "remove it")
		return
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(fresh(v.Type().Elem()).Addr())
		}
		d.value(n, v.Elem(), p, r, depth) // one more node in the count, no matter
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, v, u, p, r)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, p, depth)
	case reflect.Map:
		d.mapping(n, v, p, r, depth)
	case reflect.Slice:
		d.list(n, v, p, r, depth)
	default:
		d.scalar(n, v, p, r)
	}
}

// Typographic reports whether a text is in quotes that are none to YAML, as word
// processors and phones write them.
func Typographic(n *yaml.Node) bool {
	const quotes = "“”„‟‘’‚"
	first, _ := utf8.DecodeRuneInString(n.Value)
	last, _ := utf8.DecodeLastRuneInString(n.Value)
	return n.Kind == yaml.ScalarNode && n.Style == 0 && utf8.RuneCountInString(n.Value) > 1 &&
		strings.ContainsRune(quotes, first) && strings.ContainsRune(quotes, last)
}

// fresh makes an addressable value of type t with its defaults.
func fresh(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	if s, ok := v.Interface().(interface{ SetDefaults() }); ok {
		s.SetDefaults()
	}
	return v.Elem()
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, p *path, depth int) {
	if !d.is(n, yaml.MappingNode, v.Type(), p, rule{}) {
		return
	}
	fields := fieldsOf(v.Type())
	seen := map[string]bool{}
	d.pairs(n, p, func(key string, at *path, value *yaml.Node) {
		seen[key] = true
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
		if i < 0 {
			d.unknown(at, fields)
			return
		}
		d.value(value, v.Field(fields[i].index), at, fields[i].rule, depth+1)
	})
	for _, f := range fields {
		if f.required && !seen[f.key] {
			at := &path{p, f.key, nil}
			if p != nil {
				at.key = p.key
			}
			d.fault(n, at, "is missing", wanted(v.Type().Field(f.index).Type, f.rule), "add it")
		}
	}
}

func (d *decoder) unknown(at *path, fields []field) {
	var known []string
	for _, f := range fields {
		known = append(known, f.key)
	}
	mend := "remove it, or put # before the line"
	if near := Nearest(at.step.(string), known); near != "" {
		mend = fmt.Sprintf("did you mean %q?", near)
	}
	allowed := "no key at all"
	if len(known) > 0 {
		allowed = "keys " + strings.Join(known, ", ")
	}
	d.fault(at.key, at, "is not a known key", allowed, mend)
}

// pairs calls f for each key of a mapping that is sound in itself.
func (d *decoder) pairs(n *yaml.Node, p *path, f func(key string, at *path, value *yaml.Node)) {
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content) && !d.full; i += 2 {
		k := follow(n.Content[i])
		at := &path{p, k.Value, k}
		if k.Kind != yaml.ScalarNode || isNull(k) {
			d.fault(k, p, "has a key that is no text", "", "check the brackets and the dash before it")
			continue
		}
		if k.Tag == "!!merge" {
			d.fault(k, at, "merge keys are not read", "", "write the keys out")
			continue
		}
		if line, ok := first[k.Value]; ok {
			d.fault(k, at, fmt.Sprintf("is given twice, first in line %d", line), "each key once", "remove one of the two")
			continue
		}
		first[k.Value] = k.Line
		f(k.Value, at, n.Content[i+1])
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, p *path, r rule, depth int) {
	if !d.is(n, yaml.MappingNode, v.Type(), p, r) {
		return
	}
	m := reflect.MakeMap(v.Type())
	d.pairs(n, p, func(key string, at *path, value *yaml.Node) {
		if r.quote && at.key.Style == 0 && slices.Contains(truthWords, strings.ToLower(key)) {
			d.fault(at.key, at, "is a truth value to other readers of YAML", "a text", fmt.Sprintf("write %q, with the quotes", key))
			return
		}
		e := fresh(v.Type().Elem())
		d.value(value, e, at, r, depth+1)
		m.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), e)
	})
	v.Set(m)
}

// truthWords are what YAML 1.1 takes for truth values.
var truthWords = []string{"y", "yes", "on", "true", "n", "no", "off", "false"}

func (d *decoder) list(n *yaml.Node, v reflect.Value, p *path, r rule, depth int) {
	items := n.Content
	if r.alone && n.Kind == yaml.ScalarNode {
		items = []*yaml.Node{n}
	} else if !d.is(n, yaml.SequenceNode, v.Type(), p, r) {
		return
	}
	s := reflect.MakeSlice(v.Type(), 0, min(len(items), 64))
	for i, item := range items {
		if d.full {
			break
		}
		e := fresh(v.Type().Elem())
		d.value(item, e, &path{p, i, nil}, r, depth+1)
		s = reflect.Append(s, e)
	}
	v.Set(s)
}

// copy gives n without aliases, so that whoever walks it cannot be trapped.
func (d *decoder) copy(n *yaml.Node, p *path, depth int) *yaml.Node {
	c := *n
	c.Anchor, c.Content = "", nil
	for _, child := range n.Content {
		child = follow(child)
		if !d.enter(child, p, depth+1) {
			return nil
		}
		cc := d.copy(child, p, depth+1)
		if cc == nil {
			return nil
		}
		c.Content = append(c.Content, cc)
	}
	return &c
}

func (d *decoder) is(n *yaml.Node, kind yaml.Kind, t reflect.Type, p *path, r rule) bool {
	if n.Kind == kind {
		return true
	}
	mend := ""
	switch kind {
	case yaml.MappingNode:
		mend = "write its keys below it, indented, or as {key: value}"
	case yaml.SequenceNode:
		mend = "write its items below it, each after a dash, or as [item, item]"
	case yaml.ScalarNode:
		mend = "write one value"
	}
	d.fault(n, p, "is "+kindName(n), wanted(t, r), mend)
	return false
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// text reads types that read themselves.
func (d *decoder) text(n *yaml.Node, v reflect.Value, u encoding.TextUnmarshaler, p *path, r rule) {
	if !d.is(n, yaml.ScalarNode, v.Type(), p, r) {
		return
	}
	if err := u.UnmarshalText([]byte(n.Value)); err != nil {
		d.fault(n, p, strings.ReplaceAll(err.Error(), "\n", " "), wanted(v.Type(), r), example(v.Type()))
		return
	}
	if size, ok := v.Addr().Interface().(*Size); ok && !between(*size, r, parseSize) {
		d.fault(n, p, size.String()+" is out of bounds", wanted(v.Type(), r), "choose one within")
	}
	if v.Kind() == reflect.String {
		d.enumerated(n, p, v.String(), r)
	}
}

func (d *decoder) enumerated(n *yaml.Node, p *path, s string, r rule) bool {
	if len(r.enum) == 0 || slices.Contains(r.enum, s) {
		return true
	}
	mend := "choose one of them"
	if near := Nearest(s, r.enum); near != "" {
		mend = fmt.Sprintf("did you mean %q?", near)
	}
	d.fault(n, p, quote(s)+" is not one of the allowed values", strings.Join(r.enum, ", "), mend)
	return false
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, p *path, r rule) {
	if !d.is(n, yaml.ScalarNode, v.Type(), p, r) {
		return
	}
	t := v.Type()
	bad := func(mend string) {
		d.fault(n, p, quote(n.Value)+" is not "+noun(t), wanted(t, r), mend)
	}
	bounds := func(ok bool) bool {
		if !ok {
			d.fault(n, p, clip(n.Value)+" is out of bounds", wanted(t, r), "choose one within")
		}
		return ok
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		x, err := time.ParseDuration(n.Value)
		if err != nil {
			bad("write a number with its unit, as 5s or 1m30s")
		} else if bounds(between(x, r, parseDuration)) {
			v.SetInt(int64(x))
		}
	case t.Kind() == reflect.String:
		if d.enumerated(n, p, n.Value, r) {
			v.SetString(n.Value)
		}
	case t.Kind() == reflect.Bool:
		switch x := strings.ToLower(n.Value); {
		case n.Tag == "!!bool":
			v.SetBool(x == "true")
		case slices.Contains([]string{"on", "yes", "y", "true"}, x):
			bad("write true")
		case slices.Contains([]string{"off", "no", "n", "false"}, x):
			bad("write false")
		default:
			bad("write true or false")
		}
	case v.CanInt():
		x, err := strconv.ParseInt(n.Value, 0, t.Bits())
		switch {
		case !whole(n):
			bad(mendNumber(n, "write a whole number, as 10"))
		case bounds(err == nil && between(x, r, parseInt)):
			v.SetInt(x)
		}
	case v.CanUint():
		x, err := strconv.ParseUint(strings.TrimPrefix(n.Value, "+"), 0, t.Bits())
		switch {
		case !whole(n):
			bad(mendNumber(n, "write a whole number, as 10"))
		case bounds(err == nil && between(x, r, parseUint)):
			v.SetUint(x)
		}
	case v.CanFloat():
		x, err := strconv.ParseFloat(n.Value, t.Bits())
		switch {
		case n.Tag != "!!int" && n.Tag != "!!float" || !decimal(n.Value):
			bad(mendNumber(n, "write a number, as 1.5"))
		case bounds(err == nil && !math.IsInf(x, 0) && between(x, r, parseFloat)):
			v.SetFloat(x)
		}
	default:
		panic(fmt.Sprintf("strictyaml: cannot decode into the type %v", t))
	}
}

// whole reports whether n is a whole number in a form that nobody misreads:
// 010 is 8 to YAML 1.1 and 10 to YAML 1.2, so it is neither here.
func whole(n *yaml.Node) bool {
	s := strings.TrimLeft(n.Value, "+-")
	return n.Tag == "!!int" && !strings.Contains(s, "_") && (s == "0" || s[0] != '0' || strings.HasPrefix(s, "0x"))
}

// decimal reports whether s has only what a decimal number has; YAML's .nan,
// .inf and 0x1p-2 are no values for people.
func decimal(s string) bool {
	return s != "" && strings.Trim(s, "+-.eE0123456789") == ""
}

func mendNumber(n *yaml.Node, otherwise string) string {
	if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 && decimal(n.Value) {
		return "remove the quotes"
	}
	return otherwise
}

func parseInt(s string) (int64, error)              { return strconv.ParseInt(s, 10, 64) }
func parseUint(s string) (uint64, error)            { return strconv.ParseUint(s, 10, 64) }
func parseFloat(s string) (float64, error)          { return strconv.ParseFloat(s, 64) }
func parseDuration(s string) (time.Duration, error) { return time.ParseDuration(s) }
func parseSize(s string) (size Size, err error) {
	err = size.UnmarshalText([]byte(s))
	return size, err
}

func between[T int64 | uint64 | float64 | time.Duration | Size](x T, r rule, parse func(string) (T, error)) bool {
	bound := func(tag string) T {
		b, err := parse(tag)
		if err != nil {
			panic(fmt.Sprintf("strictyaml: the bound %q of a tag is wrong: %v", tag, err))
		}
		return b
	}
	return (r.min == "" || x >= bound(r.min)) && (r.max == "" || x <= bound(r.max))
}

// A field is one key of a struct.
type field struct {
	key      string
	index    int
	required bool
	rule     rule
	doc      string
}

func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		key, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if key == "" || key == "-" || !f.IsExported() {
			continue
		}
		one := field{key: key, index: i, required: options == "required", doc: f.Tag.Get("doc")}
		one.rule = rule{min: f.Tag.Get("min"), max: f.Tag.Get("max"), alone: f.Tag.Get("alone") != "", quote: f.Tag.Get("quote") != ""}
		if e := f.Tag.Get("enum"); e != "" {
			one.rule.enum = strings.Split(e, ",")
		}
		fields = append(fields, one)
	}
	return fields
}

// wanted says what is allowed where a value of type t is read.
func wanted(t reflect.Type, r rule) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	what := noun(t)
	switch {
	case t.Kind() == reflect.Slice && len(r.enum) > 0:
		return "a list of " + strings.Join(r.enum, ", ")
	case len(r.enum) > 0:
		return strings.Join(r.enum, ", ")
	case t.Kind() == reflect.Bool:
		return "true, false"
	case r.min != "" && r.max != "":
		what += " from " + r.min + " to " + r.max
	case r.min != "":
		what += ", at least " + r.min
	case r.max != "":
		what += ", at most " + r.max
	}
	if a, ok := reflect.New(t).Interface().(interface{ Allowed() string }); ok {
		what = a.Allowed()
		if r.min != "" {
			what += ", at least " + r.min
		}
		if r.max != "" {
			what += ", at most " + r.max
		}
	} else if t.Kind() == reflect.Struct && !isText(t) {
		if fields := fieldsOf(t); len(fields) > 0 {
			var keys []string
			for _, f := range fields {
				keys = append(keys, f.key)
			}
			what += " with the keys " + strings.Join(keys, ", ")
		}
	}
	return what
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func noun(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration"
	case t == reflect.TypeFor[yaml.Node]():
		return "anything"
	case isText(t), t.Kind() == reflect.String:
		return "a text"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "a truth value"
	case reflect.Struct, reflect.Map:
		return "a mapping"
	case reflect.Slice:
		return "a list"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "a whole number"
}

func example(t reflect.Type) string {
	if e, ok := reflect.New(t).Interface().(interface{ Example() string }); ok {
		return "write for example " + e.Example()
	}
	return "correct it"
}
