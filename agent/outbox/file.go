package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// The buckets of the file, which are tables. Every version of this program must
// be able to read the version.
//
//	meta    version, random, run, machine, sum, the clock's state, the boot of
//	        the last run, and the generation of the journal (journal.go)
//	runs    run -> the name of the store in that run
//	log     device, run, first -> a row of readings (record.go)
//	packs   device, run, first -> the last, the time and the dating of a frozen
//	        pack
//	cursor  device -> run and sequence number up to which what was on disk is
//	        settled
//	notes   number -> a note
//	state   device -> what SetState kept
//	accepted device -> run and sequence number up to which the server has
//	        accepted, where that is kept for a while (AckDisk), and in which boot
//	held    device, run, number -> a reading that may be at the server (hold.go)
//	origins number -> the origins of messages that are or were in log
//	counts  number -> a row of what became of readings (counts.go)
var (
	bucketMeta   = []byte("meta")
	bucketRuns   = []byte("runs")
	bucketLog    = []byte("log")
	bucketPacks  = []byte("packs")
	bucketCursor = []byte("cursor")
	bucketNotes  = []byte("notes")
	bucketState  = []byte("state")
	bucketHeld   = []byte("held")
	bucketTaken  = []byte("accepted")
	bucketOrigin = []byte("origins")
	bucketCounts = []byte("counts")

	metaVersion = []byte("version")
	metaRandom  = []byte("random")
	metaRun     = []byte("run")
	metaMachine = []byte("machine")
	metaSum     = []byte("sum")
	metaClock   = []byte("clock")
	metaBoot    = []byte("boot") // of versions before, see loadTaken
	metaJournal = []byte("journal")
)

// schemaVersion 2 had no thinned rows, which a program that does not know them
// would take for damaged, and no journal. Version 1 had no CRCs but in the rows
// and the origins, no sum, a cursor only where a row is settled in part, and not
// always the buckets that are last here.
const schemaVersion = 3

func buckets() [][]byte {
	return [][]byte{bucketMeta, bucketRuns, bucketLog, bucketPacks, bucketCursor, bucketNotes, bucketState, bucketHeld, bucketOrigin, bucketTaken, bucketCounts}
}

// firstBuckets is how many of the buckets every file of version 1 has, and
// secondBuckets how many every one of version 2 has.
const firstBuckets, secondBuckets = 7, 10

// isRows tells of which buckets the values are rows.
func isRows(bucket []byte) bool {
	return bytes.Equal(bucket, bucketLog) || bytes.Equal(bucket, bucketHeld)
}

// lockPatience is for how long another process may hold the file: one that is
// being stopped lets go of it soon.
const lockPatience = time.Second

// openFile opens the file, or makes a new one. A damaged one is mended, or
// replaced by what can be read of it.
func openFile(path string, options Options) (*bolt.DB, *Recovery, error) {
	f, err := lockFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if err = createFile(path, options, nil); err == nil {
			f, err = lockFile(path)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	recovery, err := repair(f)
	if errors.As(err, new(damage)) {
		options.Log.Error("the outbox is damaged; what can be read goes into a new one", "file", path, "damage", err)
		recovery, err = replace(path, f, options, err)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		f, err = lockFile(path)
	}
	if err == nil {
		err = persist(f)
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, nil, err
	}
	db, err := openBolt(f, options)
	return db, recovery, err
}

// openBolt gives f, which is locked, to bbolt.
func openBolt(f *os.File, options Options) (*bolt.DB, error) {
	size, err := preallocate(f, options)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	opened := false // bbolt opens the file of a copy by this too
	db, err := bolt.Open(f.Name(), 0o600, &bolt.Options{
		// The free list after a drained outage is half a megabyte, and would
		// be written with every commit.
		NoFreelistSync:  true,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: int(size), // a reader never waits for a new map, nor a writer for a reader
		MaxSize:         int(size),
		Timeout:         lockPatience,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			if opened {
				return os.OpenFile(name, flag, mode)
			}
			opened = true
			return f, nil
		},
	})
	if err != nil {
		return nil, err // bbolt has closed f
	}
	// Where the space could not be had beforehand, the file grows by this.
	// MaxSize bites that much early, and where it is more than the map, at
	// powers of two.
	db.AllocSize = int(size / 64)
	return db, nil
}

// preallocate takes all the space that the file may have, so that a full disk
// cannot hit the buffer, and gives the size it may have.
func preallocate(f *os.File, options Options) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := max(options.MaxBytes, info.Size())
	if info.Size() < size {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
			options.Log.Warn("the outbox cannot have its space beforehand; a full disk will be one for it too", "bytes", size, "error", err)
		}
	}
	return size, nil
}

// lockFile opens the file for this process alone, by the lock that bbolt takes
// too.
func lockFile(path string) (*os.File, error) {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 20) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// Another process may have put another file here meanwhile.
			mine, err := f.Stat()
			there, thereErr := os.Stat(path)
			if err == nil && thereErr == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, ErrLocked
		}
	}
}

// createFile makes a new file aside and puts it at path, because a power cut
// during bbolt's first writes leaves a file that cannot be opened. What is
// there is replaced. fill may be nil.
func createFile(path string, options Options, fill func(db *bolt.DB) error) error {
	crashpoint.At(crashpoint.StoreMissing)
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(aside, 0o600, &bolt.Options{NoFreelistSync: true, FreelistType: bolt.FreelistMapType, Timeout: lockPatience})
	if err != nil {
		return err
	}
	random, err := newRandom()
	if err == nil {
		err = db.Update(func(tx *bolt.Tx) error {
			for _, name := range buckets() {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			w := &writing{tx: tx}
			meta := w.meta()
			return errors.Join(
				meta.put(metaVersion, binary.BigEndian.AppendUint32(nil, schemaVersion)),
				meta.put(metaRandom, []byte(random)),
				meta.put(metaRun, binary.BigEndian.AppendUint32(nil, 0)),
				w.end())
		})
	}
	if err == nil {
		// A second transaction, because the other meta is still of bbolt's
		// making, with a free list.
		err = db.Update(func(tx *bolt.Tx) error { return (&writing{tx: tx}).end() })
	}
	if err == nil && fill != nil {
		err = fill(db)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	crashpoint.At(crashpoint.StoreMade)
	if err := os.Rename(aside, path); err != nil {
		return err
	}
	crashpoint.At(crashpoint.StoreRenamed)
	defer crashpoint.At(crashpoint.StoreCreated)
	return syncDir(filepath.Dir(path))
}

// InUse reports whether a process has the store at path open. There need not
// be one.
func InUse(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("cannot look whether the outbox is in use: %w", err)
	}
	defer f.Close() // which ends the lock
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return false, fmt.Errorf("cannot look whether the outbox is in use: %w", err)
	}
	return err != nil, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load starts a new run and takes stock of what the runs before left.
func (o *Outbox) load() error {
	return o.update(func(w *writing) error {
		if written := version(w.meta().Get(metaVersion)); written < schemaVersion {
			if err := w.upgrade(written); err != nil {
				return err
			}
		}
		journaled, newest, err := o.replay(w)
		if err != nil {
			return err
		}
		crashpoint.At(crashpoint.JournalReplayed)
		if err := o.loadCounts(w); err != nil {
			return err
		}
		if err := o.startRun(w, newest); err != nil {
			return err
		}
		if o.options.Boot != nil {
			if err := w.meta().put(metaClock, o.options.Boot(bytes.Clone(w.meta().get(metaClock)))); err != nil {
				return err
			}
		}
		crashpoint.At(crashpoint.RunRaised)
		if err := o.origins.load(w.table(bucketOrigin), journaled); err != nil {
			return err
		}
		losses, err := o.loadLog(w)
		if err != nil {
			return err
		}
		state := w.table(bucketState)
		state.ForEach(func(k, v []byte) error {
			if value, ok := unsealed(state.name, k, v); ok {
				o.states[devices.ID(k)] = stateRow{value: append([]byte(nil), value...)}
			}
			return nil
		})
		if err := o.notes.load(w.table(bucketNotes)); err != nil {
			return err
		}
		if r := o.recovery; r != nil {
			o.log.Error(r.String())
			if o.options.RecoveryNote != nil {
				o.addNote(o.options.RecoveryNote(*r))
			}
		}
		for _, l := range losses {
			o.lose(l)
		}
		if err := o.beginCounts(w); err != nil {
			return err
		}
		fresh := o.notes.unwritten()
		o.notes.stored = o.notes.last
		return writeNotes(w, fresh, o.notes.last, nil)
	})
}

// upgrade makes a file of an older version one of this version. The rows stay as
// they are.
func (w *writing) upgrade(written uint32) error {
	if written < 2 {
		if err := w.seal(); err != nil {
			return err
		}
	}
	return w.meta().put(metaVersion, binary.BigEndian.AppendUint32(nil, schemaVersion))
}

// seal gives all values of a file of version 1 their CRCs.
func (w *writing) seal() error {
	w.sum = 0
	for _, name := range buckets() {
		b, err := w.tx.CreateBucketIfNotExists(name)
		if err != nil {
			return err
		}
		var keys, values [][]byte
		b.ForEach(func(k, v []byte) error {
			switch {
			case isRows(name):
				w.sum += weight(v)
			case bytes.Equal(name, bucketOrigin) && len(v) < 4:
			case bytes.Equal(name, bucketOrigin):
				keys, values = append(keys, bytes.Clone(k)), append(values, sealed(name, k, v[4:]))
			case !bytes.Equal(k, metaVersion):
				keys, values = append(keys, bytes.Clone(k)), append(values, sealed(name, k, v))
			}
			return nil
		})
		for i, k := range keys {
			if string(name) != string(bucketMeta) {
				w.sum += weight(values[i])
			}
			if err := b.Put(k, values[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// runStep bounds how much is skipped at each start, while there are many left.
const runStep = 4096

// runGap is skipped where the newest runs may not be known.
const runGap = 4 * runStep

// startRun raises the run, which is on disk before it is used because load is
// one transaction. The newest run in the journal may be one that a card forgot.
func (o *Outbox) startRun(w *writing, journaled uint32) error {
	meta := w.meta()
	random, machine := string(meta.get(metaRandom)), string(meta.get(metaMachine))
	run := max(number32(meta.get(metaRun)), journaled)
	// Nobody knows what was sent under the newest runs of a damaged file. Its
	// random stays, or what arrived would not be recognised.
	if o.recovery != nil && (o.recovery.Reverted || o.recovery.Aside != "") {
		run += runGap
	}
	// Of a copied card the original may go on counting under the old name.
	if machine != "" && machine != o.options.Machine {
		var err error
		if random, err = newRandom(); err != nil {
			return err
		}
		if err := meta.put(metaRandom, []byte(random)); err != nil {
			return err
		}
	}
	if machine != o.options.Machine {
		if err := meta.put(metaMachine, []byte(o.options.Machine)); err != nil {
			return err
		}
	}
	if run >= maxRun {
		return errors.New("it has no runs left")
	}
	o.resumed = run > 0
	// A card that lies may have forgotten openings, also the first, whose items
	// are at the server: their numbers are not to be met by chance.
	if step := min(runStep, int64(maxRun-run)/runStep); step > 0 {
		run += uint32(rand.Int64N(step))
	}
	if o.resumed {
		run++
		o.heldRun = run
	}
	o.run = run + 1
	o.store = fmt.Sprintf("%s.%d", random, o.run)
	named := []uint32{o.run}
	if o.resumed {
		named = append(named, o.heldRun)
	}
	for _, r := range named {
		if err := w.table(bucketRuns).put(binary.BigEndian.AppendUint32(nil, r), fmt.Appendf(nil, "%s.%d", random, r)); err != nil {
			return err
		}
	}
	return meta.put(metaRun, binary.BigEndian.AppendUint32(nil, o.run))
}

// loadTaken gives how far the server has accepted what is kept all the same.
// Only a power cut makes a server forget: what it accepted in another boot is
// doubtful until it is read back.
func (o *Outbox) loadTaken(w *writing) (taken, doubtful map[devices.ID]place, err error) {
	taken, doubtful = make(map[devices.ID]place), make(map[devices.ID]place)
	t, bootBefore := w.table(bucketTaken), string(w.meta().get(metaBoot))
	err = t.ForEach(func(k, v []byte) error {
		b, _ := unsealed(t.name, k, v)
		p, boot, ok := parseTaken(b)
		if boot == "" {
			boot = bootBefore
		}
		switch {
		case !ok:
		case boot != "" && boot == o.options.BootID:
			taken[devices.ID(k)] = p
		default:
			doubtful[devices.ID(k)] = p
		}
		return nil
	})
	return taken, doubtful, err
}

// A row of the taken bucket is a place, and the boot in which the server
// accepted what is up to there; versions before had that once, in the meta bucket.
func (o *Outbox) takenRow(p place) []byte { return append(p.bytes(), o.options.BootID...) }

func parseTaken(b []byte) (p place, boot string, ok bool) {
	if len(b) < 12 {
		return place{}, "", false
	}
	p, ok = parsePlace(b[:12])
	return p, string(b[12:]), ok
}

// removeDamaged takes rows away that cannot be read.
func (o *Outbox) removeDamaged(t table, keys [][]byte) error {
	if len(keys) > 0 && o.recovery == nil {
		o.recovery = &Recovery{Reason: errDamaged.Error()}
	}
	for _, k := range keys {
		o.recovery.Damaged++
		if err := t.remove(k); err != nil {
			return err
		}
	}
	return nil
}

// loadLog makes the queues of what is on disk, and gives what is lost: rows
// that are damaged, and where the file was damaged, what is missing between
// others.
func (o *Outbox) loadLog(w *writing) ([]Loss, error) {
	log, runs, cursors := w.table(bucketLog), w.table(bucketRuns), w.table(bucketCursor)
	used := map[uint32]bool{o.run: true, o.heldRun: true}
	taken, doubtful, err := o.loadTaken(w)
	if err != nil {
		return nil, err
	}
	if err := o.loadHeld(w, used); err != nil {
		return nil, err
	}
	var bad [][]byte
	var lost []deviceSpan
	var before deviceSpan
	resolved := 0 // of bad, those whose extent is known
	replaced := o.recovery != nil && o.recovery.Aside != ""
	// resolve tells how far the damaged rows before next went, by what stands
	// around them: their own heads cannot be believed.
	resolve := func(next deviceSpan) {
		between := next.device != "" && before.device == next.device && before.run == next.run
		if missing := (span{run: next.run, first: before.last + 1, last: next.first - 1}); between && missing.first <= missing.last && (replaced || resolved < len(bad)) {
			lost = append(lost, deviceSpan{next.device, missing})
		}
		for _, k := range bad[resolved:] {
			device, run, first, ok := parseRowKey(k)
			if id, err := devices.ParseID(string(device)); ok && !between && err == nil && id == device {
				lost = append(lost, deviceSpan{device, rowSpan(run, first, log.Get(k))})
			}
		}
		before, resolved = next, len(bad)
	}
	err = log.ForEach(func(k, v []byte) error {
		device, run, first, ok := parseRowKey(k)
		if !ok || !rowIntact(bucketLog, k, v) {
			bad = append(bad, bytes.Clone(k))
			return nil
		}
		row := deviceSpan{device, rowSpan(run, first, v)}
		resolve(row)
		q := o.queue(device)
		if p, ok := parsePlace(cursors.get([]byte(device))); ok && !p.before(place{run, row.first}) {
			if !p.before(place{run, row.last}) {
				return nil // the next commit that settles deletes it
			}
			row.span = rowAfter(k, v, p.seq)
		}
		used[run] = true
		if p, ok := taken[device]; ok && !p.before(place{run, row.first}) {
			if !p.before(place{run, row.last}) {
				return nil // kept for a while
			}
			row.span = rowAfter(k, v, p.seq)
		}
		if p, ok := doubtful[device]; ok && !p.before(place{run, row.first}) {
			if !p.before(place{run, row.last}) {
				q.doubted = append(q.doubted, row.span)
				return nil
			}
			head := row.span
			row.span = rowAfter(k, v, p.seq)
			head.last, head.missing = p.seq, head.missing-row.missing
			q.doubted = append(q.doubted, head)
		}
		q.extend(row.span)
		o.enqueue(q)
		if replaced {
			o.recovery.Readings += row.count()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	resolve(deviceSpan{})
	for device, p := range taken {
		o.tidy = append(o.tidy, settled{o.queue(device), p, time.Now()})
	}
	if err := o.removeDamaged(log, bad); err != nil {
		return nil, err
	}
	for _, l := range lost {
		used[l.run] = true
	}
	var unused [][]byte
	err = runs.ForEach(func(k, v []byte) error {
		if run := number32(k); used[run] {
			store, _ := unsealed(runs.name, k, v)
			o.runs[run] = string(store)
		} else {
			unused = append(unused, bytes.Clone(k))
		}
		return nil
	})
	for _, k := range unused {
		err = errors.Join(err, runs.remove(k))
	}
	var losses []Loss
	for _, l := range lost {
		losses = append(losses, Loss{
			Device: l.device, Store: o.runs[l.run], First: l.first, Last: l.last,
			Count: uint64(l.count()), Reason: errDamaged.Error(), Time: time.Now(),
		})
	}
	return losses, err
}

type deviceSpan struct {
	device devices.ID
	span
}

// version gives 0 where the value is damaged: that must not look like a newer
// version.
func version(value []byte) uint32 {
	if payload, ok := unsealed(bucketMeta, metaVersion, value); ok {
		return number32(payload)
	}
	if number32(value) == 1 {
		return 1
	}
	return 0
}

func number32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (p place) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(nil, p.run), p.seq)
}

func parsePlace(b []byte) (place, bool) {
	if len(b) != 12 {
		return place{}, false
	}
	return place{binary.BigEndian.Uint32(b), binary.BigEndian.Uint64(b[4:])}, true
}

// A frozen boundary is the value of a key of the packs bucket, whose key is
// its place: the last sequence number, the time in microseconds, and the
// dating.
func (b boundary) bytes() []byte {
	v := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, b.last), uint64(b.frozen.UnixMicro()))
	return append(v, b.dating...)
}

func parseBoundary(run uint32, first uint64, v []byte) (boundary, bool) {
	if len(v) < 16 {
		return boundary{}, false
	}
	b := boundary{run, first, binary.BigEndian.Uint64(v), time.UnixMicro(int64(binary.BigEndian.Uint64(v[8:]))), string(v[16:])}
	return b, b.last >= first
}
