package agent

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/procfs"
)

// TestProcessOver: a process is over when it was killed, also before anybody
// waits for it, and when another has its number; not while it runs, nor where
// nothing is known of it.
func TestProcessOver(t *testing.T) {
	this := thisProcess()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := procfs.NewProc(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := p.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(this)
	name := func(boot, start string) string {
		return strings.Join([]string{boot, f[1], strconv.Itoa(p.PID), start}, " ")
	}
	running := name(f[0], strconv.Itoa(int(stat.Starttime)))
	for process, want := range map[string]bool{
		"": false, this: false, running: false,
		name("another boot", strconv.Itoa(int(stat.Starttime))): false,
		name("another-boot", strconv.Itoa(int(stat.Starttime))): false,
		name(f[0], "1"): true,
	} {
		if got := processOver(process); got != want {
			t.Errorf("%q: %v", process, got)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for !processOver(running) && t.Context().Err() == nil {
	} // a zombie
	_ = cmd.Wait()
	if !processOver(running) {
		t.Error("it is not over when it was waited for")
	}
}
