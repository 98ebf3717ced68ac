package xmppserver

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Kind names a server implementation.
type Kind string

// The servers that can be started.
const (
	Prosody  Kind = "prosody"
	Ejabberd Kind = "ejabberd"
)

// Options say what the server is to have. The zero value of everything but
// Dir is useful.
type Options struct {
	// Dir holds everything the server writes: config, keys, data, log. It is
	// made if it is not there, and closed to other users (mode 0700). A
	// directory that an earlier server used brings its data along.
	Dir string
	// Component is the domain of the gateway's component, for instance
	// "pi-test.localhost"; "" means none. Secret is what it must know.
	Component string
	Secret    string
	// Users are the accounts on localhost: local part to password.
	Users map[string]string
	// SCRAM256 keeps the passwords for SCRAM-SHA-256 (RFC 7677) and offers only
	// that; otherwise it is SCRAM-SHA-1, the default of both servers. ejabberd
	// also offers the -PLUS forms.
	SCRAM256 bool
	// NodeCreators are the bare JIDs that may create PubSub nodes. Nil means
	// gateway@<Component> and gateway@localhost.
	NodeCreators []string
	// MaxItems is the most items that a node may keep; 0 is the server's own
	// default (Prosody 256, ejabberd 1000).
	MaxItems int
	// MaxPayload is how many bytes an item may have for Prosody not to refuse it
	// as too big (XEP-0060 section 7.1.3.4); 0 is no limit.
	MaxPayload int
	// Storage is where Prosody keeps its PubSub nodes: "internal" (files, its
	// own default), "sql" (SQLite) or "memory", which forgets them at a
	// restart. Accounts and rosters are always kept. "" means internal.
	// ejabberd uses Mnesia and refuses anything but "".
	Storage string
	// Shaper sets the rate limit for clients which the server is shipped
	// with: Prosody 10 kB/s, ejabberd 3 kB/s with bursts of 20 kB.
	// Otherwise there is none.
	Shaper bool
	// NoNagle has Prosody send small stanzas at once (RFC 896 has them wait for
	// an acknowledgement, which takes Linux 40 ms).
	NoNagle bool
	// Invites lets those who have an invitation make an account (Prosody only),
	// and its accounts invite others.
	Invites bool
	// AllowPlaintext lets clients log in without TLS.
	AllowPlaintext bool
	// Plain has Prosody offer the mechanism PLAIN as well (RFC 4616), as
	// servers mostly do once there is TLS.
	Plain bool
	// WebSocket has Prosody speak to clients in browsers, see [Server.WebSocket].
	WebSocket bool
	// Verbose, if not nil, gets the server's log as well, written from
	// another goroutine while the server runs.
	Verbose io.Writer
}

// Accounts gives each of the names a password of its own, ready for
// Options.Users.
func Accounts(names ...string) map[string]string {
	users := make(map[string]string, len(names))
	for _, name := range names {
		users[name] = rand.Text()
	}
	return users
}

// How long a server may take. Starting is bounded by the caller's context
// too; a small board under load needs most of it.
const (
	startTime = 2 * time.Minute
	stopTime  = 10 * time.Second
)

// Server is one server and its process. Its methods may be called from any
// goroutine.
type Server struct {
	kind Kind
	opts Options
	held *reservation // as long as the Server is in use, so that Restart finds its ports

	mu    sync.Mutex // one of Start, Stop, Kill, Restart at a time
	child *child     // nil when it is not running
}

// kindOf is what differs between the servers.
type kindOf interface {
	// find says where the program is, or what to install.
	find(Options) error
	// prepare writes config and data into s.opts.Dir and returns the command
	// that runs the server in the foreground.
	prepare(s *Server) (*exec.Cmd, error)
	// settled reports whether what prepare asked for has been done by the
	// running server.
	settled(s *Server) bool
}

func (k Kind) impl() (kindOf, error) {
	switch k {
	case Prosody:
		return prosody{}, nil
	case Ejabberd:
		return ejabberd{}, nil
	}
	return nil, fmt.Errorf("cannot start a server of kind %q: only %q and %q are known", k, Prosody, Ejabberd)
}

// Start starts a server and waits until it answers clients and the component.
// ctx bounds the wait, not the life of the server: end that with Stop. The
// server also dies with the process that started it, however that ends.
func Start(ctx context.Context, kind Kind, opts Options) (*Server, error) {
	impl, err := kind.impl()
	if err != nil {
		return nil, err
	}
	if err := check(kind, &opts); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", kind, err)
	}
	if err := impl.find(opts); err != nil {
		return nil, err
	}
	if err := makeCertificates(opts.Dir, opts.Component); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", kind, err)
	}
	held, err := reserve()
	if err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", kind, err)
	}
	s := &Server{kind: kind, opts: opts, held: held}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.start(ctx); err != nil {
		held.release()
		return nil, err
	}
	return s, nil
}

func check(kind Kind, opts *Options) error {
	if opts.Dir == "" {
		return errors.New("no directory is given")
	}
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return err
	}
	opts.Dir = dir
	switch {
	case kind == Ejabberd && opts.Storage != "":
		return fmt.Errorf("storage %q is for Prosody only", opts.Storage)
	case kind == Ejabberd && (opts.Plain || opts.WebSocket):
		return errors.New("the options Plain and WebSocket are for Prosody only")
	case opts.Component != "" && opts.Secret == "":
		return errors.New("the component has no secret")
	}
	switch opts.Storage {
	case "", "internal", "sql", "memory":
	default:
		return fmt.Errorf("storage %q is none of internal, sql, memory", opts.Storage)
	}
	if opts.NodeCreators == nil {
		opts.NodeCreators = []string{"gateway@localhost"}
		if opts.Component != "" {
			opts.NodeCreators = append(opts.NodeCreators, "gateway@"+opts.Component)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// start runs the program and waits for it; s.mu is held.
func (s *Server) start(ctx context.Context) error {
	impl, err := s.kind.impl()
	if err != nil {
		return err
	}
	return s.startAs(ctx, impl)
}

func (s *Server) startAs(ctx context.Context, impl kindOf) error {
	cmd, err := impl.prepare(s)
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", s.kind, err)
	}
	log, err := os.OpenFile(s.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", s.kind, err)
	}
	cmd.Stdout = log
	if s.opts.Verbose != nil {
		cmd.Stdout = io.MultiWriter(log, s.opts.Verbose)
	}
	cmd.Stderr = cmd.Stdout
	cmd.Dir = s.opts.Dir
	c, err := spawn(cmd, log)
	if err != nil {
		return fmt.Errorf("cannot start %s: %w", s.kind, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := s.waitReady(ctx, c, impl); err != nil {
		c.kill()
		return fmt.Errorf("cannot start %s: %w%s", s.kind, err, s.logTail())
	}
	s.child = c
	return nil
}

func (s *Server) waitReady(ctx context.Context, c *child, impl kindOf) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		if last = s.ready(ctx); last == nil && impl.settled(s) {
			return nil
		}
		select {
		case <-c.done:
			return fmt.Errorf("it ended at once (%v)", c.err)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w (last: %v)", context.Cause(ctx), last)
		case <-tick.C:
		}
	}
}

func (s *Server) ready(ctx context.Context) error {
	if err := answers(ctx, s.C2S(), "jabber:client", s.Domain()); err != nil {
		return err
	}
	if s.opts.Component == "" {
		return nil
	}
	return answers(ctx, s.ComponentAddr(), "jabber:component:accept", s.opts.Component)
}

// Domain is the server's virtual host.
func (s *Server) Domain() string { return "localhost" }

// C2S is the host:port where clients connect and start TLS.
func (s *Server) C2S() string { return addr(s.held.c2s) }

// DirectTLS is the host:port where clients connect with TLS from the first
// byte (XEP-0368).
func (s *Server) DirectTLS() string { return addr(s.held.tls) }

// WebSocket is the URL for clients in browsers (RFC 7395), without TLS, on a
// Prosody with [Options.WebSocket].
func (s *Server) WebSocket() string {
	return fmt.Sprintf("ws://localhost:%d/xmpp-websocket", s.held.http)
}

// ComponentAddr is the host:port for the component (XEP-0114).
func (s *Server) ComponentAddr() string { return addr(s.held.component) }

// PubSub is the JID of the PubSub service.
func (s *Server) PubSub() string { return "pubsub.localhost" }

// CAFile is the PEM file with the authority that signed the server's
// certificate.
func (s *Server) CAFile() string { return filepath.Join(s.opts.Dir, caFile) }

// LogFile is where the server's log goes.
func (s *Server) LogFile() string { return s.logFile() }

// PID is the server's process id, 0 when it is not running.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil {
		return 0
	}
	return s.child.pid
}

// Stop asks the server to end, waits, and ends it by force if it takes more
// than ten seconds; Prosody 0.12 forgets that it is to end when it was just
// closing a client's connection. It is an error if the server had ended by
// itself. Stopping a stopped server does nothing.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop()
}

func (s *Server) stop() error {
	if s.child == nil {
		return nil
	}
	c := s.child
	s.child = nil
	if err := c.stop(stopTime); err != nil {
		return fmt.Errorf("cannot stop %s: %w%s", s.kind, err, s.logTail())
	}
	return nil
}

// Kill ends the server at once (SIGKILL) and waits until it is gone. ejabberd
// may lose what it accepted in the last moments: Mnesia writes its log a little
// later.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child != nil {
		s.child.kill()
		s.child = nil
	}
	return nil
}

// Restart starts the server again on the same ports with the same data; a
// running one is stopped first. After an error it is not running.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.stop() // one that has crashed is started all the same
	return s.start(ctx)
}

func (s *Server) path(name string) string { return filepath.Join(s.opts.Dir, name) }
func (s *Server) logFile() string         { return s.path("server.log") }

// logTail is the end of the log, for an error message.
func (s *Server) logTail() string {
	const most = 2048
	log, err := os.ReadFile(s.logFile())
	if err != nil || len(log) == 0 {
		return ""
	}
	if len(log) > most {
		log = log[len(log)-most:]
		log = log[bytes.IndexByte(log, '\n')+1:]
	}
	return "; its log ends with\n" + string(bytes.TrimSpace(log))
}

// environment is all that a server is told of ours: a setting meant for
// another Prosody or Erlang must not reach it.
func (s *Server) environment(more ...string) []string {
	path := cmp.Or(os.Getenv("PATH"), "/usr/bin:/bin")
	return append([]string{"PATH=" + path, "HOME=" + s.opts.Dir, "LANG=C.UTF-8"}, more...)
}

// program finds a server's program, also where the path of a plain user does
// not look.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// missing is the error for a package that is not there.
func missing(what string, packages ...string) error {
	return fmt.Errorf("cannot start %s: it is not installed; run `make deps`, or `apt install %s`", what, strings.Join(packages, " "))
}
