package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// resources are what a process holds while nothing is wrong.
type resources struct {
	goroutines, files int
	memory            int // KiB resident
}

func (r resources) String() string {
	return fmt.Sprintf("%d goroutines, %d file descriptors, %.1f MiB", r.goroutines, r.files, float64(r.memory)/1024)
}

// leaks compares what a gateway holds before faults and after. Each process is
// compared with itself, and the one tells most that lived through most cycles.
type leaks struct {
	pid           int
	since         int // the cycle after which first was
	first         resources
	cycles        int // that the best one lived through
	before, after resources
	failed        error
}

// look looks at the gateway after a cycle, when all is mended and quiet.
func (l *leaks) look(ctx context.Context, g *gateway, cycle int) {
	p := g.current()
	if p == nil {
		return
	}
	now, err := held(ctx, p, g.log.Name())
	if err != nil {
		l.failed = err // it may have been a fault's end
		return
	}
	if pid := p.cmd.Process.Pid; pid != l.pid {
		l.pid, l.since, l.first = pid, cycle, now
	}
	if n := cycle - l.since; n > 0 && n >= l.cycles {
		l.cycles, l.before, l.after = n, l.first, now
	}
}

func (l leaks) String() string {
	switch {
	case l.cycles == 0 && l.failed != nil:
		return fmt.Sprintf("what the gateway holds is not known: %v", l.failed)
	case l.cycles == 0:
		return "no gateway lived through a cycle, so that what it holds cannot be compared"
	}
	return fmt.Sprintf("the gateway before %d cycles of faults, without a start between: %v; after: %v", l.cycles, l.before, l.after)
}

// held asks a process for its goroutines, which also has it give back the
// memory that it does not use, and the system for the rest.
func held(ctx context.Context, p *process, log string) (r resources, err error) {
	ctx, cancel := context.WithTimeout(ctx, forwarding)
	defer cancel()
	info, err := os.Stat(log)
	if err != nil {
		return r, err
	}
	if err := p.signal(syscall.SIGUSR1); err != nil {
		return r, err
	}
	if err := waitForText(ctx, log, info.Size(), "goroutines "); err != nil {
		return r, err
	}
	pause(ctx, 50*time.Millisecond) // for the end of the line, and for the memory to be gone
	said, err := os.ReadFile(log)
	if err != nil {
		return r, err
	}
	_, text, _ := bytes.Cut(said[info.Size():], []byte("goroutines "))
	if _, err := fmt.Sscan(string(text), &r.goroutines); err != nil {
		return r, err
	}
	proc := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	files, err := os.ReadDir(proc + "fd")
	if err != nil {
		return r, err
	}
	r.files = len(files)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return r, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	r.memory, err = strconv.Atoi(kib)
	return r, err
}
