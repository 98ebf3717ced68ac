package porchlight

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/porchlight-iot/porchlight/"

// mayImport says which of our packages the code of a folder, and of the
// folders in it, may import. "x/..." is x and what is in it. What is in a
// folder may always import its neighbours there, and the longest folder that
// fits a package holds. Tests may import more.
var mayImport = map[string][]string{
	"strictyaml":         {},
	"crashpoint":         {},
	"firmware-profiles":  {},
	"devices":            {},
	"devices/devicetest": {"devices"},
	"devices/profile":    {"devices", "strictyaml", "firmware-profiles"},
	"devices/mqtt":       {"crashpoint", "devices", "devices/profile"},
	"devices/coap":       {"crashpoint", "devices", "devices/profile", "devices/profile/lwm2m"},
	"devices/serial":     {"devices", "devices/profile", "devices/profile/framing"},
	"bridge":             {"crashpoint", "devices", "bridge/stream", "bridge/words"},
	"bridge/stream":      {"crashpoint"},
	"bridge/watch":       {"devices", "bridge", "bridge/stream"},
	"bridge/words":       {"devices"},
	"bridge/xmppserver":  {},
	"bridge/xmpptest":    {},
	"agent":              {"agent/...", "devices/...", "bridge/...", "crashpoint", "strictyaml", "firmware-profiles"},
	"agent/outbox":       {"crashpoint", "devices", "agent/proof"},
	"agent/proof":        {"devices"},
	"agent/access":       {"agent/calendar", "agent/durable", "devices", "strictyaml"},
	"agent/aboard":       {"agent/config", "agent/durable", "devices"},
	"agent/calendar":     {},
	"agent/clock":        {"devices"},
	"agent/durable":      {},
	"cmd":                {"agent/...", "bridge", "bridge/watch", "devices", "devices/profile", "firmware-profiles"},
	"torture":            {"torture/...", "bridge", "bridge/stream", "bridge/xmppserver", "devices/serial/pty"},
	"torture/faultfs":    {},
	"torture/link":       {},
}

// libraries says in which folder a library may be used: each protocol and
// each format is known in one place. A library that is not here is not used.
var libraries = map[string][]string{
	"github.com/eclipse/paho.mqtt.golang": {"devices/mqtt"},
	"github.com/mochi-mqtt/server":        {"devices/mqtt"},
	"github.com/plgd-dev/go-coap":         {"devices/coap"},
	"github.com/pion":                     {"devices/coap"},
	"go.bug.st/serial":                    {"devices/serial"},
	"github.com/creack/pty":               {"devices/serial"},
	"github.com/grid-x/modbus":            {"devices/serial"},
	"go.etcd.io/bbolt":                    {"agent/outbox"},
	"mellium.im":                          {"bridge"},
	"github.com/fxamacker/cbor":           {"bridge", "devices/profile"},
	"github.com/hanwen/go-fuse":           {"torture/faultfs"},
	"google.golang.org/protobuf":          {"devices/profile"},
	"go.yaml.in/yaml":                     {"strictyaml", "devices/profile", "agent/config"},
	"go.uber.org/goleak":                  {"devices/devicetest"},
	"filippo.io/age":                      {"agent/backup"},
	"rsc.io/qr":                           {"agent/setup"},
	"github.com/coreos/go-systemd":        {"cmd"},
	"github.com/prometheus":               {"agent"},
	"golang.org/x":                        {"agent", "bridge", "cmd", "devices/mqtt", "devices/coap", "devices/serial", "devices/profile", "torture"},
}

// Names that say nothing of what a package is for.
var emptyNames = []string{"util", "utils", "common", "helper", "helpers", "manager", "misc", "base"}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Name       string
	Imports    []string // without those of its tests
}

// in reports whether path is the folder, or in it.
func in(folder, path string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

func fits(pattern, path string) bool {
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return in(folder, path)
	}
	return pattern == path
}

// folderOf is the longest of the folders that path is in, "" if there is none.
func folderOf[V any](folders map[string]V, path string) string {
	var best string
	for folder := range folders {
		if in(folder, path) && len(folder) > len(best) {
			best = folder
		}
	}
	return best
}

// faults checks the packages against the tables.
func faults(packages []pkg) []string {
	var all []string
	for _, p := range packages {
		path, ours := strings.CutPrefix(p.ImportPath, module)
		if !ours {
			continue // the root folder has tests only
		}
		if slices.Contains(emptyNames, p.Name) {
			all = append(all, fmt.Sprintf("%s: the name %s does not say what the package is for", path, p.Name))
		}
		folder := folderOf(mayImport, path)
		if folder == "" {
			all = append(all, path+": its folder is not in the table of who may import whom")
			continue
		}
		for _, imported := range p.Imports {
			if target, ours := strings.CutPrefix(imported, module); ours {
				allowed := folderOf(mayImport, target) == folder ||
					slices.ContainsFunc(mayImport[folder], func(pattern string) bool { return fits(pattern, target) })
				if !allowed {
					all = append(all, fmt.Sprintf("%s may not import %s", path, target))
				}
				continue
			}
			first, _, _ := strings.Cut(imported, "/")
			if !strings.Contains(first, ".") {
				continue // the standard library
			}
			library := folderOf(libraries, imported)
			if library == "" {
				all = append(all, fmt.Sprintf("%s imports %s, which is not in the table of libraries", path, imported))
			} else if !slices.ContainsFunc(libraries[library], func(folder string) bool { return in(folder, path) }) {
				all = append(all, fmt.Sprintf("%s may not import %s: only %s may", path, imported, strings.Join(libraries[library], ", ")))
			}
		}
	}
	return all
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Imports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var packages []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 5 {
		t.Fatalf("go list names only %d packages", len(packages))
	}
	for _, fault := range faults(packages) {
		t.Error(fault)
	}
}

// TestImportsAreJudged breaks each rule in a made-up module.
func TestImportsAreJudged(t *testing.T) {
	for _, c := range []struct {
		path, name, imported string
		want                 string // "" if it is allowed
	}{
		{"devices", "", "fmt", ""},
		{"devices", "", "go.uber.org/goleak", "only devices/devicetest may"},
		{"devices", "", "github.com/new/library", "not in the table of libraries"},
		{"devices", "", module + "agent", "devices may not import agent"},
		{"devices/profile", "", module + "devices", ""},
		{"devices/profile", "", module + "devices/mqtt", "may not import devices/mqtt"},
		{"devices/mqtt", "", module + "devices/profile", ""},
		{"devices/mqtt", "", module + "devices/coap", "devices/mqtt may not import devices/coap"},
		{"devices/mqtt/broker", "", module + "devices/mqtt", ""},
		{"devices/mqtt/broker", "", "github.com/mochi-mqtt/server/v2", ""},
		{"devices/mqttx", "", "github.com/mochi-mqtt/server/v2", "only devices/mqtt may"},
		{"devices/mqtt", "", "go.etcd.io/bbolt", "only agent/outbox may"},
		{"devices/coap", "", "mellium.im/xmpp/jid", "only bridge may"},
		{"bridge", "", "mellium.im/xmpp/jid", ""},
		{"bridge", "", module + "bridge/stream", ""},
		{"bridge", "", module + "bridge/watch", "bridge may not import bridge/watch"},
		{"bridge", "", module + "agent/access", "bridge may not import agent/access"},
		{"bridge", "", module + "devices/serial", "bridge may not import devices/serial"},
		{"agent", "", module + "bridge/stream", ""},
		{"agent", "", "mellium.im/xmpp/jid", "only bridge may"},
		{"agent", "", "github.com/eclipse/paho.mqtt.golang", "only devices/mqtt may"},
		{"agent/outbox", "", "go.etcd.io/bbolt/errors", ""},
		{"agent/outbox", "", module + "bridge", "agent/outbox may not import bridge"},
		{"agent", "", module + "agent/outbox", ""},
		{"agent/aboard", "", module + "devices/profile", "agent/aboard may not import devices/profile"},
		{"agent/demo", "", module + "agent", ""},
		{"cmd/porchlight", "", module + "agent/demo", ""},
		{"cmd/porchlight", "", module + "devices/mqtt", "may not import devices/mqtt"},
		{"cmd/porchlight", "", "go.bug.st/serial", "only devices/serial may"},
		{"strictyaml", "", module + "devices", "strictyaml may not import devices"},
		{"torture", "", module + "agent/outbox", "torture may not import agent/outbox"},
		{"torture", "", "github.com/hanwen/go-fuse/v2/fs", "only torture/faultfs may"},
		{"attic", "", "fmt", "not in the table"},
		{"agent/util", "util", "fmt", "does not say what the package is for"},
	} {
		got := faults([]pkg{{ImportPath: module + c.path, Name: cmp.Or(c.name, "x"), Imports: []string{c.imported}}})
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s imports %s: %q; want %q", c.path, c.imported, got, c.want)
		}
	}
}

// inits finds functions that run by themselves at the start of the program.
func inits(file string, source any) ([]string, error) {
	files := token.NewFileSet()
	tree, err := parser.ParseFile(files, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, decl := range tree.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			found = append(found, files.Position(f.Pos()).String())
		}
	}
	return found, nil
}

func TestNoInit(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && name != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "dist") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		found, err := inits(path, nil)
		for _, place := range found {
			t.Errorf("%s: an init function hides what a program does when it starts; call it by name", place)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestInitIsFound(t *testing.T) {
	const source = "package p\n\ntype t int\n\nfunc (t) init() {}\n\nfunc init() {}\n"
	found, err := inits("p.go", source)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"p.go:7:1"}; !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}
