package coap

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"golang.org/x/net/ipv4"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/profile"
)

// say makes a message as devices of the first generation send it (the options
// and the code are those of aioshelly's coap.py; no device could be had).
func say(t testing.TB, identity, serial, payload string) []byte {
	t.Helper()
	m := message.Message{Type: message.NonConfirmable, Code: coiotStatus, MessageID: 7, Token: message.Token{1, 2}, Payload: []byte(payload)}
	for _, o := range []message.Option{
		{ID: message.URIPath, Value: []byte("cit")}, {ID: message.URIPath, Value: []byte("s")},
		{ID: coiotDevice, Value: []byte(identity)}, {ID: 3412, Value: []byte{38}}, {ID: coiotSerial, Value: []byte(serial)},
	} {
		m.Options = m.Options.Add(o)
	}
	b, err := encoded(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A device tells the group, three times each, and the gateway alone; which
// listens at an address, or with the same port on all of them.
func TestCoIoT(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", ":%d", "0.0.0.0:%d"} {
		t.Run(listen, func(t *testing.T) { testCoIoT(t, listen) })
	}
}

func testCoIoT(t *testing.T, listen string) {
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	group := netip.AddrPortFrom(allNodes.Addr(), free.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	_ = free.Close()
	if strings.Contains(listen, "%") {
		listen = fmt.Sprintf(listen, group.Port())
	}
	profiles := library(t)
	plug := Device{
		Device: devices.Device{ID: "plug", Location: time.UTC}, Profile: profiles.Get("shelly-coiot"),
		Place: profile.Place{Device: "plug", Location: time.UTC}, Identity: "SHPLG-S#A1B2C3",
	}
	sink := &devicetest.Sink{Auto: true, Curious: true}
	s := New(Config{Listen: listen, Group: &Group{Addr: group, Interfaces: []string{"lo"}}, Profiles: profiles}, []Device{plug}, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx, sink) }()
	t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
	sink.WaitUp(t, 1)

	device, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := ipv4.NewPacketConn(device).SetMulticastInterface(lo); err != nil {
		t.Fatal(err)
	}
	tell := func(to netip.AddrPort, b []byte) {
		t.Helper()
		for range 3 {
			if _, err := device.WriteToUDPAddrPort(b, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	alone := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.Addr().(*net.UDPAddr).AddrPort().Port())
	for end := time.Now().Add(patience); !s.service.Load().coiot.joined.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not join")
		}
	}
	tell(group, say(t, "SHPLG-S#A1B2C3#2", "1", `{"G":[[0,1101,1],[0,4101,12.5],[0,4103,77]]}`))
	tell(group, say(t, "SHPLG-S#A1B2C3#2", "2", `{"G":[[0,1101,0],[0,4101,0],[0,4103,78]]}`))
	sink.WaitMessages(t, 2)
	tell(alone, say(t, "SHPLG-S#A1B2C3#2", "3", `{"G":[[0,1101,1],[0,4101,3],[0,4103,78]]}`))
	tell(group, say(t, "SHHT-1#F00D00#2", "9", `{"G":[[0,3101,21.5],[0,3103,40]]}`)) // a stranger
	tell(group, []byte("no CoAP"))
	tell(group, say(t, "nobody", "1", `{"G":[]}`))
	tell(group, say(t, "SHPLG-S#A1B2C3#2", "4", `{"G":7}`))

	got := sink.WaitMessages(t, 3)
	if r := got[0].Message.Readings; r[0].Device != "plug" || value(got[0], "power") != "12.5" || value(got[0], "output") != "true" {
		t.Errorf("%+v", r)
	}
	if u := sink.WaitUnknown(t, 1)[0]; u.Place != "shht-1-f00d00" || u.Identity != "SHHT-1#F00D00" || u.Profile != "shelly-coiot" || len(u.Fields) != 2 {
		t.Errorf("stranger %+v", u)
	}
	sink.WaitRejections(t, 1)
	if n := len(sink.WaitMessages(t, 3)); n != 3 {
		t.Errorf("%d messages", n)
	}
	fields := []devices.Field{{Name: "3101_exttemp"}, {Name: "3102_exttemp"}, {Name: "4201_power"}, {Name: "power"}, {Name: "111"}}
	shorten(fields)
	if got := fmt.Sprint(fields[0].Name, fields[1].Name, fields[2].Name, fields[4].Name); got != "exttemp3102_exttemppower_2111" {
		t.Errorf("names are shortened to %s", got)
	}
	// Nobody is answered.
	_ = device.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, _, err := device.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("it answers with %d bytes", n)
	}
}
