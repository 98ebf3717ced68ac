package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A template computes with nil, bool, int64, real, string, *list, *dict,
// *namespace and undefined.

// native gives a value from outside the form that templates compute with.
// Mappings are left as they are until their keys are asked for, because most
// templates want one member of a large message.
func (r *run) native(v any) any {
	switch v := v.(type) {
	case nil, string, bool, int64:
		return v
	case int:
		return int64(v)
	case float64:
		return real{f: v}
	case json.Number:
		return number(string(v))
	case []any:
		r.take(32 * len(v))
		l := &list{items: make([]any, len(v))}
		for i, item := range v {
			l.items[i] = r.native(item)
		}
		return l
	case map[string]any:
		r.take(64)
		return &dict{outside: v}
	}
	return undefined{fmt.Sprintf("a value of type %T", v)}
}

// number reads a number as JSON (RFC 8259 section 6) writes it.
func number(literal string) any {
	if n, err := strconv.ParseInt(literal, 10, 64); err == nil {
		return n
	}
	f, err := strconv.ParseFloat(literal, 64)
	if err != nil {
		return nil
	}
	if strings.ContainsAny(literal, "eE") {
		return real{f: f}
	}
	return real{f, literal}
}

// fromJSON reads a JSON text that a template has.
func (r *run) fromJSON(text string) any {
	r.take(32 * len(text)) // [[[[ is the worst
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		fail("not JSON: %w", err)
	}
	if d.More() {
		fail("not JSON: something follows the value")
	}
	return r.native(v)
}

// undefined is what a name or an item that is not there gives.
type undefined struct{ what string }

// real is a floating-point number, and the literal it came with.
type real struct {
	f       float64
	literal string
}

type list struct {
	items []any
	tuple bool
}

// namespace is the only thing that a template can change.
type namespace struct{ dict }

// dict keeps the order in which its keys came.
type dict struct {
	outside      map[string]any // instead of keys and values, until they are needed
	keys, values []any
	index        map[any]int // once there are many
}

// open makes the keys and values of a mapping from outside.
func (r *run) open(d *dict) *dict {
	if d.outside != nil {
		r.take(64 * len(d.outside))
		outside := d.outside
		d.outside = nil
		for _, key := range slices.Sorted(maps.Keys(outside)) {
			d.put(key, r.native(outside[key]))
		}
	}
	return d
}

// hashable gives the form in which equal keys are equal: 1, 1.0 and True are
// one key. A list is none.
func hashable(key any) (any, bool) {
	switch k := key.(type) {
	case string, nil:
		return k, true
	case bool, int64, real:
		f, _ := toFloat(k)
		return f, true
	}
	return nil, false
}

func (d *dict) find(key any) int {
	k, ok := hashable(key)
	if !ok {
		return -1
	}
	if d.index != nil {
		if i, ok := d.index[k]; ok {
			return i
		}
		return -1
	}
	return slices.IndexFunc(d.keys, func(other any) bool { o, _ := hashable(other); return o == k })
}

func (r *run) member(d *dict, key any) (any, bool) {
	if d.outside != nil {
		name, ok := key.(string)
		if !ok {
			return nil, false
		}
		v, ok := d.outside[name]
		return r.native(v), ok
	}
	if i := d.find(key); i >= 0 {
		return d.values[i], true
	}
	return nil, false
}

func (d *dict) put(key, v any) {
	if i := d.find(key); i >= 0 {
		d.values[i] = v
		return
	}
	k, ok := hashable(key)
	if !ok {
		fail("a key that is no text and no number")
	}
	d.keys, d.values = append(d.keys, key), append(d.values, v)
	const many = 12
	if d.index == nil && len(d.keys) == many {
		d.index = map[any]int{}
		for i, key := range d.keys {
			h, _ := hashable(key)
			d.index[h] = i
		}
	} else if d.index != nil {
		d.index[k] = len(d.keys) - 1
	}
}

func truth(v any) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case real:
		return v.f != 0
	case string:
		return v != ""
	case *list:
		return len(v.items) > 0
	case *dict:
		return len(v.keys)+len(v.outside) > 0
	}
	return true
}

// toFloat gives a number, and whether v is one. Truth values are numbers.
func toFloat(v any) (float64, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return float64(v), true
	case real:
		return v.f, true
	}
	return 0, false
}

func toInt(v any) (int64, bool) {
	switch v := v.(type) {
	case bool:
		f, _ := toFloat(v)
		return int64(f), true
	case int64:
		return v, true
	}
	return 0, false
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "None"
	case undefined:
		return "something undefined"
	case bool:
		return "a truth value"
	case int64, real:
		return "a number"
	case string:
		return "a text"
	case *list:
		return "a list"
	}
	return "a mapping"
}

// missed fails where v is undefined, because something is to be done with it.
func missed(v any) {
	if u, ok := v.(undefined); ok {
		what := u.what
		if len(what) > 60 {
			what = what[:60]
		}
		fail("%q: %w", what, ErrUndefined)
	}
}

// wholeNumber reads a whole number as Python's int does.
func wholeNumber(s string, base int) int64 {
	n, ok := parseInt(s, base)
	if !ok {
		fail("%.40q is not a whole number", s)
	}
	return n
}

func parseInt(s string, base int) (int64, bool) {
	s = strings.ReplaceAll(strings.TrimSpace(s), "_", "")
	if prefix := map[int]string{16: "0x", 8: "0o", 2: "0b"}[base]; prefix != "" {
		sign := ""
		if s != "" && (s[0] == '-' || s[0] == '+') {
			sign, s = s[:1], s[1:]
		}
		if len(s) > 2 && strings.EqualFold(s[:2], prefix) {
			s = s[2:]
		}
		s = sign + s
	}
	n, err := strconv.ParseInt(s, base, 64)
	return n, err == nil
}

// parseFloat reads a number as Python's float does.
func parseFloat(s string) (float64, bool) {
	s = strings.TrimSpace(s)
	if strings.ContainsAny(s, "xXpP") { // hexadecimal, which Python refuses
		return 0, false
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	return f, err == nil || errors.Is(err, strconv.ErrRange)
}

// formatFloat writes a number as Python does.
func formatFloat(f float64) string {
	switch a := math.Abs(f); {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case a != 0 && (a < 1e-4 || a >= 1e16):
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// text writes a value as Python's str does.
func (r *run) text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case undefined:
		return ""
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case int64:
		return strconv.FormatInt(v, 10)
	case real:
		if v.literal != "" {
			return v.literal
		}
		return formatFloat(v.f)
	case *list, *dict, *namespace:
		w := writer{run: r, item: (*writer).repr, comma: ", ", colon: ": "}
		w.repr(v)
		return w.b.String()
	}
	return ""
}

// A writer writes a value that has others in it, and pays for it as it goes:
// a list that holds one list many times is small in memory only.
type writer struct {
	run          *run
	b            strings.Builder
	item         func(*writer, any)
	comma, colon string
	sorted, html bool
}

func (w *writer) put(s string) {
	w.run.take(len(s))
	w.b.WriteString(s)
}

func (w *writer) repr(v any) {
	switch v := v.(type) {
	case string:
		w.put(quote(v))
	case *list:
		if !v.tuple {
			w.many(v, "[", "]")
		} else if len(v.items) == 1 {
			w.many(v, "(", ",)")
		} else {
			w.many(v, "(", ")")
		}
	case *dict:
		w.mapping(w.run.open(v))
	case *namespace:
		w.put("<Namespace>")
	case undefined:
		w.put("Undefined")
	default:
		w.put(w.run.text(v))
	}
}

func (w *writer) many(v *list, begin, end string) {
	w.put(begin)
	for i, item := range v.items {
		if i > 0 {
			w.put(w.comma)
		}
		w.item(w, item)
	}
	w.put(end)
}

func (w *writer) mapping(v *dict) {
	w.put("{")
	order := make([]int, len(v.keys))
	for i := range order {
		order[i] = i
	}
	if w.sorted {
		w.run.take(len(order) * 16)
		slices.SortStableFunc(order, func(a, b int) int { return w.run.compare(v.keys[a], v.keys[b]) })
	}
	for i, k := range order {
		if i > 0 {
			w.put(w.comma)
		}
		w.item(w, v.keys[k])
		w.put(w.colon)
		w.item(w, v.values[k])
	}
	w.put("}")
}

func (w *writer) json(v any) {
	switch v := v.(type) {
	case nil, undefined:
		w.put("null")
	case bool:
		w.put(strconv.FormatBool(v))
	case real:
		if math.IsNaN(v.f) || math.IsInf(v.f, 0) {
			w.put("null")
			return
		}
		w.put(w.run.text(v))
	case string:
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(w.html)
		_ = e.Encode(v) // a string can always be written
		w.put(strings.TrimSuffix(b.String(), "\n"))
	case *list:
		w.many(v, "[", "]")
	case *dict:
		w.mapping(w.run.open(v))
	case *namespace:
		fail("a namespace is not for JSON")
	default:
		w.put(w.run.text(v))
	}
}

// quote writes a text as Python's repr does.
func quote(s string) string {
	q := "'"
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		q = `"`
	}
	var b strings.Builder
	b.WriteString(q)
	for _, c := range s {
		switch {
		case c == '\\' || string(c) == q:
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\t':
			b.WriteString(`\t`)
		case c < 0x20 || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		case !unicode.IsPrint(c) && c > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, c)
		case !unicode.IsPrint(c) && c > 0xff:
			fmt.Fprintf(&b, `\u%04x`, c)
		case !unicode.IsPrint(c):
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteString(q)
	return b.String()
}

// items gives what a loop over v goes through.
func (r *run) items(v any) []any {
	switch v := v.(type) {
	case undefined:
		return nil
	case *list:
		r.spend(len(v.items))
		return v.items
	case *dict:
		r.open(v)
		r.spend(len(v.keys))
		return v.keys
	case string:
		n := utf8.RuneCountInString(v)
		r.take(n * 32)
		all := make([]any, 0, n)
		for _, c := range v {
			all = append(all, string(c))
		}
		return all
	}
	fail("%s has no items", typeName(v))
	return nil
}

// list makes a list, and pays for it.
func (r *run) list(items []any) *list {
	r.take(16 * len(items))
	return &list{items: items}
}

func (r *run) equal(a, b any) bool {
	r.spend(0)
	switch x := a.(type) {
	case undefined:
		_, ok := b.(undefined)
		return ok
	case nil:
		return b == nil
	case string:
		y, ok := b.(string)
		r.spend(len(x))
		return ok && x == y
	case *list:
		y, ok := b.(*list)
		return ok && x.tuple == y.tuple && slices.EqualFunc(x.items, y.items, r.equal)
	case *dict:
		y, ok := b.(*dict)
		if !ok || len(r.open(x).keys) != len(r.open(y).keys) {
			return false
		}
		for i, key := range x.keys {
			if v, ok := r.member(y, key); !ok || !r.equal(x.values[i], v) {
				return false
			}
		}
		return true
	case *namespace:
		return a == b
	}
	if x, ok := toInt(a); ok {
		if y, ok := toInt(b); ok {
			return x == y
		}
	}
	x, _ := toFloat(a)
	y, ok := toFloat(b)
	return ok && x == y
}

// compare orders two values: negative, zero, positive.
func (r *run) compare(a, b any) int {
	r.spend(0)
	missed(a)
	missed(b)
	if x, ok := a.(string); ok {
		if y, ok := b.(string); ok {
			r.spend(min(len(x), len(y)))
			return strings.Compare(x, y)
		}
	}
	if x, ok := a.(*list); ok {
		if y, ok := b.(*list); ok {
			return slices.CompareFunc(x.items, y.items, r.compare)
		}
	}
	x, ok := toFloat(a)
	y, ok2 := toFloat(b)
	if !ok || !ok2 {
		fail("cannot compare %s with %s", typeName(a), typeName(b))
	}
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	case x == y:
		return 0
	}
	return 2 // not a number: neither
}

func (r *run) contains(where, what any) bool {
	switch w := where.(type) {
	case string:
		s, ok := what.(string)
		if !ok {
			missed(what)
			fail("%s cannot be in a text", typeName(what))
		}
		r.spend(len(w))
		return strings.Contains(w, s)
	case *dict:
		_, ok := r.member(w, what)
		return ok
	}
	return slices.ContainsFunc(r.items(where), func(v any) bool { return r.equal(v, what) })
}

// item gives an item of a mapping, a list or a text: value_json['a'].
func (r *run) item(v, key any) any {
	missed(v)
	switch v := v.(type) {
	case *dict:
		if found, ok := r.member(v, key); ok {
			return found
		}
	case *namespace:
		if found, ok := r.member(&v.dict, key); ok {
			return found
		}
	case *list:
		if i, ok := toInt(key); ok {
			if i < 0 {
				i += int64(len(v.items))
			}
			if i >= 0 && i < int64(len(v.items)) {
				return v.items[i]
			}
		}
	case string:
		if i, ok := toInt(key); ok {
			all := r.runes(v)
			if i < 0 {
				i += int64(len(all))
			}
			if i >= 0 && i < int64(len(all)) {
				return string(all[i])
			}
		}
	}
	return undefined{r.text(key)}
}

func (r *run) runes(s string) []rune {
	r.take(4 * len(s))
	return []rune(s)
}

// slice gives a part of a list or a text: value[0:2].
func (r *run) slice(v, from, to, step any) any {
	missed(v)
	by := int64(1)
	if step != nil {
		by, _ = toInt(step)
	}
	if by == 0 {
		fail("a slice needs a whole step that is not 0")
	}
	pick := func(n int) []int {
		bound := func(v any, absent int64) int64 {
			if v == nil {
				return absent
			}
			i, ok := toInt(v)
			if !ok {
				fail("a slice needs whole numbers")
			}
			if i < 0 {
				i += int64(n)
			}
			if by < 0 {
				return min(max(i, -1), int64(n)-1)
			}
			return min(max(i, 0), int64(n))
		}
		begin, end := bound(from, 0), bound(to, int64(n))
		if by < 0 {
			begin, end = bound(from, int64(n)-1), bound(to, -1)
		}
		by = min(max(by, -int64(n)-1), int64(n)+1) // so that adding it cannot overflow
		var all []int
		for i := begin; by > 0 && i < end || by < 0 && i > end; i += by {
			all = append(all, int(i))
		}
		return all
	}
	switch v := v.(type) {
	case string:
		all := r.runes(v)
		r.take(12 * len(all))
		var out []rune
		for _, i := range pick(len(all)) {
			out = append(out, all[i])
		}
		return string(out)
	case *list:
		r.take(24 * len(v.items))
		out := &list{tuple: v.tuple}
		for _, i := range pick(len(v.items)) {
			out.items = append(out.items, v.items[i])
		}
		return out
	}
	fail("%s cannot be cut", typeName(v))
	return nil
}

// arithmetic computes a op b.
func (r *run) arithmetic(op string, a, b any) any {
	missed(a)
	missed(b)
	if op == "+" {
		switch x := a.(type) {
		case string:
			if y, ok := b.(string); ok {
				r.take(len(x) + len(y))
				return x + y
			}
		case *list:
			if y, ok := b.(*list); ok && x.tuple == y.tuple {
				r.take(16 * (len(x.items) + len(y.items)))
				return &list{slices.Concat(x.items, y.items), x.tuple}
			}
		}
	}
	if op == "*" {
		if n, ok := toInt(b); ok {
			if v := r.repeat(a, n); v != nil {
				return v
			}
		}
		if n, ok := toInt(a); ok {
			if v := r.repeat(b, n); v != nil {
				return v
			}
		}
	}
	if format, ok := a.(string); ok && op == "%" {
		args := []any{b}
		if l, ok := b.(*list); ok && l.tuple {
			args = l.items
		}
		return r.printf(format, args)
	}
	if x, ok := toInt(a); ok && op != "/" {
		if y, ok := toInt(b); ok && (op != "**" || y >= 0) {
			return whole(op, x, y)
		}
	}
	x, ok := toFloat(a)
	y, ok2 := toFloat(b)
	if !ok || !ok2 {
		fail("cannot compute %s %s %s", typeName(a), op, typeName(b))
	}
	return real{f: broken(op, x, y)}
}

func (r *run) repeat(v any, n int64) any {
	n = max(n, 0)
	sized := func(size int) {
		if size > 0 && n > int64(maxMemory/size) {
			fail("more than %d bytes of memory", maxMemory)
		}
		r.take(size * int(n))
	}
	switch v := v.(type) {
	case string:
		sized(len(v))
		if v == "" {
			return ""
		}
		return strings.Repeat(v, int(n))
	case *list:
		sized(16 * len(v.items))
		if len(v.items) == 0 {
			return v
		}
		return &list{slices.Repeat(v.items, int(n)), v.tuple}
	}
	return nil
}

// whole computes with whole numbers of 64 bits; Python's have no limit, but a
// device has no use for more.
func whole(op string, x, y int64) int64 {
	overflow := func(bad bool) {
		if bad {
			fail("a number too large")
		}
	}
	switch op {
	case "+":
		z := x + y
		overflow((z > x) != (y > 0))
		return z
	case "-":
		z := x - y
		overflow((z < x) != (y > 0))
		return z
	case "*":
		return product(x, y)
	case "**":
		z := int64(1)
		for ; y > 0 && x != 1 && x != 0; y-- {
			if x == -1 {
				return 1 - 2*(y%2)
			}
			z = product(z, x)
		}
		if x == 0 && y > 0 {
			return 0
		}
		return z
	}
	if y == 0 {
		fail("division by zero")
	}
	overflow(x == math.MinInt64 && y == -1)
	quotient, rest := x/y, x%y
	if rest != 0 && (rest < 0) != (y < 0) { // Python rounds down, Go towards zero
		quotient, rest = quotient-1, rest+y
	}
	if op == "%" {
		return rest
	}
	return quotient
}

func product(x, y int64) int64 {
	z := x * y
	if x != 0 && (z/x != y || x == -1 && y == math.MinInt64) {
		fail("a number too large")
	}
	return z
}

func broken(op string, x, y float64) float64 {
	switch op {
	case "+":
		return x + y
	case "-":
		return x - y
	case "*":
		return x * y
	case "**":
		z := math.Pow(x, y)
		if math.IsNaN(z) && !math.IsNaN(x) && !math.IsNaN(y) || math.IsInf(z, 0) && !math.IsInf(x, 0) && !math.IsInf(y, 0) {
			fail("a number too large or none")
		}
		return z
	}
	if y == 0 {
		fail("division by zero")
	}
	switch op {
	case "/":
		return x / y
	case "//":
		return math.Floor(x / y)
	}
	rest := math.Mod(x, y)
	if rest != 0 && (rest < 0) != (y < 0) {
		rest += y
	}
	return rest
}
