package devices

import (
	"context"
	"errors"
)

// A Driver hears devices over one link: one broker, one port, one listener.
type Driver interface {
	// Name tells links apart in logs and counters: "mqtt house", "coap",
	// "serial /dev/ttyUSB0".
	Name() string

	// Run connects, hands what devices say to the sink, and returns when ctx
	// ends (nil) or the link fails (why). It does not retry: its caller does,
	// by calling Run again, which is always allowed after it returned. It
	// leaves nothing running behind. An error that wraps [ErrRefused] says
	// that trying again soon is of no use.
	Run(ctx context.Context, sink Sink) error
}

// An Adopter is a [Driver] whose devices can change while it runs.
type Adopter interface {
	Driver

	// Adopt has the driver go on, running or not, as another would whose Run
	// was never called. It reports false, and changes nothing, where only a
	// new start does that. It may be called from any goroutine.
	Adopt(next Driver) bool
}

// ErrRefused marks an error as the peer's decision: a wrong password, a
// missing right. The one who retries waits minutes, not seconds.
var ErrRefused = errors.New("refused by the peer")

// ErrFull says that no more can be taken now. The source is not acknowledged
// and sends again.
var ErrFull = errors.New("the outbox is full")

// A Sink is where drivers hand what they hear. All methods may be called from
// any goroutine and return without waiting for a disk or a network.
type Sink interface {
	// Report takes the readings of one message. The driver acknowledges the
	// device when the receipt is done without an error, and not before; a
	// driver whose device cannot wait ignores the receipt. An error means
	// that nothing was taken.
	Report(ctx context.Context, m Message) (Receipt, error)

	// Availability says what a device (or its last will) tells of itself, or
	// the one that it hangs on; AvailabilityUnknown takes back what was told.
	// retained is set where a broker had kept it, so that nobody knows how old
	// it is.
	Availability(device ID, a Availability, retained bool)

	// Unknown shows a device that is not configured, and reports whether
	// anybody wants to know. Nothing of it is stored; a driver may tell its
	// sender that it was received.
	Unknown(s Stranger) bool

	// Reject counts and logs input that could not be used. source names the
	// device where that is known, else the peer or the topic.
	Reject(source string, why error)

	// Up says that the driver's link is established.
	Up(driver string)
}

// A Receipt tells when readings are safe: accepted by the XMPP server, or
// committed to disk.
type Receipt interface {
	// Done is closed when the outcome is known.
	Done() <-chan struct{}
	// Err is nil where the readings are safe. It is defined once Done is
	// closed.
	Err() error
}

// Availability is what a device tells of its own reachability.
type Availability uint8

// What a device can tell.
const (
	AvailabilityUnknown Availability = iota
	Online
	Offline
	Sleeping // by design, between reports
)

// State is how a device is doing, as far as the gateway can know.
type State uint8

// The states of a device.
const (
	StateUnknown State = iota // has not been heard since the device was made
	StateFresh
	StateLate
	StateAsleep
	StateAlarm
	StateLost
)

// String gives the word that logs and lists show.
func (s State) String() string {
	return [...]string{"unknown", "fresh", "late", "asleep", "alarm", "lost"}[s]
}
