package agent

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
)

// ErrRunning says that a gateway is at work with this config.
var ErrRunning = errors.New("the gateway is running")

// TryXMPP tries what the gateway does first on its XMPP server; see
// [bridge.Try]. While the gateway is running as a component, it gives
// ErrRunning instead: a server has one session of a component, or shares out
// its stanzas among them.
func TryXMPP(ctx context.Context, c *config.Config, report func(bridge.Trial)) error {
	cfg, err := bridgeConfig(c, time.Now)
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
