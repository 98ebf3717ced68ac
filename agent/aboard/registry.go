package aboard

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	maxPending = 500
	maxWays    = 5 // that are told of one device
	// maxAuto is how many devices there may be before none is admitted by
	// itself any more: each is a file, two nodes and a contact.
	maxAuto = 1000
	// autoAtOnce is how many are admitted by themselves together.
	autoAtOnce = 50
)

// A Pending is a device that waits to be admitted or refused.
type Pending struct {
	Number int        // of this run of the gateway, for people to type; odd, so that it is never taken for a person's
	ID     devices.ID // that it will have
	Candidate
	First, Heard time.Time // its first and newest message
	Messages     int
	// SameAs is the configured device that it seems to be, heard in another
	// place; "" if it is none.
	SameAs devices.ID
	// Also are other places in which it was heard.
	Also []string

	keys   []string // under which it is found
	failed bool     // to be admitted by itself
}

// Label is what people read of it.
func (c Candidate) Label() string { return cmp.Or(c.Name, c.Identity, c.Place) }

// WayOf says how a configured device is reached.
func WayOf(d config.Device) string { return of(d).Way() }

// Way says how a device is reached: "mqtt house, topic kitchen".
func (c Candidate) Way() string {
	switch c.Transport {
	case "mqtt":
		switch c.Link {
		case anyLink:
			return "mqtt, topic " + c.Place
		case "":
			return "mqtt broker, topic " + c.Place // as the driver is called
		}
		return fmt.Sprintf("mqtt %s, topic %s", c.Link, c.Place)
	case "coap":
		if c.Link != "" {
			return "coap, " + c.Link
		}
		if c.Peer == "" {
			return "coap, /d/" + c.Place
		}
		return fmt.Sprintf("coap %s, /d/%s", c.Peer, c.Place)
	}
	if c.Identity != "" { // others may be on the port
		return c.Transport + " " + c.Place + ", " + c.Identity
	}
	return c.Transport + " " + c.Place
}

// A Registry keeps the pending devices and the decisions on them. It may be
// used from any goroutine. What is pending is lost with the process: a device
// that is there speaks again.
type Registry struct {
	dir string // the data directory
	now func() time.Time
	due chan struct{}

	deciding sync.Mutex // held, before mu, while something is decided and written

	mu        sync.Mutex // never held while the disk is waited for
	config    *config.Config
	known     map[string]devices.ID // configured devices, by their likely keys
	taken     map[devices.ID]bool   // ids of devices, and groups
	decisions *decisions
	pending   map[devices.ID]*Pending
	by        map[string]*Pending
	last      int // number given; -1 at first
}

// Open makes the registry of a data directory, with nothing pending. The error
// tells that former decisions could not be read; the registry goes on without.
func Open(dir string) (*Registry, error) {
	d, err := openDecisions(filepath.Join(dir, decisionsFile))
	return &Registry{
		dir: dir, now: time.Now, due: make(chan struct{}, 1), decisions: d,
		config: config.Default(), pending: make(map[devices.ID]*Pending), by: make(map[string]*Pending), last: -1,
	}, err
}

// Configure says which devices there are, and what is to become of others.
func (r *Registry) Configure(c *config.Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.config = c
	r.known, r.taken = make(map[string]devices.ID), make(map[devices.ID]bool)
	for _, d := range c.Devices {
		r.taken[d.ID] = true
		for _, g := range d.Groups {
			r.taken[devices.ID(g)] = true
		}
		for _, key := range of(d).likely() {
			r.known[key] = d.ID
		}
	}
	for _, p := range slices.Collect(maps.Values(r.pending)) {
		if r.taken[p.ID] || c.Discovery.Accept == "off" || slices.ContainsFunc(c.Devices, p.lives) {
			r.forget(p)
			continue
		}
		p.SameAs = r.sameAs(p.Candidate)
		r.wake(p)
	}
}

// Accepts reports whether anybody wants to know of strangers.
func (r *Registry) Accepts() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.config.Discovery.Accept != "off"
}

// sameAs finds the configured device of a candidate's identity.
func (r *Registry) sameAs(c Candidate) devices.ID {
	for _, key := range c.likely() {
		if id, ok := r.known[key]; ok {
			return id
		}
	}
	return ""
}

// Seen takes a candidate, and reports whether it is new among those that are
// pending. What was refused is not.
func (r *Registry) Seen(c Candidate) (p Pending, fresh bool) {
	c, ok := c.cleaned()
	if !ok {
		return Pending{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.config.Discovery.Accept == "off" {
		return Pending{}, false
	}
	decided := r.decisions.of(c)
	if decided != nil && decided.Refused {
		return Pending{}, false
	}
	keys := append(c.certain()[:1:1], c.likely()...)
	now := r.now()
	var e *Pending
	for _, key := range keys {
		if e = r.by[key]; e != nil {
			break
		}
	}
	if e == nil {
		if len(c.Sample) == 0 {
			return Pending{}, false // it has said what it is, and nothing yet
		}
		if id := devices.ID(c.Place); c.posts() && (r.taken[id] || r.pending[id] != nil) {
			return Pending{}, false // it calls itself by a name that another has
		}
		if len(r.pending) >= maxPending {
			r.forget(r.silent())
		}
		r.last += 2
		e = &Pending{Number: r.last, ID: r.name(c, decided), Candidate: c, First: now, SameAs: r.sameAs(c)}
		e.Sample = nil
		r.pending[e.ID] = e
		fresh = true
	} else if c.place() != e.place() {
		if way := c.Way(); !slices.Contains(e.Also, way) && len(e.Also) < maxWays {
			e.Also = append(e.Also, way)
		}
	}
	for _, key := range keys {
		if r.by[key] == nil && len(e.keys) < 3*maxWays {
			r.by[key] = e
			e.keys = append(e.keys, key)
		}
	}
	e.hear(c, now)
	r.wake(e)
	return e.copied(), fresh
}

// hear takes what a message adds.
func (p *Pending) hear(c Candidate, now time.Time) {
	p.Heard = now
	p.Messages++
	p.Name, p.Model, p.Parent = cmp.Or(c.Name, p.Name), cmp.Or(c.Model, p.Model), cmp.Or(c.Parent, p.Parent)
	if len(p.Sample) == 0 || !c.Retained {
		p.Retained = c.Retained
	}
	for _, f := range c.Sample {
		i := slices.IndexFunc(p.Sample, func(old devices.Field) bool { return old.Name == f.Name })
		switch {
		case i >= 0 && (!c.Retained || p.Retained):
			p.Sample[i] = f
		case i < 0 && len(p.Sample) < maxSample:
			p.Sample = append(p.Sample, f)
		}
	}
}

func (p *Pending) copied() Pending {
	c := *p
	c.Sample, c.Also = slices.Clone(p.Sample), slices.Clone(p.Also)
	return c
}

// name makes the id that a device will have. It had one before where something
// was decided of it.
func (r *Registry) name(c Candidate, decided *Decision) devices.ID {
	if c.posts() {
		return devices.ID(c.Place)
	}
	free := func(id devices.ID) bool {
		if r.taken[id] || r.pending[id] != nil || devices.Reserved(string(id)) {
			return false
		}
		other := r.decisions.named(id)
		return other == nil || other == decided
	}
	if decided != nil && free(decided.ID) {
		return decided.ID
	}
	slug := devices.Slug(cmp.Or(c.Name, c.Identity, c.Place))
	if _, err := strconv.Atoi(string(slug)); err == nil || slug == "" {
		slug = devices.Slug("device " + string(slug)) // a number would be taken for another's
	}
	for n, id := 2, slug; ; n++ {
		if free(id) {
			return id
		}
		tail := fmt.Sprintf("-%d", n)
		id = devices.ID(strings.TrimSuffix(string(slug[:min(len(slug), 40-len(tail))]), "-") + tail)
	}
}

// silent gives the one that was not heard for longest.
func (r *Registry) silent() *Pending {
	return slices.MinFunc(slices.Collect(maps.Values(r.pending)), func(a, b *Pending) int {
		return cmp.Or(a.Heard.Compare(b.Heard), cmp.Compare(a.Number, b.Number))
	})
}

func (r *Registry) forget(p *Pending) {
	delete(r.pending, p.ID)
	for _, key := range p.keys {
		delete(r.by, key)
	}
}

// Pending gives those that wait, in the order in which they came.
func (r *Registry) Pending() []Pending {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Pending, 0, len(r.pending))
	for _, p := range r.pending {
		all = append(all, p.copied())
	}
	slices.SortFunc(all, func(a, b Pending) int { return cmp.Compare(a.Number, b.Number) })
	return all
}

// Refused gives those that are to stay away, the newest last.
func (r *Registry) Refused() []Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Decision
	for _, d := range r.decisions.all {
		if d.Refused {
			all = append(all, d)
		}
	}
	return all
}

// Due has a value when devices may be there for AdmitDue.
func (r *Registry) Due() <-chan struct{} { return r.due }

// wake has a device admitted, if that may be by itself: who only was in a
// broker's memory may be gone, and one device is not to be there twice.
func (r *Registry) wake(p *Pending) {
	if !r.auto(p) {
		return
	}
	select {
	case r.due <- struct{}{}:
	default:
	}
}

func (r *Registry) auto(p *Pending) bool {
	return r.config.Discovery.Accept == "auto" && !p.Retained && p.SameAs == "" && !p.failed && len(r.config.Devices) < maxAuto
}

// AdmitDue admits some of those that nobody has to be asked for. The error
// tells of those for which that failed; they are pending still, and somebody
// may admit them.
func (r *Registry) AdmitDue() (all []config.Device, err error) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	due := slices.DeleteFunc(r.Pending(), func(p Pending) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return !r.auto(&p)
	})
	for _, p := range due[:min(len(due), autoAtOnce)] {
		d, fault := r.admit(p.Candidate, p.ID, Terms{By: "discovery: auto"})
		if fault == nil {
			all = append(all, d)
			continue
		}
		err = errors.Join(err, fmt.Errorf("cannot admit %s: %w", p.ID, fault))
		r.mu.Lock()
		if still := r.pending[p.ID]; still != nil {
			still.failed = true
		}
		r.mu.Unlock()
	}
	return all, err
}

// Terms are what whoever admits a device says of it.
type Terms struct {
	// As is the id that it gets; "" leaves that to the registry. Where a device
	// of that id is configured, this one takes its place.
	As   devices.ID
	Name string // "" leaves that to the device, or keeps that of the one before
	By   string // who admits it, for people
}

var (
	errNothing  = errors.New("nothing of that name or number is pending, nor was refused")
	errNoDevice = errors.New("there is no such device")
	errName     = errors.New("the name is empty, has more than 80 characters, or has some that cannot be shown")
)

// find gives what is pending, or was refused, under a number or an id.
func (r *Registry) find(which string) (Candidate, devices.ID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n, err := strconv.Atoi(which); err == nil {
		for _, p := range r.pending {
			if p.Number == n {
				return p.copied().Candidate, p.ID, nil
			}
		}
		return Candidate{}, "", errNothing
	}
	if p := r.pending[devices.ID(which)]; p != nil {
		return p.copied().Candidate, p.ID, nil
	}
	if d := r.decisions.named(devices.ID(which)); d != nil && d.Refused {
		return d.Candidate, d.ID, nil
	}
	return Candidate{}, "", errNothing
}

// Admit writes the file of a device that is pending, or was refused, and gives
// the device. Whoever reads the config has to read it anew.
func (r *Registry) Admit(which string, t Terms) (config.Device, error) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	c, id, err := r.find(which)
	if err == nil {
		var d config.Device
		if d, err = r.admit(c, id, t); err == nil {
			return d, nil
		}
	}
	return config.Device{}, fmt.Errorf("cannot admit %s: %w", which, err)
}

func (r *Registry) admit(c Candidate, id devices.ID, t Terms) (config.Device, error) {
	r.mu.Lock()
	all, taken, same := r.config, r.taken, r.sameAs(c)
	r.mu.Unlock()
	if same != "" && t.As == "" {
		return config.Device{}, fmt.Errorf("it is the same as %s, heard in another place; admit it as %s to move that here, or as another id to have both", same, same)
	}
	id = cmp.Or(t.As, id)
	if _, err := devices.ParseID(string(id)); err != nil {
		return config.Device{}, err
	}
	switch {
	case devices.Reserved(string(id)):
		return config.Device{}, fmt.Errorf("%s is a word of the gateway's own", id)
	case c.posts() && string(id) != c.Place:
		return config.Device{}, fmt.Errorf("it posts to /d/%s, so that is its id", c.Place)
	case clean(t.Name, maxName) != t.Name:
		return config.Device{}, errName
	}
	d := c.device(id, cmp.Or(t.Name, c.Name, c.Identity, string(id)))
	for _, other := range all.Devices {
		if other.Identity != "" && other.Identity == c.Parent {
			d.Parent = other.ID
		}
	}
	file := filepath.Join(r.dir, config.DevicesDir, string(id)+".yaml")
	var text []byte
	var err error
	i := slices.IndexFunc(all.Devices, func(d config.Device) bool { return d.ID == id })
	switch _, statErr := os.Lstat(file); {
	case i >= 0 && t.As == "":
		err = fmt.Errorf("there is a device %s already", id)
	case i >= 0:
		d.Name = cmp.Or(t.Name, all.Devices[i].Name)
		file, text, err = amended(all, d)
	case taken[id]:
		err = fmt.Errorf("%s is a group", id)
	case statErr == nil:
		err = fmt.Errorf("there is a file %s already; correct or remove it", file)
	case !errors.Is(statErr, fs.ErrNotExist):
		err = statErr
	default:
		text, err = config.DeviceFile(d, r.about(c, d, t.By))
	}
	if err != nil {
		return d, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return d, err
	}
	// A decision without its file keeps an id for a device, and harms nobody.
	if err := r.decide(Decision{ID: id, Candidate: c}); err != nil {
		return d, err
	}
	if err := durable.Replace(file, text); err != nil {
		return d, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.by[c.place()]; p != nil {
		r.forget(p)
	}
	return d, nil
}

// decide writes a decision to disk, and keeps it.
func (r *Registry) decide(n Decision) error {
	n.Time = r.now().UTC().Truncate(time.Second)
	next, err := r.decisions.with(n) // nobody else changes it
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.decisions = next
	return nil
}

// amended gives the own file of a device, and its text with what is new.
func amended(all *config.Config, d config.Device) (file string, text []byte, err error) {
	file, line, own := all.Written(d.ID)
	if !own {
		return "", nil, elsewhere(d.ID, file, line)
	}
	before, err := os.ReadFile(file)
	if err == nil {
		text, err = config.Amend(before, d)
	}
	return file, text, err
}

func elsewhere(id devices.ID, file string, line int) error {
	if file == "" {
		return errNoDevice
	}
	return fmt.Errorf("it is written in %s, line %d; change it there, and reload", file, line)
}

// about is what the file of a device says of it.
func (r *Registry) about(c Candidate, d config.Device, by string) []string {
	lines := []string{
		fmt.Sprintf("%s, admitted on %s (%s).", d.Name, r.now().Format("2006-01-02 15:04"), cmp.Or(by, "porchlight devices admit")),
		"Heard by " + c.Way() + ".",
	}
	if c.Model != "" {
		lines = append(lines, "Model: "+c.Model+".")
	}
	var fields []string
	for _, f := range c.Sample {
		fields = append(fields, f.Name)
	}
	if len(fields) > 0 {
		lines = append(lines, "It told: "+strings.Join(fields, ", ")+".")
	}
	return lines
}

// Refuse has a pending device stay away, and gives the id that it would have.
func (r *Registry) Refuse(which string) (devices.ID, error) {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	c, id, err := r.find(which)
	if err == nil {
		err = r.decide(Decision{ID: id, Refused: true, Candidate: c})
	}
	if err != nil {
		return "", fmt.Errorf("cannot refuse %s: %w", which, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.by[c.place()]; p != nil {
		r.forget(p)
	}
	return id, nil
}

// Rename changes what people call a device. Its id, and all that is kept
// under it, stay.
func (r *Registry) Rename(id devices.ID, name string) error {
	if err := r.rename(id, name); err != nil {
		return fmt.Errorf("cannot rename %s: %w", id, err)
	}
	return nil
}

func (r *Registry) rename(id devices.ID, name string) error {
	if name == "" || clean(name, maxName) != name {
		return errName
	}
	r.deciding.Lock()
	defer r.deciding.Unlock()
	all, d, err := r.device(id)
	if err != nil {
		return err
	}
	d.Name = name
	file, text, err := amended(all, d)
	if err != nil {
		return err
	}
	return durable.Replace(file, text)
}

// device gives a configured device.
func (r *Registry) device(id devices.ID) (*config.Config, config.Device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.config.Devices {
		if d.ID == id {
			return r.config, d, nil
		}
	}
	return r.config, config.Device{}, errNoDevice
}

// Remove takes a device's file away, and has the device stay away as if it had
// been refused. Admitted again, it has its id and all that was kept under it.
func (r *Registry) Remove(id devices.ID) error {
	if err := r.remove(id); err != nil {
		return fmt.Errorf("cannot remove %s: %w", id, err)
	}
	return nil
}

func (r *Registry) remove(id devices.ID) error {
	r.deciding.Lock()
	defer r.deciding.Unlock()
	all, d, err := r.device(id)
	if err != nil {
		return err
	}
	file, line, own := all.Written(id)
	if !own {
		return elsewhere(id, file, line)
	}
	if err := r.decide(Decision{ID: id, Refused: true, Candidate: of(d)}); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(file))
}
