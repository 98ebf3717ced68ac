package framing

import (
	"bytes"
	"slices"
	"testing"
)

// FuzzFramer feeds each kind of framer any bytes in any pieces. What it hands over
// as a frame is one by itself; no byte is told of twice; memory is bounded; and a
// good frame that follows, twice and after a silence, is found.
func FuzzFramer(f *testing.F) {
	all := kinds()
	for i, k := range all {
		frames, wire := k.framesOf()
		f.Add(uint8(i), uint8(7), bytes.Join(wire, nil))
		f.Add(uint8(i), uint8(1), append(slices.Clone(frames[0][:len(frames[0])/2]), wire[0]...))
	}
	f.Fuzz(func(t *testing.T, which, size uint8, stream []byte) {
		k := all[int(which)%len(all)]
		_, wire := k.framesOf()
		framer := New(k.rule)
		var h heard
		for rest := stream; len(rest) > 0; {
			n := min(len(rest), 1+int(size))
			framer.Cut(rest[:n], h.take)
			rest = rest[n:]
		}
		framer.Idle(h.take)
		told := h.skipped
		for _, frame := range h.frames {
			told += len(frame)
			if _, err := k.rule.Open(frame); err != nil && !(k.rule.Telegram != nil && k.rule.Telegram.Sum == "bcc") {
				t.Errorf("%s: the frame %x is none: %v", k.name, frame, err)
			}
		}
		if told > len(stream) || cap(framer.buf) > 4*(framer.max+1) {
			t.Errorf("%s: %d bytes of %d are told of, %d are kept", k.name, told, len(stream), cap(framer.buf))
		}
		framer.Reset()
		h = heard{}
		framer.Cut(wire[0], h.take)
		framer.Idle(h.take)
		if len(h.frames) != 1 {
			t.Errorf("%s: %d frames after a new start", k.name, len(h.frames))
		}
	})
}

// FuzzOpen opens anything as a frame of each kind.
func FuzzOpen(f *testing.F) {
	all := kinds()
	for i, k := range all {
		for _, frame := range k.frames {
			f.Add(uint8(i), frame)
		}
	}
	f.Add(uint8(3), []byte("/\n!\x02"))
	f.Add(uint8(3), []byte("/?\n"))
	f.Fuzz(func(t *testing.T, which uint8, frame []byte) {
		k := all[int(which)%len(all)]
		before := slices.Clone(frame)
		body, err := k.rule.Open(frame)
		if err == nil && len(body) > len(frame) {
			t.Errorf("%s: %d bytes in %d", k.name, len(body), len(frame))
		}
		if !bytes.Equal(before, frame) {
			t.Errorf("%s: the frame was changed", k.name)
		}
	})
}

// BenchmarkFramer cuts good frames out of a stream that comes in pieces of 64
// bytes.
func BenchmarkFramer(b *testing.B) {
	for _, k := range kinds() {
		b.Run(k.name, func(b *testing.B) {
			_, wire := k.framesOf()
			one := bytes.Join(wire, nil)
			stream := bytes.Repeat(one, max(1, (16<<10)/len(one)))
			frames := len(wire) * (len(stream) / len(one))
			framer := New(k.rule)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				found := 0
				for rest := stream; len(rest) > 0; {
					n := min(len(rest), 64)
					framer.Cut(rest[:n], func(f Frame) {
						if f.Err == nil {
							found++
						}
					})
					rest = rest[n:]
				}
				framer.Idle(func(f Frame) { found++ })
				if found != frames {
					b.Fatalf("%d frames of %d", found, frames)
				}
			}
			b.ReportMetric(float64(frames), "frames/op")
		})
	}
}
