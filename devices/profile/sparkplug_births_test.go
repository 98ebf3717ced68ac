package profile

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/profile/sparkplug"
)

// A spb is a Sparkplug payload being written, by the field numbers of
// sparkplug_b.proto of Eclipse Tahu.
type spb []byte

func (p spb) metric(name string, alias, datatype uint64, field protowire.Number, v uint64, unit string) spb {
	var m []byte
	if name != "" {
		m = protowire.AppendString(protowire.AppendTag(m, 1, protowire.BytesType), name)
	}
	for _, number := range [][2]uint64{{2, alias}, {4, datatype}, {uint64(field), v}} {
		if number[1] != 0 || number[0] == uint64(field) {
			m = protowire.AppendVarint(protowire.AppendTag(m, protowire.Number(number[0]), protowire.VarintType), number[1])
		}
	}
	if unit != "" { // properties: keys, values with a string
		value := protowire.AppendString(protowire.AppendTag(nil, 8, protowire.BytesType), unit)
		set := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "engUnit")
		set = protowire.AppendBytes(protowire.AppendTag(set, 2, protowire.BytesType), value)
		m = protowire.AppendBytes(protowire.AppendTag(m, 9, protowire.BytesType), set)
	}
	return protowire.AppendBytes(protowire.AppendTag(p, 2, protowire.BytesType), m)
}

func at(ms uint64) spb {
	return protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), ms)
}

// TestSparkplugBirths keeps what births tell: aliases, types, units; and who
// dies with whom.
func TestSparkplugBirths(t *testing.T) {
	h := newHouse(t)
	const minus5 = 0xfb // an Int8
	data := at(1795435140000).metric("", 7, 0, 10, minus5, "")
	out := h.hear("spBv1.0/G/DDATA/E/D", string(data))
	if !out.Unannounced || out.Identity != "G/E/D" || out.Availability != devices.Online {
		t.Errorf("%+v", out)
	}
	polls, _ := h.Polls("sparkplug-b", "G/E/D", "unannounced")
	if len(polls) != 1 || polls[0].Topic != "spBv1.0/G/NCMD/E" {
		t.Fatalf("%+v", polls)
	}
	asked, err := sparkplug.Parse(polls[0].Payload)
	if err != nil || len(asked.Metrics) != 1 || asked.Metrics[0].Name != "Node Control/Rebirth" || asked.Metrics[0].Type != sparkplug.Boolean || !asked.Metrics[0].Value.Bool() {
		t.Errorf("%+v %v", asked, err)
	}
	birth := func(number uint64) string {
		return string(at(1795435140000).metric("bdSeq", 0, 4, 11, number, "").metric("Node Control/Rebirth", 0, 11, 14, 0, ""))
	}
	h.hear("spBv1.0/G/NBIRTH/E", birth(3))
	out = h.hear("spBv1.0/G/DBIRTH/E/D", string(at(1795435140000).metric("Tank/Level", 7, 1, 10, minus5, "%").metric("Valve", 8, 11, 14, 1, "")))
	if got := line(out); got != "G/E/D: 2026-11-23T11:59:00Z tank_level=-5 %, valve=true" || len(out.Earlier) != 1 {
		t.Errorf("%s %+v", got, out.Earlier)
	}
	if out.Announced {
		t.Error("the values of a birth are measured")
	}
	if got := line(h.hear("spBv1.0/G/DDATA/E/D", string(data))); got != "G/E/D: 2026-11-23T11:59:00Z tank_level=-5 %" {
		t.Error(got)
	}
	for _, c := range []struct{ device, name, argument, topic string }{
		{"G/E/D", "valve", "on", "spBv1.0/G/DCMD/E/D"},
		{"G/E/D", "tank_level", "-5", "spBv1.0/G/DCMD/E/D"},
		{"G/E", "rebirth", "", "spBv1.0/G/NCMD/E"},
	} {
		sent, err := h.Encode("sparkplug-b", c.device, c.name, c.argument)
		if err != nil || sent.Topic != c.topic {
			t.Errorf("%s: %+v %v", c.name, sent, err)
			continue
		}
		p, err := sparkplug.Parse(sent.Payload)
		if err != nil || len(p.Metrics) != 1 || time.UnixMilli(int64(p.Timestamp)).Year() < 2026 {
			t.Errorf("%s: %+v %v", c.name, p, err)
		} else if c.name == "tank_level" && p.Metrics[0].Value.String() != "-5" || c.name == "valve" && !p.Metrics[0].Value.Bool() {
			t.Errorf("%s: %+v", c.name, p.Metrics[0])
		}
	}
	if _, err := h.Encode("sparkplug-b", "G/E/D", "tank_level", "-500"); err == nil {
		t.Error("-500 is an Int8")
	}
	death := func(number uint64) Output {
		return h.hear("spBv1.0/G/NDEATH/E", string(at(1).metric("bdSeq", 0, 4, 11, number, "")))
	}
	if out := death(2); out.Availability != devices.Online || len(out.Children) != 0 {
		t.Errorf("the death of an earlier connection: %+v", out)
	}
	if out := death(3); out.Availability != devices.Offline || len(out.Children) != 1 || out.Children[0].Identity != "G/E/D" || out.Children[0].Availability != devices.Offline {
		t.Errorf("%+v", out)
	}
	h.hear("spBv1.0/G/NBIRTH/E", birth(4))
	if out := death(4); out.Availability != devices.Offline {
		t.Errorf("%+v", out)
	}
	if out := h.hear("spBv1.0/G/DDEATH/E/D", string(at(1))); out.Availability != devices.Offline {
		t.Errorf("%+v", out)
	}
}

// TestSparkplugWrites writes each type and reads it back.
func TestSparkplugWrites(t *testing.T) {
	for kind, values := range map[sparkplug.Type][]string{
		sparkplug.Int8: {"-128", "127"}, sparkplug.Int16: {"-32768"}, sparkplug.Int32: {"-2147483648"}, sparkplug.Int64: {"-9223372036854775808"},
		sparkplug.UInt8: {"255"}, sparkplug.UInt32: {"4294967295"}, sparkplug.UInt64: {"18446744073709551615"},
		sparkplug.Float: {"1.5"}, sparkplug.Double: {"-0.1"}, sparkplug.Boolean: {"true", "false"}, sparkplug.String: {"on", ""},
	} {
		for _, v := range values {
			written, err := sparkplug.Write("m", kind, v, time.UnixMilli(5))
			if err != nil {
				t.Error(err)
				continue
			}
			p, err := sparkplug.Parse([]byte(written))
			if err != nil || len(p.Metrics) != 1 || p.Metrics[0].Value.String() != v || p.Timestamp != 5 {
				t.Errorf("%d %s: %s %+v %v", kind, v, hex.EncodeToString([]byte(written)), p, err)
			}
		}
	}
	for kind, v := range map[sparkplug.Type]string{sparkplug.Int8: "128", sparkplug.UInt8: "-1", sparkplug.Double: "x", sparkplug.DateTime: "1"} {
		if _, err := sparkplug.Write("m", kind, v, time.UnixMilli(5)); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%d %s: %v", kind, v, err)
		}
	}
	if !slices.Equal([]int{sparkplug.Int16.Bits(), sparkplug.UInt16.Bits()}, []int{16, 0}) {
		t.Error("bits")
	}
}
