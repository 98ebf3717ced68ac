package outbox

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Recovery tells what Open had to do to a damaged store.
type Recovery struct {
	Reason   string // what was found
	Reverted bool   // the last transaction was taken back, or what is left of it
	Aside    string // where the damaged file is now; empty: it was mended in its place
	Readings int    // those that could be read of the file that was set aside
	Damaged  int    // rows and pages that could not be read
}

// String tells it to people.
func (r Recovery) String() string {
	switch {
	case r.Aside != "":
		return fmt.Sprintf("the store was damaged (%s) and is set aside as %s: %d readings go on, %d rows or pages could not be read", r.Reason, filepath.Base(r.Aside), r.Readings, r.Damaged)
	case r.Reverted:
		return fmt.Sprintf("the store was damaged (%s): its last change was taken back", r.Reason)
	}
	return fmt.Sprintf("the store was damaged (%s): %d rows could not be read", r.Reason, r.Damaged)
}

// keptAside is how many damaged files are kept for whoever wants to look.
const keptAside = 2

// repair looks through all of a locked file, before bbolt does, and where that
// makes it whole, goes on with a newer tree or takes the last transaction back:
// a card that loses what it said it had written loses the newest. The error is
// a damage where nothing makes it whole.
func repair(f *os.File) (*Recovery, error) {
	metas, err := readMetas(f)
	if err != nil {
		return nil, err
	}
	// The two are of one transaction after the other: where they are not, the
	// newest is lost.
	paired := len(metas) == 2 && metas[0].transaction == metas[1].transaction+1
	if !paired {
		err = damaged("a meta page is damaged")
	}
	best, least := -1, 0
	for i, m := range metas {
		rows, found := verify(f, m)
		switch {
		case found != nil && !errors.As(found, new(damage)):
			return nil, found
		case found != nil && i == 0:
			err = found
		case found == nil && (best < 0 || rows < least):
			best, least = i, rows
		}
	}
	well := best == 0 && paired
	switch {
	case len(metas) == 0:
		return nil, damaged("there is no meta page")
	case well && least == 0:
		return nil, nil
	case err == nil:
		err = errDamaged
	}
	if best != 0 || least > 0 {
		ahead, rows, unreadable := unled(f, metas[0])
		if unreadable != nil {
			return nil, unreadable
		}
		if ahead.root != 0 && (best < 0 || rows <= least) {
			return &Recovery{Reason: err.Error(), Reverted: true}, lead(f, metas[0], ahead)
		}
	}
	switch {
	case best < 0:
		return nil, err
	case well:
		return nil, nil // the rows are told of when they are read
	}
	return &Recovery{Reason: err.Error(), Reverted: true}, revert(f, metas[best])
}

// persist writes again what is seen, and may not be kept: where a sync failed,
// the system takes what it could not write for written. That is the metas,
// before which all they lead to was synced, and the name of the file.
func persist(f *os.File) error {
	metas, err := readMetas(f)
	if err != nil {
		return err
	}
	b := make([]byte, pageHeader+metaSize)
	for _, m := range metas {
		if _, err := f.ReadAt(b, m.at); err != nil {
			return err
		}
		if _, err := f.WriteAt(b, m.at); err != nil {
			return err
		}
	}
	return errors.Join(f.Sync(), syncDir(filepath.Dir(f.Name())))
}

// revert makes the other meta of a file that of the whole one too, as of a
// transaction before.
func revert(f *os.File, whole meta) error {
	b := make([]byte, pageHeader+metaSize)
	if _, err := f.ReadAt(b, whole.at); err != nil {
		return err
	}
	other, order := whole.pageSize-whole.at, boltOrder()
	order.PutUint64(b, uint64(other/whole.pageSize))
	order.PutUint64(b[pageHeader+48:], whole.transaction-1)
	sealMeta(b)
	if _, err := f.WriteAt(b, other); err != nil {
		return err
	}
	return f.Sync()
}

// unled finds the newest tree that no meta leads to and that is whole, and
// counts its damaged rows; its root is 0 where there is none. A card that has lost the newest meta, and nothing
// before it, may have written to the tree that the older one leads to: by the
// newest, its pages were free.
func unled(f *os.File, newest meta) (best meta, least int, err error) {
	info, err := f.Stat()
	if err != nil {
		return meta{}, 0, err
	}
	n := uint64(info.Size() / newest.pageSize)
	s := &salvage{file: f, pages: &pages{f, boltOrder(), newest.pageSize, n}}
	var found []meta
	for id := uint64(2); id < n; id++ {
		if transaction, ok := s.rootSequence(id); ok && transaction > newest.transaction {
			at := int64(transaction%2) * newest.pageSize
			found = append(found, meta{at, newest.pageSize, id, n, transaction})
		}
	}
	slices.SortFunc(found, func(a, b meta) int { return cmp.Compare(b.transaction, a.transaction) })
	for _, m := range found {
		rows, err := verify(f, m)
		if err == nil && (best.root == 0 || rows < least) {
			best, least = m, rows
		} else if err != nil && !errors.As(err, new(damage)) {
			return meta{}, 0, err
		}
	}
	return best, least, nil
}

// lead makes the metas those of a tree that none leads to; like is one of them.
func lead(f *os.File, like, to meta) error {
	b := make([]byte, pageHeader+metaSize)
	if _, err := f.ReadAt(b, like.at); err != nil {
		return err
	}
	order := boltOrder()
	order.PutUint64(b, uint64(to.at/to.pageSize))
	order.PutUint64(b[pageHeader+16:], to.root)
	order.PutUint64(b[pageHeader+40:], to.pages)
	order.PutUint64(b[pageHeader+48:], to.transaction)
	sealMeta(b)
	if _, err := f.WriteAt(b, to.at); err != nil {
		return err
	}
	return revert(f, to)
}

// sealMeta makes the check sum of a meta page.
func sealMeta(b []byte) {
	sum := fnv.New64a()
	sum.Write(b[pageHeader : pageHeader+metaSize-8])
	boltOrder().PutUint64(b[pageHeader+56:], sum.Sum64())
}

// verify looks through the tree of a meta. It is whole where bbolt can walk
// it, and where it has all values that were written: what is damaged in itself
// is left to those who read it only in rows, which are counted.
func verify(f *os.File, m meta) (rows int, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if m.pages > uint64(info.Size()/m.pageSize) {
		return 0, damaged("the file has %d bytes of %d pages", info.Size(), m.pages)
	}
	var found, bad error
	var written uint32
	var sum, want, transaction uint64
	w := newWalk(&pages{f, boltOrder(), m.pageSize, m.pages})
	w.broken = func(err error) error {
		found = errors.Join(found, err)
		if written > schemaVersion {
			return err
		}
		return nil
	}
	w.visit = func(bucket []byte, it item) error {
		payload, ok := unsealed(bucket, it.key, it.value)
		switch inMeta := bytes.Equal(bucket, bucketMeta); {
		case inMeta && bytes.Equal(it.key, metaVersion):
			written = version(it.value)
		case inMeta && bytes.Equal(it.key, metaSum):
			want, transaction = parseSum(payload)
		case !inMeta:
			sum += weight(it.value)
		}
		if !ok && isRows(bucket) {
			rows++
		} else if !ok {
			bad = damaged("the value of %q in %s is damaged", it.key, bucket)
		}
		return nil
	}
	err = w.root(m.root)
	switch {
	case written > schemaVersion:
		return 0, fmt.Errorf("%w: its version is %d, this program knows %d", ErrNewer, written, schemaVersion)
	case err != nil:
		return 0, err
	case found != nil:
		return 0, first(found)
	case written == 0:
		return 0, damaged("it has no version")
	}
	for i, name := range buckets() {
		if _, ok := w.buckets[string(name)]; !ok && (i < firstBuckets || written > 1 && i < secondBuckets) {
			return 0, damaged("it has no bucket %s", name)
		}
	}
	if written > 1 && bad != nil {
		return 0, bad
	}
	// Where nothing of the newest tree was written, its root is that of an older
	// one, whole in itself.
	if written > 1 && transaction != m.transaction {
		return 0, damaged("the tree of the transaction %d is that of %d", m.transaction, transaction)
	}
	if written > 1 && sum != want {
		return 0, damaged("something is missing, or an old page came back")
	}
	return rows, nil
}

// first gives the first of joined errors.
func first(err error) error {
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		return first(list.Unwrap()[0])
	}
	return err
}

// replace puts a new file in the place of a damaged one, which is locked, with
// all that can be read of it, and sets it aside.
func replace(path string, f *os.File, options Options, why error) (*Recovery, error) {
	aside, err := nextAside(path)
	if err != nil {
		return nil, err
	}
	s := &salvage{file: f, cursors: make(map[devices.ID]place), stores: make(map[uint32]string), used: make(map[uint32]bool)}
	err = createFile(path, options, func(db *bolt.DB) error {
		if err := s.into(db); err != nil {
			return err
		}
		// A power cut must leave one of the two at path.
		if os.Link(path, aside) == nil {
			return nil
		}
		return os.Rename(path, aside) // a file system without links
	})
	if err != nil {
		return nil, fmt.Errorf("cannot replace it, which is damaged (%w): %w", why, err)
	}
	return &Recovery{Reason: why.Error(), Aside: aside, Damaged: s.damaged}, nil
}

// nextAside gives a name for a damaged file, and deletes the oldest where there
// would be too many.
func nextAside(path string) (string, error) {
	prefix := path + ".damaged-"
	there, err := filepath.Glob(prefix + "*")
	if err != nil {
		return "", err
	}
	var numbers []int
	for _, name := range there {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, prefix)); err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for ; len(numbers) >= keptAside; numbers = numbers[1:] {
		if err := os.Remove(prefix + strconv.Itoa(numbers[0])); err != nil {
			return "", err
		}
	}
	next := 1
	if len(numbers) > 0 {
		next = numbers[len(numbers)-1] + 1
	}
	return prefix + strconv.Itoa(next), nil
}

// A salvage takes what is whole out of a damaged file: first what the newest
// tree leads to, then what stands in pages that none does. Those may be old,
// so that of them only what no cursor tells as settled is taken.
type salvage struct {
	file    *os.File
	pages   *pages
	roots   uint64 // the page of the newest root; 0 where there is none
	old     bool   // of version 1, whose values but the log's have no CRC
	cursors map[devices.ID]place
	stores  map[uint32]string
	used    map[uint32]bool
	run     uint32
	damaged int

	db *bolt.DB
	w  *writing // under way
	n  int      // values in it
}

// salvageLot is how many values one transaction takes.
const salvageLot = 1000

func (s *salvage) into(db *bolt.DB) (err error) {
	if err := s.find(); err != nil || s.pages.n == 0 {
		return err
	}
	// Twice through the file: which rows are settled must be known before the
	// first is copied.
	if err := s.through(s.survey); err != nil {
		return err
	}
	s.damaged = 0
	db.NoSync = true // Sync is at the end
	s.db = db
	err = s.through(s.copy)
	if err == nil {
		err = s.finish()
	}
	if s.w != nil {
		err = errors.Join(err, s.w.tx.Rollback())
	}
	return errors.Join(err, db.Sync())
}

// find tells the size of the pages and where the newest root is.
func (s *salvage) find() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	s.pages = &pages{r: s.file, order: boltOrder()}
	metas, err := readMetas(s.file)
	if err != nil {
		return err
	}
	most := 0
	for size := int64(1024); size <= 1<<16 && len(metas) == 0; size *= 2 {
		n, err := s.count(size, info.Size()/size)
		if err != nil {
			return err
		}
		if n > most {
			most, s.pages.size = n, size
		}
	}
	if len(metas) > 0 {
		s.pages.size = metas[0].pageSize
	}
	if s.pages.size == 0 {
		return nil
	}
	s.pages.n = uint64(info.Size() / s.pages.size)
	for _, m := range metas {
		if _, ok := s.rootSequence(m.root); ok {
			s.roots = m.root
			return nil
		}
	}
	newest := uint64(0)
	for id := uint64(2); id < s.pages.n; id++ {
		if n, ok := s.rootSequence(id); ok && n >= newest {
			newest, s.roots = n, id
		}
	}
	return nil
}

// count tells how many pages have their own number where pages are of a size.
func (s *salvage) count(size, pages int64) (int, error) {
	n := 0
	b := make([]byte, pageHeader)
	for id := int64(2); id < pages; id++ {
		if _, err := s.file.ReadAt(b, id*size); err != nil {
			return 0, err
		}
		if flags := s.pages.order.Uint16(b[8:]); s.pages.order.Uint64(b) == uint64(id) && (flags == leafPage || flags == branchPage) {
			n++
		}
	}
	return n, nil
}

// rootSequence tells whether a page is a root of ours, and of which
// transaction.
func (s *salvage) rootSequence(id uint64) (uint64, bool) {
	p, err := s.pages.read(id)
	if err != nil || !p.leaf || len(p.items) < firstBuckets || len(p.items) > len(buckets()) {
		return 0, false
	}
	sequence := uint64(0)
	for _, it := range p.items {
		if !it.bucket || len(it.value) < 16 || !slices.ContainsFunc(buckets(), func(name []byte) bool { return bytes.Equal(name, it.key) }) {
			return 0, false
		}
		if bytes.Equal(it.key, bucketMeta) {
			sequence = s.pages.order.Uint64(it.value[8:])
		}
	}
	return sequence, true
}

// through gives each value that can be read, with its bucket; linked tells
// whether the tree leads to it.
func (s *salvage) through(visit func(bucket []byte, it item, linked bool) error) error {
	w := newWalk(s.pages)
	w.broken = func(error) error { s.damaged++; return nil }
	w.visit = func(bucket []byte, it item) error { return visit(bucket, it, true) }
	if s.roots != 0 {
		if err := w.root(s.roots); err != nil {
			return err
		}
	}
	stray := func(it item) error {
		for _, name := range [][]byte{bucketLog, bucketPacks, bucketCursor, bucketRuns, bucketNotes, bucketHeld, bucketOrigin} {
			_, ok := unsealed(name, it.key, it.value)
			if ok || bytes.Equal(name, bucketLog) && rowIntact(name, it.key, it.value) {
				return visit(name, it, false)
			}
		}
		return nil
	}
	w.broken = func(error) error { return nil }
	for id := uint64(2); id < s.pages.n; id++ {
		if w.wasSeen(id) {
			continue
		}
		p, err := s.pages.read(id)
		if err != nil && !errors.As(err, new(damage)) {
			return err
		}
		for _, it := range p.items {
			switch {
			case err != nil || !p.leaf:
			case it.bucket && len(it.value) > 16:
				if err := w.inline(it.value[16:], stray); err != nil {
					return err
				}
			default:
				if err := stray(it); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// payload gives a value without its CRC.
func (s *salvage) payload(bucket []byte, it item) ([]byte, bool) {
	switch {
	case s.old && bytes.Equal(bucket, bucketOrigin):
		return it.value[min(4, len(it.value)):], len(it.value) > 4
	case s.old:
		return it.value, true
	}
	return unsealed(bucket, it.key, it.value)
}

// survey gathers what must be known before rows are copied.
func (s *salvage) survey(bucket []byte, it item, linked bool) error {
	if linked && bytes.Equal(bucket, bucketMeta) && bytes.Equal(it.key, metaVersion) {
		s.old = version(it.value) == 1
	}
	switch string(bucket) {
	case string(bucketCursor):
		b, _ := s.payload(bucket, it)
		if p, ok := parsePlace(b); ok && s.cursors[devices.ID(it.key)].before(p) {
			s.cursors[devices.ID(it.key)] = p
		}
	case string(bucketRuns):
		if b, ok := s.payload(bucket, it); ok && len(it.key) == 4 {
			s.sawRun(number32(it.key))
			if linked || s.stores[number32(it.key)] == "" {
				s.stores[number32(it.key)] = string(b)
			}
		}
	case string(bucketLog), string(bucketHeld):
		if _, run, _, ok := parseRowKey(it.key); ok && rowIntact(bucket, it.key, it.value) {
			s.sawRun(run)
		}
	}
	return nil
}

// sawRun bounds what keys of version 1, which have no CRC, can do.
func (s *salvage) sawRun(run uint32) {
	if run < maxRun/2 {
		s.run = max(s.run, run)
	}
}

// copy puts a value into the new file, where it is wanted there.
func (s *salvage) copy(bucket []byte, it item, linked bool) error {
	payload, whole := s.payload(bucket, it)
	value := it.value
	if s.old && !isRows(bucket) {
		value = sealed(bucket, it.key, payload)
	}
	device, run, first, isPlace := parseRowKey(it.key)
	last := first
	switch string(bucket) {
	case string(bucketLog):
		if !isPlace || !rowIntact(bucket, it.key, it.value) {
			s.damaged++
			return nil
		}
		last = rowSpan(run, first, it.value).last
		if _, settled := s.settled(device, run, last); settled {
			return nil
		}
		s.used[run] = true
	case string(bucketPacks):
		b, ok := parseBoundary(run, first, payload)
		if _, settled := s.settled(device, run, b.last); !ok || !isPlace || settled {
			return nil
		}
	case string(bucketNotes):
		if !whole || !linked && s.damaged == 0 {
			return nil // an old one, which arrived
		}
	case string(bucketHeld):
		if !isPlace || !rowIntact(bucket, it.key, it.value) || !linked && s.damaged == 0 {
			return nil // an old one, which got its number
		}
		s.used[run] = true
	case string(bucketMeta):
		wanted := [][]byte{metaClock, metaBoot, metaMachine}
		if !s.old { // and has a CRC
			wanted = append(wanted, metaRandom, metaJournal)
		}
		if !whole || !linked || !slices.ContainsFunc(wanted, func(key []byte) bool { return bytes.Equal(key, it.key) }) {
			return nil
		}
	case string(bucketTaken), string(bucketCounts):
		if !whole || !linked {
			return nil
		}
	case string(bucketState), string(bucketOrigin):
		if !whole {
			return nil
		}
	default:
		return nil
	}
	if s.w == nil {
		tx, err := s.db.Begin(true)
		if err != nil {
			return err
		}
		s.w = &writing{tx: tx}
		s.w.begin()
	}
	t := s.w.table(bucket)
	inMeta := bytes.Equal(bucket, bucketMeta)
	if inMeta {
		t = s.w.meta()
	}
	switch {
	case inMeta:
	case bytes.Equal(bucket, bucketLog):
		if !linked && isThere(t, it) {
			return nil
		}
	case t.Get(it.key) != nil:
		return nil
	}
	if err := t.copy(it.key, value); err != nil {
		return err
	}
	if s.n++; s.n%salvageLot > 0 {
		return nil
	}
	return s.commit()
}

// isThere reports whether some of a row's readings are there, unless under the
// same key a shorter row is: that one grew. Rows that were thinned stand under
// other keys before and after it.
func isThere(log table, it item) bool {
	device, run, first, _ := parseRowKey(it.key)
	row := rowSpan(run, first, it.value)
	k, v := rowUpTo(log.Cursor(), device, place{run, row.last})
	if k == nil {
		return false
	}
	_, _, first, _ = parseRowKey(k)
	there := rowSpan(run, first, v)
	grew := there.first == row.first && there.last < row.last && there.missing+row.missing == 0
	return there.last >= row.first && !grew
}

func (s *salvage) settled(device devices.ID, run uint32, last uint64) (place, bool) {
	p := s.cursors[device]
	return p, !p.before(place{run, last})
}

func (s *salvage) commit() error {
	w := s.w
	s.w = nil
	if err := w.end(); err != nil {
		return errors.Join(err, w.tx.Rollback())
	}
	return w.tx.Commit()
}

// finish writes what the rows need: how far they are settled, and their names.
func (s *salvage) finish() error {
	if s.w != nil {
		if err := s.commit(); err != nil {
			return err
		}
	}
	random, err := newRandom()
	if err != nil {
		return err
	}
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	s.w = &writing{tx: tx}
	s.w.begin()
	for device, p := range s.cursors {
		err = errors.Join(err, s.w.table(bucketCursor).put([]byte(device), p.bytes()))
	}
	for run := range s.used {
		if s.stores[run] == "" {
			s.stores[run] = fmt.Sprintf("%s.%d", random, run)
		}
		err = errors.Join(err, s.w.table(bucketRuns).put(binary.BigEndian.AppendUint32(nil, run), []byte(s.stores[run])))
	}
	err = errors.Join(err, s.w.meta().put(metaRun, binary.BigEndian.AppendUint32(nil, s.run)))
	if err != nil {
		return err
	}
	return s.commit()
}
