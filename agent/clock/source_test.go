package clock

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestSystem(t *testing.T) {
	id, err := System{}.Boot()
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Errorf("boot id %q", id)
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(uptime), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now().Round(0)
	s := System{}.Sample()
	after := time.Now().Round(0)
	if s.Wall.Before(before) || s.Wall.After(after) {
		t.Errorf("wall %v, not between %v and %v", s.Wall, before, after)
	}
	// /proc/uptime shows CLOCK_BOOTTIME, to the hundredth. It was read before.
	if least := time.Duration(seconds * float64(time.Second)); s.Boottime < least-10*time.Millisecond {
		t.Errorf("boottime %v, after an uptime of %v", s.Boottime, least)
	}
	if s.MaxError < 0 || s.Synced && s.MaxError > 16*time.Second {
		t.Errorf("synchronised %v with an error of %v", s.Synced, s.MaxError)
	}
	last := s
	for range 1000 {
		s := System{}.Sample()
		if s.Boottime < last.Boottime {
			t.Fatalf("boottime went from %v to %v", last.Boottime, s.Boottime)
		}
		last = s
	}
	c, err := New(System{}, time.Time{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err = New(System{}, time.Time{}, c.State())
	if err != nil {
		t.Fatal(err)
	}
	at, bounds, certain := c.Resolve(c.Now())
	t.Logf("%s: %v within %v, certain %v; %+v", id, at, bounds, certain, c.Status())
}

func TestSystemWithoutProc(t *testing.T) {
	if id, err := (System{Root: t.TempDir()}).Boot(); err == nil {
		t.Errorf("boot id %q out of nothing", id)
	}
}

// The file of timesyncd is the witness where the kernel may not be asked.
func TestTouched(t *testing.T) {
	s := System{Root: t.TempDir()}
	if ok, _ := s.touched(spring); ok {
		t.Error("synchronised without the file")
	}
	file := filepath.Join(s.Root, "run/systemd/timesync/synchronized")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, spring, spring); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		age, wrong time.Duration
		ok         bool
	}{
		{0, 0, true},
		{2000 * time.Second, time.Second, true},
		{10 * hour, 0, false},
		{-time.Second, 0, false},
		{10 * year, 0, false},
	} {
		ok, wrong := s.touched(spring.Add(c.age))
		if ok != c.ok || ok && wrong != c.wrong {
			t.Errorf("%v after: %v, error %v", c.age, ok, wrong)
		}
	}
}
