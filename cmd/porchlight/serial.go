package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
)

const serialUsage = "serial takes one of list, probe PORT"

// runSerial shows the serial ports, and finds out what speaks on one.
func runSerial(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usageError(serialUsage)
	}
	what, args := args[0], args[1:]
	port := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		port, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("serial "+what, flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml, if it is there)")
	asJSON := flags.Bool("json", false, "print JSON, a line for each port or firmware")
	trial := agent.PortTrial{}
	if what == "probe" {
		flags.DurationVar(&trial.Listen, "listen", 12*time.Second, "how `LONG` to wait for a device that speaks seldom")
		flags.BoolVar(&trial.Write, "write", false, "also ask, which writes to the port: for devices that only answer")
		flags.IntVar(&trial.Baud, "baud", 0, "the only `RATE` to try (default all that profiles have)")
		flags.Func("unit", "the `ADDRESS` to ask on a Modbus (default 1)", func(s string) error {
			_, err := fmt.Sscanf(s, "%d", &trial.Unit)
			return err
		})
	}
	if err := parse(flags, args); err != nil {
		return err
	}
	// Ports are of use without a config, too.
	c, faults := config.Load(config.Path(*path), config.LoadOptions{})
	if c == nil && *path != "" {
		return faults
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	switch {
	case what == "list" && port == "":
		return listPorts(c, *asJSON, out)
	case what == "probe" && port != "":
		folder := ""
		if c != nil {
			folder = filepath.Join(c.Gateway.DataDir, config.ProfilesDir)
		}
		library, err := loadProfiles(folder, stderr)
		if err != nil {
			return err
		}
		trial.Port = port
		trial.Say = func(s string) { fmt.Fprintln(stderr, s) }
		found, heard, err := agent.ProbeSerial(ctx, library, trial)
		if err != nil {
			return err
		}
		return printFindings(found, heard, trial, *asJSON, out)
	}
	return usageError(serialUsage)
}

func listPorts(c *config.Config, asJSON bool, w io.Writer) error {
	all, err := agent.SerialPorts(c)
	if err != nil {
		return err
	}
	for _, l := range all {
		if asJSON {
			if err := json.NewEncoder(w).Encode(l); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintln(w, l.Best)
		about := strings.TrimSpace(l.Maker + " " + l.Name)
		if l.USB != "" {
			about = strings.TrimSpace("usb " + l.USB + "  " + about)
		}
		fmt.Fprintln(w, "   "+strings.TrimRight(l.Path+"  "+about, " "))
		for _, other := range append(l.ByID, l.ByPath...) {
			if other != l.Best {
				fmt.Fprintln(w, "   "+other)
			}
		}
		if l.Shared {
			fmt.Fprintln(w, "   another has the same name by id, because they have no serial numbers: name it by its path")
		}
		switch {
		case len(l.Devices) > 0:
			fmt.Fprintf(w, "   configured: %s, profile %s\n", joined(l.Devices), l.Profile)
		case l.Is != "" && l.Profile != "":
			fmt.Fprintf(w, "   probably %s: profile %s\n", l.Is, l.Profile)
		case l.Is != "":
			fmt.Fprintf(w, "   probably %s\n", l.Is)
		}
		for _, u := range l.Users {
			fmt.Fprintf(w, "   in use by %s, process %d\n", u.Command, u.PID)
		}
	}
	if len(all) == 0 && !asJSON {
		fmt.Fprintln(w, "there are no serial ports")
	}
	return nil
}

func joined[T ~string](all []T) string {
	var words []string
	for _, s := range all {
		words = append(words, string(s))
	}
	return strings.Join(words, ", ")
}

// printFindings tells what speaks on a port, with the proof.
func printFindings(all []agent.ProbeLine, heard int, t agent.PortTrial, asJSON bool, w io.Writer) error {
	for i, l := range all {
		if asJSON {
			if err := json.NewEncoder(w).Encode(l); err != nil {
				return err
			}
			continue
		}
		proof := fmt.Sprintf("%d frames", l.Frames)
		if l.Checksums {
			proof += " with good checksums"
		}
		if l.Faulty > 0 {
			proof += fmt.Sprintf(", %d faulty", l.Faulty)
		}
		if i > 0 {
			fmt.Fprintf(w, "also read by %s at %s: %s\n", l.Profile, l.Line, proof)
			continue
		}
		fmt.Fprintf(w, "%s (%s) at %s: %s\n", l.Profile, l.Name, l.Line, proof)
		if len(l.Identities) > 0 {
			fmt.Fprintf(w, "   devices: %s\n", strings.Join(l.Identities, ", "))
		}
		if len(l.Fields) > 0 {
			fmt.Fprintf(w, "   %s\n", values(l.Fields))
		}
		line := ""
		if !l.Usual {
			line = fmt.Sprintf(", baud: %d, data_bits: %d, parity: %s, stop_bits: %d", l.Baud, l.DataBits, l.Parity, l.StopBits)
		}
		fmt.Fprintf(w, "   - {id: CHOOSE, profile: %s, serial: {port: %s%s}}\n", l.Profile, t.Port, line)
	}
	switch {
	case len(all) > 0:
		return nil
	case heard > 0:
		return fmt.Errorf("no profile understands what %s says: %d bytes came", t.Port, heard)
	case t.Write:
		return fmt.Errorf("%s says nothing, and answers nothing that was asked", t.Port)
	}
	return errors.New(t.Port + " says nothing; --write also asks, and --listen waits longer")
}
