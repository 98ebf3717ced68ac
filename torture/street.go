package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// street tortures houses side by side, because one waits most of the time. The
// cycles are shared out among them, and each has a seed of its own, by which
// it can be played again alone.
func street(ctx context.Context, o options, out io.Writer) error {
	o.houses = min(o.houses, o.cycles)
	if o.houses <= 1 {
		_, err := torture(ctx, o, out)
		return err
	}
	began := time.Now()
	var group sync.WaitGroup
	var mu sync.Mutex
	var all verdict
	var failed error
	for i := range o.houses {
		house := o
		house.cycles = (o.cycles + i) / o.houses
		house.seed = o.seed + uint64(i)
		group.Go(func() {
			v, err := torture(ctx, house, &prefixed{&mu, out, fmt.Sprintf("house %d: ", i+1)})
			mu.Lock()
			defer mu.Unlock()
			all.join(v)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("house %d: %w", i+1, err))
			}
		})
	}
	group.Wait()
	fmt.Fprintf(out, "%d houses, seeds %d to %d, %d cycles in %v: %v\n", o.houses, o.seed, o.seed+uint64(o.houses)-1, o.cycles, time.Since(began).Round(time.Second), all)
	return failed
}

// prefixed begins each line with a name.
type prefixed struct {
	mu   *sync.Mutex // of all that share the writer
	out  io.Writer
	name string
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for line := range bytes.Lines(b) {
		if _, err := fmt.Fprintf(p.out, "%s%s", p.name, line); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
