package strictyaml

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Page gives a table in Markdown of every key of the files that Decode reads into
// the struct that v points to: its path, its kind, what it may be, its default
// (what v holds) and its description. A path goes through lists by [].
func Page(v any) []byte {
	var b bytes.Buffer
	b.WriteString("| key | value | default | what it is |\n|---|---|---|---|\n")
	pageOf(&b, "", reflect.ValueOf(v).Elem())
	return b.Bytes()
}

func pageOf(b *bytes.Buffer, prefix string, v reflect.Value) {
	for _, f := range fieldsOf(v.Type()) {
		value := v.Field(f.index)
		path := prefix + f.key
		text, initial := kindOf(value, f.rule)
		if f.required {
			initial = "required"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", path, text, initial, strings.ReplaceAll(f.doc, "|", `\|`))
		for value.Kind() == reflect.Pointer || value.Kind() == reflect.Slice {
			if value.Kind() == reflect.Slice {
				path += "[]"
			}
			value = fresh(value.Type().Elem())
		}
		if value.Kind() == reflect.Struct && !isText(value.Type()) && value.Type() != reflect.TypeFor[yaml.Node]() {
			pageOf(b, path+".", value)
		}
	}
}

// kindOf says what a value may be, and what it is by default.
func kindOf(v reflect.Value, r rule) (text, initial string) {
	t := v.Type()
	bounds := ""
	switch {
	case r.min != "" && r.max != "":
		bounds = fmt.Sprintf(", %s to %s", r.min, r.max)
	case r.min != "":
		bounds = ", at least " + r.min
	case r.max != "":
		bounds = ", at most " + r.max
	}
	code := func(s string) string {
		if s == "" {
			return ""
		}
		return "`" + s + "`"
	}
	switch {
	case t.Kind() == reflect.Pointer:
		text, _ = kindOf(fresh(t.Elem()), r)
		return text, ""
	case t == reflect.TypeFor[Size]():
		if !v.IsZero() {
			initial = v.Interface().(Size).String()
		}
		return "a size" + bounds, code(initial)
	case t == reflect.TypeFor[time.Duration]():
		if !v.IsZero() {
			initial = shortDuration(v.Interface().(time.Duration))
		}
		return "a time" + bounds, code(initial)
	case isText(t):
		return "text", ""
	case t.Kind() == reflect.Slice:
		text, _ = kindOf(fresh(t.Elem()), r)
		return "list of: " + text, ""
	case t.Kind() == reflect.Struct, t.Kind() == reflect.Map:
		return "section", ""
	case t.Kind() == reflect.Bool:
		return "`true` or `false`", code(fmt.Sprint(v.Bool()))
	case t.Kind() == reflect.String && len(r.enum) > 0:
		return "`" + strings.Join(r.enum, "`, `") + "`", code(v.String())
	case t.Kind() == reflect.String:
		return "text", code(v.String())
	}
	if !v.IsZero() {
		initial = fmt.Sprint(v.Interface())
	}
	return "a number" + bounds, code(initial)
}
