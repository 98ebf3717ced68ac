package proof

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// errPeriod says what a period looks like.
var errPeriod = errors.New("a period is today, yesterday, week, or a number with m, h, d or w, as 24h")

const (
	day  = 24 * time.Hour
	week = 7 * day

	longest = 100 * 366 * day
)

// ParsePeriod reads a period as people write it, which ends now at the latest:
// today, yesterday, week (seven days), or a number of minutes, hours, days or
// weeks, as 24h. Days are those of now's zone.
func ParsePeriod(text string, now time.Time) (since, until time.Time, err error) {
	y, m, d := now.Date()
	today := time.Date(y, m, d, 0, 0, 0, 0, now.Location())
	switch text = strings.ToLower(strings.TrimSpace(text)); text {
	case "today":
		return today, now, nil
	case "yesterday":
		return time.Date(y, m, d-1, 0, 0, 0, 0, now.Location()), today, nil
	case "week":
		text = "7d"
	}
	if text == "" {
		return since, until, errPeriod
	}
	unit, known := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': day, 'w': week}[text[len(text)-1]]
	n, err := strconv.ParseInt(strings.TrimSpace(text[:len(text)-1]), 10, 64)
	if err != nil || !known || n <= 0 || n > int64(longest/unit) {
		return since, until, errPeriod
	}
	return now.Add(-time.Duration(n) * unit), now, nil
}

// lasting tells seconds to people, in its two greatest units.
func lasting(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	two := func(big time.Duration, bigName string, small time.Duration, smallName string) string {
		text := strconv.FormatInt(int64(d/big), 10) + " " + bigName
		if n := d % big / small; n > 0 {
			text += " " + strconv.FormatInt(int64(n), 10) + " " + smallName
		}
		return text
	}
	switch {
	case d >= day:
		return two(day, "d", time.Hour, "h")
	case d >= time.Hour:
		return two(time.Hour, "h", time.Minute, "min")
	case d >= time.Minute:
		return two(time.Minute, "min", time.Second, "s")
	}
	return strconv.FormatFloat(d.Seconds(), 'f', map[bool]int{true: 1, false: 0}[d < 10*time.Second], 64) + " s"
}
