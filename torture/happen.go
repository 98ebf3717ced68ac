package main

import (
	"context"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/porchlight-iot/porchlight/torture/faultfs"
	"github.com/porchlight-iot/porchlight/torture/link"
)

const (
	decade = 10 * 365 * 24 * time.Hour
	// most is what NTP daemons slew rather than step, and how many steps of
	// that nobody calls steps.
	most      = 1500 * time.Millisecond
	slewSteps = 20
)

// happen has the faults happen, and returns when all is mended.
func (w *world) happen(ctx context.Context, faults []fault) {
	var all sync.WaitGroup
	began := time.Now()
	for _, f := range faults {
		all.Go(func() {
			if !pause(ctx, time.Until(began.Add(f.at))) {
				return
			}
			w.say("%v", f)
			if err := w.inflict(ctx, f); err != nil && ctx.Err() == nil {
				w.blame("%s: %v", f.name, err)
			}
			w.say("end of %v", f)
		})
	}
	all.Wait()
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *world) inflict(ctx context.Context, f fault) error {
	lasts := f.until - f.at
	switch f.name {
	case "kill":
		w.gateway.kill()
		return nil
	case "term":
		err := w.gateway.stop()
		if err != nil && strings.HasPrefix(w.lastLine(), "porchlight: cannot write the outbox: ") {
			return nil // nor could it stop in order while its disk failed, and says so
		}
		return err
	case "stop":
		return w.stopGateway(ctx, lasts, f.seed)
	case "power-cut":
		return w.gateway.off(func() error { return w.cut(f.seed) })
	case "lying-card":
		began := time.Now()
		w.change(func(t *faultfs.Trouble) { t.Lies = true })
		pause(ctx, lasts)
		return w.gateway.off(func() error {
			if lied := w.disk.LiedAt(); lied.After(began) { // else nothing was synced meanwhile
				w.mu.Lock()
				w.excuses = append(w.excuses, excuse{lied, time.Now()})
				w.mu.Unlock()
			}
			w.change(func(t *faultfs.Trouble) { t.Lies = false })
			return w.cut(f.seed)
		})
	case "disk-full":
		return w.disturb(ctx, lasts, func(t *faultfs.Trouble, on bool) { t.Full = on })
	case "disk-read-only":
		return w.disturb(ctx, lasts, func(t *faultfs.Trouble, on bool) { t.ReadOnly = on })
	case "disk-bad-writes":
		return w.disturb(ctx, lasts, func(t *faultfs.Trouble, on bool) { t.FailWrites = on })
	case "disk-bad-syncs":
		return w.disturb(ctx, lasts, func(t *faultfs.Trouble, on bool) { t.FailSyncs = on })
	case "clock-step":
		by := []time.Duration{time.Hour, -time.Hour, decade, -decade}[f.seed%4]
		if err := w.machine.step(by); err != nil {
			return err
		}
		pause(ctx, lasts)
		return w.machine.sync(0)
	case "clock-slew":
		by := []time.Duration{most, -most}[f.seed%2]
		for left := slewSteps; left > 0; left-- {
			if err := w.machine.sync(by * time.Duration(left) / slewSteps); err != nil {
				return err
			}
			pause(ctx, lasts/slewSteps)
		}
		return w.machine.sync(0)
	case "clock-1970":
		if err := w.gateway.off(w.machine.boot); err != nil {
			return err
		}
		pause(ctx, lasts)
		return w.machine.sync(0)
	case "broker-stop", "broker-kill":
		return w.restartBroker(ctx, f.name == "broker-kill", lasts)
	case "broker-stall", "server-stall":
		// It must not be another process when it goes on.
		w.restarting.Lock()
		defer w.restarting.Unlock()
		pid := w.broker.process.cmd.Process.Pid
		if f.name == "server-stall" {
			pid = w.server.PID()
		}
		return stall(ctx, pid, lasts)
	case "server-stop", "server-kill":
		w.restarting.Lock()
		defer w.restarting.Unlock()
		end := w.server.Stop
		if f.name == "server-kill" {
			end = w.server.Kill
		}
		if err := end(); err != nil {
			return err
		}
		pause(ctx, lasts)
		return w.server.Restart(ctx)
	}
	l, r := w.links[f.link], rand.New(rand.NewPCG(f.seed, 0))
	switch f.name {
	case "link-cut":
		l.Set(link.Condition{Refuse: true})
		l.Reset()
	case "link-flap":
		for range 4 {
			l.Reset()
			pause(ctx, lasts/4)
		}
		return nil
	case "link-held":
		l.Set(link.Condition{Up: link.Flow{Held: true}, Down: link.Flow{Held: true}})
	case "link-up-held":
		l.Set(link.Condition{Up: link.Flow{Held: true}})
	case "link-down-held":
		l.Set(link.Condition{Down: link.Flow{Held: true}})
	case "link-slow":
		rate := 500 + r.IntN(5000)
		l.Set(link.Condition{Up: link.Flow{Rate: rate}, Down: link.Flow{Rate: rate}})
	case "link-half-open":
		l.Forget()
		return nil
	}
	pause(ctx, lasts)
	// Half of the links that came to a halt break before they come back: what
	// waited is lost then.
	if r.IntN(2) == 0 {
		l.Reset()
	}
	l.Set(link.Condition{})
	return nil
}

// stopGateway has the gateway stand still for as long as devices wait for an
// acknowledgement and more. Half of its links are given up by the other side
// meanwhile, as a server does that hears nothing for minutes.
func (w *world) stopGateway(ctx context.Context, lasts time.Duration, seed uint64) error {
	p := w.gateway.current()
	if p == nil {
		return nil
	}
	r := rand.New(rand.NewPCG(seed, 0))
	given := make(map[string]bool) // in the order of their names, so that r decides alone
	for _, name := range []string{linkBroker, linkDevices, linkXMPP} {
		given[name] = r.IntN(2) == 0
	}
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return nil // it has ended
	}
	pause(ctx, mqttAnswer+lasts)
	for name, give := range given {
		if give {
			w.links[name].Reset()
		}
	}
	_ = p.signal(syscall.SIGCONT) // it may have been killed
	return nil
}

func stall(ctx context.Context, pid int, lasts time.Duration) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	pause(ctx, lasts)
	return syscall.Kill(pid, syscall.SIGCONT)
}

// change changes what is wrong with the disk.
func (w *world) change(do func(*faultfs.Trouble)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do(&w.trouble)
	w.disk.Set(w.trouble)
}

func (w *world) disturb(ctx context.Context, lasts time.Duration, set func(t *faultfs.Trouble, on bool)) error {
	w.change(func(t *faultfs.Trouble) { set(t, true) })
	pause(ctx, lasts)
	w.change(func(t *faultfs.Trouble) { set(t, false) })
	return nil
}

// cut cuts the power of the disk. The gateway is off. It is mounted anew,
// because the system still remembers what was written.
func (w *world) cut(seed uint64) error {
	if err := w.unmount(); err != nil {
		return err
	}
	w.disk.Cut(rand.New(rand.NewPCG(seed, 0)))
	unmount, err := w.disk.Mount(w.mounted)
	if err != nil {
		return err
	}
	w.unmount = unmount
	return nil
}

// restartBroker ends the broker such that it forgets nothing that it
// acknowledged; see the package comment.
func (w *world) restartBroker(ctx context.Context, kill bool, lasts time.Duration) error {
	w.restarting.Lock()
	defer w.restarting.Unlock()
	for _, t := range w.behind {
		if err := t.settle(ctx); err != nil {
			return err
		}
		defer t.set(true)
	}
	l := w.links[linkBroker]
	if kill {
		l.Set(link.Condition{Up: link.Flow{Held: true}, Down: link.Flow{Held: true}})
		err := w.broker.save(ctx)
		w.broker.process.kill()
		l.Reset()
		l.Set(link.Condition{})
		if err != nil {
			return err
		}
	} else {
		w.broker.process.terminate(stopTime)
	}
	pause(ctx, lasts)
	return w.broker.start(ctx)
}
