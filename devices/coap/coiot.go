package coap

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"golang.org/x/net/ipv4"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// A Group is where devices tell all who are there how they are (CoIoT): with
// messages of a code of their own, to the group of all CoAP nodes, or to the
// gateway alone. Nobody is answered, and nobody asked but those whose numbers
// have no names, once (description.go).
type Group struct {
	Addr       netip.AddrPort // zero: 224.0.1.187:5683
	Interfaces []string       // names of those to hear; none: all
}

// What CoIoT adds to CoAP.
const (
	coiotStatus codes.Code       = 30   // 0.30
	coiotDevice message.OptionID = 3332 // model#id#version
	coiotSerial message.OptionID = 3420 // the same in the repetitions of a message

	coiotRate, coiotBurst = 200, 400 // messages of all devices
	maxTold               = 1024     // devices whose last message is remembered
	repeatTime            = time.Minute
)

var allNodes = netip.MustParseAddrPort("224.0.1.187:5683") // RFC 7252 section 12.8

// A told is what a device said, one of the last few things: repetitions mix with
// what comes after.
type told struct {
	sum [sha256.Size]byte
	at  time.Time
}

const fewTold = 8

// A listener of CoIoT knows what was said, as each message comes several times.
type coiot struct {
	server *Server
	sink   devices.Sink
	ctx    context.Context
	joined atomic.Bool

	session *session // whose socket hears what is for the gateway alone

	mu        sync.Mutex
	bucket    bucket
	last      map[string][]told
	inquiries map[string]*inquiry // by the device's name
	mayAsk    bucket
}

func newCoIoT(ctx context.Context, s *session, server *Server) *coiot {
	return &coiot{
		server: server, session: s, sink: s.sink, ctx: ctx, last: make(map[string][]told), bucket: bucket{rate: coiotRate, burst: coiotBurst},
		inquiries: make(map[string]*inquiry), mayAsk: bucket{rate: askRate, burst: askBurst},
	}
}

// listen joins the group: with the socket of the server, where that has its
// port on all addresses, else with one of its own, which is given back.
func (g Group) listen(ctx context.Context, plain *coapnet.UDPConn) (*coapnet.UDPConn, error) {
	addr := g.Addr
	if !addr.IsValid() {
		addr = allNodes
	}
	conn := plain
	own := true
	if plain != nil {
		at, _ := plain.LocalAddr().(*net.UDPAddr)
		own = at == nil || !at.IP.IsUnspecified() || at.Port != int(addr.Port())
	}
	if own {
		// Others on this machine may listen to the group too.
		shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			if e := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) }); e != nil {
				return e
			}
			return err
		}}
		socket, err := shared.ListenPacket(ctx, "udp4", addr.String())
		if err != nil {
			return nil, fmt.Errorf("cannot listen to the group %s: %w", addr, err)
		}
		conn = coapnet.NewUDPConn("udp4", socket.(*net.UDPConn)) // what a network of udp gives
		context.AfterFunc(ctx, func() { _ = conn.Close() })      // ends the read
	}
	joined, trouble := 0, error(nil)
	socket, ok := conn.NetConn().(*net.UDPConn)
	if !ok {
		return nil, errors.New("cannot join a group with what is no UDP socket")
	}
	// Also where the socket is one of IPv6 that takes IPv4 too.
	member := ipv4.NewPacketConn(socket)
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("cannot list the interfaces: %w", err)
	}
	for _, i := range all {
		wanted := len(g.Interfaces) == 0 && i.Flags&net.FlagUp != 0 && i.Flags&net.FlagMulticast != 0
		for _, name := range g.Interfaces {
			wanted = wanted || name == i.Name
		}
		if !wanted {
			continue
		}
		if err := member.JoinGroup(&i, net.UDPAddrFromAddrPort(addr)); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			trouble = cmp.Or(trouble, fmt.Errorf("on %s: %w", i.Name, err))
			continue
		}
		joined++
	}
	if joined == 0 {
		if own {
			_ = conn.Close()
		}
		return nil, fmt.Errorf("cannot join the group %s: %w", addr, cmp.Or(trouble, errors.New("there is no such interface")))
	}
	if !own {
		return nil, nil
	}
	return conn, nil
}

// run hears a group until its context ends. An interface may come later, and the
// server is for others too.
func (c *coiot) run(g Group, plain *coapnet.UDPConn) {
	for said := false; c.ctx.Err() == nil; {
		conn, err := g.listen(c.ctx, plain)
		c.joined.Store(err == nil)
		switch {
		case err == nil && conn == nil: // the server's socket has joined
			<-c.ctx.Done()
			return
		case err == nil:
			c.server.log.Info("CoAP: listening", "group", conn.LocalAddr())
			said, err = false, c.listen(conn)
			_ = conn.Close()
		}
		if err != nil && !said {
			c.server.log.Warn("CoAP: nobody hears those who tell a group", "reason", err)
			said = true
		}
		select {
		case <-c.ctx.Done():
		case <-time.After(retryLast):
		}
	}
}

// listen takes datagrams from a socket of the group until its context ends.
func (c *coiot) listen(conn *coapnet.UDPConn) error {
	buf := make([]byte, maxDatagram)
	for {
		var from *net.UDPAddr
		n, err := conn.ReadWithOptions(buf, coapnet.WithGetRemoteAddr(&from))
		switch {
		case c.ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		c.datagram(conn, from.AddrPort(), buf[:n])
	}
}

// datagram takes one that came to a socket which has joined the group.
func (c *coiot) datagram(conn *coapnet.UDPConn, from netip.AddrPort, b []byte) {
	m := message.Message{Options: make(message.Options, 0, maxOptions)}
	if len(b) > maxMessage {
		return
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	switch _, err := coder.DefaultCoder.Decode(b, &m); {
	case err != nil:
	case m.Code == coiotStatus:
		c.status(origin{conn, from.String()}, m, time.Now())
	case m.Code == codes.Content:
		c.described(from.String(), m)
	}
}

// status takes what a device tells of itself.
func (c *coiot) status(from origin, m message.Message, now time.Time) {
	identity, err := m.Options.GetBytes(coiotDevice)
	name := string(identity)
	if err != nil || len(name) > 100 || !strings.Contains(name, "#") || devices.Slug(name) == "" {
		return
	}
	serial, _ := m.Options.GetBytes(coiotSerial)
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", pathOf(m), serial, m.Payload))
	c.mu.Lock()
	before, known := c.last[name]
	again := slices.ContainsFunc(before, func(t told) bool { return t.sum == sum && now.Sub(t.at) < repeatTime })
	if again || !c.bucket.take(now) {
		c.mu.Unlock()
		return
	}
	if !known && len(c.last) >= maxTold {
		for other := range c.last { // begins anywhere
			delete(c.last, other)
			break
		}
	}
	c.last[name] = append(before[max(0, len(before)-fewTold+1):], told{sum, now})
	c.mu.Unlock()
	c.take(from, name, profile.Message{Topic: strings.Join(pathOf(m), "/"), Payload: m.Payload, ContentFormat: NoFormat, Received: now, Sender: name})
}

func (c *coiot) take(from origin, name string, m profile.Message) {
	device, ok := c.device(name)
	if !ok {
		c.meet(from, name, m)
		return
	}
	out, err := device.decode(m)
	if err != nil {
		c.sink.Reject(string(device.ID), err)
		return
	}
	c.named(from, name, out, func(names map[string]string) { c.report(device, out, names) })
}

func (c *coiot) report(device Device, out profile.Output, names map[string]string) {
	if out.Availability != devices.AvailabilityUnknown {
		c.sink.Availability(device.ID, out.Availability, false)
	}
	if len(out.Readings) == 0 {
		return
	}
	for _, r := range out.Readings {
		shorten(r.Fields, names)
	}
	// It does not wait for an answer, so nothing waits for the receipt.
	if _, err := c.sink.Report(c.ctx, devices.Message{Readings: out.Readings}); err != nil && c.ctx.Err() == nil {
		c.sink.Reject(string(device.ID), err)
	}
}

// device finds a device by what it calls itself: the version after the second #
// changes with its firmware.
func (c *coiot) device(name string) (Device, bool) {
	all := *c.server.devices.Load()
	plain := withoutVersion(name)
	if d, ok := all[devices.Slug(plain)]; ok {
		return d, true
	}
	for _, d := range all {
		if d.Identity != "" && (d.Identity == name || withoutVersion(d.Identity) == plain) {
			return d, true
		}
	}
	return Device{}, false
}

func withoutVersion(name string) string {
	if parts := strings.Split(name, "#"); len(parts) > 2 {
		return parts[0] + "#" + parts[1]
	}
	return name
}

// meet shows a device that is not configured.
func (c *coiot) meet(from origin, name string, m profile.Message) {
	profiles := c.server.profiles.Load()
	if profiles == nil {
		return
	}
	p := profiles.ByCode("coiot")
	if p == nil {
		return
	}
	out, err := Device{Profile: p}.decode(m)
	if err != nil {
		return
	}
	c.named(from, name, out, func(names map[string]string) { c.show(from, name, p.ID(), out, names) })
}

func (c *coiot) show(from origin, name, profileID string, out profile.Output, names map[string]string) {
	model, _, _ := strings.Cut(name, "#")
	s := devices.Stranger{Transport: "coap", Place: string(devices.Slug(withoutVersion(name))), Peer: from.address, Profile: profileID, Identity: withoutVersion(name), Model: model}
	for _, r := range out.Readings {
		shorten(r.Fields, names)
		s.Fields = append(s.Fields, r.Fields...)
	}
	c.sink.Unknown(s)
}

// shorten takes the number from names such as 4101_power, of which the second
// digit is the channel: 4201_power is power_2. What has only a number has the name
// that the device gives it. A name that another has keeps it.
func shorten(fields []devices.Field, names map[string]string) {
	taken := make(map[string]bool)
	for _, f := range fields {
		taken[f.Name] = true
	}
	for i := range fields {
		number, name, ok := strings.Cut(fields[i].Name, "_")
		if given := names[fields[i].Name]; given != "" && !taken[given] {
			taken[given] = true
			fields[i].Name = given
			continue
		}
		if n, err := strconv.Atoi(number); !ok || err != nil || n < 1000 || n > 9999 {
			continue
		}
		if number[1] != '1' {
			name += "_" + number[1:2]
		}
		if !taken[name] {
			taken[name] = true
			fields[i].Name = name
		}
	}
}
