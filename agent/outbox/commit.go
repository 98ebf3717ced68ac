package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"sort"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// preparedPacks is how many packs of one device are frozen on disk at once, so
// that a backlog does not need a commit for each; preparedTotal bounds them
// over all devices, for the memory's sake.
const (
	preparedPacks = 32
	preparedTotal = 512
	// preparedRooms bounds them as a multiple of the room: while the link is
	// slow, or its speed not known, few are frozen at its measure.
	preparedRooms = 2
)

// commitLoop is the committer: it alone writes.
func (o *Outbox) commitLoop() {
	defer close(o.done)
	defer o.pulse.Rest()
	// The file is mapped into memory: a disk that cannot be read is a fault of
	// an address.
	debug.SetPanicOnFault(true)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		o.pulse.Busy()
		o.mu.Lock()
		wait, closed := o.due(), o.closed
		o.mu.Unlock()
		if closed {
			o.commit()
			return
		}
		if gap := minCommitGap - time.Since(last); wait < gap {
			wait = gap
		}
		if wait <= 0 {
			o.commit()
			last = time.Now()
			continue
		}
		timer.Reset(wait)
		o.pulse.Rest()
		select {
		case <-timer.C:
		case <-o.kick:
		}
	}
}

// due tells in how long a commit is to be made, zero or less being now.
func (o *Outbox) due() time.Duration {
	const never = time.Duration(math.MaxInt64)
	if o.failed != nil {
		return never
	}
	if o.urgent || o.memory >= commitBytes {
		return 0
	}
	wait := never
	if o.journaled() {
		wait = min(wait, checkpoints*o.options.CommitAfter-time.Since(o.journal.began))
	}
	// What waits has the committer look again in time for whatever comes later.
	// Where nothing does, what comes next has to wake it.
	o.fresh = false
	for q := range o.waiting {
		if len(q.memory) > q.journaled {
			wait = min(wait, o.options.CommitAfter-time.Since(q.memory[q.journaled].came))
			o.fresh = true
		}
		if came, any := q.unwrittenHeld(); any {
			wait = min(wait, o.options.CommitAfter-time.Since(came))
			o.fresh = true
		}
	}
	if len(o.notes.unwritten()) > 0 {
		wait = min(wait, o.options.CommitAfter-time.Since(o.notes.came))
	}
	wait = min(wait, o.countsDue())
	if len(o.tidy) > 0 {
		wait = min(wait, o.tidyWait()-time.Since(o.tidy[0].at))
	}
	return wait
}

// tidyWait is when what was settled is a reason to commit.
func (o *Outbox) tidyWait() time.Duration {
	if o.options.Ack == AckDisk {
		return tidyKept
	}
	return tidyAfter
}

// journaled reports whether readings are in the journal that are not in bbolt.
func (o *Outbox) journaled() bool {
	for q := range o.waiting {
		if q.journaled > 0 {
			return true
		}
	}
	return false
}

// light reports whether a commit may go to the journal alone: it has readings
// only, and the journal is not due for a checkpoint.
func (o *Outbox) light() bool {
	switch {
	case o.journal.file == nil, o.closed, o.saving, o.memory >= commitBytes, len(o.notes.unwritten()) > 0, o.countsDue() <= 0:
		return false
	case len(o.tidy) > 0 && time.Since(o.tidy[0].at) >= o.tidyWait():
		return false
	case o.journaled() && time.Since(o.journal.began) >= checkpoints*o.options.CommitAfter:
		return false
	}
	for q := range o.waiting {
		if _, unwritten := q.unwrittenHeld(); unwritten || q.found != nil || q.freezable() {
			return false
		}
	}
	return true
}

// A job is what one commit does for one queue.
type job struct {
	queue      *queue
	entries    []entry // all of memory,
	journaled  int     // and how many of it are in the journal
	boundaries []memoryBoundary
	frozen     []*Pack // made of entries, whose boundaries are among those
	splits     int
	accepted   place // up to which the server has accepted of entries, where the journal should know
	wanted     bool
	freeze     bool   // packs are to be made of what is on disk,
	disk       []span // which is this,
	settled    place  // of which nothing is sent any more up to here,
	unfreeze   bool   // and not within the boundaries that are on disk
	limit      int
	held       *resolution // nil where nothing is held

	prepared []*Pack
	toldThin place  // up to which it is known what was thinned out,
	thinned  []Loss // which is this
}

// records gives what is to be written of a queue's memory from an index on. The
// store itself will know the origins of what did not go out before that.
func (j *job) records(from int) []devices.Record {
	frozen := j.frozenUntil()
	rs := make([]devices.Record, 0, len(j.entries)-from)
	for _, e := range j.entries[from:] {
		r := e.Record
		if r.Seq > frozen {
			r.Origin = devices.Origin{}
		}
		rs = append(rs, r)
	}
	return rs
}

// frozenUntil is the highest number that went out, or may be out.
func (j *job) frozenUntil() (last uint64) {
	for _, b := range j.boundaries {
		last = max(last, b.last)
	}
	return last
}

// A commit is all that is written at once.
type commit struct {
	light    bool // to the journal, and not to bbolt
	jobs     []*job
	tidy     []settled
	states   map[devices.ID][]byte
	taken    map[devices.ID]place // up to which the server has accepted what is kept
	told     []uint64             // notes that are not wanted any more
	used     int64                // bytes of the file, before
	thinned  []thinning           // to make room,
	uncount  []func()             // which is counted already
	dropped  []deviceSpan         // or gone for that
	stamped  bool                 // readings are written that wait for their time
	lastNote uint64
	counted  []proof.Change

	generation uint64 // of the journal, from then on

	origins     []devices.Origin // of what is written
	originRow   originRow
	originsGone int
}

// commit writes what is to be written, in one batch or one transaction. An
// error ends all writing: after a failed fdatasync nobody knows what the disk
// holds, and trying again on the same file may say that all is well where it is
// not.
func (o *Outbox) commit() {
	o.mu.Lock()
	if o.failed != nil {
		o.mu.Unlock()
		return
	}
	c := o.gather()
	o.mu.Unlock()
	if c == nil {
		return
	}
	crashpoint.At(crashpoint.CommitGathered)
	var err error
	if c.light {
		if o.journalize(c); o.journal.fits() {
			err = o.journal.write()
			crashpoint.At(crashpoint.JournalSynced)
		} else {
			o.mu.Lock()
			o.gatherRest(c)
			o.mu.Unlock()
		}
	}
	if !c.light {
		err = o.transact(c)
		crashpoint.At(crashpoint.Committed)
	}
	defer crashpoint.At(crashpoint.CommitApplied)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err != nil:
		o.fail(c, fmt.Errorf("cannot write the outbox: %w", err))
	case c.light:
		o.stats.Batches++
		o.applyLight(c)
	default:
		o.stats.Commits++
		o.stats.UsedBytes = c.used
		o.apply(c)
	}
}

// transact writes a full commit.
func (o *Outbox) transact(c *commit) error {
	write := func(w *writing) error {
		o.retake(c)
		return o.write(w, c)
	}
	err := o.update(write)
	for try := 0; errors.Is(err, bolterrors.ErrMaxSizeReached) && try < 3; try++ {
		// Nothing was written. An uncommon lot came at once: room first, and
		// more where it is in pieces.
		err = o.update(func(w *writing) error {
			o.retake(c)
			return errors.Join(o.evict(w, c, o.options.MaxBytes/4, false), o.writeSmall(w, c))
		})
		if err == nil {
			err = o.update(write)
		}
	}
	if err != nil && !errors.Is(err, errUnsure) {
		o.retake(c)
	}
	return err
}

// retake forgets what a transaction thinned that was taken back.
func (o *Outbox) retake(c *commit) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, uncount := range c.uncount {
		uncount()
	}
	c.thinned, c.uncount = nil, nil
}

// gather takes what is to be done. It gives nil where there is nothing.
func (o *Outbox) gather() *commit {
	c := &commit{light: o.light()}
	fresh := false
	for q := range o.waiting {
		if !c.light {
			o.dropKept(q)
		}
		j := &job{queue: q, entries: q.memory, journaled: q.journaled, wanted: q.wants}
		// What will go out next gets its boundary at once, for one sync instead
		// of two: that is where packs are answered, and where nothing may go out
		// that is not on disk.
		wants := q.wants || q.out || q.answered || q.diskFirst && q.sending == nil
		if wants && q.unsent() > 0 && len(q.disk) == 0 && !q.blocked() && len(q.prepared) == 0 {
			j.frozen, j.splits = o.freezeJournaled(q), q.splits
		}
		j.boundaries = append(j.boundaries, q.inMemory...)
		if o.options.Ack == AckDisk && q.accepted > 0 && q.memory[q.accepted-1].Seq > q.took {
			j.accepted = place{o.run, q.memory[q.accepted-1].Seq}
		}
		for i, e := range q.memory {
			c.stamped = c.stamped || e.Stamp != ""
			if i >= q.journaled && e.Origin != (devices.Origin{}) && (i == 0 || e.Origin != q.memory[i-1].Origin) {
				c.origins = append(c.origins, e.Origin)
			}
		}
		fresh = fresh || j.journaled < len(j.entries) || len(j.frozen) > 0 || j.wanted
		c.jobs = append(c.jobs, j)
	}
	o.urgent, o.fresh = false, false
	if !c.light {
		if o.gatherRest(c); len(c.jobs) == 0 && len(c.tidy) == 0 && len(o.notes.unwritten()) == 0 && !o.closed && !o.saving && o.countsDue() > 0 {
			return nil
		}
		o.saving = false
	} else if !fresh {
		return nil
	}
	for _, j := range c.jobs {
		j.queue.committing = len(j.entries)
	}
	return c
}

// gatherRest has a commit be a full one, and takes what only those do.
func (o *Outbox) gatherRest(c *commit) {
	c.light, c.states = false, make(map[devices.ID][]byte)
	c.origins = append(o.journal.origins[:len(o.journal.origins):len(o.journal.origins)], c.origins...)
	wanting := 0
	for _, j := range c.jobs {
		if j.queue.wants {
			wanting++
		}
	}
	// To evict row by row of what is kept would leave parts of packs.
	full := o.stats.UsedBytes > o.options.MaxBytes/2
	if full {
		for _, q := range o.queues {
			if p := q.doubt(); p != (place{}) {
				o.resolveDoubt(q, p)
			}
		}
	}
	for _, j := range c.jobs {
		q := j.queue
		j.wanted, j.held, j.unfreeze, j.limit = q.wants, q.resolution(), q.unfreeze, q.limit
		j.freeze = q.freezable()
		if j.freeze {
			j.disk, j.settled = append(j.disk, q.disk...), q.settled
			j.prepared = make([]*Pack, 0, max(1, min(preparedPacks, preparedTotal/wanting)))
		}
		if j.held != nil && j.held.found != nil {
			for _, h := range j.held.held {
				c.origins = append(c.origins, h.Origin)
			}
		}
	}
	for len(o.tidy) > 0 && (o.options.Ack == AckServer || full || time.Since(o.tidy[0].at) >= keepSettled) {
		s := o.tidy[0]
		c.tidy, o.tidy = append(c.tidy, s), o.tidy[1:]
		if s.queue.forgotten.before(s.place) {
			s.queue.forgotten = s.place
		}
	}
	if o.options.Ack == AckDisk {
		c.taken = make(map[devices.ID]place)
		for _, s := range o.tidy {
			c.taken[s.queue.device] = s.place
		}
	}
	if o.countsWanted() {
		o.counts.book.Over(o.keeps())
	}
	c.told, o.notes.settled = o.notes.settled, nil
	for device, s := range o.states {
		if s.dirty {
			c.states[device] = s.value
			o.states[device] = stateRow{value: s.value}
		}
	}
}

// usedBytes is how much of the file is in use; the file itself never shrinks.
func usedBytes(tx *bolt.Tx) int64 {
	s := tx.DB().Stats()
	return tx.Size() - int64(s.FreePageN+s.PendingPageN)*int64(tx.DB().Info().PageSize)
}

// update makes one transaction. An error of reading the card is a fault of
// memory, because the file is mapped; it becomes an error here.
func (o *Outbox) update(fn func(w *writing) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if o.file != nil {
		// bbolt would go on with the older one, and hang where neither is left.
		metas, err := readMetas(o.file)
		if err == nil && (len(metas) == 0 || metas[0].transaction != o.transaction) {
			err = damaged("the newest meta page is gone")
		}
		if err != nil {
			return fmt.Errorf("cannot read the file: %w", err)
		}
	}
	tx, err := o.db.Begin(true)
	if err != nil {
		return err
	}
	id := tx.ID()
	defer func() {
		if err != nil && o.shows(id) {
			err = fmt.Errorf("%w: %w", errUnsure, err)
		}
	}()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot read the file: %v", p)
			// Not as bbolt does it in Update, which reads all of the file
			// again, in a goroutine that nobody can recover.
			tx.Rollback()
		}
	}()
	w := &writing{tx: tx}
	if o.file != nil {
		size := int64(o.db.Info().PageSize)
		w.sight = newSight(&pages{o.file, boltOrder(), size, uint64(tx.Size() / size)}, uint64(tx.Cursor().Bucket().Root()))
	}
	w.begin()
	if err := fn(w); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := w.end(); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	o.transaction = uint64(id)
	return nil
}

// errUnsure says that a transaction failed when all of it was written: its last
// sync did, and nobody knows whether a start finds it.
var errUnsure = errors.New("it is not known what the disk has")

// shows reports whether a transaction, which failed, is seen all the same. A
// file that cannot be read may show anything.
func (o *Outbox) shows(id int) (seen bool) {
	defer func() { seen = seen || recover() != nil }()
	tx, err := o.db.Begin(false)
	if err != nil {
		return false // closed, so that nothing was written
	}
	seen = tx.ID() >= id
	return tx.Rollback() != nil || seen
}

func (o *Outbox) write(w *writing, c *commit) error {
	for _, j := range c.jobs {
		if err := o.writeReadings(w, j); err != nil {
			return err
		}
		if j.held != nil {
			if err := o.writeHeld(w, j); err != nil {
				return err
			}
			crashpoint.At(crashpoint.HeldPut)
		}
	}
	if len(c.origins) > 0 {
		var err error
		if c.originRow, c.originsGone, err = o.origins.write(w.table(bucketOrigin), c.origins); err != nil {
			return err
		}
	}
	crashpoint.At(crashpoint.ReadingsPut)
	for _, s := range c.tidy {
		if err := forget(w, s.queue.device, s.place); err != nil {
			return err
		}
		crashpoint.At(crashpoint.SettledForgotten)
	}
	for device, p := range c.taken {
		t := w.table(bucketTaken)
		if old, boot, ok := parseTaken(t.get([]byte(device))); ok && boot == o.options.BootID && !old.before(p) {
			continue
		}
		if err := t.put([]byte(device), o.takenRow(p)); err != nil {
			return err
		}
	}
	// What is freed can be used by the next transaction only, so that there
	// must be room for this one besides.
	c.used = usedBytes(w.tx)
	if full := o.options.MaxBytes/8*7 - 2*commitBytes; c.used > full {
		if err := o.evict(w, c, c.used-full+max(o.options.MaxBytes/evictStep, commitBytes), true); err != nil {
			return err
		}
	}
	for _, j := range c.jobs {
		if j.freeze {
			if err := o.prepare(w, j); err != nil {
				return err
			}
			crashpoint.At(crashpoint.PacksPrepared)
		}
	}
	c.generation = o.journal.generation + 1
	err := errors.Join(o.writeSmall(w, c), w.meta().put(metaJournal, binary.BigEndian.AppendUint64(nil, c.generation)))
	crashpoint.At(crashpoint.Committing)
	return err
}

// writeSmall writes all but readings. It is called last, because what was lost
// just now is told in the same transaction.
func (o *Outbox) writeSmall(w *writing, c *commit) error {
	for device, value := range c.states {
		if err := w.table(bucketState).put([]byte(device), value); err != nil {
			return err
		}
		crashpoint.At(crashpoint.StatesPut)
	}
	if o.options.State != nil {
		if state := o.options.State(c.stamped); state != nil {
			if err := w.meta().put(metaClock, state); err != nil {
				return err
			}
		}
	}
	if err := o.writeCounts(w, c); err != nil {
		return err
	}
	o.mu.Lock()
	fresh := append([]Note(nil), o.notes.unwritten()...)
	c.lastNote = o.notes.last
	o.mu.Unlock()
	err := writeNotes(w, fresh, c.lastNote, c.told)
	if len(fresh) > 0 {
		crashpoint.At(crashpoint.NotesPut)
	}
	return err
}

// writeReadings adds a device's readings to its newest row, or makes rows.
func (o *Outbox) writeReadings(w *writing, j *job) error {
	if len(j.entries) == 0 {
		return nil
	}
	packs := w.table(bucketPacks)
	for _, b := range j.boundaries {
		if err := packs.put(rowKey(j.queue.device, b.run, b.first), b.bytes()); err != nil {
			return err
		}
		crashpoint.At(crashpoint.BoundariesPut)
	}
	return addToLog(w.table(bucketLog), j.queue.device, o.run, j.records(0))
}

// addToLog adds readings, whose numbers rise by one, to the row that ends just
// before them, or makes rows.
func addToLog(log table, device devices.ID, run uint32, rs []devices.Record) error {
	key, before := newestRow(log, device, run, rs[0].Seq)
	row := newRow()
	for _, r := range before {
		row.add(r)
	}
	if key == nil {
		key = rowKey(device, run, rs[0].Seq)
	}
	return putRows(log, device, run, key, row, rs)
}

// putRows writes readings, whose numbers rise by one, to a row that may have
// others before them, and to rows after it.
func putRows(log table, device devices.ID, run uint32, key []byte, row *rowEncoder, rs []devices.Record) error {
	for _, r := range rs {
		if row.add(r) {
			continue
		}
		if err := log.put(key, row.payload); err != nil {
			return err
		}
		key, row = rowKey(device, run, r.Seq), newRow()
		row.add(r)
	}
	return log.put(key, row.payload)
}

// newestRow finds the row of a device and run that ends just before next, and
// gives its readings where more fit in.
func newestRow(log table, device devices.ID, run uint32, next uint64) (key []byte, rs []devices.Record) {
	k, v := rowUpTo(log.Cursor(), device, place{run, next - 1})
	d, r, first, ok := parseRowKey(k)
	if !ok || d != device || r != run || rowSpan(run, first, v).last+1 != next || len(v) >= maxRow || rowLevel(v) > 0 {
		return nil, nil
	}
	rs, err := decodeRow(bucketLog, k, v)
	if err != nil {
		return nil, nil // its loss is told when it is read
	}
	return bytes.Clone(k), rs
}

// forget deletes a device's rows and boundaries up to a place, and remembers
// the place: a row may go on beyond it, and where the file is damaged old
// pages may bring deleted rows back.
func forget(w *writing, device devices.ID, p place) error {
	cursors := w.table(bucketCursor)
	if at, ok := parsePlace(cursors.get([]byte(device))); ok && p.before(at) {
		return nil // as of the bucket of what was accepted, which may be older
	}
	err := deleteWhile(w.table(bucketLog), device, place{}, func(run uint32, first uint64, row []byte) bool {
		return !p.before(place{run, rowSpan(run, first, row).last})
	})
	if err != nil {
		return err
	}
	err = deleteWhile(w.table(bucketPacks), device, place{}, func(run uint32, first uint64, _ []byte) bool {
		return !p.before(place{run, first})
	})
	if err != nil {
		return err
	}
	return cursors.put([]byte(device), p.bytes())
}

// deleteWhile deletes a device's keys from a place on, as long as ok. It seeks
// anew after each, because Next after a deletion skips a key.
func deleteWhile(t table, device devices.ID, from place, ok func(run uint32, first uint64, v []byte) bool) error {
	start := rowKey(device, from.run, from.seq)
	var last []byte
	c := t.Cursor()
	for k, v := c.Seek(start); k != nil; k, v = c.Seek(start) {
		d, run, first, parsed := parseRowKey(k)
		if !parsed || d != device || !ok(run, first, v) {
			return nil
		}
		if bytes.Compare(k, last) <= 0 {
			return disordered(t.name)
		}
		last = append(last[:0], k...)
		if err := t.remove(k); err != nil {
			return err
		}
	}
	return nil
}

// prepare freezes packs of what is on disk of a device, within the boundaries
// that are on disk already where there are some.
func (o *Outbox) prepare(w *writing, j *job) error {
	j.prepared, j.toldThin, j.thinned = j.prepared[:0], place{}, nil
	packs := w.table(bucketPacks)
	if j.unfreeze {
		// Not those before: what AckDisk keeps may be sent again as it was.
		all := func(uint32, uint64, []byte) bool { return true }
		if err := deleteWhile(packs, j.queue.device, place{j.disk[0].run, j.disk[0].first}, all); err != nil {
			return err
		}
	}
	r := &reader{outbox: o, log: w.table(bucketLog), job: j, at: place{j.disk[0].run, j.disk[0].first}}
	if r.at.before(j.settled.next()) {
		r.at = j.settled.next() // what is missing before is no reason to read it again
	}
	now := time.Now().Truncate(time.Microsecond)
	room, prepared := int(o.room.Load()), 0
	for len(j.prepared) < cap(j.prepared) && (room == 0 || prepared < preparedRooms*room) {
		rs, err := r.fill()
		if err != nil {
			return err
		}
		if len(rs) == 0 {
			return nil
		}
		run, first, from := r.run, rs[0].Seq, r.from
		key := rowKey(j.queue.device, run, first)
		limit := room
		b, frozen := parseBoundary(run, first, packs.get(key))
		if frozen && b.last <= rs[len(rs)-1].Seq {
			rs = rs[:sort.Search(len(rs), func(i int) bool { return rs[i].Seq > b.last })]
			limit = 0
		} else {
			b.frozen, b.dating = now, o.date(rs)
			if j.limit > 0 && len(rs) > j.limit {
				rs = rs[:j.limit]
			}
		}
		rs = o.dated(b.dating, rs)
		payload, n := o.options.Encode(j.queue.device, b.frozen, rs, limit)
		prepared += len(payload)
		made := boundary{run, first, rs[n-1].Seq, b.frozen, b.dating}
		if made.last != b.last {
			if err := packs.put(key, made.bytes()); err != nil {
				return err
			}
		}
		j.prepared = append(j.prepared, &Pack{j.queue.device, o.runs[run], first, made.last, payload, n, made, oldest(rs[:n])})
		o.findThinned(r.log, j, span{run: run, first: from, last: made.last})
		r.drop(n)
	}
	return nil
}

// A reader gives the readings of one device in their order on disk.
type reader struct {
	outbox *Outbox
	log    table
	job    *job
	at     place // where to read on
	run    uint32
	from   uint64           // the first number that have stands for
	have   []devices.Record // of run; what is missing was thinned out
	end    bool
	bad    []byte // the damaged row that was removed last
}

// fill gives at least as many readings as one pack can take, or all there are
// before a gap.
func (r *reader) fill() ([]devices.Record, error) {
	for len(r.have) < packLimit && !r.end {
		c := r.log.Cursor()
		k, v := seekRow(c, r.job.queue.device, r.at)
		device, run, first, ok := parseRowKey(k)
		if !ok || device != r.job.queue.device {
			if r.outbox.onDiskFrom(r.job.queue, r.at) {
				return nil, disordered(bucketLog)
			}
			r.end = true
			break
		}
		// A key that is not where it belongs leads the search astray: to what
		// was read already, or to a row that cannot be removed.
		if (place{run, rowSpan(run, first, v).last}).before(r.at) || bytes.Equal(k, r.bad) {
			return nil, disordered(bucketLog)
		}
		if len(r.have) > 0 && (run != r.run || first > r.at.seq) {
			break // a gap: what comes is for another pack
		}
		last := rowSpan(run, first, v).last
		rs, err := decodeRow(bucketLog, k, v)
		if err != nil {
			if len(r.have) > 0 {
				break // it makes a gap
			}
			last = r.damagedUntil(c, run, first)
			r.outbox.loseRows(device, span{run: run, first: first, last: last}, err.Error())
			r.bad = bytes.Clone(k)
			if err := r.log.remove(r.bad); err != nil {
				return nil, err
			}
			if next := (place{run, last + 1}); r.at.before(next) {
				r.at = next
			}
			continue
		}
		if run == r.at.run && first < r.at.seq {
			first = r.at.seq
			rs = rs[sort.Search(len(rs), func(i int) bool { return rs[i].Seq >= first }):]
		}
		if len(r.have) == 0 {
			r.from = first
		}
		r.run = run
		r.have = append(r.have, rs...)
		r.at = place{run, last + 1}
	}
	return r.have, nil
}

// onDiskFrom reports whether the disk should have readings of a queue from a
// place on.
func (o *Outbox) onDiskFrom(q *queue, p place) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(q.disk)
	return n > 0 && !(place{q.disk[n-1].run, q.disk[n-1].last}).before(p)
}

func (r *reader) drop(n int) {
	r.from = r.have[n-1].Seq + 1
	r.have = r.have[n:]
}

// damagedUntil tells how far a damaged row went, by what stands around it: its
// own header cannot be believed.
func (r *reader) damagedUntil(c *cursor, run uint32, first uint64) uint64 {
	last := first
	for _, s := range r.job.disk {
		if s.run == run && s.first <= first && first <= s.last {
			last = s.last
		}
	}
	k, _ := c.Seek(append(rowKey(r.job.queue.device, run, first), 0))
	if d, nextRun, next, ok := parseRowKey(k); ok && d == r.job.queue.device && nextRun == run && next <= last {
		last = next - 1
	}
	return last
}

// loseRows counts and tells what was unsettled of readings that were deleted.
func (o *Outbox) loseRows(device devices.ID, s span, reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.loseSpan(o.queues[device], s, reason)
}

func (o *Outbox) loseSpan(q *queue, s span, reason string) {
	if lost := q.remove(s); lost.count() > 0 {
		o.lose(Loss{
			Device: q.device, Store: o.runs[s.run], First: lost.first, Last: lost.last,
			Count: uint64(lost.count()), Reason: reason, Time: time.Now(),
		})
	}
}

// loseMissing tells as lost what should be on disk, and is not: a damaged row
// said that it held more.
func (o *Outbox) loseMissing(q *queue, spans []span) {
	for _, s := range spans {
		o.loseSpan(q, s, "the row is damaged")
	}
}

// seekRow finds the row that holds a place, or the next after it.
func seekRow(c *cursor, device devices.ID, p place) (k, v []byte) {
	k, v = rowUpTo(c, device, p)
	if _, _, first, _ := parseRowKey(k); k != nil && (first == p.seq || rowSpan(p.run, first, v).last >= p.seq) {
		return k, v
	}
	return c.Seek(rowKey(device, p.run, p.seq))
}

// rowUpTo finds the last row of a place's run that begins there or before. It
// does without the cursor's Prev and Last: a page that this transaction has
// emptied is the beginning to Prev, and where all are, Last does not end.
func rowUpTo(c *cursor, device devices.ID, p place) (k, v []byte) {
	low, high := uint64(0), p.seq
	for low <= high {
		middle := low + (high-low)/2
		foundKey, found := c.Seek(rowKey(device, p.run, middle))
		d, run, first, ok := parseRowKey(foundKey)
		switch {
		case ok && d == device && run == p.run && middle <= first && first <= p.seq:
			k, v, low = foundKey, found, first+1
		case middle == 0:
			return k, v
		default:
			high = middle - 1
		}
	}
	return k, v
}

// apply makes memory agree with what was committed.
func (o *Outbox) apply(c *commit) {
	o.journal.anew(c.generation)
	o.applyThinned(c.thinned)
	for _, j := range c.jobs {
		o.applyJob(j)
	}
	o.notes.stored = c.lastNote
	o.counts.book.Kept(c.counted)
	if len(c.origins) > 0 {
		o.origins.wrote(c.originRow, c.originsGone)
	}
}

// applyLight makes memory agree with what the journal has now.
func (o *Outbox) applyLight(c *commit) {
	l := &o.journal
	l.origins = append(l.origins, c.origins...)
	if !o.journaled() {
		l.began = time.Time{}
	}
	for _, j := range c.jobs {
		q, frozen := j.queue, j.frozenUntil()
		q.committing = 0
		for i := j.journaled; i < len(j.entries); i++ {
			e := &q.memory[i]
			if e.receipt.add(-1, nil); e.Seq > frozen {
				e.Origin = devices.Origin{} // as the journal has it
			}
			if l.began.IsZero() || e.came.Before(l.began) {
				l.began = e.came
			}
		}
		q.journaled = max(q.journaled, len(j.entries))
		q.took = max(q.took, j.accepted.seq)
		for i, b := range q.inMemory {
			if slices.Contains(j.boundaries, b) { // and was not split meanwhile
				q.inMemory[i].safe = true
			}
		}
		if j.wanted {
			q.wants = false
		}
		j.prepareFrozen()
		if q.accepted > 0 { // while it was being written
			o.settleMemory(q, q.memory[q.accepted-1].Seq)
		}
		o.enqueue(q)
	}
}

// prepareFrozen has what was made of memory be sent next, unless the pack before
// was split meanwhile.
func (j *job) prepareFrozen() {
	if j.splits == j.queue.splits {
		j.queue.prepared = append(j.queue.prepared, j.frozen...)
	}
}

func (o *Outbox) applyJob(j *job) {
	q := j.queue
	q.committing = 0
	j.prepareFrozen()
	if n := len(j.entries); n > 0 {
		first, last := j.entries[0].Seq, j.entries[n-1].Seq
		q.extend(span{run: o.run, first: first, last: last})
		for i, e := range j.entries {
			o.memory -= e.size
			if i >= j.journaled {
				e.receipt.add(-1, nil)
			}
		}
		if q.accepted > 0 {
			// Accepted while it was being written, or kept for AckDisk.
			through := q.memory[min(q.accepted, n)-1].Seq
			q.remove(span{run: o.run, first: first, last: through})
			o.deleteLater(q, place{o.run, through})
		}
		q.forget(n)
		for len(q.inMemory) > 0 && q.inMemory[0].last <= last {
			q.inMemory = q.inMemory[1:]
		}
	}
	if j.held != nil {
		o.applyHeld(q, j.held)
	}
	if j.wanted {
		q.wants = false
	}
	if j.freeze {
		q.unfreeze = q.unfreeze && !j.unfreeze
		q.prepared = j.prepared
		o.tellThinned(j)
		if len(j.prepared) == 0 {
			o.loseMissing(q, j.disk)
		}
	}
	if _, unwritten := q.unwrittenHeld(); len(q.memory) == 0 && !q.wants && !unwritten && q.found == nil {
		delete(o.waiting, q)
	}
	o.enqueue(q)
}

// fail ends all writing. What is in memory still goes to the server; devices
// that wait for the disk alone are not acknowledged. What may be on disk stays,
// as if it were being written: a start would send it in other items.
func (o *Outbox) fail(c *commit, err error) {
	o.failed = err
	close(o.down)
	o.log.Error("the outbox cannot be written any more; readings are kept in memory only", "error", err)
	for _, j := range c.jobs {
		q := j.queue
		q.wants = false
		if errors.Is(err, errUnsure) {
			continue
		}
		q.committing = 0
		if q.accepted > 0 { // while it was being written
			o.settleMemory(q, q.memory[q.accepted-1].Seq)
		}
		o.enqueue(q)
	}
}
