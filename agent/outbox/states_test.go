package outbox

import (
	"bytes"
	"encoding/gob"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/devices"
)

var (
	statesCount = flag.Int("states.n", 20_000, "how many states a card may be in after a power cut are tried")
	statesSeed  = flag.Uint64("states.seed", 1, "what the work and the states are chosen by")
	statesTrace = flag.String("states.trace", "", "a trace that a failed run kept, to be replayed instead of a new one")
	statesOnly  = flag.Int("states.only", -1, "the one state to try of -states.trace")
)

// The trace.
//
// bbolt writes the pages of a commit, syncs, writes one meta page, and syncs.
// Where the file has to grow it does so, with a sync of its own, before the
// pages, and nothing else is unsynced then. So each commit is two epochs: of
// what is written in one epoch a power cut leaves any part, and of what was
// written before it, all. A light commit is one write to the journal, and a
// sync. Whether a trace has all writes is checked against the files.
//
// All moments in a trace are counted in commits: what has the moment c happened
// before the first write of the commit c, and not before that of c-1.

const never = math.MaxInt

type traceWrite struct {
	At   int64
	Data []byte
}

type traceCommit struct {
	Size  int64 // of the file, with what this commit made it grow
	Pages []traceWrite
	Meta  traceWrite
	Light *traceWrite // to the journal, and then nothing else
	// Beside are the files that closing left beside the store, and that
	// opening took away before this commit.
	Beside map[string][]byte
	States map[devices.ID]string // what SetState had been given
}

// A traceReading is what was known of a reading, and when.
type traceReading struct {
	Device  devices.ID
	Value   int // rises by one, of a device
	Message int
	Numbers []traceNumber
	Sent    []traceSent
	Lost    int // told as lost, in this commit
	Perhaps int // the same, of it or of another that was held
}

// A traceNumber is what Append gave a reading. It gives another where the
// message came again after a crash, and no store where the reading was held.
type traceNumber struct {
	Store string
	Seq   uint64
	Micro int64
}

type traceSent struct {
	Store, Item, Payload string
	Origin               bool // the payload names the reading's
	Out, Arrived         int
}

type traceMessage struct {
	Origin          devices.Origin
	First, Count    int // of the readings
	Appended, Acked int
}

type traceNote struct {
	Body           string
	Added, Settled int
}

type trace struct {
	Name      string
	Ack       Ack
	DiskFirst bool
	Base      []byte // the file as it was made
	Commits   []traceCommit
	Readings  []traceReading
	Messages  []traceMessage
	Notes     []traceNote

	index map[traceKey]int
}

type traceKey struct {
	device devices.ID
	value  int
}

func (tr *trace) options() Options {
	return Options{Encode: encodeWhole, Machine: "m", Ack: tr.Ack, DiskFirst: tr.DiskFirst}
}

// fields are those of a reading. flood's are big, so that it fills the store.
func fields(device devices.ID, value int) []devices.Field {
	size := 30
	if device == "flood" {
		size = 16_000
	}
	pad := strings.Repeat(strconv.Itoa(value)+" ", size)[:size]
	return []devices.Field{{Name: "n", Value: devices.Number(float64(value))}, {Name: "pad", Value: devices.Text(pad)}}
}

// encodeWhole is encodeText, and says in the payload where a reading is not as
// it was taken.
func encodeWhole(device devices.ID, frozen time.Time, rs []devices.Record, room int) ([]byte, int) {
	payload, n := encodeText(device, frozen, rs, room)
	for _, r := range rs[:n] {
		value, err := strconv.Atoi(r.Fields[0].Value.String())
		if err != nil || !slices.Equal(r.Fields, fields(device, value)) {
			payload = fmt.Appendf(payload, " altered:%d", r.Seq)
		}
	}
	return payload, n
}

// An encoded is a reading in a payload of encodeWhole.
type encoded struct {
	seq    uint64
	value  int
	micro  int64
	origin bool
}

func decodeWhole(payload []byte) ([]encoded, error) {
	var out []encoded
	for _, word := range strings.Fields(string(payload))[2:] {
		rest, _, origin := strings.Cut(word, "!")
		seq, rest, _ := strings.Cut(rest, ":")
		value, micro, _ := strings.Cut(rest, "@")
		e := encoded{origin: origin}
		var err [3]error
		e.seq, err[0] = strconv.ParseUint(seq, 10, 64)
		e.value, err[1] = strconv.Atoi(value)
		e.micro, err[2] = strconv.ParseInt(micro, 10, 64)
		if errors.Join(err[:]...) != nil {
			return nil, fmt.Errorf("the payload has %q", word)
		}
		out = append(out, e)
	}
	return out, nil
}

// readBack gives the items of a device that have arrived, for Resolve: a part of
// one, for each reading.
func (tr *trace) readBack(device devices.ID, now int) (items []Arrived) {
	for _, r := range tr.Readings {
		if r.Device != device {
			continue
		}
		for _, s := range r.Sent {
			if s.Arrived > now {
				continue
			}
			last, _ := strconv.ParseUint(s.Item[strings.LastIndexByte(s.Item, '-')+1:], 10, 64)
			a := Arrived{Store: s.Store, Last: last}
			if s.Origin {
				a.Origins = append(a.Origins, tr.Messages[r.Message].Origin)
			}
			items = append(items, a)
		}
	}
	return items
}

// A recorder works with a store and records its trace.
type recorder struct {
	*trace
	t       *testing.T
	rand    *rand.Rand
	path    string
	max     int64
	o       *Outbox
	next    map[devices.ID]int
	up      bool // the server answers
	thinned int  // readings that were told as such

	mu      sync.Mutex // the committer writes while the test waits for it
	image   []byte     // the file, by the trace
	journal []byte
	writing bool
	pending map[int]devices.Receipt // by the message
	states  map[devices.ID]string
	beside  map[string][]byte
}

// record does some work with a store, each step when all is quiet after the one
// before.
func record(t *testing.T, name string, ack Ack, diskFirst bool, seed uint64) *trace {
	r := &recorder{
		trace: &trace{Name: name, Ack: ack, DiskFirst: diskFirst, index: make(map[traceKey]int)},
		t:     t, rand: rand.New(rand.NewPCG(seed, 1)),
		path: filepath.Join(shmDir(t), "o.db"), next: make(map[devices.ID]int),
		pending: make(map[int]devices.Receipt), states: make(map[devices.ID]string),
		max: 512 << 10, // and more after the first start, so that the file grows
	}
	defer func() {
		if r.o != nil {
			r.o.Close() // which ends its goroutine, after a failure
		}
	}()
	r.open()
	for part := range 6 {
		for range 250 {
			r.step()
		}
		if part%2 == 0 {
			r.restart()
		} else {
			r.crash()
		}
		r.max = 1 << 20
	}
	for range 100 {
		r.step()
	}
	r.close()

	lost, held, grown := 0, 0, false
	for _, d := range r.Readings {
		if d.Lost < never {
			lost++
		}
		if slices.ContainsFunc(d.Numbers, func(n traceNumber) bool { return n.Store == "" }) {
			held++
		}
	}
	for i := 1; i < len(r.Commits); i++ {
		grown = grown || r.Commits[i].Size > r.Commits[i-1].Size
	}
	t.Logf("%s: %d commits, %d readings, %d of them lost, %d thinned out and %d held; the file grew: %v", name, len(r.Commits), len(r.Readings), lost-r.thinned, r.thinned, held, grown)
	if r.thinned == 0 || held == 0 {
		t.Errorf("%s: the work does not do what it should", name)
	}
	return r.trace
}

func (r *recorder) open() {
	options := r.options()
	options.MaxBytes, options.BootID = r.max, "before"
	options.LossNote = r.lose
	var before []byte
	options.Boot = func([]byte) []byte { // of the first commit, nothing is written yet
		before = r.read()
		return []byte("clock")
	}
	o, err := Open(r.path, options)
	if err != nil {
		r.t.Fatal(err)
	}
	r.o = o
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.image == nil {
		r.Base, r.image, r.journal = before, slices.Clone(before), make([]byte, journalSize)
	}
	r.same(before)
	// The first commit is over before its writes can be seen one by one. What
	// changed is the same but for bytes that changed into themselves.
	after := r.read()
	page := o.db.Info().PageSize
	for at := len(after) - page; at >= 0; at -= page {
		if b := after[at : at+page]; at >= len(before) || !bytes.Equal(b, before[at:at+page]) {
			r.wrote(b, int64(at), page, int64(len(after)))
		}
	}
	r.same(after)
	if r.writing || o.db.NoSync || o.db.NoGrowSync {
		r.t.Fatal("a commit is not pages, a sync, a meta page and a sync")
	}
	r.watch(o.db)
	o.journal.writeAt = func(b []byte, at int64) (int, error) {
		r.wroteLight(b, at)
		return o.journal.file.WriteAt(b, at)
	}
}

func (r *recorder) wroteLight(b []byte, at int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect()
	last := r.Commits[len(r.Commits)-1]
	r.Commits = append(r.Commits, traceCommit{Size: last.Size, States: last.States, Light: &traceWrite{at, slices.Clone(b)}})
	copy(r.journal[at:], b)
}

// full gives the first full commit from a moment on, which writes what light
// ones leave.
func (tr *trace) full(from int) int {
	for i := from; i < len(tr.Commits); i++ {
		if tr.Commits[i].Light == nil {
			return i
		}
	}
	return never
}

// watch has the writes of a database recorded.
func (r *recorder) watch(db *bolt.DB) {
	page := db.Info().PageSize
	beforeWrites(db, func(b []byte, at int64) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		info, err := os.Stat(r.path)
		if err != nil {
			return err
		}
		r.wrote(b, at, page, info.Size())
		return nil
	})
}

// beforeWrites has each write of a database told before it is made. bbolt keeps
// to itself by what it writes.
func beforeWrites(db *bolt.DB, tell func(b []byte, at int64) error) {
	field := reflect.ValueOf(db).Elem().FieldByName("ops").FieldByName("writeAt")
	writeAt := (*func([]byte, int64) (int, error))(unsafe.Pointer(field.UnsafeAddr()))
	write := *writeAt
	*writeAt = func(b []byte, at int64) (int, error) {
		if err := tell(b, at); err != nil {
			return 0, err
		}
		return write(b, at)
	}
}

func (r *recorder) wrote(b []byte, at int64, page int, size int64) {
	if !r.writing {
		r.writing = true
		r.collect()
		r.Commits = append(r.Commits, traceCommit{States: maps.Clone(r.states), Beside: r.beside})
		r.beside = nil
	}
	c := &r.Commits[len(r.Commits)-1]
	c.Size = size
	w := traceWrite{at, slices.Clone(b)}
	if r.writing = at >= int64(2*page); r.writing {
		c.Pages = append(c.Pages, w)
	} else {
		c.Meta = w
	}
	if n := int(size) - len(r.image); n > 0 {
		r.image = append(r.image, make([]byte, n)...)
	}
	copy(r.image[at:], b)
}

func (r *recorder) read() []byte { return r.readFile(r.path) }

func (r *recorder) readFile(name string) []byte {
	b, err := os.ReadFile(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// same checks that the trace gives the file.
func (r *recorder) same(file []byte) {
	if !bytes.Equal(file, r.image) {
		r.t.Fatalf("after %d commits the trace does not give the file", len(r.Commits))
	}
	if !bytes.Equal(r.readFile(journalPath(r.path)), r.journal) {
		r.t.Fatalf("after %d commits the trace does not give the journal", len(r.Commits))
	}
}

// now is this moment.
func (r *recorder) now() int { return len(r.Commits) }

// collect notes which messages were acknowledged.
func (r *recorder) collect() {
	for i, receipt := range r.pending {
		if isDone(receipt) {
			if receipt.Err() != nil {
				r.t.Errorf("message %d: %v", i, receipt.Err())
			}
			r.Messages[i].Acked = r.now()
			delete(r.pending, i)
		}
	}
}

// lose is LossNote.
func (r *recorder) lose(l Loss) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, told := 0, l.numbers()
	for i := range r.Readings {
		d := &r.Readings[i]
		for _, n := range d.Numbers {
			if _, found := slices.BinarySearch(told, n.Seq); found && d.Device == l.Device && n.Store == l.Store {
				d.Lost = min(d.Lost, r.now())
				known++
			}
		}
	}
	if known == 0 { // they were held, and which of those got numbers is not known here
		for i := range r.Readings {
			d := &r.Readings[i]
			if d.Device == l.Device && slices.ContainsFunc(d.Numbers, func(n traceNumber) bool { return n.Store == "" }) {
				d.Perhaps = min(d.Perhaps, r.now())
				known = len(told)
			}
		}
	}
	if known != len(told) {
		r.t.Errorf("%d readings are known of %+v", known, l)
	}
	if l.Kept != nil {
		r.thinned += known
	}
	body := fmt.Sprintf("lost %s %s %d %d %d", l.Device, l.Store, l.First, l.Last, l.Kept)
	r.Notes = append(r.Notes, traceNote{body, r.now(), never})
	return []byte(body)
}

func (r *recorder) step() {
	switch n := r.rand.IntN(100); {
	case n < 25:
		r.append([]devices.ID{"a", "a-b", "c"}[r.rand.IntN(3)])
	case n < 40:
		if !r.up || r.rand.IntN(2) == 0 {
			r.append("flood")
		}
	case n < 65:
		r.forward(r.up && r.rand.IntN(5) > 0)
	case n < 68:
		r.up = !r.up && r.rand.IntN(2) == 0
		for r.up && r.forward(true) { // or the backlog would be all of the work
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
	case n < 72:
		r.note()
	case n < 76:
		device := devices.ID("a")
		value := strconv.Itoa(r.rand.IntN(1000))
		r.states[device] = value
		r.o.SetState(device, []byte(value))
	case n < 78:
		time.Sleep(15 * time.Second) // virtual
	case n < 79:
		time.Sleep(2 * keepSettled)
	default:
		time.Sleep(time.Duration(r.rand.IntN(1500)) * time.Millisecond)
	}
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect()
}

// append takes a message of a new value or some, as of MQTT; of c and flood,
// without origins.
func (r *recorder) append(device devices.ID) {
	r.mu.Lock()
	m := traceMessage{First: len(r.Readings), Count: 1 + r.rand.IntN(4), Appended: r.now(), Acked: never}
	for range m.Count {
		r.next[device]++
		r.index[traceKey{device, r.next[device]}] = len(r.Readings)
		r.Readings = append(r.Readings, traceReading{Device: device, Value: r.next[device], Message: len(r.Messages), Lost: never, Perhaps: never})
	}
	if device != "c" && device != "flood" {
		m.Origin = devices.NewOrigin([]byte(device), fmt.Append(nil, m.First))
	}
	r.Messages = append(r.Messages, m)
	r.mu.Unlock()
	r.deliver(len(r.Messages)-1, false)
	if m.Origin != (devices.Origin{}) && r.rand.IntN(5) == 0 {
		synctest.Wait()
		r.deliver(len(r.Messages)-1, true)
	}
}

func (tr *trace) message(i int, redelivered bool) devices.Message {
	m := tr.Messages[i]
	out := devices.Message{Origin: m.Origin, Redelivered: redelivered}
	for _, d := range tr.Readings[m.First : m.First+m.Count] {
		out.Readings = append(out.Readings, devices.Reading{Device: d.Device, Time: time.Now(), Fields: fields(d.Device, d.Value)})
	}
	return out
}

func (r *recorder) deliver(i int, redelivered bool) {
	m := r.message(i, redelivered)
	if m.Origin != (devices.Origin{}) {
		m.Window = 20
	}
	receipt, records, err := r.o.Append(m)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Messages[i].Acked == never {
		r.pending[i] = receipt
	}
	for j, record := range records {
		n := traceNumber{r.o.Store(), record.Seq, record.Time.UnixMicro()}
		if record.Seq == 0 {
			n.Store = ""
		}
		d := &r.Readings[r.Messages[i].First+j]
		d.Numbers = append(d.Numbers, n)
	}
}

func (r *recorder) note() {
	if r.rand.IntN(2) == 0 {
		body := fmt.Sprintf("note %d", len(r.Notes))
		r.mu.Lock()
		r.Notes = append(r.Notes, traceNote{body, r.now(), never})
		r.mu.Unlock()
		r.o.AddNote([]byte(body))
		return
	}
	note := r.o.NextNote()
	if note == nil {
		return
	}
	r.mu.Lock()
	i := slices.IndexFunc(r.Notes, func(n traceNote) bool { return n.Settled == never })
	if i < 0 || r.Notes[i].Body != string(note.Body) {
		r.t.Errorf("the oldest note is %q", note.Body)
	} else {
		r.Notes[i].Settled = r.now()
	}
	r.mu.Unlock()
	r.o.SettleNote()
}

// forward sends one pack. Half of the unanswered ones do arrive.
func (r *recorder) forward(answered bool) bool {
	if device, _, any := r.o.Doubt(); any {
		if !answered {
			r.o.ReleaseDoubt(device)
			return false
		}
		r.o.Resolve(device, r.readBack(device, r.now()))
		return true
	}
	r.o.SetRoom(r.rand.IntN(6))
	p := r.o.Next()
	if p == nil {
		// Where it waits for a commit that freezes more there is more soon.
		synctest.Wait()
		time.Sleep(2 * minCommitGap)
		synctest.Wait()
		if p = r.o.Next(); p == nil {
			return false
		}
	}
	items, err := decodeWhole(p.Payload)
	if err != nil {
		r.t.Fatal(err)
	}
	arrived := answered || r.rand.IntN(2) == 0
	r.mu.Lock()
	for _, e := range items {
		d := &r.Readings[r.index[traceKey{p.Device, e.value}]]
		if d.Lost < never {
			r.t.Errorf("reading %d of %s was told as lost, and comes in %s", e.value, p.Device, p.Item())
		}
		i := slices.IndexFunc(d.Sent, func(s traceSent) bool { return s.Item == p.Item() })
		if i < 0 {
			i = len(d.Sent)
			d.Sent = append(d.Sent, traceSent{p.Store, p.Item(), string(p.Payload), e.origin, r.now(), never})
		}
		if arrived {
			d.Sent[i].Arrived = min(d.Sent[i].Arrived, r.now())
		}
	}
	r.mu.Unlock()
	if answered {
		r.o.Settle(p)
	} else {
		r.o.Release(p, 0)
	}
	return true
}

func (r *recorder) close() {
	if err := r.o.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collect()
	if len(r.pending) > 0 {
		r.t.Fatalf("%d messages are without an answer after a clean stop", len(r.pending))
	}
	r.same(r.read())
	entries, err := os.ReadDir(filepath.Dir(r.path))
	if err != nil {
		r.t.Fatal(err)
	}
	r.beside = make(map[string][]byte)
	for _, e := range entries {
		if name := filepath.Join(filepath.Dir(r.path), e.Name()); name != r.path && name != journalPath(r.path) {
			if r.beside[e.Name()], err = os.ReadFile(filepath.Join(filepath.Dir(r.path), e.Name())); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

func (r *recorder) restart() {
	r.close()
	r.open()
}

// crash goes on with what the disk holds, and forgets what it does not.
// The sources send again what was not acknowledged, first of all.
func (r *recorder) crash() {
	for range 6 { // which are not on disk, and some of which arrive
		r.append([]devices.ID{"a", "a-b", "c"}[r.rand.IntN(3)])
		r.forward(false)
		synctest.Wait()
	}
	r.mu.Lock()
	r.collect()
	again := slices.Sorted(maps.Keys(r.pending))
	clear(r.pending)
	whole := &trace{Commits: r.Commits, Notes: r.Notes}
	r.mu.Unlock()
	left, leftJournal := r.read(), r.readFile(journalPath(r.path))
	r.same(left)

	// Closing writes, which did not happen.
	old := r.trace
	r.trace = &trace{Commits: slices.Clone(whole.Commits), index: old.index, Readings: old.Readings, Messages: old.Messages, Notes: slices.Clone(whole.Notes)}
	image := slices.Clone(r.image)
	if err := r.o.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.trace, r.image = old, image
	r.path = filepath.Join(shmDir(r.t), "o.db")
	if err := errors.Join(os.WriteFile(r.path, left, 0o600), os.WriteFile(journalPath(r.path), leftJournal, 0o600)); err != nil {
		r.t.Fatal(err)
	}
	now := r.now()
	r.Notes = slices.DeleteFunc(r.Notes, func(n traceNote) bool { return n.Added == now })
	for i := range r.Notes {
		if r.full(r.Notes[i].Settled) == never {
			r.Notes[i].Settled = never
		}
	}
	r.states = maps.Clone(r.Commits[now-1].States)
	r.open()
	for _, i := range again {
		if r.Messages[i].Origin != (devices.Origin{}) {
			r.deliver(i, true)
			synctest.Wait()
		}
	}
}

// shmDir is a directory that costs no card its life.
func shmDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "porchlight-states-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A crashState is one in which a card may be after a power cut: all commits
// before at, and some of its writes.
type crashState struct {
	at        int
	now       int  // how many commits there were, or had begun: at, or one more
	lying     bool // the card had said that pages were synced that were not
	effective bool // the meta page is there, which makes the commit be
	making    bool // the store was being made
	beside    map[string][]byte
	redeliver bool
	file      []byte
	used      int // from there on the file has zeros only
	journal   *image
}

// An image is a journal. Most of it is zeros.
type image struct {
	bytes [journalSize]byte
	used  [2]int64 // of each half
}

func (m *image) write(at int64, b []byte) {
	copy(m.bytes[at:], b)
	half := at / journalHalf
	m.used[half] = max(m.used[half], at+int64(len(b))-half*journalHalf)
}

func (m *image) copyFrom(from *image) {
	for half := range m.used {
		at := half * journalHalf
		n := copy(m.bytes[at:], from.bytes[at:at+int(from.used[half])])
		clear(m.bytes[at+n : at+max(n, int(m.used[half]))])
		m.used[half] = int64(n)
	}
}

func (m *image) put(name string) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	for half := range m.used {
		at := half * journalHalf
		_, writeErr := f.WriteAt(m.bytes[at:at+int(m.used[half])], int64(at))
		err = errors.Join(err, writeErr)
	}
	return errors.Join(err, f.Truncate(journalSize), f.Close())
}

const sector = 512

// state makes one state of the commit at. before is the file before that.
func (tr *trace) state(rand *rand.Rand, at int, before *crashState, buffer *crashState) *crashState {
	c := &tr.Commits[at]
	s := &crashState{at: at, now: at, redeliver: rand.IntN(2) == 0, used: before.used, journal: buffer.journal}
	s.file = append(buffer.file[:0], before.file...)
	s.journal.copyFrom(before.journal)
	if c.Light != nil {
		n := rand.IntN(10)
		s.lying = n >= 6
		s.redeliver = s.redeliver && !s.lying
		if s.effective = n < 3; s.effective {
			s.journal.write(c.Light.At, c.Light.Data)
			return s
		}
		there, all := rand.Float64(), true
		for i := 0; i < len(c.Light.Data); i += sector {
			if part := c.Light.Data[i : i+sector]; rand.Float64() < there {
				s.journal.write(c.Light.At+int64(i), part)
			} else {
				all = all && len(bytes.Trim(part, "\x00")) == 0
			}
		}
		s.effective = all && !s.lying
		return s
	}
	switch n := rand.IntN(10); {
	case at == 0 && n < 3:
		s.making = true
	case n < 3: // it is in the meta page
		for _, w := range c.Pages {
			s.write(w)
		}
		s.effective = s.tear(rand, c.Meta, 0.5)
	case n < 6: // it is in the pages
		if s.some(rand, c.Pages); c.Beside != nil && bytes.Equal(s.file, before.file) {
			s.beside = c.Beside
		}
	case n == 6 && at+1 < len(tr.Commits):
		// Its meta page is not there, and the next commit has begun to write to
		// pages that the one before it leads to.
		s.lying, s.now = true, at+1
		for _, w := range c.Pages {
			s.write(w)
		}
		if next := tr.Commits[at+1]; next.Light == nil {
			s.some(rand, next.Pages)
		} else if rand.IntN(2) == 0 {
			s.journal.write(next.Light.At, next.Light.Data)
		}
	default:
		s.lying = true
		for all := true; all && len(c.Pages) > 0; {
			s.file = append(s.file[:0], before.file...)
			all = s.some(rand, c.Pages)
		}
		if rand.IntN(10) > 0 {
			s.write(c.Meta)
		}
	}
	if n := int(c.Size) - len(s.file); n > 0 && (!s.lying || rand.IntN(2) == 0) {
		s.file = append(s.file, make([]byte, n)...)
	}
	return s
}

// some has some of the writes be there, and some of them torn. It reports
// whether all are there.
func (s *crashState) some(rand *rand.Rand, writes []traceWrite) bool {
	there := []float64{0, 0.1, 0.5, 0.9, 1}[rand.IntN(5)]
	torn := []float64{0, 0.2, 0.9}[rand.IntN(3)]
	all := true
	for _, w := range writes {
		switch {
		case rand.Float64() >= there:
			all = false
		case rand.Float64() < torn:
			s.tear(rand, w, rand.Float64())
			all = false
		default:
			s.write(w)
		}
	}
	return all
}

func (s *crashState) write(w traceWrite) {
	if n := int(w.At) + len(w.Data) - len(s.file); n > 0 {
		s.file = append(s.file, make([]byte, n)...)
	}
	s.used = max(s.used, int(w.At)+len(w.Data))
	copy(s.file[w.At:], w.Data)
}

// tear writes some sectors. It reports whether the first is among them.
func (s *crashState) tear(rand *rand.Rand, w traceWrite, there float64) (first bool) {
	for at := 0; at < len(w.Data); at += sector {
		if rand.Float64() < there {
			s.write(traceWrite{w.At + int64(at), w.Data[at : at+sector]})
			first = first || at == 0
		}
	}
	return first
}

// put makes the directory that the power cut left.
func (s *crashState) put(rand *rand.Rand, dir string) (path string, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	path = filepath.Join(dir, "o.db")
	if err := s.journal.put(journalPath(path)); err != nil {
		return "", err
	}
	if s.making {
		// A store is made aside, and renamed when it is whole.
		torn := &crashState{}
		torn.tear(rand, traceWrite{0, s.file[:s.used/sector*sector]}, rand.Float64())
		return path, os.WriteFile(path+".new", torn.file, 0o600)
	}
	for name, b := range s.beside {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(path, s.file[:s.used], 0o600); err != nil {
		return "", err
	}
	return path, os.Truncate(path, int64(len(s.file)))
}

// A trial is what comes of a state.
type trial struct {
	*trace
	*crashState
	o       *Outbox
	again   map[int]bool // messages that were redelivered
	arrived map[int]string
	items   map[string]bool
	newest  map[devices.ID]int // of what has arrived
	thinned map[thinnedOut]bool
}

// thinnedOut is a reading that is told as such when it is found missing.
type thinnedOut struct {
	device devices.ID
	store  string
	seq    uint64
}

// try opens the store in a state and takes all out of it.
func (tr *trace) try(s *crashState, path string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	options := tr.options()
	options.MaxBytes, options.BootID = 4<<20, "after" // nothing more is evicted
	var losses, recoveries []string
	thinned := make(map[thinnedOut]bool)
	options.LossNote = func(l Loss) []byte {
		if l.Kept == nil {
			losses = append(losses, fmt.Sprintf("%+v", l))
			return []byte("lost")
		}
		for _, n := range l.numbers() {
			thinned[thinnedOut{l.Device, l.Store, n}] = true
		}
		return []byte("lost")
	}
	options.RecoveryNote = func(r Recovery) []byte {
		recoveries = append(recoveries, fmt.Sprint(r))
		return []byte("recovery")
	}
	o, err := Open(path, options)
	if err != nil {
		return err
	}
	o.SetRoom(100)
	t := &trial{trace: tr, crashState: s, o: o, again: make(map[int]bool), arrived: make(map[int]string), items: make(map[string]bool), newest: make(map[devices.ID]int), thinned: thinned}
	err = errors.Join(t.settle(), o.Close())
	if fault := o.Stats().Fault; fault != "" {
		err = errors.Join(err, errors.New(fault))
	}
	if len(losses) > 0 || len(recoveries) > 0 && !s.lying {
		err = errors.Join(err, fmt.Errorf("it tells of losses %q and recoveries %q", losses, recoveries))
	} else if err != nil && len(recoveries) > 0 {
		err = fmt.Errorf("%w; %q", err, recoveries)
	}
	return err
}

func (t *trial) settle() error {
	if t.making {
		if p := t.o.Next(); p != nil {
			return fmt.Errorf("a new store gives %s", p.Payload)
		}
		return nil
	}
	if err := t.checkSmall(); err != nil {
		return err
	}
	if t.redeliver {
		for i, m := range t.Messages {
			if m.Appended <= t.now && m.Acked > t.now && m.Origin != (devices.Origin{}) {
				t.again[i] = true
				if _, _, err := t.o.Append(t.message(i, true)); err != nil {
					return err
				}
			}
		}
	}
	for i, d := range t.Readings {
		for _, s := range d.Sent {
			if s.Arrived <= t.now {
				t.newest[d.Device] = max(t.newest[d.Device], d.Value)
				t.arrived[i] = s.Item
			}
		}
	}
	before := maps.Clone(t.arrived)
	for i, d := range t.Readings {
		for _, s := range d.Sent {
			if s.Arrived > t.at && s.Arrived <= t.now {
				before[i] = "" // the commit that is gone may have frozen it
			}
		}
	}
	for idle := 0; idle < 3; {
		if device, _, any := t.o.Doubt(); any {
			t.o.Resolve(device, t.readBack(device, t.now))
			idle = -1
		} else if p := t.o.Next(); p != nil {
			if err := t.arrive(p, before); err != nil {
				return fmt.Errorf("%s %s: %w", p.Device, p.Item(), err)
			}
			t.o.Settle(p)
			idle = 0
			continue
		}
		idle++
		time.Sleep(time.Second) // virtual
		synctest.Wait()
	}
	if s := t.o.Stats(); s.Memory+s.Disk > 0 {
		return fmt.Errorf("%d readings are in memory and %d on disk, and do not go out", s.Memory, s.Disk)
	}
	missing := 0
	var first traceReading
	for i, d := range t.Readings {
		m := t.Messages[d.Message]
		if _, arrived := t.arrived[i]; arrived || m.Acked > t.at && !t.again[d.Message] {
			continue
		}
		if lost := min(d.Lost, d.Perhaps); lost < t.at || lost <= t.now && (t.effective || t.lying) {
			continue
		}
		if slices.ContainsFunc(d.Numbers, func(n traceNumber) bool {
			// What was held got a number that is not known here.
			return t.thinned[thinnedOut{d.Device, n.Store, n.Seq}] || n.Store == "" && t.toldOfHeld(d)
		}) {
			continue
		}
		if missing++; missing == 1 {
			first = d
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d readings were acknowledged and are gone, among them %+v", missing, first)
	}
	return nil
}

// toldOfHeld reports whether readings of a device were told as thinned out that
// are of no store which numbered its readings when they came.
func (t *trial) toldOfHeld(d traceReading) bool {
	for out := range t.thinned {
		known := func(r traceReading) bool {
			return r.Device == out.device && slices.ContainsFunc(r.Numbers, func(n traceNumber) bool { return n.Store == out.store })
		}
		if out.device == d.Device && !slices.ContainsFunc(t.Readings, known) {
			return true
		}
	}
	return false
}

// checkSmall looks at what SetState and AddNote kept.
func (t *trial) checkSmall() error {
	want := func(last int) error { // where the commit last is the newest
		states := map[devices.ID]string{}
		if last >= 0 {
			states = t.Commits[last].States
		}
		if got := string(t.o.State("a")); got != states["a"] {
			return fmt.Errorf("the state of a is %q, want %q", got, states["a"])
		}
		return nil
	}
	var notes []string
	for n := t.o.NextNote(); n != nil; n = t.o.NextNote() {
		if body := string(n.Body); body != "recovery" && body != "lost" { // which try judges
			notes = append(notes, body)
		}
		t.o.SettleNote()
	}
	wantNotes := func(last int) error {
		var want []string
		for _, n := range t.Notes {
			if t.full(n.Added) <= last && t.full(n.Settled) > last {
				want = append(want, n.Body)
			}
		}
		if !slices.Equal(notes, want) {
			return fmt.Errorf("the notes are %q, want %q", notes, want)
		}
		return nil
	}
	without := errors.Join(want(t.at-1), wantNotes(t.at-1))
	with := errors.Join(want(t.now), wantNotes(t.now))
	switch {
	case t.lying && with != nil && without != nil && (t.now == t.at || errors.Join(want(t.at), wantNotes(t.at)) != nil):
		return fmt.Errorf("%w; or %w", without, with)
	case t.lying:
		return nil
	case t.effective:
		return with
	}
	return without
}

// arrive checks a pack against what the server had before and what it was
// sent.
func (t *trial) arrive(p *Pack, before map[int]string) error {
	if t.items[string(p.Device)+" "+p.Item()] {
		return errors.New("it came twice")
	}
	t.items[string(p.Device)+" "+p.Item()] = true
	readings, err := decodeWhole(p.Payload)
	if err != nil {
		return err
	}
	if len(readings) != p.Count() || readings[0].seq != p.First || readings[len(readings)-1].seq != p.Last {
		return fmt.Errorf("it holds %s", p.Payload)
	}
	for j, e := range readings {
		i, known := t.index[traceKey{p.Device, e.value}]
		if !known || j > 0 && e.seq <= readings[j-1].seq || t.thinned[thinnedOut{p.Device, p.Store, e.seq}] {
			return fmt.Errorf("it holds %s", p.Payload)
		}
		d := t.Readings[i]
		for _, s := range d.Sent {
			if s.Out <= t.at && s.Store == p.Store && (s.Item != p.Item() || s.Payload != string(p.Payload)) {
				return fmt.Errorf("reading %d was sent in %s before:\n%s\n%s", e.value, s.Item, s.Payload, p.Payload)
			}
		}
		n := slices.IndexFunc(d.Numbers, func(n traceNumber) bool { return n.Store == p.Store })
		if item, any := before[i]; any {
			// A store that was damaged goes on under another name, and does not
			// know what it sent under the old one from memory alone.
			if item != "" && item != p.Item() && (!t.lying || n >= 0) {
				return fmt.Errorf("reading %d is at the server in %s", e.value, item)
			}
			continue
		}
		if item, any := t.arrived[i]; any {
			return fmt.Errorf("reading %d came in %s before", e.value, item)
		}
		// What is lost in a commit that is gone may come again.
		again := t.lying && (d.Lost >= t.at && d.Lost <= t.now || d.Perhaps >= t.at && d.Perhaps <= t.now)
		if e.value < t.newest[p.Device] && !again {
			return fmt.Errorf("reading %d came after %d", e.value, t.newest[p.Device])
		}
		t.newest[p.Device], t.arrived[i] = max(e.value, t.newest[p.Device]), p.Item()
		switch {
		case n >= 0 && d.Numbers[n] != traceNumber{p.Store, e.seq, e.micro}:
			return fmt.Errorf("reading %d was %+v and is %+v", e.value, d.Numbers[n], e)
		case n < 0 && !t.again[d.Message] && !slices.ContainsFunc(d.Numbers, func(n traceNumber) bool { return n.Store == "" }):
			return fmt.Errorf("reading %d is of %s, and was %+v", e.value, p.Store, d.Numbers)
		}
	}
	return nil
}

// TestCrashStates records what a store writes, and opens the files that a power
// cut at any moment may leave of it, on a card that keeps what it said is
// synced and on one that lies about the last commit. What was acknowledged must
// be there, once, in order, as it was taken, and in the items in which it was
// sent; from the card that lies, no more than the last commit may be gone.
func TestCrashStates(t *testing.T) {
	total := *statesCount
	if testing.Short() || raced { // the run without it tries all
		total /= 20
	}
	if *statesTrace != "" {
		tr, err := loadTrace(*statesTrace)
		if err != nil {
			t.Fatal(err)
		}
		tr.run(t, total)
		return
	}
	t.Logf("seed %d", *statesSeed)
	kinds := []struct {
		name      string
		ack       Ack
		diskFirst bool
	}{{"server", AckServer, false}, {"disk", AckDisk, false}, {"disk first", AckServer, true}}
	for i, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			var tr *trace
			synctest.Test(t, func(t *testing.T) { tr = record(t, kind.name, kind.ack, kind.diskFirst, *statesSeed+uint64(i)) })
			if !t.Failed() {
				tr.run(t, total*(i+1)/len(kinds)-total*i/len(kinds))
			}
		})
	}
}

// run tries so many states of a trace.
func (tr *trace) run(t *testing.T, total int) {
	dir := shmDir(t)
	workers := runtime.GOMAXPROCS(0)
	var mu sync.Mutex
	failed := 0
	fail := func(i int, s *crashState, err error) {
		mu.Lock()
		defer mu.Unlock()
		if failed++; failed == 1 {
			name, keepErr := tr.keep()
			t.Errorf("replay with -states.trace=%s -states.n=%d -states.seed=%d -states.only=<state> (%v)", name, total, *statesSeed, keepErr)
		}
		if failed <= 10 || !s.lying {
			t.Errorf("%s: state %d, in commit %d, lying %v, effective %v: %v", tr.Name, i, s.at, s.lying, s.effective, err)
		}
	}
	var group sync.WaitGroup
	for w := range workers {
		// bbolt can go round in a damaged file for ever.
		var at atomic.Int64
		ended := make(chan struct{})
		go func() {
			for last := int64(-1); ; {
				select {
				case <-ended:
					return
				case <-time.After(time.Minute):
				}
				if i := at.Load(); i == last {
					panic(fmt.Sprintf("%s: state %d, in %s, does not end", tr.Name, i, dir))
				} else {
					last = i
				}
			}
		}()
		group.Go(func() {
			defer close(ended)
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(24 * time.Hour) // virtual: it is later than in the trace
				tr.runPart(dir, total, total*w/workers, total*(w+1)/workers, &at, fail)
			})
		})
	}
	group.Wait()
	if failed > 0 {
		t.Errorf("%s: %d of %d states failed", tr.Name, failed, total)
	}
}

func (tr *trace) runPart(dir string, total, from, to int, now *atomic.Int64, fail func(int, *crashState, error)) {
	before := &crashState{file: slices.Clone(tr.Base), used: len(bytes.TrimRight(tr.Base, "\x00")), journal: new(image)}
	buffer := &crashState{journal: new(image)}
	for i, at := from, 0; i < to; i++ {
		if *statesOnly >= 0 && i != *statesOnly {
			continue
		}
		for ; at < i*len(tr.Commits)/total; at++ {
			c := &tr.Commits[at]
			if c.Light != nil {
				before.journal.write(c.Light.At, c.Light.Data)
				continue
			}
			for _, w := range append(c.Pages[:len(c.Pages):len(c.Pages)], c.Meta) {
				before.write(w)
			}
			before.file = append(before.file, make([]byte, max(0, int(c.Size)-len(before.file)))...)
		}
		now.Store(int64(i))
		rand := rand.New(rand.NewPCG(*statesSeed, uint64(i)))
		s := tr.state(rand, at, before, buffer)
		buffer.file = s.file
		// Its name tells which state made the process end.
		own := filepath.Join(dir, fmt.Sprintf("state-%d", i))
		path, err := s.put(rand, own)
		if err == nil {
			err = tr.try(s, path)
		}
		if err := errors.Join(err, os.RemoveAll(own)); err != nil {
			fail(i, s, err)
		}
	}
}

// keep writes the trace of a failed test to a file. The same seed gives the same
// work, but bbolt puts its pages elsewhere each time.
func (tr *trace) keep() (string, error) {
	f, err := os.CreateTemp("", "porchlight-*.trace")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(gob.NewEncoder(f).Encode(tr), f.Close())
}

func loadTrace(name string) (*trace, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	tr := &trace{index: make(map[traceKey]int)}
	if err := gob.NewDecoder(f).Decode(tr); err != nil {
		return nil, fmt.Errorf("cannot read the trace %s: %w", name, err)
	}
	for i, d := range tr.Readings {
		tr.index[traceKey{d.Device, d.Value}] = i
	}
	return tr, nil
}
