package access

import (
	"reflect"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

func TestGrants(t *testing.T) {
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	gs := Grants{
		{JID: "anna@example.org", Role: Owner},
		{JID: "bob@example.net", Role: Operator, Devices: []string{"kitchen-*", "hall"}},
		{JID: "carl@example.net", Role: Viewer, Until: noon},
		{JID: "dora@example.net", Role: Viewer, Hours: func(t time.Time) bool { return t.Hour() < 12 }},
		{JID: "dora@example.net", Role: Viewer, Devices: []string{"hall"}},
	}
	for _, c := range []struct {
		who    string
		role   Role
		device devices.ID
		at     time.Time
		want   bool
	}{
		{"anna@example.org", Viewer, "kitchen-1", noon, true},
		{"anna@example.org", Owner, "kitchen-1", noon, true},
		{"bob@example.net", Operator, "kitchen-1", noon, true},
		{"bob@example.net", Installer, "kitchen-1", noon, false},
		{"bob@example.net", Viewer, "kitchen", noon, false},
		{"bob@example.net", Viewer, "hall", noon, true},
		{"carl@example.net", Viewer, "hall", noon.Add(-time.Second), true},
		{"carl@example.net", Viewer, "hall", noon, false},
		{"dora@example.net", Viewer, "cellar", noon.Add(-time.Second), true},
		{"dora@example.net", Viewer, "cellar", noon, false},
		{"dora@example.net", Viewer, "hall", noon, true},
		{"eve@example.org", Viewer, "hall", noon, false},
	} {
		if got := gs.Allows(c.who, c.role, c.device, c.at); got != c.want {
			t.Errorf("%s as %d on %s at %s: %v", c.who, c.role, c.device, c.at, got)
		}
	}
	want := []string{"anna@example.org", "bob@example.net", "dora@example.net"}
	if got := gs.People(noon); !reflect.DeepEqual(got, want) {
		t.Errorf("people %v, want %v", got, want)
	}
	if gs.Plays("bob@example.net", Installer, noon) || !gs.Plays("bob@example.net", Viewer, noon) {
		t.Error("bob is an operator")
	}
}

func TestGrantsChange(t *testing.T) {
	noon := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	gs := Grants{
		{JID: "anna@example.org", Role: Owner},
		{JID: "carl@example.net", Role: Viewer, Until: noon.Add(time.Hour)},
		{JID: "dora@example.net", Role: Viewer, Hours: func(t time.Time) bool { return t.Hour() == 14 }},
	}
	for minute, want := range map[int]bool{30: false, 60: true, 90: false, 120: true, 180: true, 240: false} {
		at := noon.Add(time.Duration(minute) * time.Minute)
		if got := gs.Change(at.Add(-5*time.Second), at); got != want {
			t.Errorf("at %s: %v", at.Format(time.TimeOnly), got)
		}
	}
}
