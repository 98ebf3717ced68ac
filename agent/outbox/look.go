package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/porchlight-iot/porchlight/devices"
)

// lookRows is how many rows are read in one transaction: a long one would keep
// the pages that are freed meanwhile.
const lookRows = 100

// A Reader looks into a store and changes nothing. Its methods may be called
// from any goroutine.
type Reader struct {
	db     *bolt.DB
	path   string
	outbox *Outbox // at work on it; nil if none is
}

// OpenReader opens the store at path to look into it. The error is [ErrLocked]
// while a gateway has it. The caller closes it.
func OpenReader(path string) (*Reader, error) {
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = ErrLocked
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open the outbox %s: %w", path, err)
	}
	r := &Reader{db: db, path: path}
	err = r.view(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			return errors.New("it is not an outbox")
		}
		if version(meta.Get(metaVersion)) > schemaVersion {
			return ErrNewer
		}
		return nil
	})
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("cannot read the outbox %s: %w", path, err)
	}
	return r, nil
}

// Close ends the reader of [OpenReader].
func (r *Reader) Close() error { return r.db.Close() }

// view reads in one transaction. A card that cannot be read, or is damaged, is
// an error here: who looks must not end a gateway at work.
func (r *Reader) view(fn func(tx *bolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot read the file: %v", p)
		}
	}()
	return r.db.View(fn)
}

// Reader looks into the store while it is at work. What is in memory only is
// not seen.
func (o *Outbox) Reader() *Reader { return &Reader{o.db, o.db.Path(), o} }

// Contents is what a store holds.
type Contents struct {
	Devices   []DeviceContents `json:"devices"`
	Notes     int              `json:"notes"` // events that wait
	UsedBytes int64            `json:"usedBytes"`
	FileBytes int64            `json:"fileBytes"`
}

// DeviceContents is what a store holds of one device.
type DeviceContents struct {
	Device devices.ID `json:"device"`
	Disk   int        `json:"disk"`             // readings on disk
	Held   int        `json:"held"`             // of them those that may be at the server already
	Bytes  int64      `json:"bytes"`            // of the rows they are in
	Memory int        `json:"memory"`           // readings not on disk
	Oldest *time.Time `json:"oldest,omitempty"` // time of the oldest on disk
}

// Contents counts what is in the file.
func (r *Reader) Contents() (Contents, error) {
	var c Contents
	count := make(map[devices.ID]*DeviceContents)
	of := func(id devices.ID) *DeviceContents {
		if count[id] == nil {
			count[id] = &DeviceContents{Device: id}
		}
		return count[id]
	}
	err := r.eachRow(func(_, k, v []byte, rs []Stored, _ error) error {
		for _, s := range rs {
			d := of(s.Device)
			if d.Disk++; s.Held {
				d.Held++
			}
			if at := s.Time; d.Oldest == nil || at.Before(*d.Oldest) {
				d.Oldest = &at
			}
		}
		if len(rs) > 0 {
			of(rs[0].Device).Bytes += int64(len(k) + len(v))
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	for _, d := range count {
		c.Devices = append(c.Devices, *d)
	}
	slices.SortFunc(c.Devices, func(a, b DeviceContents) int { return bytes.Compare([]byte(a.Device), []byte(b.Device)) })
	err = r.view(func(tx *bolt.Tx) error {
		c.Notes = tx.Bucket(bucketNotes).Stats().KeyN
		c.UsedBytes = usedBytes(tx)
		return nil
	})
	if info, statErr := os.Stat(r.path); statErr == nil {
		c.FileBytes = info.Size()
	}
	return c, err
}

// Oldest gives the time of the oldest reading that waits, as far as it is known;
// zero where none does. It reads a row or two of each device.
func (o *Outbox) Oldest() (time.Time, error) {
	var oldest time.Time
	see := func(t time.Time) {
		if oldest.IsZero() || t.Before(oldest) {
			oldest = t
		}
	}
	var stored []devices.ID
	o.mu.Lock()
	for id, q := range o.queues {
		switch {
		case len(q.disk) > 0:
			stored = append(stored, id)
		case q.unsent() > 0:
			see(q.memory[q.accepted].Time)
		}
	}
	o.mu.Unlock()
	err := o.Reader().view(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketLog).Cursor()
		for _, id := range stored {
			first := append([]byte(id), 0)
			for k, v := c.Seek(first); bytes.HasPrefix(k, first); k, v = c.Next() {
				if rs, err := waiting(tx, bucketLog, k, v); err == nil && len(rs) > 0 {
					see(rs[0].Time)
					break
				}
			}
		}
		return nil
	})
	return oldest, err
}

// A Stored is a reading in the store.
type Stored struct {
	devices.Record
	Store string // which numbered it; "" if it is held
	Held  bool   // it may be at the server already, and has no number
}

// A Fault is something in the file that is not what was written.
type Fault struct {
	Where string `json:"where"`
	What  string `json:"what"`
}

// Each gives all readings that wait, each device's in order, and tells of rows
// that cannot be read. It ends with the first error of reading.
func (r *Reader) Each(reading func(Stored) error, fault func(Fault)) error {
	return r.eachRow(func(bucket, k, _ []byte, rs []Stored, err error) error {
		if err != nil {
			fault(Fault{fmt.Sprintf("%s %q", bucket, k), err.Error()})
		}
		for _, s := range rs {
			if err := reading(s); err != nil {
				return err
			}
		}
		return nil
	})
}

// eachRow gives the rows of readings, and of each those readings that wait, or
// why it cannot be read. It holds no transaction meanwhile.
func (r *Reader) eachRow(visit func(bucket, k, v []byte, rs []Stored, err error) error) error {
	type row struct {
		k, v []byte
		rs   []Stored
		err  error
	}
	for _, bucket := range [][]byte{bucketLog, bucketHeld} {
		var next []byte
		for more := true; more; {
			var rows []row
			err := r.view(func(tx *bolt.Tx) error {
				b := tx.Bucket(bucket)
				if more = false; b == nil {
					return nil
				}
				c := b.Cursor()
				for k, v := c.Seek(next); k != nil; k, v = c.Next() {
					if len(rows) == lookRows {
						next, more = bytes.Clone(k), true
						return nil
					}
					rs, err := waiting(tx, bucket, k, v)
					rows = append(rows, row{bytes.Clone(k), bytes.Clone(v), rs, err})
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("cannot read the outbox: %w", err)
			}
			for _, row := range rows {
				if err := visit(bucket, row.k, row.v, row.rs, row.err); err != nil {
					return err
				}
			}
		}
		if !bytes.Equal(bucket, bucketLog) {
			continue
		}
		journaled, err := r.journaled()
		if err != nil {
			return err
		}
		for _, s := range journaled {
			if err := visit(bucketLog, nil, nil, []Stored{s}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// journaled gives the readings that are in the journal and not in bbolt.
func (r *Reader) journaled() (all []Stored, err error) {
	if r.outbox != nil {
		return r.outbox.journaledReadings(), nil
	}
	f, err := os.Open(journalPath(r.path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("cannot read the journal: %w", err)
	}
	defer f.Close()
	err = r.view(func(tx *bolt.Tx) error {
		generation, known := parseGeneration(lookup(tx, bucketMeta, metaJournal))
		if !known {
			return nil // written by a version without
		}
		batches, err := readBatches(f, generation)
		random := string(lookup(tx, bucketMeta, metaRandom))
		for _, b := range batches {
			if !strings.HasPrefix(b.store, random+".") {
				continue
			}
			for _, p := range b.puts {
				device, run, _, ok := parseRowKey(p.key)
				if p.bucket != journalLog || !ok {
					continue
				}
				rs, err := decodeRow(bucketLog, p.key, p.value)
				if err != nil {
					return err
				}
				settled, some := parsePlace(lookup(tx, bucketCursor, []byte(device)))
				for _, r := range rs {
					if !some || settled.before(place{run, r.Seq}) {
						all = append(all, Stored{Record: r, Store: b.store})
					}
				}
			}
		}
		return err
	})
	return all, err
}

func (o *Outbox) journaledReadings() (all []Stored) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, q := range o.queues {
		for i := q.accepted; i < q.journaled; i++ {
			all = append(all, Stored{Record: q.memory[i].Record, Store: o.store})
		}
	}
	return all
}

// Notes gives the notes that wait.
func (r *Reader) Notes() ([]Note, error) {
	var n notes
	err := r.view(func(tx *bolt.Tx) error {
		if number32(tx.Bucket(bucketMeta).Get(metaVersion)) == 1 {
			return nil // whose values have no CRC
		}
		return n.load(table{Bucket: tx.Bucket(bucketNotes), name: bucketNotes})
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the outbox: %w", err)
	}
	return n.list, nil
}

// lookup gives the value of a key; nil too where it is damaged.
func lookup(tx *bolt.Tx, bucket, key []byte) []byte {
	b := tx.Bucket(bucket)
	if b == nil {
		return nil
	}
	if number32(tx.Bucket(bucketMeta).Get(metaVersion)) == 1 {
		return b.Get(key)
	}
	return table{Bucket: b, name: bucket}.get(key)
}

// waiting gives the readings of a row that are not settled.
func waiting(tx *bolt.Tx, bucket, k, v []byte) ([]Stored, error) {
	device, run, _, ok := parseRowKey(k)
	if !ok {
		return nil, errors.New("the key is damaged")
	}
	rs, err := decodeRow(bucket, k, v)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(bucket, bucketHeld) {
		out := make([]Stored, len(rs))
		for i, r := range rs {
			r.Seq = 0
			out[i] = Stored{Record: r, Held: true}
		}
		return out, nil
	}
	store := string(lookup(tx, bucketRuns, k[len(device)+1:len(device)+5]))
	if store == "" {
		return nil, fmt.Errorf("run %d has no name", run)
	}
	settled, some := parsePlace(lookup(tx, bucketCursor, []byte(device)))
	var out []Stored
	for _, r := range rs {
		if !some || settled.before(place{run, r.Seq}) {
			out = append(out, Stored{Record: r, Store: store})
		}
	}
	return out, nil
}

// Verify reads everything: the file's structure, each row's check sum, and
// that no number comes twice. It gives how many readings are well.
func (r *Reader) Verify() (readings int, faults []Fault, err error) {
	err = r.view(func(tx *bolt.Tx) error {
		broken, err := r.verify(tx)
		if err != nil {
			return err
		}
		if broken != nil {
			faults = append(faults, Fault{"the file", broken.Error()})
		}
		for _, name := range buckets() {
			old := number32(tx.Bucket(bucketMeta).Get(metaVersion)) == 1
			if b := tx.Bucket(name); b == nil || old || isRows(name) {
				continue
			} else if err := b.ForEach(func(k, v []byte) error {
				if _, ok := unsealed(name, k, v); !ok {
					faults = append(faults, Fault{fmt.Sprintf("%s %q", name, k), "the value is damaged"})
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, nil, fmt.Errorf("cannot read the outbox: %w", err)
	}
	last := make(map[string]uint64)
	err = r.Each(func(s Stored) error {
		readings++
		key := string(s.Device) + " " + s.Store
		if !s.Held && s.Seq <= last[key] {
			faults = append(faults, Fault{fmt.Sprintf("%s %s", s.Device, s.Store), fmt.Sprintf("number %d comes after %d", s.Seq, last[key])})
		}
		last[key] = s.Seq
		return nil
	}, func(f Fault) { faults = append(faults, f) })
	return readings, faults, err
}

// verify gives what is wrong with the file as a transaction sees it. The
// library's Check may not run beside one who writes.
func (r *Reader) verify(tx *bolt.Tx) (broken, err error) {
	f, err := os.Open(r.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int64(r.db.Info().PageSize)
	_, broken = verify(f, meta{
		pageSize: size, pages: uint64(tx.Size() / size), transaction: uint64(tx.ID()),
		root: uint64(tx.Cursor().Bucket().Root()),
	})
	return broken, nil
}

// Waiting counts the readings of each device that are not on disk.
func (o *Outbox) Waiting() map[devices.ID]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := make(map[devices.ID]int)
	for id, q := range o.queues {
		if k := q.unsafe(); k > 0 {
			n[id] = k
		}
	}
	return n
}
