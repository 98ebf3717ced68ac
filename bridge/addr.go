package bridge

import (
	"fmt"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/devices"
)

// resource is the same for every device and across restarts: clients choose a
// contact's first resource, and keep it.
const resource = "gw"

// A JID is an XMPP address (RFC 7622).
type JID = jid.JID

// ParseJID reads an address.
func ParseJID(s string) (JID, error) {
	j, err := jid.Parse(s)
	if err != nil {
		return JID{}, fmt.Errorf("cannot use %q as a JID: %v", s, err)
	}
	return j, nil
}

// ValidJID says what is wrong with s as a JID (RFC 7622); nil where it is one.
func ValidJID(s string) error {
	_, err := ParseJID(s)
	return err
}

// deviceJID gives the full JID of a device of the component domain.
func deviceJID(domain jid.JID, id devices.ID) (jid.JID, error) {
	return jid.New(string(id), domain.Domainpart(), resource)
}

// A target is what a stanza was sent to: the component's domain itself, or a
// device, of which the gateway is one.
type target struct {
	domain bool
	device devices.ID
}

// targetOf says what `to` names, on bare and on full JIDs; false where it can
// be nothing of ours. That a device of this name exists is not said.
func targetOf(domain, to jid.JID) (target, bool) {
	if to.Domainpart() != domain.Domainpart() {
		return target{}, false
	}
	if to.Localpart() == "" {
		return target{domain: true}, to.Resourcepart() == ""
	}
	if r := to.Resourcepart(); r != "" && r != resource {
		return target{}, false
	}
	id, err := devices.ParseID(to.Localpart())
	return target{device: id}, err == nil
}
