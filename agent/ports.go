package agent

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// A PortLine is a line of `serial list`.
type PortLine struct {
	Path   string   `json:"path"`
	ByID   []string `json:"byId,omitempty"`
	ByPath []string `json:"byPath,omitempty"`
	// Best names it in the config: it stays the same, and no other port has it.
	Best    string        `json:"best"`
	Shared  bool          `json:"shared,omitempty"` // other adapters have the same name by id
	USB     string        `json:"usb,omitempty"`    // VENDOR:PRODUCT:SERIAL
	Maker   string        `json:"maker,omitempty"`
	Name    string        `json:"name,omitempty"`
	Is      string        `json:"is,omitempty"`      // what it probably is
	Profile string        `json:"profile,omitempty"` // what it probably speaks
	Devices []devices.ID  `json:"devices,omitempty"` // that are configured on it
	Users   []serial.User `json:"users,omitempty"`   // programs that have it open
}

// SerialPorts lists the ports of this machine. c may be nil.
func SerialPorts(c *config.Config) ([]PortLine, error) {
	known, err := profile.USBDevices()
	if err != nil {
		return nil, err
	}
	var all []PortLine
	for _, f := range serial.Ports() {
		l := PortLine{Path: f.Path, ByID: f.ByID, ByPath: f.ByPath, Best: f.Path, Shared: f.Shared, Maker: f.Identity.Manufacturer, Name: f.Identity.Name, Users: f.Users}
		names := f.ByID
		if f.Shared {
			names = f.ByPath
		}
		if len(names) > 0 {
			l.Best = names[0]
		}
		if i := f.Identity; i.IsUSB() {
			l.USB = i.ID()
			fits := func(d profile.USBDevice) bool { return d.Fits(i.Vendor, i.Product, i.Manufacturer, i.Name) }
			if at := slices.IndexFunc(known, fits); at >= 0 {
				l.Is, l.Profile = known[at].Is, known[at].Profile
			}
		}
		l.Devices, l.Profile = configuredOn(c, f.Path, l.Profile)
		all = append(all, l)
	}
	return all, nil
}

// configuredOn gives the devices of a port, and the profile of the first.
func configuredOn(c *config.Config, path, profile string) (ids []devices.ID, _ string) {
	if c == nil {
		return nil, profile
	}
	for _, d := range c.Devices {
		if d.Serial == nil {
			continue
		}
		if to, err := filepath.EvalSymlinks(d.Serial.Port); err == nil && to == path {
			if ids == nil {
				profile = d.Profile
			}
			ids = append(ids, d.ID)
		}
	}
	return ids, profile
}

// A PortTrial is what `serial probe` tries.
type PortTrial struct {
	Port   string
	Listen time.Duration
	Write  bool
	Unit   byte
	Baud   int // 0: all that profiles have
	Say    func(string)
}

// A ProbeLine is a line of `serial probe`: a firmware that was understood.
type ProbeLine struct {
	Profile    string       `json:"profile"`
	Name       string       `json:"name"`
	Baud       int          `json:"baud"`
	DataBits   int          `json:"dataBits"`
	Parity     string       `json:"parity"`
	StopBits   int          `json:"stopBits"`
	Line       string       `json:"line"`
	Usual      bool         `json:"usual"` // the profile's own line
	Frames     int          `json:"frames"`
	Faulty     int          `json:"faulty"`
	Checksums  bool         `json:"checksums"` // its frames have them
	Asked      bool         `json:"asked,omitempty"`
	Identities []string     `json:"identities,omitempty"`
	Fields     []StoreField `json:"fields"`
}

// ProbeSerial finds out what speaks on a port: the best finding first. heard is
// how many bytes came.
func ProbeSerial(ctx context.Context, library *profile.Library, t PortTrial) (all []ProbeLine, heard int, err error) {
	trial := serial.Trial{Port: t.Port, Listen: t.Listen, Write: t.Write, Unit: t.Unit, Say: t.Say}
	for _, id := range library.Names() {
		if p := library.Get(id); slices.Contains(p.Transports(), "serial") && p.Priority() > 0 {
			trial.Profiles = append(trial.Profiles, p)
		}
	}
	if t.Baud > 0 {
		trial.Lines = linesAt(t.Baud, trial.Profiles)
	}
	found, heard, err := serial.Probe(ctx, trial)
	for _, f := range found {
		l := ProbeLine{
			Profile: f.Profile.ID(), Name: f.Profile.Name(), Baud: f.Line.Baud, DataBits: f.Line.DataBits, Parity: f.Line.Parity, StopBits: f.Line.StopBits,
			Line: f.Line.String(), Frames: f.Sound, Faulty: f.Faulty, Checksums: f.Checked, Asked: f.Asked, Identities: f.Identities, Fields: []StoreField{},
		}
		if lines := f.Profile.Lines(); len(lines) > 0 {
			l.Usual = lines[0] == f.Line
		}
		for _, field := range f.Fields {
			l.Fields = append(l.Fields, storeField(field))
		}
		all = append(all, l)
	}
	return all, heard, err
}

// linesAt gives the lines of a rate: those that profiles have, else 8N1.
func linesAt(baud int, profiles []*profile.Profile) (all []profile.Line) {
	for _, p := range profiles {
		for _, l := range p.Lines() {
			if l.Baud == baud && !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
	}
	if all == nil {
		all = []profile.Line{{Baud: baud, DataBits: 8, Parity: "none", StopBits: 1}}
	}
	return all
}
