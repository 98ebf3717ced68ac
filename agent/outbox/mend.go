package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A Recovery says what was wrong with a file that a crash left, and what
// became of it.
type Recovery struct {
	Fault    string // the first that was found
	Faults   int
	Reverted bool   // the last transaction was taken back, and the file is well
	Aside    string // otherwise, where the file is now
	Salvaged int    // and how many entries could be taken over from it
}

// String tells it to people.
func (r Recovery) String() string {
	if r.Reverted {
		return fmt.Sprintf("the store was damaged (%s); its last change was taken back", r.Fault)
	}
	return fmt.Sprintf("the store was damaged (%s; %d faults) and is set aside as %s; %d entries were saved", r.Fault, r.Faults, filepath.Base(r.Aside), r.Salvaged)
}

// keepAside is how many damaged files are kept.
const keepAside = 2

// cleanMark is the end of the name of a file that says that the store was
// closed in order. It needs not be read through then.
const cleanMark = ".clean"

// mend looks through a file that was not closed in order, before bbolt opens
// it, and repairs what it can: it takes back the last transaction, or sets the
// file aside and makes a new one of what can be read of it. It gives nil where
// nothing was wrong. Errors of reading are no damage.
func mend(path string, size int64) (*Recovery, error) {
	err := os.Remove(path + cleanMark)
	if err == nil {
		return nil, syncDir(filepath.Dir(path))
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close() // which ends the lock
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrLocked
	} else if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m, err := readImage(f, info.Size())
	if err != nil {
		return nil, err
	}
	r := &Recovery{Fault: "it is no store", Faults: 1}
	for i, meta := range m.metas {
		var faults []error
		newer := false
		// What must be there: bbolt has no check sum for the names of things.
		missing := map[string]bool{"version": true, "run": true, "random": true}
		for _, b := range buckets()[:7] {
			missing["bucket "+string(b)] = true
		}
		err := m.walk(meta, func(bucket, key, value []byte) {
			switch {
			case key == nil:
				delete(missing, "bucket "+string(bucket))
			case !bytes.Equal(bucket, bucketMeta):
			case bytes.Equal(key, metaVersion):
				newer = number32(value) > schemaVersion
				delete(missing, "version")
			case bytes.Equal(key, metaRun) && len(value) == 4:
				delete(missing, "run")
			case bytes.Equal(key, metaRandom) && len(value) > 0:
				delete(missing, "random")
			}
		}, func(fault error) { faults = append(faults, fault) })
		for _, what := range slices.Sorted(maps.Keys(missing)) {
			faults = append(faults, damage("there is no %s", what))
		}
		switch {
		case err != nil:
			return nil, err
		case newer:
			return nil, ErrNewer
		case len(faults) == 0 && i == 0 && len(m.metas) == 2:
			return nil, nil
		case len(faults) == 0 && i == 0:
			// bbolt goes by the other one.
			return &Recovery{Fault: "one of the two meta pages cannot be read", Faults: 1, Reverted: true}, nil
		case len(faults) == 0:
			r.Reverted = true
			return r, m.revert(f)
		case i == 0:
			r.Fault, r.Faults = faults[0].Error(), len(faults)
		}
	}
	return r, r.salvage(path, size, m)
}

// salvage makes a new store of what can be read of a file, and sets that
// aside.
func (r *Recovery) salvage(path string, size int64, m *image) error {
	made := path + ".new"
	db, err := newFile(made, size)
	if err != nil {
		return err
	}
	err = r.copy(db, m)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if r.Aside, err = nextAside(path); err != nil {
		return err
	}
	// At no moment is there no store.
	if err := os.Link(path, r.Aside); err != nil {
		return err
	}
	if err := os.Rename(made, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// copy takes over all keys as they are: a row that is damaged is found when it
// is its turn to be sent, and told as lost. What names the store is made new.
func (r *Recovery) copy(db *bolt.DB, m *image) error {
	if len(m.metas) == 0 {
		return nil
	}
	type entry struct{ bucket, key, value []byte }
	var some []entry
	run := uint32(0)
	var failed error
	flush := func() {
		if failed != nil {
			return
		}
		failed = db.Update(func(tx *bolt.Tx) error {
			for _, e := range some {
				b := tx.Bucket(e.bucket)
				if err := b.Put(e.key, e.value); err != nil {
					return err
				}
				if n := len(e.key); n == 8 && (bytes.Equal(e.bucket, bucketNotes) || bytes.Equal(e.bucket, bucketOrigin)) {
					if err := b.SetSequence(max(b.Sequence(), binary.BigEndian.Uint64(e.key))); err != nil {
						return err
					}
				} else if bytes.Equal(e.bucket, bucketHeld) {
					if _, _, number, ok := parseRowKey(e.key); ok {
						if err := b.SetSequence(max(b.Sequence(), number)); err != nil {
							return err
						}
					}
				}
			}
			return tx.Bucket(bucketMeta).Put(metaRun, binary.BigEndian.AppendUint32(nil, run))
		})
		r.Salvaged += len(some)
		some = some[:0]
	}
	err := m.walk(m.metas[0], func(bucket, key, value []byte) {
		switch {
		case len(key) == 0 || len(key) > bolt.MaxKeySize:
			return
		case bytes.Equal(bucket, bucketMeta):
			if bytes.Equal(key, metaRun) {
				run = max(run, number32(value))
			}
			if !bytes.Equal(key, metaMachine) && !bytes.Equal(key, metaClock) {
				return
			}
		case !slices.ContainsFunc(buckets(), func(b []byte) bool { return bytes.Equal(b, bucket) }):
			return
		}
		if _, of, _, ok := parseRowKey(key); ok && bytes.Equal(bucket, bucketLog) {
			run = max(run, of)
		}
		some = append(some, entry{bytes.Clone(bucket), bytes.Clone(key), bytes.Clone(value)})
		if len(some) >= 1000 {
			flush()
		}
	}, func(error) {})
	flush()
	return errors.Join(err, failed)
}

// nextAside gives the name under which a damaged file is kept, and removes the
// oldest where there are enough.
func nextAside(path string) (string, error) {
	const infix = ".damaged-"
	old, err := filepath.Glob(path + infix + "*")
	if err != nil {
		return "", err
	}
	var numbers []int
	for _, name := range old {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, path+infix)); err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	next := 1
	if n := len(numbers); n > 0 {
		next = numbers[n-1] + 1
	}
	for ; len(numbers) >= keepAside; numbers = numbers[1:] {
		if err := os.Remove(path + infix + strconv.Itoa(numbers[0])); err != nil {
			return "", err
		}
	}
	return path + infix + strconv.Itoa(next), nil
}

// markClean notes that the store was closed in order.
func markClean(path string) error {
	f, err := os.OpenFile(path+cleanMark, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), syncDir(filepath.Dir(path)))
}

// tellRecovery tells of a damage, and of the readings that it took: those whose
// numbers are missing between others.
func (o *Outbox) tellRecovery() {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := *o.recovery
	o.log.Error(r.String())
	if o.options.RecoveryNote != nil {
		o.addNote(o.options.RecoveryNote(r))
	}
	if r.Reverted {
		return
	}
	for _, q := range o.queues {
		for i := 1; i < len(q.disk); i++ {
			if before, s := q.disk[i-1], q.disk[i]; before.run == s.run && before.last+1 < s.first {
				o.lose(Loss{q.device, o.runs[s.run], before.last + 1, s.first - 1, "the store was damaged", time.Now()})
			}
		}
	}
}
