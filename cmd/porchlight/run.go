package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge"
)

func runGateway(ctx context.Context, args []string, _, stderr io.Writer) error {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	format := flags.String("log-format", "text", "text or json")
	verbose := flags.Bool("v", false, "log what is of use to developers too")
	if err := parse(flags, args); err != nil {
		return err
	}
	log, err := newLog(stderr, *format, *verbose)
	if err != nil {
		return err
	}
	c, err := loadConfig(config.Path(*path), stderr)
	if err != nil {
		return err
	}
	file, err := filepath.Abs(config.Path(*path))
	if err != nil {
		return err
	}
	gateway, err := agent.New(c, log)
	if err != nil {
		return err
	}
	gateway.KeepBackups(backupMaker(file))
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	done := make(chan struct{})
	reloading := make(chan struct{})
	var serving sync.WaitGroup
	serveCtx, stopServing := context.WithCancel(ctx)
	serving.Go(func() { serve(serveCtx, gateway, log) })
	go func() {
		defer close(reloading)
		for {
			select {
			case <-done:
				return
			case <-hangup:
				c, err := loadConfig(config.Path(*path), stderr)
				if err != nil {
					log.Error("config not reloaded, the gateway goes on as before", "error", err)
					continue
				}
				gateway.Reload(c)
			}
		}
	}()
	log.Info("gateway starts", "id", c.Gateway.ID, "devices", len(c.Devices), "store", gateway.Stats().Outbox.Store)
	err = gateway.Run(ctx)
	close(done)
	<-reloading
	stopServing()
	serving.Wait()
	switch {
	case err == nil:
		log.Info("gateway stopped")
	case errors.Is(err, bridge.ErrSucceeded):
		log.Error("gateway stopped", "reason", err)
		return configError{} // to be started again is of no use
	}
	return err
}

func newLog(w io.Writer, format string, verbose bool) (*slog.Logger, error) {
	options := &slog.HandlerOptions{}
	if verbose {
		options.Level = slog.LevelDebug
	}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, usageError(fmt.Sprintf("there is no log format %q; there are text and json", format))
}
