package clock

import (
	"bytes"
	"testing"
	"testing/quick"
	"time"
)

func TestStampForms(t *testing.T) {
	// What these are is on disks.
	s := Stamp{0x4f2a, 90 * time.Second, time.UnixMicro(1_800_000_000_000_001).UTC(), true}
	b, _ := s.MarshalBinary()
	if want := []byte("\x01\xaa\x9e\x01\x80\x95\xf5\x2a\x82\x80\xc4\x89\xe5\xc5\xb2\x06"); !bytes.Equal(b, want) {
		t.Errorf("%x, want %x", b, want)
	}
	text, _ := s.MarshalText()
	if want := "+20266/90000000/1800000000000001"; string(text) != want {
		t.Errorf("%s, want %s", text, want)
	}
}

func TestStampRoundTrip(t *testing.T) {
	both := func(boot uint32, at uint32, wall int64, synced bool) bool {
		s := Stamp{boot, time.Duration(at) * time.Millisecond, time.UnixMicro(wall % 1e17).UTC(), synced}
		b, _ := s.MarshalBinary()
		text, _ := s.MarshalText()
		var fromBinary, fromText Stamp
		return fromBinary.UnmarshalBinary(b) == nil && fromBinary == s && fromText.UnmarshalText(text) == nil && fromText == s
	}
	if err := quick.Check(both, nil); err != nil {
		t.Error(err)
	}
}

func TestStampsThatAreNone(t *testing.T) {
	for _, text := range []string{"", "+", "1/2/3", "+1/2", "+1/-2/3", "+1/2/3x", "!1/2/3", "+4294967296/1/1", "+1/9223372036854775807/1"} {
		if err := new(Stamp).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as a stamp", text)
		}
	}
	good, _ := Stamp{1, time.Hour, spring, false}.MarshalBinary()
	for n := range good {
		if err := new(Stamp).UnmarshalBinary(good[:n]); err == nil {
			t.Errorf("%x is read as a stamp", good[:n])
		}
	}
	if err := new(Stamp).UnmarshalBinary(append(good, 0)); err == nil {
		t.Error("what follows a stamp is overlooked")
	}
}

func TestDatingRoundTrip(t *testing.T) {
	w := newWorld(t, epoch)
	w.Drift(77)
	w.run(3, time.Hour)
	check := func() {
		t.Helper()
		d := w.clock.Date(w.taken[0].Stamp)
		b, _ := d.MarshalBinary()
		var again Dating
		if err := again.UnmarshalBinary(b); err != nil || again != d {
			t.Errorf("%+v became %+v, %v", d, again, err)
		}
		for n := range b {
			if again.UnmarshalBinary(b[:n]) == nil {
				t.Errorf("%x is read as a dating", b[:n])
			}
		}
	}
	check()
	w.Sync(0, 10*time.Millisecond)
	w.run(1, time.Hour)
	check()
}

func FuzzStamp(f *testing.F) {
	good, _ := Stamp{1, time.Hour, spring, true}.MarshalBinary()
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s, again Stamp
		if s.UnmarshalBinary(b) != nil {
			return
		}
		out, _ := s.MarshalBinary()
		if err := again.UnmarshalBinary(out); err != nil || again != s {
			t.Errorf("%x became %+v, %v", b, again, err)
		}
	})
}
