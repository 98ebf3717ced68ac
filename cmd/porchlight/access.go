package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
)

// runAccess lists who is granted what, and who waits to be let in.
func runAccess(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("access", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	asJSON := flags.Bool("json", false, "print JSON, a line for each grant, and each who waits")
	if err := parse(flags, args); err != nil {
		return err
	}
	c, err := loadConfig(config.Path(*path), stderr)
	if err != nil {
		return err
	}
	var answer bytes.Buffer
	if err := agent.Access(c, &answer); err != nil {
		return err
	}
	if *asJSON {
		_, err := answer.WriteTo(stdout)
		return err
	}
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PERSON\tROLE\tDEVICES\tHOURS\tUNTIL\tGRANTED BY")
	var waiting []string
	owner := false
	err = each(&answer, func(l agent.AccessLine) {
		if l.Number > 0 {
			waiting = append(waiting, fmt.Sprintf("%d  %s wants to see %s", l.Number, l.JID, join(l.Wants)))
			return
		}
		owner = owner || l.Role == "owner"
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", l.JID, l.Role, cmp.Or(join(l.Devices), "all"), cmp.Or(l.Hours, "always"), cmp.Or(l.Until, "-"), cmp.Or(l.By, "the config"))
	})
	if err != nil {
		return err
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if !owner {
		fmt.Fprintln(stdout, "nobody is the owner; while the gateway runs, the code to claim it is in the file claim in its data directory")
	}
	for _, line := range waiting {
		fmt.Fprintln(stdout, line)
	}
	return nil
}

func join[T ~string](all []T) string {
	var texts []string
	for _, s := range all {
		texts = append(texts, string(s))
	}
	return strings.Join(texts, ", ")
}
