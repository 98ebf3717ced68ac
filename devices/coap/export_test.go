package coap

import "time"

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
