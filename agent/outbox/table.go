package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	bolt "go.etcd.io/bbolt"
)

// A table is a bucket, each value of which begins with the CRC-32C of the
// bucket's name, the key and the rest of the value: what stands where it was
// not written is damage too.
type table struct {
	*bolt.Bucket
	name  []byte
	sum   *uint64
	sight *sight
}

// A cursor looks at pages before it goes there.
type cursor struct {
	*bolt.Cursor
	table table
	at    []byte
}

func (t table) Cursor() *cursor { return &cursor{Cursor: t.Bucket.Cursor(), table: t} }

func (c *cursor) Seek(key []byte) (k, v []byte) {
	c.table.look(key)
	k, v = c.Cursor.Seek(key)
	c.at = k
	return k, v
}

func (c *cursor) Next() (k, v []byte) {
	c.table.look(c.at)
	k, v = c.Cursor.Next()
	c.at = k
	return k, v
}

func (t table) look(key []byte) { t.sight.to(uint64(t.Root()), key) }

// Get gives the value with its CRC.
func (t table) Get(key []byte) []byte {
	t.look(key)
	return t.Bucket.Get(key)
}

// ForEach calls fn for all keys.
func (t table) ForEach(fn func(k, v []byte) error) error {
	t.sight.all(uint64(t.Root()))
	return t.Bucket.ForEach(fn)
}

func crc(parts ...[]byte) uint32 {
	sum := uint32(0)
	for _, p := range parts {
		sum = crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), p)
	}
	return sum
}

// sealed gives the value for a key.
func sealed(bucket, key, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)), crc(bucket, key, payload)), payload...)
}

// unsealed gives what sealed was given. It reports false where the value is
// not what was written.
func unsealed(bucket, key, value []byte) ([]byte, bool) {
	if len(value) < 4 || binary.BigEndian.Uint32(value) != crc(bucket, key, value[4:]) {
		return nil, false
	}
	return value[4:], true
}

// weight is what a value adds to the sum over all values.
func weight(value []byte) uint64 {
	if len(value) < 4 {
		return 0
	}
	return uint64(binary.BigEndian.Uint32(value))
}

// get gives nil too where the value is damaged.
func (t table) get(key []byte) []byte {
	payload, _ := unsealed(t.name, key, t.Get(key))
	return payload
}

func (t table) put(key, payload []byte) error {
	return t.copy(key, sealed(t.name, key, payload))
}

// copy puts a value that has its CRC.
func (t table) copy(key, value []byte) error {
	*t.sum += weight(value) - weight(t.Get(key))
	return t.Put(key, value)
}

// atLeast has the next number of the sequence be higher than one that is in
// use: the sequence has no CRC.
func (t table) atLeast(used uint64) error {
	if t.Sequence() >= used {
		return nil
	}
	return t.SetSequence(used)
}

func (t table) remove(key []byte) error {
	*t.sum -= weight(t.Get(key))
	return t.Delete(key)
}

// disordered is the error of a table whose keys are not where they belong: they
// were damaged while the file was open, which a start mends.
func disordered(name []byte) error {
	return fmt.Errorf("the keys of %s are not in order: the file was damaged while it was open", name)
}

// A writing is a transaction that writes. It keeps the sum of the CRCs of all
// values but those of meta: a card that brings back an old page, which is whole
// in itself, is caught by it.
type writing struct {
	tx    *bolt.Tx
	sum   uint64
	sight *sight // nil where the file was looked through just now
}

func (w *writing) table(name []byte) table {
	b := w.tx.Bucket(name)
	if bytes.Equal(name, bucketLog) {
		b.FillPercent = 0.9 // rows come in order
	}
	return table{b, name, &w.sum, w.sight}
}

// empty deletes all keys of a table.
func (t table) empty() error {
	var keys [][]byte
	err := t.ForEach(func(k, _ []byte) error {
		keys = append(keys, bytes.Clone(k))
		return nil
	})
	for _, k := range keys {
		err = errors.Join(err, t.remove(k))
	}
	return err
}

func (w *writing) begin() { w.sum, _ = parseSum(w.meta().get(metaSum)) }

// end makes the sum good. With it goes the number of the transaction, so that
// an old tree is known by it. The sequence of meta is that number too: a root
// tells of itself which is newer where no meta page is left.
func (w *writing) end() error {
	meta, transaction := w.meta(), uint64(w.tx.ID())
	sum := binary.BigEndian.AppendUint64(nil, w.sum)
	return errors.Join(
		meta.put(metaSum, binary.BigEndian.AppendUint64(sum, transaction)),
		meta.SetSequence(transaction))
}

// parseSum gives zeros where there is none.
func parseSum(b []byte) (sum, transaction uint64) {
	if len(b) != 16 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
}

// meta is not in the sum, which it holds.
func (w *writing) meta() table {
	return table{w.tx.Bucket(bucketMeta), bucketMeta, new(uint64), w.sight}
}
