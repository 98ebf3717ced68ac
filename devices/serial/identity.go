package serial

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A deviceNumber is the kernel's number of a device, major and minor.
type deviceNumber uint64

// An Identity is who a port is, as its USB adapter tells; the zero Identity of
// one that is none.
type Identity struct {
	Vendor       string `json:"vendor,omitempty"`  // 4 hex digits
	Product      string `json:"product,omitempty"` // 4 hex digits
	Serial       string `json:"serial,omitempty"`  // "" of many, as of the CH340
	Interface    string `json:"interface,omitempty"`
	Socket       string `json:"socket,omitempty"` // where it is plugged in, as 1-1.4
	Manufacturer string `json:"manufacturer,omitempty"`
	Name         string `json:"name,omitempty"` // of the product
}

// IsUSB reports whether the port is on USB.
func (i Identity) IsUSB() bool { return i.Vendor != "" }

// same reports whether two are the same adapter. Where it has no serial number
// it is told from others of its kind by its socket alone.
func (i Identity) same(j Identity) bool {
	i.Manufacturer, i.Name, j.Manufacturer, j.Name = "", "", "", ""
	if i.Serial != "" && j.Serial != "" {
		i.Socket, j.Socket = "", ""
	}
	return i == j
}

// fits reports whether it is the one that a config names: 0403:6001, or
// 0403:6001:SERIAL.
func (i Identity) fits(named string) bool {
	parts := strings.SplitN(named, ":", 3)
	return len(parts) >= 2 && strings.EqualFold(parts[0], i.Vendor) && strings.EqualFold(parts[1], i.Product) && (len(parts) == 2 || parts[2] == i.Serial)
}

// ID is how the config names it.
func (i Identity) ID() string {
	return strings.TrimRight(i.Vendor+":"+i.Product+":"+i.Serial, ":")
}

// String is for people.
func (i Identity) String() string {
	if !i.IsUSB() {
		return "no USB device"
	}
	s := i.ID()
	if about := strings.TrimSpace(i.Manufacturer + " " + i.Name); about != "" {
		s += " (" + about + ")"
	}
	if i.Serial == "" {
		s += " in socket " + i.Socket
	}
	return s
}

// A machine is where ports are looked for: the root folder but in tests.
type machine string

func (m machine) path(path string) string { return filepath.Join(string(m), path) }

// identify tells who a device is, from sysfs. It does not open the device.
func (m machine) identify(number deviceNumber) Identity {
	link := m.path("/sys/dev/char/" + strconv.Itoa(int(unix.Major(uint64(number)))) + ":" + strconv.Itoa(int(unix.Minor(uint64(number)))))
	at, err := filepath.EvalSymlinks(link)
	if err != nil {
		return Identity{}
	}
	var i Identity
	for ; len(at) > len(m.path("/sys")); at = filepath.Dir(at) {
		if i.Interface == "" {
			i.Interface = attribute(at, "bInterfaceNumber")
		}
		if i.Vendor = attribute(at, "idVendor"); i.Vendor != "" {
			i.Product, i.Serial, i.Socket = attribute(at, "idProduct"), attribute(at, "serial"), filepath.Base(at)
			i.Manufacturer, i.Name = attribute(at, "manufacturer"), attribute(at, "product")
			return i
		}
	}
	return Identity{}
}

// attribute reads one of sysfs; "" where there is none. It comes from the
// device, which may write anything there.
func attribute(folder, name string) string {
	b, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		return ""
	}
	text := strings.ToValidUTF8(strings.TrimSpace(string(b[:min(len(b), 128)])), "?")
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// at tells which device a path leads to.
func (m machine) at(path string) (deviceNumber, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return deviceNumber(stat.Rdev), nil
}

// names gives the links of a folder below /dev/serial that lead to a device.
func (m machine) names(folder string, number deviceNumber) (all []string) {
	entries, _ := os.ReadDir(m.path("/dev/serial/" + folder)) // not there while nothing is plugged in
	for _, e := range entries {
		path := "/dev/serial/" + folder + "/" + e.Name()
		if n, err := m.at(m.path(path)); err == nil && n == number {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	return all
}
