package coap

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	coapnet "github.com/plgd-dev/go-coap/v3/net"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

const (
	scoutEvery = 10 * time.Minute
	// gatherTime is how long servers may take to answer a group: each waits for
	// some of DEFAULT_LEISURE (RFC 7252 section 8.2).
	gatherTime   = 8 * time.Second
	scoutTime    = 10 * time.Second // to look at one of them
	maxGathered  = 64               // that are looked at each time
	defaultPort  = 5683
	groupIPv4    = "224.0.1.187" // All CoAP Nodes (section 12.8)
	groupIPv6    = "ff02::fd"
	scoutAnswers = 256
)

// A Scout looks for CoAP servers by multicast, on the network interfaces that it
// is told, and shows those that are not configured. It is a [devices.Driver].
type Scout struct {
	interfaces []string
	profiles   *profile.Library
	devices    atomic.Pointer[[]Device]
	log        *slog.Logger
	port       int // of the groups
	gatherTime time.Duration
	rounds     atomic.Int64 // that are over
}

// NewScout makes a scout. Of the devices those count that have a URL: they are
// known.
func NewScout(interfaces []string, profiles *profile.Library, devs []Device, log *slog.Logger) *Scout {
	s := &Scout{interfaces: interfaces, profiles: profiles, log: log, port: defaultPort, gatherTime: gatherTime}
	s.devices.Store(&devs)
	return s
}

// Name implements [devices.Driver].
func (sc *Scout) Name() string { return "coap discovery" }

// Adopt implements [devices.Adopter].
func (sc *Scout) Adopt(next devices.Driver) bool {
	n, ok := next.(*Scout)
	if !ok || n.profiles != sc.profiles || !slices.Equal(n.interfaces, sc.interfaces) {
		return false
	}
	sc.devices.Store(n.devices.Load())
	return true
}

// Run implements [devices.Driver].
func (sc *Scout) Run(ctx context.Context, sink devices.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all []*session
	var trouble error
	failed := make(chan error, 2)
	for _, network := range []string{"udp4", "udp6"} {
		conn, err := coapnet.NewListenUDP(network, ":0")
		if err != nil {
			trouble = err
			continue
		}
		s := newSession(ctx, sink, conn, sc.log)
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the read
		defer s.wg.Wait()
		defer cancel()
		defer stop()
		s.wg.Go(func() {
			if err := s.listen(); err != nil {
				failed <- err
			}
		})
		all = append(all, s)
	}
	if len(all) == 0 {
		return fmt.Errorf("cannot look for CoAP devices: %w", trouble)
	}
	sink.Up(sc.Name())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("cannot look for CoAP devices: %w", err)
		case <-timer.C:
		}
		if err := sc.look(ctx, all); err != nil && ctx.Err() == nil {
			sc.log.Warn("CoAP: cannot look for devices", "reason", err)
		}
		sc.rounds.Add(1)
		timer.Reset(scoutEvery)
	}
}

// look asks the groups once, and looks at those who answer.
func (sc *Scout) look(ctx context.Context, sessions []*session) error {
	known := sc.known(ctx)
	asked := 0
	var trouble error
	for _, s := range sessions {
		group := groupIPv4
		if s.conn.LocalAddr().(*net.UDPAddr).IP.To4() == nil {
			group = groupIPv6
		}
		for _, name := range sc.interfaces {
			found, err := s.gather(ctx, name, &net.UDPAddr{IP: net.ParseIP(group), Port: sc.port}, sc.gatherTime)
			if err != nil {
				trouble = fmt.Errorf("on %s: %w", name, err)
				continue
			}
			asked++
			for _, p := range found {
				if from := p.link.(socketLink).to.AddrPort(); !known[netip.AddrPortFrom(from.Addr().Unmap(), from.Port())] {
					sc.show(ctx, s, p)
				}
				s.release(p)
			}
		}
	}
	if asked > 0 {
		return nil // an interface need not have both IPv4 and IPv6
	}
	return trouble
}

// known gives where the configured devices are.
func (sc *Scout) known(ctx context.Context) map[netip.AddrPort]bool {
	ctx, cancel := context.WithTimeout(ctx, lookUpTime)
	defer cancel()
	known := make(map[netip.AddrPort]bool)
	for _, d := range *sc.devices.Load() {
		u, err := url.Parse(d.URL)
		if err != nil || d.URL == "" {
			continue
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			port = defaultPort
		}
		all, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
		for _, a := range all {
			known[netip.AddrPortFrom(a.Unmap(), uint16(port))] = true
		}
	}
	return known
}

// gather asks a group what it has, and gives those who answer, held.
func (s *session) gather(ctx context.Context, name string, group *net.UDPAddr, within time.Duration) ([]*peer, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	q := get([]string{".well-known", "core"}).message()
	q.Type, q.Token = message.NonConfirmable, newToken()
	s.mu.Lock()
	s.groupMID++
	q.MessageID = int32(s.groupMID)
	answers := make(chan *peer, scoutAnswers)
	s.groups[string(q.Token)] = answers
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.groups, string(q.Token))
	}()
	b, err := encoded(q)
	if err == nil {
		err = s.conn.WriteMulticast(ctx, group, b, coapnet.WithMulticastInterface(*iface))
	}
	if err != nil {
		return nil, err
	}
	over := time.NewTimer(within)
	defer over.Stop()
	var found []*peer
	for {
		select {
		case p := <-answers:
			if !slices.Contains(found, p) && len(found) < maxGathered {
				s.hold(p)
				found = append(found, p)
			}
		case <-over.C:
			return found, nil
		case <-ctx.Done():
			return found, nil
		}
	}
}

// show shows a server by what it has.
func (sc *Scout) show(ctx context.Context, s *session, p *peer) {
	host, port, err := net.SplitHostPort(p.name)
	if err != nil {
		return
	}
	at := url.URL{Scheme: "coap", Host: p.name}
	if port == strconv.Itoa(defaultPort) {
		at.Host = strings.TrimSuffix(p.name, ":"+port)
	}
	stranger := devices.Stranger{Transport: "coap", Link: at.String(), Place: host, Peer: p.name}
	if !s.sink.Unknown(stranger) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, scoutTime)
	defer cancel()
	if err := s.sample(ctx, p, sc.profiles, nil, &stranger); err == nil && len(stranger.Fields) > 0 {
		s.sink.Unknown(stranger)
	}
}

var _ devices.Adopter = (*Scout)(nil)
