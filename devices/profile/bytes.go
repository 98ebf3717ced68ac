package profile

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// read reads values with a separator between.
func (rule columnsRule) read(payload []byte, look func(ref) string) (*node, error) {
	text := strings.TrimSpace(string(payload))
	if !utf8.ValidString(text) || text == "" {
		return nil, errors.New("not columns of text")
	}
	var cells []string
	if rule.Separator == " " {
		cells = strings.Fields(text)
	} else {
		cells = strings.Split(text, rule.Separator)
	}
	if len(cells) > maxMembers {
		return nil, fmt.Errorf("more than %d values", maxMembers)
	}
	names := rule.Names
	if rule.Header {
		if header, ok := headerOf(cells); ok {
			return object("header", &node{value: devices.Text(header)}), nil
		}
		// A greeting with a comma in it looks like names, too.
		if taught := strings.Split(look(ref{name: "taught"}), ","); len(taught) == len(cells) {
			names = taught
		}
	}
	n := &node{kind: objectNode}
	for i, cell := range cells {
		name := "c" + strconv.Itoa(i)
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		n.members = append(n.members, member{name, &node{value: bare(cell)}})
	}
	if at, ok := rule.At.fill(look); ok && at != "" {
		n = under(at, n)
	}
	return n, nil
}

// headerOf gives the names of columns, with commas between; ok is false where a cell
// is no name.
func headerOf(cells []string) (header string, ok bool) {
	names := make([]string, len(cells))
	for i, cell := range cells {
		names[i] = strings.Trim(cell, " #\"\t")
		if _, err := devices.ParseNumber(names[i]); err == nil || fieldName(names[i]) == "" || len(names[i]) > maxName || notValue(names[i]) || strings.ContainsAny(names[i], ",;=:") {
			return "", false
		}
	}
	return strings.Join(names, ","), len(names) > 1
}

// read reads bytes at fixed places.
func (rule structRule) read(payload []byte) (*node, error) {
	start, err := hex.DecodeString(rule.Start)
	if err != nil {
		return nil, err
	}
	switch {
	case rule.Size > 0 && len(payload) != rule.Size:
		return nil, fmt.Errorf("%d bytes instead of %d", len(payload), rule.Size)
	case !strings.HasPrefix(string(payload), string(start)):
		return nil, fmt.Errorf("does not begin with %s", rule.Start)
	}
	n := &node{kind: objectNode}
	next := 0
	for _, item := range rule.Items {
		if item.At > 0 {
			next = item.At
		}
		size := item.size()
		if next+size > len(payload) {
			if rule.Part {
				break
			}
			return nil, fmt.Errorf("ends at byte %d, within %s", len(payload), item.Name)
		}
		v, err := item.read(payload[next:next+size], rule.Endian == "little")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", item.Name, err)
		}
		next += size
		if !v.IsValid() { // a number that is none
			continue
		}
		n.members = append(n.members, member{item.Name, &node{value: v}})
	}
	return n, nil
}

// size is the bytes that the item has.
func (item structItem) size() int {
	bits, _ := strconv.Atoi(strings.TrimLeft(item.Type, "uifbcd"))
	return bits / 8
}

func (item structItem) read(b []byte, little bool) (devices.Value, error) {
	var whole [8]byte
	for i, octet := range b {
		place := len(b) - 1 - i // from the lowest
		if little {
			place = i
		}
		if item.Words == "low_first" && len(b) == 4 {
			place ^= 2
		}
		whole[place] = octet
	}
	n := binary.LittleEndian.Uint64(whole[:])
	bits := len(b) * 8
	switch {
	case item.Type == "f32":
		return devices.Number(single(math.Float32frombits(uint32(n)))), nil
	case item.Type == "f64":
		return devices.Number(math.Float64frombits(n)), nil
	case strings.HasPrefix(item.Type, "i"):
		return devices.ParseNumber(strconv.FormatInt(signed(n, bits), 10))
	case strings.HasPrefix(item.Type, "bcd"):
		return devices.ParseNumber(strconv.FormatUint(n, 16)) // a digit A to F is no number
	}
	return devices.ParseNumber(strconv.FormatUint(n, 10))
}

// signed reads two's complement of so many bits.
func signed(n uint64, bits int) int64 { return int64(n<<(64-bits)) >> (64 - bits) }

// single is a float32 with the decimals that it was meant to have.
func single(f float32) float64 {
	v, err := strconv.ParseFloat(strconv.FormatFloat(float64(f), 'g', -1, 32), 64)
	if err != nil {
		return math.NaN()
	}
	return v
}
