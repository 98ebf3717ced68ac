package main

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
)

// loadConfig reads and checks the config. Its faults, and what of it has no
// effect yet, are printed a line each.
func loadConfig(path string, stderr io.Writer) (*config.Config, error) {
	options, err := agent.LoadOptions()
	if err != nil {
		return nil, err
	}
	c, faults := config.Load(path, options)
	if len(faults) > 0 {
		for _, f := range faults {
			fmt.Fprintln(stderr, f)
		}
		return nil, configError{}
	}
	for _, f := range c.NotYet() {
		fmt.Fprintln(stderr, "warning:", f)
	}
	return c, nil
}

// parse reads flags; arguments that are no flags are wrong usage. Asking for
// help is not an error of its own: flag has printed it.
func parse(flags *flag.FlagSet, args []string) error {
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return errHelp
	case err != nil:
		return errUsageSaid
	case flags.NArg() > 0:
		return usageError(fmt.Sprintf("%s does not take %q", flags.Name(), flags.Arg(0)))
	}
	return nil
}
