package serial

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// cutAll cuts a stream that comes in pieces of the size given.
func cutAll(stream []byte, size int) (lines []string, errs []string) {
	var f framer
	for piece := range slices.Chunk(stream, size) {
		f.cut(piece, func(fr frame) {
			if fr.err != nil {
				errs = append(errs, fr.err.Error())
			} else {
				lines = append(lines, string(fr.line))
			}
		})
	}
	return lines, errs
}

func TestCut(t *testing.T) {
	full := strings.Repeat("x", maxLine)
	for _, c := range []struct {
		name, stream string
		lines        []string
		errs         []string // in part
	}{
		{"LF", "a=1\nb=2\n", []string{"a=1", "b=2"}, nil},
		{"CRLF", "a=1\r\nb=2\r\n", []string{"a=1", "b=2"}, nil},
		{"CR", "a=1\rb=2\r", []string{"a=1", "b=2"}, nil},
		{"LFCR and blank lines", "\n\r\na=1\n\r\n\r\nb=2\n\r", []string{"a=1", "b=2"}, nil},
		{"no end", "a=1\nb=", []string{"a=1"}, nil},
		{"nothing", "", nil, nil},
		{"tabs and UTF-8 stay", "a\t=1 °C\n", []string{"a\t=1 °C"}, nil},
		{"noise between", "a=1\n\x00\xff\xfe\nb=2\n", []string{"a=1", "b=2"}, []string{"3 bytes: it has noise"}},
		{"noise at the front of a line drops it whole", "\xffemp=1\nb=2\n", []string{"b=2"}, []string{"noise"}},
		{"noise within", "te\x00mp=1\nb=2\n", []string{"b=2"}, []string{"noise"}},
		{"UTF-8 cut", "a=\xc3\nb=2\n", []string{"b=2"}, []string{"noise"}},
		{"the longest", full + "\nb=2\n", []string{full, "b=2"}, nil},
		{"one more", full + "x\nb=2\n", []string{"b=2"}, []string{"4097 bytes dropped"}},
		{"a megabyte", strings.Repeat("x", 1<<20) + "\nb=2\n", []string{"b=2"}, slices.Repeat([]string{"65536 bytes dropped"}, 16)},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 1000, 1 << 21} {
				lines, errs := cutAll([]byte(c.stream), size)
				if !slices.Equal(lines, c.lines) {
					t.Errorf("pieces of %d: want lines %.60q, got %.60q", size, c.lines, lines)
				}
				if !slices.EqualFunc(errs, c.errs, strings.Contains) {
					t.Errorf("pieces of %d: want errors with %q, got %q", size, c.errs, errs)
				}
			}
		})
	}
}

// However the stream comes in pieces, its lines are those that a look at the
// whole of it finds, and memory stays bounded.
func FuzzCut(f *testing.F) {
	f.Add([]byte("a=1\r\n{\"b\":2}\n"), 1)
	f.Add([]byte("\x00\xff\n\rtext\r"), 3)
	f.Add(bytes.Repeat([]byte("x"), maxLine+1), 100)
	f.Add(append(bytes.Repeat([]byte("x"), maxLine), "\n°\n"...), 7)
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		if size < 1 || size > 1<<16 || len(stream) > dropReport {
			t.Skip()
		}
		var want []string
		bad := 0
		rest := stream
		for {
			i := bytes.IndexAny(rest, "\r\n")
			if i < 0 {
				break
			}
			line := rest[:i]
			rest = rest[i+1:]
			switch {
			case len(line) == 0:
			case len(line) > maxLine || !printable(line):
				bad++
			default:
				want = append(want, string(line))
			}
		}
		lines, errs := cutAll(stream, size)
		if !slices.Equal(lines, want) {
			t.Errorf("want %q, got %q", want, lines)
		}
		if len(errs) != bad {
			t.Errorf("want %d errors, got %q", bad, errs)
		}
		var fr framer
		fr.cut(stream, func(frame) {})
		if len(fr.line) > maxLine {
			t.Errorf("%d bytes are kept of a line", len(fr.line))
		}
	})
}
