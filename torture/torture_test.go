package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTorture has some of each kind of fault.
func TestTorture(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	for name, faults := range map[string]string{
		"links":    "link-cut,link-flap,link-held,link-up-held,link-down-held,server-,broker-",
		"restarts": "kill,term,power-cut,server-,broker-",
		"disks":    "disk-",
		"time":     "clock-,stop",
	} {
		t.Run(name, func(t *testing.T) {
			o := options{cycles: 3, seed: 1, faults: faults, ack: "server", patience: 3 * time.Minute, dir: t.TempDir()}
			if _, err := torture(t.Context(), o, t.Output()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	all, err := choose("", true)
	if err != nil {
		t.Fatal(err)
	}
	happened := make(map[string]bool)
	for cycle := range 200 {
		faults := plan(1, cycle, all)
		if !reflect.DeepEqual(faults, plan(1, cycle, all)) {
			t.Fatalf("cycle %d has two plans", cycle)
		}
		for _, f := range faults {
			happened[f.name] = true
			if f.at < 200*time.Millisecond || f.until-f.at > 3*time.Second || f.lasts != (f.until > f.at) || f.kind.link != (f.link != "") {
				t.Errorf("cycle %d: %+v", cycle, f)
			}
		}
	}
	if len(happened) != len(all) {
		t.Errorf("only %v happened", happened)
	}
	if reflect.DeepEqual(plan(1, 1, all), plan(2, 1, all)) {
		t.Error("two seeds have one plan")
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		list string
		disk bool
		want string
	}{
		{"kill,server-", true, "kill server-stop server-kill server-stall"},
		{"kill,power-cut", false, "kill"},
		{"server", true, ""},
		{"disk-", false, ""},
	} {
		chosen, err := choose(c.list, c.disk)
		var got []string
		for _, k := range chosen {
			got = append(got, k.name)
		}
		if strings.Join(got, " ") != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%q, disk %v: %q, %v, want %q", c.list, c.disk, got, err, c.want)
		}
	}
}

// wrap makes an item of a pack in CBOR.
func wrap(t *testing.T, pack string) []byte {
	t.Helper()
	raw, err := hex.DecodeString(strings.ReplaceAll(pack, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, "<data xmlns='urn:xmpp:bob' type='application/senml+cbor' cid='sha-256+%x@bob.xmpp.org'>%s</data>",
		sha256.Sum256(raw), base64.StdEncoding.EncodeToString(raw))
}

func TestNumbers(t *testing.T) {
	// {-2: "a/d/", 0: "n", 2: 7}
	const first = "a3 21 64 612f642f 00 61 6e 02 07"
	for _, c := range []struct {
		pack string
		want []int
		err  string
	}{
		{"81" + first, []int{7}, ""},
		{"82" + first + "a3 00 61 6e 02 190100 61 6f 42 0102", []int{7, 256}, ""}, // with the label o
		{"82" + first + "a2 00 61 6e 02 fb 4070000000000000", []int{7, 256}, ""},  // as a float
		{"82" + first + "a3 24 1864 00 61 6e 02 f9 3c00", []int{7, 101}, ""},      // base value and half
		{"82" + first + "a2 00 61 78 02 08", []int{7}, ""},                        // another field
		{"81 a3 21 64 612f652f 00 61 6e 02 07", nil, "a record of d is named"},    // another device
		{"82" + first + "a2 00 61 6e 02 fb 3ff8000000000000", nil, "no whole number"},
		{"82" + first, nil, "cut short"},
		{"81" + first + "00", nil, "1 bytes follow"},
		{"a0", nil, "no array"},
		{"81 9f ff", nil, "cut short"},                // indefinite length
		{"81 81 81 81 81 81 81 00", nil, "cut short"}, // too deep
		{"9b ffffffffffffffff 00", nil, "cut short"},  // a huge array
	} {
		rs, _, err := readings("d", wrap(t, c.pack))
		var got []int
		for _, r := range rs {
			got = append(got, r.n)
		}
		if c.err == "" && (err != nil || !slices.Equal(got, c.want)) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, %v, want %v %s", c.pack, got, err, c.want, c.err)
		}
	}
	spoilt := strings.Replace(string(wrap(t, "81"+first)), "sha-256+", "sha-256+0", 1)
	if _, _, err := readings("d", []byte(spoilt)); err == nil {
		t.Error("a wrong cid goes unnoticed")
	}
}

// TestVerdict tells each fault from the others.
func TestVerdict(t *testing.T) {
	pack := func(ns ...int) []byte {
		text := fmt.Sprintf("%02x", 0x80+len(ns))
		for _, n := range ns {
			text += fmt.Sprintf("a3 21 64 612f642f 00 61 6e 02 %02x", n)
		}
		return wrap(t, text)
	}
	type arrival struct {
		id string
		ns []int
	}
	for _, c := range []struct {
		name     string
		acked    []int // of 9 and later it is excused
		arrivals []arrival
		want     verdict
	}{
		{"well", []int{1, 2, 3}, []arrival{{"s.1-1-2", []int{1, 2}}, {"s.1-3-3", []int{3}}}, verdict{acknowledged: 3, delivered: 3}},
		{"more than was acknowledged", []int{1}, []arrival{{"s.1-1-2", []int{1, 2}}}, verdict{acknowledged: 1, delivered: 2}},
		{"an item again", []int{1}, []arrival{{"s.1-1-1", []int{1}}, {"s.1-1-1", []int{1}}}, verdict{acknowledged: 1, delivered: 1}},
		{"lost", []int{1, 2}, []arrival{{"s.1-2-2", []int{2}}}, verdict{acknowledged: 2, delivered: 1, lost: 1}},
		{"excused", []int{1, 9}, []arrival{{"s.1-1-1", []int{1}}}, verdict{acknowledged: 2, delivered: 1, excused: 1}},
		{"excused, as an item", []int{9}, []arrival{{"s.1-1-1", []int{9}}, {"s.1-1-2", []int{9, 10}}}, verdict{acknowledged: 1, delivered: 2, excused: 1}},
		{"not excused: another run", []int{9}, []arrival{{"s.1-1-1", []int{9}}, {"s.2-1-1", []int{9}}}, verdict{acknowledged: 1, delivered: 1, doubled: 1}},
		{"doubled", []int{1}, []arrival{{"s.1-1-1", []int{1}}, {"s.2-1-1", []int{1}}}, verdict{acknowledged: 1, delivered: 1, doubled: 1}},
		{"doubled in one item", []int{1}, []arrival{{"s.1-1-2", []int{1, 1}}}, verdict{acknowledged: 1, delivered: 1, doubled: 1}},
		{"out of order", []int{1, 2}, []arrival{{"s.1-1-1", []int{2}}, {"s.1-2-2", []int{1}}}, verdict{acknowledged: 2, delivered: 2, disordered: 1}},
		{"changed", []int{1, 2}, []arrival{{"s.1-1-2", []int{1, 2}}, {"s.1-1-2", []int{1}}}, verdict{acknowledged: 2, delivered: 2, changed: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := openLedger(filepath.Join(t.TempDir(), "ledger"))
			if err != nil {
				t.Fatal(err)
			}
			s, err := newSubscriber("anna@localhost", "", "", nil, "pubsub.localhost", "gw", []string{"d"}, t.Logf)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range c.acked {
				l.acknowledged("d", n)
			}
			lied := l.acked["d"][9]
			for _, a := range c.arrivals {
				s.take("d", itemElement{a.id, pack(a.ns...)})
			}
			got := judge(l, s, func(_ string, at time.Time) bool { return !lied.IsZero() && !at.Before(lied) })
			details := got.details
			got.details = nil
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v %q, want %+v", got, details, c.want)
			}
			if bad := c.want.lost + c.want.doubled + c.want.disordered + c.want.changed; got.good() != (bad == 0) || len(details) != bad {
				t.Errorf("good %v, details %q", got.good(), details)
			}
		})
	}
}

// TestTimes reads the times of a pack and judges them.
func TestTimes(t *testing.T) {
	made := time.Unix(1_800_000_000, 0)
	// {-2: "a/d/", -3: 1800000000, 0: "n", 2: 7}, then t 3600, and then with
	// clk [1799999000, null], and [1800000010, 1800000020]
	const pack = "84 a4 21 64 612f642f 22 1a 6b49d200 00 61 6e 02 07 a3 00 61 6e 02 08 06 190e10" +
		"a4 00 61 6e 02 09 06 190e10 63 636c6b 82 1a 6b49ce18 f6" +
		"a4 00 61 6e 02 0a 06 00 63 636c6b 82 1a 6b49d20a 1a 6b49d214"
	rs, _, err := readings("d", wrap(t, pack))
	if err != nil || len(rs) != 4 {
		t.Fatalf("%+v, %v", rs, err)
	}
	for i, want := range []bool{true, false, true, false} {
		if rs[i].within(made, made.Add(time.Second)) != want || rs[i].marked != (i > 1) {
			t.Errorf("%d: %s is not judged to be %v", rs[i].n, rs[i].tellTime(), want)
		}
	}
}

func TestCompareIDs(t *testing.T) {
	ids := []string{"s.10-1-9", "s.2-10-11", "s.2-9-9", "s.2-1-8"}
	slices.SortStableFunc(ids, compareIDs)
	if want := []string{"s.2-1-8", "s.2-9-9", "s.2-10-11", "s.10-1-9"}; !slices.Equal(ids, want) {
		t.Errorf("sorted %q", ids)
	}
}

// TestLastLine: what the gateway says at its end counts, not the advice after it
// nor what it said in a run before.
func TestLastLine(t *testing.T) {
	for said, want := range map[string]string{
		"--- 1 start\nmsg=online\nporchlight: cannot write the outbox: EROFS\nTake another card.\n--- 2 end, exit status 1\n": "porchlight: cannot write the outbox: EROFS",
		"--- 1 start\nporchlight: cannot x\n--- 2 end\n--- 3 start\nmsg=online\n--- 4 end, signal: killed\n":                  "msg=online",
		"": "",
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(said); err != nil {
			t.Fatal(err)
		}
		if got := (&world{gateway: &gateway{log: f}}).lastLine(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
