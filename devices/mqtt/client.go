package mqtt

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// ClientConfig says how to reach a broker.
type ClientConfig struct {
	Name     string // in logs
	URL      string // mqtt://host:port, mqtts://host:port, ws://host/path, wss://host/path
	ClientID string // which the broker remembers between connections
	Username string
	Password string
	TLS      *tls.Config // for mqtts and wss; nil is the system's
	Share    string      // name of a shared subscription; "" is none
	// Profiles are those that find out whose a message is. Without them, only
	// devices are understood that have their name in their topics.
	Profiles *profile.Library
}

const (
	connectTime = 20 * time.Second // for TCP, TLS and CONNACK together
	answerTime  = 20 * time.Second // for a SUBACK
	writeTime   = 10 * time.Second
	stopTime    = time.Second // to send what may still be acknowledged
	keepAlive   = 30 * time.Second
	// unansweredFor is how long sent data may stay unacknowledged by TCP.
	unansweredFor = 20 * time.Second

	// maxQueued and maxQueuedBytes bound what waits to be decoded, and what
	// waits for its receipt. Of both, QoS 0 may take a quarter.
	maxQueued      = 4096
	maxQueuedBytes = 16 << 20
	messageCosts   = 256 // bytes beside topic and payload
	// roomTime is how long a message with QoS 1 may wait for room: not so long
	// that the library misses the answer to a ping, for which it waits 10 s.
	roomTime = 3 * time.Second

	// maxAsks bounds the questions that wait to be sent.
	maxAsks = 256

	// filtersAtOnce keeps a SUBSCRIBE packet below the limits of brokers.
	filtersAtOnce = 100

	// A session that is lost so soon and so often is taken over by another
	// client of the same id, again and again (MQTT-3.1.4-2).
	soon  = 5 * time.Second
	often = 3
)

// A Client is a [devices.Driver] for one broker elsewhere. Its session there
// outlives the connection, so that what was not acknowledged comes again.
type Client struct {
	devices.Pulse // of a link's own loop

	config    ClientConfig
	directory atomic.Pointer[directory]
	ear       atomic.Pointer[ear]
	next      atomic.Pointer[ear] // of other profiles, to take the place of ear
	filters   []string            // of a scout: what to subscribe to; nil is what the profiles know
	heard     atomic.Int64        // messages that a scout heard
	changed   chan struct{}       // has one where a link may have something new to follow
	up        atomic.Pointer[link]
	scouts    bool // as NewScout says
	log       *slog.Logger
	lost      int // times in a row that the connection was lost soon; of Run alone

	keepAlive time.Duration // what tests make shorter; zero is the usual time
}

// NewClient makes a client. Of the devices those count that are on this broker
// or on any.
func NewClient(config ClientConfig, ds []Device, log *slog.Logger) *Client {
	var mine []Device
	for _, d := range ds {
		if d.Broker == "" || d.Broker == config.Name {
			mine = append(mine, d)
		}
	}
	c := &Client{config: config, changed: make(chan struct{}, 1), log: log}
	c.ear.Store(newEar(config.Profiles, false))
	c.directory.Store(newDirectory(mine))
	return c
}

// NewScout makes a client that shows to the sink which devices are heard that
// are not configured, and nothing else. It subscribes to what the profiles know,
// and not to everything: a broker may carry pictures, and what other programs
// tell each other. It has a session of its own, because messages of strangers in that of [NewClient] would take the
// places of those that are not yet acknowledged (MQTT 5 section 4.9, and the
// like in brokers of 3.1.1). It is sent everything with QoS 0, and the broker
// keeps nothing for it.
func NewScout(config ClientConfig, ds []Device, log *slog.Logger) *Client {
	config.ClientID += "-discovery"
	config.Share = "" // others would not hear what this one does
	c := NewClient(config, ds, log)
	c.scouts = true
	c.ear.Store(newEar(config.Profiles, true))
	return c
}

// Adopt implements [devices.Adopter]: where only devices changed. The
// connection stays, because what has QoS 0 would be lost without it.
func (c *Client) Adopt(next devices.Driver) bool {
	n, ok := next.(*Client)
	if !ok || n.scouts != c.scouts {
		return false
	}
	own, other := c.config, n.config
	own.Profiles, other.Profiles = nil, nil
	if own != other { // a tls.Config cannot be compared but with itself
		return false
	}
	if cmp.Or(c.next.Load(), c.ear.Load()).profiles != n.ear.Load().profiles {
		c.next.Store(n.ear.Load())
	}
	c.directory.Store(n.directory.Load())
	c.change()
	return true
}

func (c *Client) change() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Name implements [devices.Driver].
func (c *Client) Name() string {
	if c.scouts {
		return "mqtt " + c.config.Name + " discovery"
	}
	return "mqtt " + c.config.Name
}

// wanted is what to be subscribed to.
func (c *Client) wanted() []string {
	if c.filters != nil {
		return slices.Clone(c.filters)
	}
	d := c.directory.Load()
	all := d.filters()
	if c.scouts {
		all = c.ear.Load().profiles.Filters(0)
	}
	wide := slices.DeleteFunc(slices.Clone(all), func(f string) bool { return !strings.ContainsAny(f, "+#") })
	announced := c.ear.Load().announcedTopics(d, !c.scouts)
	if c.scouts {
		announced = announced[:min(len(announced), maxScouted)]
	}
	for _, topic := range announced {
		// A message on two filters may come twice (MQTT 3.1.1 section 3.3.5).
		if !covered(topic, wide) && !slices.Contains(all, topic) {
			all = append(all, topic)
		}
	}
	return all
}

// maxScouted bounds the topics that a scout follows because strangers announced
// them.
const maxScouted = 1000

// overhear takes a message as a scout.
func (c *Client) overhear(m paho.Message, sink devices.Sink) {
	c.heard.Add(1)
	// $ begins the topics of brokers themselves (MQTT 3.1.1 section 4.7.2).
	if checkTopic(m.Topic()) != nil || strings.HasPrefix(m.Topic(), "$") || c.filters == nil && c.directory.Load().find(m.Topic()) != nil {
		return
	}
	_, strangers, changed, _, err := c.ear.Load().read(c.directory.Load(), publication{
		source: c.where(), broker: c.config.Name, topic: m.Topic(), payload: m.Payload(), retained: m.Retained(),
	})
	if err != nil {
		return // what is not ours need not be understood
	}
	for _, s := range strangers {
		sink.Unknown(s)
	}
	if changed {
		c.change()
	}
}

// where is the broker, for people. It has no password.
func (c *Client) where() string {
	u, err := url.Parse(c.config.URL)
	if err != nil {
		return c.config.Name
	}
	return u.Redacted()
}

// Run implements [devices.Driver].
func (c *Client) Run(ctx context.Context, sink devices.Sink) error {
	l := &link{
		client: c, sink: sink,
		heard: make(chan paho.Message, maxQueued), acks: make(chan heldAck, maxQueued),
		asks: make(chan profile.Outgoing, maxAsks), failed: make(chan error, 1), stopping: make(chan struct{}),
	}
	c.renew(ctx)
	err := l.run(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// A link is one connection to a broker.
type link struct {
	client *Client
	sink   devices.Sink
	conn   *framedConn // nil until it is open
	broker paho.Client // as conn

	subscribed map[string]bool // of the goroutine that runs it

	heard    chan paho.Message     // not yet decoded
	acks     chan heldAck          // not yet acknowledged
	queued   atomic.Int64          // bytes in both
	crowd    crowd                 // of QoS 0 in heard
	asks     chan profile.Outgoing // questions to devices
	failed   chan error            // has the first reason why the link is of no more use
	stopping chan struct{}         // closed when nothing more is to be taken
}

// A heldAck is an acknowledgement that waits for its turn and for its receipt.
type heldAck struct {
	message paho.Message
	receipt devices.Receipt // nil where there is nothing to wait for
}

// A crowd counts messages of QoS 0 that wait, by topic. A topic may have as
// many as there is room for besides, so that one which floods leaves room for
// the others.
type crowd struct {
	mu  sync.Mutex
	all int
	of  map[string]int
}

func (c *crowd) enter(topic string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[topic] >= maxQueued/4-c.all {
		return false
	}
	if c.of == nil {
		c.of = make(map[string]int)
	}
	c.of[topic]++
	c.all++
	return true
}

func (c *crowd) leave(topic string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[topic]--; c.of[topic] == 0 {
		delete(c.of, topic)
	}
}

// errLost wraps what ended the connection.
type errLost struct{ error }

func (l *link) run(ctx context.Context) error {
	began := time.Now()
	broker, err := l.connect(ctx)
	if err != nil {
		return fmt.Errorf("cannot connect to the broker %s: %w", l.client.where(), err)
	}
	working, cancel := context.WithCancel(ctx)
	var workers sync.WaitGroup
	workers.Go(func() { l.take(working) })
	workers.Go(l.acknowledge)

	l.broker = broker
	if err = l.follow(ctx, broker); err == nil {
		l.client.ear.Load().primed = true
		l.client.up.Store(l)
		l.sink.Up(l.client.Name())
		if !l.client.scouts {
			l.ask(l.client.ear.Load().begin(l.client.directory.Load(), time.Now())...)
		}
	}
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	defer l.client.Rest()
	for done := false; err == nil && !done; {
		l.client.Rest()
		select {
		case <-ctx.Done():
			done = true
		case err = <-l.failed:
		case <-l.client.changed:
			l.client.Busy()
			if l.client.next.Load() != nil && l.client.renew(ctx) {
				// Subscribed again, the broker gives again what it retains
				// (MQTT-3.8.4-3), and nothing else is missed.
				l.subscribed = nil
			}
			err = l.follow(ctx, broker)
		case out := <-l.asks:
			l.client.Busy()
			l.ask(out)
		case now := <-ticker.C:
			l.client.Busy()
			l.ask(l.client.ear.Load().due(l.client.directory.Load(), now)...)
		}
	}

	l.client.up.Store(nil)

	// What is safe is acknowledged before the connection is closed, but a
	// peer that does not read holds up nobody.
	impatient := time.AfterFunc(stopTime, func() { l.conn.Close() })
	defer impatient.Stop()
	cancel()
	close(l.stopping)
	workers.Wait()
	broker.Disconnect(uint(stopTime.Milliseconds()))
	l.conn.Close()
	// The library gives up waiting for itself after a time. It is asked again
	// until it is done, now that nothing can hold it up.
	broker.Disconnect(uint(connectTime.Milliseconds()))
	return l.client.explain(err, time.Since(began))
}

// explain says what an error means for the connection, and what it means that
// it is lost again and again.
func (c *Client) explain(err error, lasted time.Duration) error {
	var lost errLost
	if !errors.As(err, &lost) || lasted > soon {
		c.lost = 0
	} else {
		c.lost++
	}
	switch {
	case err == nil:
		return nil
	case c.lost >= often:
		return fmt.Errorf("lost the broker %s at once, %d times in a row; probably another client has the id %q too: %w", c.where(), c.lost, c.config.ClientID, err)
	case errors.As(err, &lost):
		return fmt.Errorf("lost the broker %s: %w", c.where(), err)
	}
	return err
}

// fail ends the link.
func (l *link) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
}

// refusals are the answers to CONNECT (MQTT 3.1.1 section 3.2.2.3) that will
// be the same the next time.
var refusals = []error{
	packets.ErrorRefusedBadUsernameOrPassword, packets.ErrorRefusedNotAuthorised,
	packets.ErrorRefusedIDRejected, packets.ErrorRefusedBadProtocolVersion,
}

func (l *link) connect(ctx context.Context) (paho.Client, error) {
	c := l.client.config
	where, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	for name, s := range map[string]string{"client id": c.ClientID, "user name": c.Username, "password": c.Password} {
		if len(s) > 65535 { // the library would cut it off
			return nil, fmt.Errorf("the %s has more than 65535 bytes: %w", name, devices.ErrRefused)
		}
	}
	o := paho.NewClientOptions()
	o.AddBroker(c.URL)
	o.SetClientID(c.ClientID)
	o.SetUsername(c.Username)
	o.SetPassword(c.Password)
	o.SetProtocolVersion(4)
	o.SetCleanSession(l.client.scouts)
	o.SetAutoReconnect(false) // the supervisor's business
	o.SetConnectRetry(false)
	o.SetOrderMatters(true)
	o.SetAutoAckDisabled(true)
	o.SetKeepAlive(cmp.Or(l.client.keepAlive, keepAlive))
	o.SetConnectTimeout(connectTime)
	o.SetWriteTimeout(writeTime)
	// The library's file store never syncs, and panics on a full disk.
	o.SetStore(paho.NewOrderedMemoryStore())
	o.SetDefaultPublishHandler(l.hear)
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { l.fail(errLost{err}) })
	stopWatching := func() bool { return true }
	o.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) {
		conn, err := dial(ctx, where, c.TLS)
		if err != nil {
			return nil, err
		}
		l.conn = newFramedConn(conn)
		l.conn.framer.scouts = l.client.scouts
		stopWatching = context.AfterFunc(ctx, func() { conn.Close() })
		return l.conn, nil
	})
	broker := paho.NewClient(o)
	token := broker.Connect()
	<-token.Done() // ctx ends it too, by way of dial or of the connection
	stopWatching()
	err = token.Error()
	if err == nil {
		return broker, nil
	}
	for _, refusal := range refusals {
		if errors.Is(err, refusal) {
			return nil, fmt.Errorf("user %q, client id %q: %v: %w", c.Username, c.ClientID, err, devices.ErrRefused)
		}
	}
	return nil, err
}

// dial opens a connection with what one needs that may be cut without a word.
func dial(ctx context.Context, to *url.URL, settings *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	if settings == nil {
		settings = &tls.Config{MinVersion: tls.VersionTLS12}
	} else {
		settings = settings.Clone()
	}
	if settings.ServerName == "" {
		settings.ServerName = to.Hostname()
	}
	switch to.Scheme {
	case "ws", "wss":
		return paho.NewWebsocket(to.String(), settings, connectTime, nil, nil)
	}
	encrypted := to.Scheme == "mqtts" || to.Scheme == "ssl" || to.Scheme == "tls"
	port := to.Port()
	switch {
	case port != "":
	case encrypted:
		port = "8883"
	default:
		port = "1883"
	}
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		outer := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unansweredFor.Milliseconds()))
		})
		return errors.Join(outer, err)
	}}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(to.Hostname(), port))
	if err != nil || !encrypted {
		return conn, err
	}
	secure := tls.Client(conn, settings)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// follow subscribes to what is wanted now, and to nothing else any more. A
// filter that the broker refuses is told, and harms those of its device only;
// it is an error where there is no other.
func (l *link) follow(ctx context.Context, broker paho.Client) error {
	wanted := make(map[string]bool)
	var fresh, refused []string
	for _, f := range l.client.wanted() {
		if share := l.client.config.Share; share != "" {
			f = "$share/" + share + "/" + f
		}
		if wanted[f] = true; !l.subscribed[f] {
			fresh = append(fresh, f)
		}
	}
	for some := range slices.Chunk(fresh, filtersAtOnce) {
		not, err := l.subscribe(ctx, broker, some)
		if err != nil {
			return err
		}
		refused = append(refused, not...)
	}
	var gone []string
	for f := range l.subscribed {
		if !wanted[f] {
			gone = append(gone, f)
		}
	}
	for some := range slices.Chunk(gone, filtersAtOnce) {
		if err := l.unsubscribe(ctx, broker, some); err != nil {
			return err
		}
	}
	for _, f := range refused {
		delete(wanted, f)
	}
	l.subscribed = wanted
	if len(refused) == 0 {
		return nil
	}
	slices.Sort(refused)
	err := fmt.Errorf("cannot subscribe to %s as user %q: the broker does not allow it: %w", strings.Join(refused, ", "), l.client.config.Username, devices.ErrRefused)
	if len(wanted) == 0 {
		return err
	}
	l.sink.Reject(l.client.Name(), err)
	return nil
}

// answer waits for the broker's.
func (l *link) answer(ctx context.Context, what string, token paho.Token) error {
	answered, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	select {
	case <-token.Done():
	case err := <-l.failed:
		return err
	case <-answered.Done():
		return fmt.Errorf("cannot %s: the broker does not answer", what)
	}
	if err := token.Error(); err != nil {
		select {
		case err = <-l.failed: // which says more
		case <-answered.Done():
		case <-time.After(stopTime):
		}
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

func (l *link) unsubscribe(ctx context.Context, broker paho.Client, filters []string) error {
	l.conn.framer.leaving.Store(true)
	defer l.conn.framer.leaving.Store(false)
	return l.answer(ctx, "unsubscribe", broker.Unsubscribe(filters...))
}

// subscribe gives the filters that the broker refused.
func (l *link) subscribe(ctx context.Context, broker paho.Client, filters []string) (refused []string, err error) {
	wanted := make(map[string]byte, len(filters))
	for _, f := range filters {
		wanted[f] = 1
		if l.client.scouts {
			wanted[f] = 0
		}
	}
	l.conn.framer.filters.Store(int32(len(wanted)))
	defer l.conn.framer.filters.Store(0)
	token := broker.SubscribeMultiple(wanted, nil)
	if err := l.answer(ctx, "subscribe", token); err != nil {
		return nil, err
	}
	// The library calls a refused filter no error (MQTT 3.1.1 section 3.9.3).
	codes := token.(*paho.SubscribeToken).Result()
	for filter := range wanted {
		if code, ok := codes[filter]; !ok || code > 2 {
			refused = append(refused, filter)
		}
	}
	return refused, nil
}

func cost(m paho.Message) int64 { return int64(len(m.Topic()) + len(m.Payload()) + messageCosts) }

// hear is called by the library for each message, in order. It must not block
// for long, or no answer to a ping would be read either.
func (l *link) hear(_ paho.Client, m paho.Message) {
	if l.client.scouts {
		// Nobody waits for it, and the sink does not either.
		l.client.overhear(m, l.sink)
		return
	}
	if m.Qos() == 0 {
		free := l.crowd.enter(m.Topic())
		if free && l.enter(m, maxQueuedBytes/4) {
			return
		}
		if free {
			l.crowd.leave(m.Topic())
		}
		l.sink.Reject(l.client.Name(), errors.New("messages of QoS 0 come faster than they can be taken; dropped"))
		return
	}
	// Mosquitto sends retained messages without regard to its limit of messages
	// in flight, and all of them again to the next connection.
	for began := time.Now(); !l.enter(m, maxQueuedBytes); {
		if time.Since(began) > roomTime {
			// Not acknowledged, it comes again with the next connection.
			l.fail(errors.New("the broker sends more messages than can wait for their acknowledgement; lower its limit of messages in flight"))
			return
		}
		select {
		case <-l.stopping:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// enter queues a message, where there is room for it.
func (l *link) enter(m paho.Message, limit int64) bool {
	if l.queued.Add(cost(m)) <= limit {
		select {
		case l.heard <- m:
			return true
		default:
		}
	}
	l.queued.Add(-cost(m))
	return false
}

// take decodes what was heard. Whoever hands in a reading may see it safe
// before take goes on, so what was handed in reaches acknowledge also when the
// link stops meanwhile.
func (l *link) take(ctx context.Context) {
	defer close(l.acks)
	c := l.client
	for {
		var m paho.Message
		select {
		case <-l.stopping:
			return
		case m = <-l.heard:
		}
		if m.Qos() == 0 {
			l.crowd.leave(m.Topic())
		}
		receipt, news, err := c.ear.Load().report(ctx, c.directory.Load(), publication{
			source: c.Name(), session: c.config.Name, broker: c.config.Name, topic: m.Topic(), payload: m.Payload(),
			id: m.MessageID(), qos: m.Qos(), duplicate: m.Duplicate(), retained: m.Retained(),
		}, l.sink)
		if news.announced {
			c.change()
		}
		for _, out := range news.ask {
			select {
			case l.asks <- out:
			default: // it is asked again some time
			}
		}
		switch {
		case m.Qos() == 0:
			l.queued.Add(-cost(m))
			if err != nil {
				l.sink.Reject(c.Name(), fmt.Errorf("topic %q: %w", m.Topic(), err))
			}
			continue
		case err != nil:
			l.fail(fmt.Errorf("cannot take a message on %q, and let the broker send it again: %w", m.Topic(), err))
			return
		}
		ack := heldAck{m, receipt}
		select {
		case l.acks <- ack:
			continue
		default:
		}
		select {
		case l.acks <- ack:
		case <-l.stopping:
			return
		}
	}
}

// acknowledge acknowledges in the order in which messages came
// (MQTT-4.6.0-2). A message that is not safe is never acknowledged, and a
// broker sends it again only to a new connection, so it ends this one. When
// the link stops, what is safe already is acknowledged still.
func (l *link) acknowledge() {
	for a := range l.acks {
		if a.receipt != nil {
			select {
			case <-a.receipt.Done():
			case <-l.stopping:
				select {
				case <-a.receipt.Done():
				default:
					return
				}
			}
			if err := a.receipt.Err(); err != nil {
				l.fail(fmt.Errorf("a reading on %q is not safe, and the broker has to send it again: %w", a.message.Topic(), err))
				return
			}
		}
		crashpoint.At(crashpoint.Acknowledging)
		a.message.Ack()
		crashpoint.At(crashpoint.Acknowledged)
		l.queued.Add(-cost(a.message))
	}
}
