package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/torture/faultfs"
)

// encodeExact is an Encode that says which reading is which, so that an altered
// one is seen.
func encodeExact(_ devices.ID, _ time.Time, rs []devices.Record, _ int) ([]byte, int) {
	rs = rs[:min(len(rs), 20)]
	var b strings.Builder
	for _, r := range rs {
		fmt.Fprintln(&b, r.Device, r.Time.UnixMicro(), r.Fields)
	}
	return []byte(b.String()), len(rs)
}

func exactly(r devices.Reading) string { return fmt.Sprintln(r.Device, r.Time.UnixMicro(), r.Fields) }

// aged makes the file of a store that has seen some life: two runs, many
// commits, settled readings, frozen packs without an answer, notes, and what
// is held of one device. It gives
// the readings it took, which are true where they wait in it, and the items
// that were sent.
func aged(t *testing.T, path string, options Options) (taken map[string]bool, sent map[string]string) {
	taken, sent = map[string]bool{}, map[string]string{}
	house := newOrdinary(6)
	for run := range 2 {
		o := open(t, path, options)
		for i := range 5 {
			m := message("held", 10*run+i)
			m.Redelivered = true
			m.Readings[0].Time = time.Unix(int64(1e9+10*run+i), 0).UTC()
			taken[exactly(m.Readings[0])] = true
			take(t, o, m)
		}
		for i := range 600 {
			r := house.reading(i % 6)
			m := devices.Message{Origin: devices.NewOrigin(fmt.Append(nil, run, i)), Readings: []devices.Reading{r}}
			if i%5 == 0 {
				m.Readings[0].Fields = append(m.Readings[0].Fields, devices.Field{Name: "id", Value: devices.Text(fmt.Sprintf("%0200d", i))})
			}
			taken[exactly(m.Readings[0])] = true
			take(t, o, m)
			if i%20 == 0 {
				time.Sleep(2 * time.Second)
				synctest.Wait()
			}
			if i%40 != 1 {
				continue
			}
			if p := o.Next(); p != nil {
				sent[string(p.Device)+p.Item()] = string(p.Payload)
				if i%80 == 1 {
					o.Settle(p)
					for line := range strings.SplitAfterSeq(strings.TrimSpace(string(p.Payload)), "\n") {
						taken[strings.TrimSpace(line)+"\n"] = false
					}
				}
			}
		}
		o.AddNote(fmt.Append(nil, "note ", run))
		o.SetState("device-1", []byte("warm"))
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return taken, sent
}

// damages are what cards, and people, do to a file.
func damages() map[string]func(r *rand.Rand, b []byte) []byte {
	page := int64(os.Getpagesize())
	used := func(b []byte) int64 { // bytes that were ever written
		order := boltOrder()
		return int64(max(order.Uint64(b[16+40:]), order.Uint64(b[page+16+40:]))) * page
	}
	newest := func(b []byte) int64 {
		if order := boltOrder(); order.Uint64(b[16+48:]) > order.Uint64(b[page+16+48:]) {
			return 0
		}
		return page
	}
	zero := func(b []byte) { clear(b) }
	return map[string]func(r *rand.Rand, b []byte) []byte{
		"nothing": func(_ *rand.Rand, b []byte) []byte { return b },
		"bit": func(r *rand.Rand, b []byte) []byte {
			b[r.Int64N(used(b))] ^= 1 << r.IntN(8)
			return b
		},
		"bits": func(r *rand.Rand, b []byte) []byte {
			end := used(b) // before it is hurt
			for range 30 {
				b[r.Int64N(end)] ^= 1 << r.IntN(8)
			}
			return b
		},
		"page": func(r *rand.Rand, b []byte) []byte {
			at := r.Int64N(used(b)/page) * page
			zero(b[at : at+page])
			return b
		},
		"old page": func(r *rand.Rand, b []byte) []byte {
			to, from := r.Int64N(used(b)/page)*page, r.Int64N(used(b)/page)*page
			copy(b[to:to+page], b[from:from+page])
			if r.IntN(2) == 0 {
				boltOrder().PutUint64(b[to:], uint64(to/page))
			}
			return b
		},
		"cut":   func(r *rand.Rand, b []byte) []byte { return b[:r.Int64N(used(b))] },
		"empty": func(*rand.Rand, []byte) []byte { return nil },
		"newest meta": func(r *rand.Rand, b []byte) []byte {
			b[newest(b)+16+r.Int64N(64)] ^= 1 << r.IntN(8)
			return b
		},
		"both metas": func(r *rand.Rand, b []byte) []byte {
			zero(b[:2*page])
			return b
		},
		"page size": func(r *rand.Rand, b []byte) []byte {
			for _, at := range []int64{0, page} {
				binary.NativeEndian.PutUint32(b[at+16+8:], 16384)
			}
			return b
		},
		"noise": func(r *rand.Rand, b []byte) []byte {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			return b
		},
	}
}

// TestDamage opens damaged stores. Each must work, give no reading that it did
// not get, repeat an item only as it was, and tell where something is missing.
func TestDamage(t *testing.T) {
	options := testOptions()
	options.Encode = encodeExact
	for name, damage := range damages() {
		rounds := uint64(12)
		if strings.HasPrefix(name, "bit") || strings.HasSuffix(name, "page") {
			rounds = 60
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "o.db")
				taken, sent := aged(t, path, options)
				whole, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				for seed := range rounds {
					hurt := damage(rand.New(rand.NewPCG(seed, 1)), append([]byte(nil), whole...))
					path := filepath.Join(dir, fmt.Sprint(seed, ".db"))
					if err := os.WriteFile(path, hurt, 0o600); err != nil {
						t.Fatal(err)
					}
					openDamaged(t, fmt.Sprintf("%s, seed %d", name, seed), path, options, taken, sent, name == "nothing")
					os.Remove(path)
				}
			})
		})
	}
}

func openDamaged(t *testing.T, name, path string, options Options, taken map[string]bool, sent map[string]string, whole bool) {
	lost, thinned := uint64(0), uint64(0)
	options.LossNote = func(l Loss) []byte {
		if lost += l.Count; l.Kept != nil {
			thinned += l.Count // counted when it was done, not when it is told
		}
		return []byte("lost")
	}
	o, err := Open(path, options)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer o.Close()
	recovered := o.recovery
	counted(t, o)
	if whole && recovered != nil {
		t.Errorf("%s: recovered %+v", name, recovered)
	}
	fresh := devices.Reading{Device: "device-1", Time: time.UnixMicro(2e15).UTC(), Fields: []devices.Field{{Name: "n", Value: number("1")}}}
	take(t, o, devices.Message{Readings: []devices.Reading{fresh}})
	arrived := false
	got := map[string]bool{}
	for idle := 0; idle < 3; {
		p := o.Next()
		if p == nil {
			for device, _, some := o.Doubt(); some; device, _, some = o.Doubt() {
				o.Resolve(device, nil)
			}
			idle++
			time.Sleep(2 * time.Second) // virtual
			continue
		}
		idle = 0
		if before, again := sent[string(p.Device)+p.Item()]; again && before != string(p.Payload) {
			t.Errorf("%s: item %s has other bytes than when it was sent first", name, p.Item())
		}
		for line := range strings.SplitAfterSeq(string(p.Payload), "\n") {
			waits, known := taken[line]
			switch {
			case line == "":
			case line == exactly(fresh):
				arrived = true
			case got[line]:
				t.Errorf("%s: reading came twice: %s", name, line)
			case !waits && (recovered == nil || !known):
				t.Errorf("%s: reading %q was never taken, or was settled", name, line)
			default:
				got[line] = true
			}
		}
		o.Settle(p)
	}
	if fault := o.Stats().Fault; !arrived || fault != "" {
		t.Errorf("%s: the store does not work: arrived %v, fault %q", name, arrived, fault)
	}
	if a := counted(t, o); !whole && recovered == nil && a.Total.LostAll() != lost-thinned {
		t.Errorf("%s: %d are told as lost, %d counted", name, lost-thinned, a.Total.LostAll())
	}
	missing, again := 0, 0
	for line, waits := range taken {
		if waits && !got[line] {
			missing++
		}
		if !waits && got[line] {
			again++
		}
	}
	if missing > 0 && recovered == nil && uint64(missing) > lost {
		t.Errorf("%s: %d readings are missing, %d are told as lost", name, missing, lost)
	}
	if recovered != nil && recovered.Aside != "" {
		os.Remove(recovered.Aside)
	}
	if testing.Verbose() {
		t.Logf("%s: %+v, %d of %d missing, %d told as lost, %d settled ones again", name, recovered, missing, len(taken), lost, again)
	}
	if err := o.Close(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	checkFile(t, path)
}

// TestCardFails takes the file away under the map: an outbox that cannot read
// its card says so, and the process lives.
func TestCardFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, testOptions())
	values := make([]int, 3000)
	r := take(t, o, message("kitchen", values...))
	<-r.Done()
	if err := os.Truncate(path, int64(2*os.Getpagesize())); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Reader().Contents(); err == nil {
		t.Error("who looks is not told")
	}
	if _, faults, err := o.Reader().Verify(); err == nil && len(faults) == 0 {
		t.Error("verified")
	}
	o.Next() // wants it frozen from the disk
	if err := o.Close(); err == nil {
		t.Error("closed without an error")
	}
	if !strings.Contains(o.Stats().Fault, "cannot read the file") {
		t.Errorf("fault %q", o.Stats().Fault)
	}
}

// TestDamageWhileRunning flips bits in a file that is open, while it is drained
// and readings come. Whatever they hit, no opening sends a reading twice or one
// that was never taken; what is not sent is told as lost, or the store says that
// it failed, and a start mends it and sends the rest.
func TestDamageWhileRunning(t *testing.T) {
	options := testOptions()
	options.Encode = encodeExact
	failed, told := 0, uint64(0)
	places := []string{"row", "key", "page", "head"}
	for seed := range uint64(40) {
		where := places[seed%uint64(len(places))]
		synctest.Test(t, func(t *testing.T) {
			lost := uint64(0)
			options := options
			options.LossNote = func(l Loss) []byte {
				lost += l.Count
				return []byte("lost")
			}
			options.Ack = []Ack{AckServer, AckDisk}[seed/uint64(len(places))%2]
			r := rand.New(rand.NewPCG(seed, 3))
			path := filepath.Join(t.TempDir(), "o.db")
			o := open(t, path, options)
			house, taken, sent := newOrdinary(3), map[string]devices.Receipt{}, map[string]bool{}
			more := func(n int) {
				for range n {
					r := house.reading(len(taken) % 3)
					taken[exactly(r)] = take(t, o, devices.Message{Readings: []devices.Reading{r}})
				}
			}
			now := map[string]bool{} // what this opening sent
			drain := func(packs int) {
				for idle := 0; idle < 3 && packs > 0 && !t.Failed(); {
					p := o.Next()
					if p == nil {
						idle++
						time.Sleep(2 * time.Second) // virtual
						continue
					}
					idle = 0
					packs--
					for line := range strings.SplitAfterSeq(string(p.Payload), "\n") {
						if line == "" {
							continue
						}
						if taken[line] == nil || now[line] {
							t.Errorf("%s, seed %d: %q was never taken, or comes twice", where, seed, line)
						}
						now[line], sent[line] = true, true
					}
					o.Settle(p)
					if r.IntN(4) == 0 {
						more(3)
					}
				}
			}
			more(3000)
			time.Sleep(2 * time.Second)
			drain(1 + r.IntN(8))
			for range 1 + r.IntN(2) {
				flip(t, path, r, where)
			}
			more(30)
			drain(1000)
			time.Sleep(2 * time.Second)
			again := o.Close() != nil
			if again {
				failed++
				o, now = open(t, path, options), map[string]bool{}
				again = o.recovery != nil // which tells of what it cannot count
				drain(1000)
				if fault := o.Stats().Fault; fault != "" {
					t.Errorf("%s, seed %d: after a start: %s", where, seed, fault)
				}
			}
			told += lost
			missing := uint64(0)
			for line, receipt := range taken {
				if !sent[line] && isDone(receipt) && receipt.Err() == nil {
					missing++
				}
			}
			if missing != lost && !again {
				t.Errorf("%s, seed %d: %d readings are missing, %d are told as lost", where, seed, missing, lost)
			}
			if missing > uint64(len(taken)/2) {
				t.Errorf("%s, seed %d: %d readings of %d are missing", where, seed, missing, len(taken))
			}
		})
	}
	if failed == 0 || told == 0 {
		t.Errorf("%d stores failed, %d readings were told as lost: too little was damaged", failed, told)
	}
}

// flip flips a bit in a row of readings, in a key, in a page that is in use, or
// in the head of one.
func flip(t *testing.T, path string, r *rand.Rand, where string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	metas, err := readMetas(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(metas) == 0 {
		return // by the flip before
	}
	size := metas[0].pageSize
	all := make([]byte, int64(metas[0].pages)*size)
	if _, err := f.ReadAt(all, 0); err != nil {
		t.Fatal(err)
	}
	type place struct{ at, n int64 }
	var rows, keys, whole, heads []place
	w := newWalk(&pages{f, boltOrder(), size, metas[0].pages})
	var items []item
	w.visit = func(bucket []byte, it item) error {
		items = append(items, it)
		return nil
	}
	w.broken = func(error) error { return nil } // by the flip before
	if err := w.root(metas[0].root); err != nil {
		t.Fatal(err)
	}
	for _, m := range metas {
		heads = append(heads, place{m.at, pageHeader + metaSize})
	}
	used := bytes.Clone(all)
	for id := range metas[0].pages {
		if !w.wasSeen(id) {
			clear(used[int64(id)*size : int64(id+1)*size])
			continue
		}
		whole = append(whole, place{int64(id) * size, size})
		heads = append(heads, place{int64(id) * size, pageHeader + pageElement})
	}
	for _, it := range items {
		if at := bytes.Index(used, append(bytes.Clone(it.key), it.value...)); at >= 0 {
			keys = append(keys, place{int64(at), int64(len(it.key))})
			if len(it.value) > 100 {
				rows = append(rows, place{int64(at + len(it.key)), int64(len(it.value))})
			}
		}
	}
	those := map[string][]place{"row": rows, "key": keys, "page": whole, "head": heads}[where]
	if len(those) == 0 {
		return
	}
	p := those[r.IntN(len(those))]
	at := p.at + r.Int64N(p.n)
	if _, err := f.WriteAt([]byte{all[at] ^ 1<<r.IntN(8)}, at); err != nil {
		t.Fatal(err)
	}
}

// TestPermission: what may not be read is no damage either.
func TestPermission(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	if err := open(t, path, testOptions()).Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0, 0o400} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends here
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData // root may read anything
			err := unix.Capset(&header, &none[0])
			if err == nil {
				_, err = Open(path, testOptions())
			}
			done <- err
		}()
		if err := <-done; !errors.Is(err, os.ErrPermission) {
			t.Errorf("mode %v: %v", mode, err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("mode %v: the file was changed, %v", mode, err)
		}
	}
	if all, _ := os.ReadDir(filepath.Dir(path)); len(all) != 2 { // and its journal
		t.Errorf("there are %v", all)
	}
}

// TestInlineHead damages the number of the page that a small bucket is within
// another: bbolt would take it for that of a page to be freed.
func TestInlineHead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, testOptions())
	take(t, o, message("kitchen", 1, 2, 3))
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head := append([]byte(nil), bucketCounts...)
	head = append(head, make([]byte, 16)...) // no page of its own, no sequence
	n := bytes.Count(file, head)
	for rest := file; ; {
		at := bytes.Index(rest, head)
		if at < 0 {
			break
		}
		rest = rest[at+len(head):]
		boltOrder().PutUint64(rest, 1<<31)
	}
	if err := os.WriteFile(path, file, 0o600); err != nil || n == 0 {
		t.Fatalf("%d buckets, %v", n, err)
	}
	o = open(t, path, testOptions())
	if a := counted(t, o); o.recovery == nil || a.Total.Given != 3 || a.Total.Waiting != 3 {
		t.Errorf("%+v, counts %+v", o.recovery, a.Total)
	}
}

// TestNotDamage has errors that are no damage: the file stays.
func TestNotDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "o.db")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, testOptions()); err == nil {
		t.Error("a folder was opened")
	}
	if there, _ := os.ReadDir(dir); len(there) != 1 {
		t.Errorf("there are %v", there)
	}
	if _, err := Open(filepath.Join(dir, "none", "o.db"), testOptions()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestTwoDamagedAreKept(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "o.db")
	for i := range 4 {
		if err := os.WriteFile(path, fmt.Append(nil, "noise ", i), 0o600); err != nil {
			t.Fatal(err)
		}
		o := open(t, path, testOptions())
		if r := o.recovery; r == nil || r.Aside != fmt.Sprint(path, ".damaged-", i+1) {
			t.Errorf("recovered %+v", r)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		b, err := os.ReadFile(fmt.Sprint(path, ".damaged-", i+1))
		if kept := err == nil && string(b) == fmt.Sprint("noise ", i); kept != (i >= 2) {
			t.Errorf("damaged file %d: %q, %v", i+1, b, err)
		}
	}
}

// TestFailedSync has the last sync of a commit fail, and after a start and a
// power cut all is well: the system shows what the disk never got. It runs in a
// child process; see [faultfs.Disk.Mount].
func TestFailedSync(t *testing.T) {
	if dir := os.Getenv("OUTBOX_DISK"); dir != "" {
		o := open(t, filepath.Join(dir, "o.db"), testOptions())
		if o.recovery != nil {
			t.Fatal(o.recovery)
		}
		take(t, o, message("kitchen", 1, 2, 3))
		if os.Getenv("OUTBOX_CLOSE") == "" {
			os.Exit(0) // as a killed process does
		}
		return
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil || os.Geteuid() != 0 {
		t.Skipf("SKIPPED: mounting needs root and /dev/fuse (%v), so nothing is known of it", err)
	} else {
		f.Close()
	}
	d, dir := faultfs.New(), t.TempDir()
	mount := func() (unmount func()) {
		end, err := d.Mount(dir)
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := end(); err != nil {
				t.Fatal(err)
			}
		}
	}
	use := func(env ...string) {
		child := exec.Command(os.Args[0], "-test.run", "^TestFailedSync$", "-test.v")
		child.Env = append(append(os.Environ(), "OUTBOX_DISK="+dir), env...)
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	pages := func() (b []byte, newest int64) {
		f, err := os.Open(filepath.Join(dir, "o.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		metas, err := readMetas(f)
		if err != nil {
			t.Fatal(err)
		}
		b = make([]byte, 2*metas[0].pageSize)
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b, metas[0].at
	}
	unmount := mount()
	use("OUTBOX_CLOSE=1")
	old, _ := pages()
	use("OUTBOX_CLOSE=1")
	now, at := pages()
	f, err := os.OpenFile(filepath.Join(dir, "o.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) error {
		_, err := f.WriteAt(b[at:at+pageHeader+metaSize], at)
		return errors.Join(err, f.Sync())
	}
	kept := write(old)
	d.Set(faultfs.Trouble{FailSyncs: true})
	failed := write(now)
	d.Set(faultfs.Trouble{})
	if err := errors.Join(kept, f.Close()); err != nil || failed == nil {
		t.Fatalf("%v, %v", err, failed)
	}
	use()
	unmount()
	d.Cut(rand.New(rand.NewPCG(1, 1)))
	defer mount()()
	use()
}

// TestDamageThinned opens damaged stores that were full. Their free pages are
// full of rows of which other rows were made by thinning.
func TestDamageThinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		options := testOptions()
		options.Encode, options.CommitAfter = encodeExact, 10*time.Second
		dir := t.TempDir()
		path := filepath.Join(dir, "o.db")
		o := open(t, path, options)
		house, known := newOrdinary(2), map[string]bool{}
		for i := range 60_000 {
			r := house.reading(i % 2)
			r.Fields = append(r.Fields, devices.Field{Name: "n", Value: number(fmt.Sprint(house.rand.Int64N(1e15)))})
			known[exactly(r)] = false
			take(t, o, devices.Message{Readings: []devices.Reading{r}})
			time.Sleep(50 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		thinned := o.Stats().Thinned
		err := o.Reader().Each(func(s Stored) error {
			known[exactly(s.Reading)] = true
			return nil
		}, func(f Fault) { t.Errorf("%+v", f) })
		if n, faults, verifyErr := o.Reader().Verify(); err != nil || verifyErr != nil || len(faults) > 0 || uint64(n)+thinned != 60_000 || thinned < 10_000 {
			t.Errorf("%d readings are well, %d were thinned out: %v %v %v", n, thinned, faults, err, verifyErr)
		}
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, damage := range damages() {
			for seed := range uint64(3) {
				hurt := damage(rand.New(rand.NewPCG(seed, 1)), append([]byte(nil), whole...))
				path := filepath.Join(dir, fmt.Sprint(seed, ".db"))
				if err := os.WriteFile(path, hurt, 0o600); err != nil {
					t.Fatal(err)
				}
				openDamaged(t, fmt.Sprintf("%s, seed %d", name, seed), path, options, known, nil, name == "nothing")
				os.Remove(path)
			}
		}
	})
}
