// Package backup keeps what makes a gateway the one it is, and brings it back on
// another card: the config and the files that it names, and of the data
// directory all but the outbox. It is encrypted, because it holds passwords and
// leaves the machine.
//
// Readings that wait are not in it: they would be old by the time it is needed.
// A restored gateway makes a new outbox, which numbers under a new name, so no
// number is given twice.
package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/porchlight-iot/porchlight/agent/config"
)

const (
	// format is raised when an older version could not restore what is written.
	format = 1
	// workFactor of scrypt: 32 MiB of memory, which the smallest board has. The
	// phrase is random and needs none; this is for one that is not.
	workFactor = 15
	// maxTotal bounds what is kept, and what is read back.
	maxTotal = 32 << 20

	manifestName = "manifest.json"
)

// The two folders that files are in.
const (
	rootConfig = "config" // of the config
	rootData   = "data"   // the data directory
)

// A Manifest says what a backup holds.
type Manifest struct {
	Format     int       `json:"format"`
	Gateway    string    `json:"gateway"`
	Generation int64     `json:"generation"`
	Made       time.Time `json:"made"`
	Version    string    `json:"version"` // of the program
	Dir        string    `json:"dir"`     // where the config was
	Config     string    `json:"config"`  // name of its file
	Files      []File    `json:"files"`
}

// A File is one of a backup.
type File struct {
	Root   string `json:"root"`
	Path   string `json:"path"` // within Root
	SHA256 string `json:"sha256"`
}

func (f File) name() string { return f.Root + "/" + f.Path }

// A Content is the files of a backup, by root and path.
type Content struct {
	Manifest Manifest
	files    map[string][]byte
}

// Collect reads what is to be kept of a gateway, running or not. left are files
// that the config names and that are not kept, because they are in neither of
// the gateway's folders.
func Collect(c *config.Config, configFile, version string) (content Content, left []string, err error) {
	id, err := config.ReadIdentity(c.Gateway.DataDir)
	if err != nil {
		return Content{}, nil, err
	}
	if configFile, err = filepath.Abs(configFile); err != nil {
		return Content{}, nil, err
	}
	content = Content{
		Manifest: Manifest{Format: format, Gateway: c.Gateway.ID, Generation: id.Generation, Made: time.Now().UTC(), Version: version, Dir: filepath.Dir(configFile), Config: filepath.Base(configFile)},
		files:    map[string][]byte{},
	}
	total := 0
	add := func(root, path, from string) error {
		b, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", from, err)
		}
		if total += len(b); total > maxTotal {
			return fmt.Errorf("cannot keep more than %d MiB; %s is too much", maxTotal>>20, from)
		}
		sum := sha256.Sum256(b)
		f := File{root, filepath.ToSlash(path), hex.EncodeToString(sum[:])}
		if _, there := content.files[f.name()]; !there {
			content.files[f.name()] = b
			content.Manifest.Files = append(content.Manifest.Files, f)
		}
		return nil
	}
	dir := filepath.Dir(configFile)
	if err := add(rootConfig, filepath.Base(configFile), configFile); err != nil {
		return Content{}, nil, err
	}
	for _, path := range c.Files() {
		if rel, err := filepath.Rel(c.Gateway.DataDir, path); err == nil && filepath.IsLocal(rel) {
			continue // below
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			left = append(left, path)
			continue
		}
		if err := add(rootConfig, rel, path); err != nil {
			return Content{}, nil, err
		}
	}
	err = filepath.WalkDir(c.Gateway.DataDir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.Gateway.DataDir, path)
		switch {
		case err != nil:
			return err
		case e.IsDir() && rel != "." && (strings.HasPrefix(e.Name(), ".") || rel == "backups"):
			return filepath.SkipDir
		case !e.Type().IsRegular() || !kept(rel):
			return nil
		}
		if err := add(rootData, rel, path); errors.Is(err, fs.ErrNotExist) {
			return nil // a running gateway replaces files
		} else {
			return err
		}
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Content{}, nil, fmt.Errorf("cannot keep what is in %s: %w", c.Gateway.DataDir, err)
	}
	return content, left, nil
}

// kept tells what of the data directory belongs to a backup: not the outbox,
// which is of one machine, nor what is being written just now.
func kept(rel string) bool {
	name := filepath.Base(rel)
	return !strings.HasPrefix(rel, "outbox.") && !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "probe-") && rel != config.IdentityFile
}

// NewPhrase makes a recovery phrase that nobody can guess, and that can be
// written down.
func NewPhrase() string {
	text := rand.Text()[:25]
	var groups []string
	for group := range slices.Chunk([]byte(text), 5) {
		groups = append(groups, string(group))
	}
	return strings.Join(groups, "-")
}

// ErrWeak says that a phrase is too short to protect passwords.
var ErrWeak = errors.New("the recovery phrase is too short: it must have 20 characters or more")

// phrase is as it was meant: what is written down is read back in capitals or
// not, with spaces or hyphens.
func canonical(phrase string) string {
	return strings.ToUpper(strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, phrase))
}

// Seal writes the content, encrypted by the phrase.
func (c Content) Seal(w io.Writer, phrase string) error { return c.seal(w, phrase, workFactor) }

func (c Content) seal(w io.Writer, phrase string, work int) error {
	phrase = canonical(phrase)
	if len(phrase) < 20 {
		return ErrWeak
	}
	recipient, err := age.NewScryptRecipient(phrase)
	if err != nil {
		return fmt.Errorf("cannot encrypt the backup: %w", err)
	}
	recipient.SetWorkFactor(work)
	sealed, err := age.Encrypt(w, recipient)
	if err != nil {
		return fmt.Errorf("cannot encrypt the backup: %w", err)
	}
	zip := gzip.NewWriter(sealed)
	archive := tar.NewWriter(zip)
	manifest, err := json.MarshalIndent(c.Manifest, "", "  ")
	if err != nil {
		return err
	}
	write := func(name string, b []byte) error {
		err := archive.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: c.Manifest.Made.Truncate(time.Second)})
		if err == nil {
			_, err = archive.Write(b)
		}
		return err
	}
	err = write(manifestName, manifest)
	for _, f := range c.Manifest.Files {
		if err == nil {
			err = write(f.name(), c.files[f.name()])
		}
	}
	if err == nil {
		err = errors.Join(archive.Close(), zip.Close(), sealed.Close())
	}
	if err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	return nil
}

// What [Open] may say of a backup.
var (
	ErrPhrase  = errors.New("the recovery phrase is wrong")
	ErrDamaged = errors.New("the backup is damaged: it was cut short or altered")
	ErrForeign = errors.New("this is no backup of a gateway")
	ErrNewer   = errors.New("a newer version of this program made the backup")
)

// Open reads a whole backup and checks all of it. Nothing is written.
func Open(r io.Reader, phrase string) (Content, error) {
	identity, err := age.NewScryptIdentity(canonical(phrase))
	if err != nil {
		return Content{}, ErrPhrase
	}
	identity.SetMaxWorkFactor(workFactor)
	opened, err := age.Decrypt(r, identity)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none):
		return Content{}, ErrPhrase
	case err != nil && errors.Is(err, io.ErrUnexpectedEOF):
		return Content{}, fmt.Errorf("%w (%v)", ErrDamaged, err)
	case err != nil:
		return Content{}, fmt.Errorf("%w, or its beginning was altered (%v)", ErrForeign, err)
	}
	// All of it is read before any of it is believed: the last piece tells
	// whether there were others.
	plain, err := io.ReadAll(io.LimitReader(opened, maxTotal+1))
	if err != nil {
		return Content{}, fmt.Errorf("%w (%v)", ErrDamaged, err)
	}
	if len(plain) > maxTotal {
		return Content{}, fmt.Errorf("%w: it is too long", ErrForeign)
	}
	return unpack(plain)
}

func unpack(plain []byte) (Content, error) {
	foreign := func(err error) (Content, error) { return Content{}, fmt.Errorf("%w (%v)", ErrForeign, err) }
	zip, err := gzip.NewReader(bytes.NewReader(plain))
	if err != nil {
		return foreign(err)
	}
	c := Content{files: map[string][]byte{}}
	var manifest []byte
	total := 0
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return foreign(err)
		}
		b, err := io.ReadAll(io.LimitReader(archive, maxTotal+1))
		if err != nil {
			return foreign(err)
		}
		if total += len(b); total > maxTotal {
			return foreign(errors.New("it is too long"))
		}
		if h.Name == manifestName {
			manifest = b
			continue
		}
		c.files[h.Name] = b
	}
	if err := json.Unmarshal(manifest, &c.Manifest); err != nil {
		return foreign(err)
	}
	if c.Manifest.Format > format {
		return Content{}, ErrNewer
	}
	for _, f := range c.Manifest.Files {
		b, there := c.files[f.name()]
		sum := sha256.Sum256(b)
		switch {
		case !there || hex.EncodeToString(sum[:]) != f.SHA256:
			return Content{}, fmt.Errorf("%w: %s is not as it was", ErrDamaged, f.name())
		case f.Root != rootConfig && f.Root != rootData || !filepath.IsLocal(filepath.FromSlash(f.Path)):
			return foreign(fmt.Errorf("it has a file at %q", f.name()))
		}
	}
	if c.files[rootConfig+"/"+c.Manifest.Config] == nil {
		return foreign(errors.New("it has no config"))
	}
	return c, nil
}
