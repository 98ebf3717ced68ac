// Package calendar reads times as people write them: zones, days, and hours of
// the week.
package calendar

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// A Zone is a time zone by its IANA name. The zero Zone is the system's.
type Zone struct{ location *time.Location }

// Location is never nil.
func (z Zone) Location() *time.Location {
	if z.location == nil {
		return time.Local
	}
	return z.location
}

// UnmarshalText reads a name such as Europe/Berlin.
func (z *Zone) UnmarshalText(text []byte) error {
	// LoadLocation takes these two words too, but they name no place.
	if s := string(text); s != "" && s != "Local" {
		if l, err := time.LoadLocation(s); err == nil {
			z.location = l
			return nil
		}
	}
	return fmt.Errorf("%.60q is not a known time zone", text)
}

// Allowed says how a zone is written.
func (Zone) Allowed() string { return "a name of the IANA time zone database, or UTC" }

// Example shows a zone.
func (Zone) Example() string { return "Europe/Berlin" }

// String gives the zone's name.
func (z Zone) String() string { return z.Location().String() }

// A Date is a day of the calendar. The zero Date is none.
type Date struct {
	Year  int
	Month time.Month
	Day   int
}

// IsZero reports whether d is none.
func (d Date) IsZero() bool { return d == Date{} }

// Midnight is the beginning of the day in a zone.
func (d Date) Midnight(in *time.Location) time.Time {
	return time.Date(d.Year, d.Month, d.Day, 0, 0, 0, 0, in)
}

// UnmarshalText reads a date such as 2027-01-01.
func (d *Date) UnmarshalText(text []byte) error {
	t, err := time.Parse(time.DateOnly, string(text))
	if err != nil {
		return fmt.Errorf("%.60q is not a date", text)
	}
	d.Year, d.Month, d.Day = t.Date()
	return nil
}

// Allowed says how a date is written.
func (Date) Allowed() string { return "year-month-day" }

// Example shows a date.
func (Date) Example() string { return "2027-01-01" }

// String writes the date as it is read.
func (d Date) String() string { return fmt.Sprintf("%04d-%02d-%02d", d.Year, int(d.Month), d.Day) }

// Hours are times of the week, as
//
//	Mon-Fri 08:00-18:00 Europe/Berlin
//	Sat,Sun 22:00-06:00
//
// Days are Mon, Tue, Wed, Thu, Fri, Sat and Sun, alone, in ranges and in lists.
// Times are from the first minute to before the last, 24:00 at most; if the
// last comes before the first, they go over midnight and belong to the day on
// which they began. Without a zone it is the system's. The zero Hours are
// always.
type Hours struct {
	text     string
	days     [7]bool // by time.Weekday
	from, to int     // minutes since midnight
	zone     Zone
}

// IsZero reports whether h is always.
func (h Hours) IsZero() bool { return h.text == "" }

// Location is the zone in which h is meant.
func (h Hours) Location() *time.Location { return h.zone.Location() }

// String gives h as it was written.
func (h Hours) String() string { return h.text }

// Contains reports whether the moment t is within h. It goes by what a clock
// on the wall shows there, also on the days when it is put forward or back.
func (h Hours) Contains(t time.Time) bool {
	if h.IsZero() {
		return true
	}
	t = t.In(h.Location())
	minute := t.Hour()*60 + t.Minute()
	today, yesterday := h.days[t.Weekday()], h.days[(t.Weekday()+6)%7]
	if h.from < h.to {
		return today && h.from <= minute && minute < h.to
	}
	return today && minute >= h.from || yesterday && minute < h.to
}

// Allowed says how hours are written.
func (Hours) Allowed() string { return "days, times, and a time zone if not the system's" }

// Example shows hours.
func (Hours) Example() string { return "Mon-Fri 08:00-18:00 Europe/Berlin" }

// UnmarshalText reads hours.
func (h *Hours) UnmarshalText(text []byte) error {
	words := strings.Fields(string(text))
	if len(words) < 2 || len(words) > 3 {
		return fmt.Errorf("%.60q is not days and times", text)
	}
	out := Hours{text: strings.Join(words, " ")}
	for _, part := range strings.Split(words[0], ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err := parseDay(first)
		if err != nil {
			return err
		}
		to, err := parseDay(last)
		if err != nil {
			return err
		}
		for day := from; ; day = (day + 1) % 7 {
			out.days[day] = true
			if day == to {
				break
			}
		}
	}
	first, last, _ := strings.Cut(words[1], "-")
	var err error
	if out.from, err = parseMinute(first); err != nil {
		return err
	}
	if out.to, err = parseMinute(last); err != nil {
		return err
	}
	if out.from == out.to {
		return errors.New("the times are no time at all (the whole day is 00:00-24:00)")
	}
	if out.from == 24*60 {
		return errors.New("no time begins at 24:00 (the next day begins at 00:00)")
	}
	if len(words) == 3 {
		if err := out.zone.UnmarshalText([]byte(words[2])); err != nil {
			return err
		}
	}
	*h = out
	return nil
}

func parseDay(s string) (time.Weekday, error) {
	for day := time.Sunday; day <= time.Saturday; day++ {
		if strings.EqualFold(s, day.String()[:3]) {
			return day, nil
		}
	}
	return 0, fmt.Errorf("%.20q is not a day (Mon, Tue, Wed, Thu, Fri, Sat, Sun)", s)
}

func parseMinute(s string) (int, error) {
	if s == "24:00" {
		return 24 * 60, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != len("15:04") {
		return 0, fmt.Errorf("%.20q is not a time (00:00 to 24:00)", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}
