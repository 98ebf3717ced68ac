package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/proof"
	"github.com/porchlight-iot/porchlight/devices"
)

// runProof tells what became of the readings of a period, also while the
// gateway runs.
func runProof(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("outbox proof", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	last := flags.String("last", "", "the `PERIOD` that ends now: 24h, 7d, today, yesterday, week (default today)")
	since := flags.String("since", "", "from this `TIME` on: 2026-11-23, 2026-11-23T14:00, or with seconds and zone (RFC 3339)")
	until := flags.String("until", "", "before this `TIME` (default now)")
	asJSON := flags.Bool("json", false, "print JSON")
	rest, err := parseMixed(flags, args)
	if err != nil {
		return err
	}
	if len(rest) > 1 {
		return usageError(fmt.Sprintf("outbox proof takes one device, not %q too", rest[1]))
	}
	if *last != "" && *since+*until != "" {
		return usageError("--last is not for --since and --until")
	}
	q := proof.Question{Until: time.Now()}
	if len(rest) > 0 {
		if q.Device, err = devices.ParseID(rest[0]); err != nil {
			return usageError(err.Error())
		}
	}
	switch {
	case *last != "":
		q.Since, q.Until, err = proof.ParsePeriod(*last, time.Now())
	case *since+*until == "":
		q.Since, q.Until, err = proof.ParsePeriod("today", time.Now())
	}
	if err != nil {
		return usageError("--last: " + err.Error())
	}
	for _, f := range []struct {
		name, text string
		at         *time.Time
	}{{"--since", *since, &q.Since}, {"--until", *until, &q.Until}} {
		if f.text == "" {
			continue
		}
		if *f.at, err = parseTime(f.text); err != nil {
			return usageError(fmt.Sprintf("%s: %v", f.name, err))
		}
	}
	if !q.Since.Before(q.Until) {
		return usageError("the period ends before it begins")
	}
	c, err := loadConfig(config.Path(*path), stderr)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	if *asJSON {
		return agent.Look(c, agent.AskProof(q), out)
	}
	var answer bytes.Buffer
	if err := agent.Look(c, agent.AskProof(q), &answer); err != nil {
		return err
	}
	var a proof.Answer
	if err := json.Unmarshal(answer.Bytes(), &a); err != nil {
		return fmt.Errorf("cannot read the answer: %w", err)
	}
	return printProof(a, out)
}

// parseTime reads a time as people write it, of the system's zone where none is
// given.
func parseTime(text string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time such as 2026-11-23T14:00", text)
}

func printProof(a proof.Answer, w io.Writer) error {
	period := proof.AnswerPeriod{From: a.From, To: a.To}
	fmt.Fprintf(w, "%s: %s\n", period.Text(time.Local), a.Text(time.Local))
	if len(a.Devices) < 2 {
		return nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tMEASURED\tACCEPTED\tWAITING\tTHINNED\tLOST\tUNKNOWN\tREPEATED\tDELAY")
	for _, d := range a.Devices {
		delay := time.Duration(d.Delay * float64(time.Second)).Round(100 * time.Millisecond)
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\n", d.Device, d.Given, d.Accepted, d.Waiting, d.Thinned, d.LostAll(), d.Unknown, d.Repeated, delay)
	}
	return table.Flush()
}
