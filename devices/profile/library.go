package profile

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	profiles "github.com/porchlight-iot/porchlight/firmware-profiles"
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
}

// Builtin gives the profiles that come with the program.
func Builtin() (*Library, error) {
	return load(profiles.FS, nil)
}

// Load gives the profiles that come with the program, and those of a folder
// (files <id>.yaml), which take the place of built-in ones of the same id. A
// profile that is wrong is left out, the built-in one then staying, and told in
// the error; the library is usable nevertheless. A folder that is not there is
// empty.
func Load(folder string) (*Library, error) {
	return load(profiles.FS, os.DirFS(folder), folder)
}

func load(builtin, own fs.FS, folder ...string) (*Library, error) {
	l := &Library{profiles: make(map[string]*Profile), aliases: make(map[string]string)}
	all := l.add(builtin, "")
	if own != nil {
		all = errors.Join(all, l.add(own, filepath.Join(folder...)))
	}
	l.index()
	return l, all
}

// A source is a profile's file that waits for the one that it extends.
type source struct {
	file string
	data []byte
}

// add reads the profiles of a folder, those first that others extend.
func (l *Library) add(folder fs.FS, where string) error {
	entries, err := fs.ReadDir(folder, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the profiles: %w", err)
	}
	var all error
	files := make(map[string]source)
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".yaml")
		if !ok || e.IsDir() {
			continue
		}
		data, err := fs.ReadFile(folder, e.Name())
		if err != nil {
			all = errors.Join(all, fmt.Errorf("cannot read a profile: %w", err))
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
			all = errors.Join(all, err)
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
