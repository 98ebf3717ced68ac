package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/porchlight-iot/porchlight/agent/aboard"
	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// gatherFor is how long newcomers are gathered for one message, and
	// newcomersEvery how often there is one.
	gatherFor      = 3 * time.Second
	newcomersEvery = time.Minute
	// namedNewcomers are in a message; of more, only the number is told.
	namedNewcomers = 5
)

// newcomers are the devices and people that began to wait, for those who
// decide.
type newcomers struct {
	grants func() access.Grants
	now    func() access.Moment
	event  func(bridge.Event)
	people messenger
	online func() bool
	log    *slog.Logger

	mu   sync.Mutex
	rows map[access.Role]*queue // by who decides
}

// A queue is what one kind of people is to be told.
type queue struct {
	lines []string
	more  int
	first time.Time
	told  time.Time
}

// add has somebody told. role is the one that decides.
func (n *newcomers) add(role access.Role, line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rows == nil {
		n.rows = make(map[access.Role]*queue)
	}
	q := n.rows[role]
	if q == nil {
		q = &queue{}
		n.rows[role] = q
	}
	if len(q.lines) == 0 {
		q.first = time.Now()
	}
	if len(q.lines) < namedNewcomers {
		q.lines = append(q.lines, line)
	} else {
		q.more++
	}
}

// run tells what is gathered until ctx ends.
func (n *newcomers) run(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			n.tell(ctx, now)
		}
	}
}

// tell tells what was gathered, if it is time.
func (n *newcomers) tell(ctx context.Context, now time.Time) {
	if !n.online() {
		return
	}
	n.mu.Lock()
	texts := make(map[access.Role]string)
	for role, q := range n.rows {
		if len(q.lines) == 0 || now.Sub(q.first) < gatherFor || now.Sub(q.told) < newcomersEvery {
			continue
		}
		if q.more > 0 {
			q.lines = append(q.lines, fmt.Sprintf("… and %d more: pending", q.more))
		}
		texts[role] = strings.Join(q.lines, "\n")
		*q = queue{told: now}
	}
	n.mu.Unlock()
	for role, text := range texts {
		n.event(bridge.Event{
			ID: fmt.Sprintf("device-waits-%d-%d", role, now.UnixMicro()), Time: now, Category: "device", Device: devices.Gateway,
			Title: "gateway: " + map[bool]string{true: "people wait", false: "devices wait"}[role == access.Owner], Summary: text,
		})
		to := addresses(n.grants().People(role, n.now()))
		ctx, cancel := context.WithTimeout(ctx, tellTime)
		if err := n.people.Tell(ctx, to, devices.Gateway, text); err != nil {
			n.log.Warn("not all were told who waits", "error", err)
		}
		cancel()
	}
}

// deviceWaits tells those who decide on devices.
func (n *newcomers) deviceWaits(p aboard.Pending) {
	n.add(access.Installer, fmt.Sprintf("%s wants to come aboard: %s. Answer: approve %d, or deny %d", p.ID, deviceDetail(p), p.Number, p.Number))
}

// personWaits tells those who decide on people.
func (n *newcomers) personWaits(p access.Person) {
	n.add(access.Owner, fmt.Sprintf("%s %s. Answer: approve %d, or deny %d", p.JID, personDetail(p), p.Number, p.Number))
}
