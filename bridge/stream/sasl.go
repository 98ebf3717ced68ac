package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"mellium.im/sasl"
	"mellium.im/xmpp"
)

// The rounds of PBKDF2 that a server may ask for (RFC 5802 section 5.1): fewer
// are too few for the password's sake, more would only burn this board's time.
const (
	minRounds = 4096
	maxRounds = 500_000
)

var errNoMechanism = refused("the server offers no login that is safe (SCRAM)")

// login gives the features that authenticate. A server may offer -PLUS and yet
// not know the channel binding that goes with the TLS version in use, as
// ejabberd 23.01 does with TLS 1.3; what it knows it says by XEP-0440, which
// is believed.
func login(a *Account) []xmpp.StreamFeature {
	var known []string
	bindings := xmpp.StreamFeature{
		Name: xml.Name{Space: "urn:xmpp:sasl-cb:0", Local: "sasl-channel-binding"},
		Parse: func(_ context.Context, d *xml.Decoder, start *xml.StartElement) (bool, any, error) {
			var list struct {
				Types []struct {
					Type string `xml:"type,attr"`
				} `xml:"channel-binding"`
			}
			err := d.DecodeElement(&list, start)
			for _, t := range list.Types {
				known = append(known, t.Type)
			}
			return false, nil, err
		},
	}
	ours := mechanisms()
	feature := xmpp.SASL("", a.Password, ours...)
	negotiate := feature.Negotiate
	feature.Negotiate = func(ctx context.Context, s *xmpp.Session, data any) (xmpp.SessionState, io.ReadWriter, error) {
		offered, _ := data.([]string)
		binds := canBind(s.ConnectionState().Version, known)
		usable := slices.DeleteFunc(slices.Clone(offered), func(name string) bool {
			return isPlus(name) && !binds ||
				!slices.ContainsFunc(ours, func(m sasl.Mechanism) bool { return m.Name == name })
		})
		plus := slices.ContainsFunc(usable, isPlus)
		switch {
		case len(usable) == 0:
			return 0, nil, errNoMechanism
		case !plus && a.PlusSeen != nil && a.PlusSeen.Load():
			return 0, nil, refused("the server no longer offers a login with channel binding: somebody may be in between")
		}
		mask, rw, err := negotiate(ctx, s, usable)
		if err != nil {
			return mask, rw, explainLogin(err)
		}
		if plus && a.PlusSeen != nil {
			a.PlusSeen.Store(true)
		}
		return mask, rw, nil
	}
	return []xmpp.StreamFeature{bindings, feature}
}

// canBind reports whether the library's channel binding for a TLS version (RFC
// 9266, RFC 5929 section 3) is one that the server knows.
func canBind(version uint16, known []string) bool {
	if version == tls.VersionTLS13 {
		return slices.Contains(known, "tls-exporter")
	}
	return len(known) == 0 || slices.Contains(known, "tls-unique")
}

func isPlus(mechanism string) bool { return strings.HasSuffix(mechanism, "-PLUS") }

// explainLogin tells a password that is wrong from a server that cannot tell
// now, and from a link that broke.
func explainLogin(err error) error {
	if broken(err) || errors.As(err, new(refusal)) {
		return err
	}
	condition := failure(err)
	switch condition {
	case "":
		// The server's own part of the exchange is not as it must be.
		return refused("the server does not prove that it knows the password (%w)", err)
	case "not-authorized":
		return refused("the password is not accepted (%s)", condition)
	case "temporary-auth-failure", "aborted":
		return fmt.Errorf("the server cannot check the password now (%s)", condition)
	}
	return refused("the server refuses the login (%s)", condition)
}

// failure gives the condition of a SASL failure (RFC 6120 section 6.5), "" for
// other errors. The library's error is of a type that only the library can
// name, and shows the server's text instead of the condition.
func failure(err error) string {
	f, ok := err.(interface{ TokenReader() xml.TokenReader })
	if !ok {
		return ""
	}
	for r := f.TokenReader(); ; {
		token, err := r.Token()
		if start, ok := token.(xml.StartElement); ok && start.Name.Local != "failure" && start.Name.Local != "text" {
			return start.Name.Local
		}
		if err != nil || token == nil {
			return "undefined-condition"
		}
	}
}

// mechanisms are what we authenticate with, best first. PLAIN is not among
// them: no server needs the password itself.
func mechanisms() []sasl.Mechanism {
	var list []sasl.Mechanism
	for _, m := range []sasl.Mechanism{sasl.ScramSha256Plus, sasl.ScramSha1Plus, sasl.ScramSha256, sasl.ScramSha1} {
		next := m.Next
		m.Next = func(n *sasl.Negotiator, challenge []byte, data any) (bool, []byte, any, error) {
			if err := checkChallenge(challenge); err != nil {
				return false, nil, nil, err
			}
			return next(n, challenge, data)
		}
		list = append(list, m)
	}
	return list
}

// checkChallenge looks at a message of a SCRAM server (RFC 5802 section 7)
// before the library does, which never comes to the end of one whose last part
// is too short, and computes as many rounds as it is told to.
func checkChallenge(challenge []byte) error {
	for part := range bytes.SplitSeq(challenge, []byte(",")) {
		if len(part) < 3 || part[1] != '=' {
			return refused("the server sends something else than SCRAM: %.20q", part)
		}
		if text, ok := bytes.CutPrefix(part, []byte("i=")); ok {
			n, err := strconv.Atoi(string(text))
			if err != nil || n < minRounds || n > maxRounds {
				return refused("the server asks for an unreasonable number of SCRAM rounds: %.20q", text)
			}
		}
	}
	return nil
}
