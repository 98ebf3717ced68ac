package agent

import (
	"fmt"
	"testing"
	"time"
)

func TestRejectsAreSaidOnceInAWhile(t *testing.T) {
	var r rejects
	now := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	said := 0
	for range 1000 {
		if _, say := r.count("kitchen", now); say {
			said++
		}
	}
	if said != 1 {
		t.Errorf("said %d times", said)
	}
	if _, say := r.count("cellar", now); !say {
		t.Error("another source is silenced by the first")
	}
	if more, say := r.count("kitchen", now.Add(rejectEvery)); !say || more != 999 {
		t.Errorf("later: say %v, %d more", say, more)
	}
	if r.sum() != 1002 {
		t.Errorf("counted %d", r.sum())
	}
}

func TestRejectsAreBounded(t *testing.T) {
	var r rejects
	now := time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)
	said := 0
	for i := range 100 * rejectSources {
		if _, say := r.count(fmt.Sprint("made-up-", i), now); say {
			said++
		}
	}
	if len(r.sources) > rejectSources+1 || said > rejectSources+1 {
		t.Errorf("%d sources remembered, %d lines said", len(r.sources), said)
	}
}
