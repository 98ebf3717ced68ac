package main

import (
	"context"
	"flag"
	"fmt"
	"io"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
)

// runCheck says all that is wrong with the config, a line each, or that it is
// good. With --online it also tries what the config names.
func runCheck(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	online := flags.Bool("online", false, "also try names, servers, the login, a node, serial ports and the clock")
	if err := parse(flags, args); err != nil {
		return err
	}
	file := config.Path(*path)
	c, whole, err := checkConfig(file, stdout)
	if err != nil {
		return err
	}
	if !whole {
		return configError{}
	}
	if _, err := fmt.Fprintf(stdout, "%s: good\n", file); err != nil {
		return fmt.Errorf("cannot write the outcome: %w", err)
	}
	if *online {
		return checkOnline(ctx, c, clock.Machine(), stdout)
	}
	return nil
}
