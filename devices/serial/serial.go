package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"reflect"
	"strconv"
	"syscall"
	"time"

	goserial "go.bug.st/serial"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	defaultBaud = 115200

	// readTimeout is how long a stop may take. The library cannot be closed
	// while it reads: it would give its file descriptor back first and wake
	// the reader then, which might read from whatever got the number next.
	readTimeout = 250 * time.Millisecond

	// highestFD is where opening is refused. The library waits with select(2)
	// and panics on a descriptor of 1024 or more; it opens three.
	highestFD = 900
)

// A Decoder is what a port needs of a firmware profile; *profile.Profile is
// one.
type Decoder interface {
	Decode(at profile.Place, m profile.Message) (profile.Output, error)
}

// Config says what is on a port.
type Config struct {
	Port    string // path, best one under /dev/serial/by-id
	Baud    int    // 8N1; 0 is 115200
	Device  devices.Device
	Profile Decoder
	Place   profile.Place
}

// A Port is a serial port with one device on it. It is a [devices.Driver].
type Port struct {
	config Config
	log    *slog.Logger
}

// New makes the driver of one port. It does not touch the port.
func New(config Config, log *slog.Logger) *Port {
	if config.Baud == 0 {
		config.Baud = defaultBaud
	}
	return &Port{config: config, log: log}
}

// Adopt implements [devices.Adopter]: where nothing changed. To open a port anew
// resets many boards.
func (p *Port) Adopt(next devices.Driver) bool {
	n, ok := next.(*Port)
	return ok && reflect.DeepEqual(n.config, p.config)
}

// Name implements [devices.Driver].
func (p *Port) Name() string { return "serial " + p.config.Port }

// Run implements [devices.Driver]. It returns an error when the port cannot be
// opened and when the device is unplugged. Opening resets many boards, because
// it raises the lines DTR and RTS, which others are powered from; what a board
// prints while it boots is rejected like other noise.
func (p *Port) Run(ctx context.Context, sink devices.Sink) error {
	port, err := open(p.config.Port, p.config.Baud)
	if err != nil {
		return fmt.Errorf("cannot open serial port %s: %w", p.config.Port, err)
	}
	defer func() { _ = port.Close() }() // nobody reads any more
	p.log.Info("serial: open", "port", p.config.Port, "baud", p.config.Baud, "device", p.config.Device.ID)
	sink.Up(p.Name())

	var f framer
	fresh := true // the line may have begun before the port was opened
	buf := make([]byte, maxLine)
	for ctx.Err() == nil {
		n, err := port.Read(buf) // 0 and no error after readTimeout
		f.cut(buf[:n], func(fr frame) {
			if fresh && fr.err == nil && tailOfJSON(fr.line) {
				fr.err = errors.New("the line is the end of one")
			}
			err := p.take(ctx, sink, fr)
			switch {
			case err != nil && fresh:
				p.log.Debug("serial: the first line was not whole", "port", p.config.Port, "error", err)
			case err != nil:
				sink.Reject(string(p.config.Device.ID), err)
			}
			fresh = false
		})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("cannot read serial port %s, was it unplugged? %w", p.config.Port, err)
		}
	}
	return nil
}

// tailOfJSON reports whether a line is what is left of a JSON object when the
// port was opened in the midst of it; a profile could take that for a name and
// a value.
func tailOfJSON(line []byte) bool {
	line = bytes.TrimSpace(line)
	return !bytes.HasPrefix(line, []byte("{")) && bytes.HasSuffix(line, []byte("}"))
}

// take makes readings of a line.
func (p *Port) take(ctx context.Context, sink devices.Sink, fr frame) error {
	if fr.err != nil {
		return fr.err
	}
	out, err := p.config.Profile.Decode(p.config.Place, profile.Message{
		Payload: fr.line, ContentFormat: -1, Received: time.Now(),
	})
	if err != nil {
		return err
	}
	if out.Availability != devices.AvailabilityUnknown {
		sink.Availability(p.config.Device.ID, out.Availability, false)
	}
	if len(out.Readings) == 0 {
		return nil
	}
	if _, err := sink.Report(ctx, devices.Message{Readings: out.Readings}); err != nil {
		return fmt.Errorf("cannot keep a reading, and the device does not repeat it: %w", err)
	}
	return nil
}

func open(path string, baud int) (goserial.Port, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("it is not there; is the device plugged in? `ls /dev/serial/by-id` shows those that are: %w", fs.ErrNotExist)
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeCharDevice == 0:
		return nil, fmt.Errorf("it is %s, not a serial port", kind(info.Mode()))
	}
	if err := descriptorsLeft(); err != nil {
		return nil, err
	}
	port, err := goserial.Open(path, &goserial.Mode{
		BaudRate: baud, DataBits: 8, Parity: goserial.NoParity, StopBits: goserial.OneStopBit,
	})
	if err != nil {
		return nil, explain(err, info)
	}
	if err := port.SetReadTimeout(readTimeout); err != nil {
		_ = port.Close()
		return nil, err
	}
	return port, nil
}

// explain says what the library's errors mean and how to mend them.
func explain(err error, info fs.FileInfo) error {
	var pe *goserial.PortError
	if !errors.As(err, &pe) {
		return err
	}
	switch pe.Code() {
	case goserial.PermissionDenied:
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
	case goserial.PortBusy:
		return fmt.Errorf("another program has it open (`fuser` says which; ModemManager does that): %w", syscall.EBUSY)
	case goserial.InvalidSerialPort:
		return fmt.Errorf("it is not a serial port, or cannot do this baud rate: %w", err)
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

// descriptorsLeft refuses where the next file descriptor would be too high for
// the library. Open ports before sockets.
func descriptorsLeft() error {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return fmt.Errorf("no file descriptor is left: %w", err)
	}
	defer func() { _ = f.Close() }()
	if fd := f.Fd(); fd > highestFD {
		return fmt.Errorf("%d files and sockets are open, and a serial port needs a file descriptor below %d", fd, highestFD)
	}
	return nil
}
