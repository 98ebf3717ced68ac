// Package jinja evaluates value templates: the part of the Jinja template
// language (https://jinja.palletsprojects.com/en/stable/templates/) with which
// Home Assistant's MQTT discovery says how to find a value in a message, and
// the filters that Home Assistant adds
// (https://www.home-assistant.io/docs/configuration/templating/).
//
// Templates come from the network and are hostile, so a template can neither
// read nor call anything outside itself and the values it is given, and what
// rendering costs is bounded in steps, in memory and in output. The Go
// libraries for Jinja bound the steps at best: one line of template makes
// them fill the memory.
//
// Values are those of Python: 6 / 2 is 3.0, a truth value is written True.
// One thing differs: a number that a template only hands on keeps the digits
// that the message had, so 21.40 stays 21.40.
//
// Left out are include, import, extends, block, macro, call, filter blocks,
// and what needs a clock or a time zone (now, timestamp_custom). The functions
// that look at Home Assistant's own states, and this, stand for the value as
// it was before the message: [ErrUndefined].
package jinja

import (
	"errors"
	"fmt"
	"strings"
)

// The bounds of a template and of one rendering.
const (
	maxSource  = 16 << 10  // bytes of a template
	maxNesting = 40        // of expressions and blocks
	maxSteps   = 10000     // values computed, and 256 bytes handled are one more
	maxMemory  = 256 << 10 // bytes of all values made, garbage too
	maxOutput  = 16 << 10
)

// ErrUndefined says that a message does not hold what the template asks for,
// which is no fault: a device may send a part of its values only.
var ErrUndefined = errors.New("the message does not hold it")

// A Template is compiled once and may then be rendered by many goroutines at
// the same time.
type Template struct {
	body []statement
}

// Vars are the names that a template can use, and what they stand for: nil,
// string, bool, int, int64, float64, json.Number, and []any and map[string]any
// of these. Rendering changes none of them. A mapping is gone through in the
// order of its keys.
type Vars map[string]any

// Compile checks a template and makes it ready. Filters, tests and functions
// that are not known are found here, and the error says in one line what is.
func Compile(source string) (t *Template, err error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("cannot compile the template: %d bytes are more than %d", len(source), maxSource)
	}
	defer recoverFault(&err, "cannot compile the template")
	p := parser{source: strings.TrimSpace(source)}
	p.scan()
	return &Template{p.block()}, nil
}

// Render gives what the template makes of the values, without the blanks
// around it. An error that is [ErrUndefined] means that they have no such
// value.
func (t *Template) Render(vars Vars) (text string, err error) {
	defer recoverFault(&err, "cannot render the template")
	r := run{given: vars, filters: filters, tests: tests, steps: maxSteps, memory: maxMemory}
	r.block(t.body)
	return strings.TrimSpace(string(r.out)), nil
}

// A fault unwinds the parser or a rendering, as in encoding/json: passing it
// up by hand would double the interpreter.
type fault struct{ err error }

func fail(format string, args ...any) { panic(fault{fmt.Errorf(format, args...)}) }

func recoverFault(err *error, what string) {
	switch r := recover().(type) {
	case nil:
	case fault:
		*err = fmt.Errorf("%s: %w", what, r.err)
	default:
		panic(r)
	}
}

// A run is one rendering.
type run struct {
	given Vars
	// The tables are here because map and select look into them, which as
	// variables of the package would be an initialization cycle.
	filters map[string]filter
	tests   map[string]test
	vars    []variable
	frame   int // where the variables of the innermost loop begin
	out     []byte
	steps   int
	memory  int
}

type variable struct {
	name  string
	value any
}

// spend pays for the work on n bytes.
func (r *run) spend(n int) {
	r.steps -= 1 + n/256
	if r.steps < 0 {
		fail("more than %d steps", maxSteps)
	}
}

// take pays for n bytes of memory, before they are made.
func (r *run) take(n int) {
	if n > r.memory { // also where n is near the largest int
		fail("more than %d bytes of memory", maxMemory)
	}
	r.memory -= n
	r.spend(n)
}

func (r *run) write(s string) {
	if len(r.out)+len(s) > maxOutput {
		fail("more than %d bytes of output", maxOutput)
	}
	r.spend(len(s))
	r.out = append(r.out, s...)
}

func (r *run) lookup(name string) any {
	r.spend(len(r.vars)) // they are gone through one by one
	for i := len(r.vars) - 1; i >= 0; i-- {
		if r.vars[i].name == name {
			return r.vars[i].value
		}
	}
	if v, ok := r.given[name]; ok {
		return r.native(v)
	}
	return undefined{name}
}

// set makes a variable of the innermost loop, or changes it.
func (r *run) set(name string, v any) {
	for i := r.frame; i < len(r.vars); i++ {
		if r.vars[i].name == name {
			r.vars[i].value = v
			return
		}
	}
	r.take(16)
	r.vars = append(r.vars, variable{name, v})
}
