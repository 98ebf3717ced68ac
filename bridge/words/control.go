package words

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/porchlight-iot/porchlight/devices"
)

// Resolve finds what words such as "on", "set level 40 %", "dimmer 40", "open"
// or "power2 off" tell a device that has these controls. Of a device of which
// no control is known it gives the words as they are. The control is nil where
// that is so. Its error is an [Error].
func Resolve(controls []devices.Control, words []string) (*devices.Control, string, error) {
	words, set := trimSet(words)
	if len(words) == 0 {
		return nil, "", mistake(SetWhat, Controls(controls))
	}
	c, rest := control(controls, words)
	if c == nil && len(words) > 1 {
		// "on power2" is "power2 on".
		if c, rest = control(controls, words[1:]); c != nil && len(rest) == 0 && c.Argument.Type == devices.SwitchArgument {
			rest = words[:1]
		} else {
			c = nil
		}
	}
	if c == nil {
		c, rest = implied(controls, words, set)
	}
	if c == nil {
		var names []string
		for _, c := range controls {
			names = append(names, c.Name)
		}
		switch near := nearest(words[0], names); {
		case len(controls) == 0:
			return nil, "", mistake(NoControls)
		case near != "":
			return nil, "", mistake(NoControlNear, Quote(words[0]), near)
		}
		return nil, "", mistake(NoControl, Quote(words[0]), Controls(controls))
	}
	argument, err := Argument(*c, rest)
	return c, argument, err
}

func trimSet(words []string) ([]string, bool) {
	if len(words) > 0 && strings.EqualFold(words[0], "set") {
		return words[1:], true
	}
	return words, false
}

// control finds the control whose name or title words begin with: the longest.
func control(controls []devices.Control, words []string) (*devices.Control, []string) {
	for n := min(len(words), maxNameWords); n > 0; n-- {
		name := fold(strings.Join(words[:n], " "))
		for i, c := range controls {
			if name != "" && (name == fold(c.Name) || name == fold(c.Title) && sole(controls, c.Title)) {
				return &controls[i], words[n:]
			}
		}
	}
	return nil, nil
}

// fold makes names alike that differ in case and in what stands between words.
func fold(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }), "_")
}

func sole(controls []devices.Control, title string) bool {
	n := 0
	for _, c := range controls {
		if strings.EqualFold(c.Title, title) {
			n++
		}
	}
	return n == 1
}

// implied finds the only control that can be meant by a word or a number of
// its own.
func implied(controls []devices.Control, words []string, set bool) (*devices.Control, []string) {
	fits := func(a devices.Argument) bool {
		if len(words) == 1 && slices.ContainsFunc(a.Words, func(w string) bool { return strings.EqualFold(w, words[0]) }) {
			return true
		}
		if !set || a.Type != devices.NumberArgument && a.Type != devices.IntegerArgument {
			return false
		}
		_, _, err := number(words)
		return err == nil
	}
	var found *devices.Control
	for i, c := range controls {
		if !fits(c.Argument) {
			continue
		}
		if found != nil {
			return nil, nil
		}
		found = &controls[i]
	}
	return found, words
}

// Argument makes of words what a control takes: a number in its unit, or one
// of its words as it spells it. Its error is an [Error].
func Argument(c devices.Control, words []string) (string, error) {
	if len(words) > 1 && (strings.EqualFold(words[0], "to") || words[0] == "=") {
		words = words[1:]
	}
	a := c.Argument
	text := strings.Join(words, " ")
	switch a.Type {
	case devices.NoArgument:
		if text != "" {
			return "", mistake(TakesNothing, c.Name)
		}
		return "", nil
	case devices.NumberArgument, devices.IntegerArgument:
		return numberArgument(c, words)
	case devices.TextArgument:
		if text == "" {
			return "", mistake(TakesText, c.Name)
		}
		return text, nil
	}
	for _, w := range a.Words {
		if strings.EqualFold(w, text) {
			return w, nil
		}
	}
	if a.Type == devices.SwitchArgument && len(a.Words) == 0 && (strings.EqualFold(text, "on") || strings.EqualFold(text, "off")) {
		return strings.ToLower(text), nil
	}
	// What programs write for a switch (XEP-0004 section 3.3).
	for _, same := range [][2]string{{"1", "on"}, {"true", "on"}, {"yes", "on"}, {"0", "off"}, {"false", "off"}, {"no", "off"}} {
		if a.Type == devices.SwitchArgument && strings.EqualFold(text, same[0]) && (len(a.Words) == 0 || slices.Contains(a.Words, same[1])) {
			return same[1], nil
		}
	}
	return "", mistake(TakesWords, c.Name, strings.Join(a.Words, ", "))
}

// number reads a number with a unit, as people write both. A comma before
// three digits could be one of thousands: it is refused.
func number(words []string) (devices.Value, devices.Unit, error) {
	text := strings.Join(words, "")
	end := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsDigit(r) && !strings.ContainsRune("+-.,−", r) })
	if end < 0 {
		end = len(text)
	}
	figure := strings.ReplaceAll(text[:end], "−", "-")
	if _, after, found := strings.Cut(figure, ","); found {
		if len(after) == 3 || strings.ContainsAny(after, ",.") {
			return devices.Value{}, "", mistake(CommaOfWhat, Quote(figure))
		}
		figure = strings.Replace(figure, ",", ".", 1)
	}
	v, err := devices.ParseNumber(figure)
	if err != nil {
		return devices.Value{}, "", mistake(NotANumber, Quote(strings.Join(words, " ")))
	}
	unit := strings.TrimSpace(text[end:])
	if strings.EqualFold(unit, "percent") {
		unit = "%"
	}
	return v, devices.ParseUnit(unit), nil
}

func numberArgument(c devices.Control, words []string) (string, error) {
	a := c.Argument
	if len(words) == 0 {
		return "", mistake(TakesNumber, c.Name, Takes(a))
	}
	v, unit, err := number(words)
	switch {
	case err != nil:
		return "", err
	case unit == "" || strings.EqualFold(string(unit), string(a.Unit)) || unit == "°" && strings.HasPrefix(string(a.Unit), "°"):
	case unit == "%" && a.Min != nil && a.Max != nil:
		// Of what it can be: 40 % of a brightness from 0 to 254 is 102.
		if f := v.Float(); f < 0 || f > 100 {
			return "", mistake(OutOfRange, c.Name, v.String()+" %", "0 to 100 %")
		}
		f := *a.Min + v.Float()/100*(*a.Max-*a.Min)
		if a.Type == devices.IntegerArgument {
			f = math.Round(f)
		}
		v = devices.Number(f)
	case a.Unit == "":
		return "", mistake(HasNoUnit, c.Name, Quote(string(unit)))
	default:
		return "", mistake(OtherUnit, c.Name, a.Unit, Quote(string(unit)))
	}
	_, whole := v.Int()
	switch f := v.Float(); {
	case a.Min != nil && f < *a.Min || a.Max != nil && f > *a.Max:
		return "", mistake(OutOfRange, c.Name, v, Takes(a))
	case a.Type == devices.IntegerArgument && !whole:
		return "", mistake(NotWhole, c.Name, v)
	}
	return v.String(), nil
}

// Takes says what a control takes.
func Takes(a devices.Argument) string {
	bound := func(f *float64) string { return strconv.FormatFloat(*f, 'f', -1, 64) }
	text := ""
	switch {
	case a.Type == devices.NoArgument:
		return ""
	case a.Type == devices.TextArgument:
		return TakesAnyText
	case a.Type == devices.SwitchArgument && len(a.Words) == 0:
		return "off, on"
	case a.Type == devices.SwitchArgument || a.Type == devices.WordArgument:
		return strings.Join(a.Words, ", ")
	case a.Min != nil && a.Max != nil:
		text = bound(a.Min) + " to " + bound(a.Max)
	case a.Min != nil:
		text = AtLeast + " " + bound(a.Min)
	case a.Max != nil:
		text = AtMost + " " + bound(a.Max)
	default:
		text = ANumber
	}
	if a.Unit != "" {
		text += " " + string(a.Unit)
	}
	return text
}

// Controls names what a device can be told.
func Controls(controls []devices.Control) string {
	if len(controls) == 0 {
		return NothingToSet
	}
	names := make([]string, len(controls))
	for i, c := range controls {
		names[i] = c.Name
	}
	return strings.Join(names, ", ")
}
