package strictyaml

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Size is an amount of bytes. In a file it is a whole number, alone or with
// one of the units B, kB, MB, GB (powers of 1000) or KiB, MiB, GiB (powers of
// 1024).
type Size int64

const sizeForms = "a number of bytes, alone or with kB, MB, GB, KiB, MiB or GiB"

// sizeUnits are in falling order, so that String finds the largest that fits.
func sizeUnits() []struct {
	name  string
	bytes int64
} {
	return []struct {
		name  string
		bytes int64
	}{
		{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6},
		{"KiB", 1 << 10}, {"kB", 1e3}, {"B", 1},
	}
}

// UnmarshalText reads a size such as 256MiB.
func (s *Size) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	end := 0
	for end < len(in) && in[end] >= '0' && in[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(in[:end], 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return errors.New("is too large for a size")
	}
	if err != nil {
		return errors.New(quote(in) + " is not a size")
	}
	unit := strings.TrimSpace(in[end:])
	if unit == "" {
		unit = "B"
	}
	for _, u := range sizeUnits() {
		if !strings.EqualFold(u.name, unit) {
			continue
		}
		if n > math.MaxInt64/u.bytes {
			return errors.New("is too large for a size")
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return errors.New(quote(in) + " has no unit of a size")
}

// Allowed says how a size is written.
func (s Size) Allowed() string { return sizeForms }

// Example shows a size.
func (s Size) Example() string { return "256MiB" }

// MarshalText writes the size as String does.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String gives the size in the largest unit in which it is a whole number.
func (s Size) String() string {
	for _, u := range sizeUnits() {
		if n := int64(s); n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
