package profile

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// cpuTime is what the process has used: on a machine that others use too, it says
// more than the clock.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHear reads one message with all profiles loaded.
func BenchmarkHear(b *testing.B) {
	library, err := Builtin()
	if err != nil {
		b.Fatal(err)
	}
	for _, format := range []struct {
		name     string
		messages []Message // the last is measured
	}{
		{"JSON", []Message{{Topic: "tele/kitchen/SENSOR", Payload: []byte(`{"Time":"2026-11-23T08:00:00","AM2301":{"Temperature":21.4,"Humidity":45.2,"DewPoint":9.1},"TempUnit":"C"}`)}}},
		{"value", []Message{{Topic: "shellies/shelly1-AABBCC/relay/0/power", Payload: []byte("21.40")}}},
		{"template", []Message{
			entity(0, "temperature", "°C"), entity(0, "humidity", "%"), entity(0, "battery", "%"),
			{Topic: "home/0/state", Payload: []byte(`{"temperature":21.4,"humidity":45.2,"battery":97}`)},
		}},
		{"protobuf", []Message{{Topic: "spBv1.0/Sparkplug B Devices/DDATA/Raspberry Pi/Pibrella",
			Payload: unhex(b, "08eaf2f5a8a02b12150a08496e707574732f4118eaf2f5a8a02b200b700112150a08496e707574732f4318eaf2f5a8a02b200b70011800")}}},
	} {
		b.Run(format.name, func(b *testing.B) {
			session := library.NewSession(time.UTC)
			var m Message
			for _, m = range format.messages {
				m.ContentFormat, m.Received = -1, received
				if out, err := session.Hear(m); err != nil || !out.told() {
					b.Fatalf("%s: %+v, %v", m.Topic, out, err)
				}
			}
			b.ReportAllocs()
			began := cpuTime()
			for b.Loop() {
				if _, err := session.Hear(m); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime()-began)/float64(b.N), "cpu-ns/op")
		})
	}
	b.Run("SenML", func(b *testing.B) {
		p := library.Get("senml")
		m := Message{ContentFormat: 112, Received: received,
			Payload: unhex(b, "82a4216f75726e3a6465763a6d61633a30322f006b74656d7065726174757265016343656c02fb4035666666666666a3006868756d6964697479016325524802182d")}
		b.ReportAllocs()
		began := cpuTime()
		for b.Loop() {
			if out, err := p.Decode(Place{}, m); err != nil || len(out.Readings) != 1 {
				b.Fatalf("%+v, %v", out, err)
			}
		}
		b.ReportMetric(float64(cpuTime()-began)/float64(b.N), "cpu-ns/op")
	})
}

func unhex(b testing.TB, text string) []byte {
	b.Helper()
	payload, err := hex.DecodeString(text)
	if err != nil {
		b.Fatal(err)
	}
	return payload
}

// entity announces a measurement of the n-th device, as bridges announce their
// sensors to Home Assistant.
func entity(n int, name, unit string) Message {
	config, err := json.Marshal(map[string]any{
		"name": name, "unique_id": fmt.Sprint(n, "_", name), "object_id": fmt.Sprint("sensor_", n, "_", name),
		"state_topic": fmt.Sprintf("home/%d/state", n), "value_template": fmt.Sprintf("{{ value_json.%s }}", name),
		"unit_of_measurement": unit, "device_class": name, "state_class": "measurement",
		"availability": []any{map[string]string{"topic": "home/bridge/state", "value_template": "{{ value_json.state }}"}},
		"device":       map[string]any{"identifiers": []string{fmt.Sprint("home_", n)}, "name": fmt.Sprint("Sensor ", n), "manufacturer": "Acme", "model": "Temperature and humidity", "sw_version": "1.2"},
		"origin":       map[string]string{"name": "Home", "sw": "2.0"},
	})
	if err != nil {
		panic(err)
	}
	return Message{Topic: fmt.Sprintf("homeassistant/sensor/%d/%s/config", n, name), Payload: config, ContentFormat: -1, Received: received, Retained: true}
}

// BenchmarkAnnounced makes 10,000 devices of three measurements each known, as
// when a gateway subscribes at a broker that keeps their announcements. They
// hang on one bridge, whose state is theirs.
func BenchmarkAnnounced(b *testing.B) {
	library, err := Builtin()
	if err != nil {
		b.Fatal(err)
	}
	const many = 10000
	var all []Message
	for n := range many {
		all = append(all, entity(n, "temperature", "°C"), entity(n, "humidity", "%"), entity(n, "battery", "%"))
	}
	began := cpuTime()
	for b.Loop() {
		before := heapInUse()
		session := library.NewSession(time.UTC)
		for _, m := range all {
			if _, err := session.Hear(m); err != nil {
				b.Fatal(err)
			}
		}
		if len(session.known) != many {
			b.Fatalf("%d devices are known", len(session.known))
		}
		b.ReportMetric(float64(heapInUse()-before)/many, "B/device")
		runtime.KeepAlive(session)
	}
	b.ReportMetric(float64((cpuTime()-began).Microseconds())/float64(b.N)/many, "cpu-µs/device")
}

// BenchmarkMatch finds the profile of every sample with all profiles loaded,
// against with its own alone.
func BenchmarkMatch(b *testing.B) {
	library, err := Builtin()
	if err != nil {
		b.Fatal(err)
	}
	type one struct {
		Message
		alone *Library
	}
	var all []one
	alone := make(map[string]*Library)
	for _, s := range allLines(b) {
		m, err := s.Message(received)
		if err != nil {
			b.Fatal(err)
		}
		p, _ := library.find(newHeard(m))
		if s.Transport != "mqtt" || p == nil {
			continue
		}
		if alone[p.ID()] == nil {
			alone[p.ID()] = library.Only(p.ID())
		}
		all = append(all, one{m, alone[p.ID()]})
	}
	var together, apart time.Duration
	rounds := 0
	for b.Loop() {
		start := time.Now()
		for _, o := range all {
			library.find(newHeard(o.Message))
		}
		middle := time.Now()
		for _, o := range all {
			o.alone.find(newHeard(o.Message))
		}
		together, apart = together+middle.Sub(start), apart+time.Since(middle)
		rounds++
	}
	messages := float64(rounds * len(all))
	b.ReportMetric(float64(together.Nanoseconds())/messages, "ns/message")
	b.ReportMetric(float64(apart.Nanoseconds())/messages, "ns/alone")
	b.ReportMetric(float64(together)/float64(apart), "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFrames reads one frame of each serial firmware, the first of its samples
// that has readings.
func BenchmarkFrames(b *testing.B) {
	library, err := Builtin()
	if err != nil {
		b.Fatal(err)
	}
	done := make(map[string]bool)
	for _, s := range allLines(b) {
		p := library.Get(s.Firmware)
		if p == nil || s.Transport != "serial" || done[s.Firmware] {
			continue
		}
		m, err := s.Message(received)
		if err != nil {
			b.Fatal(err)
		}
		if out, err := p.Decode(Place{Location: time.UTC}, m); err != nil || len(out.Readings) == 0 {
			continue
		}
		done[s.Firmware] = true
		b.Run(s.Firmware, func(b *testing.B) {
			b.SetBytes(int64(len(m.Payload)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Decode(Place{Location: time.UTC}, m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
