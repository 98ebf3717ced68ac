package bridge

import (
	"errors"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Right is what somebody may do. Each includes those before it.
type Right uint8

// The rights that roles have.
const (
	MayRead    Right = iota // a viewer: sees, reads, subscribes
	MayCommand              // an operator: sets, acknowledges
	MayInstall              // an installer: devices, config
	MayGrant                // an owner: grants
)

// An Office does for people what is not a command to a device. Each method
// asks for the rights of who wants it when it acts, by his bare JID; what he
// does is kept in the audit with the JID that is given. The error
// [ErrNotAllowed] is then told to a stranger as if there were nothing. Other
// errors are in words for who asked. The methods may be called from any
// goroutine but the one that reads the stream: they may wait for a disk.
type Office interface {
	// Groups gives the groups there are and who is in them, all that who may see.
	Groups(who JID) map[string][]devices.ID
	// Latest gives a device's newest value of each field, with its time.
	Latest(device devices.ID) []LatestField
	// Alarms gives those that are raised on what who may see.
	Alarms(who JID) []Alarm
	// Acknowledge ends the repetition of a device's alarms. It gives how many.
	Acknowledge(who JID, device devices.ID) (int, error)
	// Mute has a device raise no alarms for a while; 0 ends that.
	Mute(who JID, device devices.ID, d time.Duration) error
	// Proof answers for a period, "today", "24h", in plain words.
	Proof(who JID, device devices.ID, period string) (string, error)

	// Applicants gives the devices and people that wait, by number.
	Applicants(who JID) ([]Applicant, error)
	// Approve admits a device or person. name is what a device is to be called,
	// "" as it calls itself; a person gets the role that terms name.
	Approve(who JID, number int, terms Terms) (string, error)
	Deny(who JID, number int) (string, error)
	// Grant gives somebody a role, Revoke takes all that he has: his presence,
	// nodes, sessions and pending commands at once.
	Grant(who, to JID, terms Terms) error
	Revoke(who, from JID) error
	Grants(who JID) ([]GrantLine, error)
	// Claim makes who the first owner, where code is the one of this gateway.
	Claim(who JID, code string) error
	// Knock has a stranger's wish to subscribe wait for an owner.
	Knock(who JID, device devices.ID)

	// Store, Doctor and Backup do what the subcommands do, and give their text.
	Store(who JID) (string, error)
	Doctor(who JID) (string, error)
	Backup(who JID) (string, error)
}

// ErrNotAllowed says that somebody has no right to what he wants.
var ErrNotAllowed = errors.New("you may not do that")

// A LatestField is a field's newest value.
type LatestField struct {
	devices.Field
	Time time.Time
}

// An Alarm is one that is raised.
type Alarm struct {
	Device       devices.ID
	Text         string // for people
	Since        time.Time
	Acknowledged JID // by whom; the zero JID: by nobody
}

// An Applicant is a device or a person that waits to be let in.
type Applicant struct {
	Number int
	Device string // its label, "" of a person
	Person JID
	Detail string // what it measures, a live sample; what he wants to see
}

// Terms are what somebody or something is let in with.
type Terms struct {
	Name    string   // of a device
	Role    string   // of a person: viewer (also ""), operator, installer, owner
	Devices []string // patterns; none: all
	Hours   string   // as in the config; "": always
	Until   string   // as in the config; "": for good
}

// A GrantLine is a grant for people to read.
type GrantLine struct {
	JID JID
	Terms
	Config bool // it stands in the config, and not in what was granted since
}
