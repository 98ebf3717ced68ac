package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/porchlight-iot/porchlight/agent/config"
)

const phrase = "ABCDE-FGHIJ-KLMNO-PQRST-UVWXY"

// house makes a gateway's files, and gives its config.
func house(t *testing.T) (c *config.Config, file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "etc", "porchlight.yaml")
	data := filepath.Join(dir, "data")
	for name, text := range map[string]string{
		"etc/porchlight.yaml": "gateway: {data_dir: " + data + "}\nxmpp:\n  account: {jid: pi@example.org, password_file: " + filepath.Join(dir, "etc", "password") + "}\n" +
			"mqtt: {users: [{name: x, password_file: users/x}], listen: \"127.0.0.1:0\"}\n",
		"etc/password": "hush", "etc/users/x": "hush too", "etc/other": "not ours",
		"data/devices.d/lamp.yaml": "id: lamp\nprofile: tasmota\nmqtt: {topic: lamp}\n", "data/access.yaml": "grants: []\n",
		"data/outbox.db": "readings", "data/outbox.db.journal": "more", "data/recovery-phrase": phrase,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, faults := config.Load(file, config.LoadOptions{})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return c, file
}

func sealed(t *testing.T) []byte {
	t.Helper()
	c, file := house(t)
	content, left, err := Collect(c, file, "v1")
	if err != nil || len(left) > 0 {
		t.Fatal(left, err)
	}
	var b bytes.Buffer
	if err := content.seal(&b, phrase, 8); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func loader(t *testing.T) func(string) (string, error) {
	return func(path string) (string, error) {
		c, faults := config.Load(path, config.LoadOptions{})
		if len(faults) > 0 {
			return "", faults
		}
		return c.Gateway.DataDir, nil
	}
}

// TestRestore brings a gateway back in another folder, and in its own.
func TestRestore(t *testing.T) {
	c, file := house(t)
	content, _, err := Collect(c, file, "v1")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := content.Seal(&b, phrase); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b.Bytes(), []byte("hush")) {
		t.Error("it can be read")
	}
	// As it is typed from paper.
	opened, err := Open(bytes.NewReader(b.Bytes()), strings.ToLower(strings.ReplaceAll(phrase, "-", " "))+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(filepath.Dir(file))); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "etc", "porchlight.yaml")
	for _, to := range []string{file, elsewhere} {
		data, err := opened.Restore(to, loader(t))
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{
			filepath.Join(filepath.Dir(to), "password"): "hush",
			filepath.Join(filepath.Dir(to), "users/x"):  "hush too",
			filepath.Join(data, "devices.d/lamp.yaml"):  "id: lamp\nprofile: tasmota\nmqtt: {topic: lamp}\n",
			filepath.Join(data, "access.yaml"):          "grants: []\n",
			filepath.Join(data, "recovery-phrase"):      phrase,
		} {
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v", path, got, err)
			}
		}
		for _, path := range []string{filepath.Join(data, "outbox.db"), filepath.Join(filepath.Dir(to), "other")} {
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s is there", path)
			}
		}
		again, faults := config.Load(to, config.LoadOptions{})
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		if again.Gateway.ID != c.Gateway.ID || len(again.Devices) != 1 || again.XMPP.Account.Password.Reveal() != "hush" {
			t.Errorf("it is %+v", again.Gateway)
		}
		id, err := config.ReadIdentity(data)
		if err != nil || id.Generation == 0 {
			t.Errorf("%+v, %v", id, err)
		}
		// A backup of the restored one is younger, whatever the clock says.
		next, _, err := Collect(again, to, "v1")
		if err != nil || next.Manifest.Generation != id.Generation {
			t.Errorf("%+v, %v", next.Manifest, err)
		}
		if _, err := next.Restore(to, loader(t)); err != nil {
			t.Fatal(err)
		}
		if younger, err := config.ReadIdentity(data); err != nil || younger.Generation <= id.Generation {
			t.Errorf("generation %d follows %d, %v", younger.Generation, id.Generation, err)
		}
	}
}

// TestIDIsKept: the id that comes of the machine goes with the backup.
func TestIDIsKept(t *testing.T) {
	c, file := house(t)
	content, _, err := Collect(c, file, "v1")
	if err != nil {
		t.Fatal(err)
	}
	content.Manifest.Gateway = "from-afar"
	to := filepath.Join(t.TempDir(), "porchlight.yaml")
	if _, err := content.Restore(to, loader(t)); err != nil {
		t.Fatal(err)
	}
	if again, faults := config.Load(to, config.LoadOptions{}); len(faults) > 0 || again.Gateway.ID != "from-afar" {
		t.Errorf("%v %v", again.Gateway.ID, faults)
	}
}

func TestDamagedBackup(t *testing.T) {
	whole := sealed(t)
	for _, n := range []int{0, 1, 20, 100, 180, 300, len(whole) / 2, len(whole) - 17, len(whole) - 1} {
		if _, err := Open(bytes.NewReader(whole[:n]), phrase); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Errorf("cut to %d of %d bytes: %v", n, len(whole), err)
		}
	}
	for n := 0; n < len(whole); n += 37 {
		altered := bytes.Clone(whole)
		altered[n] ^= 1
		_, err := Open(bytes.NewReader(altered), phrase)
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) && !errors.Is(err, ErrPhrase) {
			t.Errorf("altered at %d: %v", n, err)
		}
	}
	if _, err := Open(bytes.NewReader(whole), "ABCDE-FGHIJ-KLMNO-PQRST-UVWXZ"); !errors.Is(err, ErrPhrase) {
		t.Errorf("with a wrong phrase: %v", err)
	}
	if _, err := Open(bytes.NewReader(whole), ""); !errors.Is(err, ErrPhrase) {
		t.Errorf("without a phrase: %v", err)
	}
	if _, err := Open(strings.NewReader("a picture"), phrase); !errors.Is(err, ErrForeign) {
		t.Errorf("something else: %v", err)
	}
	var long bytes.Buffer
	if err := (Content{}).Seal(&long, "short"); !errors.Is(err, ErrWeak) {
		t.Errorf("with a short phrase: %v", err)
	}
}

// TestHostileBackup has backups whose phrase is right and whose maker means ill.
func TestHostileBackup(t *testing.T) {
	c, file := house(t)
	for name, change := range map[string]func(*Content){
		"outside":   func(c *Content) { c.Manifest.Files[1].Path = "../../evil" },
		"absolute":  func(c *Content) { c.Manifest.Files[1].Path = "/etc/passwd" },
		"no config": func(c *Content) { c.Manifest.Config = "none.yaml" },
		"root":      func(c *Content) { c.Manifest.Files[1].Root = "usr" },
	} {
		content, _, err := Collect(c, file, "v1")
		if err != nil {
			t.Fatal(err)
		}
		before := content.Manifest.Files[1].name()
		change(&content)
		content.files[content.Manifest.Files[1].name()] = content.files[before]
		var b bytes.Buffer
		if err := content.seal(&b, phrase, 8); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(&b, phrase); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
	content, _, err := Collect(c, file, "v1")
	if err != nil {
		t.Fatal(err)
	}
	content.Manifest.Format++
	var newer bytes.Buffer
	if err := content.seal(&newer, phrase, 8); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(&newer, phrase); !errors.Is(err, ErrNewer) {
		t.Errorf("of a newer version: %v", err)
	}
	// Encrypted, and no backup.
	recipient, err := age.NewScryptRecipient(canonical(phrase))
	if err != nil {
		t.Fatal(err)
	}
	recipient.SetWorkFactor(10)
	var other bytes.Buffer
	w, err := age.Encrypt(&other, recipient)
	if err != nil {
		t.Fatal(err)
	}
	_ = json.NewEncoder(w).Encode("hello")
	w.Close()
	if _, err := Open(&other, phrase); !errors.Is(err, ErrForeign) {
		t.Errorf("something else that is encrypted: %v", err)
	}
}

// TestNothingHalfDone: a config that this version does not take leaves
// everything as it was.
func TestNothingHalfDone(t *testing.T) {
	c, file := house(t)
	content, _, err := Collect(c, file, "v1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	want := errors.New("not valid")
	if _, err := content.Restore(filepath.Join(dir, "porchlight.yaml"), func(string) (string, error) { return "", want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
