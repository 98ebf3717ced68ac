package serial

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A Found port is one of this machine.
type Found struct {
	Path     string   // /dev/ttyUSB0
	ByID     []string // its names there, which say what it is
	ByPath   []string // its names there, which say where it is plugged in
	Shared   bool     // others have the same name by id, or would have it
	Identity Identity
	Users    []User
}

// A User is a program that has a port open.
type User struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

// Ports lists the serial ports of this machine. It opens none.
func Ports() []Found { return machine("/").ports() }

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
	m.users(all)
	for i, a := range all {
		all[i].Shared = slices.ContainsFunc(all, func(b Found) bool { return a.Path != b.Path && a.Identity.twin(b.Identity) })
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

// twin reports whether another has the same name by id.
func (i Identity) twin(j Identity) bool {
	return i.IsUSB() && i.Vendor == j.Vendor && i.Product == j.Product && i.Serial == j.Serial && i.Interface == j.Interface && i.Socket != j.Socket
}

// users finds who has ports open, as far as the files of other users may be
// seen.
func (m machine) users(all []Found) {
	links, _ := filepath.Glob(m.path("/proc/[0-9]*/fd/*"))
	for _, link := range links {
		to, err := os.Readlink(link)
		i := slices.IndexFunc(all, func(f Found) bool { return f.Path == to })
		if err != nil || i < 0 {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		pid, err := strconv.Atoi(filepath.Base(process))
		if err != nil || slices.ContainsFunc(all[i].Users, func(u User) bool { return u.PID == pid }) {
			continue
		}
		all[i].Users = append(all[i].Users, User{pid, attribute(process, "comm")})
	}
}
