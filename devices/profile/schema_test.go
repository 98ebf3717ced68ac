package profile

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestSchema keeps the file that editors read; UPDATE=1 writes it.
func TestSchema(t *testing.T) {
	want, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "..", "firmware-profiles", "schema.json")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what UPDATE=1 go test ./devices/profile -run Schema makes: %v", file, err)
	}
}

// TestExamples reads the profiles to copy; their tests are run with that.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "firmware-profiles", "examples", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(file, data); err != nil {
			t.Error(err)
		}
	}
}
