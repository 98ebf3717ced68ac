package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
)

const devicesUsage = "devices takes nothing, or one of pending, admit ID, refuse ID, rename ID NAME, remove ID"

// runDevices lists the devices and says what is to become of those that are
// pending, also while the gateway runs.
func runDevices(_ context.Context, args []string, stdout, stderr io.Writer) error {
	what, words := "devices", 0
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		takes := map[string]int{"pending": 0, "admit": 1, "refuse": 1, "rename": 2, "remove": 1}
		n, known := takes[args[0]]
		if !known {
			return usageError(fmt.Sprintf("%s, not %q", devicesUsage, args[0]))
		}
		what, words, args = args[0], n, args[1:]
	}
	// Flags may stand before and after the words.
	var given []string
	for len(args) > 0 && len(given) < words && !strings.HasPrefix(args[0], "-") {
		given, args = append(given, args[0]), args[1:]
	}
	name := "devices"
	if what != name {
		name += " " + what
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	asJSON := flags.Bool("json", false, "print JSON, a line for each device")
	var a agent.DeviceArgs
	if what == "admit" {
		flags.Func("as", "the `ID` that it gets; the id of a device puts this one in its place", func(s string) error { a.As = devices.ID(s); return nil })
		flags.StringVar(&a.Name, "name", "", "what people call it")
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return errHelp
	} else if err != nil {
		return errUsageSaid
	}
	given = append(given, flags.Args()...)
	if len(given) != words {
		return usageError(devicesUsage)
	}
	if words > 0 {
		a.Which = given[0]
	}
	if words > 1 {
		a.Name = given[1]
	}
	c, err := loadConfig(config.Path(*path), stderr)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	if *asJSON {
		return agent.AskDevices(c, what, a, out)
	}
	var answer bytes.Buffer
	if err := agent.AskDevices(c, what, a, &answer); err != nil {
		return err
	}
	switch what {
	case "devices":
		return printDevices(&answer, out)
	case "pending":
		return printPending(&answer, out)
	}
	var done struct{ ID devices.ID }
	if err := json.Unmarshal(answer.Bytes(), &done); err != nil {
		return fmt.Errorf("cannot read the answer: %w", err)
	}
	past := map[string]string{"admit": "admitted as", "refuse": "refused", "rename": "renamed", "remove": "removed"}[what]
	_, err = fmt.Fprintf(out, "%s %s\n", past, done.ID)
	return err
}

// each decodes one JSON value a line.
func each[T any](r io.Reader, do func(T)) error {
	in := json.NewDecoder(r)
	in.UseNumber()
	for {
		var v T
		if err := in.Decode(&v); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("cannot read the answer: %w", err)
		}
		do(v)
	}
}

func printDevices(answer io.Reader, w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ID\tNAME\tPROFILE\tHEARD BY\tSTATE\tNEWEST")
	n := 0
	err := each(answer, func(d agent.DeviceLine) {
		n++
		state, newest := d.State, ""
		if state == "" {
			state = "-"
		}
		if d.Since != nil {
			newest = d.Since.Local().Format(time.DateTime)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.Name, d.Profile, d.Way, state, strings.TrimSpace(newest+"  "+values(d.Fields)))
	})
	if err != nil {
		return err
	}
	if n == 0 {
		fmt.Fprintln(w, "there are no devices")
		return nil
	}
	return table.Flush()
}

func printPending(answer io.Reader, w io.Writer) error {
	n := 0
	var refused []string
	err := each(answer, func(p agent.PendingLine) {
		if p.Refused {
			refused = append(refused, string(p.ID))
			return
		}
		n++
		about := p.Name
		if p.Model != "" {
			about += ", " + p.Model
		}
		fmt.Fprintf(w, "%d  %s  (%s)\n", p.Number, p.ID, about)
		if p.SameAs != "" {
			fmt.Fprintf(w, "   the same as %s, heard in another place\n", p.SameAs)
		}
		fmt.Fprintf(w, "   %s; profile %s; %d messages, the newest at %s\n", p.Way, p.Profile, p.Messages, p.Heard.Local().Format(time.DateTime))
		for _, also := range p.Also {
			fmt.Fprintf(w, "   also by %s\n", also)
		}
		kept := ""
		if p.Retained {
			kept = " (kept by the broker; it may be old)"
		}
		fmt.Fprintf(w, "   %s%s\n", values(p.Fields), kept)
	})
	if err != nil {
		return err
	}
	if n == 0 {
		fmt.Fprintln(w, "nothing is pending")
	}
	if len(refused) > 0 {
		fmt.Fprintf(w, "refused: %s\n", strings.Join(refused, ", "))
	}
	return nil
}

// shownValues is how many a line of a list has.
const shownValues = 6

// values writes fields in one line: temperature 21.4 °C, humidity 45 %.
func values(fields []agent.StoreField) string {
	var all []string
	for i, f := range fields {
		if i == shownValues {
			all = append(all, fmt.Sprintf("and %d more", len(fields)-i))
			break
		}
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %v %s", f.Name, f.Value, f.Unit)))
	}
	return strings.Join(all, ", ")
}
