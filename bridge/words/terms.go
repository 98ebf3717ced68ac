package words

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Terms are what somebody or something is let in with.
type Terms struct {
	Name    string   // of a device
	Role    string   // of a person
	Devices []string // patterns; none: all
	Hours   string   // as in the config; "": always
	Until   string   // as in the config; "": for good
}

// Roles are what a person can be, the least first.
var roles = []string{"viewer", "operator", "installer", "owner"}

// Roles gives them, the least first.
func Roles() []string { return slices.Clone(roles) }

// ParseTerms reads "operator kitchen-* hall hours Mon-Fri 08:00-18:00
// Europe/Berlin until 2027-01-01", of which each part may be missing. Its error
// is an [Error].
func ParseTerms(words []string) (Terms, error) {
	var t Terms
	var hours, until []string
	into := &t.Devices
	for i, w := range words {
		switch w = strings.ToLower(w); {
		case i == 0 && slices.Contains(roles, w):
			t.Role = w
		case w == "as" && i == 0 && len(words) > 1:
			return ParseTerms(words[1:])
		case w == "hours":
			into = &hours
		case w == "until":
			into = &until
		case w == ",", w == "and", w == "for" && into == &t.Devices, w == "on" && into == &t.Devices:
			if into == &hours && w == "," {
				return t, mistake(HoursComma)
			}
		case into == &hours:
			hours = append(hours, words[i]) // a zone has capitals
		default:
			*into = append(*into, w)
		}
	}
	if t.Role == "" && len(t.Devices) > 0 && nearest(t.Devices[0], roles) != "" {
		return t, mistake(NoRole, Quote(t.Devices[0]), strings.Join(roles, ", "))
	}
	if slices.Contains(t.Devices, "all") {
		t.Devices = nil
	}
	t.Hours = strings.Join(hours, " ")
	switch len(until) {
	case 0:
	case 1:
		if _, err := time.Parse(time.DateOnly, until[0]); err != nil {
			return t, mistake(NoDate, Quote(until[0]))
		}
		t.Until = until[0]
	default:
		return t, mistake(NoDate, Quote(strings.Join(until, " ")))
	}
	return t, nil
}

// DefaultMute is for how long a device is muted by the word alone.
const DefaultMute = time.Hour

// ParsePeriod reads "2h", "90 min" or "3 days"; none is most, and "off" is 0.
// Its error is an [Error].
func ParsePeriod(words []string, most time.Duration) (time.Duration, error) {
	if len(words) > 1 && strings.EqualFold(words[0], "for") {
		words = words[1:]
	}
	text := strings.ToLower(strings.Join(words, ""))
	switch text {
	case "":
		return most, nil
	case "off", "0":
		return 0, nil
	}
	total := time.Duration(0)
	for text != "" {
		end := strings.IndexFunc(text, func(r rune) bool { return !unicode.IsDigit(r) })
		if end < 1 {
			return 0, mistake(NoPeriod, Quote(strings.Join(words, " ")))
		}
		n, err := strconv.ParseUint(text[:end], 10, 16)
		text = text[end:]
		end = strings.IndexFunc(text, unicode.IsDigit)
		if end < 0 {
			end = len(text)
		}
		unit, ok := units[text[:end]]
		if err != nil || !ok {
			return 0, mistake(NoPeriod, Quote(strings.Join(words, " ")))
		}
		total += time.Duration(n) * unit
		text = text[end:]
	}
	if total > maxPeriod {
		return 0, mistake(LongPeriod)
	}
	return total, nil
}

const (
	day       = 24 * time.Hour
	maxPeriod = 31 * day
)

var units = map[string]time.Duration{
	"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": day, "day": day, "days": day,
	"w": 7 * day, "week": 7 * day, "weeks": 7 * day,
}

// Took says how long something took, to two figures.
func Took(d time.Duration) string {
	switch {
	case d < time.Second:
		return strconv.FormatInt(max(1, d.Round(time.Millisecond).Milliseconds()), 10) + " ms"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	}
	return Span(d)
}

// Span says how long a time is, in its largest unit, and the next where the
// first is one figure.
func Span(d time.Duration) string {
	d = max(0, d)
	number := func(d, unit time.Duration) string { return strconv.FormatInt(int64(d/unit), 10) }
	two := func(large time.Duration, a string, small time.Duration, b string) string {
		text := number(d, large) + " " + a
		if rest := d % large; d/large < 10 && rest >= small {
			text += " " + number(rest, small) + " " + b
		}
		return text
	}
	switch {
	case d < time.Minute:
		return number(d, time.Second) + " s"
	case d < time.Hour:
		return number(d, time.Minute) + " min"
	case d < day:
		return two(time.Hour, "h", time.Minute, "min")
	}
	return two(day, "d", time.Hour, "h")
}
