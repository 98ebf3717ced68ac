package access

import (
	"reflect"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/agent/calendar"
	"github.com/porchlight-iot/porchlight/devices"
)

func hours(s string) (h calendar.Hours) {
	if err := h.UnmarshalText([]byte(s)); err != nil {
		panic(err)
	}
	return h
}

// noon is a Monday's.
var noon = Moment{time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), true}

func (m Moment) plus(d time.Duration) Moment { return Moment{m.Time.Add(d), m.Known} }

func TestGrants(t *testing.T) {
	gs := Grants{
		{JID: "anna@example.org", Role: Owner},
		{JID: "bob@example.net", Role: Operator, Devices: []string{"kitchen-*", "hall"}},
		{JID: "carl@example.net", Role: Viewer, Until: calendar.Date{Year: 2026, Month: 11, Day: 24}, Hours: hours("Mon-Sun 00:00-24:00 UTC")},
		{JID: "dora@example.net", Role: Viewer, Hours: hours("Mon 08:00-12:00 UTC")},
		{JID: "dora@example.net", Role: Viewer, Devices: []string{"hall"}},
	}
	for _, c := range []struct {
		who    string
		role   Role
		device devices.ID
		at     Moment
		want   bool
	}{
		{"anna@example.org", Viewer, "kitchen-1", noon, true},
		{"anna@example.org", Owner, "kitchen-1", noon, true},
		{"bob@example.net", Operator, "kitchen-1", noon, true},
		{"bob@example.net", Installer, "kitchen-1", noon, false},
		{"bob@example.net", Viewer, "kitchen", noon, false},
		{"bob@example.net", Viewer, "hall", noon, true},
		{"carl@example.net", Viewer, "hall", noon.plus(12*time.Hour - time.Second), true},
		{"carl@example.net", Viewer, "hall", noon.plus(12 * time.Hour), false},
		{"dora@example.net", Viewer, "cellar", noon.plus(-time.Second), true},
		{"dora@example.net", Viewer, "cellar", Moment{noon.Time.Add(-time.Second), false}, false},
		{"dora@example.net", Viewer, "cellar", noon, false},
		{"dora@example.net", Viewer, "hall", Moment{noon.Time, false}, true},
		{"eve@example.org", Viewer, "hall", noon, false},
	} {
		if got := gs.Allows(c.who, c.role, c.device, c.at); got != c.want {
			t.Errorf("%s as %s on %s at %v: %v", c.who, c.role, c.device, c.at, got)
		}
	}
	want := []string{"anna@example.org", "bob@example.net", "carl@example.net", "dora@example.net"}
	if got := gs.People(Viewer, noon); !reflect.DeepEqual(got, want) {
		t.Errorf("people %v, want %v", got, want)
	}
	if got := gs.Duty(Operator, "hall", noon); !reflect.DeepEqual(got, want[:2]) {
		t.Errorf("on duty %v, want %v", got, want[:2])
	}
	if gs.Plays("bob@example.net", Installer, noon) || !gs.Plays("bob@example.net", Viewer, noon) {
		t.Error("bob is an operator")
	}
	if a, b := gs.Holding(noon.plus(-time.Second)), gs.Holding(noon); !a[3] || b[3] || !b[4] {
		t.Errorf("holding %v, then %v", a, b)
	}
}

func TestWithin(t *testing.T) {
	day := func(d int) calendar.Date { return calendar.Date{Year: 2027, Month: 1, Day: d} }
	all := Grant{Role: Owner}
	some := Grant{Role: Owner, Devices: []string{"kitchen-*", "hall"}}
	work := Grant{Role: Owner, Hours: hours("Mon-Fri 08:00-18:00 UTC")}
	month := Grant{Role: Owner, Until: day(10)}
	for _, c := range []struct {
		inner, outer Grant
		want         bool
	}{
		{Grant{Role: Viewer}, all, true},
		{all, all, true},
		{all, Grant{Role: Installer}, false},
		{Grant{Role: Viewer}, some, false},
		{Grant{Role: Viewer, Devices: []string{"hall"}}, some, true},
		{Grant{Role: Viewer, Devices: []string{"kitchen-1", "kitchen-*"}}, some, true},
		{Grant{Role: Viewer, Devices: []string{"kitchen-1*"}}, some, false}, // it is, but that is not seen
		{Grant{Role: Viewer, Devices: []string{"hall", "cellar"}}, some, false},
		{Grant{Role: Viewer}, work, false},
		{Grant{Role: Viewer, Hours: work.Hours}, work, true},
		{Grant{Role: Viewer}, month, false},
		{Grant{Role: Viewer, Until: day(10)}, month, true},
		{Grant{Role: Viewer, Until: day(11)}, month, false},
	} {
		if got := c.inner.within(c.outer); got != c.want {
			t.Errorf("%+v within %+v: %v", c.inner, c.outer, got)
		}
	}
}
