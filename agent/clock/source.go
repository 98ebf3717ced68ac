package clock

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Source is the raw clock of a machine.
type Source interface {
	// Boot identifies this boot among all of the machine's.
	Boot() (string, error)
	// Sample reads the clocks, as good as at once.
	Sample() Sample
}

// A Sample is what a machine's clocks show at one moment.
type Sample struct {
	Boottime time.Duration // since the boot, suspends included
	Wall     time.Time     // right only with Synced
	Synced   bool          // whether something keeps Wall right
	MaxError time.Duration // the most that Wall is wrong by while Synced, as the kernel has it
}

// System is the Source of a Linux machine.
type System struct {
	// Root is where /proc and /run are; "" is "/".
	Root string
}

// Boot implements [Source]. It is random(4)'s boot_id.
func (s System) Boot() (string, error) {
	id, err := os.ReadFile(s.Root + "/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot tell this boot from others: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

const (
	// The clocks are read again when reading them took longer than this:
	// something came between, which would look like a step of one of them.
	sampleTime  = time.Millisecond
	sampleTries = 10
)

// Sample implements [Source].
func (s System) Sample() Sample {
	var sample Sample
	for range sampleTries {
		// Synced must hold before and after: between the time that a
		// synchronised kernel has and what it had before lie decades.
		before, _ := s.synced()
		start := boottime()
		sample.Wall = time.Now().Round(0).UTC()
		took := boottime() - start
		sample.Synced, sample.MaxError = s.synced()
		sample.Synced = sample.Synced && before
		sample.Boottime = start + took/2
		if took <= sampleTime {
			break
		}
		sample.Synced = false
	}
	return sample
}

func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // since Linux 2.6.39 it is always there
	}
	return time.Duration(ts.Nano())
}

// synced asks the kernel (adjtimex(2), which needs no privilege to read), and
// where a seccomp filter forbids that, as systemd's ProtectClock= does, looks
// for the file that systemd-timesyncd touches whenever it has set the clock.
func (s System) synced() (bool, time.Duration) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err == nil {
		ok := state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
		return ok, time.Duration(t.Maxerror) * time.Microsecond
	}
	return s.touched(time.Now())
}

// touched judges the file by its age as the kernel judges the last correction:
// the error grows by 500 ppm, and at 16 s the clock is no longer synchronised
// (MAXFREQ and NTP_PHASE_LIMIT of linux/timex.h). It also finds out a clock
// that was set by hand since.
func (s System) touched(now time.Time) (bool, time.Duration) {
	const phaseLimit = 16 * time.Second
	info, err := os.Stat(s.Root + "/run/systemd/timesync/synchronized")
	if err != nil {
		return false, 0
	}
	age := now.Sub(info.ModTime())
	wrong := age / 2000
	return age >= 0 && wrong < phaseLimit, wrong
}
