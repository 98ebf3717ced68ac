package jinja

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// A testCase is a line of testdata/templates.jsonl: a template, a payload, and
// what Python's Jinja 3.1.6, with the filters of Home Assistant, makes of it.
// Source says in which program the template was found; the payloads are ours,
// in the manner of that program.
type testCase struct {
	Template, Payload string
	Want              *string
	Undefined, Error  bool
	Source            string
}

func testCases(t testing.TB) (all []testCase) {
	t.Helper()
	file, err := os.ReadFile("testdata/templates.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(file)); lines.Scan(); {
		var c testCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// message gives the names that templates for values use.
func message(payload string) Vars {
	vars := Vars{"value": payload}
	d := json.NewDecoder(strings.NewReader(payload))
	d.UseNumber()
	var document any
	if d.Decode(&document) == nil && !d.More() {
		vars["value_json"] = document
	}
	return vars
}

func evaluate(template, payload string) (string, error) {
	t, err := Compile(template)
	if err != nil {
		return "", err
	}
	return t.Render(message(payload))
}

func TestAsPythonDoes(t *testing.T) {
	all := testCases(t)
	if len(all) < 150 {
		t.Fatalf("only %d cases", len(all))
	}
	for _, c := range all {
		got, err := evaluate(c.Template, c.Payload)
		var wrong bool
		switch {
		case c.Want != nil:
			wrong = err != nil || got != *c.Want
		case c.Undefined:
			wrong = !errors.Is(err, ErrUndefined)
		default:
			wrong = err == nil || errors.Is(err, ErrUndefined)
		}
		if wrong {
			want := "an error"
			if c.Want != nil {
				want = *c.Want
			}
			t.Errorf("%s\n%s\non %s\n got %q, %v\nwant %q", c.Source, c.Template, c.Payload, got, err, want)
		}
	}
}

// TestOtherThanPython pins what is ours.
func TestOtherThanPython(t *testing.T) {
	for _, c := range []struct{ template, payload, want string }{
		{"{{ value_json.a }}", `{"a":21.40}`, "21.40"},         // keeps the digits
		{"{{ value_json.a | float }}", `{"a":21.40}`, "21.40"}, // also through a filter that changes nothing
		{"{{ value_json.a }}", `{"a":18446744073709551615}`, "18446744073709551615"},
		{"{{ value_json.items }}", `{"items":[1]}`, "[1]"},                         // a member, not Python's method
		{"{{ value_json.x | float(0) }} {{ value_json.x | int(1) }}", `{}`, "0 1"}, // not an error
		{"{{ value_json.a is None }}", `{"a":null}`, "True"},                       // Jinja knows none only
		{"{{ 1700000000 | timestamp_utc }} {{ as_timestamp('2023-11-14T22:13:20Z') }}", ``, "2023-11-14T22:13:20+00:00 1700000000.0"},
		{"{{ value_json }}", `{"b":1,"a":2}`, "{'a': 2, 'b': 1}"}, // by key
	} {
		if got, err := evaluate(c.template, c.payload); err != nil || got != c.want {
			t.Errorf("%s on %s: %q, %v, want %q", c.template, c.payload, got, err, c.want)
		}
	}
}

func TestFormerState(t *testing.T) {
	for _, template := range []string{"{{ states('sensor.a') }}", "{{ this.state }}", "{% if value_json.a is defined %}{{ value_json.a }}{% else %}{{ states(entity_id) }}{% endif %}"} {
		if _, err := evaluate(template, `{"b":1}`); !errors.Is(err, ErrUndefined) {
			t.Errorf("%s: %v", template, err)
		}
	}
}

// TestErrors pins what a person reads in the log: one line, whatever the
// template holds.
func TestErrors(t *testing.T) {
	for _, c := range []struct{ template, want string }{
		{"{{ now() }}", `cannot compile the template: the function "now" is not known`},
		{"{% include 'a' %}", `cannot compile the template: the tag "include" is not known`},
		{"{% extends 'a' %}", `cannot compile the template: the tag "extends" is not known`},
		{"{% macro f() %}{% endmacro %}", `cannot compile the template: the tag "macro" is not known`},
		{"{{ a | frobnicate }}", `cannot compile the template: the filter "frobnicate" is not known`},
		{"{{ a is frobnicated }}", `cannot compile the template: the test "frobnicated" is not known`},
		{"{{ a.__class__() }}", `cannot compile the template: the method "__class__" is not known`},
		{"{{ a", `cannot compile the template: a tag without end`},
		{"{% if a %}", `cannot compile the template: no endif`},
		{"{{ a b }}", `cannot compile the template: unexpected "b"`},
		{"{{ ? }}", `cannot compile the template: unexpected character '?'`},
		{"{{ value | float }}", `cannot render the template: "it\nis" is not a number`},
		{"{{ value + 1 }}", `cannot render the template: cannot compute a text + a number`},
		{"{{ value_json.a }}", `cannot render the template: "value_json": the message does not hold it`},
	} {
		_, err := evaluate(c.template, "it\nis")
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.template, err, c.want)
		}
	}
}

// hostile templates want time or memory without end.
var hostile = []string{
	"{% for i in range(10**9) %}x{% endfor %}",
	"{{ range(1000000000) | length }}",
	"{{ range(-9223372036854775807, 9223372036854775807, 9223372036854775807) | list }}",
	"{{ 'a' * 10**9 }}",
	"{{ 'a' * 9223372036854775807 }}",
	"{{ ('a' * 1000) * 1000 * 1000 }}",
	"{{ [[1] * 10000] * 10000 }}",
	"{{ 9 ** 9 ** 9 ** 9 }}",
	"{{ 10 ** 1000000000 }}",
	"{{ 1.5 ** 1000000000 }}",
	"{{ '%1000000000d' % 1 }}",
	"{{ '%.1000000000f' % 1.5 }}",
	"{{ '{:1000000000}'.format(1) }}",
	"{{ 'a'.zfill(1000000000) }}",
	"{{ ('a' * 100000) | replace('a', 'a' * 100000) }}",
	"{{ ('a' * 100000) | replace('', 'aaaaaaaaaaaa') }}",
	"{{ ('a' * 30000) | regex_replace('a', '\\\\g<0>' * 100) }}",
	"{{ ('a' * 100000) | regex_replace('(a?){100}', 'x') }}",
	"{{ ('a' * 100000) | regex_search('((a*)*)*b{500}' ) }}",
	"{{ 'a' | regex_search('((a{10}){10}){10}{10}') }}",
	"{{ ('a' * 500000) | list | length }}",
	"{{ ('[' * 30000) | from_json }}",
	"{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(25) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}",
	"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
	"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson | length }}",
	"{% set a = namespace(s=[1]) %}{% set b = namespace(s=[1]) %}{% for i in range(60) %}{% set a.s = [a.s, a.s] %}{% set b.s = [b.s, b.s] %}{% endfor %}{{ a.s == b.s }}{{ a.s < b.s }}",
	"{% for a in range(100) %}{% for b in range(100) %}{% for c in range(100) %}{% endfor %}{% endfor %}{% endfor %}",
	"{% for a in range(9999) %}{{ 'aaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
	"{{ ('a,' * 100000).split(',') | map('replace', 'a', 'b' * 1000) | join }}",
	"{{ range(3000) | list | sort(reverse=true) | sort | unique | list | sum }}",
	"{% set x %}" + strings.Repeat("{% set x %}", 30) + strings.Repeat("{% endset %}", 31) + "{{ 'a' * 100000 * 100 }}",
	strings.Repeat("(", 10000),
	"{{ " + strings.Repeat("(", 10000) + strings.Repeat(")", 10000) + " }}",
	"{{ " + strings.Repeat("[", 8000) + " }}",
	"{{ " + strings.Repeat("not ", 4000) + "1 }}",
	"{{ " + strings.Repeat("-", 16000) + "1 }}",
	"{{ " + strings.Repeat("1 if ", 3000) + "1 }}",
	strings.Repeat("{% if 1 %}", 1000) + strings.Repeat("{% endif %}", 1000),
	"{{ 1" + strings.Repeat("+1", 8000) + " }}",
	"{{ a" + strings.Repeat(".a", 8000) + " }}",
	"{{ 1" + strings.Repeat("|string", 2000) + " }}",
	"{{ " + strings.Repeat("'a'", 5000) + " }}",
	strings.Repeat("{{ value }}", 1000),
	strings.Repeat("a", maxSource+1),
	strings.Repeat("{", 16000), strings.Repeat("{{", 8000), strings.Repeat("{#", 8000), strings.Repeat("{% raw %}", 1000),
	"{{ -9223372036854775808 // -1 }}", "{{ (-9223372036854775807 - 1) // -1 }}", "{{ (-9223372036854775807 - 1) % -1 }}", "{{ -(-9223372036854775807 - 1) }}",
	"{{ value[9223372036854775807] }}{{ value[-9223372036854775807:9223372036854775807:9223372036854775807] }}",
	"{{ 1.5 | round(1000000) }}{{ 1 | truncate(-5) }}", "{{ 'abc' | truncate(9223372036854775807) }}", "{{ 'abc' | truncate(3, true, '', 9223372036854775807) }}",
	"{{ {}[[]] }}{{ {[]: 1} }}", "{{ namespace(a=namespace()) }}", "{{ loop.x.y }}", "{{ [] | max }}{{ [] | first }}{{ [] | average }}",
	"{{ 1e308 * 10 }}{{ (1e308 * 10) | int }}", "{{ 1 | timestamp_utc }}{{ 1e300 | timestamp_utc }}",
}

// TestHostile bounds what any template can cost: it ends, and makes no more
// than a few megabytes of garbage.
func TestHostile(t *testing.T) {
	var before, after runtime.MemStats
	for _, template := range hostile {
		runtime.ReadMemStats(&before)
		out, err := evaluate(template, strings.Repeat("x", 1000))
		runtime.ReadMemStats(&after)
		if made := after.TotalAlloc - before.TotalAlloc; made > 24<<20 {
			t.Errorf("%.80s: %d bytes made", template, made)
		}
		if len(out) > maxOutput {
			t.Errorf("%.80s: %d bytes of output", template, len(out))
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 200) {
			t.Errorf("%.80s: not one short line: %v", template, err)
		}
	}
}

// TestBoundsHold says which bound stops what.
func TestBoundsHold(t *testing.T) {
	for template, want := range map[string]string{
		"{% for i in range(9999) %}{% set x = i * i %}{% endfor %}": "more than 10000 steps",
		"{{ 'a' * 2000000 }}": "more than 262144 bytes of memory",
		"{{ 'a' * 20000 }}":   "more than 16384 bytes of output",
		"{{ " + strings.Repeat("(", 60) + "1" + strings.Repeat(")", 60) + " }}": "nested deeper than 40",
		"{{ 9223372036854775807 + 1 }}":                                         "a number too large",
	} {
		if _, err := evaluate(template, ""); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%.60s: %v, want %s", template, err, want)
		}
	}
}

// TestLargeMessage shows that one member of a large message costs little.
func TestLargeMessage(t *testing.T) {
	payload := `{"a":{"b":[` + strings.Repeat(`{"c":"ddddddddddddddddd"},`, 2000) + `1]},"x":21.5}`
	if got, err := evaluate("{{ value_json.x }}", payload); err != nil || got != "21.5" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestConcurrentRendering(t *testing.T) {
	template, err := Compile("{% set ns = namespace(n=0) %}{% for i in value_json.l %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}{{ value_json.o }}")
	if err != nil {
		t.Fatal(err)
	}
	vars := message(`{"l":[1,2,3],"o":{"a":1}}`)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if got, err := template.Render(vars); err != nil || got != "6{'a': 1}" {
					t.Errorf("%q, %v", got, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func FuzzTemplate(f *testing.F) {
	for _, c := range testCases(f) {
		f.Add(c.Template, c.Payload)
	}
	for _, template := range hostile {
		f.Add(template, "x")
	}
	f.Fuzz(func(t *testing.T, template, payload string) {
		if len(payload) > 64<<10 {
			return
		}
		out, err := evaluate(template, payload)
		if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("not one line: %q", err)
		}
		if len(out) > maxOutput {
			t.Errorf("%d bytes of output", len(out))
		}
	})
}

func BenchmarkRender(b *testing.B) {
	for name, template := range map[string]string{
		"member": "{{ value_json.temperature }}",
		"filter": "{{ value_json['temperature'] | float | round(1) }}",
		"branch": `{% if "x" in value_json and value_json["x"] %} opening {% else %} stopped {% endif %}`,
	} {
		t, err := Compile(template)
		if err != nil {
			b.Fatal(err)
		}
		vars := message(`{"battery":98,"humidity":44.1,"linkquality":120,"temperature":21.50,"voltage":3005}`)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := t.Render(vars); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
