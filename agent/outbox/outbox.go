package outbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/porchlight-iot/porchlight/crashpoint"
	"github.com/porchlight-iot/porchlight/devices"
)

// Ack says when a device may be acknowledged.
type Ack string

// The ways to acknowledge.
const (
	AckServer Ack = "server" // accepted by the server or committed, whichever comes first
	AckDisk   Ack = "disk"   // committed
)

// Options are what an Outbox needs besides its file.
type Options struct {
	MaxBytes    int64         // the size of the file; 0 is 256 MiB, less than 1 MiB is that
	CommitAfter time.Duration // the longest that an unaccepted reading stays unwritten; 0 is 1 s
	Ack         Ack           // "" is AckServer
	DiskFirst   bool          // nothing is sent that is not on disk: for payloads without origins
	BootID      string        // of this boot; "" is not known
	Machine     string        // names this machine: a store of another one does not go on under its name

	// Encode makes the payload of one item of the oldest n of rs, as many as
	// fit in room, or in any item where room is 0; n is at least 1. The same
	// arguments must always give the same bytes, and readings that once were
	// an item must fit in one with room 0. It is called with the outbox locked
	// or in a transaction, and must not call back.
	Encode func(device devices.ID, frozen time.Time, rs []devices.Record, room int) (payload []byte, n int)

	// Boot, where it is not nil, is given what it gave before, and gives the
	// state of a clock in which this boot is known, before a reading of it is
	// taken. State gives it anew at each commit, or nil where it is not worth a
	// write; with stamped it always is.
	Boot  func(state []byte) []byte
	State func(stamped bool) []byte
	// Date, where it is not nil, dates a moment by its stamp; Apply gives a
	// reading with a stamp its time by it, and its bounds. A pack is dated
	// when its boundaries are made, and the dating is kept with them.
	Date  func(stamp string) (dating string)
	Apply func(dating string, r *devices.Record)

	// Now gives the time as well as it is known, and where it is not, the stamp
	// by which Date can tell it later. Where it is nil, the machine's clock is
	// believed. It must not call back.
	Now func() (at time.Time, stamp string)
	// Written, where it is not nil, gives how many bytes this process has
	// written to disks.
	Written func() int64

	// LossNote makes the note that tells people of a loss. It must not call
	// back. It may be nil.
	LossNote func(Loss) []byte
	// RecoveryNote makes the note that tells people of a damage that was found
	// when the store was opened. It may be nil.
	RecoveryNote func(Recovery) []byte

	Log *slog.Logger // nil is silence
}

const (
	defaultMaxBytes    = 256 << 20
	minMaxBytes        = 1 << 20 // one commit must fit in the eighth that is kept free
	defaultCommitAfter = time.Second

	// commitBytes of unwritten readings are a reason to commit at once.
	commitBytes = 128 << 10
	// maxMemory bounds the unwritten readings: it is approached only where the
	// disk does not take what it should.
	maxMemory = 16 << 20
	// minCommitGap is the shortest time between two commits, so that no
	// device can wear the card by its rate.
	minCommitGap = 50 * time.Millisecond
	// tidyAfter is how long what was settled may stay on disk where nothing
	// else is to be written.
	tidyAfter = 10 * time.Second
	// keepSettled is for how long AckDisk keeps what the server accepted: a
	// server on this machine loses in a power cut what its system had not
	// written yet.
	keepSettled = time.Minute
	// tidyKept is when at the latest that is deleted, if nothing else is to be
	// written.
	tidyKept = 4 * keepSettled
	// packLimit bounds the readings that are offered to Encode for one pack.
	packLimit = 2000
)

// ErrLocked says that another process has the store.
var ErrLocked = errors.New("another process uses it")

// ErrNewer says that a newer version of the program wrote the store.
var ErrNewer = errors.New("a newer version of this program wrote it")

// errClosed says that the outbox was closed.
var errClosed = errors.New("the outbox is closed")

// An Outbox is one open store. See the package comment.
type Outbox struct {
	db   *bolt.DB
	file *os.File // the same, to look at its pages (sight); nil until it is loaded

	transaction uint64        // the last that was written; the committer's
	pulse       devices.Pulse // of the committer
	options     Options
	log         *slog.Logger
	run         uint32
	recovery    *Recovery // nil where the file was well
	heldRun     uint32    // of readings that were held, where there may be some; see hold.go
	resumed     bool      // another run was before
	store       string

	mu      sync.Mutex
	queues  map[devices.ID]*queue
	turn    []*queue // those that may have something to send, in the order of their turns
	runs    map[uint32]string
	notes   notes
	states  map[devices.ID]stateRow
	counts  counts
	origins origins
	journal journal
	waiting map[*queue]struct{} // those that have unwritten readings or want to be frozen
	memory  int                 // estimated bytes of unwritten readings
	fresh   bool                // the committer will look in time for what comes next
	saving  bool                // Save was called
	urgent  bool                // an ack window is half full, or a queue wants to be frozen
	failed  error               // why nothing can be written any more
	down    chan struct{}       // closed then
	closed  bool
	stats   Stats
	tidy    []settled // what the disk may forget, oldest first

	room atomic.Int64 // for Encode, where it decides boundaries

	ready chan struct{} // has a token when Next may have something
	kick  chan struct{} // has a token when the committer should look again
	done  chan struct{} // is closed when the committer ended
}

type stateRow struct {
	value []byte
	dirty bool
}

// settled is a place up to which a device's readings may be deleted.
type settled struct {
	queue *queue
	place place
	at    time.Time
}

// Stats counts what went through since Open, and what is here now.
type Stats struct {
	Store     string `json:"store"`
	Taken     uint64 `json:"taken"`     // readings
	Settled   uint64 `json:"settled"`   // readings that the server accepted
	Thinned   uint64 `json:"thinned"`   // readings left out because it was full; see evict.go
	Lost      uint64 `json:"lost"`      // readings, each in a Loss
	Repeated  uint64 `json:"repeated"`  // messages that came again and were recognised
	Commits   uint64 `json:"commits"`   // to the store, which write some pages each
	Batches   uint64 `json:"batches"`   // to the journal, of a page mostly
	Memory    int    `json:"memory"`    // readings here that are not on disk
	Disk      int    `json:"disk"`      // readings here that are on disk
	UsedBytes int64  `json:"usedBytes"` // of the file, at the last commit
	Fault     string `json:"fault,omitempty"`
}

// What is written as the reason of a loss, where it is not the server's word for
// a refusal.
const (
	ReasonFull    = evicted
	ReasonDamaged = "the row is damaged"
)

// A Loss is readings that will not reach the server.
type Loss struct {
	Device      devices.ID
	Store       string
	First, Last uint64
	Count       uint64 // of them; of what was thinned before, it was told, or is in here
	Reason      string
	Time        time.Time
	// Kept is set where readings were thinned out: of the numbers from First
	// on, so many are not lost, then so many are, and so on in turn.
	Kept []uint64
}

// Open opens the store at path, makes it where there is none, and starts a new
// run. The caller closes it.
func Open(path string, options Options) (*Outbox, error) {
	if options.MaxBytes == 0 {
		options.MaxBytes = defaultMaxBytes
	}
	options.MaxBytes = max(options.MaxBytes, minMaxBytes)
	if strconv.IntSize == 32 {
		options.MaxBytes = min(options.MaxBytes, defaultMaxBytes) // it is mapped into memory
	}
	if options.CommitAfter == 0 {
		options.CommitAfter = defaultCommitAfter
	}
	if options.Ack == "" {
		options.Ack = AckServer
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	db, recovery, err := openFile(path, options)
	if err != nil {
		return nil, fmt.Errorf("cannot open the outbox %s: %w", path, err)
	}
	o := &Outbox{
		db:       db,
		recovery: recovery,
		options:  options,
		log:      options.Log,
		queues:   make(map[devices.ID]*queue),
		runs:     make(map[uint32]string),
		states:   make(map[devices.ID]stateRow),
		waiting:  make(map[*queue]struct{}),
		origins:  origins{receipts: make(map[devices.Origin]*receipt)},
		ready:    make(chan struct{}, 1),
		kick:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		down:     make(chan struct{}),
	}
	if o.journal.file, err = openJournal(path); err != nil {
		o.log.Warn("the outbox has no journal; each commit writes more to the card", "error", err)
	} else {
		o.journal.writeAt = o.journal.file.WriteAt
	}
	crashpoint.At(crashpoint.StoreOpened)
	if err := o.load(); err != nil {
		o.journal.close()
		db.Close()
		return nil, fmt.Errorf("cannot read the outbox %s: %w", path, err)
	}
	if o.file, err = os.Open(path); err != nil {
		o.journal.close()
		db.Close()
		return nil, fmt.Errorf("cannot read the outbox %s: %w", path, err)
	}
	crashpoint.At(crashpoint.StoreLoaded)
	o.stats.Store = o.store
	go o.commitLoop()
	return o, nil
}

// Failed gives a channel that is closed when the file cannot be written any
// more, which another start alone can change. Until then the outbox goes on in
// memory, as far as that is bounded; with [AckDisk] nothing is taken.
func (o *Outbox) Failed() <-chan struct{} { return o.down }

// Turn tells whether the committer gets on; see [devices.Pulse].
func (o *Outbox) Turn() (n uint64, busy bool) { return o.pulse.Turn() }

// Recovered tells what Open had to do to the file; nil where it was well.
func (o *Outbox) Recovered() *Recovery { return o.recovery }

// Close writes what is not settled, stops the committer and closes the file.
func (o *Outbox) Close() error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		<-o.done
		return nil
	}
	o.closed = true
	o.mu.Unlock()
	crashpoint.At(crashpoint.StoreClosing)
	o.wakeCommitter()
	<-o.done
	crashpoint.At(crashpoint.StoreCommitted)
	err := errors.Join(o.journal.close(), o.db.Close(), o.file.Close())
	crashpoint.At(crashpoint.StoreClosed)
	o.mu.Lock()
	defer o.mu.Unlock()
	for q := range o.waiting {
		for _, e := range q.memory {
			e.receipt.add(-1, errClosed)
		}
		for _, h := range q.held {
			if h.key == 0 {
				h.receipt.add(-1, errClosed)
			}
		}
		q.memory, q.held = nil, nil
	}
	if o.failed != nil {
		return o.failed
	}
	if err != nil {
		return fmt.Errorf("cannot close the outbox: %w", err)
	}
	return nil
}

// Store names this opening of the outbox, as item ids do.
func (o *Outbox) Store() string { return o.store }

// Ready has a token whenever Next may have something that it had not before.
func (o *Outbox) Ready() <-chan struct{} { return o.ready }

// Append takes the readings of one message and gives each its place in its
// device's log. Their times must be set. The receipt is done when all of them are
// safe. A message that the transport says was sent before, and that was taken
// in this run, is not taken again: its receipt is given, and no records.
//
// The error is [devices.ErrFull] where the disk does not take what it should
// and a device has its share of the memory, and then nothing was taken.
func (o *Outbox) Append(m devices.Message) (devices.Receipt, []devices.Record, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, nil, errClosed
	}
	if m.Redelivered {
		if r := o.origins.receipts[m.Origin]; r != nil {
			o.stats.Repeated++
			for _, reading := range m.Readings {
				o.counts.book.Repeated(reading.Device, 1)
			}
			return r, nil, nil
		}
	}
	if o.failed != nil && o.options.Ack == AckDisk {
		return nil, nil, devices.ErrFull
	}
	for _, reading := range m.Readings {
		// However many a device sends, it leaves the others as much as it has
		// itself.
		if o.queue(reading.Device).size >= maxMemory-o.memory {
			return nil, nil, devices.ErrFull
		}
	}
	if m.Redelivered && o.unsure(m) {
		return o.hold(m)
	}
	records := make([]devices.Record, 0, len(m.Readings))
	now := time.Now()
	r := newReceipt(len(m.Readings))
	for _, reading := range m.Readings {
		q := o.queue(reading.Device)
		e := entry{receipt: r, came: now, size: entrySize(reading)}
		e.Seq, e.Reading, e.Origin = q.next, reading, m.Origin
		e.Time = q.spread(reading.Time)
		q.next, q.arrived = q.next+1, nil // which counts before the first new one only
		q.memory = append(q.memory, e)
		q.size += e.size
		o.memory += e.size
		o.waiting[q] = struct{}{}
		o.enqueue(q)
		o.stats.Taken++
		o.counts.book.Given(q.device, o.run, e.Seq, e.Seq)
		records = append(records, e.Record)
	}
	if m.Window > 0 && len(m.Readings) > 0 {
		q := o.queue(m.Readings[0].Device)
		q.unacked++
		r.queue = q
		if q.unacked >= m.Window/2 {
			o.urgent = true
		}
	}
	if m.Origin != (devices.Origin{}) {
		o.origins.remember(m.Origin, r)
	}
	o.urgent = o.urgent || o.options.DiskFirst
	if !o.fresh || o.urgent || o.memory >= commitBytes {
		o.fresh = true
		o.wakeCommitter()
	}
	return r, records, nil
}

// entrySize estimates the bytes that a reading takes in memory, and about as
// many in the file.
func entrySize(r devices.Reading) int {
	size := 32
	for _, f := range r.Fields {
		size += 16 + len(f.Name) + len(f.Unit) + len(f.Value.String())
	}
	return size
}

func (o *Outbox) queue(device devices.ID) *queue {
	q := o.queues[device]
	if q == nil {
		q = &queue{device: device, next: 1, heldNext: 1, diskFirst: o.options.DiskFirst}
		o.queues[device] = q
	}
	return q
}

// Stats tells what went through and what is here.
func (o *Outbox) Stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.stats
	for _, q := range o.queues {
		s.Memory += q.unsafe()
		s.Disk += q.onDisk() + q.unsent() - q.unsafe()
		for _, h := range q.held {
			if h.key == 0 {
				s.Memory++
			} else {
				s.Disk++
			}
		}
	}
	if o.failed != nil {
		s.Fault = o.failed.Error()
	}
	return s
}

// State gives what SetState kept for a device, in this run or one before.
func (o *Outbox) State(device devices.ID) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.states[device].value
}

// SetState keeps a small value for a device. It reaches the disk with the next
// commit that has another reason, at the latest with Close: losing it costs
// nothing but comfort.
func (o *Outbox) SetState(device devices.ID, value []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.states[device] = stateRow{value, true}
}

// Save has everything written that waits to be written with something else.
func (o *Outbox) Save() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.saving, o.urgent = true, true
	o.wakeCommitter()
}

func (o *Outbox) wakeCommitter() { signal(o.kick) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// A receipt is done when each of its readings is.
type receipt struct {
	mu    sync.Mutex
	left  int
	err   error
	done  chan struct{}
	queue *queue // whose ack window the message is in; nil if none
}

func newReceipt(readings int) *receipt {
	r := &receipt{left: readings, done: make(chan struct{})}
	if readings == 0 {
		close(r.done)
	}
	return r
}

// add is called with the outbox locked.
func (r *receipt) add(n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left <= 0 {
		return
	}
	if err != nil {
		r.err = err
	}
	r.left += n
	if r.left <= 0 {
		close(r.done)
		if r.queue != nil {
			r.queue.unacked--
		}
	}
}

// Done implements [devices.Receipt].
func (r *receipt) Done() <-chan struct{} { return r.done }

// Err implements [devices.Receipt].
func (r *receipt) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func newRandom() (string, error) {
	var b [5]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}

const maxRun = math.MaxUint32 - 1
