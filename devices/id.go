package devices

import (
	"fmt"
	"strings"
	"unicode"
)

// An ID names a device for good. It is the local part of the device's JID, a
// part of its node names, and never changes once it was made; the names that
// people give a device travel beside it.
//
// An ID is a slug: 1 to 40 characters of a-z, 0-9 and '-', neither first nor
// last '-'.
type ID string

const maxIDLength = 40

// Gateway is the ID of the gateway itself, which is a device like the others.
const Gateway ID = "gateway"

// reserved are the ids that addresses and chat words have taken.
const reserved = " gateway admin alerts all" +
	" help menu status read on off toggle set proof ack mute subscribe history plot" +
	" devices pending approve deny grant revoke claim rooms outbox doctor backup "

// Reserved reports whether a configured device or group may not be called s,
// because addresses or chat words have taken that name.
func Reserved(s string) bool {
	return s != "" && strings.Contains(reserved, " "+s+" ")
}

// ParseID checks that s is a slug. Reserved names are slugs too: a caller that
// takes ids from people asks [Reserved] as well.
func ParseID(s string) (ID, error) {
	switch {
	case s == "":
		return "", fmt.Errorf("a device id cannot be empty")
	case len(s) > maxIDLength:
		return "", fmt.Errorf("a device id has at most %d characters, %q has %d", maxIDLength, s, len(s))
	case s[0] == '-' || s[len(s)-1] == '-':
		return "", fmt.Errorf("a device id does not begin or end with '-': %q", s)
	}
	for _, r := range s {
		if !idRune(r) {
			return "", fmt.Errorf("a device id has only a-z, 0-9 and '-', not %q in %q", r, s)
		}
	}
	return ID(s), nil
}

func idRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-'
}

// Slug makes an ID of any name that people or firmwares gave: lower case,
// every run of other characters one '-', at most 40 characters. It returns ""
// where nothing of the name is left.
func Slug(name string) ID {
	var b strings.Builder
	for _, r := range name {
		r = unicode.ToLower(r)
		if !idRune(r) {
			r = '-'
		}
		if r == '-' && (b.Len() == 0 || strings.HasSuffix(b.String(), "-")) {
			continue
		}
		if b.Len() == maxIDLength {
			break
		}
		b.WriteRune(r)
	}
	return ID(strings.TrimSuffix(b.String(), "-"))
}
