package access

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/porchlight-iot/porchlight/agent/calendar"
	"github.com/porchlight-iot/porchlight/devices"
)

// anyJID takes what has the look of one.
func anyJID(s string) error {
	if !strings.Contains(s, "@") {
		return errors.New("not a JID")
	}
	return nil
}

// open makes the registry of a directory at a moment.
func open(t testing.TB, dir string, now *Moment, config Grants) *Registry {
	t.Helper()
	r, err := Open(options(dir, now))
	if err != nil {
		t.Fatal(err)
	}
	r.Configure(config)
	return r
}

func options(dir string, now *Moment) Options {
	return Options{Dir: dir, Now: func() Moment { return *now }, CheckJID: anyJID, Log: slog.New(slog.DiscardHandler)}
}

func TestRegistry(t *testing.T) {
	dir, now := t.TempDir(), noon
	config := Grants{
		{JID: "anna@h", Role: Owner},
		{JID: "bob@h", Role: Operator},
		{JID: "kit@h", Role: Owner, Devices: []string{"kitchen-*"}},
	}
	r := open(t, dir, &now, config)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fails := func(err error, why string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Fatalf("%v, want %s", err, why)
		}
	}
	allows := func(who string, role Role, device devices.ID, want bool) {
		t.Helper()
		for _, r := range []*Registry{r, open(t, dir, &now, config)} { // a restart is the same
			if got := r.Grants().Allows(who, role, device, now); got != want {
				t.Fatalf("%s as %s of %s: %v", who, role, device, got)
			}
		}
	}

	// What is granted takes the place of what the config says.
	must(r.Grant("anna@h", Grant{JID: "bob@h", Role: Viewer, Devices: []string{"hall"}, Hours: hours("Mon-Fri 08:00-18:00 UTC"), Until: calendar.Date{Year: 2026, Month: 12, Day: 1}}))
	allows("bob@h", Viewer, "hall", true)
	allows("bob@h", Operator, "hall", false)
	allows("bob@h", Viewer, "cellar", false)
	now = now.plus(8 * time.Hour)
	allows("bob@h", Viewer, "hall", false)
	if _, fresh, err := r.Knock("bob@h", "hall"); fresh || err != nil {
		t.Fatal("bob waits for what he has in other hours", err)
	}
	now = noon
	must(r.Revoke("anna@h", "bob@h"))
	allows("bob@h", Viewer, "hall", false)
	fails(r.Revoke("anna@h", "bob@h"), "bob@h is granted nothing")

	// Nobody gives what he has not.
	fails(r.Grant("bob@h", Grant{JID: "bob@h", Role: Viewer}), ErrNotAllowed.Error())
	fails(r.Grant("kit@h", Grant{JID: "bob@h", Role: Viewer}), "more than your own")
	fails(r.Grant("kit@h", Grant{JID: "kit@h", Role: Owner}), "more than your own")
	fails(r.Revoke("kit@h", "anna@h"), "more than your own")
	must(r.Grant("kit@h", Grant{JID: "bob@h", Role: Viewer, Devices: []string{"kitchen-1"}}))
	allows("bob@h", Viewer, "kitchen-1", true)
	fails(r.Grant("anna@h", Grant{JID: "carl@h", Role: Viewer, Until: calendar.Date{Year: 2026, Month: 11, Day: 23}}), "2026-11-23 is over already")
	fails(r.Grant("anna@h", Grant{JID: "carl@h", Role: Viewer, Devices: []string{"Küche"}}), "cannot match")
	fails(r.Grant("anna@h", Grant{JID: "carl", Role: Viewer}), "not a JID")

	// There is always an owner of everything.
	fails(r.Revoke("anna@h", "anna@h"), "make somebody else an owner first")
	fails(r.Grant("anna@h", Grant{JID: "anna@h", Role: Installer}), "make somebody else an owner first")
	must(r.Grant("anna@h", Grant{JID: "dora@h", Role: Owner}))
	must(r.Revoke("anna@h", "anna@h"))
	allows("anna@h", Viewer, "hall", false)
	fails(r.Revoke("dora@h", "dora@h"), "make somebody else an owner first")

	// Strangers wait, by number, and get what they ask for beside what they have.
	p, fresh, err := r.Knock("eve@h", "hall")
	if must(err); !fresh || p.Number != 2 {
		t.Fatalf("eve is %+v", p)
	}
	_, fresh, err = r.Knock("eve@h", "cellar")
	if must(err); fresh {
		t.Fatal("eve is new twice")
	}
	_, _, err = r.Knock("bob@h", "hall")
	must(err)
	_, _, err = r.Knock("bob@h", "kitchen-1")
	must(err)
	if all := open(t, dir, &now, config).Waiting(); len(all) != 2 || !reflect.DeepEqual(all[0].Wants, []devices.ID{"hall", "cellar"}) || all[1].Number != 4 || len(all[1].Wants) != 1 {
		t.Fatalf("waiting %+v", all)
	}
	_, err = r.Admit("bob@h", 2, Grant{Role: Viewer})
	fails(err, ErrNotAllowed.Error())
	_, err = r.Admit("dora@h", 3, Grant{Role: Viewer})
	fails(err, "nobody of that number")
	_, err = r.Admit("dora@h", 4, Grant{Role: Viewer})
	must(err)
	allows("bob@h", Viewer, "hall", true)
	allows("bob@h", Viewer, "kitchen-1", true)
	_, err = r.Deny("dora@h", 2)
	must(err)
	if _, fresh, _ = r.Knock("eve@h", "attic"); fresh || len(r.Waiting()) > 0 {
		t.Fatal("eve was denied, and waits")
	}
	now = now.plus(31 * 24 * time.Hour)
	if p, fresh, _ = r.Knock("eve@h", "attic"); !fresh || p.Number != 6 {
		t.Fatalf("after a month, eve is %+v", p)
	}
	now = now.plus(8 * 24 * time.Hour)
	if len(r.Waiting()) > 0 {
		t.Fatal("eve waits for more than a week")
	}
	now.Known = false
	if len(r.Waiting()) != 1 {
		t.Fatal("whether a week is over is not known")
	}
}

// TestPeopleAreBounded has more strangers than anybody can look at.
func TestPeopleAreBounded(t *testing.T) {
	now := noon
	r := open(t, t.TempDir(), &now, Grants{{JID: "anna@h", Role: Owner}})
	for i := range maxPeople + 10 {
		_, fresh, err := r.Knock(strings.Repeat("x", i+1)+"@h", "hall")
		if fresh != (i < maxPeople) || (err == nil) != fresh {
			t.Fatalf("stranger %d: %v, %v", i, fresh, err)
		}
	}
	for i := range 2 * maxWants {
		if _, _, err := r.Knock("x@h", devices.ID(strings.Repeat("y", i+1))); err != nil {
			t.Fatal(err)
		}
	}
	if all := r.Waiting(); len(all) != maxPeople || len(all[0].Wants) != maxWants {
		t.Errorf("%d wait, the first for %d devices", len(all), len(all[0].Wants))
	}
}

// TestBrokenFile has somebody make a mistake in the file.
func TestBrokenFile(t *testing.T) {
	dir, now := t.TempDir(), noon
	config := Grants{{JID: "anna@h", Role: Owner}, {JID: "bob@h", Role: Operator}, {JID: "olga@h", Role: Owner}}
	r := open(t, dir, &now, config)
	for _, err := range []error{r.Revoke("anna@h", "olga@h"), r.Grant("anna@h", Grant{JID: "carl@h", Role: Viewer})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, file)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := strings.Replace(string(good), "role: viewer", "role: boss", 1)
	if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	who := func(r *Registry) string { return strings.Join(r.Grants().People(Viewer, now), " ") }
	if err := r.Reload(); err == nil || !strings.Contains(err.Error(), "access.yaml:9:11: grants[0].role:") {
		t.Errorf("reading it: %v", err)
	}
	if got := who(r); got != "anna@h bob@h carl@h" {
		t.Errorf("a gateway at work has %s", got)
	}
	if err := r.Revoke("anna@h", "bob@h"); err == nil || !strings.Contains(err.Error(), "access.yaml has to be mended first") {
		t.Errorf("a change: %v", err)
	}
	fresh, err := Open(options(dir, &now))
	if err == nil {
		t.Error("a start with a broken file")
	}
	fresh.Configure(config)
	if got := who(fresh); got != "anna@h" {
		t.Errorf("a start with a broken file has %s", got)
	}
	fresh.Configure(nil)
	if err := fresh.OfferClaim(); err != nil || fresh.claim.code != "" {
		t.Errorf("it can be claimed: %v", err)
	}
	if left, err := os.ReadFile(path); err != nil || string(left) != bad {
		t.Errorf("the broken file was touched: %v", err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	// What is in the file counts, whoever wrote it.
	if err := r.Revoke("anna@h", "bob@h"); err != nil {
		t.Fatal(err)
	}
	if err := fresh.Reload(); err != nil {
		t.Fatal(err)
	}
	fresh.Configure(config)
	if a, b := who(r), who(fresh); a != "anna@h carl@h" || b != a {
		t.Errorf("mended: %s, and after a start %s", a, b)
	}
}

func TestClaim(t *testing.T) {
	dir, now := t.TempDir(), noon
	r := open(t, dir, &now, Grants{{JID: "bob@h", Role: Installer}})
	code := func() string {
		t.Helper()
		if err := r.OfferClaim(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, ClaimFile)
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("the file: %v, %v", info, err)
		}
		text, _ := os.ReadFile(path)
		return strings.TrimSpace(string(text))
	}
	wrong := func(who, code string) {
		t.Helper()
		if err := r.Claim(who, code); err != ErrNotAllowed {
			t.Fatalf("%s with %s: %v", who, code, err)
		}
	}
	first := code()
	for range claimTries {
		wrong("eve@h", "AAAAA-AAAAA")
	}
	wrong("eve@h", first) // she tried too often
	wrong("mallory@h", "")
	if again := code(); again != first {
		t.Errorf("the code is %s, and %s", first, again)
	}
	if again := open(t, dir, &now, nil); again.OfferClaim() != nil || again.ClaimCode() != first {
		t.Errorf("after a restart the code is %s, and was %s", again.ClaimCode(), first)
	}
	for range claimWrong - claimTries {
		wrong("mallory@h", "AAAAA-AAAAA")
	}
	second := code()
	if second == first {
		t.Fatal("the code stayed")
	}
	if again := open(t, dir, &now, nil); again.OfferClaim() != nil || again.ClaimCode() != second {
		t.Errorf("after a restart the code is %s, and was %s", again.ClaimCode(), second)
	}
	wrong("anna@h", first)
	if err := r.Claim("anna@h", " "+strings.ToLower(strings.ReplaceAll(second, "-", " "))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ClaimFile)); !os.IsNotExist(err) {
		t.Errorf("the file: %v", err)
	}
	wrong("carl@h", second)
	if !open(t, dir, &now, nil).Grants().Plays("anna@h", Owner, now) {
		t.Error("anna is not the owner")
	}
	r.Configure(Grants{{JID: "olga@h", Role: Owner, Devices: []string{"hall"}}})
	if err := r.OfferClaim(); err != nil || r.claim.code != "" {
		t.Errorf("an owner is there, and it can be claimed: %v", err)
	}
}

// TestDecisions has owners, and others, decide at random. Nobody ever gives
// rights that he has not, takes them from whom he may not, or is able to do
// anything once he was revoked; and a restart changes nothing.
func TestDecisions(t *testing.T) {
	ids := []devices.ID{"hall", "kitchen-1", "kitchen-2"}
	people := []string{"anna@h", "bob@h", "carl@h", "dora@h"}
	config := Grants{{JID: "anna@h", Role: Owner}, {JID: "bob@h", Role: Owner, Devices: []string{"kitchen-*"}}, {JID: "carl@h", Role: Operator}}
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		now := noon
		r := open(t, dir, &now, config)
		type right struct {
			who    string
			role   Role
			device devices.ID
		}
		rights := func(r *Registry) map[right]bool {
			all := make(map[right]bool)
			for _, who := range people {
				for role := Viewer; role <= Owner; role++ {
					for _, id := range ids {
						if r.Grants().Allows(who, role, id, now) {
							all[right{who, role, id}] = true
						}
					}
				}
			}
			return all
		}
		for range rapid.IntRange(1, 20).Draw(rt, "decisions") {
			by, whom := rapid.SampledFrom(people).Draw(rt, "by"), rapid.SampledFrom(people).Draw(rt, "whom")
			g := Grant{JID: whom, Role: rapid.SampledFrom([]Role{Viewer, Operator, Installer, Owner}).Draw(rt, "role")}
			g.Devices = rapid.SampledFrom([][]string{nil, {"hall"}, {"kitchen-1"}, {"kitchen-*"}, {"hall", "kitchen-?"}}).Draw(rt, "devices")
			if rapid.Bool().Draw(rt, "until") {
				g.Until = calendar.Date{Year: 2026, Month: 11, Day: rapid.IntRange(23, 30).Draw(rt, "day")}
			}
			before := rights(r)
			what := rapid.SampledFrom([]string{"grant", "grant", "revoke", "knock", "admit", "deny", "wait"}).Draw(rt, "what")
			switch what {
			case "grant":
				err = r.Grant(by, g)
			case "revoke":
				err = r.Revoke(by, whom)
			case "knock":
				_, _, err = r.Knock(by, rapid.SampledFrom(ids).Draw(rt, "device"))
			case "admit", "deny":
				all := r.Waiting()
				if len(all) == 0 {
					continue
				}
				if p := rapid.SampledFrom(all).Draw(rt, "person"); what == "deny" {
					_, err = r.Deny(by, p.Number)
				} else {
					_, err = r.Admit(by, p.Number, g)
				}
			case "wait":
				now = now.plus(time.Duration(rapid.IntRange(0, 40).Draw(rt, "hours")) * time.Hour)
				continue
			}
			after := rights(r)
			if err != nil && !reflect.DeepEqual(before, after) {
				rt.Fatalf("%s by %s failed (%v), and changed rights", what, by, err)
			}
			for x := range after {
				if !before[x] && !before[right{by, Owner, x.device}] {
					rt.Fatalf("%s by %s gave %v", what, by, x)
				}
			}
			for x := range before {
				if !after[x] && !before[right{by, Owner, x.device}] {
					rt.Fatalf("%s by %s took %v", what, by, x)
				}
			}
			if what == "revoke" && err == nil && r.Grants().Plays(whom, Viewer, now) {
				rt.Fatalf("%s was revoked, and has rights", whom)
			}
			if (what == "knock" || what == "deny") && !reflect.DeepEqual(before, after) {
				rt.Fatalf("%s changed rights", what)
			}
			if !reflect.DeepEqual(rights(open(t, dir, &now, config)), after) {
				rt.Fatalf("a restart changes rights")
			}
		}
		for _, p := range r.Waiting() {
			if p.Number%2 != 0 {
				rt.Fatalf("%s has the number of a device", p.JID)
			}
		}
	})
}

// TestFile writes any state, and reads it.
func TestFile(t *testing.T) {
	now := noon
	dir := t.TempDir()
	r := open(t, dir, &now, nil)
	rapid.Check(t, func(rt *rapid.T) {
		jid := func() string {
			return strings.ToLower(rapid.StringMatching(`[^/@A-Z]{1,20}@[a-z]{1,5}`).Draw(rt, "jid"))
		}
		at := func() time.Time {
			return time.Unix(rapid.Int64Range(0, 4e9).Draw(rt, "at"), 0).UTC()
		}
		var s state
		for range rapid.IntRange(0, 3).Draw(rt, "grants") {
			g := Grant{JID: jid(), Role: Role(rapid.IntRange(1, 4).Draw(rt, "role")), By: jid(), At: at()}
			g.Devices = rapid.SampledFrom([][]string{nil, {"hall"}, {"[a-c]*", "x-?"}}).Draw(rt, "devices")
			g.Hours = rapid.SampledFrom([]calendar.Hours{{}, hours("Sat,Sun 22:00-06:00 Europe/Berlin")}).Draw(rt, "hours")
			g.Until = rapid.SampledFrom([]calendar.Date{{}, {Year: 2030, Month: 2, Day: 28}}).Draw(rt, "until")
			s.grants = append(s.grants, g)
		}
		for range rapid.IntRange(0, 3).Draw(rt, "revoked") {
			s.revoked = append(s.revoked, revocation{jid(), jid(), at()})
		}
		for range rapid.IntRange(0, 3).Draw(rt, "people") {
			s.last += 2
			s.people = append(s.people, Person{s.last, jid(), []devices.ID{"hall", "gateway"}, at(), rapid.Bool().Draw(rt, "refused")})
		}
		if err := r.write(s); err != nil {
			rt.Fatal(err)
		}
		got, err := r.read()
		if err != nil {
			text, _ := os.ReadFile(r.path())
			rt.Fatalf("%v in\n%s", err, text)
		}
		if !reflect.DeepEqual(got, s) {
			rt.Fatalf("%+v became %+v", s, got)
		}
	})
}
