package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// A process is a child that ends with us, however we end.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; valid after done
}

// start starts a program, with more in its environment than we have.
func start(log *os.File, more []string, program string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), more...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread ends that started
		// the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", program, err)
	}
	return p, nil
}

// signal fails where the process has ended.
func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// kill ends the process and waits until it is gone.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it fails if it has just ended
	<-p.done
}

// terminate asks the process to end, and reports whether it did in time.
func (p *process) terminate(patience time.Duration) bool {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return true
	case <-time.After(patience):
		p.kill()
		return false
	}
}

// waitForText waits until a log says something after its first bytes. It is a
// file that a child writes, and nothing tells when.
func waitForText(ctx context.Context, log string, from int64, text string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		said, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		if int64(len(said)) > from && bytes.Contains(said[from:], []byte(text)) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not say %q: %w", log, text, context.Cause(ctx))
		}
	}
}

// find gives the path of a program, where Debian keeps servers too.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: make deps", name)
}

// freePort gives an address that nobody uses, below those that the kernel gives
// out by itself: it must be free after a restart too.
func freePort() (string, error) {
	var last error
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		l, err := net.Listen("tcp", address)
		if err != nil {
			last = err
			continue
		}
		c, err := net.ListenPacket("udp", address)
		l.Close()
		if err != nil {
			last = err
			continue
		}
		c.Close()
		return address, nil
	}
	return "", fmt.Errorf("cannot find a free port: %w", last)
}

// hasFUSE says why disks cannot fail here; nil if they can.
func hasFUSE() error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no /dev/fuse")
	} else if err != nil {
		return err
	}
	f.Close()
	if os.Geteuid() != 0 {
		return errors.New("mounting needs root")
	}
	return nil
}
