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

	// Given is when, where a server kept it since (XEP-0203); zero is now.
	Given time.Time
	// Until is when it is too late for it; zero: by its age alone.
	Until time.Time
	// Token tells it from others of its author, as the id of a stanza does: what
	// comes again with the same is not done again. "" is another each time.
	Token string
	// Sure says that its author was asked again, as what is hazardous needs.
	Sure bool
}

// A Control is one thing that a device can be told.
type Control struct {
	Name     string // that of the field which shows what came of it, where there is one
	Title    string // for people, "" if there is none
	Argument Argument
	Risk     Risk
}

// Risk is what can come of a command.
type Risk uint8

// The risks.
const (
	Reversible Risk = iota // another command takes it back
	ReadOnly               // nothing changes
	Hazardous              // somebody or something can come to harm
)

// String gives the word that profiles and logs have.
func (r Risk) String() string { return [...]string{"reversible", "read", "hazardous"}[r] }

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
