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
// effect yet, are printed a line each. Those of files of one device each are
// no error: the config is without that device.
func loadConfig(path string, stderr io.Writer) (*config.Config, error) {
	c, _, err := readConfig(path, stderr)
	return c, err
}

// checkConfig is loadConfig, and tells whether the config is whole, with what
// was granted since.
func checkConfig(path string, stderr io.Writer) (c *config.Config, whole bool, err error) {
	if c, whole, err = readConfig(path, stderr); err != nil {
		return c, whole, err
	}
	if err := agent.Access(c, io.Discard); err != nil {
		fmt.Fprintln(stderr, err)
		whole = false
	}
	return c, whole, nil
}

func readConfig(path string, stderr io.Writer) (c *config.Config, whole bool, err error) {
	options, err := agent.LoadOptions()
	if err != nil {
		return nil, false, err
	}
	c, faults := config.Load(path, options)
	for _, f := range faults {
		fmt.Fprintln(stderr, f)
	}
	if c == nil {
		return nil, false, configError{}
	}
	for _, f := range c.NotYet() {
		fmt.Fprintln(stderr, "warning:", f)
	}
	return c, len(faults) == 0, nil
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
