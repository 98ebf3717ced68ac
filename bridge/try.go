package bridge

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"

	"mellium.im/xmpp/stanza"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

// A Trial is what came of one step of [Try].
type Trial struct {
	Step string
	Seen string // what shows that it went well
	Err  error  // nil if it did
	Next string // what a person can do about Err
}

// Try does once what a [Bridge] of this config would do first: it logs in,
// finds the PubSub service, and there makes a node as it would for a device,
// and deletes it. It reports each step, and stops at the first that fails. A
// server may end the session of a component that is at work for the trial's
// sake, so none must be.
func Try(ctx context.Context, cfg Config, report func(Trial)) {
	login := Trial{Step: "login"}
	b, err := New(cfg, Options{Auth: nobody{}, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		b.cfg.Stream.Handler = nil
		if own := b.cfg.Stream.Account; own != nil {
			own.JID, b.cfg.Stream.Resource = own.JID.Bare(), "check-"+rand.Text() // not to end a session at work
		}
	}
	var session *stream.Session
	if err == nil {
		session, err = stream.Dial(ctx, b.cfg.Stream)
	}
	if err != nil {
		login.Err, login.Next = err, adviseLogin(err)
		report(login)
		return
	}
	defer session.Close()
	login.Seen = "as " + session.Addr().String()
	report(login)

	service := Trial{Step: "PubSub service"}
	l, err := b.establish(ctx, session)
	if err == nil {
		var is bool
		if is, err = isPubSub(ctx, session, l.publisher, l.service); err != nil {
			err = fmt.Errorf("cannot ask %s what it is: %w", l.service, err)
		} else if !is {
			err = fmt.Errorf("%s is no PubSub service", l.service)
		}
	}
	if err != nil {
		service.Err, service.Next = err, "write pubsub: with the JID of the service, or pep"
		report(service)
		return
	}
	service.Seen = l.service.String()
	report(service)

	n := newNode(b.cfg.Gateway+"/check-"+rand.Text(), "", laneLog)
	node := Trial{Step: "node creation", Seen: fmt.Sprintf("made and deleted a node that would keep %s items", l.form.max(n.lane))}
	if node.Err = l.ensure(ctx, n); node.Err == nil {
		// Though ctx ended meanwhile.
		_, node.Err = l.askOwner(context.WithoutCancel(ctx), deleting, n.name, stanza.SetIQ, ownerElement{Delete: &nodeRef{n.name}})
	}
	if node.Err != nil {
		node.Next = adviseNode(node.Err)
	}
	report(node)
}

func adviseLogin(err error) string {
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted):
		return "give the server a certificate for the domain, or name its authority in ca_file"
	case stream.Delay(err) == stream.Refused:
		return "correct name and secret, here or on the server"
	case stream.Delay(err) == stream.Conflict:
		return "end the other session of this name, or wait until the server has noticed its end"
	}
	return "read the server's log"
}

func adviseNode(err error) string {
	if Judge(err) == Park {
		return "let the gateway make nodes there; configs/ has what to add to Prosody and ejabberd"
	}
	return "read the server's log"
}

// nobody is an [Authorizer].
type nobody struct{}

func (nobody) Operators() []JID                  { return nil }
func (nobody) MaySee(JID, devices.ID) bool       { return false }
func (nobody) MaySeeEvents(JID) bool             { return false }
func (nobody) May(JID, Right, devices.ID) bool   { return false }
func (nobody) AtOtherTimes(JID, devices.ID) bool { return false }
