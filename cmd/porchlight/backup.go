package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/backup"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/agent/durable"
	"github.com/porchlight-iot/porchlight/agent/setup"
)

// phraseFile is in the data directory, so that backups can be made while nobody
// is there. Who reads it there could read what is in them too.
const phraseFile = "recovery-phrase"

// runBackup writes one encrypted file that brings this gateway back.
func runBackup(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("backup", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	to := flags.String("to", ".", "the `FOLDER` to write to")
	keep := flags.Int("keep", 0, "how many of this gateway's backups are left in the folder (default all)")
	show := flags.Bool("show-phrase", false, "print the recovery phrase, and make no backup")
	if err := parse(flags, args); err != nil {
		return err
	}
	if *keep < 0 {
		return usageError("--keep is not negative")
	}
	file := config.Path(*path)
	c, err := loadConfig(file, stderr)
	if err != nil {
		return err
	}
	phrase, fresh, err := recoveryPhrase(c.Gateway.DataDir)
	if err != nil {
		return err
	}
	if *show {
		fmt.Fprintln(stdout, phrase)
		return nil
	}
	content, left, err := backup.Collect(c, file, versionNumber())
	if err != nil {
		return err
	}
	for _, path := range left {
		fmt.Fprintf(stderr, "warning: %s is not in the backup: it is neither beside the config nor in the data directory\n", path)
	}
	if err := os.MkdirAll(*to, 0o700); err != nil {
		return fmt.Errorf("cannot make the folder: %w", err)
	}
	name := filepath.Join(*to, fmt.Sprintf("porchlight-%s-%s.age", c.Gateway.ID, content.Manifest.Made.Format("20060102-150405")))
	var sealed bytes.Buffer
	if err := content.Seal(&sealed, phrase); err != nil {
		return err
	}
	// What cannot be read back is no backup.
	if _, err := backup.Open(bytes.NewReader(sealed.Bytes()), phrase); err != nil {
		return err
	}
	if err := durable.Replace(name, sealed.Bytes()); err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	fmt.Fprintf(stdout, "%s: %d files of gateway %s, %s\n", name, len(content.Manifest.Files), c.Gateway.ID, size(int64(sealed.Len())))
	if fresh {
		fmt.Fprintf(stdout, "\nThe recovery phrase, without which nobody can read it. Write it down, and keep it elsewhere:\n\n    %s\n\n", phrase)
	}
	if *keep > 0 {
		return removeOld(*to, c.Gateway.ID, *keep)
	}
	return nil
}

// recoveryPhrase gives the phrase of this gateway, and makes it at the first
// time.
func recoveryPhrase(dataDir string) (phrase string, fresh bool, err error) {
	path := filepath.Join(dataDir, phraseFile)
	b, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(b)), false, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", false, fmt.Errorf("cannot read the recovery phrase: %w", err)
	}
	phrase = backup.NewPhrase()
	uid, gid := setup.Service()
	if err := durable.ReplaceAs(path, []byte(phrase+"\n"), 0o600, uid, gid); err != nil {
		return "", false, fmt.Errorf("cannot keep the recovery phrase: %w", err)
	}
	return phrase, true, nil
}

// removeOld leaves the newest, whose names are in the order of their times.
func removeOld(dir, gateway string, keep int) error {
	all, err := filepath.Glob(filepath.Join(dir, "porchlight-"+gateway+"-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]-[0-9][0-9][0-9][0-9][0-9][0-9].age"))
	if err != nil {
		return err
	}
	slices.Sort(all)
	for _, old := range all[:max(0, len(all)-keep)] {
		if err := os.Remove(old); err != nil {
			return fmt.Errorf("cannot remove an old backup: %w", err)
		}
	}
	return nil
}

// runRestore brings a gateway back from its backup.
func runRestore(_ context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("restore", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "Usage: porchlight restore [FLAGS] FILE")
		flags.PrintDefaults()
	}
	path := flags.String("c", "", "the config `FILE` to make (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	phraseFile := flags.String("phrase-file", "", "`FILE` that holds the recovery phrase (default: it is asked for)")
	force := flags.Bool("force", false, "also where there is a config already, which is kept as .before")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return errHelp
	case err != nil:
		return errUsageSaid
	case flags.NArg() != 1:
		return usageError("restore takes the file of one backup")
	}
	file := config.Path(*path)
	if _, err := os.Stat(file); err == nil && !*force {
		return fmt.Errorf("%s is there already, and nothing was changed; --force restores all the same", file)
	}
	sealed, err := os.Open(flags.Arg(0))
	if err != nil {
		return fmt.Errorf("cannot read the backup: %w", err)
	}
	defer sealed.Close()
	var phrase string
	if *phraseFile != "" {
		b, err := os.ReadFile(*phraseFile)
		if err != nil {
			return fmt.Errorf("cannot read the recovery phrase: %w", err)
		}
		phrase = string(b)
	} else {
		ask := &asker{in: bufio.NewReader(os.Stdin), out: stdout, terminal: term.IsTerminal(int(os.Stdin.Fd()))}
		if phrase, err = ask.secret("phrase-file", "Recovery phrase"); err != nil {
			return err
		}
	}
	content, err := backup.Open(sealed, phrase)
	if err != nil {
		return fmt.Errorf("nothing was restored: %w", err)
	}
	dataDir, err := content.Restore(file, func(staged string) (string, error) {
		var faults bytes.Buffer
		c, _, err := checkConfig(staged, &faults)
		if err != nil {
			return "", fmt.Errorf("the config of the backup is not valid for this version: %s", strings.TrimSpace(faults.String()))
		}
		if agent.Running(c) {
			return "", errors.New("a gateway is at work there; stop it first: sudo systemctl stop porchlight")
		}
		return c.Gateway.DataDir, nil
	})
	switch {
	case errors.Is(err, backup.ErrPart):
		return err
	case err != nil:
		return fmt.Errorf("nothing was restored: %w", err)
	}
	m := content.Manifest
	fmt.Fprintf(stdout, "%s is restored as of %s: %s and %s.\n", m.Gateway, m.Made.Local().Format(time.DateTime), file, dataDir)
	fmt.Fprintln(stdout, "What the old gateway had not sent by then comes from the old card alone. If it runs again, it notices that this one took its place, and stops.")
	fmt.Fprintln(stdout, "Next: sudo systemctl start porchlight")
	return nil
}
