package agent

import (
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/procfs"
)

// thisProcess names this process among all that are and were on a machine since
// it was switched on; "" where the system does not tell.
func thisProcess() string { return processName(os.Getpid()) }

func processName(pid int) string {
	boot := bootID()
	space, err := os.Readlink("/proc/self/ns/pid") // each container counts its own
	if err != nil || boot == "" {
		return ""
	}
	p, err := procfs.NewProc(pid)
	if err != nil {
		return ""
	}
	stat, err := p.Stat()
	if err != nil || stat.State == "Z" {
		return ""
	}
	return fmt.Sprintf("%s %s %d %d", boot, space, pid, stat.Starttime)
}

// processOver reports whether a process that [thisProcess] named has ended. Of
// one elsewhere it does not know.
func processOver(name string) bool {
	there, here := strings.Fields(name), strings.Fields(thisProcess())
	if len(there) != 4 || len(here) != 4 || there[0] != here[0] || there[1] != here[1] {
		return false
	}
	var pid int
	_, err := fmt.Sscan(there[2], &pid)
	return err == nil && processName(pid) != name
}
