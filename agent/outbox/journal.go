package outbox

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// A commit to bbolt writes about eight pages and syncs twice, whatever it
// holds, and a device that waits for its acknowledgement wants one each second.
// So a commit that has readings only goes to the journal, a file beside the
// store: one write of mostly one page, and one sync. Those readings stay in
// memory as well, until a full commit, a checkpoint, writes to bbolt what is
// not settled by then, and has the journal begin anew.
//
// The journal is made of batches, each at a multiple of journalPage. A batch
// tells the generation of the journal that it is of, and bbolt has the number
// of the newest: a checkpoint raises it, in its transaction, so that there is
// no moment in which a reading is in both or in none. Generations take turns at
// the halves of the file, so that a card which lost the checkpoint has what was
// in it. Open puts the batches of the newest generation into bbolt.
//
//	magic        4 bytes
//	CRC-32C      4 bytes, of all that follows
//	generation   8 bytes
//	index        4 bytes, counts the batches of a generation from 0
//	length       4 bytes, of what follows
//	the name of the store, its length before it
//	puts: a byte, which tells the bucket, the key and the value of a table,
//	each with its length before it
//
// Numbers are big endian; lengths within the puts are varints.
const (
	journalMagic  = "plj1"
	journalHeader = 24
	journalPage   = 4096
	journalHalf   = 1 << 20
	journalSize   = 2 * journalHalf

	// checkpoints is how many times CommitAfter a reading is in the journal
	// only, at most.
	checkpoints = 180
)

// The buckets of puts.
const (
	journalLog    = 'l' // key and value as in the bucket, but rows begin anywhere
	journalPacks  = 'p' // as in the bucket
	journalOrigin = 'o' // no key; the origins of the batch
	journalTaken  = 't' // as in the bucket
	journalClock  = 'c' // no key
)

// A journal is open for writing. Only the committer uses it, but for the fields
// that the outbox's lock guards.
type journal struct {
	file       *os.File // nil: there is none, and all commits are full
	writeAt    func(b []byte, at int64) (int, error)
	generation uint64
	index      uint32
	at         int64
	payload    []byte // of the batch that is being made

	// Guarded by the lock.
	began   time.Time        // when the oldest came that is here only
	origins []devices.Origin // of the messages here
}

// journalPath is beside the store.
func journalPath(store string) string { return store + ".journal" }

// openJournal opens the journal of the store at path, which is locked, and
// makes it where there is none. All its space is written beforehand: a sync
// then has to write no more than the batch.
func openJournal(store string) (*os.File, error) {
	f, err := os.OpenFile(journalPath(store), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() < journalSize {
		_, err = f.WriteAt(make([]byte, journalSize-info.Size()), info.Size())
		err = errors.Join(err, f.Sync(), syncDir(filepath.Dir(store)))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	return j.file.Close()
}

func (j *journal) begin(store string) {
	j.payload = binary.AppendUvarint(j.payload[:0], uint64(len(store)))
	j.payload = append(j.payload, store...)
}

func (j *journal) put(bucket byte, key, value []byte) {
	j.payload = append(j.payload, bucket)
	for _, b := range [][]byte{key, value} {
		j.payload = binary.AppendUvarint(j.payload, uint64(len(b)))
		j.payload = append(j.payload, b...)
	}
}

// fits reports whether the batch that is being made has room.
func (j *journal) fits() bool {
	end := int64(1+j.generation%2) * journalHalf
	return j.file != nil && j.at+int64(journalHeader+len(j.payload)) <= end
}

// write writes the batch that was made. An error that wraps errUnsure leaves
// open whether a start finds it.
func (j *journal) write() error {
	b := make([]byte, journalHeader, journalHeader+len(j.payload)+journalPage)
	binary.BigEndian.PutUint64(b[8:], j.generation)
	binary.BigEndian.PutUint32(b[16:], j.index)
	binary.BigEndian.PutUint32(b[20:], uint32(len(j.payload)))
	b = append(b, j.payload...)
	binary.BigEndian.PutUint32(b[4:], crc(b[8:]))
	copy(b, journalMagic)
	// Whole pages: what a card wrote before is never written again.
	b = b[:(len(b)+journalPage-1)/journalPage*journalPage]
	if _, err := j.writeAt(b, j.at); err != nil {
		return err
	}
	crashpoint.At(crashpoint.JournalWritten)
	if err := unix.Fdatasync(int(j.file.Fd())); err != nil {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	j.at += int64(len(b))
	j.index++
	return nil
}

// anew has the journal begin anew, once bbolt knows the generation.
func (j *journal) anew(generation uint64) {
	j.generation, j.index, j.at = generation, 0, int64(generation%2)*journalHalf
	j.began, j.origins = time.Time{}, nil
}

// A batch is what was written at once.
type batch struct {
	generation uint64
	index      uint32
	store      string // which numbered its readings
	puts       []put
}

type put struct {
	bucket     byte
	key, value []byte
}

// run is that of the store's name.
func (b batch) run() uint32 {
	_, run, _ := strings.Cut(b.store, ".")
	n, _ := strconv.ParseUint(run, 10, 32) // it has a CRC
	return uint32(n)
}

// readBatches gives the batches of a journal that are of a generation or of one
// after, in the order in which they were written. What a crash tore is none,
// and so is what is left of generations before. Where a card has lost one, those
// after it are given all the same.
func readBatches(r io.Reader, generation uint64) ([]batch, error) {
	all, err := io.ReadAll(io.LimitReader(r, journalSize))
	if err != nil {
		return nil, fmt.Errorf("cannot read the journal: %w", err)
	}
	var batches []batch
	for at := 0; at+journalHeader <= len(all); {
		b, size, ok := parseBatch(all[at:])
		if !ok {
			at += journalPage
			continue
		}
		at += (size + journalPage - 1) / journalPage * journalPage
		if b.generation >= generation {
			batches = append(batches, b)
		}
	}
	slices.SortFunc(batches, func(a, b batch) int {
		return cmp.Or(cmp.Compare(a.generation, b.generation), cmp.Compare(a.index, b.index))
	})
	return batches, nil
}

func parseBatch(b []byte) (parsed batch, size int, ok bool) {
	if string(b[:4]) != journalMagic {
		return batch{}, 0, false
	}
	length := int64(binary.BigEndian.Uint32(b[20:]))
	if length > int64(len(b)-journalHeader) {
		return batch{}, 0, false
	}
	size = journalHeader + int(length)
	if binary.BigEndian.Uint32(b[4:]) != crc(b[8:size]) {
		return batch{}, 0, false
	}
	parsed = batch{generation: binary.BigEndian.Uint64(b[8:]), index: binary.BigEndian.Uint32(b[16:])}
	d := &decoder{rest: b[journalHeader:size]}
	for parsed.store = d.text(); len(d.rest) > 0 && !d.failed; {
		p := put{bucket: d.byte()}
		p.key = d.take(d.uvarint())
		p.value = d.take(d.uvarint())
		parsed.puts = append(parsed.puts, p)
	}
	return parsed, size, !d.failed
}

// journalize makes the batch of a commit: the readings and boundaries that are
// not in the journal yet.
func (o *Outbox) journalize(c *commit) {
	l := &o.journal
	l.begin(o.store)
	for _, j := range c.jobs {
		device := j.queue.device
		for _, b := range j.boundaries {
			if !b.safe {
				l.put(journalPacks, rowKey(device, b.run, b.first), b.bytes())
			}
		}
		row := newRow()
		var key []byte
		end := func() {
			if row.n > 0 {
				l.put(journalLog, key, sealed(bucketLog, key, row.payload))
			}
		}
		for _, r := range j.records(j.journaled) {
			if row.n == 0 || !row.add(r) {
				end()
				row, key = newRow(), rowKey(device, o.run, r.Seq)
				row.add(r)
			}
		}
		end()
		if j.accepted != (place{}) {
			l.put(journalTaken, []byte(device), o.takenRow(j.accepted))
		}
	}
	var origins []byte
	for _, origin := range c.origins {
		origins = append(origins, origin[:]...)
	}
	if len(origins) > 0 {
		l.put(journalOrigin, nil, origins)
	}
	if o.options.State != nil {
		if state := o.options.State(c.stamped); state != nil {
			l.put(journalClock, nil, state)
		}
	}
}

// replay puts what the journal has of the store's generation into bbolt, and
// has the next commits begin another. It gives the origins that it found, and
// the newest run.
func (o *Outbox) replay(w *writing) (found []devices.Origin, newest uint32, err error) {
	meta := w.meta()
	generation, _ := parseGeneration(meta.get(metaJournal))
	var batches []batch
	if o.journal.file != nil {
		if batches, err = o.journalOf(w, generation); err != nil {
			return nil, 0, err
		}
	}
	runs := w.table(bucketRuns)
	for _, b := range batches {
		generation, newest = max(generation, b.generation), max(newest, b.run())
		run := binary.BigEndian.AppendUint32(nil, b.run())
		if runs.get(run) == nil {
			if err := runs.put(run, []byte(b.store)); err != nil {
				return nil, 0, err
			}
		}
		for _, p := range b.puts {
			switch p.bucket {
			case journalLog:
				err = w.putBack(p)
			case journalPacks:
				err = w.table(bucketPacks).put(p.key, p.value)
			case journalTaken:
				err = w.table(bucketTaken).put(p.key, p.value)
			case journalClock:
				err = meta.put(metaClock, p.value)
			case journalOrigin:
				for v := p.value; len(v) >= len(devices.Origin{}); v = v[len(devices.Origin{}):] {
					found = append(found, devices.Origin(v[:len(devices.Origin{})]))
				}
			}
			if err != nil {
				return nil, 0, err
			}
		}
	}
	o.journal.anew(generation + 1)
	return found, newest, meta.put(metaJournal, binary.BigEndian.AppendUint64(nil, generation+1))
}

// journalOf reads the batches that are this store's: a file that was copied
// here from elsewhere may have another journal beside it.
func (o *Outbox) journalOf(w *writing, generation uint64) ([]batch, error) {
	if _, err := o.journal.file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	batches, err := readBatches(o.journal.file, generation)
	if err != nil {
		return nil, err
	}
	random := string(w.meta().get(metaRandom))
	if replaced := o.recovery != nil && o.recovery.Aside != ""; replaced {
		// How far the file had come may not be known. Only the newest can be
		// what it did not have.
		if generation == 0 && len(batches) > 0 {
			newest := batches[len(batches)-1].generation
			batches = slices.DeleteFunc(batches, func(b batch) bool { return b.generation < newest })
		}
		return batches, nil
	}
	return slices.DeleteFunc(batches, func(b batch) bool {
		name, _, _ := strings.Cut(b.store, ".")
		return random != "" && name != random
	}), nil
}

// putBack puts a row of the journal into the log, but for what is there or was
// settled: the card may have lost the transaction that raised the generation.
func (w *writing) putBack(p put) error {
	device, run, _, ok := parseRowKey(p.key)
	if !ok {
		return nil
	}
	rs, err := decodeRow(bucketLog, p.key, p.value)
	if err != nil {
		return nil // by another version; its CRC was good
	}
	log := w.table(bucketLog)
	settled, some := parsePlace(w.table(bucketCursor).get([]byte(device)))
	rs = slices.DeleteFunc(rs, func(r devices.Record) bool {
		at := place{run, r.Seq}
		if some && !settled.before(at) {
			return true
		}
		k, v := rowUpTo(log.Cursor(), device, at)
		_, _, first, ok := parseRowKey(k)
		return ok && rowSpan(run, first, v).last >= r.Seq
	})
	if len(rs) == 0 {
		return nil
	}
	return addToLog(log, device, run, rs)
}

func parseGeneration(b []byte) (uint64, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}
