package watch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"mellium.im/xmpp/jid"

	"github.com/porchlight-iot/porchlight/bridge/stream"
	"github.com/porchlight-iot/porchlight/devices"
)

// Options are what a Watcher is made of.
type Options struct {
	JID      string // the operator's account
	Password string
	Server   string         // host:port; empty: by the SRV records of the JID's domain
	CAs      *x509.CertPool // who may sign the server's certificate; nil: whom the system trusts
	// PubSub is the JID of the service that has the nodes; empty: the server
	// is asked for one. Of a gateway that publishes on its own account it is
	// that account's bare JID.
	PubSub string
	// Nodes to watch; empty: every log node and every events node that the
	// account may see, also those that are made later. Now nodes are watched
	// where they are named here, and with all others where Now is set.
	Nodes []string
	// Now is called as the methods of a Handler are, with what now nodes
	// hold: for each distinct time a Reading without store. It may be nil.
	Now func(Reading)
	// Contacts are bare JIDs to add to the account's contacts. A device that
	// is one tells its presence at every login; otherwise an operator gets
	// what devices tell while he is there.
	Contacts []string
	Log      *slog.Logger
}

// A Reading is one that a device made, or, from a now node, its latest values
// of one time.
type Reading struct {
	Node   string
	Item   string
	Device devices.ID
	Store  string    // <random>.<run>; empty on a now node
	Seq    uint64    // in the store's run; on a now node its last 31 bits, of the newest
	Time   time.Time // UTC
	Late   bool      // it was more than a minute old when it came
	Fields []devices.Field
}

// CategoryMessage is the category of an [Event] that is a line of chat.
const CategoryMessage = "message"

// An Event is an entry of an events node, or a line of chat: the server brings
// the operator's chat here too, and perhaps nowhere else. Its texts are what
// its author wrote, control characters included.
type Event struct {
	Node     string // empty for a line of chat
	Item     string
	Time     time.Time  // UTC
	Category string     // alarm, loss, device, command, message
	Device   devices.ID // which it is about, as far as its author says so
	Author   string     // JID
	Title    string
	Summary  string
	Loss     *Loss // of a loss
}

// A Loss says which readings the gateway calls lost, first to last; but for those
// that Kept tells, where it is set: so many are there, then so many are not, and
// so on in turn.
type Loss struct {
	Device      devices.ID
	Store       string
	First, Last uint64
	Reason      string
	Kept        []uint64
}

// A Presence is what a device, or somebody else, shows of itself.
type Presence struct {
	From   jid.JID
	Device devices.ID // From's localpart, where that can be a device
	Type   string     // empty: available
	Show   string
	Status string
}

// A Handler is told what comes. Its methods are called one at a time, from the
// goroutine that called [Watcher.Run]; while one of them runs nothing else is
// done, and when too much gathers meanwhile it is fetched anew.
type Handler interface {
	// Reading is called once for each reading of a log node: with what the
	// node holds first, each node's in order.
	Reading(Reading)
	// Event is called once for each entry of an events node, and for each line
	// of chat.
	Event(Event)
	// Presence is called for each presence that is received.
	Presence(Presence)
	// Link says that what the nodes hold was fetched and what comes now comes
	// live; or that the session ended.
	Link(up bool)
}

// A Watcher is the operator's side. It keeps what it knows over sessions, so
// that after each it fetches only what is new to it.
type Watcher struct {
	o     Options
	holds int // bytes
	nodes map[string]*node

	mu     sync.Mutex
	ledger Ledger
}

// maxHeld bounds, in bytes, what waits for the goroutine that runs a Watcher,
// and what then waits for nodes to be fetched.
const maxHeld = 8 << 20

// New makes a Watcher. It does not connect; [Watcher.Run] does.
func New(o Options) *Watcher {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Watcher{o: o, holds: maxHeld, nodes: make(map[string]*node)}
}

// Counts gives the verdict on all readings so far. It may be called from any
// goroutine.
func (w *Watcher) Counts() Counts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ledger.Counts()
}

// Run watches until ctx ends, and then returns nil. It connects again whenever
// a session ends; only where the very first login is refused, for a wrong
// password or an untrusted certificate, it returns why. It runs once at a
// time.
func (w *Watcher) Run(ctx context.Context, to Handler) error {
	address, err := jid.Parse(w.o.JID)
	switch {
	case err != nil:
		return fmt.Errorf("cannot use %q as a JID: %v", w.o.JID, err)
	case address.Localpart() == "":
		return fmt.Errorf("cannot log in as %q: an account is <name>@<domain>", w.o.JID)
	}
	var service jid.JID
	if w.o.PubSub != "" {
		if service, err = jid.Parse(w.o.PubSub); err != nil {
			return fmt.Errorf("cannot use %q as the JID of a PubSub service: %v", w.o.PubSub, err)
		}
	}
	for _, name := range w.o.Nodes {
		if w.node(name) == nil {
			return fmt.Errorf("cannot watch node %q: want <gateway>/<device>/log, <gateway>/<device>/now or <gateway>/events", name)
		}
	}
	var back stream.Backoff
	for loggedIn := false; ; {
		began := time.Now()
		err := w.once(ctx, address, service, to, &loggedIn)
		if ctx.Err() != nil {
			return nil
		}
		class := stream.Delay(err)
		if class != stream.Transient && !loggedIn {
			return fmt.Errorf("cannot log in as %s: %w", address.Bare(), err)
		}
		wait := back.Next(class, time.Since(began))
		w.o.Log.Warn("no XMPP session", "error", err, "again_in", wait.Round(time.Second/10))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// once has one session, from its beginning to its end.
func (w *Watcher) once(ctx context.Context, address, service jid.JID, to Handler, loggedIn *bool) error {
	in := newInbox(w.holds)
	s, err := stream.Dial(ctx, stream.Config{
		Account: &stream.Account{
			JID:      address.Bare(),
			Password: w.o.Password,
			Server:   w.o.Server,
			TLS:      &tls.Config{RootCAs: w.o.CAs, MinVersion: tls.VersionTLS12},
		},
		Resource: address.Resourcepart(),
		PingTo:   address.Domain(),
		Log:      w.o.Log,
		Handler:  in.take,
	})
	if err != nil {
		return err
	}
	*loggedIn = true
	return errors.Join(w.serve(ctx, s, service, in, to), s.Close())
}
