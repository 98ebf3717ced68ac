package agent

import (
	"context"

	"github.com/porchlight-iot/porchlight/devices"
)

// A crew is the drivers at work.
type crew []worker

// A worker is a running driver.
type worker struct {
	driver devices.Driver
	cancel context.CancelFunc
	done   chan struct{}
}

// change gives a crew with the drivers that are wanted. Those that are there
// and can do the same stay; of the others the old ones end before the new ones
// begin, because they may share a port.
func (c crew) change(ctx context.Context, wanted []devices.Driver, run func(context.Context, devices.Driver)) crew {
	var next, leaving crew
	begin := append([]devices.Driver(nil), wanted...)
	for _, w := range c {
		stays := false
		for i, d := range begin {
			if a, ok := w.driver.(devices.Adopter); ok && d != nil && a.Name() == d.Name() && a.Adopt(d) {
				stays, begin[i] = true, nil
				break
			}
		}
		if stays {
			next = append(next, w)
		} else {
			leaving = append(leaving, w)
		}
	}
	leaving.dismiss()
	for _, d := range begin {
		if d == nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		w := worker{d, cancel, make(chan struct{})}
		go func() {
			defer close(w.done)
			run(ctx, d)
		}()
		next = append(next, w)
	}
	return next
}

// dismiss ends all, and waits for it.
func (c crew) dismiss() {
	for _, w := range c {
		w.cancel()
	}
	for _, w := range c {
		<-w.done
	}
}
