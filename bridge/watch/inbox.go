package watch

import (
	"sync"

	"github.com/porchlight-iot/porchlight/bridge/stream"
)

// An inbox holds the stanzas that came until the session looks at them. What
// does not fit is dropped, and told to have been.
type inbox struct {
	ready chan struct{} // has a value while there is something
	limit int           // bytes

	mu       sync.Mutex
	stanzas  []stream.Stanza
	size     int
	overflow bool
}

func newInbox(limit int) *inbox { return &inbox{ready: make(chan struct{}, 1), limit: limit} }

// take is the stream's handler: it runs on the goroutine that reads.
func (in *inbox) take(_ *stream.Session, st stream.Stanza) bool {
	if st.Name != "message" && st.Name != "presence" {
		return false
	}
	size := len(st.Inner) + 500
	in.mu.Lock()
	if in.size+size > in.limit {
		in.overflow = true
	} else {
		in.stanzas = append(in.stanzas, st)
		in.size += size
	}
	in.mu.Unlock()
	select {
	case in.ready <- struct{}{}:
	default:
	}
	return true
}

// empty gives what came, in its order, and whether anything was dropped.
func (in *inbox) empty() (stanzas []stream.Stanza, overflow bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	stanzas, overflow = in.stanzas, in.overflow
	in.stanzas, in.size, in.overflow = nil, 0, false
	return stanzas, overflow
}
