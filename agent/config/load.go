package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// LoadOptions is what the checks need to know from other packages.
type LoadOptions struct {
	// Profiles gives the firmware profiles, those in the folder of installers'
	// own included, by id, and the transport that each speaks: mqtt, serial or
	// coap; several with commas between them; "" for any. It also gives what is
	// wrong with them, which harms no more than themselves. If it is nil,
	// profiles are not checked.
	Profiles func(folder string) (map[string]string, strictyaml.Faults)
	// CheckJID says what is wrong with an address (RFC 7622). If it is nil,
	// only the shape of addresses is checked.
	CheckJID func(string) error
}

// DevicesDir is the directory in the data directory with the files of one
// device each.
const DevicesDir = "devices.d"

// ProfilesDir is the directory in the data directory with installers' own
// firmware profiles.
const ProfilesDir = "profiles"

// Load reads the file at path, the files of devices that belong to it, and the
// secrets that it names. It returns all that is wrong, in the order of the
// files, and no Config where that is in the file at path. What is wrong in the
// file of a device harms only that device: the Config is without it.
//
// A relative path in the file means a file in $CREDENTIALS_DIRECTORY, if the
// service manager gave one and the file is there, else one beside the file at
// path.
func Load(path string, o LoadOptions) (*Config, strictyaml.Faults) {
	data, t := readFile(path)
	if t != nil {
		return nil, strictyaml.Faults{{File: path, Line: 1, Column: 1, Problem: t.problem, Allowed: t.allowed, Mend: t.mend}}
	}
	c := Default()
	k := &checker{c: c, o: o, dir: filepath.Dir(path), credentials: os.Getenv("CREDENTIALS_DIRECTORY"), decoded: map[place]bool{}}
	c.doc = k.decode(path, data, c)
	if !c.doc.Has("") {
		return nil, k.faults
	}
	for i := range c.Devices {
		c.sources = append(c.sources, source{c.doc, fmt.Sprintf("devices[%d]", i)})
	}
	c.own = len(c.Devices)
	k.file(source{c.doc, "gateway"}, "data_dir", &c.Gateway.DataDir)
	k.devicesDir(filepath.Join(c.Gateway.DataDir, DevicesDir))
	k.defaults()
	k.profilesDir()
	k.check()
	return k.outcome()
}

// Refresh gives the config with the files of devices as they are now. Of the
// main file nothing is read. Faults are as in [Load].
func (c *Config) Refresh(o LoadOptions) (*Config, strictyaml.Faults) {
	next := *c
	next.Devices, next.sources, next.broken = slices.Clone(c.Devices[:c.own]), slices.Clone(c.sources[:c.own]), nil
	k := &checker{c: &next, o: o, decoded: map[place]bool{}}
	k.devicesDir(filepath.Join(c.Gateway.DataDir, DevicesDir))
	k.defaults()
	k.profilesDir()
	k.devices()
	return k.outcome()
}

// After gives the config with the devices that it had before where their files
// have faults now: who is at work goes on until the file is mended.
func (c *Config) After(before *Config) *Config {
	next := *c
	ids := make(map[devices.ID]bool, len(c.Devices))
	for _, d := range c.Devices {
		ids[d.ID] = true
	}
	for i, d := range before.Devices {
		if at := before.sources[i]; slices.Contains(c.broken, at.doc.File()) && !ids[d.ID] {
			ids[d.ID] = true
			next.Devices, next.sources = append(slices.Clip(next.Devices), d), append(slices.Clip(next.sources), at)
		}
	}
	return &next
}

// Written tells where a device stands, and whether that is a file of its own.
func (c *Config) Written(id devices.ID) (file string, line int, own bool) {
	for i, d := range c.Devices {
		if d.ID == id {
			f := c.sources[i].fault("", trouble{})
			return f.File, f.Line, i >= c.own
		}
	}
	return "", 0, false
}

// outcome gives the config without the devices whose own files have faults, or
// none where the main file has.
func (k *checker) outcome() (*Config, strictyaml.Faults) {
	c, main := k.c, k.c.doc.File()
	// The main file, then the others by name.
	rank := func(f strictyaml.Fault) string { return strings.TrimPrefix(f.File, main) }
	slices.SortStableFunc(k.faults, func(a, b strictyaml.Fault) int { return strings.Compare(rank(a), rank(b)) })
	k.faults.Sort()
	broken := make(map[string]bool)
	for _, f := range k.faults {
		if f.File == main {
			return nil, k.faults
		}
		if !broken[f.File] {
			broken[f.File] = true
			c.broken = append(c.broken, f.File)
		}
	}
	ds, sources := c.Devices[:c.own:c.own], c.sources[:c.own:c.own]
	for i := c.own; i < len(c.Devices); i++ {
		if !broken[c.sources[i].doc.File()] {
			ds, sources = append(ds, c.Devices[i]), append(sources, c.sources[i])
		}
	}
	c.Devices, c.sources = ds, sources
	return c, k.faults
}

func (k *checker) decode(path string, data []byte, into any) *strictyaml.Document {
	doc, faults := strictyaml.Decode(path, data, into)
	k.faults = append(k.faults, faults...)
	for _, f := range faults {
		k.decoded[place{f.File, f.Key}] = true
	}
	return doc
}

// devicesDir reads the files of one device each. It is fine if there are none.
func (k *checker) devicesDir(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			k.add(source{k.c.doc, "gateway"}, "data_dir", *unreadable(dir, err))
		}
		return
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".yaml" || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, t := readFile(path)
		if t != nil {
			k.faults = append(k.faults, strictyaml.Fault{File: path, Line: 1, Column: 1, Problem: t.problem, Allowed: t.allowed, Mend: t.mend})
			continue
		}
		var d Device
		if doc := k.decode(path, data, &d); doc.Has("") {
			k.c.Devices = append(k.c.Devices, d)
			k.c.sources = append(k.c.sources, source{doc, ""})
		}
	}
}

// profilesDir learns which profiles there are.
func (k *checker) profilesDir() {
	if k.o.Profiles != nil {
		var faults strictyaml.Faults
		k.profiles, faults = k.o.Profiles(filepath.Join(k.c.Gateway.DataDir, ProfilesDir))
		k.faults = append(k.faults, faults...)
	}
}

// readFile reads a file that may be longer than what is allowed, but not much
// of it.
func readFile(path string) ([]byte, *trouble) {
	if info, err := os.Stat(path); err != nil {
		return nil, unreadable(path, err)
	} else if !info.Mode().IsRegular() {
		return nil, &trouble{path + " is not a file", "a YAML file", "name the file"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, strictyaml.MaxBytes+1))
	if err != nil {
		return nil, unreadable(path, err)
	}
	return data, nil
}

// defaults fills in what depends on the machine and on other values.
func (k *checker) defaults() {
	c := k.c
	if c.Gateway.ID == "" && !c.doc.Has("gateway.id") {
		c.Gateway.ID = thisGatewayID()
		if restored, err := ReadIdentity(c.Gateway.DataDir); err == nil && restored.Gateway != "" {
			c.Gateway.ID = restored.Gateway
		}
	}
	for i := range c.Operators {
		// Addresses are compared in the form that servers give them (RFC 7622
		// sections 3.2 and 3.3), which has no capital letters.
		c.Operators[i].JID = strings.ToLower(c.Operators[i].JID)
	}
	for i := range c.XMPP.Rooms {
		if r := &c.XMPP.Rooms[i]; r.Nick == "" {
			r.Nick = c.Gateway.ID
		}
	}
	if c.MQTT != nil {
		for i := range c.MQTT.Brokers {
			if b := &c.MQTT.Brokers[i]; b.ClientID == "" {
				b.ClientID = "porchlight-" + c.Gateway.ID
			}
		}
	}
	for i := range c.Devices {
		if d := &c.Devices[i]; d.Name == "" {
			d.Name = string(d.ID)
		}
	}
}

func thisGatewayID() string {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		machine = nil
	}
	return gatewayID(host, string(machine))
}

// gatewayID tells two gateways of one name apart by a part of the machine id
// that is too short to give the machine away (machine-id(5)).
func gatewayID(host, machine string) string {
	host, _, _ = strings.Cut(host, ".")
	id := string(devices.Slug(host))
	if id == "" {
		id = "porchlight"
	}
	machine = strings.TrimSpace(machine)
	if len(machine) < 4 {
		return id
	}
	const most = 40 - len("-0000")
	id = strings.TrimSuffix(id[:min(len(id), most)], "-")
	return id + "-" + string(devices.Slug(machine[:4]))
}
