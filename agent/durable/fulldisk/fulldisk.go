// Package fulldisk is a file system with as little room as a test gives it.
package fulldisk

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A Disk is a file system in memory. Its methods are for the test's goroutine.
type Disk struct {
	Dir string // where it is
	t   *testing.T
}

// New mounts a disk with room for a megabyte, until the test ends. It skips the
// test without the rights of root.
func New(t *testing.T) Disk {
	t.Helper()
	mounted := t.TempDir()
	if err := unix.Mount("none", mounted, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		t.Skipf("SKIPPED: no file system can be mounted here, so nothing is known of a full one: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, 0); err != nil {
			t.Error(err)
		}
	})
	// To the kernel a size of nothing is no limit.
	d := Disk{filepath.Join(mounted, "disk"), t}
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mounted, "used"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

// Leave has the disk take so many more pages of data, and files.
func (d Disk) Leave(pages, files uint64) {
	d.t.Helper()
	var now unix.Statfs_t
	if err := unix.Statfs(d.Dir, &now); err != nil {
		d.t.Fatal(err)
	}
	options := fmt.Sprintf("size=%d,nr_inodes=%d", (now.Blocks-now.Bfree+pages)*uint64(now.Bsize), now.Files-now.Ffree+files)
	if err := unix.Mount("none", filepath.Dir(d.Dir), "tmpfs", unix.MS_REMOUNT, options); err != nil {
		d.t.Fatal(err)
	}
}

// Each calls try with ever more room, first with none, until it goes well: it
// is a disk that gets full at each of its writes.
func Each(t *testing.T, try func(t *testing.T, pages, files uint64) (well bool)) {
	t.Helper()
	const plenty = 100
	for of, room := range map[string]func(n uint64) (pages, files uint64){
		"pages": func(n uint64) (pages, files uint64) { return n, plenty },
		"files": func(n uint64) (pages, files uint64) { return plenty, n },
	} {
		t.Run(of, func(t *testing.T) {
			for n := uint64(0); !t.Failed(); n++ {
				switch pages, files := room(n); {
				case n == plenty:
					t.Fatal("it never goes well")
				case !try(t, pages, files):
				case n == 0:
					t.Fatal("it needs no room")
				default:
					return
				}
			}
		})
	}
}
