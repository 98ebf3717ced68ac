package homeassistant

import (
	"encoding/json"
	"strconv"
	"strings"
)

// options are those of a component, by their long names.
type options map[string]any

// expand gives options their long names. What is written out counts before
// what is abbreviated.
func expand(raw map[string]any, names map[string]string) options {
	o := make(options, len(raw))
	for key, v := range raw {
		long, abbreviated := names[key]
		if !abbreviated {
			o[key] = v
		} else if _, both := raw[long]; !both {
			o[long] = v
		}
	}
	return o
}

// replaceBase puts the base topic in the place of ~ at the beginning or the end
// of every topic.
func (o options) replaceBase(base string) {
	if base == "" {
		return
	}
	replace := func(topic string) string {
		if rest, ok := strings.CutPrefix(topic, "~"); ok {
			return base + rest
		}
		if rest, ok := strings.CutSuffix(topic, "~"); ok {
			return rest + base
		}
		return topic
	}
	for key, v := range o {
		if topic, ok := v.(string); ok && strings.HasSuffix(key, "topic") {
			o[key] = replace(topic)
		}
	}
	for _, one := range o.items("availability") {
		if a, ok := one.(map[string]any); ok {
			for _, key := range []string{"topic", "t"} {
				if topic, ok := a[key].(string); ok {
					a[key] = replace(topic)
				}
			}
		}
	}
}

// textOf writes a value as Home Assistant does that wants a text: a truth
// value as Python's. ok is false where there is none.
func textOf(v any) (text string, ok bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		if v {
			return "True", true
		}
		return "False", true
	}
	return "", false
}

func (o options) text(option, otherwise string) string {
	if s, ok := textOf(o[option]); ok {
		return s
	}
	return otherwise
}

// label is a text for people, or a name; a longer one is cut.
func (o options) label(option string) string {
	s := strings.ToValidUTF8(o.text(option, ""), "\uFFFD")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}

// word is an option that may be null, which means that there is none.
func (o options) word(option, otherwise string) (string, bool) {
	v, ok := o[option]
	if !ok {
		return otherwise, true
	}
	s, ok := textOf(v)
	return s, ok && s != ""
}

func (o options) number(option string, otherwise float64) float64 {
	if f, err := strconv.ParseFloat(o.text(option, ""), 64); err == nil {
		return f
	}
	return otherwise
}

func (o options) truth(option string, otherwise bool) bool {
	switch strings.ToLower(o.text(option, "")) {
	case "true", "yes", "on", "1", "enable":
		return true
	case "false", "no", "off", "0", "disable":
		return false
	}
	return otherwise
}

func (o options) object(option string) map[string]any {
	m, _ := o[option].(map[string]any)
	return m
}

func (o options) items(option string) []any {
	l, _ := o[option].([]any)
	return l
}

// list is an option that is a list of texts, or one of them.
func (o options) list(option string) []string {
	if s := o.label(option); s != "" {
		return []string{s}
	}
	return texts(o.items(option))
}

func texts(items []any) (all []string) {
	for _, item := range items {
		if s, ok := textOf(item); ok && s != "" && len(s) <= maxText && len(all) < maxWords {
			all = append(all, s)
		}
	}
	return all
}
