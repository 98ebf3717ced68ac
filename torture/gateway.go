package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	restartAfter = 200 * time.Millisecond
	// stopTime is far more than the gateway takes to stop in order.
	stopTime = 30 * time.Second
	// deadStarts is how often in a row the gateway may fail to start while
	// nothing is wrong.
	deadStarts = 10
)

// A gateway is the program under test, and the service manager that starts it
// again whenever it ends.
type gateway struct {
	program, config string
	env             []string      // more than we have
	point           func() string // gives the crash point of a life, "" for none; nil is none
	log             *os.File
	say             func(format string, args ...any)

	power sync.Mutex // held while it must not be started

	mu     sync.Mutex
	now    *process // nil while it is down
	wanted bool     // its end is our doing
	alone  int      // ends in a row that were its own
	ended  int      // all of those
}

// run keeps the gateway running until ctx ends.
func (g *gateway) run(ctx context.Context) {
	for ctx.Err() == nil {
		g.power.Lock()
		fmt.Fprintf(g.log, "--- %s start\n", time.Now().Format(stamp))
		env := g.env
		if g.point != nil {
			env = append(slices.Clone(env), "PORCHLIGHT_CRASH="+g.point())
		}
		p, err := start(g.log, env, g.program, "run", "-c", g.config)
		if err == nil {
			g.mu.Lock()
			g.now, g.wanted = p, false
			g.mu.Unlock()
		}
		g.power.Unlock()
		if err != nil {
			g.say("%v", err)
			return
		}
		began := time.Now()
		select {
		case <-p.done:
			g.note(p, time.Since(began))
		case <-ctx.Done():
			p.kill()
		}
		select {
		case <-time.After(restartAfter):
		case <-ctx.Done():
		}
	}
}

func (g *gateway) note(p *process, lasted time.Duration) {
	g.mu.Lock()
	wanted := g.wanted
	g.now = nil
	if wanted || lasted > stopTime {
		g.alone = 0
	}
	if !wanted {
		g.alone++
		g.ended++
	}
	g.mu.Unlock()
	if !wanted {
		g.say("the gateway ended by itself after %v: %v", lasted.Round(time.Millisecond), p.err)
	}
	fmt.Fprintf(g.log, "--- %s end, %v\n", time.Now().Format(stamp), p.err)
}

// dead reports that it fails to start again and again.
func (g *gateway) dead() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.alone >= deadStarts
}

// forgive is for when what was wrong was mended.
func (g *gateway) forgive() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alone = 0
}

// running gives the process, whose end is our doing from now on; nil while it
// is down.
func (g *gateway) running() *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = true
	return g.now
}

// current gives the process; nil while it is down.
func (g *gateway) current() *process {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now
}

func (g *gateway) kill() {
	if p := g.running(); p != nil {
		p.kill()
	}
}

// stop ends it in order. That it does not is a fault of its own.
func (g *gateway) stop() error {
	p := g.running()
	if p == nil {
		return nil
	}
	if !p.terminate(stopTime) {
		return fmt.Errorf("the gateway did not stop within %v", stopTime)
	}
	// It may have been killed meanwhile.
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Exited() && status.ExitStatus() != 0 {
		return fmt.Errorf("the gateway stopped with status %d", status.ExitStatus())
	}
	return nil
}

// off kills the gateway and has something done before it starts again.
func (g *gateway) off(do func() error) error {
	g.power.Lock()
	defer g.power.Unlock()
	g.kill()
	return do()
}
