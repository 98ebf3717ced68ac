package coap

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	coapnet "github.com/plgd-dev/go-coap/v3/net"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// Before firmware 1.8 the numbers of CoIoT meant something else on each model. A
// device that tells of a number which its profile does not know is asked what it
// means (cit/d), by the request that github.com/home-assistant-libs/aioshelly
// sends. What it tells meanwhile waits, so that nothing is known under two names.

const (
	describeTime   = 3 * time.Second // for the answer
	describeTries  = 3               // in that time
	maxUndescribed = 32              // messages of one device that wait
	maxInquiries   = 1024

	// So many devices are asked, as anybody can make up names.
	askRate, askBurst = 2, 50
)

// An origin is who told something, and the socket that heard it.
type origin struct {
	conn    *coapnet.UDPConn
	address string
}

// An inquiry is what becomes of asking a device what its numbers mean.
type inquiry struct {
	address  string
	names    map[string]string // by number; nil while there is no answer
	answered chan struct{}
	waiting  []func(names map[string]string)
	over     bool
}

// named calls then with what a device calls its numbers, nil where it does not say,
// or where nobody needs it: at once, or when the device was asked.
func (c *coiot) named(from origin, name string, out profile.Output, then func(names map[string]string)) {
	unknown := slices.ContainsFunc(out.Readings, func(r devices.Reading) bool {
		return slices.ContainsFunc(r.Fields, func(f devices.Field) bool { _, err := strconv.Atoi(f.Name); return err == nil })
	})
	if !unknown {
		then(nil)
		return
	}
	if names, wait := c.inquired(from, withoutVersion(name), then); !wait {
		then(names)
	}
}

func (c *coiot) inquired(from origin, name string, then func(names map[string]string)) (names map[string]string, wait bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.inquiries[name]
	switch {
	case i != nil && (i.over || len(i.waiting) >= maxUndescribed):
		return i.names, false
	case i != nil:
		i.waiting = append(i.waiting, then)
		return nil, true
	}
	to, err := netip.ParseAddrPort(from.address)
	if err != nil || from.conn == nil || c.server.profiles.Load() == nil || !c.mayAsk.take(time.Now()) || !c.mayInquire() {
		return nil, false
	}
	i = &inquiry{address: from.address, answered: make(chan struct{}), waiting: []func(map[string]string){then}}
	c.inquiries[name] = i
	c.session.wg.Go(func() { c.inquire(i, from.conn, net.UDPAddrFromAddrPort(to)) })
	return nil, true
}

// mayInquire reports whether there is room for one more inquiry, after forgetting
// those in vain. The lock is held.
func (c *coiot) mayInquire() bool {
	if len(c.inquiries) >= maxInquiries {
		maps.DeleteFunc(c.inquiries, func(_ string, i *inquiry) bool { return i.over && i.names == nil })
	}
	return len(c.inquiries) < maxInquiries
}

// inquire asks a device what its numbers mean, and then has those messages be taken
// that wait.
func (c *coiot) inquire(i *inquiry, conn *coapnet.UDPConn, to *net.UDPAddr) {
	m := message.Message{Type: message.NonConfirmable, Code: codes.GET, Payload: []byte{0}, Options: message.Options{
		{ID: message.URIPath, Value: []byte("cit")}, {ID: message.URIPath, Value: []byte("d")},
	}}
	for n := range describeTries {
		m.MessageID = int32(10 + n)
		b, err := encoded(m)
		if err == nil {
			err = conn.WriteWithOptions(b, coapnet.WithRemoteAddr(to))
		}
		if err != nil {
			c.server.log.Debug("CoAP: a device cannot be asked what it tells", "peer", i.address, "error", err)
		}
		select {
		case <-i.answered:
		case <-time.After(c.server.describe / describeTries):
			continue
		case <-c.ctx.Done():
			return
		}
		break
	}
	for {
		c.mu.Lock()
		waiting, names := i.waiting, i.names
		i.waiting, i.over = nil, len(waiting) == 0 // what comes meanwhile comes after
		c.mu.Unlock()
		if len(waiting) == 0 {
			return
		}
		for _, then := range waiting {
			then(names)
		}
	}
}

// described takes what a device says of its numbers, and reports whether it was
// asked for that.
func (c *coiot) described(from string, m message.Message) bool {
	identity, err := m.Options.GetBytes(coiotDevice)
	name := withoutVersion(string(identity))
	c.mu.Lock()
	i := c.inquiries[name]
	asked := err == nil && i != nil && i.address == from
	open := asked && i.names == nil
	c.mu.Unlock()
	if !open {
		return asked
	}
	names, err := c.readNames(m)
	if err != nil {
		c.sink.Reject(name, err)
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i.names == nil {
		i.names = names
		close(i.answered)
	}
	return true
}

// readNames gives the names of a description, by number. Of those that are the
// same, all but the first have the number of the part that they are of: power,
// power_2.
func (c *coiot) readNames(m message.Message) (map[string]string, error) {
	library := c.server.profiles.Load()
	p := library.ByCode("coiot")
	if p == nil {
		return nil, profile.ErrUnknown
	}
	out, err := Device{Profile: p}.decode(profile.Message{Topic: "cit/d", Payload: m.Payload, ContentFormat: NoFormat})
	if err != nil {
		return nil, err
	}
	called, parts := make(map[string]string), make(map[string]string)
	for _, r := range out.Readings {
		for _, f := range r.Fields {
			switch number, about, _ := strings.Cut(f.Name, "_"); about {
			case "d":
				called[number] = strings.ReplaceAll(string(devices.Slug(f.Value.String())), "-", "_")
			case "l":
				parts[number] = f.Value.String()
			}
		}
	}
	of := func(number string) int { n, _ := strconv.Atoi(parts[number]); return n }
	numbers := slices.SortedFunc(maps.Keys(called), func(a, b string) int {
		if d := of(a) - of(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	names, times := make(map[string]string), make(map[string]int)
	for _, number := range numbers {
		name := called[number]
		if times[name]++; times[name] > 1 {
			name += "_" + strconv.Itoa(times[name])
		}
		if called[number] != "" {
			names[number] = name
		}
	}
	return names, nil
}
