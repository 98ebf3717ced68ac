package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/agent/setup"
)

// ErrPart says that not all of a backup is in its place.
var ErrPart = errors.New("not all was restored, so do it again")

// Restore puts the files of a backup into their places: the config as
// configFile, what it names beside it, and the rest into the data directory that
// it says. All of it is written aside and checked by load first; the config is
// in its place last, so that a gateway has either nothing or all. load is the
// config's loader, which gives the data directory.
func (c Content) Restore(configFile string, load func(path string) (dataDir string, err error)) (dataDir string, err error) {
	configFile, err = filepath.Abs(configFile)
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(configFile)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("cannot make the config's directory: %w", err)
	}
	stage, err := os.MkdirTemp(dir, ".restore-")
	if err != nil {
		return "", fmt.Errorf("cannot write the backup aside: %w", err)
	}
	defer os.RemoveAll(stage)
	for _, f := range c.Manifest.Files {
		if f.Root != rootConfig {
			continue
		}
		path, text := filepath.Join(stage, filepath.FromSlash(f.Path)), c.files[f.name()]
		if f.Path == c.Manifest.Config {
			text = c.config(stage)
		}
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			return "", fmt.Errorf("cannot write the backup aside: %w", err)
		}
	}
	if dataDir, err = load(filepath.Join(stage, c.Manifest.Config)); err != nil {
		return "", err
	}
	// A data directory beside the config moves with it.
	if rel, err := filepath.Rel(stage, dataDir); err == nil && filepath.IsLocal(rel) {
		dataDir = filepath.Join(dir, rel)
	}
	uid, gid := setup.Service()
	identity, err := json.Marshal(config.Identity{Gateway: c.Manifest.Gateway, Generation: max(c.Manifest.Generation+1, time.Now().Unix())})
	if err != nil {
		return "", err
	}
	folder := func(path string, uid, gid int, mode os.FileMode) error {
		err := os.MkdirAll(path, mode)
		if err == nil && uid >= 0 {
			err = os.Chown(path, uid, gid)
		}
		return err
	}
	// So that a full disk leaves all as it was, nothing is put into its place
	// before everything is written.
	var drafts []durable.Draft
	defer func() {
		for _, draft := range drafts {
			_ = draft.Drop()
		}
	}()
	write := func(path string, text []byte, uid, gid int) error {
		draft, err := durable.Write(path, text, 0o600, uid, gid)
		if err != nil {
			return fmt.Errorf("cannot write %s: %w", path, err)
		}
		drafts = append(drafts, draft)
		return nil
	}
	if err := folder(dataDir, uid, gid, 0o700); err != nil {
		return "", fmt.Errorf("cannot make the data directory: %w", err)
	}
	for _, f := range c.Manifest.Files {
		path, user, group := filepath.Join(dir, filepath.FromSlash(f.Path)), uid, gid
		if f.Root == rootData {
			path = filepath.Join(dataDir, filepath.FromSlash(f.Path))
		} else if f.Path == c.Manifest.Config {
			continue // which is last
		}
		if parent := filepath.Dir(path); parent != dir && parent != dataDir {
			if err := folder(parent, user, group, 0o700); err != nil {
				return "", fmt.Errorf("cannot make a directory: %w", err)
			}
		}
		if err := write(path, c.files[f.name()], user, group); err != nil {
			return "", err
		}
	}
	if err := write(filepath.Join(dataDir, config.IdentityFile), identity, uid, gid); err != nil {
		return "", err
	}
	last, err := setup.WriteConfig(configFile, c.config(dir))
	if err != nil {
		return "", err
	}
	drafts = append(drafts, last)
	if err := setup.Put(configFile, drafts); err != nil {
		return "", fmt.Errorf("%w: %w", ErrPart, err)
	}
	return dataDir, nil
}

// config gives the config's text as it is to be in another folder, where it
// names files in its own by whole paths.
func (c Content) config(dir string) []byte {
	text := c.files[rootConfig+"/"+c.Manifest.Config]
	if c.Manifest.Dir == "" || c.Manifest.Dir == dir {
		return text
	}
	return bytes.ReplaceAll(text, []byte(c.Manifest.Dir+"/"), []byte(dir+"/"))
}
