package serial

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A Found port is one of this machine.
type Found struct {
	Path     string // /dev/ttyUSB0
	ByID     []string
	ByPath   []string
	Identity Identity
}

// ports lists the serial ports of the machine, without opening any.
func (m machine) ports() (all []Found) {
	entries, _ := os.ReadDir(m.path("/sys/class/tty"))
	for _, e := range entries {
		driver := filepath.Join(m.path("/sys/class/tty"), e.Name(), "device", "driver")
		to, err := os.Readlink(driver)
		if err != nil || filepath.Base(to) == "serial8250" && !m.answers(e.Name()) {
			continue // a console, a pseudo-terminal; or one that the kernel keeps room for
		}
		path := "/dev/" + e.Name()
		number, err := m.at(m.path(path))
		if err != nil {
			continue
		}
		all = append(all, Found{Path: path, ByID: m.names("by-id", number), ByPath: m.names("by-path", number), Identity: m.identify(number)})
	}
	slices.SortFunc(all, func(a, b Found) int { return strings.Compare(a.Path, b.Path) })
	return all
}

// answers reports whether there is a chip behind a port of the 8250 driver: it
// has a type then.
func (m machine) answers(name string) bool {
	kind := attribute(m.path("/sys/class/tty/"+name), "type")
	return kind != "" && kind != "0"
}
