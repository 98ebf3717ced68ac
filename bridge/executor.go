package bridge

import (
	"context"
	"errors"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// An Executor carries out what people and programs want of devices. Whoever
// calls it has asked the [Authorizer]. Its methods may be called from any
// goroutine, and do not wait.
type Executor interface {
	// Controls gives what a device can be told, as far as that is known by now.
	Controls(device devices.ID) []devices.Control

	// Execute has a device told something, on behalf of a JID. The channel gets
	// one outcome that is Refused or Sent, after Sent perhaps Confirmed, and is
	// closed; it need not be read. A command that is not sent when ctx ends is
	// refused. As names, on, off and toggle are also those of a device that has
	// one switch.
	Execute(ctx context.Context, author string, c devices.Command) <-chan Outcome
}

// An Outcome is how a command goes on.
type Outcome struct {
	Kind  OutcomeKind
	Err   error         // Refused: why, in words for the one who gave it; Sent: what is not sure, or nil
	After time.Duration // Confirmed: from when it was sent
}

// OutcomeKind is the word that an answer begins with.
type OutcomeKind uint8

// The outcomes of a command.
const (
	Refused OutcomeKind = iota
	Sent
	Confirmed // by what the device reported
)

// String gives the word.
func (k OutcomeKind) String() string { return [...]string{"refused", "sent", "confirmed"}[k] }

// ErrBusy says that a device has too many commands waiting.
var ErrBusy = errors.New("too many commands wait for the device")
