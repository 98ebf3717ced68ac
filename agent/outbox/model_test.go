package outbox

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/devices"
)

// encodeText is an Encode whose payload a test can read: five readings a pack,
// or as many as there is room for, "<number>:<value>@<time>" each, with '!' and
// the origin where that is there.
func encodeText(device devices.ID, frozen time.Time, rs []devices.Record, room int) ([]byte, int) {
	if room == 0 {
		room = 5
	}
	rs = rs[:min(len(rs), room)]
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d", device, frozen.UnixMicro())
	for _, r := range rs {
		fmt.Fprintf(&b, " %d:%s@%d", r.Seq, r.Fields[0].Value, r.Time.UnixMicro())
		if r.Origin != (devices.Origin{}) {
			fmt.Fprintf(&b, "!%x", r.Origin)
		}
	}
	return []byte(b.String()), len(rs)
}

func testOptions() Options {
	return Options{Encode: encodeText, Machine: "m", BootID: "b", MaxBytes: 1 << 20}
}

func message(device devices.ID, values ...int) devices.Message {
	m := devices.Message{Origin: devices.NewOrigin([]byte(device), fmt.Append(nil, values))}
	for _, v := range values {
		m.Readings = append(m.Readings, devices.Reading{
			Device: device, Time: time.Now(),
			Fields: []devices.Field{{Name: "n", Value: devices.Number(float64(v)), Unit: "W"}},
		})
	}
	return m
}

// A model drives an outbox as a forwarder and a service would, and remembers
// what each side was told.
type model struct {
	t       *testing.T
	rand    *rand.Rand
	options Options
	path    string
	o       *Outbox
	made    int // stores so far
	next    map[devices.ID]int
	unacked []sent
	acked   map[string]bool   // "device value"
	items   map[string]string // device and item -> payload, as the service has it
	newest  []string          // the same, each where it was published last
	order   map[devices.ID][]int
	settled map[string]int // device and item -> readings that were answered
	crashed bool
	tooBig  int  // packs of more readings than this are refused; 0 is none
	full    bool // readings are big
	dying   bool
	walk    map[string]int // "device value" -> another number of the reading

	mu      sync.Mutex            // what lose needs, which the outbox calls when it likes
	numbers map[thinnedOut]string // -> "device value", of what Append numbered
	gone    map[string]bool       // "device value" -> it was thinned out, and not dropped
	told    map[bool]uint64       // how many were, thinned out or dropped
	unknown int                   // told as lost, of those that were numbered later
	before  uint64                // how many the store held when it was opened
}

type sent struct {
	message devices.Message
	key     []string
	receipt devices.Receipt
}

var modelDevices = []devices.ID{"a", "a-b", "b"}

func newModel(t *testing.T, seed uint64, options Options) *model {
	m := &model{
		t: t, rand: rand.New(rand.NewPCG(seed, 1)), options: options,
		path: filepath.Join(t.TempDir(), "outbox.db"), next: map[devices.ID]int{},
		acked: map[string]bool{}, items: map[string]string{}, order: map[devices.ID][]int{}, settled: map[string]int{},
		walk: map[string]int{}, numbers: map[thinnedOut]string{}, gone: map[string]bool{},
		told: map[bool]uint64{},
	}
	m.options.LossNote = m.lose
	m.open()
	return m
}

func (m *model) open() {
	o, err := Open(m.path, m.options)
	if err != nil {
		m.t.Fatal(err)
	}
	if r := o.recovery; r != nil {
		m.t.Fatalf("a whole store was taken for damaged: %+v", r)
	}
	m.o = o
	m.before = m.here() + o.Stats().Lost
}

// lose is LossNote.
func (m *model) lose(l Loss) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dying {
		return nil
	}
	for _, n := range l.numbers() {
		key, known := m.numbers[thinnedOut{l.Device, l.Store, n}]
		if !known {
			m.unknown++
			continue
		}
		if thinned, told := m.gone[key]; told && !thinned {
			m.t.Errorf("%s was told as lost before %+v", key, l)
		}
		m.gone[key] = l.Kept != nil
		m.told[l.Kept != nil]++
	}
	return nil
}

func (m *model) append() {
	device := modelDevices[m.rand.IntN(len(modelDevices))]
	var values []int
	var s sent
	for range 1 + m.rand.IntN(4) {
		m.next[device]++
		values = append(values, m.next[device])
		s.key = append(s.key, fmt.Sprintf("%s %d", device, m.next[device]))
	}
	msg := message(device, values...)
	for i := range msg.Readings {
		if m.full {
			w := m.rand.IntN(1000)
			m.walk[s.key[i]] = w
			msg.Readings[i].Fields = append(msg.Readings[i].Fields,
				devices.Field{Name: "w", Value: number(fmt.Sprint(w))},
				devices.Field{Name: "pad", Value: devices.Text(fmt.Sprintf("%01700d", values[i]))})
		}
	}
	r, records, err := m.o.Append(msg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.number(records, s.key)
	s.message, s.receipt = msg, r
	m.unacked = append(m.unacked, s)
	if m.rand.IntN(5) == 0 {
		msg.Redelivered = true
		if again, _, err := m.o.Append(msg); err != nil || again != r {
			m.t.Fatalf("a redelivered message was taken again (%v)", err)
		}
	}
	m.collect()
}

// number notes the numbers that readings got; those that are held have none.
func (m *model) number(records []devices.Record, keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, r := range records {
		if r.Seq > 0 {
			m.numbers[thinnedOut{r.Device, m.o.Store(), r.Seq}] = keys[i]
		}
	}
}

// collect notes what was acknowledged.
func (m *model) collect() {
	kept := m.unacked[:0]
	for _, s := range m.unacked {
		select {
		case <-s.receipt.Done():
			if s.receipt.Err() == nil {
				for _, k := range s.key {
					m.acked[k] = true
				}
			}
		default:
			kept = append(kept, s)
		}
	}
	m.unacked = kept
}

// forward sends one pack. Half of the unanswered ones did arrive.
func (m *model) forward(answered bool) bool {
	if device, newest, any := m.o.Doubt(); any {
		if answered {
			m.o.Resolve(device, m.readBack(device, newest))
		} else {
			m.o.ReleaseDoubt(device)
		}
		synctest.Wait()
		m.collect()
		return answered
	}
	m.o.SetRoom(m.rand.IntN(6)) // the pace of the link changes
	p := m.o.Next()
	if p == nil {
		return false
	}
	if _, arrived := m.items[string(p.Device)+" "+p.Item()]; !arrived && m.tooBig > 0 && p.Count() > m.tooBig {
		if !m.o.Split(p) {
			m.t.Fatal("a pack of one reading was to be split")
		}
		return true
	}
	if answered || m.rand.IntN(2) == 0 {
		m.arrive(p)
	}
	if answered {
		m.settled[string(p.Device)+" "+p.Item()] = p.Count()
		m.o.Settle(p)
	} else {
		m.o.Release(p, 0)
	}
	m.collect()
	return true
}

func (m *model) arrive(p *Pack) {
	item := string(p.Device) + " " + p.Item()
	m.newest = append(slices.DeleteFunc(m.newest, func(i string) bool { return i == item }), item)
	if old, again := m.items[item]; again {
		if old != string(p.Payload) {
			m.t.Fatalf("item %s came again with other bytes:\n%s\n%s", p.Item(), old, p.Payload)
		}
		return
	}
	m.items[item] = string(p.Payload)
	numbers := numbersOf(m.t, p)
	for i, word := range strings.Fields(string(p.Payload))[2:] {
		var seq uint64
		var value int
		if _, err := fmt.Sscanf(word, "%d:%d@", &seq, &value); err != nil || i > 0 && seq <= numbers[i-1] {
			m.t.Fatalf("item %s holds %q (%v)", p.Item(), p.Payload, err)
		}
		m.order[p.Device] = append(m.order[p.Device], value)
	}
}

// readBack gives the newest items of a device, of 40 at most.
func (m *model) readBack(device devices.ID, newest int) (items []Arrived) {
	if newest == 0 {
		newest = 40
	}
	for _, item := range slices.Backward(m.newest) {
		d, id, _ := strings.Cut(item, " ")
		if d != string(device) {
			continue
		}
		if newest--; newest < 0 {
			break
		}
		name := strings.Split(id, "-")
		last, err := strconv.ParseUint(name[2], 10, 64)
		if err != nil {
			m.t.Fatal(err)
		}
		a := Arrived{Store: name[0], Last: last}
		for _, word := range strings.Fields(m.items[item]) {
			if _, text, any := strings.Cut(word, "!"); any {
				var origin devices.Origin
				if _, err := hex.Decode(origin[:], []byte(text)); err != nil {
					m.t.Fatal(err)
				}
				a.Origins = append(a.Origins, origin)
			}
		}
		items = append(items, a)
	}
	return items
}

// crash goes on with what the disk holds at this moment. The sources send
// again what was not acknowledged, first of all.
func (m *model) crash() {
	m.collect()
	m.made++
	m.crashed = true
	path := filepath.Join(filepath.Dir(m.path), fmt.Sprintf("outbox-%d.db", m.made))
	copyJournal(m.t, m.path, path)
	copyStore(m.t, m.o, path)
	m.mu.Lock()
	m.dying = true // closing writes, which did not happen
	m.mu.Unlock()
	if err := m.o.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.dying = false
	again := m.unacked
	m.path, m.unacked = path, nil
	if m.rand.IntN(2) == 0 {
		m.options.BootID = fmt.Sprint("b", m.made) // it was a power cut
	}
	m.open()
	for _, s := range again {
		s.message.Redelivered = true
		var err error
		var records []devices.Record
		if s.receipt, records, err = m.o.Append(s.message); err != nil {
			m.t.Fatal(err)
		}
		m.number(records, s.key)
		m.unacked = append(m.unacked, s)
	}
}

// copyJournal puts the journal of a store beside another.
func copyJournal(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(journalPath(from))
	if err == nil {
		err = os.WriteFile(journalPath(to), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// copyStore copies what bbolt has of a store that is at work.
func copyStore(t *testing.T, o *Outbox, to string) {
	t.Helper()
	if err := o.db.View(func(tx *bolt.Tx) error { return tx.CopyFile(to, 0o600) }); err != nil {
		t.Fatal(err)
	}
}

func (m *model) restart() {
	if err := m.o.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.collect()
	if len(m.unacked) > 0 {
		m.t.Fatalf("%d messages are without an answer after a clean stop", len(m.unacked))
	}
	m.open()
}

func (m *model) drain() {
	m.tooBig = 0
	for idle := 0; idle < 3; {
		if m.forward(true) {
			idle = 0
			continue
		}
		synctest.Wait()
		idle++
		time.Sleep(2 * m.options.CommitAfter) // virtual
	}
}

func (m *model) check() {
	for device, values := range m.order {
		seen := map[int]bool{}
		last := 0
		for _, v := range values {
			if seen[v] {
				m.t.Errorf("%s: reading %d is in two items", device, v)
			}
			if v < last {
				m.t.Errorf("%s: reading %d came after %d", device, v, last)
			}
			seen[v], last = true, v
		}
		for key := range m.acked {
			var d devices.ID
			var v int
			fmt.Sscan(key, &d, &v)
			if _, told := m.gone[key]; d != device {
				continue
			} else if told && seen[v] {
				m.t.Errorf("%s: reading %d was told as lost and came", device, v)
			} else if !told && !seen[v] && m.unknown > 0 {
				m.unknown--
			} else if !told && !seen[v] {
				m.t.Errorf("%s: reading %d was acknowledged and is lost", device, v)
			}
		}
		m.checkThinned(device, seen)
	}
	if s := m.o.Stats(); s.Memory != 0 || s.Disk != 0 {
		m.t.Errorf("after the drain %d readings are in memory and %d on disk", s.Memory, s.Disk)
	}
	if err := m.o.Close(); err != nil {
		m.t.Fatal(err)
	}
	checkFile(m.t, m.path)
}

// count checks what the outbox says became of each reading.
func (m *model) count() {
	a := counted(m.t, m.o)
	sums := make(map[devices.ID]proof.Sum)
	for _, d := range a.Devices {
		sums[d.Device] = d.Sum
	}
	for _, device := range modelDevices {
		settled := 0
		for item, n := range m.settled {
			if d, _, _ := strings.Cut(item, " "); d == string(device) {
				settled += n
			}
		}
		s := sums[device]
		given, accepted, unknown := int(s.Given), int(s.Accepted), int(s.Unknown)
		// What AckDisk keeps may be sent again after a restart, and waits until then.
		if !m.crashed && (given != m.next[device] || accepted != settled && m.options.Ack == AckServer || unknown > 0) {
			m.t.Fatalf("%s: %d were given, %d accepted, and the counts are %+v", device, m.next[device], settled, s)
		}
		if accepted > settled {
			m.t.Fatalf("%s: %d were accepted, and the counts are %+v", device, settled, s)
		}
		// What a kill lost is given again, and counted as unknown before if at all.
		if given-unknown > m.next[device] {
			m.t.Fatalf("%s: %d were given, and the counts are %+v", device, m.next[device], s)
		}
	}
	if a.Whole() == m.crashed {
		m.t.Fatalf("crashed %v, gaps %+v", m.crashed, a.Gaps)
	}
}

// checkThinned checks that of a device's readings the lowest and the highest came,
// unless they were dropped, which what was thinned out next to them need not be.
func (m *model) checkThinned(device devices.ID, came map[int]bool) {
	low, high := math.MaxInt, math.MinInt
	for key, w := range m.walk {
		var d devices.ID
		var v int
		if fmt.Sscan(key, &d, &v); d == device && came[v] || d == device && m.isDropped(key) {
			low, high = min(low, w), max(high, w)
		}
	}
	for key, thinned := range m.gone {
		if d, _, _ := strings.Cut(key, " "); d == string(device) && thinned && (m.walk[key] < low || m.walk[key] > high) {
			m.t.Errorf("%s was thinned out and is %d; those that came or were dropped are %d to %d", key, m.walk[key], low, high)
		}
	}
}

func (m *model) isDropped(key string) bool {
	thinned, told := m.gone[key]
	return told && !thinned
}

// checkFile has bbolt check its own structure.
func checkFile(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		var all []error
		for err := range tx.Check() {
			all = append(all, err)
		}
		return errors.Join(all...)
	})
	if err != nil {
		t.Errorf("the file is damaged: %v", err)
	}
}

// balance checks that the numbers of a run add up to those before it.
func (m *model) balance() {
	m.t.Helper()
	s := m.o.Stats()
	if here := m.here(); m.before+s.Taken != s.Settled+s.Thinned+s.Lost+here {
		m.t.Fatalf("the numbers do not add up: %d before, %d here, %+v", m.before, here, s)
	}
}

// here counts the readings in the store but for those that are held, which were
// not taken yet.
func (m *model) here() uint64 {
	s := m.o.Stats()
	n := s.Memory + s.Disk
	m.o.mu.Lock()
	defer m.o.mu.Unlock()
	for _, q := range m.o.queues {
		n -= len(q.held)
	}
	return uint64(n)
}

// TestModel lets messages, answers, silence, refusals, crashes and restarts
// come in any order, and checks at the end that each acknowledged reading
// arrived, in order, in exactly one item, or was told as lost because the store
// was full, which the last seeds see to.
func TestModel(t *testing.T) {
	var thinned, lost atomic.Uint64
	for _, ack := range []Ack{AckServer, AckDisk} {
		for seed := range uint64(115) {
			t.Run(fmt.Sprintf("%s/%d", ack, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					options := testOptions()
					options.Ack, options.CommitAfter = ack, time.Second
					m := newModel(t, seed, options)
					defer func() { m.o.Close() }()
					steps, pause := 300, 2*keepSettled
					if seed%2 == 1 {
						pause = 20 * time.Minute // hours end
					}
					if m.full = seed >= 100; m.full {
						steps = 1000
					}
					for step := range steps {
						m.balance()
						away := m.full && m.rand.IntN(3) > 0
						switch n := m.rand.IntN(100); {
						case n < 40, n < 65 && away:
							m.append()
						case n < 65:
							m.forward(true)
						case n < 78:
							m.forward(false)
						case n < 82:
							m.tooBig = m.rand.IntN(4)
						case n < 95:
							time.Sleep(time.Duration(m.rand.IntN(1500)) * time.Millisecond) // virtual
						case n < 97:
							time.Sleep(pause) // virtual
						case n < 99:
							m.crash()
						default:
							m.restart()
						}
						synctest.Wait()
						if step%5 == 0 {
							m.count()
						}
					}
					m.drain()
					m.count()
					m.balance()
					m.check()
					thinned.Add(m.told[true])
					lost.Add(m.told[false])
				})
			})
		}
	}
	if thinned.Load() == 0 || lost.Load() == 0 {
		t.Errorf("no store was full: %d readings were thinned out, %d dropped", thinned.Load(), lost.Load())
	}
}
