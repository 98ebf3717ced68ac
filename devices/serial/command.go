package serial

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// heard remembers what commands need of a message.
func (p *Port) heard(d *Device, out profile.Output) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.correspondents[d.Device.ID]
	if c == nil {
		c = &profile.Correspondent{}
		p.correspondents[d.Device.ID] = c
	}
	c.Hear(out)
}

// find gives a device of the port, and what was heard of it.
func (p *Port) find(id devices.ID) (*Device, *profile.Correspondent) {
	all := p.config.Load().Devices
	i := slices.IndexFunc(all, func(d Device) bool { return d.Device.ID == id })
	if i < 0 {
		return nil, nil
	}
	c := p.correspondents[id]
	if c == nil {
		c = &profile.Correspondent{}
	}
	return &all[i], c
}

// Controls implements [devices.Actuator].
func (p *Port) Controls(id devices.ID) (all []devices.Control) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, c := p.find(id)
	if d == nil {
		return nil
	}
	for _, command := range d.Profile.Commands(c) {
		all = append(all, command.Control())
	}
	return all
}

// Execute implements [devices.Actuator]. It is written by the owner of the port,
// between two questions. That the kernel took it, says nothing of the device;
// where it answers, as by Modbus, the answer is waited for.
func (p *Port) Execute(ctx context.Context, c devices.Command, expect func(devices.Confirmation)) error {
	p.mu.Lock()
	d, heard := p.find(c.Device)
	if d == nil {
		p.mu.Unlock()
		return fmt.Errorf("%s is not on this port", c.Device)
	}
	request, expected, err := d.Profile.Tell(heard, c.Name, c.Argument)
	p.mu.Unlock()
	if err != nil {
		return err
	}
	if !p.open.Load() {
		return errors.New("the serial port is not open")
	}
	done := make(chan error, 1)
	o := order{ctx: ctx, device: c.Device, request: request, expect: func() { expect(expected) }, done: done}
	select {
	case p.orders <- o:
	case <-ctx.Done():
		return errors.New("the serial port is busy, or was unplugged")
	}
	// It is under way, and ends by its own time limits: what came of it is worth
	// more than to be told in time that nobody knows.
	select {
	case err := <-done:
		return err
	case <-time.After(orderTime):
		return fmt.Errorf("the driver has failed: %w", devices.ErrUncertain)
	}
}

// orderTime is longer than an order takes that is under way.
const orderTime = 4 * writeTime
