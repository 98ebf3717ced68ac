package profile

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/porchlight-iot/porchlight/devices"
)

// A Line is how characters are sent on a serial line. Zero members are not known.
type Line struct {
	Baud     int    // bits a second
	DataBits int    // 5 to 8
	Parity   string // none, even, odd, mark, space
	StopBits int    // 1 or 2
}

// Or fills in what l does not say.
func (l Line) Or(other Line) Line {
	return Line{cmp.Or(l.Baud, other.Baud), cmp.Or(l.DataBits, other.DataBits), cmp.Or(l.Parity, other.Parity), cmp.Or(l.StopBits, other.StopBits)}
}

// String writes it as people do: 9600 8N1.
func (l Line) String() string {
	return fmt.Sprintf("%d %d%s%d", l.Baud, l.DataBits, strings.ToUpper(l.Parity[:min(1, len(l.Parity))]), l.StopBits)
}

// Lines says how the firmware sends characters: first as usual, then as devices
// may be set to. None where that is not known.
func (p *Profile) Lines() (all []Line) {
	for _, r := range p.file.Port {
		all = append(all, Line{Baud: r.Baud, DataBits: cmp.Or(r.DataBits, 8), Parity: cmp.Or(r.Parity, "none"), StopBits: cmp.Or(r.StopBits, 1)})
	}
	return all
}

// A Request is what is sent to a device on a serial line: a question, or a
// command. One of Payload, Modbus and SignOn is set.
type Request struct {
	Payload []byte
	Modbus  *ModbusRequest
	// SignOn opens a conversation by IEC 62056-21 mode C: the meter says who it
	// is at 300 baud and then, faster, what it measured.
	SignOn bool

	Every  time.Duration // of a question; 0 is once, when the port was opened
	Within time.Duration // for the answer; 0 is as the driver does
}

// A ModbusRequest is one of Modbus RTU (MODBUS Application Protocol V1.1b3,
// section 6).
type ModbusRequest struct {
	Function byte     // 1 to 6, 15, 16
	Address  uint16   // as it is sent: counted from 0
	Count    uint16   // of coils or registers
	Values   []uint16 // to be written; of a coil 0 and 1
}

// Topic is what a message has as its topic that answers a request to a unit.
func (r ModbusRequest) Topic(unit byte) string {
	return fmt.Sprintf("unit=%d fc=%d addr=0x%04x count=%d", unit, r.Function, r.Address, r.Count)
}

// Questions gives what to ask a device on a serial line.
func (p *Profile) Questions() (all []Request) {
	for _, rule := range p.file.Poll {
		r := Request{SignOn: rule.SignOn, Every: rule.Every, Within: rule.Within}
		if m := rule.Modbus; m != nil {
			r.Modbus = &ModbusRequest{Function: byte(m.Function), Address: uint16(m.Address), Count: uint16(m.Count)}
		}
		if rule.Hex != "" {
			r.Payload, _ = hex.DecodeString(rule.Hex) // it was checked
		} else if text, ok := rule.Payload.fill(func(ref) string { return "" }); ok {
			r.Payload = []byte(text)
		}
		if r.Payload != nil || r.Modbus != nil || r.SignOn {
			all = append(all, r)
		}
	}
	return all
}

// A Correspondent is a device on a serial line as its messages show it, so that
// it can be told something. The zero Correspondent was not heard.
type Correspondent struct {
	look    func(ref) string
	targets []target
}

// Hear remembers of a message what commands need.
func (c *Correspondent) Hear(out Output) {
	if out.look != nil {
		c.look = out.look
	}
	for _, t := range out.targets {
		if len(c.targets) < maxRules && !slices.Contains(c.targets, t) {
			c.targets = append(c.targets, t)
		}
	}
}

// lookOf looks into the last message.
func (c *Correspondent) lookOf(r ref) string {
	if c.look == nil {
		return ""
	}
	return c.look(r)
}

// Commands gives what a device on a serial line can be told.
func (p *Profile) Commands(c *Correspondent) (all []Command) {
	p.commands(&seen{targets: c.targets}, c.lookOf, adder(&all))
	return all
}

// Tell makes what tells a device on a serial line something, and says what
// confirms it. The error says what is wrong, in words for the one who gave the
// command.
//
// What stands in a place of a template is never more than a value: it has no
// control character, nothing that a modem takes for an escape, and no character
// that parts the template.
func (p *Profile) Tell(to *Correspondent, name, argument string) (Request, devices.Confirmation, error) {
	all := p.Commands(to)
	i := slices.IndexFunc(all, func(c Command) bool { return c.Name == name })
	if i < 0 {
		return Request{}, devices.Confirmation{}, fmt.Errorf("the device has no command %q", name)
	}
	c := all[i]
	sent, value, err := c.take(argument)
	if err != nil {
		return Request{}, devices.Confirmation{}, fmt.Errorf("%s: %w", name, err)
	}
	if c.rule.Confirm != nil && c.rule.Confirm.Any {
		value = devices.Value{}
	}
	expected := devices.Confirmation{Field: c.Confirm, Value: value, Within: c.Within}
	switch {
	case c.rule.Modbus != nil:
		m, err := c.rule.Modbus.request(sent)
		if err != nil {
			return Request{}, expected, fmt.Errorf("%s: %w", name, err)
		}
		return Request{Modbus: m}, expected, nil
	}
	what := c.rule.Payload
	if !c.rule.Hex.isZero() {
		what = c.rule.Hex
	}
	text, err := what.fillStrict(func(r ref) string {
		switch r.name {
		case "value":
			return sent
		case "key":
			return c.target.key
		case "path":
			return c.target.path
		}
		return to.lookOf(r)
	})
	if err != nil {
		return Request{}, expected, fmt.Errorf("%s: %w", name, err)
	}
	if !c.rule.Hex.isZero() {
		b, err := hex.DecodeString(text)
		if err != nil {
			return Request{}, expected, fmt.Errorf("%s: what is sent is not hex", name)
		}
		return Request{Payload: b}, expected, nil
	}
	return Request{Payload: []byte(text)}, expected, nil
}

// fillStrict fills a template with values that can't be taken for more.
func (t template) fillStrict(look func(ref) string) (string, error) {
	parting := ""
	for _, p := range t.parts {
		for _, r := range p.text {
			if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
				parting += string(r)
			}
		}
	}
	var bad error
	text, ok := t.fill(func(r ref) string {
		v := look(r)
		switch {
		case strings.ContainsFunc(v, unicode.IsControl):
			bad = errors.New("a value has a control character in it")
		case strings.Contains(v, "+++"):
			bad = errors.New("a value has +++ in it, which a modem takes for an escape")
		case strings.ContainsAny(v, parting):
			bad = fmt.Errorf("a value has one of the characters %q in it, which part what is sent", parting)
		}
		return v
	})
	switch {
	case bad != nil:
		return "", bad
	case !ok:
		return "", errors.New("the device did not yet tell what it takes to address it: it has to be heard first")
	case escapes(text) && !escapes(t.fixed()):
		return "", errors.New("a modem would take it for a command to itself")
	}
	return text, nil
}

// escapes reports whether a modem takes a line for a command or an escape (ITU-T
// V.250 section 5.2.1).
func escapes(text string) bool {
	start := strings.ToUpper(strings.TrimLeftFunc(text, unicode.IsSpace))
	return strings.HasPrefix(start, "AT") || strings.HasPrefix(start, "A/") || strings.Contains(text, "+++")
}

// fixed is what stands before the first value, and all the text.
func (t template) fixed() string {
	var b strings.Builder
	for _, p := range t.parts {
		b.WriteString(p.text)
	}
	if len(t.parts) > 0 && t.parts[0].refs != nil {
		return " x" + b.String() // a value begins it
	}
	return b.String()
}

// request makes what writes a value.
func (m modbusWriteRule) request(sent string) (*ModbusRequest, error) {
	if sent == "" {
		sent = m.Value
	}
	v, err := devices.ParseNumber(sent)
	if err != nil {
		return nil, fmt.Errorf("%.40q is not a number", sent)
	}
	words, err := m.words(v)
	if err != nil {
		return nil, err
	}
	return &ModbusRequest{Function: byte(m.Function), Address: uint16(m.Address), Count: uint16(len(words)), Values: words}, nil
}

// words writes a number as registers have it.
func (m modbusWriteRule) words(v devices.Value) ([]uint16, error) {
	if m.Type == "f32" {
		return m.order(math.Float32bits(float32(v.Float()))), nil
	}
	n, whole := v.Int()
	least, most := int64(0), int64(math.MaxUint16)
	switch m.Type {
	case "i16":
		least, most = math.MinInt16, math.MaxInt16
	case "u32":
		most = math.MaxUint32
	case "i32":
		least, most = math.MinInt32, math.MaxInt32
	}
	if m.Function == 5 || m.Function == 15 {
		most = 1
	}
	if !whole || n < least || n > most {
		return nil, fmt.Errorf("%s is not a whole number from %d to %d", v, least, most)
	}
	if m.Type == "u32" || m.Type == "i32" {
		return m.order(uint32(n)), nil
	}
	return []uint16{uint16(n)}, nil
}

func (m modbusWriteRule) order(n uint32) []uint16 {
	if m.Words == "low_first" {
		return []uint16{uint16(n), uint16(n >> 16)}
	}
	return []uint16{uint16(n >> 16), uint16(n)}
}

// maxRequest is the longest request, in bytes.
const maxRequest = 256

// checkRequests finds what is wrong with what is sent to a serial line.
func (s *spec) checkRequests(add addFault) {
	onSerial := slices.Contains(s.Transports, "serial")
	one := func(key string, is ...bool) {
		n := 0
		for _, b := range is {
			if b {
				n++
			}
		}
		if n > 1 || onSerial && n == 0 && !slices.Contains(s.Transports, "mqtt") {
			add(key, fmt.Sprintf("it has %d ways to say what is sent", n), "one of payload, hex, modbus, sign_on", "keep one")
		}
	}
	bytes := func(key, text string) {
		if b, err := hex.DecodeString(text); err != nil || len(b) > maxRequest {
			add(key, "is not hex", fmt.Sprintf("pairs of 0-9 and a-f, at most %d", maxRequest), "correct it")
		}
	}
	for i, p := range s.Poll {
		key := fmt.Sprintf("poll[%d]", i)
		one(key, !p.Payload.isZero(), p.Hex != "", p.Modbus != nil, p.SignOn)
		bytes(key+".hex", p.Hex)
		if !onSerial && (p.Hex != "" || p.Modbus != nil || p.SignOn) {
			add(key, "hex, modbus and sign_on are for serial lines", "", "add serial to transport, or remove it")
		}
		if m := p.Modbus; m != nil && m.Count > 125 && m.Function >= 3 {
			add(key+".modbus.count", fmt.Sprintf("%d registers do not go into an answer", m.Count), "at most 125", "ask in two parts")
		}
	}
	for i, c := range s.Commands {
		key := fmt.Sprintf("commands[%d]", i)
		if len(c.Hex.names()) == 0 && !strings.Contains(c.Hex.source, "{") {
			bytes(key+".hex", c.Hex.source)
		}
		s.checkTemplate(key+".hex", c.Hex, add, "key", "path", "value")
		if onSerial {
			one(key, !c.Payload.isZero(), !c.Hex.isZero(), c.Modbus != nil)
		}
		if m := c.Modbus; m != nil {
			if !slices.Contains([]int{5, 6, 15, 16}, m.Function) {
				add(key+".modbus.function", fmt.Sprintf("%d writes nothing", m.Function), "5, 6, 15, 16", "choose one of them")
			}
			if long := m.Type == "u32" || m.Type == "i32" || m.Type == "f32"; long && m.Function != 16 {
				add(key+".modbus.type", "has two registers, which function 16 writes", "u16, i16, or function 16", "correct one of the two")
			}
			if c.Argument.Type == "" && m.Value == "" {
				add(key+".modbus", "nothing is to be written", "value, or an argument", "add one")
			}
		}
		if !c.Hex.isZero() && !slices.Contains(c.Hex.names(), "value") && c.Argument.Type != "" && c.Argument.Type != "none" {
			add(key+".hex", "has no place for an argument", "payload, modbus, or no argument", "correct it")
		}
	}
}
