//go:build torture

package agent

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
)

// tellGoroutines tells how many there are, each time SIGUSR1 comes, and gives
// the memory back that is not in use.
func tellGoroutines(ctx context.Context) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() {
		defer signal.Stop(asked)
		for {
			select {
			case <-ctx.Done():
				return
			case <-asked:
				debug.FreeOSMemory()
				fmt.Fprintf(os.Stderr, "goroutines %d\n", runtime.NumGoroutine())
			}
		}
	}()
}
