package serial_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices"
	"github.com/porchlight-iot/porchlight/devices/devicetest"
	"github.com/porchlight-iot/porchlight/devices/serial"
)

// A node that asks gets a number that no other has, one that is configured, was
// heard, or was given before a restart; and is told the time and the units.
func TestNodesAreAnswered(t *testing.T) {
	folder, path := t.TempDir(), filepath.Join(t.TempDir(), "gateway")
	config, firmware := serial.Config{Port: path, Folder: folder}, builtin(t, "mysensors")
	for id, identity := range map[devices.ID]string{"kitchen": "1", "hall": "3"} {
		d := device(id, firmware)
		d.Identity = identity
		config.Devices = append(config.Devices, d)
	}
	for _, given := range []string{"4", "5", "7"} {
		node, sink := plug(t), &devicetest.Sink{}
		_ = os.Remove(path)
		if err := os.Symlink(node.Path(), path); err != nil {
			t.Fatal(err)
		}
		port := serial.New(config, slog.New(slog.DiscardHandler))
		start(t, port, sink)
		receive(t, node, "0;0;3;0;2;\n") // the gateway's version
		send(t, node, "0;255;3;0;2;2.3.2\n2;1;1;0;0;21.4\n1;6;1;0;0;36.5\n")
		sink.WaitMessages(t, 1)
		send(t, node, "255;255;3;0;3;\n")
		receive(t, node, "255;255;3;0;4;"+given+"\n")
		if given == "5" {
			send(t, node, "6;1;1;0;0;21.4\n") // has its number from elsewhere
			sink.WaitUnknown(t, 3)
		}
	}
	all, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	b, err := os.ReadFile(all[0])
	if err != nil || strings.TrimSpace(string(b)) != "[1,2,3,4,5,6,7]" {
		t.Errorf("%s has %s, %v", all[0], b, err)
	}
}

func TestNodeAsksTheTime(t *testing.T) {
	node, sink := plug(t), &devicetest.Sink{}
	d := device("kitchen", builtin(t, "mysensors"))
	start(t, serial.New(serial.Config{Port: node.Path(), Devices: []serial.Device{d}}, slog.New(slog.DiscardHandler)), sink)
	receive(t, node, "0;0;3;0;2;\n")
	send(t, node, "0;255;3;0;2;2.3.2\n12;255;3;0;6;0\n")
	receive(t, node, "12;255;3;0;6;M\n")
	sink.WaitMessages(t, 2)
	send(t, node, "12;6;1;0;0;36.5\n")
	sink.WaitMessages(t, 3)
	send(t, node, "12;255;3;0;1;\n")
	if got := next(t, node); !regexp.MustCompile(`^12;255;3;0;1;\d{10}\n$`).MatchString(got) {
		t.Errorf("the time is %q", got)
	}
}

// Who cannot remember a number does not give it.
func TestNumberThatCannotBeKept(t *testing.T) {
	node, sink := plug(t), &devicetest.Sink{}
	folder := filepath.Join(t.TempDir(), "gone")
	d := device("kitchen", builtin(t, "mysensors"))
	start(t, serial.New(serial.Config{Port: node.Path(), Folder: folder, Devices: []serial.Device{d}}, slog.New(slog.DiscardHandler)), sink)
	receive(t, node, "0;0;3;0;2;\n")
	send(t, node, "0;255;3;0;2;2.3.2\n255;255;3;0;3;\n")
	if r := sink.WaitRejections(t, 1); !strings.Contains(r[0].Why.Error(), "cannot remember which numbers devices have") {
		t.Errorf("%v", r[0].Why)
	}
}
