package serial

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Numbers that devices may have by which they are told apart (MySensors serial
// API, "node-id").
const leastNumber, mostNumber = 1, 254

// numbers are those that devices of a port have, so that none is given twice:
// neither that of a device which is configured, nor of one that was heard or given
// a number once, before a restart even. It belongs to the port's owner.
type numbers struct {
	file string // "" is to remember nothing
	used []int
	read bool
}

// numbersOf are those of a firmware on a port.
func numbersOf(c *Config, profile string) *numbers {
	if c.Folder == "" {
		return &numbers{read: true}
	}
	name := strings.Trim(strings.ReplaceAll(c.Port, "/", "-"), "-")
	return &numbers{file: filepath.Join(c.Folder, fmt.Sprintf("numbers-%s-%s.json", profile, name))}
}

func (n *numbers) load() error {
	if n.read {
		return nil
	}
	b, err := os.ReadFile(n.file)
	if err == nil {
		err = json.Unmarshal(b, &n.used)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read which numbers were given: %w", err)
	}
	n.read = true
	return nil
}

// note remembers that a device has a number, if it is one.
func (n *numbers) note(identity string) error {
	i, err := strconv.Atoi(identity)
	if err != nil || i < leastNumber || i > mostNumber {
		return nil
	}
	if err := n.load(); err != nil || slices.Contains(n.used, i) {
		return err
	}
	return n.keep(i)
}

// next gives a number that nobody has.
func (n *numbers) next() (string, error) {
	if err := n.load(); err != nil {
		return "", err
	}
	for i := leastNumber; i <= mostNumber; i++ {
		if !slices.Contains(n.used, i) {
			return strconv.Itoa(i), n.keep(i)
		}
	}
	return "", fmt.Errorf("a device asks for a number, and all from %d to %d were given; remove %s if that is not so", leastNumber, mostNumber, n.file)
}

// keep adds a number, once it is safe.
func (n *numbers) keep(i int) error {
	next := append(slices.Clone(n.used), i)
	slices.Sort(next)
	if n.file != "" {
		if err := replace(n.file, next); err != nil {
			return fmt.Errorf("cannot remember which numbers were given: %w", err)
		}
	}
	n.used = next
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
