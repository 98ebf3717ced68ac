package bridge

import "sync"

// sent names an item under way.
type sent struct{ node, item string }

// underway holds what is under way on one session.
type underway struct {
	mu    sync.Mutex
	sizes map[sent]int
}

func (u *underway) begin(s sent, size int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sizes[s] = size
}

func (u *underway) end(s sent) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.sizes, s)
}

func (u *underway) biggest() sent {
	u.mu.Lock()
	defer u.mu.Unlock()
	var biggest sent
	size := -1
	for s, n := range u.sizes {
		if n > size {
			biggest, size = s, n
		}
	}
	return biggest
}

// strikes counts on which items the stream was closed. Items that were never
// settled are few, so a full table is emptied rather than kept for ever.
type strikes struct {
	mu     sync.Mutex
	counts map[sent]int
}

const maxStrikes = 1000

func (c *strikes) add(s sent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.counts) >= maxStrikes {
		clear(c.counts)
	}
	c.counts[s]++
}

func (c *strikes) clear(s sent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.counts, s)
}

func (c *strikes) count(s sent) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[s]
}
