package pty_test

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"github.com/porchlight-iot/porchlight/devices/serial/pty"
)

// What is sent before anybody opened the port arrives as it was sent.
func TestSentBeforeOpened(t *testing.T) {
	p, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	sent := []byte("a=1\r\n\x03\x04\x00\xff\n")
	if _, err := p.Write(sent); err != nil {
		t.Fatal(err)
	}
	port, err := os.OpenFile(p.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = port.Close() }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(port, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("sent %q, got %q, %v", sent, got, err)
	}
}

func TestCloseEndsWriteAndIsIdempotent(t *testing.T) {
	p, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	port, err := os.OpenFile(p.Path(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = port.Close() }()
	ended := make(chan error, 1)
	go func() {
		_, err := p.Write(make([]byte, 1<<20))
		ended <- err
	}()
	// Once a byte of it is there Write is under way, and it cannot end: so much
	// does not fit in.
	if _, err := port.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("Write says that everything was sent")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Write still waits after Close")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
