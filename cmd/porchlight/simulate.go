package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/simulate"
	"github.com/porchlight-iot/porchlight/devices"
)

// reportEvery is how often simulate says how far it is.
const reportEvery = 5 * time.Second

func runSimulate(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("simulate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	n := flags.Int("devices", 3, "how many devices")
	rate := flags.Float64("rate", 1, "readings a second, of each device")
	list := flags.String("transport", "mqtt", "how they are heard: mqtt, coap, serial, or several with commas")
	length := flags.Duration("for", 0, "end after this `time`; without it, at Ctrl-C")
	show := flags.Bool("config", false, "print the entries for the gateway's config first")
	var where simulate.Where
	flags.StringVar(&where.MQTT, "mqtt", "mqtt://127.0.0.1:1883", "`URL` of the broker")
	flags.StringVar(&where.CoAP, "coap", "127.0.0.1:5683", "`host:port` of the gateway")
	if err := parse(flags, args); err != nil {
		return err
	}
	transports, err := simulate.ParseTransports(*list)
	if err != nil {
		return usageError(err.Error())
	}
	if *n < 1 || *n > 100_000 || *rate <= 0 || *rate > 10_000 {
		return usageError("simulate takes 1 to 100000 devices and a rate above 0, to 10000")
	}
	var all []*simulate.Device
	defer func() {
		for _, d := range all {
			d.Close()
		}
	}()
	for i := range *n {
		transport := transports[i%len(transports)]
		d, err := simulate.New(devices.ID(fmt.Sprintf("sim-%s-%d", transport, i+1)), transport, where)
		if err != nil {
			return err
		}
		all = append(all, d)
	}
	for _, d := range all {
		if *show || d.Port != "" {
			fmt.Fprintln(stdout, d.Config())
		}
	}
	if *length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *length)
		defer cancel()
	}
	run(ctx, all, time.Duration(float64(time.Second) / *rate), stdout)
	return nil
}

// run lets the devices report until ctx ends, and says how far they are.
func run(ctx context.Context, all []*simulate.Device, every time.Duration, stdout io.Writer) {
	var running sync.WaitGroup
	for _, d := range all {
		running.Go(func() { d.Run(ctx, every) })
	}
	say := func() {
		sent, acked := 0, 0
		for _, d := range all {
			sent += d.Sent()
			acked += d.Acked()
		}
		fmt.Fprintf(stdout, "%d devices, %d sent, %d acknowledged\n", len(all), sent, acked)
	}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			running.Wait()
			say()
			return
		case <-tick.C:
			say()
		}
	}
}
