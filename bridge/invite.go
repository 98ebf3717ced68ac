package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge/stream"
)

// An Invitation lets somebody make an account on a server (XEP-0401, XEP-0445),
// or at least have a contact there (XEP-0379).
type Invitation struct {
	Domain  string // of the server
	Name    string // of the account that is to be made; "" leaves it to the one who makes it
	Inviter string // bare JID of who becomes a contact; "" is nobody
	Token   string
}

// ParseInvitation reads an xmpp: URI (RFC 5122) as servers make them for people:
// xmpp:example.org?register;preauth=… or xmpp:anna@example.org?roster;preauth=…;ibr=y.
func ParseInvitation(uri string) (Invitation, error) {
	fault := func(what string) (Invitation, error) {
		return Invitation{}, fmt.Errorf("cannot use the invitation: %s; it is like xmpp:anna@example.org?roster;preauth=…;ibr=y, or xmpp:example.org?register;preauth=…", what)
	}
	scheme, rest, _ := strings.Cut(uri, ":")
	switch strings.ToLower(scheme) { // RFC 3986 section 3.1
	case "xmpp":
	case "http", "https":
		return fault("it is the address of a web page: open it in a browser and copy the one that its button leads to")
	default:
		return fault(fmt.Sprintf("%.40q does not begin with xmpp:", uri))
	}
	address, query, _ := strings.Cut(rest, "?")
	address, err := url.PathUnescape(strings.TrimPrefix(address, "//"))
	if err != nil {
		return fault("its address cannot be read")
	}
	who, err := jid.Parse(address)
	if err != nil || who.Resourcepart() != "" {
		return fault(fmt.Sprintf("%q is no address", address))
	}
	action, parameters, _ := strings.Cut(query, ";")
	in := Invitation{Domain: who.Domainpart()}
	register := false
	for part := range strings.SplitSeq(parameters, ";") {
		key, value, _ := strings.Cut(part, "=")
		value, err := url.PathUnescape(value)
		switch {
		case err != nil:
			return fault("a parameter cannot be read")
		case key == "preauth":
			in.Token = value
		case key == "ibr":
			register = value == "y"
		}
	}
	switch {
	case in.Token == "":
		return fault("it has no preauth, which is what lets in")
	case action == "register":
		in.Name = who.Localpart()
	case action == "roster" && !register:
		return fault("it is for people who have an account already, and a gateway has none: make one that also lets make an account (ibr=y)")
	case action == "roster" && who.Localpart() == "":
		return fault("it does not say whom it is from")
	case action == "roster":
		in.Inviter = who.Bare().String()
	default:
		return fault(fmt.Sprintf("it is to %q, not to register or roster", action))
	}
	return in, nil
}

// What [Register] may say of an invitation.
var (
	ErrInvitation     = stream.ErrInvitation
	ErrTaken          = stream.ErrTaken
	ErrNoRegistration = stream.ErrNoRegistration
)

// Register makes the account of cfg on its server by an invitation's token; see
// [stream.Register].
func Register(ctx context.Context, cfg stream.Config, token string) error {
	return stream.Register(ctx, cfg, token)
}

// Lasting reports whether an error of [Register] is one that no other try mends.
func Lasting(err error) bool {
	return errors.Is(err, ErrInvitation) || errors.Is(err, ErrTaken) || errors.Is(err, ErrNoRegistration)
}
