package serial

import (
	"testing"
	"time"
)

// On has the port look for devices below another root folder.
func (p *Port) On(root string) *Port {
	p.machine = machine(root)
	return p
}

// Within has writes end after a time.
func (p *Port) Within(limit time.Duration) *Port {
	p.limit = limit
	return p
}

// PlugUSB makes what sysfs shows of a serial adapter.
func PlugUSB(t testing.TB, root string, number uint64, tty, socket string, attributes map[string]string) {
	t.Helper()
	plugUSB(t, root, deviceNumber(number), tty, socket, attributes)
}
