//go:build torture

package clock

import (
	"fmt"
	"os"
	"time"
)

// Machine is the Source of the machine that this runs on, as the file has it
// that the environment names: PORCHLIGHT_CLOCK. Its one line is how far the wall
// clock is ahead, the most that it is wrong by while something keeps it right,
// or -1ns where nothing does, how long after this machine's boot the one began
// that is told of, and that one's number: "-1h0m0s -1ns 0s 0". So a clock is
// stepped that nobody may set.
func Machine() Source {
	if path := os.Getenv("PORCHLIGHT_CLOCK"); path != "" {
		return &told{path: path}
	}
	return System{}
}

type told struct {
	System
	path string
}

func (t *told) read() (ahead, maxError, began time.Duration, boot int) {
	text, err := os.ReadFile(t.path)
	if err != nil {
		panic(err)
	}
	var a, m, b string
	if _, err := fmt.Sscan(string(text), &a, &m, &b, &boot); err != nil {
		panic(fmt.Errorf("%s: %q: %w", t.path, text, err))
	}
	for d, s := range map[*time.Duration]string{&ahead: a, &maxError: m, &began: b} {
		if *d, err = time.ParseDuration(s); err != nil {
			panic(err)
		}
	}
	return ahead, maxError, began, boot
}

// Boot implements [Source].
func (t *told) Boot() (string, error) {
	id, err := t.System.Boot()
	if _, _, _, boot := t.read(); boot > 0 && err == nil {
		id = fmt.Sprintf("%08x", boot) + id[8:]
	}
	return id, err
}

// Sample implements [Source].
func (t *told) Sample() Sample {
	ahead, maxError, began, _ := t.read()
	s := t.System.Sample()
	s.Wall = s.Wall.Add(ahead)
	s.Boottime -= began
	s.Synced, s.MaxError = maxError >= 0, max(0, maxError)
	return s
}
