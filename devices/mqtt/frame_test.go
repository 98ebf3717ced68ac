package mqtt

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	connack  = "\x20\x02\x00\x00"
	pingresp = "\xd0\x00"
	publish  = "\x32\x09\x00\x03a/b\x00\x01hi" // QoS 1, id 1
)

func TestFramer(t *testing.T) {
	big := "\x30\x80\x80\x80\x01" + "\x00\x01a" + strings.Repeat("x", maxPacket-3)
	for name, c := range map[string]struct {
		filters int32
		in      string
		fault   string // "" where the stream is good
	}{
		"nothing":               {0, "", ""},
		"all that may be":       {2, connack + publish + "\x90\x04\x00\x01\x01\x80" + pingresp + publish, ""},
		"the largest":           {0, connack + big + pingresp, ""},
		"half a packet":         {0, connack + publish[:5], ""},
		"length in five bytes":  {0, connack + "\x30\xff\xff\xff\xff\x01", "more than four bytes"},
		"length without end":    {0, connack + "\x30\x80\x80\x80\x80", "more than four bytes"},
		"256 MiB":               {0, connack + "\x30\xff\xff\xff\x7f", "268435455 bytes"},
		"one byte too large":    {0, connack + "\x30\x81\x80\x80\x01", "2097153 bytes"},
		"256 MiB at first":      {0, "\x20\xff\xff\xff\x7f", "268435455 bytes"},
		"no CONNACK":            {0, publish, "type 3 where that cannot be"},
		"two CONNACKs":          {0, connack + connack, "type 2 where that cannot be"},
		"a SUBACK for nothing":  {0, connack + "\x90\x03\x00\x01\x01", "0 filters with 1 codes"},
		"too many codes":        {2, connack + "\x90\x05\x00\x01\x01\x01\x01", "2 filters with 3 codes"},
		"too few codes":         {2, connack + "\x90\x03\x00\x01\x01", "2 filters with 1 codes"},
		"a SUBACK without id":   {2, connack + "\x90\x00", "2 filters with -2 codes"},
		"QoS 2":                 {0, connack + "\x34\x05\x00\x01a\x00\x01", "QoS 2"},
		"QoS 3":                 {0, connack + "\x36\x05\x00\x01a\x00\x01", "QoS 3"},
		"a packet of a client":  {0, connack + "\xc0\x00", "type 12, which answers nothing"},
		"an UNSUBACK":           {0, connack + "\xb0\x02\x00\x01", "type 11, which answers nothing"},
		"a PUBACK for nothing":  {0, connack + "\x40\x02\x00\x01", "type 4, which answers nothing"},
		"a type that is not":    {0, connack + "\xf0\x00", "type 15, which answers nothing"},
		"fault in later packet": {0, connack + publish + publish + "\x60\x02\x00\x01", "type 6, which answers nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, step := range []int{1, 2, 3, len(c.in) + 1} {
				var f framer
				f.filters.Store(c.filters)
				var err error
				for in := c.in; len(in) > 0 && err == nil; {
					n := min(step, len(in))
					err = f.feed([]byte(in[:n]))
					in = in[n:]
				}
				switch {
				case c.fault == "" && err != nil:
					t.Errorf("in steps of %d: %v", step, err)
				case c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)):
					t.Errorf("in steps of %d: %v, want %q", step, err, c.fault)
				}
			}
		})
	}
}

// fakeConn reads from r; nothing else of it is used.
type fakeConn struct {
	net.Conn
	r io.Reader
}

func (c fakeConn) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c fakeConn) Write(b []byte) (int, error)      { return len(b), nil }
func (c fakeConn) SetWriteDeadline(time.Time) error { return nil }
func (c fakeConn) SetReadDeadline(time.Time) error  { return nil }

// TestFramedConnHoldsBack reads as the library does, which is given no byte of
// a header whose packet is refused, and the same verdict whenever it asks.
func TestFramedConnHoldsBack(t *testing.T) {
	c := newFramedConn(fakeConn{r: strings.NewReader(connack + "\x30\xff\xff\xff\x7f" + publish)})
	for range len(connack) {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || !strings.Contains(err.Error(), "268435455") {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	}
}

func FuzzFramer(f *testing.F) {
	for _, s := range []string{
		connack, connack + publish + pingresp, connack + "\x90\x04\x00\x01\x01\x80", connack + "\x30\xff\xff\xff\x7f",
		connack + "\x30\xff\xff\xff\xff\x01", connack + "\x32\x00", connack + "\x32\x02\xff\xff", "\x20\x00", connack + "\x90\x02\x00\x01", publish,
	} {
		f.Add([]byte(s), uint8(2), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, filters, step uint8) {
		// The verdict does not depend on how the bytes are cut.
		var whole, pieces framer
		whole.filters.Store(int32(filters))
		pieces.filters.Store(int32(filters))
		want := whole.feed(in)
		var got error
		for b := in; len(b) > 0 && got == nil; {
			n := min(int(step)+1, len(b))
			got = pieces.feed(b[:n])
			b = b[n:]
		}
		if (want == nil) != (got == nil) || want != nil && want.Error() != got.Error() {
			t.Fatalf("whole: %v; in pieces: %v", want, got)
		}

		// What passes is borne by the library's parser, which gets nothing
		// large and nothing with codes that were not asked for.
		c := newFramedConn(fakeConn{r: iotest.OneByteReader(bytes.NewReader(in))})
		c.framer.filters.Store(int32(filters))
		for {
			p, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			switch p := p.(type) {
			case *packets.ConnackPacket, *packets.PingrespPacket:
			case *packets.PublishPacket:
				if len(p.Payload) > maxPacket || p.Qos > 1 {
					t.Fatalf("passed: %v", p)
				}
			case *packets.SubackPacket:
				if len(p.ReturnCodes) != int(filters) {
					t.Fatalf("passed %d codes, asked for %d", len(p.ReturnCodes), filters)
				}
			default:
				t.Fatalf("passed: %v", p)
			}
		}
	})
}
