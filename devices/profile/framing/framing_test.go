package framing

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// kind is a kind of frames, with frames that are good.
type kind struct {
	name   string
	rule   Rule
	frames [][]byte
	weak   bool // without a checksum: noise can be a frame
}

func hexBytes(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// telegram adds the CRC of a DSMR telegram.
func telegram(text string) []byte {
	return fmt.Appendf(nil, "%s%04X\r\n", text, CRC16ARC([]byte(text)))
}

// sml puts content into the transport of SML.
func sml(content []byte, kermit bool) []byte {
	frame := slices.Clone(smlBegin)
	fill := -len(content) & 3
	content = append(slices.Clone(content), make([]byte, fill)...)
	for i := 0; i < len(content); i += 4 {
		if bytes.Equal(content[i:i+4], smlEscape) {
			frame = append(frame, smlEscape...)
		}
		frame = append(frame, content[i:i+4]...)
	}
	frame = append(append(frame, smlEscape...), 0x1a, byte(fill))
	if sum := CRC16Kermit(frame); kermit {
		return append(frame, byte(sum>>8), byte(sum))
	}
	sum := CRC16X25(frame)
	return append(frame, byte(sum), byte(sum>>8))
}

func bcc(text string) []byte {
	var sum byte
	_, block, _ := strings.Cut(text, "\x02")
	for _, c := range []byte(block) {
		sum ^= c
	}
	return append([]byte(text), sum)
}

func modbus(s string) []byte {
	b := hexBytes(s)
	sum := CRC16Modbus(b)
	return append(b, byte(sum), byte(sum>>8))
}

func kinds() []kind {
	return []kind{
		{"line", Rule{}, [][]byte{[]byte(`{"t":21.4}`), []byte("a=1,b=2"), []byte("20;2D;UPM/Esic;ID=0001;")}, true},
		{"json", Rule{JSON: &struct{}{}}, [][]byte{[]byte(`{"t":21.4}`), []byte("{\n  \"t\": {},\n  \"s\": \"\\\"}\"\n}")}, true},
		{"dsmr", Rule{Telegram: &Telegram{Start: "/", End: "!", Sum: "crc16_arc"}}, [][]byte{
			telegram("/ISk5\\2MT382-1000\r\n\r\n1-0:1.8.1(000671.578*kWh)\r\n!"),
			telegram("/KFM5KAIFA-METER\r\n\r\n0-0:96.13.0(303132!)\r\n1-0:1.7.0(00.170*kW)\r\n!"),
		}, false},
		{"d0", Rule{Telegram: &Telegram{Start: "/", End: "!", Sum: "bcc", Seven: true}}, [][]byte{
			bcc("/LGZ5ZMD120APt.G03\r\n\x02F.F(00000000)\r\n1.8.1(001846.0*kWh)\r\n!\r\n\x03"),
			bcc("/ABB5\r\n\x020.0.0(00012345)\r\n!\r\n\x03"),
		}, false},
		{"sml", Rule{Escape: &struct{}{}}, [][]byte{
			sml(hexBytes("7605 0138 8032 6200 6200 7263 0101 7601 01"), false),
			sml(hexBytes("7605 1b1b 1b1b 1b1b 1b1b 0101 0101 00"), false),
			sml(hexBytes("7605 0138 1b1b1b1b 01010101 6200"), false), // the beginning in the content
			sml(hexBytes("1b1b1b1b 1a000000 7605"), true),
		}, false},
		{"shdlc", Rule{HDLC: &struct{}{}, Sum: "not_sum8", First: 1, After: 1}, [][]byte{
			hexBytes("7e0003002840a78320411777bb414a5f8341548ddd41d2833e427d33fc85422617224229a4d9422a29bc3f55b7e79e7e"),
			hexBytes("7e00007d5e7d5d047e"), // which has both escapes in it
		}, false},
		{"slip", Rule{SLIP: &struct{}{}, Sum: "sum8", First: 1, After: 1}, [][]byte{hexBytes("c0 01 02 03 06 c0"), hexBytes("c0 dbdc 01 dbdd 9c c0")}, false},
		{"esp3", Rule{Length: &Length{Start: "55", At: 1, Type: "u16", And: 3, Extra: 7, Header: 5}, Sum: "crc8", First: 6}, [][]byte{
			hexBytes("55000a0701eba5000055080181b7440001ffffffff2d0075"), hexBytes("55000707017ad50801825dab0001ffffffff360053"), hexBytes("5500050002ce00ff800000da"),
		}, false},
		{"pms", Rule{Length: &Length{Start: "424d", At: 2, Type: "u16", Extra: 4}, Sum: "sum16"}, [][]byte{
			hexBytes("424d001c0005000d00160005000d001602fd00fc001d000f00060006970003c5"),
		}, false},
		{"sds011", Rule{Fixed: &Fixed{Start: "aac0", End: "ab", Size: 10}, Sum: "sum8", First: 2, After: 1}, [][]byte{hexBytes("aac00600060058d93dab"), hexBytes("aac0aac0aac0aac03eab")}, false},
		{"ve.direct", Rule{Closed: &Closed{End: "Checksum\t", Tail: 1, Aside: ":"}, Sum: "zero_sum8"}, [][]byte{veDirect("\r\nPID\t0xA042\r\nV\t12530\r\nChecksum\t"), veDirect("\r\nPID\t0xA043\r\nV\t12530\r\n:7F0ED0096\nChecksum\t")}, false},
		{"modbus", Rule{Modbus: &struct{}{}}, [][]byte{
			hexBytes("010404436633341b38"), hexBytes("01040000000271cb"), modbus("0184 02"), modbus("0106 0001 0003"), modbus("0110 0001 0002 04 00010002"), modbus("f842"),
		}, false},
		{"firmata", Rule{MIDI: &struct{}{}}, [][]byte{hexBytes("e47f07"), hexBytes("910200"), hexBytes("f90201"), hexBytes("f0790201460069007200f7"), hexBytes("c001"), hexBytes("ff")}, true},
	}
}

func veDirect(text string) []byte {
	var sum byte
	aside := false
	for _, c := range []byte(text) {
		aside = aside || c == ':'
		if !aside {
			sum += c
		}
		aside = aside && c != '\n'
	}
	return append([]byte(text), -sum)
}

// framesOf are those of a kind, each as it stands on the wire.
func (k kind) framesOf() (frames, wire [][]byte) {
	frames = k.frames
	for _, f := range frames {
		if k.rule.IsLines() {
			f = append(slices.Clone(f), "\r\n"...)
		}
		wire = append(wire, f)
	}
	return frames, wire
}

// heard is what a framer made of pieces.
type heard struct {
	frames  [][]byte
	faults  []error
	skipped int
}

func (h *heard) take(f Frame) {
	h.skipped += f.Skipped
	if f.Err != nil {
		h.faults = append(h.faults, f.Err)
		return
	}
	h.frames = append(h.frames, slices.Clone(f.Bytes))
}

func cutUp(r Rule, stream []byte, size func() int) (h heard) {
	f := New(r)
	for len(stream) > 0 {
		n := min(len(stream), size())
		f.Cut(stream[:n], h.take)
		stream = stream[n:]
	}
	f.Idle(h.take)
	return h
}

// TestFrames cuts all frames of a kind out of one stream, in pieces of any size.
func TestFrames(t *testing.T) {
	for _, k := range kinds() {
		frames, wire := k.framesOf()
		if err := k.rule.Check(); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		stream := bytes.Join(slices.Concat(wire, wire), nil)
		random := rand.New(rand.NewPCG(1, 2))
		for _, size := range []func() int{func() int { return 1 }, func() int { return 7 }, func() int { return len(stream) }, func() int { return 1 + random.IntN(30) }} {
			h := cutUp(k.rule, stream, size)
			if len(h.faults) > 0 || h.skipped > 0 || !slices.EqualFunc(h.frames, slices.Concat(frames, frames), bytes.Equal) {
				t.Errorf("%s: %x, skipped %d, faults %v", k.name, h.frames, h.skipped, h.faults)
			}
		}
		for _, f := range frames {
			if _, err := k.rule.Open(f); err != nil {
				t.Errorf("%s: %x is not opened: %v", k.name, f, err)
			}
		}
	}
}

// TestFlippedByte refuses a frame with any byte changed.
func TestFlippedByte(t *testing.T) {
	for _, k := range kinds() {
		if k.weak {
			continue
		}
		frames, _ := k.framesOf()
		for _, frame := range frames {
			for i := range frame {
				for _, mask := range []byte{0x01, 0x20, 0x55, 0x7f} {
					bad := slices.Clone(frame)
					bad[i] ^= mask
					if body, err := k.rule.Open(bad); err == nil && !spared(k, frame, i, mask) {
						t.Errorf("%s: %x with byte %d changed is taken: %x", k.name, frame, i, body)
					}
				}
			}
		}
	}
}

// spared are bytes that stand aside and are no part of what the checksum is of.
func spared(k kind, frame []byte, i int, mask byte) bool {
	switch k.name {
	case "ve.direct":
		at := bytes.IndexByte(frame, ':')
		return at >= 0 && i > at && i < at+bytes.IndexByte(frame[at:], '\n')
	case "dsmr": // the end of the last line, and the case of its digits
		return i >= len(frame)-2 || i >= len(frame)-6 && mask == 0x20
	case "d0":
		return i < bytes.IndexByte(frame, 0x02) // the name, which no checksum is of
	}
	return false
}

// TestNoise puts noise and cut frames between good ones: all good ones come, but
// for those that noise has taken into a frame of its own, and nothing else.
func TestNoise(t *testing.T) {
	for _, k := range kinds() {
		_, wire := k.framesOf()
		frames, _ := k.framesOf()
		random := rand.New(rand.NewPCG(3, uint64(len(k.name))))
		found, sent := 0, 0
		for range 200 {
			var stream []byte
			for range 4 {
				piece := wire[random.IntN(len(wire))]
				switch random.IntN(3) {
				case 0:
					for range random.IntN(20) {
						stream = append(stream, byte(random.Uint32()))
					}
				case 1:
					stream = append(stream, piece[:random.IntN(len(piece))]...)
				case 2:
					stream = append(stream, piece[random.IntN(len(piece))+1:]...)
				}
				if k.rule.IsLines() {
					stream = append(stream, '\n')
				}
				which := random.IntN(len(wire))
				for range 2 { // the first may be taken for the rest of what was cut
					stream = append(stream, wire[which]...)
				}
				sent++
			}
			h := cutUp(k.rule, stream, func() int { return 1 + random.IntN(40) })
			if told := len(bytes.Join(h.frames, nil)) + h.skipped; told > len(stream) {
				t.Errorf("%s: %d bytes of %d are told of", k.name, told, len(stream))
			}
			for _, f := range h.frames {
				if slices.ContainsFunc(frames, func(good []byte) bool { return bytes.Equal(good, f) }) {
					found++
				} else if !k.weak && k.name != "ve.direct" {
					if _, err := k.rule.Open(f); err != nil {
						t.Errorf("%s: %x: %v", k.name, f, err)
					}
				}
			}
		}
		if found < sent {
			t.Errorf("%s: of %d good frames after noise, each sent twice, only %d were found", k.name, sent, found)
		}
	}
}

// TestEndless feeds what never ends: memory stays bounded, and it is said once
// in a while.
func TestEndless(t *testing.T) {
	for _, k := range kinds() {
		frames, wire := k.framesOf()
		f := New(k.rule)
		var h heard
		start := wire[0][:min(len(wire[0])/2, 8)]
		for range 200 {
			f.Cut(bytes.Repeat(start[:1], 1000), h.take)
		}
		for range 100 {
			f.Cut([]byte(strings.Repeat("x", 1000)), h.take)
		}
		if cap(f.buf) > 2*(f.max+1) {
			t.Errorf("%s: a buffer of %d bytes", k.name, cap(f.buf))
		}
		if n := len(h.faults); n > 300000/noiseReport+2 {
			t.Errorf("%s: %d faults", k.name, n)
		}
		f.Cut([]byte("\r\n"), h.take)
		f.Idle(h.take)
		h = heard{}
		f.Cut(wire[0], h.take)
		f.Cut(wire[0], h.take)
		f.Idle(h.take)
		if !slices.ContainsFunc(h.frames, func(b []byte) bool { return bytes.Equal(b, frames[0]) }) {
			t.Errorf("%s: after noise, %x comes of two good frames; %v", k.name, h.frames, h.faults)
		}
	}
}
