package strictyaml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Fault is one thing that is wrong in a file, told to the person who wrote
// it: where, what, what would be right, and how to get there.
type Fault struct {
	File         string
	Line, Column int    // from 1, in characters
	Key          string // as a path: devices[2].serial.baud; "" for the whole document
	Problem      string // what is wrong
	Allowed      string // what would be right; "" if that goes without saying
	Mend         string // what to do about it
}

// String gives the fault as one line:
//
//	file:line:col: key: what is wrong; allowed values; how to mend it
func (f Fault) String() string {
	key := f.Key
	if key == "" {
		key = "(document)"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: %s: %s", f.File, max(f.Line, 1), max(f.Column, 1), key, f.Problem)
	if f.Allowed != "" {
		b.WriteString("; allowed: " + f.Allowed)
	}
	if f.Mend != "" {
		b.WriteString("; " + f.Mend)
	}
	return b.String()
}

// Faults is all that is wrong in a file. It is an error where there is at
// least one; use [Faults.Err] to make an error that is nil where there is none.
type Faults []Fault

// Error gives one fault a line.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns fs as an error, or nil if there is no fault.
func (fs Faults) Err() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}

// Sort puts the faults into the order of the file. Faults of several files
// keep the order in which the files first appear.
func (fs Faults) Sort() {
	files := map[string]int{}
	for _, f := range fs {
		if _, ok := files[f.File]; !ok {
			files[f.File] = len(files)
		}
	}
	slices.SortStableFunc(fs, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(files[a.File], files[b.File]),
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// clip shortens what a file said, for a message about it.
func clip(s string) string {
	const most = 60
	n := 0
	for i := range s {
		if n == most {
			return s[:i] + "…"
		}
		n++
	}
	return s
}

// quote is clip in quotes, with everything unprintable escaped.
func quote(s string) string { return fmt.Sprintf("%q", clip(s)) }
