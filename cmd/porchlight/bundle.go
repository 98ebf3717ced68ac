package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/access"
	"github.com/porchlight-iot/porchlight/agent/config"
)

// maxBundled bounds one file of a bundle.
const maxBundled = 1 << 20

// A redactor takes secrets out of texts: those that it was told, and what looks
// like one where it was not.
type redactor struct{ known []string }

const redacted = "(secret)"

var (
	// A password in a URL (RFC 3986 section 3.2.1).
	urlPassword = regexp.MustCompile(`(://[^\s/:@"']*:)[^\s/@"']+@`)
	// A value of a key that is named like a secret, and is not the name of a
	// file or a variable that holds it.
	keyedSecret = regexp.MustCompile(`(?im)((?:password|passwd|secret|psk|token|passphrase|api_?key)["']?\s*[:=]\s*)("[^"\n]*"|'[^'\n]*'|[^\s,}#]+)`)
	// What an invitation (XEP-0379) lets in with.
	preauth = regexp.MustCompile(`(?i)(preauth=|ibr=|[?&;]token=)[^\s;&"']+`)
)

func (r redactor) clean(text []byte) []byte {
	s := string(text)
	for _, secret := range r.known {
		s = strings.ReplaceAll(s, secret, redacted)
	}
	s = urlPassword.ReplaceAllString(s, "${1}"+redacted+"@")
	s = keyedSecret.ReplaceAllString(s, "${1}"+redacted)
	s = preauth.ReplaceAllString(s, "${1}"+redacted)
	return []byte(s)
}

// writeBundle writes one archive that tells a helper what there is to know. It
// is made anew: what is there already is not overwritten.
func writeBundle(ctx context.Context, path, configFile string, c *config.Config, found []finding) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write the bundle: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(path)
		}
	}()
	var r redactor
	if c != nil {
		r.known = c.Secrets()
		if claim, err := os.ReadFile(filepath.Join(c.Gateway.DataDir, access.ClaimFile)); err == nil && len(bytes.TrimSpace(claim)) > 0 {
			r.known = append(r.known, string(bytes.TrimSpace(claim)))
		}
	}
	zip := gzip.NewWriter(f)
	archive := tar.NewWriter(zip)
	now := time.Now()
	add := func(name string, text []byte) {
		text = r.clean(text[:min(len(text), maxBundled)])
		if err == nil {
			err = archive.WriteHeader(&tar.Header{Name: "porchlight/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: now})
		}
		if err == nil {
			_, err = archive.Write(text)
		}
	}
	var lines, version bytes.Buffer
	for _, f := range found {
		fmt.Fprintln(&lines, f)
	}
	add("doctor.txt", lines.Bytes())
	asJSON, _ := json.MarshalIndent(found, "", "  ")
	add("doctor.json", asJSON)
	_ = runVersion(ctx, nil, &version, io.Discard)
	add("version.txt", version.Bytes())
	for name, command := range map[string][]string{
		"system.txt": {"uname", "-a"},
		"log.txt":    {"journalctl", "-u", "porchlight", "-n", "2000", "--no-pager"},
		"kernel.txt": {"dmesg", "--level=err,warn"},
		"serial.txt": {"ls", "-l", "/dev/serial/by-id"},
	} {
		limited, cancel := context.WithTimeout(ctx, tryFor)
		out, failed := exec.CommandContext(limited, command[0], command[1:]...).CombinedOutput()
		cancel()
		if failed != nil {
			out = fmt.Appendf(out, "%v\n", failed)
		}
		add(name, out)
	}
	addFile := func(name, path string) {
		if text, err := os.ReadFile(path); err == nil {
			add(name, text)
		}
	}
	addFile("porchlight.yaml", configFile)
	if c != nil {
		for _, dir := range []string{config.DevicesDir, config.ProfilesDir} {
			files, _ := filepath.Glob(filepath.Join(c.Gateway.DataDir, dir, "*.yaml"))
			for _, file := range files {
				addFile(dir+"/"+filepath.Base(file), file)
			}
		}
		var status, devices bytes.Buffer
		if agent.Look(c, "status", &status) == nil {
			add("status.json", status.Bytes())
		}
		if agent.AskDevices(c, "devices", agent.DeviceArgs{}, &devices) == nil {
			add("devices.json", devices.Bytes())
		}
	}
	if err == nil {
		err = errors.Join(archive.Close(), zip.Close(), f.Sync())
	}
	if err != nil {
		return fmt.Errorf("cannot write the bundle: %w", err)
	}
	return nil
}
