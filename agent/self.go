package agent

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/devices"
)

// selfEvery is how often the gateway reports on itself.
const selfEvery = time.Minute

// selfName is the name of the driver that is the gateway itself.
const selfName = "gateway"

// self is the gateway as a device: the first reading needs no sensor.
type self struct {
	root    string // of /proc and /sys; "/" but in tests
	started time.Time
	depth   func() int    // readings in the outbox
	rejects func() uint64 // inputs not used
}

// Name implements [devices.Driver].
func (s *self) Name() string { return selfName }

// Run implements [devices.Driver].
func (s *self) Run(ctx context.Context, sink devices.Sink) error {
	sink.Up(s.Name())
	tick := time.NewTicker(selfEvery)
	defer tick.Stop()
	for {
		m := devices.Message{Readings: []devices.Reading{{Device: devices.Gateway, Fields: s.fields()}}}
		if _, err := sink.Report(ctx, m); err != nil {
			sink.Reject("gateway", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// fields reads what there is; a board without a thermometer has no field of
// it.
func (s *self) fields() []devices.Field {
	f := []devices.Field{
		number("uptime", float64(int(time.Since(s.started).Seconds())), "s", devices.Diagnostic),
		number("outbox_depth", float64(s.depth()), "", devices.Diagnostic),
		number("rejected", float64(s.rejects()), "", devices.Diagnostic),
		{Name: "clock_synchronised", Value: devices.Bool(clockSynchronised()), Kind: devices.Diagnostic},
	}
	if t, ok := s.temperature(); ok {
		f = append(f, number("cpu_temperature", t, "°C", devices.Measurement))
	}
	if load, ok := s.load(); ok {
		f = append(f, devices.Field{Name: "load", Value: load, Kind: devices.Measurement})
	}
	if used, ok := s.memoryUsed(); ok {
		f = append(f, number("memory_used", used, "%", devices.Measurement))
	}
	return f
}

func number(name string, v float64, unit devices.Unit, kind devices.FieldKind) devices.Field {
	return devices.Field{Name: name, Value: devices.Number(v), Unit: unit, Kind: kind}
}

// temperature gives the first zone that says it is the processor's, else the
// first one: a Pi has one zone, called cpu-thermal.
func (s *self) temperature() (float64, bool) {
	zones, _ := filepath.Glob(filepath.Join(s.root, "sys/class/thermal/thermal_zone*"))
	best := ""
	for _, zone := range zones {
		kind, _ := os.ReadFile(filepath.Join(zone, "type"))
		if best == "" || strings.Contains(string(kind), "cpu") || strings.Contains(string(kind), "x86_pkg") {
			best = zone
		}
	}
	raw, err := os.ReadFile(filepath.Join(best, "temp"))
	if best == "" || err != nil {
		return 0, false
	}
	milli, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	return float64(milli/100) / 10, err == nil
}

func (s *self) load() (devices.Value, bool) {
	raw, err := os.ReadFile(filepath.Join(s.root, "proc/loadavg"))
	if err != nil {
		return devices.Value{}, false
	}
	first, _, _ := strings.Cut(string(raw), " ")
	v, err := devices.ParseNumber(first)
	return v, err == nil
}

// memoryUsed gives the share of memory that is not available to programs.
func (s *self) memoryUsed() (float64, bool) {
	raw, err := os.ReadFile(filepath.Join(s.root, "proc/meminfo"))
	if err != nil {
		return 0, false
	}
	var total, available float64
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		var name string
		var kB float64
		if _, err := fmt.Sscan(lines.Text(), &name, &kB); err != nil {
			continue
		}
		switch name {
		case "MemTotal:":
			total = kB
		case "MemAvailable:":
			available = kB
		}
	}
	if total == 0 {
		return 0, false
	}
	return float64(int(1000*(total-available)/total)) / 10, true
}

// clockSynchronised asks the kernel whether something keeps its clock
// (adjtimex(2)).
func clockSynchronised() bool {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return err == nil && state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0
}
