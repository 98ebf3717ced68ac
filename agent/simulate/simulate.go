// Package simulate is many devices: what they send is what real firmwares
// send, by the gateway's own transports. It serves load tests and the demo.
package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/coap"
	"github.com/porchlight-iot/porchlight/devices/mqtt"
	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// Transport is how a simulated device is heard.
type Transport string

// The transports.
const (
	MQTT   Transport = "mqtt"   // a Tasmota board: JSON on tele/<id>/SENSOR
	CoAP   Transport = "coap"   // SenML JSON (RFC 8428) posted to /d/<id>
	Serial Transport = "serial" // a JSON line on a pseudo terminal
)

// ParseTransports reads a list with commas.
func ParseTransports(list string) ([]Transport, error) {
	var ts []Transport
	for word := range strings.SplitSeq(list, ",") {
		switch t := Transport(strings.TrimSpace(word)); t {
		case MQTT, CoAP, Serial:
			ts = append(ts, t)
		default:
			return nil, fmt.Errorf("there is no transport %q; there are mqtt, coap and serial", word)
		}
	}
	return ts, nil
}

// senmlJSON is the CoAP content format (RFC 8428 section 12.4).
const senmlJSON = 110

// A Device is one simulated device. Every reading carries a count from 1 on,
// so that at the other end it is known which are missing.
type Device struct {
	ID        devices.ID
	Transport Transport
	// Port is the path of a serial device's port; empty for the others.
	Port string

	send  func(ctx context.Context, payload []byte) error
	close func()
	phase float64

	mu    sync.Mutex
	sent  int
	acked int
}

// Profile names the firmware profile that understands the device.
func (d *Device) Profile() string {
	return map[Transport]string{MQTT: "tasmota", CoAP: "senml", Serial: "lines"}[d.Transport]
}

// CountField names the field that carries the count, as the gateway shows it.
func (d *Device) CountField() string {
	if d.Transport == MQTT {
		return "counter_c1"
	}
	return "count"
}

// Sent is how many readings were sent, Acked how many of them the gateway
// acknowledged; a serial device is never answered, and counts each as both.
func (d *Device) Sent() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sent
}

// Acked is described at Sent.
func (d *Device) Acked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acked
}

// Config gives the entry for the device in the gateway's config.
func (d *Device) Config() string {
	place := map[Transport]string{
		MQTT:   fmt.Sprintf("mqtt: {topic: %s}", d.ID),
		CoAP:   "coap: {}",
		Serial: fmt.Sprintf("serial: {port: %s}", d.Port),
	}[d.Transport]
	return fmt.Sprintf("- {id: %s, profile: %s, %s}", d.ID, d.Profile(), place)
}

// Close ends the device's link.
func (d *Device) Close() { d.close() }

// Where says where the gateway is.
type Where struct {
	MQTT string // URL of a broker that it listens to
	CoAP string // host:port
}

// New makes a device. An MQTT device connects when it first sends, so that it
// may be made before the gateway runs.
func New(id devices.ID, transport Transport, where Where) (*Device, error) {
	d := &Device{ID: id, Transport: transport}
	for _, r := range string(id) {
		d.phase += float64(r)
	}
	switch transport {
	case MQTT:
		p := mqtt.NewPublisher(where.MQTT, "sim-"+string(id))
		d.send = func(ctx context.Context, payload []byte) error {
			return p.Publish(ctx, "tele/"+string(id)+"/SENSOR", payload)
		}
		d.close = p.Close
	case CoAP:
		p, err := coap.Dial(context.Background(), where.CoAP)
		if err != nil {
			return nil, err
		}
		d.send = func(ctx context.Context, payload []byte) error {
			code, err := p.Post(ctx, "/d/"+string(id), senmlJSON, payload)
			if err == nil && code != coap.Changed {
				err = fmt.Errorf("the gateway answers %s", code)
			}
			return err
		}
		d.close = func() { p.Close() }
	case Serial:
		p, err := pty.Open()
		if err != nil {
			return nil, err
		}
		d.Port = p.Path()
		d.send = func(_ context.Context, payload []byte) error {
			_, err := p.Write(append(payload, '\n'))
			return err
		}
		d.close = func() { p.Close() }
	}
	return d, nil
}

// Send sends one reading and waits until it is acknowledged. One that was not
// is sent again with the same count, as a device does that keeps its readings;
// it ends with ctx.
func (d *Device) Send(ctx context.Context) error {
	d.mu.Lock()
	d.sent++
	count := d.sent
	d.mu.Unlock()
	payload := d.payload(count, time.Now())
	for {
		err := d.send(ctx, payload)
		if err == nil {
			d.mu.Lock()
			d.acked++
			d.mu.Unlock()
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// lastSend bounds the reading that is under way when a device is to stop.
const lastSend = 30 * time.Second

// Run sends a reading every interval until ctx ends, and then brings the one
// that is under way to its end.
func (d *Device) Run(ctx context.Context, every time.Duration) {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(lastSend, cancel) })
	defer stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if d.Send(sending) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// payload is a reading as the firmware writes it: a room whose warmth and
// damp go up and down.
func (d *Device) payload(count int, now time.Time) []byte {
	wave := math.Sin(float64(now.Unix())/60 + d.phase)
	temperature := json.Number(fmt.Sprintf("%.1f", 21+2*wave))
	humidity := json.Number(fmt.Sprintf("%.0f", 48-6*wave))
	var v any
	switch d.Transport {
	case MQTT:
		v = map[string]any{
			"Time":     now.Format("2006-01-02T15:04:05"),
			"AM2301":   map[string]any{"Temperature": temperature, "Humidity": humidity},
			"COUNTER":  map[string]any{"C1": count},
			"TempUnit": "C",
		}
	case CoAP:
		v = []map[string]any{
			{"bn": "urn:dev:sim:" + string(d.ID) + ":", "n": "temperature", "u": "Cel", "v": temperature},
			{"n": "humidity", "u": "%RH", "v": humidity},
			{"n": "count", "v": count},
		}
	case Serial:
		v = map[string]any{"temperature": temperature, "humidity": humidity, "count": count}
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // there is nothing in it that cannot be marshalled
	}
	return b
}
