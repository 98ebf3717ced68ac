package serial

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/grid-x/modbus"

	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/devices/profile/framing"
)

// The library makes requests, checks answers and knows what exceptions mean. It
// sends by what we give it, because its own port would be a second owner of
// ours, and waits for answers byte by byte.

// modbus asks a unit and gives its answer, as a whole frame.
func (t *talk) modbus(ctx context.Context, d *Device, r profile.Request) ([]byte, error) {
	packager := modbus.NewRTUClientHandler("")
	packager.SlaveID = max(d.Unit, 1)
	m := &master{talk: t, ctx: ctx, within: r.Within}
	c := modbus.NewClient2(packager, m)
	q := r.Modbus
	var err error
	switch q.Function {
	case modbus.FuncCodeReadCoils:
		_, err = c.ReadCoils(q.Address, q.Count)
	case modbus.FuncCodeReadDiscreteInputs:
		_, err = c.ReadDiscreteInputs(q.Address, q.Count)
	case modbus.FuncCodeReadHoldingRegisters:
		_, err = c.ReadHoldingRegisters(q.Address, q.Count)
	case modbus.FuncCodeReadInputRegisters:
		_, err = c.ReadInputRegisters(q.Address, q.Count)
	case modbus.FuncCodeWriteSingleCoil:
		_, err = c.WriteSingleCoil(q.Address, onOff(q.Values[0]))
	case modbus.FuncCodeWriteSingleRegister:
		_, err = c.WriteSingleRegister(q.Address, q.Values[0])
	case modbus.FuncCodeWriteMultipleCoils:
		_, err = c.WriteMultipleCoils(q.Address, uint16(len(q.Values)), coils(q.Values))
	case modbus.FuncCodeWriteMultipleRegisters:
		var all []byte
		for _, v := range q.Values {
			all = binary.BigEndian.AppendUint16(all, v)
		}
		_, err = c.WriteMultipleRegisters(q.Address, uint16(len(q.Values)), all)
	default:
		err = fmt.Errorf("there is no function %d", q.Function)
	}
	var exception *modbus.Error
	if errors.As(err, &exception) {
		return nil, fmt.Errorf("%w: %s (%s)", errRefused, exceptionWords(exception.ExceptionCode), q.Topic(max(d.Unit, 1)))
	}
	return m.answer, err
}

// onOff is how a coil is written (section 6.5 of the application protocol).
func onOff(v uint16) uint16 {
	if v == 0 {
		return 0
	}
	return 0xff00
}

// coils packs truth values, the first in the lowest bit.
func coils(values []uint16) []byte {
	all := make([]byte, (len(values)+7)/8)
	for i, v := range values {
		if v != 0 {
			all[i/8] |= 1 << (i % 8)
		}
	}
	return all
}

// exceptionWords says what an exception means (section 7).
func exceptionWords(code byte) string {
	switch code {
	case modbus.ExceptionCodeIllegalFunction:
		return "the device does not have this function"
	case modbus.ExceptionCodeIllegalDataAddress:
		return "the device does not have these registers"
	case modbus.ExceptionCodeIllegalDataValue:
		return "the device does not take this value, or not so many"
	case modbus.ExceptionCodeServerDeviceFailure:
		return "the device failed at it"
	case modbus.ExceptionCodeAcknowledge:
		return "the device has begun, and needs long for it"
	case modbus.ExceptionCodeServerDeviceBusy:
		return "the device is busy"
	case modbus.ExceptionCodeMemoryParityError:
		return "the memory of the device is broken"
	case modbus.ExceptionCodeGatewayPathUnavailable, modbus.ExceptionCodeGatewayTargetDeviceFailedToRespond:
		return "a gateway does not reach the device"
	}
	return fmt.Sprintf("the device says exception %d", code)
}

// A master sends one request and finds the answer in what comes.
type master struct {
	talk   *talk
	ctx    context.Context
	within time.Duration
	answer []byte
}

// maxNoise is how many bytes may come before an answer.
const maxNoise = 1 << 10

// Send implements [modbus.Transporter]. What is no answer to this very request is
// passed over: noise, and answers of others that come late.
func (m *master) Send(request []byte) ([]byte, error) {
	t := m.talk
	t.drain(m.ctx)
	if err := t.write(m.ctx, request); err != nil {
		return nil, err
	}
	size := answerSize(request)
	end := time.NewTimer(max(0, time.Until(t.last)) + time.Duration(size)*character(t.line) + m.within)
	defer end.Stop()
	var got []byte
	for {
		chunk, err := t.receive(m.ctx, end.C)
		switch {
		case errors.Is(err, errSilence) && len(got) > 0:
			return nil, fmt.Errorf("no answer within %s, only %d bytes, %.16x; is the line right?", m.within, len(got), got)
		case errors.Is(err, errSilence):
			return nil, fmt.Errorf("no answer within %s", m.within)
		case err != nil:
			return nil, err
		}
		got = append(got, chunk...)
		if m.answer = find(got, request, size); m.answer != nil {
			return m.answer, nil
		}
		if len(got) > maxNoise {
			return nil, fmt.Errorf("%d bytes and no answer in them; does another master ask on this line?", len(got))
		}
	}
}

// answerSize is that of the whole frame which answers a request.
func answerSize(request []byte) int {
	count := int(binary.BigEndian.Uint16(request[4:]))
	switch request[1] {
	case modbus.FuncCodeReadCoils, modbus.FuncCodeReadDiscreteInputs:
		return 5 + (count+7)/8
	case modbus.FuncCodeReadHoldingRegisters, modbus.FuncCodeReadInputRegisters:
		return 5 + 2*count
	}
	return 8
}

// find finds the answer to a request, or an exception; nil where there is none
// yet.
func find(b, request []byte, size int) []byte {
	const exceptionSize = 5
	for ; len(b) >= exceptionSize; b = b[1:] {
		n := size
		switch {
		case b[0] != request[0]:
			continue
		case b[1] == request[1]|0x80:
			n = exceptionSize
		case b[1] != request[1]:
			continue
		}
		if len(b) >= n && binary.LittleEndian.Uint16(b[n-2:]) == framing.CRC16Modbus(b[:n-2]) {
			return b[:n]
		}
	}
	return nil
}
