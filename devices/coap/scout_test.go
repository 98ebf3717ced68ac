package coap

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	coapnet "github.com/plgd-dev/go-coap/v3/net"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
)

// multicastInterface gives one that a group can be asked on.
func multicastInterface(t testing.TB) string {
	t.Helper()
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Flags&(net.FlagUp|net.FlagMulticast|net.FlagLoopback) != net.FlagUp|net.FlagMulticast {
			continue
		}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
				return i.Name
			}
		}
	}
	t.Skip("this machine has no network interface for multicast")
	return ""
}

// A server that listens to the group is found, and shown with what it has; one
// that is configured is not.
func TestScout(t *testing.T) {
	name := multicastInterface(t)
	iface, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := coapnet.NewListenUDP("udp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := conn.LocalAddr().(*net.UDPAddr).Port
	group := &net.UDPAddr{IP: net.ParseIP(groupIPv4), Port: port}
	if err := conn.JoinGroup(iface, group); err != nil {
		t.Fatal(err)
	}
	answer := thermometer(oneLink)
	scriptOn(t, conn.NetConn().(*net.UDPConn), func(m message.Message) []message.Message {
		if m.Type != message.NonConfirmable { // as the group is asked
			return answer(m)
		}
		m.Type = message.Confirmable
		all := answer(m)
		for i := range all {
			all[i].Type = message.NonConfirmable
		}
		return all
	})
	var devs []Device
	for _, known := range []bool{false, true} {
		sink := &devicetest.Sink{Auto: true, Curious: true}
		sc := NewScout([]string{name}, library(t), devs, slog.New(slog.DiscardHandler))
		sc.port, sc.gatherTime = port, time.Second
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- sc.Run(ctx, sink) }()
		if !known {
			shown := sink.WaitUnknown(t, 2)[1]
			if !strings.HasSuffix(shown.Link, fmt.Sprintf(":%d", port)) || shown.Profile != "senml" || len(shown.Fields) != 1 || shown.Place == "" {
				t.Errorf("%+v", shown)
			}
			devs = append(devs, askedDevice("kitchen", "senml", shown.Link+"/temp"))
		} else {
			waitFor(t, func() bool { return sc.rounds.Load() > 0 })
			if all := sink.WaitUnknown(t, 0); len(all) > 0 {
				t.Errorf("what is configured is shown: %+v", all)
			}
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
}
