package coap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"reflect"
	"sync/atomic"
	"syscall"
	"time"

	coapnet "github.com/plgd-dev/go-coap/v3/net"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// receiveBuffer is how many bytes may wait to be read while a flood comes in:
// what exceeds it is lost, whoever sent it.
const receiveBuffer = 1 << 20

// A Decoder is what the server needs of a firmware profile;
// *profile.Profile is one. It is called from several goroutines.
type Decoder interface {
	Decode(at profile.Place, m profile.Message) (profile.Output, error)
}

// A Device is one device that may post, or one that is asked.
type Device struct {
	devices.Device
	Profile Decoder
	Place   profile.Place
	// Identity is the firmware's own name of it, by which it may prove itself and
	// register; "" where that is not known.
	Identity string

	// URL is where it is asked (RFC 7252 section 6.1), "" for one that posts.
	// Without a path, it is asked what it has.
	URL string
	// Key is the one shared with a device that has a coaps URL, where the gateway
	// calls itself KeyName.
	Key     []byte
	KeyName string
	// Code, in place of Key, is that on the label of the IKEA TRÅDFRI gateway that
	// the device is behind. The gateway gives a key for it, which is kept.
	Code []byte
	// Observe has it report by itself, where it can.
	Observe bool
	// Every is how often it is asked, or asked to go on reporting; 0 is each
	// minute, or when its last report is no longer fresh.
	Every time.Duration
}

// Config says where and how to listen.
type Config struct {
	Listen string  // host:port, UDP; "" is nowhere
	Secure *Secure // nil: not by DTLS
	Group  *Group  // nil: not to those who tell a group

	// Resumed says that a gateway before this one may have stopped between
	// taking a reading and answering for it. CoAP does not mark repetitions,
	// so every confirmable request that comes while such a one may still be
	// repeated (MAX_TRANSMIT_SPAN, RFC 7252 section 4.8.2) is then reported
	// as possibly redelivered.
	Resumed bool

	// Profiles are those that find out what a device is that is not
	// configured. Without them, nobody is shown.
	Profiles *profile.Library
}

// A Server is a CoAP server that devices post to. It is a [devices.Driver].
type Server struct {
	devices.Pulse // of the one who hears what is not encrypted

	config   Config
	devices  atomic.Pointer[map[devices.ID]Device]
	profiles atomic.Pointer[profile.Library]
	keys     atomic.Pointer[map[string][]byte] // of Secure
	rekeyed  chan struct{}                     // has one when they changed
	ear      atomic.Pointer[ear]               // nil without profiles
	changed  chan struct{}                     // has one where there are other devices
	service  atomic.Pointer[service]
	log      *slog.Logger
	addr     atomic.Pointer[net.UDPAddr]
	ran      atomic.Bool

	secureAddr atomic.Pointer[net.UDPAddr]
	listener   atomic.Pointer[secureListener]

	piggyback  time.Duration
	ackTimeout time.Duration
	grace      time.Duration // in which the update of a registration may be late
	describe   time.Duration // in which a device says what its numbers mean
	awake      time.Duration // for which a client in queue mode hears what it is sent
}

// New makes a server for the devices given. Nobody else may post.
func New(config Config, devs []Device, log *slog.Logger) *Server {
	s := &Server{
		config: config, rekeyed: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		log: log, piggyback: piggyback, ackTimeout: ackTimeout, grace: maxTransmitSpan, describe: describeTime, awake: awakeTime,
	}
	all := make(map[devices.ID]Device, len(devs))
	for _, d := range devs {
		if d.URL == "" {
			all[d.ID] = d
		}
	}
	s.devices.Store(&all)
	s.profiles.Store(config.Profiles)
	keys := make(map[string][]byte)
	if config.Secure != nil {
		maps.Copy(keys, config.Secure.Keys)
	}
	s.keys.Store(&keys)
	if config.Profiles != nil {
		s.ear.Store(newEar(config.Profiles))
	}
	return s
}

// Adopt implements [devices.Adopter]. What was answered stays known.
func (s *Server) Adopt(next devices.Driver) bool {
	n, ok := next.(*Server)
	if !ok || n.config.Listen != s.config.Listen || !s.config.Secure.same(n.config.Secure) || !reflect.DeepEqual(n.config.Group, s.config.Group) {
		return false
	}
	s.devices.Store(n.devices.Load())
	if profiles := n.profiles.Load(); profiles != s.profiles.Load() {
		s.profiles.Store(profiles)
		s.ear.Store(n.ear.Load())
	}
	s.keys.Store(n.keys.Load())
	for _, news := range []chan struct{}{s.rekeyed, s.changed} {
		select {
		case news <- struct{}{}:
		default:
		}
	}
	return true
}

// same reports whether two differ in nothing but the keys.
func (s *Secure) same(other *Secure) bool {
	if s == nil || other == nil {
		return s == other
	}
	return s.Listen == other.Listen && reflect.DeepEqual(s.Certificate, other.Certificate) && (s.Authorities == other.Authorities || s.Authorities.Equal(other.Authorities))
}

// Name implements [devices.Driver].
func (s *Server) Name() string { return "coap" }

// Addr is where the server listens, nil while it does not.
func (s *Server) Addr() net.Addr {
	if a := s.addr.Load(); a != nil {
		return a
	}
	return nil
}

// SecureAddr is where the server listens for DTLS, nil while it does not.
func (s *Server) SecureAddr() net.Addr {
	if a := s.secureAddr.Load(); a != nil {
		return a
	}
	return nil
}

// Run implements [devices.Driver]: it listens until ctx ends. What was not yet
// answered then stays unanswered, so the device sends it again.
func (s *Server) Run(ctx context.Context, sink devices.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var plain, secure *coapnet.UDPConn
	var err error
	if s.config.Listen != "" {
		if plain, err = listen(ctx, s.config.Listen, &s.addr); err != nil {
			return err
		}
		defer s.addr.Store(nil)
	}
	if s.config.Secure != nil {
		if secure, err = listen(ctx, s.config.Secure.Listen, &s.secureAddr); err != nil {
			return err
		}
		defer s.secureAddr.Store(nil)
	}
	ss := newSession(ctx, sink, plain, s.log)
	ss.pulse = &s.Pulse
	v := newService(ss, s)
	ss.serve, ss.piggyback, ss.ackTimeout = v.request, s.piggyback, s.ackTimeout
	ss.stray = v.wake
	s.service.Store(v)
	defer s.service.Store(nil)
	if s.config.Group != nil {
		ss.coiot = newCoIoT(ctx, ss, s)
	}
	ss.resumed = !s.ran.Swap(true) && s.config.Resumed
	defer ss.wg.Wait()
	defer cancel()

	ss.startWorkers()
	ss.wg.Go(v.keep)
	failed := make(chan error, 2)
	receive := func(addr net.Addr, security string, listen func() error) {
		s.log.Info("CoAP: listening", "address", addr, "security", security, "devices", len(*s.devices.Load()))
		ss.wg.Go(func() {
			if err := listen(); err != nil {
				failed <- fmt.Errorf("cannot receive on %s/udp: %w", addr, err)
			}
		})
	}
	if plain != nil {
		receive(s.Addr(), "none", ss.listen)
	}
	if secure != nil {
		receive(s.SecureAddr(), "DTLS", func() error { return s.listenSecure(ss, secure) })
	}
	if ss.coiot != nil {
		ss.wg.Go(func() { ss.coiot.run(*s.config.Group, plain) })
	}
	sink.Up(s.Name())
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// listen opens a socket, which is closed when ctx ends.
func listen(ctx context.Context, address string, bound *atomic.Pointer[net.UDPAddr]) (*coapnet.UDPConn, error) {
	conn, err := coapnet.NewListenUDP("udp", address)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("cannot listen on %s/udp: the address is in use by another CoAP server or gateway: %w", address, err)
		}
		return nil, fmt.Errorf("cannot listen on %s/udp: %w", address, err)
	}
	if socket, ok := conn.NetConn().(*net.UDPConn); ok {
		_ = socket.SetReadBuffer(receiveBuffer) // as much of it as the system allows
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the read
	addr, _ := conn.LocalAddr().(*net.UDPAddr)
	bound.Store(addr)
	return conn, nil
}

func newService(s *session, server *Server) *service {
	return &service{session: s, server: server, directory: directory{
		byID: make(map[string]*registration), byName: make(map[string]*registration), wake: make(chan struct{}, 1), wakes: bucket{rate: wakeRate, burst: wakeRate},
	}}
}

// Controls implements [devices.Actuator]: of devices that registered.
func (s *Server) Controls(id devices.ID) []devices.Control {
	d, ok := (*s.devices.Load())[id]
	v, ear := s.service.Load(), s.ear.Load()
	if !ok || v == nil || ear == nil {
		return nil
	}
	switch _, p, m := v.directory.of(id); {
	case p == nil:
		return nil
	case m != nil:
		return m.can()
	}
	return ear.controls(d)
}

// Execute implements [devices.Actuator], as [Client.Execute].
func (s *Server) Execute(ctx context.Context, cmd devices.Command, expect func(devices.Confirmation)) error {
	v := s.service.Load()
	if v == nil {
		return errors.New("the CoAP server does not run")
	}
	a, p, m := v.directory.of(cmd.Device)
	switch {
	case p == nil:
		return errors.New("the device has not registered, so nobody knows where it is")
	case m != nil:
		return m.tell(ctx, cmd, expect)
	}
	return a.tell(ctx, p, nil, cmd, expect)
}

var (
	_ devices.Adopter  = (*Server)(nil)
	_ devices.Actuator = (*Server)(nil)
)
