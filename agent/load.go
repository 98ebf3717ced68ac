package agent

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// LoadOptions tells the checks of a config what the other packages know.
func LoadOptions() (config.LoadOptions, error) {
	return loadOptions(profile.Load), nil
}

func loadOptions(load func(folder string) (*profile.Library, error)) config.LoadOptions {
	profiles := func(folder string) (map[string]string, strictyaml.Faults) {
		library, err := load(folder)
		known := make(map[string]string)
		for _, name := range library.Broken() {
			known[name] = "" // who needs it is no fault of its own
		}
		for _, name := range library.Names() {
			known[name] = strings.Join(library.Get(name).Transports(), ",")
		}
		var faults strictyaml.Faults
		errors.As(err, &faults)
		return known, faults
	}
	return config.LoadOptions{Profiles: profiles, CheckJID: bridge.ValidJID}
}

// profilesOf is the folder of a config's own profiles.
func profilesOf(c *config.Config) string {
	return filepath.Join(c.Gateway.DataDir, config.ProfilesDir)
}
