package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// thisProcess names this process among all that are and were on a machine since
// it was switched on; "" where the system does not tell.
func thisProcess() string {
	boot := bootID()
	space, err := os.Readlink("/proc/self/ns/pid") // each container counts its own
	if err != nil || boot == "" {
		return ""
	}
	p, err := procfs.Self()
	if err != nil {
		return ""
	}
	stat, err := p.Stat()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %s %d %d", boot, space, p.PID, stat.Starttime)
}

// processOver reports whether a process that [thisProcess] named has ended. Of
// one elsewhere, or that is not shown (systemd's ProtectProc), it does not know.
func processOver(name string) bool {
	there, here := strings.Fields(name), strings.Fields(thisProcess())
	if len(there) != 4 || len(here) != 4 || there[0] != here[0] || there[1] != here[1] {
		return false
	}
	var pid int
	if _, err := fmt.Sscan(there[2], &pid); err != nil || pid <= 0 {
		return false
	}
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return true
	}
	p, err := procfs.NewProc(pid)
	if err != nil {
		return false
	}
	stat, err := p.Stat()
	return err == nil && (stat.State == "Z" || fmt.Sprint(stat.Starttime) != there[3])
}
