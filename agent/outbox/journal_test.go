package outbox

import (
	"bytes"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// TestJournal has readings go to the journal alone, be seen there by whoever
// looks, and come back after a crash in the items in which they went out.
func TestJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "o.db")
		o := open(t, path, testOptions())
		take(t, o, message("kitchen", 1, 2))
		sent := o.Next() // before it is on disk
		later := take(t, o, message("kitchen", 3, 4, 5))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := o.Stats(); !isDone(later) || s.Batches != 1 || s.Commits != 0 || s.Disk != 5 || s.Memory != 0 {
			t.Fatalf("%+v", s)
		}
		copied := filepath.Join(t.TempDir(), "o.db")
		copyJournal(t, path, copied)
		copyStore(t, o, copied)
		seen := func(r *Reader) (n int) {
			if err := r.Each(func(Stored) error { n++; return nil }, func(f Fault) { t.Error(f) }); err != nil {
				t.Error(err)
			}
			return n
		}
		r, err := OpenReader(copied)
		if err != nil {
			t.Fatal(err)
		}
		if running, stopped := seen(o.Reader()), seen(r); running != 5 || stopped != 5 {
			t.Errorf("%d readings are seen at work, and %d in the files, want 5", running, stopped)
		}
		if _, faults, err := r.Verify(); err != nil || len(faults) > 0 {
			t.Error(faults, err)
		}
		r.Close()
		o = open(t, copied, testOptions())
		got := 0
		for p := nextWithin(t, o); ; p = nextWithin(t, o) {
			if got == 0 && (p.Item() != sent.Item() || !bytes.Equal(p.Payload, sent.Payload)) {
				t.Errorf("it was sent as %s %s, and is as %s %s", sent.Item(), sent.Payload, p.Item(), p.Payload)
			}
			o.Settle(p)
			if got += p.Count(); got == 5 {
				break
			}
		}
		if o.Close(); o.Stats().Disk != 0 {
			t.Errorf("%+v", o.Stats())
		}
	})
}

// TestJournalFull writes more than the journal holds: bbolt takes it.
func TestJournalFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "o.db")
		o := open(t, path, testOptions())
		for i := range journalHalf/journalPage + 10 {
			m := message(devices.ID(fmt.Sprintf("d%d", i%3)), i)
			m.Window = 2 // which has it written at once
			take(t, o, m)
			time.Sleep(2 * minCommitGap)
			synctest.Wait()
		}
		s := o.Stats()
		if s.Commits == 0 || s.Batches < journalHalf/journalPage {
			t.Errorf("%+v", s)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		o = open(t, path, testOptions())
		if again := o.Stats(); again.Disk != s.Disk {
			t.Errorf("%d readings, want %d", again.Disk, s.Disk)
		}
		o.Close()
		checkFile(t, path)
	})
}

func FuzzBatches(f *testing.F) {
	var file []byte
	j := journal{generation: 7, at: journalHalf}
	j.writeAt = func(b []byte, _ int64) (int, error) {
		file = append(file, b...)
		return 0, fmt.Errorf("no disk")
	}
	for i := range 3 {
		j.begin("0123456789.4")
		j.put(journalLog, rowKey("kitchen", 4, uint64(i)), sealed(bucketLog, rowKey("kitchen", 4, uint64(i)), newRow().payload))
		j.put(journalOrigin, nil, make([]byte, 8))
		j.write()
		j.index++
	}
	f.Add(file)
	f.Fuzz(func(t *testing.T, b []byte) {
		batches, err := readBatches(bytes.NewReader(b), 3)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(b, file) && len(batches) != 3 {
			t.Errorf("%d batches of 3", len(batches))
		}
		for _, batch := range batches {
			if batch.generation < 3 {
				t.Errorf("generation %d", batch.generation)
			}
			for _, p := range batch.puts {
				decodeRow(bucketLog, p.key, p.value)
			}
		}
	})
}

// TestSplitWhileWritten has a pack be too big while the one after it is being
// frozen: what is split goes out first.
func TestSplitWhileWritten(t *testing.T) {
	options := testOptions()
	options.CommitAfter = time.Hour
	o := open(t, filepath.Join(t.TempDir(), "o.db"), options)
	take(t, o, message("kitchen", 1, 2, 3, 4))
	big := o.Next()
	take(t, o, message("kitchen", 5, 6))
	o.mu.Lock()
	c := o.gather()
	o.mu.Unlock()
	if len(c.jobs) != 1 || len(c.jobs[0].frozen) != 1 {
		t.Fatalf("%+v", c.jobs)
	}
	o.Split(big)
	o.journalize(c)
	if err := o.journal.write(); err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	o.applyLight(c)
	o.mu.Unlock()
	for next := uint64(1); next <= 6; {
		p := nextWithin(t, o)
		if p.First != next {
			t.Fatalf("%s goes out, want %d", p.Item(), next)
		}
		next = p.Last + 1
		o.Settle(p)
	}
}

// TestWantedWhileWritten: what is wanted while a commit freezes it is not
// frozen again when it is under way.
func TestWantedWhileWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var whileWritten atomic.Pointer[func()]
		options := testOptions()
		options.CommitAfter = time.Second
		options.State = func(bool) []byte {
			if f := whileWritten.Swap(nil); f != nil {
				(*f)()
			}
			return nil
		}
		o := open(t, filepath.Join(t.TempDir(), "o.db"), options)
		commit := func() {
			time.Sleep(2 * options.CommitAfter) // virtual
			synctest.Wait()
		}
		// Boundaries on disk that are there when a pack is too big do not count
		// any more.
		take(t, o, message("kitchen", 1, 2, 3, 4))
		o.Split(o.Next())
		o.Settle(o.Next())
		o.Settle(o.Next())

		o.SetRoom(2)
		take(t, o, message("kitchen", 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16))
		p := o.Next()
		commit() // to the journal, and what goes out next gets its boundary
		o.Settle(p)
		p = o.Next()
		o.AddNote([]byte("has the commit be a full one"))
		settle := func() {
			o.Settle(p)
			if more := o.Next(); more != nil {
				t.Errorf("%s goes out while its boundary is being written", more.Item())
			}
		}
		whileWritten.Store(&settle)
		time.Sleep(options.CommitAfter) // and not until the next commit
		synctest.Wait()
		if whileWritten.Load() != nil {
			t.Fatal("no full commit")
		}
		o.SetRoom(0)
		for next := p.Last + 1; next <= 16; next = p.Last + 1 {
			if p = o.Next(); p == nil {
				commit() // makes packs of what is on disk only
				p = o.Next()
			}
			if p == nil {
				t.Fatalf("nothing goes out, want %d", next)
			}
			if p.First != next {
				t.Fatalf("%s goes out, want %d", p.Item(), next)
			}
			commit()
			o.Settle(p)
			commit()
		}
	})
}
