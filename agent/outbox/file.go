package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// The buckets of the file.
//
//	meta    version, random, run, machine, the state of the clock
//	runs    run -> the name of the store in that run
//	log     device, run, first -> a row of readings (record.go)
//	packs   device, run, first -> the last and the time of a frozen pack
//	cursor  device -> run and sequence number that are settled, where a row
//	        holds both settled readings and others
//	notes   number -> a note
//	state   device -> what SetState kept
//	accepted device -> run and sequence number up to which the server has
//	        accepted, where that is kept for a while (AckDisk)
//	held    device, run, number -> a reading that may be at the server (hold.go)
//	origins number -> the origins of messages that are or were in log
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

	metaVersion = []byte("version")
	metaRandom  = []byte("random")
	metaRun     = []byte("run")
	metaMachine = []byte("machine")
	metaClock   = []byte("clock")
	metaBoot    = []byte("boot")
)

const schemaVersion = 1

// buckets are all there are.
func buckets() [][]byte {
	return [][]byte{bucketMeta, bucketRuns, bucketLog, bucketPacks, bucketCursor, bucketNotes, bucketState, bucketHeld, bucketOrigin, bucketTaken}
}

// boltOptions are for a file of so many bytes.
func boltOptions(size int64) *bolt.Options {
	return &bolt.Options{
		Timeout: time.Second, // zero would wait for the lock for ever
		// To map it anew waits for all who read.
		InitialMmapSize: int(min(size, 1<<30)),
		// The free list after a drained outage is half a megabyte, and would
		// be written with every commit.
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
	}
}

// openFile opens the file, or makes a new one: aside and renamed, because a
// power cut during bbolt's first writes leaves a file that cannot be opened.
func openFile(path string, size int64) (*bolt.DB, error) {
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		err = createFile(path, size)
	}
	if err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, boltOptions(size))
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, ErrLocked
	}
	return db, err
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

func createFile(path string, size int64) error {
	crashpoint.At(crashpoint.StoreMissing)
	aside := path + ".new"
	db, err := newFile(aside, size)
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
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

// newFile makes an empty store, in place of what is there. It takes its whole
// room on the disk at once, so that nothing else can fill that; where the file
// system cannot do so, the store grows.
func newFile(path string, size int64) (*bolt.DB, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	db, err := bolt.Open(path, 0o600, boltOptions(size))
	if err != nil {
		return nil, err
	}
	random, err := newRandom()
	if err == nil {
		err = reserve(path, size)
	}
	if err == nil {
		err = db.Update(func(tx *bolt.Tx) error {
			for _, name := range buckets() {
				if _, err := tx.CreateBucket(name); err != nil {
					return err
				}
			}
			meta := tx.Bucket(bucketMeta)
			return errors.Join(
				meta.Put(metaVersion, binary.BigEndian.AppendUint32(nil, schemaVersion)),
				meta.Put(metaRandom, []byte(random)),
				meta.Put(metaRun, binary.BigEndian.AppendUint32(nil, 0)))
		})
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// reserve has the file system keep room for a file.
func reserve(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, max(size, 1))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	} else if err != nil {
		return fmt.Errorf("cannot reserve %d bytes on the disk: %w", size, err)
	}
	return f.Sync()
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
	return o.db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			return errors.New("it is not an outbox")
		}
		if v := number32(meta.Get(metaVersion)); v > schemaVersion {
			return fmt.Errorf("%w: its version is %d, this program knows %d", ErrNewer, v, schemaVersion)
		} else if v == 0 {
			return errors.New("it has no version")
		}
		for _, name := range [][]byte{bucketHeld, bucketOrigin, bucketTaken} { // which came later
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		if err := o.startRun(tx, meta); err != nil {
			return err
		}
		if o.options.Boot != nil {
			if err := meta.Put(metaClock, o.options.Boot(bytes.Clone(meta.Get(metaClock)))); err != nil {
				return err
			}
		}
		crashpoint.At(crashpoint.RunRaised)
		if err := o.origins.load(tx.Bucket(bucketOrigin)); err != nil {
			return err
		}
		if err := o.loadLog(tx); err != nil {
			return err
		}
		tx.Bucket(bucketState).ForEach(func(k, v []byte) error {
			o.states[devices.ID(k)] = stateRow{value: append([]byte(nil), v...)}
			return nil
		})
		return o.notes.load(tx.Bucket(bucketNotes))
	})
}

// startRun raises the run, which is on disk before it is used because load is
// one transaction.
func (o *Outbox) startRun(tx *bolt.Tx, meta *bolt.Bucket) error {
	random := string(meta.Get(metaRandom))
	machine := string(meta.Get(metaMachine))
	if machine != o.options.Machine || o.recovery != nil {
		if machine != "" || o.recovery != nil {
			// A copied card: its original may go on counting under the old
			// name. And what the last runs were is not sure after a damage.
			var err error
			if random, err = newRandom(); err != nil {
				return err
			}
			if err := meta.Put(metaRandom, []byte(random)); err != nil {
				return err
			}
		}
		if err := meta.Put(metaMachine, []byte(o.options.Machine)); err != nil {
			return err
		}
	}
	run := number32(meta.Get(metaRun))
	if run >= maxRun {
		return errors.New("it has no runs left")
	}
	if o.resumed = run > 0; o.resumed {
		run++
		o.heldRun = run
	}
	o.run = run + 1
	o.store = fmt.Sprintf("%s.%d", random, o.run)
	for r := max(o.heldRun, 1); r <= o.run; r++ {
		if err := tx.Bucket(bucketRuns).Put(binary.BigEndian.AppendUint32(nil, r), fmt.Appendf(nil, "%s.%d", random, r)); err != nil {
			return err
		}
	}
	return meta.Put(metaRun, binary.BigEndian.AppendUint32(nil, o.run))
}

// loadLog makes the queues of what is on disk.
func (o *Outbox) loadLog(tx *bolt.Tx) error {
	runs := tx.Bucket(bucketRuns)
	cursors := tx.Bucket(bucketCursor)
	used := map[uint32]bool{o.run: true, o.heldRun: true}
	// Only a power cut makes a server forget, and then it is another boot.
	boot := tx.Bucket(bucketMeta).Get(metaBoot)
	sameBoot := o.options.BootID != "" && string(boot) == o.options.BootID
	taken := make(map[devices.ID]place)
	if sameBoot {
		err := tx.Bucket(bucketTaken).ForEach(func(k, v []byte) error {
			if p, ok := parsePlace(v); ok {
				taken[devices.ID(k)] = p
			}
			return nil
		})
		if err != nil {
			return err
		}
	} else {
		err := tx.DeleteBucket(bucketTaken)
		if err == nil {
			_, err = tx.CreateBucket(bucketTaken)
		}
		if err := errors.Join(err, tx.Bucket(bucketMeta).Put(metaBoot, []byte(o.options.BootID))); err != nil {
			return err
		}
	}
	if err := o.loadHeld(tx, used); err != nil {
		return err
	}
	err := tx.Bucket(bucketLog).ForEach(func(k, v []byte) error {
		device, run, first, ok := parseRowKey(k)
		if !ok {
			return nil
		}
		last := first + uint64(rowCount(v)) - 1
		if p, ok := parsePlace(cursors.Get([]byte(device))); ok && run == p.run && first <= p.seq {
			first = p.seq + 1
		}
		if p, ok := taken[device]; ok && !p.before(place{run, first}) {
			if run < p.run {
				first = last + 1
			} else {
				first = p.seq + 1
			}
		}
		if first > last {
			return nil
		}
		used[run] = true
		q := o.queue(device)
		q.extend(run, first, last)
		o.enqueue(q)
		return nil
	})
	if err != nil {
		return err
	}
	for device, p := range taken {
		o.tidy = append(o.tidy, settled{o.queue(device), p, time.Now()})
	}
	var unused [][]byte
	err = runs.ForEach(func(k, v []byte) error {
		if run := number32(k); used[run] {
			o.runs[run] = string(v)
		} else {
			unused = append(unused, k)
		}
		return nil
	})
	for _, k := range unused {
		err = errors.Join(err, runs.Delete(k))
	}
	return err
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
