package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// A mosquitto is a real broker with sessions on disk.
type mosquitto struct {
	program, config, address string
	log                      *os.File
	logged                   string // path of log
	process                  *process
}

func newMosquitto(dir string) (*mosquitto, error) {
	program, err := find("mosquitto")
	if err != nil {
		return nil, err
	}
	address, err := freePort()
	if err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(address)
	m := &mosquitto{program: program, address: address, config: filepath.Join(dir, "mosquitto.conf"), logged: filepath.Join(dir, "mosquitto.log")}
	// It drops what exceeds 1000 waiting messages of a client, unless it is
	// told not to.
	text := fmt.Sprintf("user root\nlistener %s %s\nallow_anonymous true\npersistence true\npersistence_location %s/\n"+
		"max_queued_messages 0\nlog_dest stderr\nlog_type all\nlog_timestamp_format %%H:%%M:%%S\n", port, host, dir)
	if err := os.WriteFile(m.config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	m.log, err = os.OpenFile(m.logged, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	return m, err
}

func (m *mosquitto) start(ctx context.Context) error {
	from := m.logSize()
	p, err := start(m.log, nil, m.program, "-c", m.config)
	if err != nil {
		return err
	}
	m.process = p
	return m.waitFor(ctx, from, " running")
}

// save has it write its sessions to disk, and returns when it has.
func (m *mosquitto) save(ctx context.Context) error {
	from := m.logSize()
	if err := m.process.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		return err
	}
	if err := m.waitFor(ctx, from, "Saving in-memory database"); err != nil {
		return err
	}
	// It tells before it does, and accepts connections when it is done.
	conn, err := net.Dial("tcp", m.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
	return m.waitFor(ctx, from, "New connection from 127.0.0.1:"+port)
}

func (m *mosquitto) logSize() int64 {
	info, err := os.Stat(m.logged)
	if err != nil {
		return 0
	}
	return info.Size()
}

// waitFor waits until the log says something after its first bytes.
func (m *mosquitto) waitFor(ctx context.Context, from int64, text string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := m.process
	go func() {
		select {
		case <-p.done:
			cancel(fmt.Errorf("mosquitto ended: %v", p.err))
		case <-ctx.Done():
		}
	}()
	return waitForText(ctx, m.logged, from, text)
}
