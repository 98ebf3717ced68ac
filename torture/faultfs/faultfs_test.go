package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func chance(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func ok(t *testing.T, errno syscall.Errno) {
	t.Helper()
	if errno != 0 {
		t.Fatal(errno)
	}
}

func newFile(t *testing.T, d *Disk, name string) *file {
	t.Helper()
	f, errno := d.create(name, syscall.S_IFREG|0o600)
	ok(t, errno)
	return f
}

// TestCut has each block of the second write survive a power cut, or not,
// whole or torn, and the first write always.
func TestCut(t *testing.T) {
	first, second := bytes.Repeat([]byte("1"), 4*block), bytes.Repeat([]byte("2"), 4*block)
	outcomes := make(map[string]int)
	for seed := range uint64(200) {
		d := New()
		f := newFile(t, d, "f")
		ok(t, d.sync(nil))
		ok(t, d.write(f, first, 0))
		ok(t, d.sync(f))
		ok(t, d.write(f, second, 0))
		d.Cut(chance(seed))
		got := make([]byte, 5*block)
		if n := d.read(d.lookup("f"), got, 0); n != 4*block {
			t.Fatalf("seed %d: %d bytes are left", seed, n)
		}
		outcome := ""
		for b := range 4 {
			twos := bytes.Count(got[b*block:(b+1)*block], []byte("2"))
			if ones := bytes.Count(got[b*block:(b+1)*block], []byte("1")); ones+twos != block {
				t.Fatalf("seed %d: a block has neither what was nor what was to be", seed)
			}
			switch {
			case twos == 0:
				outcome += "o"
			case twos == block:
				outcome += "n"
			case twos%sector == 0:
				outcome += "t"
			default:
				t.Fatalf("seed %d: torn at %d", seed, twos)
			}
		}
		outcomes[outcome]++
	}
	for _, want := range []string{"oooo", "nnnn", "onon"} {
		if outcomes[want] == 0 {
			t.Errorf("no power cut left %s; there were %v", want, outcomes)
		}
	}
}

func TestCutIsReplayed(t *testing.T) {
	var results [2][]byte
	for i := range results {
		d := New()
		for n := range 5 {
			f := newFile(t, d, fmt.Sprint("f", n))
			ok(t, d.write(f, bytes.Repeat([]byte{byte(n + 1)}, 3*block), 0))
		}
		ok(t, d.sync(nil))
		d.Cut(chance(7))
		for _, name := range sorted(d.seen) {
			results[i] = append(results[i], d.seen[name].seen...)
		}
	}
	if !bytes.Equal(results[0], results[1]) {
		t.Errorf("the same seed left %d bytes and %d", len(results[0]), len(results[1]))
	}
}

func TestNames(t *testing.T) {
	outcomes := make(map[string]bool)
	for seed := range uint64(50) {
		d := New()
		f := newFile(t, d, "a")
		ok(t, d.write(f, []byte("x"), 0))
		ok(t, d.sync(f))
		ok(t, d.sync(nil))
		ok(t, d.rename("a", "b"))
		d.Cut(chance(seed))
		outcomes[fmt.Sprint(sorted(d.seen))] = true
	}
	if len(outcomes) != 2 || !outcomes["[a]"] || !outcomes["[b]"] {
		t.Errorf("power cuts left %v, want [a] and [b]", outcomes)
	}
	d := New()
	newFile(t, d, "a")
	ok(t, d.rename("a", "b"))
	ok(t, d.sync(nil))
	d.Cut(chance(1))
	if d.lookup("a") != nil || d.lookup("b") == nil {
		t.Errorf("a synced directory has %v", sorted(d.seen))
	}
}

func TestTroubles(t *testing.T) {
	d := New()
	f := newFile(t, d, "f")
	ok(t, d.sync(nil))
	ok(t, d.write(f, make([]byte, block), 0))
	ok(t, d.truncate(f, 4*block))
	ok(t, d.sync(f))

	d.Set(Trouble{Full: true})
	ok(t, d.write(f, []byte("x"), 10))
	for what, got := range map[string]syscall.Errno{
		"a hole":        d.write(f, []byte("x"), 2*block),
		"half a hole":   d.write(f, []byte("xx"), block-1),
		"a longer file": d.write(f, []byte("x"), 4*block),
	} {
		if got != syscall.ENOSPC {
			t.Errorf("full, %s: %v", what, got)
		}
	}
	d.Set(Trouble{ReadOnly: true})
	if got := d.write(f, []byte("x"), 0); got != syscall.EROFS {
		t.Errorf("read only: %v", got)
	}
	if got := d.open(true); got != syscall.EROFS {
		t.Errorf("read only, open: %v", got)
	}
	ok(t, d.open(false))
	d.Set(Trouble{FailWrites: true})
	if got := d.write(f, []byte("x"), 0); got != syscall.EIO {
		t.Errorf("failing: %v", got)
	}
}

// TestFailedSync: what a failed fsync was about is gone, though the next one
// says that all is well.
func TestFailedSync(t *testing.T) {
	d := New()
	f := newFile(t, d, "f")
	ok(t, d.sync(nil))
	ok(t, d.write(f, []byte("old"), 0))
	ok(t, d.sync(f))
	ok(t, d.write(f, []byte("new"), 0))
	d.Set(Trouble{FailSyncs: true})
	if got := d.sync(f); got != syscall.EIO {
		t.Fatal(got)
	}
	d.Set(Trouble{})
	ok(t, d.sync(f))
	d.Cut(chance(1))
	got := make([]byte, 3)
	if d.read(d.lookup("f"), got, 0); string(got) != "old" {
		t.Errorf("found %q", got)
	}
}

// TestLies: only the last fsync is ever in doubt.
func TestLies(t *testing.T) {
	found := make(map[string]bool)
	for seed := range uint64(50) {
		d := New()
		d.Set(Trouble{Lies: true})
		f := newFile(t, d, "f")
		ok(t, d.sync(nil))
		for _, text := range []string{"1", "2", "3"} {
			ok(t, d.write(f, []byte(text), 0))
			ok(t, d.sync(f))
		}
		d.Cut(chance(seed))
		got := make([]byte, 1)
		d.read(d.lookup("f"), got, 0)
		found[string(got)] = true
	}
	if len(found) != 2 || !found["2"] || !found["3"] {
		t.Errorf("found %v, want 2 and 3", found)
	}
}

// TestLiedAt: each file has a last fsync that is in doubt, and the earliest of
// them counts.
func TestLiedAt(t *testing.T) {
	d := New()
	d.Set(Trouble{Lies: true})
	a, b := newFile(t, d, "a"), newFile(t, d, "b")
	lie := func(f *file) time.Time {
		ok(t, d.write(f, []byte("1"), 0))
		ok(t, d.sync(f))
		return f.liedAt
	}
	if !d.LiedAt().IsZero() {
		t.Error("it lied before it was asked")
	}
	first, second := lie(a), lie(b)
	if got := d.LiedAt(); got != first {
		t.Errorf("it lied at %v, want %v", got, first)
	}
	ok(t, d.sync(a)) // so that what was confirmed before is safe
	if got := d.LiedAt(); got != second {
		t.Errorf("it lied at %v, want %v", got, second)
	}
}

// TestSocket: programs that share a directory talk through a socket in it.
func TestSocket(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	unmount, err := New().Mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Error(err)
	} else {
		c, err := net.Dial("unix", filepath.Join(dir, "socket"))
		if err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		l.Close()
	}
	if err := unmount(); err != nil {
		t.Error(err)
	}
}

func needFUSE(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED: no FUSE here, so nothing is known of it: %v", err)
	}
	f.Close()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting needs root, so nothing is known of it")
	}
}

// TestBolt runs the store's library on a disk whose power is cut again and
// again: what was committed is there. It runs in a child process, as the
// gateway does; see Mount.
func TestBolt(t *testing.T) {
	if dir := os.Getenv("FAULTFS_BOLT"); dir != "" {
		commit(t, filepath.Join(dir, "db"))
		return
	}
	needFUSE(t)
	d, dir, r := New(), t.TempDir(), chance(1)
	for round := range 5 {
		unmount, err := d.Mount(dir)
		if err != nil {
			t.Fatal(err)
		}
		child := exec.Command(os.Args[0], "-test.run", "^TestBolt$", "-test.v")
		child.Env = append(os.Environ(), "FAULTFS_BOLT="+dir)
		out, err := child.CombinedOutput()
		if err := unmount(); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatalf("round %d: %v\n%s", round, err, out)
		}
		d.Cut(r)
	}
}

// commit adds one to a number 20 times, checks that none was lost, and ends
// amid a write.
func commit(t *testing.T, path string) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	// The promise is kept beside the database, and synced after it.
	promise := path + ".promise"
	promised, err := os.ReadFile(promise)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for i := range 20 {
		var count []byte
		err := db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			count = append(append([]byte{}, b.Get([]byte("k"))...), '.')
			if i == 0 && len(count) <= len(promised) {
				return fmt.Errorf("%d were promised, %d are there", len(promised), len(count)-1)
			}
			return errors.Join(b.Put([]byte("k"), count), b.Put(fmt.Append(nil, "row", len(count)), make([]byte, 3000)))
		})
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(promise, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(count); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if folder, err := os.Open(filepath.Dir(path)); err == nil {
			if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	tx, err := db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	tx.Bucket([]byte("b")).Put([]byte("lost"), make([]byte, 100_000))
	os.Exit(0) // as a killed process does
}
