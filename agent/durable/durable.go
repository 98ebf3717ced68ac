// Package durable writes small files so that a power cut leaves the old or the
// new one, and never a part.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace writes a file, which only its user can read, in place of what was
// there. When it returns, the file will last.
func Replace(path string, data []byte) error { return ReplaceAs(path, data, 0o600, -1, -1) }

// ReplaceAs is Replace for a file of another mode, or another's; -1 as uid or gid
// leaves that as it comes.
func ReplaceAs(path string, data []byte, mode os.FileMode, uid, gid int) error {
	d, err := Write(path, data, mode, uid, gid)
	if err != nil {
		return err
	}
	return d.Put()
}

// A Draft is a file that is safe, and not yet in its place. Of several, what can
// fail for want of room has then been done for all before the first is changed.
type Draft struct{ aside, path string }

// Write makes the draft of a file; the parameters are those of ReplaceAs.
func Write(path string, data []byte, mode os.FileMode, uid, gid int) (Draft, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // hidden, so nobody takes it for another of its folder
	if err != nil {
		return Draft{}, err
	}
	_, err = f.Write(data)
	if err == nil && (uid >= 0 || gid >= 0) {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	d := Draft{f.Name(), path}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return Draft{}, errors.Join(err, d.Drop())
	}
	return d, nil
}

// Put has the draft take the place of what was there, for good.
func (d Draft) Put() error {
	if err := os.Rename(d.aside, d.path); err != nil {
		return errors.Join(err, d.Drop())
	}
	return SyncDir(filepath.Dir(d.path))
}

// Drop removes the draft. Once it was put, it does nothing.
func (d Draft) Drop() error {
	if err := os.Remove(d.aside); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// SyncDir makes names in a directory last that are new or gone.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
