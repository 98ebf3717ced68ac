package stream

import (
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"

	"mellium.im/xmpp"
	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"
)

// A bindError says that the server gave no resource, often because the
// account has too many sessions (RFC 6120 section 7.6.2).
type bindError struct{ condition string }

func (e *bindError) Error() string { return "the server binds no resource: " + e.condition }

// bind is resource binding (RFC 6120 section 7). The library's own leaves the
// resource out of the request. bound is set to the address that the server
// gave.
func bind(resource string, bound *jid.JID) xmpp.StreamFeature {
	feature := xmpp.BindResource()
	feature.Negotiate = func(_ context.Context, s *xmpp.Session, _ any) (xmpp.SessionState, io.ReadWriter, error) {
		type payload struct {
			XMLName  xml.Name `xml:"urn:ietf:params:xml:ns:xmpp-bind bind"`
			Resource string   `xml:"resource,omitempty"`
			JID      string   `xml:"jid,omitempty"`
		}
		type iq struct {
			XMLName xml.Name      `xml:"iq"`
			Type    string        `xml:"type,attr"`
			ID      string        `xml:"id,attr"`
			Bind    payload       `xml:"urn:ietf:params:xml:ns:xmpp-bind bind"`
			Error   *stanza.Error `xml:"error,omitempty"`
		}
		request := iq{Type: "set", ID: rand.Text(), Bind: payload{Resource: resource}}
		b, err := xml.Marshal(request)
		if err != nil {
			return 0, nil, err
		}
		if _, err := s.Conn().Write(b); err != nil {
			return 0, nil, err
		}
		r := s.TokenReader()
		defer r.Close()
		var answer iq
		if err := xml.NewTokenDecoder(r).Decode(&answer); err != nil {
			return 0, nil, err
		}
		switch {
		case answer.Type == "error" && answer.Error != nil:
			return 0, nil, &bindError{string(answer.Error.Condition)}
		case answer.Type != "result" || answer.ID != request.ID:
			return 0, nil, errors.New("the server answers the request for a resource with something else")
		}
		given, err := jid.Parse(answer.Bind.JID)
		if err != nil || given.Resourcepart() == "" {
			return 0, nil, fmt.Errorf("the server binds %q, which is no full address", answer.Bind.JID)
		}
		*bound = given
		return xmpp.Ready, nil, nil
	}
	return feature
}
