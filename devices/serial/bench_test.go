package serial_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// processor gives the processor time that this process has used.
func processor(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSixteenPorts has 16 devices speak without a pause at 115200 baud, which
// is 11520 bytes a second each, for five seconds. The share is of one processor,
// with that of the simulated devices.
func BenchmarkSixteenPorts(b *testing.B) {
	const ports, seconds, step = 16, 5, 20 * time.Millisecond
	firmware := builtin(b, "arduino-json")
	for range b.N {
		var sinks []*devicetest.Sink
		ended := make(chan int, ports)
		before, began := processor(b), time.Now()
		for range ports {
			wire, sink := plug(b), &devicetest.Sink{Auto: true}
			sinks = append(sinks, sink)
			start(b, serial.New(serial.Config{Port: wire.Path(), Devices: []serial.Device{device("kitchen", firmware)}}, slog.New(slog.DiscardHandler)), sink)
			go func() {
				n, sent := 0, 0
				clock := time.NewTicker(step)
				defer clock.Stop()
				for now := range clock.C {
					for sent < int(now.Sub(began).Seconds()*11520) {
						line := fmt.Sprintf(`{"n":%d,"temperature":21.4,"humidity":45,"pressure":1013.2,"voltage":3.27,"rssi":-61}`+"\n", n)
						if _, err := wire.Write([]byte(line)); err != nil {
							break
						}
						n++
						sent += len(line)
					}
					if now.Sub(began) > seconds*time.Second {
						ended <- n
						return
					}
				}
			}()
		}
		sent, heard := 0, 0
		for range ports {
			sent += <-ended
		}
		used, passed := processor(b)-before, time.Since(began)
		for deadline := time.Now().Add(10 * time.Second); heard < sent && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			heard = 0
			for _, sink := range sinks {
				heard += len(sink.WaitMessages(b, 0))
			}
		}
		b.ReportMetric(100*used.Seconds()/passed.Seconds(), "%processor")
		b.ReportMetric(float64(sent-heard), "lost")
		b.ReportMetric(float64(sent)/passed.Seconds(), "lines/s")
	}
}

// BenchmarkReplug measures from a device being there again to its first reading.
func BenchmarkReplug(b *testing.B) {
	s, sink := newSocket(b), &devicetest.Sink{}
	repeat(b, newPort(b, s.path).On(s.root), sink)
	b.ResetTimer()
	for i := range b.N {
		send(b, s.plug(b, "0403", "6001", "A1"), "a=1\n")
		sink.WaitMessages(b, i+1)
		b.StopTimer()
		s.pull(b)
		sink.WaitAvailability(b, "kitchen", devices.Offline)
		b.StartTimer()
	}
}
