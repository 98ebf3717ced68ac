package mqtt

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// keys are the identities by which the session may know a device, e.mu being
// held.
func (e *ear) keys(device *Device) []string {
	return slices.DeleteFunc([]string{e.shown[announcer{device.Profile.Family(), device.Place.Topic}], device.Place.Topic, device.Identity}, func(s string) bool { return s == "" })
}

// controls gives what a device can be told.
func (e *ear) controls(device *Device) (all []devices.Control) {
	if device == nil || e.session == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, key := range e.keys(device) {
		for _, c := range e.session.Commands(device.Profile.ID(), key) {
			all = append(all, c.Control())
		}
		if all != nil {
			return all
		}
	}
	return nil
}

// errNothingKnown is of a device that did not yet show what it can be told.
var errNothingKnown = errors.New("it is not known yet what the device can be told, and where: it has to be heard first")

// encode makes the message of a command.
func (e *ear) encode(device *Device, c devices.Command) (profile.Outgoing, error) {
	if device == nil || e.session == nil {
		return profile.Outgoing{}, fmt.Errorf("%s is not on this broker", c.Device)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, key := range e.keys(device) {
		if len(e.session.Commands(device.Profile.ID(), key)) > 0 {
			return e.session.Encode(device.Profile.ID(), key, c.Name, c.Argument)
		}
	}
	return profile.Outgoing{}, errNothingKnown
}

// expected says what confirms a message.
func expected(out profile.Outgoing) devices.Confirmation {
	return devices.Confirmation{Field: out.Field, Value: out.Value, Within: out.Within}
}

// Controls implements [devices.Actuator].
func (c *Client) Controls(id devices.ID) []devices.Control {
	if c.scouts {
		return nil
	}
	return c.ear.Load().controls(c.directory.Load().get(id))
}

// Execute implements [devices.Actuator]. The broker acknowledges the command
// (QoS 1), which says nothing of the device.
func (c *Client) Execute(ctx context.Context, cmd devices.Command, expect func(devices.Confirmation)) error {
	out, err := c.ear.Load().encode(c.directory.Load().get(cmd.Device), cmd)
	if err != nil {
		return err
	}
	l := c.up.Load()
	if l == nil || !l.broker.IsConnectionOpen() {
		return fmt.Errorf("there is no connection to the broker %s", c.where())
	}
	expect(expected(out))
	return l.publish(ctx, out)
}

// publish sends a message, once, and waits until the broker has it. The library
// sends nothing again by itself, because each link has a store of its own; and
// an acknowledgement is of this link, because the library does not reconnect.
// By a token alone it could be of a later one
// (github.com/eclipse/paho.mqtt.golang/issues/458).
func (l *link) publish(ctx context.Context, out profile.Outgoing) error {
	l.conn.framer.published.Add(1)
	token := l.broker.Publish(out.Topic, 1, out.Retain, out.Payload)
	select {
	case <-token.Done():
		if token.Error() == nil {
			return nil
		}
	case <-l.stopping:
	case <-ctx.Done():
	}
	return fmt.Errorf("the broker %s has not acknowledged it: %w", l.client.where(), devices.ErrUncertain)
}

// ask sends what nobody waits for. It holds nobody up for longer than a write.
func (l *link) ask(outs ...profile.Outgoing) {
	for _, out := range outs {
		l.broker.Publish(out.Topic, 0, false, out.Payload)
	}
}

// Controls implements [devices.Actuator].
func (b *Broker) Controls(id devices.ID) []devices.Control {
	m := b.members.Load()
	return m.ear.controls(m.directory.get(id))
}

// Execute implements [devices.Actuator].
func (b *Broker) Execute(_ context.Context, cmd devices.Command, expect func(devices.Confirmation)) error {
	m, h := b.members.Load(), b.running.Load()
	out, err := m.ear.encode(m.directory.get(cmd.Device), cmd)
	switch {
	case err != nil:
		return err
	case h == nil:
		return errors.New("the broker does not run")
	case !h.listens(out.Topic):
		return fmt.Errorf("nobody who is connected listens on %s", out.Topic)
	}
	expect(expected(out))
	return h.tell(out)
}

// listens reports whether a message would be given to anybody now.
func (h *hook) listens(topic string) bool {
	for id := range h.server.Topics.Subscribers(topic).Subscriptions {
		if cl, ok := h.server.Clients.Get(id); ok && !cl.Closed() && h.OnACLCheck(cl, topic, false) {
			return true
		}
	}
	return false
}

// tell publishes a message of the gateway's own. With QoS 0 it is not kept for a
// client that is away, which would do it when nobody expects that any more.
func (h *hook) tell(out profile.Outgoing) error {
	err := h.server.InjectPacket(h.relay, packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Retain: out.Retain},
		TopicName:   out.Topic,
		Payload:     out.Payload,
	})
	if err != nil {
		return fmt.Errorf("cannot publish on %s: %w", out.Topic, err)
	}
	return nil
}

var (
	_ devices.Actuator = (*Client)(nil)
	_ devices.Actuator = (*Broker)(nil)
)
