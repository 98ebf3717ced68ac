package outbox

import (
	"encoding/binary"
	"time"

	"github.com/porchlight-iot/porchlight/crashpoint"
)

// A Note is a message for people that must arrive: an alarm, a loss, a
// command's record. Notes go out one by one, in order.
type Note struct {
	Number uint64 // rises by one a note; never used twice in one store
	Body   []byte
}

// maxNotes bounds what waits; nobody reads ten thousand alarms.
const maxNotes = 10_000

// notes is the lane of the notes. The outbox's lock guards it.
type notes struct {
	last    uint64 // the newest number given
	list    []Note
	stored  uint64    // up to which number they are on disk, where they still wait
	came    time.Time // when the oldest that is not on disk came
	settled []uint64  // on disk, and not wanted there
	out     bool      // the first is with the caller
}

func (n *notes) load(t table) error {
	n.last = t.Sequence()
	err := t.ForEach(func(k, v []byte) error {
		if body, ok := unsealed(t.name, k, v); ok && len(k) == 8 {
			note := Note{binary.BigEndian.Uint64(k), append([]byte(nil), body...)}
			n.list = append(n.list, note)
			n.last = max(n.last, note.Number) // the sequence has no CRC
		}
		return nil
	})
	n.stored = n.last
	return err
}

// unwritten gives the notes that are not on disk.
func (n *notes) unwritten() []Note {
	for i, note := range n.list {
		if note.Number > n.stored {
			return n.list[i:]
		}
	}
	return nil
}

// writeNotes puts new notes on disk and takes settled ones off it.
func writeNotes(w *writing, fresh []Note, last uint64, settled []uint64) error {
	if len(fresh)+len(settled) == 0 {
		return nil // or each commit would write the bucket
	}
	t := w.table(bucketNotes)
	for _, note := range fresh {
		if err := t.put(noteKey(note.Number), note.Body); err != nil {
			return err
		}
	}
	for _, number := range settled {
		if err := t.remove(noteKey(number)); err != nil {
			return err
		}
	}
	return t.SetSequence(last)
}

func noteKey(number uint64) []byte { return binary.BigEndian.AppendUint64(nil, number) }

// AddNote puts a note in line. It reaches the disk with the next commit, which
// comes soon.
func (o *Outbox) AddNote(body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.addNote(body)
	o.wakeCommitter()
}

func (o *Outbox) addNote(body []byte) {
	n := &o.notes
	if len(n.list) >= maxNotes {
		o.log.Error("a note was dropped: too many wait", "waiting", len(n.list))
		return
	}
	if len(n.unwritten()) == 0 {
		n.came = time.Now()
	}
	n.last++
	n.list = append(n.list, Note{n.last, body})
	signal(o.ready)
}

// NextNote gives the oldest note, until SettleNote or ReleaseNote ends it; nil
// where there is none or it is out already.
func (o *Outbox) NextNote() *Note {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.notes.list) == 0 || o.notes.out {
		return nil
	}
	o.notes.out = true
	crashpoint.At(crashpoint.NoteHandedOut)
	note := o.notes.list[0]
	return &note
}

// SettleNote ends the note that NextNote gave: it arrived, or never will.
func (o *Outbox) SettleNote() {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := &o.notes
	if !n.out {
		return
	}
	n.out = false
	if n.list[0].Number <= n.stored {
		n.settled = append(n.settled, n.list[0].Number)
	}
	n.list = n.list[1:]
	signal(o.ready)
	crashpoint.At(crashpoint.NoteSettled)
}

// ReleaseNote gives back the note that NextNote gave, to be sent again.
func (o *Outbox) ReleaseNote() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.notes.out = false
}
