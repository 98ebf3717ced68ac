package calendar

import (
	"testing"
	"time"
)

func hours(t *testing.T, s string) Hours {
	t.Helper()
	var h Hours
	if err := h.UnmarshalText([]byte(s)); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestHoursContain(t *testing.T) {
	tests := []struct {
		hours, at string // at: RFC 3339
		want      bool
	}{
		// 2026-11-23 is a Monday; Berlin is at +01:00 then.
		{"Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-23T07:00:00Z", true},
		{"Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-23T06:59:59Z", false},
		{"Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-23T16:59:59Z", true},
		{"Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-23T17:00:00Z", false},
		{"Mon-Fri 08:00-18:00 Europe/Berlin", "2026-11-28T12:00:00Z", false}, // Saturday
		{"Mon-Fri 08:00-18:00 Europe/Berlin", "2026-07-20T06:00:00Z", true},  // summer time
		{"Sat,Sun 00:00-24:00 UTC", "2026-11-28T00:00:00Z", true},
		{"Sat,Sun 00:00-24:00 UTC", "2026-11-29T23:59:59Z", true},
		{"Sat,Sun 00:00-24:00 UTC", "2026-11-30T00:00:00Z", false},
		{"Fri-Mon 08:00-09:00 UTC", "2026-11-29T08:30:00Z", true}, // Sunday
		{"Fri-Mon 08:00-09:00 UTC", "2026-11-25T08:30:00Z", false},
		{"mon,wed-thu,SUN 08:00-09:00 UTC", "2026-11-26T08:30:00Z", true},
		{"Mon,Wed-Thu,Sun 08:00-09:00 UTC", "2026-11-24T08:30:00Z", false},
		// Over midnight: the night that began on Friday.
		{"Fri 22:00-06:00 UTC", "2026-11-27T22:00:00Z", true},
		{"Fri 22:00-06:00 UTC", "2026-11-28T05:59:59Z", true},
		{"Fri 22:00-06:00 UTC", "2026-11-28T06:00:00Z", false},
		{"Fri 22:00-06:00 UTC", "2026-11-27T05:00:00Z", false},
		{"Sat 22:00-06:00 UTC", "2026-11-29T05:00:00Z", true}, // into Sunday
		{"Fri 22:00-00:00 UTC", "2026-11-27T23:59:59Z", true},
		{"Fri 22:00-00:00 UTC", "2026-11-28T00:00:00Z", false},
		// A clock put forward shows no 02:30, put back shows it twice.
		{"Sun 02:00-03:00 Europe/Berlin", "2026-03-29T01:00:00Z", false},
		{"Sun 02:00-03:00 Europe/Berlin", "2026-10-25T00:30:00Z", true},
		{"Sun 02:00-03:00 Europe/Berlin", "2026-10-25T01:30:00Z", true},
	}
	for _, tt := range tests {
		at, err := time.Parse(time.RFC3339, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := hours(t, tt.hours).Contains(at); got != tt.want {
			t.Errorf("%s contains %s: %t, want %t", tt.hours, tt.at, got, tt.want)
		}
	}
	if !(Hours{}).Contains(time.Time{}) {
		t.Error("the zero hours are not always")
	}
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.Local)
	if h := hours(t, "Mon 12:00-12:01"); !h.Contains(noon) || h.Location() != time.Local {
		t.Error("hours without a zone are not in the system's")
	}
}

func TestHoursRefused(t *testing.T) {
	for _, s := range []string{
		"", "Mon", "08:00-18:00", "Mon 08:00", "Mon 8:00-18:00", "Mon 08:00-18", "Mon 08:00-25:00", "Mon 24:00-08:00", "Mon 08:00-08:00",
		"Monday 08:00-18:00", "Mon- 08:00-18:00", "Mon,,Tue 08:00-18:00", "Mon-Tue-Wed 08:00-18:00", "Mon 08:00-18:00-20:00",
		"Mon 08:00-18:00 Nowhere", "Mon 08:00-18:00 Local", "Mon 08:00-18:00 ../../etc/passwd", "Mon 08:00-18:00 UTC more", "Mon 08:60-18:00", "Mon 08:00–18:00",
	} {
		var h Hours
		if err := h.UnmarshalText([]byte(s)); err == nil || !h.IsZero() {
			t.Errorf("%q is taken as %v", s, h)
		}
	}
}

func FuzzHours(f *testing.F) {
	for _, s := range []string{"Mon-Fri 08:00-18:00 Europe/Berlin", "Sat,Sun 22:00-06:00", "Mon 00:00-24:00 UTC", "Fri-Mon,Wed 1:1-2", "- - -"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var h, again Hours
		if h.UnmarshalText([]byte(s)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(h.String())); err != nil {
			t.Fatalf("%q was read and %q is not: %v", s, h, err)
		}
		// Whatever was read contains some minute of the week, and not the same
		// minutes as its own text does not.
		some := false
		for at := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC); at.Day() < 9; at = at.Add(time.Minute) {
			in := h.Contains(at)
			some = some || in
			if in != again.Contains(at) {
				t.Fatalf("%q and %q differ at %v", s, h, at)
			}
		}
		if !some {
			t.Errorf("%q contains no minute of a week", s)
		}
	})
}
