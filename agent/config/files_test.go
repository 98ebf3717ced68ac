package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/strictyaml"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write configs/porchlight.schema.json and docs/config.md anew")

const configs = "../../configs/"

// TestSchemaFile asserts that the schema in the repository is that of the
// structs. After a change: go test ./agent/config -update
func TestSchemaFile(t *testing.T) {
	const file = configs + "porchlight.schema.json"
	want, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	compareFile(t, file, want)
}

// TestConfigPage asserts the same of the page that lists every key.
func TestConfigPage(t *testing.T) { compareFile(t, "../../docs/config.md", Page()) }

func compareFile(t *testing.T, file string, want []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not that of the structs; run: go test ./agent/config -update", file)
	}
}

// load copies a file of the repository beside a secret, and loads it.
func load(t *testing.T, name string) *Config {
	t.Helper()
	data, err := os.ReadFile(configs + name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "secret", "s3cret\n", 0o600)
	c, faults := Load(write(t, dir, name, string(data), 0o644), testOptions())
	if faults != nil {
		t.Fatal(faults)
	}
	return c
}

func write(t *testing.T, dir, name, data string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

// TestCompleteFileIsDefault asserts that the complete file changes nothing but
// what must be filled in.
func TestCompleteFileIsDefault(t *testing.T) {
	got := load(t, "porchlight.yaml")
	want := Default()
	want.Gateway.ID = thisGatewayID()
	want.XMPP.PubSub = "pubsub.example.org"
	want.XMPP.Component = &Component{Domain: "pi.iot.example.org", Server: "127.0.0.1:5347", SecretFile: "secret", Secret: NewSecret("s3cret")}
	if not := got.NotYet(); not != nil {
		t.Errorf("without effect: %v", not)
	}
	got.doc, got.sources = nil, nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestCompleteFileIsComplete asserts that the complete file, with its examples,
// holds every key there is, and no other.
func TestCompleteFileIsComplete(t *testing.T) {
	data, err := os.ReadFile(configs + "porchlight.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// An example is commented out by a # right before it, or before more than
	// one space of its indentation. A comment has one space.
	data = regexp.MustCompile(`(?m)^( *)#(\S|  )`).ReplaceAll(data, []byte("$1$2"))
	c := Default()
	if _, faults := strictyaml.Decode("porchlight.yaml", data, c); faults != nil {
		t.Fatal(faults)
	}
	if !reflect.DeepEqual(c.Outbox, Default().Outbox) || c.XMPP.Account.TLS.Mode != StartTLS || c.Devices[1].Serial.Baud != 115200 {
		t.Error("an example is said to be the default and is not")
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	keysInFile(root.Content[0], "", there)
	for _, key := range keysOf(reflect.TypeFor[Config](), "") {
		if !there[key] {
			t.Errorf("the key %s is missing", key)
		}
	}
}

func keysInFile(n *yaml.Node, prefix string, keys map[string]bool) {
	if n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			keysInFile(item, prefix, keys)
		}
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := prefix + n.Content[i].Value
		keys[key] = true
		keysInFile(n.Content[i+1], key+".", keys)
	}
}

func keysOf(t reflect.Type, prefix string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var keys []string
	for i := range t.NumField() {
		if key, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); key != "" {
			keys = append(keys, prefix+key)
			keys = append(keys, keysOf(t.Field(i).Type, prefix+key+".")...)
		}
	}
	return keys
}

func TestMinimalFile(t *testing.T) {
	c := load(t, "minimal.yaml")
	if len(c.Devices) != 1 || c.Devices[0].ID != "kitchen" || c.Devices[0].Name != "kitchen" || c.Devices[0].MQTT.Topic != "kitchen" {
		t.Errorf("the devices are %+v", c.Devices)
	}
	if got := c.MQTT.Brokers[0].ClientID; got != "porchlight-"+c.Gateway.ID {
		t.Errorf("the client id is %q", got)
	}
	if not := c.NotYet(); not != nil {
		t.Errorf("without effect: %v", not)
	}
}

// TestEveryKeyIsDescribed holds the schema's descriptions complete.
func TestEveryKeyIsDescribed(t *testing.T) {
	var walk func(reflect.Type)
	var seen []reflect.Type
	walk = func(t2 reflect.Type) {
		for t2.Kind() == reflect.Pointer || t2.Kind() == reflect.Slice {
			t2 = t2.Elem()
		}
		if t2.Kind() != reflect.Struct || slices.Contains(seen, t2) {
			return
		}
		seen = append(seen, t2)
		for i := range t2.NumField() {
			f := t2.Field(i)
			if f.Tag.Get("yaml") != "" && f.Tag.Get("doc") == "" {
				t.Errorf("%v.%s has no doc", t2, f.Name)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[Config]())
}
