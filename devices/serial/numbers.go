package serial

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// numbers are those that devices of a port have, so that none is given twice:
// neither that of a device which is configured, nor of one that was heard or given
// a number once, before a restart even. It belongs to the port's owner.
type numbers struct {
	file string // "" is to remember nothing
	kept []int
	err  error // of reading them: then none is given, because it may be another's
}

// numbersOf are those of a firmware on a port.
func numbersOf(c *Config, profile string) *numbers {
	if c.Folder == "" {
		return &numbers{}
	}
	name := strings.Trim(strings.ReplaceAll(c.Port, "/", "-"), "-")
	return &numbers{file: filepath.Join(c.Folder, fmt.Sprintf("numbers-%s-%s.json", profile, name))}
}

// load reads those that are kept.
func (n *numbers) load() ([]int, error) {
	if n.file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(n.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &n.kept)
	}
	if err != nil {
		n.err = fmt.Errorf("cannot read which numbers devices have; mend or remove %s: %w", n.file, err)
	}
	return n.kept, n.err
}

// keep has all be remembered. When it returns without an error they are on the
// disk.
func (n *numbers) keep(all []int) error {
	if n.file == "" || n.err != nil || slices.Equal(all, n.kept) {
		return n.err
	}
	if err := replace(n.file, all); err != nil {
		return fmt.Errorf("cannot remember which numbers devices have: %w", err)
	}
	n.kept = slices.Clone(all)
	return nil
}

// replace writes a file anew, in such a way that a power cut leaves the old one or
// the new one.
func replace(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".numbers-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	folder, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
