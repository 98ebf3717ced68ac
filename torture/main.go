package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// options are what is to be done.
type options struct {
	cycles   int
	houses   int
	seed     uint64
	faults   string // see choose
	mode     string // component or account
	ack      string // server or disk
	patience time.Duration
	race     bool
	keep     bool
	dir      string        // for everything that is written
	point    func() string // see gateway
	limit    int           // bytes of an item that the service takes; 0: any
}

func main() {
	var o options
	flag.IntVar(&o.cycles, "cycles", 30, "how many times faults happen and a verdict is given")
	flag.IntVar(&o.houses, "houses", 4, "how many gateways, with all around them, share the cycles")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64N(1_000_000), "chooses the faults (default random)")
	flag.StringVar(&o.faults, "faults", "", "only these: names with commas; disk- is all that begin so: "+names())
	flag.StringVar(&o.mode, "mode", "", "component or account (default by seed)")
	flag.StringVar(&o.ack, "ack", "", "outbox.ack: server or disk (default by seed)")
	flag.DurationVar(&o.patience, "patience", 3*time.Minute, "how long a backlog may take to arrive when all is mended")
	flag.BoolVar(&o.race, "race", false, "build the gateway with the race detector")
	flag.BoolVar(&o.keep, "keep", false, "keep what was written also when all is well")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := street(ctx, o, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		os.Exit(1)
	}
}

func names() string {
	var all []string
	for _, k := range kinds() {
		all = append(all, k.name)
	}
	return strings.Join(all, ", ")
}

// errVerdict says that the verdict is not good; it was printed.
var errVerdict = errors.New("the gateway does not keep its promise")

// torture runs the cycles of one house and prints the verdict.
func torture(ctx context.Context, o options, out io.Writer) (v verdict, err error) {
	r := rand.New(rand.NewPCG(o.seed, 0))
	if mode := []string{"component", "account"}[r.IntN(2)]; o.mode == "" {
		o.mode = mode
	}
	if ack := []string{"server", "disk"}[r.IntN(2)]; o.ack == "" {
		o.ack = ack
	}
	noDisk := hasFUSE()
	allowed, err := choose(o.faults, noDisk == nil)
	if err != nil {
		return v, err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "porchlight-torture-"); err != nil {
			return v, err
		}
		defer func() {
			if err == nil && !o.keep || ctx.Err() != nil {
				os.RemoveAll(o.dir)
			}
		}()
	}
	replay := fmt.Sprintf("go run ./torture -houses 1 -cycles %d -seed %d -mode %s -ack %s", o.cycles, o.seed, o.mode, o.ack)
	if o.faults != "" {
		replay += " -faults " + o.faults
	}
	fmt.Fprintln(out, replay)
	if noDisk != nil {
		fmt.Fprintf(out, "DISK FAULTS AND POWER CUTS ARE SKIPPED: %v\n", noDisk)
	}
	program := filepath.Join(o.dir, "porchlight")
	if err := build(ctx, program, o.race); err != nil {
		return v, err
	}
	w, err := newWorld(ctx, o, program, noDisk == nil, out)
	if err != nil {
		return v, err
	}
	v, good := w.cycles(ctx, allowed)
	if err := w.close(!good); err != nil {
		return v, err
	}
	if err := context.Cause(ctx); err != nil {
		return v, err
	}
	if noDisk != nil {
		fmt.Fprintf(out, "DISK FAULTS AND POWER CUTS WERE SKIPPED: %v\n", noDisk)
	}
	if !good {
		fmt.Fprintf(out, "logs, ledger and store are in %s\nagain: %s\n", o.dir, replay)
		return v, errVerdict
	}
	return v, nil
}

func build(ctx context.Context, program string, race bool) error {
	args := []string{"build", "-tags", "torture,crashpoint", "-o", program}
	if race {
		args = append(args, "-race")
	}
	out, err := exec.CommandContext(ctx, "go", append(args, "github.com/porchlight-iot/porchlight/cmd/porchlight")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot build the gateway: %w\n%s", err, out)
	}
	return nil
}
