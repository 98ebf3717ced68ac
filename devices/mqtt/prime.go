package mqtt

import (
	"context"
	"errors"
	"time"

	"github.com/porchlight-iot/porchlight/devices"
)

const (
	primeTime = 10 * time.Second // to hear what was announced, at most
	quietTime = 300 * time.Millisecond
)

// renew has the newest ear be the client's, and have heard what was announced.
// It reports whether there is another than before. It is called by Run alone.
//
// The broker gives first what the session has not acknowledged, and only then,
// when it is asked, what it retains. A device that is known by its announcement
// alone would not be understood, and its readings be lost. So announcements are
// heard before, on a connection without a session.
func (c *Client) renew(ctx context.Context) (changed bool) {
	e := c.next.Swap(nil)
	if changed = e != nil; !changed {
		e = c.ear.Load()
	}
	if d := c.directory.Load(); !e.primed && e.profiles != nil && !c.scouts {
		if filters := d.sharedFilters(); len(filters) > 0 {
			e.primed = c.prime(ctx, e, d, filters)
		}
	}
	c.ear.Store(e)
	return changed
}

// prime lets an ear hear what the broker retains on filters, and reports whether
// it could. Where it could not, the link will tell why, or does well without.
func (c *Client) prime(ctx context.Context, e *ear, d *directory, filters []string) bool {
	ctx, cancel := context.WithTimeout(ctx, primeTime)
	defer cancel()
	config := c.config
	config.ClientID += "-announcements"
	config.Share = ""
	scout := &Client{config: config, filters: filters, changed: make(chan struct{}, 1), scouts: true, log: c.log}
	scout.directory.Store(d)
	scout.ear.Store(e)
	up := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = scout.Run(ctx, deafSink{up}) // see above
	}()
	defer func() { <-ended }()
	defer cancel()
	select {
	case <-up:
	case <-ended:
		return false
	}
	for heard := int64(-1); ctx.Err() == nil && heard != scout.heard.Load(); {
		heard = scout.heard.Load()
		select {
		case <-ended:
		case <-time.After(quietTime):
		}
	}
	return true
}

// A deafSink takes nothing.
type deafSink struct{ up chan struct{} }

func (deafSink) Report(context.Context, devices.Message) (devices.Receipt, error) {
	return nil, errors.New("nobody listens")
}
func (deafSink) Availability(devices.ID, devices.Availability, bool) {}
func (deafSink) Unknown(devices.Stranger) bool                       { return false }
func (deafSink) Reject(string, error)                                {}
func (s deafSink) Up(string)                                         { close(s.up) }
