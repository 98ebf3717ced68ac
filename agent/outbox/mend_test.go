package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/devices"
)

// crashed makes a store of three devices and gives the bytes of the file that a
// crash leaves, and what waits in it, by device and item number.
func crashed(t *testing.T) ([]byte, map[string]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "o.db")
	options := testOptions()
	options.MaxBytes, options.CommitAfter = 1<<20, time.Millisecond
	o := open(t, path, options)
	want := make(map[string]string)
	for i := 1; i <= 200; i++ {
		for _, device := range []devices.ID{"a", "b", "c"} {
			r := take(t, o, message(device, i))
			if i%5 == 0 {
				<-r.Done() // and so a commit
			}
			want[fmt.Sprintf("%s %s %d", device, o.Store(), i)] = fmt.Sprint(i)
		}
	}
	copied := filepath.Join(t.TempDir(), "crashed.db")
	if err := o.db.View(func(tx *bolt.Tx) error { return tx.CopyFile(copied, 0o600) }); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	// The copy has two metas of one transaction; the file has two of two.
	original, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return append(original[:2*4096:2*4096], b[2*4096:]...), want
}

// drained gives what a store sends, and fails where it sends anything twice or
// altered.
func drained(t *testing.T, o *Outbox, want map[string]string) (delivered int) {
	t.Helper()
	seen := make(map[string]bool)
	deadline := time.Now().Add(30 * time.Second)
	for o.Stats().Disk > 0 {
		p := o.Next()
		if p == nil {
			if time.Now().After(deadline) {
				t.Fatalf("%+v, and nothing to be sent", o.Stats())
			}
			time.Sleep(time.Millisecond) // what is missing is told as lost soon
			continue
		}
		for i, word := range strings.Fields(string(p.Payload))[2:] {
			_, value, _ := strings.Cut(word, ":")
			value, _, _ = strings.Cut(value, "@")
			key := fmt.Sprintf("%s %s %d", p.Device, p.Store, p.First+uint64(i))
			if want[key] != value || seen[key] {
				t.Fatalf("%s is sent as %q, want %q; sent before: %v", key, value, want[key], seen[key])
			}
			seen[key] = true
			delivered++
		}
		o.Settle(p)
	}
	return delivered
}

// TestDamagedFile damages a file in many ways: the store opens and works, what
// it sends is what was stored, and where anything is missing it says so.
func TestDamagedFile(t *testing.T) {
	whole, want := crashed(t)
	const seed = 1 // the same files each time
	random := rand.New(rand.NewPCG(seed, 0))
	zero := func(from, to int) func([]byte) []byte {
		return func(b []byte) []byte { clear(b[from:to]); return b }
	}
	newest := 0
	if txid := func(page int) uint64 { return binary.LittleEndian.Uint64(whole[page*4096+pageHead+48:]) }; txid(1) > txid(0) {
		newest = 1
	}
	cases := map[string]func([]byte) []byte{
		"well":           func(b []byte) []byte { return b },
		"newest meta":    zero(newest*4096, newest*4096+4096),
		"older meta":     zero((1-newest)*4096, (1-newest)*4096+4096),
		"both metas":     zero(0, 2*4096),
		"half of it":     func(b []byte) []byte { return b[:len(b)/2] },
		"two pages":      func(b []byte) []byte { return b[:2*4096] },
		"a few bytes":    func(b []byte) []byte { return b[:100] },
		"nothing":        func([]byte) []byte { return nil },
		"something else": func(b []byte) []byte { return bytes.Repeat([]byte("not a store "), 10_000) },
	}
	for i := range 30 {
		cases[fmt.Sprint("page zeroed ", i)] = func(b []byte) []byte {
			page := 2 + random.IntN(len(b)/4096-2)
			clear(b[page*4096 : (page+1)*4096])
			return b
		}
		cases[fmt.Sprint("bits flipped ", i)] = func(b []byte) []byte {
			for range 1 + random.IntN(20) {
				b[random.IntN(len(b))] ^= 1 << random.IntN(8)
			}
			return b
		}
		cases[fmt.Sprint("page swapped ", i)] = func(b []byte) []byte {
			from, to := 2+random.IntN(len(b)/4096-2), 2+random.IntN(len(b)/4096-2)
			copy(b[to*4096:(to+1)*4096], bytes.Clone(b[from*4096:(from+1)*4096]))
			return b
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		harm := cases[name]
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "o.db")
			if err := os.WriteFile(path, harm(bytes.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			options := testOptions()
			options.MaxBytes, options.CommitAfter = 1<<20, time.Millisecond
			notes := 0
			options.RecoveryNote = func(Recovery) []byte { notes++; return []byte("recovered") }
			o := open(t, path, options)
			delivered := drained(t, o, want)
			lost := int(o.Stats().Lost)
			switch {
			case delivered+lost > len(want):
				t.Errorf("%d delivered, %d told as lost, of %d; seed %d", delivered, lost, len(want), seed)
			case delivered+lost < len(want) && o.recovery == nil && lost == 0:
				// How many a damaged row held, it cannot tell for sure.
				t.Errorf("%d delivered, %d told as lost, of %d, and no damage is told; seed %d", delivered, lost, len(want), seed)
			case (o.recovery != nil) != (notes == 1):
				t.Errorf("recovery %+v, %d notes; seed %d", o.recovery, notes, seed)
			case name == "well" && o.recovery != nil:
				t.Errorf("a file that is well: %v", o.recovery)
			case strings.HasSuffix(name, "meta") && (o.recovery == nil || !o.recovery.Reverted || delivered < len(want)-1):
				t.Errorf("%v, %d delivered", o.recovery, delivered)
			}
			if r := o.recovery; r != nil && !r.Reverted {
				if _, err := os.Stat(r.Aside); err != nil {
					t.Error(err)
				}
			}
			<-take(t, o, message("new", 1)).Done()
			if err := o.Close(); err != nil {
				t.Fatal(err)
			}
			checkFile(t, path)
		})
	}
}

// TestTwoDamagedFilesAreKept: the card is not filled with them.
func TestTwoDamagedFilesAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	for i := range 4 {
		if err := os.WriteFile(path, []byte(fmt.Sprint("damaged ", i)), 0o600); err != nil {
			t.Fatal(err)
		}
		o := open(t, path, Options{Encode: encodeText, MaxBytes: 1 << 20})
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path + cleanMark); err != nil {
			t.Fatal(err)
		}
	}
	var kept []string
	for i := range 6 {
		if b, err := os.ReadFile(fmt.Sprintf("%s.damaged-%d", path, i)); err == nil {
			kept = append(kept, string(b))
		}
	}
	if strings.Join(kept, ", ") != "damaged 2, damaged 3" {
		t.Errorf("kept are %q", kept)
	}
}

// TestNewerStoreIsNotTouched though it was not closed in order.
func TestNewerStoreIsNotTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.db")
	o := open(t, path, Options{Encode: encodeText, MaxBytes: 1 << 20})
	err := o.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(metaVersion, binary.BigEndian.AppendUint32(nil, schemaVersion+1))
	})
	if err := errors.Join(err, o.Close(), os.Remove(path+cleanMark)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Encode: encodeText, MaxBytes: 1 << 20}); !errors.Is(err, ErrNewer) {
		t.Errorf("%v, want ErrNewer", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed (%v)", err)
	}
}

// FuzzImage reads any bytes as a file.
func FuzzImage(f *testing.F) {
	path := filepath.Join(f.TempDir(), "o.db")
	db, err := newFile(path, 0)
	if err != nil {
		f.Fatal(err)
	}
	db.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readImage(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		for _, meta := range m.metas {
			entries := 0
			err := m.walk(meta, func(_, key, value []byte) { entries += 1 + len(key) + len(value) }, func(error) {})
			if err != nil || entries > 100*len(b) {
				t.Fatalf("%v, %d entries", err, entries)
			}
		}
	})
}
