package framing

// A sum is a checksum: how it is made, and how it is sent.
type sum struct {
	size     int // in bytes
	lowFirst bool
	of       func([]byte) uint16
}

// sumOf gives the checksums of [Rule] by name.
func sumOf(name string) (s sum, ok bool) {
	switch name {
	case "sum8":
		return sum{1, false, total}, true
	case "not_sum8":
		return sum{1, false, func(b []byte) uint16 { return ^total(b) }}, true
	case "zero_sum8":
		return sum{1, false, func(b []byte) uint16 { return -total(b) }}, true
	case "sum16":
		return sum{2, false, total}, true
	case "crc8":
		return sum{1, false, func(b []byte) uint16 { return uint16(crc8(b)) }}, true
	case "crc16_modbus":
		return sum{2, true, CRC16Modbus}, true
	}
	return sum{}, false
}

// fits reports whether what was sent is the checksum of b.
func (s sum) fits(sent, b []byte) bool {
	want := s.of(b)
	switch {
	case s.size == 1:
		return sent[0] == byte(want)
	case s.lowFirst:
		return sent[0] == byte(want) && sent[1] == byte(want>>8)
	}
	return sent[0] == byte(want>>8) && sent[1] == byte(want)
}

func total(b []byte) (sum uint16) {
	for _, octet := range b {
		sum += uint16(octet)
	}
	return sum
}

// crc8 has the polynomial x^8+x^2+x+1, as ESP3 section 2.3 has it.
func crc8(b []byte) (crc byte) {
	for _, octet := range b {
		crc ^= octet
		for range 8 {
			high := crc >> 7
			crc = crc<<1 ^ 0x07*high
		}
	}
	return crc
}

// CRC16Modbus is the CRC of Modbus over Serial Line, section 6.2.2.
func CRC16Modbus(b []byte) uint16 { return crc16(b, 0xffff, 0xa001) }

// CRC16ARC is that of DSMR: P1 Companion Standard, section 6.2.
func CRC16ARC(b []byte) uint16 { return crc16(b, 0, 0xa001) }

// CRC16X25 is that of SML (BSI TR-03109-1 Annex IV, section 8): DIN EN 62056-46.
func CRC16X25(b []byte) uint16 { return ^crc16(b, 0xffff, 0x8408) }

// CRC16Kermit is what some meters send in its place.
func CRC16Kermit(b []byte) uint16 { return crc16(b, 0, 0x8408) }

// crc16 is a CRC of bits in reverse, four at a time.
func crc16(b []byte, start, polynomial uint16) uint16 {
	var table [16]uint16
	for i := range table {
		v := uint16(i)
		for range 4 {
			odd := v & 1
			v = v>>1 ^ polynomial*odd
		}
		table[i] = v
	}
	crc := start
	for _, octet := range b {
		crc = crc>>4 ^ table[(crc^uint16(octet))&0xf]
		crc = crc>>4 ^ table[(crc^uint16(octet>>4))&0xf]
	}
	return crc
}
