package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
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
	db   *bolt.DB
	path string
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
	r := &Reader{db, path}
	err = db.View(func(tx *bolt.Tx) error {
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

// Reader looks into the store while it is at work. What is in memory only is
// not seen.
func (o *Outbox) Reader() *Reader { return &Reader{o.db, o.db.Path()} }

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
	err = r.db.View(func(tx *bolt.Tx) error {
		c.Notes = tx.Bucket(bucketNotes).Stats().KeyN
		c.UsedBytes = usedBytes(tx)
		return nil
	})
	if info, statErr := os.Stat(r.path); statErr == nil {
		c.FileBytes = info.Size()
	}
	return c, err
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
			err := r.db.View(func(tx *bolt.Tx) error {
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
	}
	return nil
}

// Notes gives the notes that wait.
func (r *Reader) Notes() ([]Note, error) {
	var n notes
	err := r.db.View(func(tx *bolt.Tx) error {
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
	err = r.db.View(func(tx *bolt.Tx) error {
		for broken := range tx.Check() {
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

// Waiting counts the readings of each device that are not on disk.
func (o *Outbox) Waiting() map[devices.ID]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := make(map[devices.ID]int)
	for id, q := range o.queues {
		if k := q.unsent(); k > 0 {
			n[id] = k
		}
	}
	return n
}
