package coap

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
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

// hearGroup runs a server that hears a group, and gives a socket of a device, what
// sends from there three times, and the addresses of the group and of the server.
func hearGroup(t *testing.T, listen string, describe time.Duration, devs ...Device) (s *Server, sink *devicetest.Sink, device *net.UDPConn, tell func(to netip.AddrPort, b []byte), group, alone netip.AddrPort) {
	t.Helper()
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	group = netip.AddrPortFrom(allNodes.Addr(), free.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	_ = free.Close()
	if strings.Contains(listen, "%") {
		listen = fmt.Sprintf(listen, group.Port())
	}
	sink = &devicetest.Sink{Auto: true, Curious: true}
	s = New(Config{Listen: listen, Group: &Group{Addr: group, Interfaces: []string{"lo"}}, Profiles: library(t)}, devs, slog.New(slog.DiscardHandler))
	s.describe = describe
	drive(t, s, sink)

	device, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = device.Close() })
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := ipv4.NewPacketConn(device).SetMulticastInterface(lo); err != nil {
		t.Fatal(err)
	}
	tell = func(to netip.AddrPort, b []byte) {
		t.Helper()
		for range 3 {
			if _, err := device.WriteToUDPAddrPort(b, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	alone = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.Addr().(*net.UDPAddr).AddrPort().Port())
	for end := time.Now().Add(patience); !s.service.Load().coiot.joined.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not join")
		}
	}
	return s, sink, device, tell, group, alone
}

func testCoIoT(t *testing.T, listen string) {
	profiles := library(t)
	plug := Device{
		Device: devices.Device{ID: "plug", Location: time.UTC}, Profile: profiles.Get("shelly-coiot"),
		Place: profile.Place{Device: "plug", Location: time.UTC}, Identity: "SHPLG-S#A1B2C3",
	}
	_, sink, device, tell, group, alone := hearGroup(t, listen, describeTime, plug)
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
	shorten(fields, nil)
	if got := fmt.Sprint(fields[0].Name, fields[1].Name, fields[2].Name, fields[4].Name); got != "exttemp3102_exttemppower_2111" {
		t.Errorf("names are shortened to %s", got)
	}
	// Nobody is answered.
	_ = device.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, _, err := device.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("it answers with %d bytes", n)
	}
}

// A device with old firmware is asked once what its numbers mean, from the socket
// that heard it, and what it told before it answers is known under those names. The
// description is of the form that devices gave (ioBroker.shelly, shelly-helper and
// the comments of its devices); the device is a script, as no real one could be had.
func TestCoIoTDescription(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", ":%d"} {
		t.Run(listen, func(t *testing.T) { testCoIoTDescription(t, listen) })
	}
}

func testCoIoTDescription(t *testing.T, listen string) {
	switcher := Device{
		Device: devices.Device{ID: "switch", Location: time.UTC}, Profile: library(t).Get("shelly-coiot"),
		Place: profile.Place{Device: "switch", Location: time.UTC}, Identity: "SHSW-25#A1B2C3",
	}
	_, sink, device, tell, group, _ := hearGroup(t, listen, describeTries*patience, switcher)
	tell(group, say(t, "SHSW-25#A1B2C3#1", "1", `{"G":[[0,112,1],[0,122,0],[0,111,7.5],[0,121,0],[0,118,1]]}`))
	tell(group, say(t, "SHSW-25#A1B2C3#1", "2", `{"G":[[0,112,0],[0,122,0],[0,111,0],[0,121,0],[0,118,1]]}`))
	b := make([]byte, 1500)
	_ = device.SetReadDeadline(time.Now().Add(patience))
	n, from, err := device.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatal(err)
	}
	q := decoded(t, b[:n])
	if q.Code != codes.GET || q.Type != message.NonConfirmable || strings.Join(pathOf(q), "/") != "cit/d" || len(q.Token) != 0 {
		t.Fatalf("asked is %v", q)
	}
	if got := sink.WaitMessages(t, 0); len(got) != 0 {
		t.Errorf("taken before it has names: %v", got)
	}
	answer := func(identity, payload string) []byte {
		m := message.Message{Type: message.NonConfirmable, Code: codes.Content, MessageID: q.MessageID, Payload: []byte(payload)}
		m.Options = m.Options.Add(message.Option{ID: coiotDevice, Value: []byte(identity)})
		b, err := encoded(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tell(from, answer("SHSW-25#FFFFFF#1", `{"sen":[{"I":112,"D":"Forged"}]}`)) // nobody asked that one
	tell(from, answer("SHSW-25#A1B2C3#1", `{"blk":[{"I":0,"D":"Relay0"},{"I":1,"D":"Relay1"}],"sen":[`+
		`{"I":122,"T":"S","D":"State","R":"0/1","L":1},{"I":112,"T":"S","D":"State","R":"0/1","L":0},`+
		`{"I":111,"T":"W","D":"Power","R":"0/2300","L":0},{"I":121,"T":"W","D":"Power","R":"0/2300","L":1}]}`))
	for i, want := range []string{"state=1 state_2=0 power=7.5 power_2=0 118=1", "state=0 state_2=0 power=0 power_2=0 118=1"} {
		var fields []string
		for _, f := range sink.WaitMessages(t, i+1)[i].Readings[0].Fields {
			fields = append(fields, f.Name+"="+f.Value.String())
		}
		if got := strings.Join(fields, " "); got != want {
			t.Errorf("told %s, want %s", got, want)
		}
	}
	tell(group, say(t, "SHSW-25#A1B2C3#1", "3", `{"G":[[0,112,1]]}`))
	if got := sink.WaitMessages(t, 3)[2]; value(got, "state") != "1" {
		t.Errorf("told %+v", got.Readings)
	}
	if n := questions(t, device); n != 0 {
		t.Errorf("asked %d times more", n)
	}
}

// questions counts those that came and were not read. There may be resets, too.
func questions(t *testing.T, device *net.UDPConn) (n int) {
	t.Helper()
	_ = device.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	for b := make([]byte, 1500); ; {
		size, _, err := device.ReadFromUDPAddrPort(b)
		if err != nil {
			return n
		}
		if decoded(t, b[:size]).Code == codes.GET {
			n++
		}
	}
}

// Who does not say what its numbers mean is shown with them, and not asked again.
func TestCoIoTWithoutDescription(t *testing.T) {
	_, sink, device, tell, group, _ := hearGroup(t, "127.0.0.1:0", 100*time.Millisecond)
	tell(group, say(t, "SHHT-1#F00D00#1", "9", `{"G":[[0,33,21.5]]}`))
	if u := sink.WaitUnknown(t, 1)[0]; len(u.Fields) != 1 || u.Fields[0].Name != "33" {
		t.Errorf("stranger %+v", u)
	}
	tell(group, say(t, "SHHT-1#F00D00#1", "10", `{"G":[[0,33,22.5]]}`))
	sink.WaitUnknown(t, 2)
	if n := questions(t, device); n != describeTries {
		t.Errorf("asked %d times", n)
	}
}
