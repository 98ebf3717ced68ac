package stream

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"mellium.im/xmpp"
	"mellium.im/xmpp/component"
	"mellium.im/xmpp/jid"
	xmppstream "mellium.im/xmpp/stream"
)

// dialTime is how long connecting and negotiating may take where ctx sets no
// shorter time.
const dialTime = time.Minute

// Dial connects and negotiates. ctx bounds that, not the life of the session,
// which ends once: with Close, or by itself, which Done tells.
func Dial(ctx context.Context, cfg Config) (*Session, error) {
	if (cfg.Component == nil) == (cfg.Account == nil) {
		return nil, errors.New("cannot connect: exactly one of component and account must be given")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	s, err := negotiate(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot log in to %s: %w", cfg.where(), err)
	}
	s.start()
	return s, nil
}

func (cfg Config) where() string {
	if cfg.Component != nil {
		return fmt.Sprintf("%s as the component %s", cfg.Component.Server, cfg.Component.Domain)
	}
	at := cfg.Account.Server
	if at == "" {
		at = cfg.Account.JID.Domainpart()
	}
	return fmt.Sprintf("%s as %s", at, cfg.Account.JID.Bare())
}

func negotiate(ctx context.Context, cfg Config) (s *Session, err error) {
	tcp, direct, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// The library takes a deadline's end back at once, so that a server which
	// is silent just then would be waited for without end.
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	defer stop()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the library panics: %v", r)
		}
		if err != nil {
			tcp.Close()
			if ctx.Err() != nil {
				err = fmt.Errorf("no answer in time: %w", ctx.Err())
			}
		}
	}()
	c := newConn(tcp)
	if cfg.Component != nil {
		return negotiateComponent(ctx, cfg, c)
	}
	return negotiateAccount(ctx, cfg, c, direct)
}

func negotiateComponent(ctx context.Context, cfg Config, c *conn) (*Session, error) {
	domain, err := jid.Parse(cfg.Component.Domain)
	if err != nil {
		return nil, fmt.Errorf("the domain %q is none: %v", cfg.Component.Domain, err)
	}
	x, err := component.NewSession(ctx, domain, []byte(cfg.Component.Secret), c)
	switch {
	case errors.Is(err, xmppstream.NotAuthorized):
		return nil, fmt.Errorf("the secret is wrong: %w", err)
	case err != nil:
		return nil, explain(err)
	case x.State()&xmpp.Authn == 0:
		return nil, errors.New("the server did not authenticate us")
	}
	return newSession(cfg, c, domain, component.NSAccept), nil
}

func negotiateAccount(ctx context.Context, cfg Config, c *conn, direct bool) (*Session, error) {
	own := cfg.Account
	encrypted := c
	var state xmpp.SessionState
	me := own.JID
	if me.Resourcepart() == "" && cfg.Resource != "" {
		if full, err := me.WithResource(cfg.Resource); err == nil {
			me = full
		}
	}
	var bound jid.JID
	features := append(login(own), bind(me.Resourcepart(), &bound))
	if direct || own.Mode == Off {
		state |= xmpp.Secure // for Off: as secure as it gets, on this machine
	} else {
		features = append(features, startTLS(own.settings(), &encrypted))
	}
	x, err := xmpp.NewSession(ctx, me.Domain(), me, c, state, xmpp.NewNegotiator(
		func(*xmpp.Session, *xmpp.StreamConfig) xmpp.StreamConfig {
			return xmpp.StreamConfig{Features: features}
		}))
	if err != nil {
		return nil, explain(err)
	}
	// A server that offers no features at all is taken by the library for one
	// that wants none.
	if got := x.State(); got&xmpp.Secure == 0 {
		return nil, refused("the server does not offer TLS, so it was told nothing")
	} else if got&xmpp.Authn == 0 {
		return nil, errNoMechanism
	}
	if bound.Equal(jid.JID{}) {
		return nil, errors.New("the server binds no resource")
	}
	return newSession(cfg, encrypted, bound, "jabber:client"), nil
}

// startTLS is the library's feature, with a handshake at once and with the
// encrypted connection in our own wrapping.
func startTLS(settings *tls.Config, encrypted **conn) xmpp.StreamFeature {
	feature := xmpp.StartTLS(settings)
	negotiate := feature.Negotiate
	feature.Negotiate = func(ctx context.Context, s *xmpp.Session, data any) (xmpp.SessionState, io.ReadWriter, error) {
		mask, rw, err := negotiate(ctx, s, data)
		switch {
		case err != nil && broken(err):
			return mask, rw, err
		case err != nil:
			return mask, rw, refused("the server does not start TLS, so it was told nothing (%w)", err)
		}
		t, ok := rw.(*tls.Conn)
		if !ok {
			return mask, rw, errors.New("STARTTLS gave no TLS connection")
		}
		if err := t.HandshakeContext(ctx); err != nil {
			return mask, nil, fmt.Errorf("TLS: %w", err)
		}
		plain := *encrypted
		*encrypted = newConn(t)
		(*encrypted).under = plain
		return mask, *encrypted, nil
	}
	return feature
}

// broken reports whether an error is that of a link or a stream that ended,
// and tells nothing of what was being negotiated.
func broken(err error) bool {
	var network net.Error
	var stream xmppstream.Error
	var syntax *xml.SyntaxError
	return closed(err) || errors.As(err, &network) || errors.As(err, &stream) || errors.As(err, &syntax) || errors.Is(err, errTooLong)
}

// closed reports whether the other side closed the connection, which an XML
// decoder tells in its own way in the middle of a document.
func closed(err error) bool {
	var syntax *xml.SyntaxError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.As(err, &syntax) && syntax.Msg == "unexpected EOF"
}

func explain(err error) error {
	if closed(err) {
		return fmt.Errorf("the server closed the connection: %w", io.EOF)
	}
	return err
}
