package profile

import (
	"math"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// time finds the reading's own time.
func (r *reading) time(doc *node) time.Time {
	for _, rule := range r.profile.file.Time {
		n, _ := rule.Path.find(doc)
		if whole := r.heard.peek(); n == nil && whole != nil {
			n, _ = rule.Path.find(whole)
		}
		if t := r.believed(rule, n); !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

// believed reads a time, zero where there is none that can be believed.
func (r *reading) believed(rule timeRule, n *node) time.Time {
	if n == nil || n.kind != valueNode {
		return time.Time{}
	}
	if t, ok := rule.parse(n.value, r.at.Location); ok && devices.Believable(t, r.heard.Received) {
		return t
	}
	return time.Time{}
}

// isTime reports whether a member is where a time is looked for, and is one.
// It is then no field, whether the time can be believed or not.
func (p *Profile) isTime(members []string, v devices.Value) bool {
	return slices.ContainsFunc(p.file.Time, func(rule timeRule) bool {
		if !slices.Equal(rule.Path, members) {
			return false
		}
		_, ok := rule.parse(v, time.UTC)
		return ok
	})
}

func (rule timeRule) parse(v devices.Value, zone *time.Location) (time.Time, bool) {
	if unit, ok := map[string]float64{"s": 1, "ms": 1e3, "us": 1e6}[rule.Format]; ok {
		v, ok := number(v)
		if !ok {
			return time.Time{}, false
		}
		return fromSeconds(v.Float() / unit)
	}
	if v.Kind() != devices.TextValue && rule.Format != "dsmr" {
		return time.Time{}, false
	}
	switch {
	case rule.Zone == "utc":
		zone = time.UTC
	case zone == nil:
		zone = time.Local
	}
	if rule.Format == "dsmr" {
		return parseDSMRTime(v.String(), zone)
	}
	for _, layout := range []string{
		"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05",
		"2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05",
	} {
		if t, err := time.ParseInLocation(layout, v.String(), zone); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// fromSeconds takes seconds since 1970, to the microsecond.
func fromSeconds(s float64) (time.Time, bool) {
	if !(s >= 0 && s <= 1e11) { // written so that NaN is refused too
		return time.Time{}, false
	}
	return time.UnixMicro(int64(math.Round(s * 1e6))), true
}

// parseDSMRTime reads a time such as 161113205757W, which is local: W says that it
// is winter's, S that it is summer's, which counts in the hour that comes twice
// (DSMR P1 Companion Standard 5.0.2, section 6.4).
func parseDSMRTime(s string, zone *time.Location) (time.Time, bool) {
	season := ""
	if len(s) == 13 {
		s, season = s[:12], s[12:]
	}
	t, err := time.ParseInLocation("060102150405", s, zone)
	if err != nil {
		return t, false
	}
	if other := t.Add(time.Hour); season == "W" && t.IsDST() && other.Format("060102150405") == s && !other.IsDST() {
		t = other
	}
	if other := t.Add(-time.Hour); season == "S" && !t.IsDST() && other.Format("060102150405") == s && other.IsDST() {
		t = other
	}
	return t, true
}
