package strictyaml

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Schema gives the JSON Schema (draft 2020-12) of the files that Decode reads
// into the struct that v points to, for editors that complete and check. It
// holds descriptions, allowed values and bounds from the tags, and as defaults
// the values that v holds. It is looser than Decode, never stricter. The same
// types give the same bytes.
func Schema(title string, v any) ([]byte, error) {
	s := schemaOf(reflect.ValueOf(v).Elem(), rule{}, "")
	s = append(object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", title},
	}, s...)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		return nil, fmt.Errorf("cannot write the schema %q: %w", title, err)
	}
	return b.Bytes(), nil
}

// An object is a JSON object that keeps its order, so that a reader finds the
// keys as in the struct.
type object []member

type member struct {
	key   string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		value := bytes.Buffer{}
		enc := json.NewEncoder(&value)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(m.value); err != nil {
			return nil, err
		}
		b.Write(bytes.TrimSpace(value.Bytes()))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// schemaOf describes v; what v holds is the default.
func schemaOf(v reflect.Value, r rule, doc string) object {
	t := v.Type()
	if t.Kind() == reflect.Pointer {
		if v.IsNil() {
			v = fresh(t.Elem()).Addr()
		}
		return schemaOf(v.Elem(), r, doc)
	}
	var o object
	add := func(key string, value any) { o = append(o, member{key, value}) }
	if doc != "" {
		add("description", doc)
	}
	switch {
	case t == reflect.TypeFor[yaml.Node]():
	case t == reflect.TypeFor[Size]():
		add("type", []string{"string", "integer"})
		add("pattern", `^[0-9]+ *([kKmMgG]?[bB]|[kKmMgG][iI][bB])?$`)
		defaulted(&o, v, func() any { return v.Interface().(Size).String() })
	case t == reflect.TypeFor[time.Duration]():
		add("type", "string")
		add("pattern", `^[-+]?(0|([0-9.]+(ns|us|µs|ms|s|m|h))+)$`)
		defaulted(&o, v, func() any { return shortDuration(v.Interface().(time.Duration)) })
	case isText(t):
		// The type reads any plain value, so numbers and dates are as good.
		add("type", []string{"string", "number", "boolean"})
	case t.Kind() == reflect.Struct:
		o = append(o, schemaOfStruct(v)...)
	case t.Kind() == reflect.Map:
		add("type", "object")
		add("additionalProperties", schemaOf(fresh(t.Elem()), r, ""))
	case t.Kind() == reflect.Slice && r.alone:
		one := schemaOf(fresh(t.Elem()), rule{enum: r.enum, min: r.min, max: r.max}, "")
		add("anyOf", []object{one, {{"type", "array"}, {"items", one}}})
	case t.Kind() == reflect.Slice:
		add("type", "array")
		add("items", schemaOf(fresh(t.Elem()), r, ""))
	case t.Kind() == reflect.Bool:
		add("type", "boolean")
		add("default", v.Bool())
	case t.Kind() == reflect.String && len(r.enum) > 0:
		add("enum", r.enum)
		defaulted(&o, v, v.Interface)
	case t.Kind() == reflect.String:
		add("type", []string{"string", "number", "boolean"})
		defaulted(&o, v, v.Interface)
	default:
		number := "integer"
		if v.CanFloat() {
			number = "number"
		}
		add("type", number)
		if r.min != "" {
			add("minimum", json.Number(r.min))
		}
		if r.max != "" {
			add("maximum", json.Number(r.max))
		}
		defaulted(&o, v, v.Interface)
	}
	return o
}

func schemaOfStruct(v reflect.Value) object {
	o := object{{"type", "object"}}
	var properties object
	required := []string{}
	for _, f := range fieldsOf(v.Type()) {
		properties = append(properties, member{f.key, schemaOf(v.Field(f.index), f.rule, f.doc)})
		if f.required {
			required = append(required, f.key)
		}
	}
	if properties == nil {
		properties = object{}
	}
	o = append(o, member{"properties", properties})
	if len(required) > 0 {
		o = append(o, member{"required", required})
	}
	return append(o, member{"additionalProperties", false})
}

func defaulted(o *object, v reflect.Value, value func() any) {
	if !v.IsZero() {
		*o = append(*o, member{"default", value()})
	}
}

// shortDuration writes 1m0s as 1m.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
