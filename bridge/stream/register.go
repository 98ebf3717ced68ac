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

// The ways in which a server refuses an account.
var (
	// ErrInvitation says that the token is used up, expired or unknown.
	ErrInvitation = errors.New("the invitation does not hold: it was used, is too old, or is of another server")
	// ErrTaken says that the name of the account is taken.
	ErrTaken = errors.New("the name is taken")
	// ErrNoRegistration says that the server makes no accounts.
	ErrNoRegistration = errors.New("the server does not let anybody make an account, with or without invitation")
)

// Register makes the account of cfg with its password on its server (XEP-0077),
// showing the token of an invitation where there is one (XEP-0445 section 4). It
// takes one connection, which is closed at the end. Nothing is sent without TLS.
func Register(ctx context.Context, cfg Config, token string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	own := cfg.Account
	if own == nil || own.JID.Localpart() == "" {
		return errors.New("cannot make an account: it has no name")
	}
	if err := register(ctx, cfg, token); err != nil {
		return fmt.Errorf("cannot make the account %s: %w", own.JID.Bare(), err)
	}
	return nil
}

func register(ctx context.Context, cfg Config, token string) (err error) {
	own := cfg.Account
	tcp, direct, err := connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer tcp.Close()
	defer context.AfterFunc(ctx, func() { tcp.Close() })()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the library panics: %v", r)
		}
		if ctx.Err() != nil && err != nil {
			err = fmt.Errorf("no answer in time: %w", ctx.Err())
		}
	}()
	c := newConn(tcp)
	encrypted := c
	var state xmpp.SessionState
	var outcome error
	tried := false
	features := []xmpp.StreamFeature{{
		Name:       xml.Name{Space: "http://jabber.org/features/iq-register", Local: "register"},
		Necessary:  xmpp.Secure,
		Prohibited: xmpp.Authn,
		Parse: func(_ context.Context, d *xml.Decoder, _ *xml.StartElement) (bool, any, error) {
			return true, nil, d.Skip()
		},
		Negotiate: func(_ context.Context, s *xmpp.Session, _ any) (xmpp.SessionState, io.ReadWriter, error) {
			tried = true
			outcome = apply(s, own, token)
			return 0, nil, errOver
		},
	}}
	if direct || own.Mode == Off {
		state |= xmpp.Secure
	} else {
		features = append(features, startTLS(own.settings(), &encrypted))
	}
	_, err = xmpp.NewSession(ctx, own.JID.Domain(), jid.JID{}, c, state, xmpp.NewNegotiator(
		func(*xmpp.Session, *xmpp.StreamConfig) xmpp.StreamConfig {
			return xmpp.StreamConfig{Features: features}
		}))
	switch {
	case tried:
		return outcome
	case err != nil && (broken(err) || Delay(err) != Transient || ctx.Err() != nil),
		err != nil && encrypted == c && state&xmpp.Secure == 0: // it never came to where it would be offered
		return explain(err)
	}
	return ErrNoRegistration
}

// errOver ends the negotiation when there is an outcome.
var errOver = errors.New("nothing more is wanted of this stream")

// apply asks for the account on a stream that is encrypted and belongs to nobody
// yet.
func apply(s *xmpp.Session, own *Account, token string) error {
	if token != "" {
		type preauth struct {
			XMLName xml.Name `xml:"urn:xmpp:pars:0 preauth"`
			Token   string   `xml:"token,attr"`
		}
		switch condition, err := askUnbound(s, preauth{Token: token}); {
		case err != nil:
			return err
		case condition != "":
			return ErrInvitation
		}
	}
	type query struct {
		XMLName  xml.Name `xml:"jabber:iq:register query"`
		Username string   `xml:"username"`
		Password string   `xml:"password"`
	}
	switch condition, err := askUnbound(s, query{Username: own.JID.Localpart(), Password: own.Password}); {
	case err != nil:
		return err
	case condition == stanza.Conflict:
		return ErrTaken
	case condition == stanza.NotAllowed, condition == stanza.Forbidden, condition == stanza.ServiceUnavailable, token == "" && condition == stanza.NotAcceptable:
		return fmt.Errorf("%w (%s)", ErrNoRegistration, condition)
	case condition != "":
		return fmt.Errorf("the server answers %s", condition)
	}
	return nil
}

// askUnbound sends a request on a stream without a session, and gives the error's
// condition of its answer.
func askUnbound(s *xmpp.Session, payload any) (stanza.Condition, error) {
	id := rand.Text()
	b, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"iq"`
		Type    string   `xml:"type,attr"`
		ID      string   `xml:"id,attr"`
		Payload any
	}{Type: "set", ID: id, Payload: payload})
	if err != nil {
		return "", err
	}
	if _, err := s.Conn().Write(b); err != nil {
		return "", err
	}
	r := s.TokenReader()
	defer r.Close()
	var answer struct {
		XMLName xml.Name      `xml:"iq"`
		Type    string        `xml:"type,attr"`
		ID      string        `xml:"id,attr"`
		Error   *stanza.Error `xml:"error"`
	}
	if err := xml.NewTokenDecoder(r).Decode(&answer); err != nil {
		return "", explain(err)
	}
	switch {
	case answer.ID != id:
		return "", errors.New("the server answers with something else")
	case answer.Type == "result":
		return "", nil
	case answer.Error != nil && answer.Error.Condition != "":
		return answer.Error.Condition, nil
	}
	return stanza.UndefinedCondition, nil
}
