package jinja

import (
	"slices"
	"strings"
)

// An expression computes a value, a statement writes or sets something.
type (
	expression func(*run) any
	statement  func(*run) flow
)

// flow says how to go on after a statement.
type flow uint8

const (
	onwards flow = iota
	breakLoop
	continueLoop
)

type parser struct {
	source  string
	tokens  []token
	at      int
	nesting int
	loops   int // that lie around
	asked   int // how often the name loop stands in the source so far
}

func (p *parser) peek() token { return p.tokens[p.at] }

func (p *parser) next() token {
	t := p.tokens[p.at]
	if t.kind != lastToken {
		p.at++
	}
	return t
}

// is reports whether an operator or a word comes next.
func (p *parser) is(text string) bool {
	t := p.peek()
	return t.text == text && (t.kind == operatorToken || t.kind == nameToken)
}

func (p *parser) skip(text string) bool {
	if !p.is(text) {
		return false
	}
	p.at++
	return true
}

func (p *parser) expect(text string) {
	if !p.skip(text) {
		fail("%q instead of %q", p.describe(), text)
	}
}

func (p *parser) describe() string {
	t := p.peek()
	if t.kind == lastToken {
		return "end"
	}
	return t.text[:min(len(t.text), 40)]
}

func (p *parser) name() string {
	t := p.next()
	if t.kind != nameToken {
		fail("%.40q instead of a name", t.text)
	}
	return t.text
}

// enter bounds how deep expressions and blocks lie in each other; call what it
// returns when leaving.
func (p *parser) enter() func() {
	if p.nesting++; p.nesting > maxNesting {
		fail("nested deeper than %d", maxNesting)
	}
	return func() { p.nesting-- }
}

// block reads until a tag with one of the words, which is left to be read.
func (p *parser) block(ends ...string) []statement {
	defer p.enter()()
	var body []statement
	for {
		t := p.peek()
		switch {
		case t.kind == lastToken:
			if len(ends) > 0 {
				fail("no %s", ends[len(ends)-1])
			}
			return body
		case t.kind == textToken:
			p.at++
			body = append(body, func(r *run) flow { r.write(t.text); return onwards })
		case t.text == "{{":
			p.at++
			value := p.tuple()
			p.end()
			body = append(body, func(r *run) flow { r.write(r.text(value(r))); return onwards })
		default:
			word := p.tokens[p.at+1].text
			if slices.Contains(ends, word) {
				return body
			}
			p.at++
			body = append(body, p.statement())
		}
	}
}

func (p *parser) end() {
	if p.peek().kind != endToken {
		fail("unexpected %q", p.describe())
	}
	p.at++
}

// endBlock reads the tag that ends a block.
func (p *parser) endBlock(word string) {
	p.at++ // {%
	p.expect(word)
	p.end()
}

func (p *parser) statement() statement {
	switch word := p.name(); word {
	case "if":
		return p.ifStatement()
	case "for":
		return p.forStatement()
	case "set":
		return p.setStatement()
	case "with":
		return p.withStatement()
	case "do":
		value := p.tuple()
		p.end()
		return func(r *run) flow { value(r); return onwards }
	case "break", "continue":
		if p.loops == 0 {
			fail("%s outside of a loop", word)
		}
		p.end()
		how := map[string]flow{"break": breakLoop, "continue": continueLoop}[word]
		return func(*run) flow { return how }
	default:
		fail("the tag %.40q is not known", word)
		return nil
	}
}

func (p *parser) ifStatement() statement {
	type branch struct {
		condition expression
		body      []statement
	}
	var branches []branch
	for {
		condition := p.tuple()
		p.end()
		branches = append(branches, branch{condition, p.block("elif", "else", "endif")})
		p.at++ // {%
		if p.skip("elif") {
			continue
		}
		if p.skip("else") {
			p.end()
			branches = append(branches, branch{func(*run) any { return true }, p.block("endif")})
			p.at++
		}
		p.expect("endif")
		p.end()
		break
	}
	return func(r *run) flow {
		for _, b := range branches {
			if truth(b.condition(r)) {
				return r.block(b.body)
			}
		}
		return onwards
	}
}

func (r *run) block(body []statement) flow {
	for _, s := range body {
		r.spend(0)
		if how := s(r); how != onwards {
			return how
		}
	}
	return onwards
}

// targets reads the names to the left of in or =.
func (p *parser) targets() []string {
	bracket := p.skip("(")
	names := []string{p.name()}
	for p.skip(",") {
		if p.peek().kind != nameToken || p.is("in") {
			break
		}
		names = append(names, p.name())
	}
	if bracket {
		p.expect(")")
	}
	return names
}

func (r *run) assign(names []string, v any) {
	if len(names) == 1 {
		r.set(names[0], v)
		return
	}
	items := r.items(v)
	if len(items) != len(names) {
		fail("%d names for %d values", len(names), len(items))
	}
	for i, name := range names {
		r.set(name, items[i])
	}
}

func (p *parser) forStatement() statement {
	names := p.targets()
	p.expect("in")
	over := p.or()
	var only expression
	if p.skip("if") {
		only = p.expression()
	}
	if p.is("recursive") {
		fail("recursive loops are not known")
	}
	p.end()
	p.loops++
	before := p.asked
	body := p.block("else", "endfor")
	asked := p.asked > before
	p.loops--
	var otherwise []statement
	if p.at++; p.skip("else") {
		p.end()
		otherwise = p.block("endfor")
		p.at++
	}
	p.expect("endfor")
	p.end()
	return func(r *run) flow {
		items := r.items(over(r))
		mark, frame := len(r.vars), r.frame
		defer func() { r.frame = frame; r.vars = r.vars[:mark] }()
		if only != nil {
			var kept []any
			for _, item := range items {
				r.frame, r.vars = mark, r.vars[:mark]
				r.assign(names, item)
				if truth(only(r)) {
					r.take(16)
					kept = append(kept, item)
				}
			}
			items = kept
		}
		for i, item := range items {
			r.frame, r.vars = mark, r.vars[:mark]
			r.assign(names, item)
			if asked {
				r.set("loop", r.loop(i, items))
			}
			if r.block(body) == breakLoop {
				break
			}
		}
		r.frame, r.vars = frame, r.vars[:mark]
		if len(items) == 0 {
			return r.block(otherwise)
		}
		return onwards
	}
}

func (r *run) loop(i int, items []any) *dict {
	r.take(256)
	d := &dict{}
	d.put("index", int64(i+1))
	d.put("index0", int64(i))
	d.put("revindex", int64(len(items)-i))
	d.put("revindex0", int64(len(items)-i-1))
	d.put("first", i == 0)
	d.put("last", i == len(items)-1)
	d.put("length", int64(len(items)))
	if i > 0 {
		d.put("previtem", items[i-1])
	}
	if i+1 < len(items) {
		d.put("nextitem", items[i+1])
	}
	return d
}

func (p *parser) setStatement() statement {
	first := p.peek().text
	if p.tokens[p.at+1] == (token{operatorToken, "."}) {
		p.at += 2
		member := p.name()
		p.expect("=")
		value := p.tuple()
		p.end()
		return func(r *run) flow {
			n, ok := r.lookup(first).(*namespace)
			if !ok {
				fail("%.40q is not a namespace", first)
			}
			r.take(64)
			n.put(member, value(r))
			return onwards
		}
	}
	names := p.targets()
	if p.skip("=") {
		value := p.tuple()
		p.end()
		return func(r *run) flow { r.assign(names, value(r)); return onwards }
	}
	p.end() // a block, whose output is the value
	body := p.block("endset")
	p.endBlock("endset")
	return func(r *run) flow {
		outer := r.out
		r.out = nil
		how := r.block(body)
		r.take(len(r.out))
		text := string(r.out)
		r.out = outer
		r.assign(names[:1], text)
		return how
	}
}

func (p *parser) withStatement() statement {
	var names []string
	var values []expression
	for p.peek().kind == nameToken {
		names = append(names, p.name())
		p.expect("=")
		values = append(values, p.expression())
		if !p.skip(",") {
			break
		}
	}
	p.end()
	body := p.block("endwith")
	p.endBlock("endwith")
	return func(r *run) flow {
		mark, frame := len(r.vars), r.frame
		defer func() { r.frame = frame; r.vars = r.vars[:mark] }()
		all := make([]any, len(values))
		for i, v := range values {
			all[i] = v(r)
		}
		r.frame = mark
		for i, name := range names {
			r.set(name, all[i])
		}
		return r.block(body)
	}
}

// tuple reads an expression, or several with commas between them.
func (p *parser) tuple() expression {
	first := p.expression()
	if !p.is(",") {
		return first
	}
	items := []expression{first}
	for p.skip(",") {
		if p.peek().kind == endToken || p.is(")") {
			break
		}
		items = append(items, p.expression())
	}
	return many(items, true)
}

func many(items []expression, tuple bool) expression {
	return func(r *run) any {
		r.take(16 * len(items))
		l := &list{items: make([]any, len(items)), tuple: tuple}
		for i, item := range items {
			l.items[i] = item(r)
		}
		return l
	}
}

func (p *parser) expression() expression {
	defer p.enter()()
	value := p.or()
	for p.skip("if") {
		yes, condition := value, p.or()
		no := func(*run) any { return undefined{"the value of an if without else"} }
		if p.skip("else") {
			no = p.expression()
		}
		value = func(r *run) any {
			r.spend(0)
			if truth(condition(r)) {
				return yes(r)
			}
			return no(r)
		}
	}
	return value
}

func (p *parser) or() expression {
	left := p.and()
	for p.skip("or") {
		a, b := left, p.and()
		left = func(r *run) any {
			r.spend(0)
			if v := a(r); truth(v) {
				return v
			}
			return b(r)
		}
	}
	return left
}

func (p *parser) and() expression {
	left := p.not()
	for p.skip("and") {
		a, b := left, p.not()
		left = func(r *run) any {
			r.spend(0)
			if v := a(r); !truth(v) {
				return v
			}
			return b(r)
		}
	}
	return left
}

func (p *parser) not() expression {
	if !p.skip("not") {
		return p.comparison()
	}
	defer p.enter()()
	v := p.not()
	return func(r *run) any { return !truth(v(r)) }
}

var comparisons = map[string]func(r *run, a, b any) bool{
	"==":     func(r *run, a, b any) bool { return r.equal(a, b) },
	"!=":     func(r *run, a, b any) bool { return !r.equal(a, b) },
	"<":      func(r *run, a, b any) bool { return r.compare(a, b) == -1 },
	"<=":     func(r *run, a, b any) bool { return r.compare(a, b) <= 0 },
	">":      func(r *run, a, b any) bool { return r.compare(a, b) == 1 },
	">=":     func(r *run, a, b any) bool { c := r.compare(a, b); return c == 0 || c == 1 },
	"in":     func(r *run, a, b any) bool { return r.contains(b, a) },
	"not in": func(r *run, a, b any) bool { return !r.contains(b, a) },
}

func (p *parser) comparison() expression {
	type step struct {
		holds func(r *run, a, b any) bool
		right expression
	}
	first := p.sum()
	var steps []step
	for {
		op := p.peek().text
		if p.is("not") && p.tokens[p.at+1] == (token{nameToken, "in"}) {
			p.at++
			op = "not in"
		}
		holds := comparisons[op]
		if holds == nil || p.peek().kind != operatorToken && p.peek().kind != nameToken {
			break
		}
		p.at++
		steps = append(steps, step{holds, p.sum()})
	}
	if steps == nil {
		return first
	}
	return func(r *run) any {
		left := first(r)
		for _, s := range steps { // 1 < x < 3
			right := s.right(r)
			if !s.holds(r, left, right) {
				return false
			}
			left = right
		}
		return true
	}
}

func (p *parser) sum() expression {
	return p.binary(p.concatenation, "+", "-")
}

func (p *parser) concatenation() expression {
	left := p.product()
	for p.skip("~") {
		a, b := left, p.product()
		left = func(r *run) any {
			x, y := r.text(a(r)), r.text(b(r))
			r.take(len(x) + len(y))
			return x + y
		}
	}
	return left
}

func (p *parser) product() expression {
	return p.binary(p.power, "*", "/", "//", "%")
}

func (p *parser) power() expression {
	return p.binary(func() expression { return p.unary(true) }, "**")
}

func (p *parser) binary(operand func() expression, operators ...string) expression {
	left := operand()
	for p.peek().kind == operatorToken && slices.Contains(operators, p.peek().text) {
		op := p.next().text
		a, b := left, operand()
		left = func(r *run) any {
			r.spend(0)
			x := a(r)
			return r.arithmetic(op, x, b(r))
		}
	}
	return left
}

func (p *parser) unary(filtered bool) expression {
	defer p.enter()()
	var value expression
	switch {
	case p.skip("-"):
		v := p.unary(false)
		value = func(r *run) any { return r.arithmetic("*", v(r), int64(-1)) }
	case p.skip("+"):
		v := p.unary(false)
		value = func(r *run) any { return r.arithmetic("+", v(r), int64(0)) }
	default:
		value = p.primary()
	}
	value = p.postfix(value)
	if filtered {
		value = p.filters(value)
	}
	return value
}

func constant(v any) expression {
	return func(r *run) any { r.spend(0); return v }
}

func (p *parser) primary() expression {
	t := p.next()
	switch t.kind {
	case stringToken:
		text := t.text
		for p.peek().kind == stringToken {
			text += p.next().text
		}
		return constant(text)
	case numberToken:
		return constant(literal(t.text))
	case nameToken:
		return p.named(t.text)
	case operatorToken:
		switch t.text {
		case "(":
			if p.skip(")") {
				return many(nil, true)
			}
			v := p.tuple()
			p.expect(")")
			return v
		case "[":
			return many(p.until("]"), false)
		case "{":
			return p.mapping()
		}
	}
	fail("unexpected %.40q", t.text)
	return nil
}

func literal(text string) any {
	if len(text) > 2 && text[0] == '0' && text[1] > '9' {
		return wholeNumber(text, map[byte]int{'x': 16, 'o': 8, 'b': 2}[text[1]|0x20])
	}
	if strings.ContainsAny(text, ".eE") {
		f, _ := parseFloat(text)
		return real{f: f}
	}
	return wholeNumber(text, 10)
}

func (p *parser) named(name string) expression {
	switch name {
	case "true", "True":
		return constant(true)
	case "false", "False":
		return constant(false)
	case "none", "None":
		return constant(nil)
	}
	if p.is("(") {
		return p.call(name)
	}
	if name == "dict" && p.skip(".") {
		// dict.from_keys is in no manual: Zigbee2MQTT writes it, and Python takes
		// it for the type dict['from_keys'], which is called with the pairs.
		p.expect("from_keys")
		pairs := p.arguments("from_keys", "pairs")
		return func(r *run) any { return r.fromPairs(pairs(r)[0]) }
	}
	if name == "this" || name == "states" {
		return former(name)
	}
	if name == "loop" {
		p.asked++
	}
	return func(r *run) any { r.spend(0); return r.lookup(name) }
}

func (r *run) fromPairs(v any) any {
	d := &dict{}
	for _, pair := range r.items(v) {
		p := r.items(pair)
		if len(p) != 2 {
			fail("not a pair")
		}
		r.take(64)
		d.put(p[0], p[1])
	}
	return d
}

// former stands for what was before the message.
func former(name string) expression {
	return func(*run) any { missed(undefined{name}); return nil }
}

// until reads expressions with commas between them.
func (p *parser) until(end string) []expression {
	var all []expression
	for !p.skip(end) {
		if len(all) > 0 {
			p.expect(",")
			if p.skip(end) {
				break
			}
		}
		all = append(all, p.expression())
	}
	return all
}

func (p *parser) mapping() expression {
	var keys, values []expression
	for !p.skip("}") {
		if len(keys) > 0 {
			p.expect(",")
			if p.skip("}") {
				break
			}
		}
		keys = append(keys, p.expression())
		p.expect(":")
		values = append(values, p.expression())
	}
	return func(r *run) any {
		r.take(64 * len(keys))
		d := &dict{}
		for i, key := range keys {
			d.put(key(r), values[i](r))
		}
		return d
	}
}

func (p *parser) postfix(value expression) expression {
	for {
		of := value
		switch {
		case p.skip("."):
			t := p.next()
			if t.kind == numberToken {
				key := literal(t.text)
				value = func(r *run) any { return r.item(of(r), key) }
				continue
			}
			if t.kind != nameToken {
				fail("%.40q instead of a name", t.text)
			}
			if p.skip("(") {
				value = p.method(of, t.text)
				continue
			}
			value = func(r *run) any { r.spend(0); return r.item(of(r), t.text) }
		case p.skip("["):
			value = p.subscript(of)
		case p.is("("):
			fail("this cannot be called")
		default:
			return value
		}
	}
}

func (p *parser) subscript(of expression) expression {
	parts := []expression{nil}
	for !p.skip("]") {
		if p.skip(":") {
			parts = append(parts, nil)
			continue
		}
		if len(parts) > 3 || parts[len(parts)-1] != nil {
			fail("unexpected %q", p.describe())
		}
		parts[len(parts)-1] = p.expression()
	}
	if len(parts) == 1 && parts[0] != nil {
		return func(r *run) any {
			r.spend(0)
			v := of(r)
			return r.item(v, parts[0](r))
		}
	}
	if len(parts) < 2 || len(parts) > 3 {
		fail("an empty subscript")
	}
	return func(r *run) any {
		v := of(r)
		var bounds [3]any
		for i, part := range parts {
			if part != nil {
				bounds[i] = part(r)
			}
		}
		return r.slice(v, bounds[0], bounds[1], bounds[2])
	}
}

// filters reads what follows a value: filters and tests.
func (p *parser) filters(value expression) expression {
	for {
		of := value
		switch {
		case p.skip("|"):
			name := p.name()
			if name == "map" && p.is("(") && p.tokens[p.at+1] == (token{nameToken, "attribute"}) {
				name = "map attribute"
			}
			f, ok := filters[name]
			if !ok {
				fail("the filter %.40q is not known", name)
			}
			args := p.arguments(name, f.params)
			value = func(r *run) any {
				r.spend(0)
				v := of(r)
				return f.apply(r, v, args(r))
			}
		case p.skip("is"):
			value = p.test(of)
		default:
			return value
		}
	}
}

func (p *parser) test(of expression) expression {
	negated := p.skip("not")
	t := p.next()
	f, ok := tests[t.text]
	if !ok || t.kind != nameToken && t.kind != operatorToken {
		fail("the test %.40q is not known", t.text)
	}
	args := func(*run) []any { return fill(nil, f.params) }
	if p.is("(") {
		args = p.arguments(t.text, f.params)
	} else if next := p.peek(); f.params != "" && next.kind != endToken && !p.is(")") && !p.is("and") && !p.is("or") && !p.is("else") {
		arg := p.postfix(p.primary()) // x is divisibleby 3
		args = func(r *run) []any { return fill([]any{arg(r)}, f.params) }
	}
	return func(r *run) any {
		r.spend(0)
		v := of(r)
		return f.holds(r, v, args(r)) != negated
	}
}

// absent is an argument that was not given.
type absent struct{}

// arguments reads those of a filter, a test or a function, by their names.
// Where params ends with ..., more may follow.
func (p *parser) arguments(name, params string) func(*run) []any {
	names := strings.Fields(params)
	rest := len(names) > 0 && names[len(names)-1] == "..."
	if rest {
		names = names[:len(names)-1]
	}
	given := make([]expression, len(names))
	if p.skip("(") {
		for i := 0; !p.skip(")"); i++ {
			if i > 0 {
				p.expect(",")
				if p.skip(")") {
					break
				}
			}
			at := i
			if p.peek().kind == nameToken && p.tokens[p.at+1] == (token{operatorToken, "="}) {
				key := p.name()
				if at = slices.Index(names, key); at < 0 {
					fail("%.40s has no argument %.40s", name, key)
				}
				p.at++
			}
			switch {
			case at < len(given):
				given[at] = p.expression()
			case rest:
				given = append(given, p.expression())
			default:
				fail("too many arguments for %.40s", name)
			}
		}
	}
	return func(r *run) []any {
		r.take(16 * len(given))
		args := make([]any, len(given))
		for i, arg := range given {
			if args[i] = (absent{}); arg != nil {
				args[i] = arg(r)
			}
		}
		return args
	}
}

func (p *parser) call(name string) expression {
	if name == "dict" || name == "namespace" {
		return p.named2mapping(name)
	}
	if slices.Contains([]string{"states", "state_attr", "is_state", "is_state_attr", "has_value"}, name) {
		p.arguments(name, "...")
		return former(name)
	}
	f, ok := functions[name]
	if !ok {
		fail("the function %.40q is not known", name)
	}
	args := p.arguments(name, f.params)
	return func(r *run) any { r.spend(0); return f.apply(r, args(r)) }
}

// named2mapping reads dict(a=1) and namespace(a=1).
func (p *parser) named2mapping(name string) expression {
	var keys []string
	var values []expression
	p.expect("(")
	for !p.skip(")") {
		if len(keys) > 0 {
			p.expect(",")
		}
		keys = append(keys, p.name())
		p.expect("=")
		values = append(values, p.expression())
	}
	return func(r *run) any {
		r.take(64 * (1 + len(keys)))
		n := &namespace{}
		for i, key := range keys {
			n.put(key, values[i](r))
		}
		if name == "dict" {
			return &n.dict
		}
		return n
	}
}
