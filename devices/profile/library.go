package profile

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	profiles "github.com/porchlight-iot/porchlight/firmware-profiles"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// A Library is profiles by their ids. It does not change, and may be used from
// any goroutine.
type Library struct {
	profiles map[string]*Profile
	aliases  map[string]string
	names    []string
	// byFirst has the profiles with MQTT topics by the first level of these;
	// those that begin with a capture stand under "". Each list is in the order
	// in which they are asked.
	byFirst map[string][]*Profile
	broken  []string
}

// Builtin gives the profiles that come with the program.
func Builtin() (*Library, error) {
	return load(profiles.FS, nil)
}

// Load gives the profiles that come with the program, and those of a folder
// (files <id>.yaml), which take the place of built-in ones of the same id. A
// profile that is wrong is left out, the built-in one then staying, and told in
// the error, which is a [strictyaml.Faults]; the library is usable
// nevertheless. A folder that is not there is empty.
func Load(folder string) (*Library, error) {
	return load(profiles.FS, os.DirFS(folder), folder)
}

// Reload gives what Load would now, but that a profile which is wrong stays as
// it was. Profiles that did not change are the same, and the library is where
// none did.
func (l *Library) Reload(folder string) (*Library, error) {
	next, err := Load(folder)
	for _, id := range next.broken {
		if before := l.profiles[id]; before != nil {
			next.profiles[id] = before
		}
	}
	changed := len(next.profiles) != len(l.profiles) || !slices.Equal(next.broken, l.broken)
	for id, p := range next.profiles {
		if before := l.profiles[id]; before.equal(p) {
			next.profiles[id] = before
		} else {
			changed = true
		}
	}
	if !changed {
		return l, err
	}
	next.index()
	return next, err
}

// Broken gives the ids of profiles that are wrong, in order.
func (l *Library) Broken() []string { return slices.Clone(l.broken) }

// equal reports whether two profiles, and those that they extend, say the same.
func (p *Profile) equal(q *Profile) bool {
	if p == q || p == nil || q == nil {
		return p == q
	}
	return bytes.Equal(p.source, q.source) && p.base.equal(q.base)
}

func load(builtin, own fs.FS, folder ...string) (*Library, error) {
	l := &Library{profiles: make(map[string]*Profile), aliases: make(map[string]string)}
	all := l.add(builtin, "")
	if own != nil {
		all = append(all, l.add(own, filepath.Join(folder...))...)
	}
	l.index()
	return l, all.Err()
}

// A source is a profile's file that waits for the one that it extends.
type source struct {
	file string
	data []byte
}

// add reads the profiles of a folder, those first that others extend.
func (l *Library) add(folder fs.FS, where string) (all strictyaml.Faults) {
	fault := func(file string, err error) {
		var faults strictyaml.Faults
		if !errors.As(err, &faults) {
			faults = strictyaml.Faults{{File: file, Line: 1, Column: 1, Problem: "cannot be read: " + err.Error(), Mend: "let the gateway's user read it, or remove it"}}
		}
		all = append(all, faults...)
	}
	entries, err := fs.ReadDir(folder, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		fault(where, err)
		return all
	}
	files := make(map[string]source)
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".yaml")
		if !ok || e.IsDir() {
			continue
		}
		data, err := fs.ReadFile(folder, e.Name())
		if err != nil {
			fault(filepath.Join(where, e.Name()), err)
			l.broken = append(l.broken, id)
			continue
		}
		files[id] = source{filepath.Join(where, e.Name()), data}
	}
	var read func(id string) *Profile
	read = func(id string) *Profile {
		s, ok := files[id]
		if !ok {
			for l.Get(id) == nil && len(files) > 0 { // it may be what another was called before
				read(sortedKeys(files)[0])
			}
			return l.Get(id)
		}
		before := l.profiles[id] // what a profile of the same name extends
		delete(files, id)
		p, err := parse(s.file, s.data, func(base string) *Profile {
			if base == id {
				return before
			}
			return read(base)
		})
		if err != nil {
			fault(s.file, err)
			l.broken = append(l.broken, id)
			return l.profiles[id]
		}
		l.profiles[id] = p
		for _, alias := range p.file.Aliases { // which one of its id that takes its place has too
			l.aliases[alias] = id
		}
		return p
	}
	for _, id := range sortedKeys(files) {
		read(id)
	}
	slices.Sort(l.broken)
	return all
}

// index makes the profiles ready to be found.
func (l *Library) index() {
	l.names = sortedKeys(l.profiles)
	l.byFirst = make(map[string][]*Profile)
	firsts := map[string]bool{"": true}
	for _, id := range l.names {
		for _, alias := range l.profiles[id].file.Aliases {
			l.aliases[alias] = id
		}
		for _, m := range l.profiles[id].file.Match {
			firsts[m.Topic.first()] = true
		}
	}
	for first := range firsts {
		for _, id := range l.names {
			p := l.profiles[id]
			if slices.ContainsFunc(p.file.Match, func(m matchRule) bool { return m.Topic.first() == "" || m.Topic.first() == first }) {
				l.byFirst[first] = append(l.byFirst[first], p)
			}
		}
		slices.SortStableFunc(l.byFirst[first], func(a, b *Profile) int { return cmp.Compare(b.Priority(), a.Priority()) })
	}
}

// first gives the first level where that is text, else "".
func (p topicPattern) first() string { return p.levels[0].text }

// Names gives the profiles' ids in order.
func (l *Library) Names() []string { return slices.Clone(l.names) }

// Get gives a profile by its id or one that it had before, or nil where there
// is none.
func (l *Library) Get(id string) *Profile {
	if p := l.profiles[id]; p != nil {
		return p
	}
	return l.profiles[l.aliases[id]]
}

// Only gives a library of one profile.
func (l *Library) Only(id string) *Library {
	one := &Library{profiles: make(map[string]*Profile), aliases: make(map[string]string)}
	if p := l.Get(id); p != nil {
		one.profiles[p.ID()] = p
	}
	one.index()
	return one
}

// Filters gives the MQTT topic filters that cover what any of the profiles
// above a priority matches.
func (l *Library) Filters(above int) []string {
	var all []string
	for _, id := range l.names {
		if p := l.profiles[id]; p.Priority() > above {
			all = addFilters(all, p.filters(""))
		}
	}
	return all
}

// find gives the profile that takes a message, and the captures of its topic;
// nil if there is none.
func (l *Library) find(h *heard) (*Profile, map[string]string) {
	first, _, _ := strings.Cut(h.Topic, "/")
	candidates, ok := l.byFirst[first]
	if !ok {
		candidates = l.byFirst[""]
	}
	for _, p := range candidates {
		if p.Priority() == 0 {
			break
		}
		if c, ok := p.captures(h, ""); ok {
			return p, c
		}
	}
	return nil, nil
}
