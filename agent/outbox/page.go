package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"sort"
	"unsafe"
)

// This file reads the pages of a bbolt file without bbolt, which panics on
// damaged ones, in goroutines of its own too, or goes round in circles.

const (
	pageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	pageElement = 16 // branch: pos 4, key size 4, page 8; leaf: flags 4, pos 4, key size 4, value size 4
	metaSize    = 64 // magic, version, page size, flags 4 each; root, sequence, free list, pages, transaction, checksum 8 each

	branchPage = 0x01
	leafPage   = 0x02
	metaPage   = 0x04

	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = ^uint64(0)

	maxPage = 64 << 20 // more than a commit can have
)

// A damage is what is wrong with a file, as opposed to an error of reading it.
type damage string

func (d damage) Error() string { return string(d) }

func damaged(format string, args ...any) error { return damage(fmt.Sprintf(format, args...)) }

// boltOrder is the byte order of the machine: bbolt writes its memory.
func boltOrder() binary.ByteOrder {
	if one := uint16(1); *(*byte)(unsafe.Pointer(&one)) == 0 {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// pages is a file as bbolt divides it.
type pages struct {
	r     io.ReaderAt
	order binary.ByteOrder
	size  int64 // of a page
	n     uint64
}

// A meta is one of the two roots of a bbolt file.
type meta struct {
	at          int64 // where its page begins
	pageSize    int64
	root        uint64
	pages       uint64 // that are in use
	transaction uint64
}

// readMeta gives the meta whose page begins at at.
func readMeta(r io.ReaderAt, at int64) (meta, error) {
	b := make([]byte, pageHeader+metaSize)
	if _, err := r.ReadAt(b, at); errors.Is(err, io.EOF) {
		return meta{}, damaged("the file ends in a meta page")
	} else if err != nil {
		return meta{}, err
	}
	order := boltOrder()
	sum := fnv.New64a()
	sum.Write(b[pageHeader : pageHeader+metaSize-8])
	m := b[pageHeader:]
	if order.Uint32(m) != boltMagic || order.Uint32(m[4:]) != boltVersion || order.Uint64(m[56:]) != sum.Sum64() {
		return meta{}, damaged("no meta page at %d", at)
	}
	out := meta{at, int64(order.Uint32(m[8:])), order.Uint64(m[16:]), order.Uint64(m[40:]), order.Uint64(m[48:])}
	if out.pageSize < 1024 || out.pageSize > 1<<16 || out.pageSize&(out.pageSize-1) != 0 || at%out.pageSize != 0 || order.Uint64(m[32:]) != noFreelist {
		return meta{}, damaged("the meta page at %d is not of an outbox", at)
	}
	return out, nil
}

// readMetas gives the metas that are whole, newest first.
func readMetas(r io.ReaderAt) ([]meta, error) {
	var out []meta
	first, err := readMeta(r, 0)
	if err == nil {
		out = append(out, first)
	} else if !errors.As(err, new(damage)) {
		return nil, err
	}
	for size := int64(1024); size <= 1<<16; size *= 2 {
		m, err := readMeta(r, size)
		if err != nil && !errors.As(err, new(damage)) {
			return nil, err
		}
		if err == nil && m.pageSize == size && (len(out) == 0 || size == first.pageSize) {
			out = append(out, m)
		}
	}
	if len(out) == 2 && out[1].transaction > out[0].transaction {
		out[0], out[1] = out[1], out[0]
	}
	return out, nil
}

// A page is a branch or a leaf, overflow included.
type page struct {
	id    uint64
	leaf  bool
	items []item
	after uint64 // the page that follows
}

// within tells whether a page holds what its parent says. The key in the branch
// is the first in the child: bbolt finds the one by the other.
func (p page) within(low, high []byte) bool {
	n := len(p.items)
	return low == nil || n > 0 && bytes.Equal(p.items[0].key, low) && (high == nil || bytes.Compare(p.items[n-1].key, high) < 0)
}

// An item is a child of a branch, or what a leaf has.
type item struct {
	key, value []byte
	child      uint64
	bucket     bool
}

// read gives the branch or leaf at id, of which nothing is out of bounds.
func (f *pages) read(id uint64) (page, error) {
	if id < 2 || id >= f.n {
		return page{}, damaged("page %d is beyond the last", id)
	}
	b := make([]byte, f.size)
	if err := f.bytes(b, id); err != nil {
		return page{}, err
	}
	overflow := uint64(f.order.Uint32(b[12:]))
	if f.order.Uint64(b) != id || overflow >= f.n-id || overflow*uint64(f.size) > maxPage {
		return page{}, damaged("page %d has the head of another", id)
	}
	if overflow > 0 {
		b = append(b, make([]byte, int64(overflow)*f.size)...)
		if err := f.bytes(b, id); err != nil {
			return page{}, err
		}
	}
	p, err := f.parse(b)
	end := uint64(pageHeader)
	for _, it := range p.items {
		end += pageElement + uint64(len(it.key)+len(it.value))
	}
	if err == nil && overflow > end/uint64(f.size) {
		err = damaged("page %d has the length of another", id) // bbolt would free what follows it
	}
	p.id, p.after = id, id+1+overflow
	return p, err
}

func (f *pages) bytes(b []byte, id uint64) error {
	_, err := f.r.ReadAt(b, int64(id)*f.size)
	if errors.Is(err, io.EOF) {
		return damaged("the file ends in page %d", id)
	}
	return err
}

func (f *pages) parse(b []byte) (page, error) {
	flags, count := f.order.Uint16(b[8:]), int(f.order.Uint16(b[10:]))
	p := page{leaf: flags == leafPage}
	if flags != leafPage && flags != branchPage || pageHeader+count*pageElement > len(b) || !p.leaf && count == 0 {
		return p, damaged("page %d is neither branch nor leaf", f.order.Uint64(b))
	}
	for i := range count {
		at := pageHeader + i*pageElement
		e := b[at:]
		var it item
		pos, ksize, vsize := uint64(f.order.Uint32(e)), uint64(f.order.Uint32(e[4:])), uint64(0)
		if p.leaf {
			it.bucket = f.order.Uint32(e) == 1
			if f.order.Uint32(e) > 1 {
				return p, damaged("page %d has an item of an unknown kind", f.order.Uint64(b))
			}
			pos, ksize, vsize = uint64(f.order.Uint32(e[4:])), uint64(f.order.Uint32(e[8:])), uint64(f.order.Uint32(e[12:]))
		} else {
			it.child = f.order.Uint64(e[8:])
		}
		from := uint64(at) + pos
		if pos < uint64((count-i)*pageElement) || ksize == 0 || from+ksize+vsize > uint64(len(b)) {
			return p, damaged("page %d has an item out of bounds", f.order.Uint64(b))
		}
		it.key, it.value = b[from:from+ksize], b[from+ksize:from+ksize+vsize]
		if i > 0 && bytes.Compare(p.items[i-1].key, it.key) >= 0 {
			return p, damaged("page %d is out of order", f.order.Uint64(b))
		}
		p.items = append(p.items, it)
	}
	return p, nil
}

// A walk goes through the tree of a meta. What cannot be read is given to
// broken, and passed over; with an error of broken's the walk ends.
type walk struct {
	*pages
	seen   []uint64 // one bit a page
	visit  func(bucket []byte, it item) error
	broken func(err error) error

	buckets map[string]uint64 // those that were met, and their sequences
	depth   int
}

// maxDepth is more than a tree of any size has.
const maxDepth = 64

func newWalk(f *pages) *walk {
	return &walk{pages: f, seen: make([]uint64, f.n/64+1), buckets: make(map[string]uint64)}
}

func (w *walk) wasSeen(id uint64) bool { return w.seen[id/64]>>(id%64)&1 != 0 }

// root goes through all buckets of the tree at id.
func (w *walk) root(id uint64) error {
	return w.tree(id, nil, nil, func(it item) error {
		if !it.bucket || len(it.value) < 16 {
			return w.broken(damaged("the root has something that is no bucket"))
		}
		w.buckets[string(it.key)] = w.order.Uint64(it.value[8:])
		visit := func(in item) error {
			if in.bucket {
				return w.broken(damaged("there is a bucket in the bucket %q", it.key))
			}
			return w.visit(it.key, in)
		}
		if child := w.order.Uint64(it.value); child != 0 {
			return w.tree(child, nil, nil, visit)
		}
		return w.inline(it.value[16:], visit)
	})
}

// inline goes through a bucket that is within a leaf of the root.
func (w *walk) inline(b []byte, visit func(it item) error) error {
	if len(b) < pageHeader {
		return w.broken(damaged("a bucket is cut off"))
	}
	if w.order.Uint64(b) != 0 { // bbolt would free that page
		if err := w.broken(damaged("a bucket within a page has the head of a page")); err != nil {
			return err
		}
	}
	p, err := w.parse(b)
	if err == nil && !p.leaf {
		err = damaged("a bucket within a page is no leaf")
	}
	if err != nil {
		return w.broken(err)
	}
	for _, it := range p.items {
		if err := visit(it); err != nil {
			return err
		}
	}
	return nil
}

// tree goes through what is at id, whose first key is to be low, and the last
// below high; nil is any.
func (w *walk) tree(id uint64, low, high []byte, visit func(it item) error) error {
	w.depth++
	defer func() { w.depth-- }()
	p, err := w.read(id)
	if err == nil && w.depth > maxDepth {
		err = damaged("page %d is too deep in the tree", id)
	}
	for i := id; err == nil && i < p.after; i++ {
		if w.wasSeen(i) {
			err = damaged("page %d is in use twice", i)
		}
		w.seen[i/64] |= 1 << (i % 64)
	}
	if err == nil && !p.within(low, high) {
		err = damaged("page %d holds keys of another", id)
	}
	if err != nil {
		if !errors.As(err, new(damage)) {
			return err
		}
		return w.broken(err)
	}
	for i, it := range p.items {
		if p.leaf {
			err = visit(it)
		} else {
			to := high
			if i+1 < len(p.items) {
				to = p.items[i+1].key
			}
			err = w.tree(it.child, it.key, to, visit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A sight looks at pages before bbolt does in a transaction that writes: bits
// may have flipped since the file was opened. It panics with the damage, as
// bbolt does with what it sees itself.
type sight struct {
	*pages
	seen map[uint64]page // of leaves, the first and the last item
}

// newSight looks at the root, which has the buckets.
func newSight(f *pages, root uint64) *sight {
	w := newWalk(f)
	w.broken = func(err error) error { return err }
	err := w.tree(root, nil, nil, func(it item) error {
		if !it.bucket || len(it.value) < 16 {
			return damaged("the root has something that is no bucket")
		}
		if w.order.Uint64(it.value) != 0 {
			return nil
		}
		return w.inline(it.value[16:], func(item) error { return nil })
	})
	if err != nil {
		panic(err)
	}
	return &sight{f, make(map[uint64]page)}
}

func (s *sight) page(id uint64, low, high []byte) page {
	p, known := s.seen[id]
	if !known {
		var err error
		if p, err = s.read(id); err != nil {
			panic(err)
		}
		if n := len(p.items); p.leaf && n > 0 {
			p.items = []item{{key: bytes.Clone(p.items[0].key)}, {key: bytes.Clone(p.items[n-1].key)}}
		}
		s.seen[id] = p
	}
	if !p.within(low, high) {
		panic(damaged("page %d holds keys of another", id))
	}
	return p
}

// to looks at the way from the page id to a key, and at what is beside it: a
// cursor goes on there, and so does a page that is too empty. A nil sight looks
// at nothing.
func (s *sight) to(id uint64, key []byte) {
	if s != nil && id != 0 { // 0 is within the root
		s.way(id, key, nil, nil, 0)
	}
}

func (s *sight) way(id uint64, key, low, high []byte, depth int) {
	p := s.page(id, low, high)
	if depth > maxDepth {
		panic(damaged("page %d is too deep in the tree", id))
	}
	if p.leaf {
		return
	}
	at := max(0, sort.Search(len(p.items), func(i int) bool { return bytes.Compare(p.items[i].key, key) > 0 })-1)
	for i := max(0, at-1); i < len(p.items) && i <= at+1; i++ {
		low, high := p.items[i].key, high
		if i+1 < len(p.items) {
			high = p.items[i+1].key
		}
		switch {
		case i < at:
			s.page(p.items[i].child, low, high)
		case i == at:
			s.way(p.items[i].child, key, low, high, depth+1)
		default:
			s.way(p.items[i].child, low, low, high, depth+1)
		}
	}
}

// all looks at the whole tree at id.
func (s *sight) all(id uint64) {
	if s == nil || id == 0 {
		return
	}
	w := newWalk(s.pages)
	w.broken = func(err error) error { return err }
	if err := w.tree(id, nil, nil, func(item) error { return nil }); err != nil {
		panic(err)
	}
}
