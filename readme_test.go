package porchlight

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestFaultsAreShown looks whether the tests that the README names exist where
// it says.
func TestFaultsAreShown(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(readme), "## What it survives")
	if !found {
		t.Fatal("the README says nothing of faults")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	sources := make(map[string]string) // of the tests of a folder
	shown := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			continue
		}
		folder := ""
		for _, word := range regexp.MustCompile("`[a-z/]+`|Test[A-Za-z0-9]+").FindAllString(cells[3], -1) {
			if !strings.HasPrefix(word, "Test") {
				folder = strings.Trim(word, "`")
				continue
			}
			shown++
			if _, read := sources[folder]; !read {
				files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
				if err != nil {
					t.Fatal(err)
				}
				for _, file := range files {
					source, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					sources[folder] += string(source)
				}
			}
			if !strings.Contains(sources[folder], "func "+word+"(") {
				t.Errorf("the README names %s in %q, which has no such test", word, folder)
			}
		}
	}
	if shown < 30 {
		t.Errorf("the README names %d tests", shown)
	}
}

// TestRunsAreSummed compares what the README says of all runs of the torture
// with the list of them.
func TestRunsAreSummed(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	runs, err := os.ReadFile("torture/RUNS.md")
	if err != nil {
		t.Fatal(err)
	}
	var sums [5]int // cycles, acknowledged, lost, doubled, out of order
	for line := range strings.Lines(string(runs)) {
		cells := strings.Split(line, "|")
		if len(cells) != 11 {
			continue
		}
		for i := range sums {
			if n, err := strconv.Atoi(strings.TrimSpace(cells[4+i])); err == nil {
				sums[i] += n
			}
		}
	}
	said := fmt.Sprintf("%d cycles, %d readings acknowledged, %d lost, %d doubled, %d out of order", sums[0], sums[1], sums[2], sums[3], sums[4])
	if sums[1] == 0 || !strings.Contains(string(readme), said) {
		t.Errorf("the README does not say: %s", said)
	}
}
