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
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // hidden, so nobody takes it for another of its folder
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && (uid >= 0 || gid >= 0) {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes names in a directory last that are new or gone.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
