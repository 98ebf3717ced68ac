package devices

import (
	"testing"
	"time"
)

func TestBelievable(t *testing.T) {
	now := time.Date(2027, 4, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		own  time.Time
		want bool
	}{
		{time.Time{}, false},
		{time.Unix(0, 0).UTC(), false},
		{time.Date(2019, 12, 31, 23, 59, 59, 0, time.UTC), false},
		{time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), true},
		{now, true},
		{now.Add(5 * time.Minute), true},
		{now.Add(5*time.Minute + 1), false},
	} {
		if got := Believable(c.own, now); got != c.want {
			t.Errorf("%v is believed: %v", c.own, got)
		}
	}
}
