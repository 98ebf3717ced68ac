package serial

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	// lookEvery is how often it is looked whether a port is there. That wants no
	// right, and /dev/serial, which could be watched, goes with its last port.
	lookEvery = 250 * time.Millisecond

	// settleTime is how long a port that was just plugged in may refuse to be
	// opened: the kernel makes it, and udev gives it to its group a moment later.
	settleTime = 5 * time.Second
)

// Config says what is on a port.
type Config struct {
	Port    string       // path, best one under /dev/serial/by-id
	USB     string       // adapter that it must be: 0403:6001 or 0403:6001:SERIAL; "" is the one that is there first
	Line    profile.Line // what it does not say is as the profiles have it
	Signals Signals
	Echo    bool     // what is written comes back, as by two-wire adapters and optical heads
	Devices []Device // of which there is one at least
	Folder  string   // where it is remembered which numbers devices were given; "" is nowhere
}

// A Device is one on a port.
type Device struct {
	Device   devices.Device
	Profile  *profile.Profile
	Place    profile.Place
	Identity string // of those that share the port: the firmware's own name of it
	Unit     byte   // address on a Modbus; 0 is 1
}

// A Port is a serial port with the devices on it. It is a [devices.Driver] and a
// [devices.Actuator].
type Port struct {
	devices.Pulse // of the talk on an open port

	config  atomic.Pointer[Config]
	changed chan struct{} // has one when config is another
	orders  chan order
	log     *slog.Logger
	machine machine
	limit   time.Duration // of a write
	known   Identity      // of the adapter that was there first; only Run uses it
	open    atomic.Bool

	audience *audience // of a probe, nil else

	mu             sync.Mutex
	correspondents map[devices.ID]*profile.Correspondent
}

// New makes the driver of one port. It does not touch the port.
func New(config Config, log *slog.Logger) *Port {
	config.Line = lineOf(config)
	p := &Port{changed: make(chan struct{}, 1), orders: make(chan order), log: log, machine: "/", limit: writeTime, correspondents: make(map[devices.ID]*profile.Correspondent)}
	p.config.Store(&config)
	return p
}

// lineOf fills in what the config does not say of the line.
func lineOf(c Config) profile.Line {
	l := c.Line
	for _, d := range c.Devices {
		if lines := d.Profile.Lines(); len(lines) > 0 {
			l = l.Or(lines[0])
		}
	}
	return l.Or(usual)
}

// Adopt implements [devices.Adopter]: where the port and its line are the same.
// To open a port anew resets many boards.
func (p *Port) Adopt(next devices.Driver) bool {
	n, ok := next.(*Port)
	if !ok {
		return false
	}
	was, will := *p.config.Load(), *n.config.Load()
	was.Devices, will.Devices = nil, nil
	if !reflect.DeepEqual(was, will) {
		return false
	}
	p.config.Store(n.config.Load())
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return true
}

// Name implements [devices.Driver].
func (p *Port) Name() string { return "serial " + p.config.Load().Port }

// Run implements [devices.Driver]. While the port is not there, or another
// device has taken its name, it waits. It returns an error when the port cannot
// be opened and when it is unplugged. The devices of a port that is not there are
// offline.
//
// Opening resets many boards, because it raises the lines DTR and RTS, which
// others are powered from; what a board prints while it boots is rejected like
// other noise.
func (p *Port) Run(ctx context.Context, sink devices.Sink) error {
	c := p.config.Load()
	w, err := p.await(ctx, sink)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("cannot open serial port %s: %w", c.Port, err)
	}
	p.log.Info("serial: open", "port", c.Port, "line", c.Line.String(), "usb", p.known.String())
	p.tell(sink, devices.AvailabilityUnknown)
	sink.Up(p.Name())
	closing := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer func() {
		closing()
		_ = w.Close()
	}()
	p.open.Store(true)
	err = p.talk(ctx, sink, w)
	p.open.Store(false)
	if ctx.Err() != nil {
		return nil
	}
	p.tell(sink, devices.Offline)
	return fmt.Errorf("cannot use serial port %s, %w", c.Port, unplugged(err))
}

// tell says of all devices whether their port is there.
func (p *Port) tell(sink devices.Sink, a devices.Availability) {
	for _, d := range p.config.Load().Devices {
		sink.Availability(d.Device.ID, a, false)
	}
}

// await waits until the port is there and is what it was, and opens it.
func (p *Port) await(ctx context.Context, sink devices.Sink) (*wire, error) {
	c := p.config.Load()
	said := ""
	var since time.Time // when it was seen first, after it was seen to be away
	for first := true; ; first = false {
		w, err := p.try(c)
		var other *otherDevice
		switch {
		case err == nil:
			return w, nil
		case errors.Is(err, fs.ErrNotExist), errors.As(err, &other):
			if since = (time.Time{}); said != err.Error() {
				said = err.Error()
				p.log.Warn("serial: waiting for a port", "port", c.Port, "reason", err)
				p.tell(sink, devices.Offline)
			}
		case first || !since.IsZero() && time.Since(since) > settleTime:
			return nil, err
		case since.IsZero():
			since = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.changed: // other devices wait for it too
			if said != "" {
				p.tell(sink, devices.Offline)
			}
		case <-time.After(lookEvery):
		}
	}
}

// An otherDevice has taken the name of a port.
type otherDevice struct {
	is, want string
	mend     string
}

func (e *otherDevice) Error() string {
	return fmt.Sprintf("another device has its name: %s, not %s; %s", e.is, e.want, e.mend)
}

// try opens the port if it is the device that it was. A device is looked at
// before it is opened, which might reset it, and again after, because it may
// have changed meanwhile.
func (p *Port) try(c *Config) (*wire, error) {
	number, err := p.machine.at(c.Port)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("it is not there; is the device plugged in? `porchlight serial list` shows those that are: %w", fs.ErrNotExist)
		}
		return nil, err
	}
	if _, err := p.judge(c, number); err != nil {
		return nil, err
	}
	w, err := openWire(c.Port, c.Line, c.Signals)
	if err != nil {
		return nil, err
	}
	number, err = w.number()
	var is Identity
	if err == nil {
		is, err = p.judge(c, number)
	}
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	if p.known == (Identity{}) {
		p.known = is
		p.warn(c, is, number)
	}
	return w, nil
}

// judge tells who a device is, and whether that is the one that it must be.
func (p *Port) judge(c *Config, number deviceNumber) (Identity, error) {
	is := p.machine.identify(number)
	switch {
	case c.USB != "" && !is.fits(c.USB):
		return is, &otherDevice{is.String(), c.USB, "correct usb in the config, or plug the right one in"}
	case p.known.IsUSB() && !p.known.same(is):
		return is, &otherDevice{is.String(), p.known.String(), "if it is meant to be this one from now on, start the gateway again"}
	}
	return is, nil
}

// warn says where a name cannot tell two devices apart.
func (p *Port) warn(c *Config, is Identity, number deviceNumber) {
	if !is.IsUSB() || is.Serial != "" {
		return
	}
	twin := slices.ContainsFunc(p.machine.ports(), func(f Found) bool { return f.Identity.twin(is) })
	if byPath := p.machine.names("by-path", number); twin && !slices.Contains(byPath, c.Port) {
		p.log.Warn("serial: several devices share a name, because they have no serial number; name the port by its path", "port", c.Port, "usb", is.String(), "path", firstOf(byPath))
	}
}

func firstOf(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return all[0]
}
