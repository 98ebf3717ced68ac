package mqtt

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// The broker's limits. The library's own are none.
const (
	brokerClients  = 256       // connected
	brokerSessions = 512       // connected or remembered
	userSessions   = 16        // of one user
	brokerPacket   = 64 << 10  // bytes
	sessionTime    = time.Hour // a session is remembered after its connection
	brokerPending  = 256       // messages to one client not yet written
	brokerInflight = 64        // messages of one client, and to it, not yet acknowledged
	subscriptions  = 100       // of one client
	maxClientID    = 256       // bytes
	maxRetained    = 1000      // messages
	maxRetainedOne = 16 << 10  // bytes
)

// A User may log in to the broker. Which topics he may use then is told at
// [Broker].
type User struct{ Name, Password string }

// BrokerConfig says where the gateway's own broker listens, and to whom.
// Without users anybody may use it, which is allowed on this machine only.
type BrokerConfig struct {
	Listen   string // address:port
	Users    []User
	Profiles *profile.Library // as of [ClientConfig]
}

// A Broker is a [devices.Driver] that is a broker (MQTT 3.1.1 and 5). It also
// passes messages on to its other clients, as a broker does. Devices on it are
// those that are on no other.
//
// A user may publish and hear topics that have his name, or the topic of one
// of his devices, among their first three levels: kitchen/temperature,
// tele/kitchen/SENSOR. His devices are those whose topic, its first level, or
// else whose id is his name. No topic has two users: where a device is
// configured for it, it is the device's user's; else the first name in it
// counts. Everything else is refused. A refused publication is acknowledged
// and goes nowhere (MQTT-3.3.5-2), a refused filter is answered with 0x80, and
// a client with a refused last will may not connect.
type Broker struct {
	devices.Pulse // of its own loop

	listen  string
	members atomic.Pointer[members]
	running atomic.Pointer[hook] // while it does
	log     *slog.Logger
}

// members are who may use a broker, and for what.
type members struct {
	users     []User
	directory *directory
	rights    *rights
	ear       *ear
}

// NewBroker makes a broker.
func NewBroker(config BrokerConfig, ds []Device, log *slog.Logger) *Broker {
	var mine []Device
	for _, d := range ds {
		if d.Broker == "" {
			mine = append(mine, d)
		}
	}
	d := newDirectory(mine)
	b := &Broker{listen: config.Listen, log: log}
	b.members.Store(&members{config.Users, d, newRights(config.Users, d), newEar(config.Profiles, true)})
	return b
}

// Adopt implements [devices.Adopter]. Sessions and retained messages stay;
// connections end whose user is gone or has another password.
func (b *Broker) Adopt(next devices.Driver) bool {
	n, ok := next.(*Broker)
	if !ok || n.listen != b.listen || n.check() != nil {
		return false
	}
	before, after := b.members.Load(), n.members.Load()
	running := b.running.Load()
	if before.ear.profiles == after.ear.profiles {
		after = &members{after.users, after.directory, after.rights, before.ear} // which knows what was announced
	} else if running != nil {
		for topic, pk := range running.server.Topics.Retained.GetAll() {
			_, _, _, _, _ = after.ear.read(after.directory, publication{topic: topic, payload: pk.Payload, retained: true})
		}
	}
	b.members.Store(after)
	if running == nil {
		return true
	}
	for _, cl := range running.server.Clients.GetAll() {
		same := func(u User) bool { return u.Name == string(cl.Properties.Username) && slices.Contains(after.users, u) }
		if cl.Net.Inline || len(before.users) == 0 && len(after.users) == 0 || slices.ContainsFunc(before.users, same) {
			continue
		}
		cl.Stop(errors.New("its user has changed"))
	}
	return true
}

func (b *Broker) check() error {
	if len(b.members.Load().users) == 0 && !loopback(b.listen) {
		return fmt.Errorf("cannot listen on %s: a broker for other machines needs users: %w", b.listen, devices.ErrRefused)
	}
	return nil
}

// Name implements [devices.Driver].
func (b *Broker) Name() string { return "mqtt broker" }

// Run implements [devices.Driver].
func (b *Broker) Run(ctx context.Context, sink devices.Sink) error {
	if err := b.check(); err != nil {
		return err
	}
	limits := mochi.NewDefaultServerCapabilities()
	limits.MaximumClients = brokerClients
	limits.MaximumPacketSize = brokerPacket
	limits.MaximumSessionExpiryInterval = uint32(sessionTime / time.Second)
	limits.MaximumClientWritesPending = brokerPending
	limits.ReceiveMaximum = brokerInflight
	limits.MaximumInflight = brokerInflight
	limits.TopicAliasMaximum = 0
	server := mochi.New(&mochi.Options{Capabilities: limits, Logger: slog.New(slog.DiscardHandler)})
	h := &hook{
		broker: b, server: server, sink: sink, ctx: ctx, stopping: make(chan struct{}), seed: maphash.MakeSeed(),
		relay: server.NewClient(nil, mochi.LocalListener, "relay", true),
	}
	if err := server.AddHook(h, nil); err != nil {
		return fmt.Errorf("cannot start the broker: %w", err)
	}
	var lc net.ListenConfig
	socket, err := lc.Listen(ctx, "tcp", b.listen)
	if err != nil {
		return fmt.Errorf("cannot start the broker: %w", err)
	}
	l := newListener(socket, sink)
	if err = server.AddListener(l); err == nil {
		err = server.Serve()
	}
	if err != nil {
		socket.Close()
		return fmt.Errorf("cannot start the broker: %w", err)
	}
	b.running.Store(h)
	defer b.running.Store(nil)
	sink.Up(b.Name())
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	defer b.Rest()
	for done := false; !done; {
		b.Rest()
		select {
		case <-ctx.Done():
			done = true
		case err = <-l.failed:
			done, err = true, fmt.Errorf("cannot accept connections on %s: %w", b.listen, err)
		case now := <-ticker.C:
			b.Busy()
			m := b.members.Load()
			for _, out := range m.ear.due(m.directory, now) {
				if err := h.tell(out); err != nil {
					b.log.Debug("device not asked", "error", err)
				}
			}
		}
	}
	// A client that does not read holds up nobody.
	impatient := time.AfterFunc(stopTime, l.closePeers)
	defer impatient.Stop()
	h.stop()
	server.Close() //nolint:errcheck // always nil
	return err
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// A hook is what the library asks and tells. Its methods are called from the
// goroutine that reads from the client, but where it is said otherwise.
type hook struct {
	mochi.HookBase
	broker   *Broker
	server   *mochi.Server
	sink     devices.Sink
	ctx      context.Context
	relay    *mochi.Client // passes on what is not acknowledged yet
	stopping chan struct{} // closed when nothing more is to be taken

	// Each client id has one of the locks: connections of one client take turns.
	turns [64]sync.Mutex
	seed  maphash.Seed

	mu      sync.Mutex
	stopped bool
	payers  sync.WaitGroup
}

// ID implements [mochi.Hook].
func (h *hook) ID() string { return "gateway" }

// Provides implements [mochi.Hook].
func (h *hook) Provides(b byte) bool {
	switch b {
	case mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnSubscribe, mochi.OnPacketRead, mochi.OnPublish, mochi.OnWill, mochi.OnWillSent, mochi.OnClientExpired:
		return true
	}
	return false
}

// who names a client for people.
func (h *hook) who(cl *mochi.Client) string {
	if user := cl.Properties.Username; len(user) > 0 && len(h.broker.members.Load().users) > 0 {
		return fmt.Sprintf("%s, user %.40q", h.broker.Name(), user)
	}
	return fmt.Sprintf("%s, client %.40q", h.broker.Name(), cl.ID)
}

// OnConnectAuthenticate says whether a client may connect.
func (h *hook) OnConnectAuthenticate(cl *mochi.Client, pk packets.Packet) bool {
	if err := h.admit(cl, pk); err != nil {
		host, _, _ := net.SplitHostPort(cl.Net.Remote)
		h.sink.Reject(h.broker.Name()+", from "+host, fmt.Errorf("client %.40q: %w", cl.ID, err))
		return false
	}
	return true
}

func (h *hook) admit(cl *mochi.Client, pk packets.Packet) error {
	user := string(pk.Connect.Username)
	if users := h.broker.members.Load().users; len(users) == 0 {
		user = ""
	} else if !knows(users, user, pk.Connect.Password) {
		return fmt.Errorf("wrong password of user %.40q, or no such user", user)
	}
	if len(cl.ID) > maxClientID {
		return fmt.Errorf("the client id has %d bytes, at most %d are taken", len(cl.ID), maxClientID)
	}
	if pk.Connect.WillFlag {
		if err := checkTopic(pk.Connect.WillTopic); err != nil {
			return fmt.Errorf("last will: %w", err)
		}
		if !h.broker.members.Load().rights.mayUse(user, pk.Connect.WillTopic) {
			return fmt.Errorf("last will: user %.40q may not publish on %.100q", user, pk.Connect.WillTopic)
		}
	}
	// A session holds subscriptions and messages, so it stays with its user.
	if known, ok := h.server.Clients.Get(cl.ID); ok {
		if user != "" && string(known.Properties.Username) != user {
			return errors.New("the client id is another user's")
		}
		return nil
	}
	all := h.server.Clients.GetAll()
	if len(all) >= brokerSessions {
		return fmt.Errorf("there are %d sessions already", len(all))
	}
	own := 0
	for _, other := range all {
		if user != "" && string(other.Properties.Username) == user {
			own++
		}
	}
	if own >= userSessions {
		return fmt.Errorf("user %.40q has %d sessions already", user, own)
	}
	return nil
}

// knows checks a password, and takes the same time whatever is wrong.
func knows(users []User, name string, password []byte) bool {
	right := 0
	given := sha256.Sum256(password)
	for _, u := range users {
		want := sha256.Sum256([]byte(u.Password))
		right |= subtle.ConstantTimeCompare([]byte(u.Name), []byte(name)) & subtle.ConstantTimeCompare(want[:], given[:])
	}
	return right == 1
}

// OnACLCheck limits what a client may subscribe to, and which messages it is
// given. Publications are judged by OnPublish, because the library ends the
// connection of a client that publishes what it may not: that client would
// come back and do it again. It is also called from the goroutines of others,
// who publish to this client.
func (h *hook) OnACLCheck(cl *mochi.Client, topic string, write bool) bool {
	if write {
		return true
	}
	return h.broker.members.Load().rights.mayUse(h.user(cl), topic)
}

// OnSubscribe bounds the filters of a client. The library refuses one that is
// empty.
func (h *hook) OnSubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	if cl.State.Subscriptions.Len()+len(pk.Filters) > subscriptions {
		h.sink.Reject(h.who(cl), fmt.Errorf("subscribes to more than %d filters", subscriptions))
		for i := range pk.Filters {
			pk.Filters[i].Filter = ""
		}
	}
	return pk
}

func (h *hook) user(cl *mochi.Client) string {
	if len(h.broker.members.Load().users) == 0 {
		return ""
	}
	return string(cl.Properties.Username)
}

// OnPacketRead ends the connection of a client that publishes on a wildcard
// (MQTT-3.3.2-2, MQTT-4.8.0-1). The library would say nothing and leave it
// without an answer.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Publish && strings.ContainsAny(pk.TopicName, "+#") {
		h.sink.Reject(h.who(cl), checkTopic(pk.TopicName))
		return pk, packets.ErrRejectPacket
	}
	return pk, nil
}

// OnPublish takes a message. The acknowledgement that a device waits for is
// sent later, when its readings are safe: meanwhile the device may send more,
// and is not held up.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil // from below, on its way to other clients
	}
	select {
	case <-h.stopping:
		return pk, packets.ErrRejectPacket
	default:
	}
	if !h.broker.members.Load().rights.mayUse(h.user(cl), pk.TopicName) {
		h.sink.Reject(h.who(cl), fmt.Errorf("may not publish on %.100q", pk.TopicName))
		h.owe(cl, pk, nil)
		return pk, packets.ErrRejectPacket
	}
	receipt, err := h.hear(cl, pk)
	if err != nil {
		h.sink.Reject(h.who(cl), fmt.Errorf("topic %q: %w", pk.TopicName, err))
		if pk.FixedHeader.Qos > 0 {
			// MQTT 3.1.1 has no word for it. The client sends it again when it
			// connects anew.
			cl.Stop(err)
			return pk, packets.ErrRejectPacket
		}
	}
	pk.FixedHeader.Retain = pk.FixedHeader.Retain && h.mayRetain(cl, pk.TopicName, pk.Payload)
	if pk.FixedHeader.Qos == 0 {
		return pk, nil // and the library does the rest
	}
	if err := h.server.InjectPacket(h.relay, pk); err != nil {
		h.broker.log.Debug("message not passed on", "topic", pk.TopicName, "error", err)
	}
	h.owe(cl, pk, receipt)
	return pk, packets.ErrRejectPacket // which has the library do nothing more
}

// hear hands a message to the sink. A client that connects anew sends again
// what was not acknowledged, and what was read from its old connection may be
// handled after that: it comes again as well, though it is not marked.
func (h *hook) hear(cl *mochi.Client, pk packets.Packet) (devices.Receipt, error) {
	turn := &h.turns[maphash.String(h.seed, cl.ID)%uint64(len(h.turns))]
	turn.Lock()
	defer turn.Unlock()
	m := h.broker.members.Load()
	receipt, news, err := m.ear.report(h.ctx, m.directory, publication{
		source: h.who(cl), session: cl.ID, topic: pk.TopicName, payload: pk.Payload,
		id: pk.PacketID, qos: pk.FixedHeader.Qos, duplicate: pk.FixedHeader.Dup || cl.IsTakenOver(),
	}, h.sink)
	for _, out := range news.ask {
		if err := h.tell(out); err != nil {
			h.broker.log.Debug("device not asked", "error", err)
		}
	}
	return receipt, err
}

// mayRetain bounds what the broker keeps. Deleting is always allowed, and so
// is replacing.
func (h *hook) mayRetain(cl *mochi.Client, topic string, payload []byte) bool {
	retained := h.server.Topics.Retained
	_, replaces := retained.Get(topic)
	switch {
	case len(payload) > maxRetainedOne:
		h.sink.Reject(h.who(cl), fmt.Errorf("topic %q: passed on, but not retained: it has %d bytes, at most %d are kept", topic, len(payload), maxRetainedOne))
		return false
	case len(payload) > 0 && !replaces && retained.Len() >= maxRetained:
		h.sink.Reject(h.who(cl), fmt.Errorf("topic %q: passed on, but not retained: %d messages are kept already", topic, maxRetained))
		return false
	}
	return true
}

// OnWill is asked before a last will is published. It was allowed when the
// client connected.
func (h *hook) OnWill(cl *mochi.Client, will mochi.Will) (mochi.Will, error) {
	will.Retain = will.Retain && h.mayRetain(cl, will.TopicName, will.Payload)
	return will, nil
}

// OnWillSent takes the last will of a client that was lost. That of one that
// has already connected anew says nothing of the device. With a delay (MQTT 5)
// it is called from a goroutine of the server.
func (h *hook) OnWillSent(cl *mochi.Client, pk packets.Packet) {
	if cl.IsTakenOver() {
		return
	}
	pk.FixedHeader.Qos = 0 // nobody waits
	if _, err := h.hear(cl, pk); err != nil {
		h.sink.Reject(h.who(cl), fmt.Errorf("topic %q: %w", pk.TopicName, err))
	}
}

// OnClientExpired forgets the subscriptions of a session, which the library
// would keep. It is called from a goroutine of the server.
func (h *hook) OnClientExpired(cl *mochi.Client) {
	h.server.UnsubscribeClient(cl)
	cl.ClearInflights()
}

// A debt is an acknowledgement that waits for its turn and for its receipt.
type debt struct {
	id      uint16
	qos     byte
	receipt devices.Receipt // nil where there is nothing to wait for
}

// owe has a message acknowledged when it is safe, and when those before it
// are. A client that has too many under way waits here.
func (h *hook) owe(cl *mochi.Client, pk packets.Packet, r devices.Receipt) {
	if pk.FixedHeader.Qos == 0 {
		return
	}
	p := cl.Net.Conn.(*peer)
	if !p.paid {
		h.mu.Lock()
		if !h.stopped {
			p.paid = true
			h.payers.Go(func() { h.pay(cl, p) })
		}
		h.mu.Unlock()
	}
	select {
	case p.debts <- debt{pk.PacketID, pk.FixedHeader.Qos, r}:
	case <-p.gone:
	case <-h.stopping:
	}
}

// pay acknowledges one client's messages in the order in which they came
// (MQTT-4.6.0-2, MQTT-4.6.0-3). When the broker stops, what is safe already is
// acknowledged still.
func (h *hook) pay(cl *mochi.Client, p *peer) {
	for {
		var d debt
		select {
		case <-p.gone:
			return
		case d = <-p.debts:
		case <-h.stopping:
			select {
			case d = <-p.debts:
			default:
				return
			}
		}
		if d.receipt != nil {
			select {
			case <-p.gone:
				return
			case <-d.receipt.Done():
			case <-h.stopping:
				select {
				case <-d.receipt.Done():
				default:
					return
				}
			}
			if err := d.receipt.Err(); err != nil {
				h.sink.Reject(h.who(cl), fmt.Errorf("a reading is not safe, and the client has to send it again: %w", err))
				cl.Stop(err)
				return
			}
		}
		ack := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: d.id, Created: time.Now().Unix()}
		if d.qos == 2 {
			// The library answers what follows, if it finds this.
			ack.FixedHeader.Type = packets.Pubrec
			cl.State.Inflight.Set(ack)
		}
		crashpoint.At(crashpoint.Acknowledging)
		if cl.WritePacket(ack) != nil {
			cl.Stop(errors.New("cannot acknowledge"))
			return
		}
		crashpoint.At(crashpoint.Acknowledged)
	}
}

// stop takes nothing more, and returns when what is safe is acknowledged.
func (h *hook) stop() {
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
	close(h.stopping)
	h.payers.Wait()
}
