package link

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// patience is a deadline for broken code; short is how long nothing must
// happen.
const (
	patience = 20 * time.Second
	short    = 100 * time.Millisecond
)

// ends makes a link and gives both ends of a connection through it.
func ends(t *testing.T) (l *Link, client, server net.Conn) {
	t.Helper()
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	if l, err = New(target.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	if client, err = net.Dial("tcp", l.Addr()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = target.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	send(t, client, "hello") // when it is through, the link knows both ends
	receive(t, server, "hello")
	return l, client, server
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func silent(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(short))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes came, %v", n, err)
	}
}

func TestGoodLink(t *testing.T) {
	_, client, server := ends(t)
	send(t, client, "up")
	receive(t, server, "up")
	send(t, server, "down")
	receive(t, client, "down")
	server.Close()
	client.SetReadDeadline(time.Now().Add(patience))
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the server went, and the client knows nothing: %v", err)
	}
}

func TestHeld(t *testing.T) {
	l, client, server := ends(t)
	l.Set(Condition{Up: Flow{Held: true}})
	send(t, client, "up")
	silent(t, server)
	send(t, server, "down")
	receive(t, client, "down")
	l.Set(Condition{})
	receive(t, server, "up")
}

func TestSlow(t *testing.T) {
	l, client, server := ends(t)
	l.Set(Condition{Down: Flow{Rate: 1000}})
	began := time.Now()
	send(t, server, string(make([]byte, 300)))
	receive(t, client, string(make([]byte, 300)))
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("300 bytes at 1000 a second took %v", took)
	}
}

func TestResetAndRefuse(t *testing.T) {
	l, client, server := ends(t)
	l.Set(Condition{Refuse: true})
	l.Reset()
	for _, c := range []net.Conn{client, server} {
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("one side knows nothing of it: %v", err)
		}
	}
	again, err := net.Dial("tcp", l.Addr())
	if err != nil {
		return
	}
	defer again.Close()
	again.SetReadDeadline(time.Now().Add(patience))
	if _, err := again.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a new connection is not refused: %v", err)
	}
}

func TestHalfOpen(t *testing.T) {
	l, client, server := ends(t)
	l.Forget()
	send(t, client, "up")
	send(t, server, "down")
	silent(t, server)
	silent(t, client)
	server.Close()
	silent(t, client)
}
