package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/devices"
)

// counted gives what the outbox says became of all readings, and checks that
// it adds up, and that what it says is waiting is what waits.
func counted(t *testing.T, o *Outbox) proof.Answer {
	t.Helper()
	a, err := o.Proof(proof.Question{})
	if err != nil {
		t.Fatal(err)
	}
	sums := make(map[devices.ID]proof.Sum)
	for _, d := range a.Devices {
		sums[d.Device] = d.Sum
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for device, q := range o.queues {
		s, waiting := sums[device], uint64(q.unsent()+q.onDisk())
		if s.Waiting != waiting || s.Given != s.Accepted+waiting+s.Thinned+s.LostAll()+s.Unknown {
			t.Errorf("%s: %d are waiting, and the counts are %+v", device, waiting, s)
		}
	}
	return a
}

// rewrite changes a store that nobody has open.
func rewrite(t *testing.T, path string, change func(w *writing) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*writing) error{change, func(*writing) error { return nil }} { // both metas
		err := db.Update(func(tx *bolt.Tx) error {
			w := &writing{tx: tx}
			w.begin()
			return errors.Join(change(w), w.end())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestUncountedStore has files whose readings an older version took, before it
// counted any, or between two that do.
func TestUncountedStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "o.db")
		o := open(t, path, testOptions())
		take(t, o, message("kitchen", 1, 2, 3))
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, func(w *writing) error {
			if err := w.table(bucketCounts).empty(); err != nil {
				return err
			}
			return w.tx.DeleteBucket(bucketCounts)
		})
		r, err := OpenReader(path)
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.Proof(proof.Question{Since: time.Now().Add(-time.Hour), Until: time.Now()})
		if err != nil || len(a.Gaps) != 1 || a.Gaps[0].Why != proof.Uncounted {
			t.Errorf("%+v, %v", a, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		o = open(t, path, testOptions())
		if o.recovery != nil {
			t.Errorf("%+v", o.recovery)
		}
		if a := counted(t, o); a.Total.Given != 3 || a.Total.Waiting != 3 {
			t.Errorf("%+v", a)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, func(w *writing) error {
			run := number32(w.meta().get(metaRun))
			return w.meta().put(metaRun, binary.BigEndian.AppendUint32(nil, run+1))
		})
		time.Sleep(3 * time.Hour)
		o = open(t, path, testOptions())
		if a := counted(t, o); len(a.Gaps) != 1 || a.Gaps[0].Why != proof.Uncounted || a.Gaps[0].To.Sub(a.Gaps[0].From) != 3*time.Hour {
			t.Errorf("%+v", a)
		}
	})
}

// TestCountsAreBounded runs for three weeks, and for a while with a start in
// each second: hours become days, and starts no rows.
func TestCountsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(shmDir(t), "o.db")
		o := open(t, path, testOptions())
		rows := func() (n, size int) {
			o.db.View(func(tx *bolt.Tx) error {
				return tx.Bucket(bucketCounts).ForEach(func(k, v []byte) error {
					n++
					size += len(k) + len(v)
					return nil
				})
			})
			return n, size
		}
		const weeks = 3
		began := time.Now()
		for i := range weeks * 7 * 24 {
			r := take(t, o, message("kitchen", i))
			o.Settle(o.Next())
			<-r.Done()
			time.Sleep(time.Hour)
			synctest.Wait()
		}
		n, _ := rows()
		if want := hourRows + (weeks-2)*7; n < want || n > want+2 {
			t.Errorf("%d rows are kept, want about %d", n, want)
		}
		a := counted(t, o)
		if a.Total.Given != weeks*7*24 || a.Total.Accepted != a.Total.Given || !a.Whole() || a.Covered() != time.Since(began) {
			t.Errorf("%+v", a)
		}
		if commits := o.Stats().Commits; commits > weeks*7*24+1 {
			t.Errorf("%d commits in %d hours", commits, weeks*7*24)
		}
		for range 600 {
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			o = open(t, path, testOptions())
			take(t, o, message("kitchen", 0))
			time.Sleep(time.Second)
		}
		if m, _ := rows(); m > n+1 {
			t.Errorf("%d rows became %d by starts", n, m)
		}
		counted(t, o)
		// Many devices: the oldest go.
		for i := range 200 {
			for d := range 50 {
				take(t, o, message(devices.ID(fmt.Sprint("device-", d)), i))
			}
			for p := o.Next(); p != nil; p = o.Next() {
				o.Settle(p)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
		}
		if n, size := rows(); int64(size) > o.options.MaxBytes/countsShare+20_000 || n < 5 {
			t.Errorf("%d rows with %d bytes are kept", n, size)
		}
	})
}

// TestCountsOfALongOutage has readings wait for a month: what waits is counted
// by the day, in the end, and is still found when it goes out.
func TestCountsOfALongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(shmDir(t), "o.db")
		options := testOptions()
		options.MaxBytes = 8 << 20 // or the oldest counts go
		o := open(t, path, options)
		const hours = 30 * 24
		for i := range hours {
			take(t, o, message("kitchen", i, i))
			time.Sleep(time.Hour)
			synctest.Wait()
			if i == hours/2 {
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
				o = open(t, path, options)
			}
		}
		if n := len(o.counts.book.Rows()); n > hourRows+20 {
			t.Errorf("the book has %d rows", n)
		}
		day, err := o.Proof(proof.Question{Since: time.Now().Add(-29 * 24 * time.Hour), Until: time.Now().Add(-28 * 24 * time.Hour)})
		if err != nil || day.Total.Given < 48 || day.Total.Given > 96 || day.Total.Waiting != day.Total.Given {
			t.Errorf("%+v, %v", day, err)
		}
		counted(t, o)
		for idle := 0; idle < 3; {
			if p := o.Next(); p != nil {
				o.Settle(p)
				idle = 0
				continue
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			idle++
		}
		time.Sleep(2 * time.Hour)
		if a := counted(t, o); a.Total.Given != 2*hours || a.Total.Accepted != 2*hours || !a.Whole() {
			t.Errorf("%+v", a)
		}
		if n := len(o.counts.book.Rows()); n > 3 {
			t.Errorf("the book has %d rows, of which nothing is to come", n)
		}
	})
}

// TestKilledIsUnknown kills the process, as far as its disk can tell, and
// looks at what is told then, also while nobody is at work.
func TestKilledIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path, copied := filepath.Join(dir, "o.db"), filepath.Join(dir, "killed.db")
		o := open(t, path, testOptions())
		began := time.Now()
		take(t, o, message("kitchen", 1, 2, 3))
		time.Sleep(2 * time.Minute) // in the journal at 0:01
		take(t, o, message("kitchen", 4))
		time.Sleep(30 * time.Second)
		o.Save() // with counts
		synctest.Wait()
		take(t, o, message("kitchen", 5))
		time.Sleep(10 * time.Second) // in the journal at 2:31, without
		synctest.Wait()
		copyJournal(t, path, copied)
		copyStore(t, o, copied)
		killed := time.Now()
		time.Sleep(5 * time.Hour)
		r, err := OpenReader(copied)
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.Proof(proof.Question{Since: began, Until: time.Now()})
		if err != nil || len(a.Gaps) != 1 || a.Gaps[0].Why != proof.Killed || a.Total.Given != 4 || a.Total.Waiting != 4 {
			t.Errorf("%+v, %v", a, err)
		}
		if counted := a.Gaps[0].From; counted.Before(began.Add(2*time.Minute)) || counted.After(killed) || !a.Gaps[0].To.Equal(time.Now()) {
			t.Errorf("%+v", a)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		o = open(t, copied, testOptions())
		for range 3 {
			if p := o.Next(); p != nil {
				o.Settle(p)
			}
			time.Sleep(time.Second)
		}
		a = counted(t, o)
		if a.Total.Given != 5 || a.Total.Accepted != 5 || a.Whole() || a.Total.Delay < 5*3600 || a.Total.Delay > 5*3600+200 {
			t.Errorf("%+v", a)
		}
		if later, err := o.Proof(proof.Question{Since: time.Now().Add(-time.Second)}); err != nil || !later.Whole() {
			t.Errorf("%+v, %v", later, err)
		}
	})
}

// TestCountsOfDamaged has a store replaced, of which one row is missing.
func TestCountsOfDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "o.db")
		o := open(t, path, testOptions())
		take(t, o, message("kitchen", 1, 2, 3, 4, 5))
		o.Settle(o.Next())
		take(t, o, message("kitchen", 6, 7))
		m := message("attic", 1, 2, 3)
		m.Readings[2].Fields[0].Value = devices.Text("to be damaged")
		take(t, o, m)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file = bytes.ReplaceAll(file, []byte("to be damaged"), []byte("to be DAMAGED"))
		clear(file[:2*os.Getpagesize()])
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		o = open(t, path, testOptions())
		if o.recovery == nil || o.recovery.Aside == "" {
			t.Fatalf("%+v", o.recovery)
		}
		a := counted(t, o).Total
		if a.Given != 10 || a.Accepted != 5 || a.Waiting != 2 || a.Lost[errDamaged.Error()] != 3 {
			t.Errorf("%+v", a)
		}
	})
}

// TestLossIsCountedAtOnce kills the process just after a full store lost
// something.
func TestLossIsCountedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		o := open(t, filepath.Join(dir, "o.db"), testOptions())
		for i := 0; o.Stats().Lost == 0; i++ {
			m := message("kitchen", i)
			m.Readings[0].Fields = append(m.Readings[0].Fields, devices.Field{Name: "id", Value: devices.Text(fmt.Sprintf("%0400d", i))})
			take(t, o, m)
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
		}
		lost, copied := o.Stats().Lost, filepath.Join(dir, "killed.db")
		if err := o.db.View(func(tx *bolt.Tx) error { return tx.CopyFile(copied, 0o600) }); err != nil {
			t.Fatal(err)
		}
		o = open(t, copied, testOptions())
		if a := counted(t, o); a.Total.LostAll() != lost {
			t.Errorf("%d are lost, counted %+v", lost, a.Total)
		}
	})
}

// TestCountedAheadOfTheDisk kills the process, or cuts the power, when the
// counts on disk have readings as accepted that the rest of it has as waiting:
// they are sent again, and counted once.
func TestCountedAheadOfTheDisk(t *testing.T) {
	const hour = time.Hour
	for name, c := range map[string]struct {
		ack  Ack
		boot string // after the kill
		// accept has three readings of the first hour accepted, some in a
		// commit, and ends after a commit that counts them.
		accept func(t *testing.T, o *Outbox, in func(commit func()))
	}{
		"settled while the disk forgets others": {AckServer, "b", func(t *testing.T, o *Outbox, in func(func())) {
			take(t, o, message("kitchen", 1, 2, 3))
			o.Save()
			synctest.Wait()
			p := nextWithin(t, o)
			time.Sleep(hour + 2*countsEvery)
			in(func() { o.Settle(p) })
			o.Save()
		}},
		"settled while it is written": {AckServer, "b", func(t *testing.T, o *Outbox, in func(func())) {
			time.Sleep(hour - time.Second/2)
			take(t, o, message("kitchen", 1, 2, 3))
			p := o.Next()
			in(func() { o.Settle(p) })
			time.Sleep(time.Second)
		}},
		"settled before it is written": {AckDisk, "b", func(t *testing.T, o *Outbox, in func(func())) {
			time.Sleep(hour - time.Second/2)
			take(t, o, message("kitchen", 1, 2, 3))
			o.Settle(o.Next())
			time.Sleep(time.Second)
		}},
		"kept for another boot": {AckDisk, "after", func(t *testing.T, o *Outbox, in func(func())) {
			time.Sleep(hour - keepSettled/2)
			take(t, o, message("kitchen", 1, 2, 3))
			o.Settle(o.Next())
			for range 2 {
				o.Save()
				synctest.Wait()
			}
			time.Sleep(keepSettled/2 + time.Second)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var within atomic.Pointer[func()]
				options := testOptions()
				options.Ack = c.ack
				options.State = func(bool) []byte {
					if f := within.Swap(nil); f != nil {
						(*f)()
					}
					return nil
				}
				dir := t.TempDir()
				path, copied := filepath.Join(dir, "o.db"), filepath.Join(dir, "killed.db")
				o := open(t, path, options)
				c.accept(t, o, func(f func()) { within.Store(&f) })
				synctest.Wait()
				if a := counted(t, o).Total; a.Given != 3 || a.Accepted != 3 || within.Load() != nil {
					t.Fatalf("%+v", a)
				}
				copyJournal(t, path, copied)
				copyStore(t, o, copied)
				options.BootID = c.boot
				o = open(t, copied, options)
				if device, _, any := o.Doubt(); any {
					if a := counted(t, o).Total; a.Given != 3 || a.Accepted != 3 {
						t.Errorf("%+v", a)
					}
					o.Resolve(device, nil) // the server lost it
				}
				if a := counted(t, o).Total; a.Given != 3 || a.Waiting != 3 {
					t.Errorf("%+v", a)
				}
				o.Settle(nextWithin(t, o))
				time.Sleep(hour)
				synctest.Wait()
				if a := counted(t, o).Total; a.Given != 3 || a.Accepted != 3 {
					t.Errorf("%+v", a)
				}
				if n := len(o.counts.book.Rows()); n != 1 {
					t.Errorf("the book has %d rows, of which nothing is to come", n)
				}
			})
		})
	}
}

// TestCountsOfThinnedHours has hours end among what is thinned at once, so that
// it is not known which of them the rest are in, and restarts find the rest.
func TestCountsOfThinnedHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(shmDir(t), "o.db")
		o := open(t, path, testOptions())
		for i := 0; o.Stats().Thinned < 200; i++ {
			m := message("kitchen", i, i, i, i, i, i)
			for j := range m.Readings {
				m.Readings[j].Fields = append(m.Readings[j].Fields, devices.Field{Name: "pad", Value: devices.Text(fmt.Sprintf("%01700d", 6*i+j))})
			}
			take(t, o, m)
			time.Sleep(30 * time.Minute)
			synctest.Wait()
		}
		before := counted(t, o).Total
		for range 2 {
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			o = open(t, path, testOptions())
			if after := counted(t, o).Total; !reflect.DeepEqual(after, before) {
				t.Errorf("before a restart %+v\nafter %+v", before, after)
			}
		}
	})
}
