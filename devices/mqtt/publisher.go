package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// A Publisher is the other side of a driver: a device that publishes, for load
// and demos. It connects when it first publishes, and again when the
// connection was lost. It may be used from any goroutine, and has as many
// publications under way as there are goroutines in Publish.
type Publisher struct {
	// Will, where it is set before the first use, is what the broker
	// publishes when the connection is lost (MQTT 3.1.1 section 3.1.2.5).
	Will *Publication
	// Username and Password are given to the broker where they are set before
	// the first use.
	Username, Password string

	url, id string

	mu         sync.Mutex
	connection *connection
}

// A Publication is what a device publishes.
type Publication struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
}

// A connection ends once.
type connection struct {
	paho.Client
	lost chan struct{} // closed at its end
	once sync.Once
}

func (c *connection) end() { c.once.Do(func() { close(c.lost) }) }

var errConnectionLost = errors.New("the connection was lost")

// NewPublisher makes a device. It does not connect yet.
func NewPublisher(url, clientID string) *Publisher { return &Publisher{url: url, id: clientID} }

// Connect connects now.
func (p *Publisher) Connect(ctx context.Context) error {
	_, err := p.connected(ctx)
	return err
}

// Publish publishes with QoS 1 and returns when the broker acknowledged it. An
// error means that it was not; whether the broker has the message is then not
// known.
func (p *Publisher) Publish(ctx context.Context, topic string, payload []byte) error {
	return p.Send(ctx, Publication{Topic: topic, Payload: payload, QoS: 1})
}

// Send publishes as told, and returns when the broker acknowledged it, or with
// QoS 0 when it was written.
func (p *Publisher) Send(ctx context.Context, what Publication) error {
	c, err := p.connected(ctx)
	if err != nil {
		return err
	}
	token := c.Client.Publish(what.Topic, what.QoS, what.Retain, what.Payload)
	select {
	case <-token.Done():
		if err := token.Error(); err != nil {
			return fmt.Errorf("cannot publish to %s: %w", p.url, err)
		}
		return nil
	case <-c.lost:
		// The library leaves some of those that were under way without an end.
		return fmt.Errorf("cannot publish to %s: %w", p.url, errConnectionLost)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Publisher) connected(ctx context.Context) (*connection, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.connection != nil {
		if p.connection.IsConnectionOpen() {
			return p.connection, nil
		}
		p.drop()
	}
	c := &connection{lost: make(chan struct{})}
	o := paho.NewClientOptions().AddBroker(p.url).SetClientID(p.id).SetCleanSession(true).
		SetUsername(p.Username).SetPassword(p.Password).
		SetAutoReconnect(false).SetProtocolVersion(4).SetConnectTimeout(writeTime).SetWriteTimeout(writeTime).
		SetConnectionLostHandler(func(paho.Client, error) { c.end() })
	if w := p.Will; w != nil {
		o.SetBinaryWill(w.Topic, w.Payload, w.QoS, w.Retain)
	}
	c.Client = paho.NewClient(o)
	token := c.Connect()
	select {
	case <-token.Done():
	case <-ctx.Done():
		c.Disconnect(0)
		return nil, ctx.Err()
	}
	if err := token.Error(); err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", p.url, err)
	}
	p.connection = c
	return c, nil
}

// goodbye is how long the end of a connection may take.
const goodbye = 250 * time.Millisecond

func (p *Publisher) drop() {
	p.connection.Disconnect(uint(goodbye.Milliseconds()))
	p.connection.end()
	p.connection = nil
}

// Close ends the connection, and tells the broker so: there is no last will.
func (p *Publisher) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.connection != nil {
		p.drop()
	}
}
