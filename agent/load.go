package agent

import (
	"fmt"
	"strings"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// LoadOptions tells the checks of a config what the other packages know.
func LoadOptions() (config.LoadOptions, error) {
	profiles, err := profile.Builtin()
	if err != nil {
		return config.LoadOptions{}, fmt.Errorf("cannot read the built-in profiles: %w", err)
	}
	return loadOptions(profiles), nil
}

func loadOptions(profiles *profile.Library) config.LoadOptions {
	known := make(map[string]string)
	for _, name := range profiles.Names() {
		known[name] = strings.Join(profiles.Get(name).Transports(), ",")
	}
	return config.LoadOptions{Profiles: known, CheckJID: bridge.ValidJID}
}
