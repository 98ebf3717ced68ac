package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/mqtt"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// ErrRunning says that a gateway is at work with this config.
var ErrRunning = errors.New("the gateway is running")

// TryBroker logs in to a broker as the gateway would, under an id of its own. It
// is done when the link is up or ctx ends.
func TryBroker(ctx context.Context, c *config.Config, b config.Broker) error {
	profiles, err := profile.Builtin()
	if err != nil {
		return err
	}
	settings := mqtt.ClientConfig{
		Name: b.Name, URL: b.URL, ClientID: b.ClientID + "-" + rand.Text()[:6],
		Username: b.Username, Password: b.Password.Reveal(), Profiles: profiles,
	}
	if b.TLS != nil {
		if settings.TLS, err = b.TLS.ClientConfig(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	up := &upSink{Sink: deaf{cancel}}
	// A scout leaves nothing behind on the broker.
	err = mqtt.NewScout(settings, nil, slog.New(slog.DiscardHandler)).Run(ctx, up)
	if up.was() {
		return nil
	}
	if err == nil {
		err = errors.New("no answer in time")
	}
	return err
}

// A deaf sink wants to know only that the link is up.
type deaf struct{ up func() }

func (deaf) Report(context.Context, devices.Message) (devices.Receipt, error) {
	return nil, devices.ErrFull
}
func (deaf) Availability(devices.ID, devices.Availability, bool) {}
func (deaf) Unknown(devices.Stranger) bool                       { return false }
func (deaf) Reject(string, error)                                {}
func (d deaf) Up(string)                                         { d.up() }

// Running reports whether a gateway is at work with this config.
func Running(c *config.Config) bool {
	used, err := outbox.InUse(filepath.Join(c.Gateway.DataDir, outboxFile))
	return err == nil && used
}

// TryXMPP tries what the gateway does first on its XMPP server; see
// [bridge.Try]. While the gateway is running as a component, it gives
// ErrRunning instead: a server has one session of a component, or shares out
// its stanzas among them. verify is the time by which certificates are judged.
func TryXMPP(ctx context.Context, c *config.Config, verify func() time.Time, report func(bridge.Trial)) error {
	cfg, err := bridgeConfig(c, verify)
	if err != nil {
		return err
	}
	if cfg.Stream.Component != nil {
		used, err := outbox.InUse(filepath.Join(c.Gateway.DataDir, outboxFile))
		if err != nil {
			return err
		}
		if used {
			return ErrRunning
		}
	}
	bridge.Try(ctx, cfg, report)
	return nil
}
