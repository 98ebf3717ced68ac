package devices

import (
	"context"
	"errors"
	"time"
)

// A Command is what somebody wants a device to do.
type Command struct {
	Device   ID
	Name     string // as of a [Control]
	Argument string // as people write it; "" where it takes none
}

// A Control is one thing that a device can be told.
type Control struct {
	Name     string // that of the field which shows what came of it, where there is one
	Title    string // for people, "" if there is none
	Argument Argument
	// Hazardous is set where what was done cannot be taken back, or may hurt: a
	// person is asked whether he means it.
	Hazardous bool
}

// An Argument is what a command takes.
type Argument struct {
	Type     ArgumentType
	Words    []string // the only ones, of a switch or of words
	Min, Max *float64 // of a number; nil is no bound
	Step     float64  // between two numbers; 0 is any
	Unit     Unit
}

// ArgumentType says what an argument is.
type ArgumentType uint8

// The types of an argument.
const (
	NoArgument ArgumentType = iota
	SwitchArgument
	NumberArgument
	IntegerArgument
	WordArgument
	TextArgument
)

// A Confirmation is what a device reports when it has done what it was told: a
// field that has a value, or any, where that is the zero Value, in the time.
type Confirmation struct {
	Field  string
	Value  Value
	Within time.Duration
}

// An Actuator is a [Driver] that can tell its devices what to do. Its methods
// may be called from any goroutine.
type Actuator interface {
	Driver

	// Controls gives what a device can be told, as far as that is known by now;
	// none of a device of others.
	Controls(device ID) []Control

	// Execute checks a command and sends it, once: it is not kept for a device
	// or a link that is away. expect is called just before it is sent. The
	// error says why it was not sent, in words for the one who gave it; or
	// wraps [ErrUncertain].
	Execute(ctx context.Context, c Command, expect func(Confirmation)) error
}

// ErrUncertain says of a command that it was sent, and that nobody knows how
// far it got. It is not sent again: a device would do it twice.
var ErrUncertain = errors.New("nobody knows whether it arrived")
