// Package pty makes simulated serial ports of pseudo-terminals, for the demo
// and for tests.
package pty

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// A PTY is a serial port with a simulated device on it. Its methods may be
// called from any goroutine.
type PTY struct {
	device, port *os.File
	close        func() error
}

// Open makes a port. Close takes it away.
func Open() (*PTY, error) {
	blocking, port, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("cannot open a pseudo-terminal: %w", err)
	}
	device, err := pollable(blocking)
	if err != nil {
		_ = port.Close()
		return nil, fmt.Errorf("cannot set up a pseudo-terminal: %w", err)
	}
	p := &PTY{device: device, port: port}
	p.close = sync.OnceValue(func() error {
		err := device.Close()
		_ = port.Close()
		return err
	})
	if err := raw(port); err != nil {
		_ = p.close()
		return nil, fmt.Errorf("cannot set up a pseudo-terminal: %w", err)
	}
	return p, nil
}

// pollable takes f over and gives the same file in a form whose Close ends a
// Write that waits; what the library opens blocks.
func pollable(f *os.File) (*os.File, error) {
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// raw stops the terminal from echoing and from changing line ends, which it
// would do until a driver opens the port.
func raw(port *os.File) error {
	fd := int(port.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// Path is the port's path, for the configuration.
func (p *PTY) Path() string { return p.port.Name() }

// Write sends bytes as the device. What is sent while nobody has the port open
// waits there, a few KiB of it; then Write blocks until somebody reads, or
// until Close.
func (p *PTY) Write(b []byte) (int, error) {
	n, err := p.device.Write(b)
	if err != nil {
		return n, fmt.Errorf("cannot send to %s: %w", p.Path(), err)
	}
	return n, nil
}

// Read receives bytes as the device, and waits for them; until Close. While nobody
// has the port open, there are none.
func (p *PTY) Read(b []byte) (int, error) {
	n, err := p.device.Read(b)
	if err != nil {
		return n, fmt.Errorf("cannot receive from %s: %w", p.Path(), err)
	}
	return n, nil
}

// Baud gives the rate at which the one who has the port open has set it.
func (p *PTY) Baud() (int, error) {
	raw, err := p.device.SyscallConn()
	if err != nil {
		return 0, err
	}
	var t *unix.Termios
	fault := raw.Control(func(fd uintptr) { t, err = unix.IoctlGetTermios(int(fd), unix.TCGETS2) }) // of the port, not of this end
	if err = errors.Join(fault, err); err != nil {
		return 0, fmt.Errorf("cannot read the rate of %s: %w", p.Path(), err)
	}
	return int(t.Ospeed), nil
}

// Close unplugs the device: who has the port open gets an error.
func (p *PTY) Close() error { return p.close() }
