package profile_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/devices/profile"
	"github.com/porchlight-iot/porchlight/strictyaml"
)

// TestReload changes a folder of profiles under a library: what did not change
// is the same, what is broken stays as it was, and the others are taken over.
func TestReload(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "profiles")
	first, err := profile.Load(folder)
	if err != nil {
		t.Fatal(err)
	}
	if next, err := first.Reload(folder); err != nil || next != first {
		t.Errorf("without a folder: %v, the same: %v", err, next == first)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(id, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, id+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const own = "profile: 1\nid: meter\nname: Meter\ndecode: [{json: {}}]\ntransport: [serial]\n"
	write("meter", own)
	write("tasmota", "profile: 1\nid: tasmota\nname: Ours\nextends: tasmota\n")
	second, err := first.Reload(folder)
	if err != nil || second == first || second.Get("meter") == nil || second.Get("tasmota").Name() != "Ours" {
		t.Fatalf("with profiles of one's own: %v, %v", err, second.Names())
	}
	if second.Get("json") != first.Get("json") {
		t.Error("a built-in profile is another")
	}
	if next, err := second.Reload(folder); err != nil || next != second {
		t.Errorf("nothing changed: %v, the same: %v", err, next == second)
	}

	write("meter", own+"colour: red\n")
	write("fresh", "profile: 1\nid: stale\n")
	third, err := second.Reload(folder)
	var faults strictyaml.Faults
	if !errors.As(err, &faults) || !strings.Contains(err.Error(), "meter.yaml:6:1: colour") || !strings.Contains(err.Error(), "fresh.yaml:2:5: id") {
		t.Errorf("the faults are %v", err)
	}
	if third.Get("meter") != second.Get("meter") || third.Get("fresh") != nil || strings.Join(third.Broken(), " ") != "fresh meter" {
		t.Errorf("broken are %v; the profile stays: %v", third.Broken(), third.Get("meter") == second.Get("meter"))
	}
	write("meter", own+"priority: 60\n")
	if err := os.Remove(filepath.Join(folder, "fresh.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(folder, "tasmota.yaml")); err != nil {
		t.Fatal(err)
	}
	fourth, err := third.Reload(folder)
	if err != nil || fourth.Get("meter").Priority() != 60 || fourth.Get("tasmota").Name() != "Tasmota" || len(fourth.Broken()) > 0 {
		t.Errorf("mended: %v", err)
	}
}
