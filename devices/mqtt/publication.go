package mqtt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// usualWindow is how many messages a client keeps under way unacknowledged
// unless it was told otherwise: Mosquitto's max_inflight_messages, and what
// client libraries do.
const usualWindow = 20

// A publication is one PUBLISH packet (MQTT 3.1.1 section 3.3).
type publication struct {
	source    string // whom to name for what cannot be used
	session   string // to which the packet id belongs
	broker    string // its name in the config; "" is our own
	topic     string
	payload   []byte
	id        uint16
	qos       byte
	duplicate bool
	retained  bool
}

func (p publication) stranger() devices.Stranger {
	return devices.Stranger{
		Transport: "mqtt", Link: p.broker, Address: p.topic, Peer: p.source,
		Payload: p.payload, ContentFormat: -1, Retained: p.retained,
	}
}

var errNoDevice = errors.New("no device is configured for it")

// hear decodes a publication and hands it to the sink. The receipt is nil
// where nothing has to be waited for. An error means that the sink does not
// take it now. What nobody understands is rejected, and that is no error: it
// would not get better by being sent again.
func (d *directory) hear(ctx context.Context, p publication, sink devices.Sink) (devices.Receipt, error) {
	if err := checkTopic(p.topic); err != nil {
		sink.Reject(p.source, err)
		return nil, nil
	}
	device := d.find(p.topic)
	if device == nil {
		if !sink.Unknown(p.stranger()) {
			sink.Reject(p.source, fmt.Errorf("topic %q: %w", p.topic, errNoDevice))
		}
		return nil, nil
	}
	out, err := device.Profile.Decode(device.Place, profile.Message{Topic: p.topic, Payload: p.payload, ContentFormat: -1, Received: time.Now()})
	if err != nil {
		sink.Reject(string(device.ID), fmt.Errorf("topic %q: %w", p.topic, err))
		return nil, nil
	}
	if out.Availability != devices.AvailabilityUnknown {
		sink.Availability(device.ID, out.Availability, p.retained)
	}
	if len(out.Readings) == 0 {
		return nil, nil
	}
	m := devices.Message{Readings: out.Readings, Retained: p.retained}
	if p.qos > 0 {
		m.Origin = devices.NewOrigin([]byte(p.session), []byte(p.topic), []byte{byte(p.id >> 8), byte(p.id)}, p.payload)
		m.Redelivered, m.Window = p.duplicate, usualWindow
	}
	return sink.Report(ctx, m)
}
