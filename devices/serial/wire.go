package serial

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"

	goserial "go.bug.st/serial"
	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/devices/profile"
)

// usual is the line of most USB devices.
var usual = profile.Line{Baud: 115200, DataBits: 8, Parity: "none", StopBits: 1}

// parities are the words for them.
var parities = map[string]goserial.Parity{
	"none": goserial.NoParity, "even": goserial.EvenParity, "odd": goserial.OddParity, "mark": goserial.MarkParity, "space": goserial.SpaceParity,
}

// modeOf is a line in the words of the library.
func modeOf(l profile.Line) *goserial.Mode {
	stop := goserial.OneStopBit
	if l.StopBits == 2 {
		stop = goserial.TwoStopBits
	}
	return &goserial.Mode{BaudRate: l.Baud, DataBits: l.DataBits, Parity: parities[l.Parity], StopBits: stop}
}

// character is how long one takes.
func character(l profile.Line) time.Duration {
	bits := 1 + l.DataBits + l.StopBits
	if l.Parity != "none" {
		bits++
	}
	return time.Duration(bits) * time.Second / time.Duration(l.Baud)
}

// Signals are what to do with the modem lines when the port is opened; nil is
// to raise them, as the kernel does.
type Signals struct{ DTR, RTS *bool }

func (s Signals) bits() *goserial.ModemOutputBits {
	if s.DTR == nil && s.RTS == nil {
		return nil
	}
	up := func(b *bool) bool { return b == nil || *b }
	return &goserial.ModemOutputBits{DTR: up(s.DTR), RTS: up(s.RTS)}
}

// A wire is an open port. Its methods may be called from any goroutine; there
// is one that reads and one that writes. Close ends what waits.
//
// The library sets the line, on a file that it has for itself. Bytes go through
// another, which Go's own poller waits for: the library waits with select(2),
// which panics on a descriptor of 1024 or more, has no time limit for a write
// and no end of it either, and closes its descriptor while it may be read.
type wire struct {
	file *os.File
	line goserial.Port
}

// openWire opens a port. The line's members are all known.
func openWire(path string, line profile.Line, signals Signals) (*wire, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("it is not there; is the device plugged in? `porchlight serial list` shows those that are: %w", fs.ErrNotExist)
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeCharDevice == 0:
		return nil, fmt.Errorf("it is %s, not a serial port", kind(info.Mode()))
	}
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, explain(err, info)
	}
	w := &wire{file: file}
	// The kernel's own lock, which the library sets, does not keep root out.
	if err := w.lock(); err != nil {
		_ = file.Close()
		return nil, explain(err, info)
	}
	mode := modeOf(line)
	mode.InitialStatusBits = signals.bits()
	if w.line, err = goserial.Open(path, mode); err != nil {
		_ = file.Close()
		return nil, explain(err, info)
	}
	return w, nil
}

// control calls f with the descriptor, which stays open meanwhile.
func (w *wire) control(f func(fd int) error) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// lock keeps others out who ask for it, as pyserial does.
func (w *wire) lock() error {
	err := w.control(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return unix.EBUSY
	}
	return err
}

// number is the device that is open, whatever its path leads to by now.
func (w *wire) number() (deviceNumber, error) {
	var stat unix.Stat_t
	if err := w.control(func(fd int) error { return unix.Fstat(fd, &stat) }); err != nil {
		return 0, err
	}
	return deviceNumber(stat.Rdev), nil
}

// Read waits for bytes. A port that is hung up gives none, and io.EOF.
func (w *wire) Read(b []byte) (int, error) { return w.file.Read(b) }

// interrupt ends a Read that waits, and all after it, until resume.
func (w *wire) interrupt() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) }
func (w *wire) resume()    { _ = w.file.SetReadDeadline(time.Time{}) }

// write sends all, or as much as goes in the time. What the kernel still has of
// it after that is thrown away, so that the device does not get it later.
func (w *wire) write(b []byte, limit time.Duration) error {
	if err := w.file.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	n, err := w.file.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = w.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCOFLUSH) })
		return fmt.Errorf("%w: it took %d of %d bytes in %s", errStalled, n, len(b), limit)
	}
	return err
}

// errStalled is of a device that takes nothing any more.
var errStalled = errors.New("the device does not read what is sent to it")

// drained waits until all was sent, as far as the kernel knows, for so long at
// most.
func (w *wire) drained(limit time.Duration) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		waiting := 0
		err := w.control(func(fd int) (err error) { waiting, err = unix.IoctlGetInt(fd, unix.TIOCOUTQ); return err })
		if err != nil || waiting == 0 {
			return
		}
	}
}

// set changes the line.
func (w *wire) set(line profile.Line) error { return w.line.SetMode(modeOf(line)) }

// Close ends what waits for the wire. It may be called more than once.
func (w *wire) Close() error {
	return errors.Join(w.line.Close(), w.file.Close())
}

// unplugged says what an end of a wire means.
func unplugged(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("was it unplugged? %w", err)
	}
	return err
}

// explain says what the errors of opening mean and how to mend them.
func explain(err error, info fs.FileInfo) error {
	var pe *goserial.PortError
	switch {
	case errors.Is(err, fs.ErrPermission):
		group := "dialout"
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			id := strconv.FormatUint(uint64(stat.Gid), 10)
			if g, err := user.LookupGroupId(id); err == nil {
				group = g.Name
			}
		}
		name := "USER"
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
		return fmt.Errorf("permission denied: it belongs to the group %s; mend with `usermod -aG %s %s` and start again: %w", group, group, name, fs.ErrPermission)
	case errors.Is(err, unix.EBUSY), errors.As(err, &pe) && pe.Code() == goserial.PortBusy:
		return fmt.Errorf("another program has it open (`porchlight serial list` says which; ModemManager does that): %w", syscall.EBUSY)
	case errors.As(err, &pe) && pe.Code() == goserial.InvalidSerialPort:
		return fmt.Errorf("it is not a serial port, or has not what is asked for, as this baud rate, or lines DTR and RTS: %w", err)
	}
	return err
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m.IsRegular():
		return "a plain file"
	}
	return "something else (" + m.Type().String() + ")"
}
