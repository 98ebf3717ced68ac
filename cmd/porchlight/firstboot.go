package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"

	"github.com/porchlight-iot/porchlight/agent/clock"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/setup"
)

// runFirstboot takes over a config, an invitation or a WiFi that somebody wrote to
// the boot partition of a card. A fault of that file is for the one who wrote it,
// and no reason to try again.
func runFirstboot(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("firstboot", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` to make (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	dir := flags.String("boot-dir", "/boot/firmware", "the `FOLDER` where the boot partition is")
	dataDir := flags.String("data-dir", "", "`FOLDER` for what an invited gateway keeps (default /var/lib/porchlight)")
	if err := parse(flags, args); err != nil {
		return err
	}
	file := config.Path(*path)
	if err := absolute(dataDir); err != nil {
		return err
	}
	done, err := setup.Card{Dir: *dir, Config: file, DataDir: *dataDir, Clock: clock.Machine()}.TakeOver(ctx)
	switch {
	case errors.As(err, new(setup.CardFault)):
		fmt.Fprintln(stderr, err)
		return configError{}
	case err != nil:
		return err
	case !done:
		fmt.Fprintf(stdout, "there is no %s and no %s in %s\n", setup.CardConfig, setup.CardInvite, *dir)
	default:
		fmt.Fprintf(stdout, "%s has what became of it\n", filepath.Join(*dir, setup.CardDone))
	}
	return nil
}
