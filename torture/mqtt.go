package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	mqttWindow = 5               // messages under way
	mqttAnswer = 5 * time.Second // after which a device connects anew
	redial     = 100 * time.Millisecond
)

// mqttDevice is a device with a session that outlives its connections (MQTT
// 3.1.1 section 4.1): what was not acknowledged is sent again after each
// CONNECT, with its packet id and DUP, in its order. It is written for this
// and shares no code with the gateway.
type mqttDevice struct {
	*tap
	broker func() string // host:port
	topic  string
	under  []int // numbers not acknowledged, in the order in which they were sent
}

func (d *mqttDevice) run(ctx context.Context) {
	for ctx.Err() == nil {
		d.session(ctx) // however it ended, there is a next one
		select {
		case <-ctx.Done():
		case <-time.After(redial):
		}
	}
}

// Packet types, section 2.2.1, with the flags that they must have.
const (
	mqttConnect = 0x10
	mqttConnack = 0x20
	mqttPublish = 0x32 // QoS 1
	mqttDup     = 0x08
	mqttPuback  = 0x40
)

func mqttString(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

// mqttPacket is short: its length fits one byte.
func mqttPacket(kind byte, parts ...[]byte) []byte {
	b := []byte{kind, 0}
	for _, p := range parts {
		b = append(b, p...)
	}
	if len(b) > 129 {
		panic("torture: an MQTT packet of more than 127 bytes")
	}
	b[1] = byte(len(b) - 2)
	return b
}

// id never repeats within what may be under way, as section 2.3.1 wants it.
func (d *mqttDevice) id(n int) uint16 { return uint16((n-1)%65535 + 1) }

func (d *mqttDevice) publish(conn net.Conn, n int, again byte) error {
	id := binary.BigEndian.AppendUint16(nil, d.id(n))
	_, err := conn.Write(mqttPacket(mqttPublish|again, mqttString(d.topic), id, payload(n)))
	return err
}

func (d *mqttDevice) session(ctx context.Context) error {
	dialer := net.Dialer{Timeout: mqttAnswer}
	conn, err := dialer.DialContext(ctx, "tcp", d.broker())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// Level 4, the session is to be kept, no keep-alive.
	if _, err := conn.Write(mqttPacket(mqttConnect, mqttString("MQTT"), []byte{4, 0, 0, 0}, mqttString(d.device))); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	conn.SetReadDeadline(time.Now().Add(mqttAnswer))
	if kind, body, err := mqttRead(in); err != nil {
		return err
	} else if kind != mqttConnack || len(body) != 2 || body[1] != 0 {
		return fmt.Errorf("CONNECT is answered with %x %x", kind, body)
	}
	conn.SetReadDeadline(time.Time{})
	for _, n := range d.under {
		if err := d.publish(conn, n, mqttDup); err != nil {
			return err
		}
	}

	acks, ended := make(chan uint16), make(chan error, 1)
	over, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			kind, body, err := mqttRead(in)
			if err == nil && (kind != mqttPuback || len(body) != 2) {
				err = fmt.Errorf("unexpected packet %x %x", kind, body)
			}
			if err != nil {
				ended <- err
				return
			}
			select {
			case acks <- binary.BigEndian.Uint16(body):
			case <-over.Done():
				return
			}
		}
	}()
	for {
		numbers, late := d.numbers, (<-chan time.Time)(nil)
		if len(d.under) >= mqttWindow {
			numbers = nil
		}
		if len(d.under) > 0 {
			late = time.After(mqttAnswer)
		}
		select {
		case n := <-numbers:
			d.under = append(d.under, n)
			if err := d.publish(conn, n, 0); err != nil {
				return err
			}
		case id := <-acks:
			// In order (section 4.6), or else it counts for nobody.
			if len(d.under) == 0 || d.id(d.under[0]) != id {
				return fmt.Errorf("acknowledgement of %d is out of order", id)
			}
			n := d.under[0]
			d.under = d.under[1:]
			d.done(n)
		case err := <-ended:
			return err
		case <-late:
			return errors.New("no acknowledgement")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func mqttRead(r *bufio.Reader) (kind byte, body []byte, err error) {
	if kind, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	length, err := r.ReadByte()
	if err != nil || length > 127 {
		return 0, nil, errors.Join(err, fmt.Errorf("a packet of length %d", length))
	}
	body = make([]byte, length)
	_, err = io.ReadFull(r, body)
	return kind, body, err
}
