package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/porchlight-iot/porchlight/agent/durable/fulldisk"
)

// files gives the names of all files below a folder.
func files(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// fullAt has a command run on a disk that gets full at each of its writes: each
// time it fails, says why and what to do, and leaves the files that are named;
// at last it goes well.
func fullAt(t *testing.T, left string, command func(dir string) (out []byte, status int)) {
	t.Helper()
	fulldisk.Each(t, func(t *testing.T, pages, inodes uint64) bool {
		disk := fulldisk.New(t)
		disk.Leave(pages, inodes)
		out, status := command(disk.Dir)
		if status == exitDone {
			return true
		}
		if status != exitFailed || !strings.Contains(string(out), "The disk or card is full where "+disk.Dir) {
			t.Errorf("with room for %d pages and %d files: status %d:\n%s", pages, inodes, status, out)
		}
		if now := files(t, disk.Dir); !regexp.MustCompile("^(" + left + ")$").MatchString(now) {
			t.Errorf("with room for %d pages and %d files there are: %s", pages, inodes, now)
		}
		return false
	})
}

// TestInitOnFullDisk leaves no gateway by half.
func TestInitOnFullDisk(t *testing.T) {
	server := invitingServer(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the gateway's password"), 0o600); err != nil {
		t.Fatal(err)
	}
	fullAt(t, "", func(dir string) ([]byte, int) {
		cmd := trusting(t.Context(), server, "init", "-c", filepath.Join(dir, "etc", "porchlight.yaml"), "--data-dir", filepath.Join(dir, "data"),
			"--address", "gateway@localhost", "--secret-file", secret, "--owner", "", "--server", server.C2S(), "--broker", "none")
		out, _ := cmd.CombinedOutput()
		return out, cmd.ProcessState.ExitCode()
	})
}

// TestInvitationOnFullDisk: the invitation is good for one account, whose password
// is kept until there is a config.
func TestInvitationOnFullDisk(t *testing.T) {
	server := invitingServer(t)
	fulldisk.Each(t, func(t *testing.T, pages, inodes uint64) bool {
		uri, err := server.Invite(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		disk, boot := fulldisk.New(t), t.TempDir()
		invitation := fmt.Sprintf("%s\nserver: %s\n", uri, server.C2S())
		if err := os.WriteFile(filepath.Join(boot, "porchlight-invite.txt"), []byte(invitation), 0o600); err != nil {
			t.Fatal(err)
		}
		first := func() ([]byte, int) {
			cmd := trusting(t.Context(), server, "firstboot", "--boot-dir", boot, "-c", filepath.Join(disk.Dir, "etc", "porchlight.yaml"), "--data-dir", filepath.Join(disk.Dir, "data"))
			out, _ := cmd.CombinedOutput()
			return out, cmd.ProcessState.ExitCode()
		}
		disk.Leave(pages, inodes)
		out, status := first()
		if status == exitDone {
			return true
		}
		told, err := os.ReadFile(filepath.Join(boot, "porchlight-errors.txt"))
		if status != exitFailed || err != nil || !strings.Contains(string(told), "The disk or card is full") || !strings.Contains(string(told), "tried again by itself") {
			t.Errorf("with room for %d pages and %d files: status %d\n%s\nit is told %q, %v", pages, inodes, status, out, told, err)
		}
		if now := files(t, disk.Dir); now != "" && now != "etc/.invitation" {
			t.Errorf("with room for %d pages and %d files there are: %s", pages, inodes, now)
		}
		if now, err := os.ReadFile(filepath.Join(boot, "porchlight-invite.txt")); err != nil || string(now) != invitation {
			t.Errorf("with room for %d pages and %d files the invitation is %q, %v", pages, inodes, now, err)
		}
		disk.Leave(100, 100)
		if out, status := first(); status != exitDone {
			t.Errorf("with room again: status %d\n%s", status, out)
		}
		if got := files(t, disk.Dir); got != "data/claim etc/claim.png etc/password etc/porchlight.yaml" {
			t.Errorf("with room again there are %s", got)
		}
		return false
	})
}

// TestRestoreOnFullDisk leaves nothing of the backup.
func TestRestoreOnFullDisk(t *testing.T) {
	dir := houseDir(t, awayConfig)
	data := filepath.Join(dir, "data")
	for path, text := range map[string]string{
		filepath.Join(data, "devices.d", "lamp.yaml"): "id: lamp\nprofile: tasmota\nmqtt: {topic: lamp}\n",
		filepath.Join(data, "access.yaml"):            "version: 1\n",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) ([]byte, int) {
		cmd := trusting(t.Context(), nil, args...)
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput()
		return out, cmd.ProcessState.ExitCode()
	}
	if out, status := run("backup", "-c", "p.yaml", "--to", dir); status != exitDone || strings.Contains(string(out), "not in the backup") {
		t.Fatalf("status %d: %s", status, out)
	}
	made, err := filepath.Glob(filepath.Join(dir, "porchlight-*.age"))
	if err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	fullAt(t, "", func(to string) ([]byte, int) {
		out, status := run("restore", "-c", filepath.Join(to, "p.yaml"), "--phrase-file", filepath.Join(data, phraseFile), made[0])
		if status != exitDone && !strings.Contains(string(out), "nothing was restored: ") {
			t.Errorf("it is said %s", out)
		}
		return out, status
	})
}
