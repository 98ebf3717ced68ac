package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"os"

	"golang.org/x/term"

	"github.com/porchlight-iot/porchlight/agent/demo"
)

func runDemo(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(stderr)
	o := demo.Options{Out: stdout}
	flags.DurationVar(&o.For, "for", 0, "end after this `time`, as 60s; without it, at Ctrl-C")
	flags.BoolVar(&o.Plain, "plain", false, "print lines instead of a screen")
	verbose := flags.Bool("v", false, "print the gateway's log (with --plain)")
	if err := parse(flags, args); err != nil {
		return err
	}
	if f, ok := stdout.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		o.Plain = true
	}
	o.Log = slog.New(slog.DiscardHandler)
	if *verbose && o.Plain {
		o.Log = slog.New(slog.NewTextHandler(stderr, nil))
	}
	verdict, err := demo.Run(ctx, o)
	if err != nil {
		return err
	}
	if !verdict.Good() {
		return errVerdict
	}
	return nil
}
