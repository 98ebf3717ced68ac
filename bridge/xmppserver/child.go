package xmppserver

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// child is a running process and the goroutine that owns it.
type child struct {
	cmd  *exec.Cmd
	pid  int
	done chan struct{} // closed when the process has ended
	err  error         // why; valid after done
}

// spawn starts cmd so that it is killed when this process ends, in whatever
// way, and closes log when cmd has ended.
func spawn(cmd *exec.Cmd, log io.Closer) (*child, error) {
	// A group of its own keeps the terminal's Ctrl-C away from the server:
	// who started it stops it, when the gateway has said goodbye.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = stopTime // something it left behind may hold our pipe
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the *thread* that started
		// the child ends, so this goroutine keeps its thread until the child
		// has gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := cmd.Start()
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		c.err = cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// stop asks the process to end, waits for it and all that it started, and
// kills it when patience is over. It is an error if the process had ended by
// itself.
func (c *child) stop(patience time.Duration) error {
	select {
	case <-c.done:
		return fmt.Errorf("it had ended by itself (%v)", c.err)
	default:
	}
	family := descendants(c.pid)
	defer reap(family)
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it fails if it has just ended
	select {
	case <-c.done:
	case <-time.After(patience):
		c.kill()
	}
	return nil
}

func (c *child) kill() {
	family := descendants(c.pid)
	_ = c.cmd.Process.Kill() // it fails if it has ended already
	<-c.done
	reap(family)
}

// process is a process that is not our child, told from a later one with the
// same number by its start time.
type process struct {
	pid, parent int
	start       string
}

// lookup reads /proc/<pid>/stat; see proc_pid_stat(5).
func lookup(pid int) (process, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	// The second field is the name in brackets and may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const state, ppid, starttime = 0, 1, 19
	if len(fields) <= starttime || fields[state][0] == 'Z' {
		return process{}, false
	}
	parent, err := strconv.Atoi(string(fields[ppid]))
	if err != nil {
		return process{}, false
	}
	return process{pid: pid, parent: parent, start: string(fields[starttime])}, true
}

// descendants lists what pid and its children have started. Erlang starts
// helpers which outlive it by a moment.
func descendants(pid int) []process {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]process{}
	for _, name := range names {
		n, err := strconv.Atoi(name.Name())
		if err != nil {
			continue
		}
		if p, ok := lookup(n); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	var all []process
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		for _, p := range children[todo[0]] {
			all = append(all, p)
			todo = append(todo, p.pid)
		}
	}
	return all
}

// reap waits until the processes have gone, and kills what is still there
// after five seconds.
func reap(processes []process) {
	deadline := time.Now().Add(5 * time.Second)
	for _, p := range processes {
		for {
			now, ok := lookup(p.pid)
			if !ok || now.start != p.start {
				break
			}
			if time.Now().After(deadline) {
				_ = syscall.Kill(p.pid, syscall.SIGKILL) // gone by now, or the next look tells
			}
			time.Sleep(5 * time.Millisecond) // nothing tells us of the end of a process that is not our child
		}
	}
}
