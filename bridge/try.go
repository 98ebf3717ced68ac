package bridge

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"syscall"

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
	// Harmless is set where a gateway can work with Err.
	Harmless bool
}

// fewItems is how many items of a node are few: an hour of a device that reports
// each second, where the link is quick.
const fewItems = 256

// Try does once what a [Bridge] of this config would do first: it logs in,
// finds the PubSub service, and there makes a node as it would for a device,
// publishes the largest pack to it, and deletes it. It also looks at what the
// service allows, and what the server does when a component comes back before
// its old session was noticed to be dead. It reports each step, and stops at the first that fails. A
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
	node := Trial{Step: "node creation", Seen: "made and deleted a node"}
	var more []Trial
	if node.Err = l.ensure(ctx, n); node.Err == nil {
		more = append(more, l.tryKept(ctx, n), l.tryMember(ctx, n), l.tryLargest(ctx, n))
		// Though ctx ended meanwhile.
		_, node.Err = l.askOwner(context.WithoutCancel(ctx), deleting, n.name, stanza.SetIQ, ownerElement{Delete: &nodeRef{n.name}})
	}
	if node.Err != nil {
		node.Next = adviseNode(node.Err, b.component)
	}
	for _, t := range append([]Trial{node}, more...) {
		report(t)
	}
	if node.Err == nil && b.component {
		report(tryReturn(ctx, b.cfg.Stream))
	}
}

// tryKept looks at what the service made of the node's settings.
func (l *link) tryKept(ctx context.Context, n *node) Trial {
	t := Trial{Step: "node settings"}
	have, err := l.askOwner(ctx, configuring, n.name, stanza.GetIQ, ownerElement{Configure: &formRef{Node: n.name}})
	switch {
	case err != nil:
		t.Err, t.Next, t.Harmless = err, "read the server's log", true
		return t
	case have.Configure == nil || have.Configure.Form == nil:
		t.Err, t.Next, t.Harmless = errors.New("the service does not show them"), "take care that nodes are private: watch them with an account that has no rights", true
		return t
	}
	form := *have.Configure.Form
	access, _ := form.value(optAccess)
	kept, _ := form.value(optMaxItems)
	few := false
	if kept == "max" {
		kept, few = l.tryMost(ctx, n)
	} else if number, err := strconv.Atoi(kept); err == nil {
		few = number <= fewItems
	}
	t.Seen = fmt.Sprintf("access %s, keeps %s items", cmp.Or(access, "not told"), cmp.Or(kept, "an unknown number of"))
	if len(l.form.access) > 0 {
		t.Seen += "; the service offers " + strings.Join(l.form.access, ", ")
	}
	if access != "" && access != "whitelist" {
		t.Err, t.Next = errors.New(t.Seen+": others could read it"), "use a service that has the access model whitelist; Prosody's and ejabberd's have"
		return t
	}
	if few {
		t.Err, t.Harmless = errors.New(t.Seen+", which is little: who is away for long misses the rest"), true
		t.Next = "have the server keep more: pubsub_max_items of Prosody, max_items_node of ejabberd; configs/ shows where"
	}
	return t
}

// tryMember lets somebody in, as operators are. Openfire (4.2, and its main branch
// of 2026) takes a role that it does not know for outcast, and does not know
// members.
func (l *link) tryMember(ctx context.Context, n *node) Trial {
	t := Trial{Step: "members", Seen: "who is let in is a member"}
	who := "nobody-" + strings.ToLower(rand.Text()) + "@" + l.session.Addr().Domainpart()
	if _, err := l.askOwner(ctx, sharing, n.name, stanza.SetIQ, ownerElement{Affiliations: &affiliations{n.name, []affiliation{{who, "member"}}}}); err != nil {
		t.Err, t.Next, t.Harmless = fmt.Errorf("nobody can be let in: %w", err), "read the server's log; until that is mended operators can read no node", true
		return t
	}
	have, err := l.askOwner(ctx, sharing, n.name, stanza.GetIQ, ownerElement{Affiliations: &affiliations{Node: n.name}})
	if err != nil || have.Affiliations == nil {
		return t // it does not tell
	}
	for _, a := range have.Affiliations.List {
		if a.JID == who && a.Role == "outcast" {
			t.Err, t.Harmless = errors.New("the service shuts out who is let in: operators can read no node"), true
			t.Next = "use a service that knows members, as Prosody's and ejabberd's do; chat, presence and alarms work without"
		}
	}
	return t
}

// tryMost asks for fewer and fewer items where a service does not tell how many
// "max" is, as Prosody does not.
func (l *link) tryMost(ctx context.Context, n *node) (kept string, few bool) {
	for _, most := range []int{10_000, 1000, fewItems + 1} {
		if l.configure(ctx, n, submit(nsNodeConfig, field(optMaxItems, strconv.Itoa(most)))) == nil {
			return fmt.Sprintf("%d or more", most), false
		}
	}
	return fmt.Sprintf("at most %d", fewItems), true
}

// tryLargest publishes as much as the gateway ever puts into one item.
func (l *link) tryLargest(ctx context.Context, n *node) Trial {
	t := Trial{Step: "stanza size"}
	text, err := WrapLog(make([]byte, maxPack))
	if err == nil {
		err = l.publish(ctx, n, "largest", text)
	}
	if err != nil {
		t.Err, t.Next = err, "let the server take stanzas of 16 kB and more; Prosody and ejabberd do where nobody changed it"
		return t
	}
	t.Seen = fmt.Sprintf("an item of %d bytes was taken, the largest that the gateway makes of several readings", len(text))
	return t
}

// tryReturn has a component come back while its session is there: as after a
// power cut, which the server does not notice for many minutes.
func tryReturn(ctx context.Context, cfg stream.Config) Trial {
	t := Trial{Step: "coming back", Seen: "a second session is let in, so a power cut keeps nobody out"}
	again, err := stream.Dial(ctx, cfg)
	if err != nil {
		t.Err, t.Harmless = fmt.Errorf("a second session is refused: after a power cut the gateway waits until the server notices that the first is dead: %w", err), true
		t.Next = `on Prosody, write component_conflict_resolve = "kick_old" into the component's section`
		return t
	}
	_ = again.Close() // it was only tried
	return t
}

func adviseLogin(err error) string {
	var untrusted *tls.CertificateVerificationError
	var name *net.DNSError
	var link *net.OpError
	switch {
	case errors.As(err, &name):
		return "correct the domain, or check the network: the cable, the WiFi, and the name servers in /etc/resolv.conf"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "start the server, or correct its address: nothing listens there"
	case errors.As(err, &link) && link.Op == "dial":
		return "check the network, that the server runs, and that no firewall stands between"
	case stream.Untimely(err):
		return "compare the clock of this machine, timedatectl; where that is right, have the server's certificate renewed"
	case errors.As(err, &untrusted):
		return "give the server a certificate for the domain, or name its authority in ca_file"
	case stream.Delay(err) == stream.Refused:
		return "correct name and secret, here or on the server"
	case stream.Delay(err) == stream.Conflict:
		return "end the other session of this name, or wait until the server has noticed its end"
	}
	return "read the server's log"
}

// Untimely reports whether an error is that of a certificate which is out of its
// time, or seems so by a clock that is wrong.
func Untimely(err error) bool { return stream.Untimely(err) }

func adviseNode(err error, component bool) string {
	switch {
	case Judge(err) != Park:
	case !component:
		return "write pubsub: pep, which has the account keep them itself; or let the gateway make nodes there, configs/ has what to add to Prosody and ejabberd"
	default:
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
