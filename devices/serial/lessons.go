package serial

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/porchlight-iot/porchlight/devices/profile"
)

// lessons are what devices of a port taught of themselves, which they do once, as
// when somebody presses a button. They are kept over a restart, and belong to the
// port's owner.
type lessons struct{ file string }

// lessonsOf are those of a firmware on a port; nil where there are none to keep.
func lessonsOf(c *Config, h *profile.Hearing, id string) *lessons {
	if c.Folder == "" || !h.Learns() {
		return nil
	}
	name := strings.Trim(strings.ReplaceAll(c.Port, "/", "-"), "-")
	return &lessons{filepath.Join(c.Folder, fmt.Sprintf("taught-%s-%s.json", id, name))}
}

// load has what is kept be known again.
func (l *lessons) load(h *profile.Hearing) error {
	b, err := os.ReadFile(l.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var taught map[string]string
	if err == nil {
		err = json.Unmarshal(b, &taught)
	}
	if err != nil {
		return fmt.Errorf("cannot read what devices taught; mend or remove %s: %w", l.file, err)
	}
	h.Remember(taught)
	return nil
}

// keep writes down what was taught since.
func (l *lessons) keep(h *profile.Hearing) error {
	taught := h.Taught()
	if taught == nil {
		return nil
	}
	if err := replace(l.file, taught); err != nil {
		return fmt.Errorf("cannot remember what a device taught: %w", err)
	}
	return nil
}
