package profile

import (
	"bytes"
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
	n := &node{kind: objectNode}
	for i, cell := range cells {
		name := "c" + strconv.Itoa(i)
		if i < len(rule.Names) && rule.Names[i] != "" {
			name = rule.Names[i]
		}
		n.members = append(n.members, member{name, &node{value: bare(cell)}})
	}
	if at, ok := rule.At.fill(look); ok && at != "" {
		n = under(at, n)
	}
	return n, nil
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

// check finds what is wrong with a frame.
func (rule frameRule) check(key string, add addFault) {
	for name, text := range map[string]string{"escape": rule.Escape, "start": rule.Start, "end": rule.End} {
		if b, err := hex.DecodeString(text); err != nil || name == "escape" && len(b) > 1 {
			add(key+"."+name, "is not hex", "pairs of 0-9 and a-f, one for escape", "correct it")
		}
	}
	if rule.Sum == "" && rule.First+rule.After > 0 {
		add(key, "first and after are of a checksum", "with sum", "add sum, or remove them")
	}
}

// open gives what is in a frame, without the checksum and what follows it.
func (rule frameRule) open(payload []byte) ([]byte, error) {
	if escape, _ := hex.DecodeString(rule.Escape); len(escape) == 1 {
		plain := make([]byte, 0, len(payload))
		for i := 0; i < len(payload); i++ {
			if payload[i] == escape[0] && i+1 < len(payload) {
				i++
				plain = append(plain, payload[i]^0x20)
				continue
			}
			plain = append(plain, payload[i])
		}
		payload = plain
	}
	start, _ := hex.DecodeString(rule.Start)
	end, _ := hex.DecodeString(rule.End)
	switch {
	case rule.Size > 0 && len(payload) != rule.Size:
		return nil, fmt.Errorf("%d bytes instead of %d", len(payload), rule.Size)
	case !bytes.HasPrefix(payload, start):
		return nil, fmt.Errorf("does not begin with %s", rule.Start)
	case !bytes.HasSuffix(payload, end):
		return nil, fmt.Errorf("does not end with %s", rule.End)
	case rule.Sum == "":
		return payload, nil
	}
	sum := frameSums[rule.Sum]
	at := len(payload) - rule.After - sum.size
	if at < rule.First {
		return nil, fmt.Errorf("%d bytes are too few", len(payload))
	}
	if !bytes.Equal(payload[at:at+sum.size], sum.of(payload[rule.First:at])) {
		return nil, errors.New("the checksum is wrong")
	}
	return payload[:at], nil
}

// frameSums are the checksums as they are sent.
var frameSums = map[string]struct {
	size int
	of   func([]byte) []byte
}{
	"sum8":         {1, func(b []byte) []byte { return []byte{byte(total(b))} }},
	"not_sum8":     {1, func(b []byte) []byte { return []byte{^byte(total(b))} }},
	"zero_sum8":    {1, func(b []byte) []byte { return []byte{-byte(total(b))} }},
	"sum16":        {2, func(b []byte) []byte { return binary.BigEndian.AppendUint16(nil, total(b)) }},
	"crc16_modbus": {2, func(b []byte) []byte { return binary.LittleEndian.AppendUint16(nil, crc16(b)) }},
}

func total(b []byte) (sum uint16) {
	for _, octet := range b {
		sum += uint16(octet)
	}
	return sum
}

// crc16 is the CRC of Modbus over Serial Line, section 6.2.2.
func crc16(b []byte) uint16 {
	crc := uint16(0xffff)
	for _, octet := range b {
		crc ^= uint16(octet)
		for range 8 {
			odd := crc & 1
			crc >>= 1
			crc ^= 0xa001 * odd
		}
	}
	return crc
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
