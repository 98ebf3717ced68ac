package coap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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

// A Device is one device that may post.
type Device struct {
	devices.Device
	Profile Decoder
	Place   profile.Place
}

// Config says where and how to listen.
type Config struct {
	Listen string // host:port, UDP

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
	config   Config
	devices  atomic.Pointer[map[devices.ID]Device]
	profiles atomic.Pointer[profile.Library]
	log      *slog.Logger
	addr     atomic.Pointer[net.UDPAddr]
	ran      atomic.Bool

	piggyback time.Duration
}

// New makes a server for the devices given. Nobody else may post.
func New(config Config, devs []Device, log *slog.Logger) *Server {
	s := &Server{config: config, log: log, piggyback: piggyback}
	all := make(map[devices.ID]Device, len(devs))
	for _, d := range devs {
		all[d.ID] = d
	}
	s.devices.Store(&all)
	s.profiles.Store(config.Profiles)
	return s
}

// Adopt implements [devices.Adopter]. What was answered stays known.
func (s *Server) Adopt(next devices.Driver) bool {
	n, ok := next.(*Server)
	if !ok || n.config.Listen != s.config.Listen {
		return false
	}
	s.devices.Store(n.devices.Load())
	s.profiles.Store(n.profiles.Load())
	return true
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

// Run implements [devices.Driver]: it listens until ctx ends. What was not yet
// answered then stays unanswered, so the device sends it again.
func (s *Server) Run(ctx context.Context, sink devices.Sink) error {
	conn, err := coapnet.NewListenUDP("udp", s.config.Listen)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("cannot listen on %s/udp: the address is in use by another CoAP server or gateway: %w", s.config.Listen, err)
		}
		return fmt.Errorf("cannot listen on %s/udp: %w", s.config.Listen, err)
	}
	if socket, ok := conn.NetConn().(*net.UDPConn); ok {
		_ = socket.SetReadBuffer(receiveBuffer) // as much of it as the system allows
	}
	ctx, cancel := context.WithCancel(ctx)
	ss := newSession(ctx, sink, conn, s.log)
	ss.serve, ss.piggyback = service{ss, s}.serve, s.piggyback
	ss.resumed = !s.ran.Swap(true) && s.config.Resumed
	defer ss.wg.Wait()
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the read
	defer func() {
		unhook()
		_ = conn.Close()
	}()

	addr, _ := conn.LocalAddr().(*net.UDPAddr)
	s.addr.Store(addr)
	defer s.addr.Store(nil)
	ss.startWorkers()
	s.log.Info("CoAP: listening", "address", addr, "devices", len(*s.devices.Load()))
	sink.Up(s.Name())

	if err := ss.listen(); err != nil {
		return fmt.Errorf("cannot receive on %s/udp: %w", s.config.Listen, err)
	}
	return nil
}
