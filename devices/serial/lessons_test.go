package serial_test

import (
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// What a sensor taught when it was installed is known after a restart.
func TestTaughtOnce(t *testing.T) {
	packet := func(text string) string {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const teachIn, data = "55000a0701eba510080280018a7b300001ffffffff4900a6", "55000a0701eba5007d7d0a018a7b300001ffffffff490042"
	folder, path := t.TempDir(), filepath.Join(t.TempDir(), "gateway")
	config := serial.Config{Port: path, Folder: folder}
	d := device("sensor", builtin(t, "enocean-esp3"))
	d.Identity = "018a7b30"
	config.Devices = append(config.Devices, d)
	for _, sent := range []string{teachIn + data, data} {
		gateway, sink := plug(t), &devicetest.Sink{}
		_ = os.Remove(path)
		if err := os.Symlink(gateway.Path(), path); err != nil {
			t.Fatal(err)
		}
		start(t, serial.New(config, slog.New(slog.DiscardHandler)), sink)
		send(t, gateway, packet(sent))
		n := len(sent) / len(data)
		if got := values(sink.WaitMessages(t, n)[n-1:]); !slices.Contains(got, "a5_04_01_hum=50.0") || !slices.Contains(got, "a5_04_01_tmp=20.0") {
			t.Errorf("%v", got)
		}
	}
}
