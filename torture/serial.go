package main

import (
	"context"

	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// serialDevice writes lines to a pseudo terminal. Nobody acknowledges them.
type serialDevice struct {
	*tap
	port *pty.PTY
}

func (d *serialDevice) run(ctx context.Context) {
	for {
		select {
		case n := <-d.numbers:
			// It blocks while nobody reads and the terminal is full, until the
			// port is closed.
			if _, err := d.port.Write(append(payload(n), '\n')); err != nil {
				return
			}
			d.done(n)
		case <-ctx.Done():
			return
		}
	}
}
