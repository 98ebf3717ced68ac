package profile

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/porchlight-iot/porchlight/devices"
)

// An obisLine is one data set of IEC 62056-21 section 4.3: a code, and values in
// parentheses, each with a unit behind a star perhaps.
type obisLine struct {
	code   string
	values []string
}

// readOBIS reads the lines of a telegram: the name of the device, which stands
// behind the first slash, and data sets. A line of values alone belongs to the one
// before it, as in DSMR 2.2. What is neither is told in odd.
func readOBIS(payload []byte) (name string, lines []obisLine, odd int) {
	for text := range strings.SplitSeq(string(payload), "\n") {
		if strings.HasPrefix(text, "\x06") {
			continue // what the meter was told, as an optical head hears it
		}
		text = strings.Trim(text, "\r\x02\x03 ")
		code, rest, ok := strings.Cut(text, "(")
		switch {
		case len(text) > maxMemberName && strings.HasPrefix(text, "/"):
			odd++
		case strings.HasPrefix(text, "/"):
			if text != "/?!" && !strings.HasPrefix(text, "/?") { // what was asked, as an optical head hears it
				name = text[1:]
			}
		case strings.HasPrefix(text, "!"):
			return name, lines, odd
		case text == "":
		case !ok || !strings.HasSuffix(rest, ")") || len(code) > maxMemberName || len(lines) >= maxMembers || !utf8.ValidString(text):
			odd++
		case code == "" && len(lines) > 0:
			last := &lines[len(lines)-1]
			last.values = append(last.values, obisValues(rest)...)
		default:
			lines = append(lines, obisLine{code, obisValues(rest)})
		}
	}
	return name, lines, odd
}

// obisValues splits what stands between the first parenthesis and the last.
func obisValues(rest string) []string {
	return strings.Split(strings.TrimSuffix(rest, ")"), ")(")
}

// obisNode makes a value of one: 001846.0*kWh.
func obisNode(text string) *node {
	text, unit, starred := strings.Cut(strings.TrimSpace(text), "*")
	if text = strings.TrimSpace(text); text == "" {
		return &node{kind: nullNode}
	}
	v, err := devices.ParseNumber(plainNumber(text))
	if err != nil || !starred && len(text) > 15 { // a number of a meter, not one of a counter
		return &node{value: devices.Text(text)}
	}
	return &node{value: v, unit: unit, text: text}
}

// plainNumber takes away the zeros before a number, which would be no number in
// other places.
func plainNumber(s string) string {
	sign := ""
	if rest, ok := strings.CutPrefix(s, "-"); ok {
		sign, s = "-", rest
	}
	digits := strings.TrimLeft(s, "0")
	if digits == "" || digits[0] < '0' || digits[0] > '9' {
		digits = s[max(0, len(s)-len(digits)-1):]
	}
	return sign + digits
}

// hexText reads a text whose characters are written in hexadecimal; s as it is
// where it is none.
func hexText(s string) string {
	b, err := hex.DecodeString(s)
	if err != nil || !utf8.Valid(b) {
		return s
	}
	for _, c := range b {
		if c < ' ' || c == 0x7f {
			return s
		}
	}
	return string(b)
}

// readDSMR makes a document of a telegram of a P1 port (DSMR P1 Companion Standard
// 5.0.2, e-MUCS P1 1.7.1): a member for each code. What has a time of its own is an
// object of time and value. Names of devices and messages, which are hexadecimal,
// are texts.
func readDSMR(payload []byte, _ map[string]string) (doc *node, _ string, _ devices.Availability, err error) {
	name, lines, odd := readOBIS(payload)
	switch {
	case name == "" || len(lines) == 0:
		return nil, "", 0, errors.New("not a telegram: no data in it")
	case odd > 0:
		return nil, "", 0, fmt.Errorf("not a telegram: %d lines are no data", odd)
	case !isP1(lines):
		return nil, "", 0, errors.New("not a telegram of a P1 port: it tells neither time nor version nor whose it is")
	}
	_, sum, _ := strings.Cut(string(payload), "\n!")
	if strings.TrimSpace(sum) == "" && slices.ContainsFunc(lines, obisLine.hasVersion) {
		return nil, "", 0, errors.New("the checksum is missing, which telegrams of this version have")
	}
	doc = object("device", &node{value: devices.Text(name)})
	for _, line := range lines {
		doc.members = append(doc.members, member{line.code, line.dsmr()})
	}
	return doc, "", 0, nil
}

// isP1 reports whether data sets are those of a P1 port and not of another meter
// that writes OBIS codes: one of those that all of them have is there.
func isP1(lines []obisLine) bool {
	return slices.ContainsFunc(lines, func(line obisLine) bool {
		return slices.Contains([]string{"0-0:1.0.0", "1-3:0.2.8", "0-0:96.1.1", "0-0:96.13.0", "0-0:42.0.0"}, line.code)
	})
}

// hasVersion reports whether the line says which version a telegram is of: those
// before DSMR 4 have neither it nor a checksum.
func (line obisLine) hasVersion() bool {
	return line.code == "1-3:0.2.8" || line.code == "0-0:96.1.4"
}

func (line obisLine) dsmr() *node {
	_, id, _ := strings.Cut(line.code, ":")
	group, _, _ := strings.Cut(id, ".")
	first, last := line.values[0], line.values[len(line.values)-1]
	switch {
	case strings.HasPrefix(id, "96.1.") || strings.HasPrefix(id, "96.13.") || id == "42.0.0":
		if first == "" {
			return &node{kind: nullNode}
		}
		return &node{value: devices.Text(hexText(first))}
	case group == "98" || group == "99": // profiles of the past
		return &node{kind: nullNode}
	case id == "24.3.0" && len(line.values) > 2: // time, status, places, places, code, unit, value
		unit := line.values[len(line.values)-2]
		return timed(first, obisNode(last+"*"+unit))
	case len(line.values) == 2:
		return timed(first, obisNode(last))
	case len(line.values) > 2:
		return &node{kind: nullNode}
	}
	return obisNode(first)
}

// timed makes an object of a value and its time; nothing where there is no unit,
// which is how a channel without a device looks.
func timed(at string, v *node) *node {
	if v.kind != valueNode || v.unit == "" {
		return &node{kind: nullNode}
	}
	return &node{kind: objectNode, members: []member{{"time", &node{value: devices.Text(at)}}, {"value", v}}}
}

// readIEC62056 makes a document of a readout of IEC 62056-21, or of what a meter
// sends by itself: a member for each code, as the meter writes it. Its number is
// that under 0.0.0 or what stands for it.
func readIEC62056(payload []byte, _ map[string]string) (doc *node, _ string, _ devices.Availability, err error) {
	_, lines, odd := readOBIS(payload)
	switch {
	case len(lines) == 0:
		return nil, "", 0, errors.New("not a readout: no data in it")
	case odd > 0: // without a checksum that is all that shows a cut
		return nil, "", 0, fmt.Errorf("not a readout: %d lines are no data", odd)
	case isP1(lines):
		return nil, "", 0, errors.New("not a readout: a telegram of a P1 port")
	}
	doc = &node{kind: objectNode}
	number, best := "", len(meterNumbers)
	for _, line := range lines {
		doc.members = append(doc.members, member{line.code, obisNode(line.values[len(line.values)-1])})
		code, _, _ := strings.Cut(line.code, "*")
		_, after, ok := strings.Cut(code, ":")
		if !ok {
			after = code
		}
		for i, known := range meterNumbers[:best] {
			if text := strings.TrimSpace(line.values[0]); after == known && text != "" {
				best, number = i, text
			}
		}
	}
	if number != "" {
		doc.members = append(doc.members, member{"device", &node{value: devices.Text(number)}})
	}
	return doc, "", 0, nil
}

// meterNumbers are codes for the number of a meter, the best first.
var meterNumbers = []string{"0.0.0", "96.1.0", "96.1.255", "C.1.0", "0.0.9", "C.1", "0.0"}
