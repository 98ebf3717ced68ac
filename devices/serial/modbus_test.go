package serial

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/profile/framing"
)

// summed puts the checksum behind a frame.
func summed(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return binary.LittleEndian.AppendUint16(b, framing.CRC16Modbus(b))
}

func TestFindAnswer(t *testing.T) {
	request := summed("010400000002")
	answer, exception := summed("01040443663334"), summed("018402")
	for _, c := range []struct {
		name string
		b    []byte
		want []byte
	}{
		{"whole", answer, answer},
		{"cut", answer[:8], nil},
		{"an exception", exception, exception},
		{"noise before", append([]byte{1, 4, 4, 0xff}, answer...), answer},
		{"of another unit before", append(summed("02040443663334"), answer...), answer},
		{"of another function", summed("01030443663334"), nil},
		{"of another length", summed("0104024366"), nil},
		{"a wrong checksum", append(bytes.Clone(answer[:8]), answer[8]^1), nil},
		{"the request itself before", append(bytes.Clone(request), answer...), answer},
	} {
		if got := find(c.b, request, answerSize(request)); !bytes.Equal(got, c.want) {
			t.Errorf("%s: got %x, want %x", c.name, got, c.want)
		}
	}
}

// Whatever comes, an answer is one to the request, with its checksum.
func FuzzFindAnswer(f *testing.F) {
	f.Add(summed("010400000002"), summed("01040443663334"))
	f.Add(summed("010100000008"), summed("010101ff"))
	f.Add(summed("0110000000020400010002"), summed("011000000002"))
	f.Add(summed("010300000001"), summed("018302"))
	f.Fuzz(func(t *testing.T, request, b []byte) {
		if len(request) < 8 {
			t.Skip()
		}
		got := find(b, request, answerSize(request))
		if got == nil {
			return
		}
		if !bytes.Contains(b, got) || got[0] != request[0] || got[1]&^0x80 != request[1]&^0x80 || binary.LittleEndian.Uint16(got[len(got)-2:]) != framing.CRC16Modbus(got[:len(got)-2]) {
			t.Errorf("%x answers %x", got, request)
		}
	})
}
