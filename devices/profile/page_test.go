package profile

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPages keeps the page of each profile, and their list; UPDATE=1 writes
// them.
func TestPages(t *testing.T) {
	library, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join("..", "..", "docs", "profiles")
	want := map[string][]byte{"README.md": library.Index()}
	for _, id := range library.Names() {
		page := library.Page(id)
		if !bytes.Contains(page, []byte("## An example")) {
			t.Errorf("the page of %s has no example", id)
		}
		want[id+".md"] = page
	}
	entries, err := os.ReadDir(folder)
	if err != nil && os.Getenv("UPDATE") == "" {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := want[e.Name()]; ok {
			continue
		}
		if os.Getenv("UPDATE") == "" {
			t.Errorf("%s is of no profile", e.Name())
		} else if err := os.Remove(filepath.Join(folder, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	for name, page := range want {
		file := filepath.Join(folder, name)
		if os.Getenv("UPDATE") != "" {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, page, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, page) {
			t.Errorf("%s is not what UPDATE=1 go test ./devices/profile -run Pages makes: %v", file, err)
		}
	}
}

// TestPage writes the page of a profile of one's own.
func TestPage(t *testing.T) {
	p, err := profileWith("aliases: [old]", `match: [{topic: "<base>/{pre*}/{device...}/{leaf=a|b*}", when: {/t: "*", first: "!x"}}]`, "params: {base: home}", "priority: 10",
		"device: {key: [\"{/id}\", \"{device}\"], maker: Acme, children: {each: \"s/*\"}}",
		`fields: [{select: "x|y", unit: W}, {select: z, name: zed, words: {"ON": true}, invalid: ["9"], range: [0, 5]}, {select: d, drop: true}, {name: j, join: {paths: [a, b]}, scale: 0.1}]`,
		`commands: [{name: z, title: Set, topic: "<base>/{device}/z", argument: {type: number, min: 1, unit: W}, confirm: {field: zed, within: 1m}}]`,
		"silence: {after: 90m}", "rest: {create: none}", `tests: [{topic: home/k/a, payload: "{\"t\":1,\"z\":4}", device: k, fields: {zed: "4"}}]`)
	if err != nil {
		t.Fatal(err)
	}
	l := &Library{profiles: map[string]*Profile{"x": p}, aliases: make(map[string]string)}
	l.index()
	page := string(l.Page("old"))
	for _, want := range []string{
		"# X\n", "It is also called `old`.", "It takes what no other profile knows.",
		"- `home/[{pre…}]/{device…}/(a|b*)`, with `t`, the first character is not `x`\n", "- `base`: `home`",
		"the first of `{/id}`, `{device}` that is there", "- Maker: Acme\n", "devices of their own: `s/*`",
		"| `x\\|y` | `x_y` |  | W |  |", "| `z` | `zed` |  |  | `ON` is true; none where `9`; from 0 to 5 |", "| `a`, `b` together | `j` |  |  | times 0.1 |",
		"Other values are no fields.", "Left out: `d`.", "It is lost after 1h30m of silence.",
		"| `z` | Set |  | a number at least 1 W | `home/{device}/z` | `zed` within 1m |",
		"    home/k/a\n    {\"t\":1,\"z\":4}\n", "Of the device `k`:", "| `zed` | 4 |  | measurement |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
	if l.Page("other") != nil {
		t.Error("there is a page of no profile")
	}
}
