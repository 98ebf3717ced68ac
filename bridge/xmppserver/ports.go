package xmppserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"
)

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Ports are taken below the range from which the kernel gives out ports by
// itself (ip_local_port_range begins at 32768), so that nobody's outgoing
// connection sits on one while the server is down for a restart.
const (
	firstPort = 20000
	lastPort  = 31999
)

// reservation keeps a server's ports from other servers of this package, in
// this process and in others, also while the server is down: each is marked by
// an abstract Unix socket, which the kernel removes when its process ends.
type reservation struct {
	c2s, tls, component, http int
	marks                     []net.Listener
}

// reserve finds free ports.
func reserve() (*reservation, error) {
	r := &reservation{}
	for _, port := range []*int{&r.c2s, &r.tls, &r.component, &r.http} {
		for tries := 0; *port == 0; tries++ {
			candidate := firstPort + rand.IntN(lastPort-firstPort+1)
			mark, err := take(candidate)
			if err == nil {
				*port = candidate
				r.marks = append(r.marks, mark)
			} else if tries == 1000 {
				r.release()
				return nil, fmt.Errorf("cannot find free ports between %d and %d: %w", firstPort, lastPort, err)
			}
		}
	}
	return r, nil
}

// take marks a port, if it is neither marked nor in use.
func take(port int) (net.Listener, error) {
	mark, err := net.Listen("unix", fmt.Sprintf("@xmppserver-port-%d", port))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr(port))
	if err != nil {
		mark.Close()
		return nil, err
	}
	return mark, l.Close()
}

func (r *reservation) release() {
	for _, mark := range r.marks {
		mark.Close()
	}
}

// answers opens a stream as RFC 6120 section 4.2 has it and waits for the
// server's own header, which names the domain.
func answers(ctx context.Context, addr, namespace, domain string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "<?xml version='1.0'?><stream:stream xmlns='%s' xmlns:stream='http://etherx.jabber.org/streams' to='%s' version='1.0'>", namespace, domain)
	if err != nil {
		return err
	}
	var got strings.Builder
	for buf := make([]byte, 1024); got.Len() < 4096; {
		n, err := conn.Read(buf)
		got.Write(buf[:n])
		text := strings.ReplaceAll(got.String(), `"`, "'")
		switch {
		case strings.Contains(text, "<stream:error"):
			return fmt.Errorf("it answers with a stream error: %s", text)
		case strings.Contains(text, "<stream:stream") && strings.Contains(text, "from='"+domain+"'"):
			fmt.Fprint(conn, "</stream:stream>")
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("it closed the connection")
		case err != nil:
			return err
		}
	}
	return errors.New("it answers, but not as an XMPP server")
}
