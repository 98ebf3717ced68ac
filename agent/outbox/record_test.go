package outbox

import (
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

func number(literal string) devices.Value {
	v, err := devices.ParseNumber(literal)
	if err != nil {
		panic(err)
	}
	return v
}

func rowOf(rs []devices.Record) []byte {
	e := newRow()
	for _, r := range rs {
		e.add(r)
	}
	return e.payload
}

// TestRowKeepsValues has what a smaller writing of numbers could change.
func TestRowKeepsValues(t *testing.T) {
	var values []devices.Value
	for _, literal := range []string{
		"21.40", "21.4", "21.400", "-0.05", "-0", "-0.0", "0", "0.000", "1e3", "1E-7", "999999999999999", "1000000000000001",
		"-999999999999999", "123456789012345678901234567890", "0.123456789012345", "0.1234567890123456", "-21.50",
	} {
		values = append(values, number(literal))
	}
	values = append(values, devices.Bool(true), devices.Bool(false), devices.Text(""), devices.Text("eco"), devices.Text("eco"), devices.Value{})
	var rs []devices.Record
	for i, v := range values {
		r := devices.Record{Seq: uint64(i) + 7, Reading: devices.Reading{
			Device: "kitchen", Time: time.UnixMicro(1e15 - int64(i*i)).UTC(),
			Fields: []devices.Field{{Name: "n", Value: v, Unit: "W", Kind: devices.Counter}},
		}}
		if i%3 == 0 {
			r.Fields = append(r.Fields, devices.Field{Name: "m", Value: values[len(values)-1-i]})
			r.Origin = devices.NewOrigin([]byte("m"))
		}
		if i%4 == 0 {
			r.Stamp = fmt.Sprint("stamp ", i)
		}
		rs = append(rs, r)
	}
	key := rowKey("kitchen", 3, 7)
	got, err := decodeRow(bucketLog, key, sealed(bucketLog, key, rowOf(rs)))
	if err != nil || !reflect.DeepEqual(got, rs) {
		t.Errorf("%v:\n%v is not\n%v", err, got, rs)
	}
	thin := newThinnedRow(2, 7)
	for i := range rs {
		rs[i].Seq += uint64(i * i)
		thin.add(rs[i])
	}
	value := sealed(bucketLog, key, thin.payload)
	got, err = decodeRow(bucketLog, key, value)
	if err != nil || !reflect.DeepEqual(got, rs) {
		t.Errorf("%v:\n%v is not\n%v", err, got, rs)
	}
	if s, last := rowSpan(3, 7, value), rs[len(rs)-1].Seq; s != (span{3, 7, last, last - 7 + 1 - uint64(len(rs))}) || rowLevel(value) != 2 {
		t.Errorf("the row has %+v", s)
	}
	if s, last := rowAfter(key, value, rs[3].Seq+1), rs[len(rs)-1].Seq; s.count() != len(rs)-4 || s.last != last {
		t.Errorf("the row has %+v after its fourth reading", s)
	}
	if _, err := decodeRow(bucketLog, rowKey("kitchen", 3, 8), sealed(bucketLog, key, rowOf(rs))); err == nil {
		t.Error("a row under the key of another was taken for whole")
	}
}

func FuzzDecodeRow(f *testing.F) {
	at := time.UnixMicro(1e15).UTC()
	reading := func(fields ...devices.Field) devices.Record {
		at = at.Add(time.Second)
		return devices.Record{Reading: devices.Reading{Time: at, Fields: fields}}
	}
	row := rowOf([]devices.Record{
		reading(devices.Field{Name: "t", Value: number("21.40"), Unit: "°C"}, devices.Field{Name: "on", Value: devices.Bool(true)}),
		reading(devices.Field{Name: "t", Value: number("21.41"), Unit: "°C"}, devices.Field{Name: "on", Value: devices.Bool(false)}),
		reading(devices.Field{Name: "mode", Value: devices.Text("eco"), Kind: devices.Setting}),
		reading(devices.Field{Name: "mode", Value: devices.Text("eco"), Kind: devices.Setting}),
		reading(devices.Field{Name: "mode", Value: number("1e9"), Kind: devices.Setting}),
		reading(),
	})
	f.Add(row)
	f.Add(row[:len(row)-1])
	f.Add([]byte("\x01\x00\x00\x00\x01\x00\x03\x8d\x7e\xa4\xc6\x80\x00\x00\x01\x01n\x01W\x00\x01\x0221")) // version 1
	f.Add([]byte{})
	thin := newThinnedRow(1, 1)
	for _, seq := range []uint64{1, 2, 300} {
		r := reading(devices.Field{Name: "t", Value: number("21.40"), Unit: "°C"})
		r.Seq = seq
		thin.add(r)
	}
	f.Add(thin.payload)
	key := rowKey("a", 1, 1)
	f.Fuzz(func(t *testing.T, payload []byte) {
		value := sealed(bucketLog, key, payload)
		if len(payload) > 0 && payload[0] == 1 {
			binary.BigEndian.PutUint32(value, crc(payload))
		}
		got, err := decodeRow(bucketLog, key, value)
		if err != nil {
			return
		}
		fields := 0
		for _, r := range got {
			fields += len(r.Fields)
		}
		if len(got)+fields > len(payload) {
			t.Errorf("%d bytes gave %d readings of %d fields", len(payload), len(got), fields)
		}
		again := newRow()
		if level := rowLevel(value); level > 0 {
			again = newThinnedRow(level, 1)
		}
		for _, r := range got {
			again.append(r)
			again.count(r)
		}
		back, err := decodeRow(bucketLog, key, sealed(bucketLog, key, again.payload))
		if err != nil || !reflect.DeepEqual(got, back) {
			t.Errorf("%v: %v is not %v", err, got, back)
		}
	})
}

func v1Reading(device devices.ID, i int) devices.Reading {
	r := devices.Reading{Device: device, Time: time.Date(2026, 11, 20, 8, 0, i, 0, time.UTC)}
	r.Fields = []devices.Field{{Name: "temperature", Unit: "°C", Value: devices.Number(20 + float64(i)/4)}}
	if i%3 == 0 {
		r.Fields = append(r.Fields,
			devices.Field{Name: "humidity", Unit: "%RH", Value: number(fmt.Sprintf("%d.40", 40+i))},
			devices.Field{Name: "mode", Value: devices.Text("eco"), Kind: 1},
			devices.Field{Name: "on", Value: devices.Bool(i%2 == 0)})
	}
	return r
}

// TestUpgrade opens stores that older versions wrote. Their first run got
// readings 0-11 of two devices and the second 100-108; one pack of each device
// was frozen, and the one of the kitchen settled.
func TestUpgrade(t *testing.T) {
	t.Run("1", func(t *testing.T) { testUpgrade(t, "testdata/v1.db.gz", "8f2f26f381.1", "8f2f26f381.2") })
	t.Run("2", func(t *testing.T) { testUpgrade(t, "testdata/v2.db.gz", "d3675f1c88.1", "d3675f1c88.326") })
}

func testUpgrade(t *testing.T, file, first, second string) {
	path := gunzip(t, file)
	options := testOptions()
	options.Encode = func(device devices.ID, frozen time.Time, rs []devices.Record, _ int) ([]byte, int) {
		rs = rs[:min(len(rs), 5)]
		out := ""
		for _, r := range rs {
			out += fmt.Sprintln(r.Time.UnixMicro(), r.Fields)
		}
		return []byte(out), len(rs)
	}
	for range 2 { // nothing changes by being opened again
		if err := open(t, path, options).Close(); err != nil {
			t.Fatal(err)
		}
	}
	o := open(t, path, options)
	if !isMine(o, second) {
		t.Errorf("store %s", o.Store())
	}
	take(t, o, message("hall", 1)) // goes last
	items := map[devices.ID]string{}
	for n := 0; n < 42-5+1; {
		p := nextWithin(t, o)
		items[p.Device] += " " + p.Item()
		n += p.Count()
		var want string
		for seq := int(p.First); seq <= int(p.Last); seq++ {
			i := seq - 1
			if p.Store == second {
				i += 100
			}
			r := v1Reading(p.Device, i)
			want += fmt.Sprintln(r.Time.UnixMicro(), r.Fields)
		}
		if p.Store != o.Store() && string(p.Payload) != want {
			t.Errorf("%s holds\n%swant\n%s", p.Item(), p.Payload, want)
		}
		o.Settle(p)
	}
	want := map[devices.ID]string{
		"hall":    fmt.Sprintf(" %[1]s-1-5 %[1]s-6-10 %[1]s-11-12 %[2]s-1-5 %[2]s-6-9 %[3]s-1-1", first, second, o.Store()),
		"kitchen": fmt.Sprintf(" %[1]s-6-10 %[1]s-11-12 %[2]s-1-5 %[2]s-6-9", first, second),
	}
	if !reflect.DeepEqual(items, want) {
		t.Errorf("items %v,\nwant %v", items, want)
	}
	var notes []string
	for note := o.NextNote(); note != nil; note = o.NextNote() {
		notes = append(notes, fmt.Sprintf("%d %s", note.Number, note.Body))
		o.SettleNote()
	}
	if want := []string{"1 first note", "2 second note"}; !reflect.DeepEqual(notes, want) {
		t.Errorf("notes %q, want %q", notes, want)
	}
	if s := string(o.State("hall")); s != "warm" {
		t.Errorf("state %q", s)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path)
}

// ordinary makes the readings of a house: devices of one to three fields, each
// with a walk of its own, every 1 to 10 s.
type ordinary struct {
	rand   *rand.Rand
	at     []time.Time
	values [][3]int
}

func newOrdinary(n int) *ordinary {
	o := &ordinary{rand.New(rand.NewPCG(1, 2)), make([]time.Time, n), make([][3]int, n)}
	for i := range o.at {
		o.at[i] = time.UnixMicro(1.7e15).UTC()
		o.values[i] = [3]int{1800 + o.rand.IntN(600), 4000 + o.rand.IntN(2000), o.rand.IntN(9000)}
	}
	return o
}

func (o *ordinary) reading(i int) devices.Reading {
	o.at[i] = o.at[i].Add(time.Duration(1e6+o.rand.IntN(9e6)) * time.Microsecond)
	v := &o.values[i]
	v[0] += o.rand.IntN(11) - 5
	v[1] += o.rand.IntN(41) - 20
	v[2] = max(0, v[2]+o.rand.IntN(801)-400)
	fields := []devices.Field{
		{Name: "temperature", Unit: "°C", Value: number(fmt.Sprintf("%d.%02d", v[0]/100, v[0]%100))},
		{Name: "humidity", Unit: "%RH", Value: number(fmt.Sprintf("%d.%02d", v[1]/100, v[1]%100))},
		{Name: "power", Unit: "W", Value: number(fmt.Sprintf("%d.%d", v[2]/10, v[2]%10))},
	}
	if i%4 == 3 {
		fields = fields[2:]
	}
	return devices.Reading{Device: devices.ID(fmt.Sprint("device-", i)), Time: o.at[i], Fields: fields[:min(len(fields), 1+i%3)]}
}

// BenchmarkStoredBytes measures what a reading costs in the file while the
// server is away.
func BenchmarkStoredBytes(b *testing.B) {
	for _, n := range []int{1, 20, 200} {
		b.Run(fmt.Sprint("devices=", n), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "o.db")
			o, err := Open(path, Options{Encode: encodeText, CommitAfter: time.Millisecond})
			if err != nil {
				b.Fatal(err)
			}
			defer o.Close()
			house := newOrdinary(n)
			const count = 100_000
			for range b.N {
				for i := range count {
					r, _, err := o.Append(devices.Message{Origin: devices.NewOrigin(fmt.Append(nil, i)), Readings: []devices.Reading{house.reading(i % n)}})
					if err != nil {
						b.Fatal(err)
					}
					if i%1000 == 999 {
						<-r.Done()
					}
				}
			}
			s := o.Stats()
			b.ReportMetric(float64(s.UsedBytes)/float64(b.N*count), "bytes/reading")
			written := o.db.Stats().TxStats
			b.ReportMetric(float64(written.GetPageAlloc())/float64(b.N*count), "written-bytes/reading")
		})
	}
}

// TestUpgradeHeld opens a file of version 1 with all else that version could
// keep: what is held, what was accepted and is kept, stamps of a boot that did
// not know the time, and the clock's state.
func TestUpgradeHeld(t *testing.T) {
	path := gunzip(t, "testdata/v1-held.db.gz")
	options := testOptions()
	options.Encode = encodeExact
	options.Ack, options.Machine, options.BootID = AckDisk, "m", "b"
	var clock string
	options.Boot = func(b []byte) []byte { clock = string(b); return b }
	options.Date = func(stamp string) string { return "dating of " + stamp }
	options.Apply = func(dating string, r *devices.Record) {
		if dating == "dating of s1" {
			r.Time = r.Time.Add(time.Hour)
		}
	}
	o := open(t, path, options)
	if !isMine(o, "247de404b8.1") || clock != "clock 2" || string(o.State("kitchen")) != "warm" {
		t.Errorf("store %s, clock %q, state %q", o.Store(), clock, o.State("kitchen"))
	}
	if note := o.NextNote(); note == nil || string(note.Body) != "note" {
		t.Errorf("note %v", note)
	}
	if device, _, any := o.Doubt(); device != "hall" || !any {
		t.Fatalf("doubt about %q", device)
	}
	o.Resolve("hall", []Arrived{{Store: o.Store(), Origins: []devices.Origin{devices.NewOrigin([]byte("hall"), []byte{1})}}})
	items := map[devices.ID]string{} // whose turn is first depends on the commits
	for n := 0; n < 7+2; {
		p := nextWithin(t, o)
		items[p.Device] += fmt.Sprintln(p.Device, p.Item()) + string(p.Payload)
		n += p.Count()
		o.Settle(p)
	}
	got := items["kitchen"] + items["hall"]
	const want = `kitchen 247de404b8.1-6-10
kitchen 1795161605000000 [{n 5  0}]
kitchen 1795165206000000 [{n 6  0}]
kitchen 1795165207000000 [{n 7  0}]
kitchen 1795165208000000 [{n 8  0}]
kitchen 1795165209000000 [{n 9  0}]
kitchen 247de404b8.1-11-12
kitchen 1795165210000000 [{n 10  0}]
kitchen 1795165211000000 [{n 11  0}]
hall 247de404b8.2-1-2
hall 1795161600000000 [{n 0  0}]
hall 1795161602000000 [{n 2  0}]
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// gunzip unpacks a file to where it may be changed.
func gunzip(t *testing.T, name string) (path string) {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "o.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
