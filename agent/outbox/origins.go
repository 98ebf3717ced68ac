package outbox

import (
	"encoding/binary"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// rememberOrigins is how many messages are remembered for recognising one
	// that comes again.
	rememberOrigins = 8192
	// storedOrigins is how many of those that are on disk are remembered across
	// a restart: what all protocols together may have under way.
	storedOrigins = 2048
)

// origins remembers the newest messages and their receipts.
type origins struct {
	receipts map[devices.Origin]*receipt
	order    []devices.Origin
	oldest   int

	rows []originRow // on disk, oldest first
	kept int         // origins in rows
}

// An originRow is a row of the origins bucket.
type originRow struct {
	key uint64
	n   int
}

func (o *origins) remember(origin devices.Origin, r *receipt) {
	if _, known := o.receipts[origin]; !known {
		if len(o.order) < rememberOrigins {
			o.order = append(o.order, origin)
		} else {
			delete(o.receipts, o.order[o.oldest])
			o.order[o.oldest] = origin
			o.oldest = (o.oldest + 1) % rememberOrigins
		}
	}
	o.receipts[origin] = r
}

// load takes what the runs before wrote, and puts there what is from the
// journal. A row that is damaged is left out: at worst a message is taken for a
// new one.
func (o *origins) load(t table, journaled []devices.Origin) error {
	done := newReceipt(0)
	err := t.ForEach(func(k, v []byte) error {
		if len(k) != 8 {
			return nil
		}
		row := originRow{key: binary.BigEndian.Uint64(k)}
		all, _ := unsealed(t.name, k, v)
		for ; len(all) >= len(devices.Origin{}); all = all[len(devices.Origin{}):] {
			o.remember(devices.Origin(all[:len(devices.Origin{})]), done)
			row.n++
		}
		o.rows = append(o.rows, row)
		o.kept += row.n
		return nil
	})
	if n := len(o.rows); err == nil && n > 0 {
		err = t.atLeast(o.rows[n-1].key)
	}
	if err != nil || len(journaled) == 0 {
		return err
	}
	for _, origin := range journaled {
		o.remember(origin, done)
	}
	row, gone, err := o.write(t, journaled)
	o.wrote(row, gone)
	return err
}

// write writes the origins of the messages whose readings are written
// in the same transaction, one row a commit, and deletes the oldest rows. It
// gives the origins' row, and how many of the old ones are gone.
func (o *origins) write(t table, fresh []devices.Origin) (row originRow, gone int, err error) {
	kept := o.kept + len(fresh)
	for ; gone < len(o.rows) && kept > storedOrigins; gone++ {
		kept -= o.rows[gone].n
		if err := t.remove(binary.BigEndian.AppendUint64(nil, o.rows[gone].key)); err != nil {
			return originRow{}, 0, err
		}
	}
	key, err := t.NextSequence()
	if err != nil {
		return originRow{}, 0, err
	}
	v := make([]byte, 0, len(devices.Origin{})*len(fresh))
	for _, origin := range fresh {
		v = append(v, origin[:]...)
	}
	return originRow{key, len(fresh)}, gone, t.put(binary.BigEndian.AppendUint64(nil, key), v)
}

// wrote makes memory agree with what write did.
func (o *origins) wrote(row originRow, gone int) {
	for _, r := range o.rows[:gone] {
		o.kept -= r.n
	}
	o.rows = append(o.rows[gone:], row)
	o.kept += row.n
}
