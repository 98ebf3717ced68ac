package main

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// A ledger is the file of what was acknowledged: each line was synced before
// the device went on.
type ledger struct {
	mu    sync.Mutex
	file  *os.File
	acked map[string]map[int]time.Time // device, number
	made  map[string]map[int]time.Time // when the device had the reading
	total int
	err   error
}

func openLedger(path string) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the ledger: %w", err)
	}
	return &ledger{file: f, acked: make(map[string]map[int]time.Time), made: make(map[string]map[int]time.Time)}, nil
}

// measured notes the true time of a reading.
func (l *ledger) measured(device string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made[device] == nil {
		l.made[device] = make(map[int]time.Time)
	}
	l.made[device][n] = time.Now()
}

func (l *ledger) acknowledged(device string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.acked[device] == nil {
		l.acked[device] = make(map[int]time.Time)
	}
	l.acked[device][n] = now
	l.total++
	_, err := fmt.Fprintf(l.file, "%s %s %d\n", now.Format(stamp), device, n)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil && l.err == nil {
		l.err = fmt.Errorf("cannot write the ledger: %w", err)
	}
}

// stamp is the time in logs, to be compared with the gateway's.
const stamp = "15:04:05.000"
