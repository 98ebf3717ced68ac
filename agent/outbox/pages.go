package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt believes what it reads: a damaged page makes it panic, also in
// goroutines of its own, or search without end. So a file that was not closed
// in order is read here first, page by page, before bbolt sees it. What
// follows is the file format of bbolt 1.5 (its internal/common), as it is
// written on machines whose byte order is little-endian.

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHead = 16 // id, flags, count, overflow
	metaSize = 64
	element  = 16 // of a leaf: flags, position, sizes of key and value; of a branch: position, size of key, page

	branchPage = 0x01
	leafPage   = 0x02
	bucketFlag = 0x01

	bucketHead = 16 // root page, sequence

	leastPage, mostPage = 1 << 10, 64 << 10 // bytes

	// maxDepth is more than a file of any size has.
	maxDepth = 32
)

// An image is a file of bbolt, to be read with suspicion.
type image struct {
	file  io.ReaderAt
	size  int64
	page  int64       // bytes
	metas []imageMeta // those that are well, newest first
}

// An imageMeta is what one of the two meta pages says.
type imageMeta struct {
	at   int64 // in the file
	root uint64
	used uint64 // pages
	tx   uint64
}

// errDamage says that a file is not what was written. Errors of reading are
// not of this kind.
var errDamage = errors.New("the file is damaged")

func damage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errDamage, fmt.Sprintf(format, args...))
}

// readImage reads the meta pages. There are none in what is no file of bbolt.
func readImage(f io.ReaderAt, size int64) (*image, error) {
	m := &image{file: f, size: size}
	add := func(at, want int64) error {
		meta, page, err := m.readMeta(at)
		if err == nil && page != 0 && (want == 0 || page == want) {
			m.page = page
			m.metas = append(m.metas, meta)
		}
		return err
	}
	if err := add(0, 0); err != nil {
		return nil, err
	}
	if m.page != 0 {
		if err := add(m.page, m.page); err != nil {
			return nil, err
		}
	}
	// The second is one page away, which the first does not tell any more.
	for page := int64(leastPage); m.page == 0 && page <= mostPage; page *= 2 {
		if err := add(page, page); err != nil {
			return nil, err
		}
	}
	if len(m.metas) == 2 && m.metas[0].tx < m.metas[1].tx {
		m.metas[0], m.metas[1] = m.metas[1], m.metas[0]
	}
	return m, nil
}

// readMeta reads a meta page; a page size of 0 says that it is none.
func (m *image) readMeta(at int64) (meta imageMeta, page int64, err error) {
	b := make([]byte, pageHead+metaSize)
	if at+int64(len(b)) > m.size {
		return meta, 0, nil
	}
	if _, err := m.file.ReadAt(b, at); err != nil {
		return meta, 0, err
	}
	b = b[pageHead:]
	sum := fnv.New64a()
	sum.Write(b[:56])
	le := binary.LittleEndian
	size := le.Uint32(b[8:])
	if le.Uint32(b) != boltMagic || le.Uint32(b[4:]) != boltVersion || le.Uint64(b[56:]) != sum.Sum64() || size < leastPage || size > mostPage {
		return meta, 0, nil
	}
	return imageMeta{at: at, root: le.Uint64(b[16:]), used: le.Uint64(b[40:]), tx: le.Uint64(b[48:])}, int64(size), nil
}

// A walk goes through the tree of one meta page.
type walk struct {
	*image
	meta  imageMeta
	seen  map[uint64]bool
	told  int64                           // bytes of elements so far
	entry func(bucket, key, value []byte) // in a bucket of the outermost; a nil key is the bucket itself
	fault func(error)                     // a page that cannot be used
}

// walk reads the tree of a meta page, and tells of each bucket, with a nil key,
// of each key in it, and of each fault.
// What cannot be read for another reason than damage is its error.
func (m *image) walk(meta imageMeta, entry func(bucket, key, value []byte), fault func(error)) error {
	w := &walk{image: m, meta: meta, seen: make(map[uint64]bool), entry: entry, fault: fault}
	return w.tree(meta.root, nil, bounds{}, 0)
}

// bounds are those of the keys of a page; nil is none.
type bounds struct{ from, below []byte }

// tree reads a page and what is below it. bucket is nil in the tree of the
// buckets.
func (w *walk) tree(id uint64, bucket []byte, keys bounds, depth int) error {
	b, err := w.read(id, depth)
	if errors.Is(err, errDamage) {
		w.fault(err)
		return nil
	} else if err != nil {
		return err
	}
	return w.pageOf(b, fmt.Sprintf("page %d", id), bucket, keys, depth)
}

// read gives a page, with its overflow.
func (w *walk) read(id uint64, depth int) ([]byte, error) {
	switch {
	case depth > maxDepth:
		return nil, damage("the tree is too deep")
	case id < 2 || id >= w.meta.used || w.used(id+1) > w.size:
		return nil, damage("page %d is not in the file", id)
	case w.seen[id]:
		return nil, damage("page %d is there twice", id)
	}
	w.seen[id] = true
	head := make([]byte, pageHead)
	if _, err := w.file.ReadAt(head, w.used(id)); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint64(head) != id {
		return nil, damage("page %d says that it is page %d", id, binary.LittleEndian.Uint64(head))
	}
	more := uint64(binary.LittleEndian.Uint32(head[12:]))
	if id+more >= w.meta.used || w.used(id+more+1) > w.size {
		return nil, damage("page %d goes on beyond the file", id)
	}
	for i := range more {
		if w.seen[id+1+i] {
			return nil, damage("page %d is there twice", id+1+i)
		}
		w.seen[id+1+i] = true
	}
	b := make([]byte, int64(more+1)*w.page)
	if _, err := w.file.ReadAt(b, w.used(id)); err != nil {
		return nil, err
	}
	return b, nil
}

// used is where a page begins.
func (w *walk) used(id uint64) int64 { return int64(id) * w.page }

// pageOf reads the elements of a page.
func (w *walk) pageOf(b []byte, name string, bucket []byte, keys bounds, depth int) error {
	le := binary.LittleEndian
	flags, count := le.Uint16(b[8:]), int(le.Uint16(b[10:]))
	if flags != branchPage && flags != leafPage {
		w.fault(damage("%s is of no kind that belongs there (%#x)", name, flags))
		return nil
	}
	if pageHead+count*element > len(b) {
		w.fault(damage("%s has %d elements", name, count))
		return nil
	}
	var last []byte
	keyOf := func(i int) []byte { // of a branch
		if i >= count {
			return keys.below
		}
		at := uint64(pageHead + i*element)
		from, size := at+uint64(le.Uint32(b[at:])), uint64(le.Uint32(b[at+4:]))
		if from+size > uint64(len(b)) {
			return nil
		}
		return b[from : from+size]
	}
	for i := range count {
		at := pageHead + i*element
		e := b[at:]
		position, keySize, valueSize := le.Uint32(e[4:]), le.Uint32(e[8:]), le.Uint32(e[12:])
		if flags == branchPage {
			position, keySize, valueSize = le.Uint32(e), le.Uint32(e[4:]), 0
		}
		from := uint64(at) + uint64(position)
		if from+uint64(keySize)+uint64(valueSize) > uint64(len(b)) {
			w.fault(damage("%s: element %d is not in it", name, i))
			continue
		}
		key := b[from : from+uint64(keySize)]
		value := b[from+uint64(keySize) : from+uint64(keySize)+uint64(valueSize)]
		if i > 0 && bytes.Compare(last, key) >= 0 || keys.from != nil && bytes.Compare(key, keys.from) < 0 || keys.below != nil && bytes.Compare(key, keys.below) >= 0 {
			w.fault(damage("%s: the keys are not in order", name))
		}
		last = key
		// Elements of a damaged page may share their bytes, over and over.
		if w.told += element + int64(len(key)+len(value)); w.told > 4*w.size {
			w.fault(damage("%s says more than the file holds", name))
			return nil
		}
		if flags == branchPage {
			if err := w.tree(le.Uint64(e[8:]), bucket, bounds{key, keyOf(i + 1)}, depth+1); err != nil {
				return err
			}
			continue
		}
		isBucket := le.Uint32(e)&bucketFlag != 0
		if isBucket != (bucket == nil) {
			w.fault(damage("%s: element %d is of no kind that belongs there", name, i))
			continue
		}
		if !isBucket {
			w.entry(bucket, key, value)
			continue
		}
		w.entry(key, nil, nil)
		if len(value) < bucketHead {
			w.fault(damage("%s: bucket %q has no head", name, key))
			continue
		}
		if root := le.Uint64(value); root != 0 {
			if err := w.tree(root, key, bounds{}, depth+1); err != nil {
				return err
			}
		} else if len(value) < bucketHead+pageHead {
			w.fault(damage("%s: bucket %q has no page", name, key))
		} else if page := value[bucketHead:]; le.Uint64(page) != 0 || le.Uint32(page[12:]) != 0 {
			w.fault(damage("%s: the page of bucket %q is not within it", name, key))
		} else if err := w.pageOf(value[bucketHead:], fmt.Sprintf("%s: bucket %q", name, key), key, bounds{}, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// revert has bbolt take the older meta page, by spoiling the newest: its
// transaction is as if it had not been.
func (m *image) revert(f *os.File) error {
	b := make([]byte, 8) // the checksum
	if _, err := f.ReadAt(b, m.metas[0].at+pageHead+56); err != nil {
		return err
	}
	for i := range b {
		b[i] = ^b[i]
	}
	if _, err := f.WriteAt(b, m.metas[0].at+pageHead+56); err != nil {
		return err
	}
	return f.Sync()
}
