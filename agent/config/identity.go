package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// IdentityFile is in the data directory of a gateway that was restored from a
// backup.
const IdentityFile = "identity.json"

// An Identity is what makes a restored gateway the same as before.
type Identity struct {
	// Gateway is its id, which would by default be made of the new machine.
	Gateway string `json:"gateway"`
	// Generation is higher after each restore, so that of a gateway and the one
	// that was restored from its backup the older knows that it is.
	Generation int64 `json:"generation"`
}

// ReadIdentity gives the identity in a data directory; the zero one where
// nothing was restored.
func ReadIdentity(dataDir string) (Identity, error) {
	var id Identity
	b, err := os.ReadFile(filepath.Join(dataDir, IdentityFile))
	if errors.Is(err, os.ErrNotExist) {
		return id, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("cannot read who this gateway is: %w", err)
	}
	return id, nil
}
