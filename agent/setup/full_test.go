package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porchlight-iot/porchlight/agent/durable/fulldisk"
)

// tree gives all below a folder with its content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fmt.Fprintf(&all, "%s", strings.TrimPrefix(path, dir))
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, ": %q", b)
		}
		all.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestFullDisk has the disk get full at each write of a card that is taken over,
// in the place of a gateway that was there: of the boot partition, of the config
// and its secrets, of the data, of the WiFi. Each time all is as it was, the installer is told,
// and with room again it goes well.
func TestFullDisk(t *testing.T) {
	for _, full := range []string{"boot", "etc", "data", "connections"} {
		t.Run(full, func(t *testing.T) {
			fulldisk.Each(t, func(t *testing.T, pages, files uint64) bool { return takenWith(t, full, pages, files) })
		})
	}
}

// takenWith reports whether a card was taken over where one of its disks has so
// much room.
func takenWith(t *testing.T, full string, pages, files uint64) bool {
	t.Helper()
	disk := fulldisk.New(t)
	c := newCard(t, nil)
	data := filepath.Join(filepath.Dir(c.boot), "data")
	for path, name := range map[*string]string{&c.boot: "boot", &c.etc: "etc", &data: "data", &c.connections: "connections"} {
		if name == full {
			*path = disk.Dir
		}
	}
	if full == "data" {
		data = filepath.Join(disk.Dir, "data") // which is made
	}
	c.path = filepath.Join(c.etc, "porchlight.yaml")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.Replace(strings.ReplaceAll(goodCard, "DATA", data), ownersLine, "", 1)
	if full == "connections" {
		text += homeWiFi
		newTools(t, "")
		write(filepath.Join(c.connections, connectionFile), "the WiFi before")
	}
	write(filepath.Join(c.boot, CardConfig), text)
	write(c.path, "the config before")
	write(filepath.Join(c.etc, "xmpp-account-password"), "the password before")
	places := func() string {
		if full == "connections" {
			return tree(t, c.etc) + tree(t, c.connections)
		}
		return tree(t, c.etc)
	}
	before := places()

	disk.Leave(pages, files)
	done, err := c.takeOver()
	if done && err == nil {
		return true
	}
	if done || !errors.Is(err, unix.ENOSPC) || errors.As(err, new(CardFault)) || Remedy(err) == "" {
		t.Errorf("with room for %d pages and %d files: %v, %v", pages, files, done, err)
	}
	if now := places(); now != before {
		t.Errorf("with room for %d pages and %d files it is half done:\n%s\nbefore:\n%s", pages, files, now, before)
	}
	if now := tree(t, filepath.Dir(data)); strings.Contains(now, "data/.") {
		t.Errorf("with room for %d pages and %d files the data has\n%s", pages, files, now)
	}
	if got := c.read(filepath.Join(c.boot, CardConfig)); got != text {
		t.Errorf("with room for %d pages and %d files the file on the card is %q", pages, files, got)
	}
	said := strings.Replace(c.list(c.boot), CardConfig, "", 1)
	switch {
	case strings.TrimSpace(said) == CardErrors:
		if told := c.read(filepath.Join(c.boot, CardErrors)); !strings.Contains(told, "is full") && full != "boot" {
			t.Errorf("with room for %d pages and %d files it is told %q", pages, files, told)
		}
	case strings.TrimSpace(said) != CardFull && files > 0:
		t.Errorf("with room for %d pages and %d files there are %q", pages, files, said)
	}
	disk.Leave(100, 100)
	if done, err := c.takeOver(); err != nil || !done {
		t.Errorf("with room again: %v, %v", done, err)
	}
	if got := c.list(c.boot); got != "porchlight-claim.png porchlight-done.txt" {
		t.Errorf("with room again there are %s", got)
	}
	return false
}

// TestDataElsewhere has a data directory that only the gateway's own service may
// write to: the file on the card is taken over, and the claim is in the log.
func TestDataElsewhere(t *testing.T) {
	disk := fulldisk.New(t)
	if err := unix.Mount("none", filepath.Dir(disk.Dir), "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(strings.ReplaceAll(goodCard, "DATA", filepath.Join(disk.Dir, "data")), ownersLine, "", 1)
	c := newCard(t, map[string]string{CardConfig: text})
	if done, err := c.takeOver(); err != nil || !done {
		t.Fatal(done, err)
	}
	if got := c.list(c.boot); got != CardDone {
		t.Errorf("there are %s", got)
	}
}
