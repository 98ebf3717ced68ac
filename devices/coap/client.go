package coap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	coapnet "github.com/plgd-dev/go-coap/v3/net"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// lookUpTime is for the name of a device.
const lookUpTime = 10 * time.Second

// A Client asks devices that have a URL, from one socket of its own. It is a
// [devices.Driver].
type Client struct {
	devices.Pulse // of the one who hears

	devices atomic.Pointer[map[devices.ID]Device]
	ear     atomic.Pointer[ear]
	grants  grants
	log     *slog.Logger
	changed chan struct{} // has one where there are other devices

	mu      sync.Mutex
	running map[devices.ID]*asked // nil while it does not run
}

// asked is a device that is asked.
type asked struct {
	asker  asker
	grants *grants
	url    *url.URL
	cancel context.CancelFunc
	done   chan struct{}

	peer atomic.Pointer[peer] // nil while it was not reached
}

// ClientConfig says what a client needs beside the devices.
type ClientConfig struct {
	Profiles *profile.Library

	// Folder is where keys are kept that gateways gave, and Replace writes a file
	// there in place of what was, for the user alone and so that it lasts. Both are
	// needed where a device has a Code.
	Folder  string
	Replace func(path string, data []byte) error
}

// NewClient makes a client for those of the devices that have a URL.
func NewClient(config ClientConfig, devs []Device, log *slog.Logger) *Client {
	c := &Client{grants: grants{folder: config.Folder, replace: config.Replace}, log: log, changed: make(chan struct{}, 1)}
	all := make(map[devices.ID]Device)
	for _, d := range devs {
		if d.URL != "" {
			all[d.ID] = d
		}
	}
	c.devices.Store(&all)
	c.ear.Store(newEar(config.Profiles))
	return c
}

// Adopt implements [devices.Adopter]. Devices that did not change are not asked
// anew.
func (c *Client) Adopt(next devices.Driver) bool {
	n, ok := next.(*Client)
	if !ok {
		return false
	}
	if e := n.ear.Load(); e.profiles != c.ear.Load().profiles {
		c.ear.Store(e)
	}
	c.devices.Store(n.devices.Load())
	select {
	case c.changed <- struct{}{}:
	default:
	}
	return true
}

// Name implements [devices.Driver].
func (c *Client) Name() string { return "coap client" }

// Run implements [devices.Driver].
func (c *Client) Run(ctx context.Context, sink devices.Sink) error {
	conn, err := coapnet.NewListenUDP("udp", ":0")
	if err != nil {
		return fmt.Errorf("cannot open a socket to ask CoAP devices: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := newSession(ctx, sink, conn, c.log)
	s.pulse = &c.Pulse
	defer s.wg.Wait()
	defer c.stop()
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the read
	defer func() {
		unhook()
		_ = conn.Close()
	}()
	c.mu.Lock()
	c.running = make(map[devices.ID]*asked)
	c.mu.Unlock()
	c.follow(ctx, s)
	s.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.changed:
				c.follow(ctx, s)
			}
		}
	})
	sink.Up(c.Name())
	if err := s.listen(); err != nil {
		return fmt.Errorf("cannot receive from CoAP devices: %w", err)
	}
	return nil
}

// follow has those devices be asked that there are now.
func (c *Client) follow(ctx context.Context, s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted := *c.devices.Load()
	for id, a := range c.running {
		if d, ok := wanted[id]; !ok || !same(d, a.asker.device) {
			a.cancel()
			<-a.done
			delete(c.running, id)
		}
	}
	for id, d := range wanted {
		if c.running[id] != nil || ctx.Err() != nil {
			continue
		}
		u, err := url.Parse(d.URL)
		if err != nil || u.Host == "" {
			s.sink.Reject(string(id), fmt.Errorf("cannot use the url %q", d.URL))
			continue
		}
		one, cancel := context.WithCancel(ctx)
		a := &asked{asker: asker{session: s, device: d, ear: c.ear.Load, told: &bell{}}, grants: &c.grants, url: u, cancel: cancel, done: make(chan struct{})}
		c.running[id] = a
		s.wg.Go(func() {
			defer close(a.done)
			a.run(one)
		})
	}
}

// same reports whether a device is asked in the same way. Its profile is looked
// up by name each time.
func same(a, b Device) bool {
	a.Profile, b.Profile = nil, nil
	return reflect.DeepEqual(a, b)
}

func (c *Client) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.running {
		a.cancel()
		<-a.done
	}
	c.running = nil
}

// run asks a device until ctx ends. One that does not answer is tried again and
// again, less and less often, at the address that its name then has.
func (a *asked) run(ctx context.Context) {
	s := a.asker.session
	wait, said := retryFirst, false
	for n := 0; ctx.Err() == nil; n++ {
		began := time.Now()
		answered, err := a.once(ctx, n)
		if answered {
			wait, said = retryFirst, false
		}
		switch {
		case ctx.Err() != nil || errors.Is(err, errLookAgain):
			continue
		case answered && a.url.Scheme == "coaps" && isFatal(err) && time.Since(began) > retryFirst:
			continue // it has begun anew, or forgotten the association
		case errors.Is(err, errNothing):
			wait = uselessWait
		}
		if !said {
			s.log.Warn("CoAP: a device cannot be asked", "device", a.asker.device.ID, "url", a.url.Redacted(), "reason", err)
			said = true
		}
		a.asker.sleep(ctx, wait)
		wait = min(2*wait, retryLast)
	}
}

// once asks a device until that is of no use, and reports whether it answered.
func (a *asked) once(ctx context.Context, n int) (answered bool, err error) {
	p, release, err := a.reach(ctx, n)
	if err != nil {
		return false, err
	}
	defer release()
	a.peer.Store(p)
	defer a.peer.Store(nil)
	began := time.Now()
	err = a.asker.ask(ctx, p, a.resources())
	s := a.asker.session
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.spoke.After(began), err
}

// reach finds the peer at the device's URL. With a name of several addresses
// each attempt takes the next.
func (a *asked) reach(ctx context.Context, n int) (*peer, func(), error) {
	s := a.asker.session
	usual := map[string]string{"coap": "5683", "coaps": "5684"}[a.url.Scheme] // RFC 7252 sections 6.1 and 6.2
	if usual == "" {
		return nil, nil, fmt.Errorf("cannot ask by %s", a.url.Scheme)
	}
	port, err := strconv.ParseUint(cmp.Or(a.url.Port(), usual), 10, 16)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot use the port of %s", a.url.Redacted())
	}
	looking, cancel := context.WithTimeout(ctx, lookUpTime)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(looking, "ip", a.url.Hostname())
	if err != nil {
		return nil, nil, fmt.Errorf("cannot find the address of the device: %w", err)
	}
	to := netip.AddrPortFrom(all[n%len(all)], uint16(port))
	if d := a.asker.device; a.url.Scheme == "coaps" && len(d.Code) > 0 {
		return a.grants.reach(ctx, s, net.JoinHostPort(a.url.Hostname(), fmt.Sprint(port)), to, d.KeyName, d.Code)
	}
	if a.url.Scheme == "coaps" {
		return s.reachSecure(ctx, to, a.asker.device.KeyName, a.asker.device.Key)
	}
	p, err := s.reach(to)
	if err != nil {
		return nil, nil, err
	}
	return p, func() { s.release(p) }, nil
}

// resources gives what the URL names; none where it names the device.
func (a *asked) resources() []resource {
	r := resource{path: unescaped(a.url), query: queries(a.url), accept: NoFormat}
	if len(r.path) == 0 && len(r.query) == 0 {
		return nil
	}
	return []resource{r}
}

func (c *Client) asked(id devices.ID) *asked {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running[id]
}

// Controls implements [devices.Actuator].
func (c *Client) Controls(id devices.ID) []devices.Control {
	d, ok := (*c.devices.Load())[id]
	if !ok {
		return nil
	}
	return c.ear.Load().controls(d)
}

// Execute implements [devices.Actuator]. The device's answer is carried back: what
// it refuses is refused with its words.
func (c *Client) Execute(ctx context.Context, cmd devices.Command, expect func(devices.Confirmation)) error {
	a := c.asked(cmd.Device)
	if a == nil {
		return fmt.Errorf("%s is not asked by CoAP", cmd.Device)
	}
	p := a.peer.Load()
	if p == nil {
		return errors.New("the device does not answer now")
	}
	return a.asker.tell(ctx, p, unescaped(a.url), cmd, expect)
}

var (
	_ devices.Adopter  = (*Client)(nil)
	_ devices.Actuator = (*Client)(nil)
)
