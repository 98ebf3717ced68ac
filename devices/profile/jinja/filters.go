package jinja

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A filter changes a value; params names its arguments, as [parser.arguments]
// reads them.
type filter struct {
	params string
	apply  func(r *run, v any, args []any) any
}

type test struct {
	params string
	holds  func(r *run, v any, args []any) bool
}

type function struct {
	params string
	apply  func(r *run, args []any) any
}

// first makes a function of a filter: its first argument is what is filtered.
func first(name, params string, f func(r *run, v any, args []any) any) function {
	return function{name + " " + params, func(r *run, args []any) any {
		if args[0] == (absent{}) {
			fail("an argument is missing")
		}
		return f(r, args[0], args[1:])
	}}
}

var functions = map[string]function{
	"float":        first("value", "default", toFloatOr),
	"int":          first("value", "default base", toIntOr),
	"bool":         first("value", "default", toBoolOr),
	"is_number":    first("value", "", isNumber),
	"iif":          first("value", "if_true if_false if_none", iif),
	"as_timestamp": first("value", "default", asTimestamp),
	"log":          first("value", "base default", logarithm),
	"sqrt":         first("value", "default", real1(math.Sqrt)),
	"sin":          first("value", "default", real1(math.Sin)),
	"cos":          first("value", "default", real1(math.Cos)),
	"tan":          first("value", "default", real1(math.Tan)),
	"average":      {"...", func(r *run, args []any) any { return average(r, several(r, args), nil) }},
	"max":          {"...", func(r *run, args []any) any { return extreme(r, several(r, args), 1) }},
	"min":          {"...", func(r *run, args []any) any { return extreme(r, several(r, args), -1) }},
	"range":        {"...", numbers},
	"zip":          {"...", zip},
	"slugify":      first("value", "separator", slugify),
}

var filters = map[string]filter{
	"abs":                 {"", absolute},
	"add":                 {"amount default", arithmeticOr("+")},
	"as_timestamp":        {"default", asTimestamp},
	"attr":                {"name", func(r *run, v any, a []any) any { return r.item(v, a[0]) }},
	"average":             {"default", average},
	"base64_decode":       {"encoding", base64Decode},
	"base64_encode":       {"", func(r *run, v any, _ []any) any { return base64.StdEncoding.EncodeToString([]byte(text(r, v))) }},
	"bitwise_and":         {"other", bitwise(func(a, b int64) int64 { return a & b })},
	"bitwise_or":          {"other", bitwise(func(a, b int64) int64 { return a | b })},
	"bitwise_xor":         {"other", bitwise(func(a, b int64) int64 { return a ^ b })},
	"bool":                {"default", toBoolOr},
	"capitalize":          {"", perText(capitalize)},
	"contains":            {"item", func(r *run, v any, a []any) any { return r.contains(v, a[0]) }},
	"cos":                 {"default", real1(math.Cos)},
	"count":               {"", length},
	"d":                   {"default_value boolean", orDefault},
	"default":             {"default_value boolean", orDefault},
	"dictsort":            {"", dictSort},
	"first":               {"", func(r *run, v any, _ []any) any { return end(r.items(v), 0) }},
	"float":               {"default", toFloatOr},
	"format":              {"...", func(r *run, v any, a []any) any { return r.printf(text(r, v), a) }},
	"from_json":           {"default", fromJSONOr},
	"iif":                 {"if_true if_false if_none", iif},
	"int":                 {"default base", toIntOr},
	"is_defined":          {"", func(_ *run, v any, _ []any) any { missed(v); return v }},
	"is_number":           {"", isNumber},
	"items":               {"", pairs},
	"join":                {"d attribute", join},
	"last":                {"", func(r *run, v any, _ []any) any { items := r.items(v); return end(items, len(items)-1) }},
	"length":              {"", length},
	"list":                {"", func(r *run, v any, _ []any) any { return r.list(slices.Clone(r.items(v))) }},
	"log":                 {"base default", logarithm},
	"lower":               {"", perText(strings.ToLower)},
	"map":                 {"...", mapEach},
	"map attribute":       {"attribute default", mapAttribute}, // map(attribute='a')
	"max":                 {"", func(r *run, v any, _ []any) any { return extreme(r, v, 1) }},
	"min":                 {"", func(r *run, v any, _ []any) any { return extreme(r, v, -1) }},
	"multiply":            {"amount default", arithmeticOr("*")},
	"ord":                 {"", ordinal},
	"regex_findall":       {"find ignorecase", regexFindAll},
	"regex_findall_index": {"find index ignorecase", regexFindIndex},
	"regex_match":         {"find ignorecase", regexMatch},
	"regex_replace":       {"find replace ignorecase", regexReplace},
	"regex_search":        {"find ignorecase", regexSearch},
	"reject":              {"...", choose(false, false)},
	"rejectattr":          {"...", choose(false, true)},
	"replace":             {"old new count", replace},
	"reverse":             {"", reverse},
	"round":               {"precision method default", round},
	"select":              {"...", choose(true, false)},
	"selectattr":          {"...", choose(true, true)},
	"sin":                 {"default", real1(math.Sin)},
	"slugify":             {"separator", slugify},
	"sort":                {"reverse case_sensitive attribute", sorted},
	"sqrt":                {"default", real1(math.Sqrt)},
	"string":              {"", func(r *run, v any, _ []any) any { return r.text(v) }},
	"sum":                 {"attribute start", sum},
	"tan":                 {"default", real1(math.Tan)},
	"timestamp_local":     {"default", timestampUTC}, // the same instant; where the house is, is not known here
	"timestamp_utc":       {"default", timestampUTC},
	"title":               {"", perText(title)},
	"to_json":             {"ensure_ascii pretty_print sort_keys", toJSON},
	"tojson":              {"indent", toSafeJSON},
	"trim":                {"chars", trim},
	"truncate":            {"length killwords end leeway", truncate},
	"unique":              {"", unique},
	"upper":               {"", perText(strings.ToUpper)},
}

var tests = map[string]test{
	"defined":   {"", func(_ *run, v any, _ []any) bool { _, not := v.(undefined); return !not }},
	"undefined": {"", func(_ *run, v any, _ []any) bool { _, is := v.(undefined); return is }},
	"none":      {"", func(_ *run, v any, _ []any) bool { return v == nil }},
	"None":      {"", func(_ *run, v any, _ []any) bool { return v == nil }}, // Jinja has none, and many write it
	"true":      {"", func(_ *run, v any, _ []any) bool { return v == true }},
	"True":      {"", func(_ *run, v any, _ []any) bool { return v == true }},
	"false":     {"", func(_ *run, v any, _ []any) bool { return v == false }},
	"False":     {"", func(_ *run, v any, _ []any) bool { return v == false }},
	"boolean":   {"", is[bool]},
	"integer":   {"", is[int64]},
	"float":     {"", is[real]},
	"string":    {"", is[string]},
	"mapping":   {"", is[*dict]},
	"list":      {"", is[*list]},
	"number":    {"", func(_ *run, v any, _ []any) bool { _, ok := toFloat(v); return ok }},
	"is_number": {"", func(r *run, v any, _ []any) bool { return isNumber(r, v, nil) == true }},
	"iterable": {"", func(r *run, v any, _ []any) bool {
		return is[string](r, v, nil) || is[*list](r, v, nil) || is[*dict](r, v, nil)
	}},
	"sequence": {"", func(r *run, v any, _ []any) bool {
		return is[string](r, v, nil) || is[*list](r, v, nil) || is[*dict](r, v, nil)
	}},
	"lower": {"", func(r *run, v any, _ []any) bool {
		s := r.text(v)
		return s == strings.ToLower(s) && s != strings.ToUpper(s)
	}},
	"upper": {"", func(r *run, v any, _ []any) bool {
		s := r.text(v)
		return s == strings.ToUpper(s) && s != strings.ToLower(s)
	}},
	"even":        {"", func(r *run, v any, _ []any) bool { return r.equal(r.arithmetic("%", v, int64(2)), int64(0)) }},
	"odd":         {"", func(r *run, v any, _ []any) bool { return r.equal(r.arithmetic("%", v, int64(2)), int64(1)) }},
	"divisibleby": {"num", func(r *run, v any, a []any) bool { return r.equal(r.arithmetic("%", v, a[0]), int64(0)) }},
	"contains":    {"item", func(r *run, v any, a []any) bool { return r.contains(v, a[0]) }},
	"sameas":      {"other", func(r *run, v any, a []any) bool { return r.equal(v, a[0]) }},
	"match":       {"find ignorecase", func(r *run, v any, a []any) bool { return regexMatch(r, v, a) == true }},
	"search":      {"find ignorecase", func(r *run, v any, a []any) bool { return regexSearch(r, v, a) == true }},
	"in":          compares("in"),
	"eq":          compares("=="),
	"equalto":     compares("=="),
	"ne":          compares("!="),
	"lt":          compares("<"),
	"lessthan":    compares("<"),
	"le":          compares("<="),
	"gt":          compares(">"),
	"greaterthan": compares(">"),
	"ge":          compares(">="),
	"==":          compares("=="), // for select('>', 4)
	"!=":          compares("!="),
	"<":           compares("<"),
	"<=":          compares("<="),
	">":           compares(">"),
	">=":          compares(">="),
}

func is[T any](_ *run, v any, _ []any) bool { _, ok := v.(T); return ok }

func compares(op string) test {
	return test{"other", func(r *run, v any, a []any) bool { return comparisons[op](r, v, a[0]) }}
}

func given(v any) bool { return v != absent{} }

// text is a value that has to be a text.
func text(r *run, v any) string {
	missed(v)
	s, ok := v.(string)
	if !ok {
		fail("%s instead of a text", typeName(v))
	}
	r.take(len(s)) // for what is made of it
	return s
}

func textOr(r *run, v any, otherwise string) string {
	if !given(v) {
		return otherwise
	}
	return text(r, v)
}

func intOr(v any, otherwise int64) int64 {
	if !given(v) {
		return otherwise
	}
	n, ok := toInt(v)
	if !ok {
		missed(v)
		fail("%s instead of a whole number", typeName(v))
	}
	return n
}

func end(items []any, i int) any {
	if i < 0 || i >= len(items) {
		return undefined{"an item of an empty list"}
	}
	return items[i]
}

// perText makes a filter of a function on texts; as in Jinja, what is none is
// made one.
func perText(f func(string) string) func(*run, any, []any) any {
	return func(r *run, v any, _ []any) any {
		s := r.text(v)
		r.take(2 * len(s))
		return f(s)
	}
}

func capitalize(s string) string {
	c, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToUpper(c)) + strings.ToLower(s[n:])
}

func title(s string) string {
	inWord := false
	return strings.Map(func(c rune) rune {
		was := inWord
		inWord = !unicode.IsSpace(c) && !strings.ContainsRune("-({[<", c)
		if was {
			return unicode.ToLower(c)
		}
		return unicode.ToUpper(c)
	}, s)
}

// fallback is what stands for a value that cannot be converted.
func fallback(v, otherwise any, what string) any {
	if given(otherwise) {
		return otherwise
	}
	missed(v)
	if s, ok := v.(string); ok {
		fail("%.40q is not %s", s, what)
	}
	fail("%s is not %s", typeName(v), what)
	return nil
}

func toFloatOr(_ *run, v any, a []any) any {
	if f, ok := v.(real); ok {
		return f // with the digits it came with
	}
	if f, ok := toFloat(v); ok {
		return real{f: f}
	}
	if s, ok := v.(string); ok {
		if f, ok := parseFloat(s); ok {
			return real{f: f}
		}
	}
	return fallback(v, a[0], "a number")
}

func toIntOr(_ *run, v any, a []any) any {
	if n, ok := toInt(v); ok {
		return n
	}
	if s, ok := v.(string); ok {
		if base := intOr(a[1], 10); base >= 2 && base <= 36 {
			if n, ok := parseInt(s, int(base)); ok {
				return n
			}
		}
		if f, ok := parseFloat(s); ok {
			v = real{f: f}
		}
	}
	if f, ok := v.(real); ok && math.Abs(f.f) < 1<<63 {
		return int64(f.f)
	}
	return fallback(v, a[0], "a whole number")
}

func toBoolOr(_ *run, v any, a []any) any {
	switch v := v.(type) {
	case bool:
		return v
	case int64, real:
		return truth(v)
	case string:
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "1", "true", "yes", "on", "enable":
			return true
		case "0", "false", "no", "off", "disable":
			return false
		}
	}
	return fallback(v, a[0], "a truth value")
}

func isNumber(_ *run, v any, _ []any) any {
	f, ok := toFloat(v)
	if s, is := v.(string); is {
		f, ok = parseFloat(s)
	}
	return ok && !math.IsNaN(f) && !math.IsInf(f, 0)
}

func iif(_ *run, v any, a []any) any {
	pick := func(i int, otherwise any) any {
		if i < len(a) && given(a[i]) {
			return a[i]
		}
		return otherwise
	}
	switch {
	case v == nil && given(a[2]):
		return a[2]
	case truth(v):
		return pick(0, true)
	}
	return pick(1, false)
}

func orDefault(_ *run, v any, a []any) any {
	_, not := v.(undefined)
	if not || given(a[1]) && truth(a[1]) && !truth(v) {
		if !given(a[0]) {
			return ""
		}
		return a[0]
	}
	return v
}

func absolute(r *run, v any, _ []any) any {
	if r.compare(v, int64(0)) < 0 {
		return r.arithmetic("*", v, int64(-1))
	}
	return v
}

func arithmeticOr(op string) func(*run, any, []any) any {
	return func(r *run, v any, a []any) any {
		f := toFloatOr(r, v, a[1:])
		if _, ok := f.(real); !ok {
			return f
		}
		return r.arithmetic(op, f, a[0])
	}
}

func real1(f func(float64) float64) func(*run, any, []any) any {
	return func(r *run, v any, a []any) any {
		x, ok := toFloatOr(r, v, a).(real)
		if y := f(x.f); ok && !math.IsNaN(y) {
			return real{f: y}
		}
		return fallback(v, a[0], "a number for that")
	}
}

func logarithm(r *run, v any, a []any) any {
	x, ok := toFloatOr(r, v, a[1:]).(real)
	base := math.E
	if given(a[0]) {
		base, _ = toFloat(a[0])
	}
	y := math.Log(x.f) / math.Log(base)
	if !ok || math.IsNaN(y) || math.IsInf(y, 0) {
		return fallback(v, a[1], "a number for a logarithm")
	}
	return real{f: y}
}

func bitwise(f func(a, b int64) int64) func(*run, any, []any) any {
	return func(_ *run, v any, a []any) any { return f(intOr(v, 0), intOr(a[0], 0)) }
}

// round rounds as Home Assistant's does: to a whole number by itself.
func round(r *run, v any, a []any) any {
	f, ok := toFloatOr(r, v, a[2:]).(real)
	if !ok {
		return a[2]
	}
	precision := intOr(a[0], 0)
	if precision < -15 || precision > 15 {
		fail("a precision of %d", precision)
	}
	shift := math.Pow(10, float64(precision))
	x := f.f
	switch textOr(r, a[1], "common") {
	case "ceil":
		x = math.Ceil(x*shift) / shift
	case "floor":
		x = math.Floor(x*shift) / shift
	case "half":
		x = math.RoundToEven(x*2) / 2
	default:
		if precision < 0 {
			x = math.RoundToEven(x*shift) / shift
		} else { // through the digits, because x*shift is itself rounded
			x, _ = strconv.ParseFloat(strconv.FormatFloat(x, 'f', int(precision), 64), 64)
		}
	}
	if precision == 0 {
		return toIntOr(r, real{f: x}, []any{a[2], absent{}})
	}
	return real{f: x}
}

func length(r *run, v any, _ []any) any {
	switch v := v.(type) {
	case string:
		r.spend(len(v))
		return int64(utf8.RuneCountInString(v))
	case undefined:
		return int64(0)
	}
	return int64(len(r.items(v)))
}

func replace(r *run, v any, a []any) any {
	s, from, to := r.text(v), r.text(a[0]), r.text(a[1])
	n := int(min(max(intOr(a[2], -1), -1), maxMemory))
	found := strings.Count(s, from)
	r.spend(len(s))
	if n < 0 || found < n {
		n = found
	}
	if len(to) > 0 && n > maxMemory/len(to) {
		fail("more than %d bytes of memory", maxMemory)
	}
	r.take(len(s) + n*len(to))
	return strings.Replace(s, from, to, n)
}

func trim(r *run, v any, a []any) any {
	s := r.text(v)
	r.take(len(s))
	if given(a[0]) && a[0] != nil {
		return strings.Trim(s, text(r, a[0]))
	}
	return strings.TrimSpace(s)
}

func truncate(r *run, v any, a []any) any {
	all := r.runes(r.text(v))
	size, leeway := intOr(a[0], 255), intOr(a[3], 5)
	tail := r.runes(textOr(r, a[2], "..."))
	if size < int64(len(tail)) || leeway < 0 {
		fail("truncate to %d", size)
	}
	if int64(len(all)) <= size+leeway || size+leeway < 0 {
		return string(all)
	}
	cut := all[:size-int64(len(tail))]
	if !given(a[1]) || !truth(a[1]) {
		if i := strings.LastIndex(string(cut), " "); i >= 0 {
			return string(cut)[:i] + string(tail)
		}
	}
	return string(cut) + string(tail)
}

func join(r *run, v any, a []any) any {
	separator := ""
	if given(a[0]) {
		separator = r.text(a[0])
	}
	var b strings.Builder
	for i, item := range r.items(v) {
		if given(a[1]) {
			item = r.item(item, a[1])
		}
		s := r.text(item)
		r.take(len(s) + len(separator))
		if i > 0 {
			b.WriteString(separator)
		}
		b.WriteString(s)
	}
	return b.String()
}

func reverse(r *run, v any, _ []any) any {
	if s, ok := v.(string); ok {
		all := r.runes(s)
		slices.Reverse(all)
		return string(all)
	}
	l := r.list(slices.Clone(r.items(v)))
	slices.Reverse(l.items)
	return l
}

func sorted(r *run, v any, a []any) any {
	l := r.list(slices.Clone(r.items(v)))
	key := func(v any) any {
		if given(a[2]) && a[2] != nil {
			v = r.item(v, a[2])
		}
		if s, ok := v.(string); ok && !(given(a[1]) && truth(a[1])) {
			r.take(len(s))
			return strings.ToLower(s)
		}
		return v
	}
	slices.SortStableFunc(l.items, func(x, y any) int {
		c := r.compare(key(x), key(y))
		if given(a[0]) && truth(a[0]) {
			return -c
		}
		return c
	})
	return l
}

func dictSort(r *run, v any, _ []any) any {
	return sorted(r, pairs(r, v, nil), []any{absent{}, absent{}, absent{}})
}

func unique(r *run, v any, _ []any) any {
	l := r.list(nil)
	for _, item := range r.items(v) {
		if !r.contains(l, item) {
			r.take(16)
			l.items = append(l.items, item)
		}
	}
	return l
}

// pairs are the keys and values of a mapping.
func pairs(r *run, v any, _ []any) any {
	d, ok := v.(*dict)
	if !ok {
		missed(v)
		fail("%s has no keys", typeName(v))
	}
	r.open(d)
	r.take(80 * len(d.keys))
	l := &list{}
	for i, key := range d.keys {
		l.items = append(l.items, &list{[]any{key, d.values[i]}, true})
	}
	return l
}

func sum(r *run, v any, a []any) any {
	var total any = int64(0)
	if given(a[1]) {
		total = a[1]
	}
	for _, item := range r.items(v) {
		if given(a[0]) {
			item = r.item(item, a[0])
		}
		total = r.arithmetic("+", total, item)
	}
	return total
}

// several are the arguments, or the items of the only one.
func several(r *run, args []any) any {
	if len(args) == 1 {
		return args[0]
	}
	return r.list(args)
}

func average(r *run, v any, _ []any) any {
	return r.arithmetic("/", sum(r, v, []any{absent{}, absent{}}), int64(len(r.items(v))))
}

func extreme(r *run, v any, sign int) any {
	items := r.items(v)
	best := end(items, 0)
	for _, item := range items {
		if r.compare(item, best) == sign {
			best = item
		}
	}
	return best
}

func numbers(r *run, args []any) any {
	from, to, step := int64(0), int64(0), int64(1)
	switch len(args) {
	case 1:
		to = intOr(args[0], 0)
	case 2, 3:
		from, to = intOr(args[0], 0), intOr(args[1], 0)
		if len(args) == 3 {
			step = intOr(args[2], 1)
		}
	default:
		fail("range with %d arguments", len(args))
	}
	if step == 0 {
		fail("range with the step 0")
	}
	count := math.Ceil((float64(to) - float64(from)) / float64(step))
	if count > maxSteps {
		fail("more than %d steps", maxSteps)
	}
	l := r.list(make([]any, max(int(count), 0)))
	for i := range l.items {
		l.items[i] = from + int64(i)*step
	}
	return l
}

func zip(r *run, args []any) any {
	l := r.list(nil)
	for i := 0; len(args) > 0; i++ {
		row := r.list(nil)
		row.tuple = true
		for _, arg := range args {
			items := r.items(arg)
			if i >= len(items) {
				return l
			}
			r.take(16)
			row.items = append(row.items, items[i])
		}
		l.items = append(l.items, row)
	}
	return l
}

func mapAttribute(r *run, v any, a []any) any {
	l := r.list(nil)
	for _, item := range r.items(v) {
		r.take(16)
		l.items = append(l.items, orDefaultIfGiven(r.item(item, a[0]), a[1]))
	}
	return l
}

func orDefaultIfGiven(v, otherwise any) any {
	if _, not := v.(undefined); not && given(otherwise) {
		return otherwise
	}
	return v
}

// mapEach is map('int').
func mapEach(r *run, v any, a []any) any {
	l := r.list(nil)
	if len(a) == 0 {
		fail("map without a filter")
	}
	name := text(r, a[0])
	f, ok := r.filters[name]
	if !ok {
		fail("the filter %.40q is not known", name)
	}
	args := fill(a[1:], f.params)
	for _, item := range r.items(v) {
		r.take(16)
		l.items = append(l.items, f.apply(r, item, args))
	}
	return l
}

// fill gives arguments that were collected by map and select their places.
func fill(args []any, params string) []any {
	names := strings.Fields(params)
	if len(names) > 0 && names[len(names)-1] == "..." {
		return args
	}
	if len(args) > len(names) {
		fail("too many arguments")
	}
	all := make([]any, len(names), len(names)+1)
	for i := range all {
		if all[i] = (absent{}); i < len(args) {
			all[i] = args[i]
		}
	}
	return append(all, absent{}) // tests have at least one
}

// choose is select, reject, and with attr selectattr and rejectattr.
func choose(want, attr bool) func(*run, any, []any) any {
	return func(r *run, v any, a []any) any {
		var key any
		if attr {
			if len(a) == 0 {
				fail("an attribute is missing")
			}
			key, a = a[0], a[1:]
		}
		holds := func(v any) bool { return truth(v) }
		if len(a) > 0 {
			name := text(r, a[0])
			t, ok := r.tests[name]
			if !ok {
				fail("the test %.40q is not known", name)
			}
			args := fill(a[1:], t.params)
			holds = func(v any) bool { return t.holds(r, v, args) }
		}
		l := r.list(nil)
		for _, item := range r.items(v) {
			of := item
			if attr {
				of = r.item(item, key)
			}
			if holds(of) == want {
				r.take(16)
				l.items = append(l.items, item)
			}
		}
		return l
	}
}

func toSafeJSON(r *run, v any, _ []any) any {
	missed(v)
	w := writer{run: r, item: (*writer).json, comma: ", ", colon: ": ", sorted: true, html: true}
	w.json(v)
	r.take(w.b.Len())
	return strings.ReplaceAll(w.b.String(), "'", `\u0027`)
}

func toJSON(r *run, v any, a []any) any {
	missed(v)
	w := writer{run: r, item: (*writer).json, comma: ",", colon: ":", sorted: given(a[2]) && truth(a[2])}
	w.json(v)
	return w.b.String()
}

func fromJSONOr(r *run, v any, a []any) any {
	s := text(r, v)
	if given(a[0]) {
		var out any
		if err := attempt(func() { out = r.fromJSON(s) }); err != nil {
			return a[0]
		}
		return out
	}
	return r.fromJSON(s)
}

// attempt runs what may fail. The steps and the memory stay spent.
func attempt(f func()) (err error) {
	defer recoverFault(&err, "")
	f()
	return nil
}

func base64Decode(r *run, v any, _ []any) any {
	b, err := base64.StdEncoding.DecodeString(text(r, v))
	if err != nil || !utf8.Valid(b) {
		fail("not a text in base64")
	}
	return string(b)
}

func ordinal(r *run, v any, _ []any) any {
	c, n := utf8.DecodeRuneInString(text(r, v))
	if n == 0 || n < len(v.(string)) {
		fail("not one character")
	}
	return int64(c)
}

func slugify(r *run, v any, a []any) any {
	separator := textOr(r, a[0], "_")
	s := r.text(v)
	r.take(2*len(s) + len(separator)*len(s))
	words := strings.FieldsFunc(strings.ToLower(s), func(c rune) bool { return c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c) })
	return strings.Join(words, separator)
}

// asTimestamp reads a time (ISO 8601), or takes the seconds it is given.
func asTimestamp(r *run, v any, a []any) any {
	if f, ok := toFloat(v); ok {
		return real{f: f}
	}
	if s, ok := v.(string); ok {
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999-0700", "2006-01-02 15:04:05.999999999Z07:00"} {
			if t, err := time.Parse(layout, s); err == nil {
				return real{f: float64(t.UnixMicro()) / 1e6}
			}
		}
	}
	return fallback(v, a[0], "a time with its zone")
}

func timestampUTC(r *run, v any, a []any) any {
	f, ok := toFloatOr(r, v, a).(real)
	if !ok || math.Abs(f.f) > 1e11 || math.IsNaN(f.f) {
		return fallback(v, a[0], "a time in seconds")
	}
	return time.UnixMicro(int64(math.Round(f.f * 1e6))).UTC().Format("2006-01-02T15:04:05.999999-07:00")
}
