package faultfs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	block  = 4096 // in which space is given out
	sector = 512  // what a disk writes as a whole
)

// Trouble is what is wrong with a disk.
type Trouble struct {
	Full       bool // ENOSPC where a block that has none yet would need space
	ReadOnly   bool // EROFS
	FailWrites bool // EIO
	FailSyncs  bool // EIO, and what was to be synced never gets there
	// Lies has fsync confirm what a power cut may still take, up to the next
	// fsync of the file: what cards with a volatile cache do.
	Lies bool
}

// A Disk is a disk in memory. Its methods may be called from any goroutine.
type Disk struct {
	mu      sync.Mutex
	trouble Trouble
	seen    map[string]*file // by path, as io/fs has it; "." is not among them
	kept    map[string]*file // after a power cut
	moves   []move           // between kept and seen, oldest first
	last    uint64           // number given to a file
}

// A move sets a name, or deletes it where file is nil, and deletes the name
// from. It is one step for who looks, also after a power cut.
type move struct {
	name string
	file *file
	from string
}

// A file is a file or a directory. The disk's lock guards it.
type file struct {
	number  uint64
	mode    uint32 // with its type, as stat(2) has it
	seen    []byte
	kept    []byte
	used    map[int64]bool // blocks that have space
	pending []change       // since the last fsync
	lied    []change       // which the last fsync confirmed, lying,
	liedAt  time.Time      // and when
}

// A change is a write, or a new size where data is nil.
type change struct {
	at   int64
	data []byte
	gone bool // a failed fsync has thrown it away, whatever the next one says
}

func (c change) applyTo(b []byte) []byte {
	if c.data == nil {
		return resize(b, c.at)
	}
	if end := c.at + int64(len(c.data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[c.at:], c.data)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		clear(b[size:])
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// New makes an empty disk without trouble.
func New() *Disk {
	return &Disk{seen: make(map[string]*file), kept: make(map[string]*file)}
}

// Set says what is wrong from now on; the zero Trouble is nothing.
func (d *Disk) Set(t Trouble) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trouble = t
}

// LiedAt is when fsync first confirmed what is not safe even now; zero where all
// is. What was built on earlier confirmations is safe.
func (d *Disk) LiedAt() (first time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.seen {
		if len(f.lied) > 0 && (first.IsZero() || f.liedAt.Before(first)) {
			first = f.liedAt
		}
	}
	return first
}

// Cut is a power cut: what is seen from now on is what survived, chosen by r.
// Nothing may have a file open.
func (d *Disk) Cut(r *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	// A journal keeps the order of names: a cut takes the newest.
	for _, m := range d.moves[:r.IntN(len(d.moves)+1)] {
		m.applyTo(d.kept)
	}
	d.moves = nil
	d.seen = make(map[string]*file)
	for _, name := range sorted(d.kept) { // so that r decides alone
		f := d.kept[name]
		d.seen[name] = f
		// All, most, few or none: each is a moment at which power fails.
		keep := float64(r.IntN(5)) / 4
		for _, c := range append(f.lied, f.pending...) {
			if c.gone {
				continue
			}
			for _, part := range c.split() {
				if r.Float64() < keep {
					f.kept = part.torn(r).applyTo(f.kept)
				}
			}
		}
		f.pending, f.lied = nil, nil
		f.seen = append([]byte(nil), f.kept...)
	}
}

// split gives the blocks of a change, which reach a disk one by one.
func (c change) split() []change {
	if c.data == nil {
		return []change{c}
	}
	var parts []change
	for at, data := c.at, c.data; len(data) > 0; {
		n := min(len(data), int(block-at%block))
		parts = append(parts, change{at: at, data: data[:n]})
		at, data = at+int64(n), data[n:]
	}
	return parts
}

// torn cuts one change in ten off at a sector.
func (c change) torn(r *rand.Rand) change {
	if len(c.data) > sector && r.IntN(10) == 0 {
		c.data = c.data[:sector*(1+r.IntN(len(c.data)/sector))]
	}
	return c
}

// Save writes what is seen, and what a power cut that takes all it can would
// leave, into the folders "seen" and "kept" of dir.
func (d *Disk) Save(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for folder, names := range map[string]map[string]*file{"seen": d.seen, "kept": d.kept} {
		for name, f := range names {
			to := filepath.Join(dir, folder, filepath.FromSlash(name))
			if f.isDir() {
				continue
			}
			data := f.seen
			if folder == "kept" {
				data = f.kept
			}
			if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, data, 0o600)); err != nil {
				return fmt.Errorf("cannot save the disk: %w", err)
			}
		}
	}
	return nil
}

func (f *file) isDir() bool { return f.mode&syscall.S_IFMT == syscall.S_IFDIR }

func (m move) applyTo(names map[string]*file) {
	delete(names, m.from)
	if m.file == nil {
		delete(names, m.name)
	} else {
		names[m.name] = m.file
	}
}

func sorted(names map[string]*file) []string {
	var all []string
	for name := range names {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}

// What follows is called by the file system; the errors are what programs get.

func (d *Disk) move(m move) {
	m.applyTo(d.seen)
	d.moves = append(d.moves, m)
}

func (d *Disk) lookup(name string) *file {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen[name]
}

// list gives the names in a directory.
func (d *Disk) list(dir string) map[string]*file {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := make(map[string]*file)
	for name, f := range d.seen {
		if path.Dir(name) == path.Clean(dir) {
			in[path.Base(name)] = f
		}
	}
	return in
}

func (d *Disk) create(name string, mode uint32) (*file, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.trouble.ReadOnly:
		return nil, syscall.EROFS
	case d.trouble.Full:
		return nil, syscall.ENOSPC
	case d.trouble.FailWrites:
		return nil, syscall.EIO
	}
	d.last++
	f := &file{number: d.last, mode: mode, used: make(map[int64]bool)}
	d.move(move{name: name, file: f})
	return f, 0
}

func (d *Disk) remove(name string) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.trouble.ReadOnly {
		return syscall.EROFS
	}
	for other := range d.seen {
		if strings.HasPrefix(other, name+"/") {
			return syscall.ENOTEMPTY
		}
	}
	d.move(move{name: name})
	return 0
}

// rename leaves directories where they are.
func (d *Disk) rename(from, to string) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.seen[from]
	switch {
	case d.trouble.ReadOnly:
		return syscall.EROFS
	case f == nil:
		return syscall.ENOENT
	case f.isDir():
		return syscall.ENOTSUP
	}
	d.move(move{name: to, file: f, from: from})
	return 0
}

// open says whether a file may be opened for writing.
func (d *Disk) open(writing bool) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if writing && d.trouble.ReadOnly {
		return syscall.EROFS
	}
	return 0
}

func (d *Disk) size(f *file) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(f.seen))
}

func (d *Disk) read(f *file, to []byte, at int64) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if at >= int64(len(f.seen)) {
		return 0
	}
	return copy(to, f.seen[at:])
}

func (d *Disk) write(f *file, data []byte, at int64) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.trouble.ReadOnly:
		return syscall.EROFS
	case d.trouble.FailWrites:
		return syscall.EIO
	}
	first, last := at/block, (at+int64(len(data))-1)/block
	for b := first; d.trouble.Full && b <= last; b++ {
		if !f.used[b] {
			return syscall.ENOSPC
		}
	}
	for b := first; b <= last; b++ {
		f.used[b] = true
	}
	f.change(change{at: at, data: append([]byte{}, data...)})
	return 0
}

func (d *Disk) truncate(f *file, size int64) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.trouble.ReadOnly:
		return syscall.EROFS
	case d.trouble.FailWrites:
		return syscall.EIO
	}
	for b := range f.used {
		if b*block >= size {
			delete(f.used, b)
		}
	}
	f.change(change{at: size})
	return 0
}

func (f *file) change(c change) {
	f.seen = c.applyTo(f.seen)
	f.pending = append(f.pending, c)
}

// sync is fsync(2) of a file; nil is any directory.
func (d *Disk) sync(f *file) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f == nil || f.isDir() {
		if d.trouble.FailSyncs {
			return syscall.EIO
		}
		for _, m := range d.moves {
			m.applyTo(d.kept)
		}
		d.moves = nil
		return 0
	}
	if d.trouble.FailSyncs {
		for i := range f.pending {
			f.pending[i].gone = true
		}
		return syscall.EIO
	}
	f.keep(f.lied)
	f.lied = nil
	if d.trouble.Lies {
		f.lied, f.liedAt = f.pending, time.Now()
	} else {
		f.keep(f.pending)
	}
	f.pending = nil
	return 0
}

func (f *file) keep(cs []change) {
	for _, c := range cs {
		if !c.gone {
			f.kept = c.applyTo(f.kept)
		}
	}
}
