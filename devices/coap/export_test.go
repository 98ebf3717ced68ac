package coap

import (
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

// SetPiggyback sets how long an answer may take to travel inside the
// acknowledgement, so that no test depends on how fast it runs.
func (s *Server) SetPiggyback(d time.Duration) { s.piggyback = d }

// Associations is how many peers are connected by DTLS.
func (s *Server) Associations() int {
	l := s.listener.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.alive)
}

// Handshakes is how many are under way.
func (s *Server) Handshakes() int {
	l := s.listener.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending)
}

// Asleep reports whether a client that registered does not hear what it is sent.
func (s *Server) Asleep(id devices.ID) bool {
	_, _, m := s.service.Load().directory.of(id)
	return m != nil && m.asleep()
}

// Age has all associations be silent for so long, and looks for those that are
// for too long.
func (s *Server) Age(by time.Duration) {
	l := s.listener.Load()
	l.mu.Lock()
	for a := range l.alive {
		a.seen = a.seen.Add(-by)
	}
	l.mu.Unlock()
	s.rekeyed <- struct{}{}
}
