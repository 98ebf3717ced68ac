package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A machine is what the gateway is told of its machine's clock, in a file that
// a build with the tag torture reads: nobody's clock is set.
type machine struct {
	path string

	mu    sync.Mutex
	ahead time.Duration // of the true time
	wrong time.Duration // the most that the clock is wrong by; -1 where nothing keeps it
	began time.Duration // of this machine's boottime, when the one of the gateway booted
	boots int
}

// change changes the clock, in one step.
func (m *machine) change(do func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	do()
	text := fmt.Sprintln(m.ahead, m.wrong, m.began, m.boots)
	if err := os.WriteFile(m.path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(m.path+".new", m.path)
}

// step sets the clock by hand, which ends its being kept.
func (m *machine) step(by time.Duration) error {
	return m.change(func() { m.ahead, m.wrong = by, -1 })
}

// sync has the clock be kept again, wrong by some.
func (m *machine) sync(by time.Duration) error {
	return m.change(func() { m.ahead, m.wrong = by, by.Abs() })
}

// boot switches the machine on, in 1970.
func (m *machine) boot() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return err
	}
	return m.change(func() {
		m.ahead, m.wrong = -time.Since(time.Unix(0, 0)), -1
		m.began = time.Duration(now.Nano())
		m.boots++
	})
}
