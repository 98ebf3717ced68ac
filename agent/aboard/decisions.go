package aboard

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/devices"
)

// decisionsFile is in the data directory.
const decisionsFile = "discovery.json"

const (
	maxDecisions      = 10_000
	maxDecisionsBytes = 32 << 20
)

// A Decision is what somebody decided of a device.
type Decision struct {
	ID      devices.ID `json:"id"` // stays the device's, whatever else is decided
	Refused bool       `json:"refused"`
	Time    time.Time  `json:"time"`
	Candidate
}

// decisions is the newest of each device. It does not change.
type decisions struct {
	path string
	all  []Decision // oldest first
	by   map[string]int
}

type decisionsForm struct {
	Version   int        `json:"version"`
	Decisions []Decision `json:"decisions"`
}

// openDecisions reads what was decided. A file that cannot be understood is
// set aside, and told as the error beside an empty memory.
func openDecisions(path string) (*decisions, error) {
	d := &decisions{path: path, by: make(map[string]int)}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	var form decisionsForm
	if err == nil {
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(f, maxDecisionsBytes)); err == nil {
			if err = json.Unmarshal(data, &form); err == nil && form.Version != 1 {
				err = fmt.Errorf("version %d is not known", form.Version)
			}
		}
		f.Close()
	}
	if err != nil {
		aside := path + ".broken"
		return d, fmt.Errorf("cannot read what was decided of devices: %w", errors.Join(err, os.Rename(path, aside)))
	}
	d.all = form.Decisions
	d.index()
	return d, nil
}

func (d *decisions) index() {
	for i := range d.all {
		for _, key := range d.all[i].certain() {
			d.by[key] = i
		}
	}
}

// of gives the decision on a candidate. Its place counts most, then its
// address.
func (d *decisions) of(c Candidate) *Decision {
	anywhere := c
	anywhere.Link = anyLink
	for _, key := range append(c.certain(), anywhere.place()) {
		if i, ok := d.by[key]; ok {
			return &d.all[i]
		}
	}
	return nil
}

func (d *decisions) named(id devices.ID) *Decision {
	for i := range d.all {
		if d.all[i].ID == id {
			return &d.all[i]
		}
	}
	return nil
}

var errTooManyDecisions = fmt.Errorf("more than %d devices were refused; remove %s to forget all of it", maxDecisions, decisionsFile)

// with gives the decisions with one more instead of earlier ones on the same
// device, as they are on disk. d itself does not change.
func (d *decisions) with(n Decision) (*decisions, error) {
	next := slices.DeleteFunc(slices.Clone(d.all), func(old Decision) bool {
		return old.ID == n.ID || slices.ContainsFunc(n.certain(), func(key string) bool { return slices.Contains(old.certain(), key) })
	})
	if len(next) >= maxDecisions {
		// What was admitted is in its own file; only its id would be forgotten.
		i := slices.IndexFunc(next, func(old Decision) bool { return !old.Refused })
		if i < 0 {
			return nil, errTooManyDecisions
		}
		next = slices.Delete(next, i, i+1)
	}
	next = append(next, n)
	data, err := json.MarshalIndent(decisionsForm{1, next}, "", " ")
	if err == nil {
		err = durable.Replace(d.path, data)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot write what was decided of devices: %w", err)
	}
	after := &decisions{path: d.path, all: next, by: make(map[string]int)}
	after.index()
	return after, nil
}
