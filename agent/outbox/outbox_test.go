package outbox

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/devices"
)

func open(t *testing.T, path string, options Options) *Outbox {
	t.Helper()
	o, err := Open(path, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

func take(t *testing.T, o *Outbox, m devices.Message) devices.Receipt {
	t.Helper()
	r, _, err := o.Append(m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func isDone(r devices.Receipt) bool {
	select {
	case <-r.Done():
		return true
	default:
		return false
	}
}

// TestPromptServer is the ordinary day: what the server accepts in time never
// reaches the disk.
func TestPromptServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, filepath.Join(t.TempDir(), "o.db"), testOptions())
		for i := range 1000 {
			r := take(t, o, message("kitchen", i))
			time.Sleep(100 * time.Millisecond)
			p := o.Next()
			if p == nil || isDone(r) {
				t.Fatalf("reading %d: pack %v, acknowledged %v", i, p, isDone(r))
			}
			o.Settle(p)
			if !isDone(r) || r.Err() != nil {
				t.Fatalf("reading %d is not acknowledged (%v)", i, r.Err())
			}
		}
		if s := o.Stats(); s.Commits != 0 || s.Settled != 1000 {
			t.Errorf("%+v: want no commits", s)
		}
	})
}

// TestSilentServer has no answers: readings are safe on disk after CommitAfter
// and not before.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, filepath.Join(t.TempDir(), "o.db"), testOptions())
		r := take(t, o, message("kitchen", 1))
		time.Sleep(defaultCommitAfter - time.Millisecond)
		synctest.Wait()
		if isDone(r) {
			t.Error("acknowledged before it was safe")
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if !isDone(r) || r.Err() != nil {
			t.Errorf("not acknowledged once committed (%v)", r.Err())
		}
	})
}

func TestAckDiskWaitsForDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		options := testOptions()
		options.Ack = AckDisk
		o := open(t, filepath.Join(t.TempDir(), "o.db"), options)
		r := take(t, o, message("kitchen", 1))
		o.Settle(o.Next())
		synctest.Wait()
		if isDone(r) {
			t.Error("acknowledged before it was on disk")
		}
		time.Sleep(defaultCommitAfter)
		synctest.Wait()
		if !isDone(r) {
			t.Error("not acknowledged once on disk")
		}
	})
}

// TestHalfWindow commits at once where a source would soon have to wait.
func TestHalfWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, filepath.Join(t.TempDir(), "o.db"), testOptions())
		var last devices.Receipt
		for i := range 10 {
			m := message("kitchen", i)
			m.Window = 20
			last = take(t, o, m)
		}
		time.Sleep(2 * minCommitGap)
		synctest.Wait()
		if !isDone(last) {
			t.Error("half of the window waits, and nothing was committed")
		}
	})
}

// TestTurns has a busy device and a quiet one.
func TestTurns(t *testing.T) {
	o := open(t, filepath.Join(t.TempDir(), "o.db"), testOptions())
	for i := range 20 {
		take(t, o, message("busy", i))
	}
	take(t, o, message("quiet", 1))
	first, second := o.Next(), o.Next()
	if first.Device != "busy" || second == nil || second.Device != "quiet" {
		t.Fatalf("first %v, second %v", first, second)
	}
	if third := o.Next(); third != nil {
		t.Errorf("%s has two packs under way", third.Device)
	}
	o.Settle(first)
	if third := o.Next(); third == nil || third.Device != "busy" {
		t.Errorf("third %v", third)
	}
}

func TestEqualTimesAreSpread(t *testing.T) {
	o := open(t, filepath.Join(t.TempDir(), "o.db"), testOptions())
	at := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	m := message("kitchen", 1, 2, 3, 4)
	for i := range m.Readings {
		m.Readings[i].Time = at
	}
	m.Readings[3].Time = at.Add(2 * time.Microsecond) // where the third was put
	take(t, o, m)
	p := o.Next()
	for i, want := range []int{0, 1, 2, 3} {
		if s := fmt.Sprintf("%d:%d@%d!", i+1, i+1, at.UnixMicro()+int64(want)); !strings.Contains(string(p.Payload), s) {
			t.Errorf("no %s in %s", s, p.Payload)
		}
	}
}

// numbers gives those that a loss tells.
func (l Loss) numbers() []uint64 {
	var out []uint64
	kept := l.Kept
	if kept == nil {
		kept = []uint64{0, l.Last - l.First + 1}
	}
	next := l.First
	for i, n := range kept {
		for range n {
			if i%2 == 1 {
				out = append(out, next)
			}
			next++
		}
	}
	return out
}

// numbersOf gives those in a payload of encodeText.
func numbersOf(t *testing.T, p *Pack) []uint64 {
	t.Helper()
	var out []uint64
	for _, word := range strings.Fields(string(p.Payload))[2:] {
		var seq uint64
		if _, err := fmt.Sscanf(word, "%d:", &seq); err != nil {
			t.Fatalf("%q: %v", word, err)
		}
		out = append(out, seq)
	}
	if len(out) != p.Count() || out[0] != p.First || out[len(out)-1] != p.Last {
		t.Errorf("%s of %d readings holds %s", p.Item(), p.Count(), p.Payload)
	}
	return out
}

// TestFull fills a small store until it thins, and until that is not enough: the
// file stays bounded, and sent = delivered + told as thinned or lost, number by
// number.
func TestFull(t *testing.T) {
	t.Run("thinned", func(t *testing.T) {
		if thinned, dropped := full(t, 64); thinned == 0 || dropped > 0 {
			t.Errorf("%d events tell of what was thinned out, and %d were dropped", thinned, dropped)
		}
	})
	t.Run("dropped", func(t *testing.T) {
		if _, dropped := full(t, 1500); dropped == 0 {
			t.Error("thinning was enough")
		}
	})
}

// full fills a store with readings that have a text of so many bytes. It gives
// how many events told of what was thinned out, and how many readings were
// dropped.
func full(t *testing.T, size int) (thinned, dropped int) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "o.db")
		gone := map[string]bool{}
		options := testOptions()
		options.MaxBytes = 1 << 20
		options.LossNote = func(l Loss) []byte {
			b, _ := json.Marshal(l)
			return b
		}
		o := open(t, path, options)
		const n = 30_000
		for i := range n {
			device := devices.ID([]string{"a", "b"}[i%2])
			m := message(device, i*7919%1000)
			m.Readings[0].Fields = append(m.Readings[0].Fields, devices.Field{Name: "id", Value: devices.Text(fmt.Sprintf("%0*d", size, i))})
			take(t, o, m)
			if i%40 == 0 {
				time.Sleep(time.Second)
			}
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		info, err := os.Stat(path)
		if err != nil || info.Size() != options.MaxBytes {
			t.Errorf("the file has %d bytes (%v), want %d", info.Size(), err, options.MaxBytes)
		}
		readNotes := func() {
			for note := o.NextNote(); note != nil; note = o.NextNote() {
				var l Loss
				if err := json.Unmarshal(note.Body, &l); err != nil {
					t.Fatal(err)
				}
				for _, seq := range l.numbers() {
					gone[fmt.Sprint(l.Device, seq)] = true
				}
				if l.Kept == nil {
					dropped += int(l.Count)
				} else {
					thinned++
				}
				o.SettleNote()
			}
		}
		readNotes()
		if a := counted(t, o); a.Total.LostAll() != o.Stats().Lost || a.Total.Thinned != o.Stats().Thinned || a.Total.Given != n {
			t.Errorf("%+v", a.Total)
		}
		if s := o.Stats(); s.Thinned == 0 || s.Taken != uint64(s.Memory+s.Disk)+s.Thinned+s.Lost {
			t.Errorf("%d were dropped; %+v", dropped, s)
		}
		delivered := 0
		for idle := 0; idle < 3; {
			p := o.Next()
			if p == nil {
				idle++
				time.Sleep(time.Second)
				continue
			}
			idle = 0
			readNotes()
			for _, seq := range numbersOf(t, p) {
				if gone[fmt.Sprint(p.Device, seq)] {
					t.Fatalf("%s %d was told as lost and delivered", p.Device, seq)
				}
				delivered++
			}
			o.Settle(p)
		}
		readNotes() // to freeze packs takes room, too
		if s := o.Stats(); delivered+len(gone) != n || int(s.Lost) != dropped || int(s.Settled) != delivered || s.Settled+s.Thinned+s.Lost != n {
			t.Errorf("%d sent, %d delivered, %d told as lost, in %d events as thinned; stats %+v", n, delivered, len(gone), thinned, s)
		}
	})
	return thinned, dropped
}

// TestFullAfterRestart fills the store after a run that had no answer to a
// pack: the pack comes again as it was.
func TestFullAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "o.db")
		options := testOptions()
		fill := func(o *Outbox, n int) {
			for i := range n {
				m := message("a", i)
				m.Readings[0].Fields = append(m.Readings[0].Fields, devices.Field{Name: "id", Value: devices.Text(fmt.Sprintf("%0400d", i))})
				take(t, o, m)
				time.Sleep(20 * time.Millisecond)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		o := open(t, path, options)
		fill(o, 40)
		sent := nextWithin(t, o)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		o = open(t, path, options)
		fill(o, 4000)
		if o.Stats().Thinned == 0 {
			t.Fatal("the store was not full")
		}
		if p := nextWithin(t, o); p.Item() != sent.Item() || !bytes.Equal(p.Payload, sent.Payload) {
			t.Errorf("%s %q was sent before the restart, %s %q after it", sent.Item(), sent.Payload, p.Item(), p.Payload)
		}
	})
}

func TestRefusedIsTold(t *testing.T) {
	options := testOptions()
	options.LossNote = func(l Loss) []byte { return fmt.Appendf(nil, "%s %d-%d %s", l.Device, l.First, l.Last, l.Reason) }
	o := open(t, filepath.Join(t.TempDir(), "o.db"), options)
	r := take(t, o, message("kitchen", 1, 2))
	o.Refuse(o.Next(), "bad-request")
	if !isDone(r) || r.Err() != nil {
		t.Error("a refused reading would be sent again for ever")
	}
	if note := o.NextNote(); note == nil || string(note.Body) != "kitchen 1-2 bad-request" {
		t.Errorf("note %v", note)
	}
}

func TestNotesSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, testOptions())
	for i := range 3 {
		o.AddNote(fmt.Append(nil, i))
	}
	o.NextNote()
	o.SettleNote()
	o.NextNote() // no answer
	o.SetState("kitchen", []byte("warm"))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = open(t, path, testOptions())
	var got []string
	for note := o.NextNote(); note != nil; note = o.NextNote() {
		got = append(got, string(note.Body))
		o.SettleNote()
	}
	if want := []string{"1", "2"}; !reflect.DeepEqual(got, want) {
		t.Errorf("notes %v, want %v", got, want)
	}
	if s := string(o.State("kitchen")); s != "warm" {
		t.Errorf("state %q", s)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = open(t, path, testOptions())
	if note := o.NextNote(); note != nil {
		t.Errorf("note %s came again", note.Body)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	open(t, path, testOptions())
	if _, err := Open(path, testOptions()); !errors.Is(err, ErrLocked) {
		t.Errorf("%v, want ErrLocked", err)
	}
}

func TestNewerStoreIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, testOptions())
	err := o.db.Update(func(tx *bolt.Tx) error {
		w := &writing{tx: tx}
		return w.meta().put(metaVersion, binary.BigEndian.AppendUint32(nil, schemaVersion+1))
	})
	if err := errors.Join(err, o.db.Close()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, testOptions()); !errors.Is(err, ErrNewer) {
		t.Errorf("%v, want ErrNewer", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the newer store was changed (%v)", err)
	}
}

// TestCopiedCard opens a store on another machine: what it holds keeps its
// ids, what comes has others.
func TestCopiedCard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, testOptions())
	old := o.Store()
	take(t, o, message("kitchen", 1))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	options := testOptions()
	options.Machine = "another"
	o = open(t, path, options)
	if a, b := strings.Split(old, ".")[0], strings.Split(o.Store(), ".")[0]; a == b {
		t.Errorf("the random %s went on on another machine", a)
	}
	take(t, o, message("kitchen", 2))
	if s := nextWithin(t, o).Store; s != old {
		t.Errorf("a stored reading has store %s, it had %s", s, old)
	}
}

// TestMendedStore opens a store of which the last change is taken back, and one
// that is replaced: neither gives an item the id of one that is out, and both
// recognise that one as theirs.
func TestMendedStore(t *testing.T) {
	page := os.Getpagesize()
	for name, damage := range map[string]func(b []byte, newest int64){
		"taken back": func(b []byte, newest int64) { clear(b[newest:][:page]) },
		"replaced":   func(b []byte, _ int64) { clear(b[:2*page]) },
	} {
		path := filepath.Join(t.TempDir(), "o.db")
		var sent *Pack
		for range 2 {
			o := open(t, path, testOptions())
			take(t, o, message("kitchen", 1))
			sent = nextWithin(t, o)
			o.Settle(sent)
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		metas, err := readMetas(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		damage(b, metas[0].at)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		o := open(t, path, testOptions())
		if !isMine(o, sent.Store) {
			t.Errorf("%s: %s does not know %s", name, o.Store(), sent.Store)
		}
		for _, r := range o.runs {
			if r == sent.Store {
				t.Errorf("%s: %s is used again", name, r)
			}
		}
		options := testOptions()
		options.Machine = "another"
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		if o = open(t, path, options); isMine(o, sent.Store) {
			t.Errorf("%s: %s goes on as %s on another machine", name, sent.Store, o.Store())
		}
	}
}

func nextWithin(t *testing.T, o *Outbox) *Pack {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		if p := o.Next(); p != nil {
			return p
		}
		select {
		case <-o.Ready():
		case <-deadline:
			t.Fatal("no pack")
		}
	}
}

// TestDamagedRow loses what was damaged, names it, and delivers the rest.
func TestDamagedRow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	options := testOptions()
	options.LossNote = func(l Loss) []byte { return fmt.Appendf(nil, "%s %d-%d", l.Device, l.First, l.Last) }
	o := open(t, path, options)
	values := make([]int, 3000)
	for i := range values {
		values[i] = i + 1
	}
	take(t, o, message("kitchen", values...))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	var first, second uint64
	err = db.Update(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketLog).Cursor()
		c.First()
		k, v := c.Next()
		damaged := append([]byte(nil), v...)
		damaged[len(damaged)/2] ^= 1
		_, _, first, _ = parseRowKey(k)
		next, _ := c.Next()
		_, _, second, _ = parseRowKey(next)
		w := &writing{tx: tx}
		w.begin()
		return errors.Join(w.table(bucketLog).Put(bytes.Clone(k), damaged), w.end())
	})
	if err == nil { // or the last change would be taken back
		err = db.Update(func(tx *bolt.Tx) error {
			w := &writing{tx: tx}
			w.begin()
			return w.end()
		})
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	o = open(t, path, options)
	got := uint64(0)
	for got < uint64(len(values))-(second-first) {
		p := nextWithin(t, o)
		if p.First < second && p.Last >= first {
			t.Errorf("pack %d-%d, but %d-%d were damaged", p.First, p.Last, first, second-1)
		}
		got += uint64(p.Count())
		o.Settle(p)
	}
	if note := o.NextNote(); note == nil || string(note.Body) != fmt.Sprintf("kitchen %d-%d", first, second-1) {
		t.Errorf("note %v", note)
	}
}

// TestDiskFails takes the file away: the server still gets what comes, memory
// stays bounded, and who waits for the disk is not acknowledged.
func TestDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, filepath.Join(t.TempDir(), "o.db"), testOptions())
		o.db.Close()
		o.journal.close()
		first := take(t, o, message("kitchen", 1))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if isDone(first) {
			t.Error("acknowledged though neither disk nor server has it")
		}
		o.Settle(o.Next())
		if !isDone(first) {
			t.Error("not acknowledged though the server has it")
		}
		if o.Stats().Fault == "" {
			t.Error("the fault is not told")
		}
		big := message("kitchen", 2)
		big.Readings[0].Fields[0].Value = devices.Text(strings.Repeat("x", 1<<20))
		var err error
		for range 2 * maxMemory >> 20 {
			if _, _, err = o.Append(big); err != nil {
				break
			}
		}
		if !errors.Is(err, devices.ErrFull) {
			t.Errorf("memory is not bounded: %v", err)
		}
	})
}

// TestUnsureCommit has a commit fail of which all was written. What it had is
// not sent under boundaries that the disk may not know, and a start finds it.
func TestUnsureCommit(t *testing.T) {
	options := testOptions()
	options.CommitAfter = time.Hour
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, options)
	take(t, o, message("hall", 1))
	out := o.Next()
	kept := take(t, o, message("kitchen", 1, 2))
	o.mu.Lock()
	c := o.gather()
	o.mu.Unlock()
	err := o.update(func(w *writing) error {
		w.tx.OnCommit(func() { panic("the last sync fails") })
		return o.write(w, c)
	})
	o.mu.Lock()
	o.fail(c, err)
	o.mu.Unlock()
	take(t, o, message("attic", 1))
	if p := o.Next(); p == nil || p.Device != "attic" {
		t.Errorf("%+v goes out, want what is not on disk", p)
	}
	if p := o.Next(); p != nil {
		t.Errorf("%s of %s goes out, and may be on disk in other items", p.Item(), p.Device)
	}
	o.Settle(out)
	if o.Close() == nil || kept.Err() == nil {
		t.Error("acknowledged though neither disk nor server has it for sure")
	}
	o = open(t, path, options)
	if p := nextOf(t, o, "hall"); p.Item() != out.Item() {
		t.Errorf("%s was sent, and goes out as %s", out.Item(), p.Item())
	}
	if p := nextOf(t, o, "kitchen"); p.Count() != 2 {
		t.Errorf("%s goes out", p.Item())
	}
}

// TestComesAgainLate has a message that is at the server come again when what
// was held at the start is settled already: the run before that one ended
// before it came.
func TestComesAgainLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "o.db")
		again := func(o *Outbox, m devices.Message) devices.Receipt {
			m.Redelivered = true
			r := take(t, o, m)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			return r
		}
		open(t, path, testOptions()).Close()
		held, late, parts, unknown := message("hall", 1), message("hall", 2), message("hall", 3, 4), message("hall", 5)
		o := open(t, path, testOptions())
		again(o, held)
		o.Close()
		o = open(t, path, testOptions())
		if device, _, any := o.Doubt(); device != "hall" || !any {
			t.Fatalf("doubt about %q", device)
		}
		o.Resolve("hall", []Arrived{{Store: o.Store(), Origins: []devices.Origin{held.Origin, late.Origin, parts.Origin}}})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for _, m := range []devices.Message{late, parts, unknown, late} {
			if r := again(o, m); !isDone(r) || r.Err() != nil {
				t.Errorf("%v is not acknowledged", m.Readings)
			}
		}
		var got []string
		for range 10 {
			if p := o.Next(); p != nil {
				for _, word := range strings.Fields(string(p.Payload))[2:] {
					_, value, _ := strings.Cut(word, ":")
					value, _, _ = strings.Cut(value, "@")
					got = append(got, value)
				}
				o.Settle(p)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if !slices.Equal(got, []string{"4", "5"}) {
			t.Errorf("%q go out, want what is not at the server", got)
		}
	})
}

// nextOf gives the next pack of a device.
func nextOf(t *testing.T, o *Outbox, device devices.ID) *Pack {
	t.Helper()
	for p := nextWithin(t, o); ; p = nextWithin(t, o) {
		if p.Device == device {
			return p
		}
		o.Release(p, 0)
	}
}

// TestFloodKeepsToItsShare has devices send without end while the disk takes
// nothing: they get their shares, and one that sends a little is not refused.
func TestFloodKeepsToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, filepath.Join(t.TempDir(), "o.db"), testOptions())
		o.db.Close()
		for n := 1; n <= 3; n++ {
			big := message(devices.ID(fmt.Sprintf("flood%d", n)), 1)
			big.Readings[0].Fields[0].Value = devices.Text(strings.Repeat("x", 1<<10))
			taken := 0
			for {
				if _, _, err := o.Append(big); errors.Is(err, devices.ErrFull) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				taken++
			}
			if taken == 0 {
				t.Errorf("flood %d got nothing", n)
			}
			for i := range 100 {
				take(t, o, message("kitchen", i))
			}
		}
		time.Sleep(2 * time.Second)
		both := message("kitchen", 1)
		both.Readings = append(both.Readings, message("flood1", 1).Readings...)
		before := o.Stats().Taken
		if _, _, err := o.Append(both); !errors.Is(err, devices.ErrFull) || o.Stats().Taken != before {
			t.Errorf("a message of two devices, one of which has its share: %v, %d readings taken", err, o.Stats().Taken-before)
		}
	})
}

func BenchmarkBacklog(b *testing.B) {
	o, err := Open(filepath.Join(b.TempDir(), "o.db"), Options{Encode: func(_ devices.ID, _ time.Time, rs []devices.Record, _ int) ([]byte, int) {
		return []byte("x"), min(len(rs), 250)
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	for i := range b.N {
		if _, _, err := o.Append(message(devices.ID(fmt.Sprint("d", i%20)), i)); err != nil {
			b.Fatal(err)
		}
	}
	for settled := 0; settled < b.N; {
		p := o.Next()
		if p == nil {
			<-o.Ready()
			continue
		}
		settled += p.Count()
		o.Settle(p)
	}
}

func isMine(o *Outbox, store string) bool {
	_, mine := o.runOf(store)
	return mine
}

// TestKeptIsReadBack: what AckDisk keeps of what the server accepted is sent
// again after a power cut where the server does not show it any more, and no
// more than that; after a mere crash nothing is.
func TestKeptIsReadBack(t *testing.T) {
	const sent = 50 // more than are read back
	for _, test := range []struct {
		name, boot string
		shows      int // the newest number that the server shows
		again      int // how many are sent again
	}{
		{"crash", "b", 0, 0},
		{"the server has all", "another", sent, 0},
		{"the server has more than is known", "another", sent + 1, 0},
		{"the server lost some", "another", sent - 3, 3},
		{"the server lost all", "another", 0, sent},
	} {
		t.Run(test.name, func(t *testing.T) {
			options := testOptions()
			options.Ack, options.CommitAfter = AckDisk, 50*time.Millisecond
			path := filepath.Join(t.TempDir(), "o.db")
			o := open(t, path, options)
			for i := range sent {
				<-take(t, o, message("kitchen", i)).Done()
				o.Settle(nextWithin(t, o))
			}
			store := o.Store()
			<-take(t, o, message("cellar", 1)).Done() // and so what was settled is known on disk
			for range 2 {                             // it goes on being doubtful until it is resolved
				copied := filepath.Join(t.TempDir(), "crashed.db")
				copyJournal(t, path, copied)
				copyStore(t, o, copied)
				options.BootID = test.boot
				o, path = open(t, copied, options), copied
			}
			device, newest, any := o.Doubt()
			if any != (test.boot != "b") || any && (device != "kitchen" || newest != 1) {
				t.Fatalf("doubt %v about %d items of %q", any, newest, device)
			}
			if any {
				if p := o.Next(); p != nil && p.Device == "kitchen" {
					t.Fatalf("%s goes out before that", p.Item())
				}
				o.ReleaseDoubt("kitchen")
				o.Doubt()
				items := []Arrived{{Store: "else.1", Last: sent}}
				if test.shows > 0 {
					items = append(items, Arrived{Store: store, Last: uint64(test.shows)})
				}
				o.Resolve("kitchen", items)
			}
			if n := o.Stats().Disk - 1; n != test.again { // and the cellar's
				t.Errorf("%d readings wait, want %d", n, test.again)
			}
			for range test.again + 1 {
				p := nextWithin(t, o)
				if p.Device == "kitchen" && p.Last <= uint64(test.shows) {
					t.Errorf("%s is sent again", p.Item())
				}
				o.Settle(p)
			}
			if _, _, any := o.Doubt(); any {
				t.Error("there is doubt afterwards")
			}
			counted(t, o)
		})
	}
}

// TestPowerCutHidesNothing has a reading arrive that no disk has, before a power
// cut, and its message come again when the device's log is out. What is kept of
// before must not have pushed it out of the items that are read back.
func TestPowerCutHidesNothing(t *testing.T) {
	options := testOptions()
	options.Ack, options.CommitAfter = AckDisk, 50*time.Millisecond
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, options)
	var server []*Pack // as it was published, the newest last
	publish := func(p *Pack) {
		server = append(slices.DeleteFunc(server, func(s *Pack) bool { return s.Device == p.Device && s.Item() == p.Item() }), p)
		o.Settle(p)
	}
	const kept = 50
	for i := range kept {
		<-take(t, o, message("kitchen", i)).Done()
		publish(nextWithin(t, o))
	}
	<-take(t, o, message("cellar", 1)).Done() // and so what was settled is known on disk
	nextWithin(t, o)
	copied := filepath.Join(t.TempDir(), "cut.db")
	copyJournal(t, path, copied)
	copyStore(t, o, copied)
	last := message("kitchen", kept)
	take(t, o, last)
	publish(nextWithin(t, o))

	options.BootID = "another"
	o = open(t, copied, options)
	work := func() {
		for {
			if device, newest, any := o.Doubt(); any {
				var items []Arrived
				for _, p := range slices.Backward(server) {
					if p.Device != device || newest > 0 && len(items) == newest || len(items) == 40 {
						continue
					}
					a := Arrived{Store: p.Store, Last: p.Last}
					if p.Last > kept {
						a.Origins = []devices.Origin{last.Origin}
					}
					items = append(items, a)
				}
				o.Resolve(device, items)
			} else if p := o.Next(); p != nil {
				publish(p)
			} else if s := o.Stats(); s.Disk+s.Memory == 0 {
				return
			} else {
				select {
				case <-o.Ready():
				case <-time.After(10 * time.Millisecond): // what was found is not told
				}
			}
		}
	}
	work()
	last.Redelivered = true
	again := take(t, o, last)
	work()
	<-again.Done()
	if n := len(server); n != kept+2 { // the cellar's too
		t.Errorf("%d items", n)
	}
}

// TestHeldWhileAsked has a message come again while the newest item of its device
// is on its way here: it may be in one before that.
func TestHeldWhileAsked(t *testing.T) {
	options := testOptions()
	options.Ack, options.CommitAfter = AckDisk, 50*time.Millisecond
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, options)
	<-take(t, o, message("kitchen", 0)).Done()
	o.Settle(nextWithin(t, o))
	<-take(t, o, message("cellar", 1)).Done() // and so what was settled is known on disk
	copied := filepath.Join(t.TempDir(), "cut.db")
	copyJournal(t, path, copied)
	copyStore(t, o, copied)
	store, again := o.Store(), message("kitchen", 1)

	options.BootID = "another"
	o = open(t, copied, options)
	ask := func(want int) devices.ID {
		t.Helper()
		for deadline := time.After(30 * time.Second); ; {
			if device, newest, any := o.Doubt(); any {
				if device != "kitchen" || newest != want {
					t.Fatalf("%d items of %s are asked for, want %d", newest, device, want)
				}
				return device
			}
			select {
			case <-o.Ready():
			case <-deadline:
				t.Fatal("nothing is asked for")
			}
		}
	}
	device := ask(1)
	again.Redelivered = true
	receipt := take(t, o, again)
	o.Resolve(device, []Arrived{{Store: store, Last: 3}})
	o.Resolve(ask(0), []Arrived{{Store: store, Last: 3}, {Store: store, Last: 2, Origins: []devices.Origin{again.Origin}}})
	<-receipt.Done()
	if s := o.Stats(); s.Repeated != 1 {
		t.Errorf("%+v", s)
	}
}

// TestCommittedAfterQuiet: a reading that the server does not take is written in
// time also where the one before was taken before it had to be.
func TestCommittedAfterQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		options := testOptions()
		options.CommitAfter = time.Second
		o := open(t, filepath.Join(t.TempDir(), "o.db"), options)
		time.Sleep(time.Minute) // virtual; what opening leaves to be written is
		synctest.Wait()
		for i := range 3 {
			r := take(t, o, message("kitchen", i))
			p := nextWithin(t, o)
			if i < 2 {
				o.Settle(p)
			}
			time.Sleep(3 * options.CommitAfter)
			synctest.Wait()
			if !isDone(r) {
				t.Errorf("reading %d is not safe", i)
			}
		}
	})
}
