package main

import (
	"bufio"
	"bytes"
	"cmp"
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

// toPubSub as the place of backups is the gateway's node on the XMPP server.
const toPubSub = "pubsub"

// runBackup makes one encrypted backup, which brings this gateway back.
func runBackup(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("backup", flag.ContinueOnError)
	flags.SetOutput(stderr)
	path := flags.String("c", "", "the config `FILE` (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	to := flags.String("to", ".", "the `FOLDER` to write to; or pubsub: the gateway's own node on the XMPP server, which only it and its owners may read")
	keep := flags.Int("keep", 0, fmt.Sprintf("how many of this gateway's backups are left there (default all; of pubsub %d)", config.KeptBackups))
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
	tellPhrase := func() {
		if fresh {
			fmt.Fprintf(stdout, "\nThe recovery phrase, without which nobody can read it. Write it down, and keep it elsewhere:\n\n    %s\n\n", phrase)
		}
	}
	warn := func(left []string) {
		for _, path := range left {
			fmt.Fprintf(stderr, "warning: %s is not in the backup: it is neither beside the config nor in the data directory\n", path)
		}
	}
	maker := backupMaker(file)
	if *to == toPubSub {
		tellPhrase()
		kept, err := agent.PublishBackup(ctx, c, cmp.Or(*keep, config.KeptBackups), maker)
		if err != nil {
			return err
		}
		warn(kept.Left)
		fmt.Fprintf(stdout, "node %s/backup: %d files of gateway %s, %s in %d items, encrypted, and read back; the phrase is all that protects them there\n", kept.Gateway, kept.Files, kept.Gateway, size(int64(kept.Bytes)), kept.Parts)
		return nil
	}
	sealed, err := maker(c)
	if err != nil {
		return err
	}
	warn(sealed.Left)
	if err := os.MkdirAll(*to, 0o700); err != nil {
		return fmt.Errorf("cannot make the folder: %w", err)
	}
	name := filepath.Join(*to, fmt.Sprintf("porchlight-%s-%s.age", c.Gateway.ID, sealed.Made.Format("20060102-150405")))
	if err := durable.Replace(name, sealed.Bytes); err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	fmt.Fprintf(stdout, "%s: %d files of gateway %s, %s\n", name, sealed.Files, c.Gateway.ID, size(int64(len(sealed.Bytes))))
	tellPhrase()
	if *keep > 0 {
		return removeOld(*to, c.Gateway.ID, *keep)
	}
	return nil
}

// backupMaker makes backups of the gateway whose config is file, by the phrase
// that there must be.
func backupMaker(file string) agent.BackupMaker {
	return func(c *config.Config) (made agent.SealedBackup, err error) {
		phrase, err := readPhrase(c.Gateway.DataDir)
		if errors.Is(err, os.ErrNotExist) {
			return made, errors.New("there is no recovery phrase yet: porchlight backup --show-phrase makes and shows it")
		} else if err != nil {
			return made, err
		}
		content, left, err := backup.Collect(c, file, versionNumber())
		if err != nil {
			return made, err
		}
		var sealed bytes.Buffer
		if err := content.Seal(&sealed, phrase); err != nil {
			return made, err
		}
		// What cannot be read back is no backup.
		if _, err := backup.Open(bytes.NewReader(sealed.Bytes()), phrase); err != nil {
			return made, err
		}
		return agent.SealedBackup{Made: content.Manifest.Made, Bytes: sealed.Bytes(), Files: len(content.Manifest.Files), Left: left}, nil
	}
}

func readPhrase(dataDir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, phraseFile))
	if err != nil {
		return "", fmt.Errorf("cannot read the recovery phrase: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// recoveryPhrase gives the phrase of this gateway, and makes it at the first
// time.
func recoveryPhrase(dataDir string) (phrase string, fresh bool, err error) {
	if phrase, err = readPhrase(dataDir); !errors.Is(err, os.ErrNotExist) {
		return phrase, false, err
	}
	phrase = backup.NewPhrase()
	uid, gid := setup.Service()
	if err := durable.ReplaceAs(filepath.Join(dataDir, phraseFile), []byte(phrase+"\n"), 0o600, uid, gid); err != nil {
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
func runRestore(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("restore", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "Usage: porchlight restore [FLAGS] FILE\n       porchlight restore [FLAGS] --from pubsub --address JID --secret-file FILE\n\n")
		flags.PrintDefaults()
	}
	path := flags.String("c", "", "the config `FILE` to make (default $PORCHLIGHT_CONFIG, else /etc/porchlight/porchlight.yaml)")
	phraseFile := flags.String("phrase-file", "", "`FILE` that holds the recovery phrase (default: it is asked for)")
	force := flags.Bool("force", false, "also where there is a config already, which is kept as .before")
	from := flags.String("from", "", "pubsub: take the newest whole backup from the gateway's node on the XMPP server, by the flags below")
	var at place
	flags.StringVar(&at.address, "address", "", "the gateway's account (`JID`), or its component's domain; or the account of an owner of the gateway (default: it is asked for)")
	flags.StringVar(&at.secretFile, "secret-file", "", "`FILE` that holds the password of the account, or the component's secret (default: it is asked for)")
	flags.StringVar(&at.server, "server", "", "`HOST:PORT` of the server (default found by DNS; for a component 127.0.0.1:5347)")
	flags.StringVar(&at.pubsub, "pubsub", "", "`JID` of the publish-subscribe service; pep for the account's own nodes; for an owner also the gateway's account (default found)")
	flags.StringVar(&at.caFile, "ca-file", "", "PEM `FILE` of the authority that signed the server's certificate (default those of the system)")
	flags.StringVar(&at.config, "xmpp", "", "`FILE` of a config whose section xmpp says how to log in, in place of the flags above")
	gateway := flags.String("gateway", "", "`ID` of the gateway, where several keep backups there, or the server does not show which do")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return errHelp
	case err != nil:
		return errUsageSaid
	case *from != "" && *from != toPubSub:
		return usageError(fmt.Sprintf("there are no backups from %q; there are from pubsub, and from a file", *from))
	case *from != "" && flags.NArg() != 0:
		return usageError("restore takes either a file or --from pubsub")
	case *from == "" && (at != place{} || *gateway != ""):
		return usageError("how to log in is for --from pubsub alone")
	case *from == "" && flags.NArg() != 1:
		return usageError("restore takes the file of one backup")
	}
	file := config.Path(*path)
	if _, err := os.Stat(file); err == nil && !*force {
		return fmt.Errorf("%s is there already, and nothing was changed; --force restores all the same", file)
	}
	ask := &asker{in: bufio.NewReader(os.Stdin), out: stdout, terminal: term.IsTerminal(int(os.Stdin.Fd()))}
	var sealed io.Reader
	if *from != "" {
		b, err := at.fetch(ctx, *gateway, ask, stdout, stderr)
		if err != nil {
			return err
		}
		sealed = bytes.NewReader(b)
	} else {
		f, err := os.Open(flags.Arg(0))
		if err != nil {
			return fmt.Errorf("cannot read the backup: %w", err)
		}
		defer f.Close()
		sealed = f
	}
	var phrase string
	if *phraseFile != "" {
		b, err := os.ReadFile(*phraseFile)
		if err != nil {
			return fmt.Errorf("cannot read the recovery phrase: %w", err)
		}
		phrase = string(b)
	} else {
		var err error
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

// fetchTime bounds a login and the reading of the biggest backup behind a slow
// server.
const fetchTime = 5 * time.Minute

// A place is where on XMPP a backup is.
type place struct{ address, secretFile, server, pubsub, caFile, config string }

// fetch gives the newest whole backup, and tells which it is.
func (p place) fetch(ctx context.Context, gateway string, ask *asker, stdout, stderr io.Writer) ([]byte, error) {
	c, err := p.login(ask, stderr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	sealed, of, err := agent.FetchBackup(ctx, c, gateway, func(left string) { fmt.Fprintln(stderr, "warning:", left) })
	if err != nil {
		return nil, fmt.Errorf("nothing was restored: %w", err)
	}
	fmt.Fprintf(stdout, "The newest whole backup there is of %s, of gateway %s, %s.\n", of.Made.Local().Format(time.DateTime), of.Gateway, size(int64(len(sealed))))
	return sealed, nil
}

// login gives a config that logs in.
func (p place) login(ask *asker, stderr io.Writer) (*config.Config, error) {
	if p.config != "" {
		if (p != place{config: p.config}) {
			return nil, usageError("--xmpp takes the place of --address, --secret-file, --server, --pubsub and --ca-file")
		}
		return loadConfig(p.config, stderr)
	}
	who, err := ask.answer("address", p.address, "Address of the gateway: an account (gateway@example.org), or a component's domain (porch.example.org); or your own, if you are its owner", isAddress)
	if err != nil {
		return nil, err
	}
	var secret string
	if p.secretFile != "" {
		b, err := os.ReadFile(p.secretFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the secret: %w", err)
		}
		secret = strings.TrimRight(string(b), "\r\n")
	} else if secret, err = ask.secret("secret-file", "Password or secret of "+who); err != nil {
		return nil, err
	}
	a := setup.Answers{PubSub: p.pubsub}
	if strings.Contains(who, "@") {
		a.Account = &setup.Account{JID: who, Password: secret, Server: p.server}
		if p.caFile != "" {
			if a.Account.CAFile, err = filepath.Abs(p.caFile); err != nil {
				return nil, err
			}
		}
		return a.Config()
	}
	if p.caFile != "" {
		return nil, usageError("--ca-file is for accounts; give a component with TLS by --xmpp")
	}
	a.Component = &setup.Component{Domain: who, Secret: secret, Server: cmp.Or(p.server, "127.0.0.1:5347")}
	if a.PubSub == "" {
		_, parent, _ := strings.Cut(who, ".")
		a.PubSub = "pubsub." + parent
	}
	return a.Config()
}
