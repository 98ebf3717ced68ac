package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// A Secret is a text that does not show itself, whatever prints it.
type Secret struct{ text string }

// NewSecret makes a secret, for tests and for callers that have one.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal gives the text itself.
func (s Secret) Reveal() string { return s.text }

// IsZero reports whether there is none.
func (s Secret) IsZero() bool { return s.text == "" }

const concealed = "(secret)"

// Format writes the same word for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, concealed) }

// LogValue conceals the secret in logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(concealed) }

// MarshalText conceals the secret in JSON and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(concealed), nil }

// maxSecretBytes is more than any password, and room for a list of keys.
const maxSecretBytes = 64 << 10

// readSecret reads a file that only its owner may read. credentials is the
// directory in which the service manager put credentials, or "".
func readSecret(path, credentials string) (Secret, *trouble) {
	f, t := openSecret(path, credentials)
	if t != nil {
		return Secret{}, t
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err != nil {
		return Secret{}, unreadable(path, err)
	}
	text := strings.TrimRight(string(data), "\r\n")
	switch {
	case len(data) > maxSecretBytes:
		return Secret{}, &trouble{fmt.Sprintf("%s is too long for a secret", path), "at most 64KiB", "name another file"}
	case strings.TrimSpace(text) == "":
		return Secret{}, &trouble{path + " is empty", "a file that holds the secret", "write the secret into it"}
	}
	return Secret{text}, nil
}

// openSecret opens a file that only its owner may read.
func openSecret(path, credentials string) (*os.File, *trouble) {
	// A pipe would block at opening.
	if info, err := os.Stat(path); err != nil {
		return nil, unreadable(path, err)
	} else if !info.Mode().IsRegular() {
		return nil, &trouble{path + " is not a file", "a file that holds the secret", "name the file"}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, unreadable(path, err)
	}
	// The service manager protects credentials by their directory and an access
	// list, whose mask shows where the group's rights would be.
	if mode := info.Mode().Perm(); mode&0o077 != 0 && !within(path, credentials) {
		f.Close()
		return nil, &trouble{fmt.Sprintf("%s can be read by others (mode %04o)", path, mode), "mode 0600", "run chmod 600 " + path}
	}
	return f, nil
}

func unreadable(path string, err error) *trouble {
	var cause *fs.PathError
	if errors.As(err, &cause) {
		err = cause.Err
	}
	mend := "make it, or correct the path"
	if errors.Is(err, fs.ErrPermission) {
		mend = "give it to the user who runs the gateway, with chown"
	}
	return &trouble{fmt.Sprintf("cannot read %s: %v", path, err), "a file that can be read", mend}
}

func within(path, dir string) bool {
	return dir != "" && strings.HasPrefix(path, filepath.Clean(dir)+"/")
}

// Secrets gives every secret that the config holds, so that they can be kept
// out of what is sent to others.
func (c *Config) Secrets() []string {
	var all []string
	eachKey(reflect.ValueOf(c), func(_ string, v reflect.Value) {
		if s, ok := v.Interface().(Secret); ok && !s.IsZero() {
			all = append(all, s.text)
		}
	})
	return all
}

// Files gives the whole paths of all files that the config names: secrets,
// authorities, certificates.
func (c *Config) Files() []string {
	var all []string
	dir := filepath.Dir(c.doc.File())
	if whole, err := filepath.Abs(dir); err == nil {
		dir = whole
	}
	eachKey(reflect.ValueOf(c), func(key string, v reflect.Value) {
		if path, ok := v.Interface().(string); ok && path != "" && strings.HasSuffix(key, "_file") {
			if !filepath.IsAbs(path) {
				path = filepath.Join(dir, path)
			}
			all = append(all, path)
		}
	})
	slices.Sort(all)
	return slices.Compact(all)
}

// eachKey visits all that a config holds, with the names that it has in the
// file; "" where it has none.
func eachKey(v reflect.Value, visit func(key string, v reflect.Value)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			eachKey(v.Elem(), visit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachKey(v.Index(i), visit)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
				visit(key, v.Field(i))
				eachKey(v.Field(i), visit)
			}
		}
	}
}
