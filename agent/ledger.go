package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// ledgerFile is in the data directory.
	ledgerFile = "commands.jsonl"

	// How many commands are remembered, and for how long.
	maxLedger = 1000
	ledgerFor = 24 * time.Hour
	// A token shorter than longToken may be a counter that begins anew with each
	// session, so that it tells commands apart for shortFor only.
	longToken = 16
	shortFor  = time.Minute

	maxLedgerText  = 200 // bytes of a command
	maxLedgerBytes = 8 << 20
)

// A ledger remembers the commands that were sent, so that none is sent twice
// because its message came twice, and that it is known after a crash which of
// them were under way. It is a file of JSON lines: one is appended, and synced,
// before a command is sent, and one is appended when its outcome is known.
type ledger struct {
	path string

	mu      sync.Mutex
	file    *os.File
	entries []*entry // the oldest first
	by      map[string]*entry
	lines   int
}

// An entry is what the ledger knows of a command.
type entry struct {
	Key    string     `json:"key"`
	At     time.Time  `json:"at,omitzero"`
	Device devices.ID `json:"device,omitempty"`
	Author string     `json:"author,omitempty"`
	What   string     `json:"what,omitempty"`

	// Outcome is sent, confirmed, or unknown; "" while it is under way; and
	// refused where it was not sent after all.
	Outcome string        `json:"outcome,omitempty"`
	Why     string        `json:"why,omitempty"`
	After   time.Duration `json:"after,omitempty"`

	came time.Time // At, with the monotonic clock, where it came since the start
	long bool      // it has a long token
}

// outcomeUnknown is that of a command that a crash overtook.
const outcomeUnknown = "unknown"

// openLedger reads what is remembered. unknown is called with each command that
// was under way when the gateway before this one ended. The error tells that
// some of it could not be read, or that no more can be written; the ledger
// remembers what it can.
func openLedger(dir string, unknown func(entry)) (*ledger, error) {
	l := &ledger{path: filepath.Join(dir, ledgerFile), by: make(map[string]*entry)}
	err := l.load()
	for _, e := range l.entries {
		if e.Outcome == "" {
			e.Outcome = outcomeUnknown
			unknown(*e)
		}
	}
	return l, errors.Join(err, l.rewrite())
}

func (l *ledger) load() error {
	f, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxLedgerBytes))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		var e entry
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Key == "" {
			continue // a power cut left a part of it: its command was not sent
		}
		if old := l.by[e.Key]; old != nil && e.Outcome != "" {
			old.Outcome, old.Why, old.After = e.Outcome, e.Why, e.After
			continue
		}
		l.add(&e)
	}
	return lines.Err()
}

// add keeps an entry. Those that are too many or too old go.
func (l *ledger) add(e *entry) {
	l.entries = append(l.entries, e)
	l.by[e.Key] = e
	gone := max(0, len(l.entries)-maxLedger)
	for gone < len(l.entries)-1 && e.At.Sub(l.entries[gone].At) > ledgerFor {
		gone++
	}
	for _, old := range l.entries[:gone] {
		if l.by[old.Key] == old {
			delete(l.by, old.Key)
		}
	}
	l.entries = slices.Delete(l.entries, 0, gone)
}

// rewrite puts what is remembered into a new file, and opens it for more.
func (l *ledger) rewrite() error {
	var b bytes.Buffer
	out := json.NewEncoder(&b)
	l.entries = slices.DeleteFunc(l.entries, func(e *entry) bool { return e.Outcome == bridge.Refused.String() })
	for _, e := range l.entries {
		if err := out.Encode(e); err != nil {
			return err
		}
	}
	if err := durable.Replace(l.path, b.Bytes()); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.lines = f, len(l.entries)
	return nil
}

// begin remembers a command that is about to be sent. begun is nil where it was
// given before: then before tells of it. What is hazardous is refused where it
// cannot be remembered; all else is done all the same.
func (l *ledger) begin(author string, c devices.Command, hazardous bool) (before entry, begun *entry, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, text := time.Now(), commandText(c)
	e := &entry{At: now, came: now, Device: c.Device, Author: author, What: strings.ToValidUTF8(text[:min(len(text), maxLedgerText)], ""), long: len(c.Token) >= longToken}
	e.Key = e.key(c, l.lines)
	if old := l.by[e.Key]; old != nil && old.Outcome != bridge.Refused.String() && (e.long || now.Sub(cmp.Or(old.came, old.At)) < shortFor) {
		return *old, nil, nil
	}
	l.add(e)
	if l.lines > 4*maxLedger {
		err = l.rewrite()
	} else {
		err = l.append(e, c.Token != "" || hazardous)
	}
	if err != nil && hazardous {
		e.Outcome = bridge.Refused.String()
		return before, nil, fmt.Errorf("it is hazardous, and cannot be remembered: %w", err)
	}
	return before, e, nil
}

// key tells commands apart. A client that is back has another resource, and
// counts in a long token alone.
func (e *entry) key(c devices.Command, line int) string {
	author, token := e.Author, c.Token
	switch {
	case e.long:
		author, _, _ = strings.Cut(author, "/")
	case token == "":
		token = fmt.Sprintf("%d %d", e.At.UnixNano(), line)
	}
	h := sha256.New()
	for _, part := range []string{author, token, string(c.Device), c.Name, c.Argument} {
		fmt.Fprintf(h, "%d %s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func (l *ledger) append(e *entry, last bool) error {
	if l.file == nil {
		return l.rewrite() // which has e, or fails as before
	}
	line, err := json.Marshal(e)
	if err == nil {
		l.lines++
		_, err = l.file.Write(append(line, '\n'))
	}
	if err == nil && last {
		err = l.file.Sync()
	}
	return err
}

// end remembers an outcome. It is not synced: what is lost is called unknown.
func (l *ledger) end(e *entry, o bridge.Outcome) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.Outcome, e.After = o.Kind.String(), o.After
	if o.Err != nil {
		e.Why = o.Err.Error()
	}
	return l.append(&entry{Key: e.Key, Outcome: e.Outcome, Why: e.Why, After: e.After}, false)
}

// undo has a command that was not sent be given again. e may be nil.
func (l *ledger) undo(e *entry) {
	if e != nil {
		_ = l.end(e, bridge.Outcome{Kind: bridge.Refused}) // what is lost is called unknown
	}
}

func (l *ledger) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// replay gives the outcome of a command to one who gave it again.
func (e entry) replay(to chan<- bridge.Outcome) {
	defer close(to)
	again := errors.New("it was given before, and is not done again")
	switch e.Outcome {
	case outcomeUnknown, "":
		to <- bridge.Outcome{Kind: bridge.Refused, Err: fmt.Errorf("%w; nobody knows how far it got", again)}
	case bridge.Confirmed.String():
		to <- bridge.Outcome{Kind: bridge.Sent, Err: again}
		to <- bridge.Outcome{Kind: bridge.Confirmed, After: e.After}
	default:
		to <- bridge.Outcome{Kind: bridge.Sent, Err: again}
	}
}
