package devices

import "time"

// Believable reports whether a device's own time can be right, now being the
// time when it was received: a clock that was never set counts from 1970 or
// 2000, and one that is ahead would hide all that comes after.
func Believable(own, now time.Time) bool {
	return own.Year() >= 2020 && !own.After(now.Add(5*time.Minute))
}
