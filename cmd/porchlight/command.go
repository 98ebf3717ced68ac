package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/devices"
)

// runCommand has a gateway at work tell a device something, and tells how that
// goes on. Without a command it lists those that there are.
func runCommand(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("command", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	asJSON := flags.Bool("json", false, "print JSON, a line for each outcome")
	sure := flags.Bool("sure", false, "do what is hazardous, too")
	var words []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && len(words) < 3 {
		words, args = append(words, args[0]), args[1:]
	}
	if len(words) == 2 && len(args) > 0 {
		if _, err := strconv.ParseFloat(args[0], 64); err == nil { // -5 is no flag
			words, args = append(words, args[0]), args[1:]
		}
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return errHelp
	} else if err != nil {
		return errUsageSaid
	}
	words = append(words, flags.Args()...)
	if len(words) == 0 || len(words) > 3 {
		return usageError("command takes DEVICE, or DEVICE NAME, or DEVICE NAME VALUE")
	}
	words = append(words, "", "")
	c, err := loadConfig(config.Path(*path), stderr)
	if err != nil {
		return err
	}
	in, answer := io.Pipe()
	asked := make(chan error, 1)
	go func() {
		err := agent.AskDevices(c, "command", agent.DeviceArgs{Which: words[0], Name: words[1], Value: words[2], Sure: *sure}, answer)
		answer.CloseWithError(err)
		asked <- err
	}()
	refused, err := printOutcomes(in, stdout, *asJSON)
	in.CloseWithError(err)
	if asking := <-asked; asking != nil {
		return asking
	}
	if err == nil && refused {
		return errVerdict
	}
	return err
}

// printOutcomes prints each line when it comes.
func printOutcomes(answer io.Reader, w io.Writer, asJSON bool) (refused bool, err error) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	n := 0
	lines := bufio.NewScanner(answer)
	for ; lines.Scan(); n++ {
		var l agent.CommandLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return false, fmt.Errorf("cannot read the answer: %w", err)
		}
		refused = refused || l.Outcome == "refused"
		switch {
		case asJSON:
			fmt.Fprintln(w, lines.Text())
		case l.Outcome == "confirmed":
			fmt.Fprintf(w, "confirmed after %s\n", time.Duration(l.Seconds*float64(time.Second)).Round(time.Millisecond))
		case l.Why != "":
			fmt.Fprintf(w, "%s: %s\n", l.Outcome, l.Why)
		case l.Outcome != "":
			fmt.Fprintln(w, l.Outcome)
		default:
			title := l.Title
			if l.Risk == devices.Hazardous.String() {
				title = strings.TrimSpace(title + " (hazardous: --sure)")
			}
			fmt.Fprintln(table, strings.TrimRight(l.Name+"\t"+argument(l)+"\t"+title, "\t"))
		}
	}
	if err := lines.Err(); err != nil {
		return false, err
	}
	if n == 0 && !asJSON {
		fmt.Fprintln(w, "it is not known that the device can be told anything; some have to be heard first")
	}
	return refused, table.Flush()
}

// argument says what a command takes.
func argument(l agent.CommandLine) string {
	switch {
	case len(l.Words) > 0:
		return strings.Join(l.Words, ", ")
	case l.Min != nil && l.Max != nil:
		return strings.TrimSpace(fmt.Sprintf("%v to %v %s", *l.Min, *l.Max, l.Unit))
	}
	return strings.TrimSpace(l.Type + " " + l.Unit)
}
