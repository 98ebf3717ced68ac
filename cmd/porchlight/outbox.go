package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/devices"
)

// runOutbox looks into the store, also while the gateway runs.
func runOutbox(_ context.Context, args []string, stdout, stderr io.Writer) error {
	const words = "outbox takes one of status, export, verify, proof"
	if len(args) == 0 {
		return usageError(words)
	}
	what := args[0]
	if what == "proof" {
		return runProof(args[1:], stdout, stderr)
	}
	if !slices.Contains([]string{"status", "export", "verify"}, what) {
		return usageError(fmt.Sprintf("%s, not %q", words, what))
	}
	flags := flag.NewFlagSet("outbox "+what, flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	asJSON := flags.Bool("json", false, "print JSON; export does so anyway, a line for each reading")
	asCSV := flags.Bool("csv", false, "export: print CSV, a line for each value")
	if err := parse(flags, args[1:]); err != nil {
		return err
	}
	if *asCSV && (what != "export" || *asJSON) {
		return usageError("--csv is for export, and not with --json")
	}
	c, err := loadConfig(config.Path(*path), stderr)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	switch {
	case *asCSV:
		return exportCSV(c, out)
	case what == "export", *asJSON && what == "status":
		return agent.Look(c, what, out)
	}
	var answer bytes.Buffer
	if err := agent.Look(c, what, &answer); err != nil {
		return err
	}
	if what == "status" {
		return printStatus(answer.Bytes(), out)
	}
	return printVerdict(answer.Bytes(), *asJSON, out)
}

func printStatus(answer []byte, w io.Writer) error {
	var s agent.StoreStatus
	if err := json.Unmarshal(answer, &s); err != nil {
		return fmt.Errorf("cannot read the answer: %w", err)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tALARMS\tNOW\tLOG\tIN MEMORY\tOLDEST\tON DISK\tAN HOUR")
	stored := make(map[devices.ID]outbox.DeviceContents)
	for _, d := range s.Devices {
		stored[d.Device] = d
	}
	for _, id := range slices.Sorted(maps.Keys(s.Lanes)) {
		l, d := s.Lanes[id], stored[id]
		oldest := ""
		if d.Oldest != nil {
			oldest = d.Oldest.Local().Format(time.DateTime)
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%s\t%s\t%.0f\n", id, l.Alarms, l.Now, l.Log, d.Memory, oldest, size(d.Bytes), l.RatePerHour)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(s.Devices) == 0 {
		fmt.Fprintln(w, "no reading waits")
	}
	fmt.Fprintf(w, "%d events wait; %s in use of a file of %s\n", s.Notes, size(s.UsedBytes), size(s.FileBytes))
	fmt.Fprintf(w, "%s written to disk today", size(s.WrittenToday))
	if s.WrittenPerYear > 0 {
		fmt.Fprintf(w, "; at the pace of the last day %s a year", size(s.WrittenPerYear))
	}
	fmt.Fprintln(w)
	if !s.Running {
		fmt.Fprintln(w, "no gateway is at work on it")
		return nil
	}
	online := map[bool]string{true: "online", false: "offline"}[s.Online]
	if s.Passive {
		online = "passive (another gateway has this one's identity)"
	}
	fmt.Fprintf(w, "%s as store %s since %v: %d readings taken, %d accepted by the server, %d thinned out, %d lost, %d came again\n", online, s.Stats.Store,
		time.Duration(s.Seconds*float64(time.Second)).Round(time.Second), s.Stats.Taken, s.Stats.Settled, s.Stats.Thinned, s.Stats.Lost, s.Stats.Repeated)
	return nil
}

// size writes bytes for people.
func size(n int64) string {
	for _, unit := range []struct {
		name string
		is   int64
	}{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= unit.is {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.is), unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func printVerdict(answer []byte, asJSON bool, w io.Writer) error {
	var v agent.StoreVerdict
	if err := json.Unmarshal(answer, &v); err != nil {
		return fmt.Errorf("cannot read the answer: %w", err)
	}
	if asJSON {
		if _, err := w.Write(answer); err != nil {
			return err
		}
	} else {
		for _, f := range v.Faults {
			fmt.Fprintf(w, "broken  %s: %s\n", f.Where, f.What)
		}
		fmt.Fprintf(w, "%d readings are well, %d faults\n", v.Readings, len(v.Faults))
	}
	if len(v.Faults) > 0 {
		return errVerdict
	}
	return nil
}

// exportCSV prints a line a value. A reading that cannot be read is told at the
// end.
func exportCSV(c *config.Config, w io.Writer) error {
	r, p := io.Pipe()
	go func() { p.CloseWithError(cmp.Or(agent.Look(c, "export", p), io.EOF)) }()
	defer r.Close()
	table := csv.NewWriter(w)
	rows := [][]string{{"device", "store", "seq", "time", "name", "value", "unit"}}
	in := json.NewDecoder(r)
	in.UseNumber()
	var faults error
	for {
		if err := table.WriteAll(rows); err != nil {
			return err
		}
		rows = rows[:0]
		var l agent.StoreLine
		if err := in.Decode(&l); err == io.EOF {
			return faults
		} else if err != nil {
			return err
		}
		if l.Fault != "" {
			faults = fmt.Errorf("not all could be read: %s", l.Fault)
		}
		for _, f := range l.Fields {
			rows = append(rows, []string{string(l.Device), l.Store, fmt.Sprint(l.Seq), l.Time.Format(time.RFC3339Nano), f.Name, fmt.Sprint(f.Value), f.Unit})
		}
	}
}
