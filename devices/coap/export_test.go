package coap

import "time"

// SetPiggyback sets how long an answer may take to travel inside the
// acknowledgement, so that no test depends on how fast it runs.
func (s *Server) SetPiggyback(d time.Duration) { s.piggyback = d }
